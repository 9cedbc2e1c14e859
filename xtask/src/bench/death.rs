//! A host that is killed while it keeps a session: how long until its kernel has left the device.
//!
//! The host is this program run again, with its session in a worker. The kernel has left when the worker's process has
//! ended: a driver ends a process that owns a device only when nothing of it runs there any more.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use vyre::{BackendChoice, OpenOptions};
use vyre_driver::VyreBackend;
use vyre_driver::wait::WaitStrategy;

use super::Choice;
use super::measure::{Sample, Turn};
use super::session::{Load, Ring};
use super::statistics::{latencies, record};

/// How long a worker may outlive its host.
const PATIENCE: Duration = Duration::from_secs(10);

/// In the host: keeps a session, says its worker's process id once an item is acknowledged, and waits for its end.
pub(super) fn own_a_session(choice: Choice) -> Result<ExitCode> {
    let choice = if choice == Choice::Cpu { BackendChoice::Cpu } else { BackendChoice::Hip };
    let worker = OpenOptions::new(choice).open_worker()?;
    let pid = worker.worker_pid().context("no worker")?;
    let backend: Arc<dyn VyreBackend> = worker;
    let ring = Ring::new(&backend, Load::Nothing)?;
    let mut live = ring.start(WaitStrategy::Park)?;
    live.one(1)?;
    println!("{pid}");
    std::io::stdout().flush()?;
    // Nobody writes to it; it ends with whoever started this.
    std::io::stdin().lines().for_each(drop);
    Ok(ExitCode::SUCCESS)
}

/// Kills a host.
pub(super) fn turn(backend: &str) -> Result<Turn> {
    let mut host = Host::start(backend)?;
    let killed = Instant::now();
    host.kill_and_outlast_worker()?;
    let mut histogram = latencies()?;
    record(&mut histogram, killed.elapsed());
    Ok(Turn { acknowledged: 1, sample: Sample::Latencies(histogram) })
}

/// A process that keeps a session.
struct Host {
    process: Child,
    /// Stands for the worker, which is no child of this process.
    worker: OwnedFd,
}

impl Host {
    fn start(backend: &str) -> Result<Host> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["bench", "--own-a-session", backend])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a host")?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let worker = line.trim_end().parse().ok().and_then(Pid::from_raw);
        let worker = worker.map(|pid| pidfd_open(pid, PidfdFlags::empty()).context("its worker"));
        match worker {
            Some(Ok(worker)) => Ok(Host { process, worker }),
            other => {
                let _ = process.kill();
                let ended = process.wait()?;
                other.transpose()?;
                bail!("a host said `{line}`, not its worker, and ended with {ended}")
            }
        }
    }

    fn kill_and_outlast_worker(&mut self) -> Result<()> {
        self.process.kill()?;
        let limit = Timespec::try_from(PATIENCE)?;
        let ended = poll(&mut [PollFd::new(&self.worker.as_fd(), PollFlags::IN)], Some(&limit))?;
        ensure!(ended != 0, "its worker lives {PATIENCE:?} after it");
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It is dead, unless something has failed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
