//! A matrix product as an item: a workgroup handler that calls an external function.

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_driver::gemm::GemmProblem;
use vyre_foundation::builder::{Operand, Value};
use vyre_foundation::externals::GEMM_F16;
use vyre_foundation::{DataType, Granularity, ScalarType};

use super::{Check, Nonconformance};
use crate::batch::DispatchOptions;
use crate::descriptor::SlotDescriptor;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::megakernel::Megakernel;

/// Handler of a workgroup: [`GEMM_F16`] of [`GEMM_BINDINGS`]. Arguments: m, n, k, the three leading dimensions,
/// the three offsets, the bits of alpha and of beta; completes with m * n.
pub const GEMM: u32 = 0x6E;

/// What [`GEMM`] works on: A and B in f16, C in f32.
pub const GEMM_BINDINGS: [&str; 3] = ["gemm_a", "gemm_b", "gemm_c"];

/// What lies around C before and after.
const CANARY: f32 = -77.0;

/// The longest that the item may take.
const WAIT: Duration = Duration::from_secs(60);

/// The handler of [`GEMM`]. It may run twice if beta is 0 and C is put back by nobody else.
pub fn gemm_handler() -> OpcodeHandler {
    let [a, b, c] = GEMM_BINDINGS;
    OpcodeHandler::new(GEMM, "gemm", |h| {
        let buffers = GEMM_BINDINGS.map(|name| h.buffer(name));
        let mut scalars: Vec<Value> = (0..6).map(|at| h.arg(at)).collect();
        scalars.extend((6..9).map(|at| h.arg(at).cast(ScalarType::U64)));
        scalars.extend((9..11).map(|at| h.arg(at).bitcast(ScalarType::F32)));
        h.call_external(GEMM_F16.name, scalars, buffers);
        h.complete(h.arg(0) * h.arg(1));
    })
    .granularity(Granularity::Workgroup)
    .external(GEMM_F16.declare())
    .binding(HandlerBinding::read(a, DataType::F16))
    .binding(HandlerBinding::read(b, DataType::F16))
    .binding(HandlerBinding::read_write(c, DataType::F32))
}

/// An item of [`GEMM`]: the first product of a problem whose matrices begin at these elements, all below 2^32.
pub fn gemm_item(problem: &GemmProblem, offsets: [u32; 3]) -> SlotDescriptor {
    let GemmProblem { m, n, k, lda, ldb, ldc, alpha, beta, .. } = *problem;
    let sizes = [m, n, k, lda, ldb, ldc].map(|size| u32::try_from(size).unwrap_or(u32::MAX));
    let [m, n, k, lda, ldb, ldc] = sizes;
    let [a, b, c] = offsets;
    SlotDescriptor::new(GEMM).args([m, n, k, lda, ldb, ldc, a, b, c, alpha.to_bits(), beta.to_bits()])
}

/// A matrix of whole numbers from -2 to 2, with rows `ld` apart behind `offset` elements; fp16 NaN elsewhere.
struct Whole {
    values: Vec<i32>,
    columns: usize,
    bytes: Vec<u8>,
}

impl Whole {
    fn new(rows: u64, columns: u64, ld: u64, offset: u32, seed: u32) -> Whole {
        let len = offset as usize + (rows * ld) as usize;
        let mut bits = vec![0x7E00_u16; len];
        let mut values = Vec::new();
        let mut state = seed;
        for row in 0..rows {
            for column in 0..columns {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let value = (state >> 24) as i32 % 5 - 2;
                let sign = if value < 0 { 0x8000 } else { 0 };
                // 0, 1 and 2 in fp16.
                let magnitude = [0, 0x3C00, 0x4000].get(value.unsigned_abs() as usize).copied();
                let at = offset as usize + (row * ld + column) as usize;
                if let (Some(place), Some(magnitude)) = (bits.get_mut(at), magnitude) {
                    *place = magnitude | sign;
                }
                values.push(value);
            }
        }
        let bytes = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        Whole { values, columns: columns as usize, bytes }
    }

    fn at(&self, row: usize, column: usize) -> i32 {
        self.values.get(row * self.columns + column).copied().unwrap_or(0)
    }
}

/// Runs products through a session and through batches, dense, with gaps and of odd sizes, and compares every
/// element: sums of products of small whole numbers are exact in whatever order they are taken.
///
/// # Errors
///
/// The first difference, and a backend that does not have the function.
pub fn run_gemm(backend: &Arc<dyn VyreBackend>) -> Result<(), Nonconformance> {
    let dense = GemmProblem::dense(64, 64, 64);
    let gaps = GemmProblem { lda: 67, ldb: 70, ldc: 65, alpha: 2.0, beta: 0.5, ..dense };
    let edges = GemmProblem { lda: 48, ldb: 104, ..GemmProblem::dense(70, 100, 45) };
    for (name, problem, offsets) in [
        ("a dense gemm as an item", dense, [0; 3]),
        ("a gemm with gaps as an item", gaps, [3, 8, 5]),
        ("a gemm of no whole tiles as an item", edges, [8, 16, 4]),
    ] {
        run_product(&Check(name), backend, &problem, offsets)?;
    }
    Ok(())
}

fn run_product(
    at: &Check,
    backend: &Arc<dyn VyreBackend>,
    problem: &GemmProblem,
    offsets: [u32; 3],
) -> Result<(), Nonconformance> {
    let GemmProblem { m, n, k, lda, ldb, ldc, alpha, beta, .. } = *problem;
    let [offset_a, offset_b, offset_c] = offsets;
    let (a, b) = (Whole::new(m, k, lda, offset_a, 1), Whole::new(k, n, ldb, offset_b, 2));
    let before = vec![CANARY; offset_c as usize + (m * ldc) as usize];
    let mut expected = before.clone();
    for row in 0..m as usize {
        for column in 0..n as usize {
            let sum: i32 = (0..k as usize).map(|step| a.at(row, step) * b.at(step, column)).sum();
            let old = if beta == 0.0 { 0.0 } else { beta * CANARY };
            if let Some(place) = expected.get_mut(offset_c as usize + row * ldc as usize + column) {
                *place = alpha * sum as f32 + old;
            }
        }
    }
    let bytes = |c: &[f32]| c.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let [name_a, name_b, name_c] = GEMM_BINDINGS;
    let build = |backend: &Arc<dyn VyreBackend>| -> Result<Megakernel, _> {
        Megakernel::builder(Arc::clone(backend))
            .slots(64)
            .workgroup_size(64)
            .handler(gemm_handler())
            .bind_bytes(name_a, a.bytes.clone())
            .bind_bytes(name_b, b.bytes.clone())
            .bind_bytes(name_c, bytes(&before))
            .build()
    };
    let item = gemm_item(problem, offsets);
    let compare = |what: &str, found: &[u8]| {
        let found: Vec<f32> = found.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        at.same(&format!("the length of C {what}"), found.len(), expected.len())?;
        // Bit by bit: NaN is equal to nothing.
        let differs = (0..).zip(found.iter().zip(&expected)).find(|(_, (a, b))| a.to_bits() != b.to_bits());
        at.same(&format!("the first element that differs {what}"), differs, None::<(usize, (&f32, &f32))>)
    };
    let mut found = vec![0; expected.len() * 4];
    if backend.capabilities().persistent {
        let session = at.ok(build(backend).and_then(|megakernel| megakernel.start()))?;
        let ticket = at.ok(session.submit(item.clone()))?;
        at.same("the result", at.ok(session.wait(ticket, WAIT))?.result(), m * n)?;
        at.ok(session.download(name_c, 0, &mut found))?;
        compare("of a session", &found)?;
        at.ok(session.stop())?;
    }
    let megakernel = at.ok(build(backend))?;
    let mut batch = megakernel.batch_buffers();
    at.ok(batch.ring.publish(3, &item))?;
    at.ok(megakernel.dispatch(&mut batch, &DispatchOptions::default()))?;
    at.same("the result in a batch", at.ok(batch.ring.completion(3))?.result, m * n)?;
    let c = megakernel.buffer(name_c).map(|binding| backend.read_buffer(binding.buffer, 0, &mut found));
    at.ok(c.unwrap_or(Ok(())).map_err(crate::MegakernelError::backend("read C")))?;
    compare("of a batch", &found)
}
