//! What a program means: scalar operations as plain functions, statements and memory in prose. Everything is
//! defined for every operand, and the same on every backend.
//!
//! # Values
//!
//! A backend may compute in any way it likes, as long as its results equal those of the functions here bit
//! for bit. The one freedom is NaN payloads: an operation that yields a NaN yields *some* NaN. Moves (let,
//! assign, select, load and store of `f32`, bitcast, arguments and results) keep the bits, and so does `neg`
//! and `abs` but for the sign. Subnormals are kept, rounding is to nearest even, and nothing is contracted:
//! only fma rounds once. Integers wrap. Nothing is short-circuit: `and`, `or` and `select` evaluate all their
//! operands, which is never seen, as an expression has no effects.
//!
//! # Statements
//!
//! * A statement evaluates its operands, in no particular order, and then takes effect. Statements of one
//!   invocation happen in their order.
//! * **Let** and **assign** keep a value. A local defined in a loop's body is a new one in every round.
//! * **If**, **switch** and **block** run their blocks as [`Node`](crate::ir::Node) says. A switch without a
//!   case for the selector runs its default.
//! * **For** evaluates its bounds once; with a start not below the end it does nothing, and where the next
//!   value of the counter would pass `u32::MAX` it ends.
//! * **While** evaluates its condition before every round.
//! * **Loops may be cut short.** A program that does not end cannot hang a device: while a dispatch is
//!   aborted, for its deadline or by the user, any loop may end at the end of a round in `trap(DEADLINE)`, a
//!   code that the backend reports as such. Nothing else ends a loop that its program does not end.
//! * **Return** leaves the function; **trap** leaves the invocation from any depth of calls. What the
//!   invocation wrote before stays, other invocations go on. Of several traps, that of the invocation with the
//!   least id is reported: the workgroup counts first, then the place in it, x before y before z.
//! * **Calls** evaluate their arguments, and give the results to new locals.
//! * **Workgroup barrier**: no invocation of the workgroup passes it before every one that has not returned
//!   or trapped arrives, and what they wrote to workgroup and global memory before it is what they read after
//!   it. **Grid barrier**: the same for all invocations of the dispatch. The validator lets no program depend
//!   on who has left; only `trap(DEADLINE)` makes the difference, and a barrier does not wait for those it
//!   ended.
//! * **Calls of external functions** happen once for the workgroup, with a workgroup barrier before and after:
//!   the function sees what all invocations wrote, all of them see what it wrote, and get its results.
//! * **Subgroup operations** are as below. They wait for no other subgroup, and order no access to memory.
//! * **Workgroup memory** is zero when a workgroup starts, and again for every item of an item program.
//! * The outcome of an item of lane granularity is what its invocation returned, of workgroup granularity what
//!   invocation 0 returned; an item of which an invocation trapped ends in the trap reported.
//!
//! # Memory
//!
//! * An index is compared with the length of the buffer as bound, [`Expr::BufferLen`](crate::ir::Expr), which
//!   is at least the declared one. **Past the end** a load yields zero, a store does nothing, an atomic does
//!   nothing and yields zero. Nothing is read or written outside of the bound range, ever.
//! * A store to a narrow element changes that element and no neighbour.
//! * **Races.** If plain accesses of several invocations to one element, at least one a store, are ordered by
//!   neither barriers nor atomics, a load yields what the element held before or what some store wrote, and
//!   the last value is one of those stored; a `u64` may be torn into two halves of 32 bits, each of which
//!   obeys this rule. There is no other effect: no trap, no invented value. The same holds for a plain access
//!   that races with an atomic one.
//! * **Atomics** on one element happen one after the other, in an order on which all invocations in their scope
//!   agree; invocations outside of the scope see them as plain accesses. Orderings are those of C++11 within
//!   the scope, system scope including the host. There is no sequentially consistent ordering: a store
//!   followed by a load of another element may be seen the other way round.

//!
//! # Subgroups
//!
//! A workgroup consists of subgroups of [`SubgroupSize`](crate::ir::Builtin::SubgroupSize) lanes, a power of two
//! from 8 to 64 that the backend chooses; a ballot has a bit for each. The invocation with the linear local id `i`, x fastest, is lane
//! `i % size` of subgroup `i / size`. The last subgroup may be partial: its upper lanes are *absent*. All lanes
//! that are present take part in an operation, as the validator holds (after `trap(DEADLINE)`, those that are
//! left do). Present lane `l`, with value `v[l]`, gets:
//!
//! | operation | yields |
//! |---|---|
//! | `broadcast_first` | `v[0]` |
//! | `broadcast`, `shuffle` | `v[lane]`; the zero of the type if that lane is absent or no lane |
//! | `shuffle_xor` | `v[l ^ mask]`; the zero of the type if that lane is absent or no lane |
//! | `reduce` | all present values combined, see [`reduce`] |
//! | `inclusive_scan` | `v[0]` to `v[l]` combined, see [`inclusive_scan`] |
//! | `exclusive_scan` | what the inclusive scan yields in lane `l - 1`, and in lane 0 [`scan_start`], see [`exclusive_scan`] |
//! | `ballot` | bit i is `v[i]`, zero where lane i is absent |
//! | `any` | whether some present lane has true |
//! | `all` | whether every present lane has true |
//!
//! The moves exist on every type and keep the bits of a float, reduction and scans on those of
//! [`reduce_type`]. Sums of `f32` depend on the order of their terms, so it is part of the meaning; two
//! backends with subgroups of one size yield the same bits.

use crate::ir::{BinaryOp, ReduceOp, RmwOp, UnaryOp};
use crate::types::{DataType, Literal, ScalarType};

/// `value op`, or `None` where the operation does not exist on the type.
pub fn unary(op: UnaryOp, value: Literal) -> Option<Literal> {
    use Literal::{Bool, F32, I32, U32, U64};
    Some(match (op, value) {
        (UnaryOp::Neg, U32(v)) => U32(v.wrapping_neg()),
        (UnaryOp::Neg, I32(v)) => I32(v.wrapping_neg()),
        (UnaryOp::Neg, U64(v)) => U64(v.wrapping_neg()),
        (UnaryOp::Neg, F32(v)) => F32(v ^ 0x8000_0000),
        (UnaryOp::Not, Bool(v)) => Bool(!v),
        (UnaryOp::Not, U32(v)) => U32(!v),
        (UnaryOp::Not, I32(v)) => I32(!v),
        (UnaryOp::Not, U64(v)) => U64(!v),
        (UnaryOp::Abs, I32(v)) => I32(v.wrapping_abs()),
        (UnaryOp::Abs, F32(v)) => F32(v & 0x7fff_ffff),
        (UnaryOp::Floor, F32(v)) => Literal::f32(f32::from_bits(v).floor()),
        (UnaryOp::Ceil, F32(v)) => Literal::f32(f32::from_bits(v).ceil()),
        (UnaryOp::Trunc, F32(v)) => Literal::f32(f32::from_bits(v).trunc()),
        (UnaryOp::RoundEven, F32(v)) => Literal::f32(f32::from_bits(v).round_ties_even()),
        (UnaryOp::Sqrt, F32(v)) => Literal::f32(f32::from_bits(v).sqrt()),
        (UnaryOp::CountOnes, U32(v)) => U32(v.count_ones()),
        (UnaryOp::CountOnes, I32(v)) => I32(v.count_ones() as i32),
        (UnaryOp::CountOnes, U64(v)) => U64(u64::from(v.count_ones())),
        (UnaryOp::LeadingZeros, U32(v)) => U32(v.leading_zeros()),
        (UnaryOp::LeadingZeros, I32(v)) => I32(v.leading_zeros() as i32),
        (UnaryOp::LeadingZeros, U64(v)) => U64(u64::from(v.leading_zeros())),
        (UnaryOp::TrailingZeros, U32(v)) => U32(v.trailing_zeros()),
        (UnaryOp::TrailingZeros, I32(v)) => I32(v.trailing_zeros() as i32),
        (UnaryOp::TrailingZeros, U64(v)) => U64(u64::from(v.trailing_zeros())),
        _ => return None,
    })
}

/// The type of `op` on an operand of type `ty`, or `None` where the operation does not exist on it.
pub fn unary_type(op: UnaryOp, ty: ScalarType) -> Option<ScalarType> {
    unary(op, zero(ty)).map(Literal::ty)
}

/// The type of `op` on operands of these types, or `None` where the operation does not exist on them.
pub fn binary_type(op: BinaryOp, left: ScalarType, right: ScalarType) -> Option<ScalarType> {
    binary(op, zero(left), zero(right)).map(Literal::ty)
}

/// `to`, or `None` where `from` has no bits to show as `to`.
pub fn bitcast_type(to: ScalarType, from: ScalarType) -> Option<ScalarType> {
    bitcast(to, zero(from)).map(Literal::ty)
}

/// `left op right`, or `None` where the operation does not exist on the types.
pub fn binary(op: BinaryOp, left: Literal, right: Literal) -> Option<Literal> {
    use Literal::{Bool, F32, I32, U32, U64};
    if op.is_shift() {
        let U32(amount) = right else { return None };
        return Some(match (op, left) {
            (BinaryOp::Shl, U32(v)) => U32(v.checked_shl(amount).unwrap_or(0)),
            (BinaryOp::Shl, I32(v)) => I32(v.checked_shl(amount).unwrap_or(0)),
            (BinaryOp::Shl, U64(v)) => U64(v.checked_shl(amount).unwrap_or(0)),
            (BinaryOp::Shr, U32(v)) => U32(v.checked_shr(amount).unwrap_or(0)),
            (BinaryOp::Shr, I32(v)) => I32(v >> amount.min(31)),
            (BinaryOp::Shr, U64(v)) => U64(v.checked_shr(amount).unwrap_or(0)),
            _ => return None,
        });
    }
    Some(match (left, right) {
        (Bool(a), Bool(b)) => Bool(match op {
            BinaryOp::And => a & b,
            BinaryOp::Or => a | b,
            BinaryOp::Xor | BinaryOp::Ne => a ^ b,
            BinaryOp::Eq => a == b,
            _ => return None,
        }),
        (U32(a), U32(b)) => match compare(op, a, b) {
            Some(truth) => Bool(truth),
            None => U32(match op {
                BinaryOp::Add => a.wrapping_add(b),
                BinaryOp::Sub => a.wrapping_sub(b),
                BinaryOp::Mul => a.wrapping_mul(b),
                BinaryOp::Div => a.checked_div(b).unwrap_or(0),
                BinaryOp::Rem => a.checked_rem(b).unwrap_or(a),
                BinaryOp::Min => a.min(b),
                BinaryOp::Max => a.max(b),
                BinaryOp::And => a & b,
                BinaryOp::Or => a | b,
                BinaryOp::Xor => a ^ b,
                _ => return None,
            }),
        },
        (I32(a), I32(b)) => match compare(op, a, b) {
            Some(truth) => Bool(truth),
            None => I32(match op {
                BinaryOp::Add => a.wrapping_add(b),
                BinaryOp::Sub => a.wrapping_sub(b),
                BinaryOp::Mul => a.wrapping_mul(b),
                BinaryOp::Div if b == 0 => 0,
                BinaryOp::Div => a.wrapping_div(b),
                BinaryOp::Rem if b == 0 => a,
                BinaryOp::Rem => a.wrapping_rem(b),
                BinaryOp::Min => a.min(b),
                BinaryOp::Max => a.max(b),
                BinaryOp::And => a & b,
                BinaryOp::Or => a | b,
                BinaryOp::Xor => a ^ b,
                _ => return None,
            }),
        },
        (U64(a), U64(b)) => match compare(op, a, b) {
            Some(truth) => Bool(truth),
            None => U64(match op {
                BinaryOp::Add => a.wrapping_add(b),
                BinaryOp::Sub => a.wrapping_sub(b),
                BinaryOp::Mul => a.wrapping_mul(b),
                BinaryOp::Div => a.checked_div(b).unwrap_or(0),
                BinaryOp::Rem => a.checked_rem(b).unwrap_or(a),
                BinaryOp::Min => a.min(b),
                BinaryOp::Max => a.max(b),
                BinaryOp::And => a & b,
                BinaryOp::Or => a | b,
                BinaryOp::Xor => a ^ b,
                _ => return None,
            }),
        },
        (F32(a), F32(b)) => {
            let (a, b) = (f32::from_bits(a), f32::from_bits(b));
            match compare(op, a, b) {
                Some(truth) => Bool(truth),
                None => Literal::f32(match op {
                    BinaryOp::Add => a + b,
                    BinaryOp::Sub => a - b,
                    BinaryOp::Mul => a * b,
                    BinaryOp::Div => a / b,
                    BinaryOp::Rem => a % b,
                    BinaryOp::Min => min_f32(a, b),
                    BinaryOp::Max => max_f32(a, b),
                    _ => return None,
                }),
            }
        }
        _ => return None,
    })
}

fn compare<T: PartialOrd>(op: BinaryOp, a: T, b: T) -> Option<bool> {
    Some(match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        _ => return None,
    })
}

/// The lesser: -0 is below +0, a NaN loses to a number, two NaNs give a NaN.
pub fn min_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a < b || (a == b && a.is_sign_negative()) {
        a
    } else {
        b
    }
}

/// The greater: +0 is above -0, a NaN loses to a number, two NaNs give a NaN.
pub fn max_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() {
        b
    } else if b.is_nan() || a > b || (a == b && a.is_sign_positive()) {
        a
    } else {
        b
    }
}

/// Conversion by value.
///
/// * to `bool`: whether it differs from zero (so a NaN is true);
/// * from `bool`: 0 or 1;
/// * between integers: the low bits, an `i32` sign-extended to 64;
/// * integer to `f32`: nearest, ties to even;
/// * `f32` to integer: towards zero, saturating at the type's ends, 0 for a NaN.
pub fn cast(to: ScalarType, value: Literal) -> Literal {
    use Literal::{Bool, F32, I32, U32, U64};
    match (to, value) {
        (ScalarType::Bool, Bool(v)) => Bool(v),
        (ScalarType::Bool, U32(v)) => Bool(v != 0),
        (ScalarType::Bool, I32(v)) => Bool(v != 0),
        (ScalarType::Bool, U64(v)) => Bool(v != 0),
        (ScalarType::Bool, F32(v)) => Bool(f32::from_bits(v) != 0.0),
        (ScalarType::U32, Bool(v)) => U32(u32::from(v)),
        (ScalarType::U32, U32(v)) => U32(v),
        (ScalarType::U32, I32(v)) => U32(v as u32),
        (ScalarType::U32, U64(v)) => U32(v as u32),
        (ScalarType::U32, F32(v)) => U32(f32::from_bits(v) as u32),
        (ScalarType::I32, Bool(v)) => I32(i32::from(v)),
        (ScalarType::I32, U32(v)) => I32(v as i32),
        (ScalarType::I32, I32(v)) => I32(v),
        (ScalarType::I32, U64(v)) => I32(v as i32),
        (ScalarType::I32, F32(v)) => I32(f32::from_bits(v) as i32),
        (ScalarType::U64, Bool(v)) => U64(u64::from(v)),
        (ScalarType::U64, U32(v)) => U64(u64::from(v)),
        (ScalarType::U64, I32(v)) => U64(v as i64 as u64),
        (ScalarType::U64, U64(v)) => U64(v),
        (ScalarType::U64, F32(v)) => U64(f32::from_bits(v) as u64),
        (ScalarType::F32, Bool(v)) => Literal::f32(f32::from(u8::from(v))),
        (ScalarType::F32, U32(v)) => Literal::f32(v as f32),
        (ScalarType::F32, I32(v)) => Literal::f32(v as f32),
        (ScalarType::F32, U64(v)) => Literal::f32(v as f32),
        (ScalarType::F32, F32(v)) => F32(v),
    }
}

/// `a * b + c`, rounded once, or `None` unless all are `f32`.
pub fn fma(a: Literal, b: Literal, c: Literal) -> Option<Literal> {
    let (Literal::F32(a), Literal::F32(b), Literal::F32(c)) = (a, b, c) else { return None };
    Some(Literal::f32(f32::from_bits(a).mul_add(f32::from_bits(b), f32::from_bits(c))))
}

/// The same 32 bits under another type, or `None` unless both are among `u32`, `i32` and `f32`.
pub fn bitcast(to: ScalarType, value: Literal) -> Option<Literal> {
    let bits = match value {
        Literal::U32(v) | Literal::F32(v) => v,
        Literal::I32(v) => v as u32,
        Literal::Bool(_) | Literal::U64(_) => return None,
    };
    match to {
        ScalarType::U32 => Some(Literal::U32(bits)),
        ScalarType::I32 => Some(Literal::I32(bits as i32)),
        ScalarType::F32 => Some(Literal::F32(bits)),
        ScalarType::Bool | ScalarType::U64 => None,
    }
}

/// What a read-modify-write leaves behind, or `None` where types do not fit.
pub fn rmw(op: RmwOp, old: Literal, operand: Literal) -> Option<Literal> {
    let op = match op {
        RmwOp::Add => BinaryOp::Add,
        RmwOp::Sub => BinaryOp::Sub,
        RmwOp::And => BinaryOp::And,
        RmwOp::Or => BinaryOp::Or,
        RmwOp::Xor => BinaryOp::Xor,
        RmwOp::Min => BinaryOp::Min,
        RmwOp::Max => BinaryOp::Max,
        RmwOp::Exchange => return (old.ty() == operand.ty()).then_some(operand),
    };
    binary(op, old, operand)
}

/// `left op right`, or `None` unless both are of one type, and it a number.
pub fn combine(op: ReduceOp, left: Literal, right: Literal) -> Option<Literal> {
    let op = match op {
        ReduceOp::Add => BinaryOp::Add,
        ReduceOp::Min => BinaryOp::Min,
        ReduceOp::Max => BinaryOp::Max,
        ReduceOp::And => BinaryOp::And,
        ReduceOp::Or => BinaryOp::Or,
        ReduceOp::Xor => BinaryOp::Xor,
    };
    binary(op, left, right).filter(|result| result.ty() != ScalarType::Bool)
}

/// `ty`, or `None` where a subgroup cannot combine values of this type with `op`.
pub fn reduce_type(op: ReduceOp, ty: ScalarType) -> Option<ScalarType> {
    combine(op, zero(ty), zero(ty)).map(Literal::ty)
}

/// The values of the present lanes combined in pairs: neighbours first, then neighbouring pairs, and so on, the
/// lower lanes to the left. What has no neighbour stays as it is: three values give `(a + b) + c`, five
/// `((a + b) + (c + d)) + e`. `None` without values, or where the types have no such operation.
pub fn reduce(op: ReduceOp, lanes: &[Literal]) -> Option<Literal> {
    match lanes {
        [] => None,
        [one] => reduce_type(op, one.ty()).map(|_| *one),
        several => {
            let (low, high) = several.split_at(several.len().next_power_of_two() / 2);
            combine(op, reduce(op, low)?, reduce(op, high)?)
        }
    }
}

/// For each present lane, its value and those below combined as Hillis and Steele do (CACM 29, 1986): for the
/// distances 1, 2, 4 and so on, every lane at once puts the value so far of the lane as far below, if there is
/// one, to the left of its own. `None` where the types have no such operation.
pub fn inclusive_scan(op: ReduceOp, lanes: &[Literal]) -> Option<Vec<Literal>> {
    let mut sums = lanes.iter().map(|lane| reduce(op, &[*lane])).collect::<Option<Vec<_>>>()?;
    let mut distance = 1;
    while distance < sums.len() {
        let below = sums.clone();
        for (sum, below) in sums.iter_mut().skip(distance).zip(below) {
            *sum = combine(op, below, *sum)?;
        }
        distance *= 2;
    }
    Some(sums)
}

/// [`scan_start`], then what [`inclusive_scan`] yields in the lane below. `None` without values, or where the
/// types have no such operation.
pub fn exclusive_scan(op: ReduceOp, lanes: &[Literal]) -> Option<Vec<Literal>> {
    let start = scan_start(op, lanes.first()?.ty())?;
    let mut sums = inclusive_scan(op, lanes)?;
    sums.pop();
    sums.insert(0, start);
    Some(sums)
}

/// What an exclusive scan yields in lane 0: the value that changes no number, 0 for a sum. `None` where the type
/// has no such operation.
pub fn scan_start(op: ReduceOp, ty: ScalarType) -> Option<Literal> {
    reduce_type(op, ty)?;
    Some(match (op, ty) {
        (ReduceOp::Min, ScalarType::F32) => Literal::f32(f32::INFINITY),
        (ReduceOp::Max, ScalarType::F32) => Literal::f32(f32::NEG_INFINITY),
        (ReduceOp::Min, ScalarType::I32) => Literal::I32(i32::MAX),
        (ReduceOp::Max, ScalarType::I32) => Literal::I32(i32::MIN),
        (ReduceOp::Min | ReduceOp::And, _) => unary(UnaryOp::Not, zero(ty))?,
        _ => zero(ty),
    })
}

/// The zero of a type: what an out-of-bounds load yields.
pub const fn zero(ty: ScalarType) -> Literal {
    match ty {
        ScalarType::Bool => Literal::Bool(false),
        ScalarType::U32 => Literal::U32(0),
        ScalarType::I32 => Literal::I32(0),
        ScalarType::U64 => Literal::U64(0),
        ScalarType::F32 => Literal::F32(0),
    }
}

/// The value of an element whose little-endian storage bits are `bits`.
pub fn widen(element: DataType, bits: u64) -> Literal {
    match element {
        DataType::U8 => Literal::U32(u32::from(bits as u8)),
        DataType::U16 => Literal::U32(u32::from(bits as u16)),
        DataType::U32 => Literal::U32(bits as u32),
        DataType::I32 => Literal::I32(bits as i32),
        DataType::U64 => Literal::U64(bits),
        DataType::F16 => Literal::f32(half::f16::from_bits(bits as u16).to_f32()),
        DataType::BF16 => Literal::f32(half::bf16::from_bits(bits as u16).to_f32()),
        DataType::F32 => Literal::F32(bits as u32),
    }
}

/// The storage bits of a value, or `None` unless its type is `element`'s scalar type.
pub fn narrow(element: DataType, value: Literal) -> Option<u64> {
    Some(match (element, value) {
        (DataType::U8, Literal::U32(v)) => u64::from(v as u8),
        (DataType::U16, Literal::U32(v)) => u64::from(v as u16),
        (DataType::U32, Literal::U32(v)) | (DataType::F32, Literal::F32(v)) => u64::from(v),
        (DataType::I32, Literal::I32(v)) => u64::from(v as u32),
        (DataType::U64, Literal::U64(v)) => v,
        (DataType::F16, Literal::F32(v)) => u64::from(half::f16::from_f32(f32::from_bits(v)).to_bits()),
        (DataType::BF16, Literal::F32(v)) => u64::from(half::bf16::from_f32(f32::from_bits(v)).to_bits()),
        _ => return None,
    })
}
