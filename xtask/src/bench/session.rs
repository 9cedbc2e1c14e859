//! Turns that go through [`PersistentSession`], on any backend.
//!
//! Each turn starts a session and stops it, so that no resident kernel and no consumer thread is there while the
//! others have their turns. Starting, warming up and stopping are not timed. At the end the device's own count
//! must be the number of items.

use std::collections::VecDeque;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::time::{ClockId, clock_gettime};
use vyre_driver::VyreBackend;
use vyre_driver::wait::WaitStrategy;
use vyre_runtime::conformance::{GEMM_BINDINGS, gemm_handler, gemm_item};
use vyre_runtime::{
    BatchDescriptor, Megakernel, MegakernelError, PersistentSession, SessionOptions, SlotDescriptor, Tickets,
};

use super::items::{
    self, FoldItems, INPUT_BINDING, SCAN, ScanData, TABLE_BINDING, WORK, expect, fold_args, fold_result,
};
use super::measure::{Sample, Turn};
use super::products::{ProductData, bytes_of_halves};
use super::statistics::{latencies, record};

const SLOTS: u32 = 4096;
/// Nothing here takes a hundredth of it.
const DEADLINE: Duration = Duration::from_secs(60);
const WARM_UP: u32 = 256;
/// A product of 64 cubed is four tiles of a wave each: more invocations would wait.
const PRODUCT_INVOCATIONS: u32 = 128;
/// Workgroups of that size are more than the default counts on; fewer where fewer fit.
const PRODUCT_GROUPS: u32 = 512;

/// A megakernel with the opcodes of the bench, ready to be started.
pub(super) struct Ring {
    megakernel: Megakernel,
    load: Load,
}

/// What a megakernel has beside the opcodes that need no data.
pub(super) enum Load {
    Nothing,
    Scans(Arc<ScanData>),
    /// Needs a backend with the external function.
    Products(Arc<ProductData>),
}

/// A session of one turn, and how many items went into it.
struct Live {
    session: PersistentSession,
    submitted: u64,
}

/// How the fold items of a turn are fed.
#[derive(Clone, Copy)]
pub(super) struct Feed {
    pub(super) producers: u32,
    /// Items submitted at once.
    pub(super) batch: u32,
    /// Items of all producers.
    pub(super) items: u32,
}

impl Ring {
    /// Compiles.
    pub(super) fn new(backend: &Arc<dyn VyreBackend>, load: Load) -> Result<Ring> {
        let mut builder = Megakernel::builder(Arc::clone(backend)).slots(SLOTS);
        builder = builder.handler(items::fold_handler()).handler(items::work_handler());
        match &load {
            Load::Nothing => {}
            Load::Scans(data) => {
                builder = builder.handler(items::scan_handler());
                builder = builder.bind_bytes(TABLE_BINDING, items::bytes_of(&data.table));
                builder = builder.bind_bytes(INPUT_BINDING, data.input.clone());
            }
            Load::Products(data) => {
                let [a, b, c] = GEMM_BINDINGS;
                builder = builder.workgroup_size(PRODUCT_INVOCATIONS).handler(gemm_handler());
                builder =
                    builder.bind_bytes(a, bytes_of_halves(&data.a)).bind_bytes(b, bytes_of_halves(&data.b));
                builder = builder.bind_zeroed(c, data.len() as u64);
            }
        }
        Ok(Ring { megakernel: builder.build().context("build the megakernel")?, load })
    }

    fn start(&self, wait: WaitStrategy) -> Result<Live> {
        let mut options = SessionOptions::new().wait_strategy(wait);
        if matches!(self.load, Load::Products(_)) {
            options = options.worker_groups(PRODUCT_GROUPS);
        }
        let session = self.megakernel.start_with(options).context("start a session")?;
        let mut live = Live { session, submitted: 0 };
        live.fold(0, WARM_UP)?;
        Ok(live)
    }

    /// One fold item after the other, each from before its submission to after its acknowledgement.
    pub(super) fn one_item(&self, wait: WaitStrategy, round: u64, items: u32) -> Result<Turn> {
        let mut live = self.start(wait)?;
        let mut histogram = latencies()?;
        for n in numbers(round, items) {
            record(&mut histogram, live.one(n)?);
        }
        live.finish()?;
        Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
    }

    /// One fold item after each pause.
    pub(super) fn after_a_pause(&self, round: u64, items: u32, pause: Duration) -> Result<Turn> {
        let mut live = self.start(WaitStrategy::Spin)?;
        let mut histogram = latencies()?;
        for n in numbers(round, items) {
            std::thread::sleep(pause);
            record(&mut histogram, live.one(n)?);
        }
        live.finish()?;
        Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
    }

    /// CPU time of this process while a session has nothing to do.
    pub(super) fn idle(&self, round: u64, pause: Duration) -> Result<Turn> {
        let mut live = self.start(WaitStrategy::Park)?;
        let sample = cpu_time_of_a_pause(pause);
        // It was alive all the time.
        for n in numbers(round, 1) {
            live.one(n)?;
        }
        live.finish()?;
        Ok(Turn { acknowledged: 1, sample })
    }

    /// Fold items from several threads, as many in flight as the ring holds. From before the first submission to
    /// after the last acknowledgement.
    pub(super) fn feed(&self, round: u64, feed: Feed) -> Result<Turn> {
        let mut live = self.start(WaitStrategy::Park)?;
        let each = feed.items / feed.producers;
        let in_flight = (SLOTS / feed.producers / feed.batch).max(1) as usize;
        let ready = Barrier::new(feed.producers as usize + 1);
        let elapsed = std::thread::scope(|scope| {
            let producers: Vec<_> = (0..feed.producers)
                .map(|producer| {
                    let (session, ready) = (&live.session, &ready);
                    scope.spawn(move || {
                        ready.wait();
                        let first = first_number(round).wrapping_add(producer * each);
                        produce(session, first, each, feed.batch, in_flight)
                    })
                })
                .collect();
            let started = Instant::now();
            ready.wait();
            for producer in producers {
                producer.join().map_err(|_| anyhow!("a producer panicked"))??;
            }
            anyhow::Ok(started.elapsed())
        })?;
        let items = u64::from(each) * u64::from(feed.producers);
        live.submitted += items;
        live.finish()?;
        Ok(Turn { acknowledged: items, sample: Sample::Elapsed(elapsed) })
    }

    /// Work items of so many units, one after the other.
    pub(super) fn work(&self, round: u64, items: u32, units: u32) -> Result<Turn> {
        let mut live = self.start(WaitStrategy::Spin)?;
        let mut histogram = latencies()?;
        for seed in numbers(round, items) {
            let started = Instant::now();
            let ticket = live.session.submit(SlotDescriptor::new(WORK).args([seed, units]))?;
            let done = live.session.wait(ticket, DEADLINE)?;
            record(&mut histogram, started.elapsed());
            live.submitted += 1;
            expect("work item", seed.into(), done.result(), items::work(seed, units).into())?;
        }
        live.finish()?;
        Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
    }

    /// Every piece as one item, in batches, as many in flight as the ring holds.
    pub(super) fn scan(&self, round: u64) -> Result<Turn> {
        let Load::Scans(data) = &self.load else { bail!("a megakernel without the scan opcode") };
        let mut live = self.start(WaitStrategy::Park)?;
        let (pieces, entry) = (data.pieces(), ScanData::entry(round));
        let mut ends = Vec::with_capacity(pieces as usize);
        let started = Instant::now();
        let slot = |piece| SlotDescriptor::new(SCAN).args([piece, entry]);
        live.stream(pieces, slot, |result| ends.push(result as u32))?;
        let elapsed = started.elapsed();
        live.finish()?;
        data.check(round, &ends)?;
        Ok(Turn { acknowledged: pieces.into(), sample: Sample::Elapsed(elapsed) })
    }

    /// Every product as one item, in batches, as many in flight as the ring holds.
    pub(super) fn products(&self, round: u64) -> Result<Turn> {
        let Load::Products(data) = &self.load else { bail!("a megakernel without the product's opcode") };
        let mut live = self.start(WaitStrategy::Park)?;
        let (problem, count) = (ProductData::one(round), u32::try_from(data.count)?);
        let started = Instant::now();
        let slot = |n| gemm_item(&problem, [ProductData::first(u64::from(n)) as u32; 3]);
        live.stream(count, slot, drop)?;
        let elapsed = started.elapsed();
        let [_, _, c] = GEMM_BINDINGS;
        let mut bytes = vec![0; data.len() * 4];
        live.session.download(c, 0, &mut bytes).context("read the products")?;
        live.finish()?;
        let results: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        data.turn(round, elapsed, &results)
    }
}

impl Live {
    fn fold(&mut self, first: u32, items: u32) -> Result<()> {
        (0..items).try_for_each(|at| self.one(first.wrapping_add(at)).map(drop))
    }

    /// One fold item, and how long it took.
    fn one(&mut self, n: u32) -> Result<Duration> {
        let slot = SlotDescriptor::new(items::FOLD).args(fold_args(n));
        let started = Instant::now();
        let ticket = self.session.submit(slot)?;
        let done = self.session.wait(ticket, DEADLINE)?;
        let elapsed = started.elapsed();
        self.submitted += 1;
        expect("item", n.into(), done.result(), fold_result(n).into())?;
        Ok(elapsed)
    }

    /// Submits `count` items in batches, and hands each result over in order.
    fn stream(
        &mut self,
        count: u32,
        slot: impl Fn(u32) -> SlotDescriptor,
        mut each: impl FnMut(u64),
    ) -> Result<()> {
        const BATCH: u32 = 256;
        let mut pending: VecDeque<Tickets> = VecDeque::new();
        let mut next = 0;
        while next < count || !pending.is_empty() {
            let until = count.min(next + BATCH);
            if next < until && pending.len() < (SLOTS / BATCH) as usize {
                let batch: BatchDescriptor = (next..until).map(&slot).collect();
                pending.push_back(self.session.submit_batch(&batch)?);
                next = until;
                continue;
            }
            for ticket in pending.pop_front().into_iter().flatten() {
                each(self.session.wait(ticket, DEADLINE)?.result());
            }
        }
        self.submitted += u64::from(count);
        Ok(())
    }

    /// Stops, and compares the device's count with ours.
    fn finish(self) -> Result<()> {
        self.session.stop().context("stop the session")?;
        let telemetry = self.session.telemetry();
        let (done, faulted) = (telemetry.done, telemetry.faulted);
        let submitted = self.submitted;
        ensure!(
            done == submitted && faulted == 0 && telemetry.violations == 0,
            "of {submitted} items the device counted {done} done and {faulted} faulted, and the ring refused {} \
             completions",
            telemetry.violations
        );
        Ok(())
    }
}

/// The numbers of a round's items; no other round has them until 32 bits are used up.
pub(super) fn numbers(round: u64, items: u32) -> impl Iterator<Item = u32> {
    let first = first_number(round);
    (0..items).map(move |at| first.wrapping_add(at))
}

fn first_number(round: u64) -> u32 {
    (round as u32 + 1).wrapping_mul(1 << 23)
}

/// Submits `items` fold items from `first` on, `batch` at once, and takes each result.
fn produce(session: &PersistentSession, first: u32, items: u32, batch: u32, in_flight: usize) -> Result<()> {
    let give_up = Instant::now() + DEADLINE;
    let mut pending: VecDeque<(u32, Submitted)> = VecDeque::with_capacity(in_flight);
    let mut sent = 0;
    while sent < items || !pending.is_empty() {
        if sent < items && pending.len() < in_flight {
            let n = first.wrapping_add(sent);
            let count = batch.min(items - sent);
            match submit(session, n, count) {
                Ok(submitted) => {
                    pending.push_back((n, submitted));
                    sent += count;
                    continue;
                }
                // Another producer's items are in the way.
                Err(MegakernelError::RingFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match pending.pop_front() {
            Some((n, submitted)) => submitted.take(session, n)?,
            None if Instant::now() > give_up => {
                bail!("the ring stayed full for {DEADLINE:?}; see which producer does not take its results")
            }
            None => std::thread::yield_now(),
        }
    }
    Ok(())
}

/// Tickets of what was submitted at once.
enum Submitted {
    One(vyre_runtime::Ticket),
    Batch(Tickets),
}

fn submit(session: &PersistentSession, n: u32, count: u32) -> Result<Submitted, MegakernelError> {
    if count == 1 {
        return session.submit(SlotDescriptor::new(items::FOLD).args(fold_args(n))).map(Submitted::One);
    }
    session.submit_batch(&FoldItems { first: n, count }).map(Submitted::Batch)
}

impl Submitted {
    /// Waits for the items numbered from `n`, and compares their results.
    fn take(self, session: &PersistentSession, n: u32) -> Result<()> {
        let check = |n: u32, ticket| {
            expect("item", n.into(), session.wait(ticket, DEADLINE)?.result(), fold_result(n).into())
        };
        match self {
            Submitted::One(ticket) => check(n, ticket),
            Submitted::Batch(tickets) => {
                (0..).zip(tickets).try_for_each(|(at, ticket)| check(n.wrapping_add(at), ticket))
            }
        }
    }
}

/// How much CPU time this process takes while the caller sleeps.
pub(super) fn cpu_time_of_a_pause(pause: Duration) -> Sample {
    let spent = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let (started, before) = (Instant::now(), spent());
    std::thread::sleep(pause);
    Sample::Percent((spent() - before) / started.elapsed().as_secs_f64() * 100.0)
}

#[cfg(test)]
mod tests {
    use vyre_cpu::CpuBackend;

    use super::*;

    fn ring(load: Load) -> Ring {
        let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        Ring::new(&backend, load).expect("built")
    }

    #[test]
    fn turns_count_what_was_acknowledged() {
        let acknowledged = |turn: Result<Turn>| turn.expect("every result right").acknowledged;
        let ring_of_folds = ring(Load::Nothing);
        assert_eq!(acknowledged(ring_of_folds.one_item(WaitStrategy::Park, 1, 20)), 20);
        assert_eq!(acknowledged(ring_of_folds.work(1, 3, 70)), 3);
        assert_eq!(acknowledged(ring_of_folds.idle(1, Duration::ZERO)), 1);
        // More than the ring holds, and a batch that does not divide them.
        let feed = Feed { producers: 3, batch: 33, items: 3 * SLOTS };
        assert_eq!(acknowledged(ring_of_folds.feed(1, feed)), u64::from(3 * SLOTS));
        assert_eq!(acknowledged(ring(Load::Scans(Arc::new(ScanData::new(300)))).scan(1)), 300);
        assert_eq!(acknowledged(ring(Load::Products(Arc::new(ProductData::new(70)))).products(1)), 70);
    }

    #[test]
    fn an_item_that_the_device_did_not_count_is_noticed() {
        let mut live = ring(Load::Nothing).start(WaitStrategy::Park).expect("started");
        live.submitted += 1;
        let error = live.finish().expect_err("one item too few");
        assert!(error.to_string().contains("the device counted 256 done"), "{error}");
    }
}
