//! The host's half of a ring: reserve, publish, poll, take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as StdAtomicU64, Ordering as StdOrdering};

use crossbeam_utils::CachePadded;

use super::memory::{Cells, LoadWord, MappedCells, Memory, Shared, StoreWord};
use super::recovery::Incarnations;
use super::ticket::{RawTicket, Ticket, Tickets};
use super::word::{State, Word};
use super::{Completion, RingError, SlotImage};
use crate::arena::{Arena, ArenaRange, PackedRange};
use crate::region::SessionRegions;
use crate::sync::{AtomicU64, Ordering};
use crate::wait::Waiter;

/// Called with every detached ticket that ended in a fault, on whatever thread noticed.
pub type DetachedHandler = Box<dyn Fn(RawTicket, Completion) + Send + Sync>;

/// The producer's half of a ring. Any number of threads use it at once.
pub struct RingProducer<M: Memory = Shared> {
    /// The next ticket.
    pub(super) head: CachePadded<AtomicU64>,
    /// No ticket below it is unfinished; a hint that only grows.
    pub(super) swept: CachePadded<AtomicU64>,
    pub(super) words: Box<[AtomicU64]>,
    pub(super) slots: M::Slots,
    pub(super) incarnations: Incarnations<M>,
    /// Results of slots in state Saved: result, then code and status.
    pub(super) saved: Box<[[AtomicU64; 2]]>,
    attachments: Option<Attachments>,
    pub(super) mask: u64,
    pub(super) shift: u32,
    pub(super) first: u64,
    pub(super) id: u64,
    pub(super) ring: u32,
    pub(super) detached_done: AtomicU64,
    pub(super) detached_faults: AtomicU64,
    violations: AtomicU64,
    on_detached_fault: Option<DetachedHandler>,
}

/// The arena, and the range that each slot's item owns.
struct Attachments {
    arena: Arc<Arena>,
    ranges: Box<[AtomicU64]>,
}

/// What a producer has counted. Read one after another while others work, so `outstanding` is exact only at
/// rest; it never underflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    /// Tickets issued.
    pub published: u64,
    /// Tickets acknowledged: taken, reaped, failed, or detached and swept.
    pub completed: u64,
    /// The difference.
    pub outstanding: u64,
    /// Detached items that finished.
    pub detached_done: u64,
    /// Detached items that ended in a fault.
    pub detached_faults: u64,
    /// Completions refused because no device that keeps to the protocol writes them.
    pub violations: u64,
}

/// Options of a producer.
#[derive(Default)]
pub struct ProducerOptions {
    /// The ticket to begin with.
    pub first_ticket: u64,
    /// Where payloads attached to items come from.
    pub arena: Option<Arc<Arena>>,
    /// Told about detached items that fault.
    pub on_detached_fault: Option<DetachedHandler>,
}

/// What a look at a ticket found.
pub(super) enum Look {
    Pending,
    /// The exact word examined, and the completion.
    Finished(Word, Completion),
}

/// One for every producer of this process: tickets of another one are told apart by it.
static NEXT_ID: StdAtomicU64 = StdAtomicU64::new(1);

impl RingProducer {
    /// The producer of one ring of a session. There may be only one: it alone knows which slots are free.
    pub fn new(
        regions: &SessionRegions,
        ring: u32,
        options: ProducerOptions,
    ) -> Result<RingProducer, RingError> {
        let layout = *regions.layout.ring(ring)?;
        let slots = MappedCells::<_, 8>::writable(&regions.h2d, layout.slots)?;
        let (completions, park) = RingProducer::d2h_half(regions, ring)?;
        RingProducer::with_memory(ring, layout.capacity, slots, completions, park, options)
    }

    pub(super) fn d2h_half(
        regions: &SessionRegions,
        ring: u32,
    ) -> Result<(<Shared as Memory>::CompletionsView, Waiter), RingError> {
        let layout = *regions.layout.ring(ring)?;
        let completions = MappedCells::<_, 2>::read_only(&regions.d2h, layout.completions)?;
        Ok((completions, Waiter::completion(regions)?))
    }
}

impl<M: Memory> RingProducer<M> {
    pub(super) fn with_memory(
        ring: u32,
        capacity: u32,
        slots: M::Slots,
        completions: M::CompletionsView,
        park: M::Park,
        options: ProducerOptions,
    ) -> Result<Self, RingError> {
        let (mask, shift) = (u64::from(capacity) - 1, capacity.trailing_zeros());
        let first = options.first_ticket;
        let indices = 0..u64::from(capacity);
        let producer = RingProducer {
            head: CachePadded::new(AtomicU64::new(first)),
            swept: CachePadded::new(AtomicU64::new(first)),
            words: indices
                .clone()
                .map(|index| {
                    let ticket = first.wrapping_add(index.wrapping_sub(first) & mask);
                    AtomicU64::new(Word::free(ticket >> shift).0)
                })
                .collect(),
            slots,
            incarnations: Incarnations::new(completions, park),
            saved: indices.clone().map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect(),
            attachments: options.arena.map(|arena| Attachments {
                arena,
                ranges: indices.clone().map(|_| AtomicU64::new(0)).collect(),
            }),
            mask,
            shift,
            first,
            id: NEXT_ID.fetch_add(1, StdOrdering::Relaxed),
            ring,
            detached_done: AtomicU64::new(0),
            detached_faults: AtomicU64::new(0),
            violations: AtomicU64::new(0),
            on_detached_fault: options.on_detached_fault,
        };
        if first != 0 {
            // The first lap must not begin with tags that look like its own.
            for ticket in (first..).take(capacity as usize) {
                producer.store_slot(ticket, &SlotImage::default(), producer.tag_lap(ticket).wrapping_sub(1));
            }
        }
        Ok(producer)
    }

    /// Slots of the ring.
    pub fn capacity(&self) -> u32 {
        self.words.len() as u32
    }

    /// Its number in the session.
    pub fn ring(&self) -> u32 {
        self.ring
    }

    /// The next ticket.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Relaxed)
    }

    /// Publishes one item.
    #[inline]
    pub fn submit(&self, image: &SlotImage) -> Result<Ticket<'_, M>, RingError> {
        let ticket = self.publish(std::slice::from_ref(image), None, State::Pending)?;
        Ok(Ticket::new(self, ticket))
    }

    /// Publishes all items, in order and with tickets in a row, or none of them.
    pub fn submit_batch(&self, images: &[SlotImage]) -> Result<Tickets<'_, M>, RingError> {
        let first = self.publish(images, None, State::Pending)?;
        Ok(Tickets::new(self, first, images.len() as u64))
    }

    /// The same, each item with the arena range it owns from then on: it is freed when the item's ticket is
    /// taken, or is finished and forgotten. On an error the ranges stay where they are.
    pub fn submit_with(
        &self,
        images: &[SlotImage],
        payloads: &mut [Option<ArenaRange>],
    ) -> Result<Tickets<'_, M>, RingError> {
        let first = self.publish(images, Some(payloads), State::Pending)?;
        Ok(Tickets::new(self, first, images.len() as u64))
    }

    /// Publishes one item that nobody will ask about. Returns its ticket's position.
    pub fn submit_detached(&self, image: &SlotImage) -> Result<u64, RingError> {
        self.publish(std::slice::from_ref(image), None, State::Detached)
    }

    /// Publishes all items, or none, and nobody will ask about them. Returns the first position.
    pub fn submit_batch_detached(&self, images: &[SlotImage]) -> Result<u64, RingError> {
        self.publish(images, None, State::Detached)
    }

    /// [`RingProducer::submit_with`] without tickets. Returns the first position.
    pub fn submit_detached_with(
        &self,
        images: &[SlotImage],
        payloads: &mut [Option<ArenaRange>],
    ) -> Result<u64, RingError> {
        self.publish(images, Some(payloads), State::Detached)
    }

    /// Validates, reserves, copies. No user code runs between the reservation and the last store.
    #[inline]
    fn publish(
        &self,
        images: &[SlotImage],
        mut payloads: Option<&mut [Option<ArenaRange>]>,
        state: State,
    ) -> Result<u64, RingError> {
        if images.len() > self.words.len() {
            return Err(RingError::BatchTooLarge { len: images.len(), capacity: self.capacity() });
        }
        for image in images {
            image.check()?;
        }
        if let Some(payloads) = &payloads {
            self.check_payloads(images.len(), payloads)?;
        }
        let first = self.reserve(images.len() as u64)?;
        let epoch = self.incarnations.current().epoch;
        for (offset, image) in images.iter().enumerate() {
            let ticket = first.wrapping_add(offset as u64);
            let range = payloads.as_deref_mut().and_then(|all| all.get_mut(offset)).and_then(Option::take);
            let attached = self.attach(ticket, range);
            self.store_slot(ticket, image, self.tag_lap(ticket));
            // After the slot, so that whoever sees the state sees a slot that its producer is done with.
            // Release: pairs with the load in `look` of a thread that was not handed the ticket.
            let word = Word::new(ticket >> self.shift, state, epoch, attached);
            self.word(ticket).store(word.0, Ordering::Release);
        }
        Ok(first)
    }

    /// Takes `len` tickets in a row out of the cursor, or says which ticket is in the way.
    #[inline]
    fn reserve(&self, len: u64) -> Result<u64, RingError> {
        let mut first = self.head.load(Ordering::Relaxed);
        loop {
            for ticket in (0..len).map(|offset| first.wrapping_add(offset)) {
                // Acquire: pairs with the release of the thread that freed the slot, so that our stores come
                // after its loads of the completion, and after the consumer's loads of the slot.
                let word = Word(self.word(ticket).load(Ordering::Acquire));
                if word != Word::free(ticket >> self.shift) && !self.make_room(ticket) {
                    let now = self.head.load(Ordering::Relaxed);
                    if now == first {
                        let oldest_untaken = ticket.wrapping_sub(u64::from(self.capacity()));
                        return Err(RingError::WouldBlock { oldest_untaken });
                    }
                    // Another thread took these tickets: look at the next ones.
                    return self.reserve(len);
                }
            }
            // Relaxed: the cursor guards nothing; what it hands out is guarded by the words just read, and
            // a word that is free for a ticket stays so until the ticket is handed out.
            match self.head.compare_exchange_weak(
                first,
                first.wrapping_add(len),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(first),
                Err(now) => first = now,
            }
        }
    }

    /// Frees the slot that `ticket` needs if its last item is detached and finished.
    #[cold]
    fn make_room(&self, ticket: u64) -> bool {
        let before = ticket.wrapping_sub(u64::from(self.capacity()));
        let word = Word(self.word(ticket).load(Ordering::Acquire));
        if word.lap() == before >> self.shift && word.state() == State::Detached {
            self.sweep_detached(before);
        }
        self.word(ticket).load(Ordering::Acquire) == Word::free(ticket >> self.shift).0
    }

    #[inline]
    fn store_slot(&self, ticket: u64, image: &SlotImage, lap: u64) {
        let group = self.slots.group(ticket).as_ref();
        for (quarter, cells) in group.as_chunks::<2>().0.iter().enumerate().take(M::QUARTERS) {
            let [lo, hi] = image.quarter(quarter, lap & Self::LAP_MASK);
            let [lo_cell, hi_cell] = cells;
            lo_cell.store(lo, Ordering::Relaxed);
            // Release: a consumer that sees this tag sees the half before it. Pairs with its acquire.
            hi_cell.store(hi, Ordering::Release);
        }
    }

    pub(super) const LAP_MASK: u64 = (1 << M::LAP_BITS) - 1;

    /// The lap in a ticket's tags.
    #[inline]
    pub(super) fn tag_lap(&self, ticket: u64) -> u64 {
        (ticket >> self.shift).wrapping_add(1) & Self::LAP_MASK
    }

    #[inline]
    pub(super) fn word(&self, ticket: u64) -> &AtomicU64 {
        // SAFETY: the mask is the number of words less one.
        unsafe { self.words.get_unchecked((ticket & self.mask) as usize) }
    }

    /// What has become of a ticket. Believes a completion only if the private word is pending, the tag
    /// carries the ticket's lap, and the status ends an item.
    #[inline]
    pub(super) fn look(&self, ticket: u64) -> Result<Look, RingError> {
        loop {
            // Acquire: pairs with the stores that published the slot, saved a result, or moved the epoch.
            let word = Word(self.word(ticket).load(Ordering::Acquire));
            if word.lap() != ticket >> self.shift {
                return Err(if word.lap() > ticket >> self.shift {
                    RingError::AlreadyTaken { ticket }
                } else {
                    RingError::NotIssued { ticket }
                });
            }
            match word.state() {
                State::Free if ticket < self.head.load(Ordering::Relaxed) => return Ok(Look::Pending),
                State::Free => return Err(RingError::NotIssued { ticket }),
                State::Saved => return Ok(Look::Finished(word, self.load_saved(ticket))),
                State::Pending | State::Detached => {}
            }
            let incarnation = self.incarnations.current();
            if !word.is_of_epoch(incarnation.epoch) {
                // Published around a change of incarnation. Only the current one's completions count.
                self.swap(ticket, word, word.with_epoch(incarnation.epoch));
                continue;
            }
            let [lo_cell, hi_cell] = match incarnation.completions.group(ticket).as_ref() {
                [lo, hi] => [lo, hi],
                _ => return Ok(Look::Pending),
            };
            // The tag first, with acquire: pairs with the consumer's release, so that the result half is of
            // this lap at least. It is of no later lap if the word is still the same afterwards, because a
            // later lap begins by changing the word: every caller ends with a compare-and-swap from it.
            let hi = hi_cell.load(Ordering::Acquire);
            let expected = self.tag_lap(ticket);
            let lap = hi >> 48 & Self::LAP_MASK;
            if lap != expected {
                // Zero, or the lap before: not written yet. The future: no device may do that.
                let ahead = lap.wrapping_sub(expected) & Self::LAP_MASK;
                if ahead < 1 << (M::LAP_BITS - 1) && hi >> 32 != 0 {
                    if self.is_overtaken(ticket, word) {
                        continue;
                    }
                    return Err(self.violation(ticket, hi));
                }
                return Ok(Look::Pending);
            }
            if hi >> 32 & 0xFFFF == 0 {
                // A fresh region in a lap whose number is zero: status EMPTY.
                return if lap == 0 { Ok(Look::Pending) } else { Err(self.violation(ticket, hi)) };
            }
            let lo = lo_cell.load(Ordering::Relaxed);
            return match Completion::from_words([lo, hi]) {
                Ok(completion) => Ok(Look::Finished(word, completion)),
                Err(_) => Err(self.violation(ticket, hi)),
            };
        }
    }

    /// Whether the slot has moved on since `word` was read: what this thread took for the future is the
    /// present, because another thread has taken the ticket and the slot was used again.
    #[cold]
    fn is_overtaken(&self, ticket: u64, word: Word) -> bool {
        self.word(ticket).load(Ordering::Acquire) != word.0
    }

    #[cold]
    fn violation(&self, ticket: u64, hi: u64) -> RingError {
        self.violations.fetch_add(1, Ordering::Relaxed);
        let (tag, lap) = ((hi >> 32) as u32, self.tag_lap(ticket) as u16);
        tracing::warn!(ring = self.ring, ticket, tag, "completion refused");
        RingError::Violation { ring: self.ring, ticket, tag, lap }
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
    #[inline]
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
                        self.count_detached(ticket, completion);
                    }
                    freed
                }
            };
            if done {
                self.sweep_detached(ticket);
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
                Ok(Look::Finished(word, completion)) => {
                    let detached = word.state() == State::Detached;
                    let won = self.free(ticket, word);
                    if won && detached {
                        self.count_detached(ticket, completion);
                    } else if won {
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
        let from = self.oldest_possible(self.head());
        for ticket in from..self.head() {
            let word = Word(self.word(ticket).load(Ordering::Acquire));
            if word.lap() == ticket >> self.shift && word.state() == State::Detached {
                self.sweep_detached(ticket);
            }
        }
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

    /// Makes an owner of a name again.
    pub fn adopt(&self, ticket: RawTicket) -> Result<Ticket<'_, M>, RingError> {
        Ok(Ticket::new(self, self.own(ticket)?))
    }

    #[inline]
    fn own(&self, ticket: RawTicket) -> Result<u64, RingError> {
        if ticket.ring != self.id {
            return Err(RingError::Foreign { what: "ticket" });
        }
        Ok(ticket.position)
    }

    /// A look that treats a forgotten ticket as gone.
    #[inline]
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
        if !word.is_attached() {
            return self.swap(ticket, word, word.freed());
        }
        let range = self.attachments.as_ref().and_then(|attachments| {
            let cell = attachments.ranges.get((ticket & self.mask) as usize)?;
            Some((attachments, PackedRange(cell.load(Ordering::Relaxed))))
        });
        let freed = self.swap(ticket, word, word.freed());
        if let (true, Some((attachments, range))) = (freed, range) {
            attachments.arena.free_packed(range);
        }
        freed
    }

    /// Frees a detached ticket's slot if its item is finished.
    pub(super) fn sweep_detached(&self, ticket: u64) {
        if let Ok(Look::Finished(word, completion)) = self.look(ticket)
            && word.state() == State::Detached
            && self.free(ticket, word)
        {
            self.count_detached(ticket, completion);
        }
    }

    pub(super) fn count_detached(&self, ticket: u64, completion: Completion) {
        if completion.is_done() {
            self.detached_done.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.detached_faults.fetch_add(1, Ordering::Relaxed);
        if let Some(handler) = &self.on_detached_fault {
            handler(self.raw(ticket), completion);
        }
    }

    fn check_payloads(&self, items: usize, payloads: &[Option<ArenaRange>]) -> Result<(), RingError> {
        if payloads.len() != items {
            return Err(RingError::PayloadCount { payloads: payloads.len(), items });
        }
        let ours = |range: &ArenaRange| self.attachments.as_ref().is_some_and(|own| range.is_of(&own.arena));
        if payloads.iter().flatten().all(ours) {
            Ok(())
        } else {
            Err(RingError::Foreign { what: "arena range" })
        }
    }

    fn attach(&self, ticket: u64, range: Option<ArenaRange>) -> bool {
        let Some(range) = range else { return false };
        let cell = self.attachments.as_ref().and_then(|own| own.ranges.get((ticket & self.mask) as usize));
        let Some(cell) = cell else { return false };
        cell.store(range.into_packed().0, Ordering::Relaxed);
        true
    }
}
