//! Tickets: who owns the answer to an item.

use std::fmt;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use super::memory::{Memory, Shared};
use super::producer::RingProducer;
use super::{Completion, RingError};
use crate::wait::WaitStrategy;

/// A ticket's name: which ring of this process, and which position. Copying it copies the name only; the
/// first take, through whichever copy, spends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RawTicket {
    pub(super) ring: u64,
    pub(super) position: u64,
}

impl RawTicket {
    /// The position in the ring.
    pub const fn position(self) -> u64 {
        self.position
    }
}

/// An item that was submitted and not yet taken. Dropping it forgets the item: its slot is freed when it is
/// finished, and a fault goes to the ring's detached handler.
#[must_use = "a dropped ticket forgets its item"]
pub struct Ticket<'a, M: Memory = Shared> {
    producer: &'a RingProducer<M>,
    position: u64,
    taken: bool,
}

impl<'a, M: Memory> Ticket<'a, M> {
    #[inline]
    pub(super) fn new(producer: &'a RingProducer<M>, position: u64) -> Self {
        Ticket { producer, position, taken: false }
    }

    /// The position in the ring.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Its name. The ticket remains the owner.
    #[inline]
    pub fn raw(&self) -> RawTicket {
        self.producer.raw(self.position)
    }

    /// Gives up ownership without forgetting the item; [`RingProducer::adopt`] makes an owner again.
    #[inline]
    pub fn into_raw(self) -> RawTicket {
        ManuallyDrop::new(self).raw()
    }

    /// The completion, if there is one. It can still be taken afterwards.
    pub fn poll(&self) -> Result<Option<Completion>, RingError> {
        self.producer.poll_raw(self.raw())
    }

    /// The completion, if there is one; the ticket is spent then and its slot free.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Completion>, RingError> {
        let taken = self.producer.take_raw(self.raw());
        self.taken |= matches!(taken, Ok(Some(_)));
        taken
    }
}

impl<M: Memory> Drop for Ticket<'_, M> {
    #[inline]
    fn drop(&mut self) {
        if !self.taken {
            // An error means that a copy of the name was used to take it: there is nothing left to forget.
            let _ = self.producer.forget_raw(self.raw());
        }
    }
}

impl<M: Memory> fmt::Debug for Ticket<'_, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw().fmt(f)
    }
}

/// The tickets of a batch, in order. Those not taken out are forgotten when it is dropped.
#[must_use = "dropped tickets forget their items"]
pub struct Tickets<'a, M: Memory = Shared> {
    producer: &'a RingProducer<M>,
    next: u64,
    left: u64,
}

impl<'a, M: Memory> Tickets<'a, M> {
    pub(super) fn new(producer: &'a RingProducer<M>, first: u64, len: u64) -> Self {
        Tickets { producer, next: first, left: len }
    }

    /// The position of the next ticket.
    pub fn first(&self) -> u64 {
        self.next
    }
}

impl<'a, M: Memory> Iterator for Tickets<'a, M> {
    type Item = Ticket<'a, M>;

    #[inline]
    fn next(&mut self) -> Option<Ticket<'a, M>> {
        self.left = self.left.checked_sub(1)?;
        let ticket = Ticket::new(self.producer, self.next);
        self.next = self.next.wrapping_add(1);
        Some(ticket)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl<M: Memory> ExactSizeIterator for Tickets<'_, M> {}

impl<M: Memory> Drop for Tickets<'_, M> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

/// How many looks come before anything that lets go of the core: some 10 us, three times as long as a device takes to
/// answer, since to sleep and be woken takes ten times as long as that.
const SPINS: u32 = 512;

impl RingProducer {
    /// Waits for a completion and takes it.
    pub fn wait_raw(
        &self,
        ticket: RawTicket,
        strategy: WaitStrategy,
        timeout: Duration,
    ) -> Result<Completion, RingError> {
        let mut spins = 0;
        let mut started = None;
        loop {
            if let Some(completion) = self.take_raw(ticket)? {
                return Ok(completion);
            }
            spins += 1;
            if spins < SPINS && timeout != Duration::ZERO {
                std::hint::spin_loop();
                continue;
            }
            // The clock is asked once per round of looks only.
            spins = 0;
            let waited = started.get_or_insert_with(Instant::now).elapsed();
            if waited >= timeout {
                return Err(RingError::Deadline {
                    waited_for: "the completion of ticket",
                    number: ticket.position,
                    after: timeout,
                });
            }
            match strategy {
                WaitStrategy::Spin => {}
                WaitStrategy::Yield => std::thread::yield_now(),
                WaitStrategy::Park => {
                    let park = &self.incarnations.current().park;
                    park.park(timeout - waited, || !matches!(self.poll_raw(ticket), Ok(None)));
                    spins = SPINS - 1;
                }
            }
        }
    }
}

impl Ticket<'_> {
    /// Waits for the completion and takes it. After an error the ticket is as good as before.
    pub fn wait(&mut self, strategy: WaitStrategy, timeout: Duration) -> Result<Completion, RingError> {
        let waited = self.producer.wait_raw(self.raw(), strategy, timeout);
        self.taken |= waited.is_ok();
        waited
    }
}
