//! Programs run on a device and on the CPU backend, whose results must be the same bytes.

use std::error::Error;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use half::{bf16, f16};
use libtest_mimic::Trial;
use vyre_cpu::CpuBackend;
use vyre_driver::{BackendError, BufferBinding, BufferDesc, DispatchConfig, DispatchOutcome, VyreBackend};
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::builder::{Operand, ProgramBuilder};
use vyre_foundation::{
    Axis, BufferAccess, Builtin, DataType, MemorySpace, ProgramKind, ValidatedProgram, validate,
};

use super::Device;
use super::trial::{Body, Records};

/// Random programs for each device, and how many of them make one trial.
const RANDOM_PROGRAMS: u64 = 96;
const A_TRIAL: u64 = 8;
/// Bytes that choose a random program.
const CHOICES: usize = 1200;

/// The bytes of a buffer, and what its elements are.
#[derive(Clone)]
pub(crate) struct Data {
    pub(crate) element: DataType,
    pub(crate) bytes: Vec<u8>,
}

/// Runs a kernel over whole buffers, in place.
pub(crate) fn run(
    backend: &dyn VyreBackend,
    program: &ValidatedProgram,
    data: &mut [Data],
    grid: [u32; 3],
) -> Result<DispatchOutcome, BackendError> {
    let pipeline = backend.compile(program)?;
    let decls = program.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup);
    let mut handles = Vec::new();
    for (decl, data) in decls.zip(data.iter()) {
        let len = (data.bytes.len() / data.element.size()) as u64;
        let desc = BufferDesc::new(decl.name.clone(), data.element, len).in_space(decl.space);
        let handle = backend.create_buffer(&desc)?;
        backend.write_buffer(handle, 0, &data.bytes)?;
        handles.push(handle);
    }
    let bindings: Vec<_> = handles.iter().map(|handle| handle.binding()).collect();
    let mut config = DispatchConfig::new(grid);
    config.deadline = Some(Duration::from_secs(30));
    let outcome = pipeline.dispatch(&bindings, &config)?;
    for (handle, data) in handles.iter().zip(data.iter_mut()) {
        backend.read_buffer(*handle, 0, &mut data.bytes)?;
        backend.destroy_buffer(*handle)?;
    }
    Ok(outcome)
}

/// An error with everything behind it.
pub(crate) fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a string does not fail.
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}

/// Adds the trials of one device.
pub(crate) fn add(device: &Device, records: &Records, trials: &mut Vec<Trial>) {
    for first in (0..RANDOM_PROGRAMS).step_by(A_TRIAL as usize) {
        let device = device.clone();
        let name = format!("{}::random::programs_{first:03}", device.name);
        trials.push(records.trial(name, move || {
            (first..first + A_TRIAL).try_for_each(|seed| differs(device.backend.as_ref(), seed)).into()
        }));
    }
    for (name, body) in [("large_grid", large_grid as Body), ("rows", rows)] {
        let device = device.clone();
        let name = format!("{}::program::{name}", device.name);
        trials.push(records.trial(name, move || body(device.backend.as_ref()).into()));
    }
    for (name, from, to) in [
        ("f16_to_f32", DataType::F16, DataType::F32),
        ("bf16_to_f32", DataType::BF16, DataType::F32),
        ("f32_to_f16", DataType::F32, DataType::F16),
        ("f32_to_bf16", DataType::F32, DataType::BF16),
    ] {
        let device = device.clone();
        let name = format!("{}::half::{name}", device.name);
        trials.push(records.trial(name, move || convert(device.backend.as_ref(), from, to).into()));
    }
}

/// A kernel whose workgroups wait for one another twice, over a grid that no device has resident as a whole.
fn large_grid(backend: &dyn VyreBackend) -> Result<(), String> {
    const SIZE: u32 = 256;
    let groups = backend.capabilities().resident_workgroups.saturating_mul(16).clamp(512, 1 << 16);
    let mut p = ProgramBuilder::kernel("large_grid").workgroup_size([SIZE, 1, 1]);
    let values = p.buffer("values", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    let sums = p.buffer("sums", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let me = f.let_("me", Builtin::GlobalId(Axis::X));
        let before = f.let_("before", values.load(me));
        f.grid_barrier();
        // The mirror image's value, and what this invocation remembers across the barrier.
        let other = f.let_("other", values.load(values.len() - 1 - me));
        f.grid_barrier();
        f.store(values, me, other + before * 3);
        f.atomic_add(sums, 0, other);
    });
    let program = p.validate().map_err(|errors| errors.to_string())?;
    let count = groups * SIZE;
    let value = |i: u32| i.wrapping_mul(0x9e37_79b9);
    let bytes =
        |values: &mut dyn Iterator<Item = u32>| values.flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let mut data = [
        Data { element: DataType::U32, bytes: bytes(&mut (0..count).map(value)) },
        Data { element: DataType::U32, bytes: vec![0; 4] },
    ];
    run(backend, &program, &mut data, [groups, 1, 1]).map_err(|error| describe(&error))?;
    let mirrored = |i: u32| value(count - 1 - i).wrapping_add(value(i).wrapping_mul(3));
    let sum = (0..count).fold(0_u32, |sum, i| sum.wrapping_add(value(i)));
    let [values, sums] = &data;
    if values.bytes != bytes(&mut (0..count).map(mirrored)) {
        return Err(format!("{groups} workgroups did not all wait for one another"));
    }
    if sums.bytes == sum.to_le_bytes() {
        Ok(())
    } else {
        Err("an atomic ran twice, or not at all".to_owned())
    }
}

/// Many rows in one call give what as many calls give, and a repeat over resident buffers goes on from there.
fn rows(backend: &dyn VyreBackend) -> Result<(), String> {
    const ROWS: u64 = 24;
    const LEN: u64 = 1000;
    let mut p = ProgramBuilder::kernel("row").workgroup_size([64, 1, 1]);
    let row = p.buffer("row", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    let total = p.buffer("total", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let me = f.let_("me", Builtin::GlobalId(Axis::X));
        // Each row sees what those before it have added.
        f.if_(me.lt(row.len()), |f| f.store(row, me, row.load(me) * 2 + total.load(0)));
        f.grid_barrier();
        f.if_(me.eq_(0), |f| {
            f.atomic_add(total, 0, 1_u32);
        });
    });
    let program = p.validate().map_err(|errors| errors.to_string())?;
    let error = |error: BackendError| describe(&error);
    let pipeline = backend.compile(&program).map_err(error)?;
    let all = backend.create_buffer(&BufferDesc::new("rows", DataType::U32, ROWS * LEN)).map_err(error)?;
    let count = backend.create_buffer(&BufferDesc::new("total", DataType::U32, 1)).map_err(error)?;
    let bindings: Vec<_> = (0..ROWS).map(|row| [all.slice(row * LEN, LEN), count.binding()]).collect();
    let bindings: Vec<&[BufferBinding]> = bindings.iter().map(|row| &row[..]).collect();
    let mut config = DispatchConfig::new([LEN.div_ceil(64) as u32, 1, 1]);
    config.deadline = Some(Duration::from_secs(30));
    for repeat in 0..3 {
        let outcomes = pipeline.dispatch_rows(&bindings, &config).map_err(error)?;
        if outcomes.len() as u64 != ROWS {
            return Err(format!("{} outcomes for {ROWS} rows in repeat {repeat}", outcomes.len()));
        }
    }
    let mut found = vec![0; (ROWS * LEN * 4) as usize];
    backend.read_buffer(all, 0, &mut found).map_err(error)?;
    for (row, bytes) in (0_u32..).zip(found.chunks((LEN * 4) as usize)) {
        // Three updates, the total being the row's number plus 24 a repeat.
        let expected = (0..3).fold(0, |value: u32, repeat| value * 2 + row + repeat * ROWS as u32);
        if bytes.chunks(4).any(|element| element != expected.to_le_bytes()) {
            return Err(format!("row {row} is not {expected} throughout"));
        }
    }
    backend.destroy_buffer(all).map_err(error)?;
    backend.destroy_buffer(count).map_err(error)
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for a seed everywhere.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Says how a random program's outcome differs from the CPU backend's, if it does.
fn differs(backend: &dyn VyreBackend, seed: u64) -> Result<(), String> {
    let mut numbers = Numbers(seed);
    let program = loop {
        let choices: Vec<u8> = (0..CHOICES).map(|_| numbers.next() as u8).collect();
        let program = arbitrary_program(&choices);
        if program.kind == ProgramKind::Kernel {
            break program;
        }
    };
    let text = vyre_foundation::text::print(&program);
    let program = validate(program).map_err(|errors| format!("{errors}\n{text}"))?;
    let grid = [1 + (numbers.next() % 3) as u32, 1 + (numbers.next() % 2) as u32, 1];
    let bound = program.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup);
    let before: Vec<Data> = bound
        .map(|decl| {
            let len = u64::from(decl.len) + numbers.next() % 300;
            let mut bytes = Vec::new();
            for _ in 0..len {
                let number = numbers.next();
                let number = if number >> 63 == 0 { number % 4 } else { number };
                bytes.extend(number.to_le_bytes().iter().take(decl.element.size()));
            }
            Data { element: decl.element, bytes }
        })
        .collect();
    let (mut expected, mut found) = (before.clone(), before);
    let oracle = run(&CpuBackend::new(), &program, &mut expected, grid).map_err(|error| describe(&error))?;
    let outcome = run(backend, &program, &mut found, grid).map_err(|error| describe(&error))?;
    if outcome.trap != oracle.trap {
        return Err(format!("program {seed} ended in {:?}, not {:?}\n{text}", outcome.trap, oracle.trap));
    }
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let size = found.element.size();
        let elements = found.bytes.chunks(size).zip(expected.bytes.chunks(size)).enumerate();
        for (at, (found_bytes, expected_bytes)) in elements {
            if canonical(found.element, found_bytes) != canonical(found.element, expected_bytes) {
                return Err(format!(
                    "program {seed}: element {at} of bound buffer {index} is {found_bytes:02x?}, not \
                     {expected_bytes:02x?}\n{text}"
                ));
            }
        }
    }
    Ok(())
}

/// The bits of an element; all NaNs of a type are one.
fn canonical(element: DataType, bytes: &[u8]) -> u64 {
    let bits = bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u64::from(byte));
    match element {
        DataType::F16 if bits & 0x7fff > 0x7c00 => 0x7e00,
        DataType::BF16 if bits & 0x7fff > 0x7f80 => 0x7fc0,
        DataType::F32 if bits & 0x7fff_ffff > 0x7f80_0000 => 0x7fc0_0000,
        _ => bits,
    }
}

/// All 65,536 patterns of a 16-bit type, or what lies at and around their ties, through a load and a store.
fn convert(backend: &dyn VyreBackend, from: DataType, to: DataType) -> Result<(), String> {
    let half_bits = if from.size() == 2 { from } else { to };
    let widened = |bits: u16| match half_bits {
        DataType::F16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    };
    let values: Vec<u32> = if from.size() == 2 {
        (0..=u32::from(u16::MAX)).collect()
    } else {
        // Each value, and the ties on either side of it with their neighbours.
        (0..u16::MAX)
            .flat_map(|bits| {
                let (low, high) = (widened(bits).to_bits(), widened(bits + 1).to_bits());
                let tie = low / 2 + high / 2 + (low & high & 1);
                [low, tie.wrapping_sub(1), tie, tie + 1]
            })
            .collect()
    };
    let mut p = ProgramBuilder::kernel("convert").workgroup_size([256, 1, 1]);
    let source = p.buffer("source", MemorySpace::Global, from, BufferAccess::Read, 1);
    let target = p.buffer("target", MemorySpace::Global, to, BufferAccess::Write, 1);
    p.entry(|f| {
        let me = f.let_("me", Builtin::GlobalId(Axis::X));
        f.store(target, me, source.load(me));
    });
    let program = p.validate().map_err(|errors| errors.to_string())?;
    let little = |element: DataType, value: u32| value.to_le_bytes().into_iter().take(element.size());
    let source = values.iter().flat_map(|&value| little(from, value)).collect();
    let target = vec![0xa5; values.len() * to.size()];
    let mut data = [Data { element: from, bytes: source }, Data { element: to, bytes: target }];
    let grid = [values.len().div_ceil(256) as u32, 1, 1];
    run(backend, &program, &mut data, grid).map_err(|error| describe(&error))?;
    let [_, target] = &data;
    for (&value, found) in values.iter().zip(target.bytes.chunks(to.size())) {
        let expected = match (from, to) {
            (DataType::F16, _) => f16::from_bits(value as u16).to_f32().to_bits(),
            (DataType::BF16, _) => bf16::from_bits(value as u16).to_f32().to_bits(),
            (_, DataType::F16) => f16::from_f32(f32::from_bits(value)).to_bits().into(),
            _ => bf16::from_f32(f32::from_bits(value)).to_bits().into(),
        };
        let expected: Vec<u8> = little(to, expected).collect();
        if canonical(to, found) != canonical(to, &expected) {
            return Err(format!("{value:#x} from {from} to {to} is {found:02x?}, not {expected:02x?}"));
        }
    }
    Ok(())
}

/// A program whose invocations never end.
pub(crate) fn endless() -> Result<Arc<ValidatedProgram>, String> {
    let mut p = ProgramBuilder::kernel("endless").workgroup_size([64, 1, 1]);
    let gate = p.buffer("gate", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let open = f.var_("open", 0_u32);
        f.while_(open.eq_(0), |f| {
            let seen = f.atomic_load(gate, 0);
            f.assign(open, seen);
        });
    });
    p.validate().map(Arc::new).map_err(|errors| errors.to_string())
}
