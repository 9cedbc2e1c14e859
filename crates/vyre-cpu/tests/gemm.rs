//! The fp16 matrix product against fp64, by the gates that any of its kernels must pass.

use half::f16;
use vyre_cpu::externals::{GemmElement, gemm_f16, gemm_f64};
use vyre_driver::gemm::GemmProblem;

/// Values behind rows and around C that nobody may touch.
const CANARY: f32 = -77.0;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// About normal: the sum of uniform values.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.next() as f64 / (1_u64 << 31) as f64).sum::<f64>() - 6.0
    }
}

/// A batch of matrices with rows `ld` apart; NaN in between.
fn matrices(
    p: &GemmProblem,
    [rows, columns, ld, stride]: [u64; 4],
    mut value: impl FnMut() -> f64,
) -> Vec<f16> {
    let mut all = vec![f16::NAN; (p.batch * stride + rows * ld) as usize];
    for (problem, row) in (0..p.batch).flat_map(|problem| (0..rows).map(move |row| (problem, row))) {
        for column in 0..columns {
            all[(problem * stride + row * ld + column) as usize] = f16::from_f64(value());
        }
    }
    all
}

/// Whether each element of C was given a value by `fits`, and nothing else was touched.
fn check<C: GemmElement>(
    p: &GemmProblem,
    mut value: impl FnMut() -> f64,
    fits: impl Fn(f32, f64, f64) -> bool,
) {
    let a = matrices(p, [p.m, p.k, p.lda, p.stride_a], &mut value);
    let b = matrices(p, [p.k, p.n, p.ldb, p.stride_b], &mut value);
    let before: Vec<C> = matrices(p, [p.m, p.n, p.ldc, p.stride_c], &mut value)
        .into_iter()
        // What is between the rows is a canary; what beta 0 must not read is poison.
        .map(|old| match old.is_nan() {
            true => C::from_f32(CANARY),
            false if p.beta == 0.0 => C::from_f32(f32::NAN),
            false => C::from_f32(old.to_f32()),
        })
        .collect();
    let mut after = before.clone();
    gemm_f16(p, &a, &b, &mut after, 1);
    let mut again = before.clone();
    gemm_f16(p, &a, &b, &mut again, 3);
    let bits = |c: &[C]| c.iter().map(|c| c.to_f32().to_bits()).collect::<Vec<_>>();
    assert!(bits(&after) == bits(&again), "the number of threads shows: {p:?}");
    let expected = gemm_f64(p, &a, &b, &before);
    assert_eq!(expected.len() as u64, p.batch * p.m * p.n);
    let mut left: Vec<Option<f32>> = after.iter().map(|c| Some(c.to_f32())).collect();
    let place = |i: u64| (i / (p.m * p.n) * p.stride_c + i / p.n % p.m * p.ldc + i % p.n) as usize;
    for (i, reference) in (0..).zip(&expected) {
        let Some(found) = left[place(i)].take() else { panic!("C overlaps: {p:?}") };
        let (value, magnitude) = (reference.value, reference.magnitude);
        assert!(fits(found, value, magnitude), "element {i}: {found}, not {value}: {p:?}");
    }
    assert!(left.into_iter().flatten().all(|canary| canary == CANARY), "touched between rows: {p:?}");
}

/// Dense, and with gaps between rows and problems.
fn layouts(m: u64, n: u64, k: u64) -> [GemmProblem; 2] {
    let dense = GemmProblem { beta: 0.0, ..GemmProblem::dense(m, n, k) };
    let (lda, ldb, ldc) = (k + 3, n + 1, n + 5);
    let (stride_a, stride_b, stride_c) = (m * lda + 2, k * ldb, m * ldc + 7);
    let gaps = GemmProblem {
        lda,
        ldb,
        ldc,
        stride_a,
        stride_b,
        stride_c,
        batch: 3,
        alpha: 2.0,
        beta: -1.0,
        ..dense
    };
    [dense, gaps]
}

const SIZES: [u64; 6] = [1, 15, 16, 17, 63, 65];

/// Every partial sum of small integers is exact, in any order.
#[test]
fn small_integers_are_exact() {
    for (m, n, k) in [(0, 4, 4), (4, 0, 4), (4, 4, 0), (1, 300, 300), (300, 1, 65), (130, 290, 17)]
        .into_iter()
        .chain(SIZES.iter().flat_map(|&m| SIZES.iter().map(move |&n| (m, n, 80 - n))))
    {
        for p in layouts(m, n, k) {
            let mut random = Random(m << 40 | n << 20 | k);
            let value = || (random.next() % 5) as f64 - 2.0;
            check::<f32>(&p, value, |found, value, _| f64::from(found) == value);
            let mut random = Random(7);
            let value = || (random.next() % 5) as f64 - 2.0;
            check::<f16>(&p, value, |found, value, _| found == f16::from_f64(value).to_f32());
        }
    }
}

#[test]
fn random_values_are_within_the_bound() {
    for (m, n, k) in [(65, 33, 1000), (17, 63, 300), (64, 64, 2049), (130, 300, 500)] {
        for p in layouts(m, n, k) {
            let bound = move |magnitude: f64| (0.5 * (k as f64).sqrt() + 4.0) * 2_f64.powi(-24) * magnitude;
            let mut random = Random(k);
            check::<f32>(
                &p,
                || random.normal(),
                |found, value, magnitude| (f64::from(found) - value).abs() <= bound(magnitude),
            );
            check::<f16>(
                &p,
                || random.normal(),
                |found, value, magnitude| {
                    (f64::from(found) - value).abs() <= bound(magnitude) + 2_f64.powi(-11) * value.abs()
                },
            );
        }
    }
}

#[test]
fn infinities_and_subnormals_go_through() {
    let h = |values: &[f32]| values.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>();
    let inf = f32::INFINITY;
    let tiny = f16::from_bits(1).to_f32();
    let a = h(&[1.0, 1.0]);
    // Columns: inf - inf, inf * 1 + 1, overflow of fp16, two subnormals.
    let b = h(&[inf, inf, 60000.0, tiny, -inf, 1.0, 60000.0, tiny]);
    let p = GemmProblem::dense(1, 4, 2);
    let mut wide = [f32::NAN; 4];
    gemm_f16(&p, &a, &b, &mut wide, 1);
    assert!(wide[0].is_nan());
    assert_eq!(wide[1..], [inf, f16::from_f32(60000.0).to_f32() * 2.0, 2.0 * tiny]);
    let mut narrow = [f16::NAN; 4];
    gemm_f16(&p, &a, &b, &mut narrow, 1);
    assert!(narrow[0].is_nan());
    assert_eq!(narrow[1..], [f16::INFINITY, f16::INFINITY, f16::from_bits(2)]);
    let zero_times_inf = GemmProblem { alpha: 0.0, beta: 2.0, ..p };
    let mut kept = [1.0_f32, 2.0, 3.0, 4.0];
    gemm_f16(&zero_times_inf, &a, &b, &mut kept, 1);
    assert_eq!(kept, [2.0, 4.0, 6.0, 8.0]);
}

#[test]
fn the_reference_agrees_with_pencil_and_paper() {
    let h = |values: &[f32]| values.iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>();
    let p = GemmProblem { alpha: 2.0, beta: 10.0, ..GemmProblem::dense(2, 2, 3) };
    let (a, b) = (h(&[1.0, 2.0, 3.0, 4.0, 5.0, -6.0]), h(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let c = gemm_f64(&p, &a, &b, &[1.0_f32, -2.0, 3.0, 4.0]);
    let values: Vec<(f64, f64)> = c.iter().map(|c| (c.value, c.magnitude)).collect();
    assert_eq!(values, [(54.0, 54.0), (36.0, 76.0), (8.0, 128.0), (24.0, 168.0)]);
}
