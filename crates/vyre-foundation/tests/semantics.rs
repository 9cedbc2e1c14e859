//! The scalar operations against values written down by hand, and the conversions of `f16` and `bf16`
//! against all their patterns.

use half::{bf16, f16};
use vyre_foundation::semantics::{
    binary, bitcast, cast, exclusive_scan, fma, inclusive_scan, narrow, reduce, reduce_type, rmw, unary,
    widen, zero,
};
use vyre_foundation::{BinaryOp, DataType, Literal, ReduceOp, RmwOp, ScalarType, UnaryOp};

use BinaryOp::{Add, And, Div, Eq, Ge, Gt, Le, Lt, Max, Min, Mul, Ne, Or, Rem, Shl, Shr, Sub, Xor};
use Literal::{Bool, I32, U32, U64};

const NAN: f32 = f32::NAN;
const INF: f32 = f32::INFINITY;
const MIN: i32 = i32::MIN;
const MAX: i32 = i32::MAX;
/// The least positive `f32`.
const TINY: f32 = f32::from_bits(1);

fn f(value: f32) -> Literal {
    Literal::f32(value)
}

/// Equal bits, or both some NaN.
#[track_caller]
fn same(what: &str, found: Option<Literal>, expected: Literal) {
    let nan = |literal| matches!(literal, Literal::F32(bits) if f32::from_bits(bits).is_nan());
    let Some(found) = found else { panic!("{what} is not defined") };
    assert!(found == expected || nan(found) && nan(expected), "{what} is {found:?}, not {expected:?}");
}

#[track_caller]
fn check_binary(cases: &[(BinaryOp, Literal, Literal, Literal)]) {
    for &(op, left, right, expected) in cases {
        same(&format!("{op:?} {left:?} {right:?}"), binary(op, left, right), expected);
    }
}

/// 2^24 + 1 rounds back to 2^24, and 2^24 + 2 does not: the order of a sum is seen.
#[test]
fn subgroups_combine_in_a_fixed_order() {
    let large = 16_777_216.0;
    let five = [large, 1.0, 1.0, 1.0, 1.0].map(f);
    let floats = |values: [f32; 5]| Some(values.map(f).to_vec());
    assert_eq!(reduce(ReduceOp::Add, &five), Some(f(large + 4.0)));
    assert_eq!(reduce(ReduceOp::Add, &five[..3]), Some(f(large)));
    let up_to = [large, large, large + 2.0, large + 2.0, large + 4.0];
    assert_eq!(inclusive_scan(ReduceOp::Add, &five), floats(up_to));
    assert_eq!(exclusive_scan(ReduceOp::Add, &five), floats([0.0, large, large, large + 2.0, large + 2.0]));
    let ints = [I32(3), I32(-4), I32(MAX)];
    assert_eq!(reduce(ReduceOp::Xor, &ints), Some(I32(3 ^ -4 ^ MAX)));
    assert_eq!(exclusive_scan(ReduceOp::Min, &ints), Some(vec![I32(MAX), I32(3), I32(-4)]));
    assert_eq!(exclusive_scan(ReduceOp::Max, &ints), Some(vec![I32(MIN), I32(3), I32(3)]));
    assert_eq!(exclusive_scan(ReduceOp::And, &[U64(1), U64(2)]), Some(vec![U64(u64::MAX), U64(1)]));
    assert_eq!(reduce(ReduceOp::Add, &[]), None);
    for (op, ty) in [(ReduceOp::And, ScalarType::F32), (ReduceOp::Or, ScalarType::Bool)] {
        assert_eq!((reduce_type(op, ty), reduce(op, &[zero(ty)])), (None, None));
    }
}

#[test]
fn integers_wrap_and_divide_by_zero() {
    check_binary(&[
        (Add, U32(u32::MAX), U32(2), U32(1)),
        (Add, I32(MAX), I32(1), I32(MIN)),
        (Add, U64(u64::MAX), U64(1), U64(0)),
        (Sub, U32(0), U32(1), U32(u32::MAX)),
        (Sub, I32(MIN), I32(1), I32(MAX)),
        (Sub, U64(0), U64(1), U64(u64::MAX)),
        (Mul, U32(0x8000_0001), U32(2), U32(2)),
        (Mul, I32(MIN), I32(-1), I32(MIN)),
        (Mul, U64(1 << 63), U64(3), U64(1 << 63)),
        (Div, U32(7), U32(2), U32(3)),
        (Div, U32(7), U32(0), U32(0)),
        (Div, I32(-7), I32(2), I32(-3)),
        (Div, I32(7), I32(-2), I32(-3)),
        (Div, I32(-7), I32(0), I32(0)),
        (Div, I32(MIN), I32(-1), I32(MIN)),
        (Div, U64(u64::MAX), U64(0), U64(0)),
        (Rem, U32(7), U32(4), U32(3)),
        (Rem, U32(7), U32(0), U32(7)),
        (Rem, I32(-7), I32(4), I32(-3)),
        (Rem, I32(7), I32(-4), I32(3)),
        (Rem, I32(-7), I32(0), I32(-7)),
        (Rem, I32(MIN), I32(-1), I32(0)),
        (Rem, U64(u64::MAX), U64(0), U64(u64::MAX)),
        (Min, I32(-1), I32(1), I32(-1)),
        (Max, I32(-1), I32(1), I32(1)),
        (Min, U32(u32::MAX), U32(1), U32(1)),
        (Max, U64(u64::MAX), U64(1), U64(u64::MAX)),
        (Lt, U32(u32::MAX), U32(1), Bool(false)),
        (Lt, I32(-1), I32(1), Bool(true)),
        (Ge, U64(1 << 40), U64(1), Bool(true)),
        (And, I32(-2), I32(7), I32(6)),
        (Or, U64(1 << 63), U64(1), U64((1 << 63) | 1)),
        (Xor, U32(0b1100), U32(0b1010), U32(0b0110)),
        (And, Bool(true), Bool(false), Bool(false)),
        (Or, Bool(true), Bool(false), Bool(true)),
        (Xor, Bool(true), Bool(true), Bool(false)),
        (Eq, Bool(false), Bool(false), Bool(true)),
        (Ne, Bool(false), Bool(false), Bool(false)),
    ]);
}

#[test]
fn shifts_past_the_width() {
    check_binary(&[
        (Shl, U32(1), U32(31), U32(1 << 31)),
        (Shl, U32(1), U32(32), U32(0)),
        (Shl, U32(1), U32(u32::MAX), U32(0)),
        (Shl, I32(1), U32(31), I32(MIN)),
        (Shl, I32(-1), U32(32), I32(0)),
        (Shl, U64(1), U32(63), U64(1 << 63)),
        (Shl, U64(1), U32(64), U64(0)),
        (Shl, U64(1), U32(32), U64(1 << 32)),
        (Shr, U32(u32::MAX), U32(31), U32(1)),
        (Shr, U32(u32::MAX), U32(32), U32(0)),
        (Shr, I32(MIN), U32(31), I32(-1)),
        (Shr, I32(MIN), U32(32), I32(-1)),
        (Shr, I32(-1), U32(u32::MAX), I32(-1)),
        (Shr, I32(MAX), U32(30), I32(1)),
        (Shr, I32(MAX), U32(32), I32(0)),
        (Shr, U64(u64::MAX), U32(63), U64(1)),
        (Shr, U64(u64::MAX), U32(64), U64(0)),
    ]);
    assert_eq!(binary(Shl, U32(1), I32(1)), None);
    assert_eq!(binary(Shl, U64(1), U64(1)), None);
    assert_eq!(binary(Shr, f(1.0), U32(1)), None);
}

#[test]
fn floats() {
    check_binary(&[
        (Add, f(1.0), f(TINY), f(1.0)),
        (Add, f(TINY), f(TINY), f(f32::from_bits(2))),
        (Add, f(f32::MAX), f(f32::MAX), f(INF)),
        (Sub, f(INF), f(INF), f(NAN)),
        (Sub, f(1.0), f(1.0), f(0.0)),
        (Mul, f(-0.0), f(5.0), f(-0.0)),
        (Mul, f(0.0), f(INF), f(NAN)),
        (Mul, f(f32::MIN_POSITIVE), f(0.5), f(f32::from_bits(0x0040_0000))),
        (Div, f(1.0), f(0.0), f(INF)),
        (Div, f(-1.0), f(0.0), f(-INF)),
        (Div, f(0.0), f(0.0), f(NAN)),
        (Div, f(1.0), f(3.0), f(f32::from_bits(0x3eaa_aaab))),
        (Rem, f(5.5), f(2.0), f(1.5)),
        (Rem, f(-5.5), f(2.0), f(-1.5)),
        (Rem, f(5.0), f(0.0), f(NAN)),
        (Rem, f(5.0), f(INF), f(5.0)),
        (Rem, f(1e30), f(7.0), f(1.0)),
        (Eq, f(NAN), f(NAN), Bool(false)),
        (Ne, f(NAN), f(NAN), Bool(true)),
        (Lt, f(NAN), f(1.0), Bool(false)),
        (Le, f(NAN), f(1.0), Bool(false)),
        (Gt, f(NAN), f(1.0), Bool(false)),
        (Ge, f(NAN), f(1.0), Bool(false)),
        (Eq, f(0.0), f(-0.0), Bool(true)),
        (Lt, f(-0.0), f(0.0), Bool(false)),
        (Le, f(TINY), f(0.0), Bool(false)),
        (Min, f(0.0), f(-0.0), f(-0.0)),
        (Min, f(-0.0), f(0.0), f(-0.0)),
        (Max, f(0.0), f(-0.0), f(0.0)),
        (Max, f(-0.0), f(0.0), f(0.0)),
        (Min, f(NAN), f(1.0), f(1.0)),
        (Min, f(1.0), f(NAN), f(1.0)),
        (Max, f(NAN), f(-INF), f(-INF)),
        (Max, f(-INF), f(NAN), f(-INF)),
        (Min, f(NAN), f(NAN), f(NAN)),
        (Max, f(NAN), f(NAN), f(NAN)),
        (Min, f(1.0), f(2.0), f(1.0)),
        (Min, f(2.0), f(1.0), f(1.0)),
        (Max, f(1.0), f(2.0), f(2.0)),
        (Max, f(-INF), f(INF), f(INF)),
    ]);
    assert_eq!(binary(And, f(1.0), f(1.0)), None);
    assert_eq!(binary(Add, f(1.0), U32(1)), None);

    // One rounding: the product is 1 + 2^-11 + 2^-24, and 2^-24 is lost before the sum in two roundings.
    let a = 1.0 + 2f32.powi(-12);
    same("fma", fma(f(a), f(a), f(-(1.0 + 2f32.powi(-11)))), f(2f32.powi(-24)));
    same("mul, add", Some(f(a * a - (1.0 + 2f32.powi(-11)))), f(0.0));
    assert_eq!(fma(f(1.0), f(1.0), U32(1)), None);
}

#[test]
fn one_operand() {
    use UnaryOp::*;
    for (op, value, expected) in [
        (Neg, U32(1), U32(u32::MAX)),
        (Neg, I32(MIN), I32(MIN)),
        (Neg, U64(1), U64(u64::MAX)),
        (Neg, f(0.0), f(-0.0)),
        (Not, Bool(true), Bool(false)),
        (Not, U32(0xf0), U32(0xffff_ff0f)),
        (Not, I32(0), I32(-1)),
        (Not, U64(0), U64(u64::MAX)),
        (Abs, I32(-5), I32(5)),
        (Abs, I32(MIN), I32(MIN)),
        (Abs, f(-0.0), f(0.0)),
        (Floor, f(-1.5), f(-2.0)),
        (Ceil, f(-0.5), f(-0.0)),
        (Ceil, f(1.2), f(2.0)),
        (Trunc, f(-1.9), f(-1.0)),
        (Trunc, f(1e30), f(1e30)),
        (RoundEven, f(0.5), f(0.0)),
        (RoundEven, f(1.5), f(2.0)),
        (RoundEven, f(2.5), f(2.0)),
        (RoundEven, f(-0.5), f(-0.0)),
        (RoundEven, f(f32::from_bits(0x3eff_ffff)), f(0.0)),
        (Sqrt, f(2.0), f(f32::from_bits(0x3fb5_04f3))),
        (Sqrt, f(-0.0), f(-0.0)),
        (Sqrt, f(-1.0), f(NAN)),
        (Sqrt, f(TINY), f(f32::from_bits(0x1a35_04f3))),
        (Floor, f(NAN), f(NAN)),
        (CountOnes, U32(0xff), U32(8)),
        (CountOnes, I32(-1), I32(32)),
        (CountOnes, U64(u64::MAX), U64(64)),
        (LeadingZeros, U32(0), U32(32)),
        (LeadingZeros, U32(1), U32(31)),
        (LeadingZeros, I32(-1), I32(0)),
        (LeadingZeros, U64(0), U64(64)),
        (TrailingZeros, U32(0), U32(32)),
        (TrailingZeros, U32(8), U32(3)),
        (TrailingZeros, I32(MIN), I32(31)),
        (TrailingZeros, U64(1 << 63), U64(63)),
    ] {
        same(&format!("{op:?} {value:?}"), unary(op, value), expected);
    }
    // The sign of a NaN is a bit like any other to these two.
    let nan = Literal::F32(0x7fa0_0001);
    assert_eq!(unary(Neg, nan), Some(Literal::F32(0xffa0_0001)));
    assert_eq!(unary(Abs, Literal::F32(0xffa0_0001)), Some(nan));
    assert_eq!(unary(Not, f(1.0)), None);
    assert_eq!(unary(Sqrt, U32(4)), None);
}

#[test]
fn casts() {
    use ScalarType as To;
    for (to, value, expected) in [
        (To::U32, f(-1.0), U32(0)),
        (To::U32, f(-0.9), U32(0)),
        (To::U32, f(4294967040.0), U32(4294967040)),
        (To::U32, f(4294967296.0), U32(u32::MAX)),
        (To::U32, f(INF), U32(u32::MAX)),
        (To::U32, f(NAN), U32(0)),
        (To::I32, f(2147483648.0), I32(MAX)),
        (To::I32, f(-2147483648.0), I32(MIN)),
        (To::I32, f(-INF), I32(MIN)),
        (To::I32, f(-1.9), I32(-1)),
        (To::I32, f(NAN), I32(0)),
        (To::U64, f(-INF), U64(0)),
        (To::U64, f(18446744073709551616.0), U64(u64::MAX)),
        (To::U64, f(1e10), U64(10_000_000_000)),
        (To::U64, f(NAN), U64(0)),
        (To::F32, U32(u32::MAX), f(4294967296.0)),
        (To::F32, U32(16_777_217), f(16_777_216.0)),
        (To::F32, U32(16_777_219), f(16_777_220.0)),
        (To::F32, I32(MIN), f(-2147483648.0)),
        // Between two floats, nearer to the upper one: rounding to f64 on the way would lose that.
        (To::F32, U64((1 << 54) + (1 << 30) + 1), f(18014400656965632.0)),
        (To::F32, U64(u64::MAX), f(18446744073709551616.0)),
        (To::F32, Bool(true), f(1.0)),
        (To::U32, I32(-1), U32(u32::MAX)),
        (To::U32, U64(0x1_2345_6789), U32(0x2345_6789)),
        (To::I32, U32(u32::MAX), I32(-1)),
        (To::I32, U64(0xffff_ffff), I32(-1)),
        (To::U64, I32(-1), U64(u64::MAX)),
        (To::U64, U32(u32::MAX), U64(0xffff_ffff)),
        (To::U64, Bool(true), U64(1)),
        (To::I32, Bool(true), I32(1)),
        (To::U32, Bool(false), U32(0)),
        (To::Bool, f(-0.0), Bool(false)),
        (To::Bool, f(NAN), Bool(true)),
        (To::Bool, f(TINY), Bool(true)),
        (To::Bool, U64(1 << 32), Bool(true)),
        (To::Bool, I32(0), Bool(false)),
        (To::Bool, U32(2), Bool(true)),
        (To::F32, Literal::F32(0x7fa0_0001), Literal::F32(0x7fa0_0001)),
    ] {
        assert_eq!(cast(to, value), expected, "{value:?} to {to}");
    }
    assert_eq!(bitcast(To::F32, U32(0x7fa0_0001)), Some(Literal::F32(0x7fa0_0001)));
    assert_eq!(bitcast(To::I32, Literal::F32(0x8000_0000)), Some(I32(MIN)));
    assert_eq!(bitcast(To::U32, I32(-1)), Some(U32(u32::MAX)));
    assert_eq!(bitcast(To::U64, U64(1)), None);
    assert_eq!(bitcast(To::U32, Bool(true)), None);
}

#[test]
fn read_modify_write() {
    for (op, old, operand, expected) in [
        (RmwOp::Add, U32(u32::MAX), U32(1), U32(0)),
        (RmwOp::Sub, I32(MIN), I32(1), I32(MAX)),
        (RmwOp::And, U64(6), U64(3), U64(2)),
        (RmwOp::Or, U64(6), U64(3), U64(7)),
        (RmwOp::Xor, U64(6), U64(3), U64(5)),
        (RmwOp::Min, I32(-1), I32(1), I32(-1)),
        (RmwOp::Min, U32(u32::MAX), U32(1), U32(1)),
        (RmwOp::Max, I32(-1), I32(1), I32(1)),
        (RmwOp::Max, U32(u32::MAX), U32(1), U32(u32::MAX)),
        (RmwOp::Exchange, U64(1), U64(2), U64(2)),
    ] {
        assert_eq!(rmw(op, old, operand), Some(expected), "{op:?} {old:?} {operand:?}");
    }
    assert_eq!(rmw(RmwOp::Exchange, U64(1), U32(2)), None);
}

#[test]
fn elements_keep_what_fits() {
    for (element, bits, value) in [
        (DataType::U8, 0xab, U32(0xab)),
        (DataType::U16, 0xabcd, U32(0xabcd)),
        (DataType::U32, 0xabcd_ef01, U32(0xabcd_ef01)),
        (DataType::I32, 0xffff_ffff, I32(-1)),
        (DataType::U64, u64::MAX, U64(u64::MAX)),
        (DataType::F16, 0x3c00, f(1.0)),
        (DataType::BF16, 0x3f80, f(1.0)),
        (DataType::F32, 0x7fa0_0001, Literal::F32(0x7fa0_0001)),
    ] {
        assert_eq!(widen(element, bits), value, "{element}");
        assert_eq!(narrow(element, value), Some(bits), "{element}");
        assert_eq!(widen(element, 0), zero(element.scalar()));
        assert_eq!(narrow(element, Bool(true)), None);
    }
    assert_eq!(narrow(DataType::U8, U32(0x1ff)), Some(0xff));
    assert_eq!(narrow(DataType::U16, U32(0x1_0002)), Some(2));
    assert_eq!(narrow(DataType::U32, I32(1)), None);
    assert_eq!(narrow(DataType::F16, U32(1)), None);
}

/// What `half` says, for each pattern and for what lies between it and the next.
#[test]
fn every_half_float() {
    for bits in 0..=u16::MAX {
        let (wide16, wide_b16) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
        for (element, wide) in [(DataType::F16, wide16), (DataType::BF16, wide_b16)] {
            assert_eq!(widen(element, bits.into()), f(wide), "{element} {bits:#06x}");
            let back = narrow(element, f(wide)).unwrap();
            if wide.is_nan() {
                let back = widen(element, back);
                assert!(matches!(back, Literal::F32(bits) if f32::from_bits(bits).is_nan()), "{bits:#06x}");
            } else {
                assert_eq!(back, u64::from(bits), "{element} {bits:#06x}");
            }
        }
    }
}

/// Halfway between two neighbours the even one wins; the float next to halfway goes to the nearer.
#[test]
fn ties_go_to_even() {
    // Infinity stands for the next power of two, so the tie below it decides between the greatest finite
    // number and infinity; in an `f32` the latter is the pattern one past the greatest.
    let check = |element: DataType, greatest: u16, widen_up: &dyn Fn(u16) -> f64| {
        for low in 0..=greatest {
            let (a, b) = (widen_up(low), widen_up(low + 1));
            let tie = ((a + b) / 2.0) as f32;
            assert_eq!(f64::from(tie), (a + b) / 2.0, "a tie is a float");
            let even = u64::from(low + (low & 1));
            for (value, expected) in
                [(tie, even), (tie.next_down(), u64::from(low)), (tie.next_up(), u64::from(low) + 1)]
            {
                assert_eq!(narrow(element, f(value)), Some(expected), "{element} {value:e}");
                let minus = f(-value);
                assert_eq!(narrow(element, minus), Some(expected | 0x8000), "{element} -{value:e}");
            }
        }
    };
    check(DataType::F16, f16::MAX.to_bits(), &|bits| match bits {
        0x7c00 => 65536.0,
        bits => f16::from_bits(bits).to_f64(),
    });
    check(DataType::BF16, bf16::MAX.to_bits(), &|bits| match bits {
        0x7f80 => 2f64.powi(128),
        bits => bf16::from_bits(bits).to_f64(),
    });
}
