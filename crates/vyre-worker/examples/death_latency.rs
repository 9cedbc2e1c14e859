//! How soon a death is known: `cargo run --release -p vyre-worker --example death_latency`.
//!
//! A witness waits for the same child on a descriptor of its own; what it sees is the kernel's report. Printed is
//! how much later the waiting caller had the death in hand, how long starting the child took, and how long the
//! kernel took from the signal to its report. Children that wait quietly, and children killed in the middle of
//! writing to standard error as fast as they can.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vyre_worker::process::{Launch, Process};

const TURNS: usize = 500;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("quiet") => loop {
            std::thread::park();
        },
        Some("writing") => {
            while std::io::stderr().write_all(&[b'.'; 4096]).is_ok() {}
            ExitCode::FAILURE
        }
        _ => match ["quiet", "writing"].iter().try_for_each(|child| measure(child)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn measure(child: &str) -> Result<(), Box<dyn Error>> {
    let (mut starts, mut kernel, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let before = Instant::now();
        let process = Process::spawn(Launch::reexec().arg(child))?;
        starts.push(before.elapsed());
        let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw).ok_or("no process")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // Past the start of its main, most likely; a child killed earlier is a death like any other.
        std::thread::sleep(Duration::from_millis(2));
        let (sent, reported, known) = std::thread::scope(|scope| {
            let witness = scope.spawn(|| {
                let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None);
                Instant::now()
            });
            let waiter = scope.spawn(|| {
                process.wait(Duration::from_secs(10));
                Instant::now()
            });
            let sent = Instant::now();
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            (sent, witness.join(), waiter.join())
        });
        let (Ok(reported), Ok(known)) = (reported, known) else { return Err("a thread panicked".into()) };
        process.death().ok_or("killed, and not dead after 10 s")?;
        kernel.push(reported - sent);
        // Zero where the caller had it first.
        ours.push(known.saturating_duration_since(reported));
    }
    println!("{child} child, {TURNS} times:");
    for (what, mut times) in [
        ("start, until its executable runs", starts),
        ("signal sent until the kernel reports the death", kernel),
        ("report until the waiting caller has it", ours),
    ] {
        times.sort();
        let at = |share: usize| times.get((times.len() - 1) * share / 1000).copied().unwrap_or_default();
        println!("  {what:<48} p50 {:>10.1?}  p99 {:>10.1?}  max {:>10.1?}", at(500), at(990), at(1000));
    }
    Ok(())
}
