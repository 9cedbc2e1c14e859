//! Cancellation: the host's wish that an item not begin, and the consumer's look at it.
//!
//! Each slot has a double word beside it, in h2d: one more than the last ticket of it that the host would rather not see
//! begun. A word for all rings says whether any wish was ever made, so that nobody looks at the others before. A wish is
//! not an answer: the consumer that honours it completes the item as it completes any other, and one that had begun the
//! item completes it with whatever comes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::RingError;
use crate::layout::{ANY_CANCELLATION, CANCELLATION_BYTES, RingLayout};
use crate::region::{SessionRegions, SharedRegion};

/// The wishes about one ring.
pub struct Cancellations {
    h2d: Arc<SharedRegion>,
    first_byte: u64,
    capacity: u64,
}

impl Cancellations {
    /// Those of one ring of a session. The regions may be either side's.
    pub fn new(regions: &SessionRegions, ring: u32) -> Result<Cancellations, RingError> {
        let RingLayout { capacity, cancellations, .. } = *regions.layout.ring(ring)?;
        // All words are inside, or the first look says so.
        regions.h2d.word_u64(cancellations.offset + cancellations.bytes - CANCELLATION_BYTES)?;
        regions.h2d.word_u32(ANY_CANCELLATION)?;
        Ok(Cancellations {
            h2d: Arc::clone(&regions.h2d),
            first_byte: cancellations.offset,
            capacity: capacity.into(),
        })
    }

    fn at(&self, ticket: u64) -> u64 {
        self.first_byte + (ticket & (self.capacity - 1)) * CANCELLATION_BYTES
    }

    /// Wishes that the item of a ticket not begin. About a ticket that has its answer it means nothing.
    ///
    /// # Errors
    ///
    /// [`RingError::ReadOnly`] on the consumer's side.
    pub fn ask(&self, ticket: u64) -> Result<(), RingError> {
        // The greatest: a thread that is late does not take the wish about a later ticket of the slot back.
        let word = self.h2d.atomic_u64(self.at(ticket))?;
        word.fetch_max(ticket.wrapping_add(1), Ordering::Relaxed);
        // Release: whoever sees that there are wishes sees this one.
        self.h2d.atomic_u32(ANY_CANCELLATION)?.store(1, Ordering::Release);
        Ok(())
    }

    /// Whether there has been any wish about any ring: nearly always not, and then nothing else need be asked.
    #[inline]
    pub fn any(&self) -> bool {
        // Acquire: pairs with the release in `ask`.
        self.h2d.word_u32(ANY_CANCELLATION).is_ok_and(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Whether the host wishes that this ticket's item not begin.
    pub fn is_asked(&self, ticket: u64) -> bool {
        let word = self.h2d.word_u64(self.at(ticket));
        word.is_ok_and(|word| word.load(Ordering::Relaxed) == ticket.wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::RegionConfig;

    #[test]
    fn a_wish_is_about_one_ticket_of_one_ring() {
        let config = RegionConfig { rings: vec![4, 1], ..RegionConfig::new(1) };
        let regions = SessionRegions::create(&config).expect("regions");
        let [first, second] = [0, 1].map(|ring| Cancellations::new(&regions, ring).expect("a ring"));
        assert!(!first.any() && !first.is_asked(0));
        first.ask(6).expect("the host's side");
        assert!(first.any() && second.any());
        let asked: Vec<u64> = (0..12).filter(|ticket| first.is_asked(*ticket)).collect();
        assert_eq!((asked, second.is_asked(6)), (vec![6], false));
        // The slot's next ticket, and then a thread that comes late with the one before.
        first.ask(10).expect("the host's side");
        first.ask(6).expect("the host's side");
        assert!(first.is_asked(10) && !first.is_asked(6));
        second.ask(0).expect("the host's side");
        assert!(second.is_asked(0) && !second.is_asked(1));
        assert!(Cancellations::new(&regions, 2).is_err());
    }
}
