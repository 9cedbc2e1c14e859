//! The fp16 matrix product by its gates, on shapes around the edges of every tile.

use std::sync::{Arc, OnceLock};

use libtest_mimic::Trial;
use vyre::driver::gemm::{GemmOutput, GemmProblem};
use vyre::gemm::{CpuGemm, GemmCase, GemmData, GemmDevice, GemmGate, HipGemm, check, verify};

use super::Device;
use super::programs::describe;
use super::trial::Records;

/// Around the sizes of instructions and of tiles.
const SIZES: [u64; 7] = [1, 15, 16, 17, 63, 64, 65];
/// Larger: k is split, blocks walk several tiles, few rows or columns.
const LARGE: [[u64; 3]; 9] = [
    [1000, 17, 4097],
    [17, 4095, 1000],
    [4097, 1000, 1],
    [1, 4097, 1000],
    [4, 1000, 4095],
    [8, 65, 4097],
    [257, 515, 262],
    [520, 1032, 264],
    [64, 64, 4096],
];
const ALPHAS: [f32; 5] = [1.0, -1.0, 0.5, 2.0, 0.0];
const BETAS: [f32; 4] = [0.0, 1.0, -0.5, 0.25];

type Shared = Box<dyn GemmDevice + Send + Sync>;
type Fixture = Arc<OnceLock<Result<Shared, String>>>;
type Body = Box<dyn FnOnce(&dyn GemmDevice) -> Result<(), String> + Send>;

/// Adds the trials of one device.
pub(crate) fn add(device: &Device, records: &Records, trials: &mut Vec<Trial>) {
    // Compiled once for all trials.
    let fixture: Fixture = Arc::default();
    let mut add = |name: String, body: Body| {
        let (device, fixture) = (device.clone(), Arc::clone(&fixture));
        let name = format!("{}::gemm::{name}", device.name);
        trials.push(records.trial(name, move || {
            let gemm = fixture.get_or_init(|| open(&device)).as_ref();
            gemm.map_err(Clone::clone).and_then(|gemm| body(gemm.as_ref())).into()
        }));
    };
    for m in SIZES {
        add(format!("triples_of_{m}"), Box::new(move |gemm| triples(gemm, m)));
    }
    for [m, n, k] in LARGE {
        add(format!("large_{m}x{n}x{k}"), Box::new(move |gemm| large(gemm, [m, n, k])));
    }
    add("zero_sizes".to_owned(), Box::new(zero_sizes));
    add("misaligned".to_owned(), Box::new(misaligned));
    add("all_gates".to_owned(), Box::new(all_gates));
}

fn open(device: &Device) -> Result<Shared, String> {
    match &device.hip {
        None => Ok(Box::new(CpuGemm::default())),
        Some(backend) => Ok(Box::new(HipGemm::new(backend).map_err(|error| describe(&error))?)),
    }
}

/// A case whose padding, batch, factors, output and alignment follow from its number. The factors keep exact data
/// exact.
fn varied([m, n, k]: [u64; 3], data: GemmData, number: u64) -> GemmCase {
    let h = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let pick = |shift: u32, of: u64| (h >> shift) % of;
    let [lda, ldb, ldc] = [(k, 8), (n, 16), (n, 24)].map(|(columns, shift)| columns + pick(shift, 12));
    let batch = if pick(32, 4) == 0 { 3 } else { 1 };
    let (alpha, beta) = (ALPHAS[pick(36, 5) as usize], BETAS[pick(44, 4) as usize]);
    let problem = GemmProblem {
        lda,
        ldb,
        ldc,
        batch,
        stride_a: m * lda + pick(12, 9),
        stride_b: k * ldb + pick(20, 9),
        stride_c: m * ldc + pick(28, 9),
        alpha,
        beta,
        ..GemmProblem::dense(m, n, k)
    };
    let output = if pick(52, 2) == 0 { GemmOutput::F32 } else { GemmOutput::F16 };
    GemmCase { problem, output, data, seed: h, offset: pick(54, 8) }
}

fn run(gemm: &dyn GemmDevice, case: &GemmCase) -> Result<(), String> {
    passed(case, &check(gemm, case).map_err(|error| format!("{case:?}: {}", describe(&error)))?)
}

fn passed(what: &impl std::fmt::Debug, gates: &[GemmGate]) -> Result<(), String> {
    match gates.iter().find(|gate| !gate.passed) {
        None => Ok(()),
        Some(gate) => Err(format!("{}: {}; {what:?}", gate.name, gate.detail)),
    }
}

fn triples(gemm: &dyn GemmDevice, m: u64) -> Result<(), String> {
    for (i, n) in (0..).zip(SIZES) {
        for (j, k) in (0..).zip(SIZES) {
            let number = (m * 7 + i) * 7 + j;
            for data in [GemmData::Integers, GemmData::Normal] {
                run(gemm, &varied([m, n, k], data, number))?;
                // Whole pieces of 16 bytes where the sizes allow it.
                let (problem, seed) = (GemmProblem::dense(m, n, k), number);
                for output in [GemmOutput::F32, GemmOutput::F16] {
                    run(gemm, &GemmCase { problem, output, data, seed, offset: 0 })?;
                }
            }
            for data in [GemmData::Specials, GemmData::Subnormals] {
                run(gemm, &varied([m, n, k], data, number))?;
            }
        }
    }
    Ok(())
}

fn large(gemm: &dyn GemmDevice, [m, n, k]: [u64; 3]) -> Result<(), String> {
    for data in [GemmData::Integers, GemmData::Normal, GemmData::Specials, GemmData::Subnormals] {
        for number in 0..2 {
            run(gemm, &varied([m, n, k], data, m + n + k + number))?;
        }
        // Padded to 16 bytes.
        let [lda, ldb] = [k, n].map(|columns| columns.next_multiple_of(8));
        let problem = GemmProblem { lda, ldb, ..GemmProblem::dense(m, n, k) };
        run(gemm, &GemmCase { problem, output: GemmOutput::F32, data, seed: m, offset: 0 })?;
    }
    Ok(())
}

fn zero_sizes(gemm: &dyn GemmDevice) -> Result<(), String> {
    for [m, n, k] in [[0, 17, 17], [17, 0, 17], [17, 17, 0], [0, 0, 0]] {
        for number in 0..8 {
            run(gemm, &varied([m, n, k], GemmData::Integers, number))?;
        }
    }
    let problem = GemmProblem { batch: 0, ..GemmProblem::dense(16, 16, 16) };
    let case = GemmCase { problem, output: GemmOutput::F32, data: GemmData::Integers, seed: 1, offset: 0 };
    run(gemm, &case)
}

fn misaligned(gemm: &dyn GemmDevice) -> Result<(), String> {
    for offset in 0..9 {
        for [m, n, k] in [[130, 136, 264], [3, 72, 512], [40, 64, 2048]] {
            for output in [GemmOutput::F32, GemmOutput::F16] {
                let problem = GemmProblem::dense(m, n, k);
                run(gemm, &GemmCase { problem, output, data: GemmData::Normal, seed: offset, offset })?;
            }
        }
    }
    Ok(())
}

/// What `vyre gemm` does before it measures; the same bits again included.
fn all_gates(gemm: &dyn GemmDevice) -> Result<(), String> {
    for [m, n, k] in [[64, 64, 64], [100, 200, 300], [6, 128, 1024], [33, 17, 2050]] {
        for output in [GemmOutput::F32, GemmOutput::F16] {
            let problem = GemmProblem { alpha: 0.7, beta: -1.5, batch: 2, ..GemmProblem::dense(m, n, k) };
            passed(&problem, &verify(gemm, &problem, output, m).map_err(|error| describe(&error))?)?;
        }
    }
    Ok(())
}
