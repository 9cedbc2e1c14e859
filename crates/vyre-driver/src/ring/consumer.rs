//! The consumers' half of a ring: claim in ticket order, complete in any.

use std::sync::atomic::{AtomicU64 as StdAtomicU64, Ordering as StdOrdering};

use crossbeam_utils::CachePadded;

use super::memory::{Cells, LoadWord, MappedCells, Memory, Shared, StoreWord};
use super::{Completion, RingError, SlotImage};
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
enum Slot {
    Published(SlotImage),
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
        self.is_marked(ticket) || !matches!(self.read(ticket), Slot::Unpublished)
    }

    /// The next item, if one is published.
    #[inline]
    pub fn claim(&self) -> Option<Claimed> {
        let mut images = [SlotImage::default()];
        let ticket = self.claim_while(&mut images, |_| true).next()?;
        let [image] = images;
        Some(Claimed { ticket, image })
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
            let (mut count, mut skip) = (0, false);
            for image in images.iter_mut() {
                let ticket = first.wrapping_add(count as u64);
                if ticket < self.skip_end && self.is_marked(ticket) {
                    skip = count == 0;
                    break;
                }
                match self.read(ticket) {
                    Slot::Published(found) if wanted(&found) => *image = found,
                    Slot::Published(_) | Slot::Unpublished => break,
                    Slot::Past => {
                        skip = count == 0;
                        break;
                    }
                }
                count += 1;
            }
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

    #[inline]
    fn read(&self, ticket: u64) -> Slot {
        let expected = (ticket >> self.shift).wrapping_add(1) & Self::LAP_MASK;
        let group = self.slots.group(ticket).as_ref();
        let mut image = SlotImage::default();
        for (quarter, [lo, hi]) in group.as_chunks::<2>().0.iter().enumerate().take(M::QUARTERS) {
            // The tag first, with acquire: pairs with the producer's release, so that the other half is of
            // this lap at least. It is of no later lap if the claim that follows succeeds, because the slot
            // is reused only after the ticket is completed, and so after it was claimed.
            let hi = hi.load(Ordering::Acquire);
            let lap = hi >> 48 & Self::LAP_MASK;
            if lap != expected {
                let ahead = lap.wrapping_sub(expected) & Self::LAP_MASK;
                return if ahead < 1 << (M::LAP_BITS - 1) { Slot::Past } else { Slot::Unpublished };
            }
            image.set_quarter(quarter, [lo.load(Ordering::Relaxed), hi]);
        }
        Slot::Published(image)
    }
}
