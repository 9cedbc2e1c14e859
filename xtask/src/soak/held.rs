//! What a soak holds while it runs: memory, descriptors, mappings, threads, of this process and of the worker.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use vyre_hip::HipBackend;

/// One look at everything. Bytes are in KiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Held {
    /// Since the start.
    seconds: f64,
    host: Process,
    worker: Process,
    /// Of the device, whoever uses it; 0 for the CPU.
    device_kib: u64,
}

/// What one process holds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Process {
    resident_kib: u64,
    descriptors: u64,
    mappings: u64,
    threads: u64,
}

impl Process {
    fn look(pid: &str) -> Result<Process> {
        let path = |name: &str| format!("/proc/{pid}/{name}");
        let entries = |name: &str| -> Result<u64> { Ok(std::fs::read_dir(path(name))?.count() as u64) };
        let status = std::fs::read_to_string(path("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next());
        Ok(Process {
            resident_kib: resident.context("no VmRSS in the status of a process")?.parse()?,
            descriptors: entries("fd")?,
            mappings: std::fs::read_to_string(path("maps"))?.lines().count() as u64,
            threads: entries("task")?,
        })
    }
}

impl Held {
    pub(super) fn now(since: Duration, worker: Option<u32>, device: Option<&HipBackend>) -> Result<Held> {
        let worker = worker.context("there is no worker")?;
        let memory = device.map(|hip| hip.context().memory_use()).transpose()?;
        Ok(Held {
            seconds: since.as_secs_f64(),
            host: Process::look("self")?,
            worker: Process::look(&worker.to_string())?,
            device_kib: memory.map_or(0, |memory| (memory.total - memory.free) / 1024),
        })
    }
}

/// One quantity, at the first third of a soak and at the last.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Course {
    pub(super) what: &'static str,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) most: u64,
    /// Whether the last third holds no more than the first, but for what comes and goes.
    pub(super) is_flat: bool,
}

/// A quantity, its name, and what of it comes and goes.
type Quantity = (&'static str, fn(&Held) -> u64, u64);

const QUANTITIES: [Quantity; 9] = [
    ("host, KiB resident", |held| held.host.resident_kib, 4096),
    ("host, descriptors", |held| held.host.descriptors, 4),
    ("host, mappings", |held| held.host.mappings, 16),
    ("host, threads", |held| held.host.threads, 2),
    ("worker, KiB resident", |held| held.worker.resident_kib, 16384),
    ("worker, descriptors", |held| held.worker.descriptors, 4),
    ("worker, mappings", |held| held.worker.mappings, 16),
    ("worker, threads", |held| held.worker.threads, 2),
    ("device, KiB in use", |held| held.device_kib, 65536),
];

/// The medians of the first and the last third of each quantity.
pub(super) fn courses(samples: &[Held]) -> Vec<Course> {
    let third = samples.len().div_ceil(3);
    let (first, last) = (&samples[..third], &samples[samples.len() - third..]);
    let course = |&(what, of, slack): &Quantity| {
        let median = |samples: &[Held]| {
            let mut values: Vec<u64> = samples.iter().map(of).collect();
            values.sort_unstable();
            values.get(values.len() / 2).copied().unwrap_or(0)
        };
        let (first, last) = (median(first), median(last));
        let most = samples.iter().map(of).max().unwrap_or(0);
        Course { what, first, last, most, is_flat: last <= first + first / 20 + slack }
    };
    QUANTITIES.iter().map(course).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(resident: impl Fn(u64) -> u64) -> Vec<Held> {
        let held = |at| {
            let host = Process { resident_kib: resident(at), ..Process::default() };
            Held { host, ..Held::default() }
        };
        (0..60).map(held).collect()
    }

    #[test]
    fn what_grows_is_told_from_what_comes_and_goes() {
        let is_flat =
            |resident: fn(u64) -> u64| courses(&samples(resident)).iter().all(|course| course.is_flat);
        assert!(is_flat(|_| 50_000));
        assert!(is_flat(|at| 50_000 + at % 2 * 20_000));
        assert!(is_flat(|at| 90_000 - at * 100));
        assert!(!is_flat(|at| 50_000 + at * 500));
        assert!(courses(&[]).iter().all(|course| course.is_flat));
    }
}
