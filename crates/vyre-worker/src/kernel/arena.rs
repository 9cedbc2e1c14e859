use std::os::fd::OwnedFd;

use memmap2::{MmapMut, MmapOptions};
use vyre_driver::region::SharedRegion;

use super::message::Range;
use crate::wire::WireError;

/// The arena as bytes of this process: requests are read, and responses written, in place.
pub(super) struct ArenaBytes(MmapMut);

impl ArenaBytes {
    /// Maps an arena of `bytes` bytes at least. Refused unless its size is sealed.
    pub(super) fn attach(fd: OwnedFd, bytes: u64) -> Result<ArenaBytes, WireError> {
        let region = SharedRegion::from_fd(fd, true)?;
        if region.len() < bytes {
            return Err(WireError::OutOfRange { offset: 0, bytes, limit: region.len() });
        }
        let mut options = MmapOptions::new();
        options.len(bytes as usize);
        // SAFETY: the file's size is sealed, so no access faults. The parent, which this process trusts as it
        // trusts whoever may trace it, leaves both ranges of a request alone until it is answered.
        let map = unsafe { options.map_mut(&region.fd()) };
        Ok(ArenaBytes(map.map_err(|source| WireError::Os { call: "mmap", source })?))
    }

    /// The bytes of a request and the room for its response; none if they overlap or do not exist.
    pub(super) fn ranges(&mut self, request: Range, response: Range) -> Option<(&[u8], &mut [u8])> {
        let plain = |range: Range| {
            // An empty range is everywhere, so it overlaps nothing.
            let offset = if range.bytes == 0 { 0 } else { range.offset };
            Some(offset as usize..usize::try_from(offset.checked_add(range.bytes)?).ok()?)
        };
        let [request, response] = self.0.get_disjoint_mut([plain(request)?, plain(response)?]).ok()?;
        Some((request, response))
    }
}
