//! The host's half of a ring: reserve, publish, poll, take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as StdAtomicU64, Ordering as StdOrdering};

use crossbeam_utils::CachePadded;

use super::memory::{Cells, MappedCells, Memory, Shared, StoreWord, laps};
use super::recovery::Incarnations;
use super::ticket::{RawTicket, Ticket, Tickets};
use super::word::{State, Word};
use super::{Completion, RingError, SlotImage};
use crate::arena::{Arena, ArenaRange, PackedRange};
use crate::layout::check_first_ticket;
use crate::region::SessionRegions;
use crate::sync::{AtomicU64, Ordering};
use crate::wait::Waiter;

/// How many tickets are looked at together: as many as are swept.
const AHEAD: usize = 64;

/// Called with every detached ticket that ended in a fault, on whatever thread noticed: one that submits, forgets,
/// reaps or counts. It must not submit, because a submission that finds more of them calls it again, and should not
/// panic: the others that were found with that one are counted then, and not told.
pub type DetachedHandler = Box<dyn Fn(RawTicket, Completion) + Send + Sync>;

/// The producer's half of a ring. Any number of threads use it at once.
pub struct RingProducer<M: Memory = Shared> {
    /// The next ticket.
    pub(super) head: CachePadded<AtomicU64>,
    /// Every ticket from the head up to it was seen free. Between a look at the head and the exchange that moves it no
    /// other word has to be looked at then: with several producers each would be a miss, and the exchange fail.
    pub(super) free: CachePadded<AtomicU64>,
    /// No ticket below it is unfinished; a hint that only grows.
    pub(super) swept: CachePadded<AtomicU64>,
    pub(super) words: Box<[AtomicU64]>,
    pub(super) slots: M::Slots,
    pub(super) incarnations: Incarnations<M>,
    /// Results of slots in state Saved: result, then code and status.
    pub(super) saved: Box<[[AtomicU64; 2]]>,
    pub(super) attachments: Option<Attachments>,
    pub(super) mask: u64,
    pub(super) shift: u32,
    pub(super) first: u64,
    pub(super) id: u64,
    pub(super) ring: u32,
    pub(super) detached_done: AtomicU64,
    pub(super) detached_faults: AtomicU64,
    pub(super) violations: AtomicU64,
    pub(super) on_detached_fault: Option<DetachedHandler>,
}

/// The arena, and the range that each slot's item owns.
pub(super) struct Attachments {
    pub(super) arena: Arc<Arena>,
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
        check_first_ticket(first)?;
        let indices = 0..u64::from(capacity);
        let producer: Self = RingProducer {
            head: CachePadded::new(AtomicU64::new(first)),
            free: CachePadded::new(AtomicU64::new(first)),
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
                let slot = producer.slots.group(ticket);
                Self::store_slot(slot, &SlotImage::default(), producer.tag_lap(ticket).wrapping_sub(1));
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
        Ok(Ticket::new(self, self.publish_one(image, State::Pending)?))
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
        self.publish_one(image, State::Detached)
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
    fn publish(
        &self,
        images: &[SlotImage],
        payloads: Option<&mut [Option<ArenaRange>]>,
        state: State,
    ) -> Result<u64, RingError> {
        if images.len() > self.words.len() {
            return Err(RingError::BatchTooLarge { len: images.len(), capacity: self.capacity() });
        }
        let flags = images.iter().fold(0, |all, image| all | image.flags);
        SlotImage { flags, ..SlotImage::default() }.check()?;
        if let Some(payloads) = &payloads {
            self.check_payloads(images.len(), payloads)?;
        }
        let first = self.reserve(images.len())?;
        let attached = payloads.is_some();
        for (ticket, payload) in (first..).zip(payloads.into_iter().flatten()) {
            self.attach(ticket, payload.take());
        }
        let epoch = self.incarnations.current().epoch;
        let mut images = images.iter();
        for (lap, part) in laps(first, images.len(), self.shift) {
            let word = Word::new(lap, state, epoch, attached);
            let slots = self.slots.groups().get(part.clone()).unwrap_or_default();
            let words = self.words.get(part).unwrap_or_default();
            for ((slot, cell), image) in slots.iter().zip(words).zip(&mut images) {
                Self::store_slot(slot, image, lap.wrapping_add(1));
                // After the slot, so that whoever sees the state sees a slot that its producer is done with.
                // Release: pairs with the load in `look` of a thread that was not handed the ticket.
                cell.store(word.0, Ordering::Release);
            }
        }
        Ok(first)
    }

    /// [`RingProducer::publish`] for one item without a payload.
    #[inline(always)]
    fn publish_one(&self, image: &SlotImage, state: State) -> Result<u64, RingError> {
        image.check()?;
        let mut ticket = self.head.load(Ordering::Relaxed);
        loop {
            // Orderings: as in `reserve`.
            if self.free.load(Ordering::Acquire) <= ticket && self.look_ahead(ticket, 1).is_some() {
                ticket = self.make_room(ticket, ticket, 1)?;
                continue;
            }
            let next = ticket.wrapping_add(1);
            match self.head.compare_exchange_weak(ticket, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => ticket = now,
            }
        }
        let lap = ticket >> self.shift;
        Self::store_slot(self.slots.group(ticket), image, lap.wrapping_add(1));
        let word = Word::new(lap, state, self.incarnations.current().epoch, false);
        // Release: as in `publish`.
        self.word(ticket).store(word.0, Ordering::Release);
        Ok(ticket)
    }

    /// Takes `len` tickets in a row out of the cursor, or says which ticket is in the way.
    fn reserve(&self, len: usize) -> Result<u64, RingError> {
        let mut first = self.head.load(Ordering::Relaxed);
        loop {
            let next = first.wrapping_add(len as u64);
            // Acquire: pairs with the release in `look_ahead` of whoever saw these tickets free.
            if self.free.load(Ordering::Acquire) < next
                && let Some(ticket) = self.look_ahead(first, len)
            {
                first = self.make_room(first, ticket, next.wrapping_sub(ticket))?;
                continue;
            }
            // Relaxed: the cursor guards nothing; what it hands out is guarded by the words that were read, and
            // a word that is free for a ticket stays so until the ticket is handed out.
            match self.head.compare_exchange_weak(first, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(first),
                Err(now) => first = now,
            }
        }
    }

    /// Looks whether `len` tickets from `first` on are free, and some behind them; answers with the first of the `len`
    /// that is not.
    #[cold]
    fn look_ahead(&self, first: u64, len: usize) -> Option<u64> {
        let looks = len.max(AHEAD.min(self.words.len()));
        let seen = self.first_not_free(first, looks).unwrap_or(first.wrapping_add(looks as u64));
        // Release: whoever relies on it comes after those who freed the slots, as this thread does.
        self.free.fetch_max(seen, Ordering::Release);
        (seen.wrapping_sub(first) < len as u64).then_some(seen)
    }

    #[inline]
    fn first_not_free(&self, first: u64, len: usize) -> Option<u64> {
        let mut ticket = first;
        for (lap, part) in laps(first, len, self.shift) {
            let free = Word::free(lap).0;
            for cell in self.words.get(part).unwrap_or_default() {
                // Acquire: pairs with the release of the thread that freed the slot, so that our stores come
                // after its loads of the completion, and after the consumer's loads of the slot.
                if cell.load(Ordering::Acquire) != free {
                    return Some(ticket);
                }
                ticket = ticket.wrapping_add(1);
            }
        }
        None
    }

    /// What to do about a `ticket` whose slot is not free for it, the first of `wanted` in a row: answers where to
    /// try again, because the slot's last item was detached and is finished, or because another thread has moved
    /// the cursor.
    #[cold]
    fn make_room(&self, first: u64, ticket: u64, wanted: u64) -> Result<u64, RingError> {
        let oldest_untaken = ticket.wrapping_sub(u64::from(self.capacity()));
        let word = Word(self.word(ticket).load(Ordering::Acquire));
        if word.lap() == oldest_untaken >> self.shift && word.state() == State::Detached {
            self.sweep_run(oldest_untaken, wanted);
        }
        let now = self.head.load(Ordering::Relaxed);
        let is_free = self.word(ticket).load(Ordering::Acquire) == Word::free(ticket >> self.shift).0;
        if is_free || now != first { Ok(now) } else { Err(RingError::WouldBlock { oldest_untaken }) }
    }

    #[inline(always)]
    fn store_slot(slot: &<M::Slots as Cells>::Group, image: &SlotImage, lap: u64) {
        let words = image.words(lap & Self::LAP_MASK);
        let cells = slot.as_ref().as_chunks::<2>().0;
        for ([lo, hi], [lo_cell, hi_cell]) in words.into_iter().zip(cells).take(M::QUARTERS) {
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
        // SAFETY: the mask is the number of words less one, a power of two less one.
        unsafe { self.words.get_unchecked((ticket & self.mask) as usize) }
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

    /// Keeps what the item of a reserved ticket owns; the word that publishes it says that there is something
    /// to look for.
    fn attach(&self, ticket: u64, range: Option<ArenaRange>) {
        let packed = range.map_or(PackedRange::NONE, ArenaRange::into_packed);
        if let Some(cell) = self.attachment(ticket) {
            cell.store(packed.0, Ordering::Relaxed);
        }
    }

    pub(super) fn attachment(&self, ticket: u64) -> Option<&AtomicU64> {
        self.attachments.as_ref()?.ranges.get((ticket & self.mask) as usize)
    }
}
