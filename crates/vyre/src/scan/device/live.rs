//! A session: tables on the device, payloads in the arena, items through the ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_runtime::session::{Payload as SessionPayload, SessionOptions, Tickets};
use vyre_runtime::{BatchDescriptor, Megakernel, MegakernelError, PersistentSession};

use super::super::ScanOptions;
use super::super::chain::Outcome;
use super::super::error::ScanError;
use super::super::handler::{TABLES_BINDING, scan_handler};
use super::super::plan::Plan;
use super::super::stats::{Latency, Occupancy};
use super::{BATCHES, DEADLINE, Item, in_order_of_length, payload_bytes, table_words, too_large};

/// Items that a producer submits at once, at least: enough to keep a wide device busy.
const BATCH_ITEMS: usize = 256;

/// Slots for each item that can be there: how far the others may get ahead of the slowest producer.
const SLACK: usize = 2;

/// Items on the device.
pub(in super::super) struct Submitted {
    tickets: Tickets,
    /// The place among the items of each ticket.
    order: Vec<u32>,
}

/// A session, with room for everything that the producers of one scan can have in it.
pub(in super::super) struct Live {
    session: PersistentSession,
    /// Items of a batch at most.
    batch_items: usize,
    /// Bytes of a batch's payload.
    payload_bytes: u32,
    /// Slots in use now, and after each submission: their sum, how often, and the most.
    in_use: AtomicU64,
    sum: AtomicU64,
    looks: AtomicU64,
    most: AtomicU64,
}

impl Live {
    pub(super) fn start(
        backend: Arc<dyn VyreBackend>,
        plan: &Plan,
        options: &ScanOptions,
    ) -> Result<Live, ScanError> {
        // A batch takes a piece for every table at least.
        let batch_items = BATCH_ITEMS.max(plan.groups().len());
        let batches = options.producers * BATCHES;
        let payload_bytes = payload_bytes(batch_items);
        // Allocators waste a little; a third more is plenty.
        let arena = (batches * payload_bytes * 4 / 3).next_multiple_of(16);
        let slots = (SLACK * batches * batch_items).next_power_of_two();
        let too_large = |_| too_large(plan, options);
        let words = table_words(plan)?;
        let megakernel = Megakernel::builder(backend)
            .handler(scan_handler())
            .build()
            .map_err(ScanError::megakernel("build the megakernel"))?;
        let mut session = SessionOptions::new()
            .slots(u32::try_from(slots).map_err(too_large)?)
            .arena_bytes(u32::try_from(arena).map_err(too_large)?)
            .bind_bytes(TABLES_BINDING, words);
        if options.latency {
            session = session.measure_latency();
        }
        let session = megakernel.start_with(session).map_err(ScanError::megakernel("start a session"))?;
        Ok(Live {
            session,
            batch_items,
            payload_bytes: u32::try_from(payload_bytes).map_err(too_large)?,
            in_use: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            most: AtomicU64::new(0),
        })
    }

    /// Items of a batch at most; [`BATCHES`] of them fit for each producer.
    pub(super) fn batch_items(&self) -> usize {
        self.batch_items
    }

    /// Room for the bytes of a batch.
    pub(super) fn payload(&self) -> Result<SessionPayload, ScanError> {
        self.session.payload(self.payload_bytes).map_err(ScanError::megakernel("allocate a payload"))
    }

    /// Publishes items. The payload must stay as it is until they have been waited for. `None` if the ring is
    /// full: slots are reused in the order of their tickets, so one batch that nobody has taken the results
    /// of holds back everybody else's, however few there are.
    pub(super) fn submit(
        &self,
        payload: &SessionPayload,
        items: &[Item],
    ) -> Result<Option<Submitted>, ScanError> {
        let order = in_order_of_length(items);
        let in_order = order.iter().filter_map(|&at| items.get(at as usize));
        let batch: BatchDescriptor = in_order.map(|item| item.slot(payload.offset())).collect();
        let tickets = match self.session.submit_batch(&batch) {
            Err(MegakernelError::RingFull { .. }) => return Ok(None),
            submitted => submitted.map_err(ScanError::megakernel("submit a batch"))?,
        };
        let now = self.in_use.fetch_add(items.len() as u64, Ordering::Relaxed) + items.len() as u64;
        self.sum.fetch_add(now, Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(now, Ordering::Relaxed);
        Ok(Some(Submitted { tickets, order }))
    }

    /// Waits for items and takes their outcomes, in the order in which the items were given.
    pub(super) fn wait(&self, submitted: Submitted) -> Result<Vec<Outcome>, ScanError> {
        let Submitted { tickets, order } = submitted;
        let mut outcomes = vec![Outcome::default(); order.len()];
        let items = order.len() as u64;
        for (ticket, at) in tickets.zip(order) {
            let completion =
                self.session.wait(ticket, DEADLINE).map_err(ScanError::megakernel("wait for an item"))?;
            if let Some(outcome) = outcomes.get_mut(at as usize) {
                *outcome = Outcome::from_result(completion.result());
            }
        }
        self.in_use.fetch_sub(items, Ordering::Relaxed);
        Ok(outcomes)
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let looks = self.looks.load(Ordering::Relaxed).max(1);
        Occupancy {
            slots: self.session.capacity().into(),
            mean: self.sum.load(Ordering::Relaxed) as f64 / looks as f64,
            most: self.most.load(Ordering::Relaxed),
        }
    }

    pub(super) fn recoveries(&self) -> u64 {
        self.session.telemetry().recoveries
    }

    pub(super) fn last_loss(&self) -> Option<String> {
        self.session.last_recovery().map(|report| report.reason)
    }

    pub(super) fn latency(&self) -> Option<Latency> {
        let latency = self.session.telemetry().latency?;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        Some(Latency { items: latency.items, p50_us: micros(latency.p50), p99_us: micros(latency.p99) })
    }
}
