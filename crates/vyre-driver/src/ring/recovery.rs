//! What happens around the end of an incarnation: saving, failing, starting again.
//!
//! Everything here is for one caller at a time and is serialised by a lock, which otherwise only those take who free
//! the slots of detached tickets.

use super::image::SlotWords;
use super::memory::{Cells, LoadWord, Memory};
use super::producer::RingProducer;
use super::tracking::Look;
use super::word::{State, Word};
use super::{Completion, RingError, SlotImage};
use crate::protocol::{Fault, Status};
use crate::region::SessionRegions;
use crate::sync::{AtomicPtr, Mutex, MutexGuard, Ordering, lock};

/// One incarnation's completions.
pub(super) struct Incarnation<M: Memory> {
    pub(super) epoch: u64,
    pub(super) completions: M::CompletionsView,
    #[cfg_attr(loom, allow(dead_code))]
    pub(super) park: M::Park,
}

/// All incarnations so far. Old ones stay mapped until the producer is dropped, because a thread may be
/// looking at one; what it sees there no longer counts, since the epoch in the private words has moved on.
pub(super) struct Incarnations<M: Memory> {
    current: AtomicPtr<Incarnation<M>>,
    all: Mutex<Vec<*mut Incarnation<M>>>,
}

/// Held by whoever changes incarnations, saves results, or takes a word out of the state Detached.
pub(super) type Lock<'a, M> = MutexGuard<'a, Vec<*mut Incarnation<M>>>;

// SAFETY: the pointers own their boxes; shared use is by shared reference to `Send + Sync` contents.
unsafe impl<M: Memory> Send for Incarnations<M> {}
// SAFETY: as above.
unsafe impl<M: Memory> Sync for Incarnations<M> {}

impl<M: Memory> Incarnations<M> {
    pub(super) fn new(completions: M::CompletionsView, park: M::Park) -> Self {
        let first = Box::into_raw(Box::new(Incarnation { epoch: 0, completions, park }));
        Incarnations { current: AtomicPtr::new(first), all: Mutex::new(vec![first]) }
    }

    #[inline]
    pub(super) fn current(&self) -> &Incarnation<M> {
        // Acquire: pairs with the release in `push`.
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: made from a box that lives until `self` is dropped, and never borrowed mutably.
        unsafe { &*current }
    }

    /// The lock of whoever ends what nobody holds a ticket of.
    pub(super) fn lock(&self) -> Lock<'_, M> {
        lock(&self.all)
    }

    /// Makes the next incarnation current.
    fn push(&self, all: &mut Lock<'_, M>, completions: M::CompletionsView, park: M::Park) -> u64 {
        let epoch = self.current().epoch.wrapping_add(1);
        let next = Box::into_raw(Box::new(Incarnation { epoch, completions, park }));
        all.push(next);
        self.current.store(next, Ordering::Release);
        epoch
    }
}

impl<M: Memory> Drop for Incarnations<M> {
    fn drop(&mut self) {
        for incarnation in lock(&self.all).drain(..) {
            // SAFETY: made by `Box::into_raw`, listed once, and nobody can look any more.
            drop(unsafe { Box::from_raw(incarnation) });
        }
    }
}

impl RingProducer {
    /// Turns to the d2h region of the next incarnation. Completions of the old one that are there by now
    /// are acknowledged; what the old one writes later is never looked at.
    ///
    /// Call it when the old kernel is gone and before the new one is started; then
    /// [`RingProducer::write_start_record`].
    pub fn rebind_d2h(&self, regions: &SessionRegions) -> Result<(), RingError> {
        let (completions, park) = RingProducer::d2h_half(regions, self.ring)?;
        self.rebind(completions, park);
        Ok(())
    }

    /// Writes where the next incarnation begins: the oldest ticket not acknowledged, and a mark for each of
    /// the tickets after it that are. Returns that ticket.
    pub fn write_start_record(&self, regions: &SessionRegions) -> Result<u64, RingError> {
        self.store_start_record(regions, self.start_record())
    }

    /// Writes the start record of an incarnation that is to run one ticket and nothing else: it begins there,
    /// and every ticket after it that can be published meanwhile is marked.
    ///
    /// That holds as long as the ticket's slot is not reused, so the incarnation's d2h region must not be the
    /// one that this producer looks at: [`RingProducer::is_completed_in`] sees the item end, and
    /// [`RingProducer::rebind_d2h`] acknowledges it once the kernel is gone.
    pub fn write_start_record_of_one(&self, regions: &SessionRegions, ticket: u64) -> Result<(), RingError> {
        if self.is_acknowledged(ticket) {
            return Err(RingError::AlreadyTaken { ticket });
        }
        self.store_start_record(regions, self.start_record_of_one(ticket)).map(drop)
    }

    /// Writes the start record of an incarnation that is to run nothing of this ring: it begins at the oldest ticket
    /// not acknowledged, and that one and every ticket that can be published meanwhile are marked. It holds as
    /// [`RingProducer::write_start_record_of_one`] does.
    pub fn write_start_record_of_none(&self, regions: &SessionRegions) -> Result<(), RingError> {
        self.store_start_record(regions, self.start_record_of_none()).map(drop)
    }

    fn store_start_record(
        &self,
        regions: &SessionRegions,
        (first, skip): (u64, Vec<u64>),
    ) -> Result<u64, RingError> {
        let at = regions.layout.ring(self.ring)?.start_record.offset;
        regions.h2d.atomic_u64(at)?.store(first, Ordering::Relaxed);
        for (word, offset) in skip.iter().zip((at + 8..).step_by(8)) {
            regions.h2d.atomic_u64(offset)?.store(*word, Ordering::Relaxed);
        }
        Ok(first)
    }

    /// Whether a d2h region holds a completion of this lap for a ticket, wherever this producer looks. It
    /// acknowledges nothing.
    pub fn is_completed_in(&self, regions: &SessionRegions, ticket: u64) -> Result<bool, RingError> {
        let (completions, _) = RingProducer::d2h_half(regions, self.ring)?;
        Ok(self.is_completed(&completions, ticket))
    }
}

impl<M: Memory> RingProducer<M> {
    /// Whether these completions have one of this lap for a ticket.
    pub(super) fn is_completed(&self, completions: &M::CompletionsView, ticket: u64) -> bool {
        let [lo, hi] = completions.group(ticket).as_ref() else { return false };
        let hi = hi.load(Ordering::Acquire);
        hi >> 48 & Self::LAP_MASK == self.tag_lap(ticket)
            && Completion::from_words([lo.load(Ordering::Relaxed), hi]).is_some()
    }

    /// One ticket, and a mark for each of the others that a ring can hold beside it.
    pub(super) fn start_record_of_one(&self, ticket: u64) -> (u64, Vec<u64>) {
        let mut skip = self.all_marks();
        if let Some(word) = skip.first_mut() {
            *word &= !1;
        }
        (ticket, skip)
    }

    /// The oldest ticket not acknowledged, and a mark for each one that a ring can hold from there on.
    pub(super) fn start_record_of_none(&self) -> (u64, Vec<u64>) {
        (self.oldest_unacknowledged(), self.all_marks())
    }

    fn all_marks(&self) -> Vec<u64> {
        let mut skip = vec![u64::MAX; self.words.len().div_ceil(64)];
        if let Some(word) = skip.first_mut() {
            // A ring of less than 64 slots has no ticket for the upper bits.
            *word = u64::MAX >> (64 - self.words.len().min(64));
        }
        skip
    }

    pub(super) fn rebind(&self, completions: M::CompletionsView, park: M::Park) {
        let mut all = self.incarnations.lock();
        let head = self.head();
        let mut detached = Vec::new();
        for ticket in self.oldest_possible(head)..head {
            detached.extend(self.save(&all, ticket).map(|completion| (ticket, completion)));
        }
        let epoch = self.incarnations.push(&mut all, completions, park);
        // From here on a look at the old completions cannot win: the words change. A word published meanwhile
        // was not there when the old incarnation ended.
        for cell in &self.words {
            let mut word = Word(cell.load(Ordering::Acquire));
            while matches!(word.state(), State::Pending | State::Detached) && !word.is_of_epoch(epoch) {
                let next = word.with_epoch(epoch);
                match cell.compare_exchange(word.0, next.0, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(now) => word = Word(now),
                }
            }
        }
        drop(all);
        self.count_detached(&detached);
    }

    /// Moves a completion that is there to this side, or frees the slot if nobody waits for it: the caller
    /// counts that once the lock is released.
    fn save(&self, all: &Lock<'_, M>, ticket: u64) -> Option<Completion> {
        while let Ok(Look::Finished(word, completion)) = self.look(ticket) {
            let won = match word.state() {
                State::Pending => self.save_as(all, ticket, word, completion),
                State::Detached => {
                    self.free_detached(all, ticket, word);
                    return Some(completion);
                }
                State::Free | State::Saved => true,
            };
            if won {
                break;
            }
        }
        None
    }

    /// Acknowledges a pending ticket with a completion kept here. The lock held is what makes this thread
    /// the only one that writes saved results.
    fn save_as(&self, _all: &Lock<'_, M>, ticket: u64, word: Word, completion: Completion) -> bool {
        if let Some([lo, hi]) = self.saved.get((ticket & self.mask) as usize) {
            let [result, rest] = completion.words(0);
            lo.store(result, Ordering::Relaxed);
            hi.store(rest, Ordering::Relaxed);
        }
        self.swap(ticket, word, word.with_state(State::Saved))
    }

    pub(super) fn load_saved(&self, ticket: u64) -> Completion {
        let [lo, hi] = match self.saved.get((ticket & self.mask) as usize) {
            Some([lo, hi]) => [lo.load(Ordering::Relaxed), hi.load(Ordering::Relaxed)],
            None => [0, 0],
        };
        // Never the fallback: only `save_as` writes these words.
        Completion::from_words([lo, hi]).unwrap_or_else(|| Completion::fault(Fault::Malformed))
    }

    /// Ends an item with a fault written by the host. True if this call acknowledged it, false if its
    /// completion, or another caller, was first.
    ///
    /// Its slot may be reused at once, so no consumer may be able to claim the ticket any more: the kernel
    /// is gone, or the next start record will skip it.
    pub fn fail(&self, ticket: u64, fault: Fault) -> Result<bool, RingError> {
        let completion = Completion::new(Status::Fault, fault.code(), 0)?;
        let all = self.incarnations.lock();
        let detached = loop {
            let word = Word(self.word(ticket).load(Ordering::Acquire));
            if word.lap() > ticket >> self.shift {
                return Ok(false);
            }
            if word.lap() < ticket >> self.shift {
                return Err(RingError::NotIssued { ticket });
            }
            let (won, detached) = match word.state() {
                State::Free if ticket < self.head() => return Err(RingError::BeingPublished { ticket }),
                State::Free => return Err(RingError::NotIssued { ticket }),
                State::Saved => return Ok(false),
                State::Pending => (self.save_as(&all, ticket, word, completion), false),
                State::Detached => {
                    self.free_detached(&all, ticket, word);
                    (true, true)
                }
            };
            if won {
                break detached;
            }
        };
        drop(all);
        if detached {
            self.count_detached(&[(ticket, completion)]);
        }
        Ok(true)
    }

    /// Whether a ticket below the head has been acknowledged: taken, or answered and kept on this side.
    pub fn is_acknowledged(&self, ticket: u64) -> bool {
        let word = Word(self.word(ticket).load(Ordering::Acquire));
        word.lap() > ticket >> self.shift
            || word.lap() == ticket >> self.shift && word.state() == State::Saved
    }

    /// The oldest ticket not acknowledged, or the next ticket if all are.
    pub fn oldest_unacknowledged(&self) -> u64 {
        let head = self.head();
        (self.oldest_possible(head)..head).find(|&ticket| !self.is_acknowledged(ticket)).unwrap_or(head)
    }

    /// Calls `each` for every ticket not acknowledged and fully published, with the item as the host itself
    /// wrote it, in order. `each` runs under no lock.
    pub fn for_each_unacknowledged(&self, mut each: impl FnMut(u64, SlotImage)) {
        let head = self.head();
        for ticket in self.oldest_possible(head)..head {
            let word = Word(self.word(ticket).load(Ordering::Acquire));
            let published = matches!(word.state(), State::Pending | State::Detached);
            if word.lap() == ticket >> self.shift && published {
                each(ticket, self.read_slot(ticket));
            }
        }
    }

    fn read_slot(&self, ticket: u64) -> SlotImage {
        let mut words = SlotWords::default();
        let cells = self.slots.group(ticket).as_ref().as_chunks::<2>().0;
        for ([lo, hi], [lo_cell, hi_cell]) in words.iter_mut().zip(cells).take(M::QUARTERS) {
            *lo = lo_cell.load(Ordering::Relaxed);
            *hi = hi_cell.load(Ordering::Relaxed);
        }
        let mut image = SlotImage::default();
        image.set_words(&words);
        image
    }

    /// The first ticket for the next incarnation, and the skip marks of those after it.
    pub(super) fn start_record(&self) -> (u64, Vec<u64>) {
        let (head, first) = (self.head(), self.oldest_unacknowledged());
        let mut skip = vec![0u64; self.words.len().div_ceil(64)];
        for (offset, ticket) in (first..head).enumerate() {
            if let Some(word) = skip.get_mut(offset / 64)
                && self.is_acknowledged(ticket)
            {
                *word |= 1 << (offset % 64);
            }
        }
        (first, skip)
    }
}
