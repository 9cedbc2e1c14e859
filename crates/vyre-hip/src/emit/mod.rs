//! A validated program as HIP C++, one source for both vendors.
//!
//! The source is meant to be read: names are the program's own behind a prefix that says what they are (`l_`
//! local, `b_` buffer, `f_` function, so that no name is a word of C++ or a macro of the vendors' headers), and a
//! statement is a statement. What an operation means is in `kernels/vyre_device.h`, as small functions whose
//! meaning is [`vyre_foundation::semantics`]; this room only chooses among them. [`abi`] is what a host must hand
//! over.
//!
//! # Ends of invocations
//!
//! A trap is recorded without a lock and returns through every call. A dispatch that is aborted ends at the back
//! edges of its loops: every 1024 rounds an invocation looks at the clock, every half a millisecond at the abort
//! word. It then ends alone, without a vote of its workgroup: as the semantics say, a barrier does not wait for
//! those that were cut short. On NVIDIA, whose barriers count threads that have not exited, the thread exits; on
//! AMD, whose barriers count waves, the lane returns and is masked until its wave ends. Those that wait at a
//! grid barrier look at the abort word as well. Loops of at most 64 rounds with constant bounds are not polled,
//! nor is what has no loop; a dispatch of very many workgroups without loops is not stopped between them.
//!
//! # Grid barriers
//!
//! [`GridBarriers::Native`] counts arrivals, in one cooperative launch. [`GridBarriers::Split`] makes one entry
//! for each part between barriers: locals of the entry that later parts use, and workgroup memory, go through
//! memory that the host provides; see [`SpillSizes`].
//!
//! # Bounds
//!
//! Every access is checked, unless its index is below the buffer's least length by what is written (literals,
//! masks, remainders, local ids, narrow loads and sums of such), or is an immutable local that an enclosing
//! `if` or `for` compares with the buffer's length. The validator proves no bounds; compilers remove more checks.
//!
//! # External functions
//!
//! Those of [`vyre_foundation::externals`] are in `kernels/vyre_externals.h`: the calling workgroup does them.
//!
//! # Items
//!
//! [`resident`] emits item programs as functions over the skeleton of `kernels/resident`. There a trap or an abort
//! ends the item and not the invocation, plain loads are preceded by an acquire, and stores are noted, so that the
//! completion of an item that stored is fenced and no other.

pub mod abi;
mod analysis;
mod bounds;
mod expression;
mod externals;
mod function;
mod passes;
mod program;
mod resident;
mod source;

use crate::api::Platform;
use vyre_driver::ResidentSpec;
use vyre_foundation::{ProgramKind, ValidatedProgram};

/// Flags that keep the meaning, for hipcc and clang.
pub const AMD_FLAGS: &[&str] =
    &["-ffp-contract=off", "-fno-fast-math", "-fhip-fp32-correctly-rounded-divide-sqrt"];

/// Flags that keep the meaning, for nvcc.
pub const NVIDIA_FLAGS: &[&str] = &["-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"];

/// The flags for a platform's compilers.
pub fn flags(platform: Platform) -> Vec<String> {
    let flags = match platform {
        Platform::Amd => AMD_FLAGS,
        Platform::Nvidia => NVIDIA_FLAGS,
    };
    flags.iter().map(|&flag| flag.to_owned()).collect()
}

/// How a program is emitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct EmitOptions {
    /// What becomes of grid barriers.
    pub grid_barriers: GridBarriers,
}

impl EmitOptions {
    /// The same with this form of grid barriers.
    pub fn with_grid_barriers(mut self, grid_barriers: GridBarriers) -> EmitOptions {
        self.grid_barriers = grid_barriers;
        self
    }
}

/// What becomes of grid barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GridBarriers {
    /// Counted arrivals: needs a cooperative launch, whose grid is resident as a whole.
    #[default]
    Native,
    /// One entry for each part, launched one after the other: any grid.
    Split,
}

/// A kernel as HIP C++.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmittedKernel {
    /// The source; it includes `vyre_device.h`.
    pub source: String,
    /// Symbols to launch, one after the other, with the same grid and arguments.
    pub entries: Vec<String>,
    /// Invocations per workgroup along x, y and z.
    pub workgroup_size: [u32; 3],
    /// Bytes of static workgroup memory.
    pub shared_bytes: u64,
    /// Whether the launch must be a cooperative one.
    pub uses_grid_barrier: bool,
    /// How the buffers are handed over.
    pub bindings: Bindings,
    /// What must be provided between entries; zero if there is one.
    pub spill: SpillSizes,
    /// The statement that a line stems from.
    pub lines: LineMap,
}

/// How the buffers are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bindings {
    /// So many [`abi::Binding`]s behind [`abi::Arguments`], all by value.
    Inline(usize),
    /// The device address of so many of them, because they are more than
    /// [`abi::MAX_INLINE_BINDINGS`].
    Table(usize),
}

/// A resident kernel as HIP C++.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmittedResident {
    /// The source; it includes `resident/kernel.h`.
    pub source: String,
    /// The symbol of the kernel that stays.
    pub kernel: String,
    /// The symbol of the kernel that runs before it, with the same argument and any grid.
    pub prepare: String,
    /// Invocations of a workgroup.
    pub threads: u32,
    /// How the buffers are handed over: as [`abi::ItemBinding`]s behind [`abi::Resident`], or the address of so
    /// many of them.
    pub bindings: Bindings,
    /// The statement that a line stems from.
    pub lines: LineMap,
}

/// Memory that survives from one entry to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SpillSizes {
    /// Bytes for each invocation of the dispatch.
    pub per_invocation: u64,
    /// Bytes for each workgroup of the dispatch, a multiple of 8.
    pub per_workgroup: u64,
}

/// Which statement of the program each line of the source stems from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineMap(Vec<(u32, String)>);

impl LineMap {
    /// The statement at a line, counted from 1, as the validator names places: `entry main / body[3].then[0]`.
    pub fn path(&self, line: u32) -> Option<&str> {
        let after = self.0.partition_point(|(first, _)| *first <= line);
        let (_, path) = self.0.get(after.checked_sub(1)?)?;
        (!path.is_empty()).then_some(path)
    }

    /// The first line of each statement with its path; an empty one where no statement is.
    pub fn entries(&self) -> &[(u32, String)] {
        &self.0
    }
}

/// Why a program is not emitted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// An item program.
    #[error("a program of kind {0:?} is no kernel; dispatch it through a megakernel")]
    NotAKernel(ProgramKind),
    /// A kernel where items are wanted.
    #[error("`{0}` is a kernel; a resident kernel runs item programs")]
    NotAnItem(String),
    /// A declared external function that this backend does not have.
    #[error("this backend has no external function `{declared}`; it has {}", externals::known())]
    NoExternal {
        /// Name and signature as declared.
        declared: String,
    },
}

/// How a resident kernel moves the quarters of slots, and completions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QuarterAccess {
    /// By one access of 16 bytes where that is atomic (NVIDIA, sm_70 and later), else as [`Fenced`](Self::Fenced).
    #[default]
    Single,
    /// As two double words, the one with the tag released last and acquired first. It needs no more than what every
    /// memory model promises, and costs a fence at every hop.
    Fenced,
}

impl QuarterAccess {
    /// [`Fenced`](Self::Fenced) if the environment variable `VYRE_FENCED` is 1.
    pub fn from_environment() -> Self {
        if std::env::var_os("VYRE_FENCED").is_some_and(|value| value == "1") {
            Self::Fenced
        } else {
            Self::Single
        }
    }
}

/// Emits a kernel that stays resident and runs items: each in a lane, and those that the workgroup program is for in
/// a workgroup once a lane has admitted them.
///
/// # Errors
///
/// If a program is not a [`ProgramKind::Item`], or declares an external function that is not one of
/// [`vyre_foundation::externals`].
pub fn resident(spec: &ResidentSpec, quarters: QuarterAccess) -> Result<EmittedResident, EmitError> {
    for program in std::iter::once(&spec.lane).chain(&spec.accounting).chain(&spec.workgroup) {
        if program.program().kind == ProgramKind::Kernel {
            return Err(EmitError::NotAnItem(program.program().name.clone()));
        }
        externals::check(program.program())?;
    }
    Ok(resident::emit(spec, quarters))
}

/// Emits a kernel.
///
/// # Errors
///
/// If the program is not a [`ProgramKind::Kernel`], or declares an external function that is not one of
/// [`vyre_foundation::externals`].
pub fn kernel(program: &ValidatedProgram, options: &EmitOptions) -> Result<EmittedKernel, EmitError> {
    match program.program().kind {
        ProgramKind::Kernel => {
            externals::check(program.program())?;
            Ok(program::emit(program, options))
        }
        kind @ ProgramKind::Item(_) => Err(EmitError::NotAKernel(kind)),
    }
}
