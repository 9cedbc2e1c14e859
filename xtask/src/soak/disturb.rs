//! What goes on around the producers: changes of handlers, uploads, and losses.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use vyre::worker::IsolatedBackend;
use vyre_runtime::session::{HandlerUpdate, RecoveryReport};
use vyre_runtime::{MegakernelError, PersistentSession, SlotDescriptor};

use super::handlers::{SOMETIMES, TABLE, VERSION_BITS, VERSIONED, sometimes, table, versioned};
use super::ledger::Ledger;
use super::load::{FULL, STUCK};
use crate::test_gpu::isolated::{Blow, strike};

/// How often the threads look whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// Between two uploads.
const UPLOADS: Duration = Duration::from_millis(100);

/// What one change of handlers took, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Change {
    pub(super) prepared: f64,
    pub(super) pause: f64,
    pub(super) left: f64,
}

/// What one loss took, in milliseconds from the blow on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Recovered {
    pub(super) kind: &'static str,
    /// Until the session knew.
    pub(super) noticed: f64,
    /// Until the old worker's process was gone, after that.
    pub(super) gone: f64,
    /// Until there was another one, after that.
    pub(super) ready: f64,
    /// Until everything was compiled and uploaded in it, after that.
    pub(super) rebuilt: f64,
    /// Until suspects had been run alone and a kernel ran for all, after that.
    pub(super) sorted: f64,
    /// Until an item submitted then had its answer, all in all.
    pub(super) serving: f64,
    pub(super) replayed: u64,
    pub(super) failed: u64,
    pub(super) alone: u64,
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Waits until a moment, or until it is over; whether it is not.
pub(super) fn until(ledger: &Ledger, moment: Instant) -> bool {
    while !ledger.is_over() {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(LOOK));
    }
    false
}

/// Changes the handlers again and again.
pub(super) fn change(session: &PersistentSession, ledger: &Ledger, every: Duration) -> Result<Vec<Change>> {
    let mut made = Vec::new();
    let mut next = Instant::now() + every;
    while until(ledger, next) {
        next = Instant::now() + every;
        // Whoever reads in between allows both.
        let version = ledger.changes.begin();
        let update = HandlerUpdate::new().replace_handler(versioned(version));
        let update =
            if version % 2 == 1 { update.add_handler(sometimes()) } else { update.remove_handler(SOMETIMES) };
        let change = session.update_handlers(update, STUCK).context("changing handlers")?;
        ledger.changes.end();
        let (prepared, pause, left) = (ms(change.prepared_in), ms(change.pause), ms(change.left_in));
        made.push(Change { prepared, pause, left });
    }
    Ok(made)
}

/// Uploads the table again and again, and downloads it as often.
pub(super) fn upload(session: &PersistentSession, ledger: &Ledger) -> Result<u32> {
    while until(ledger, Instant::now() + UPLOADS) {
        let bytes = table(ledger.uploads.begin());
        through_losses(|| session.upload(TABLE, 0, &bytes)).context("uploading a table")?;
        ledger.uploads.end();
        let mut found = vec![0; bytes.len()];
        through_losses(|| session.download(TABLE, 0, &mut found)).context("downloading a table")?;
        if found != bytes {
            ledger.problem("a table is not what was uploaded");
        }
    }
    Ok(ledger.uploads.over())
}

/// Tries again while the device is lost, as whoever uploads has to.
fn through_losses(mut call: impl FnMut() -> Result<(), MegakernelError>) -> Result<(), MegakernelError> {
    let started = Instant::now();
    loop {
        match call() {
            Err(error) if error.is_device_loss() && started.elapsed() < STUCK => std::thread::sleep(LOOK),
            done => return done,
        }
    }
}

/// The one that strikes.
pub(super) struct Striker<'a> {
    pub(super) session: &'a PersistentSession,
    pub(super) backend: &'a IsolatedBackend,
    pub(super) ledger: &'a Ledger,
    /// Held from the blow to the recovery: nobody measures what is held meanwhile.
    pub(super) calm: &'a Mutex<()>,
}

impl Striker<'_> {
    /// One blow after the other, `every` apart.
    pub(super) fn rotate(
        &self,
        blows: &[(&'static str, Blow)],
        every: Duration,
        end: Instant,
    ) -> Result<Vec<Recovered>> {
        let mut recovered = Vec::new();
        // In the middle of each span, so that there is as much to see before the first and behind the last.
        let mut next = Instant::now() + every / 2;
        for &(kind, blow) in blows.iter().cycle() {
            if !until(self.ledger, next.min(end)) || next >= end {
                break;
            }
            next += every;
            recovered.push(self.strike(kind, blow)?);
        }
        Ok(recovered)
    }

    /// Lets one blow fall, and waits until something right is computed again.
    pub(super) fn strike(&self, kind: &'static str, blow: Blow) -> Result<Recovered> {
        let _calm = self.calm.lock();
        let before = self.session.last_recovery().map_or(0, |report| report.number);
        self.ledger.losses.begin();
        let (error, known) = strike(self.backend, blow).map_err(|error| anyhow!("{kind}: {error}"))?;
        let begun = Instant::now() - known;
        let loss = error.loss().with_context(|| format!("{kind} was taken for no loss: {error}"))?;
        if loss.cause != blow.cause() {
            bail!("{kind} was taken for {:?}: {}", loss.cause, loss.reason);
        }
        let report = self.recovery(kind, before)?;
        let serving = self.serve()?;
        self.ledger.losses.end();
        let replacement = self.backend.last_replacement().context("no worker was replaced")?;
        let [rebuilt, served] = [report.rebuilt_after, report.serving_after].map(Option::unwrap_or_default);
        let asked = replacement.asked.saturating_duration_since(report.noticed);
        let replaced = asked + replacement.gone_after + replacement.ready_after;
        Ok(Recovered {
            kind,
            noticed: ms(report.noticed.saturating_duration_since(begun)),
            gone: ms(asked + replacement.gone_after),
            ready: ms(replacement.ready_after),
            rebuilt: ms(rebuilt.saturating_sub(replaced)),
            sorted: ms(served.saturating_sub(rebuilt)),
            serving: ms(serving.saturating_duration_since(begun)),
            replayed: report.replayed,
            failed: report.failed.iter().map(|(_, count)| count).sum(),
            alone: report.tried_alone,
        })
    }

    /// The report of the recovery after the one of this number.
    fn recovery(&self, kind: &str, before: u64) -> Result<RecoveryReport> {
        let started = Instant::now();
        loop {
            if let Some(report) = self.session.last_recovery().filter(|report| report.number > before) {
                if !report.is_recovered() {
                    bail!("after {kind} the session has not recovered: {report:?}");
                }
                return Ok(report);
            }
            if started.elapsed() > STUCK {
                bail!("the session is stuck: no recovery within {STUCK:?} after {kind}");
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Has an item answered and checked; when it was.
    fn serve(&self) -> Result<Instant> {
        let started = Instant::now();
        loop {
            match self.session.submit(SlotDescriptor::new(VERSIONED).args([1])) {
                Ok(ticket) => {
                    self.ledger.tracked.fetch_add(1, Ordering::Relaxed);
                    let done = self.session.wait(&ticket, STUCK).context("the first item after a loss")?;
                    if done.result() >> VERSION_BITS != 1 {
                        self.ledger.problem(format_args!("{ticket:?}: {}", done.result()));
                    }
                    self.ledger.right();
                    return Ok(Instant::now());
                }
                Err(error) if error.is_retryable() && started.elapsed() < STUCK => std::thread::sleep(FULL),
                Err(error) => return Err(error).context("submitting the first item after a loss"),
            }
        }
    }
}
