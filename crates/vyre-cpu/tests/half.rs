//! Every bit pattern of f16 and bf16, loaded and stored, equals the `half` crate.

mod common;

use common::{Data, all_settings, run};
use half::{bf16, f16};
use vyre_foundation::builder::ProgramBuilder;
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, ValidatedProgram};

/// Copies each element of a buffer of one type to a buffer of another.
fn copy(from: DataType, to: DataType) -> ValidatedProgram {
    let mut p = ProgramBuilder::kernel("copy").workgroup_size([256, 1, 1]);
    let source = p.buffer("source", MemorySpace::Global, from, BufferAccess::Read, 1);
    let target = p.buffer("target", MemorySpace::Global, to, BufferAccess::Write, 1);
    p.entry(|f| {
        let me = f.let_("me", Builtin::GlobalId(Axis::X));
        f.store(target, me, source.load(me));
    });
    p.validate().unwrap()
}

fn check(
    from: DataType,
    to: DataType,
    values: &[u32],
    expected: impl Fn(u32) -> u32,
    is_nan: fn(u32) -> bool,
) {
    let little = |element: DataType, values: &mut dyn Iterator<Item = u32>| {
        let bytes = values.flat_map(|value| value.to_le_bytes().into_iter().take(element.size())).collect();
        Data { element, bytes }
    };
    let program = copy(from, to);
    let source = little(from, &mut values.iter().copied());
    for (setting, backend) in all_settings() {
        let target = little(to, &mut values.iter().map(|_| 0));
        let mut data = [source.clone(), target];
        run(&backend, &program, &mut data, [values.len().div_ceil(256) as u32, 1, 1]).unwrap();
        for (&value, found) in values.iter().zip(data[1].bytes.chunks(to.size())) {
            let mut bits = [0; 4];
            bits[..to.size()].copy_from_slice(found);
            let (found, expected) = (u32::from_le_bytes(bits), expected(value));
            let same = found == expected || is_nan(found) && is_nan(expected);
            assert!(same, "{value:#x} from {from} to {to}: {found:#x}, not {expected:#x}, with {setting}");
        }
    }
}

fn f32_nan(bits: u32) -> bool {
    f32::from_bits(bits).is_nan()
}

fn f16_nan(bits: u32) -> bool {
    f16::from_bits(bits as u16).is_nan()
}

fn bf16_nan(bits: u32) -> bool {
    bf16::from_bits(bits as u16).is_nan()
}

#[test]
fn every_pattern_is_loaded_as_half_says() {
    let all: Vec<u32> = (0..=0xFFFF).collect();
    check(DataType::F16, DataType::F32, &all, |v| f16::from_bits(v as u16).to_f32().to_bits(), f32_nan);
    check(DataType::BF16, DataType::F32, &all, |v| bf16::from_bits(v as u16).to_f32().to_bits(), f32_nan);
}

#[test]
fn every_pattern_survives_a_round_trip() {
    let all: Vec<u32> = (0..=0xFFFF).collect();
    check(DataType::F16, DataType::F16, &all, |v| v, f16_nan);
    check(DataType::BF16, DataType::BF16, &all, |v| v, bf16_nan);
}

/// Each f16 and bf16, the ties between neighbours, and what lies just beside both.
#[test]
fn ties_are_rounded_as_half_says() {
    let mut values = Vec::new();
    for bits in 0..=0xFFFF_u16 {
        for exact in [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()] {
            let exact = exact.to_bits();
            // Half a step of f16 is bit 12 of an f32 in the normal range; of bf16, bit 15.
            values.extend([exact, exact | 1 << 12, (exact | 1 << 12) + 1, (exact | 1 << 12).wrapping_sub(1)]);
            values.extend([exact | 1 << 15, (exact | 1 << 15) + 1, (exact | 1 << 15).wrapping_sub(1)]);
        }
    }
    values.sort_unstable();
    values.dedup();
    let to_f16 = |v| u32::from(f16::from_f32(f32::from_bits(v)).to_bits());
    let to_bf16 = |v| u32::from(bf16::from_f32(f32::from_bits(v)).to_bits());
    check(DataType::F32, DataType::F16, &values, to_f16, f16_nan);
    check(DataType::F32, DataType::BF16, &values, to_bf16, bf16_nan);
}
