//! Memory on the device.

use std::sync::Arc;
use std::time::Duration;

use super::context::{Context, Handle};
use super::event::Event;
use super::release::Release;
use crate::error::DeviceError;

/// How long bytes that have left the host may be on their way: a bus, not a kernel, is waited for.
const COPY_DEADLINE: Duration = Duration::from_secs(60);

/// Memory on the device. What it holds at first is undefined.
#[derive(Debug)]
pub struct DeviceMemory {
    context: Arc<Context>,
    address: Handle,
    bytes: u64,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes, aligned to at least 256. None are allocated for 0 bytes. `what` is for the
    /// error message.
    pub fn new(context: &Arc<Context>, what: &str, bytes: u64) -> Result<Arc<DeviceMemory>, DeviceError> {
        let mut address = Handle(std::ptr::null_mut());
        if bytes > 0 {
            let size = size(bytes)?;
            address = context.allocate(what, bytes, |api| {
                let mut address = std::ptr::null_mut();
                // SAFETY: a valid place for the address.
                unsafe { api.memory_allocate(&mut address, size) }?;
                Ok(Handle(address))
            })?;
            context.count_allocated(bytes);
        }
        Ok(Arc::new(DeviceMemory { context: Arc::clone(context), address, bytes }))
    }

    /// Whose it is.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The device's address of it, for a kernel's argument; 0 for no bytes. Whoever launches the kernel keeps
    /// the memory until it is done ([`super::Stream::keep_alive`]).
    pub fn address(&self) -> u64 {
        self.address.0.addr() as u64
    }

    /// Copies `from` to `offset`, and returns when later operations on any stream see the bytes. Not ordered
    /// with operations that streams are still at.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), DeviceError> {
        let to = self.at("offset", offset, from.len() as u64)?;
        if from.is_empty() {
            return Ok(());
        }
        self.context.call(|api| {
            // SAFETY: both ranges are valid until the call returns; the library only reads `from`.
            unsafe { api.copy_to_device(to.0, from.as_ptr().cast_mut().cast(), from.len()) }
        })?;
        // The call returns when `from` may change again, which is before the bytes have arrived: they may
        // still be in the library's own buffer, and our streams do not wait for the default one.
        let arrived = Event::without_timing(&self.context)?;
        arrived.record_on_default()?;
        arrived.wait(COPY_DEADLINE)
    }

    /// Copies from `offset` into `to`, and returns when the bytes are there. Not ordered with operations that
    /// streams are still at.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        let from = self.at("offset", offset, to.len() as u64)?;
        if to.is_empty() {
            return Ok(());
        }
        self.context.call(|api| {
            // SAFETY: both ranges are valid, and ours alone, until the call returns.
            unsafe { api.copy_to_host(to.as_mut_ptr().cast(), from.0, to.len()) }
        })
    }

    /// The address of `bytes` bytes at `offset`.
    pub(crate) fn at(&self, argument: &'static str, offset: u64, bytes: u64) -> Result<Handle, DeviceError> {
        check_range(argument, offset, bytes, self.bytes)?;
        Ok(Handle(self.address.0.wrapping_byte_add(size(offset)?)))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.context.release(Release::Device { address: self.address, bytes: self.bytes });
        }
    }
}

/// Refuses a range that is not inside `len` bytes.
pub(super) fn check_range(
    argument: &'static str,
    offset: u64,
    bytes: u64,
    len: u64,
) -> Result<(), DeviceError> {
    if offset.checked_add(bytes).is_some_and(|end| end <= len) {
        return Ok(());
    }
    Err(DeviceError::invalid(
        argument,
        format!("{offset} for {bytes} bytes"),
        format!("a range of {len} bytes"),
    ))
}

/// A size of this process's address space.
pub(super) fn size(bytes: u64) -> Result<usize, DeviceError> {
    usize::try_from(bytes).map_err(|_| DeviceError::invalid("bytes", bytes, "a size that fits an address"))
}
