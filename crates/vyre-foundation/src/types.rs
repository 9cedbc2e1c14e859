//! Types of the IR: what a buffer stores, and what an expression computes with.
//!
//! The two sets differ on purpose. A buffer may hold any [`DataType`]; arithmetic exists only on a
//! [`ScalarType`]. A load widens, a store narrows, and [`DataType::scalar`] says to what. So every backend
//! has five arithmetic types to get right, and eight conversions at the edges.

use std::fmt;

/// The element type of a buffer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataType {
    /// Unsigned 8 bits; loads as `u32`, a store keeps the low 8 bits.
    U8,
    /// Unsigned 16 bits, little endian; loads as `u32`, a store keeps the low 16 bits.
    U16,
    /// Unsigned 32 bits.
    U32,
    /// Two's-complement 32 bits.
    I32,
    /// Unsigned 64 bits. A racing plain access may tear into two 32-bit halves.
    U64,
    /// IEEE 754 binary16; loads as `f32` exactly, a store rounds to nearest even and keeps NaN a NaN.
    F16,
    /// bfloat16; loads as `f32` exactly, a store rounds to nearest even and keeps NaN a NaN.
    BF16,
    /// IEEE 754 binary32.
    F32,
}

impl DataType {
    /// Every storage type, in wire order.
    pub const ALL: [DataType; 8] = [
        DataType::U8,
        DataType::U16,
        DataType::U32,
        DataType::I32,
        DataType::U64,
        DataType::F16,
        DataType::BF16,
        DataType::F32,
    ];

    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DataType::U8 => 1,
            DataType::U16 | DataType::F16 | DataType::BF16 => 2,
            DataType::U32 | DataType::I32 | DataType::F32 => 4,
            DataType::U64 => 8,
        }
    }

    /// The type an element has once loaded, and must have to be stored.
    pub const fn scalar(self) -> ScalarType {
        match self {
            DataType::U8 | DataType::U16 | DataType::U32 => ScalarType::U32,
            DataType::I32 => ScalarType::I32,
            DataType::U64 => ScalarType::U64,
            DataType::F16 | DataType::BF16 | DataType::F32 => ScalarType::F32,
        }
    }

    /// Whether atomics exist on elements of this type.
    pub const fn is_atomic(self) -> bool {
        matches!(self, DataType::U32 | DataType::I32 | DataType::U64)
    }

    /// The name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            DataType::U8 => "u8",
            DataType::U16 => "u16",
            DataType::U32 => "u32",
            DataType::I32 => "i32",
            DataType::U64 => "u64",
            DataType::F16 => "f16",
            DataType::BF16 => "bf16",
            DataType::F32 => "f32",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of an expression or a local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScalarType {
    /// True or false; has no storage form.
    Bool,
    /// Unsigned 32 bits, wrapping.
    U32,
    /// Two's-complement 32 bits, wrapping.
    I32,
    /// Unsigned 64 bits, wrapping.
    U64,
    /// IEEE 754 binary32, round to nearest even, subnormals kept, never contracted.
    F32,
}

impl ScalarType {
    /// Every arithmetic type, in wire order.
    pub const ALL: [ScalarType; 5] =
        [ScalarType::Bool, ScalarType::U32, ScalarType::I32, ScalarType::U64, ScalarType::F32];

    /// The name in the text form.
    pub const fn name(self) -> &'static str {
        match self {
            ScalarType::Bool => "bool",
            ScalarType::U32 => "u32",
            ScalarType::I32 => "i32",
            ScalarType::U64 => "u64",
            ScalarType::F32 => "f32",
        }
    }

    /// Whether the type is one of the three integer types.
    pub const fn is_integer(self) -> bool {
        matches!(self, ScalarType::U32 | ScalarType::I32 | ScalarType::U64)
    }
}

impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A constant. A float is held as its bits: `-0.0`, subnormals and NaN payloads are all distinct values,
/// so two programs that differ in one of them never compare, print, encode or hash alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Literal {
    /// A truth value.
    Bool(bool),
    /// A `u32`.
    U32(u32),
    /// An `i32`.
    I32(i32),
    /// A `u64`.
    U64(u64),
    /// The bits of an `f32`.
    F32(u32),
}

impl Literal {
    /// The literal of a float, bit for bit.
    pub fn f32(value: f32) -> Literal {
        Literal::F32(value.to_bits())
    }

    /// The type of the constant.
    pub const fn ty(self) -> ScalarType {
        match self {
            Literal::Bool(_) => ScalarType::Bool,
            Literal::U32(_) => ScalarType::U32,
            Literal::I32(_) => ScalarType::I32,
            Literal::U64(_) => ScalarType::U64,
            Literal::F32(_) => ScalarType::F32,
        }
    }
}
