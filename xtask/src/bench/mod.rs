//! `cargo xtask bench`: what the ring costs, against what else one could do, in one run.
//!
//! * `items` says what is computed, and what must come back;
//! * `session`, `opponents`, `products`, `gpu` have the turns; `measure` lets them alternate;
//! * `suite` says who meets whom, `hosting` what it costs to keep sessions, idle ones (`sensors`) and those whose host
//!   dies (`death`); `statistics`, `report` and `machine` what is written about it.
//!
//! docs/benchmarks.md says what each row counts and does not claim. Absent on purpose: bars. A figure is wrong or
//! right here; whether it is good is for people who know the machine.

mod death;
mod feed;
mod gpu;
mod hosting;
mod items;
mod machine;
mod measure;
mod opponents;
mod products;
mod report;
mod sensors;
mod session;
mod statistics;
mod suite;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use vyre::{BackendChoice, OpenOptions};
use vyre_cpu::CpuBackend;
use vyre_driver::VyreBackend;
use vyre_hip::HipBackend;

use machine::Machine;
use report::{Outcome, Row};
use suite::{BATCHES, GROUPS, PRODUCERS, Suite};

/// What to measure, and where to write it.
#[derive(Args)]
pub(crate) struct Options {
    /// Fewer rounds of smaller turns: to see that everything works, not for figures to quote.
    #[arg(long)]
    quick: bool,
    /// What to measure on.
    #[arg(long, value_enum, default_value_t = Choice::All)]
    backend: Choice,
    /// Measure this group of rows only; may be given several times.
    #[arg(long = "group", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(GROUPS))]
    groups: Vec<String>,
    /// Write every row to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write plots into this folder.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Seconds of rounds for each backend, 60 by default and 10 with --quick; preparing comes on top, and every
    /// measurement has three rounds, however long they take.
    #[arg(long, value_name = "N")]
    seconds: Option<u32>,
    /// Be the process that is killed: keep a session on this backend, say so, and wait.
    #[arg(long, value_enum, hide = true)]
    own_a_session: Option<Choice>,
    /// The commit to write down where there is no checkout to ask, as in a bundle.
    #[arg(long, value_name = "NAME")]
    commit: Option<String>,
}

/// Backends to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    Cpu,
    Hip,
    All,
}

/// A backend under measurement, or why it is none.
struct Subject {
    name: &'static str,
    opened: Result<Opened, String>,
}

/// A backend in both processes.
struct Opened {
    /// What sessions run on: the one that [`vyre::open`] gives.
    backend: Arc<dyn VyreBackend>,
    /// In this process.
    here: Arc<dyn VyreBackend>,
    /// In a worker.
    worker: Arc<dyn VyreBackend>,
    /// The device itself, in this process, for the opponents that launch by hand.
    hip: Option<Arc<HipBackend>>,
}

impl Opened {
    fn cpu() -> Result<Opened> {
        let here: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        let worker = OpenOptions::new(BackendChoice::Cpu).open_worker()?;
        Ok(Opened { backend: Arc::clone(&here), here, worker, hip: None })
    }

    fn hip() -> Result<Opened> {
        let hip = Arc::new(HipBackend::open(0)?);
        let worker: Arc<dyn VyreBackend> = OpenOptions::new(BackendChoice::Hip).open_worker()?;
        let here = Arc::clone(&hip) as Arc<dyn VyreBackend>;
        Ok(Opened { backend: Arc::clone(&worker), here, worker, hip: Some(hip) })
    }
}

/// The one place where backends come from.
fn subjects(choice: Choice) -> Vec<Subject> {
    let mut subjects = Vec::new();
    let mut add = |name, opened: Result<Opened>| {
        subjects.push(Subject { name, opened: opened.map_err(|error| format!("{error:#}")) });
    };
    if choice != Choice::Hip {
        add("cpu", Opened::cpu());
    }
    if choice != Choice::Cpu {
        add("hip", Opened::hip());
    }
    subjects
}

/// Starts the same command again, optimised: `cargo xtask` builds for development, whose figures mean nothing.
fn in_release() -> Result<ExitCode> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let status = Command::new(cargo)
        .args(["run", "--release", "--quiet", "--manifest-path", manifest, "--"])
        .args(std::env::args_os().skip(1))
        .status()
        .context("starting cargo for an optimised build; or build with `--release`")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures. The exit status is 0 if there are figures and nothing was wrong.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        return in_release();
    }
    if let Some(choice) = options.own_a_session {
        return death::own_a_session(choice);
    }
    ensure!(options.seconds != Some(0), "--seconds is 0; give every measurement time, at least 1");
    let mut machine = Machine::look(options.commit.as_deref());
    let seconds = options.seconds.unwrap_or(if options.quick { 10 } else { 60 });
    let wanted = |group: &&str| options.groups.is_empty() || options.groups.iter().any(|name| name == group);
    let groups: Vec<&'static str> = GROUPS.into_iter().filter(wanted).collect();
    let mut rows = Vec::new();
    for Subject { name, opened } in subjects(options.backend) {
        match opened {
            Ok(opened) => {
                machine.devices.push((name.to_owned(), opened.backend.identity().device.clone()));
                let suite = Suite::new(
                    name,
                    opened,
                    options.quick,
                    groups.clone(),
                    Duration::from_secs(seconds.into()),
                );
                rows.extend(suite.run());
            }
            Err(reason) => rows.push(Row {
                backend: name.to_owned(),
                group: "everything",
                name: "all measurements".to_owned(),
                curve: None,
                x: None,
                outcome: Outcome::NotMeasured { reason },
            }),
        }
    }
    print!("{machine}{}", report::table(&rows));
    if let Some(path) = &options.json {
        report::write_json(path, &machine, &rows)?;
    }
    if let Some(folder) = &options.report {
        for path in report::plot(folder, &rows)? {
            eprintln!("wrote {}", path.display());
        }
    }
    let failed = rows.iter().any(|row| matches!(row.outcome, Outcome::Failed { .. }));
    let measured = rows.iter().any(|row| matches!(row.outcome, Outcome::Measured { .. }));
    Ok(if measured && !failed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
