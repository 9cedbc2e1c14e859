//! What a soak has found, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use vyre_runtime::PersistentSession;

use super::disturb::{Change, Recovered};
use super::held::{Course, Held, courses};
use super::ledger::{Ledger, Sums};
use super::load::STUCK;

/// What the threads beside the producers have to tell.
#[derive(Debug, Default, Serialize)]
pub(super) struct Told {
    pub(super) seconds: f64,
    pub(super) changes: Vec<Change>,
    pub(super) uploads: u32,
    pub(super) losses: Vec<Recovered>,
    pub(super) samples: Vec<Held>,
}

/// See the module's documentation.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    told: Told,
    sums: Sums,
    courses: Vec<Course>,
    /// Kernels started, by changes of handlers, recoveries, and runs of suspects.
    starts: u64,
    recoveries: u64,
    problems: Vec<String>,
}

impl Report {
    /// Ends the session and draws the balance.
    pub(super) fn new(told: Told, session: &PersistentSession, ledger: &Ledger) -> Report {
        for ended in [session.drain(STUCK), session.stop()] {
            if let Err(error) = ended {
                ledger.problem(format_args!("the session did not end well: {error}"));
            }
        }
        let (sums, telemetry) = (ledger.sums(), session.telemetry());
        let courses = courses(&told.samples);
        let mut problems = sums.problems.clone();
        for (what, got, expected) in [
            ("items answered of those with a ticket", sums.right + sums.faulted, sums.tracked),
            ("items submitted", telemetry.submitted, sums.tracked + sums.detached),
            ("items acknowledged", telemetry.acknowledged, telemetry.submitted),
            ("answers that no device gives", telemetry.violations, 0),
            ("recoveries", telemetry.recoveries, told.losses.len() as u64),
            ("wrong answers", sums.wrong, 0),
        ] {
            if got != expected {
                problems.push(format!("{what}: {got}, not {expected}"));
            }
        }
        for Course { what, first, last, .. } in courses.iter().filter(|course| !course.is_flat) {
            problems.push(format!("{what}: grown from {first} to {last}"));
        }
        let (starts, recoveries) = (telemetry.starts, telemetry.recoveries);
        Report { told, sums, courses, starts, recoveries, problems }
    }

    pub(super) fn is_right(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// The middle one, the one that a hundredth is longer than, the longest.
fn spread(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at =
        |percent: usize| values.get((values.len().saturating_sub(1)) * percent / 100).copied().unwrap_or(0.0);
    format!("{:9.2} {:9.2} {:9.2}", at(50), at(99), at(100))
}

/// The middle one and the longest.
fn middle(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    format!("{:.1}/{:.1}", at(values.len() / 2), at(values.len().saturating_sub(1)))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sums = &self.sums;
        writeln!(f, "{:.0} s, {} kernels, {} recoveries", self.told.seconds, self.starts, self.recoveries)?;
        writeln!(
            f,
            "{} items with a ticket: {} right, {} ended in a fault {:?}",
            sums.tracked, sums.right, sums.faulted, sums.faults
        )?;
        writeln!(f, "{} detached, {} of them lost with the device", sums.detached, sums.detached_faults)?;
        writeln!(f, "{} submissions found no room and were repeated", sums.refused)?;
        writeln!(f, "by kind: {:?}", sums.kinds)?;
        if !self.told.changes.is_empty() {
            writeln!(f, "{} changes of handlers, {} uploads", self.told.changes.len(), self.told.uploads)?;
            writeln!(f, "{:<36} {:>9} {:>9} {:>9}", "ms", "p50", "p99", "max")?;
            for (what, of) in [
                ("pause", (|change| change.pause) as fn(&Change) -> f64),
                ("of it, until the old kernel has left", |change| change.left),
                ("compiling beside the old kernel", |change| change.prepared),
            ] {
                writeln!(f, "{what:<36} {}", spread(self.told.changes.iter().map(of)))?;
            }
        }
        let mut kinds: BTreeMap<&str, Vec<&Recovered>> = BTreeMap::new();
        self.told.losses.iter().for_each(|loss| kinds.entry(loss.kind).or_default().push(loss));
        if !kinds.is_empty() {
            let heads = ["noticed", "gone", "ready", "rebuilt", "sorted out", "serving"];
            writeln!(
                f,
                "{:<20} {:>5} {}",
                "ms, p50/max",
                "times",
                heads.map(|head| format!("{head:>14}")).concat()
            )?;
        }
        for (kind, losses) in kinds {
            let of =
                |of: fn(&Recovered) -> f64| format!("{:>14}", middle(losses.iter().map(|loss| of(loss))));
            let times = [
                of(|loss| loss.noticed),
                of(|loss| loss.gone),
                of(|loss| loss.ready),
                of(|loss| loss.rebuilt),
                of(|loss| loss.sorted),
                of(|loss| loss.serving),
            ];
            let sum = |of: fn(&Recovered) -> u64| losses.iter().map(|loss| of(loss)).sum::<u64>();
            let (again, alone, failed) =
                (sum(|loss| loss.replayed), sum(|loss| loss.alone), sum(|loss| loss.failed));
            let items = format!("{again} run again, {alone} of them alone, {failed} ended");
            writeln!(f, "{kind:<20} {:>5} {}  {items}", losses.len(), times.concat())?;
        }
        if !self.told.samples.is_empty() {
            writeln!(
                f,
                "{:<24} {:>12} {:>12} {:>12}",
                "held, median of", "first third", "last third", "most"
            )?;
            for Course { what, first, last, most, is_flat } in &self.courses {
                writeln!(
                    f,
                    "{what:<24} {first:>12} {last:>12} {most:>12} {}",
                    if *is_flat { "" } else { "GROWN" }
                )?;
            }
        }
        for problem in &self.problems {
            writeln!(f, "WRONG: {problem}")?;
        }
        let verdict =
            if self.is_right() { "nothing lost, wrong, answered twice, or stuck" } else { "FAILED" };
        write!(f, "{verdict}")
    }
}
