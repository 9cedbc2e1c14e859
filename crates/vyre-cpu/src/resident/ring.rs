//! One ring as a kernel sees it: claiming by kind, and which tickets are complete.

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

use vyre_driver::layout::RingLayout;
use vyre_driver::protocol::{Status, opcode};
use vyre_driver::region::{ReadOnlyU64, SessionRegions};
use vyre_driver::ring::{Cancellations, Cells, Claims, MappedCells, RingConsumer, RingError, SlotImage};

/// What a consumer has to know of an item before it runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing.
    Plain,
    /// It waits for other tickets.
    Fence,
    /// It waits for everything, and is the last.
    Shutdown,
}

impl Kind {
    pub(super) fn of(image: &SlotImage) -> Kind {
        match image.opcode {
            opcode::BATCH_FENCE => Kind::Fence,
            opcode::SHUTDOWN if image.tenant == 0 => Kind::Shutdown,
            _ => Kind::Plain,
        }
    }
}

/// What a look at the head of a ring found.
pub(super) enum Head {
    /// Items claimed, all plain.
    Plain(Claims),
    /// A fence, claimed.
    Fence(Claims),
    /// A shutdown, left where it is: it holds back everything behind it.
    Shutdown,
    /// Nothing.
    Empty,
}

/// One ring of a running kernel.
pub(super) struct Ring {
    pub(super) index: u32,
    pub(super) consumer: RingConsumer,
    pub(super) cancellations: Cancellations,
    completions: MappedCells<AtomicU64, 2>,
    slots: MappedCells<ReadOnlyU64, 8>,
    /// The first ticket of this incarnation, and one bit for each of the next ones that is acknowledged.
    first: u64,
    skip: Vec<u64>,
    shift: u32,
    /// The shutdown is claimed; nothing else will be.
    closed: AtomicBool,
}

impl Ring {
    pub(super) fn new(regions: &SessionRegions, index: u32, layout: &RingLayout) -> Result<Ring, RingError> {
        let record = layout.start_record;
        let word = |offset| Ok(regions.h2d.word_u64(offset)?.load(Acquire));
        Ok(Ring {
            index,
            consumer: RingConsumer::new(regions, index)?,
            cancellations: Cancellations::new(regions, index)?,
            completions: MappedCells::<AtomicU64, 2>::writable(&regions.d2h, layout.completions)?,
            slots: MappedCells::<ReadOnlyU64, 8>::read_only(&regions.h2d, layout.slots)?,
            first: word(record.offset)?,
            skip: (record.offset + 8..record.offset + record.bytes)
                .step_by(8)
                .map(word)
                .collect::<Result<_, RingError>>()?,
            shift: layout.capacity.trailing_zeros(),
            closed: AtomicBool::new(false),
        })
    }

    /// Claims plain items in a row, or else a fence.
    pub(super) fn claim(&self, images: &mut [SlotImage]) -> Head {
        let mut refused = None;
        let claims = self.consumer.claim_while(images, |image| {
            let kind = Kind::of(image);
            refused = (kind != Kind::Plain).then_some(kind);
            kind == Kind::Plain && !self.is_closed()
        });
        if claims.len() > 0 {
            return Head::Plain(claims);
        }
        match refused {
            Some(Kind::Fence) => match self.claim_one(images, Kind::Fence) {
                Some(claims) => Head::Fence(claims),
                None => Head::Empty,
            },
            Some(Kind::Shutdown) if !self.closed.load(Relaxed) => Head::Shutdown,
            _ => Head::Empty,
        }
    }

    fn claim_one(&self, images: &mut [SlotImage], wanted: Kind) -> Option<Claims> {
        let one = images.get_mut(..1)?;
        let claims = self.consumer.claim_while(one, |image| Kind::of(image) == wanted && !self.is_closed());
        (claims.len() > 0).then_some(claims)
    }

    /// Claims a shutdown at the head, and makes sure that nobody claims anything after it.
    pub(super) fn claim_shutdown(&self, images: &mut [SlotImage]) -> Option<Claims> {
        self.closed.store(true, Relaxed);
        // Pairs with the fence in `is_closed`: whoever sees the cursor past the shutdown sees the flag.
        fence(Release);
        let one = images.get_mut(..1)?;
        let claims = self.consumer.claim_while(one, |image| Kind::of(image) == Kind::Shutdown);
        if claims.len() == 0 {
            // The host has acknowledged it without us.
            self.closed.store(false, Relaxed);
            return None;
        }
        Some(claims)
    }

    /// Asked after the cursor was read.
    fn is_closed(&self) -> bool {
        fence(Acquire);
        self.closed.load(Relaxed)
    }

    pub(super) fn capacity(&self) -> u64 {
        1 << self.shift
    }

    /// The first of the `count` tickets before `ticket` (0: all) that may be incomplete. A ticket as old as
    /// the ring is long has given its slot to a later one, so it is complete.
    pub(super) fn oldest_of(&self, ticket: u64, count: u32) -> u64 {
        let window = ticket.saturating_sub(self.capacity() - 1).max(self.first);
        if count == 0 { window } else { window.max(ticket.saturating_sub(u64::from(count))) }
    }

    /// Moves `next` over complete tickets; says whether it arrived at `end`.
    pub(super) fn pass_complete(&self, next: &mut u64, end: u64) -> bool {
        while *next < end && self.is_complete(*next) {
            *next += 1;
        }
        *next >= end
    }

    /// Whether a ticket that was published is complete, by this kernel or before it. Only for the last
    /// `capacity` tickets.
    fn is_complete(&self, ticket: u64) -> bool {
        let offset = ticket.wrapping_sub(self.first);
        let word = self.skip.get((offset / 64) as usize).copied().unwrap_or(0);
        if ticket < self.first || word >> (offset % 64) & 1 == 1 {
            return true;
        }
        let lap = (ticket >> self.shift) + 1;
        // How far a tag's lap, which has 16 bits, is ahead.
        let ahead = |tag: u64| (tag >> 48).wrapping_sub(lap) as u16;
        let [_, tag] = self.completions.group(ticket);
        // Acquire: what a fence's item reads is what the items before it wrote.
        let tag = tag.load(Acquire);
        let status = Status::from_word((tag >> 32) as u16);
        if matches!(status, Some(Status::Done | Status::Fault)) && ahead(tag) < 1 << 15 {
            return true;
        }
        // The host may have acknowledged the ticket without us, and reused its slot.
        let [_, tag, ..] = self.slots.group(ticket);
        (1..1 << 15).contains(&ahead(tag.load(Acquire)))
    }

    /// Whether everything claimed so far is complete.
    pub(super) fn is_drained(&self) -> bool {
        let end = self.consumer.tail();
        let mut next = self.oldest_of(end, 0);
        self.pass_complete(&mut next, end)
    }

    /// Whether there is something to claim.
    pub(super) fn is_ready(&self) -> bool {
        !self.closed.load(Relaxed) && self.consumer.is_ready()
    }
}
