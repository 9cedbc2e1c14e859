//! One trial: a body with a deadline, and a record of what became of it.

use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Completion, Failed, Trial};
use serde_json::json;
use vyre_driver::VyreBackend;

use super::Device;

/// How long a trial may take, compiling included.
const DEADLINE: Duration = Duration::from_secs(240);

/// A body that needs no more than the backend.
pub(crate) type Body = fn(&dyn VyreBackend) -> Result<(), String>;

/// What a trial's body comes to.
pub(crate) enum Verdict {
    /// As it must be.
    Passed,
    /// The device lacks what it takes; the reason.
    Unsupported(String),
    /// Anything else.
    Failed(String),
}

impl<E: std::fmt::Display> From<Result<(), E>> for Verdict {
    fn from(result: Result<(), E>) -> Verdict {
        match result {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::Failed(format!("{error:#}")),
        }
    }
}

struct Record {
    name: String,
    outcome: &'static str,
    detail: String,
    seconds: f64,
}

/// What became of the trials.
#[derive(Clone, Default)]
pub(crate) struct Records {
    all: Arc<Mutex<Vec<Record>>>,
    /// Held by a trial that has a GPU to itself.
    whole: Arc<Mutex<()>>,
}

impl Records {
    /// Makes a trial of a body. A body that has not ended by the deadline has failed; its thread is left
    /// behind, for nothing can end it.
    pub(crate) fn trial(&self, name: String, body: impl FnOnce() -> Verdict + Send + 'static) -> Trial {
        self.trial_of(name, false, body)
    }

    /// The same; on a GPU, no other such trial runs meanwhile. For bodies that keep a kernel resident, of which only so
    /// many fit a device, or own another process's context, which takes turns with this one's.
    pub(crate) fn trial_alone(
        &self,
        device: &Device,
        name: String,
        body: impl FnOnce() -> Verdict + Send + 'static,
    ) -> Trial {
        self.trial_of(name, device.hip.is_some(), body)
    }

    fn trial_of(&self, name: String, alone: bool, body: impl FnOnce() -> Verdict + Send + 'static) -> Trial {
        let records = self.clone();
        Trial::ignorable_test(name.clone(), move || {
            let _whole = alone.then(|| records.whole.lock().unwrap_or_else(PoisonError::into_inner));
            let started = Instant::now();
            let (send, receive) = mpsc::sync_channel(1);
            let spawned = thread::Builder::new().name(name.clone()).spawn(move || send.send(body()));
            let verdict = match (spawned, receive.recv_timeout(DEADLINE)) {
                (Err(error), _) => Verdict::Failed(format!("no thread: {error}")),
                (_, Ok(verdict)) => verdict,
                (_, Err(mpsc::RecvTimeoutError::Disconnected)) => Verdict::Failed("it panicked".to_owned()),
                (_, Err(mpsc::RecvTimeoutError::Timeout)) => {
                    Verdict::Failed(format!("it did not end within {DEADLINE:?}"))
                }
            };
            let (outcome, detail) = match &verdict {
                Verdict::Passed => ("passed", String::new()),
                Verdict::Unsupported(reason) => ("unsupported", reason.clone()),
                Verdict::Failed(reason) => ("failed", reason.clone()),
            };
            let seconds = started.elapsed().as_secs_f64();
            let mut all = records.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(Record { name, outcome, detail, seconds });
            drop(all);
            match verdict {
                Verdict::Passed => Ok(Completion::Completed),
                Verdict::Unsupported(reason) => {
                    Ok(Completion::ignored_with(format!("unsupported: {reason}")))
                }
                Verdict::Failed(reason) => Err(Failed::from(reason)),
            }
        })
    }

    /// Counts by device and outcome.
    pub(crate) fn print_summary(&self) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let mut devices: Vec<&str> = all.iter().map(|record| device_of(&record.name)).collect();
        devices.sort_unstable();
        devices.dedup();
        for device in devices {
            let count = |outcome| {
                let mine = all.iter().filter(|record| device_of(&record.name) == device);
                mine.filter(|record| record.outcome == outcome).count()
            };
            println!(
                "{device}: {} passed, {} unsupported, {} failed",
                count("passed"),
                count("unsupported"),
                count("failed")
            );
        }
    }

    /// Writes all records.
    pub(crate) fn write<'d>(
        &self,
        path: &Path,
        devices: impl Iterator<Item = (&'d str, &'d dyn VyreBackend)>,
    ) -> Result<()> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let devices: Vec<_> = devices
            .map(|(name, backend)| {
                let identity = backend.identity();
                json!({ "name": name, "backend": identity.name, "device": identity.device, "build": identity.build })
            })
            .collect();
        let trials: Vec<_> = all
            .iter()
            .map(|record| {
                json!({
                    "name": record.name,
                    "outcome": record.outcome,
                    "detail": record.detail,
                    "seconds": record.seconds,
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&json!({ "devices": devices, "trials": trials }))?;
        std::fs::write(path, text + "\n")?;
        Ok(())
    }
}

/// Trials are named `device::group::test`.
fn device_of(name: &str) -> &str {
    name.split("::").next().unwrap_or(name)
}
