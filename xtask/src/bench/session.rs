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
use vyre_driver::ring::SlotImage;
use vyre_driver::wait::WaitStrategy;
use vyre_runtime::conformance::{GEMM_BINDINGS, gemm_handler, gemm_item};
use vyre_runtime::{Megakernel, MegakernelError, PersistentSession, SessionOptions, SlotDescriptor, Tickets};

use super::feed::{self, Feed};
use super::items::{
    self, INPUT_BINDING, NOTES_BINDING, SCAN, STATES_BINDING, ScanData, TABLE_BINDING, WORK, expect,
    fold_args, fold_result,
};
use super::measure::{Sample, Turn};
use super::products::{ProductData, bytes_of_halves};
use super::statistics::{latencies, record};

const SLOTS: u32 = 4096;
/// Of a ring that takes all scans or products at once.
const MANY_SLOTS: u32 = 16_384;
/// Nothing here takes a hundredth of it.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);
const WARM_UP: u32 = 256;
/// Scans or products submitted at once.
const BATCH: usize = 256;
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

/// What a session keeps a record of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    Nothing,
    /// The latency of each item.
    Latency,
    /// Everything that `vyre top` shows, latency among it.
    Observed,
    /// The last items, for a trace.
    Traced,
    /// All of it, of one item in 64.
    Sampled,
}

impl Watch {
    fn options(self) -> SessionOptions {
        let options = SessionOptions::new();
        match self {
            Watch::Nothing => options,
            Watch::Latency => options.measure_latency(),
            Watch::Observed => options.measure_latency().observe("bench"),
            Watch::Traced => options.trace(SLOTS),
            Watch::Sampled => options.measure_latency().observe("bench").trace(SLOTS).time_one_in(64),
        }
    }
}

/// How results come back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Results {
    /// Nobody asks about an item: handlers leave results on the device, as kernels do. So many threads submit.
    OnTheDevice(u32),
    /// In completions, which are waited for one by one.
    ByTicket,
}

/// A session of one turn, and how many items went into it.
pub(super) struct Live {
    pub(super) session: PersistentSession,
    submitted: u64,
}

impl Ring {
    /// Compiles.
    pub(super) fn new(backend: &Arc<dyn VyreBackend>, load: Load) -> Result<Ring> {
        let slots = if matches!(load, Load::Nothing) { SLOTS } else { MANY_SLOTS };
        let mut builder = Megakernel::builder(Arc::clone(backend)).slots(slots);
        builder = builder.handler(items::fold_handler());
        match &load {
            Load::Nothing => {
                builder = builder.handler(items::work_handler()).handler(items::note_handler());
                builder = builder.bind_zeroed(NOTES_BINDING, 1);
            }
            Load::Scans(data) => {
                builder = builder.handler(items::scan_handler());
                builder = builder.bind_bytes(TABLE_BINDING, items::bytes_of(&data.table));
                builder = builder.bind_bytes(INPUT_BINDING, data.input.clone());
                builder = builder.bind_zeroed(STATES_BINDING, data.pieces().into());
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

    pub(super) fn start(&self, wait: WaitStrategy) -> Result<Live> {
        self.start_with(SessionOptions::new().wait_strategy(wait))
    }

    /// Starts a session, and warms it up: single items, and a lap, so that every page of the ring has been touched.
    fn start_with(&self, mut options: SessionOptions) -> Result<Live> {
        if matches!(self.load, Load::Products(_)) {
            options = options.worker_groups(PRODUCT_GROUPS);
        }
        let session = self.megakernel.start_with(options).context("start a session")?;
        let mut live = Live { session, submitted: 0 };
        live.fold(0, WARM_UP)?;
        live.detached(1, &vec![feed::no_op(); live.session.capacity() as usize])?;
        // Nobody has tickets; this gives their slots back.
        live.session.reap(|_, _| ());
        Ok(live)
    }

    /// One fold item after the other, each from before its submission to after its acknowledgement.
    pub(super) fn one_item(&self, wait: WaitStrategy, watch: Watch, round: u64, items: u32) -> Result<Turn> {
        let mut live = self.start_with(watch.options().wait_strategy(wait))?;
        let histogram = live.latencies(round, items)?;
        live.finish()?;
        Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
    }

    /// The same with items that also store to memory, which is visible when they are acknowledged.
    pub(super) fn one_note(&self, round: u64, items: u32) -> Result<Turn> {
        let mut live = self.start(WaitStrategy::Spin)?;
        let mut histogram = latencies()?;
        let mut last = 0;
        for n in numbers(round, items) {
            let slot = SlotDescriptor::new(items::NOTE).args([n]);
            let started = Instant::now();
            let ticket = live.session.submit(slot)?;
            let done = live.session.wait(ticket, DEADLINE)?;
            record(&mut histogram, started.elapsed());
            live.submitted += 1;
            expect("note", n.into(), done.result(), n.into())?;
            last = n;
        }
        let mut bytes = [0; 4];
        live.session.download(NOTES_BINDING, 0, &mut bytes).context("read the last note")?;
        expect("the last note of round", round, u32::from_le_bytes(bytes).into(), last.into())?;
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
        self.beside(round, || Ok(Turn { acknowledged: 1, sample: cpu_time_of_a_pause(pause) }))
    }

    /// Somebody else's turn beside a session that has nothing to do.
    pub(super) fn beside(&self, round: u64, turn: impl FnOnce() -> Result<Turn>) -> Result<Turn> {
        let mut live = self.start(WaitStrategy::Park)?;
        let turn = turn()?;
        // It was alive all the time.
        for n in numbers(round, 1) {
            live.one(n)?;
        }
        live.finish()?;
        Ok(turn)
    }

    /// As many items as there can be, from several threads.
    pub(super) fn feed(&self, watch: Watch, round: u64, feed: Feed) -> Result<Turn> {
        let mut live = self.start_with(watch.options())?;
        let (acknowledged, elapsed) = feed::feed(&live.session, round, feed)?;
        live.submitted += acknowledged;
        live.finish()?;
        Ok(Turn { acknowledged, sample: Sample::Elapsed(elapsed) })
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

    /// Every piece as one finished item.
    pub(super) fn scan(&self, results: Results, round: u64) -> Result<Turn> {
        let Load::Scans(data) = &self.load else { bail!("a megakernel without the scan opcode") };
        let mut live = self.start(WaitStrategy::Spin)?;
        let (pieces, entry) = (data.pieces(), ScanData::entry(round));
        let images = images((0..pieces).map(|piece| SlotDescriptor::new(SCAN).args([piece, entry])))?;
        let mut bytes = vec![0xa5; pieces as usize * 4];
        live.session.upload(STATES_BINDING, 0, &bytes).context("forget the states of the last round")?;
        let (elapsed, taken) = match results {
            Results::OnTheDevice(threads) => (live.detached(threads, &images)?, None),
            Results::ByTicket => {
                let mut states = Vec::with_capacity(images.len());
                (live.by_ticket(&images, |state| states.push(state as u32))?, Some(states))
            }
        };
        live.session.download(STATES_BINDING, 0, &mut bytes).context("read the states")?;
        live.finish()?;
        data.check(round, &items::words_of(&bytes))?;
        if let Some(taken) = taken {
            data.check(round, &taken)?;
        }
        Ok(Turn { acknowledged: pieces.into(), sample: Sample::Elapsed(elapsed) })
    }

    /// Every product as one finished item.
    pub(super) fn products(&self, results: Results, round: u64) -> Result<Turn> {
        self.products_as(round, |live, images| match results {
            Results::OnTheDevice(threads) => live.detached(threads, images),
            Results::ByTicket => live.by_ticket(images, drop),
        })
    }

    /// The same, up to the last submission: what they cost the thread that submits them.
    pub(super) fn products_submitted(&self, round: u64) -> Result<Turn> {
        self.products_as(round, |live, images| {
            let started = Instant::now();
            live.submit(images)?;
            let elapsed = started.elapsed();
            live.session.drain(DEADLINE)?;
            Ok(elapsed)
        })
    }

    fn products_as(
        &self,
        round: u64,
        run: impl FnOnce(&mut Live, &[SlotImage]) -> Result<Duration>,
    ) -> Result<Turn> {
        let Load::Products(data) = &self.load else { bail!("a megakernel without the product's opcode") };
        let mut live = self.start(WaitStrategy::Spin)?;
        let problem = ProductData::one(round);
        let images = images((0..data.count).map(|n| gemm_item(&problem, [ProductData::first(n) as u32; 3])))?;
        let [_, _, c] = GEMM_BINDINGS;
        // All bits set is a NaN: what is not written is seen.
        let mut bytes = vec![0xff; data.len() * 4];
        live.session.upload(c, 0, &bytes).context("forget the products of the last round")?;
        let elapsed = run(&mut live, &images)?;
        live.session.download(c, 0, &mut bytes).context("read the products")?;
        live.finish()?;
        let results: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        data.turn(round, elapsed, &results)
    }
}

/// Items as they go into the ring.
fn images(slots: impl Iterator<Item = SlotDescriptor>) -> Result<Vec<SlotImage>, MegakernelError> {
    slots.map(|slot| slot.to_image()).collect()
}

/// Submits finished items in batches.
fn submit(session: &PersistentSession, images: &[SlotImage]) -> Result<()> {
    images.chunks(BATCH).try_for_each(|batch| feed::detached(session, batch, batch.len() as u32))
}

impl Live {
    fn fold(&mut self, first: u32, items: u32) -> Result<()> {
        (0..items).try_for_each(|at| self.one(first.wrapping_add(at)).map(drop))
    }

    /// One fold item, and how long it took.
    pub(super) fn one(&mut self, n: u32) -> Result<Duration> {
        let slot = SlotDescriptor::new(items::FOLD).args(fold_args(n));
        let started = Instant::now();
        let ticket = self.session.submit(slot)?;
        let done = self.session.wait(ticket, DEADLINE)?;
        let elapsed = started.elapsed();
        self.submitted += 1;
        expect("item", n.into(), done.result(), fold_result(n).into())?;
        Ok(elapsed)
    }

    /// Fold items one after the other.
    pub(super) fn latencies(&mut self, round: u64, items: u32) -> Result<hdrhistogram::Histogram<u64>> {
        let mut histogram = latencies()?;
        for n in numbers(round, items) {
            record(&mut histogram, self.one(n)?);
        }
        Ok(histogram)
    }

    /// Submits finished items that nobody will ask about.
    fn submit(&mut self, images: &[SlotImage]) -> Result<()> {
        submit(&self.session, images)?;
        self.submitted += images.len() as u64;
        Ok(())
    }

    /// The same from so many threads, until all are acknowledged: how long that takes, threads that are there already.
    fn detached(&mut self, threads: u32, images: &[SlotImage]) -> Result<Duration> {
        let part = images.len().div_ceil(threads as usize).max(1);
        let (mine, others) = images.split_at(part.min(images.len()));
        let (session, ready) = (&self.session, &Barrier::new(1 + others.len().div_ceil(part)));
        let elapsed = std::thread::scope(|scope| {
            let submitting = |part| {
                scope.spawn(move || {
                    ready.wait();
                    submit(session, part)
                })
            };
            let others: Vec<_> = others.chunks(part).map(submitting).collect();
            ready.wait();
            let started = Instant::now();
            submit(session, mine)?;
            others
                .into_iter()
                .try_for_each(|other| other.join().map_err(|_| anyhow!("a producer panicked"))?)?;
            session.drain(DEADLINE)?;
            anyhow::Ok(started.elapsed())
        })?;
        self.submitted += images.len() as u64;
        Ok(elapsed)
    }

    /// Submits finished items and hands each result over, in order; how long that takes.
    fn by_ticket(&mut self, images: &[SlotImage], mut each: impl FnMut(u64)) -> Result<Duration> {
        let in_flight = self.session.capacity() as usize / BATCH;
        let mut batches = images.chunks(BATCH);
        let mut pending: VecDeque<Tickets> = VecDeque::with_capacity(in_flight);
        let started = Instant::now();
        loop {
            if pending.len() < in_flight
                && let Some(batch) = batches.next()
            {
                pending.push_back(self.session.submit_batch(batch)?);
                self.submitted += batch.len() as u64;
                continue;
            }
            let Some(tickets) = pending.pop_front() else { return Ok(started.elapsed()) };
            for ticket in tickets {
                each(self.session.wait(ticket, DEADLINE)?.result());
            }
        }
    }

    /// Stops, and compares the device's count with ours.
    pub(super) fn finish(self) -> Result<()> {
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

pub(super) fn first_number(round: u64) -> u32 {
    (round as u32 + 1).wrapping_mul(1 << 23)
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

    use super::super::feed::Kind;
    use super::*;

    fn ring(load: Load) -> Ring {
        let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        Ring::new(&backend, load).expect("built")
    }

    #[test]
    fn turns_count_what_was_acknowledged() {
        let acknowledged = |turn: Result<Turn>| turn.expect("every result right").acknowledged;
        let ring_of_folds = ring(Load::Nothing);
        for watch in [Watch::Nothing, Watch::Latency, Watch::Traced, Watch::Sampled] {
            assert_eq!(acknowledged(ring_of_folds.one_item(WaitStrategy::Park, watch, 1, 20)), 20);
        }
        assert_eq!(acknowledged(ring_of_folds.one_note(1, 20)), 20);
        assert_eq!(acknowledged(ring_of_folds.work(1, 3, 70)), 3);
        assert_eq!(acknowledged(ring_of_folds.idle(1, Duration::ZERO)), 1);
        // More than the ring holds, and a batch that does not divide them.
        for kind in [Kind::Tracked, Kind::Detached] {
            let feed = Feed { producers: 3, batch: 33, items: 3 * SLOTS, kind };
            assert_eq!(acknowledged(ring_of_folds.feed(Watch::Nothing, 1, feed)), u64::from(3 * SLOTS));
        }
        let scans = ring(Load::Scans(Arc::new(ScanData::new(300))));
        let products = ring(Load::Products(Arc::new(ProductData::new(70))));
        for results in [Results::OnTheDevice(1), Results::OnTheDevice(3), Results::ByTicket] {
            assert_eq!(acknowledged(scans.scan(results, 1)), 300);
            assert_eq!(acknowledged(products.products(results, 1)), 70);
        }
        assert_eq!(acknowledged(products.products_submitted(2)), 70);
    }

    #[test]
    fn an_item_that_the_device_did_not_count_is_noticed() {
        let mut live = ring(Load::Nothing).start(WaitStrategy::Park).expect("started");
        live.submitted += 1;
        let error = live.finish().expect_err("one item too few");
        let counted = WARM_UP + SLOTS;
        assert!(error.to_string().contains(&format!("the device counted {counted} done")), "{error}");
    }
}
