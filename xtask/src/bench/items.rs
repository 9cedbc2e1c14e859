//! What is measured: three opcodes in IR, the same as kernels, and what the host expects of them.
//!
//! * *fold* adds its twelve arguments. Each is the item's number times an odd constant, so every word of a slot
//!   changes from item to item and from lap to lap, and one stale quarter always changes the sum: the constants
//!   of a quarter add up to an odd number.
//! * *work* adds up units of 16 rounds of mixing bits that no compiler shortens: an item as long as one likes.
//! * *scan* steps an automaton over one KiB, from an entry state that changes every round.

use std::ops::Range;

use anyhow::{Result, ensure};
use vyre_driver::protocol::ARG_WORDS;
use vyre_driver::ring::SlotImage;
use vyre_foundation::builder::{Operand as _, ProgramBuilder};
use vyre_foundation::{
    Axis, BufferAccess, Builtin, DataType, MemorySpace, ValidatedProgram, ValidationErrors,
};
use vyre_runtime::{HandlerBinding, MegakernelError, OpcodeHandler, descriptor::Publish};

pub(super) const FOLD: u32 = 0x40;
pub(super) const WORK: u32 = 0x41;
pub(super) const SCAN: u32 = 0x42;
pub(super) const NOTE: u32 = 0x43;
/// Where notes are left.
pub(super) const NOTES_BINDING: &str = "notes";

const ODD: [u32; ARG_WORDS] = [
    0x9e37_79b1,
    0x85eb_ca77,
    0xc2b2_ae3d,
    0x27d4_eb2f,
    0x1656_67b1,
    0xcc9e_2d51,
    0x1b87_3593,
    0xe654_6b65,
    0x7feb_352d,
    0x846c_a68b,
    0x0101_0193,
    0x5bd1_e995,
];
const SUM: u32 = {
    let (mut sum, mut at) = (0_u32, 0);
    while at < ARG_WORDS {
        sum = sum.wrapping_add(ODD[at]);
        at += 1;
    }
    sum
};

/// The arguments of fold item `n`.
pub(super) fn fold_args(n: u32) -> [u32; ARG_WORDS] {
    ODD.map(|odd| n.wrapping_mul(odd))
}

/// What fold makes of any arguments.
pub(super) fn fold(args: &[u32; ARG_WORDS]) -> u32 {
    args.iter().fold(0, |sum, &arg| sum.wrapping_add(arg))
}

/// What fold makes of those of item `n`.
pub(super) const fn fold_result(n: u32) -> u32 {
    n.wrapping_mul(SUM)
}

/// Fold item `n` as it goes into the ring.
pub(super) fn fold_image(n: u32) -> SlotImage {
    SlotImage::new(FOLD, fold_args(n))
}

/// Refuses a wrong result.
pub(super) fn expect(what: &str, n: u64, got: u64, expected: u64) -> Result<()> {
    ensure!(
        got == expected,
        "{what} {n} came back as {got:#x}, not {expected:#x}: the figure would be worthless"
    );
    Ok(())
}

/// Fold items one after the other, submitted as one batch.
pub(super) struct FoldItems {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Publish for FoldItems {
    fn slot_count(&self) -> usize {
        self.count as usize
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        (0..self.count).for_each(|at| sink(&fold_image(self.first.wrapping_add(at))));
        Ok(())
    }
}

pub(super) fn fold_handler() -> OpcodeHandler {
    OpcodeHandler::new(FOLD, "fold", |h| {
        let sum = h.var_("sum", h.arg(0));
        (1..ARG_WORDS).for_each(|at| h.assign(sum, sum + h.arg(at)));
        h.complete(sum);
    })
}

/// Stores its argument, for others to read once it is acknowledged.
pub(super) fn note_handler() -> OpcodeHandler {
    OpcodeHandler::new(NOTE, "note", |h| {
        let notes = h.buffer(NOTES_BINDING);
        h.store(notes, 0, h.arg(0));
        h.complete(h.arg(0));
    })
    .binding(HandlerBinding::read_write(NOTES_BINDING, DataType::U32))
}

const ROUNDS: u32 = 16;
const SHIFT: u32 = 15;
const FACTOR: u32 = 0x85eb_ca6b;

/// What work makes of a seed and a number of units.
pub(super) fn work(seed: u32, units: u32) -> u32 {
    longer_work(seed, 0..units, ROUNDS)
}

/// What some units of more rounds each come to.
fn longer_work(seed: u32, units: Range<u32>, rounds: u32) -> u32 {
    let unit = |at: u32| (0..rounds).fold(seed ^ at, |x, _| (x ^ x >> SHIFT).wrapping_mul(FACTOR));
    units.fold(0, |sum, at| sum.wrapping_add(unit(at)))
}

/// One piece of work.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    pub(super) seed: u32,
    /// As many as invocations.
    pub(super) units: u32,
    /// Of each unit.
    pub(super) rounds: u32,
    pub(super) result: u32,
}

impl Job {
    pub(super) fn new(seed: u32, units: u32) -> Job {
        Job { seed, units, rounds: ROUNDS, result: work(seed, units) }
    }

    /// One that keeps every lane of a large GPU busy for a tenth of a millisecond or more.
    pub(super) fn filling_a_device(seed: u32) -> Job {
        const UNITS: u32 = 1 << 18;
        const PART: u32 = 1 << 13;
        let rounds = 1 << 12;
        // More threads than cores do no harm.
        let result = std::thread::scope(|scope| {
            let parts: Vec<_> = (0..UNITS / PART)
                .map(|part| scope.spawn(move || longer_work(seed, part * PART..(part + 1) * PART, rounds)))
                .collect();
            // A part that panicked makes the result wrong, and the row fails.
            parts.into_iter().filter_map(|part| part.join().ok()).fold(0, u32::wrapping_add)
        });
        Job { seed, units: UNITS, rounds, result }
    }

    /// What a kernel gets.
    pub(super) fn words(&self) -> [u32; 3] {
        [self.seed, self.units, self.rounds]
    }
}

/// Pieces of work that differ.
pub(super) fn jobs(seeds: impl Iterator<Item = u32>, units: u32) -> impl Iterator<Item = Job> {
    seeds.map(move |seed| Job::new(seed, units))
}

pub(super) fn work_handler() -> OpcodeHandler {
    OpcodeHandler::new(WORK, "work", |h| {
        let sum = h.var_("sum", 0_u32);
        h.for_("at", 0, h.arg(1), |h, at| {
            let x = h.var_("x", h.arg(0) ^ at);
            h.for_("round", 0, ROUNDS, |h, _| h.assign(x, (x ^ (x >> SHIFT)) * FACTOR));
            h.assign(sum, sum + x);
        });
        h.complete(sum);
    })
}

/// Invocations of a workgroup of the kernels.
pub(super) const WORKGROUP: u32 = 64;

/// Work as a kernel of its own, a unit to an invocation: adds the result to `sum`. `job` has [`Job::words`].
pub(super) fn work_kernel() -> Result<ValidatedProgram, ValidationErrors> {
    let mut p = ProgramBuilder::kernel("work").workgroup_size([WORKGROUP, 1, 1]);
    let job = p.buffer("job", MemorySpace::Global, DataType::U32, BufferAccess::Read, 3);
    let sum = p.buffer("sum", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    let sums = p.buffer("sums", MemorySpace::Workgroup, DataType::U32, BufferAccess::ReadWrite, WORKGROUP);
    p.entry(|f| {
        let me = f.let_("me", Builtin::LocalId(Axis::X));
        let at = f.let_("at", Builtin::GlobalId(Axis::X));
        let x = f.var_("x", 0_u32);
        f.if_(at.lt(job.load(1)), |f| {
            f.assign(x, job.load(0) ^ at);
            f.for_("round", 0, job.load(2), |f, _| f.assign(x, (x ^ (x >> SHIFT)) * FACTOR));
        });
        f.store(sums, me, x);
        f.barrier();
        let mut width = WORKGROUP / 2;
        while width > 0 {
            f.if_(me.lt(width), |f| f.store(sums, me, sums.load(me) + sums.load(me + width)));
            f.barrier();
            width /= 2;
        }
        f.if_(me.eq_(0), |f| {
            f.atomic_add(sum, 0, sums.load(0));
        });
    });
    p.validate()
}

/// Bytes of a scanned piece.
pub(super) const PIECE: u32 = 1024;
const STATES: u32 = 64;
pub(super) const TABLE_BINDING: &str = "table";
pub(super) const INPUT_BINDING: &str = "input";
/// Where each piece's scan says how it ended.
pub(super) const STATES_BINDING: &str = "states";

pub(super) fn scan_handler() -> OpcodeHandler {
    OpcodeHandler::new(SCAN, "scan", |h| {
        let (table, input) = (h.buffer(TABLE_BINDING), h.buffer(INPUT_BINDING));
        let states = h.buffer(STATES_BINDING);
        let state = h.var_("state", h.arg(1));
        let begin = h.let_("begin", h.arg(0) * (PIECE / 4));
        h.for_("at", begin, begin + PIECE / 4, |h, at| {
            let bytes = h.let_("bytes", input.load(at));
            for shift in [0, 8, 16, 24] {
                h.assign(state, table.load(state + ((bytes >> shift) & 0xff)));
            }
        });
        // Whoever has no ticket finds it here.
        h.store(states, h.arg(0), state);
        h.complete(state);
    })
    .binding(HandlerBinding::read(TABLE_BINDING, DataType::U32))
    .binding(HandlerBinding::read(INPUT_BINDING, DataType::U32))
    .binding(HandlerBinding::read_write(STATES_BINDING, DataType::U32))
}

/// Scans as a kernel, a piece to an invocation. `from` has the entry state, and the last states go to `states`.
pub(super) fn scan_kernel(workgroup: u32) -> Result<ValidatedProgram, ValidationErrors> {
    let mut p = ProgramBuilder::kernel("scan").workgroup_size([workgroup, 1, 1]);
    let table = p.buffer(TABLE_BINDING, MemorySpace::Global, DataType::U32, BufferAccess::Read, 1);
    let input = p.buffer(INPUT_BINDING, MemorySpace::Global, DataType::U32, BufferAccess::Read, 1);
    let from = p.buffer("from", MemorySpace::Global, DataType::U32, BufferAccess::Read, 1);
    let states = p.buffer("states", MemorySpace::Global, DataType::U32, BufferAccess::Write, 1);
    p.entry(|f| {
        let i = f.let_("i", Builtin::GlobalId(Axis::X));
        f.if_(i.lt(states.len()), |f| {
            let state = f.var_("state", from.load(0));
            f.for_("at", i * (PIECE / 4), (i + 1) * (PIECE / 4), |f, at| {
                let bytes = f.let_("bytes", input.load(at));
                for shift in [0, 8, 16, 24] {
                    f.assign(state, table.load(state + ((bytes >> shift) & 0xff)));
                }
            });
            f.store(states, i, state);
        });
    });
    p.validate()
}

/// An automaton, its input, and where it ends on every piece. A state is the place of its row in the table.
pub(super) struct ScanData {
    pub(super) table: Vec<u32>,
    pub(super) input: Vec<u8>,
    /// Last states by entry state and piece.
    ends: Vec<Vec<u32>>,
}

/// How many entry states take turns.
const ENTRIES: u32 = 4;

impl ScanData {
    pub(super) fn new(pieces: u32) -> ScanData {
        let mut seed = 1;
        let table = permuting_table(&mut seed);
        let bytes = pieces as usize * PIECE as usize;
        let input: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
        let mut data = ScanData { table, input, ends: Vec::new() };
        let ends = |round| data.input.chunks(PIECE as usize).map(|piece| data.run(round, piece)).collect();
        data.ends = (0..u64::from(ENTRIES)).map(ends).collect();
        data
    }

    /// Where a piece ends in a round.
    pub(super) fn run(&self, round: u64, piece: &[u8]) -> u32 {
        let step =
            |state: u32, &byte: &u8| self.table.get(state as usize + usize::from(byte)).copied().unwrap_or(0);
        piece.iter().fold(ScanData::entry(round), step)
    }

    pub(super) fn pieces(&self) -> u32 {
        (self.input.len() / PIECE as usize) as u32
    }

    /// The entry state of a round.
    pub(super) fn entry(round: u64) -> u32 {
        (round % u64::from(ENTRIES)) as u32 * 7 * 256
    }

    /// The last states of a round.
    pub(super) fn ends(&self, round: u64) -> &[u32] {
        self.ends.get((round % u64::from(ENTRIES)) as usize).map_or(&[], Vec::as_slice)
    }

    /// Refuses last states that are not those of the round.
    pub(super) fn check(&self, round: u64, got: &[u32]) -> Result<()> {
        let expected = self.ends(round);
        ensure!(got.len() == expected.len(), "{} scans came back, not {}", got.len(), expected.len());
        (0..)
            .zip(got.iter().zip(expected))
            .try_for_each(|(n, (&got, &expected))| expect("scan", n, got.into(), expected.into()))
    }
}

/// An automaton whose every byte permutes the states (Fisher-Yates), so that different entry states end in different
/// states: those of a random one meet within a few dozen bytes.
fn permuting_table(seed: &mut u64) -> Vec<u32> {
    let mut table = vec![0; STATES as usize * 256];
    for byte in 0..256 {
        let mut successors: Vec<u32> = (0..STATES).collect();
        for last in (1..successors.len()).rev() {
            successors.swap(last, (random(seed) % (last as u64 + 1)) as usize);
        }
        let column = table.iter_mut().skip(byte).step_by(256);
        column.zip(successors).for_each(|(place, successor)| *place = successor * 256);
    }
    table
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Words as bytes.
pub(super) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Bytes as words.
pub(super) fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_quarter_always_changes_a_fold() {
        assert!(
            ODD.chunks(3)
                .all(|quarter| quarter.iter().fold(0_u32, |sum, &odd| sum.wrapping_add(odd)) % 2 == 1)
        );
        for n in [0, 1, 77, u32::MAX] {
            assert_eq!(fold(&fold_args(n)), fold_result(n));
            for (stale, quarter) in
                (1..).flat_map(|lap| (0..4).map(move |quarter| (lap * 4096, quarter))).take(64)
            {
                let mut args = fold_args(n);
                let old = fold_args(n.wrapping_sub(stale));
                let words = quarter * 3..quarter * 3 + 3;
                args[words.clone()].copy_from_slice(&old[words]);
                assert_ne!(fold(&args), fold_result(n), "quarter {quarter} of {stale} items ago");
            }
        }
    }

    #[test]
    fn scans_of_two_rounds_differ() {
        let data = ScanData::new(100);
        data.check(0, data.ends(4)).expect("the same entry state");
        assert!(data.ends(0).iter().zip(data.ends(1)).all(|(one, other)| one != other));
        assert!(data.check(0, data.ends(1)).is_err());
        assert!(data.check(0, &data.ends(0)[1..]).is_err());
    }

    #[test]
    fn kernels_are_valid() {
        work_kernel().expect("valid");
        scan_kernel(1).expect("valid");
    }
}
