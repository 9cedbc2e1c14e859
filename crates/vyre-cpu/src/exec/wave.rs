//! The state of a wave: its registers, its masks, where it is.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::flat::{Flat, Place};

/// Registers start on a cache line, and with them every register of 16 words or a multiple.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "only its bytes count")] [u64; 8]);

const LINE_BYTES: usize = size_of::<Line>();

/// A register file: rows of `W` values.
struct File<T, const W: usize> {
    lines: Vec<Line>,
    rows: usize,
    values: PhantomData<T>,
}

/// What a register holds: any bit pattern is a value, and zero bytes are one.
pub(super) trait Lane: Copy {}
impl Lane for u32 {}
impl Lane for u64 {}

impl<T: Lane, const W: usize> File<T, W> {
    fn new(rows: usize) -> File<T, W> {
        let bytes = rows * size_of::<[T; W]>();
        File { lines: vec![Line([0; 8]); bytes.div_ceil(LINE_BYTES)], rows, values: PhantomData }
    }

    fn rows(&self) -> &[[T; W]] {
        let first = self.lines.as_ptr().cast::<[T; W]>();
        // SAFETY: the lines hold at least `rows` rows, are aligned for them, are initialised, and any bytes
        // are valid as a `Lane`.
        unsafe { std::slice::from_raw_parts(first, self.rows) }
    }

    fn rows_mut(&mut self) -> &mut [[T; W]] {
        let first = self.lines.as_mut_ptr().cast::<[T; W]>();
        // SAFETY: as in `rows`; and `self` is borrowed uniquely.
        unsafe { std::slice::from_raw_parts_mut(first, self.rows) }
    }
}

/// A wave of up to `W` lanes of one program. It can be begun again any number of times.
pub(crate) struct Wave<const W: usize> {
    pub(super) flat: Arc<Flat>,
    words: File<u32, W>,
    longs: File<u64, W>,
    pub(super) masks: Vec<u32>,
    /// The next instruction.
    pub(super) at: u32,
    /// The lanes that execute it.
    pub(super) active: u32,
    /// The lanes that have neither ended nor trapped.
    pub(super) alive: u32,
    /// The lanes that trapped, each with its code.
    trapped: u32,
    trap_codes: [u32; W],
}

impl<const W: usize> Wave<W> {
    pub(crate) fn new(flat: Arc<Flat>) -> Wave<W> {
        let registers = flat.registers;
        let mut wave = Wave {
            words: File::new(registers.words),
            longs: File::new(registers.longs),
            masks: vec![0; registers.masks],
            at: flat.start,
            active: 0,
            alive: 0,
            trapped: 0,
            trap_codes: [0; W],
            flat,
        };
        let flat = wave.flat.clone();
        for &(register, value) in &flat.word_constants {
            wave.fill(Place::Word(register), u64::from(value));
        }
        for &(register, value) in &flat.long_constants {
            wave.fill(Place::Long(register), value);
        }
        for &(register, value) in &flat.mask_constants {
            wave.fill(Place::Mask(register), u64::from(value));
        }
        wave
    }

    /// Bytes that the registers of a wave of this program take.
    pub(crate) fn bytes(flat: &Flat) -> u64 {
        let registers = flat.registers;
        let (words, longs) = (registers.words * W * 4, registers.longs * W * 8);
        (words + longs + registers.masks * 4 + size_of::<Wave<W>>()) as u64
    }

    /// Starts over with the first `lanes` lanes.
    pub(crate) fn begin(&mut self, lanes: u32) {
        let all = if lanes >= u32::BITS { u32::MAX } else { (1 << lanes) - 1 };
        self.at = self.flat.start;
        self.active = all;
        self.alive = all;
        self.trapped = 0;
    }

    /// The code with which a lane trapped, if it did.
    pub(crate) fn trap(&self, lane: usize) -> Option<u32> {
        let trapped = lane < W && self.trapped >> lane & 1 != 0;
        if trapped { self.trap_codes.get(lane).copied() } else { None }
    }

    /// The lowest lane that trapped, with its code.
    pub(crate) fn first_trap(&self) -> Option<(u32, u32)> {
        let lane = self.trapped.trailing_zeros();
        self.trap(lane as usize).map(|code| (lane, code))
    }

    /// Gives one lane of a register a value; the low half of it, or whether it is odd, for smaller registers.
    pub(crate) fn set(&mut self, place: Place, lane: usize, value: u64) {
        match place {
            Place::Word(register) => {
                let row = self.words.rows_mut().get_mut(usize::from(register));
                if let Some(slot) = row.and_then(|row| row.get_mut(lane)) {
                    *slot = value as u32;
                }
            }
            Place::Long(register) => {
                let row = self.longs.rows_mut().get_mut(usize::from(register));
                if let Some(slot) = row.and_then(|row| row.get_mut(lane)) {
                    *slot = value;
                }
            }
            Place::Mask(register) => {
                if let Some(mask) = self.masks.get_mut(usize::from(register)) {
                    *mask = *mask & !(1 << lane) | (value as u32 & 1) << lane;
                }
            }
        }
    }

    /// One lane of a register.
    pub(crate) fn get(&self, place: Place, lane: usize) -> u64 {
        match place {
            Place::Word(register) => {
                let row = self.words.rows().get(usize::from(register));
                row.and_then(|row| row.get(lane)).map_or(0, |&value| u64::from(value))
            }
            Place::Long(register) => {
                let row = self.longs.rows().get(usize::from(register));
                row.and_then(|row| row.get(lane)).map_or(0, |&value| value)
            }
            Place::Mask(register) => {
                self.masks.get(usize::from(register)).map_or(0, |&mask| u64::from(mask >> lane & 1))
            }
        }
    }

    /// The lowest active lane.
    pub(crate) fn first_active(&self) -> Option<usize> {
        (self.active != 0).then(|| self.active.trailing_zeros() as usize)
    }

    fn fill(&mut self, place: Place, value: u64) {
        match place {
            Place::Mask(register) => {
                if let Some(mask) = self.masks.get_mut(usize::from(register)) {
                    *mask = value as u32;
                }
            }
            Place::Word(_) | Place::Long(_) => (0..W).for_each(|lane| self.set(place, lane, value)),
        }
    }

    /// The lanes that trapped, and with which codes.
    pub(super) fn trap_state(&mut self) -> (&mut u32, &mut [u32; W]) {
        (&mut self.trapped, &mut self.trap_codes)
    }

    /// Gives the first lanes of a register values, as [`Wave::set`] does.
    pub(crate) fn set_lanes(&mut self, place: Place, values: impl Iterator<Item = u64>) {
        match place {
            Place::Word(register) => {
                let row = self.words.rows_mut().get_mut(usize::from(register));
                row.into_iter().flatten().zip(values).for_each(|(slot, value)| *slot = value as u32);
            }
            Place::Long(register) => {
                let row = self.longs.rows_mut().get_mut(usize::from(register));
                row.into_iter().flatten().zip(values).for_each(|(slot, value)| *slot = value);
            }
            Place::Mask(_) => {
                values.take(W).enumerate().for_each(|(lane, value)| self.set(place, lane, value))
            }
        }
    }

    /// The registers, for the executor.
    pub(super) fn registers(&mut self) -> Registers<W> {
        Registers {
            words: self.words.rows_mut().as_mut_ptr(),
            longs: self.longs.rows_mut().as_mut_ptr(),
            masks: self.masks.as_mut_ptr(),
        }
    }
}

/// Unchecked access to the registers of a wave.
///
/// Its methods are safe to call only from the executor: every index comes from an instruction of the wave's
/// own verified program, which says that the register exists and that one written is not among those read.
#[derive(Clone, Copy)]
pub(super) struct Registers<const W: usize> {
    words: *mut [u32; W],
    longs: *mut [u64; W],
    masks: *mut u32,
}

impl<const W: usize> Registers<W> {
    #[inline(always)]
    pub(super) fn mask(&self, register: u16) -> u32 {
        // SAFETY: a verified register number is below the size of its file.
        let mask = unsafe { self.masks.add(usize::from(register)) };
        // SAFETY: it points into the file, which outlives `self` and is initialised.
        unsafe { mask.read() }
    }

    #[inline(always)]
    pub(super) fn set_mask(&self, register: u16, value: u32) {
        // SAFETY: a verified register number is below the size of its file.
        let mask = unsafe { self.masks.add(usize::from(register)) };
        // SAFETY: it points into the file, which outlives `self`; nothing refers to it meanwhile.
        unsafe { mask.write(value) }
    }
}

/// A register file as the executor sees it.
pub(super) trait Bank<T, const W: usize> {
    /// A register that is read.
    fn row<'r>(&self, register: u16) -> &'r [T; W];
    /// A register that is written.
    fn row_mut<'r>(&self, register: u16) -> &'r mut [T; W];
}

impl<const W: usize> Bank<u32, W> for Registers<W> {
    #[inline(always)]
    fn row<'r>(&self, register: u16) -> &'r [u32; W] {
        // SAFETY: a verified register number is below the size of its file.
        let row = unsafe { self.words.add(usize::from(register)) };
        // SAFETY: it points into the file; the executor holds it for one instruction, which writes no
        // register that it reads.
        unsafe { &*row }
    }

    #[inline(always)]
    fn row_mut<'r>(&self, register: u16) -> &'r mut [u32; W] {
        // SAFETY: a verified register number is below the size of its file.
        let row = unsafe { self.words.add(usize::from(register)) };
        // SAFETY: it points into the file; the executor holds it for one instruction, which writes no
        // register that it reads, and writes only one.
        unsafe { &mut *row }
    }
}

impl<const W: usize> Bank<u64, W> for Registers<W> {
    #[inline(always)]
    fn row<'r>(&self, register: u16) -> &'r [u64; W] {
        // SAFETY: a verified register number is below the size of its file.
        let row = unsafe { self.longs.add(usize::from(register)) };
        // SAFETY: as for words.
        unsafe { &*row }
    }

    #[inline(always)]
    fn row_mut<'r>(&self, register: u16) -> &'r mut [u64; W] {
        // SAFETY: a verified register number is below the size of its file.
        let row = unsafe { self.longs.add(usize::from(register)) };
        // SAFETY: as for words.
        unsafe { &mut *row }
    }
}
