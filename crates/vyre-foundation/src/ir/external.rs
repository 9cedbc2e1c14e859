//! Functions that a backend brings along instead of compiling them.

use std::fmt;

use super::{BufferAccess, BufferId, Expr, VarId};
use crate::types::{DataType, ScalarType};

/// Index into [`Program::externals`](super::Program::externals).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExternalId(pub u32);

/// An external function as a program declares it. A backend has one implementation for each name, with one
/// signature; [`crate::externals`] lists those that several backends share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct External {
    /// An identifier, unique among the external functions.
    pub name: String,
    /// Types of the scalar parameters, in order.
    pub params: Vec<ScalarType>,
    /// The buffers it takes, in order.
    pub buffers: Vec<ExternalBuffer>,
    /// Types of the values it returns, in order.
    pub results: Vec<ScalarType>,
}

/// A buffer that an external function takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExternalBuffer {
    /// What its elements are.
    pub element: DataType,
    /// What the function does with it.
    pub access: BufferAccess,
}

/// A call of an external function: once for a whole workgroup, with values on which it agrees.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalCall {
    /// The function called.
    pub external: ExternalId,
    /// One value for each scalar parameter.
    pub args: Vec<Expr>,
    /// One buffer of the program for each that the function takes.
    pub buffers: Vec<BufferId>,
    /// Immutable locals defined here, one for each result.
    pub results: Vec<VarId>,
}

/// As in the text form: `gemm(u32, f32) buffers(f16 read, f32 read_write) -> u32`.
impl fmt::Display for External {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        write_signature(f, &self.params, &self.buffers, &self.results)
    }
}

/// What follows the name of an external function.
pub(crate) fn write_signature(
    f: &mut impl fmt::Write,
    params: &[ScalarType],
    buffers: &[ExternalBuffer],
    results: &[ScalarType],
) -> fmt::Result {
    let types = |types: &[ScalarType]| types.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(", ");
    let buffer = |buffer: &ExternalBuffer| format!("{} {}", buffer.element, buffer.access.name());
    let buffers = buffers.iter().map(buffer).collect::<Vec<_>>().join(", ");
    write!(f, "({}) buffers({buffers})", types(params))?;
    match results {
        [] => Ok(()),
        [one] => write!(f, " -> {one}"),
        several => write!(f, " -> ({})", types(several)),
    }
}
