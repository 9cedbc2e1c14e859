//! How fast one table-driven automaton runs: lanes step in lockstep over 1 KiB each, as in a scan.
//!
//! `cargo run --release -p vyre-cpu --example dfa_bench`. Prints bytes a second on one thread, and checks the
//! result of every lane against the same loop in Rust.

use std::time::Instant;

use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{BackendError, BufferDesc, BufferHandle, DispatchConfig, VyreBackend};
use vyre_foundation::builder::{Operand, ProgramBuilder};
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, ValidatedProgram};

const ITEM_BYTES: u32 = 1024;
const ITEMS: u32 = 4096;
const LANES: u32 = 32;
const CLASSES: u32 = 20;
const STATES: u32 = 200;
/// States from here on accept.
const ACCEPTING: u32 = 199;

fn program() -> Result<ValidatedProgram, Box<dyn std::error::Error>> {
    let mut p = ProgramBuilder::kernel("dfa").workgroup_size([LANES, 1, 1]);
    let read = BufferAccess::Read;
    let payload = p.buffer("payload", MemorySpace::Global, DataType::U8, read, 1);
    let classes = p.buffer("classes", MemorySpace::Global, DataType::U8, read, 256);
    let table = p.buffer("table", MemorySpace::Global, DataType::U32, read, 1);
    let results = p.buffer("results", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let me = f.let_("me", Builtin::GlobalId(Axis::X));
        let first = f.let_("first", me * ITEM_BYTES);
        let end = f.let_("end", first + ITEM_BYTES);
        let state = f.var_("state", 0_u32);
        let hits = f.var_("hits", 0_u32);
        f.for_("i", first, end, |f, i| {
            let class = f.let_("class", classes.load(payload.load(i)));
            f.assign(state, table.load(state * CLASSES + class));
            f.if_(state.ge(ACCEPTING), |f| f.assign(hits, hits + 1));
        });
        f.store(results, me * 2, state);
        f.store(results, me * 2 + 1, hits);
    });
    Ok(p.validate()?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut random = 0x9E37_79B9_u32;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random
    };
    let payload: Vec<u8> = (0..ITEMS * ITEM_BYTES).map(|_| next() as u8).collect();
    let classes: Vec<u8> = (0..256).map(|_| (next() % CLASSES) as u8).collect();
    // Accepting states are rare: few transitions lead there.
    let table: Vec<u32> = (0..STATES * CLASSES)
        .map(|_| if next() % 1024 == 0 { ACCEPTING } else { next() % ACCEPTING })
        .collect();

    let program = program()?;
    let backend = CpuBackend::with_config(CpuConfig::default().threads(1));
    let words: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
    let buffers = [
        upload(&backend, "payload", DataType::U8, &payload)?,
        upload(&backend, "classes", DataType::U8, &classes)?,
        upload(&backend, "table", DataType::U32, &words)?,
        upload(&backend, "results", DataType::U32, &vec![0; ITEMS as usize * 8])?,
    ];
    let bindings = buffers.map(BufferHandle::binding);
    let pipeline = backend.compile(&program)?;
    let config = DispatchConfig::new([ITEMS / LANES, 1, 1]);
    let mut best = f64::INFINITY;
    for _ in 0..40 {
        let started = Instant::now();
        pipeline.dispatch(&bindings, &config)?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    let bytes = f64::from(ITEMS * ITEM_BYTES);

    let started = Instant::now();
    let expected: Vec<u8> = payload
        .chunks(ITEM_BYTES as usize)
        .flat_map(|item| {
            let (mut state, mut hits) = (0_u32, 0_u32);
            for &byte in item {
                state = table[(state * CLASSES + u32::from(classes[usize::from(byte)])) as usize];
                hits += u32::from(state >= ACCEPTING);
            }
            [state, hits]
        })
        .flat_map(u32::to_le_bytes)
        .collect();
    let native = started.elapsed().as_secs_f64();
    let mut results = vec![0; expected.len()];
    backend.read_buffer(buffers[3], 0, &mut results)?;
    assert_eq!(results, expected, "the lanes disagree with the loop in Rust");
    println!(
        "{:.0} MB/s on one thread, {:.0} ns for a byte of {LANES} lanes; the loop in Rust {:.0} MB/s",
        bytes / best / 1e6,
        best / bytes * 1e9 * f64::from(LANES),
        bytes / native / 1e6,
    );
    Ok(())
}

fn upload(
    backend: &CpuBackend,
    label: &str,
    element: DataType,
    bytes: &[u8],
) -> Result<BufferHandle, BackendError> {
    let len = (bytes.len() / element.size()) as u64;
    let buffer = backend.create_buffer(&BufferDesc::new(label, element, len))?;
    backend.write_buffer(buffer, 0, bytes)?;
    Ok(buffer)
}
