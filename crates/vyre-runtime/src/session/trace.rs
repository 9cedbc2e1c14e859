//! What a session notes about each item and about itself, if it was asked to: times for telemetry, and a trace.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use quanta::Clock;
use vyre_driver::ring::{Completion, RingProducer, SlotImage};
use vyre_driver::view::HostView;

use super::SessionOptions;
use super::report::RecoveryReport;
use super::rings::Rings;
use super::shared::{Shared, lock};
use crate::error::MegakernelError;
use crate::opcode::BuiltinOpcode;
use crate::state::header;
use crate::telemetry::Latency;
use crate::trace::{About, Recorder, SAMPLE_EVERY, Sample, SessionTrace, TracedEvent};

/// What is told about items, by one reading of the clock at either end.
pub(super) struct Timing {
    clock: Clock,
    /// The clock's reading at the session's start.
    origin: u64,
    /// Bits that are zero in the scattered keys of the items that are timed.
    untimed: u64,
    pub(super) latency: Option<Latency>,
    trace: Option<Recorder>,
}

impl Timing {
    /// What the options ask for; `None` if they ask for nothing.
    pub(super) fn new(options: &SessionOptions, rings: &Rings) -> Result<Option<Timing>, MegakernelError> {
        let (count, capacity) = (rings.len(), rings.capacity());
        let latency = options.latency.then(|| Latency::new(count, capacity)).transpose()?;
        let trace = options.trace.map(|items| Recorder::new(items, count, capacity)).transpose()?;
        let wanted = latency.is_some() || trace.is_some();
        let one_in = options.time_one_in;
        if !one_in.is_power_of_two() {
            return Err(MegakernelError::InvalidGeometry {
                what: "one timed item in",
                got: one_in.into(),
                expected: "a power of two; 1 times each".to_owned(),
            });
        }
        let untimed = !(u64::MAX >> one_in.trailing_zeros());
        Ok(wanted.then(|| {
            let clock = Clock::new();
            Timing { origin: clock.raw(), untimed, clock, latency, trace }
        }))
    }

    /// Whether an item is timed. Its key is scattered by a multiplication (D. Knuth, The Art of Computer Programming,
    /// vol. 3, 6.4), so that no place in a batch is favoured.
    #[inline]
    fn is_timed(&self, key: u64) -> bool {
        const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
        key.wrapping_mul(GOLDEN_RATIO) & self.untimed == 0
    }

    /// The time, if any of the items that are likely to be the next ones is timed.
    #[inline]
    pub(super) fn before(&self, mut keys: Range<u64>) -> Option<u64> {
        keys.any(|key| self.is_timed(key)).then(|| self.now())
    }

    /// Nanoseconds since the session's start.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.clock.delta_as_nanos(self.origin, self.clock.raw())
    }

    /// Notes what was submitted at `at`.
    #[inline]
    pub(super) fn submitted(&self, first: u64, images: &[SlotImage], tracked: bool, at: u64) {
        if let Some(latency) = &self.latency {
            let keys = (first..).take(images.len());
            latency.submitted(keys.filter(|&key| self.is_timed(key)), at);
        }
        if let Some(trace) = &self.trace {
            let items = (first..).zip(images).filter(|&(key, _)| self.is_timed(key));
            trace.submitted(items, tracked, at);
        }
    }

    /// Notes that an answer was taken now.
    #[inline]
    pub(super) fn acknowledged(&self, key: u64, completion: &Completion) {
        if !self.is_timed(key) {
            return;
        }
        let at = self.now();
        if let Some(latency) = &self.latency {
            latency.acknowledged(key, at);
        }
        if let Some(trace) = &self.trace {
            trace.acknowledged(key, completion, at);
        }
    }
}

/// When the device was sampled last.
#[derive(Default)]
pub(super) struct Sampling {
    last: Option<Instant>,
}

impl Shared {
    fn recorder(&self) -> Option<(&Timing, &Recorder)> {
        let timing = self.timing.as_ref()?;
        Some((timing, timing.trace.as_ref()?))
    }

    /// Notes something that happened to the session, if it is traced.
    pub(super) fn note(&self, name: &'static str, detail: &[(&'static str, u64)]) {
        let Some((timing, recorder)) = self.recorder() else { return };
        let detail = detail.iter().map(|(name, value)| (*name, value.to_string())).collect();
        recorder.event(TracedEvent { at: timing.now(), took: None, name, detail });
    }

    /// Notes what became of a loss: the whole of it, and its parts as far as they were reached.
    pub(super) fn note_recovery(&self, report: &RecoveryReport) {
        let Some((timing, recorder)) = self.recorder() else { return };
        let nanos = |time: Duration| time.as_nanos() as u64;
        let begin = timing.now().saturating_sub(nanos(report.noticed.elapsed()));
        let recovered = report.is_recovered();
        let detail = BTreeMap::from([
            ("cause", format!("{:?}", report.cause)),
            ("reason", report.reason.clone()),
            ("recovered", recovered.to_string()),
            ("replayed", report.replayed.to_string()),
            ("suspects", report.suspects.len().to_string()),
            ("quarantined", format!("{:?}", report.quarantined)),
        ]);
        let whole = report.serving_after.map_or_else(|| timing.now().saturating_sub(begin), nanos);
        recorder.event(TracedEvent { at: begin, took: Some(whole), name: "recovery", detail });
        let steps = [
            ("old kernel leaves", report.gone_after),
            ("rebuild", report.rebuilt_after),
            ("replay and start", report.serving_after),
        ];
        let mut from = 0;
        for (name, until) in steps {
            let Some(until) = until.map(nanos).filter(|until| *until >= from) else { break };
            let (at, took) = (begin + from, Some(until - from));
            recorder.event(TracedEvent { at, took, name, detail: BTreeMap::new() });
            from = until;
        }
    }

    /// Samples what the device says of itself, when it is time.
    pub(super) fn sample(&self, sampling: &mut Sampling) {
        let Some((timing, recorder)) = self.recorder() else { return };
        if sampling.last.is_some_and(|last| last.elapsed() < SAMPLE_EVERY) {
            return;
        }
        // A recovery holds it; the next tick will do.
        let Ok(view) = self.view.try_lock().map(|view| view.clone()) else { return };
        sampling.last = Some(Instant::now());
        let counters = lock(&self.counters);
        let ended = counters.get(header::DONE_COUNT).wrapping_add(counters.get(header::FAULT_COUNT));
        drop(counters);
        let heartbeat = view.heartbeat().unwrap_or(0);
        recorder.sample(Sample { at: timing.now(), heartbeat, running: running(&view), ended });
    }

    /// What was recorded, if anything was to be.
    pub(super) fn trace(&self) -> Option<SessionTrace> {
        let (timing, recorder) = self.recorder()?;
        let builtin = BuiltinOpcode::ALL.into_iter();
        let builtin = builtin.map(|builtin| (builtin.wire(), builtin.name().to_owned()));
        let handlers = self.plan.handlers();
        let handlers = handlers.iter().map(|handler| (handler.opcode().wire(), handler.name().to_owned()));
        let identity = self.plan.backend.identity();
        let about = About {
            session: self.id,
            backend: identity.name.clone(),
            device: identity.device.clone(),
            names: builtin.chain(handlers).collect(),
        };
        let heads: Vec<u64> = self.rings.iter().map(RingProducer::head).collect();
        Some(recorder.snapshot(&heads, timing.now(), about))
    }
}

/// Items that workers say they run.
fn running(view: &HostView) -> u64 {
    let workers = view.regions().layout.config().workers;
    let words = (0..workers).filter_map(|worker| view.in_flight(worker).ok().flatten());
    words.map(|items| u64::from(items.count)).sum()
}
