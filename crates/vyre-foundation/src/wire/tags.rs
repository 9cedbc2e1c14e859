//! The tag of every enum without lists or expressions in it. A tag is part of the format: it never changes
//! its meaning, and does not follow the order of declaration.

use super::WireError;
use super::codec::{Reader, Wire, Writer};
use crate::ir::{
    Axis, BinaryOp, BufferAccess, Builtin, Granularity, MemoryOrdering, MemoryScope, MemorySpace,
    ProgramKind, ReduceOp, RmwOp, UnaryOp,
};
use crate::types::{DataType, ScalarType};

/// Both directions of a tag from one table; `put` is exhaustive, so a new variant cannot be forgotten.
macro_rules! tags {
    ($($enum:ident, $what:literal { $($tag:literal = $variant:ident $(($($inner:tt)+))?),* $(,)? })*) => {$(
        impl Wire for $enum {
            const WHAT: &'static str = $what;
            const MIN_SIZE: u32 = 1;

            fn put(&self, w: &mut Writer) -> Result<(), WireError> {
                w.tag(match self { $($enum::$variant $(($($inner)+))? => $tag),* });
                Ok(())
            }

            fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
                r.tag(Self::WHAT, |_, tag| Ok(match tag { $($tag => Some($enum::$variant $(($($inner)+))?),)* _ => None }))
            }
        }
    )*};
}

tags! {
    DataType, "element type" {
        0 = U8, 1 = U16, 2 = U32, 3 = I32, 4 = U64, 5 = F16, 6 = BF16, 7 = F32,
    }
    ScalarType, "scalar type" {
        0 = Bool, 1 = U32, 2 = I32, 3 = U64, 4 = F32,
    }
    MemorySpace, "memory space" {
        0 = Global, 1 = HostVisible, 2 = Workgroup, 3 = Uniform,
    }
    BufferAccess, "buffer access" {
        0 = Read, 1 = Write, 2 = ReadWrite,
    }
    RmwOp, "read-modify-write operation" {
        0 = Add, 1 = Sub, 2 = And, 3 = Or, 4 = Xor, 5 = Min, 6 = Max, 7 = Exchange,
    }
    ReduceOp, "reduction" {
        0 = Add, 1 = Min, 2 = Max, 3 = And, 4 = Or, 5 = Xor,
    }
    MemoryOrdering, "memory ordering" {
        0 = Relaxed, 1 = Acquire, 2 = Release, 3 = AcqRel,
    }
    MemoryScope, "memory scope" {
        0 = Workgroup, 1 = Device, 2 = System,
    }
    UnaryOp, "unary operation" {
        0 = Neg, 1 = Not, 2 = Abs, 3 = Floor, 4 = Ceil, 5 = Trunc, 6 = RoundEven, 7 = Sqrt, 8 = CountOnes,
        9 = LeadingZeros, 10 = TrailingZeros,
    }
    BinaryOp, "binary operation" {
        0 = Add, 1 = Sub, 2 = Mul, 3 = Div, 4 = Rem, 5 = Min, 6 = Max, 7 = And, 8 = Or, 9 = Xor, 10 = Shl,
        11 = Shr, 12 = Eq, 13 = Ne, 14 = Lt, 15 = Le, 16 = Gt, 17 = Ge,
    }
    ProgramKind, "program kind" {
        0 = Kernel, 1 = Item(Granularity::Lane), 2 = Item(Granularity::Workgroup),
    }
    Builtin, "builtin" {
        0 = GlobalId(Axis::X), 1 = GlobalId(Axis::Y), 2 = GlobalId(Axis::Z), 3 = WorkgroupId(Axis::X),
        4 = WorkgroupId(Axis::Y), 5 = WorkgroupId(Axis::Z), 6 = LocalId(Axis::X), 7 = LocalId(Axis::Y),
        8 = LocalId(Axis::Z), 9 = NumWorkgroups(Axis::X), 10 = NumWorkgroups(Axis::Y),
        11 = NumWorkgroups(Axis::Z), 12 = WorkgroupSize(Axis::X), 13 = WorkgroupSize(Axis::Y),
        14 = WorkgroupSize(Axis::Z), 15 = SubgroupSize, 16 = SubgroupLane, 17 = SubgroupId,
    }
}
