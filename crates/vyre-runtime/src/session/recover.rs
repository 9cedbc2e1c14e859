//! From a loss to serving again: bury, save, rebuild, restore, sort out, run suspects alone, start.
//!
//! All of it is one thread's: the one that holds [`Control`], which is the session's own except at the very
//! start of a session. A user's call that finds its device lost leaves word and waits for that thread, with a
//! deadline, so that a backend that does not come back holds up nobody for ever.
//!
//! A further loss during a recovery is another attempt of the same recovery. Attempts that convict an item
//! are as many as there are suspects; of others there are at most [`INTERRUPTIONS`] in a row.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use vyre_driver::{BackendError, Fault, KernelState, Loss, LossCause};

use super::lifecycle::Control;
use super::replay::{Interruption, Restore};
use super::report::RecoveryReport;
use super::rings::{Heads, position_of, ring_of};
use super::shared::{Gate, Shared, lock};
use crate::error::MegakernelError;
use crate::recovery::{Asked, MegakernelRecoveryPolicy};

/// How many losses in a row that convict nobody a recovery survives.
const INTERRUPTIONS: u32 = 3;

/// One recovery under way.
pub(super) struct Recovery {
    pub(super) report: RecoveryReport,
    /// Suspects that have yet to be run alone.
    pub(super) suspects: VecDeque<u64>,
    /// The suspect whose kernel was running when the device was lost again.
    pub(super) alone: Option<u64>,
    /// Items that they cover may have been begun. Taken again once a kernel has run for everybody.
    heads: Option<Heads>,
    interruptions: u32,
}

/// Why an attempt ended without a kernel that serves.
pub(super) enum Setback {
    /// The device was lost again.
    Lost(Loss, MegakernelError),
    /// Another attempt would be in vain, or is not wanted.
    Final(MegakernelError),
}

impl From<MegakernelError> for Setback {
    fn from(error: MegakernelError) -> Setback {
        match error.loss() {
            Some(loss) => Setback::Lost(loss.clone(), error),
            None => Setback::Final(error),
        }
    }
}

impl Recovery {
    /// Passes sentence on the suspect that was being run alone, and takes new suspects down. `named` are the
    /// unanswered tickets that were being run.
    fn judge(&mut self, shared: &Shared, named: &[u64]) {
        let alone = self.alone.take();
        self.report.losses += u32::from(self.report.gone_after.is_some());
        match alone {
            Some(ticket) if named.contains(&ticket) => {
                tracing::warn!(session = shared.id, ticket, "an item faulted the device again: quarantined");
                shared.fail(ticket, Fault::Quarantined, &mut self.report);
                self.report.quarantined.push(ticket);
                shared.note("quarantined", &[("ticket", ticket)]);
                self.suspects.retain(|suspect| *suspect != ticket);
                self.interruptions = 0;
            }
            _ => self.interruptions += 1,
        }
        for &ticket in named {
            if Some(ticket) != alone && !self.suspects.contains(&ticket) {
                self.suspects.push_back(ticket);
                self.report.suspects.push(ticket);
            }
        }
    }
}

impl Shared {
    /// Deals with a loss of the device, or of the kernel, as the policy says. `Ok` if the session runs again.
    pub(super) fn handle_loss(&self, control: &mut Control, loss: Loss) -> Result<(), MegakernelError> {
        self.recover(control, loss, Asked::ByPolicy)
    }

    fn recover(&self, control: &mut Control, loss: Loss, asked: Asked) -> Result<(), MegakernelError> {
        tracing::warn!(session = self.id, cause = ?loss.cause, reason = loss.reason, "device lost");
        control.lost = true;
        lock(&self.verdicts).retain(|ticket| self.rings.may_be_in_use(ticket));
        let number = self.losses.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut recovery = Recovery {
            report: RecoveryReport::new(number, self.generation(), &loss),
            suspects: VecDeque::new(),
            alone: None,
            heads: None,
            interruptions: 0,
        };
        let mut attempt = self.attempt(control, &loss, asked, &mut recovery);
        let result = loop {
            match attempt {
                Ok(()) => break Ok(()),
                Err(Setback::Lost(next, _))
                    if next.cause != LossCause::GivenUp && recovery.interruptions <= INTERRUPTIONS =>
                {
                    let Loss { cause, reason } = &next;
                    tracing::warn!(session = self.id, ?cause, reason, "device lost again while recovering");
                    attempt = self.attempt(control, &next, Asked::ByHand, &mut recovery);
                }
                Err(Setback::Lost(_, error) | Setback::Final(error)) => break Err(error),
            }
        };
        let report = &mut recovery.report;
        let result = match result {
            Ok(()) => {
                control.lost = false;
                report.serving_after = Some(report.noticed.elapsed());
                Ok(())
            }
            Err(error) => {
                // A kernel that was started all the same must not go on behind our back.
                let buried = self.bury(control).and_then(|()| self.acknowledge_alone(control));
                Err(self.give_up(control, buried.err().unwrap_or(error), report))
            }
        };
        report.after = self.pipeline.current().generation;
        tracing::info!(
            session = self.id,
            number,
            recovered = report.is_recovered(),
            generation = %report.after,
            backend = report.rebuilt_on.as_ref().map(|backend| &backend.name),
            serving_after = ?report.serving_after,
            replayed = report.replayed,
            failed = ?report.failed,
            suspects = report.suspects.len(),
            quarantined = ?report.quarantined,
            "a device loss was dealt with"
        );
        self.note_recovery(report);
        *lock(&self.last_recovery) = Some(recovery.report);
        self.recoveries.fetch_add(u64::from(result.is_ok()), Ordering::Release);
        result
    }

    /// One way from a loss to a kernel that serves.
    fn attempt(
        &self,
        control: &mut Control,
        loss: &Loss,
        asked: Asked,
        recovery: &mut Recovery,
    ) -> Result<(), Setback> {
        // The loss that is known: whatever else these two say, it is no further one.
        self.bury(control).map_err(Setback::Final)?;
        // Copied before another region takes this one's place.
        let named = if loss.cause.has_suspects() { self.named_in_flight() } else { Vec::new() };
        self.turn_over(control, false).map_err(Setback::Final)?;
        let unanswered: Vec<u64> =
            named.into_iter().filter(|&ticket| !self.rings.is_acknowledged(ticket)).collect();
        recovery.judge(self, &unanswered);
        let report = &mut recovery.report;
        report.gone_after = Some(report.noticed.elapsed());
        (report.rebuilt_after, report.rebuilt_on, report.serving_after) = (None, None, None);
        tracing::info!(session = self.id, suspects = unanswered.len(), "the old kernel is gone");

        let lost =
            || MegakernelError::backend("keep the session running")(BackendError::DeviceLost(loss.clone()));
        let off = asked == Asked::ByPolicy && self.options.recovery == MegakernelRecoveryPolicy::Off;
        if off || loss.cause == LossCause::GivenUp {
            return Err(Setback::Final(lost()));
        }
        // What is submitted from here on, no kernel has seen.
        let heads = *recovery.heads.get_or_insert_with(|| self.rings.heads());
        self.check_ending()?;
        let before = self.pipeline.current().generation;
        self.rebuild(asked, &mut recovery.report)?;
        if self.pipeline.current().generation > before {
            control.pages.device_is_gone();
        }
        let restored = match &self.options.restore {
            None => false,
            Some(hook) => hook(&Restore { shared: self }).map(|()| true)?,
        };
        let report = &mut recovery.report;
        report.rebuilt_after = Some(report.noticed.elapsed());
        tracing::info!(session = self.id, restored, "rebuilt after a device loss");
        self.open_after_loss(restored);
        self.sort_out(
            heads,
            if restored { Interruption::Restored } else { Interruption::StateLost },
            loss.cause,
            &mut recovery.report,
        );
        // Nothing of the last kernel is left to be sorted out.
        control.cut_short = false;
        self.try_suspects(control, recovery)?;
        self.check_ending()?;
        recovery.heads = None;
        let again = self.unanswered_below(heads);
        self.launch(control, None)?;
        // What nothing but kills from outside interrupted may run again however often that happens.
        if recovery.report.cause.has_suspects() || loss.cause.has_suspects() {
            self.mark_replayed(&again);
        }
        recovery.report.replayed += again.len() as u64;
        Ok(())
    }

    /// Pipeline and buffers for the next generation.
    fn rebuild(&self, asked: Asked, report: &mut RecoveryReport) -> Result<(), MegakernelError> {
        let lost = self.pipeline.current().generation;
        let spec = self.plan.spec(self.worker_groups);
        self.pipeline
            .rebuild(lost, asked, |backend| {
                report.rebuilt_on = Some(backend.identity().clone());
                backend.compile_resident(&spec)
            })
            .map_err(MegakernelError::backend("rebuild after a device loss"))?;
        let mut buffers = lock(&self.buffers);
        // Of an attempt before this one, perhaps; those of the lost generation are gone anyway.
        buffers.destroy();
        buffers.forget();
        let made = buffers.create();
        made.map_err(MegakernelError::backend("make the session's buffers again"))
    }

    /// Makes sure that nothing of the old kernel runs any more: it is reaped, or its backend says again that
    /// its device is no more.
    fn bury(&self, control: &mut Control) -> Result<(), MegakernelError> {
        let Some(kernel) = control.kernel.clone() else { return Ok(()) };
        self.kernel.store(None);
        match kernel.reap(self.options.stop_deadline) {
            // Kept, to be reaped again before anything else is started.
            Err(error) if !error.is_device_loss() => {
                Err(MegakernelError::backend("reap the lost kernel")(error))
            }
            _ => {
                control.kernel = None;
                Ok(())
            }
        }
    }

    /// Leaves the session without a kernel: every unanswered item ends in a fault, and later ones are refused.
    pub(super) fn give_up(
        &self,
        control: &mut Control,
        error: MegakernelError,
        report: &mut RecoveryReport,
    ) -> MegakernelError {
        control.lost = true;
        self.kernel.store(None);
        let ending = self.ending.load(Ordering::Acquire);
        let (gate, fault) = match error.loss() {
            _ if ending => (Gate::Stopped, Fault::Abandoned),
            Some(loss) if loss.cause == LossCause::GivenUp => {
                control.given_up = Some(loss.clone());
                (Gate::GivenUp, Fault::DeviceLost)
            }
            _ => (Gate::Lost, Fault::DeviceLost),
        };
        self.set_gate(gate);
        self.fail_unanswered(fault, Some(report));
        error
    }

    /// Stops a recovery for a session that its users have left.
    pub(super) fn check_ending(&self) -> Result<(), MegakernelError> {
        if self.ending.load(Ordering::Acquire) {
            return Err(MegakernelError::SessionClosed { state: "was stopped while it recovered" });
        }
        Ok(())
    }

    /// Lets items in again, as far as they were let in before the loss.
    fn open_after_loss(&self, restored: bool) {
        let reopened = if restored { Gate::Open } else { Gate::StateLost };
        if matches!(self.gate(), Gate::Open | Gate::StateLost | Gate::Lost) {
            self.set_gate(reopened);
        }
    }

    /// Ends an item in a fault, and takes that down. No kernel may be able to claim it.
    pub(super) fn fail(&self, ticket: u64, fault: Fault, report: &mut RecoveryReport) {
        // First, for whoever waits to find it.
        let is_new = lock(&self.verdicts).pass(ticket, &report.reason);
        let failed = self.rings.get(ring_of(ticket)).fail(position_of(ticket), fault);
        if is_new && !matches!(failed, Ok(true)) {
            lock(&self.verdicts).take(ticket);
        }
        match failed {
            Ok(true) => report.count_failed(fault),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, ticket, "a ticket was not failed"),
        }
    }

    /// Recovers because somebody asked for it.
    pub(super) fn recover_by_hand(&self, control: &mut Control) -> Result<(), MegakernelError> {
        match self.gate() {
            Gate::Stopping | Gate::Stopped => {
                return Err(MegakernelError::SessionClosed { state: "was stopped" });
            }
            Gate::ShutDown => return Err(MegakernelError::SessionClosed { state: "was shut down" }),
            Gate::Open | Gate::StateLost | Gate::ShuttingDown | Gate::Lost | Gate::GivenUp => {}
        }
        if let Some(loss) = &control.given_up {
            let lost = BackendError::DeviceLost(loss.clone());
            return Err(MegakernelError::backend("recover after a device loss")(lost));
        }
        let state = control.kernel.as_ref().map(|kernel| kernel.state());
        match state {
            Some(KernelState::Lost(loss)) => self.recover(control, loss, Asked::ByHand),
            // Whatever it was lost to, its suspects have been failed.
            _ if control.lost => {
                let reason = "it was lost before, and was not recovered".to_owned();
                self.recover(control, Loss { cause: LossCause::Killed, reason }, Asked::ByHand)
            }
            _ => Ok(()),
        }
    }

    /// Has the session's thread recover, and waits for what it says.
    pub(super) fn ask_to_recover(&self) -> Result<(), MegakernelError> {
        let limit = self.options.recovery_deadline;
        let (reply, answer) = sync_channel(1);
        {
            let mut control = self.hold(limit, "to recover it")?;
            if matches!(self.gate(), Gate::Stopping | Gate::Stopped) {
                return Err(MegakernelError::SessionClosed { state: "was stopped" });
            }
            control.by_hand.push(reply);
        }
        match answer.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(MegakernelError::Deadline {
                waited_for: format!("the recovery of session {} by hand", self.id),
                after: limit,
            }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(MegakernelError::SessionClosed { state: "was stopped" })
            }
        }
    }
}
