//! Child processes: how they start, what they are given, how their end is seen.
//!
//! This executable is its own child: with `--role` as its first argument it plays one of `roles`.

mod closed;
mod deaths;
mod launches;
mod output;
mod roles;
mod sandbox;
mod survival;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use vyre_worker::process::{Death, Launch, Process};

/// When a test gives up; nothing is expected to take that long.
const PATIENCE: Duration = Duration::from_secs(30);

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("--role") {
        let role = args.next().unwrap_or_default();
        return roles::play(&role, &args.collect::<Vec<_>>());
    }
    let trials = [
        deaths::trials(),
        launches::trials(),
        output::trials(),
        closed::trials(),
        survival::trials(),
        sandbox::trials(),
    ];
    let trials = trials.into_iter().flatten().map(|(name, test)| Trial::test(name, test)).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A test and its name.
type Named = (&'static str, fn() -> Outcome);

/// This executable as a child that plays `role`.
fn role(role: &str) -> Launch {
    Launch::reexec().arg("--role").arg(role).label(role)
}

/// The end of a child that ends by itself.
fn end_of(launch: Launch) -> Result<Death, Failed> {
    let process = Process::spawn(launch)?;
    process.wait(PATIENCE).ok_or_else(|| format!("process {} still runs", process.pid()).into())
}

/// A child that has written `ready` to its standard output, and now waits to be killed.
fn waiting_child() -> Result<Process, Failed> {
    let process = Process::spawn(role("wait").capture_stdout(64))?;
    until("the child is ready", || process.stdout() == b"ready\n")?;
    Ok(process)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Outcome {
    let start = std::time::Instant::now();
    while !holds() {
        if start.elapsed() > PATIENCE {
            return Err(format!("not seen in {PATIENCE:?}: {what}").into());
        }
        std::thread::yield_now();
    }
    Ok(())
}
