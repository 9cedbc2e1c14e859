//! Instructions that compute: no memory, no control. Each agrees with `vyre_foundation::semantics`.

use vyre_foundation::semantics::{max_f32, min_f32};

use super::wave::{Bank, Lane, Registers};
use crate::flat::{Code, Inst};

impl<const W: usize> Registers<W> {
    #[inline(always)]
    fn map1<T: Lane, D: Lane>(&self, inst: &Inst, f: impl Fn(T) -> D)
    where
        Self: Bank<T, W> + Bank<D, W>,
    {
        each1::<T, D, W>(self.row_mut(inst.d), self.row(inst.a), f);
    }

    #[inline(always)]
    fn map2<T: Lane>(&self, inst: &Inst, f: impl Fn(T, T) -> T)
    where
        Self: Bank<T, W>,
    {
        each2::<T, T, T, W>(self.row_mut(inst.d), self.row(inst.a), self.row(inst.b), f);
    }

    #[inline(always)]
    fn float1(&self, inst: &Inst, f: impl Fn(f32) -> f32) {
        self.map1(inst, |a: u32| f(f32::from_bits(a)).to_bits());
    }

    #[inline(always)]
    fn float2(&self, inst: &Inst, f: impl Fn(f32, f32) -> f32) {
        self.map2(inst, |a: u32, b: u32| f(f32::from_bits(a), f32::from_bits(b)).to_bits());
    }

    #[inline(always)]
    fn signed2(&self, inst: &Inst, f: impl Fn(i32, i32) -> i32) {
        self.map2(inst, |a: u32, b: u32| f(a as i32, b as i32) as u32);
    }

    #[inline(always)]
    fn shift_long(&self, inst: &Inst, f: impl Fn(u64, u32) -> u64) {
        each2::<u64, u32, u64, W>(self.row_mut(inst.d), self.row(inst.a), self.row(inst.b), f);
    }

    #[inline(always)]
    fn test1<T: Lane>(&self, inst: &Inst, f: impl Fn(T) -> bool)
    where
        Self: Bank<T, W>,
    {
        let a: &[T; W] = self.row(inst.a);
        self.set_mask(inst.d, lanes_where::<W>(|lane| f(a[lane])));
    }

    #[inline(always)]
    fn test2<T: Lane>(&self, inst: &Inst, f: impl Fn(T, T) -> bool)
    where
        Self: Bank<T, W>,
    {
        let (a, b): (&[T; W], &[T; W]) = (self.row(inst.a), self.row(inst.b));
        self.set_mask(inst.d, lanes_where::<W>(|lane| f(a[lane], b[lane])));
    }

    #[inline(always)]
    fn test_float(&self, inst: &Inst, f: impl Fn(f32, f32) -> bool) {
        self.test2(inst, |a: u32, b: u32| f(f32::from_bits(a), f32::from_bits(b)));
    }

    #[inline(always)]
    fn masks2(&self, inst: &Inst, f: impl Fn(u32, u32) -> u32) {
        self.set_mask(inst.d, f(self.mask(inst.a), self.mask(inst.b)));
    }

    #[inline(always)]
    fn choose<T: Lane>(&self, d: &mut [T; W], a: &[T; W], b: &[T; W], lanes: u32) {
        for lane in 0..W {
            d[lane] = if lanes & 1 << lane != 0 { a[lane] } else { b[lane] };
        }
    }

    #[inline(always)]
    fn spread_mask<T: Lane>(&self, inst: &Inst, yes: T, no: T)
    where
        Self: Bank<T, W>,
    {
        self.choose(self.row_mut(inst.d), &[yes; W], &[no; W], self.mask(inst.a));
    }

    #[inline(always)]
    fn move_masked<T: Lane>(&self, inst: &Inst, active: u32)
    where
        Self: Bank<T, W>,
    {
        let (d, a): (&mut [T; W], &[T; W]) = (self.row_mut(inst.d), self.row(inst.a));
        let everyone = if W == 32 { u32::MAX } else { (1 << W) - 1 };
        if active == everyone {
            *d = *a;
        } else {
            for lane in 0..W {
                d[lane] = if active & 1 << lane != 0 { a[lane] } else { d[lane] };
            }
        }
    }

    /// Executes a computing instruction; any other does nothing.
    #[inline(always)]
    pub(super) fn compute(&self, inst: &Inst, active: u32) {
        match inst.code {
            Code::MovW => self.map1(inst, |a: u32| a),
            Code::MovL => self.map1(inst, |a: u64| a),
            Code::MovM => self.set_mask(inst.d, self.mask(inst.a)),
            Code::MovMaskedW => self.move_masked::<u32>(inst, active),
            Code::MovMaskedL => self.move_masked::<u64>(inst, active),
            Code::MovMaskedM => {
                self.set_mask(inst.d, self.mask(inst.d) & !active | self.mask(inst.a) & active);
            }

            Code::AddW => self.map2(inst, u32::wrapping_add),
            Code::SubW => self.map2(inst, u32::wrapping_sub),
            Code::MulW => self.map2(inst, u32::wrapping_mul),
            Code::DivU => self.map2(inst, |a: u32, b| a.checked_div(b).unwrap_or(0)),
            Code::DivI => self.signed2(inst, |a, b| if b == 0 { 0 } else { a.wrapping_div(b) }),
            Code::RemU => self.map2(inst, |a: u32, b| a.checked_rem(b).unwrap_or(a)),
            Code::RemI => self.signed2(inst, |a, b| if b == 0 { a } else { a.wrapping_rem(b) }),
            Code::MinU => self.map2(inst, |a: u32, b: u32| a.min(b)),
            Code::MinI => self.signed2(inst, |a, b| a.min(b)),
            Code::MaxU => self.map2(inst, |a: u32, b: u32| a.max(b)),
            Code::MaxI => self.signed2(inst, |a, b| a.max(b)),
            Code::AndW => self.map2(inst, |a: u32, b: u32| a & b),
            Code::OrW => self.map2(inst, |a: u32, b: u32| a | b),
            Code::XorW => self.map2(inst, |a: u32, b: u32| a ^ b),
            Code::ShlW => self.map2(inst, |a: u32, b: u32| if b < 32 { a << (b & 31) } else { 0 }),
            Code::ShrU => self.map2(inst, |a: u32, b: u32| if b < 32 { a >> (b & 31) } else { 0 }),
            Code::ShrI => self.map2(inst, |a: u32, b: u32| ((a as i32) >> b.min(31)) as u32),
            Code::AddF => self.float2(inst, |a, b| a + b),
            Code::SubF => self.float2(inst, |a, b| a - b),
            Code::MulF => self.float2(inst, |a, b| a * b),
            Code::DivF => self.float2(inst, |a, b| a / b),
            Code::RemF => self.float2(inst, |a, b| a % b),
            Code::MinF => self.float2(inst, min_f32),
            Code::MaxF => self.float2(inst, max_f32),

            Code::AddX => self.map2(inst, u64::wrapping_add),
            Code::SubX => self.map2(inst, u64::wrapping_sub),
            Code::MulX => self.map2(inst, u64::wrapping_mul),
            Code::DivX => self.map2(inst, |a: u64, b| a.checked_div(b).unwrap_or(0)),
            Code::RemX => self.map2(inst, |a: u64, b| a.checked_rem(b).unwrap_or(a)),
            Code::MinX => self.map2(inst, |a: u64, b: u64| a.min(b)),
            Code::MaxX => self.map2(inst, |a: u64, b: u64| a.max(b)),
            Code::AndX => self.map2(inst, |a: u64, b: u64| a & b),
            Code::OrX => self.map2(inst, |a: u64, b: u64| a | b),
            Code::XorX => self.map2(inst, |a: u64, b: u64| a ^ b),
            Code::ShlX => self.shift_long(inst, |a, b| if b < 64 { a << (b & 63) } else { 0 }),
            Code::ShrX => self.shift_long(inst, |a, b| if b < 64 { a >> (b & 63) } else { 0 }),

            Code::EqW => self.test2(inst, |a: u32, b: u32| a == b),
            Code::NeW => self.test2(inst, |a: u32, b: u32| a != b),
            Code::LtU => self.test2(inst, |a: u32, b: u32| a < b),
            Code::LeU => self.test2(inst, |a: u32, b: u32| a <= b),
            Code::LtI => self.test2(inst, |a: u32, b: u32| (a as i32) < b as i32),
            Code::LeI => self.test2(inst, |a: u32, b: u32| a as i32 <= b as i32),
            Code::EqF => self.test_float(inst, |a, b| a == b),
            Code::NeF => self.test_float(inst, |a, b| a != b),
            Code::LtF => self.test_float(inst, |a, b| a < b),
            Code::LeF => self.test_float(inst, |a, b| a <= b),
            Code::EqX => self.test2(inst, |a: u64, b: u64| a == b),
            Code::NeX => self.test2(inst, |a: u64, b: u64| a != b),
            Code::LtX => self.test2(inst, |a: u64, b: u64| a < b),
            Code::LeX => self.test2(inst, |a: u64, b: u64| a <= b),
            Code::AndM => self.masks2(inst, |a, b| a & b),
            Code::OrM => self.masks2(inst, |a, b| a | b),
            Code::XorM => self.masks2(inst, |a, b| a ^ b),
            Code::XnorM => self.masks2(inst, |a, b| !(a ^ b)),
            Code::NotM => self.set_mask(inst.d, !self.mask(inst.a)),

            Code::NegW => self.map1(inst, u32::wrapping_neg),
            Code::NotW => self.map1(inst, |a: u32| !a),
            Code::AbsI => self.map1(inst, |a: u32| (a as i32).wrapping_abs() as u32),
            Code::CountOnesW => self.map1(inst, |a: u32| a.count_ones()),
            Code::LeadingZerosW => self.map1(inst, |a: u32| a.leading_zeros()),
            Code::TrailingZerosW => self.map1(inst, |a: u32| a.trailing_zeros()),
            Code::NegF => self.map1(inst, |a: u32| a ^ 0x8000_0000),
            Code::AbsF => self.map1(inst, |a: u32| a & 0x7fff_ffff),
            Code::Floor => self.float1(inst, f32::floor),
            Code::Ceil => self.float1(inst, f32::ceil),
            Code::Trunc => self.float1(inst, f32::trunc),
            Code::RoundEven => self.float1(inst, f32::round_ties_even),
            Code::Sqrt => self.float1(inst, f32::sqrt),
            Code::NegX => self.map1(inst, u64::wrapping_neg),
            Code::NotX => self.map1(inst, |a: u64| !a),
            Code::CountOnesX => self.map1(inst, |a: u64| u64::from(a.count_ones())),
            Code::LeadingZerosX => self.map1(inst, |a: u64| u64::from(a.leading_zeros())),
            Code::TrailingZerosX => self.map1(inst, |a: u64| u64::from(a.trailing_zeros())),
            Code::Fma => self.fused_multiply_add(inst),

            Code::SelectW => self.choose::<u32>(
                self.row_mut(inst.d),
                self.row(inst.a),
                self.row(inst.b),
                self.mask(inst.c),
            ),
            Code::SelectL => self.choose::<u64>(
                self.row_mut(inst.d),
                self.row(inst.a),
                self.row(inst.b),
                self.mask(inst.c),
            ),
            Code::SelectM => {
                let c = self.mask(inst.c);
                self.set_mask(inst.d, self.mask(inst.a) & c | self.mask(inst.b) & !c);
            }

            Code::MaskToW => self.spread_mask(inst, 1_u32, 0),
            Code::MaskToX => self.spread_mask(inst, 1_u64, 0),
            Code::MaskToF => self.spread_mask(inst, 1_f32.to_bits(), 0),
            Code::WToMask => self.test1(inst, |a: u32| a != 0),
            Code::XToMask => self.test1(inst, |a: u64| a != 0),
            Code::FToMask => self.test1(inst, |a: u32| f32::from_bits(a) != 0.0),
            Code::UToX => self.map1(inst, |a: u32| u64::from(a)),
            Code::IToX => self.map1(inst, |a: u32| i64::from(a as i32) as u64),
            Code::XToW => self.map1(inst, |a: u64| a as u32),
            Code::FToU => self.map1(inst, |a: u32| f32::from_bits(a) as u32),
            Code::FToI => self.map1(inst, |a: u32| f32::from_bits(a) as i32 as u32),
            Code::FToX => self.map1(inst, |a: u32| f32::from_bits(a) as u64),
            Code::UToF => self.map1(inst, |a: u32| (a as f32).to_bits()),
            Code::IToF => self.map1(inst, |a: u32| (a as i32 as f32).to_bits()),
            Code::XToF => self.map1(inst, |a: u64| (a as f32).to_bits()),
            _ => {}
        }
    }

    #[inline(always)]
    fn fused_multiply_add(&self, inst: &Inst) {
        let d: &mut [u32; W] = self.row_mut(inst.d);
        let (a, b, c): (&[u32; W], &[u32; W], &[u32; W]) =
            (self.row(inst.a), self.row(inst.b), self.row(inst.c));
        for lane in 0..W {
            let (a, b, c) = (f32::from_bits(a[lane]), f32::from_bits(b[lane]), f32::from_bits(c[lane]));
            d[lane] = a.mul_add(b, c).to_bits();
        }
    }
}

// Free functions over references, so that the compiler knows that the arrays do not overlap.

#[inline(always)]
fn each1<T: Lane, D: Lane, const W: usize>(d: &mut [D; W], a: &[T; W], f: impl Fn(T) -> D) {
    for lane in 0..W {
        d[lane] = f(a[lane]);
    }
}

#[inline(always)]
fn each2<T: Lane, U: Lane, D: Lane, const W: usize>(
    d: &mut [D; W],
    a: &[T; W],
    b: &[U; W],
    f: impl Fn(T, U) -> D,
) {
    for lane in 0..W {
        d[lane] = f(a[lane], b[lane]);
    }
}

/// The lanes in which a test holds, one bit each.
#[inline(always)]
pub(super) fn lanes_where<const W: usize>(test: impl Fn(usize) -> bool) -> u32 {
    if W < 4 {
        return (0..W).fold(0, |lanes, lane| lanes | u32::from(test(lane)) << lane);
    }
    let mut lanes = 0;
    // From the last to the first, one after the other: with shifts of its own for each, the compiler would
    // put the four bits back into vectors to shift them.
    for first in (0..W).step_by(4).rev() {
        let mut truths = [0_u32; 4];
        for (truth, lane) in truths.iter_mut().zip(first..W) {
            *truth = if test(lane) { u32::MAX } else { 0 };
        }
        lanes = lanes << 4 | sign_bits(truths);
    }
    lanes
}

/// The highest bit of each of four words. Written out because the compiler does not find the instruction.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn sign_bits(words: [u32; 4]) -> u32 {
    use std::arch::x86_64::{__m128, _mm_movemask_ps};
    // SAFETY: sixteen bytes, and any bytes are a vector.
    let words = unsafe { std::mem::transmute::<[u32; 4], __m128>(words) };
    // SAFETY: every x86-64 processor has SSE.
    (unsafe { _mm_movemask_ps(words) }) as u32
}

/// The highest bit of each of four words.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn sign_bits(words: [u32; 4]) -> u32 {
    words.iter().rev().fold(0, |bits, word| bits << 1 | word >> 31)
}
