use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use offset_allocator::{Allocation, Allocator};
use vyre_driver::region::SharedRegion;
use vyre_driver::ring::RingError;

use super::error::WireError;

/// Ranges begin at multiples of this many bytes: a cache line is never shared by two requests.
const ALIGN: u64 = 64;

/// Most ranges that are out at a time.
const MAX_RANGES: u64 = 64 * 1024;

/// Shared memory for bulk data, seen from the parent, which alone decides what lies where.
#[derive(Clone)]
pub struct TransferArena(Arc<Shared>);

struct Shared {
    region: SharedRegion,
    capacity: u64,
    ranges: Mutex<Ranges>,
    freed: Condvar,
}

struct Ranges {
    allocator: Allocator<u32>,
    /// Who waits for room, first come first. Only the first may take any, so that a large range gets its turn.
    queue: VecDeque<u64>,
    next_turn: u64,
}

impl TransferArena {
    /// An arena that can give `bytes` bytes in one piece. Somewhat more is reserved; memory is only used when
    /// touched.
    pub fn create(bytes: u64) -> Result<TransferArena, WireError> {
        let units = whole_bins(bytes.div_ceil(ALIGN).max(1));
        let capacity = u32::try_from(units).unwrap_or(u32::MAX);
        if u64::from(capacity) != units {
            let limit = u64::from(u32::MAX) * ALIGN;
            return Err(WireError::OutOfRange { offset: 0, bytes, limit });
        }
        // A range may cost two of the allocator's nodes: itself, and the rest of what it was cut from.
        let nodes = 2 * units.min(MAX_RANGES) + 2;
        let allocator = Allocator::with_max_allocs(capacity, nodes as u32);
        Ok(TransferArena(Arc::new(Shared {
            region: SharedRegion::create(units * ALIGN)?,
            capacity: units * ALIGN,
            ranges: Mutex::new(Ranges { allocator, queue: VecDeque::new(), next_turn: 0 }),
            freed: Condvar::new(),
        })))
    }

    /// Bytes that the arena can give in one piece when nothing else is out.
    pub fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// The memfd, for the worker.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.region.fd()
    }

    /// A range of `bytes` bytes, which may be none. Waits while others hold too much, in order of arrival.
    pub fn allocate(&self, bytes: u64, until: Instant) -> Result<Staging, WireError> {
        let shared = &self.0;
        let begun = Instant::now();
        let capacity = shared.capacity;
        if bytes > capacity {
            return Err(WireError::OutOfRange { offset: 0, bytes, limit: capacity });
        }
        let staging = |range: Option<Allocation<u32>>| {
            let offset = range.map_or(0, |range| u64::from(range.offset) * ALIGN);
            Staging { arena: Arc::clone(shared), range, offset, len: bytes }
        };
        if bytes == 0 {
            return Ok(staging(None));
        }
        let units = bytes.div_ceil(ALIGN) as u32;
        let mut ranges = shared.ranges();
        let turn = ranges.next_turn;
        ranges.next_turn += 1;
        ranges.queue.push_back(turn);
        loop {
            let first = ranges.queue.front() == Some(&turn);
            let range = if first { ranges.allocator.allocate(units) } else { None };
            let left = until.saturating_duration_since(Instant::now());
            if range.is_some() || left.is_zero() {
                ranges.queue.retain(|&other| other != turn);
                // Whoever is first now may find room.
                shared.freed.notify_all();
                drop(ranges);
                let waited = begun.elapsed();
                let full = WireError::ArenaFull { requested: bytes, capacity, waited };
                return if range.is_some() { Ok(staging(range)) } else { Err(full) };
            }
            ranges = match shared.freed.wait_timeout(ranges, left) {
                Ok((ranges, _)) => ranges,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl Shared {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The allocator keeps free room in bins whose sizes have four significant bits, and looks only into bins that
/// surely fit. Rounded up to such a size, an empty arena can be given away as a whole.
fn whole_bins(units: u64) -> u64 {
    let step = 1 << units.ilog2().saturating_sub(3);
    units.next_multiple_of(step)
}

impl fmt::Debug for TransferArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferArena").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// A range of a [`TransferArena`], free again when dropped: not before the worker has answered, or is gone.
pub struct Staging {
    arena: Arc<Shared>,
    range: Option<Allocation<u32>>,
    offset: u64,
    len: u64,
}

impl Staging {
    /// First byte, counted from the beginning of the arena.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes, as asked for.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes in, from `offset` of this range on.
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<(), WireError> {
        let at = self.at(offset, bytes.len())?;
        Ok(self.arena.region.copy_in(at, bytes)?)
    }

    /// Copies bytes out, from `offset` of this range on.
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<(), WireError> {
        let at = self.at(offset, into.len())?;
        Ok(self.arena.region.copy_out(at, into)?)
    }

    fn at(&self, offset: u64, bytes: usize) -> Result<u64, WireError> {
        inside(offset, bytes as u64, self.len)?;
        Ok(self.offset + offset)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(range) = self.range.take() {
            self.arena.ranges().allocator.free(range);
            self.arena.freed.notify_all();
        }
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("offset", &self.offset).field("len", &self.len).finish()
    }
}

/// The same memory, seen from the worker, which is told where to look.
#[derive(Debug)]
pub struct ArenaView {
    region: SharedRegion,
}

impl ArenaView {
    /// Maps an arena of `bytes` bytes at least. Refused unless its size is sealed.
    pub fn attach(fd: OwnedFd, bytes: u64) -> Result<ArenaView, WireError> {
        let region = SharedRegion::from_fd(fd, true)?;
        if region.len() < bytes {
            return Err(RingError::RegionSize { got: region.len(), expected: bytes }.into());
        }
        Ok(ArenaView { region })
    }

    /// Bytes mapped.
    pub fn len(&self) -> u64 {
        self.region.len()
    }

    /// Whether there are no bytes. Never so.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// Copies bytes in, at an offset from the beginning of the arena.
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<(), WireError> {
        inside(offset, bytes.len() as u64, self.len())?;
        Ok(self.region.copy_in(offset, bytes)?)
    }

    /// Copies bytes out, at an offset from the beginning of the arena.
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<(), WireError> {
        inside(offset, into.len() as u64, self.len())?;
        Ok(self.region.copy_out(offset, into)?)
    }

    /// The same range as bytes of this process's own: the length is checked before memory is asked for.
    pub fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, WireError> {
        inside(offset, bytes, self.len())?;
        let mut own = vec![0; bytes as usize];
        self.region.copy_out(offset, &mut own)?;
        Ok(own)
    }
}

fn inside(offset: u64, bytes: u64, limit: u64) -> Result<(), WireError> {
    if offset.checked_add(bytes).is_some_and(|end| end <= limit) {
        return Ok(());
    }
    Err(WireError::OutOfRange { offset, bytes, limit })
}
