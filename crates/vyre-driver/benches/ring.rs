//! The ring beside what it must beat, in the same run: a pair of `ArrayQueue`s, 64 bytes out, 16 back.
//!
//! `cargo bench -p vyre-driver`; for ratios that survive a noisy machine, `examples/ring_ratio.rs`
//! interleaves the two.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::Backoff;
use vyre_driver::ring::{Completion, PersistentRing, SlotImage};

const CAPACITY: usize = 1024;
const BATCH: usize = 32;

fn image(n: u64) -> SlotImage {
    SlotImage::new(8, [n as u32; 12])
}

fn ring() -> PersistentRing {
    PersistentRing::new(CAPACITY as u32).expect("memfds can be made here")
}

fn queues() -> (ArrayQueue<[u64; 8]>, ArrayQueue<[u64; 2]>) {
    (ArrayQueue::new(CAPACITY), ArrayQueue::new(CAPACITY))
}

fn one_thread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("item out and back, one thread");
    group.throughput(Throughput::Elements(1));
    let (ring, mut n) = (ring(), 0);
    group.bench_function("ring", |bencher| {
        bencher.iter(|| {
            n += 1;
            let mut ticket = ring.submit(black_box(&image(n))).expect("the ring is empty");
            let claimed = ring.claim().expect("just submitted");
            let result = u64::from(black_box(&claimed.image).args[0]);
            ring.complete(claimed.ticket, Completion::done(result)).expect("claimed here");
            ring.take(&mut ticket).expect("just completed")
        });
    });
    let ((out, back), mut n) = (queues(), 0);
    group.bench_function("queues", |bencher| {
        bencher.iter(|| {
            n += 1;
            out.push(black_box([n; 8])).expect("the queue is empty");
            let item = out.pop().expect("just pushed");
            back.push([black_box(&item)[0], 3]).expect("the queue is empty");
            back.pop().expect("just pushed")
        });
    });
    group.finish();
}

fn ring_threads(items: u64) -> Duration {
    let ring = ring();
    std::thread::scope(|scope| {
        let start = Instant::now();
        scope.spawn(|| {
            let (mut left, mut backoff) = (items, Backoff::new());
            while left > 0 {
                match ring.claim() {
                    Some(claimed) => {
                        backoff = Backoff::new();
                        let result = u64::from(claimed.image.args[0]);
                        ring.complete(claimed.ticket, Completion::done(result)).expect("claimed here");
                        left -= 1;
                    }
                    None => backoff.snooze(),
                }
            }
        });
        let (mut sent, mut taken) = (0, 0);
        let mut tickets = std::collections::VecDeque::with_capacity(CAPACITY);
        let mut backoff = Backoff::new();
        while taken < items {
            let before = (sent, taken);
            if sent < items
                && let Ok(ticket) = ring.submit(&image(sent))
            {
                tickets.push_back(ticket.into_raw());
                sent += 1;
            }
            if let Some(&ticket) = tickets.front()
                && ring.producer().take_raw(ticket).expect("our own ticket").is_some()
            {
                tickets.pop_front();
                taken += 1;
            }
            if before == (sent, taken) { backoff.snooze() } else { backoff = Backoff::new() }
        }
        start.elapsed()
    })
}

fn queue_threads(items: u64) -> Duration {
    let (out, back) = queues();
    std::thread::scope(|scope| {
        let start = Instant::now();
        scope.spawn(|| {
            let (mut left, mut backoff) = (items, Backoff::new());
            while left > 0 {
                match out.pop() {
                    Some(item) => {
                        backoff = Backoff::new();
                        while back.push([item[0], 3]).is_err() {
                            backoff.snooze();
                        }
                        left -= 1;
                    }
                    None => backoff.snooze(),
                }
            }
        });
        let (mut sent, mut taken, mut backoff) = (0, 0, Backoff::new());
        while taken < items {
            let before = (sent, taken);
            if sent < items && out.push([sent; 8]).is_ok() {
                sent += 1;
            }
            if back.pop().is_some() {
                taken += 1;
            }
            if before == (sent, taken) { backoff.snooze() } else { backoff = Backoff::new() }
        }
        start.elapsed()
    })
}

fn two_threads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("items out and back, a producer and a consumer");
    group.throughput(Throughput::Elements(100_000));
    let times = |run: fn(u64) -> Duration| move |rounds| (0..rounds).map(|_| run(100_000)).sum();
    group.bench_function("ring", |bencher| bencher.iter_custom(times(ring_threads)));
    group.bench_function("queues", |bencher| bencher.iter_custom(times(queue_threads)));
    group.finish();
}

/// How long it takes to submit and claim a ring's worth. Completing and taking it is not timed.
fn ring_round(ring: &PersistentRing, images: &[SlotImage; BATCH]) -> Duration {
    let mut claimed = [SlotImage::default(); BATCH];
    let mut batches = Vec::with_capacity(CAPACITY / BATCH);
    let start = Instant::now();
    for _ in 0..CAPACITY / BATCH {
        let tickets = ring.submit_batch(black_box(images)).expect("the ring has room");
        let claims = ring.consumer().claim_batch(&mut claimed);
        assert_eq!(claims.len(), BATCH);
        black_box(&claimed);
        batches.push((tickets, claims));
    }
    let spent = start.elapsed();
    for (tickets, claims) in batches {
        for (mut ticket, claim) in tickets.zip(claims) {
            ring.complete(claim, Completion::done(0)).expect("claimed here");
            ring.take(&mut ticket).expect("just completed");
        }
    }
    spent
}

fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a ring's worth of items, one thread");
    group.throughput(Throughput::Elements(CAPACITY as u64));
    let images: [SlotImage; BATCH] = std::array::from_fn(|n| image(n as u64));
    let ring = ring();
    group.bench_function("ring, submit and claim 32 at a time", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| ring_round(&ring, &images)).sum());
    });
    let (queue, _) = queues();
    group.bench_function("queue, push and pop one by one", |bencher| {
        bencher.iter(|| {
            for n in 0..CAPACITY as u64 {
                queue.push(black_box([n; 8])).expect("the queue is empty");
                black_box(queue.pop().expect("just pushed"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, one_thread, two_threads, batches);
criterion_main!(benches);
