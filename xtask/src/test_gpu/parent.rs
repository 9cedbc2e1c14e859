//! A parent that is killed: its worker goes with it, and so does what the worker had on its device.
//!
//! The parent is this program run again, which owns a worker whose kernel never ends.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vyre_driver::{BufferDesc, DispatchConfig, VyreBackend};
use vyre_foundation::DataType;
use vyre_hip::HipBackend;

use super::Device;
use super::isolated::{middle, open, probe, serve};
use super::programs::{describe, endless};

/// What a worker holds of a GPU's memory: one part of so many.
const SHARE: u64 = 8;
/// What a worker holds of the host's memory.
const CPU_BYTES: u64 = 16 << 20;
/// How long a worker may outlive its parent, and memory its worker.
const PATIENCE: Duration = Duration::from_secs(10);
/// Each parent is killed so much later than the one before it, as its kernel starts and runs.
const STEP: Duration = Duration::from_millis(10);

/// In the parent: says its worker's process id and the bytes that it holds, and runs a kernel without an end.
pub(super) fn own_a_worker(device: &str) -> Result<Infallible, String> {
    let ordinal = device.strip_prefix("hip").map(str::parse).transpose();
    let ordinal: Option<u32> =
        ordinal.map_err(|_| format!("`{device}` is not `cpu` or `hip` and a number"))?;
    let backend = open(ordinal, false)?;
    let text = |error| describe(&error);
    let bytes = match ordinal {
        Some(_) => backend.capabilities().memory_bytes / SHARE / 8 * 8,
        None => CPU_BYTES,
    };
    let held = backend.create_buffer(&BufferDesc::new("held", DataType::U64, bytes / 8)).map_err(text)?;
    let gate = backend.create_buffer(&BufferDesc::new("gate", DataType::U32, 1)).map_err(text)?;
    backend.write_buffer(gate, 0, &[0; 4]).map_err(text)?;
    let pipeline = backend.compile(&*endless()?).map_err(text)?;
    let pid = backend.worker_pid().ok_or("no worker")?;
    println!("{pid} {bytes}");
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    let outcome = pipeline.dispatch(&[gate.binding()], &DispatchConfig::new([1, 1, 1]));
    Err(format!("a kernel without an end ended: {outcome:?}, {held:?}"))
}

/// Kills parents, each a little later than the one before it.
pub(super) fn deaths(device: &Device, repeats: u32) -> Result<(), String> {
    let (mut gone, mut freed) = (Vec::new(), Vec::new());
    let mut most_missing = 0;
    for round in 0..repeats {
        let at = |error: anyhow::Error| format!("round {round}: {error:#}");
        let free = device.hip.as_deref().map(free_bytes).transpose().map_err(at)?;
        let mut parent = Parent::start(&device.name).map_err(at)?;
        let enough = parent.bytes / 2;
        if let (Some(hip), Some(free)) = (device.hip.as_deref(), free) {
            let held = free.saturating_sub(free_bytes(hip).map_err(at)?);
            if held < enough {
                return Err(format!("round {round}: a worker with {} bytes holds {held}", parent.bytes));
            }
        }
        std::thread::sleep(STEP * round);
        let killed = Instant::now();
        parent.kill_and_outlast_worker().map_err(at)?;
        gone.push(killed.elapsed());
        if let (Some(hip), Some(free)) = (device.hip.as_deref(), free) {
            // Other trials may run, and need some; but nothing like that.
            let missing = loop {
                let missing = free.saturating_sub(free_bytes(hip).map_err(at)?);
                if missing < enough {
                    break missing;
                }
                if killed.elapsed() > PATIENCE {
                    return Err(format!("round {round}: {missing} bytes are held by nobody"));
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            freed.push(killed.elapsed());
            most_missing = most_missing.max(missing);
        }
        serve(device.backend.as_ref(), &probe()?, round)
            .map_err(|error| format!("round {round}: {error}"))?;
    }
    eprintln!("parent killed: its worker gone after {} (p50/max of {repeats})", middle(&mut gone));
    if !freed.is_empty() {
        eprintln!("device memory free after {}, all but {most_missing} bytes", middle(&mut freed));
    }
    Ok(())
}

fn free_bytes(hip: &HipBackend) -> anyhow::Result<u64> {
    Ok(hip.context().memory_use()?.free)
}

/// A process that owns a worker.
struct Parent {
    process: Child,
    /// Stands for the worker, which is no child of this process.
    worker: rustix::fd::OwnedFd,
    /// What the worker holds.
    bytes: u64,
}

impl Parent {
    fn start(device: &str) -> anyhow::Result<Parent> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["test-gpu", "--own-a-worker", device])
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a parent")?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let words = line.trim_end().split_once(' ');
        let said =
            words.and_then(|(pid, bytes)| Some((Pid::from_raw(pid.parse().ok()?)?, bytes.parse().ok()?)));
        let (pid, bytes) = said.with_context(|| format!("a parent said `{line}`, not its worker"))?;
        let worker = pidfd_open(pid, PidfdFlags::empty()).context("its worker")?;
        Ok(Parent { process, worker, bytes })
    }

    /// Kills the parent, and waits until its worker has ended too.
    fn kill_and_outlast_worker(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        let limit = Timespec::try_from(PATIENCE)?;
        let ended = poll(&mut [PollFd::new(&self.worker.as_fd(), PollFlags::IN)], Some(&limit))?;
        if ended == 0 {
            bail!("its worker lives {PATIENCE:?} after it");
        }
        Ok(())
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // It is dead, unless a trial has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
