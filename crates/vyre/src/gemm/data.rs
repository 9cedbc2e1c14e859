//! What products are tried with: matrices made from a seed, poison where nothing may be read, canaries where
//! nothing may be written.

use std::f64::consts::TAU;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use vyre_driver::gemm::{GemmOutput, GemmProblem};

/// Elements in front of every matrix and behind it.
const GUARD: u64 = 64;
/// NaN in what must not be read, and, with other bits, in elements of C that are to be written.
const UNREAD: f16 = f16::from_bits(0x7e01);
const POISON_F32: u32 = 0x7fc0_dead;
const POISON_F16: u16 = 0x7ead;
/// NaN in what must not be written.
const CANARY_F32: u32 = 0x7fc0_beef;
const CANARY_F16: u16 = 0x7eef;

/// What the elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GemmData {
    /// -2 to 2: every partial sum is exact in fp32, in any order.
    Integers,
    /// Standard normal.
    Normal,
    /// Integers with infinities that meet zeros and each other, and rows whose sums leave fp16.
    Specials,
    /// A of multiples of 2^-24, which are fp16's subnormals, and B of multiples of 1024: exact.
    Subnormals,
}

/// One product to try.
#[derive(Clone, Copy, Debug)]
pub struct GemmCase {
    /// The product.
    pub problem: GemmProblem,
    /// What C holds.
    pub output: GemmOutput,
    /// What the matrices hold.
    pub data: GemmData,
    /// Where the random numbers begin.
    pub seed: u64,
    /// Elements by which the matrices are away from an aligned address.
    pub offset: u64,
}

/// The elements of C, canaries included.
#[derive(Clone, Debug)]
pub enum GemmElements {
    /// Of [`GemmOutput::F32`].
    F32(Vec<f32>),
    /// Of [`GemmOutput::F16`].
    F16(Vec<f16>),
}

/// The matrices of a product, each with guards around it.
#[derive(Clone, Debug)]
pub struct GemmOperands {
    /// A.
    pub a: Vec<f16>,
    /// B.
    pub b: Vec<f16>,
    /// C.
    pub c: GemmElements,
    /// Where each of them begins.
    pub first: u64,
}

/// What a position of a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) batch: u64,
    pub(super) row: u64,
    pub(super) column: u64,
}

/// How one matrix of a batch lies in its buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) first: u64,
    pub(super) rows: u64,
    pub(super) columns: u64,
    pub(super) ld: u64,
    pub(super) batch: u64,
    pub(super) stride: u64,
}

impl Layout {
    /// The element at a position; `None` in guards and between rows. Of matrices that [overlap](Self::overlap),
    /// some of the elements.
    pub(super) fn place(&self, at: u64) -> Option<Place> {
        let at = at.checked_sub(self.first)?;
        let (ld, stride) = (self.ld.max(1), self.stride.max(1));
        let (batch, row, column) = if self.batch <= 1 {
            (0, at / ld, at % ld)
        } else if self.are_interleaved() {
            (at % ld / stride, at / ld, at % ld % stride)
        } else {
            (at / stride, at % stride / ld, at % stride % ld)
        };
        let known = batch < self.batch && row < self.rows && column < self.columns;
        known.then_some(Place { batch, row, column })
    }

    /// Elements from the first to behind the last of one matrix.
    fn one(&self) -> u128 {
        u128::from(self.rows.saturating_sub(1)) * u128::from(self.ld) + u128::from(self.columns)
    }

    /// Elements from the first to behind the last of all matrices.
    pub(super) fn extent(&self) -> u128 {
        if self.batch == 0 || self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (u128::from(self.batch - 1) * u128::from(self.stride)).saturating_add(self.one())
    }

    /// Whether each row of a matrix stands beside the same row of the others.
    fn are_interleaved(&self) -> bool {
        let row =
            u128::from(self.batch.saturating_sub(1)) * u128::from(self.stride) + u128::from(self.columns);
        u128::from(self.stride) < self.one() && self.stride >= self.columns && row <= self.ld.into()
    }

    /// Whether matrices share elements, as those that are only read may.
    fn overlap(&self) -> bool {
        self.batch > 1 && u128::from(self.stride) < self.one() && !self.are_interleaved()
    }

    /// Where a row begins.
    pub(super) fn row(&self, batch: u64, row: u64) -> usize {
        (self.first + batch * self.stride + row * self.ld) as usize
    }
}

/// A, B and C of a problem, `first` elements behind the beginnings of their buffers.
pub(super) fn layouts(p: &GemmProblem, first: u64) -> [Layout; 3] {
    // A matrix that all products share is one, and is filled once.
    let layout = |rows, columns, ld, stride| {
        let batch = if stride == 0 { p.batch.min(1) } else { p.batch };
        Layout { first, rows, columns, ld, batch, stride }
    };
    [
        layout(p.m, p.k, p.lda, p.stride_a),
        layout(p.k, p.n, p.ldb, p.stride_b),
        layout(p.m, p.n, p.ldc, p.stride_c),
    ]
}

impl GemmElements {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            GemmElements::F32(all) => all.len(),
            GemmElements::F16(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of an element; NaN past the end.
    pub fn value(&self, at: usize) -> f64 {
        match self {
            GemmElements::F32(all) => all.get(at).map_or(f64::NAN, |&value| value.into()),
            GemmElements::F16(all) => all.get(at).map_or(f64::NAN, |value| value.to_f64()),
        }
    }

    /// The bits of an element; zero past the end.
    pub fn bits(&self, at: usize) -> u32 {
        match self {
            GemmElements::F32(all) => all.get(at).map_or(0, |value| value.to_bits()),
            GemmElements::F16(all) => all.get(at).map_or(0, |value| value.to_bits().into()),
        }
    }

    /// Stores the nearest value.
    pub fn set(&mut self, at: usize, value: f64) {
        match self {
            GemmElements::F32(all) => all.iter_mut().skip(at).take(1).for_each(|slot| *slot = value as f32),
            GemmElements::F16(all) => {
                all.iter_mut().skip(at).take(1).for_each(|slot| *slot = f16::from_f64(value))
            }
        }
    }

    /// Whether an element still is as it was before anything was written.
    pub(super) fn is_poison(&self, at: usize) -> bool {
        self.bits(at) == if matches!(self, GemmElements::F32(_)) { POISON_F32 } else { POISON_F16.into() }
    }

    pub(super) fn is_canary(&self, at: usize) -> bool {
        self.bits(at) == if matches!(self, GemmElements::F32(_)) { CANARY_F32 } else { CANARY_F16.into() }
    }

    /// The bits that a value has after rounding to the type.
    pub(super) fn bits_of(&self, value: f64) -> u32 {
        match self {
            GemmElements::F32(_) => (value as f32).to_bits(),
            GemmElements::F16(_) => f16::from_f64(value).to_bits().into(),
        }
    }

    /// Cuts the end off.
    pub(super) fn truncate(&mut self, len: usize) {
        match self {
            GemmElements::F32(all) => all.truncate(len),
            GemmElements::F16(all) => all.truncate(len),
        }
    }
}

/// A well-mixed number for a position (the finaliser of MurmurHash3).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

impl GemmCase {
    /// The matrices.
    pub fn operands(&self) -> GemmOperands {
        let p = &self.problem;
        let first = GUARD + self.offset;
        let [a, b, c] = layouts(p, first);
        // With lengths as if A and B were always read: what must not be read is there, and is NaN.
        let len = |x: &Layout| (first + GUARD) as usize + x.extent() as usize;
        let operand = |layout: &Layout, which: u64, read: bool| {
            let mut all = vec![UNREAD; len(layout)];
            if read {
                fill(&mut all, layout, |place| f16::from_f64(self.element(which, place)));
            }
            all
        };
        let read = p.reads_operands();
        let (a, b) = (operand(&a, 0, read), operand(&b, 1, read));
        let old = |place: Place| if p.beta == 0.0 { None } else { Some(self.element(2, place)) };
        let c = match self.output {
            GemmOutput::F32 => {
                let mut all = vec![f32::from_bits(CANARY_F32); len(&c)];
                fill(&mut all, &c, |place| {
                    old(place).map_or(f32::from_bits(POISON_F32), |value| value as f32)
                });
                GemmElements::F32(all)
            }
            GemmOutput::F16 => {
                let mut all = vec![f16::from_bits(CANARY_F16); len(&c)];
                fill(&mut all, &c, |place| old(place).map_or(f16::from_bits(POISON_F16), f16::from_f64));
                GemmElements::F16(all)
            }
        };
        GemmOperands { a, b, c, first }
    }

    /// An element of A, B or C.
    fn element(&self, which: u64, Place { batch, row, column }: Place) -> f64 {
        let position = mix(mix(mix(batch).wrapping_add(row)).wrapping_add(column));
        let random = mix(self.seed.wrapping_mul(3).wrapping_add(which) ^ position);
        let integer = (random % 5) as f64 - 2.0;
        let k = self.problem.k.max(1);
        match (self.data, which) {
            (GemmData::Integers, _) | (_, 2) if self.data != GemmData::Normal => integer,
            (GemmData::Normal, _) => {
                let [u, v] =
                    [random >> 32, random & 0xffff_ffff].map(|half| (half as f64 + 1.0) / 2_f64.powi(32));
                (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
            }
            (GemmData::Subnormals, 0) => integer * 2_f64.powi(-24),
            (GemmData::Subnormals, _) => integer * 1024.0,
            // Two infinities in a row of A; one in a column of B.
            (GemmData::Specials, 0)
                if row % 7 == 3 && [row * 31 % k, (row * 17 + 1) % k].contains(&column) =>
            {
                f64::INFINITY
            }
            (GemmData::Specials, 0) if row % 7 == 5 => integer.signum() * 32768.0,
            (GemmData::Specials, 1) if column % 5 == 2 && column * 13 % k == row => f64::NEG_INFINITY,
            _ => integer,
        }
    }
}

/// Sets the elements of a matrix, on all processors.
fn fill<T: Send>(all: &mut [T], layout: &Layout, element: impl Fn(Place) -> T + Sync) {
    const PIECE: usize = 1 << 16;
    if layout.overlap() {
        for (batch, row) in (0..layout.batch).flat_map(|batch| (0..layout.rows).map(move |row| (batch, row)))
        {
            let slots = all.iter_mut().skip(layout.row(batch, row));
            (0..layout.columns)
                .zip(slots)
                .for_each(|(column, slot)| *slot = element(Place { batch, row, column }));
        }
        return;
    }
    let set = |index: usize, piece: &mut [T]| {
        for (at, slot) in ((index * PIECE) as u64..).zip(piece) {
            if let Some(place) = layout.place(at) {
                *slot = element(place);
            }
        }
    };
    let pieces: Vec<_> = all.chunks_mut(PIECE).enumerate().collect();
    in_parallel(pieces, |(index, piece)| set(index, piece));
}

/// Does something for each item, on all processors; the answers are in the order of the items.
pub(super) fn in_parallel<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if threads <= 1 {
        return items.into_iter().map(work).collect();
    }
    let next = AtomicU64::new(0);
    let items: Vec<_> = items.into_iter().map(|item| std::sync::Mutex::new(Some(item))).collect();
    let take = || {
        // Only the number matters; the item is behind a lock.
        let index = next.fetch_add(1, Ordering::Relaxed) as usize;
        let mut slot = items.get(index)?.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Some((index, slot.take()?))
    };
    let run = || std::iter::from_fn(take).map(|(index, item)| (index, work(item))).collect::<Vec<_>>();
    let mut all = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut all = run();
        for other in others {
            match other.join() {
                Ok(some) => all.extend(some),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, answer)| answer).collect()
}
