//! The least that a resident kernel can do: one thread answers one slot.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Result, bail};
use vyre_driver::region::SharedRegion;
use vyre_hip::device::{Function, HostMemory as _, RegisteredMemory};

use super::super::items::{FOLD, expect, fold_args, fold_result};
use super::super::measure::{Sample, Turn};
use super::super::session::numbers;
use super::super::statistics::{latencies, record};
use super::{Arguments, DEADLINE, Gpu, launch};

const BYTES: u64 = 4096;
/// The header that ends the kernel.
const STOP: u16 = 0xffff;
/// A look over the bus takes about a microsecond, so the kernel leaves within a minute or so of the host's death.
const MOST_LOOKS: u32 = 1 << 26;
const WARM_UP: u32 = 256;

/// One slot and one completion in memory that the device accesses in place, as a session's regions are.
pub(in super::super) struct Echo<'g> {
    gpu: &'g Gpu,
    function: Function,
    slot: Arc<RegisteredMemory>,
    completion: Arc<RegisteredMemory>,
}

impl Echo<'_> {
    pub(in super::super) fn new(gpu: &Gpu) -> Result<Echo<'_>> {
        let register = || -> Result<_> {
            Ok(RegisteredMemory::new(gpu.backend.context(), &Arc::new(SharedRegion::create(BYTES)?))?)
        };
        Ok(Echo { gpu, function: gpu.module.function("echo")?, slot: register()?, completion: register()? })
    }

    /// One item after the other, each from before its first quarter to after its completion.
    pub(in super::super) fn turn(&self, round: u64, items: u32) -> Result<Turn> {
        for memory in [&self.slot, &self.completion] {
            memory.region().copy_in(0, &[0; BYTES as usize])?;
        }
        let addresses = [self.slot.device_address(), self.completion.device_address()];
        let arguments = Arguments::new(&addresses, &[STOP.into(), MOST_LOOKS]);
        let stream = &self.gpu.stream;
        // SAFETY: the parameters are the kernel's, both regions live as long as `self`, and the kernel has left
        // before this function returns: `stop` says so, and it leaves by itself where nobody does.
        unsafe { launch(&self.function, stream, [1, 1], &arguments) }?;
        stream.keep_alive(&self.slot);
        stream.keep_alive(&self.completion);
        let mut lap = 1;
        let answered = self.items(round, items, &mut lap);
        // Whatever went wrong, the kernel has to leave.
        self.publish(lap, STOP, 0)?;
        let left = stream.wait(DEADLINE);
        let histogram = answered?;
        left?;
        Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
    }

    fn items(&self, round: u64, items: u32, lap: &mut u16) -> Result<hdrhistogram::Histogram<u64>> {
        let mut histogram = latencies()?;
        for (at, n) in (0..).zip(numbers(round, WARM_UP + items)) {
            let started = Instant::now();
            self.publish(*lap, FOLD as u16, n)?;
            let result = self.completion(*lap)?;
            let elapsed = started.elapsed();
            expect("echoed item", n.into(), result, fold_result(n).into())?;
            if at >= WARM_UP {
                record(&mut histogram, elapsed);
            }
            *lap = lap.wrapping_add(1);
        }
        Ok(histogram)
    }

    /// Writes fold item `n` quarter by quarter, the half with the tag last.
    fn publish(&self, lap: u16, opcode: u16, n: u32) -> Result<()> {
        let region = self.slot.region();
        let (args, headers) = (fold_args(n), [opcode, 0, 0, 0]);
        for ((at, words), header) in (0..).zip(args.as_chunks::<3>().0).zip(headers) {
            let [a, b, c] = words.map(u64::from);
            let tag = u64::from(lap) << 16 | u64::from(header);
            region.atomic_u64(at * 16)?.store(a | b << 32, Ordering::Relaxed);
            region.atomic_u64(at * 16 + 8)?.store(c | tag << 32, Ordering::Release);
        }
        Ok(())
    }

    /// Waits for the completion of a lap and returns its result.
    fn completion(&self, lap: u16) -> Result<u64> {
        let region = self.completion.region();
        let (low, high) = (region.word_u64(0)?, region.word_u64(8)?);
        let give_up = Instant::now() + DEADLINE;
        for looks in 1_u64.. {
            // First the half with the tag: if it is this lap's, so is the other.
            if high.load(Ordering::Acquire) >> 48 == u64::from(lap) {
                return Ok(low.load(Ordering::Relaxed));
            }
            std::hint::spin_loop();
            if looks.is_multiple_of(1 << 16) && Instant::now() > give_up {
                break;
            }
        }
        bail!("the echo kernel did not answer lap {lap} within {DEADLINE:?}; see whether the device is alive")
    }
}
