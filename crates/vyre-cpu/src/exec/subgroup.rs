//! Instructions among the lanes of a wave, which is a subgroup. Present lanes are the active ones: control is
//! uniform where these instructions stand.

use vyre_foundation::semantics::{max_f32, min_f32, scan_start};
use vyre_foundation::{Literal, ReduceOp, ScalarType};

use super::wave::{Bank, Lane, Registers};
use crate::flat::{Code, CombineWord, Extent, Inst};

impl<const W: usize> Registers<W> {
    /// Executes a subgroup instruction; any other does nothing.
    #[inline(never)]
    pub(super) fn communicate(&self, inst: &Inst, active: u32) {
        match inst.code {
            Code::ShuffleW => self.shuffle::<u32>(inst, active),
            Code::ShuffleL => self.shuffle::<u64>(inst, active),
            Code::ShuffleM => {
                let (a, lanes): (u32, &[u32; W]) = (self.mask(inst.a) & active, self.row(inst.b));
                let bit = |lane: u32| a.checked_shr(lane).unwrap_or(0) & 1;
                let moved = lanes.iter().rev().fold(0, |moved, &lane| moved << 1 | bit(lane));
                self.set_mask(inst.d, moved);
            }
            Code::CombineW => self.combine(inst, active, combine_words),
            Code::CombineL => self.combine(inst, active, combine_longs),
            Code::Ballot => {
                let d: &mut [u64; W] = self.row_mut(inst.d);
                d.fill(u64::from(self.mask(inst.a) & active));
            }
            Code::Any => self.vote(inst, self.mask(inst.a) & active != 0),
            Code::All => self.vote(inst, self.mask(inst.a) & active == active),
            _ => {}
        }
    }

    fn vote(&self, inst: &Inst, all: bool) {
        self.set_mask(inst.d, if all { u32::MAX } else { 0 });
    }

    fn shuffle<T: Lane + Default>(&self, inst: &Inst, active: u32)
    where
        Self: Bank<u32, W> + Bank<T, W>,
    {
        let (a, lanes): (&[T; W], &[u32; W]) = (self.row(inst.a), self.row(inst.b));
        let d: &mut [T; W] = self.row_mut(inst.d);
        for (d, &lane) in d.iter_mut().zip(lanes) {
            let present = active.checked_shr(lane).unwrap_or(0) & 1 != 0;
            *d = a.get(lane as usize).copied().filter(|_| present).unwrap_or_default();
        }
    }

    fn combine<T: Lane + Default + Register>(
        &self,
        inst: &Inst,
        active: u32,
        with: fn(CombineWord, T, T) -> T,
    ) where
        Self: Bank<T, W>,
    {
        let word = CombineWord::unpack(inst.t);
        let (a, d): (&[T; W], &mut [T; W]) = (self.row(inst.a), self.row_mut(inst.d));
        // The present lanes, closed up. They are the lowest, unless a deadline has ended some.
        let mut values = [T::default(); W];
        let mut present = 0;
        for (lane, &value) in a.iter().enumerate() {
            if active >> lane & 1 != 0 {
                values[present] = value;
                present += 1;
            }
        }
        let values = &mut values[..present];
        let mut distance = 1;
        while distance < values.len() {
            if word.extent == Extent::All {
                for low in (0..values.len() - distance).step_by(2 * distance) {
                    values[low] = with(word, values[low], values[low + distance]);
                }
            } else {
                for lane in (distance..values.len()).rev() {
                    values[lane] = with(word, values[lane - distance], values[lane]);
                }
            }
            distance *= 2;
        }
        let mut below = scan_start(word.op, word.ty).map_or(T::default(), T::from_literal);
        let mut next = values.iter().copied();
        for (lane, d) in d.iter_mut().enumerate() {
            if active >> lane & 1 != 0 {
                let value = next.next().unwrap_or_default();
                *d = if word.extent == Extent::Exclusive { below } else { value };
                below = value;
            }
        }
        if let (Extent::All, Some(&all)) = (word.extent, values.first()) {
            d.fill(all);
        }
    }
}

/// A register's value from a constant of its type.
trait Register {
    fn from_literal(literal: Literal) -> Self;
}

impl Register for u32 {
    fn from_literal(literal: Literal) -> u32 {
        match literal {
            Literal::Bool(v) => u32::from(v),
            Literal::U32(v) | Literal::F32(v) => v,
            Literal::I32(v) => v as u32,
            Literal::U64(v) => v as u32,
        }
    }
}

impl Register for u64 {
    fn from_literal(literal: Literal) -> u64 {
        match literal {
            Literal::U64(v) => v,
            other => u64::from(u32::from_literal(other)),
        }
    }
}

fn combine_words(word: CombineWord, a: u32, b: u32) -> u32 {
    let (float_a, float_b) = (f32::from_bits(a), f32::from_bits(b));
    match (word.op, word.ty) {
        (ReduceOp::Add, ScalarType::F32) => (float_a + float_b).to_bits(),
        (ReduceOp::Min, ScalarType::F32) => min_f32(float_a, float_b).to_bits(),
        (ReduceOp::Max, ScalarType::F32) => max_f32(float_a, float_b).to_bits(),
        (ReduceOp::Min, ScalarType::I32) => (a as i32).min(b as i32) as u32,
        (ReduceOp::Max, ScalarType::I32) => (a as i32).max(b as i32) as u32,
        (ReduceOp::Add, _) => a.wrapping_add(b),
        (ReduceOp::Min, _) => a.min(b),
        (ReduceOp::Max, _) => a.max(b),
        (ReduceOp::And, _) => a & b,
        (ReduceOp::Or, _) => a | b,
        (ReduceOp::Xor, _) => a ^ b,
    }
}

fn combine_longs(word: CombineWord, a: u64, b: u64) -> u64 {
    match word.op {
        ReduceOp::Add => a.wrapping_add(b),
        ReduceOp::Min => a.min(b),
        ReduceOp::Max => a.max(b),
        ReduceOp::And => a & b,
        ReduceOp::Or => a | b,
        ReduceOp::Xor => a ^ b,
    }
}
