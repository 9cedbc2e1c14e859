//! What was found, as data and as text.

use std::fmt::Write as _;

use serde::Serialize;
use vyre_driver::gemm::{GemmOutput, GemmProblem};

use super::device::{GemmFacts, GemmTiming};
use super::gates::GemmGate;

/// A product: what it was, what it ran on, whether it was right, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GemmReport {
    /// Rows of A and C.
    pub m: u64,
    /// Columns of B and C.
    pub n: u64,
    /// Columns of A, rows of B.
    pub k: u64,
    /// Products.
    pub batch: u64,
    /// Leading dimensions of A, B and C, in elements.
    pub leading_dimensions: [u64; 3],
    /// From one product's A, B and C to the next one's, in elements.
    pub strides: [u64; 3],
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// Types of A and B, of the sums, and of C.
    pub types: [&'static str; 3],
    /// Where the random numbers began.
    pub seed: u64,
    /// Whether every gate was passed.
    pub passed: bool,
    /// The gates, in their order.
    pub gates: Vec<GemmGate>,
    /// What it ran on, and how that was built.
    pub facts: GemmFacts,
    /// How long it took; nothing for a product without elements.
    pub timing: Option<GemmTiming>,
    /// 10^12 multiplications and additions a second: 2 m n k for each product.
    pub tflops: Option<f64>,
    /// Bytes a second, each element of A, B and C counted once, C twice where it is read.
    pub bytes_per_second: Option<f64>,
    /// Bytes a second that a large copy moved, each read and written.
    pub copy_bytes_per_second: f64,
    /// The product's bytes a second as a share of the copy's.
    pub share_of_copy_rate: Option<f64>,
    /// What the figures are of.
    pub measured: Vec<String>,
    /// What they are not of.
    pub not_claimed: Vec<String>,
}

impl GemmReport {
    pub(super) fn new(
        problem: &GemmProblem,
        output: GemmOutput,
        seed: u64,
        facts: GemmFacts,
        gates: Vec<GemmGate>,
        timing: Option<GemmTiming>,
        copy_rate: f64,
    ) -> GemmReport {
        let per_second = |count: f64| Some(count / timing.as_ref()?.seconds.max(f64::MIN_POSITIVE));
        let bytes_per_second = per_second(problem.bytes(output));
        let mut measured = vec![
            "correctness on this shape, by the gates above, on matrices made from the seed".to_owned(),
            "bytes a second of a large copy on the same device, in the same process".to_owned(),
        ];
        if let Some(timing) = &timing {
            measured.push(format!(
                "time by {}: the median of {} samples of {} products back to back, on random normal data, after \
                 one that is not counted",
                timing.clock, timing.samples, timing.launches
            ));
        }
        let not_claimed = [
            "no other library was run: nothing is said of a share of the vendor's",
            "no other shape, alignment, device or compiler",
            "copies between host and device, and compiling, are not in the time; operands that fit a cache may \
             come from it",
            "clocks, power and temperature were neither fixed nor recorded",
            "rows that are not compared element by element are looked at for canaries, for what was not written and \
             for NaN, and by a weighted sum in the exact gate where its line says so",
        ];
        GemmReport {
            m: problem.m,
            n: problem.n,
            k: problem.k,
            batch: problem.batch,
            leading_dimensions: [problem.lda, problem.ldb, problem.ldc],
            strides: [problem.stride_a, problem.stride_b, problem.stride_c],
            alpha: problem.alpha,
            beta: problem.beta,
            types: ["f16", "f32", output.name()],
            seed,
            passed: gates.iter().all(|gate| gate.passed),
            gates,
            facts,
            tflops: per_second(problem.operations() / 1e12),
            bytes_per_second,
            copy_bytes_per_second: copy_rate,
            share_of_copy_rate: bytes_per_second.map(|bytes| bytes / copy_rate.max(f64::MIN_POSITIVE)),
            timing,
            measured,
            not_claimed: not_claimed.map(str::to_owned).to_vec(),
        }
    }

    /// The report as Markdown.
    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let GemmReport { m, n, k, batch, alpha, beta, facts, .. } = self;
        let [operands, sums, output] = self.types;
        writeln!(text, "# GEMM {m} x {n} x {k}: {}\n", if self.passed { "right" } else { "WRONG" })?;
        writeln!(
            text,
            "C = {alpha} A B + {beta} C; batch {batch}; A and B {operands}, sums {sums}, C {output}."
        )?;
        let [lda, ldb, ldc] = self.leading_dimensions;
        let [stride_a, stride_b, stride_c] = self.strides;
        write!(text, "Leading dimensions {lda}, {ldb}, {ldc}; ")?;
        if *batch > 1 {
            write!(text, "strides {stride_a}, {stride_b}, {stride_c}; ")?;
        }
        writeln!(text, "seed {}.\n", self.seed)?;

        writeln!(text, "| gate | passed | of its bound | elements | |\n|---|---|---|---|---|")?;
        for GemmGate { name, passed, detail, elements, worst } in &self.gates {
            let worst = worst.map(|worst| format!("{worst:.3}")).unwrap_or_default();
            let passed = if *passed { "yes" } else { "NO" };
            writeln!(text, "| {name} | {passed} | {worst} | {elements} | {detail} |")?;
        }

        writeln!(text, "\n| figure | |\n|---|---|")?;
        let mut row = |name: &str, value: Option<String>| match value {
            Some(value) => writeln!(text, "| {name} | {value} |"),
            None => Ok(()),
        };
        let timing = self.timing.as_ref();
        row(
            "time",
            timing.map(|t| format!("{:.3} us (least {:.3})", t.seconds * 1e6, t.least_seconds * 1e6)),
        )?;
        row("TFLOP/s", self.tflops.map(|tflops| format!("{tflops:.3}")))?;
        row("GB/s", self.bytes_per_second.map(|bytes| format!("{:.1}", bytes / 1e9)))?;
        row("GB/s of a copy", Some(format!("{:.1}", self.copy_bytes_per_second / 1e9)))?;
        row("share of the copy rate", self.share_of_copy_rate.map(|share| format!("{share:.3}")))?;
        row("backend", Some(facts.backend.clone()))?;
        row("device", Some(facts.device.clone()))?;
        row("architecture", Some(facts.arch.clone()))?;
        row("entry", Some(facts.entry.clone()))?;
        row("grid", facts.grid.map(|grid| grid.to_string()))?;
        row(if facts.grid.is_some() { "block" } else { "threads" }, Some(facts.block.to_string()))?;
        row("shared memory asked for", facts.shared_bytes.map(|bytes| format!("{bytes} bytes")))?;
        row("blocks sharing a tile's k", facts.split_k.map(|split| split.to_string()))?;
        row("registers", facts.registers.map(|registers| registers.to_string()))?;
        row("spills", facts.spills.map(|spills| spills.to_string()))?;
        row("compiler", facts.compiler.clone())?;
        row("compiler digest", facts.compiler_digest.clone())?;
        row("build command", facts.build_command.as_ref().map(|command| format!("`{command}`")))?;
        row("code object from", facts.code_object_from.clone())?;
        row("code object", facts.code_object_path.as_ref().map(|path| path.display().to_string()))?;
        row("source digest", facts.source_digest.clone())?;
        row("code object digest", facts.code_object_digest.clone())?;

        for (title, lines) in [("Measured", &self.measured), ("Not measured, not claimed", &self.not_claimed)]
        {
            writeln!(text, "\n{title}:")?;
            for line in lines {
                writeln!(text, "* {line}")?;
            }
        }
        Ok(())
    }
}
