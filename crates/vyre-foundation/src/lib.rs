//! The typed IR of Vyre: programs, their validation, their text form and their wire form.
//!
//! A program is written once, with the builder or as `.vir` text, and runs on every backend with the
//! same results. This crate knows no backend, no ring and no operating system.
//!
//! ```
//! use vyre_foundation::builder::{Operand, ProgramBuilder};
//! use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, text, wire};
//!
//! let mut p = ProgramBuilder::kernel("scale").workgroup_size([64, 1, 1]);
//! let data = p.buffer("data", MemorySpace::Global, DataType::F16, BufferAccess::ReadWrite, 0);
//! p.entry(|f| {
//!     let i = f.let_("i", Builtin::GlobalId(Axis::X));
//!     f.store(data, i, data.load(i) * 0.5);
//! });
//! let program = p.validate()?;
//!
//! assert!(text::print(program.program()).contains("data[i] = data[i] * 0.5f32;"));
//! let bytes = wire::encode(program.program())?;
//! assert_eq!(&wire::decode(&bytes)?, program.program());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where things are
//!
//! * [`ir`] and [`types`]: the data structure, plain and unchecked.
//! * [`builder`]: writing programs in Rust. [`text`]: writing them as text, and printing them. [`wire`]: bytes
//!   and digests.
//! * [`validate()`]: the way from a [`Program`] to a [`ValidatedProgram`]; the module [`validate`](mod@validate)
//!   lists what it holds. [`limits`] and [`names`] are the numbers and the rule it shares with parser and decoder.
//! * [`semantics`]: what a program means, total for every operand. [`externals`]: functions that backends bring
//!   along.
//! * `arbitrary` and `filetest`, behind features of their names: generated programs and file tests, for
//!   this crate's tests and those of backends.
//!
//! # Architecture invariants
//!
//! * A backend receives a [`ValidatedProgram`], never a [`Program`]: no other function makes one.
//! * Decoding and parsing on any input, and validating any [`Program`], neither panic nor overflow the stack, and
//!   take time and memory in proportion to the size of what they are given.
//! * Equal valid programs, and only they, have equal text, equal bytes and equal digests.
//! * There is no optimiser here. A program is compiled as it is written; passes belong to backends.

#[cfg(any(test, feature = "arbitrary"))]
pub mod arbitrary;
pub mod builder;
mod depth;
pub mod externals;
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
    Atomic, AtomicOp, Axis, BinaryOp, BufferAccess, BufferDecl, BufferId, Builtin, Expr, External,
    ExternalBuffer, ExternalCall, ExternalId, Function, FunctionId, Granularity, Local, MemoryOrdering,
    MemoryScope, MemorySpace, Node, Program, ProgramKind, ReduceOp, RmwOp, Subgroup, SubgroupOp, SwitchCase,
    UnaryOp, VarId,
};
pub use types::{DataType, Literal, ScalarType};
pub use validate::{Facts, ValidatedProgram, ValidationErrors, validate};
pub use wire::Digest;
