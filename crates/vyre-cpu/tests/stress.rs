//! A kernel under load: producers that submit all the time, while it is quiesced and started again.

mod common;
#[path = "common/items.rs"]
mod items;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use items::*;
use vyre_driver::StartRequest;
use vyre_driver::protocol::opcode;
use vyre_driver::ring::{RawTicket, RingError, RingProducer, SlotImage};
use vyre_driver::wait::WaitStrategy;

const LONG: Duration = Duration::from_secs(20);
const PRODUCERS: u32 = 4;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a ticket must answer; `None` for one that only has to finish.
type Expected = Option<u64>;

fn any_item(random: &mut Random, bumps: &mut u64) -> (SlotImage, Expected) {
    let seed = random.below(1 << 32) as u32;
    match random.below(20) {
        0 => (image(opcode::BATCH_FENCE, &[random.below(4) as u32]), None),
        1 => (image(COUNT_UP, &[seed % 8, 0]), Some(u64::from(seed % 8))),
        2 => (image(SUM, &[seed % 200]), Some((0..u64::from(seed % 200)).sum())),
        3..8 => {
            *bumps += 1;
            (image(BUMP, &[0]), None)
        }
        _ => (image(HASH, &[seed % 300, seed]), Some(hash(seed % 300, seed))),
    }
}

/// Submits until told to stop; returns how many tickets were answered and how many of them bumped.
fn produce(producer: &RingProducer, ring: &dyn Fn(), seed: u64, stop: &AtomicBool) -> (u64, u64) {
    let mut random = Random(seed);
    let mut waiting: VecDeque<(RawTicket, Expected)> = VecDeque::new();
    let (mut answered, mut bumps) = (0, 0);
    let mut finish = |(ticket, expected): (RawTicket, Expected)| {
        let completion = producer.wait_raw(ticket, WaitStrategy::Park, LONG);
        let completion = completion.unwrap_or_else(|error| panic!("ticket {}: {error}", ticket.position()));
        assert!(completion.is_done(), "ticket {}: {completion:?}", ticket.position());
        if let Some(expected) = expected {
            assert_eq!(completion.result(), expected, "ticket {}", ticket.position());
        }
        // The name is spent: it is never answered twice.
        assert!(matches!(producer.take_raw(ticket), Err(RingError::AlreadyTaken { .. })));
        answered += 1;
    };
    while !stop.load(Ordering::Relaxed) {
        let mut of_batch = 0;
        let batch: Vec<_> = (0..random.below(6) + 1).map(|_| any_item(&mut random, &mut of_batch)).collect();
        let images: Vec<SlotImage> = batch.iter().map(|(image, _)| *image).collect();
        match producer.submit_batch(&images) {
            Ok(tickets) => {
                ring();
                bumps += of_batch;
                let tickets = tickets.map(|ticket| ticket.into_raw());
                waiting.extend(tickets.zip(batch.into_iter().map(|(_, expected)| expected)));
            }
            // The ring is full: one of its tickets is to be taken, ours or another's.
            Err(RingError::WouldBlock { .. }) if waiting.is_empty() => thread::yield_now(),
            Err(RingError::WouldBlock { .. }) => waiting.pop_front().into_iter().for_each(&mut finish),
            Err(error) => panic!("{error}"),
        }
        if random.below(4) == 0 {
            waiting.pop_front().into_iter().for_each(&mut finish);
        }
    }
    waiting.drain(..).for_each(&mut finish);
    (answered, bumps)
}

fn stress(threads: usize, capacity: u32, for_how_long: Duration) {
    let session = Session::new(common::backend(threads), capacity, 0);
    let (producer, pipeline) = (&session.producer, &session.pipeline);
    let stop = AtomicBool::new(false);
    let doorbell = vyre_driver::wait::Notifier::doorbell(&session.regions).unwrap();
    let restarts = AtomicU64::new(0);
    thread::scope(|scope| {
        let mut kernel = session.start().unwrap();
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|n| {
                let (stop, doorbell) = (&stop, &doorbell);
                scope.spawn(move || produce(producer, &|| doorbell.notify(), 77 + u64::from(n), stop))
            })
            .collect();
        let mut random = Random(99);
        let started = Instant::now();
        let mut regions = session.regions.clone();
        while started.elapsed() < for_how_long {
            thread::sleep(Duration::from_micros(random.below(4000)));
            kernel.quiesce(LONG).unwrap();
            regions = regions.fresh_d2h().unwrap();
            producer.rebind_d2h(&regions).unwrap();
            producer.write_start_record(&regions).unwrap();
            let request = StartRequest { regions: regions.clone(), ..session.request() };
            kernel = pipeline.start(request).unwrap();
            restarts.fetch_add(1, Ordering::Relaxed);
        }
        stop.store(true, Ordering::Relaxed);
        let (mut answered, mut bumps) = (0, 0);
        for thread in producers {
            let (a, b) = thread.join().unwrap();
            answered += a;
            bumps += b;
        }
        kernel.quiesce(LONG).unwrap();
        assert_eq!(producer.head(), answered, "tickets issued and answered");
        let mut word = [0; 4];
        vyre_driver::VyreBackend::read_buffer(&session.backend, session.state, 0, &mut word).unwrap();
        assert_eq!(u64::from(u32::from_le_bytes(word)), bumps, "an item ran twice, or not at all");
        assert!(restarts.load(Ordering::Relaxed) > 10 && answered > 1000, "{answered} answers");
        eprintln!(
            "{threads} workers, {capacity} slots: {answered} items, {} restarts",
            restarts.into_inner()
        );
    });
}

#[test]
fn restarts_under_load_lose_and_repeat_nothing() {
    stress(1, 64, Duration::from_secs(2));
    stress(3, 256, Duration::from_secs(2));
    stress(4, 16, Duration::from_secs(2));
}
