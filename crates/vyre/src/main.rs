//! The `vyre` command.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    vyre::worker_main();
    cli::run()
}
