//! What a session measures about itself: who waits where, how many of what, and how long.
//!
//! Every number is counted by whoever did the thing: items and outcomes by the device, in counters that its
//! kernel mirrors to the host at every heartbeat; tickets by the ring; latency by the thread that saw the
//! acknowledgement. Nothing is computed from what ought to have happened. The device's counters are 32 bits
//! wide and wrap; `Totals` widens them by looking more often than they can wrap.
//!
//! Latency costs two clock readings an item and is off unless asked for.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::error::MegakernelError;
use crate::opcode::SlotOpcode;
use crate::session::{HandlerChange, ring_of};

/// What a session measured up to one moment. What the device counts is as old as its last heartbeat, also
/// right after a drain; after [`stop`](crate::PersistentSession::stop) it is final.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TelemetrySnapshot {
    /// Slots of all rings together.
    pub capacity: u32,
    /// Tickets issued.
    pub submitted: u64,
    /// Tickets acknowledged: taken, reaped, or detached and seen to be over.
    pub acknowledged: u64,
    /// Where the others are.
    pub occupancy: Occupancy,
    /// Items whose handlers ended in DONE. Those that the IO service answered are not among them.
    pub done: u64,
    /// Items whose handlers, or the checks before them, ended in FAULT; the same exception, and that of
    /// [`TenantCount::faulted`].
    pub faulted: u64,
    /// Fences completed.
    pub epoch: u64,
    /// PRINTF records that found the debug log full.
    pub log_lost: u64,
    /// Items per opcode, built-in ones first, in the order of the handlers, removed ones included.
    pub opcodes: Vec<OpcodeCount>,
    /// Items per configured tenant.
    pub tenants: Vec<TenantCount>,
    /// Times from submission to acknowledgement, if the session measures them.
    pub latency: Option<LatencySummary>,
    /// Kernels started, the first one included.
    pub starts: u64,
    /// Device losses recovered from.
    pub recoveries: u64,
    /// Completions refused because no device that keeps to the protocol writes them.
    pub violations: u64,
    /// The last change of handlers, and which one it was.
    pub last_change: Option<HandlerChange>,
    /// The rings by themselves, the most urgent one first.
    #[serde(default)]
    pub rings: Vec<RingUsage>,
}

impl TelemetrySnapshot {
    /// The part of all rings that is in use, from 0 to 1.
    pub fn fill(&self) -> f64 {
        self.occupancy.total() as f64 / f64::from(self.capacity.max(1))
    }
}

/// One ring of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingUsage {
    /// Slots.
    pub capacity: u32,
    /// Tickets issued.
    pub submitted: u64,
    /// Tickets acknowledged: taken, reaped, or detached and seen to be over.
    pub acknowledged: u64,
    /// Where the others are. IO requests are counted in the whole, and here as published.
    pub occupancy: Occupancy,
}

/// How many slots are in each state. The states are read one after the other while everything moves, so the
/// sum may be off by what moved meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Occupancy {
    /// Published and not seen claimed.
    pub published: u64,
    /// On a worker.
    pub claimed: u64,
    /// Waiting for an answer of the IO service.
    pub waiting: u64,
    /// Complete and not taken.
    pub complete: u64,
}

impl Occupancy {
    /// Slots in use.
    pub const fn total(&self) -> u64 {
        self.published + self.claimed + self.waiting + self.complete
    }
}

/// Items of one opcode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpcodeCount {
    /// The opcode.
    #[serde(with = "wire_value")]
    pub opcode: SlotOpcode,
    /// The name of its handler, or of the built-in operation.
    pub name: String,
    /// Runs of its handler that came to an end by themselves, faults and traps among them: an item that runs again is
    /// counted again, one that the item deadline or a lapsed lease cut short is not. The operations of a packed slot are
    /// counted under their own opcodes.
    pub items: u64,
}

/// Items of one tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantCount {
    /// The tenant.
    pub tenant: u16,
    /// Items admitted: what its quota is compared with. One that runs again because the session was restarted,
    /// or recovered, is admitted again.
    pub used: u64,
    /// Items that ended DONE.
    pub done: u64,
    /// Items that ended in FAULT, traps among them. Those that the item deadline ended are too, unless a workgroup ran
    /// them: the program that counts did not get that far.
    pub faulted: u64,
}

/// Times from submission to the moment the acknowledgement was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Items measured.
    pub items: u64,
    /// The shortest.
    #[serde(rename = "min_ns", with = "nanoseconds")]
    pub min: Duration,
    /// The mean.
    #[serde(rename = "mean_ns", with = "nanoseconds")]
    pub mean: Duration,
    /// Half are no longer than this.
    #[serde(rename = "p50_ns", with = "nanoseconds")]
    pub p50: Duration,
    /// 90 % are no longer than this.
    #[serde(rename = "p90_ns", with = "nanoseconds")]
    pub p90: Duration,
    /// 99 % are no longer than this.
    #[serde(rename = "p99_ns", with = "nanoseconds")]
    pub p99: Duration,
    /// 99.9 % are no longer than this.
    #[serde(rename = "p999_ns", with = "nanoseconds")]
    pub p999: Duration,
    /// The longest.
    #[serde(rename = "max_ns", with = "nanoseconds")]
    pub max: Duration,
}

/// An opcode as its wire value.
mod wire_value {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::opcode::SlotOpcode;

    pub(super) fn serialize<S: Serializer>(opcode: &SlotOpcode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(opcode.wire())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<SlotOpcode, D::Error> {
        u32::deserialize(from).map(SlotOpcode::new)
    }
}

/// A time as whole nanoseconds: 64 bits hold 584 years.
pub(crate) mod nanoseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

/// 32-bit device counters, widened.
#[derive(Debug)]
pub(crate) struct Totals {
    last: Vec<u32>,
    totals: Vec<u64>,
}

impl Totals {
    /// For a table of `words` words, all zero on the device.
    pub(crate) fn new(words: usize) -> Totals {
        Totals { last: vec![0; words], totals: vec![0; words] }
    }

    /// Takes the table as it is now.
    pub(crate) fn absorb(&mut self, now: &[u32]) {
        for ((last, total), &now) in self.last.iter_mut().zip(&mut self.totals).zip(now) {
            *total = total.wrapping_add(u64::from(now.wrapping_sub(*last)));
            *last = now;
        }
    }

    /// One total; zero past the end.
    pub(crate) fn get(&self, word: u32) -> u64 {
        self.totals.get(word as usize).copied().unwrap_or(0)
    }
}

/// Bits of a stamp that hold nanoseconds: 78 hours before they repeat.
const STAMP_BITS: u32 = 48;
const STAMP: u64 = (1 << STAMP_BITS) - 1;
/// Histograms, so that threads seldom meet at one.
const SHARDS: usize = 8;
thread_local! {
    /// The histogram that this thread tries first.
    static SHARD: usize = NEXT_SHARD.fetch_add(1, Ordering::Relaxed) % SHARDS;
}
static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);
/// The longest latency told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);

/// Measures submission to acknowledgement, ticket by ticket.
pub(crate) struct Latency {
    capacity: u64,
    /// Per slot of each ring: the low bits of the lap, and when its ticket was submitted.
    stamps: Vec<AtomicU64>,
    shards: Vec<Mutex<Histogram<u64>>>,
}

impl Latency {
    /// For rings of `capacity` slots each, a power of two.
    pub(crate) fn new(rings: u32, capacity: u32) -> Result<Latency, MegakernelError> {
        let shards: Result<Vec<_>, _> = (0..SHARDS)
            .map(|_| Histogram::new_with_max(LONGEST.as_nanos() as u64, 3).map(Mutex::new))
            .collect();
        let shards = shards.map_err(|_| MegakernelError::InvalidGeometry {
            what: "the range of the latency histogram in nanoseconds",
            got: LONGEST.as_nanos() as u64,
            expected: "a range that hdrhistogram accepts".to_owned(),
        })?;
        Ok(Latency {
            capacity: u64::from(capacity.max(1)),
            stamps: (0..rings * capacity.max(1)).map(|_| AtomicU64::new(u64::MAX)).collect(),
            shards,
        })
    }

    /// Where a ticket's stamp is, by its key.
    fn stamp(&self, ticket: u64) -> Option<&AtomicU64> {
        let ring = u64::from(ring_of(ticket));
        self.stamps.get((ring * self.capacity + ticket % self.capacity) as usize)
    }

    /// Notes that `tickets` were submitted at `at`, in nanoseconds since the session started.
    pub(crate) fn submitted(&self, tickets: impl Iterator<Item = u64>, at: u64) {
        for ticket in tickets {
            if let Some(stamp) = self.stamp(ticket) {
                stamp.store((ticket / self.capacity) << STAMP_BITS | at & STAMP, Ordering::Release);
            }
        }
    }

    /// Counts a ticket seen acknowledged at `at`. One whose stamp is not there yet is not counted.
    pub(crate) fn acknowledged(&self, ticket: u64, at: u64) {
        let mine = SHARD.with(|shard| *shard);
        let free = (0..SHARDS).filter_map(|n| self.shards.get((mine + n) % SHARDS)?.try_lock().ok()).next();
        let locked = free
            .or_else(|| Some(self.shards.get(mine % SHARDS)?.lock().unwrap_or_else(PoisonError::into_inner)));
        let Some(mut histogram) = locked else { return };
        let Some(stamp) = self.stamp(ticket) else { return };
        let stamp = stamp.load(Ordering::Acquire);
        let lap = (ticket / self.capacity) << STAMP_BITS >> STAMP_BITS;
        if stamp >> STAMP_BITS == lap & (u64::MAX >> STAMP_BITS) {
            histogram.saturating_record(at.wrapping_sub(stamp) & STAMP);
        }
    }

    /// What was measured up to now.
    pub(crate) fn summary(&self) -> LatencySummary {
        let mut all: Option<Histogram<u64>> = None;
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut all {
                None => all = Some(shard.clone()),
                // All have the same range, so nothing is out of it.
                Some(all) => drop(all.add(&*shard)),
            }
        }
        let at = |quantile| all.as_ref().map_or(0, |all| all.value_at_quantile(quantile));
        LatencySummary {
            items: all.as_ref().map_or(0, Histogram::len),
            min: Duration::from_nanos(all.as_ref().map_or(0, Histogram::min)),
            mean: Duration::from_nanos(all.as_ref().map_or(0.0, Histogram::mean) as u64),
            p50: Duration::from_nanos(at(0.5)),
            p90: Duration::from_nanos(at(0.9)),
            p99: Duration::from_nanos(at(0.99)),
            p999: Duration::from_nanos(at(0.999)),
            max: Duration::from_nanos(all.as_ref().map_or(0, Histogram::max)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::key_of;

    #[test]
    fn totals_survive_wraps_of_the_device() {
        let mut totals = Totals::new(2);
        totals.absorb(&[5, u32::MAX]);
        totals.absorb(&[9, 4]);
        totals.absorb(&[11, 5]);
        assert_eq!((totals.get(0), totals.get(1), totals.get(2)), (11, (1 << 32) + 5, 0));
    }

    #[test]
    fn latency_counts_a_ticket_only_by_a_stamp_of_its_own_lap() {
        let latency = Latency::new(2, 4).expect("in range");
        latency.submitted([0, 1, 6].into_iter(), 100);
        [0, 1, 6].into_iter().for_each(|ticket| latency.acknowledged(ticket, 107));
        // Never stamped, and stamped in another lap.
        [3, 2, 4].into_iter().for_each(|ticket| latency.acknowledged(ticket, 200));
        let summary = latency.summary();
        assert_eq!((summary.items, summary.min, summary.max.as_nanos()), (3, summary.p50, 7));
        // The low 16 bits of the lap repeat; what counts is that neighbours differ.
        latency.submitted([4 << 16].into_iter(), 300);
        latency.acknowledged(4 << 16, 300);
        assert_eq!(latency.summary().items, 4);
        // The same position of another ring is another ticket.
        latency.submitted([key_of(1, 4 << 16)].into_iter(), 400);
        latency.acknowledged(4 << 16, 400);
        latency.acknowledged(key_of(1, 4 << 16), 409);
        let summary = latency.summary();
        assert_eq!((summary.items, summary.max.as_nanos()), (6, 100));
    }
}
