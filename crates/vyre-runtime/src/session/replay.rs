//! What a session does when its device is lost: save, rebuild, restore, replay or fail, start again.
//!
//! Every ticket that has no completion by the time the old kernel is gone is answered exactly once: by the
//! next kernel, or by a fault that the host writes.
//!
//! | the ticket was submitted | its handler | answer |
//! |---|---|---|
//! | before the loss was noticed | replayable, and all it touches can be put back | it runs, once more at most |
//! | before | declared replayable, but touches volatile state | fault, state lost |
//! | before | not replayable, or replayed before | fault, device lost |
//! | after | touches volatile state | fault, state lost |
//! | after | any other | it runs, for the first time |
//!
//! "Can be put back" means host-backed buffers, or a restore hook that has run. A handler is never
//! replayed because it *looks* idle: the host cannot see which tickets the old kernel had claimed.
//!
//! A kernel whose lease ran out while an item did not end has lost nothing but may have cut items short: the
//! same table applies to those, volatile state and repetition apart.

use std::sync::atomic::Ordering;

use vyre_driver::protocol::opcode;
use vyre_driver::ring::SlotImage;
use vyre_driver::{BackendError, Fault, KernelState, Loss};

use super::lifecycle::Control;
use super::shared::{Gate, Shared, lock};
use crate::error::MegakernelError;
use crate::handler::Backing;
use crate::item::HandlerTable;
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::packed;
use crate::recovery::{Asked, MegakernelRecoveryPolicy};

/// What happened to a kernel, as far as its unanswered items are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    /// It left items that it had begun; the device and its state are whole.
    CutShort,
    /// The device was lost, and a hook has put its state back.
    Restored,
    /// The device was lost, and what was volatile is gone.
    StateLost,
}

/// What a restore hook may do: put bytes back into the session's buffers.
pub struct Restore<'a> {
    shared: &'a Shared,
}

impl Restore<'_> {
    /// Copies bytes into a buffer of the new generation, by its binding's name or a system buffer's.
    ///
    /// # Errors
    ///
    /// As [`upload`](super::PersistentSession::upload).
    pub fn upload(&self, name: &str, byte_offset: u64, bytes: &[u8]) -> Result<(), MegakernelError> {
        lock(&self.shared.buffers).upload(name, byte_offset, bytes)
    }
}

/// Whether an item reads or writes what a loss destroys.
pub(super) fn touches_volatile(handlers: &HandlerTable, image: &SlotImage) -> bool {
    let one = |opcode: SlotOpcode| match opcode.builtin() {
        Some(builtin) => matches!(
            builtin,
            BuiltinOpcode::StoreU32
                | BuiltinOpcode::AtomicAdd
                | BuiltinOpcode::LoadU32
                | BuiltinOpcode::CompareSwap
                | BuiltinOpcode::Memcpy
                | BuiltinOpcode::BatchFence
        ),
        None => handlers.get(opcode).is_some_and(|(_, handler)| {
            handler.bindings().iter().any(|binding| binding.backing == Backing::Volatile)
        }),
    };
    let opcode = SlotOpcode::new(image.opcode);
    match opcode.builtin() {
        Some(BuiltinOpcode::PackedSlot) => match packed::decode(&image.args) {
            Ok(ops) => ops.iter().any(|op| one(op.opcode())),
            // It runs nothing but into a fault.
            Err(_) => false,
        },
        _ => one(opcode),
    }
}

impl Shared {
    /// Deals with a loss of the device, or of the kernel, as the policy says. `Ok` if the session runs again.
    pub(super) fn handle_loss(&self, control: &mut Control, loss: Loss) -> Result<(), MegakernelError> {
        tracing::warn!(session = self.id, cause = ?loss.cause, reason = loss.reason, "device lost");
        control.lost = Some(loss.to_string());
        let lost = BackendError::DeviceLost(loss);
        if let Err(error) = self.bury(control).and_then(|()| self.turn_over(control, false)) {
            return Err(self.give_up(control, error));
        }
        match self.options.recovery {
            MegakernelRecoveryPolicy::Off => {
                Err(self.give_up(control, MegakernelError::backend("keep the session running")(lost)))
            }
            MegakernelRecoveryPolicy::Once => self.revive(control, Asked::ByPolicy),
        }
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

    /// Leaves the session lost: every unanswered item ends in a fault, and later ones are refused.
    pub(super) fn give_up(&self, control: &mut Control, error: MegakernelError) -> MegakernelError {
        control.lost.get_or_insert_with(|| error.to_string());
        self.kernel.store(None);
        self.set_gate(Gate::Lost);
        self.fail_unanswered(Fault::DeviceLost);
        error
    }

    /// Builds everything anew and starts again.
    fn revive(&self, control: &mut Control, asked: Asked) -> Result<(), MegakernelError> {
        match self.try_revive(control, asked) {
            Ok(()) => {
                control.lost = None;
                self.recoveries.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                // A kernel that was started all the same must not go on behind our back.
                let buried = self.bury(control);
                Err(self.give_up(control, buried.err().unwrap_or(error)))
            }
        }
    }

    fn try_revive(&self, control: &mut Control, asked: Asked) -> Result<(), MegakernelError> {
        // What is submitted from here on, no kernel has seen.
        let head = self.ring.head();
        let lost = self.pipeline.current().generation;
        let spec = &self.spec;
        self.pipeline
            .rebuild(lost, asked, |backend| backend.compile_resident(spec))
            .map_err(MegakernelError::backend("rebuild after a device loss"))?;
        {
            let mut buffers = lock(&self.buffers);
            // Of an attempt before this one, perhaps; those of the lost generation are gone anyway.
            buffers.destroy();
            buffers.forget();
            let made = buffers.create();
            made.map_err(MegakernelError::backend("make the session's buffers again"))?;
        }
        let restored = match &self.options.restore {
            None => false,
            Some(hook) => hook(&Restore { shared: self }).map(|()| true)?,
        };
        self.open_after_loss(restored);
        self.sort_out(head, if restored { Interruption::Restored } else { Interruption::StateLost });
        // Nothing of the last kernel is left to be sorted out.
        control.cut_short = false;
        self.launch(control)
    }

    /// Lets items in again, as far as they were let in before the loss.
    fn open_after_loss(&self, restored: bool) {
        let reopened = if restored { Gate::Open } else { Gate::StateLost };
        if matches!(self.gate(), Gate::Open | Gate::StateLost | Gate::Lost) {
            self.set_gate(reopened);
        }
    }

    /// Fails what may not run, and remembers what runs again. The items below `head` may have been begun.
    pub(super) fn sort_out(&self, head: u64, after: Interruption) {
        let handlers = self.plan.handlers();
        let mut replayed = lock(&self.replayed);
        let mask = u64::from(self.ring.capacity()).wrapping_sub(1);
        let mut faults = Vec::new();
        self.ring.for_each_unacknowledged(|ticket, image| {
            let volatile = after == Interruption::StateLost && touches_volatile(handlers, &image);
            if ticket >= head {
                if volatile {
                    faults.push((ticket, Fault::StateLost));
                }
                return;
            }
            let Some(last) = replayed.get_mut((ticket & mask) as usize) else { return };
            let again = after != Interruption::CutShort && *last == ticket.wrapping_add(1);
            if again || !may_replay(handlers, &image) {
                faults.push((ticket, Fault::DeviceLost));
            } else if volatile {
                faults.push((ticket, Fault::StateLost));
            } else {
                *last = ticket.wrapping_add(1);
            }
        });
        for (ticket, fault) in faults {
            if let Err(error) = self.ring.fail(ticket, fault) {
                tracing::error!(%error, ticket, "a ticket was not failed after a device loss");
            }
        }
    }

    /// Recovers because somebody asked for it.
    pub(super) fn recover_by_hand(&self) -> Result<(), MegakernelError> {
        let mut control = lock(&self.control);
        match self.gate() {
            Gate::Stopping | Gate::Stopped => {
                return Err(MegakernelError::SessionClosed { state: "was stopped" });
            }
            Gate::ShutDown => return Err(MegakernelError::SessionClosed { state: "was shut down" }),
            Gate::Open | Gate::StateLost | Gate::ShuttingDown | Gate::Lost => {}
        }
        if control.lost.is_none() {
            let state = control.kernel.as_ref().map(|kernel| kernel.state());
            let Some(KernelState::Lost(loss)) = state else { return Ok(()) };
            control.lost = Some(loss.to_string());
        }
        self.bury(&mut control)?;
        self.turn_over(&mut control, false)?;
        self.revive(&mut control, Asked::ByHand)
    }
}

/// Whether an item may run twice, as far as its handler is concerned.
fn may_replay(handlers: &HandlerTable, image: &SlotImage) -> bool {
    // It does nothing but stop the session, and has not: the session was running.
    image.opcode == opcode::SHUTDOWN || handlers.is_declared_replayable(image.opcode, &image.args)
}
