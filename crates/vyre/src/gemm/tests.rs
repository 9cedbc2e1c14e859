//! The gates pass what is right and catch what is not.

use std::cell::Cell;

use half::f16;
use vyre_driver::BackendError;
use vyre_driver::gemm::{GemmOutput, GemmProblem};

use super::data::layouts;
use super::*;

/// The host's product, with something done to the result. Counts its runs.
struct Broken<F> {
    fault: F,
    runs: Cell<u32>,
}

impl<F: Fn(&GemmProblem, &GemmOperands, &mut GemmElements, u32)> GemmDevice for Broken<F> {
    fn facts(&self, problem: &GemmProblem, operands: &GemmOperands) -> Result<GemmFacts, BackendError> {
        CpuGemm::default().facts(problem, operands)
    }

    fn multiply(&self, problem: &GemmProblem, operands: &mut GemmOperands) -> Result<(), BackendError> {
        let before = operands.clone();
        CpuGemm::default().multiply(problem, operands)?;
        (self.fault)(problem, &before, &mut operands.c, self.runs.get());
        self.runs.set(self.runs.get() + 1);
        Ok(())
    }

    fn time(
        &self,
        problem: &GemmProblem,
        operands: &mut GemmOperands,
        samples: u32,
    ) -> Result<GemmTiming, BackendError> {
        CpuGemm::default().time(problem, operands, samples)
    }

    fn copy_rate(&self) -> Result<f64, BackendError> {
        Ok(1e9)
    }
}

const SHAPE: [u64; 3] = [33, 40, 70];

fn shape() -> GemmProblem {
    let [m, n, k] = SHAPE;
    GemmProblem { lda: k + 3, ldb: n + 1, ldc: n + 5, ..GemmProblem::dense(m, n, k) }
}

fn failed(gates: &[GemmGate]) -> Vec<&'static str> {
    gates.iter().filter(|gate| !gate.passed).map(|gate| gate.name).collect()
}

/// The gates that fail when this is done to every result.
fn caught(
    output: GemmOutput,
    fault: impl Fn(&GemmProblem, &GemmOperands, &mut GemmElements, u32),
) -> Vec<&'static str> {
    let broken = Broken { fault, runs: Cell::new(0) };
    failed(&verify(&broken, &shape(), output, 5).expect("runs"))
}

/// Where an element of C is in its buffer.
fn at(p: &GemmProblem, operands: &GemmOperands, row: u64, column: u64) -> usize {
    let [_, _, c] = layouts(p, operands.first);
    c.row(0, row) + column as usize
}

#[test]
fn what_is_right_passes_every_gate() {
    let [m, n, k] = SHAPE;
    let dense = GemmProblem::dense(m, n, k);
    let batched = GemmProblem { batch: 3, alpha: 0.7, beta: -1.3, ..dense };
    let padded = GemmProblem {
        stride_a: m * (k + 3) + 2,
        stride_b: k * (n + 1),
        stride_c: m * (n + 5),
        batch: 2,
        ..shape()
    };
    // C interleaved row by row, one A for all, B that overlap: each begins three rows behind the one before.
    let shared = GemmProblem {
        batch: 3,
        stride_a: 0,
        stride_b: 3 * n,
        stride_c: n + 2,
        ldc: 3 * (n + 2) + 1,
        beta: 0.5,
        ..dense
    };
    let zero = [
        GemmProblem::dense(0, n, k),
        GemmProblem::dense(m, n, 0),
        GemmProblem { alpha: 0.0, beta: 2.0, ..dense },
    ];
    let negative = GemmProblem { alpha: -1.0, ..GemmProblem::dense(5, 40, 1) };
    for problem in [dense, batched, padded, shared, negative, GemmProblem { beta: 1.0, ..shape() }]
        .into_iter()
        .chain(zero)
    {
        for output in [GemmOutput::F32, GemmOutput::F16] {
            let gates = verify(&CpuGemm::default(), &problem, output, 11).expect("runs");
            assert_eq!(failed(&gates), [""; 0], "{gates:#?}");
        }
    }
}

#[test]
fn one_wrong_element_is_caught() {
    for output in [GemmOutput::F32, GemmOutput::F16] {
        // Less than what the norm sees.
        let nudge = if output == GemmOutput::F32 { 1e-4 } else { 0.03 };
        let nudged = caught(output, |p, before, c, _| {
            let at = at(p, before, 18, 24);
            c.set(at, c.value(at) + nudge);
        });
        assert_eq!(nudged, ["exact", "bound", "specials", "subnormals"], "{output:?}");
        let doubled = caught(output, |p, before, c, _| {
            let at = at(p, before, 32, 39);
            c.set(at, c.value(at) * 2.0 + 3.0);
        });
        assert_eq!(doubled, ["exact", "bound", "norm", "specials", "subnormals"], "{output:?}");
    }
}

/// As in a batch that is interleaved, where the next row is another matrix's.
#[test]
fn the_right_element_is_named_in_any_layout() {
    let dense = GemmProblem::dense(3, 4, 5);
    let apart = GemmProblem { batch: 2, stride_c: 20, ldc: 6, ..dense };
    let interleaved = GemmProblem { batch: 2, stride_c: 5, ldc: 11, ..dense };
    for problem in [apart, interleaved] {
        let case =
            GemmCase { problem, output: GemmOutput::F32, data: GemmData::Integers, seed: 5, offset: 0 };
        let fault = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _| {
            let [_, _, layout] = layouts(p, before.first);
            let at = layout.row(1, 2) + 3;
            c.set(at, c.value(at) + 1.0);
            // Between rows, or between the matrices' rows.
            let between = layout.row(1, 1) + 4;
            c.set(between, 1.0);
        };
        let gates = check(&Broken { fault, runs: Cell::new(0) }, &case).expect("runs");
        let [exact] = gates.as_slice() else { panic!("one: {gates:?}") };
        assert!(exact.detail.starts_with("2 elements wrong; the first: written outside of C"), "{exact:?}");
        let only = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _| {
            let [_, _, layout] = layouts(p, before.first);
            c.set(layout.row(1, 2) + 3, 77.0);
        };
        let gates = check(&Broken { fault: only, runs: Cell::new(0) }, &case).expect("runs");
        assert!(gates[0].detail.contains("the first: C[2][3] of problem 1 is 7.7e1"), "{gates:?}");
    }
}

#[test]
fn what_no_host_holds_is_refused_before_a_device_is_opened() {
    let dense = GemmProblem::dense(4, 4, 4);
    let refused = |problem: GemmProblem| admit(&problem, GemmOutput::F32).expect_err("refused").to_string();
    let short = refused(GemmProblem { lda: 3, ldb: 1 << 62, ..dense });
    assert!(short.contains("the leading dimension of A is 3"), "before what overflows: {short}");
    assert!(refused(GemmProblem { ldb: 1 << 61, ..dense }).contains("leaves 63 bits"));
    assert!(refused(GemmProblem { ldc: 1 << 50, ..dense }).contains("out of memory"));
    // B is there although C has no elements.
    assert!(refused(GemmProblem::dense(0, 1 << 24, 1 << 24)).contains("out of memory"));
    assert!(refused(GemmProblem { alpha: f32::NAN, ..dense }).contains("`alpha`: got NaN"));
    assert!(refused(GemmProblem { beta: f32::NEG_INFINITY, ..dense }).contains("`beta`: got -inf"));
    // One row reaches no further than its elements.
    admit(&GemmProblem { m: 1, lda: 1 << 50, ldc: 1 << 50, ..dense }, GemmOutput::F32).expect("fits");
}

#[test]
fn nan_is_no_pass() {
    let nan = caught(GemmOutput::F32, |p, before, c, _| c.set(at(p, before, 0, 0), f64::NAN));
    assert_eq!(nan, ["exact", "bound", "norm", "specials", "subnormals"]);
}

#[test]
fn what_was_not_written_is_caught() {
    let unwritten = caught(GemmOutput::F16, |p, before, c, _| {
        let (at, GemmElements::F16(after), GemmElements::F16(before)) = (at(p, before, 8, 39), c, &before.c)
        else {
            panic!("fp16");
        };
        after[at] = before[at];
    });
    assert_eq!(unwritten, ["exact", "bound", "norm", "specials", "subnormals"]);
}

/// Poison is told from a NaN that is right.
#[test]
fn what_was_not_written_is_no_right_nan() {
    let case =
        GemmCase { problem: shape(), output: GemmOutput::F32, data: GemmData::Specials, seed: 5, offset: 0 };
    let fault = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _| {
        let first = at(p, before, 3, 0);
        let nan = (first..first + p.n as usize).find(|&at| c.value(at).is_nan()).expect("inf - inf");
        let (GemmElements::F32(after), GemmElements::F32(before)) = (c, &before.c) else { panic!("fp32") };
        after[nan] = before[nan];
    };
    let gates = check(&Broken { fault, runs: Cell::new(0) }, &case).expect("runs");
    assert_eq!(failed(&gates), ["specials"], "{gates:?}");
}

#[test]
fn canaries_are_watched() {
    for place in [[0, 40], [32, 44]] {
        let [row, column] = place;
        let trampled = caught(GemmOutput::F32, |p, before, c, _| c.set(at(p, before, row, column), 0.0));
        assert_eq!(trampled, ["exact", "bound", "specials", "subnormals"], "{place:?}");
    }
    let before_c = caught(GemmOutput::F32, |p, before, c, _| c.set(at(p, before, 0, 0) - 1, 0.0));
    assert_eq!(before_c, ["exact", "bound", "specials", "subnormals"]);
}

/// Sums in fp16: integers are still exact, which is why there is more than one gate.
#[test]
fn fp16_sums_are_caught() {
    let narrow = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _: u32| {
        let [a, b, _] = layouts(p, before.first);
        for (row, column) in (0..p.m).flat_map(|row| (0..p.n).map(move |column| (row, column))) {
            let mut sum = f16::ZERO;
            for k in 0..p.k {
                let product = before.a[a.row(0, row) + k as usize].to_f32()
                    * before.b[b.row(0, k) + column as usize].to_f32();
                sum = f16::from_f32(sum.to_f32() + product);
            }
            c.set(at(p, before, row, column), sum.to_f64());
        }
    };
    let found = caught(GemmOutput::F32, narrow);
    assert!(found.contains(&"bound") && found.contains(&"norm"), "{found:?}");
    assert!(!found.contains(&"exact"), "small integers are exact in fp16 too: {found:?}");
}

#[test]
fn flushed_subnormals_are_caught_where_they_must_not_be() {
    let flushed = caught(GemmOutput::F32, |p, before, c, _| {
        for (row, column) in (0..p.m).flat_map(|row| (0..p.n).map(move |column| (row, column))) {
            let at = at(p, before, row, column);
            if c.value(at).abs() < 1e-1 {
                c.set(at, 0.0);
            }
        }
    });
    assert!(flushed.contains(&"subnormals"), "{flushed:?}");
}

#[test]
fn infinities_are_not_finite_numbers() {
    let clamped = caught(GemmOutput::F16, |_, _, c, _| {
        for at in 0..c.len() {
            if c.value(at).is_infinite() {
                c.set(at, 65504.0_f64.copysign(c.value(at)));
            }
        }
    });
    assert_eq!(clamped, ["specials"]);
}

#[test]
fn what_overflows_is_infinite_and_nothing_else_is() {
    for (alpha, output) in [(1e4, GemmOutput::F16), (1e38, GemmOutput::F32)] {
        let case = GemmCase {
            problem: GemmProblem { alpha, ..shape() },
            output,
            data: GemmData::Normal,
            seed: 5,
            offset: 0,
        };
        let largest = if output == GemmOutput::F16 { 65504.0 } else { f64::from(f32::MAX) };
        // The first element for which something holds is changed.
        let judged = |wanted: fn(f64) -> bool, change: &dyn Fn(f64) -> f64| {
            let fault = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _| {
                let elements = (0..p.m).flat_map(|row| (0..p.n).map(move |column| (row, column)));
                let mut places = elements.map(|(row, column)| at(p, before, row, column));
                let place = places.find(|&place| wanted(c.value(place))).expect("there is one");
                c.set(place, change(c.value(place)));
            };
            let gates = check(&Broken { fault, runs: Cell::new(0) }, &case).expect("runs");
            failed(&gates).contains(&"bound")
        };
        assert!(!judged(f64::is_infinite, &|value| value), "{output:?}: right");
        assert!(!judged(f64::is_finite, &|value| value), "{output:?}: right");
        assert!(judged(f64::is_infinite, &|value| -value), "{output:?}: the other infinity");
        assert!(judged(f64::is_infinite, &|value| largest.copysign(value)), "{output:?}: clamped");
        assert!(judged(f64::is_infinite, &|_| f64::NAN), "{output:?}: NaN");
        assert!(judged(f64::is_finite, &|value| f64::INFINITY.copysign(value)), "{output:?}: too early");
    }
}

/// Rows with infinities are compared though no others of their kind are.
#[test]
fn infinities_in_rows_that_are_not_sampled_are_compared() {
    let problem = GemmProblem::dense(1000, 700, 700);
    for data in [GemmData::Normal, GemmData::Integers] {
        let case = GemmCase { problem, output: GemmOutput::F32, data, seed: 9, offset: 0 };
        let fault = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _| {
            c.set(at(p, before, 501, 699), f64::INFINITY);
        };
        let gates = check(&Broken { fault, runs: Cell::new(0) }, &case).expect("runs");
        assert!(gates.iter().any(|gate| !gate.passed && gate.detail.contains("501")), "{gates:?}");
    }
}

#[test]
fn other_bits_the_next_time_are_caught() {
    let unsteady = caught(GemmOutput::F32, |p, before, c, run| {
        if run > 40 {
            let at = at(p, before, 3, 3);
            c.set(at, c.value(at) * (1.0 + 2_f64.powi(-23)));
        }
    });
    assert_eq!(unsteady, ["repeat"]);
}

#[test]
fn short_matrices_must_be_refused() {
    struct Careless;
    impl GemmDevice for Careless {
        fn facts(&self, _: &GemmProblem, _: &GemmOperands) -> Result<GemmFacts, BackendError> {
            Ok(GemmFacts::default())
        }
        fn multiply(&self, problem: &GemmProblem, operands: &mut GemmOperands) -> Result<(), BackendError> {
            drop(CpuGemm::default().multiply(problem, operands));
            Ok(())
        }
        fn time(&self, p: &GemmProblem, o: &mut GemmOperands, n: u32) -> Result<GemmTiming, BackendError> {
            CpuGemm::default().time(p, o, n)
        }
        fn copy_rate(&self) -> Result<f64, BackendError> {
            Ok(1.0)
        }
    }
    let gates = verify(&Careless, &shape(), GemmOutput::F32, 1).expect("runs");
    assert_eq!(failed(&gates), ["arguments"]);
}

/// Where rows are sampled, a wrong element in any other row changes that row's weighted sum.
#[test]
fn rows_that_are_not_sampled_are_summed() {
    let case = GemmCase {
        problem: GemmProblem { beta: 1.0, ..GemmProblem::dense(1000, 700, 700) },
        output: GemmOutput::F32,
        data: GemmData::Integers,
        seed: 9,
        offset: 0,
    };
    let gates = check(&CpuGemm::default(), &case).expect("runs");
    assert!(gates.iter().all(|gate| gate.passed && gate.elements < 700_000), "{gates:?}");
    for row in [1, 501, 998] {
        let fault = |p: &GemmProblem, before: &GemmOperands, c: &mut GemmElements, _| {
            let at = at(p, before, row, 699);
            c.set(at, c.value(at) - 1.0);
        };
        let gates = check(&Broken { fault, runs: Cell::new(0) }, &case).expect("runs");
        assert_eq!(failed(&gates), ["exact"], "row {row}");
    }
}

#[test]
fn the_report_says_what_was_and_was_not_measured() {
    let report = run(&CpuGemm::default(), &shape(), GemmOutput::F16, 3, 3).expect("runs");
    assert!(report.passed);
    let text = report.to_markdown();
    for part in
        ["# GEMM 33 x 40 x 70: right", "| exact | yes |", "TFLOP/s", "Not measured, not claimed:", "C f16"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let facts = GemmFacts {
        code_object_path: Some("/cache/object".into()),
        compiler_digest: Some("c0de".to_owned()),
        ..report.facts.clone()
    };
    let on_a_gpu = GemmReport { facts, batch: 2, ..report.clone() };
    let text = on_a_gpu.to_markdown();
    for part in
        ["| code object | /cache/object |", "| compiler digest | c0de |", "; strides 2310, 2800, 1320; "]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (tflops, seconds) = (report.tflops.expect("timed"), report.timing.expect("timed").seconds);
    assert!((tflops * 1e12 * seconds - 2.0 * 33.0 * 40.0 * 70.0).abs() < 1e-3);
}
