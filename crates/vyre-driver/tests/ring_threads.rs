//! The ring with many threads on both sides, restarts among them, and with another process.
#![cfg(not(loom))]

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vyre_driver::layout::RegionConfig;
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{
    Completion, PersistentRing, ProducerOptions, RingConsumer, RingError, RingProducer, SlotImage,
};
use vyre_driver::view::DeviceView;
use vyre_driver::wait::{Notifier, WaitStrategy, Waiter};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PATIENCE: Duration = Duration::from_secs(60);

fn image(argument: u64) -> SlotImage {
    let (lo, hi) = (argument as u32, (argument >> 32) as u32);
    SlotImage::new(
        8,
        [lo, hi, lo ^ 1, hi ^ 2, lo ^ 3, hi ^ 4, lo ^ 5, hi ^ 6, lo ^ 7, hi ^ 8, lo ^ 9, hi ^ 10],
    )
}

/// The item's argument, if all of its words belong together.
fn argument(found: &SlotImage) -> u64 {
    let argument = u64::from(found.args[0]) | u64::from(found.args[1]) << 32;
    assert_eq!(*found, image(argument), "a mixture of items");
    argument
}

fn answer(argument: u64) -> Completion {
    Completion::done(argument.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Claims in batches of varying size and completes backwards, until told to stop.
fn consume(consumer: &RingConsumer, idle: &Waiter, completed: &Notifier, stop: &AtomicBool) -> Fallible<()> {
    let mut images = [SlotImage::default(); 7];
    let mut most = 1;
    loop {
        let last = stop.load(Ordering::Acquire);
        most = most % images.len() + 1;
        let claims = consumer.claim_batch(&mut images[..most]);
        if claims.len() == 0 {
            if last {
                return Ok(());
            }
            idle.park(Duration::from_millis(1), || consumer.is_ready());
            continue;
        }
        let mut claims: Vec<_> = claims.zip(&images).collect();
        while let Some((claim, found)) = claims.pop() {
            consumer.complete(claim, answer(argument(found)))?;
        }
        completed.notify();
    }
}

#[test]
fn every_item_is_answered_once_across_restarts() -> Fallible<()> {
    const PRODUCERS: u64 = 3;
    const ITEMS: u64 = 20_000;
    for capacity in [1, 2, 64] {
        let regions = SessionRegions::create(&RegionConfig::new(capacity))?;
        // So that the sixteen lap bits run over in the middle.
        let first_ticket = 65500 * u64::from(capacity);
        let options = ProducerOptions { first_ticket, ..ProducerOptions::default() };
        let producer = RingProducer::new(&regions.for_host()?, 0, options)?;
        producer.write_start_record(&regions)?;
        let bell = Mutex::new(Notifier::doorbell(&regions)?);
        let items = if capacity == 1 { ITEMS / 4 } else { ITEMS };
        let left = AtomicU64::new(PRODUCERS);
        thread::scope(|scope| -> Fallible<()> {
            let (producer, bell, left) = (&producer, &bell, &left);
            let produce = move |me: u64| -> Fallible<()> {
                let strategies = [WaitStrategy::Yield, WaitStrategy::Park, WaitStrategy::Park];
                let mut next = 0;
                while next < items {
                    let count = (next % u64::from(capacity.min(5)) + 1).min(items - next);
                    let arguments: Vec<_> = (next..next + count).map(|n| me << 40 | n).collect();
                    let images: Vec<_> = arguments.iter().map(|&n| image(n)).collect();
                    match producer.submit_batch(&images) {
                        Ok(tickets) => {
                            bell.lock().map_err(|_| "poisoned")?.notify();
                            for (mut ticket, n) in tickets.zip(arguments) {
                                let strategy = strategies[(n % 3) as usize];
                                assert_eq!(ticket.wait(strategy, PATIENCE)?, answer(n));
                            }
                            next += count;
                        }
                        Err(RingError::WouldBlock { .. }) => thread::yield_now(),
                        Err(error) => return Err(error.into()),
                    }
                }
                left.fetch_sub(1, Ordering::AcqRel);
                Ok(())
            };
            let producers: Vec<_> = (0..PRODUCERS).map(|me| scope.spawn(move || produce(me))).collect();
            let mut regions = regions.clone();
            while left.load(Ordering::Acquire) > 0 {
                // One incarnation: two consumers for a moment, then quiesced.
                let stop = AtomicBool::new(false);
                let consumer = RingConsumer::new(&regions, 0)?;
                thread::scope(|scope| -> Fallible<()> {
                    let (regions, consumer, stop) = (&regions, &consumer, &stop);
                    let work = move || -> Fallible<()> {
                        consume(consumer, &Waiter::doorbell(regions)?, &Notifier::completion(regions)?, stop)
                    };
                    let workers = [scope.spawn(work), scope.spawn(work)];
                    let until = Instant::now() + Duration::from_millis(20);
                    while Instant::now() < until && left.load(Ordering::Acquire) > 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    stop.store(true, Ordering::Release);
                    workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "panicked")?)
                })?;
                regions = regions.fresh_d2h()?;
                producer.rebind_d2h(&regions.for_host()?)?;
                producer.write_start_record(&regions)?;
                *bell.lock().map_err(|_| "poisoned")? = Notifier::doorbell(&regions)?;
            }
            producers.into_iter().try_for_each(|producer| producer.join().map_err(|_| "panicked")?)
        })?;
        let counters = producer.counters();
        assert_eq!((counters.published, counters.outstanding), (PRODUCERS * items, 0));
        assert_eq!(counters.violations, 0);
    }
    Ok(())
}

#[test]
fn detached_items_and_reaping_lose_nothing() -> Fallible<()> {
    const ITEMS: u64 = 30_000;
    let regions = SessionRegions::create(&RegionConfig::new(16))?;
    let faults = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&faults);
    let options = ProducerOptions {
        on_detached_fault: Some(Box::new(move |ticket, completion| {
            assert_eq!(completion.code() as u64, ticket.position() + 1);
            if let Ok(mut seen) = seen.lock() {
                seen.push(ticket.position());
            }
        })),
        ..ProducerOptions::default()
    };
    let ring = PersistentRing::over(&regions, options)?;
    let done = AtomicBool::new(false);
    let mut reaped = HashSet::new();
    thread::scope(|scope| -> Fallible<()> {
        let (ring, done) = (&ring, &done);
        let consumer = scope.spawn(move || -> Fallible<()> {
            while !done.load(Ordering::Acquire) || ring.consumer().is_ready() {
                match ring.claim() {
                    Some(claimed) => {
                        // Every seventh item faults, with a code of its own.
                        let n = argument(&claimed.image);
                        let status = if n.is_multiple_of(7) {
                            vyre_driver::Status::Fault
                        } else {
                            vyre_driver::Status::Done
                        };
                        let code = claimed.ticket.position() as u32 + 1;
                        ring.complete(claimed.ticket, Completion::new(status, code, n)?)?;
                    }
                    None => thread::yield_now(),
                }
            }
            Ok(())
        });
        let mut n = 0;
        while n < ITEMS {
            let submitted = match n % 3 {
                0 => ring.submit(&image(n)).map(|ticket| _ = ticket.into_raw()),
                1 => ring.submit(&image(n)).map(drop),
                _ => ring.producer().submit_detached(&image(n)).map(drop),
            };
            match submitted {
                Ok(()) => n += 1,
                Err(RingError::WouldBlock { .. }) => {
                    ring.reap(|ticket, completion| {
                        assert_eq!(completion.result(), ticket.position());
                        assert!(reaped.insert(ticket.position()), "reaped twice");
                    });
                    thread::yield_now();
                }
                Err(error) => return Err(error.into()),
            }
        }
        done.store(true, Ordering::Release);
        consumer.join().map_err(|_| "panicked")?
    })?;
    ring.reap(|ticket, _| assert!(reaped.insert(ticket.position()), "reaped twice"));
    let tracked: HashSet<_> = (0..ITEMS).filter(|n| n % 3 == 0).collect();
    assert_eq!(reaped, tracked);
    let mut faults = faults.lock().map_err(|_| "poisoned")?.clone();
    faults.sort_unstable();
    let expected: Vec<_> = (0..ITEMS).filter(|n| n % 3 != 0 && n % 7 == 0).collect();
    assert_eq!(faults, expected);
    let counters = ring.counters();
    assert_eq!(counters.detached_faults, expected.len() as u64);
    assert_eq!(counters.detached_done + counters.detached_faults, ITEMS - tracked.len() as u64);
    assert_eq!((counters.completed, counters.outstanding, counters.violations), (ITEMS, 0, 0));
    Ok(())
}

#[test]
fn a_wait_that_expires_says_what_it_waited_for() -> Fallible<()> {
    let ring = PersistentRing::new(2)?;
    let mut ticket = ring.submit(&image(1))?;
    for strategy in [WaitStrategy::Spin, WaitStrategy::Yield, WaitStrategy::Park] {
        for timeout in [Duration::ZERO, Duration::from_millis(2)] {
            let start = Instant::now();
            let error = ring.wait(&mut ticket, strategy, timeout).err().ok_or("nobody completed it")?;
            assert!(start.elapsed() >= timeout);
            assert_eq!(
                error.to_string(),
                format!(
                    "deadline of {timeout:?} passed waiting for the completion of ticket 0; see that a consumer runs, or wait longer"
                )
            );
            assert!(error.is_retryable());
        }
    }
    let claimed = ring.claim().ok_or("published, yet not claimable")?;
    ring.complete(claimed.ticket, answer(1))?;
    assert_eq!(ring.wait(&mut ticket, WaitStrategy::Park, Duration::ZERO)?, answer(1));
    Ok(())
}

const CHILD: &str = "VYRE_TEST_CHILD";
const ITEMS_FOR_CHILD: u64 = 5_000;

/// Run by the test below in a process of its own: maps the parent's regions and serves the ring.
#[test]
fn child_process() -> Fallible<()> {
    let Ok(place) = std::env::var(CHILD) else { return Ok(()) };
    let (h2d, d2h) = place.split_once(' ').ok_or("two paths")?;
    let h2d = OwnedFd::from(OpenOptions::new().read(true).open(h2d)?);
    let d2h = OwnedFd::from(OpenOptions::new().read(true).write(true).open(d2h)?);
    let regions = SessionRegions::attach(h2d, d2h)?;
    let device = DeviceView::new(&regions)?;
    let (idle, completed) = (Waiter::doorbell(&regions)?, Notifier::completion(&regions)?);
    let consumer = RingConsumer::new(&regions, 0)?;
    let until = Instant::now() + PATIENCE;
    while !device.is_aborted()? && Instant::now() < until {
        match consumer.claim() {
            Some(claimed) => {
                consumer.complete(claimed.ticket, answer(argument(&claimed.image)))?;
                completed.notify();
                device.beat()?;
            }
            None => idle.park(Duration::from_millis(1), || consumer.is_ready()),
        }
    }
    Ok(())
}

fn spawn_child(regions: &SessionRegions) -> Fallible<Child> {
    let path = |fd: i32| format!("/proc/{}/fd/{fd}", std::process::id());
    let place = format!("{} {}", path(regions.h2d.fd().as_raw_fd()), path(regions.d2h.fd().as_raw_fd()));
    let test = Command::new(std::env::current_exe()?)
        .args(["--exact", "child_process"])
        .env(CHILD, place)
        .spawn()?;
    Ok(test)
}

#[test]
fn another_process_serves_the_ring_and_another_one_after_it_was_killed() -> Fallible<()> {
    let mut regions = SessionRegions::create(&RegionConfig::new(32))?;
    let producer = RingProducer::new(&regions.for_host()?, 0, ProducerOptions::default())?;
    let host = vyre_driver::view::HostView::new(&regions)?;
    let mut child = spawn_child(&regions)?;
    let mut next = 0;
    for round in 0..2 {
        let bell = Notifier::doorbell(&regions)?;
        while next < (round + 1) * ITEMS_FOR_CHILD {
            let images: Vec<_> = (next..next + 8).map(image).collect();
            let tickets = producer.submit_batch(&images)?;
            bell.notify();
            for (mut ticket, n) in tickets.zip(next..) {
                assert_eq!(ticket.wait(WaitStrategy::Park, PATIENCE)?, answer(n));
            }
            next += 8;
        }
        if round == 0 {
            // Killed with items on the way; the next incarnation finds what is not acknowledged.
            let left = producer.submit_batch(&[image(next), image(next + 1)])?;
            child.kill()?;
            child.wait()?;
            regions = regions.fresh_d2h()?;
            producer.rebind_d2h(&regions.for_host()?)?;
            producer.write_start_record(&regions)?;
            child = spawn_child(&regions)?;
            for (mut ticket, n) in left.zip(next..) {
                assert_eq!(ticket.wait(WaitStrategy::Park, PATIENCE)?, answer(n));
            }
            next += 2;
        }
    }
    host.set_abort(true)?;
    assert!(child.wait()?.success());
    assert_eq!(producer.counters().outstanding, 0);
    Ok(())
}
