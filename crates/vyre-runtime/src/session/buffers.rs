//! The device buffers of a session: made, filled, mirrored, and made again after a loss.
//!
//! The host keeps a copy of what it uploaded to a host-backed buffer, and the last mirror of the device's
//! own tables. After a loss the former are filled from the copy, the latter from the mirror, so quotas, the
//! epoch and the counters go on where they were last seen; everything else starts as zeros.

use std::sync::Arc;

use vyre_driver::{BackendError, BufferBinding, BufferDesc, Mirror, ResidentBinding, VyreBackend};

use super::plan::check_len;
use crate::error::MegakernelError;
use crate::handler::{Backing, HandlerBinding};

/// Where the bytes of a buffer come from when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Zeros; gone after a loss.
    Volatile,
    /// This at first, zeros after a loss.
    Initial(Vec<u8>),
    /// The host's copy, kept up to date by every upload.
    HostCopy(Vec<u8>),
    /// The last mirror, at this offset of the mirror area.
    Mirrored { last: Vec<u8>, offset: u64 },
}

/// What an entry is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A buffer of the backend.
    Device {
        /// What to allocate.
        desc: BufferDesc,
        /// What it is filled with.
        content: Content,
        /// The buffer or the part of it, once it is made.
        binding: Option<BufferBinding>,
        /// Whether the session made it, and so destroys it.
        owned: bool,
    },
    /// A section of the h2d region.
    HostToDevice {
        /// First byte.
        byte_offset: u64,
        /// Bytes.
        byte_len: u64,
    },
}

/// One buffer of the item programs, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) place: Place,
}

/// All buffers of a session, in the order in which the item programs declare them.
pub(super) struct DeviceBuffers {
    backend: Arc<dyn VyreBackend>,
    entries: Vec<Entry>,
}

impl Entry {
    /// A buffer that the session makes.
    pub(super) fn device(desc: BufferDesc, content: Content) -> Entry {
        let name = desc.label.clone();
        Entry { name, place: Place::Device { desc, content, binding: None, owned: true } }
    }

    /// A buffer that somebody else made.
    pub(super) fn given(
        declared: &HandlerBinding,
        binding: BufferBinding,
        backend: &dyn VyreBackend,
    ) -> Result<Entry, MegakernelError> {
        let element = binding.buffer.element;
        if element != declared.element {
            return Err(MegakernelError::InvalidBinding {
                binding: declared.name.clone(),
                problem: format!("elements of {element} are bound to it, {} declared", declared.element),
                remedy: "bind a buffer of the declared element type",
            });
        }
        let elements = binding.byte_len / element.size() as u64;
        check_len(declared, elements)?;
        let desc = BufferDesc::new(&declared.name, element, elements).in_space(declared.space);
        let content = match declared.backing {
            Backing::Volatile => Content::Volatile,
            Backing::HostBacked => {
                let mut copy = zeros(&desc)?;
                let read = backend.read_buffer(binding.buffer, binding.byte_offset, &mut copy);
                read.map_err(MegakernelError::backend("copy a bound buffer to the host"))?;
                Content::HostCopy(copy)
            }
        };
        let place = Place::Device { desc, content, binding: Some(binding), owned: false };
        Ok(Entry { name: declared.name.clone(), place })
    }
}

/// As many zero bytes as a buffer has.
pub(super) fn zeros(desc: &BufferDesc) -> Result<Vec<u8>, MegakernelError> {
    let bytes = desc.byte_len().and_then(|bytes| usize::try_from(bytes).ok());
    let mut zeros = Vec::new();
    match bytes {
        Some(bytes) if zeros.try_reserve_exact(bytes).is_ok() => {
            zeros.extend(std::iter::repeat_n(0, bytes));
            Ok(zeros)
        }
        _ => Err(MegakernelError::InvalidBinding {
            binding: desc.label.clone(),
            problem: format!("the host has no memory for a copy of {} elements", desc.len),
            remedy: "make it smaller, or volatile",
        }),
    }
}

impl DeviceBuffers {
    pub(super) fn new(backend: Arc<dyn VyreBackend>, entries: Vec<Entry>) -> DeviceBuffers {
        DeviceBuffers { backend, entries }
    }

    /// Makes and fills every buffer that is not there yet. After an error those already made stay.
    pub(super) fn create(&mut self) -> Result<(), BackendError> {
        let backend = &self.backend;
        for entry in &mut self.entries {
            let Place::Device { desc, content, binding: binding @ None, .. } = &mut entry.place else {
                continue;
            };
            let made = backend.create_buffer(desc)?;
            *binding = Some(made.binding());
            match content {
                Content::Initial(bytes)
                | Content::HostCopy(bytes)
                | Content::Mirrored { last: bytes, .. } => backend.write_buffer(made, 0, bytes)?,
                Content::Volatile => {}
            }
            if let Content::Initial(_) = content {
                *content = Content::Volatile;
            }
        }
        Ok(())
    }

    /// Refuses bindings that are longer than the buffers of their names.
    pub(super) fn check_lengths(&self, bindings: &[HandlerBinding]) -> Result<(), MegakernelError> {
        let lengths = self.entries.iter().filter_map(|entry| match &entry.place {
            Place::Device { desc, .. } => Some((&entry.name, desc.len)),
            Place::HostToDevice { .. } => None,
        });
        for (name, elements) in lengths {
            if let Some(binding) = bindings.iter().find(|binding| binding.name == *name) {
                check_len(binding, elements)?;
            }
        }
        Ok(())
    }

    /// Takes over all buffers of another; says how many it had before.
    pub(super) fn append(&mut self, other: &mut DeviceBuffers) -> usize {
        let before = self.entries.len();
        self.entries.append(&mut other.entries);
        before
    }

    /// Gives the buffers from `at` on away.
    pub(super) fn split_off(&mut self, at: usize) -> DeviceBuffers {
        let entries = self.entries.split_off(at.min(self.entries.len()));
        DeviceBuffers { backend: Arc::clone(&self.backend), entries }
    }

    /// Forgets the handles of a lost device, the user's included: what comes next is the session's own.
    pub(super) fn forget(&mut self) {
        for entry in &mut self.entries {
            if let Place::Device { binding, owned, .. } = &mut entry.place {
                *binding = None;
                *owned = true;
            }
        }
    }

    /// Gives back what the session made.
    pub(super) fn destroy(&mut self) {
        let backend = &self.backend;
        for entry in &mut self.entries {
            if let Place::Device { binding, owned: true, .. } = &mut entry.place
                && let Some(binding) = binding.take()
                && let Err(error) = backend.destroy_buffer(binding.buffer)
            {
                tracing::debug!(%error, buffer = entry.name, "a buffer was not given back");
            }
        }
    }

    /// One binding for each buffer, in order.
    pub(super) fn bindings(&self) -> Result<Vec<ResidentBinding>, MegakernelError> {
        let binding = |entry: &Entry| match entry.place {
            Place::HostToDevice { byte_offset, byte_len } => {
                Ok(ResidentBinding::HostToDevice { byte_offset, byte_len })
            }
            Place::Device { binding: Some(binding), .. } => Ok(ResidentBinding::Buffer(binding)),
            Place::Device { binding: None, .. } => Err(not_there(&entry.name)),
        };
        self.entries.iter().map(binding).collect()
    }

    /// The tables that the kernel mirrors, in the order of the buffers. `area` is where the mirror area
    /// begins in the d2h region.
    pub(super) fn mirrors(&self, area: u64) -> Vec<Mirror> {
        let mirror = |entry: &Entry| match &entry.place {
            Place::Device { content: Content::Mirrored { offset, .. }, binding: Some(source), .. } => {
                Some(Mirror { source: *source, d2h_offset: area.saturating_add(*offset) })
            }
            _ => None,
        };
        self.entries.iter().filter_map(mirror).collect()
    }

    /// Hands every mirrored table's bytes over, to be brought up to date, with its name and place.
    pub(super) fn for_each_mirror(&mut self, mut each: impl FnMut(&str, u64, &mut Vec<u8>)) {
        for entry in &mut self.entries {
            if let Place::Device { content: Content::Mirrored { last, offset }, .. } = &mut entry.place {
                each(&entry.name, *offset, last);
            }
        }
    }

    /// The last mirror of a table.
    pub(super) fn mirrored(&self, name: &str) -> &[u8] {
        match self.entries.iter().find(|entry| entry.name == name).map(|entry| &entry.place) {
            Some(Place::Device { content: Content::Mirrored { last, .. }, .. }) => last,
            _ => &[],
        }
    }

    /// Copies bytes into a buffer, and into the host's copy if there is one.
    pub(super) fn upload(
        &mut self,
        name: &str,
        byte_offset: u64,
        bytes: &[u8],
    ) -> Result<(), MegakernelError> {
        let backend = Arc::clone(&self.backend);
        let (binding, content) = self.device(name)?;
        let at = inside(name, &binding, byte_offset, bytes.len())?;
        let written = backend.write_buffer(binding.buffer, at, bytes);
        written.map_err(MegakernelError::backend("upload to a buffer"))?;
        if let Content::HostCopy(copy) = content {
            // As long as the buffer, so the range that fitted there fits here.
            let place = copy.iter_mut().skip(byte_offset as usize);
            place.zip(bytes).for_each(|(place, byte)| *place = *byte);
        }
        Ok(())
    }

    /// How long a buffer is, or the part of it that is bound, in bytes.
    pub(super) fn byte_len(&mut self, name: &str) -> Result<u64, MegakernelError> {
        Ok(self.device(name)?.0.byte_len)
    }

    /// Copies bytes out of a buffer.
    pub(super) fn download(
        &mut self,
        name: &str,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), MegakernelError> {
        let (binding, _) = self.device(name)?;
        let at = inside(name, &binding, byte_offset, into.len())?;
        self.backend
            .read_buffer(binding.buffer, at, into)
            .map_err(MegakernelError::backend("download a buffer"))
    }

    fn device(&mut self, name: &str) -> Result<(BufferBinding, &mut Content), MegakernelError> {
        let entry = self.entries.iter_mut().find(|entry| entry.name == name);
        match entry.map(|entry| &mut entry.place) {
            Some(Place::Device { binding: Some(binding), content, .. }) => Ok((*binding, content)),
            Some(Place::Device { binding: None, .. }) => Err(not_there(name)),
            Some(Place::HostToDevice { .. }) => Err(MegakernelError::InvalidBinding {
                binding: name.to_owned(),
                problem: "it lies in the host's region".to_owned(),
                remedy: "write payloads, or raise quotas, instead",
            }),
            None => Err(MegakernelError::InvalidBinding {
                binding: name.to_owned(),
                problem: "no handler names it".to_owned(),
                remedy: "use the name of a handler's binding",
            }),
        }
    }
}

impl Drop for DeviceBuffers {
    fn drop(&mut self) {
        self.destroy();
    }
}

fn not_there(name: &str) -> MegakernelError {
    MegakernelError::InvalidBinding {
        binding: name.to_owned(),
        problem: "it was lost with the device".to_owned(),
        remedy: "recover the session first",
    }
}

/// The place in the whole buffer of bytes in the part of it that is bound.
fn inside(name: &str, binding: &BufferBinding, offset: u64, bytes: usize) -> Result<u64, MegakernelError> {
    let end = offset.checked_add(bytes as u64).filter(|end| *end <= binding.byte_len);
    match end.and(binding.byte_offset.checked_add(offset)) {
        Some(at) => Ok(at),
        None => Err(out_of_buffer(name, offset, bytes, binding.byte_len)),
    }
}

fn out_of_buffer(name: &str, offset: u64, bytes: usize, len: u64) -> MegakernelError {
    MegakernelError::InvalidBinding {
        binding: name.to_owned(),
        problem: format!("{bytes} bytes at {offset} exceed its {len} bytes"),
        remedy: "stay inside the buffer",
    }
}
