//! The fp16 matrix product: run, verified and measured; what is behind `vyre gemm`.
//!
//! * `data` makes matrices from a seed, with poison and canaries;
//! * `device` computes products on the host or on a GPU;
//! * `gates` says what a result must pass, and compares;
//! * `report` is what was found.
//!
//! Absent on purpose: the kernels (`kernels/gemm_f16.hip`, `vyre_cpu::externals`), and comparisons with other
//! libraries, which are a benchmark's.

mod data;
mod device;
mod gates;
mod report;

use vyre_driver::BackendError;
use vyre_driver::gemm::{GemmOutput, GemmProblem};

pub use data::{GemmCase, GemmData, GemmElements, GemmOperands};
pub use device::{CpuGemm, GemmDevice, GemmFacts, GemmTiming, HipGemm};
pub use gates::{GemmGate, check, verify};
pub use report::GemmReport;

/// Verifies a product by all gates and takes its time on random normal data.
///
/// # Errors
///
/// A problem that no process can hold ([`BackendError::InvalidArgument`]) or not this host
/// ([`BackendError::OutOfMemory`]), and what the device answers. A gate that is not passed is no error: it is in
/// the report.
pub fn run(
    device: &dyn GemmDevice,
    problem: &GemmProblem,
    output: GemmOutput,
    seed: u64,
    samples: u32,
) -> Result<GemmReport, BackendError> {
    admit(problem, output)?;
    let case = GemmCase { problem: *problem, output, data: GemmData::Normal, seed, offset: 0 };
    let gates = gates::verify(device, problem, output, seed)?;
    let mut operands = case.operands();
    let facts = device.facts(problem, &operands)?;
    let timing =
        if problem.is_empty() { None } else { Some(device.time(problem, &mut operands, samples)?) };
    let copy_rate = device.copy_rate()?;
    Ok(GemmReport::new(problem, output, seed, facts, gates, timing, copy_rate))
}

/// Refuses what [`run`] would, before a device is opened for it: factors that are not finite, leading dimensions,
/// matrices of C that overlap, sizes that overflow, and last what the host's memory does not hold, for allocating that would end the process.
///
/// # Errors
///
/// [`BackendError::InvalidArgument`], [`BackendError::OutOfMemory`].
pub fn admit(problem: &GemmProblem, output: GemmOutput) -> Result<(), BackendError> {
    /// Before, after, once more, and as bytes on the way to a device.
    const COPIES: u64 = 4;
    for (name, factor) in [("alpha", problem.alpha), ("beta", problem.beta)] {
        if !factor.is_finite() {
            return Err(BackendError::invalid(name, factor, "a number that is finite in fp32"));
        }
    }
    problem.check(u64::MAX, u64::MAX, u64::MAX)?;
    let bytes = data::layouts(problem, 0).into_iter().zip([2, 2, output.size()]);
    let bytes = bytes.map(|(layout, size)| layout.extent().saturating_mul(u128::from(COPIES * size)));
    let requested = bytes.fold(0, u128::saturating_add).try_into().unwrap_or(u64::MAX);
    let Ok(text) = std::fs::read_to_string("/proc/meminfo") else { return Ok(()) };
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    match kibibytes.map(|kibibytes| kibibytes << 10) {
        Some(available) if requested > available => {
            let what = format!(
                "the matrices of {} x {} x {}, batch {}, on the host",
                problem.m, problem.n, problem.k, problem.batch
            );
            Err(BackendError::OutOfMemory { what, requested, available })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
