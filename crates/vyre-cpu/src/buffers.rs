//! The buffers of a backend: handles, checks, and binding to programs.
//!
//! Every refusal names the buffer and what would have been accepted. Absent on purpose: any order between
//! host access and running programs; the driver's contract leaves that to the caller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vyre_driver::region::SharedRegion;
use vyre_driver::{BackendError, BufferBinding, BufferDesc, BufferHandle, Generation};
use vyre_foundation::{BufferAccess, BufferDecl, MemorySpace};

use crate::memory::{Budget, Keep, Memory, View};

/// The only incarnation of this device: host memory is not lost while the process lives.
pub(crate) const GENERATION: Generation = Generation(1);

/// Numbers for buffers, of all backends of the process: a handle never fits another backend's buffer.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

struct Entry {
    handle: BufferHandle,
    label: String,
    space: MemorySpace,
    memory: Arc<Memory>,
}

/// All buffers of a backend.
pub(crate) struct Buffers {
    entries: Mutex<HashMap<u64, Entry>>,
    budget: Arc<Budget>,
}

/// The buffers of a program bound to memory: one view for each declaration, and what keeps them valid.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) views: Vec<View>,
    keep: Vec<Keep>,
}

/// What one declaration is bound to.
pub(crate) enum Source<'s> {
    /// A buffer of the backend.
    Buffer(BufferBinding),
    /// A range of an h2d region.
    Region { region: &'s Arc<SharedRegion>, offset: u64, bytes: u64 },
}

impl Buffers {
    pub(crate) fn new(budget: Arc<Budget>) -> Buffers {
        Buffers { entries: Mutex::new(HashMap::new()), budget }
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<u64, Entry>> {
        // Every change of the table is one insertion or removal, so a poisoned one is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn create(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        if desc.space == MemorySpace::Workgroup {
            return Err(BackendError::invalid(
                "space",
                "workgroup",
                "global, host-visible or uniform: workgroup memory belongs to a running workgroup",
            ));
        }
        let out_of_memory = |requested| BackendError::OutOfMemory {
            what: format!("buffer `{}`", desc.label),
            requested,
            available: self.budget.available(),
        };
        let bytes = desc.byte_len().ok_or_else(|| out_of_memory(u64::MAX))?;
        let charge = self.budget.charge(bytes).ok_or_else(|| out_of_memory(bytes))?;
        let memory = Memory::zeroed(bytes, Some(charge)).ok_or_else(|| out_of_memory(bytes))?;
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let handle = BufferHandle { id, generation: GENERATION, element: desc.element, len: desc.len };
        let entry = Entry { handle, label: desc.label.clone(), space: desc.space, memory: Arc::new(memory) };
        self.entries().insert(id, entry);
        Ok(handle)
    }

    pub(crate) fn destroy(&self, handle: BufferHandle) -> Result<(), BackendError> {
        let mut entries = self.entries();
        find(&entries, handle)?;
        entries.remove(&handle.id);
        Ok(())
    }

    pub(crate) fn write(&self, handle: BufferHandle, offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        let memory = self.memory(handle, offset, bytes.len() as u64)?;
        memory.copy_in(offset as usize, bytes);
        Ok(())
    }

    pub(crate) fn read(
        &self,
        handle: BufferHandle,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        let memory = self.memory(handle, offset, into.len() as u64)?;
        memory.copy_out(offset as usize, into);
        Ok(())
    }

    /// The memory of a buffer, if the range lies in it.
    pub(crate) fn memory(
        &self,
        handle: BufferHandle,
        offset: u64,
        bytes: u64,
    ) -> Result<Arc<Memory>, BackendError> {
        let entries = self.entries();
        let entry = find(&entries, handle)?;
        check_range(entry, offset, bytes)?;
        Ok(Arc::clone(&entry.memory))
    }

    /// Binds what a program declares, in order, workgroup buffers left out.
    pub(crate) fn bind(&self, decls: &[BufferDecl], sources: &[Source<'_>]) -> Result<Bound, BackendError> {
        let wanted = decls.iter().filter(|decl| decl.space != MemorySpace::Workgroup).count();
        if sources.len() != wanted {
            let expected = format!("{wanted}, one for each declared buffer that is not workgroup memory");
            return Err(BackendError::invalid("bindings", sources.len(), expected));
        }
        let entries = self.entries();
        let mut sources = sources.iter();
        let mut bound = Bound { views: Vec::with_capacity(decls.len()), keep: Vec::with_capacity(wanted) };
        for decl in decls {
            let source = if decl.space == MemorySpace::Workgroup { None } else { sources.next() };
            let Some(source) = source else {
                bound.views.push(View::EMPTY);
                continue;
            };
            let (keep, offset, bytes) = match source {
                Source::Buffer(binding) => {
                    let entry = find(&entries, binding.buffer)?;
                    check_range(entry, binding.byte_offset, binding.byte_len)?;
                    check_access(decl, entry)?;
                    (Keep::Memory(Arc::clone(&entry.memory)), binding.byte_offset, binding.byte_len)
                }
                Source::Region { region, offset, bytes } => {
                    if decl.access != BufferAccess::Read {
                        return Err(BackendError::invalid(
                            "bindings",
                            format!("the host-to-device region for `{}`, which is not read-only", decl.name),
                            "a device buffer: a device never writes that region",
                        ));
                    }
                    let end = offset.checked_add(*bytes);
                    if end.is_none_or(|end| end > region.len()) {
                        return Err(BackendError::invalid(
                            "bindings",
                            format!("bytes {offset}..{offset}+{bytes} for `{}`", decl.name),
                            format!("a range of the {} bytes of the host-to-device region", region.len()),
                        ));
                    }
                    (Keep::Region(Arc::clone(region)), *offset, *bytes)
                }
            };
            bound.views.push(view(decl, &keep, offset, bytes)?);
            bound.keep.push(keep);
        }
        Ok(bound)
    }
}

fn find(entries: &HashMap<u64, Entry>, handle: BufferHandle) -> Result<&Entry, BackendError> {
    let stale =
        BackendError::StaleHandle { id: handle.id, generation: handle.generation, current: GENERATION };
    let entry = entries.get(&handle.id).ok_or(stale)?;
    if entry.handle == handle {
        return Ok(entry);
    }
    if handle.generation != GENERATION {
        let (id, generation) = (handle.id, handle.generation);
        return Err(BackendError::StaleHandle { id, generation, current: GENERATION });
    }
    Err(BackendError::invalid(
        "buffer",
        format!("buffer {} as {} elements of {}", handle.id, handle.len, handle.element),
        format!("the handle that was given out: {} of {}", entry.handle.len, entry.handle.element),
    ))
}

fn check_range(entry: &Entry, offset: u64, bytes: u64) -> Result<(), BackendError> {
    let size = entry.memory.bytes();
    if offset.checked_add(bytes).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(BackendError::invalid(
        "range",
        format!("{bytes} bytes at {offset} of buffer `{}`", entry.label),
        format!("a range of its {size} bytes"),
    ))
}

fn check_access(decl: &BufferDecl, entry: &Entry) -> Result<(), BackendError> {
    let written = decl.access != BufferAccess::Read;
    let refused = match entry.space {
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
            format!("buffer `{}` for `{}`, which the program writes", entry.label, decl.name),
            expected,
        )),
    }
}

fn view(decl: &BufferDecl, keep: &Keep, offset: u64, bytes: u64) -> Result<View, BackendError> {
    let size = decl.element.size() as u64;
    if bytes / size < u64::from(decl.len) {
        return Err(BackendError::invalid(
            "bindings",
            format!("{} elements for `{}`", bytes / size, decl.name),
            format!("at least the {} it declares", decl.len),
        ));
    }
    let aligned = View::new(keep, offset, bytes, size).filter(|_| bytes.is_multiple_of(size));
    aligned.ok_or_else(|| {
        BackendError::invalid(
            "bindings",
            format!("{bytes} bytes at {offset} for `{}`", decl.name),
            format!("offset and length to be multiples of {size}, the size of a {}", decl.element),
        )
    })
}
