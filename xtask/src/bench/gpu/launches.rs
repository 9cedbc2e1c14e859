//! The work of items by launches.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vyre_hip::device::{DeviceMemory, Function, PinnedMemory};

use super::super::items::{self, Job, PIECE, ScanData, expect};
use super::super::measure::{Sample, Turn};
use super::super::session::numbers;
use super::super::statistics::{latencies, record};
use super::{Arguments, DEADLINE, Gpu, launch};

/// Threads of a block of the hand-written kernels.
const BLOCK: u32 = 256;

/// Launches of the hand-written kernels.
pub(in super::super) struct Launches<'g> {
    gpu: &'g Gpu,
    count: Function,
    work: Function,
    scan: Function,
    /// Where results of `count` and `work` add up.
    total: Arc<DeviceMemory>,
    result: Arc<PinnedMemory>,
    data: Arc<ScanData>,
    table: Arc<DeviceMemory>,
    input: Arc<DeviceMemory>,
    states: Arc<DeviceMemory>,
}

impl Launches<'_> {
    pub(in super::super) fn new<'g>(gpu: &'g Gpu, data: &Arc<ScanData>) -> Result<Launches<'g>> {
        let function = |name| gpu.module.function(name).with_context(|| format!("find the kernel `{name}`"));
        Ok(Launches {
            gpu,
            count: function("count")?,
            work: function("work")?,
            scan: function("scan")?,
            total: gpu.memory("a total", &[0; 4])?,
            result: PinnedMemory::new(gpu.backend.context(), "a result", 4)?,
            data: Arc::clone(data),
            table: gpu.memory("an automaton", &items::bytes_of(&data.table))?,
            input: gpu.memory("its input", &data.input)?,
            states: gpu.memory("its states", &vec![0; data.pieces() as usize * 4])?,
        })
    }

    /// A launch of a kernel that adds a number to a word, and waiting for it. The total is looked at at the end.
    pub(in super::super) fn one_by_one(&self, round: u64, launches: u32) -> Result<Turn> {
        let mut histogram = latencies()?;
        let mut expected = self.total()?;
        for n in numbers(round, launches) {
            let started = Instant::now();
            self.launch_count(n)?;
            self.gpu.stream.wait(DEADLINE)?;
            record(&mut histogram, started.elapsed());
            expected = expected.wrapping_add(n);
        }
        expect("the total of launches in round", round, self.total()?.into(), expected.into())?;
        Ok(Turn { acknowledged: launches.into(), sample: Sample::Latencies(histogram) })
    }

    /// The same launches back to back, and waiting for the last.
    pub(in super::super) fn back_to_back(&self, round: u64, launches: u32) -> Result<Turn> {
        let before = self.total()?;
        let started = Instant::now();
        for n in numbers(round, launches) {
            self.launch_count(n)?;
        }
        self.gpu.stream.wait(DEADLINE)?;
        let elapsed = started.elapsed();
        let expected = numbers(round, launches).fold(before, u32::wrapping_add);
        expect("the total of launches in round", round, self.total()?.into(), expected.into())?;
        Ok(Turn { acknowledged: launches.into(), sample: Sample::Elapsed(elapsed) })
    }

    /// The same launches as a graph, launched over and over, and waiting for the last. Recording is not timed.
    pub(in super::super) fn graph(&self, round: u64, kernels: u32, launches: u32) -> Result<Turn> {
        let stream = &self.gpu.stream;
        let record = || numbers(round, kernels).try_for_each(|n| self.launch_count(n));
        let graph = stream.capture(record)?;
        let launch = || -> Result<()> {
            // SAFETY: as in `launch_count`.
            unsafe { stream.launch_graph(&graph) }?;
            Ok(())
        };
        // The first launch brings it to the device.
        launch()?;
        stream.wait(DEADLINE)?;
        let before = self.total()?;
        let started = Instant::now();
        (0..launches).try_for_each(|_| launch())?;
        stream.wait(DEADLINE)?;
        let elapsed = started.elapsed();
        let each = numbers(round, kernels).fold(0, u32::wrapping_add);
        let expected = before.wrapping_add(each.wrapping_mul(launches));
        expect("the total of graphs in round", round, self.total()?.into(), expected.into())?;
        let acknowledged = u64::from(kernels) * u64::from(launches);
        Ok(Turn { acknowledged, sample: Sample::Elapsed(elapsed) })
    }

    fn launch_count(&self, n: u32) -> Result<()> {
        let arguments = Arguments::new(&[self.total.address()], &[n]);
        // SAFETY: the kernel's parameters; `self` keeps the total, and every turn waits for its launches.
        unsafe { launch(&self.count, &self.gpu.stream, [1, 1], &arguments) }
    }

    fn total(&self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.total.read(0, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Jobs, each launched over the device, its result copied to the host, and waited for.
    pub(in super::super) fn work(&self, jobs: impl Iterator<Item = Job>) -> Result<Turn> {
        let stream = &self.gpu.stream;
        let mut histogram = latencies()?;
        let mut before = self.total()?;
        for job in jobs {
            let arguments = Arguments::new(&[self.total.address()], &job.words());
            let groups = job.units.div_ceil(BLOCK).max(1);
            let started = Instant::now();
            // SAFETY: as in `launch_count`.
            unsafe { launch(&self.work, stream, [groups, BLOCK], &arguments) }?;
            stream.copy_to_host(&self.result, 0, &self.total, 0, 4)?;
            stream.wait(DEADLINE)?;
            let mut bytes = [0; 4];
            self.result.copy_out(0, &mut bytes)?;
            record(&mut histogram, started.elapsed());
            let after = u32::from_le_bytes(bytes);
            let got = after.wrapping_sub(before);
            expect("launch", job.seed.into(), got.into(), job.result.into())?;
            before = after;
        }
        Ok(Turn { acknowledged: histogram.len(), sample: Sample::Latencies(histogram) })
    }

    /// A launch of one thread for each piece, back to back.
    pub(in super::super) fn scan_each(&self, round: u64) -> Result<Turn> {
        self.scan(round, || {
            (0..self.data.pieces()).try_for_each(|piece| self.launch_scan(round, [1, 1], piece, piece + 1))
        })
    }

    /// One launch for all pieces, each a thread.
    pub(in super::super) fn scan_all(&self, round: u64) -> Result<Turn> {
        let pieces = self.data.pieces();
        self.scan(round, || self.launch_scan(round, [pieces.div_ceil(BLOCK), BLOCK], 0, pieces))
    }

    fn launch_scan(&self, round: u64, shape: [u32; 2], first: u32, end: u32) -> Result<()> {
        let addresses = [self.table.address(), self.input.address(), self.states.address()];
        let arguments = Arguments::new(&addresses, &[first, end, ScanData::entry(round)]);
        // SAFETY: the kernel's parameters; pieces below `end` are inside the input and the states, `self` keeps all
        // memory, and every turn waits for its launches.
        unsafe { launch(&self.scan, &self.gpu.stream, shape, &arguments) }
    }

    fn scan(&self, round: u64, run: impl FnOnce() -> Result<()>) -> Result<Turn> {
        let pieces = self.data.pieces();
        debug_assert_eq!(self.input.len(), u64::from(pieces) * u64::from(PIECE));
        let mut bytes = vec![0xa5; pieces as usize * 4];
        self.states.write(0, &bytes)?;
        let started = Instant::now();
        run()?;
        self.gpu.stream.wait(DEADLINE)?;
        let elapsed = started.elapsed();
        self.states.read(0, &mut bytes)?;
        self.data.check(round, &items::words_of(&bytes))?;
        Ok(Turn { acknowledged: pieces.into(), sample: Sample::Elapsed(elapsed) })
    }
}
