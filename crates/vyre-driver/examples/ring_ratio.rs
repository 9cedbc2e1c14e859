//! Measures the ring against a pair of `crossbeam_queue::ArrayQueue`s (64 bytes out, 16 bytes back), the
//! two interleaved in one run so that a noisy machine disturbs both alike, and prints medians and ratios.
//!
//! `cargo run --release -p vyre-driver --example ring_ratio`

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::Backoff;
use vyre_driver::layout::RegionConfig;
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{Completion, PersistentRing, ProducerOptions, RingConsumer, RingProducer, SlotImage};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CAPACITY: u32 = 1024;
const BATCH: usize = 32;

struct Halves {
    producer: RingProducer,
    consumer: RingConsumer,
}

impl Halves {
    fn new(capacity: u32) -> Fallible<Halves> {
        let regions = SessionRegions::create(&RegionConfig::new(capacity))?;
        let producer = RingProducer::new(&regions, 0, ProducerOptions::default())?;
        Ok(Halves { consumer: RingConsumer::new(&regions, 0)?, producer })
    }
}

struct Pair {
    out: ArrayQueue<[u64; 8]>,
    back: ArrayQueue<[u64; 2]>,
}

fn image(n: u32) -> SlotImage {
    SlotImage::new(8, [n; 12])
}

/// Nanoseconds an item, submitted, claimed, completed and taken on one thread.
fn ring_alone(ring: &Halves, items: u32) -> Fallible<f64> {
    let start = Instant::now();
    for n in 0..items {
        let mut ticket = ring.producer.submit(black_box(&image(n)))?;
        let claimed = ring.consumer.claim().ok_or("nothing to claim")?;
        let result = u64::from(claimed.image.args[0]);
        black_box(&claimed.image);
        ring.consumer.complete(claimed.ticket, Completion::done(result))?;
        let done = ticket.take()?.ok_or("nothing to take")?;
        assert_eq!(done.result(), u64::from(n));
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(items))
}

/// The same, looking for sleepers to wake after each submission and each completion.
fn waking_ring_alone(ring: &PersistentRing, items: u32) -> Fallible<f64> {
    let start = Instant::now();
    for n in 0..items {
        let mut ticket = ring.submit(black_box(&image(n)))?;
        ring.wake_consumers();
        let claimed = ring.claim().ok_or("nothing to claim")?;
        let result = u64::from(claimed.image.args[0]);
        black_box(&claimed.image);
        ring.complete(claimed.ticket, Completion::done(result))?;
        ring.wake_waiters();
        let done = ring.take(&mut ticket)?.ok_or("nothing to take")?;
        assert_eq!(done.result(), u64::from(n));
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(items))
}

fn pair_alone(pair: &Pair, items: u32) -> Fallible<f64> {
    let start = Instant::now();
    for n in 0..items {
        pair.out.push(black_box([u64::from(n); 8])).map_err(|_| "full")?;
        let item = pair.out.pop().ok_or("empty")?;
        let result = item[0];
        black_box(&item);
        pair.back.push([result, 3]).map_err(|_| "full")?;
        let done = pair.back.pop().ok_or("empty")?;
        assert_eq!(done[0], u64::from(n));
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(items))
}

/// Nanoseconds an item with one producing and one consuming thread, a full ring's worth in flight. Tickets
/// wait by name, as those of a session do.
fn ring_threads(ring: &Halves, items: u32) -> Fallible<f64> {
    std::thread::scope(|scope| {
        let start = Instant::now();
        let consumer = scope.spawn(|| -> Fallible<()> {
            let (mut done, mut backoff) = (0, Backoff::new());
            while done < items {
                match ring.consumer.claim() {
                    Some(claimed) => {
                        backoff = Backoff::new();
                        let result = u64::from(claimed.image.args[0]);
                        ring.consumer.complete(claimed.ticket, Completion::done(result))?;
                        done += 1;
                    }
                    None => backoff.snooze(),
                }
            }
            Ok(())
        });
        let mut tickets = std::collections::VecDeque::with_capacity(CAPACITY as usize);
        let (mut sent, mut taken, mut backoff) = (0, 0, Backoff::new());
        while taken < items {
            let before = (sent, taken);
            if sent < items
                && let Ok(ticket) = ring.producer.submit(&image(sent))
            {
                tickets.push_back(ticket.into_raw());
                sent += 1;
            }
            if let Some(&ticket) = tickets.front()
                && let Some(done) = ring.producer.take_raw(ticket)?
            {
                assert_eq!(done.result(), u64::from(taken));
                tickets.pop_front();
                taken += 1;
            }
            if before == (sent, taken) { backoff.snooze() } else { backoff = Backoff::new() }
        }
        consumer.join().map_err(|_| "the consumer panicked")??;
        Ok(start.elapsed().as_nanos() as f64 / f64::from(items))
    })
}

fn pair_threads(pair: &Pair, items: u32) -> Fallible<f64> {
    std::thread::scope(|scope| {
        let start = Instant::now();
        let consumer = scope.spawn(|| {
            let (mut done, mut backoff) = (0, Backoff::new());
            while done < items {
                match pair.out.pop() {
                    Some(item) => {
                        backoff = Backoff::new();
                        while pair.back.push([item[0], 3]).is_err() {
                            backoff.snooze();
                        }
                        done += 1;
                    }
                    None => backoff.snooze(),
                }
            }
        });
        let (mut sent, mut taken, mut backoff) = (0, 0, Backoff::new());
        while taken < items {
            let before = (sent, taken);
            if sent < items && pair.out.push([u64::from(sent); 8]).is_ok() {
                sent += 1;
            }
            if let Some(done) = pair.back.pop() {
                assert_eq!(done[0], u64::from(taken));
                taken += 1;
            }
            if before == (sent, taken) { backoff.snooze() } else { backoff = Backoff::new() }
        }
        consumer.join().map_err(|_| "the consumer panicked")?;
        Ok(start.elapsed().as_nanos() as f64 / f64::from(items))
    })
}

/// Nanoseconds an item, submitted and claimed 32 at a time; completing and taking is not timed.
fn ring_batches(ring: &Halves, rounds: u32) -> Fallible<f64> {
    let images: [SlotImage; BATCH] = std::array::from_fn(|n| image(n as u32));
    let mut claimed = [SlotImage::default(); BATCH];
    let (mut claims, mut tickets) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    let mut spent = 0;
    for _ in 0..rounds {
        let start = Instant::now();
        for _ in 0..CAPACITY as usize / BATCH {
            tickets.push(ring.producer.submit_batch(black_box(&images))?);
            let got = ring.consumer.claim_batch(&mut claimed);
            black_box(&claimed);
            if got.len() != BATCH {
                return Err("a short claim".into());
            }
            claims.push(got);
        }
        spent += start.elapsed().as_nanos();
        for claim in claims.drain(..).flatten() {
            ring.consumer.complete(claim, Completion::done(0))?;
        }
        for mut ticket in tickets.drain(..).flatten() {
            ticket.take()?.ok_or("nothing to take")?;
        }
    }
    Ok(spent as f64 / (f64::from(rounds) * f64::from(CAPACITY)))
}

fn queue_one_by_one(pair: &Pair, rounds: u32) -> Fallible<f64> {
    let mut spent = 0;
    for _ in 0..rounds {
        let start = Instant::now();
        for n in 0..u64::from(CAPACITY) {
            pair.out.push(black_box([n; 8])).map_err(|_| "full")?;
            black_box(pair.out.pop().ok_or("empty")?);
        }
        spent += start.elapsed().as_nanos();
    }
    Ok(spent as f64 / (f64::from(rounds) * f64::from(CAPACITY)))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(
    name: &str,
    bar: &str,
    rounds: usize,
    mut ring: impl FnMut() -> Fallible<f64>,
    mut pair: impl FnMut() -> Fallible<f64>,
) -> Fallible<()> {
    let (mut rings, mut pairs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (a, b) = (ring()?, pair()?);
        rings.push(a);
        pairs.push(b);
        ratios.push(a / b);
    }
    println!(
        "{name:<44} ring {:6.1} ns, queues {:6.1} ns, ratio of times {:.2} ({bar})",
        median(rings),
        median(pairs),
        median(ratios)
    );
    Ok(())
}

fn main() -> Fallible<()> {
    let ring = Halves::new(CAPACITY)?;
    let waking = PersistentRing::new(CAPACITY)?;
    let pair = Pair { out: ArrayQueue::new(CAPACITY as usize), back: ArrayQueue::new(CAPACITY as usize) };
    let rounds = 101;
    compare(
        "one item, one thread",
        "bar: at most 0.90",
        rounds,
        || ring_alone(&ring, 20_000),
        || pair_alone(&pair, 20_000),
    )?;
    compare(
        "one item, one thread, waking sleepers",
        "no bar",
        rounds,
        || waking_ring_alone(&waking, 20_000),
        || pair_alone(&pair, 20_000),
    )?;
    compare(
        "one producer thread, one consumer thread",
        "bar: at most 1.00",
        rounds,
        || ring_threads(&ring, 50_000),
        || pair_threads(&pair, 50_000),
    )?;
    compare(
        "batch of 32, submit and claim",
        "bar: at most 0.35",
        rounds,
        || ring_batches(&ring, 20),
        || queue_one_by_one(&pair, 20),
    )?;
    Ok(())
}
