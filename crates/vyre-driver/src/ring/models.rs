//! The ring under loom: every interleaving, and every reordering the orderings permit, of a few steps.
//!
//! One quarter to a slot and two lap bits keep the number of words small and let tags wrap within a model.
//! `PREEMPTIONS` bounds how often a thread is interrupted where it could go on; loom's authors find that two
//! or three expose nearly all faults, and the mutations of docs/testing.md bear them out here.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p vyre-driver --release --lib models`

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;

use super::memory::{Cells, LoadWord, Memory, StoreWord};
use super::producer::{ProducerOptions, RingProducer};
use super::{Completion, RingConsumer, RingError, SlotImage, Ticket};
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

/// Neither forgets the item nor takes it.
fn keep(ticket: Ticket<'_, Model>) {
    ticket.into_raw();
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

#[test]
fn publish_and_claim() {
    check(|| {
        let ring = Ring::new(2);
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || other.serve());
        let mut ticket = ring.producer.submit(&image(0)).unwrap();
        let early = ticket.take().unwrap();
        assert!(early.is_none_or(|completion| completion == result(0)));
        let served = consumer.join().unwrap();
        if early.is_none() {
            assert_eq!(served.or_else(|| ring.serve()), Some(0));
            assert_eq!(ticket.take().unwrap(), Some(result(0)));
        }
    });
}

#[test]
fn two_consumers_never_claim_one_item() {
    check(|| {
        let ring = Ring::new(2);
        let tickets: Vec<_> = ring.producer.submit_batch(&[image(0), image(1)]).unwrap().collect();
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || other.serve());
        let mut served = vec![ring.serve(), consumer.join().unwrap()];
        served.sort();
        assert_eq!(served, [Some(0), Some(1)]);
        drop(tickets);
        assert_eq!(ring.producer.counters().completed, 2);
    });
}

#[test]
fn a_slot_is_not_reused_under_a_slow_consumer() {
    // One consumer reads the slot while the other claims and completes it and the producer reuses it.
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let (slow, fast) = (Arc::clone(&ring), Arc::clone(&ring));
        let slow = thread::spawn(move || slow.serve());
        let fast = thread::spawn(move || fast.serve());
        let taken = ring.producer.take_raw(raw).unwrap();
        if taken.is_some() {
            assert_eq!(taken, Some(result(0)));
            ring.producer.submit(&image(1)).unwrap().into_raw();
        }
        slow.join().unwrap();
        fast.join().unwrap();
    });
}

#[test]
fn a_slot_freed_by_one_thread_is_reused_by_another() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let (taker, submitter) = (Arc::clone(&ring), Arc::clone(&ring));
        let taker = thread::spawn(move || {
            assert!(taker.producer.take_raw(raw).unwrap().is_none_or(|done| done == result(0)));
        });
        let submitter = thread::spawn(move || match submitter.producer.submit(&image(1)) {
            Ok(ticket) => {
                ticket.into_raw();
            }
            Err(error) => assert!(matches!(error, RingError::WouldBlock { oldest_untaken: 0 })),
        });
        ring.serve();
        taker.join().unwrap();
        submitter.join().unwrap();
    });
}

#[test]
fn tags_wrap() {
    // Six laps of one slot with two lap bits, both sides in step.
    check(|| {
        const ITEMS: u64 = 6;
        let ring = Ring::new(1);
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || {
            let mut next = 0;
            while next < ITEMS {
                match other.serve() {
                    Some(ticket) => {
                        assert_eq!(ticket, next);
                        next += 1;
                    }
                    None => thread::yield_now(),
                }
            }
        });
        for n in 0..ITEMS {
            let mut ticket = ring.producer.submit(&image(n)).unwrap();
            loop {
                match ticket.take().unwrap() {
                    Some(done) => break assert_eq!(done, result(n)),
                    None => thread::yield_now(),
                }
            }
        }
        consumer.join().unwrap();
    });
}

#[test]
fn a_ring_can_begin_in_the_lap_whose_tag_is_zero() {
    check(|| {
        let ring = Ring::starting_at(1, 3);
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || other.serve());
        let mut ticket = ring.producer.submit(&image(3)).unwrap();
        assert!(ticket.take().unwrap().is_none_or(|done| done == result(3)));
        consumer.join().unwrap();
    });
}

#[test]
fn a_full_ring_takes_one_of_two_submissions() {
    check(|| {
        let ring = Ring::new(1);
        let other = Arc::clone(&ring);
        let submit = |ring: &Ring| match ring.producer.submit(&image(0)) {
            Ok(ticket) => Some(ticket.into_raw()),
            Err(RingError::WouldBlock { oldest_untaken: 0 }) => None,
            Err(error) => panic!("{error}"),
        };
        let thread = thread::spawn(move || submit(&other));
        let here = submit(&ring);
        let there = thread.join().unwrap();
        assert_eq!([here, there].iter().flatten().count(), 1);
        assert_eq!(ring.serve(), Some(0));
        assert_eq!(ring.serve(), None);
    });
}

#[test]
fn a_batch_is_all_or_none() {
    check(|| {
        let ring = Ring::new(2);
        let other = Arc::clone(&ring);
        let batch = thread::spawn(move || {
            other.producer.submit_batch(&[image(0), image(1)]).map(|tickets| tickets.for_each(keep))
        });
        let single = ring.producer.submit(&image(0)).map(keep);
        let batch = batch.join().unwrap();
        assert!(batch.is_ok() != single.is_ok(), "{batch:?} {single:?}");
        let served = std::iter::from_fn(|| ring.serve()).count();
        assert_eq!(served, if batch.is_ok() { 2 } else { 1 });
    });
}

#[test]
fn a_batch_claim_stops_at_what_is_published() {
    check(|| {
        let ring = Ring::new(2);
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || {
            let mut images = [SlotImage::default(); 2];
            let claims = other.consumer.claim_batch(&mut images);
            for (claim, found) in claims.zip(&images) {
                assert_eq!(*found, image(claim.position()));
            }
        });
        ring.producer.submit_batch(&[image(0), image(1)]).unwrap().for_each(keep);
        consumer.join().unwrap();
    });
}

#[test]
fn a_poll_never_sees_the_next_laps_completion() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        assert_eq!(ring.serve(), Some(0));
        let other = Arc::clone(&ring);
        let poller = thread::spawn(move || match other.producer.poll_raw(raw) {
            Ok(found) => assert_eq!(found, Some(result(0))),
            Err(error) => assert!(matches!(error, RingError::AlreadyTaken { ticket: 0 })),
        });
        assert_eq!(ring.producer.take_raw(raw).unwrap(), Some(result(0)));
        ring.producer.submit(&image(1)).unwrap().into_raw();
        assert_eq!(ring.serve(), Some(1));
        poller.join().unwrap();
    });
}

#[test]
fn two_takers_of_one_ticket() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let (consumer, taker) = (Arc::clone(&ring), Arc::clone(&ring));
        let consumer = thread::spawn(move || consumer.serve());
        let taker = thread::spawn(move || taker.producer.take_raw(raw));
        let takes = [ring.producer.take_raw(raw), taker.join().unwrap()];
        consumer.join().unwrap();
        let taken = takes.iter().filter(|take| matches!(take, Ok(Some(_)))).count();
        assert!(taken <= 1);
        assert_eq!(ring.producer.take_raw(raw).is_ok(), taken == 0);
    });
}

#[test]
fn a_detached_item_is_counted_once() {
    check(|| {
        let ring = Ring::new(1);
        ring.producer.submit_detached(&image(0)).unwrap();
        let (consumer, other) = (Arc::clone(&ring), Arc::clone(&ring));
        let consumer = thread::spawn(move || consumer.serve());
        let other = thread::spawn(move || other.producer.submit_detached(&image(1)).is_ok());
        let here = ring.producer.counters().detached_done;
        let submitted = other.join().unwrap();
        consumer.join().unwrap();
        assert!(here <= 1);
        while ring.serve().is_some() {}
        let counters = ring.producer.counters();
        assert_eq!(counters.detached_done, 1 + u64::from(submitted));
        assert_eq!((counters.outstanding, counters.violations), (0, 0));
    });
}

#[test]
fn a_forgotten_ticket_frees_its_slot() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let other = Arc::clone(&ring);
        let consumer = thread::spawn(move || other.serve());
        ring.producer.forget_raw(raw).unwrap();
        consumer.join().unwrap();
        while ring.serve().is_some() {}
        ring.producer.submit(&image(1)).unwrap().into_raw();
        assert_eq!(ring.producer.counters().detached_done, 1);
    });
}

#[test]
fn a_late_completion_of_a_dead_incarnation_is_believed_or_replayed_never_both() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let claimed = ring.consumer.claim().unwrap();
        let (old, taker) = (Arc::clone(&ring), Arc::clone(&ring));
        let old = thread::spawn(move || old.consumer.complete(claimed.ticket, Completion::done(1)).unwrap());
        let taker = thread::spawn(move || taker.producer.take_raw(raw).unwrap());
        let next = ring.restart();
        let replayed = next.claim().map(|claimed| {
            assert_eq!(claimed.image, image(0));
            next.complete(claimed.ticket, Completion::done(2)).unwrap();
        });
        old.join().unwrap();
        let taken = taker.join().unwrap().or_else(|| ring.producer.take_raw(raw).unwrap());
        assert_eq!(taken, Some(Completion::done(if replayed.is_some() { 2 } else { 1 })));
        assert!(matches!(ring.producer.take_raw(raw), Err(RingError::AlreadyTaken { .. })));
    });
}

#[test]
fn an_item_submitted_around_a_restart_is_run_by_the_next_incarnation() {
    check(|| {
        let ring = Ring::new(1);
        let other = Arc::clone(&ring);
        let submitter = thread::spawn(move || other.producer.submit(&image(0)).unwrap().into_raw());
        let next = ring.restart();
        let raw = submitter.join().unwrap();
        let claimed = next.claim().unwrap();
        next.complete(claimed.ticket, result(0)).unwrap();
        assert_eq!(ring.producer.take_raw(raw).unwrap(), Some(result(0)));
    });
}

#[test]
fn recovery_reads_back_whole_items_only() {
    check(|| {
        let ring = Ring::new(1);
        let other = Arc::clone(&ring);
        let submitter = thread::spawn(move || keep(other.producer.submit(&image(0)).unwrap()));
        ring.producer.for_each_unacknowledged(|ticket, found| assert_eq!(found, image(ticket)));
        submitter.join().unwrap();
    });
}

#[test]
fn a_fault_by_the_host_races_a_completion_and_one_wins() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let claimed = ring.consumer.claim().unwrap();
        let (old, taker) = (Arc::clone(&ring), Arc::clone(&ring));
        let old = thread::spawn(move || old.consumer.complete(claimed.ticket, result(0)).unwrap());
        let taker = thread::spawn(move || taker.producer.take_raw(raw).unwrap());
        let failed = ring.producer.fail(0, Fault::DeviceLost).unwrap();
        old.join().unwrap();
        let taken = taker.join().unwrap().or_else(|| ring.producer.take_raw(raw).unwrap());
        let expected = if failed { Completion::fault(Fault::DeviceLost) } else { result(0) };
        assert_eq!(taken, Some(expected));
    });
}

#[test]
fn a_submission_wakes_a_consumer_that_goes_to_sleep() {
    check(|| {
        let ring = Ring::new(1);
        let sleepers = Arc::new(AtomicU64::new(0));
        let (other, count) = (Arc::clone(&ring), Arc::clone(&sleepers));
        let consumer = thread::spawn(move || {
            announce(|| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            !other.consumer.is_ready()
        });
        ring.producer.submit(&image(0)).unwrap().into_raw();
        let woken = must_wake(|| sleepers.load(Ordering::Relaxed) as u32);
        assert!(woken || !consumer.join().unwrap(), "asleep for good");
    });
}

#[test]
fn a_completion_wakes_a_waiter_that_goes_to_sleep() {
    check(|| {
        let ring = Ring::new(1);
        let raw = ring.producer.submit(&image(0)).unwrap().into_raw();
        let sleepers = Arc::new(AtomicU64::new(0));
        let (other, count) = (Arc::clone(&ring), Arc::clone(&sleepers));
        let waiter = thread::spawn(move || {
            announce(|| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            other.producer.poll_raw(raw).unwrap().is_none()
        });
        assert_eq!(ring.serve(), Some(0));
        let woken = must_wake(|| sleepers.load(Ordering::Relaxed) as u32);
        assert!(woken || !waiter.join().unwrap(), "asleep for good");
    });
}
