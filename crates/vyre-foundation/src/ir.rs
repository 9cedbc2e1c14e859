//! The data structure: a [`Program`] of functions over declared buffers.
//!
//! Expressions have no side effects and no order among themselves; everything that changes memory or
//! control is a [`Node`]. That is why a backend may evaluate an expression for lanes that do not need it,
//! and why atomics and calls are nodes that *define* a local instead of expressions.
//!
//! These types say nothing about being well formed. Only [`crate::ValidatedProgram`] does, and only that
//! type reaches a backend.
//!
//! Dropping and cloning take no stack, however deep statements and expressions are. Comparing, hashing and
//! `{:?}` recurse: they are for what is no deeper than [`MAX_DEPTH`](crate::wire::MAX_DEPTH), as everything is
//! that was validated, parsed or decoded.
//!
pub(crate) mod external;
mod subgroup;

pub use external::{External, ExternalBuffer, ExternalCall, ExternalId};
pub use subgroup::{ReduceOp, Subgroup, SubgroupOp};

use crate::types::{DataType, Literal, ScalarType};

/// Index into [`Program::buffers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// Index into [`Program::functions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(pub u32);

/// Index into [`Function::locals`] of the enclosing function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VarId(pub u32);

/// A whole program: what a backend compiles.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// An identifier, for people and error messages.
    pub name: String,
    /// How the entry is run.
    pub kind: ProgramKind,
    /// Invocations per workgroup along x, y and z.
    pub workgroup_size: [u32; 3],
    /// The memory the program touches; a dispatch binds them in this order, workgroup buffers left out.
    pub buffers: Vec<BufferDecl>,
    /// External functions, which the backend must have, called or not.
    pub externals: Vec<External>,
    /// Functions the entry, or one another, may call. Calls are acyclic.
    pub functions: Vec<Function>,
    /// Where an invocation starts. A [`ProgramKind::Kernel`] entry has no parameters and no results.
    pub entry: Function,
}

/// How the entry of a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProgramKind {
    /// Dispatched over a grid of workgroups; the entry takes nothing and returns nothing.
    Kernel,
    /// Run once per item of a work ring; the entry takes the item's words and returns its outcome.
    Item(Granularity),
}

/// How much of the machine one item occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Granularity {
    /// One invocation per item: its parameters differ from lane to lane, so barriers and workgroup memory
    /// are refused, and so are all invocation ids.
    Lane,
    /// One workgroup per item: its parameters are uniform in the workgroup, barriers are allowed, and the
    /// outcome is what invocation 0 returned. Local ids are available; workgroup and global ids are not.
    Workgroup,
}

/// A declared buffer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BufferDecl {
    /// An identifier, unique in the program.
    pub name: String,
    /// Where the buffer lives.
    pub space: MemorySpace,
    /// What its elements are.
    pub element: DataType,
    /// What the program may do with it.
    pub access: BufferAccess,
    /// Elements: the exact length of a workgroup buffer, the least length of any other.
    pub len: u32,
}

/// Where a buffer lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemorySpace {
    /// Memory that only the device touches while a program runs: atomics of every kind are allowed.
    Global,
    /// Memory that host and device may both touch while a program runs. Read-modify-write is refused: it
    /// must never cross a bus.
    HostVisible,
    /// Memory of one workgroup, zero when the workgroup starts.
    Workgroup,
    /// Small, read-only, the same for every invocation: a load at a uniform index is uniform.
    Uniform,
}

/// What a program may do with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BufferAccess {
    /// Loads only.
    Read,
    /// Stores only.
    Write,
    /// Loads, stores and atomics.
    ReadWrite,
}

impl BufferAccess {
    /// Every access, in wire order.
    pub const ALL: [BufferAccess; 3] = [BufferAccess::Read, BufferAccess::Write, BufferAccess::ReadWrite];

    /// The name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            BufferAccess::Read => "read",
            BufferAccess::Write => "write",
            BufferAccess::ReadWrite => "read_write",
        }
    }

    /// Whether it allows everything that `wanted` does.
    pub const fn includes(self, wanted: BufferAccess) -> bool {
        matches!(
            (self, wanted),
            (BufferAccess::ReadWrite, _)
                | (BufferAccess::Read, BufferAccess::Read)
                | (BufferAccess::Write, BufferAccess::Write)
        )
    }
}

/// A function, or the entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    /// An identifier, unique among the functions.
    pub name: String,
    /// How many of the first [`locals`](Self::locals) are parameters, in order.
    pub params: u32,
    /// Types of the values returned, in order.
    pub results: Vec<ScalarType>,
    /// Parameters, then every local the body defines.
    pub locals: Vec<Local>,
    /// Statements, in order.
    pub body: Vec<Node>,
}

/// A local variable of a function. Names are unique in their function, so the text form needs no scopes to
/// tell two apart; a local is visible from its definition to the end of the block that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// An identifier, unique in the function.
    pub name: String,
    /// Its type.
    pub ty: ScalarType,
    /// Whether [`Node::Assign`] may change it. Parameters, loop counters and the locals that an atomic, a
    /// subgroup operation or a call defines are not mutable.
    pub mutable: bool,
}

/// A statement.
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// Defines a local, once.
    Let {
        /// The local defined.
        var: VarId,
        /// Its first value.
        value: Expr,
    },
    /// Changes a mutable local.
    Assign {
        /// The local changed.
        var: VarId,
        /// Its new value.
        value: Expr,
    },
    /// Stores one element; an index past the end stores nothing.
    Store {
        /// The buffer.
        buffer: BufferId,
        /// The element, a `u32`.
        index: Expr,
        /// The value, of the buffer's scalar type; narrowed to its element type.
        value: Expr,
    },
    /// One atomic access.
    Atomic(Atomic),
    /// One operation of a subgroup. It stands where a workgroup barrier may, and waits for nobody else.
    Subgroup(Subgroup),
    /// Runs one of two blocks.
    If {
        /// A `bool`.
        condition: Expr,
        /// Run when true.
        then: Vec<Node>,
        /// Run when false.
        otherwise: Vec<Node>,
    },
    /// Runs the one block that lists the selector's value, or the default. There is no fall-through, and
    /// `break` inside belongs to the enclosing loop.
    Switch {
        /// A `u32`.
        selector: Expr,
        /// Blocks with the values that choose them; no value appears twice.
        cases: Vec<SwitchCase>,
        /// Run when no case lists the value.
        default: Vec<Node>,
    },
    /// Runs the body for `var = start, start + step, ...` while `var < end` (unsigned). Start and end are
    /// evaluated once; a counter that would pass `u32::MAX` ends the loop.
    For {
        /// The counter, an immutable `u32` local defined here and visible in the body.
        var: VarId,
        /// First value, a `u32`.
        start: Expr,
        /// Bound, a `u32`, not reached.
        end: Expr,
        /// Added after each round; not zero.
        step: u32,
        /// The body.
        body: Vec<Node>,
    },
    /// Runs the body as long as the condition holds before it.
    While {
        /// A `bool`, evaluated before every round.
        condition: Expr,
        /// The body.
        body: Vec<Node>,
    },
    /// Leaves the innermost loop.
    Break,
    /// Goes on with the next round of the innermost loop.
    Continue,
    /// Leaves the function with its results; in a kernel's entry, ends the invocation.
    Return(Vec<Expr>),
    /// A scope.
    Block(Vec<Node>),
    /// Waits for every invocation of the workgroup, and makes their writes to workgroup and global memory
    /// visible to each other.
    WorkgroupBarrier,
    /// The same for every invocation of the dispatch. Only at the top level of a kernel's entry.
    GridBarrier,
    /// Ends the invocation, from any depth of calls, with a code that the dispatch or the item reports.
    Trap(Expr),
    /// Calls a function of the program.
    Call {
        /// Immutable locals defined here, one for each result.
        results: Vec<VarId>,
        /// The function called.
        function: FunctionId,
        /// One value for each parameter.
        args: Vec<Expr>,
    },
    /// Calls an external function, once for the whole workgroup, with a workgroup barrier before and after. It
    /// stands where one may.
    CallExternal(ExternalCall),
}

/// One block of a [`Node::Switch`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SwitchCase {
    /// The selector values that choose the block; at least one.
    pub values: Vec<u32>,
    /// The block.
    pub body: Vec<Node>,
}

/// One atomic access to an element of a `u32`, `i32` or `u64` buffer. An index past the end does nothing
/// and yields zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Atomic {
    /// What is done.
    pub op: AtomicOp,
    /// The buffer.
    pub buffer: BufferId,
    /// The element, a `u32`.
    pub index: Expr,
    /// How other accesses are ordered around it.
    pub ordering: MemoryOrdering,
    /// Who must see the order.
    pub scope: MemoryScope,
    /// An immutable local defined here: the value loaded, or the value before the change. A store has none.
    pub result: Option<VarId>,
}

/// What an atomic access does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AtomicOp {
    /// Reads.
    Load,
    /// Writes.
    Store(Expr),
    /// Reads, combines with a value, writes back.
    Rmw(RmwOp, Expr),
    /// Writes `replacement` if the element equals `expected`; yields the value before, so equality with
    /// `expected` tells whether it was written.
    CompareExchange {
        /// The value looked for.
        expected: Expr,
        /// The value written on a match.
        replacement: Expr,
    },
}

/// How a read-modify-write combines the old value with the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RmwOp {
    /// Wrapping sum.
    Add,
    /// Wrapping difference, old minus operand.
    Sub,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
    /// The lesser, in the element's own signedness.
    Min,
    /// The greater, in the element's own signedness.
    Max,
    /// The operand.
    Exchange,
}

/// How other memory accesses are ordered around an atomic, in the sense of C++11.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryOrdering {
    /// None.
    Relaxed,
    /// Later accesses stay later. Not for a store.
    Acquire,
    /// Earlier accesses stay earlier. Not for a load.
    Release,
    /// Both. For read-modify-write only.
    AcqRel,
}

/// Whose accesses an ordering covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryScope {
    /// The invocations of one workgroup.
    Workgroup,
    /// All invocations on the device.
    Device,
    /// Host and device. Loads and stores only.
    System,
}

/// A value, without side effects.
#[derive(Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A constant.
    Literal(Literal),
    /// A local or parameter.
    Var(VarId),
    /// One element, widened to the buffer's scalar type; zero past the end.
    Load {
        /// The buffer.
        buffer: BufferId,
        /// The element, a `u32`.
        index: Box<Expr>,
    },
    /// Elements in the buffer as bound, a `u32`.
    BufferLen(BufferId),
    /// A `u32` that says where in the grid the invocation is.
    Builtin(Builtin),
    /// One operand.
    Unary {
        /// The operation.
        op: UnaryOp,
        /// The operand.
        value: Box<Expr>,
    },
    /// Two operands of one type; the right one of a shift is a `u32`.
    Binary {
        /// The operation.
        op: BinaryOp,
        /// Left operand.
        left: Box<Expr>,
        /// Right operand.
        right: Box<Expr>,
    },
    /// One of two values of one type; both are evaluated.
    Select {
        /// A `bool`.
        condition: Box<Expr>,
        /// The value when true.
        if_true: Box<Expr>,
        /// The value when false.
        if_false: Box<Expr>,
    },
    /// Conversion by value.
    Cast {
        /// The target type.
        to: ScalarType,
        /// The value converted.
        value: Box<Expr>,
    },
    /// The same 32 bits under another type: among `u32`, `i32` and `f32`.
    Bitcast {
        /// The target type.
        to: ScalarType,
        /// The value reinterpreted.
        value: Box<Expr>,
    },
    /// `a * b + c` on `f32`, rounded once.
    Fma {
        /// First factor.
        a: Box<Expr>,
        /// Second factor.
        b: Box<Expr>,
        /// Addend.
        c: Box<Expr>,
    },
}

/// Where an invocation is. Each is a `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Builtin {
    /// `WorkgroupId * WorkgroupSize + LocalId` along one axis.
    GlobalId(Axis),
    /// The workgroup's place in the grid.
    WorkgroupId(Axis),
    /// The invocation's place in its workgroup.
    LocalId(Axis),
    /// Workgroups in the grid.
    NumWorkgroups(Axis),
    /// Invocations in a workgroup.
    WorkgroupSize(Axis),
    /// Lanes that a subgroup has room for, the same for every one.
    SubgroupSize,
    /// The invocation's lane in its subgroup.
    SubgroupLane,
    /// The subgroup's number in its workgroup.
    SubgroupId,
}

/// An axis of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Axis {
    /// The fastest.
    X,
    /// The middle one.
    Y,
    /// The slowest.
    Z,
}

impl Axis {
    /// 0, 1 or 2.
    pub const fn index(self) -> usize {
        match self {
            Axis::X => 0,
            Axis::Y => 1,
            Axis::Z => 2,
        }
    }
}

/// Operations on one operand; the result has the operand's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnaryOp {
    /// Integers: wrapping negation. `f32`: flips the sign bit.
    Neg,
    /// `bool`: logical. Integers: bitwise complement.
    Not,
    /// `i32`: wrapping (`i32::MIN` stays). `f32`: clears the sign bit.
    Abs,
    /// `f32`: towards negative infinity.
    Floor,
    /// `f32`: towards positive infinity.
    Ceil,
    /// `f32`: towards zero.
    Trunc,
    /// `f32`: to the nearest integer, ties to even.
    RoundEven,
    /// `f32`: correctly rounded; NaN below zero, -0 for -0.
    Sqrt,
    /// Integers: bits set.
    CountOnes,
    /// Integers: zero bits above the highest set one; the width for zero.
    LeadingZeros,
    /// Integers: zero bits below the lowest set one; the width for zero.
    TrailingZeros,
}

/// Operations on two operands. Comparisons yield `bool`, the others their operands' type.
///
/// The full meaning, total for every operand, is in [`crate::semantics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BinaryOp {
    /// Integers: wrapping. `f32`: IEEE.
    Add,
    /// Integers: wrapping. `f32`: IEEE.
    Sub,
    /// Integers: wrapping. `f32`: IEEE.
    Mul,
    /// Integers: towards zero, wrapping; by zero yields 0. `f32`: IEEE.
    Div,
    /// Integers: sign of the dividend; by zero yields the dividend. `f32`: exact, as C's `fmod`.
    Rem,
    /// `f32`: -0 below +0, and the other operand for a NaN.
    Min,
    /// `f32`: -0 below +0, and the other operand for a NaN.
    Max,
    /// `bool`: logical, both sides evaluated. Integers: bitwise.
    And,
    /// `bool`: logical, both sides evaluated. Integers: bitwise.
    Or,
    /// `bool`: logical. Integers: bitwise.
    Xor,
    /// Integers; past the width yields 0.
    Shl,
    /// Integers; `i32` copies its sign. Past the width yields 0, or the sign in every bit.
    Shr,
    /// Any type; a NaN equals nothing.
    Eq,
    /// Any type; a NaN differs from everything.
    Ne,
    /// Numbers; false with a NaN.
    Lt,
    /// Numbers; false with a NaN.
    Le,
    /// Numbers; false with a NaN.
    Gt,
    /// Numbers; false with a NaN.
    Ge,
}

impl BinaryOp {
    /// Whether the result is a `bool` whatever the operands are.
    pub const fn is_comparison(self) -> bool {
        matches!(
            self,
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge
        )
    }

    /// Whether the right operand is a shift amount, a `u32`.
    pub const fn is_shift(self) -> bool {
        matches!(self, BinaryOp::Shl | BinaryOp::Shr)
    }
}
