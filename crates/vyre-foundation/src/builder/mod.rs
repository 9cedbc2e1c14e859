//! Writing programs by hand in Rust.
//!
//! [`ProgramBuilder`] makes a whole program; [`FunctionBuilder`] makes one function, for code that adds
//! functions to a program declared elsewhere. Expressions are [`Value`]s and use Rust's operators;
//! statements are methods of the function builder, and blocks are closures.
//!
//! ```
//! use vyre_foundation::builder::{Operand, ProgramBuilder};
//! use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace};
//!
//! let mut p = ProgramBuilder::kernel("double").workgroup_size([64, 1, 1]);
//! let data = p.buffer("data", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 0);
//! p.entry(|f| {
//!     let i = f.let_("i", Builtin::GlobalId(Axis::X));
//!     f.if_(i.lt(data.len()), |f| f.store(data, i, data.load(i) * 2));
//! });
//! let program = p.validate()?;
//! # Ok::<(), vyre_foundation::ValidationErrors>(())
//! ```
//!
//! **Literals.** A Rust `i32`, which is what a number without a suffix is, takes the type of its place or of
//! the other operand if that is an integer type: `x + 1` fits any integer `x`. With nothing to go by it is a
//! `u32`, or an `i32` if it is negative; `Literal::I32(1)` is always an `i32`. All other constants keep
//! their own type.
//!
//! **Mistakes.** The builder neither fails nor panics: a type error, an unknown local or a use out of scope
//! ends up in the program, and the validator names it.
//!
//! Absent on purpose: any check, any optimisation. An expression used twice is copied; bind it with
//! [`FunctionBuilder::let_`] to evaluate it once.

mod function;
mod operators;
mod program;
mod value;

pub use function::{ExternalHandle, FunctionBuilder, FunctionHandle, SwitchBuilder};
pub use program::ProgramBuilder;
pub use value::{Buffer, Operand, Value, Values, Var};
