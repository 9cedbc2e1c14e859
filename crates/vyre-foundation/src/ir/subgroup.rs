//! Operations among the invocations of a subgroup.

use super::{Expr, VarId};

/// One operation among the invocations of a subgroup, which all take part in it or none.
/// [`crate::semantics`] says what a subgroup is, and what each operation yields.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subgroup {
    /// What is done.
    pub op: SubgroupOp,
    /// What the invocation contributes.
    pub value: Expr,
    /// An immutable local defined here.
    pub result: VarId,
}

/// What a subgroup does together. Lanes and masks are `u32`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SubgroupOp {
    /// The value of lane 0.
    BroadcastFirst,
    /// The value of a lane that the whole workgroup agrees on.
    Broadcast(Expr),
    /// The value of a lane that each invocation chooses.
    Shuffle(Expr),
    /// The value of the lane whose number differs from the invocation's own in the bits of a mask.
    ShuffleXor(Expr),
    /// The values of all lanes combined.
    Reduce(ReduceOp),
    /// The values of the lanes up to and with the invocation's own combined.
    InclusiveScan(ReduceOp),
    /// The values of the lanes before the invocation's own combined.
    ExclusiveScan(ReduceOp),
    /// Of a `bool`: a `u64` whose bit i is the value of lane i.
    Ballot,
    /// Of a `bool`: whether it is true in some lane.
    Any,
    /// Of a `bool`: whether it is true in every lane.
    All,
}

impl SubgroupOp {
    /// The lane or the mask, for the operations that have one.
    pub const fn operand(&self) -> Option<&Expr> {
        match self {
            SubgroupOp::Broadcast(operand)
            | SubgroupOp::Shuffle(operand)
            | SubgroupOp::ShuffleXor(operand) => Some(operand),
            SubgroupOp::BroadcastFirst
            | SubgroupOp::Reduce(_)
            | SubgroupOp::InclusiveScan(_)
            | SubgroupOp::ExclusiveScan(_)
            | SubgroupOp::Ballot
            | SubgroupOp::Any
            | SubgroupOp::All => None,
        }
    }
}

/// How the values of several lanes are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReduceOp {
    /// Integers: wrapping sum. `f32`: IEEE, in the order that [`crate::semantics`] gives.
    Add,
    /// The least; `f32` as [`BinaryOp::Min`](super::BinaryOp::Min).
    Min,
    /// The greatest; `f32` as [`BinaryOp::Max`](super::BinaryOp::Max).
    Max,
    /// Integers: bitwise and.
    And,
    /// Integers: bitwise or.
    Or,
    /// Integers: bitwise exclusive or.
    Xor,
}
