//! What the ring is measured against on any backend: a function call, a pair of queues, and dispatches through
//! the driver's traits.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use crossbeam_queue::ArrayQueue;
use vyre_driver::protocol::ARG_WORDS;
use vyre_driver::{BufferDesc, BufferHandle, CompiledPipeline, DispatchConfig, VyreBackend};
use vyre_foundation::DataType;

use super::items::{self, Job, ScanData, expect, fold_args, fold_result};
use super::measure::{Sample, Turn};
use super::session::numbers;
use super::statistics::{latencies, record};

/// Fold by a call that the compiler does not see through.
pub(super) fn call(round: u64, items: u32) -> Result<Turn> {
    let fold: fn(&[u32; ARG_WORDS]) -> u32 = black_box(items::fold);
    let mut histogram = latencies()?;
    for n in numbers(round, items) {
        let args = fold_args(n);
        let started = Instant::now();
        let result = fold(black_box(&args));
        record(&mut histogram, started.elapsed());
        expect("call", n.into(), result.into(), fold_result(n).into())?;
    }
    Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
}

/// The same, timed as a whole.
pub(super) fn calls(round: u64, items: u32) -> Result<Turn> {
    let fold: fn(&[u32; ARG_WORDS]) -> u32 = black_box(items::fold);
    let started = Instant::now();
    for n in numbers(round, items) {
        let result = fold(black_box(&fold_args(n)));
        expect("call", n.into(), result.into(), fold_result(n).into())?;
    }
    Ok(Turn { acknowledged: items.into(), sample: Sample::Elapsed(started.elapsed()) })
}

/// Work by a call, one item after the other.
pub(super) fn work_calls(round: u64, items: u32, units: u32) -> Result<Turn> {
    let work: fn(u32, u32) -> u32 = black_box(items::work);
    let mut histogram = latencies()?;
    for seed in numbers(round, items) {
        let started = Instant::now();
        let result = work(black_box(seed), black_box(units));
        record(&mut histogram, started.elapsed());
        expect("call", seed.into(), result.into(), items::work(seed, units).into())?;
    }
    Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
}

/// Sixty-four bytes out, sixteen back.
struct Pair {
    out: ArrayQueue<[u32; 16]>,
    back: ArrayQueue<[u32; 4]>,
    stop: AtomicBool,
}

impl Pair {
    fn new() -> Pair {
        const SLOTS: usize = 4096;
        Pair { out: ArrayQueue::new(SLOTS), back: ArrayQueue::new(SLOTS), stop: AtomicBool::new(false) }
    }

    /// Runs `feed` while another thread folds what is in the queue.
    fn with_consumer<T>(&self, feed: impl FnOnce() -> Result<T>) -> Result<T> {
        std::thread::scope(|scope| {
            let consumer = scope.spawn(|| {
                let mut waited = 0;
                loop {
                    match self.out.pop() {
                        Some(item) => {
                            waited = 0;
                            let mut done = [item[0], fold_of(&item), 0, 3];
                            while let Err(full) = self.back.push(done) {
                                if self.stop.load(Ordering::Relaxed) {
                                    return;
                                }
                                done = full;
                                std::thread::yield_now();
                            }
                        }
                        None if self.stop.load(Ordering::Relaxed) => break,
                        None => rest(&mut waited),
                    }
                }
            });
            let fed = feed();
            self.stop.store(true, Ordering::Relaxed);
            consumer.join().map_err(|_| anyhow!("the queues' consumer panicked"))?;
            fed
        })
    }
}

/// Item `n` in the shape of a slot: number, arguments, padding.
fn queued(n: u32) -> [u32; 16] {
    let mut item = [0; 16];
    let (number, args) = item.split_at_mut(1);
    number.fill(n);
    args.iter_mut().zip(fold_args(n)).for_each(|(word, arg)| *word = arg);
    item
}

fn fold_of(item: &[u32; 16]) -> u32 {
    item.iter().skip(1).fold(0, |sum, &word| sum.wrapping_add(word))
}

/// Spins a while, then lets others run.
fn rest(waited: &mut u32) {
    *waited += 1;
    if *waited < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
}

/// One item through the queues after the other.
pub(super) fn queues_one_item(round: u64, items: u32) -> Result<Turn> {
    let pair = Pair::new();
    let histogram = pair.with_consumer(|| {
        let mut histogram = latencies()?;
        for n in numbers(round, items) {
            let item = queued(n);
            let started = Instant::now();
            pair.out.push(item).map_err(|_| anyhow!("an empty queue is full"))?;
            let mut waited = 0;
            let done = loop {
                match pair.back.pop() {
                    Some(done) => break done,
                    None => rest(&mut waited),
                }
            };
            record(&mut histogram, started.elapsed());
            expect("queued item", n.into(), done[1].into(), fold_result(n).into())?;
        }
        Ok(histogram)
    })?;
    Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
}

/// Items through the queues from several threads, as many in flight as they hold.
pub(super) fn queues(round: u64, producers: u32, items: u32) -> Result<Turn> {
    let pair = Pair::new();
    let each = items / producers;
    let elapsed = pair.with_consumer(|| {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..producers)
                .map(|producer| {
                    let pair = &pair;
                    scope.spawn(move || feed_queues(pair, round, producer * each, each))
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a producer panicked"))?)
        })?;
        Ok(started.elapsed())
    })?;
    Ok(Turn { acknowledged: u64::from(each) * u64::from(producers), sample: Sample::Elapsed(elapsed) })
}

/// Sends a producer's items and takes as many results, whoever's they are.
fn feed_queues(pair: &Pair, round: u64, skip: u32, items: u32) -> Result<()> {
    let mut numbers = numbers(round, skip + items).skip(skip as usize);
    let (mut next, mut taken, mut waited) = (numbers.next(), 0, 0);
    let give_up = Instant::now() + DEADLINE;
    // Others' results count too, so the last may be taken before the last item is sent.
    while taken < items || next.is_some() {
        let mut moved = false;
        if let Some(n) = next
            && pair.out.push(queued(n)).is_ok()
        {
            next = numbers.next();
            moved = true;
        }
        if taken < items
            && let Some(done) = pair.back.pop()
        {
            expect("queued item", done[0].into(), done[1].into(), fold_result(done[0]).into())?;
            taken += 1;
            moved = true;
        }
        if moved {
            waited = 0
        } else {
            rest(&mut waited)
        }
        // A producer that left with an error has taken none of the others' results.
        ensure!(moved || Instant::now() < give_up, "no result within {DEADLINE:?}; see which producer left");
    }
    Ok(())
}

/// Threads that do nothing but take numbers from one word: the least that a submission by several producers costs.
pub(super) fn compare_and_swaps(threads: u32, items: u32) -> Result<Turn> {
    let (word, each) = (AtomicU64::new(0), items / threads);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..each {
                    let mut seen = word.load(Ordering::Relaxed);
                    while let Err(now) =
                        word.compare_exchange_weak(seen, seen + 1, Ordering::AcqRel, Ordering::Relaxed)
                    {
                        seen = now;
                    }
                }
            });
        }
    });
    let elapsed = started.elapsed();
    let taken = u64::from(each) * u64::from(threads);
    expect("the last number of threads", threads.into(), word.into_inner(), taken)?;
    Ok(Turn { acknowledged: taken, sample: Sample::Elapsed(elapsed) })
}

/// How long a dispatch may take.
const DEADLINE: Duration = Duration::from_secs(60);

fn grid(groups: u32) -> DispatchConfig {
    DispatchConfig { deadline: Some(DEADLINE), ..DispatchConfig::new([groups, 1, 1]) }
}

/// Buffers of a backend that are given back with it.
struct Buffers(Arc<dyn VyreBackend>, Vec<BufferHandle>);

impl Buffers {
    fn add(&mut self, label: &str, element: DataType, len: u64) -> Result<BufferHandle> {
        let buffer = self.0.create_buffer(&BufferDesc::new(label, element, len))?;
        self.1.push(buffer);
        Ok(buffer)
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        for &buffer in &self.1 {
            // A backend that is lost has no buffers left.
            let _ = self.0.destroy_buffer(buffer);
        }
    }
}

/// Work items, each a dispatch of its own over as much of the device as it can use.
pub(super) struct WorkDispatch {
    pipeline: Arc<dyn CompiledPipeline>,
    buffers: Buffers,
    job: BufferHandle,
    sum: BufferHandle,
}

impl WorkDispatch {
    pub(super) fn new(backend: &Arc<dyn VyreBackend>) -> Result<WorkDispatch> {
        let pipeline = backend.compile(&items::work_kernel()?).context("compile the work kernel")?;
        let mut buffers = Buffers(Arc::clone(backend), Vec::new());
        let (job, sum) = (buffers.add("job", DataType::U32, 3)?, buffers.add("sum", DataType::U32, 1)?);
        Ok(WorkDispatch { pipeline, buffers, job, sum })
    }

    /// A job in, launch, result out, one after the other.
    pub(super) fn turn(&self, jobs: impl Iterator<Item = Job>) -> Result<Turn> {
        let backend = &self.buffers.0;
        let mut histogram = latencies()?;
        let mut before = self.sum()?;
        for job in jobs {
            let config = grid(job.units.div_ceil(items::WORKGROUP).max(1));
            let started = Instant::now();
            backend.write_buffer(self.job, 0, &items::bytes_of(&job.words()))?;
            let outcome = self.pipeline.dispatch(&[self.job.binding(), self.sum.binding()], &config)?;
            let after = self.sum()?;
            record(&mut histogram, started.elapsed());
            ensure!(outcome.trap.is_none(), "a dispatch trapped: {:?}", outcome.trap);
            let got = after.wrapping_sub(before);
            expect("dispatch", job.seed.into(), got.into(), job.result.into())?;
            before = after;
        }
        Ok(Turn { acknowledged: histogram.len(), sample: Sample::Latencies(histogram) })
    }

    fn sum(&self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.buffers.0.read_buffer(self.sum, 0, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Scans by dispatches of the kernel emitted from IR: one for each piece, or one for all.
pub(super) struct ScanDispatch {
    data: Arc<ScanData>,
    each: Arc<dyn CompiledPipeline>,
    all: Arc<dyn CompiledPipeline>,
    buffers: Buffers,
    /// Table, input, entry, states.
    bound: [BufferHandle; 4],
}

impl ScanDispatch {
    pub(super) fn new(backend: &Arc<dyn VyreBackend>, data: &Arc<ScanData>) -> Result<ScanDispatch> {
        let compile = |workgroup| -> Result<_> {
            backend.compile(&items::scan_kernel(workgroup)?).context("compile the scan kernel")
        };
        let (each, all) = (compile(1)?, compile(items::WORKGROUP)?);
        let mut buffers = Buffers(Arc::clone(backend), Vec::new());
        let bound = [
            buffers.add("table", DataType::U32, data.table.len() as u64)?,
            buffers.add("input", DataType::U32, data.input.len() as u64 / 4)?,
            buffers.add("from", DataType::U32, 1)?,
            buffers.add("states", DataType::U32, data.pieces().into())?,
        ];
        let [table, input, ..] = bound;
        backend.write_buffer(table, 0, &items::bytes_of(&data.table))?;
        backend.write_buffer(input, 0, &data.input)?;
        Ok(ScanDispatch { data: Arc::clone(data), each, all, buffers, bound })
    }

    /// A dispatch for each piece.
    pub(super) fn each(&self, round: u64) -> Result<Turn> {
        let [table, input, entry, states] = self.bound;
        let config = grid(1);
        self.turn(round, || {
            for piece in (0..self.data.pieces()).map(u64::from) {
                let words = u64::from(items::PIECE / 4);
                let bound = [
                    table.binding(),
                    input.slice(piece * words, words),
                    entry.binding(),
                    states.slice(piece, 1),
                ];
                self.each.dispatch(&bound, &config)?;
            }
            Ok(())
        })
    }

    /// One dispatch for all pieces.
    pub(super) fn all(&self, round: u64) -> Result<Turn> {
        let config = grid(self.data.pieces().div_ceil(items::WORKGROUP));
        self.turn(round, || {
            self.all.dispatch(&self.bound.map(BufferHandle::binding), &config)?;
            Ok(())
        })
    }

    fn turn(&self, round: u64, run: impl FnOnce() -> Result<()>) -> Result<Turn> {
        let (backend, [_, _, entry, states]) = (&self.buffers.0, self.bound);
        let pieces = self.data.pieces();
        let mut bytes = vec![0xa5; pieces as usize * 4];
        backend.write_buffer(entry, 0, &ScanData::entry(round).to_le_bytes())?;
        backend.write_buffer(states, 0, &bytes)?;
        let started = Instant::now();
        run()?;
        let elapsed = started.elapsed();
        backend.read_buffer(states, 0, &mut bytes)?;
        self.data.check(round, &items::words_of(&bytes))?;
        Ok(Turn { acknowledged: pieces.into(), sample: Sample::Elapsed(elapsed) })
    }
}

/// Scans by a call for each piece, on one thread of the host.
pub(super) fn scan_calls(data: &ScanData, round: u64) -> Result<Turn> {
    let started = Instant::now();
    let ends: Vec<u32> =
        data.input.chunks(items::PIECE as usize).map(|piece| data.run(round, piece)).collect();
    let elapsed = started.elapsed();
    data.check(round, &ends)?;
    Ok(Turn { acknowledged: data.pieces().into(), sample: Sample::Elapsed(elapsed) })
}
