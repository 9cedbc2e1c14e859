//! Development tasks of the Vyre workspace: `cargo xtask help` lists them.

mod bench;
mod build_kernels;
mod ci;
mod dependencies;
mod soak;
mod test_gpu;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of the Vyre workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything a change must pass: fmt, clippy, doc, tests, loom, dependency direction, consumers.
    Ci {
        /// Run only these steps, in the given order.
        #[arg(value_enum)]
        steps: Vec<ci::Step>,
    },
    /// Builds all kernels to code objects and a manifest: those written by hand, megakernels, and programs of `.vir`
    /// files.
    BuildKernels(build_kernels::Options),
    /// Runs one conformance suite on every GPU of this machine, and on the CPU backend.
    TestGpu(test_gpu::Options),
    /// Measures the ring against what else one could do.
    Bench(bench::Options),
    /// Keeps a session in a worker busy with everything at once, loses the worker again and again, and checks every
    /// answer.
    Soak(soak::Options),
}

fn main() -> Result<ExitCode> {
    test_gpu::worker_main();
    match Cli::parse().task {
        Task::Ci { steps } => ci::run(&steps).map(|()| ExitCode::SUCCESS),
        Task::BuildKernels(options) => build_kernels::run(&options),
        Task::TestGpu(options) => test_gpu::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Soak(options) => soak::run(&options),
    }
}
