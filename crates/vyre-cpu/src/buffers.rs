//! The buffers of a backend, and binding them to programs.
//!
//! Handles and their checks are the driver's [`BufferTable`]; here is what lies behind them. Absent on purpose:
//! any order between host access and running programs; the driver's contract leaves that to the caller.

use std::sync::Arc;

use vyre_driver::region::SharedRegion;
use vyre_driver::table::{self, BufferTable};
use vyre_driver::{BackendError, BufferBinding, BufferDesc, BufferHandle, Generation};
use vyre_foundation::{BufferAccess, BufferDecl, MemorySpace};

use crate::memory::{Budget, Keep, Memory, View};

/// The only incarnation of this device: host memory is not lost while the process lives.
pub(crate) const GENERATION: Generation = Generation(1);

/// All buffers of a backend.
pub(crate) struct Buffers {
    table: BufferTable<Memory>,
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
        Buffers { table: BufferTable::new(GENERATION), budget }
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) fn create(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        let bytes = table::check_desc(desc, self.budget.available())?;
        let charge = self.budget.charge(bytes);
        let memory = charge.and_then(|charge| Memory::zeroed(bytes, Some(charge)));
        let memory = memory.ok_or_else(|| table::out_of_memory(desc, bytes, self.budget.available()))?;
        Ok(self.table.insert(desc, Arc::new(memory)))
    }

    /// Has a buffer stay as long as somebody of this name has it bound.
    pub(crate) fn hold(&self, handle: BufferHandle, holder: &Arc<str>) -> Result<(), BackendError> {
        self.table.hold(handle, holder)
    }

    pub(crate) fn destroy(&self, handle: BufferHandle) -> Result<(), BackendError> {
        self.table.remove(handle).map(drop)
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
        self.table.range(handle, offset, bytes)
    }

    /// Binds what a program declares, in order, workgroup buffers left out.
    pub(crate) fn bind(&self, decls: &[BufferDecl], sources: &[Source<'_>]) -> Result<Bound, BackendError> {
        table::check_count(decls, sources.len())?;
        let mut sources = sources.iter();
        let mut bound =
            Bound { views: Vec::with_capacity(decls.len()), keep: Vec::with_capacity(sources.len()) };
        for decl in decls {
            let source = if decl.space == MemorySpace::Workgroup { None } else { sources.next() };
            let Some(source) = source else {
                bound.views.push(View::EMPTY);
                continue;
            };
            let (keep, offset, bytes) = match source {
                Source::Buffer(binding) => {
                    (Keep::Memory(self.table.bind(decl, binding)?), binding.byte_offset, binding.byte_len)
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

fn view(decl: &BufferDecl, keep: &Keep, offset: u64, bytes: u64) -> Result<View, BackendError> {
    table::check_elements(decl, offset, bytes)?;
    let size = decl.element.size() as u64;
    View::new(keep, offset, bytes, size).ok_or_else(|| {
        BackendError::invalid(
            "bindings",
            format!("memory that is not aligned for `{}`", decl.name),
            format!("an address that is a multiple of {size}"),
        )
    })
}
