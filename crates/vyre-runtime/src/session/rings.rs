//! The rings of a session: which of them an item goes to, and how its ticket is told from those of another.
//!
//! | rings | first | second | third |
//! |---|---|---|---|
//! | 1 | every item | | |
//! | 2 | CRITICAL, HIGH | NORMAL, LOW, IDLE | |
//! | 3 | CRITICAL, HIGH | NORMAL | LOW, IDLE |
//!
//! Inside a session a ticket is its *key*: the ring in the top byte, the position in that ring below it. So the keys of
//! the first ring, which is the only one of most sessions, are positions, and tickets in a row have keys in a row.

use std::sync::Arc;

use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{Cancellations, RawTicket, RingError, RingProducer, SlotImage};

use crate::descriptor::Priority;
use crate::error::MegakernelError;

/// Rings that a session may have.
pub(super) const MAX_RINGS: u32 = 3;

/// Where the ring begins in a key. Positions have 53 bits: in-flight words hold no more.
const RING_SHIFT: u32 = 56;

/// The ring in a ticket's key: 0, the most urgent one, in a session of one ring.
pub const fn ring_of(key: u64) -> u32 {
    (key >> RING_SHIFT) as u32
}

/// The position in its ring in a ticket's key: the key itself in a session of one ring.
pub const fn position_of(key: u64) -> u64 {
    key & ((1 << RING_SHIFT) - 1)
}

/// The key of a position in a ring.
pub(crate) const fn key_of(ring: u32, position: u64) -> u64 {
    (ring as u64) << RING_SHIFT | position
}

/// What a ticket is called in messages.
pub(crate) fn name_of(key: u64) -> String {
    match ring_of(key) {
        0 => format!("ticket {key}"),
        ring => format!("ticket {} of ring {ring}", position_of(key)),
    }
}

/// The ring of items of a priority, of so many.
const fn ring_for(priority: Priority, rings: u32) -> u32 {
    match (priority, rings) {
        (_, 0 | 1) | (Priority::Critical | Priority::High, _) => 0,
        (Priority::Low | Priority::Idle, 3..) => 2,
        _ => 1,
    }
}

/// The next ticket of each ring at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads([u64; MAX_RINGS as usize]);

impl Heads {
    #[cfg(test)]
    pub(super) const fn new(heads: [u64; MAX_RINGS as usize]) -> Heads {
        Heads(heads)
    }

    /// Whether a ticket had been issued.
    pub(super) fn cover(&self, key: u64) -> bool {
        self.0.get(ring_of(key) as usize).is_some_and(|head| position_of(key) < *head)
    }

    /// How many tickets had been issued. It grows with every one.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().fold(0, |all, head| all.wrapping_add(*head))
    }

    /// The next position of a ring.
    pub(super) fn of(&self, ring: u32) -> u64 {
        self.0.get(ring as usize).copied().unwrap_or(0)
    }
}

/// The producers of all rings, the most urgent one first.
pub(super) struct Rings {
    /// By itself, so that a session of one ring pays for no look at a list.
    first: RingProducer,
    others: Box<[RingProducer]>,
    /// Which items are not to begin, ring by ring.
    cancellations: Box<[Arc<Cancellations>]>,
}

impl Rings {
    /// The rings of some regions, each with the producer that the caller makes.
    pub(super) fn new(
        regions: &SessionRegions,
        make: impl Fn(u32, &Arc<Cancellations>) -> Result<RingProducer, RingError>,
    ) -> Result<Rings, RingError> {
        let cancellations = (0..regions.layout.rings().len() as u32)
            .map(|ring| Cancellations::new(regions, ring).map(Arc::new))
            .collect::<Result<Box<[_]>, _>>()?;
        let mut producers = (0..).zip(&cancellations).map(|(ring, wishes)| make(ring, wishes));
        let first = producers.next().unwrap_or(Err(RingError::NoSuchRing { ring: 0, rings: 0 }))?;
        let others = producers.collect::<Result<_, _>>()?;
        Ok(Rings { first, others, cancellations })
    }

    pub(super) fn len(&self) -> u32 {
        1 + self.others.len() as u32
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RingProducer> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Slots of each ring.
    pub(super) fn capacity(&self) -> u32 {
        self.first.capacity()
    }

    /// The ring that items go to, which is one for all of them: fences count in it.
    #[inline]
    pub(super) fn for_images(&self, images: &[SlotImage]) -> Result<&RingProducer, MegakernelError> {
        if self.others.is_empty() { Ok(&self.first) } else { self.for_priorities(images) }
    }

    fn for_priorities(&self, images: &[SlotImage]) -> Result<&RingProducer, MegakernelError> {
        let priority = |image: &SlotImage| Priority::of_flags(image.flags);
        let ring = |image: &SlotImage| ring_for(priority(image), self.len());
        let Some((first, rest)) = images.split_first() else { return Ok(&self.first) };
        match rest.iter().find(|image| ring(image) != ring(first)) {
            None => Ok(self.get(ring(first))),
            Some(other) => {
                Err(MegakernelError::MixedPriorities { first: priority(first), other: priority(other) })
            }
        }
    }

    /// One ring.
    pub(super) fn get(&self, ring: u32) -> &RingProducer {
        let other = ring.checked_sub(1).and_then(|place| self.others.get(place as usize));
        other.unwrap_or(&self.first)
    }

    /// The ring that a ticket is of; of a ticket of another session it is the first one, which refuses it.
    #[inline]
    pub(super) fn of(&self, ticket: RawTicket) -> &RingProducer {
        self.others.iter().find(|ring| ring.owns(ticket)).unwrap_or(&self.first)
    }

    /// A ticket's key.
    #[inline]
    pub(super) fn key(&self, ticket: RawTicket) -> u64 {
        key_of(self.of(ticket).ring(), ticket.position())
    }

    /// The ticket of a key.
    #[inline]
    pub(super) fn raw(&self, key: u64) -> RawTicket {
        self.get(ring_of(key)).raw(position_of(key))
    }

    /// The next tickets.
    pub(super) fn heads(&self) -> Heads {
        let mut heads = [0; MAX_RINGS as usize];
        heads.iter_mut().zip(self.iter()).for_each(|(head, ring)| *head = ring.head());
        Heads(heads)
    }

    /// The keys of the tickets issued so far that may still be in use.
    pub(super) fn in_use(&self) -> impl Iterator<Item = u64> + use<> {
        let (heads, capacity) = (self.heads(), u64::from(self.capacity()));
        (0..self.len()).flat_map(move |ring| {
            let head = heads.of(ring);
            key_of(ring, head.saturating_sub(capacity))..key_of(ring, head)
        })
    }

    /// Whether a ticket issued may still be in use.
    pub(super) fn may_be_in_use(&self, key: u64) -> bool {
        let head = self.get(ring_of(key)).head();
        position_of(key) >= head.saturating_sub(self.capacity().into())
    }

    /// Where a ticket's slot is in a list of the slots of all rings.
    pub(super) fn place(&self, key: u64) -> usize {
        let capacity = u64::from(self.capacity());
        (u64::from(ring_of(key)) * capacity + (key & capacity.wrapping_sub(1))) as usize
    }

    /// Wishes that an item not begin.
    pub(super) fn cancel(&self, key: u64) -> Result<(), RingError> {
        let wishes = self.cancellations.get(ring_of(key) as usize);
        wishes.map_or(Ok(()), |wishes| wishes.ask(position_of(key)))
    }

    /// Whether a ticket has been acknowledged.
    pub(super) fn is_acknowledged(&self, key: u64) -> bool {
        self.get(ring_of(key)).is_acknowledged(position_of(key))
    }

    /// Calls `each` for every ticket not acknowledged, ring by ring and in order, with the item.
    pub(super) fn for_each_unacknowledged(&self, mut each: impl FnMut(u64, SlotImage)) {
        for ring in self.iter() {
            ring.for_each_unacknowledged(|position, image| each(key_of(ring.ring(), position), image));
        }
    }

    /// Turns to the d2h region of the next incarnation.
    pub(super) fn rebind_d2h(&self, regions: &SessionRegions) -> Result<(), RingError> {
        self.iter().try_for_each(|ring| ring.rebind_d2h(regions))
    }

    /// Writes where the next incarnation begins: one that runs a single ticket, if that is named.
    pub(super) fn write_start_records(
        &self,
        regions: &SessionRegions,
        alone: Option<u64>,
    ) -> Result<(), RingError> {
        self.iter().try_for_each(|ring| match alone {
            None => ring.write_start_record(regions).map(drop),
            Some(key) if ring_of(key) == ring.ring() => {
                ring.write_start_record_of_one(regions, position_of(key))
            }
            Some(_) => ring.write_start_record_of_none(regions),
        })
    }

    /// Frees what nobody holds a ticket of and is finished.
    pub(super) fn sweep_detached(&self) {
        self.iter().for_each(RingProducer::sweep_detached);
    }
}

/// Refuses a number of rings that no session has.
pub(super) fn check_count(rings: u32) -> Result<(), MegakernelError> {
    if (1..=MAX_RINGS).contains(&rings) {
        return Ok(());
    }
    Err(MegakernelError::InvalidGeometry {
        what: "the number of rings of a session",
        got: rings.into(),
        expected: format!("from 1 to {MAX_RINGS}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_first_ring_are_positions_and_all_are_taken_apart_again() {
        for (ring, position) in [(0, 0), (0, (1 << 53) - 1), (1, 0), (2, (1 << 53) - 1)] {
            let key = key_of(ring, position);
            assert_eq!((ring_of(key), position_of(key)), (ring, position));
            assert_eq!(key == position, ring == 0);
        }
        assert_eq!(name_of(key_of(0, 7)), "ticket 7");
        assert_eq!(name_of(key_of(2, 7)), "ticket 7 of ring 2");
    }

    #[test]
    fn priorities_go_to_the_rings_that_the_protocol_says() {
        let protocol = include_str!("../../../../docs/protocol.md");
        for bits in 0..5 {
            let priority = Priority::of_flags(bits);
            assert_eq!((priority as u16, ring_for(priority, 1)), (bits, 0));
            let name = format!("{priority:?}").to_uppercase();
            let row = format!("| {bits} | {name} | {} | {} |", ring_for(priority, 2), ring_for(priority, 3));
            assert!(protocol.contains(&row), "docs/protocol.md has no `{row}`");
        }
        assert_eq!([5, 6, 7].map(Priority::of_flags), [Priority::Normal; 3]);
    }
}
