//! What a buffer is made of.

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::{BackendError, BufferDesc};
use vyre_foundation::MemorySpace;

use super::Inner;
use crate::DeviceError;
use crate::device::{DeviceMemory, HostMemory as _, PinnedMemory, Stream};

/// How long zeroing a buffer may take: the slowest device fills its whole memory in less.
const ZERO_DEADLINE: Duration = Duration::from_secs(30);

/// The memory of a buffer.
#[derive(Debug)]
pub(super) enum Memory {
    /// Global and uniform buffers.
    Device(Arc<DeviceMemory>),
    /// Host-visible buffers: pinned, mapped and coherent.
    Host(Arc<PinnedMemory>),
}

impl Memory {
    /// Memory for a buffer of that size, all zero.
    pub(super) fn zeroed(inner: &Inner, desc: &BufferDesc, bytes: u64) -> Result<Memory, BackendError> {
        let what = format!("buffer `{}`", desc.label);
        if desc.space == MemorySpace::HostVisible && bytes > 0 {
            return Ok(Memory::Host(PinnedMemory::new(&inner.context, &what, bytes)?));
        }
        let memory = DeviceMemory::new(&inner.context, &what, bytes)?;
        let lane = inner.lanes.take()?;
        lane.stream().fill(&memory, 0, bytes, 0)?;
        lane.stream().wait(ZERO_DEADLINE)?;
        inner.lanes.give_back(lane);
        Ok(Memory::Device(memory))
    }

    /// Where the device sees it.
    pub(super) fn address(&self) -> u64 {
        match self {
            Memory::Device(memory) => memory.address(),
            Memory::Host(memory) => memory.device_address(),
        }
    }

    /// Keeps the memory until what is enqueued next is done.
    pub(super) fn keep_for(&self, stream: &Stream) {
        match self {
            Memory::Device(memory) => stream.keep_alive(memory),
            Memory::Host(memory) => stream.keep_alive(memory),
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        match self {
            Memory::Device(memory) => memory.write(offset, bytes),
            Memory::Host(memory) => memory.copy_in(offset, bytes),
        }
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        match self {
            Memory::Device(memory) => memory.read(offset, into),
            Memory::Host(memory) => memory.copy_out(offset, into),
        }
    }
}
