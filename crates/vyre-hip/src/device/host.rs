//! Host memory that the device accesses in place.
//!
//! The device writes it whenever it likes, so there is never a plain reference into it: access is by atomic
//! words and by copies whose bytes are atomic one by one, as in [`SharedRegion`].

use std::ffi::{c_uint, c_void};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};

use vyre_driver::region::{ReadOnlyU8, SharedRegion, copy_from_cells, copy_to_cells};

use super::context::{Context, Handle};
use super::memory::{check_range, size};
use super::release::Release;
use crate::api::{Api, Platform};
use crate::error::{DeviceError, HipError};

/// Known to every context of the process; the same number for both vendors, allocated or registered.
const PORTABLE: c_uint = 1;
/// Mapped into the device's address space; the same number for both vendors, allocated or registered.
const MAPPED: c_uint = 2;
/// HIP only: without it, memory may silently become coarse-grained, and a kernel that runs would see the
/// host's writes after its end. The CUDA driver's is always coherent.
const COHERENT: c_uint = 0x4000_0000;

/// Host memory that streams can copy from and to without staging.
pub trait HostMemory: sealed::Sealed + Send + Sync + 'static {
    /// Whose it is.
    fn context(&self) -> &Arc<Context>;
    /// Size in bytes.
    fn len(&self) -> u64;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Where the host sees it. Whoever dereferences it uses atomic accesses only.
    fn host_address(&self) -> NonNull<u8>;
    /// Where the device sees it.
    fn device_address(&self) -> u64;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::PinnedMemory {}
    impl Sealed for super::RegisteredMemory {}
}

/// Host memory allocated by the library: pinned, mapped and coherent.
#[derive(Debug)]
pub struct PinnedMemory {
    context: Arc<Context>,
    host: NonNull<u8>,
    device: u64,
    bytes: u64,
}

// SAFETY: the memory belongs to the process, not to a thread, and every access to it is atomic.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Allocates `bytes` zero bytes; 0 are refused. `what` is for the error message.
    pub fn new(context: &Arc<Context>, what: &str, bytes: u64) -> Result<Arc<PinnedMemory>, DeviceError> {
        if bytes == 0 {
            return Err(DeviceError::invalid("bytes", 0, "at least 1 byte of pinned memory"));
        }
        let size = size(bytes)?;
        let coherent = if context.api().platform() == Platform::Amd { COHERENT } else { 0 };
        let address = context.allocate(what, bytes, |api| {
            let mut address = std::ptr::null_mut();
            // SAFETY: a valid place for the address.
            unsafe { api.host_allocate(&mut address, size, PORTABLE | MAPPED | coherent) }?;
            Ok(Handle(address))
        })?;
        let mapped = context.call(|api| device_pointer(api, address.0));
        let (Some(host), Ok(device)) = (NonNull::new(address.0.cast::<u8>()), &mapped) else {
            context.release(Release::Pinned { address });
            return Err(mapped.err().unwrap_or_else(|| DeviceError::invalid("bytes", bytes, "an address")));
        };
        // SAFETY: freshly allocated, that many bytes, and nobody else has the address yet.
        unsafe { host.write_bytes(0, size) };
        Ok(Arc::new(PinnedMemory { context: Arc::clone(context), host, device: *device, bytes }))
    }

    /// Copies `from` to `offset`. A reader at the same time sees any mixture.
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let start = self.start(offset, from.len() as u64)?.cast::<AtomicU8>();
        // SAFETY: in bounds, lives as long as `self`, and every accessor is atomic.
        copy_to_cells(unsafe { NonNull::slice_from_raw_parts(start, from.len()).as_ref() }, from);
        Ok(())
    }

    /// Copies from `offset` into `to`.
    pub fn copy_out(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        let start = self.start(offset, to.len() as u64)?.cast::<ReadOnlyU8>();
        // SAFETY: as in `copy_in`.
        copy_from_cells(unsafe { NonNull::slice_from_raw_parts(start, to.len()).as_ref() }, to);
        Ok(())
    }

    /// The word at `offset`, which is a multiple of 4.
    pub fn word(&self, offset: u64) -> Result<&AtomicU32, DeviceError> {
        check_range("offset", offset, 4, self.bytes)?;
        if !offset.is_multiple_of(4) {
            return Err(DeviceError::invalid("offset", offset, "a multiple of 4"));
        }
        // SAFETY: in bounds, by the check above.
        let word = unsafe { self.host.add(offset as usize) }.cast::<AtomicU32>();
        // SAFETY: in bounds, aligned (the library aligns to pages), and lives as long as `self`.
        Ok(unsafe { word.as_ref() })
    }

    /// Where `bytes` bytes at `offset` begin.
    fn start(&self, offset: u64, bytes: u64) -> Result<NonNull<u8>, DeviceError> {
        check_range("offset", offset, bytes, self.bytes)?;
        // SAFETY: in bounds, by the check above.
        Ok(unsafe { self.host.add(offset as usize) })
    }
}

impl HostMemory for PinnedMemory {
    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn len(&self) -> u64 {
        self.bytes
    }

    fn host_address(&self) -> NonNull<u8> {
        self.host
    }

    fn device_address(&self) -> u64 {
        self.device
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.context.release(Release::Pinned { address: Handle(self.host.as_ptr().cast()) });
    }
}

/// A shared region that the device accesses through its own mapping of it. Another process's writes reach
/// the device as this process's do.
#[derive(Debug)]
pub struct RegisteredMemory {
    context: Arc<Context>,
    region: Arc<SharedRegion>,
    host: NonNull<u8>,
    device: u64,
}

// SAFETY: the mapping belongs to the process, not to a thread, and every access to it is atomic.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as above.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// Registers a region. It has to be mapped for writing, even if the device only reads.
    pub fn new(
        context: &Arc<Context>,
        region: &Arc<SharedRegion>,
    ) -> Result<Arc<RegisteredMemory>, DeviceError> {
        if !region.is_writable() {
            return Err(DeviceError::invalid("region", "a read-only mapping", "a writable one"));
        }
        // SAFETY: the pointer is not dereferenced here, and let go before the region.
        let (host, bytes) = unsafe { region.raw() };
        let address = Handle(host.as_ptr().cast());
        context.allocate("a registered region", region.len(), |api| {
            // SAFETY: the range is mapped for as long as the region lives, which the result keeps.
            unsafe { api.host_register(address.0, bytes, PORTABLE | MAPPED) }
        })?;
        match context.call(|api| device_pointer(api, address.0)) {
            Ok(device) => {
                let (context, region) = (Arc::clone(context), Arc::clone(region));
                Ok(Arc::new(RegisteredMemory { context, region, host, device }))
            }
            Err(error) => {
                context.release(Release::Registered { address, region: Arc::clone(region) });
                Err(error)
            }
        }
    }

    /// The region.
    pub fn region(&self) -> &Arc<SharedRegion> {
        &self.region
    }
}

impl HostMemory for RegisteredMemory {
    fn context(&self) -> &Arc<Context> {
        &self.context
    }

    fn len(&self) -> u64 {
        self.region.len()
    }

    fn host_address(&self) -> NonNull<u8> {
        self.host
    }

    fn device_address(&self) -> u64 {
        self.device
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        let address = Handle(self.host.as_ptr().cast());
        self.context.release(Release::Registered { address, region: Arc::clone(&self.region) });
    }
}

/// The device's address of mapped host memory.
fn device_pointer(api: &Api, host: *mut c_void) -> Result<u64, HipError> {
    let mut device = std::ptr::null_mut();
    // SAFETY: a valid place for the address, and memory that is allocated or registered as mapped.
    unsafe { api.host_device_pointer(&mut device, host, 0) }?;
    Ok(device.addr() as u64)
}
