//! Handles to memory that a backend owns.

use std::fmt;

use vyre_foundation::{DataType, MemorySpace};

/// Counts the incarnations of a device: 1 at first, one more after every recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What to allocate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferDesc {
    /// For people and error messages.
    pub label: String,
    /// What the elements are.
    pub element: DataType,
    /// How many elements.
    pub len: u64,
    /// [`MemorySpace::Global`], [`MemorySpace::HostVisible`] or [`MemorySpace::Uniform`].
    pub space: MemorySpace,
}

impl BufferDesc {
    /// A device buffer.
    pub fn new(label: impl Into<String>, element: DataType, len: u64) -> BufferDesc {
        BufferDesc { label: label.into(), element, len, space: MemorySpace::Global }
    }

    /// The same in another space.
    pub fn in_space(mut self, space: MemorySpace) -> BufferDesc {
        self.space = space;
        self
    }

    /// Size in bytes, or `None` past `u64::MAX`.
    pub fn byte_len(&self) -> Option<u64> {
        self.len.checked_mul(self.element.size() as u64)
    }
}

/// A buffer of a backend. Copying it copies the name, not the memory; a handle whose generation is not the
/// backend's is refused by every call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferHandle {
    /// The backend's number for the buffer; never given out twice.
    pub id: u64,
    /// The device incarnation it belongs to.
    pub generation: Generation,
    /// What the elements are.
    pub element: DataType,
    /// How many elements.
    pub len: u64,
}

impl BufferHandle {
    /// The whole buffer, as a binding.
    pub fn binding(self) -> BufferBinding {
        BufferBinding {
            buffer: self,
            byte_offset: 0,
            byte_len: self.len.saturating_mul(self.element.size() as u64),
        }
    }

    /// Part of the buffer, as a binding: elements `first..first + len`.
    pub fn slice(self, first: u64, len: u64) -> BufferBinding {
        let size = self.element.size() as u64;
        BufferBinding {
            buffer: self,
            byte_offset: first.saturating_mul(size),
            byte_len: len.saturating_mul(size),
        }
    }
}

/// A range of a buffer, bound to one declared buffer of a program. The backend checks range, alignment to
/// the declared element, and the declared least length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferBinding {
    /// The buffer.
    pub buffer: BufferHandle,
    /// First byte, a multiple of the declared element's size.
    pub byte_offset: u64,
    /// Bytes, a multiple of the declared element's size.
    pub byte_len: u64,
}
