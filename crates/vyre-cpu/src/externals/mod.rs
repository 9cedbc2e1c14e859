//! External functions: code of the host that programs may call, once for a whole workgroup.
//!
//! A function cannot fault, whatever it is given: it sees buffers only through [`ExternalView`], which holds what
//! every access of a program holds. It runs to its end even if the dispatch's deadline passes meanwhile.
//!
//! Absent on purpose: functions with a state of their own that a program could see.

mod gemm_f16;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use vyre_driver::BackendError;
use vyre_foundation::externals::Signature;
use vyre_foundation::semantics::{narrow, widen, zero};
use vyre_foundation::{BufferAccess, BufferDecl, DataType, Literal, Program};

use crate::memory::View;

pub use gemm_f16::{GemmElement, GemmReference, gemm_f16, gemm_f64};

/// An external function as this backend executes it.
pub trait ExternalFunction: fmt::Debug + Send + Sync {
    /// What a program must declare to call it.
    fn signature(&self) -> &Signature;

    /// Executes one call. There are as many scalars and buffers as the signature says, of its types. A result that
    /// is missing or of another type counts as zero.
    fn call(&self, scalars: &[Literal], buffers: &[ExternalView<'_>]) -> Vec<Literal>;
}

/// The external functions of a backend, each with a name of its own.
#[derive(Clone, Debug, Default)]
pub struct Externals(BTreeMap<&'static str, Arc<dyn ExternalFunction>>);

impl Externals {
    /// None.
    pub fn none() -> Externals {
        Externals::default()
    }

    /// Those that come with this crate: [`GEMM_F16`](vyre_foundation::externals::GEMM_F16) and
    /// [`GEMM_F16_F16`](vyre_foundation::externals::GEMM_F16_F16), on so many threads.
    pub fn standard(threads: usize) -> Externals {
        let [wide, narrow] = gemm_f16::externals(threads);
        Externals::none().with(Arc::new(wide)).with(Arc::new(narrow))
    }

    /// The same with another function, in the place of one that has its name.
    #[must_use]
    pub fn with(mut self, function: Arc<dyn ExternalFunction>) -> Externals {
        self.0.insert(function.signature().name, function);
        self
    }

    /// What a program may declare.
    pub fn signatures(&self) -> Vec<Signature> {
        self.0.values().map(|function| *function.signature()).collect()
    }

    /// The functions that a program declares, in order.
    pub(crate) fn resolve(&self, program: &Program) -> Result<Vec<Arc<dyn ExternalFunction>>, BackendError> {
        BackendError::check_externals(program, &self.signatures())?;
        let found = program.externals.iter().filter_map(|external| self.0.get(external.name.as_str()));
        Ok(found.cloned().collect())
    }
}

/// A buffer as an external function sees it. Indices are compared with its length: past the end, loads yield zero
/// and stores do nothing. Accesses race with those of other workgroups as a program's own do.
#[derive(Clone, Copy, Debug)]
pub struct ExternalView<'v> {
    view: &'v View,
    element: DataType,
    access: BufferAccess,
}

impl<'v> ExternalView<'v> {
    /// A view of the buffer with this declaration, for as much as the function may do and the program may.
    pub(crate) fn new(view: &'v View, decl: &BufferDecl, access: BufferAccess) -> ExternalView<'v> {
        let access = if decl.access.includes(access) { access } else { decl.access };
        ExternalView { view, element: decl.element, access }
    }

    /// What the elements are.
    pub fn element(&self) -> DataType {
        self.element
    }

    /// How many elements there are.
    pub fn len(&self) -> u64 {
        u64::from(self.view.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loads an element; zero past the end, and if the function does not read the buffer.
    pub fn load(&self, index: u64) -> Literal {
        match self.bits(index) {
            Some(bits) => widen(self.element, bits),
            None => zero(self.element.scalar()),
        }
    }

    /// Stores an element; nothing past the end, and if the function does not write the buffer or the value is not
    /// of the element's scalar type.
    pub fn store(&self, index: u64, value: Literal) {
        let (Ok(index), Some(bits)) = (u32::try_from(index), narrow(self.element, value)) else { return };
        if self.access != BufferAccess::Read {
            // SAFETY: a view is made for the elements of its declaration, and `access` allows no more than that,
            // which only memory that may be written was bound to.
            unsafe { self.view.set_bits(index, self.element.size(), bits) }
        }
    }

    /// Loads consecutive elements as floats; those past the end, and those of buffers that do not hold floats,
    /// are zero.
    pub fn load_floats(&self, first: u64, into: &mut [f32]) {
        for (value, index) in into.iter_mut().zip(0_u64..) {
            let bits = first.checked_add(index).and_then(|index| self.bits(index)).unwrap_or(0);
            *value = match self.element {
                DataType::F16 => f16::from_bits(bits as u16).to_f32(),
                DataType::BF16 => bf16::from_bits(bits as u16).to_f32(),
                DataType::F32 => f32::from_bits(bits as u32),
                _ => 0.0,
            };
        }
    }

    fn bits(&self, index: u64) -> Option<u64> {
        let index = u32::try_from(index).ok().filter(|_| self.access != BufferAccess::Write)?;
        // SAFETY: a view is made for the elements of its declaration.
        Some(unsafe { self.view.bits(index, self.element.size()) })
    }
}
