//! `C = alpha * A * B + beta * C` with A and B in fp16, summed in fp32: as an external function, over slices, and
//! in fp64 for tests.
//!
//! The sum of an element is taken in the order of k, from +0. A product of two fp16 values is exact in fp32, so it
//! makes no difference whether a multiplication and its addition are fused; and each element is computed on one
//! thread. So the bits depend neither on the machine nor on the number of threads.
//!
//! The loops are the usual ones: blocks of A and B are widened and packed so that a few rows and columns of sums
//! stay in registers while k runs (Goto and van de Geijn, ACM TOMS 34, 2008).

use std::sync::{Mutex, PoisonError};

use half::f16;
use half::slice::HalfFloatSliceExt;
use vyre_driver::gemm::GemmProblem;
use vyre_foundation::Literal;
use vyre_foundation::externals::{GEMM_F16, GEMM_F16_F16, Signature};

use super::{ExternalFunction, ExternalView};

/// Rows of a panel of C, which one thread computes.
const PANEL: usize = 64;
/// Columns of C that are computed together.
const WIDTH: usize = 256;
/// Steps of k for which A and B are packed at a time.
const DEPTH: usize = 256;
/// Rows and columns whose sums stay in registers.
const ROWS: usize = 4;
const COLUMNS: usize = 16;

const _: () = assert!(PANEL.is_multiple_of(ROWS) && WIDTH.is_multiple_of(COLUMNS));

/// Multiplications that a further thread is started for: some tenths of a millisecond.
const WORK_PER_THREAD: u128 = 1 << 24;

/// What an element of C becomes.
fn blend(problem: &GemmProblem, sum: f32, old: impl FnOnce() -> f32) -> f32 {
    let GemmProblem { alpha, beta, .. } = *problem;
    if beta == 0.0 { alpha * sum } else { alpha.mul_add(sum, beta * old()) }
}

/// What C may hold.
pub trait GemmElement: Copy + Send + Sync {
    /// The value.
    fn to_f32(self) -> f32;
    /// The nearest value.
    fn from_f32(value: f32) -> Self;
}

impl GemmElement for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl GemmElement for f16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }
}

/// Computes a batch on at most so many threads.
///
/// It is defined for every problem and all lengths: what lies outside of a slice loads as zero and is not stored, a
/// leading dimension below the length of a row counts as that length, and problems whose C overlap are computed one
/// after the other. [`GemmProblem::check`] tells whether that was meant.
pub fn gemm_f16<C: GemmElement>(problem: &GemmProblem, a: &[f16], b: &[f16], c: &mut [C], threads: usize) {
    for index in 0..problem.batch {
        let first = |stride: u64| usize::try_from(index.saturating_mul(stride)).unwrap_or(usize::MAX);
        let a = a.get(first(problem.stride_a)..).unwrap_or_default();
        let b = b.get(first(problem.stride_b)..).unwrap_or_default();
        let c = c.get_mut(first(problem.stride_c)..).unwrap_or_default();
        // Without elements of C in this problem, there are none in those after it.
        let lengths = [a.len(), b.len(), c.len()].map(|len| len as u64);
        let Some(shape) = Shape::new(problem, lengths) else { return };
        let ldc = usize::try_from(shape.ldc).unwrap_or(usize::MAX);
        let panels = c.chunks_mut(ldc.saturating_mul(PANEL)).zip(0..shape.panels());
        in_parallel(panels, shape.threads(threads), |(c, panel), scratch| {
            let store = |row: usize, column: usize, sum| {
                if let Some(c) = row.checked_mul(ldc).and_then(|first| c.get_mut(first + column)) {
                    *c = C::from_f32(blend(problem, sum, || c.to_f32()));
                }
            };
            let widen_a = |first, into: &mut [f32]| widen(a, first, into);
            shape.panel(panel, scratch, widen_a, |first, into| widen(b, first, into), store);
        });
    }
}

/// Elements from `first` as `f32`, zero past the end.
fn widen(matrix: &[f16], first: u64, into: &mut [f32]) {
    let rest = usize::try_from(first).ok().and_then(|first| matrix.get(first..)).unwrap_or_default();
    let (known, past) = into.split_at_mut(rest.len().min(into.len()));
    rest.get(..known.len()).unwrap_or_default().convert_to_f32_slice(known);
    past.fill(0.0);
}

/// One product, cut down to what exists: nothing is stored outside of C, and where neither A nor B has elements
/// there is nothing to add.
struct Shape {
    m: u64,
    n: u64,
    k: u64,
    lda: u64,
    ldb: u64,
    ldc: u64,
}

impl Shape {
    /// `None` if C has no elements that exist.
    fn new(problem: &GemmProblem, [len_a, len_b, len_c]: [u64; 3]) -> Option<Shape> {
        let (lda, ldb) = (problem.lda.max(problem.k), problem.ldb.max(problem.n));
        let ldc = problem.ldc.max(problem.n);
        let k = if problem.alpha == 0.0 { 0 } else { problem.k };
        let shape = Shape {
            m: problem.m.min(len_c.div_ceil(ldc.max(1))),
            n: problem.n.min(len_c),
            k: k.min(len_a.max(len_b.div_ceil(ldb.max(1)))),
            lda,
            ldb,
            ldc,
        };
        (shape.m > 0 && shape.n > 0).then_some(shape)
    }

    fn panels(&self) -> u64 {
        self.m.div_ceil(PANEL as u64)
    }

    /// How many of some threads are worth while.
    fn threads(&self, most: usize) -> usize {
        let work = u128::from(self.m) * u128::from(self.n) * u128::from(self.k) / WORK_PER_THREAD + 1;
        let panels = usize::try_from(self.panels()).unwrap_or(usize::MAX);
        usize::try_from(work).unwrap_or(usize::MAX).min(panels).min(most).max(1)
    }

    /// Computes a panel of C. `a` and `b` load elements from a position; `store` is given a row of the panel, a
    /// column, and the sum.
    fn panel(
        &self,
        panel: u64,
        scratch: &mut Scratch,
        a: impl Fn(u64, &mut [f32]),
        b: impl Fn(u64, &mut [f32]),
        mut store: impl FnMut(usize, usize, f32),
    ) {
        let top = panel * PANEL as u64;
        let rows = (self.m - top).min(PANEL as u64) as usize;
        for left in (0..self.n).step_by(WIDTH) {
            let columns = (self.n - left).min(WIDTH as u64) as usize;
            scratch.sums.fill([[0.0; COLUMNS]; ROWS]);
            for near in (0..self.k).step_by(DEPTH) {
                let depth = (self.k - near).min(DEPTH as u64) as usize;
                for row in 0..rows {
                    let line = &mut scratch.line[..depth];
                    load(&a, (top + row as u64, self.lda, near), line);
                    let packed = scratch.a[row / ROWS * DEPTH..].iter_mut().zip(line);
                    packed.for_each(|(packed, value)| packed[row % ROWS] = *value);
                }
                for step in 0..depth {
                    let line = &mut scratch.line[..columns];
                    load(&b, (near + step as u64, self.ldb, left), line);
                    for (group, values) in line.chunks(COLUMNS).enumerate() {
                        scratch.b[group * DEPTH + step][..values.len()].copy_from_slice(values);
                    }
                }
                scratch.multiply(rows.div_ceil(ROWS), columns.div_ceil(COLUMNS), depth);
            }
            for row in 0..rows {
                for column in 0..columns {
                    let sums = &scratch.sums[row / ROWS * (WIDTH / COLUMNS) + column / COLUMNS];
                    let column_of_c = usize::try_from(left).unwrap_or(usize::MAX).saturating_add(column);
                    store(row, column_of_c, sums[row % ROWS][column % COLUMNS]);
                }
            }
        }
    }
}

/// Loads part of a row; what lies beyond all addresses is zero.
fn load(from: impl Fn(u64, &mut [f32]), (row, ld, column): (u64, u64, u64), into: &mut [f32]) {
    match row.checked_mul(ld).and_then(|first| first.checked_add(column)) {
        Some(first) => from(first, into),
        None => into.fill(0.0),
    }
}

/// What a thread needs to compute panels.
struct Scratch {
    line: Vec<f32>,
    /// For each group of rows, the steps of k. Rows and columns that do not exist hold anything: their sums are
    /// dropped.
    a: Vec<[f32; ROWS]>,
    /// For each group of columns, the steps of k.
    b: Vec<[f32; COLUMNS]>,
    /// For each group of rows, the groups of columns.
    sums: Vec<[[f32; COLUMNS]; ROWS]>,
}

impl Scratch {
    fn new() -> Scratch {
        Scratch {
            line: vec![0.0; WIDTH.max(DEPTH)],
            a: vec![[0.0; ROWS]; PANEL / ROWS * DEPTH],
            b: vec![[0.0; COLUMNS]; WIDTH / COLUMNS * DEPTH],
            sums: vec![[[0.0; COLUMNS]; ROWS]; PANEL / ROWS * (WIDTH / COLUMNS)],
        }
    }

    /// Adds the products of the packed blocks to the sums.
    fn multiply(&mut self, row_groups: usize, column_groups: usize, depth: usize) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature.
            return unsafe { self.multiply_avx2(row_groups, column_groups, depth) };
        }
        self.multiply_groups(row_groups, column_groups, depth);
    }

    /// The same code for processors with wider registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn multiply_avx2(&mut self, row_groups: usize, column_groups: usize, depth: usize) {
        self.multiply_groups(row_groups, column_groups, depth);
    }

    #[inline(always)]
    fn multiply_groups(&mut self, row_groups: usize, column_groups: usize, depth: usize) {
        for row in 0..row_groups {
            for column in 0..column_groups {
                let a = &self.a[row * DEPTH..][..depth];
                let b = &self.b[column * DEPTH..][..depth];
                let slot = &mut self.sums[row * (WIDTH / COLUMNS) + column];
                let mut sums = *slot;
                for (a, b) in a.iter().zip(b) {
                    for (sums, a) in sums.iter_mut().zip(a) {
                        sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                    }
                }
                *slot = sums;
            }
        }
    }
}

/// Runs tasks on so many threads, this one included.
fn in_parallel<T>(
    tasks: impl Iterator<Item = T> + Send,
    threads: usize,
    run: impl Fn(T, &mut Scratch) + Sync,
) {
    let tasks = Mutex::new(tasks);
    let work = || {
        let mut scratch = Scratch::new();
        // The lock is free again before the task begins.
        while let Some(task) = { tasks.lock().unwrap_or_else(PoisonError::into_inner).next() } {
            run(task, &mut scratch);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Fewer threads are slower, and no more than that.
            let _ = std::thread::Builder::new().spawn_scoped(scope, work);
        }
        work();
    });
}

/// An element of C as fp64 has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmReference {
    /// `alpha * sum + beta * c`.
    pub value: f64,
    /// `|alpha| * sum of |a * b| + |beta * c|`: what rounding errors are measured against.
    pub magnitude: f64,
}

/// The elements of C in fp64, row by row without gaps, problem by problem; defined as [`gemm_f16`] is.
pub fn gemm_f64<C: GemmElement>(problem: &GemmProblem, a: &[f16], b: &[f16], c: &[C]) -> Vec<GemmReference> {
    let at = |index: u64, stride: u64, row: u64, ld: u64, column: u64| {
        let first = index.checked_mul(stride)?.checked_add(row.checked_mul(ld)?)?;
        usize::try_from(first.checked_add(column)?).ok()
    };
    let (lda, ldb) = (problem.lda.max(problem.k), problem.ldb.max(problem.n));
    let ldc = problem.ldc.max(problem.n);
    let half =
        |matrix: &[f16], at: Option<usize>| at.and_then(|at| matrix.get(at)).map_or(0.0, |v| v.to_f64());
    let (alpha, beta) = (f64::from(problem.alpha), f64::from(problem.beta));
    let mut all = Vec::new();
    for index in 0..problem.batch {
        for i in 0..problem.m {
            let mut row = vec![(0.0, 0.0); problem.n as usize];
            for p in 0..if problem.alpha == 0.0 { 0 } else { problem.k } {
                let a = half(a, at(index, problem.stride_a, i, lda, p));
                for (j, (sum, magnitude)) in (0..).zip(&mut row) {
                    let product = a * half(b, at(index, problem.stride_b, p, ldb, j));
                    *sum += product;
                    *magnitude += product.abs();
                }
            }
            all.extend((0..).zip(row).map(|(j, (sum, magnitude))| {
                let old = at(index, problem.stride_c, i, ldc, j).and_then(|at| c.get(at));
                let old = if beta == 0.0 { 0.0 } else { beta * old.map_or(0.0, |c| f64::from(c.to_f32())) };
                GemmReference { value: alpha * sum + old, magnitude: alpha.abs() * magnitude + old.abs() }
            }));
        }
    }
    all
}

/// The product as programs call it.
#[derive(Debug)]
pub(super) struct GemmF16 {
    signature: Signature,
    threads: usize,
}

/// With C in `f32`, and in `f16`.
pub(super) fn externals(threads: usize) -> [GemmF16; 2] {
    [GEMM_F16, GEMM_F16_F16].map(|signature| GemmF16 { signature, threads })
}

impl ExternalFunction for GemmF16 {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn call(&self, scalars: &[Literal], buffers: &[ExternalView<'_>]) -> Vec<Literal> {
        use Literal::{F32, U32, U64};
        if let (
            &[
                U32(m),
                U32(n),
                U32(k),
                U32(lda),
                U32(ldb),
                U32(ldc),
                U64(at_a),
                U64(at_b),
                U64(at_c),
                F32(alpha),
                F32(beta),
            ],
            [a, b, c],
        ) = (scalars, buffers)
        {
            let [m, n, k, lda, ldb, ldc] = [m, n, k, lda, ldb, ldc].map(u64::from);
            let (alpha, beta) = (f32::from_bits(alpha), f32::from_bits(beta));
            let problem = GemmProblem { lda, ldb, ldc, alpha, beta, ..GemmProblem::dense(m, n, k) };
            multiply(&problem, [a, b, c], [at_a, at_b, at_c], self.threads);
        }
        Vec::new()
    }
}

/// Computes one product of matrices that begin at these elements of buffers.
fn multiply(problem: &GemmProblem, [a, b, c]: [&ExternalView<'_>; 3], at: [u64; 3], threads: usize) {
    let [at_a, at_b, at_c] = at;
    let left = |view: &ExternalView<'_>, at: u64| view.len().saturating_sub(at);
    let Some(shape) = Shape::new(problem, [left(a, at_a), left(b, at_b), left(c, at_c)]) else { return };
    in_parallel(0..shape.panels(), shape.threads(threads), |panel, scratch| {
        let store = |row: usize, column: usize, sum| {
            // Rows that exist at all begin in the buffer.
            let row = panel * PANEL as u64 + row as u64;
            let index = at_c.saturating_add(row.saturating_mul(shape.ldc)).saturating_add(column as u64);
            let old = || match c.load(index) {
                Literal::F32(bits) => f32::from_bits(bits),
                _ => 0.0,
            };
            c.store(index, Literal::f32(blend(problem, sum, old)));
        };
        let from = |view: &ExternalView<'_>, at: u64, first: u64, into: &mut [f32]| {
            view.load_floats(at.saturating_add(first), into);
        };
        let load_a = |first, into: &mut [f32]| from(a, at_a, first, into);
        shape.panel(panel, scratch, load_a, |first, into| from(b, at_b, first, into), store);
    });
}
