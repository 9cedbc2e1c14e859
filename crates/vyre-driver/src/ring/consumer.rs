//! The consumers' half of a ring: claim in ticket order, complete in any.

use std::sync::atomic::{AtomicU64 as StdAtomicU64, Ordering as StdOrdering};

use crossbeam_utils::CachePadded;

use super::image::SlotWords;
use super::memory::{Cells, LoadWord, MappedCells, Memory, Shared, StoreWord, laps};
use super::{Completion, RingError, SlotImage};
use crate::layout::check_first_ticket;
use crate::region::SessionRegions;
use crate::sync::{AtomicU64, Ordering};

/// A consumer of a ring. Any number of threads claim and complete through it at once.
pub struct RingConsumer<M: Memory = Shared> {
    /// The next ticket to claim.
    tail: CachePadded<AtomicU64>,
    slots: M::SlotsView,
    completions: M::Completions,
    shift: u32,
    capacity: u32,
    first: u64,
    /// Tickets from here on carry no skip mark.
    skip_end: u64,
    skip: Box<[u64]>,
    id: u64,
}

/// An item claimed and not yet completed: the right, and the duty, to complete it once. If it is dropped,
/// the item is never acknowledged by this consumer.
#[derive(Debug)]
#[must_use = "an item that is claimed and not completed is never acknowledged"]
pub struct ClaimedTicket {
    consumer: u64,
    position: u64,
}

impl ClaimedTicket {
    /// The position in the ring.
    pub fn position(&self) -> u64 {
        self.position
    }
}

/// A claimed item.
#[derive(Debug)]
#[must_use = "an item that is claimed and not completed is never acknowledged"]
pub struct Claimed {
    /// To complete it with.
    pub ticket: ClaimedTicket,
    /// What to do.
    pub image: SlotImage,
}

/// Items claimed together, in ticket order and in a row.
#[derive(Debug)]
#[must_use = "an item that is claimed and not completed is never acknowledged"]
pub struct Claims {
    consumer: u64,
    next: u64,
    left: usize,
}

impl Claims {
    /// The position of the first item left.
    pub fn first(&self) -> u64 {
        self.next
    }
}

impl Iterator for Claims {
    type Item = ClaimedTicket;

    #[inline]
    fn next(&mut self) -> Option<ClaimedTicket> {
        self.left = self.left.checked_sub(1)?;
        let ticket = ClaimedTicket { consumer: self.consumer, position: self.next };
        self.next = self.next.wrapping_add(1);
        Some(ticket)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Claims {}

/// What is in a slot for the ticket that looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Published,
    Unpublished,
    /// The ticket was acknowledged without this consumer, and its slot reused.
    Past,
}

static NEXT_ID: StdAtomicU64 = StdAtomicU64::new(1);

impl RingConsumer {
    /// A consumer of one ring of a session, beginning where the ring's start record says.
    pub fn new(regions: &SessionRegions, ring: u32) -> Result<RingConsumer, RingError> {
        let layout = *regions.layout.ring(ring)?;
        let slots = MappedCells::<_, 8>::read_only(&regions.h2d, layout.slots)?;
        let completions = MappedCells::<_, 2>::writable(&regions.d2h, layout.completions)?;
        let at = layout.start_record.offset;
        let first = regions.h2d.word_u64(at)?.load(Ordering::Acquire);
        check_first_ticket(first)?;
        let skip = (at + 8..at + layout.start_record.bytes)
            .step_by(8)
            .map(|offset| Ok(regions.h2d.word_u64(offset)?.load(Ordering::Relaxed)))
            .collect::<Result<Vec<u64>, RingError>>()?;
        Ok(RingConsumer::with_memory(layout.capacity, slots, completions, first, skip))
    }
}

impl<M: Memory> RingConsumer<M> {
    pub(super) fn with_memory(
        capacity: u32,
        slots: M::SlotsView,
        completions: M::Completions,
        first: u64,
        skip: Vec<u64>,
    ) -> Self {
        let marked = skip.iter().rposition(|&word| word != 0);
        let marks =
            marked.and_then(|at| Some((at as u64 + 1) * 64 - u64::from(skip.get(at)?.leading_zeros())));
        RingConsumer {
            tail: CachePadded::new(AtomicU64::new(first)),
            slots,
            completions,
            shift: capacity.trailing_zeros(),
            capacity,
            first,
            skip_end: first.wrapping_add(marks.unwrap_or(0)),
            skip: skip.into_boxed_slice(),
            id: NEXT_ID.fetch_add(1, StdOrdering::Relaxed),
        }
    }

    /// Slots of the ring.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The next ticket to claim.
    pub fn tail(&self) -> u64 {
        self.tail.load(Ordering::Relaxed)
    }

    /// Tickets claimed or skipped since the start.
    pub fn claimed(&self) -> u64 {
        self.tail().wrapping_sub(self.first)
    }

    /// Whether the next ticket can be claimed now: what a consumer looks at before it parks.
    pub fn is_ready(&self) -> bool {
        let ticket = self.tail();
        let (slot, mut image) = (self.slots.group(ticket), SlotImage::default());
        self.is_marked(ticket) || Self::read(slot, ticket >> self.shift, &mut image) != Slot::Unpublished
    }

    /// The next item, if one is published.
    #[inline(always)]
    pub fn claim(&self) -> Option<Claimed> {
        let mut image = SlotImage::default();
        let mut ticket = self.tail.load(Ordering::Relaxed);
        loop {
            let slot = if ticket < self.skip_end && self.is_marked(ticket) {
                Slot::Past
            } else {
                Self::read(self.slots.group(ticket), ticket >> self.shift, &mut image)
            };
            if slot == Slot::Unpublished {
                return None;
            }
            // Orderings: as in `claim_while`.
            let next = ticket.wrapping_add(1);
            match self.tail.compare_exchange_weak(ticket, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if slot == Slot::Published => {
                    let ticket = ClaimedTicket { consumer: self.id, position: ticket };
                    return Some(Claimed { ticket, image });
                }
                Ok(_) => ticket = next,
                Err(now) => ticket = now,
            }
        }
    }

    /// Claims as many items in a row as are published and fit.
    pub fn claim_batch(&self, images: &mut [SlotImage]) -> Claims {
        self.claim_while(images, |_| true)
    }

    /// Claims items in a row as long as `wanted` says so, and leaves the first one it does not want to the
    /// next claim. `wanted` may see an item more than once: another consumer may be faster.
    #[inline]
    pub fn claim_while(
        &self,
        images: &mut [SlotImage],
        mut wanted: impl FnMut(&SlotImage) -> bool,
    ) -> Claims {
        let mut first = self.tail.load(Ordering::Relaxed);
        loop {
            let (count, skip) = self.read_in_a_row(first, images, &mut wanted);
            if count == 0 && !skip {
                return Claims { consumer: self.id, next: first, left: 0 };
            }
            let next = first.wrapping_add(if skip { 1 } else { count as u64 });
            // Relaxed: the slots were read with acquire, and what was read of them is read before the
            // completion that lets the producer reuse them. The cursor itself guards nothing. It fails only
            // because another consumer has succeeded.
            match self.tail.compare_exchange_weak(first, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) if !skip => return Claims { consumer: self.id, next: first, left: count },
                Ok(_) => first = next,
                Err(now) => first = now,
            }
        }
    }

    /// Copies published and wanted items from `first` on, and says how many, or that `first` is to be
    /// skipped.
    #[inline]
    fn read_in_a_row(
        &self,
        first: u64,
        images: &mut [SlotImage],
        wanted: &mut impl FnMut(&SlotImage) -> bool,
    ) -> (usize, bool) {
        let most = images.len().min(self.capacity as usize);
        let most = if first < self.skip_end { self.unmarked(first, most) } else { most };
        if most == 0 {
            return (0, !images.is_empty());
        }
        let mut count = 0;
        let mut images = images.iter_mut();
        for (lap, part) in laps(first, most, self.shift) {
            let slots = self.slots.groups().get(part).unwrap_or_default();
            for (slot, image) in slots.iter().zip(&mut images) {
                match Self::read(slot, lap, image) {
                    Slot::Published if wanted(image) => count += 1,
                    // What is to be skipped is skipped by a step of its own.
                    slot => return (count, slot == Slot::Past && count == 0),
                }
            }
        }
        (count, false)
    }

    /// How many of the next tickets carry no skip mark.
    #[cold]
    fn unmarked(&self, first: u64, most: usize) -> usize {
        (first..).take(most).position(|ticket| self.is_marked(ticket)).unwrap_or(most)
    }

    /// Writes the completion of a claimed item. Completing twice is not possible: the claim is used up.
    #[inline]
    pub fn complete(&self, ticket: ClaimedTicket, completion: Completion) -> Result<(), RingError> {
        if ticket.consumer != self.id {
            return Err(RingError::Foreign { what: "claimed ticket" });
        }
        let lap = (ticket.position >> self.shift).wrapping_add(1) & Self::LAP_MASK;
        let [lo, hi] = completion.words(lap);
        if let [lo_cell, hi_cell] = self.completions.group(ticket.position).as_ref() {
            lo_cell.store(lo, Ordering::Relaxed);
            // Release: whoever sees this tag sees the result, and everything that the item wrote; and our
            // loads of the slot come before its reuse. Pairs with the producer's acquire.
            hi_cell.store(hi, Ordering::Release);
        }
        Ok(())
    }

    const LAP_MASK: u64 = (1 << M::LAP_BITS) - 1;

    fn is_marked(&self, ticket: u64) -> bool {
        let offset = ticket.wrapping_sub(self.first);
        self.skip.get((offset / 64) as usize).is_some_and(|word| word >> (offset % 64) & 1 == 1)
    }

    /// Copies what is in a slot, if every quarter is of the lap.
    #[inline(always)]
    fn read(slot: &<M::SlotsView as Cells>::Group, lap: u64, image: &mut SlotImage) -> Slot {
        let expected = lap.wrapping_add(1) & Self::LAP_MASK;
        let cells = slot.as_ref().as_chunks::<2>().0;
        let mut words = SlotWords::default();
        let mut difference = 0;
        for ([_, hi], [_, hi_cell]) in words.iter_mut().zip(cells).take(M::QUARTERS) {
            // The tag first, with acquire: pairs with the producer's release, so that the other half is of
            // this lap at least. It is of no later lap if the claim that follows succeeds, because the slot
            // is reused only after the ticket is completed, and so after it was claimed.
            *hi = hi_cell.load(Ordering::Acquire);
            difference |= *hi >> 48 ^ expected;
        }
        if difference != 0 {
            return Self::not_published(slot, expected);
        }
        for ([lo, _], [lo_cell, _]) in words.iter_mut().zip(cells).take(M::QUARTERS) {
            *lo = lo_cell.load(Ordering::Relaxed);
        }
        image.set_words(&words);
        Slot::Published
    }

    /// Whether a slot that was not of the expected lap is of a later one. It looks again, so that the words
    /// of the hot path need not be in memory.
    #[cold]
    fn not_published(slot: &<M::SlotsView as Cells>::Group, expected: u64) -> Slot {
        let tags = slot.as_ref().as_chunks::<2>().0.iter().take(M::QUARTERS);
        let ahead = |[_, hi]: &[<M::SlotsView as Cells>::Word; 2]| {
            (hi.load(Ordering::Acquire) >> 48).wrapping_sub(expected) & Self::LAP_MASK
        };
        match tags.map(ahead).find(|&ahead| ahead != 0) {
            Some(ahead) if ahead < 1 << (M::LAP_BITS - 1) => Slot::Past,
            _ => Slot::Unpublished,
        }
    }
}
