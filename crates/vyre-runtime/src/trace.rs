//! What a session did and when, as a file for `chrome://tracing` or Perfetto.
//!
//! | recorded | by whom | how much is kept |
//! |---|---|---|
//! | items: submitted, answer taken | the threads that do it | as many tickets as asked for |
//! | events: starts, recoveries, quarantines | whoever holds the session's kernel | the last [`EVENTS`] |
//! | samples: heartbeat, items on workers, items ended | the session's own thread, every [`SAMPLE_EVERY`] | the last [`SAMPLES`] |
//!
//! Items and events carry the host's clock. A completion has 16 bytes, and no room for a device's: samples are all
//! that a trace says of the device, and they are the device's own words, read by the host.
//!
//! An item costs three plain stores and two readings of the clock. Its place is its ticket's number, so two threads
//! meet at one only if a whole lap of the trace lies between them; each word names its lap, and what does not fit
//! together is counted and left out.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use vyre_driver::ring::{Completion, SlotImage};

use crate::error::MegakernelError;
use crate::session::{key_of, position_of, ring_of};

/// Items that a trace can keep at most: 24 bytes each.
pub const MAX_ITEMS: u32 = 1 << 24;
/// Events that a trace keeps.
pub const EVENTS: usize = 4096;
/// Samples that a trace keeps.
pub const SAMPLES: usize = 16_384;
/// How often the device is sampled.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(10);

/// Where the lap begins in a word; below it are nanoseconds since the session's start, which repeat after 39 hours.
const LAP_SHIFT: u32 = 48;
const TIME: u64 = (1 << 47) - 1;
/// In the word of the answer: it was a fault.
const FAULTED: u64 = 1 << 47;
/// Instead of a time: nobody will ask for the answer.
const DETACHED: u64 = (1 << LAP_SHIFT) - 1;

/// One ticket. Every word has the low bits of the lap on top.
#[derive(Default)]
struct Entry {
    submitted: AtomicU64,
    /// Tenant and opcode.
    what: AtomicU64,
    answered: AtomicU64,
}

/// Records while the session runs.
pub(crate) struct Recorder {
    /// As many for each ring, one ring after the other.
    entries: Box<[Entry]>,
    /// Of the number of entries of a ring, the logarithm.
    shift: u32,
    events: Mutex<Bounded<TracedEvent>>,
    samples: Mutex<Bounded<Sample>>,
}

impl Recorder {
    /// For at least `items` tickets of each of so many rings of `capacity` slots: a ticket in flight is never
    /// overwritten.
    pub(crate) fn new(items: u32, rings: u32, capacity: u32) -> Result<Recorder, MegakernelError> {
        if items > MAX_ITEMS {
            return Err(MegakernelError::InvalidGeometry {
                what: "the capacity of a trace",
                got: items.into(),
                expected: format!("at most {MAX_ITEMS} items"),
            });
        }
        let items = items.max(capacity).next_power_of_two();
        Ok(Recorder {
            entries: (0..items as usize * rings as usize).map(|_| Entry::default()).collect(),
            shift: items.trailing_zeros(),
            events: Mutex::new(Bounded::new(EVENTS)),
            samples: Mutex::new(Bounded::new(SAMPLES)),
        })
    }

    fn entry(&self, ticket: u64) -> (Option<&Entry>, u64) {
        let at = u64::from(ring_of(ticket)) << self.shift | ticket & ((1 << self.shift) - 1);
        (self.entries.get(at as usize), (ticket >> self.shift).wrapping_add(1) << LAP_SHIFT)
    }

    /// Notes items submitted at `at`, in nanoseconds since the session's start.
    pub(crate) fn submitted<'i>(
        &self,
        items: impl Iterator<Item = (u64, &'i SlotImage)>,
        tracked: bool,
        at: u64,
    ) {
        for (ticket, image) in items {
            let (Some(entry), lap) = self.entry(ticket) else { return };
            // Relaxed: each word stands for itself.
            entry.submitted.store(lap | at & TIME, Ordering::Relaxed);
            let what = u64::from(image.tenant) << 32 | u64::from(image.opcode);
            entry.what.store(lap | what, Ordering::Relaxed);
            if !tracked {
                entry.answered.store(lap | DETACHED, Ordering::Relaxed);
            }
        }
    }

    /// Notes that an answer was taken.
    pub(crate) fn acknowledged(&self, ticket: u64, completion: &Completion, at: u64) {
        let (Some(entry), lap) = self.entry(ticket) else { return };
        let faulted = if completion.as_fault().is_some() { FAULTED } else { 0 };
        entry.answered.store(lap | faulted | at & TIME, Ordering::Relaxed);
    }

    pub(crate) fn event(&self, event: TracedEvent) {
        lock(&self.events).push(event);
    }

    pub(crate) fn sample(&self, sample: Sample) {
        lock(&self.samples).push(sample);
    }

    /// What was recorded of a session whose rings have issued tickets up to `heads`; `now` in nanoseconds since its
    /// start.
    pub(crate) fn snapshot(&self, heads: &[u64], now: u64, about: About) -> SessionTrace {
        let kept = |head: u64| head.saturating_sub(1 << self.shift)..head;
        let tickets = (0..).zip(heads).flat_map(|(ring, &head)| kept(head).map(move |at| key_of(ring, at)));
        let items: Vec<_> = tickets.filter_map(|ticket| self.item(ticket, now)).collect();
        let head: u64 = heads.iter().sum();
        let events = lock(&self.events).clone();
        let samples = lock(&self.samples).clone();
        SessionTrace { about, dropped: head - items.len() as u64, items, events, samples }
    }

    fn item(&self, ticket: u64, now: u64) -> Option<TracedItem> {
        let (Some(entry), lap) = self.entry(ticket) else { return None };
        // What is in a word of this ticket's lap.
        let of_lap = |word: &AtomicU64| {
            let word = word.load(Ordering::Relaxed);
            (word >> LAP_SHIFT == lap >> LAP_SHIFT).then_some(word & !(u64::MAX << LAP_SHIFT))
        };
        let time = |low: u64| Duration::from_nanos(now.wrapping_sub(now.wrapping_sub(low) & TIME));
        let (submitted, what) = (of_lap(&entry.submitted)?, of_lap(&entry.what)?);
        let end = match of_lap(&entry.answered) {
            None => ItemEnd::Open,
            Some(DETACHED) => ItemEnd::Detached,
            Some(word) => ItemEnd::Taken { at: time(word), faulted: word & FAULTED != 0 },
        };
        Some(TracedItem {
            ticket,
            opcode: what as u32,
            tenant: (what >> 32) as u16,
            submitted: time(submitted),
            end,
        })
    }
}

/// Locks, whether or not another holder panicked: a list is consistent between any two of its calls.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The last so many of something.
#[derive(Clone, Debug)]
struct Bounded<T> {
    kept: VecDeque<T>,
    limit: usize,
    dropped: u64,
}

impl<T> Bounded<T> {
    fn new(limit: usize) -> Bounded<T> {
        Bounded { kept: VecDeque::new(), limit, dropped: 0 }
    }

    fn push(&mut self, one: T) {
        if self.kept.len() == self.limit {
            self.kept.pop_front();
            self.dropped += 1;
        }
        self.kept.push_back(one);
    }
}

/// One item of a trace. Times count from the session's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedItem {
    /// Its ticket's [key](crate::session::Ticket::key).
    pub ticket: u64,
    /// Its opcode's wire value.
    pub opcode: u32,
    /// Its tenant.
    pub tenant: u16,
    /// Just before it was published.
    pub submitted: Duration,
    /// What became of it.
    pub end: ItemEnd,
}

/// What a trace knows of an item's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemEnd {
    /// Its answer was taken.
    Taken {
        /// When.
        at: Duration,
        /// Whether the answer was a fault.
        faulted: bool,
    },
    /// It was submitted without a ticket.
    Detached,
    /// Its answer has not been taken, or its ticket was dropped.
    Open,
}

/// Something that happened to the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TracedEvent {
    /// Nanoseconds since the session's start.
    pub(crate) at: u64,
    /// How long it took in nanoseconds, if that can be said.
    pub(crate) took: Option<u64>,
    pub(crate) name: &'static str,
    pub(crate) detail: BTreeMap<&'static str, String>,
}

/// What the device said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// Nanoseconds since the session's start.
    pub(crate) at: u64,
    pub(crate) heartbeat: u64,
    /// Items that workers say they run.
    pub(crate) running: u64,
    /// Items done or faulted.
    pub(crate) ended: u64,
}

/// Whose trace it is.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) session: u64,
    pub(crate) backend: String,
    pub(crate) device: String,
    /// Names by opcode.
    pub(crate) names: BTreeMap<u32, String>,
}

/// What was recorded of a session up to one moment. See [`SessionOptions::trace`](crate::SessionOptions::trace).
#[derive(Clone, Debug)]
pub struct SessionTrace {
    about: About,
    items: Vec<TracedItem>,
    dropped: u64,
    events: Bounded<TracedEvent>,
    samples: Bounded<Sample>,
}

/// The categories of items, by ring.
const CATEGORIES: [&str; 3] = ["item", "item of ring 1", "item of ring 2"];
/// Chrome's processes: the host, and the device.
const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// One line of the file. The format's own names.
#[derive(Default, Serialize)]
struct Line<'t, A> {
    name: &'t str,
    ph: &'static str,
    /// Microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cat: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    /// An instant is drawn over its whole process.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    args: A,
}

/// Arguments of an item's lines.
#[derive(Default, Serialize)]
struct ItemArgs {
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<u16>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    faulted: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    detached: bool,
}

/// Lines of the array of events, with commas between them.
struct Lines<W> {
    to: W,
    first: bool,
}

impl<W: Write> Lines<W> {
    fn write<A: Serialize>(&mut self, line: &Line<'_, A>) -> io::Result<()> {
        let before: &[u8] = if std::mem::take(&mut self.first) { b"\n" } else { b",\n" };
        self.to.write_all(before)?;
        Ok(serde_json::to_writer(&mut self.to, line)?)
    }
}

impl SessionTrace {
    /// The items, ring by ring in the order of their tickets.
    pub fn items(&self) -> &[TracedItem] {
        &self.items
    }

    /// Items submitted that the trace does not have: not kept, or [not timed](crate::SessionOptions::time_one_in).
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Writes it as one JSON object of Chrome's trace event format, ticket by ticket in small pieces: give it a
    /// buffered writer.
    ///
    /// Items are asynchronous spans of the host, from submission until the answer is taken, a track for each ring, and
    /// their `id` is the ticket's position; those without a ticket are instants, and those not answered have no end. Starts, recoveries and the
    /// like are on a track of their own, and what the device says are counters.
    ///
    /// # Errors
    ///
    /// The writer's.
    pub fn write_chrome(&self, mut to: impl Write) -> io::Result<()> {
        let About { session, backend, device, names } = &self.about;
        let other = serde_json::json!({
            "session": session,
            "backend": backend,
            "device": device,
            "items": self.items.len(),
            "dropped_items": self.dropped,
            "dropped_events": self.events.dropped,
            "dropped_samples": self.samples.dropped,
        });
        write!(to, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{other},\"traceEvents\":[")?;
        let mut lines = Lines { to: &mut to, first: true };
        for (pid, name) in [(HOST, format!("session {session}")), (DEVICE, format!("{backend}: {device}"))] {
            let args = serde_json::json!({ "name": name });
            lines.write(&Line { name: "process_name", ph: "M", pid, args, ..Line::default() })?;
        }
        for item in &self.items {
            let unnamed = format!("opcode {:#x}", item.opcode);
            let name = names.get(&item.opcode).map_or(unnamed.as_str(), String::as_str);
            // Spans are told apart by category and number, and a JSON number has 53 bits: too few for a key.
            let ring = ring_of(item.ticket);
            let cat = Some(CATEGORIES.get(ring as usize).copied().unwrap_or("item"));
            let (id, tid) = (Some(position_of(item.ticket)), 1 + ring);
            let begin = Line {
                name,
                ph: "b",
                ts: micros(item.submitted),
                pid: HOST,
                tid,
                cat,
                id,
                ..Line::default()
            };
            let tenant = Some(item.tenant);
            match item.end {
                ItemEnd::Detached => {
                    let args = ItemArgs { tenant, detached: true, ..ItemArgs::default() };
                    lines.write(&Line { ph: "n", args, ..begin })?;
                }
                ItemEnd::Open => {
                    lines.write(&Line { args: ItemArgs { tenant, ..ItemArgs::default() }, ..begin })?;
                }
                ItemEnd::Taken { at, faulted } => {
                    lines.write(&Line { args: ItemArgs { tenant, ..ItemArgs::default() }, ..begin })?;
                    let args = ItemArgs { faulted, ..ItemArgs::default() };
                    let ts = micros(at);
                    lines.write(&Line {
                        name,
                        ph: "e",
                        ts,
                        pid: HOST,
                        tid,
                        cat,
                        id,
                        args,
                        ..Line::default()
                    })?;
                }
            }
        }
        for event in &self.events.kept {
            let (ph, s) = if event.took.is_some() { ("X", None) } else { ("i", Some("p")) };
            let (ts, dur) = (nanos_as_micros(event.at), event.took.map(nanos_as_micros));
            let (name, args) = (event.name, &event.detail);
            let cat = Some("session");
            lines.write(&Line {
                name,
                ph,
                ts,
                dur,
                pid: HOST,
                tid: 0,
                cat,
                id: None,
                s,
                args: Some(args),
            })?;
        }
        for sample in &self.samples.kept {
            let ts = nanos_as_micros(sample.at);
            for (name, value) in
                [("heartbeat", sample.heartbeat), ("running", sample.running), ("ended", sample.ended)]
            {
                let args = serde_json::json!({ name: value });
                lines.write(&Line { name, ph: "C", ts, pid: DEVICE, args, ..Line::default() })?;
            }
        }
        to.write_all(b"\n]}\n")
    }
}

fn micros(time: Duration) -> f64 {
    nanos_as_micros(time.as_nanos() as u64)
}

fn nanos_as_micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}
