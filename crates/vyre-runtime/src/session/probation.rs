//! Suspects of a device loss: who they are, and how each is run alone before anything else runs again.
//!
//! The old kernel's in-flight words name tickets that were being run. They are evidence, not truth: a word
//! that names a ring that the session does not have, or tickets that were never issued, is ignored, and so are tickets that
//! have an answer. What is left, and may be replayed, is run on *probation*, one ticket at a time, by a kernel
//! of its own whose start records skip everything else. A suspect that is being run when the device is lost
//! again, by something that has suspects, ends in [`Fault::Quarantined`]; one that ends, in whatever way, is
//! acknowledged as usual.
//!
//! The rings do not look at such a kernel's d2h region before the kernel is gone. So the suspect's slot
//! cannot be reused under it, and there is no other ticket that it could claim.
//!
//! **Cost.** One start and one quiesce for each suspect, and what the item takes. There are as many suspects as
//! items were being run: on the CPU backend up to 32 for each worker, and 0.3 ms apiece in a ring of 64 slots, 1.3 ms in one
//! of 65,536, whose marks are written and stepped over each time (two cores, busy with other work). Groups would need fewer starts, but more losses to find the one among them, and losses are what
//! costs: a process, and a share of what its backend puts up with.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vyre_driver::protocol::opcode;
use vyre_driver::view::InFlight;
use vyre_driver::wait::RECHECK;
use vyre_driver::{BackendError, Fault, KernelState};

use super::lifecycle::Control;
use super::recover::{Recovery, Setback};
use super::rings::{Heads, key_of, position_of, ring_of};
use super::shared::{Shared, lock, ring_error};
use crate::error::MegakernelError;

/// What a suspect is given beside its item deadline: its kernel has to start, and to find it.
const START: Duration = Duration::from_secs(1);

/// How long a look at a suspect goes on without sleeping: most items take less.
const BUSY: Duration = Duration::from_micros(200);

/// The tickets that in-flight words name, in order, by their keys. `heads` has the next ticket of each ring.
fn named_by(words: impl Iterator<Item = InFlight>, heads: Heads, capacity: u64) -> Vec<u64> {
    let mut named: Vec<u64> = words
        .filter_map(|word| {
            let (head, end) = (heads.of(word.ring), word.first.checked_add(word.count.into())?);
            // Its first ones may have ended, and their slots be in use again.
            let possible = end <= head && head - end < capacity;
            possible.then(|| key_of(word.ring, word.first)..key_of(word.ring, end))
        })
        .flatten()
        .collect();
    named.sort_unstable();
    named.dedup();
    named
}

impl Shared {
    /// The tickets that the kernel's workers say they are running, as far as that can be true.
    pub(super) fn named_in_flight(&self) -> Vec<u64> {
        let view = lock(&self.view).clone();
        let workers = view.regions().layout.config().workers;
        let words = (0..workers).filter_map(|worker| view.in_flight(worker).ok().flatten());
        let mut named = named_by(words, self.rings.heads(), self.rings.capacity().into());
        // A shutdown runs nothing of the user's, and would end the session.
        self.rings.for_each_unacknowledged(|ticket, image| {
            if image.opcode == opcode::SHUTDOWN {
                named.retain(|suspect| *suspect != ticket);
            }
        });
        named
    }

    /// Runs every suspect that has no answer yet alone, the next when the one before it has ended.
    pub(super) fn try_suspects(&self, control: &mut Control, recovery: &mut Recovery) -> Result<(), Setback> {
        let any = !recovery.suspects.is_empty();
        while let Some(&ticket) = recovery.suspects.front() {
            if !self.rings.is_acknowledged(ticket) {
                self.check_ending()?;
                tracing::info!(session = self.id, ticket, "a suspect runs alone");
                recovery.report.tried_alone += 1;
                self.note("suspect alone", &[("ticket", ticket)]);
                recovery.alone = Some(ticket);
                let ended = self.run_alone(control, ticket)?;
                self.check_ending()?;
                recovery.alone = None;
                if !ended {
                    tracing::warn!(session = self.id, ticket, "a suspect did not end in time");
                    self.fail(ticket, Fault::Deadline, &mut recovery.report);
                }
                recovery.report.replayed += u64::from(ended);
            }
            recovery.suspects.pop_front();
        }
        if any {
            self.turn_over(control, true)?;
        }
        Ok(())
    }

    /// Runs one ticket by a kernel of its own; says whether it ended in time. The kernel is gone then, and the
    /// answer, if there is one, there for whoever waits for it.
    fn run_alone(&self, control: &mut Control, ticket: u64) -> Result<bool, MegakernelError> {
        self.turn_to_alone(control)?;
        self.launch(control, Some(ticket))?;
        let Some(kernel) = control.kernel.clone() else { return Ok(false) };
        let limit = self.options.item_deadline.map(|limit| limit.saturating_add(START));
        let limit = limit.unwrap_or(self.options.probation_deadline);
        let started = Instant::now();
        let left = loop {
            let state = kernel.state();
            let ring = self.rings.get(ring_of(ticket));
            let completed = ring.is_completed_in(&control.regions, position_of(ticket));
            let completed = completed.map_err(ring_error("look at a suspect"))?;
            match state {
                KernelState::Running if completed => break kernel.quiesce(self.options.stop_deadline),
                KernelState::Running => {}
                KernelState::Lost(loss) => break Err(BackendError::DeviceLost(loss)),
                KernelState::ShutDown | KernelState::Stopped | KernelState::CutShort => break Ok(()),
            }
            if started.elapsed() >= limit || self.ending.load(Ordering::Acquire) {
                break kernel.reap(self.options.stop_deadline);
            }
            // This thread's other duties: the kernel needs a host that lives, and may ask it for something.
            self.renew_lease();
            self.serve_io_alone();
            if started.elapsed() < BUSY {
                std::thread::yield_now();
            } else {
                std::thread::sleep(RECHECK);
            }
        };
        left.map_err(MegakernelError::backend("run a suspect alone"))?;
        self.forget_kernel(control);
        self.acknowledge_alone(control)?;
        Ok(self.is_answered(ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wild_words_name_nobody() {
        let word = |ring, first, count| InFlight { ring, first, count };
        let named = |words: &[InFlight]| named_by(words.iter().copied(), Heads::new([100, 10, 0]), 64);
        assert_eq!(named(&[word(0, 97, 3), word(0, 36, 1), word(0, 98, 1)]), [36, 97, 98, 99]);
        assert_eq!(named(&[word(0, 35, 2)]), [35, 36]);
        // Each ring for itself.
        assert_eq!(named(&[word(1, 8, 2), word(0, 9, 1)]), [key_of(1, 8), key_of(1, 9)]);
        // Past the head; over it; older than the ring; and what no host could have issued.
        for wild in [
            word(1, 97, 1),
            word(2, 0, 1),
            word(3, 0, 1),
            word(0, 100, 1),
            word(0, 99, 2),
            word(0, 34, 2),
            word(0, u64::MAX, 2),
            word(0, (1 << 53) - 2, 256),
        ] {
            assert_eq!(named(&[wild, word(0, 50, 1)]), [50], "{wild:?}");
        }
        assert!(named(&[]).is_empty());
    }
}
