//! The words of the language that stand for an enum's values, one table for printer and parser.

use crate::ir::{
    Axis, BinaryOp, BufferAccess, Builtin, Granularity, MemoryOrdering, MemoryScope, MemorySpace, ReduceOp,
    RmwOp, UnaryOp,
};
use crate::types::{DataType, ScalarType};

/// A value that is written as one word.
pub(super) trait Words: Copy {
    /// What an error calls it.
    const WHAT: &'static str;

    fn word(self) -> &'static str;
    fn from_word(word: &str) -> Option<Self>;
}

macro_rules! words {
    ($($enum:ident, $what:literal { $($variant:ident = $word:literal),* $(,)? })*) => {$(
        impl Words for $enum {
            const WHAT: &'static str = $what;

            fn word(self) -> &'static str {
                match self { $($enum::$variant => $word),* }
            }

            fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some($enum::$variant),)* _ => None }
            }
        }
    )*};
}

words! {
    Granularity, "a granularity, `lane` or `workgroup`" { Lane = "lane", Workgroup = "workgroup" }
    MemorySpace, "a space, `global`, `host_visible`, `workgroup` or `uniform`" {
        Global = "global", HostVisible = "host_visible", Workgroup = "workgroup", Uniform = "uniform",
    }
    MemoryScope, "a scope, `workgroup`, `device` or `system`" {
        Workgroup = "workgroup", Device = "device", System = "system",
    }
    MemoryOrdering, "an ordering, `relaxed`, `acquire`, `release` or `acq_rel`" {
        Relaxed = "relaxed", Acquire = "acquire", Release = "release", AcqRel = "acq_rel",
    }
    RmwOp, "an atomic operation" {
        Add = "add", Sub = "sub", And = "and", Or = "or", Xor = "xor", Min = "min", Max = "max",
        Exchange = "exchange",
    }
    ReduceOp, "a reduction, `add`, `min`, `max`, `and`, `or` or `xor`" {
        Add = "add", Min = "min", Max = "max", And = "and", Or = "or", Xor = "xor",
    }
    UnaryOp, "an operation" {
        Neg = "-", Not = "!", Abs = "abs", Floor = "floor", Ceil = "ceil", Trunc = "trunc",
        RoundEven = "round_even", Sqrt = "sqrt", CountOnes = "count_ones",
        LeadingZeros = "leading_zeros", TrailingZeros = "trailing_zeros",
    }
    BinaryOp, "an operation" {
        Add = "+", Sub = "-", Mul = "*", Div = "/", Rem = "%", Min = "min", Max = "max", And = "&", Or = "|",
        Xor = "^", Shl = "<<", Shr = ">>", Eq = "==", Ne = "!=", Lt = "<", Le = "<=", Gt = ">", Ge = ">=",
    }
    Axis, "an axis, `x`, `y` or `z`" { X = "x", Y = "y", Z = "z" }
}

macro_rules! names {
    ($($enum:ident, $what:literal;)*) => {$(
        impl Words for $enum {
            const WHAT: &'static str = $what;

            fn word(self) -> &'static str {
                self.name()
            }

            fn from_word(word: &str) -> Option<Self> {
                $enum::ALL.into_iter().find(|ty| ty.name() == word)
            }
        }
    )*};
}

names! {
    BufferAccess, "an access, `read`, `write` or `read_write`";
    DataType, "an element type, `u8`, `u16`, `u32`, `i32`, `u64`, `f16`, `bf16` or `f32`";
    ScalarType, "a type, `bool`, `u32`, `i32`, `u64` or `f32`";
}

/// The words before and after the dot of a builtin.
pub(super) fn builtin_words(builtin: Builtin) -> (&'static str, &'static str) {
    match builtin {
        Builtin::GlobalId(axis) => ("global_id", axis.word()),
        Builtin::WorkgroupId(axis) => ("workgroup_id", axis.word()),
        Builtin::LocalId(axis) => ("local_id", axis.word()),
        Builtin::NumWorkgroups(axis) => ("num_workgroups", axis.word()),
        Builtin::WorkgroupSize(axis) => ("workgroup_size", axis.word()),
        Builtin::SubgroupSize => ("subgroup", "size"),
        Builtin::SubgroupLane => ("subgroup", "lane"),
        Builtin::SubgroupId => ("subgroup", "id"),
    }
}

/// What the word before the dot of a builtin may be followed by.
#[derive(Clone, Copy)]
pub(super) enum BuiltinWord {
    /// An axis.
    Axis(fn(Axis) -> Builtin),
    /// What is asked about the subgroup.
    Subgroup,
}

/// The builtins whose first word this is.
pub(super) fn builtin_from_word(word: &str) -> Option<BuiltinWord> {
    match word {
        "global_id" => Some(BuiltinWord::Axis(Builtin::GlobalId)),
        "workgroup_id" => Some(BuiltinWord::Axis(Builtin::WorkgroupId)),
        "local_id" => Some(BuiltinWord::Axis(Builtin::LocalId)),
        "num_workgroups" => Some(BuiltinWord::Axis(Builtin::NumWorkgroups)),
        "workgroup_size" => Some(BuiltinWord::Axis(Builtin::WorkgroupSize)),
        "subgroup" => Some(BuiltinWord::Subgroup),
        _ => None,
    }
}

/// The target of a bitcast, which is part of its word.
pub(super) fn bitcast_word(to: ScalarType) -> &'static str {
    match to {
        ScalarType::Bool => "bitcast_bool",
        ScalarType::U32 => "bitcast_u32",
        ScalarType::I32 => "bitcast_i32",
        ScalarType::U64 => "bitcast_u64",
        ScalarType::F32 => "bitcast_f32",
    }
}

/// What [`bitcast_word`] made a word of.
pub(super) fn bitcast_from_word(word: &str) -> Option<ScalarType> {
    ScalarType::ALL.into_iter().find(|to| bitcast_word(*to) == word)
}

/// How tightly an expression holds together; the operands of a tighter one need parentheses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// `== != < <= > >=`; they do not chain.
    Comparison,
    /// `|`
    Or,
    /// `^`
    Xor,
    /// `&`
    And,
    /// `<< >>`
    Shift,
    /// `+ -`
    Sum,
    /// `* / %`
    Product,
    /// `-x`, `!x`
    Prefix,
    /// Everything else.
    Primary,
}

impl Level {
    /// The level of a binary operation, `None` if it is written as a function.
    pub(super) fn of(op: BinaryOp) -> Option<Level> {
        Some(match op {
            BinaryOp::Min | BinaryOp::Max => return None,
            BinaryOp::Add | BinaryOp::Sub => Level::Sum,
            BinaryOp::Mul | BinaryOp::Div | BinaryOp::Rem => Level::Product,
            BinaryOp::And => Level::And,
            BinaryOp::Or => Level::Or,
            BinaryOp::Xor => Level::Xor,
            BinaryOp::Shl | BinaryOp::Shr => Level::Shift,
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge => {
                Level::Comparison
            }
        })
    }

    /// The level of what may stand to the right of an operator of this one: operators associate to the left.
    pub(super) fn tighter(self) -> Level {
        match self {
            Level::Comparison => Level::Or,
            Level::Or => Level::Xor,
            Level::Xor => Level::And,
            Level::And => Level::Shift,
            Level::Shift => Level::Sum,
            Level::Sum => Level::Product,
            Level::Product => Level::Prefix,
            Level::Prefix | Level::Primary => Level::Primary,
        }
    }

    /// The level of what may stand to the left.
    pub(super) fn left(self) -> Level {
        if self == Level::Comparison { self.tighter() } else { self }
    }
}
