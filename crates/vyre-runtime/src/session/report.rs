//! What became of a device loss, for whoever wants to know.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_driver::{BackendIdentity, Fault, Generation, Loss, LossCause};

/// What a session did about a loss of its device, whether it serves again or not.
///
/// Losses that happen while it recovers belong to the same report. The times count from when the session
/// noticed the loss, and are `None` for a step that was not reached; after a further loss they are those of
/// the last attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Which loss of the session it was, from 1 on.
    pub number: u64,
    /// The device generation that was lost.
    pub before: Generation,
    /// The generation that it ended in: the same one if nothing was rebuilt.
    pub after: Generation,
    /// Whose doing the first loss was.
    pub cause: LossCause,
    /// What was observed of it.
    pub reason: String,
    /// Losses, the first one included.
    pub losses: u32,
    /// When the session noticed the first one.
    pub noticed: Instant,
    /// Until nothing of the old kernel ran any more.
    pub gone_after: Option<Duration>,
    /// Until pipeline and buffers were there again, and the restore hook was through.
    pub rebuilt_after: Option<Duration>,
    /// What pipeline and buffers were made on, if they were: an isolated backend that was lost too often may have
    /// fallen back to another one.
    pub rebuilt_on: Option<BackendIdentity>,
    /// Until a kernel ran again for everybody: `None` if the session did not recover.
    pub serving_after: Option<Duration>,
    /// Unanswered items begun before the loss, as far as can be told, that run once more, those run alone
    /// included.
    pub replayed: u64,
    /// Unanswered items that ended in a fault instead, by fault.
    pub failed: Vec<(Fault, u64)>,
    /// Tickets without an answer that workers were running when the device was lost, by their
    /// [keys](super::Ticket::key); none if the loss convicts nobody.
    pub suspects: Vec<u64>,
    /// Suspects that were run alone.
    pub tried_alone: u64,
    /// Those of them that were being run when the device was lost again: they end in
    /// [`Fault::Quarantined`].
    pub quarantined: Vec<u64>,
}

impl RecoveryReport {
    pub(super) fn new(number: u64, before: Generation, loss: &Loss) -> RecoveryReport {
        RecoveryReport {
            number,
            before,
            after: before,
            cause: loss.cause,
            reason: loss.reason.clone(),
            losses: 1,
            noticed: Instant::now(),
            gone_after: None,
            rebuilt_after: None,
            rebuilt_on: None,
            serving_after: None,
            replayed: 0,
            failed: Vec::new(),
            suspects: Vec::new(),
            tried_alone: 0,
            quarantined: Vec::new(),
        }
    }

    /// Whether the session serves again.
    pub fn is_recovered(&self) -> bool {
        self.serving_after.is_some()
    }

    /// How many items ended in a fault.
    pub fn failed_with(&self, fault: Fault) -> u64 {
        self.failed.iter().find(|(known, _)| *known == fault).map_or(0, |(_, count)| *count)
    }

    pub(super) fn count_failed(&mut self, fault: Fault) {
        match self.failed.iter_mut().find(|(known, _)| *known == fault) {
            Some((_, count)) => *count += 1,
            None => self.failed.push((fault, 1)),
        }
    }
}

/// Why items were ended by their session, by their tickets' keys, until somebody waits for them.
#[derive(Default)]
pub(super) struct Verdicts {
    of: BTreeMap<u64, Arc<str>>,
    /// The last reason, which is that of many.
    last: Arc<str>,
}

impl Verdicts {
    /// Takes a verdict down, unless there is one on this ticket. Whether there was none.
    pub(super) fn pass(&mut self, ticket: u64, reason: &str) -> bool {
        if *self.last != *reason {
            self.last = reason.into();
        }
        match self.of.entry(ticket) {
            Entry::Vacant(place) => {
                place.insert(Arc::clone(&self.last));
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Takes a ticket's verdict out, if there is one.
    pub(super) fn take(&mut self, ticket: u64) -> Option<Arc<str>> {
        self.of.remove(&ticket)
    }

    /// Forgets all other tickets: nobody waits for them any more.
    pub(super) fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        self.of.retain(|&ticket, _| wanted(ticket));
    }
}
