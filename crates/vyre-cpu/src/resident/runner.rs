//! Running item programs, and what comes out.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_driver::io_queue::IoRequest;
use vyre_driver::protocol::{ARG_WORDS, Fault, Status, TRAP_DEADLINE};
use vyre_driver::ring::{Completion, SlotImage};

use crate::buffers::Bound;
use crate::exec::{Env, MAX_WIDTH, Poll, Progress, Wave, Width, Workgroup, run};
use crate::flat::{Flat, Place};

/// Most items that run together.
pub(super) const BATCH: usize = MAX_WIDTH as usize;

/// The item programs of a kernel over its buffers.
pub(super) struct Programs {
    pub(super) lane: Arc<Flat>,
    pub(super) lane_buffers: Bound,
    /// Counts items that ended in `lane`.
    pub(super) accounting: Option<(Arc<Flat>, Bound)>,
    pub(super) workgroup: Option<(Arc<Flat>, Bound)>,
    /// Opcodes that a workgroup runs, sorted.
    pub(super) workgroup_opcodes: Vec<u32>,
    pub(super) item_deadline: Option<Duration>,
    pub(super) width: Width,
}

impl Programs {
    /// Whether an item is run by a whole workgroup, once the lane program has admitted it.
    pub(super) fn is_for_workgroup(&self, opcode: u32) -> bool {
        self.workgroup.is_some() && self.workgroup_opcodes.binary_search(&opcode).is_ok()
    }
}

/// What one run of an item led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has ended.
    Ended(Completion),
    /// It is to be run again with these arguments.
    Again([u32; ARG_WORDS]),
    /// It waits for the host.
    WaitsFor(IoRequest),
}

/// A wave that runs items, and one that counts them.
struct Waves<const W: usize> {
    items: Wave<W>,
    counts: Option<Wave<W>>,
}

/// A worker's waves, made when first needed.
#[derive(Default)]
pub(super) struct Runner {
    one: Option<Waves<1>>,
    eight: Option<Waves<8>>,
    full: Option<Waves<{ BATCH }>>,
    workgroup_of_one: Option<Workgroup<1>>,
    workgroup_of_eight: Option<Workgroup<8>>,
    workgroup: Option<Workgroup<{ BATCH }>>,
}

impl Runner {
    /// Runs up to [`BATCH`] items, one a lane; `outcomes` gets one for each, in order.
    pub(super) fn run_lanes(
        &mut self,
        programs: &Programs,
        items: &[(u64, SlotImage)],
        stop: &dyn Fn() -> bool,
        outcomes: &mut Vec<Outcome>,
    ) {
        let width = programs.width.for_invocations(items.len() as u32);
        for items in items.chunks(width.lanes() as usize) {
            match width {
                Width::One => lanes(&mut self.one, programs, items, stop, outcomes),
                Width::Eight => lanes(&mut self.eight, programs, items, stop, outcomes),
                Width::Full => lanes(&mut self.full, programs, items, stop, outcomes),
            }
        }
    }

    /// Runs one item on a whole workgroup.
    pub(super) fn run_workgroup(
        &mut self,
        programs: &Programs,
        item: &(u64, SlotImage),
        stop: &dyn Fn() -> bool,
    ) -> Outcome {
        let Some((flat, buffers)) = &programs.workgroup else {
            return Outcome::Ended(Completion::fault(Fault::UnknownOpcode));
        };
        let deadline = programs.item_deadline;
        match programs.width.for_program(flat) {
            Width::One => whole(&mut self.workgroup_of_one, flat, buffers, deadline, item, stop),
            Width::Eight => whole(&mut self.workgroup_of_eight, flat, buffers, deadline, item, stop),
            Width::Full => whole(&mut self.workgroup, flat, buffers, deadline, item, stop),
        }
    }
}

fn lanes<const W: usize>(
    waves: &mut Option<Waves<W>>,
    programs: &Programs,
    items: &[(u64, SlotImage)],
    stop: &dyn Fn() -> bool,
    outcomes: &mut Vec<Outcome>,
) {
    let flat = &programs.lane;
    let Waves { items: wave, counts } =
        waves.get_or_insert_with(|| Waves { items: Wave::new(Arc::clone(flat)), counts: None });
    begin(wave, flat, items);
    let clock = programs.item_deadline.map(|limit| RefCell::new(LaneClock::start(limit, Instant::now())));
    let expired = |going_on| match &clock {
        _ if stop() => going_on,
        Some(clock) => clock.borrow_mut().expired(Instant::now(), going_on),
        None => 0,
    };
    run(wave, &env(&programs.lane_buffers), &mut Poll::new(&expired));
    let first = outcomes.len();
    outcomes.extend(items.iter().enumerate().map(|(lane, (_, image))| match wave.trap(lane) {
        Some(code) => Outcome::Ended(trapped(code)),
        None => outcome(&flat.results, image.tenant, |place| wave.get(place, lane)),
    }));
    let Some((counting, buffers)) = &programs.accounting else { return };
    let mut ended = [(0, SlotImage::default()); W];
    let mut count = 0;
    for ((lane, (ticket, image)), outcome) in items.iter().enumerate().zip(outcomes.iter().skip(first)) {
        let Outcome::Ended(completion) = outcome else { continue };
        // What was cut short to leave stays unacknowledged, and is counted when it has been run again.
        if was_stopped(outcome) && stop() {
            continue;
        }
        let mut args = [0; ARG_WORDS];
        if let Some((status, words)) = args.split_last_mut() {
            *status = completion.status() as u32;
            if wave.trap(lane).is_none() {
                let places = flat.results.iter().skip(3);
                words.iter_mut().zip(places).for_each(|(word, &place)| *word = wave.get(place, lane) as u32);
            }
        }
        if let Some(item) = ended.get_mut(count) {
            *item = (*ticket, SlotImage { args, ..*image });
            count += 1;
        }
    }
    let wave = counts.get_or_insert_with(|| Wave::new(Arc::clone(counting)));
    begin(wave, counting, ended.get(..count).unwrap_or_default());
    run(wave, &env(buffers), &mut Poll::new(&|_| 0));
}

/// Gives each item a lane.
fn begin<const W: usize>(wave: &mut Wave<W>, flat: &Flat, items: &[(u64, SlotImage)]) {
    wave.begin(items.len() as u32);
    for (index, &place) in flat.params.iter().enumerate() {
        wave.set_lanes(place, items.iter().map(|item| param(index, item)));
    }
}

fn env(buffers: &Bound) -> Env<'_> {
    Env { views: &buffers.views, workgroup: [0; 3], grid: [1; 3], first: 0 }
}

/// The time that each lane of a wave has had. Lanes that go different ways take turns; whoever waits for its
/// turn is not charged for it.
struct LaneClock {
    limit: Duration,
    looked: Instant,
    spent: [Duration; BATCH],
}

impl LaneClock {
    const fn start(limit: Duration, now: Instant) -> LaneClock {
        LaneClock { limit, looked: now, spent: [Duration::ZERO; BATCH] }
    }

    /// Charges the lanes that are at work for the time since the last look; says which have used theirs up.
    /// Lanes may have taken turns in between, so a single charge may hit the wrong one; as the looks come at
    /// irregular times, many are right on average.
    fn expired(&mut self, now: Instant, at_work: u32) -> u32 {
        let passed = now.saturating_duration_since(self.looked);
        self.looked = now;
        let mut expired = 0;
        for (lane, spent) in self.spent.iter_mut().enumerate() {
            if at_work >> lane & 1 != 0 {
                *spent = spent.saturating_add(passed);
                expired |= u32::from(*spent >= self.limit) << lane;
            }
        }
        expired
    }
}

fn whole<const W: usize>(
    workgroup: &mut Option<Workgroup<W>>,
    flat: &Arc<Flat>,
    buffers: &Bound,
    limit: Option<Duration>,
    item: &(u64, SlotImage),
    stop: &dyn Fn() -> bool,
) -> Outcome {
    if workgroup.is_none() {
        *workgroup = Workgroup::new(flat, &buffers.views);
    }
    let Some(workgroup) = workgroup else {
        // The system has no memory for the workgroup's own; there is no code for that.
        return Outcome::Ended(Completion::fault(Fault::Abandoned));
    };
    workgroup.begin([0; 3], [1; 3]);
    for (index, &place) in flat.params.iter().enumerate() {
        workgroup.set(place, param(index, item));
    }
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    let expired =
        |lanes| if stop() || until.is_some_and(|until| Instant::now() >= until) { lanes } else { 0 };
    match workgroup.run(&mut Poll::new(&expired)) {
        (_, Some((_, code))) => Outcome::Ended(trapped(code)),
        (Progress::Stopped, None) => Outcome::Ended(Completion::fault(Fault::Deadline)),
        (_, None) => outcome(&flat.results, item.1.tenant, |place| workgroup.get(place)),
    }
}

/// The value of a parameter: opcode, tenant, flags, ticket, then the arguments.
fn param(index: usize, (ticket, image): &(u64, SlotImage)) -> u64 {
    match index {
        0 => u64::from(image.opcode),
        1 => u64::from(image.tenant),
        2 => u64::from(image.flags),
        3 => *ticket,
        index => image.args.get(index - 4).map_or(0, |&arg| u64::from(arg)),
    }
}

fn trapped(code: u32) -> Completion {
    Completion::fault(if code == TRAP_DEADLINE { Fault::Deadline } else { Fault::Trap(code) })
}

/// Whether a run was cut short rather than ended.
pub(super) fn was_stopped(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Ended(completion) if completion.as_fault() == Some(Fault::Deadline))
}

/// Believes the results of an item program only as far as they make sense.
fn outcome(results: &[Place], tenant: u16, get: impl Fn(Place) -> u64) -> Outcome {
    let word = |index: usize| results.get(index).map_or(0, |&place| get(place));
    let words = || std::array::from_fn(|index| word(3 + index) as u32);
    let malformed = Outcome::Ended(Completion::fault(Fault::Malformed));
    match u16::try_from(word(0)).ok().and_then(Status::from_word) {
        Some(Status::Requeue) => Outcome::Again(words()),
        Some(Status::WaitIo) => {
            let [operation, source, destination, low, high, bytes, ..]: [u32; ARG_WORDS] = words();
            if operation == 0 {
                return malformed;
            }
            let offset = u64::from(high) << 32 | u64::from(low);
            Outcome::WaitsFor(IoRequest { operation, tenant, source, destination, offset, bytes })
        }
        Some(status) => Completion::new(status, word(1) as u32, word(2)).map_or(malformed, Outcome::Ended),
        None => malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_is_charged_for_its_own_turns_only() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = LaneClock::start(Duration::from_millis(10), start);
        // 32 lanes, nine milliseconds each, one after the other.
        for lane in 0..32 {
            assert_eq!(clock.expired(at(9 * (lane + 1)), 1 << lane), 0, "lane {lane}");
        }
        // One more: the two that work on have had ten, the others nine.
        assert_eq!(clock.expired(at(289), 0b101), 0b101);
        assert_eq!(clock.expired(at(290), 1 << 31), 1 << 31);
    }
}
