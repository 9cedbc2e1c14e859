//! What becomes of a submitted item: looking, taking, forgetting, counting.

use std::ops::Range;

use smallvec::SmallVec;

use super::memory::{Cells, LoadWord, Memory, laps};
use super::producer::{RingCounters, RingProducer};
use super::recovery::Lock;
use super::ticket::{RawTicket, Ticket};
use super::word::{State, Word};
use super::{Completion, RingError};
use crate::arena::PackedRange;
use crate::sync::Ordering;

/// What a look at a ticket found.
pub(super) enum Look {
    Pending,
    /// The exact word examined, and the completion.
    Finished(Word, Completion),
}

/// Tickets that are swept before others may hold the lock.
const SWEEP: u64 = 256;

impl<M: Memory> RingProducer<M> {
    /// What has become of a ticket. Believes a completion only if the private word is Pending or Detached,
    /// the tag carries the ticket's lap, and the status ends an item.
    #[inline(always)]
    pub(super) fn look(&self, ticket: u64) -> Result<Look, RingError> {
        loop {
            // Acquire: pairs with the stores that published the slot, saved a result, or moved the epoch.
            let word = Word(self.word(ticket).load(Ordering::Acquire));
            if !word.is_published(ticket >> self.shift) {
                return self.not_published(ticket, word);
            }
            // After the word: a word of the current epoch comes with the current incarnation. With an older
            // one, what is read here does not count, because the word is changed before a restart is over.
            let completions = &self.incarnations.current().completions;
            let [lo, hi] = completions.group(ticket).as_ref() else { return Ok(Look::Pending) };
            // The tag first, with acquire: pairs with the consumer's release, so that the result half is of
            // this lap at least. It is of no later lap if the word is still the same afterwards, because a
            // later lap begins by changing the word: every caller ends with a compare-and-swap from it.
            let hi = hi.load(Ordering::Acquire);
            if hi >> 48 & Self::LAP_MASK == self.tag_lap(ticket)
                && let Some(completion) = Completion::from_words([lo.load(Ordering::Relaxed), hi])
            {
                return Ok(Look::Finished(word, completion));
            }
            if let Some(look) = self.not_finished(ticket, word, hi)? {
                return Ok(look);
            }
        }
    }

    /// What a word says that does not wait for a completion.
    #[cold]
    fn not_published(&self, ticket: u64, word: Word) -> Result<Look, RingError> {
        let lap = ticket >> self.shift;
        match word.state() {
            _ if word.lap() > lap => Err(RingError::AlreadyTaken { ticket }),
            _ if word.lap() < lap => Err(RingError::NotIssued { ticket }),
            State::Saved => Ok(Look::Finished(word, self.load_saved(ticket))),
            _ if ticket < self.head() => Ok(Look::Pending),
            _ => Err(RingError::NotIssued { ticket }),
        }
    }

    /// Tells a tag that is not written yet from one that no device may write; `None` to look again.
    #[cold]
    fn not_finished(&self, ticket: u64, word: Word, hi: u64) -> Result<Option<Look>, RingError> {
        let (tag, expected) = ((hi >> 32) as u32, self.tag_lap(ticket));
        let ahead = (hi >> 48).wrapping_sub(expected) & Self::LAP_MASK;
        // Zero is a fresh region. A lap behind is the slot's last item, if this incarnation completed it.
        if tag == 0 || ahead >= 1 << (M::LAP_BITS - 1) {
            return Ok(Some(Look::Pending));
        }
        // Unless the ticket was taken since the word was read, and this is the next one's.
        if self.swap(ticket, word, word) { Err(self.violation(ticket, tag)) } else { Ok(None) }
    }

    #[cold]
    fn violation(&self, ticket: u64, tag: u32) -> RingError {
        self.violations.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(ring = self.ring, ticket, tag, "completion refused");
        RingError::Violation { ring: self.ring, ticket, tag, lap: self.tag_lap(ticket) as u16 }
    }

    /// The one transition that decides. Release: what this thread has read of the slot and its completion
    /// is read before anybody reuses them. Acquire: pairs with the transition before.
    #[inline]
    pub(super) fn swap(&self, ticket: u64, from: Word, to: Word) -> bool {
        self.word(ticket).compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The completion, if there is one. The ticket stays good.
    pub fn poll_raw(&self, ticket: RawTicket) -> Result<Option<Completion>, RingError> {
        let ticket = self.own(ticket)?;
        loop {
            match self.look_tracked(ticket)? {
                Look::Pending => return Ok(None),
                // From the word to itself: it has not changed since the completion was read.
                Look::Finished(word, completion) if self.swap(ticket, word, word) => {
                    return Ok(Some(completion));
                }
                Look::Finished(..) => {}
            }
        }
    }

    /// The completion, if there is one, and with it the slot is free and the ticket spent.
    #[inline(always)]
    pub fn take_raw(&self, ticket: RawTicket) -> Result<Option<Completion>, RingError> {
        let ticket = self.own(ticket)?;
        loop {
            match self.look_tracked(ticket)? {
                Look::Pending => return Ok(None),
                Look::Finished(word, completion) => {
                    if self.free(ticket, word) {
                        return Ok(Some(completion));
                    }
                }
            }
        }
    }

    /// Gives a ticket up. Its slot is free as soon as the item is finished.
    pub fn forget_raw(&self, ticket: RawTicket) -> Result<(), RingError> {
        let ticket = self.own(ticket)?;
        loop {
            let word = Word(self.word(ticket).load(Ordering::Acquire));
            if word.lap() != ticket >> self.shift {
                return Err(RingError::AlreadyTaken { ticket });
            }
            let done = match word.state() {
                State::Free => return Err(RingError::BeingPublished { ticket }),
                State::Detached => return Err(RingError::AlreadyTaken { ticket }),
                State::Pending => self.swap(ticket, word, word.with_state(State::Detached)),
                State::Saved => {
                    let completion = self.load_saved(ticket);
                    let freed = self.free(ticket, word);
                    if freed {
                        self.count_detached(&[(ticket, completion)]);
                    }
                    freed
                }
            };
            if done {
                self.sweep_ticket(ticket);
                return Ok(());
            }
        }
    }

    /// Hands every finished ticket to `each`, frees detached ones, and returns how many were handed over.
    /// Any thread's tickets are taken; `each` runs under no lock. Completions that break the protocol are
    /// counted and left.
    pub fn reap(&self, mut each: impl FnMut(RawTicket, Completion)) -> u64 {
        let head = self.head();
        let mut ticket = self.oldest_possible(head);
        let mut in_a_row = true;
        let mut reaped = 0;
        while ticket != head {
            in_a_row &= match self.look(ticket) {
                // It may be unfinished again: another region may be looked at by now.
                Ok(Look::Finished(word, _)) if word.state() == State::Detached => self.sweep_ticket(ticket),
                Ok(Look::Finished(word, completion)) => {
                    let won = self.free(ticket, word);
                    if won {
                        each(self.raw(ticket), completion);
                        reaped += 1;
                    }
                    won
                }
                Err(RingError::AlreadyTaken { .. }) => true,
                Ok(Look::Pending) | Err(_) => false,
            };
            ticket = ticket.wrapping_add(1);
            if in_a_row {
                self.swept.fetch_max(ticket, Ordering::Relaxed);
            }
        }
        reaped
    }

    /// Where a search for unfinished tickets begins.
    pub(super) fn oldest_possible(&self, head: u64) -> u64 {
        head.saturating_sub(u64::from(self.capacity())).max(self.swept.load(Ordering::Relaxed)).min(head)
    }

    /// What was counted so far, after freeing what is detached and finished.
    pub fn counters(&self) -> RingCounters {
        self.sweep_detached();
        // Each word says how often its slot was freed: nobody has to count on the fast path.
        let completed = self
            .words
            .iter()
            .zip(0u64..)
            .map(|(cell, index)| {
                let word = Word(cell.load(Ordering::Acquire));
                let ticket = self.first.wrapping_add(index.wrapping_sub(self.first) & self.mask);
                let saved = u64::from(word.state() == State::Saved);
                word.lap().wrapping_sub(ticket >> self.shift).wrapping_add(saved)
            })
            .fold(0, u64::wrapping_add);
        // After the words: whatever they count was issued before.
        let published = self.head().wrapping_sub(self.first);
        RingCounters {
            published,
            completed,
            outstanding: published.saturating_sub(completed),
            detached_done: self.detached_done.load(Ordering::Relaxed),
            detached_faults: self.detached_faults.load(Ordering::Relaxed),
            violations: self.violations.load(Ordering::Relaxed),
        }
    }

    /// The name of a ticket of this ring.
    pub fn raw(&self, position: u64) -> RawTicket {
        RawTicket { ring: self.id, position }
    }

    /// Whether a name is of a ticket of this producer.
    #[inline]
    pub fn owns(&self, ticket: RawTicket) -> bool {
        ticket.ring == self.id
    }

    /// Makes an owner of a name again.
    pub fn adopt(&self, ticket: RawTicket) -> Result<Ticket<'_, M>, RingError> {
        Ok(Ticket::new(self, self.own(ticket)?))
    }

    #[inline]
    pub(super) fn own(&self, ticket: RawTicket) -> Result<u64, RingError> {
        if !self.owns(ticket) {
            return Err(RingError::Foreign { what: "ticket" });
        }
        Ok(ticket.position)
    }

    /// A look that treats a forgotten ticket as gone.
    #[inline(always)]
    fn look_tracked(&self, ticket: u64) -> Result<Look, RingError> {
        match self.look(ticket)? {
            Look::Finished(word, _) if word.state() == State::Detached => {
                Err(RingError::AlreadyTaken { ticket })
            }
            look => Ok(look),
        }
    }

    /// Frees a slot from the exact word examined, and the range it owned. False if another thread was first.
    #[inline]
    pub(super) fn free(&self, ticket: u64, word: Word) -> bool {
        if word.is_attached() {
            return self.free_with_range(ticket, word);
        }
        self.swap(ticket, word, word.freed())
    }

    #[cold]
    fn free_with_range(&self, ticket: u64, word: Word) -> bool {
        // Before the slot is free: the next item of it may bring a range of its own.
        let range = self.attachment(ticket).map(|cell| PackedRange(cell.load(Ordering::Relaxed)));
        let freed = self.swap(ticket, word, word.freed());
        if let (true, Some(range), Some(attachments)) = (freed, range, &self.attachments) {
            attachments.arena.free_packed(range);
        }
        freed
    }

    /// Frees the slots of all detached tickets whose items are finished. Producers do that when they need the room;
    /// this is for whoever waits for arena ranges, or for faults, that nobody asks about.
    pub fn sweep_detached(&self) {
        let head = self.head();
        let from = self.oldest_possible(head);
        self.sweep(from..head);
        let is_free =
            |ticket: &u64| Word(self.word(*ticket).load(Ordering::Acquire)).lap() > ticket >> self.shift;
        let done = (from..head).take_while(is_free).count() as u64;
        self.swept.fetch_max(from.wrapping_add(done), Ordering::Relaxed);
    }

    /// Frees slots of detached tickets in a row whose items are finished, up to the first that is not: so many at
    /// least, if they are, or the first one.
    pub(super) fn sweep_run(&self, first: u64, wanted: u64) {
        // Without the lock: as a rule the next ones are not finished either.
        if matches!(self.look(first), Ok(Look::Pending)) {
            return;
        }
        let count = wanted.max(SWEEP).min(self.head().wrapping_sub(first));
        let all = self.incarnations.lock();
        let done = self.free_done(&all, first, count as usize);
        drop(all);
        self.count_done(done);
        // Whoever needs this slot has found those before it free.
        self.swept.fetch_max(first.wrapping_add(done), Ordering::Relaxed);
        if done == 0 {
            // It ended in a fault, owns a range, was saved, or broke the protocol.
            self.sweep_ticket(first);
        }
    }

    /// Frees the slots of detached tickets whose items are done and own nothing, up to the first that is not such a
    /// one, and returns how many. This is the path of items that nobody asks about, at the rate of the bus.
    fn free_done(&self, _all: &Lock<'_, M>, first: u64, count: usize) -> u64 {
        let incarnation = self.incarnations.current();
        let mut done = 0;
        for (lap, part) in laps(first, count, self.shift) {
            let (before, after) =
                (Word::new(lap, State::Detached, incarnation.epoch, false), Word::free(lap).freed());
            let tag = lap.wrapping_add(1) & Self::LAP_MASK;
            let completions = incarnation.completions.groups().get(part.clone()).unwrap_or_default();
            for (cell, completion) in self.words.get(part).unwrap_or_default().iter().zip(completions) {
                let [_, hi] = completion.as_ref() else { return done };
                // Orderings: as in `look`, and in `free_detached`. The result is not wanted.
                let is_detached = cell.load(Ordering::Acquire) == before.0;
                if !is_detached || !Completion::is_done_of(hi.load(Ordering::Acquire), tag) {
                    return done;
                }
                cell.store(after.0, Ordering::Release);
                done += 1;
            }
        }
        done
    }

    /// Frees the slots of all detached tickets of a range whose items are finished, and returns how many.
    fn sweep(&self, tickets: Range<u64>) -> u64 {
        let (mut next, mut freed) = (tickets.start, 0);
        while next < tickets.end {
            let mut ended = SmallVec::<[(u64, Completion); 4]>::new();
            let all = self.incarnations.lock();
            for ticket in (next..tickets.end).take(SWEEP as usize) {
                ended.extend(self.sweep_one(&all, ticket).map(|completion| (ticket, completion)));
            }
            drop(all);
            self.count_detached(&ended);
            freed += ended.len() as u64;
            next = next.wrapping_add(SWEEP);
        }
        freed
    }

    /// [`sweep`](Self::sweep) of one ticket. Whether this call freed it.
    fn sweep_ticket(&self, ticket: u64) -> bool {
        self.sweep(ticket..ticket.wrapping_add(1)) == 1
    }

    fn sweep_one(&self, all: &Lock<'_, M>, ticket: u64) -> Option<Completion> {
        let word = Word(self.word(ticket).load(Ordering::Acquire));
        if word.lap() != ticket >> self.shift || word.state() != State::Detached {
            return None;
        }
        let Ok(Look::Finished(word, completion)) = self.look(ticket) else { return None };
        self.free_detached(all, ticket, word);
        Some(completion)
    }

    /// Frees the slot of a detached ticket.
    ///
    /// All who do hold the lock, and nobody else changes such a word, so that a store will do where others need a
    /// compare-and-swap. Behind one of those the next load would wait, and a run of completions is a run of loads of
    /// lines that the device wrote last and that are far away: they go on side by side.
    pub(super) fn free_detached(&self, _all: &Lock<'_, M>, ticket: u64, word: Word) {
        // Before the slot is free: the next item of it may bring a range of its own.
        let range = self.attachment(ticket).filter(|_| word.is_attached());
        let range = range.map(|cell| PackedRange(cell.load(Ordering::Relaxed)));
        // Release: what this thread has read of the slot and its completion is read before anybody reuses them.
        // Pairs with the acquire of a reservation.
        self.word(ticket).store(word.freed().0, Ordering::Release);
        if let (Some(range), Some(attachments)) = (range, &self.attachments) {
            attachments.arena.free_packed(range);
        }
    }

    fn count_done(&self, count: u64) {
        if count != 0 {
            self.detached_done.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts detached items that ended. Under no lock: it calls the user's handler.
    pub(super) fn count_detached(&self, ended: &[(u64, Completion)]) {
        let done = ended.iter().filter(|(_, completion)| completion.is_done()).count();
        self.count_done(done as u64);
        // Before the handler, which may panic.
        self.detached_faults.fetch_add((ended.len() - done) as u64, Ordering::Relaxed);
        if let Some(handler) = &self.on_detached_fault {
            for &(ticket, completion) in ended.iter().filter(|(_, completion)| !completion.is_done()) {
                handler(self.raw(ticket), completion);
            }
        }
    }
}
