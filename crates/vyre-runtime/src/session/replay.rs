//! What a session does when its device is lost: save, rebuild, restore, replay or fail, start again.
//!
//! Every ticket that has no completion by the time the old kernel is gone is answered exactly once: by the
//! next kernel, or by a fault that the host writes.
//!
//! | the ticket was submitted | its handler | answer |
//! |---|---|---|
//! | before the loss was noticed | replayable, and all it touches can be put back | it runs again, once at most after losses with suspects |
//! | before | declared replayable, but touches volatile state | fault, state lost |
//! | before | not replayable, or replayed before and again a loss with suspects | fault, device lost |
//! | after | touches volatile state | fault, state lost |
//! | after | any other | it runs, for the first time |
//!
//! "Can be put back" means host-backed buffers, or a restore hook that has run. A handler is never
//! replayed because it *looks* idle: the host cannot see which tickets the old kernel had claimed.
//!
//! A kernel whose lease ran out while an item did not end has lost nothing but may have cut items short: the
//! same table applies to those, volatile state and repetition apart.

use vyre_driver::protocol::opcode;
use vyre_driver::ring::SlotImage;
use vyre_driver::{Fault, LossCause};

use super::report::RecoveryReport;
use super::rings::Heads;
use super::shared::{Shared, lock};
use crate::error::MegakernelError;
use crate::handler::Backing;
use crate::item::HandlerTable;
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::packed;

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
    pub(super) shared: &'a Shared,
}

impl Restore<'_> {
    /// Copies bytes into a buffer of the new generation, by its binding's name or a system buffer's.
    ///
    /// # Errors
    ///
    /// As [`upload`](super::PersistentSession::upload).
    pub fn upload(&self, name: &str, byte_offset: u64, bytes: &[u8]) -> Result<(), MegakernelError> {
        self.shared.buffers()?.upload(name, byte_offset, bytes)
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
    /// Fails what may not run. The items that `heads` cover may have been begun.
    pub(super) fn sort_out(
        &self,
        heads: Heads,
        after: Interruption,
        cause: LossCause,
        report: &mut RecoveryReport,
    ) {
        let handlers = self.plan.handlers();
        let replayed = lock(&self.replayed);
        let mut faults = Vec::new();
        self.rings.for_each_unacknowledged(|ticket, image| {
            let volatile = after == Interruption::StateLost && touches_volatile(&handlers, &image);
            let last = replayed.get(self.rings.place(ticket)).copied();
            let convicts = after != Interruption::CutShort && cause.has_suspects();
            let again = convicts && last == Some(ticket.wrapping_add(1));
            if heads.cover(ticket) && (again || !may_replay(&handlers, &image)) {
                faults.push((ticket, Fault::DeviceLost));
            } else if volatile {
                faults.push((ticket, Fault::StateLost));
            }
        });
        for (ticket, fault) in faults {
            self.fail(ticket, fault, report);
        }
    }

    /// The unanswered items that `heads` cover: they will run once more.
    pub(super) fn unanswered_below(&self, heads: Heads) -> Vec<u64> {
        let mut tickets = Vec::new();
        self.rings.for_each_unacknowledged(|ticket, _| {
            if heads.cover(ticket) {
                tickets.push(ticket);
            }
        });
        tickets
    }

    /// Remembers the items that a kernel runs again. Not before that kernel runs: a recovery that is
    /// interrupted by another loss is one replay.
    pub(super) fn mark_replayed(&self, tickets: &[u64]) {
        let mut replayed = lock(&self.replayed);
        for ticket in tickets {
            if let Some(last) = replayed.get_mut(self.rings.place(*ticket)) {
                *last = ticket.wrapping_add(1);
            }
        }
    }
}

/// Whether an item may run twice, as far as its handler is concerned.
fn may_replay(handlers: &HandlerTable, image: &SlotImage) -> bool {
    // It does nothing but stop the session, and has not: the session was running.
    image.opcode == opcode::SHUTDOWN || handlers.is_declared_replayable(image.opcode, &image.args)
}
