//! The command line: arguments in, text and exit status out. What the commands do is in the library.
//!
//! Exit status 2 is an error, whatever else was found.

mod gemm;
mod info;
mod messages;
mod output;
mod progress;
mod scan;
mod summary;
mod top;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use vyre::BackendChoice;

/// A resident megakernel fed live through a ring.
#[derive(Debug, Parser)]
#[command(name = "vyre", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Search files for many patterns at once.
    Scan(scan::ScanArguments),
    /// Multiply matrices on random data: verify the result, and take the time.
    Gemm(gemm::GemmArguments),
    /// Watch running sessions of other processes.
    Top(top::TopArguments),
    /// List backends and devices, and why a backend is not available.
    Info(info::InfoArguments),
}

/// Where to run.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Backend {
    /// The fastest that works here.
    Auto,
    /// The host's own threads.
    Cpu,
    /// The first GPU.
    Hip,
}

impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> BackendChoice {
        match backend {
            Backend::Auto => BackendChoice::Auto,
            Backend::Cpu => BackendChoice::Cpu,
            Backend::Hip => BackendChoice::Hip,
        }
    }
}

/// The exit status of an error.
const FAILURE: u8 = 2;

/// Runs the command given by the process's arguments.
pub(crate) fn run() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Scan(arguments) => scan::run(&arguments),
        Command::Gemm(arguments) => gemm::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Info(arguments) => info::run(&arguments),
    };
    match done {
        Ok(status) => status,
        Err(error) => {
            messages::error(&format!("{error:#}"));
            ExitCode::from(FAILURE)
        }
    }
}
