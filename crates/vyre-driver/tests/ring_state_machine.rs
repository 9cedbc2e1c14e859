//! The ring against a model of plain collections, over random histories: several lap wraps, starts in the
//! middle of nowhere and just before the sixteen lap bits run over, restarts and late completions included.
#![cfg(not(loom))]

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use vyre_driver::layout::RegionConfig;
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{
    ClaimedTicket, Completion, ProducerOptions, RawTicket, RingConsumer, RingError, RingProducer, SlotImage,
};
use vyre_driver::{Fault, Status};

#[derive(Clone, Debug)]
enum Op {
    Submit { items: usize, detached: bool },
    Claim { most: usize, even_only: bool },
    Complete { which: usize, fault: bool },
    Take { which: usize },
    Poll { which: usize },
    Forget { which: usize },
    Reap,
    Restart { fail_every: u64 },
    LateComplete { which: usize },
    Count,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Waiting,
    Claimed,
    Finished(Completion),
}

#[derive(Clone, Copy, Debug)]
struct Item {
    detached: bool,
    state: State,
}

/// What the ring should be.
struct Model {
    capacity: u64,
    first: u64,
    head: u64,
    /// The next ticket of the consumer.
    tail: u64,
    /// Items whose slots are not free.
    items: BTreeMap<u64, Item>,
    detached_done: u64,
    detached_faults: u64,
}

impl Model {
    /// Detached items that are finished occupy nothing.
    fn settle(&mut self) {
        let finished = |item: &Item| match item.state {
            State::Finished(completion) if item.detached => Some(completion),
            _ => None,
        };
        let done: Vec<_> = self.items.iter().filter_map(|(&t, item)| Some((t, finished(item)?))).collect();
        for (ticket, completion) in done {
            self.items.remove(&ticket);
            if completion.is_done() { self.detached_done += 1 } else { self.detached_faults += 1 }
        }
    }

    fn blocking(&self, items: usize) -> Option<u64> {
        let needed = self.head..self.head + items as u64;
        needed.map(|ticket| ticket.wrapping_sub(self.capacity)).find(|ticket| self.items.contains_key(ticket))
    }

    fn acknowledged(&self) -> u64 {
        let finished = |item: &&Item| matches!(item.state, State::Finished(_)) && !item.detached;
        // Finished but untaken items count only once the producer has saved them.
        self.head - self.first - self.items.len() as u64 + self.items.values().filter(finished).count() as u64
    }
}

/// A distinct image for every ticket.
fn image(ticket: u64) -> SlotImage {
    let seed = (ticket as u32).wrapping_mul(0x9E37_79B9) ^ (ticket >> 32) as u32;
    SlotImage {
        opcode: seed,
        tenant: (seed >> 7) as u16,
        flags: (seed % 8) as u16,
        args: std::array::from_fn(|word| seed.rotate_left(word as u32)),
    }
}

fn completion(ticket: u64, fault: bool) -> Completion {
    let status = if fault { Status::Fault } else { Status::Done };
    Completion::new(status, ticket as u32 ^ 0x5A5A, ticket.wrapping_mul(3)).expect("both statuses are final")
}

struct Incarnation {
    consumer: RingConsumer,
    claimed: Vec<ClaimedTicket>,
}

struct World {
    regions: SessionRegions,
    producer: RingProducer,
    now: Incarnation,
    dead: Option<Incarnation>,
    tickets: HashMap<u64, RawTicket>,
    model: Model,
}

macro_rules! prop_matches {
    ($value:expr, $pattern:pat) => {{
        let matched = matches!(&$value, $pattern);
        prop_assert!(matched, "{:?}", &$value);
    }};
}

type Check = Result<(), TestCaseError>;

fn fine<T>(result: Result<T, RingError>) -> Result<T, TestCaseError> {
    result.map_err(|error| TestCaseError::fail(format!("{error:?}")))
}

impl World {
    fn new(capacity: u32, first: u64) -> Result<World, TestCaseError> {
        let regions = fine(SessionRegions::create(&RegionConfig::new(capacity)))?;
        let options = ProducerOptions { first_ticket: first, ..ProducerOptions::default() };
        let producer = fine(RingProducer::new(&regions, 0, options))?;
        prop_assert_eq!(fine(producer.write_start_record(&regions))?, first);
        let consumer = fine(RingConsumer::new(&regions, 0))?;
        let model = Model {
            capacity: u64::from(capacity),
            first,
            head: first,
            tail: first,
            items: BTreeMap::new(),
            detached_done: 0,
            detached_faults: 0,
        };
        let now = Incarnation { consumer, claimed: Vec::new() };
        Ok(World { regions, producer, now, dead: None, tickets: HashMap::new(), model })
    }

    fn step(&mut self, op: Op) -> Check {
        self.model.settle();
        match op {
            Op::Submit { items, detached } => self.submit(items, detached)?,
            Op::Claim { most, even_only } => self.claim(most, even_only)?,
            Op::Complete { which, fault } => {
                if !self.now.claimed.is_empty() {
                    let token = self.now.claimed.remove(which % self.now.claimed.len());
                    let ticket = token.position();
                    fine(self.now.consumer.complete(token, completion(ticket, fault)))?;
                    if let Some(item) = self.model.items.get_mut(&ticket) {
                        item.state = State::Finished(completion(ticket, fault));
                    }
                }
            }
            Op::Take { which } => {
                if let Some((ticket, raw)) = self.pick(which) {
                    let taken = self.producer.take_raw(raw);
                    self.expect(ticket, taken)?;
                    let finished = matches!(self.model.items.get(&ticket), Some(item) if !item.detached && matches!(item.state, State::Finished(_)));
                    if finished {
                        self.model.items.remove(&ticket);
                    }
                }
            }
            Op::Poll { which } => {
                if let Some((ticket, raw)) = self.pick(which) {
                    let polled = self.producer.poll_raw(raw);
                    self.expect(ticket, polled)?;
                }
            }
            Op::Forget { which } => {
                if let Some((ticket, raw)) = self.pick(which) {
                    let forgotten = self.producer.forget_raw(raw);
                    match self.model.items.get_mut(&ticket) {
                        Some(item) if !item.detached => {
                            fine(forgotten)?;
                            item.detached = true;
                        }
                        _ => prop_matches!(forgotten, Err(RingError::AlreadyTaken { .. })),
                    }
                }
            }
            Op::Reap => self.reap()?,
            Op::Restart { fail_every } => self.restart(fail_every)?,
            Op::LateComplete { which } => {
                if let Some(dead) = self.dead.as_mut().filter(|dead| !dead.claimed.is_empty()) {
                    let token = dead.claimed.remove(which % dead.claimed.len());
                    fine(dead.consumer.complete(token, Completion::done(0xDEAD)))?;
                }
            }
            Op::Count => self.check_counters()?,
        }
        self.model.settle();
        Ok(())
    }

    /// A ticket issued some time, taken already or not.
    fn pick(&self, which: usize) -> Option<(u64, RawTicket)> {
        let issued = self.model.head - self.model.first;
        if issued == 0 {
            return None;
        }
        let ticket = self.model.head - 1 - (which as u64 % issued.min(2 * self.model.capacity));
        Some((ticket, *self.tickets.get(&ticket)?))
    }

    fn expect(&self, ticket: u64, got: Result<Option<Completion>, RingError>) -> Check {
        match self.model.items.get(&ticket) {
            Some(Item { detached: false, state: State::Finished(expected) }) => {
                prop_assert_eq!(fine(got)?, Some(*expected))
            }
            Some(Item { detached: false, .. }) => prop_assert_eq!(fine(got)?, None),
            // Forgotten and unfinished: not finished yet is as true as gone.
            Some(_) => prop_matches!(got, Ok(None) | Err(RingError::AlreadyTaken { .. })),
            None => prop_matches!(got, Err(RingError::AlreadyTaken { .. })),
        }
        Ok(())
    }

    fn submit(&mut self, items: usize, detached: bool) -> Check {
        let (head, capacity) = (self.model.head, self.model.capacity);
        let images: Vec<_> = (head..head + items as u64).map(image).collect();
        let got = match (detached, images.as_slice()) {
            (true, [one]) => self.producer.submit_detached(one).map(|first| (first, Vec::new())),
            (true, all) => self.producer.submit_batch_detached(all).map(|first| (first, Vec::new())),
            (false, [one]) => self.producer.submit(one).map(|t| (t.position(), vec![t.into_raw()])),
            (false, all) => self
                .producer
                .submit_batch(all)
                .map(|tickets| (tickets.first(), tickets.map(|ticket| ticket.into_raw()).collect())),
        };
        if items as u64 > capacity {
            prop_matches!(got, Err(RingError::BatchTooLarge { .. }));
        } else if let Some(oldest) = self.model.blocking(items) {
            let blocked =
                matches!(got, Err(RingError::WouldBlock { oldest_untaken }) if oldest_untaken == oldest);
            prop_assert!(blocked, "{:?}, expected to wait for {}", got, oldest);
        } else {
            let (first, raw) = fine(got)?;
            prop_assert_eq!(first, head);
            self.tickets.extend(raw.into_iter().map(|raw| (raw.position(), raw)));
            let item = Item { detached, state: State::Waiting };
            self.model.items.extend((head..head + items as u64).map(|ticket| (ticket, item)));
            self.model.head += items as u64;
        }
        Ok(())
    }

    fn claim(&mut self, most: usize, even_only: bool) -> Check {
        let mut images = vec![SlotImage::default(); most];
        let wanted = |image: &SlotImage| !even_only || image.opcode.is_multiple_of(2);
        let claims = match most {
            1 if !even_only => {
                let claimed = self.now.consumer.claim();
                claimed.into_iter().map(|claimed| (claimed.ticket, claimed.image)).collect::<Vec<_>>()
            }
            _ => self.now.consumer.claim_while(&mut images, wanted).zip(images.iter().copied()).collect(),
        };
        // What was acknowledged without this consumer is stepped over, before a claim and not within it.
        let waiting = |model: &Model, ticket: u64| {
            model.items.get(&ticket).is_some_and(|item| item.state == State::Waiting)
        };
        while most > 0 && self.model.tail < self.model.head && !waiting(&self.model, self.model.tail) {
            self.model.tail += 1;
        }
        for (token, found) in &claims {
            prop_assert_eq!(token.position(), self.model.tail);
            prop_assert_eq!(*found, image(self.model.tail));
            prop_assert!(waiting(&self.model, self.model.tail));
            if let Some(item) = self.model.items.get_mut(&self.model.tail) {
                item.state = State::Claimed;
            }
            self.model.tail += 1;
        }
        if claims.len() < most {
            let next = self.model.tail;
            prop_assert!(
                !waiting(&self.model, next) || (even_only && !wanted(&image(next))),
                "ticket {} was left",
                next
            );
        }
        self.now.claimed.extend(claims.into_iter().map(|(token, _)| token));
        Ok(())
    }

    fn reap(&mut self) -> Check {
        let mut reaped = Vec::new();
        let count = self.producer.reap(|raw, completion| reaped.push((raw.position(), completion)));
        prop_assert_eq!(count, reaped.len() as u64);
        let finished = |(&ticket, item): (&u64, &Item)| match item.state {
            State::Finished(completion) => Some((ticket, completion)),
            _ => None,
        };
        let expected: Vec<_> = self.model.items.iter().filter_map(finished).collect();
        prop_assert_eq!(&reaped, &expected);
        for (ticket, _) in expected {
            self.model.items.remove(&ticket);
        }
        Ok(())
    }

    fn restart(&mut self, fail_every: u64) -> Check {
        self.regions = fine(self.regions.fresh_d2h())?;
        fine(self.producer.rebind_d2h(&self.regions))?;
        let mut unacknowledged = Vec::new();
        self.producer.for_each_unacknowledged(|ticket, found| unacknowledged.push((ticket, found)));
        let expected: Vec<_> = self
            .model
            .items
            .iter()
            .filter(|(_, item)| !matches!(item.state, State::Finished(_)))
            .map(|(&ticket, _)| (ticket, image(ticket)))
            .collect();
        prop_assert_eq!(&unacknowledged, &expected);
        for (ticket, item) in &mut self.model.items {
            if matches!(item.state, State::Finished(_)) {
                prop_assert!(!fine(self.producer.fail(*ticket, Fault::DeviceLost))?);
            } else if fail_every > 0 && ticket.is_multiple_of(fail_every) {
                prop_assert!(fine(self.producer.fail(*ticket, Fault::DeviceLost))?);
                item.state = State::Finished(Completion::fault(Fault::DeviceLost));
            } else {
                item.state = State::Waiting;
            }
        }
        self.model.settle();
        let first = fine(self.producer.write_start_record(&self.regions))?;
        let oldest =
            self.model.items.iter().find(|(_, item)| item.state == State::Waiting).map(|(&ticket, _)| ticket);
        prop_assert_eq!(first, oldest.unwrap_or(self.model.head));
        prop_assert_eq!(self.producer.oldest_unacknowledged(), first);
        self.model.tail = first;
        let consumer = fine(RingConsumer::new(&self.regions, 0))?;
        let dead = std::mem::replace(&mut self.now, Incarnation { consumer, claimed: Vec::new() });
        self.dead = Some(dead);
        Ok(())
    }

    fn check_counters(&self) -> Check {
        let counters = self.producer.counters();
        let model = &self.model;
        prop_assert_eq!(counters.published, model.head - model.first);
        prop_assert!(counters.completed <= model.acknowledged());
        prop_assert!(counters.outstanding <= model.items.len() as u64);
        prop_assert_eq!(counters.published, counters.completed + counters.outstanding);
        prop_assert_eq!(counters.detached_done, model.detached_done);
        prop_assert_eq!(counters.detached_faults, model.detached_faults);
        prop_assert_eq!(counters.violations, 0);
        let unknown = self.producer.fail(model.head, Fault::Abandoned);
        prop_matches!(unknown, Err(RingError::NotIssued { .. }));
        Ok(())
    }
}

fn ops(capacity: u32) -> impl Strategy<Value = Vec<Op>> {
    let most = capacity as usize + 1;
    let op = prop_oneof![
        6 => (prop_oneof![Just(1), 0..=most], any::<bool>())
            .prop_map(|(items, detached)| Op::Submit { items, detached }),
        6 => (0..=most, prop::bool::weighted(0.1)).prop_map(|(most, even_only)| Op::Claim { most, even_only }),
        8 => (any::<usize>(), prop::bool::weighted(0.2))
            .prop_map(|(which, fault)| Op::Complete { which, fault }),
        4 => any::<usize>().prop_map(|which| Op::Take { which }),
        1 => any::<usize>().prop_map(|which| Op::Poll { which }),
        1 => any::<usize>().prop_map(|which| Op::Forget { which }),
        3 => Just(Op::Reap),
        1 => (0..4u64).prop_map(|fail_every| Op::Restart { fail_every }),
        1 => any::<usize>().prop_map(|which| Op::LateComplete { which }),
        // Seldom: counting sweeps detached items, which a full ring has to do by itself.
        1 => Just(Op::Count),
    ];
    prop::collection::vec(op, 1..400)
}

fn run(capacity: u32, first: u64, ops: Vec<Op>) -> Check {
    let mut world = World::new(capacity, first)?;
    for op in ops {
        world.step(op)?;
    }
    world.check_counters()
}

/// The beginning, the middle of nowhere, and a lap and a bit before the sixteen lap bits run over.
fn first_ticket(capacity: u32) -> impl Strategy<Value = u64> {
    let capacity = u64::from(capacity);
    prop_oneof![Just(0), 0..1u64 << 40, 65533 * capacity..65536 * capacity]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn capacity_1((first, ops) in (first_ticket(1), ops(1))) {
        run(1, first, ops)?;
    }

    #[test]
    fn capacity_2((first, ops) in (first_ticket(2), ops(2))) {
        run(2, first, ops)?;
    }

    #[test]
    fn capacity_64((first, ops) in (first_ticket(64), ops(64))) {
        run(64, first, ops)?;
    }
}
