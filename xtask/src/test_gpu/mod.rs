//! `cargo xtask test-gpu`: one conformance suite on every device of this machine, and on the CPU backend.
//!
//! `suite` says what is tested, `trial` how one test is run and recorded, `bundle` how the whole goes to a
//! machine that has a GPU and no Rust.

mod bundle;
mod errors;
mod faulty;
mod gemm;
pub(crate) mod isolated;
mod litmus;
mod parent;
mod programs;
mod sessions;
mod suite;
mod trial;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, value_parser};
use vyre_cpu::CpuBackend;
use vyre_driver::VyreBackend;
use vyre_hip::HipBackend;

pub(crate) use isolated::worker_main;
use trial::Records;

/// How to test.
#[derive(Args)]
pub(crate) struct Options {
    /// Succeed on a machine without a device: the CPU backend is tested all the same.
    #[arg(long)]
    allow_no_device: bool,
    /// Write every trial with its outcome and time to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Do not test; write a folder that runs the same suite on a machine without Rust.
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// Run only the trials whose names contain this.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// How often each way to lose a worker is tried.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..))]
    repeat_faults: u32,
    /// How many trials run at once; one for each processor by default.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Do not test; own a worker on this device until killed: what `parent` tests.
    #[arg(long, hide = true, value_name = "DEVICE")]
    own_a_worker: Option<String>,
    /// Where the file tests are, if not in the workspace or beside the program.
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
}

/// A backend under test.
#[derive(Clone)]
pub(crate) struct Device {
    /// What its trials are named after.
    pub(crate) name: String,
    pub(crate) backend: Arc<dyn VyreBackend>,
    /// The same backend, if it is a GPU's.
    pub(crate) hip: Option<Arc<HipBackend>>,
}

impl Device {
    /// Which GPU it is, if it is one.
    fn ordinal(&self) -> Option<u32> {
        self.hip.as_ref().map(|hip| hip.ordinal())
    }
}

/// Runs the suite. The exit status is 0 if every trial passed or is unsupported, and there was a device or
/// none was needed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(folder) = &options.bundle {
        bundle::write(folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(device) = &options.own_a_worker {
        let Err(error) = parent::own_a_worker(device);
        anyhow::bail!(error);
    }
    let report = vyre_hip::detect();
    eprintln!("{report}");
    let cpu = Device { name: "cpu".to_owned(), backend: Arc::new(CpuBackend::new()), hip: None };
    let mut devices = vec![cpu];
    let (gpus, missing) = gpus();
    for reason in &missing {
        eprintln!("no trial runs on a GPU: {reason}");
    }
    let has_gpu = !gpus.is_empty();
    devices.extend(gpus);

    let files = files(options.files.as_deref())?;
    let records = Records::default();
    let mut trials = Vec::new();
    for device in &devices {
        suite::add(device, &files, &records, &mut trials)?;
        isolated::add(device, options.repeat_faults, &records, &mut trials);
    }
    let arguments = libtest_mimic::Arguments {
        filter: options.filter.clone(),
        test_threads: options.threads.map(NonZeroUsize::get),
        ..libtest_mimic::Arguments::default()
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    records.print_summary();
    if let Some(path) = &options.json {
        let devices = devices.iter().map(|device| (device.name.as_str(), device.backend.as_ref()));
        records.write(path, devices).with_context(|| format!("writing {}", path.display()))?;
    }
    if conclusion.num_passed + conclusion.num_failed + conclusion.num_ignored == 0 {
        anyhow::bail!("no trial's name contains `{}`", options.filter.as_deref().unwrap_or_default());
    }
    let passed = !conclusion.has_failed() && (has_gpu || options.allow_no_device);
    if !has_gpu && !options.allow_no_device {
        eprintln!("no GPU was tested; --allow-no-device accepts that");
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every GPU that can be opened, and why others cannot.
fn gpus() -> (Vec<Device>, Vec<String>) {
    let (backends, errors) = HipBackend::open_all();
    let devices = backends.into_iter().map(|backend| {
        let name = format!("hip{}", backend.ordinal());
        let hip = Arc::new(backend);
        Device { name, backend: Arc::clone(&hip) as Arc<dyn VyreBackend>, hip: Some(hip) }
    });
    (devices.collect(), errors.iter().map(ToString::to_string).collect())
}

/// The folder of the file tests: the one given, one beside this program, or the workspace's.
fn files(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let beside = program.with_file_name(bundle::FILES);
    if beside.is_dir() {
        return Ok(beside);
    }
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/vyre-foundation/tests/files"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        _options: Options,
    }

    /// No fault tried would be a pass of nothing, and no thread a wait without end.
    #[test]
    fn none_of_what_is_to_run_is_refused() {
        for option in ["--repeat-faults", "--threads"] {
            let parse = |count| CommandLine::try_parse_from(["", option, count]).map(drop);
            let error = parse("0").expect_err("refused").to_string();
            assert!(error.contains("'0'") && error.contains(option), "{error}");
            parse("1").expect("taken");
        }
    }
}
