//! The least that a resident kernel can do: one thread answers one word.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Result, bail};
use vyre_hip::device::{Function, HostMemory as _, PinnedMemory};

use super::super::items::expect;
use super::super::measure::{Sample, Turn};
use super::super::session::numbers;
use super::super::statistics::{latencies, record};
use super::{Arguments, DEADLINE, Gpu, launch};

/// What is asked and what is answered, each in a cache line of its own.
const BYTES: u64 = 128;
const ANSWERED: u64 = 64;
/// The word that ends the kernel.
const STOP: u32 = u32::MAX;
/// A look over the bus takes about a microsecond, so the kernel leaves within a minute or so of the host's death.
const MOST_LOOKS: u32 = 1 << 26;
const WARM_UP: u32 = 256;

/// Two words in memory that the device accesses in place.
pub(in super::super) struct Echo<'g> {
    gpu: &'g Gpu,
    function: Function,
    words: Arc<PinnedMemory>,
}

impl Echo<'_> {
    pub(in super::super) fn new(gpu: &Gpu) -> Result<Echo<'_>> {
        let words = PinnedMemory::new(gpu.backend.context(), "the words of the echo", BYTES)?;
        Ok(Echo { gpu, function: gpu.module.function("echo")?, words })
    }

    /// One word after the other, each from before it is written to after its answer.
    pub(in super::super) fn turn(&self, round: u64, items: u32) -> Result<Turn> {
        let (asked, answered) = (self.words.word(0)?, self.words.word(ANSWERED)?);
        [asked, answered].iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let address = self.words.device_address();
        let arguments = Arguments::new(&[address, address + ANSWERED], &[MOST_LOOKS]);
        let stream = &self.gpu.stream;
        // SAFETY: the parameters are the kernel's, the words live as long as `self`, and the kernel has left before
        // this function returns: `STOP` says so, and it leaves by itself where nobody does.
        unsafe { launch(&self.function, stream, [1, 1], &arguments) }?;
        stream.keep_alive(&self.words);
        let echoed = echoes(asked, answered, round, items);
        // Whatever went wrong, the kernel has to leave.
        asked.store(STOP, Ordering::Release);
        let left = stream.wait(DEADLINE);
        let histogram = echoed?;
        left?;
        Ok(Turn { acknowledged: items.into(), sample: Sample::Latencies(histogram) })
    }
}

fn echoes(
    asked: &AtomicU32,
    answered: &AtomicU32,
    round: u64,
    items: u32,
) -> Result<hdrhistogram::Histogram<u64>> {
    let mut histogram = latencies()?;
    let mut before = 0;
    for (at, n) in (0..).zip(numbers(round, WARM_UP + items)) {
        let started = Instant::now();
        asked.store(n, Ordering::Release);
        let answer = answer(answered, before)?;
        let elapsed = started.elapsed();
        expect("echo", n.into(), answer.into(), n.into())?;
        if at >= WARM_UP {
            record(&mut histogram, elapsed);
        }
        before = n;
    }
    Ok(histogram)
}

/// Waits until the answer is no longer `before`.
fn answer(answered: &AtomicU32, before: u32) -> Result<u32> {
    let mut give_up = None;
    for looks in 1_u64.. {
        let now = answered.load(Ordering::Acquire);
        if now != before {
            return Ok(now);
        }
        std::hint::spin_loop();
        // No look at the clock on the way of an answer that comes.
        if looks.is_multiple_of(1 << 16) && Instant::now() > *give_up.get_or_insert(Instant::now() + DEADLINE)
        {
            break;
        }
    }
    bail!("the echo kernel did not answer within {DEADLINE:?}; see whether the device is alive")
}
