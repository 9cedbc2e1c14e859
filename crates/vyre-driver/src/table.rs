//! The buffers of a backend by their handles, and the checks that every backend makes of both.
//!
//! What a buffer's memory is, only the backend knows: the table is generic over it. Every refusal names the
//! buffer and what would have been accepted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vyre_foundation::{BufferAccess, BufferDecl, MemorySpace};

use crate::buffer::{BufferBinding, BufferDesc, BufferHandle, Generation};
use crate::error::BackendError;

/// Numbers for buffers, of all backends of the process: a handle never fits another backend's buffer.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// All buffers of one generation of a backend.
#[derive(Debug)]
pub struct BufferTable<M> {
    generation: Generation,
    entries: Mutex<HashMap<u64, Entry<M>>>,
}

#[derive(Debug)]
struct Entry<M> {
    handle: BufferHandle,
    label: String,
    space: MemorySpace,
    bytes: u64,
    memory: Arc<M>,
    /// The names of those who have it bound, as long as they do.
    holders: Vec<Weak<str>>,
}

/// Refuses a description of what no backend can allocate; yields the size in bytes.
///
/// # Errors
///
/// [`BackendError::InvalidArgument`] for workgroup memory, [`BackendError::OutOfMemory`] past `available`.
pub fn check_desc(desc: &BufferDesc, available: u64) -> Result<u64, BackendError> {
    if desc.space == MemorySpace::Workgroup {
        return Err(BackendError::invalid(
            "space",
            "workgroup",
            "global, host-visible or uniform: workgroup memory belongs to a running workgroup",
        ));
    }
    match desc.byte_len() {
        Some(bytes) if bytes <= available => Ok(bytes),
        bytes => Err(out_of_memory(desc, bytes.unwrap_or(u64::MAX), available)),
    }
}

/// There is no memory for a buffer.
pub fn out_of_memory(desc: &BufferDesc, requested: u64, available: u64) -> BackendError {
    BackendError::OutOfMemory { what: format!("buffer `{}`", desc.label), requested, available }
}

/// What the bindings of a dispatch are for: declared buffers in order, workgroup buffers left out.
pub fn bound(decls: &[BufferDecl]) -> impl Iterator<Item = &BufferDecl> {
    decls.iter().filter(|decl| decl.space != MemorySpace::Workgroup)
}

/// Refuses any other number of bindings than there are declared buffers to bind.
///
/// # Errors
///
/// [`BackendError::InvalidArgument`].
pub fn check_count(decls: &[BufferDecl], given: usize) -> Result<(), BackendError> {
    let wanted = bound(decls).count();
    if given == wanted {
        return Ok(());
    }
    let expected = format!("{wanted}, one for each declared buffer that is not workgroup memory");
    Err(BackendError::invalid("bindings", given, expected))
}

/// Refuses a range that is shorter than declared, or does not consist of whole elements.
///
/// # Errors
///
/// [`BackendError::InvalidArgument`].
pub fn check_elements(decl: &BufferDecl, byte_offset: u64, byte_len: u64) -> Result<(), BackendError> {
    let size = decl.element.size() as u64;
    if byte_len / size < u64::from(decl.len) {
        return Err(BackendError::invalid(
            "bindings",
            format!("{} elements for `{}`", byte_len / size, decl.name),
            format!("at least the {} it declares", decl.len),
        ));
    }
    if byte_len.is_multiple_of(size) && byte_offset.is_multiple_of(size) {
        return Ok(());
    }
    Err(BackendError::invalid(
        "bindings",
        format!("{byte_len} bytes at {byte_offset} for `{}`", decl.name),
        format!("offset and length to be multiples of {size}, the size of a {}", decl.element),
    ))
}

impl<M> BufferTable<M> {
    /// A table without buffers.
    pub fn new(generation: Generation) -> BufferTable<M> {
        BufferTable { generation, entries: Mutex::new(HashMap::new()) }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Entry<M>>> {
        // Every change of the table is one insertion or removal, so a poisoned one is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a buffer, whose memory is as large as described.
    pub fn insert(&self, desc: &BufferDesc, memory: Arc<M>) -> BufferHandle {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let handle = BufferHandle { id, generation: self.generation, element: desc.element, len: desc.len };
        let bytes = desc.byte_len().unwrap_or(0);
        let entry = Entry {
            handle,
            label: desc.label.clone(),
            space: desc.space,
            bytes,
            memory,
            holders: Vec::new(),
        };
        self.entries().insert(id, entry);
        handle
    }

    /// Has a buffer stay until the last reference to the name of who has it bound is gone.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove).
    pub fn hold(&self, handle: BufferHandle, holder: &Arc<str>) -> Result<(), BackendError> {
        let mut entries = self.entries();
        self.find(&entries, handle)?;
        if let Some(entry) = entries.get_mut(&handle.id) {
            entry.holders.retain(|holder| holder.strong_count() > 0);
            entry.holders.push(Arc::downgrade(holder));
        }
        Ok(())
    }

    /// Takes a buffer out.
    ///
    /// # Errors
    ///
    /// [`BackendError::StaleHandle`], [`BackendError::InvalidArgument`] for a handle that was changed, and for a
    /// buffer that somebody [holds](Self::hold), whom it names.
    pub fn remove(&self, handle: BufferHandle) -> Result<Arc<M>, BackendError> {
        let mut entries = self.entries();
        let entry = self.find(&entries, handle)?;
        if let Some(holder) = entry.holders.iter().find_map(Weak::upgrade) {
            return Err(BackendError::invalid(
                "buffer",
                format!("buffer `{}`, which {holder} has bound", entry.label),
                "a buffer that no resident kernel has bound; stop that one first",
            ));
        }
        // It was found under the same lock.
        entries.remove(&handle.id).map(|entry| entry.memory).ok_or_else(|| self.stale(handle))
    }

    /// The memory of a buffer, if the range lies in it.
    ///
    /// # Errors
    ///
    /// As [`remove`](Self::remove), and [`BackendError::InvalidArgument`] for the range.
    pub fn range(&self, handle: BufferHandle, offset: u64, bytes: u64) -> Result<Arc<M>, BackendError> {
        let entries = self.entries();
        let entry = self.find(&entries, handle)?;
        entry.check_range(offset, bytes)?;
        Ok(Arc::clone(&entry.memory))
    }

    /// The memory that a declared buffer is bound to. The elements are for [`check_elements`] to check.
    ///
    /// # Errors
    ///
    /// As [`range`](Self::range), and for a program that writes what it may not.
    pub fn bind(&self, decl: &BufferDecl, binding: &BufferBinding) -> Result<Arc<M>, BackendError> {
        let entries = self.entries();
        let entry = self.find(&entries, binding.buffer)?;
        entry.check_range(binding.byte_offset, binding.byte_len)?;
        entry.check_access(decl)?;
        Ok(Arc::clone(&entry.memory))
    }

    fn stale(&self, handle: BufferHandle) -> BackendError {
        BackendError::StaleHandle { id: handle.id, generation: handle.generation, current: self.generation }
    }

    fn find<'e>(
        &self,
        entries: &'e HashMap<u64, Entry<M>>,
        handle: BufferHandle,
    ) -> Result<&'e Entry<M>, BackendError> {
        let entry = entries.get(&handle.id).ok_or_else(|| self.stale(handle))?;
        if entry.handle == handle {
            return Ok(entry);
        }
        if handle.generation != self.generation {
            return Err(self.stale(handle));
        }
        Err(BackendError::invalid(
            "buffer",
            format!("buffer {} as {} elements of {}", handle.id, handle.len, handle.element),
            format!("the handle that was given out: {} of {}", entry.handle.len, entry.handle.element),
        ))
    }
}

impl<M> Entry<M> {
    fn check_range(&self, offset: u64, bytes: u64) -> Result<(), BackendError> {
        let size = self.bytes;
        if offset.checked_add(bytes).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(BackendError::invalid(
            "range",
            format!("{bytes} bytes at {offset} of buffer `{}`", self.label),
            format!("a range of its {size} bytes"),
        ))
    }

    fn check_access(&self, decl: &BufferDecl) -> Result<(), BackendError> {
        let written = decl.access != BufferAccess::Read;
        let refused = match self.space {
            MemorySpace::Uniform => written.then_some("a buffer that may be written, not a uniform one"),
            // Read-modify-write exists on global declarations only, and must not reach memory that the host
            // touches.
            MemorySpace::HostVisible => (written && decl.space == MemorySpace::Global)
                .then_some("a global buffer, or a host-visible declaration"),
            MemorySpace::Global | MemorySpace::Workgroup => None,
        };
        match refused {
            None => Ok(()),
            Some(expected) => Err(BackendError::invalid(
                "bindings",
                format!("buffer `{}` for `{}`, which the program writes", self.label, decl.name),
                expected,
            )),
        }
    }
}
