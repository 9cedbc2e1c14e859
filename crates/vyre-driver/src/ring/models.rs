//! The ring under loom: every interleaving, and every reordering the orderings permit, of a few steps.
//!
//! One quarter to a slot and two lap bits keep the number of words small and let tags wrap within a model.
//! `PREEMPTIONS` bounds how often a thread is interrupted where it could go on; loom's authors find that two
//! or three expose nearly all faults, and the mutations of docs/testing.md bear them out here.
//!
//! loom remembers the last access to a word only, so a load by the thread that is to write hides an earlier
//! load by another, and with it interleavings. Which those are depends on which thread runs first: every
//! model is run with its two threads in either order.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p vyre-driver --release --lib models`

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::memory::{Cells, LoadWord, Memory, StoreWord};
use super::producer::{ProducerOptions, RingProducer};
use super::{Completion, RawTicket, RingConsumer, RingError, SlotImage, Ticket};
use crate::protocol::Fault;
use crate::sync::Ordering;
use crate::wait::{announce, must_wake};

const PREEMPTIONS: usize = 3;

enum Model {}

#[derive(Clone)]
struct ModelCells(std::sync::Arc<[[AtomicU64; 2]]>);

impl ModelCells {
    fn new(capacity: u32) -> ModelCells {
        ModelCells((0..capacity).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect())
    }
}

impl Cells for ModelCells {
    type Word = AtomicU64;
    type Group = [AtomicU64; 2];

    fn groups(&self) -> &[[AtomicU64; 2]] {
        &self.0
    }
}

impl LoadWord for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }
}

impl StoreWord for AtomicU64 {
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
}

impl Memory for Model {
    const QUARTERS: usize = 1;
    const LAP_BITS: u32 = 2;
    type Slots = ModelCells;
    type SlotsView = ModelCells;
    type Completions = ModelCells;
    type CompletionsView = ModelCells;
    type Park = ();
}

/// A ring, and what another incarnation needs to join it.
struct Ring {
    capacity: u32,
    slots: ModelCells,
    producer: RingProducer<Model>,
    consumer: RingConsumer<Model>,
}

impl Ring {
    fn new(capacity: u32) -> Arc<Ring> {
        Ring::starting_at(capacity, 0)
    }

    fn starting_at(capacity: u32, first_ticket: u64) -> Arc<Ring> {
        let (slots, completions) = (ModelCells::new(capacity), ModelCells::new(capacity));
        let options = ProducerOptions { first_ticket, ..ProducerOptions::default() };
        let producer =
            RingProducer::with_memory(0, capacity, slots.clone(), completions.clone(), (), options).unwrap();
        let consumer =
            RingConsumer::with_memory(capacity, slots.clone(), completions, first_ticket, Vec::new());
        Arc::new(Ring { capacity, slots, producer, consumer })
    }

    /// The next incarnation: turns the producer to it and answers its consumer.
    fn restart(&self) -> RingConsumer<Model> {
        let completions = ModelCells::new(self.capacity);
        self.producer.rebind(completions.clone(), ());
        let (first, skip) = self.producer.start_record();
        RingConsumer::with_memory(self.capacity, self.slots.clone(), completions, first, skip)
    }

    /// Claims an item, checks that it is what was submitted under its ticket, and completes it.
    fn serve(&self) -> Option<u64> {
        let claimed = self.consumer.claim()?;
        let ticket = claimed.ticket.position();
        assert_eq!(claimed.image, image(ticket), "the item of another ticket, or a mixture");
        self.consumer.complete(claimed.ticket, result(ticket)).unwrap();
        Some(ticket)
    }
}

/// Words that tell tickets apart in both halves of a quarter.
fn image(ticket: u64) -> SlotImage {
    let n = ticket as u32 + 1;
    let mut image = SlotImage::new(n, [0; 12]);
    image.args[..3].copy_from_slice(&[n, n + 100, n + 200]);
    image
}

fn result(ticket: u64) -> Completion {
    Completion::new(crate::Status::Done, ticket as u32 + 7, ticket + 1000).unwrap()
}

/// Runs two threads, here and in a new one, and the first in the new one if `swap` says so.
fn race<A: 'static, B: 'static>(
    swap: bool,
    first: impl FnOnce() -> A + 'static,
    second: impl FnOnce() -> B + 'static,
) -> (A, B) {
    if swap {
        let first = thread::spawn(first);
        let second = second();
        (first.join().unwrap(), second)
    } else {
        let second = thread::spawn(second);
        let first = first();
        (first, second.join().unwrap())
    }
}

/// Neither forgets the item nor takes it.
fn keep(ticket: Ticket<'_, Model>) {
    ticket.into_raw();
}

fn check(model: impl Fn(bool) + Send + Sync + Copy + 'static) {
    for swap in [false, true] {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(PREEMPTIONS);
        builder.check(move || model(swap));
    }
}

fn submit(ring: &Ring, ticket: u64) -> RawTicket {
    ring.producer.submit(&image(ticket)).unwrap().into_raw()
}

/// A ring with one item submitted, and two more handles to it.
fn one_item() -> (Arc<Ring>, Arc<Ring>, Arc<Ring>, RawTicket) {
    let ring = Ring::new(1);
    let raw = submit(&ring, 0);
    (Arc::clone(&ring), Arc::clone(&ring), ring, raw)
}

fn two(ring: &Arc<Ring>) -> (Arc<Ring>, Arc<Ring>) {
    (Arc::clone(ring), Arc::clone(ring))
}

#[test]
fn publish_and_claim() {
    check(|swap| {
        let ring = Ring::new(2);
        let (a, b) = two(&ring);
        let (early, served) = race(
            swap,
            move || {
                let raw = submit(&a, 0);
                a.producer.take_raw(raw).unwrap().ok_or(raw)
            },
            move || b.serve(),
        );
        match early {
            Ok(done) => assert_eq!(done, result(0)),
            Err(raw) => {
                assert_eq!(served.or_else(|| ring.serve()), Some(0));
                assert_eq!(ring.producer.take_raw(raw).unwrap(), Some(result(0)));
            }
        }
    });
}

#[test]
fn two_consumers_never_claim_one_item() {
    check(|swap| {
        let ring = Ring::new(2);
        ring.producer.submit_batch(&[image(0), image(1)]).unwrap().for_each(keep);
        let (a, b) = two(&ring);
        let (a, b) = race(swap, move || a.serve(), move || b.serve());
        let mut served = [a, b];
        served.sort();
        assert_eq!(served, [Some(0), Some(1)]);
    });
}

#[test]
fn a_slot_is_not_reused_under_a_slow_consumer() {
    // One consumer reads the slot while the other claims and completes it and the producer reuses it.
    check(|swap| {
        let (slow, fast, ring, raw) = one_item();
        let slow = thread::spawn(move || slow.serve());
        race(
            swap,
            move || fast.serve(),
            move || {
                if let Some(done) = ring.producer.take_raw(raw).unwrap() {
                    assert_eq!(done, result(0));
                    submit(&ring, 1);
                }
            },
        );
        slow.join().unwrap();
    });
}

#[test]
fn a_slot_freed_by_one_thread_is_reused_by_another() {
    check(|swap| {
        let (taker, submitter, ring, raw) = one_item();
        let server = thread::spawn(move || ring.serve());
        race(
            swap,
            move || assert!(taker.producer.take_raw(raw).unwrap().is_none_or(|done| done == result(0))),
            move || match submitter.producer.submit(&image(1)) {
                Ok(ticket) => keep(ticket),
                Err(error) => assert!(matches!(error, RingError::WouldBlock { oldest_untaken: 0 })),
            },
        );
        server.join().unwrap();
    });
}

#[test]
fn tags_wrap() {
    // Six laps of one slot with two lap bits, both sides in step.
    check(|swap| {
        const ITEMS: u64 = 6;
        let (a, b) = two(&Ring::new(1));
        race(
            swap,
            move || {
                for n in 0..ITEMS {
                    let raw = submit(&a, n);
                    loop {
                        match a.producer.take_raw(raw).unwrap() {
                            Some(done) => break assert_eq!(done, result(n)),
                            None => thread::yield_now(),
                        }
                    }
                }
            },
            move || {
                let mut next = 0;
                while next < ITEMS {
                    match b.serve() {
                        Some(ticket) => {
                            assert_eq!(ticket, next);
                            next += 1;
                        }
                        None => thread::yield_now(),
                    }
                }
            },
        );
    });
}

#[test]
fn a_ring_can_begin_in_the_lap_whose_tag_is_zero() {
    check(|swap| {
        let (a, b) = two(&Ring::starting_at(1, 3));
        race(
            swap,
            move || {
                let raw = submit(&a, 3);
                assert!(a.producer.take_raw(raw).unwrap().is_none_or(|done| done == result(3)));
            },
            move || b.serve(),
        );
    });
}

#[test]
fn a_full_ring_takes_one_of_two_submissions() {
    check(|swap| {
        let ring = Ring::new(1);
        let (a, b) = two(&ring);
        let submit = |ring: &Ring| match ring.producer.submit(&image(0)) {
            Ok(ticket) => {
                keep(ticket);
                1
            }
            Err(RingError::WouldBlock { oldest_untaken: 0 }) => 0,
            Err(error) => panic!("{error}"),
        };
        let (a, b) = race(swap, move || submit(&a), move || submit(&b));
        assert_eq!(a + b, 1);
        assert_eq!(ring.serve(), Some(0));
        assert_eq!(ring.serve(), None);
    });
}

#[test]
fn a_batch_is_all_or_none() {
    check(|swap| {
        let ring = Ring::new(2);
        let (a, b) = two(&ring);
        let (batch, single) = race(
            swap,
            move || a.producer.submit_batch(&[image(0), image(1)]).map(|tickets| tickets.for_each(keep)),
            move || b.producer.submit(&image(0)).map(keep),
        );
        assert!(batch.is_ok() != single.is_ok(), "{batch:?} {single:?}");
        let served = std::iter::from_fn(|| ring.serve()).count();
        assert_eq!(served, if batch.is_ok() { 2 } else { 1 });
    });
}

#[test]
fn a_batch_claim_stops_at_what_is_published() {
    check(|swap| {
        let (a, b) = two(&Ring::new(2));
        race(
            swap,
            move || a.producer.submit_batch(&[image(0), image(1)]).unwrap().for_each(keep),
            move || {
                let mut images = [SlotImage::default(); 2];
                let claims = b.consumer.claim_batch(&mut images);
                for (claim, found) in claims.zip(&images) {
                    assert_eq!(*found, image(claim.position()));
                }
            },
        );
    });
}

#[test]
fn a_poll_never_sees_the_next_laps_completion() {
    check(|swap| {
        let (a, b, ring, raw) = one_item();
        assert_eq!(ring.serve(), Some(0));
        race(
            swap,
            move || {
                assert_eq!(a.producer.take_raw(raw).unwrap(), Some(result(0)));
                submit(&a, 1);
                assert_eq!(a.serve(), Some(1));
            },
            move || match b.producer.poll_raw(raw) {
                Ok(found) => assert_eq!(found, Some(result(0))),
                Err(error) => assert!(matches!(error, RingError::AlreadyTaken { ticket: 0 }), "{error}"),
            },
        );
    });
}

#[test]
fn two_takers_of_one_ticket() {
    check(|swap| {
        let (a, b, ring, raw) = one_item();
        let server = Arc::clone(&ring);
        let server = thread::spawn(move || server.serve());
        let (a, b) = race(swap, move || a.producer.take_raw(raw), move || b.producer.take_raw(raw));
        server.join().unwrap();
        let taken = [a, b].iter().filter(|take| matches!(take, Ok(Some(_)))).count();
        assert!(taken <= 1);
        assert_eq!(ring.producer.take_raw(raw).is_ok(), taken == 0);
    });
}

#[test]
fn a_detached_item_is_counted_once() {
    check(|swap| {
        let ring = Ring::new(1);
        ring.producer.submit_detached(&image(0)).unwrap();
        let (a, b) = two(&ring);
        let server = Arc::clone(&ring);
        let server = thread::spawn(move || server.serve());
        let (early, submitted) = race(
            swap,
            move || a.producer.counters().detached_done,
            move || b.producer.submit_detached(&image(1)).is_ok(),
        );
        server.join().unwrap();
        assert!(early <= 1);
        while ring.serve().is_some() {}
        let counters = ring.producer.counters();
        assert_eq!(counters.detached_done, 1 + u64::from(submitted));
        assert_eq!((counters.outstanding, counters.violations), (0, 0));
    });
}

#[test]
fn a_forgotten_ticket_frees_its_slot() {
    check(|swap| {
        let (a, b, ring, raw) = one_item();
        race(swap, move || a.producer.forget_raw(raw).unwrap(), move || b.serve());
        while ring.serve().is_some() {}
        submit(&ring, 1);
        assert_eq!(ring.producer.counters().detached_done, 1);
    });
}

#[test]
fn a_late_completion_of_a_dead_incarnation_is_believed_or_replayed_never_both() {
    check(|swap| {
        let (old, taker, ring, raw) = one_item();
        let claimed = ring.consumer.claim().unwrap();
        let recovery = Arc::clone(&ring);
        let old = thread::spawn(move || old.consumer.complete(claimed.ticket, Completion::done(1)).unwrap());
        let (replayed, taken) = race(
            swap,
            move || {
                let next = recovery.restart();
                next.claim().map(|claimed| {
                    assert_eq!(claimed.image, image(0));
                    next.complete(claimed.ticket, Completion::done(2)).unwrap();
                })
            },
            move || taker.producer.take_raw(raw).unwrap(),
        );
        old.join().unwrap();
        let taken = taken.or_else(|| ring.producer.take_raw(raw).unwrap());
        assert_eq!(taken, Some(Completion::done(if replayed.is_some() { 2 } else { 1 })));
        assert!(matches!(ring.producer.take_raw(raw), Err(RingError::AlreadyTaken { .. })));
    });
}

#[test]
fn a_detached_item_that_is_reaped_around_a_restart_is_freed_once() {
    check(|swap| {
        let ring = Ring::new(1);
        ring.producer.submit_detached(&image(0)).unwrap();
        let (old, reaper) = two(&ring);
        let claimed = ring.consumer.claim().unwrap();
        let recovery = Arc::clone(&ring);
        let old = thread::spawn(move || old.consumer.complete(claimed.ticket, Completion::done(1)).unwrap());
        race(
            swap,
            move || {
                let next = recovery.restart();
                if let Some(claimed) = next.claim() {
                    next.complete(claimed.ticket, Completion::done(2)).unwrap();
                }
            },
            move || reaper.producer.reap(|_, _| panic!("nobody holds the ticket")),
        );
        old.join().unwrap();
        ring.producer.sweep_detached();
        let counters = ring.producer.counters();
        assert_eq!((counters.outstanding, counters.detached_done), (0, 1));
    });
}

#[test]
fn an_item_submitted_around_a_restart_is_run_by_the_next_incarnation() {
    check(|swap| {
        let ring = Ring::new(1);
        let (a, b) = two(&ring);
        let (raw, next) = race(swap, move || submit(&a, 0), move || b.restart());
        let claimed = next.claim().unwrap();
        next.complete(claimed.ticket, result(0)).unwrap();
        assert_eq!(ring.producer.take_raw(raw).unwrap(), Some(result(0)));
    });
}

#[test]
fn an_incarnation_of_one_ticket_runs_it_alone_and_the_rest_is_left_to_the_next() {
    check(|swap| {
        let ring = Ring::new(2);
        let raws = [submit(&ring, 0), submit(&ring, 1)];
        // Ticket 0 is the one; nothing is acknowledged before its incarnation is gone.
        let completions = ModelCells::new(2);
        let (first, skip) = ring.producer.start_record_of_one(0);
        let alone: RingConsumer<Model> =
            RingConsumer::with_memory(2, ring.slots.clone(), completions.clone(), first, skip);
        let taker = Arc::clone(&ring);
        let seen = completions.clone();
        let (early, ()) = race(
            swap,
            move || {
                let early = taker.producer.take_raw(raws[0]).unwrap();
                let submitted = taker.producer.submit(&image(2)).map(keep).is_ok();
                (early, submitted, taker.producer.is_completed(&seen, 0))
            },
            move || {
                let claimed = alone.claim().unwrap();
                assert_eq!((claimed.ticket.position(), claimed.image), (0, image(0)));
                alone.complete(claimed.ticket, result(0)).unwrap();
                assert!(alone.claim().is_none());
            },
        );
        assert_eq!((early.0, early.1), (None, false), "acknowledged while its kernel could claim");
        assert!(ring.producer.is_completed(&completions, 0));
        ring.producer.rebind(completions, ());
        let next = ring.restart();
        assert_eq!(ring.producer.take_raw(raws[0]).unwrap(), Some(result(0)));
        let claimed = next.claim().unwrap();
        assert_eq!(claimed.ticket.position(), 1);
        next.complete(claimed.ticket, result(1)).unwrap();
        assert_eq!(ring.producer.take_raw(raws[1]).unwrap(), Some(result(1)));
    });
}

#[test]
fn recovery_reads_back_whole_items_only() {
    check(|swap| {
        let (a, b) = two(&Ring::new(1));
        race(
            swap,
            move || submit(&a, 0),
            move || b.producer.for_each_unacknowledged(|ticket, found| assert_eq!(found, image(ticket))),
        );
    });
}

#[test]
fn a_fault_by_the_host_races_a_completion_and_one_wins() {
    check(|swap| {
        let (old, taker, ring, raw) = one_item();
        let claimed = ring.consumer.claim().unwrap();
        let recovery = Arc::clone(&ring);
        let old = thread::spawn(move || old.consumer.complete(claimed.ticket, result(0)).unwrap());
        let (failed, taken) = race(
            swap,
            move || recovery.producer.fail(0, Fault::DeviceLost).unwrap(),
            move || taker.producer.take_raw(raw).unwrap(),
        );
        old.join().unwrap();
        let taken = taken.or_else(|| ring.producer.take_raw(raw).unwrap());
        let expected = if failed { Completion::fault(Fault::DeviceLost) } else { result(0) };
        assert_eq!(taken, Some(expected));
    });
}

/// A thread that publishes and one that goes to sleep unless it sees it: the first wakes it, or the second
/// stays awake.
fn wakes(swap: bool, publish: impl FnOnce() + 'static, ready: impl FnOnce() -> bool + 'static) {
    let count = Arc::new(AtomicU64::new(0));
    let sleepers = Arc::clone(&count);
    let (woken, asleep) = race(
        swap,
        move || {
            publish();
            must_wake(|| sleepers.load(Ordering::Relaxed) as u32)
        },
        move || {
            announce(|| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            !ready()
        },
    );
    assert!(woken || !asleep, "asleep for good");
}

#[test]
fn a_submission_wakes_a_consumer_that_goes_to_sleep() {
    check(|swap| {
        let (a, b) = two(&Ring::new(1));
        wakes(swap, move || _ = submit(&a, 0), move || b.consumer.is_ready());
    });
}

#[test]
fn a_completion_wakes_a_waiter_that_goes_to_sleep() {
    check(|swap| {
        let (a, b, _, raw) = one_item();
        wakes(swap, move || _ = a.serve(), move || b.producer.poll_raw(raw).unwrap().is_some());
    });
}
