//! Starting, quiescing, restarting and stopping the kernel of a session.
//!
//! All of it goes through [`Control`], one thread at a time. A start is always the same: a fresh d2h region,
//! completions of the old one saved, a start record that says where to begin and what to skip, then the
//! kernel. Items are submitted meanwhile; the ring needs no kernel for that.

use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use vyre_driver::layout::{ABORT_FLAG, HOST_LEASE};
use vyre_driver::region::SessionRegions;
use vyre_driver::view::HostView;
use vyre_driver::wait::Waiter;
use vyre_driver::{BackendError, Fault, KernelState, Loss, LossCause, ResidentKernel, StartRequest};

use super::pages::Pages;
use super::replay::Interruption;
use super::report::RecoveryReport;
use super::shared::{Gate, Running, Shared, lock, lock_within, ring_error};
use crate::error::{LOST, MegakernelError};

/// What belongs to the current incarnation.
pub(super) struct Control {
    /// The regions, the d2h one of the current incarnation.
    pub(super) regions: SessionRegions,
    /// The d2h regions of others.
    pub(super) pages: Pages,
    /// The kernel, unless it was quiesced or lost.
    pub(super) kernel: Option<Arc<dyn ResidentKernel>>,
    /// Whether the last kernel may have left items that it had begun.
    pub(super) cut_short: bool,
    /// The rings do not look at the d2h region: a suspect runs alone over it.
    pub(super) alone: bool,
    /// Whether the device is lost.
    pub(super) lost: bool,
    /// The loss after which nothing is tried any more.
    pub(super) given_up: Option<Loss>,
    /// A loss that a user's thread met, for the session's thread to deal with.
    pub(super) met: Option<Loss>,
    /// Who waits for a recovery by hand.
    pub(super) by_hand: Vec<SyncSender<Result<(), MegakernelError>>>,
}

impl Control {
    pub(super) fn new(regions: SessionRegions) -> Control {
        Control {
            regions,
            pages: Pages::default(),
            kernel: None,
            cut_short: false,
            alone: false,
            lost: false,
            given_up: None,
            met: None,
            by_hand: Vec::new(),
        }
    }
}

impl Shared {
    /// Renews the lease. Needs no lock, so it goes on while a thread waits for a quiescing kernel.
    pub(super) fn renew_lease(&self) {
        if let Ok(lease) = self.h2d.atomic_u64(HOST_LEASE) {
            lease.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Saves what the old kernel has completed and turns to a fresh d2h region. The old kernel is gone.
    pub(super) fn turn_over(
        &self,
        control: &mut Control,
        left_by_itself: bool,
    ) -> Result<(), MegakernelError> {
        self.acknowledge_alone(control)?;
        self.turn_view(control, left_by_itself)?;
        self.rings.rebind_d2h(&control.regions).map_err(ring_error("turn to the next d2h region"))
    }

    /// The same for a kernel that runs one suspect: the ring turns when that kernel is gone. The one before it
    /// left by itself, or there was none.
    pub(super) fn turn_to_alone(&self, control: &mut Control) -> Result<(), MegakernelError> {
        self.acknowledge_alone(control)?;
        self.turn_view(control, true)?;
        control.alone = true;
        Ok(())
    }

    /// Has the ring look at what a suspect's kernel, which is gone, has left.
    pub(super) fn acknowledge_alone(&self, control: &mut Control) -> Result<(), MegakernelError> {
        if std::mem::take(&mut control.alone) {
            let turned = self.rings.rebind_d2h(&control.regions);
            turned.map_err(ring_error("turn to a suspect's d2h region"))?;
        }
        Ok(())
    }

    fn turn_view(&self, control: &mut Control, left_by_itself: bool) -> Result<(), MegakernelError> {
        // Under its lock, so that nobody takes old mirrors over after new ones.
        let mut view = lock(&self.view);
        self.absorb_mirrors(&view, &mut lock(&self.buffers));
        let Control { pages, regions, .. } = control;
        pages.turn(regions, left_by_itself)?;
        let completions = Waiter::completion(&control.regions);
        let completions = completions.map_err(ring_error("watch the session's completions"))?;
        self.completions.store(Arc::new(completions));
        *view = HostView::new(&control.regions).map_err(ring_error("view the session's regions"))?;
        // Before buffers are made anew: a WRITE of the old kernel would find zeros in them.
        self.open_io_queue(&control.regions)
    }

    /// Starts a kernel over regions that no kernel has touched, for one ticket alone if that is named.
    pub(super) fn launch(&self, control: &mut Control, alone: Option<u64>) -> Result<(), MegakernelError> {
        let regions = control.regions.clone();
        self.open_io_queue(&regions)?;
        let abort = regions.h2d.atomic_u32(ABORT_FLAG).map_err(ring_error("lower the abort flag"))?;
        abort.store(0, Ordering::Relaxed);
        self.rings.write_start_records(&regions, alone).map_err(ring_error("write the start record"))?;
        self.renew_lease();
        let (bindings, mirrors) = {
            let buffers = lock(&self.buffers);
            (buffers.bindings()?, buffers.mirrors(regions.layout.mirror().offset))
        };
        let request = StartRequest {
            holder: format!("session {}", self.id),
            regions,
            bindings,
            mirrors,
            item_deadline: self.options.item_deadline,
            lease: self.options.lease,
        };
        let built = self.pipeline.current();
        let kernel = built.parts.start(request).map_err(MegakernelError::backend("start the kernel"))?;
        self.generation.store(built.generation.0, Ordering::Relaxed);
        let number = self.starts.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.note("start", &[("number", number), ("generation", built.generation.0)]);
        control.kernel = Some(Arc::clone(&kernel));
        self.parks.store(kernel.parks(), Ordering::Relaxed);
        self.kernel.store(Some(Arc::new(Running(Arc::clone(&kernel)))));
        // Whatever was published while there was no kernel rang nobody's bell.
        kernel.ring_doorbell();
        Ok(())
    }

    /// Takes the kernel out, quiesced. It stays where it is if it does not leave in time.
    pub(super) fn retire(&self, control: &mut Control, deadline: Duration) -> Result<(), MegakernelError> {
        let Some(kernel) = control.kernel.clone() else { return Ok(()) };
        let quiesced = match kernel.state() {
            KernelState::Running => kernel.quiesce(deadline),
            KernelState::Lost(loss) => Err(BackendError::DeviceLost(loss)),
            KernelState::ShutDown | KernelState::Stopped | KernelState::CutShort => Ok(()),
        };
        quiesced.map_err(MegakernelError::backend("quiesce the kernel"))?;
        // Asked again: its lease may have run out while it was quiescing.
        control.cut_short = kernel.state() == KernelState::CutShort;
        self.forget_kernel(control);
        self.note("quiesced", &[]);
        Ok(())
    }

    /// Takes the kernel out, quiesced, for another one to be started. One that ran a SHUTDOWN ends the session.
    pub(super) fn retire_to_restart(
        &self,
        control: &mut Control,
        deadline: Duration,
    ) -> Result<(), MegakernelError> {
        let kernel = control.kernel.clone();
        self.retire(control, deadline)?;
        if kernel.is_some_and(|kernel| kernel.state() == KernelState::ShutDown) {
            self.end(control, Gate::ShutDown);
            return Err(MegakernelError::SessionClosed { state: "was shut down" });
        }
        Ok(())
    }

    pub(super) fn forget_kernel(&self, control: &mut Control) {
        control.kernel = None;
        self.kernel.store(None);
    }

    /// Holds the kernel's reins: nobody else starts, stops or recovers it meanwhile.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Deadline`]: another call, or a recovery, goes on for so long.
    pub(super) fn hold(
        &self,
        limit: Duration,
        why: &str,
    ) -> Result<MutexGuard<'_, Control>, MegakernelError> {
        lock_within(&self.control, limit, "the recovery, or another start or stop, of the session").map_err(
            |error| {
                tracing::warn!(session = self.id, %error, "a call gave up waiting {why}");
                error
            },
        )
    }

    pub(super) fn quiesce(&self, deadline: Duration) -> Result<(), MegakernelError> {
        self.through_losses(deadline, |control, left| self.retire(control, left))
    }

    pub(super) fn restart(&self, deadline: Duration) -> Result<(), MegakernelError> {
        let mut restarted = false;
        self.through_losses(deadline, |control, left| {
            // A recovery has started it again.
            if std::mem::replace(&mut restarted, true) && control.kernel.is_some() {
                return Ok(());
            }
            self.retire_to_restart(control, left)?;
            self.relaunch(control)
        })
    }

    /// Does something with the kernel. If the device turns out to be lost, the session's thread recovers it,
    /// and then it is done once more.
    pub(super) fn through_losses(
        &self,
        deadline: Duration,
        mut act: impl FnMut(&mut Control, Duration) -> Result<(), MegakernelError>,
    ) -> Result<(), MegakernelError> {
        let started = Instant::now();
        let mut met = None;
        loop {
            let left = || deadline.saturating_sub(started.elapsed());
            let mut control = self.hold(left(), "for the kernel")?;
            if let Err(refused) = self.refuse_if_over(&control) {
                return Err(met.unwrap_or(refused));
            }
            if control.met.is_some() {
                drop(control);
                if left().is_zero() {
                    let waited_for = format!("the recovery of session {}", self.id);
                    return Err(MegakernelError::Deadline { waited_for, after: deadline });
                }
                std::thread::sleep(vyre_driver::wait::RECHECK);
                continue;
            }
            let error = match act(&mut control, left()) {
                Err(error) if error.is_device_loss() => error,
                done => return done,
            };
            control.met = error.loss().cloned();
            if met.is_some() {
                return Err(error);
            }
            met = Some(error);
        }
    }

    /// Starts again after a kernel that left, and lost nothing but the time of items it may have cut short.
    pub(super) fn relaunch(&self, control: &mut Control) -> Result<(), MegakernelError> {
        // What is submitted from here on, no kernel has seen.
        let heads = self.rings.heads();
        self.turn_over(control, true)?;
        if std::mem::take(&mut control.cut_short) {
            tracing::warn!(session = self.id, "the kernel left items unfinished");
            let mut report =
                RecoveryReport::new(0, self.generation(), &Loss::fault("its kernel was told to leave"));
            self.sort_out(heads, Interruption::CutShort, LossCause::Killed, &mut report);
            self.mark_replayed(&self.unanswered_below(heads));
        }
        self.launch(control, None)
    }

    fn refuse_if_over(&self, control: &Control) -> Result<(), MegakernelError> {
        match (self.gate(), control.lost) {
            (Gate::ShutDown | Gate::Stopping | Gate::Stopped, _) => {
                Err(MegakernelError::SessionClosed { state: "was stopped" })
            }
            (_, true) => Err(MegakernelError::SessionClosed { state: LOST }),
            _ => Ok(()),
        }
    }

    /// Drains and stops. Whatever is not answered by the deadline ends in [`Fault::Abandoned`].
    pub(super) fn stop(&self, deadline: Duration) -> Result<(), MegakernelError> {
        {
            let mut control = self.hold_to_end(deadline)?;
            match self.gate() {
                Gate::Stopping | Gate::Stopped => {
                    return Err(MegakernelError::SessionClosed { state: "was stopped" });
                }
                Gate::ShutDown | Gate::Lost | Gate::GivenUp => {
                    self.end(&mut control, Gate::Stopped);
                    return Ok(());
                }
                Gate::Open | Gate::StateLost | Gate::ShuttingDown => self.set_gate(Gate::Stopping),
            }
            if control.kernel.is_none() && !control.lost && control.met.is_none() {
                // Quiesced: what was submitted since then still runs, unless no kernel starts any more.
                if let Err(error) = self.relaunch(&mut control) {
                    self.end(&mut control, Gate::Stopped);
                    return Err(error);
                }
            }
        }
        let drained = self.drain(deadline);
        let mut control = self.hold_to_end(deadline)?;
        // What did not end in time would not now.
        let retired = drained.and_then(|()| self.retire(&mut control, deadline));
        self.end(&mut control, Gate::Stopped);
        retired
    }

    /// Holds the reins for good. If a recovery does not let go of them, it ends the session when it does.
    pub(super) fn hold_to_end(&self, deadline: Duration) -> Result<MutexGuard<'_, Control>, MegakernelError> {
        self.hold(deadline, "to end the session").inspect_err(|_| self.ending.store(true, Ordering::Release))
    }

    /// Ends everything: the kernel, if it still runs, and whatever is not answered.
    pub(super) fn end(&self, control: &mut Control, gate: Gate) {
        if let Some(kernel) = control.kernel.clone()
            && let Err(error) = kernel.reap(self.options.stop_deadline)
        {
            tracing::error!(%error, "a kernel did not leave when it was reaped");
        }
        self.forget_kernel(control);
        // Saves what was completed, so that tickets can be taken later.
        if let Err(error) = self.turn_over(control, false) {
            tracing::warn!(%error, "completions of the last kernel were not saved");
        }
        self.set_gate(gate);
        self.note("end", &[]);
        self.fail_unanswered(Fault::Abandoned, None);
        control.by_hand.clear();
    }

    /// Ends every item that has no answer. Nothing can claim them any more, and the gate is closed.
    pub(super) fn fail_unanswered(&self, fault: Fault, report: Option<&mut RecoveryReport>) {
        let mut unanswered = Vec::new();
        self.rings.for_each_unacknowledged(|ticket, _| unanswered.push(ticket));
        let mut unread = RecoveryReport::new(0, self.generation(), &Loss::fault("the session was stopped"));
        let report = report.unwrap_or(&mut unread);
        for ticket in unanswered {
            self.fail(ticket, fault, report);
        }
    }
}
