//! Both halves of a ring over regions of its own.

use std::time::Duration;

use super::producer::{ProducerOptions, RingCounters, RingProducer};
use super::ticket::{RawTicket, Ticket, Tickets};
use super::{Claimed, ClaimedTicket, Completion, RingConsumer, RingError, SlotImage};
use crate::layout::RegionConfig;
use crate::region::SessionRegions;
use crate::view::DeviceView;
use crate::wait::{Notifier, WaitStrategy, Waiter};

/// A ring whose consumers are threads of this process. A consumer elsewhere attaches to
/// [`PersistentRing::regions`] instead: through its descriptors from another process, or as a device.
pub struct PersistentRing {
    regions: SessionRegions,
    producer: RingProducer,
    consumer: RingConsumer,
    completed: Notifier,
    published: Notifier,
    idle: Waiter,
}

impl PersistentRing {
    /// A ring of `capacity` slots, a power of two from 1 up.
    pub fn new(capacity: u32) -> Result<PersistentRing, RingError> {
        PersistentRing::over(
            &SessionRegions::create(&RegionConfig::new(capacity))?,
            ProducerOptions::default(),
        )
    }

    /// Both halves of ring 0 of regions that nobody else uses yet.
    pub fn over(regions: &SessionRegions, options: ProducerOptions) -> Result<PersistentRing, RingError> {
        DeviceView::new(regions)?;
        let producer = RingProducer::new(regions, 0, options)?;
        producer.write_start_record(regions)?;
        Ok(PersistentRing {
            consumer: RingConsumer::new(regions, 0)?,
            producer,
            completed: Notifier::completion(regions)?,
            published: Notifier::doorbell(regions)?,
            idle: Waiter::doorbell(regions)?,
            regions: regions.clone(),
        })
    }

    /// Slots of the ring: items that can be in it at once.
    pub fn capacity(&self) -> u32 {
        self.producer.capacity()
    }

    /// The regions, for a consumer elsewhere.
    pub fn regions(&self) -> &SessionRegions {
        &self.regions
    }

    /// The producer's half, for everything that has no shorthand here.
    pub fn producer(&self) -> &RingProducer {
        &self.producer
    }

    /// The consumers' half.
    pub fn consumer(&self) -> &RingConsumer {
        &self.consumer
    }

    /// Submits one item. A parked consumer finds it within a moment; at once after
    /// [`PersistentRing::wake_consumers`].
    #[inline]
    pub fn submit(&self, image: &SlotImage) -> Result<Ticket<'_>, RingError> {
        self.producer.submit(image)
    }

    /// Submits all items or none.
    #[inline]
    pub fn submit_batch(&self, images: &[SlotImage]) -> Result<Tickets<'_>, RingError> {
        self.producer.submit_batch(images)
    }

    /// Wakes parked consumers, once for as many submissions as came before. Costs a fence if none is parked.
    pub fn wake_consumers(&self) {
        self.published.notify();
    }

    /// The next item, if one is published.
    #[inline(always)]
    pub fn claim(&self) -> Option<Claimed> {
        self.consumer.claim()
    }

    /// Completes a claimed item. A parked waiter finds out within a moment; at once after
    /// [`PersistentRing::wake_waiters`].
    #[inline]
    pub fn complete(&self, ticket: ClaimedTicket, completion: Completion) -> Result<(), RingError> {
        self.consumer.complete(ticket, completion)
    }

    /// Wakes parked waiters, once for as many completions as came before. Costs a fence if none is parked.
    pub fn wake_waiters(&self) {
        self.completed.notify();
    }

    /// The completion of a ticket, if there is one.
    #[inline]
    pub fn poll(&self, ticket: &Ticket<'_>) -> Result<Option<Completion>, RingError> {
        self.producer.poll_raw(ticket.raw())
    }

    /// The completion of a ticket, if there is one; the ticket is spent then.
    #[inline]
    pub fn take(&self, ticket: &mut Ticket<'_>) -> Result<Option<Completion>, RingError> {
        self.producer.own(ticket.raw())?;
        ticket.take()
    }

    /// Waits for the completion of a ticket and takes it. After an error the ticket is as good as before.
    pub fn wait(
        &self,
        ticket: &mut Ticket<'_>,
        strategy: WaitStrategy,
        timeout: Duration,
    ) -> Result<Completion, RingError> {
        self.producer.own(ticket.raw())?;
        ticket.wait(strategy, timeout)
    }

    /// Hands every finished ticket over.
    pub fn reap(&self, each: impl FnMut(RawTicket, Completion)) -> u64 {
        self.producer.reap(each)
    }

    /// Lets a consumer thread sleep until something is published, or a moment has passed.
    pub fn park_consumer(&self, limit: Duration) {
        self.idle.park(limit, || self.consumer.is_ready());
    }

    /// What was counted so far. How many items were claimed is the consumer's to say:
    /// [`RingConsumer::claimed`].
    pub fn counters(&self) -> RingCounters {
        self.producer.counters()
    }
}
