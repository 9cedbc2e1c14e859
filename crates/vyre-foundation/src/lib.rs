//! The typed IR of Vyre: programs, their validation, their text form and their wire form.
//!
//! A program is written once, with the builder or as `.vir` text, and runs on every backend with the
//! same results. This crate knows no backend, no ring and no operating system.

#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
pub mod builder;
#[cfg(feature = "filetest")]
pub mod filetest;
pub mod ir;
pub mod limits;
pub mod names;
pub mod semantics;
pub mod text;
pub mod types;
pub mod validate;
pub mod wire;

pub use ir::{
    Atomic, AtomicOp, Axis, BinaryOp, BufferAccess, BufferDecl, BufferId, Builtin, Expr, Function,
    FunctionId, Granularity, Local, MemoryOrdering, MemoryScope, MemorySpace, Node, Program, ProgramKind,
    RmwOp, SwitchCase, UnaryOp, VarId,
};
pub use types::{DataType, Literal, ScalarType};
pub use validate::{Facts, ValidatedProgram, ValidationErrors, validate};
pub use wire::Digest;
