//! Many small matrix products: their data, what they come to, and the host's way of computing them.
//!
//! Operands are integers in -2..2, so every sum is exact in fp16 products and fp32 sums, whatever the order; the
//! factor alpha changes every round, so a C left over from the round before is wrong.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use half::f16;
use vyre_cpu::externals::gemm_f16;
use vyre_driver::gemm::GemmProblem;

use super::items::random;
use super::measure::{Sample, Turn};

/// Rows and columns of each matrix.
const SIZE: u64 = 64;
/// Elements of each matrix.
const ELEMENTS: usize = (SIZE * SIZE) as usize;
/// How many pairs of operands differ; later ones are copies, in memory of their own.
const PAIRS: usize = 64;

/// The operands of all products, and what the first ones come to with alpha 1.
pub(super) struct ProductData {
    pub(super) a: Vec<f16>,
    pub(super) b: Vec<f16>,
    pub(super) count: u64,
    expected: Vec<f32>,
}

impl ProductData {
    pub(super) fn new(count: u64) -> ProductData {
        let mut seed = 5;
        let mut integers =
            || -> Vec<i8> { (0..PAIRS * ELEMENTS).map(|_| (random(&mut seed) % 5) as i8 - 2).collect() };
        let (a, b) = (integers(), integers());
        let mut expected = vec![0_f32; PAIRS * ELEMENTS];
        let size = SIZE as usize;
        let matrices = a.chunks(ELEMENTS).zip(b.chunks(ELEMENTS)).zip(expected.chunks_mut(ELEMENTS));
        for ((a, b), c) in matrices {
            for (row, c) in a.chunks(size).zip(c.chunks_mut(size)) {
                for (&factor, b) in row.iter().zip(b.chunks(size)) {
                    for (c, &b) in c.iter_mut().zip(b) {
                        *c += f32::from(factor) * f32::from(b);
                    }
                }
            }
        }
        let all = |values: &[i8]| -> Vec<f16> {
            values.iter().map(|&value| f16::from(value)).cycle().take(count as usize * ELEMENTS).collect()
        };
        ProductData { a: all(&a), b: all(&b), count, expected }
    }

    /// The factor of a round: never one that a neighbour has.
    pub(super) fn alpha(round: u64) -> f32 {
        [1.0, -1.0, 2.0, -2.0].get((round % 4) as usize).copied().unwrap_or(1.0)
    }

    /// One product in a round.
    pub(super) fn one(round: u64) -> GemmProblem {
        GemmProblem { alpha: ProductData::alpha(round), ..GemmProblem::dense(SIZE, SIZE, SIZE) }
    }

    /// All products in a round, as one call.
    pub(super) fn batched(&self, round: u64) -> GemmProblem {
        GemmProblem { batch: self.count, ..ProductData::one(round) }
    }

    /// Where the operands and the result of product `n` begin.
    pub(super) fn first(n: u64) -> u64 {
        n * ELEMENTS as u64
    }

    /// Elements of all results.
    pub(super) fn len(&self) -> usize {
        self.count as usize * ELEMENTS
    }

    /// Refuses results that are not, bit for bit, those of the round.
    pub(super) fn check(&self, round: u64, results: &[f32]) -> Result<()> {
        ensure!(results.len() == self.len(), "{} elements came back, not {}", results.len(), self.len());
        let alpha = ProductData::alpha(round);
        let expected = self.expected.iter().cycle().map(|value| alpha * value);
        // Equal as numbers: -0 is right where 0 is expected. NaN equals nothing.
        match results.iter().zip(expected).position(|(got, expected)| *got != expected) {
            None => Ok(()),
            Some(at) => {
                let (product, element) = (at / ELEMENTS, at % ELEMENTS);
                anyhow::bail!("product {product} is wrong, first at element {element}")
            }
        }
    }

    /// A turn on the host's threads.
    fn on_the_host(&self, round: u64, run: impl FnOnce(&mut [f32])) -> Result<Turn> {
        let mut results = vec![f32::NAN; self.len()];
        let started = Instant::now();
        run(&mut results);
        self.turn(round, started.elapsed(), &results)
    }

    /// A call for each product, one after the other, on one thread: they are too small for more.
    pub(super) fn calls(&self, round: u64) -> Result<Turn> {
        let problem = ProductData::one(round);
        self.on_the_host(round, |results| {
            let operands = self.a.chunks(ELEMENTS).zip(self.b.chunks(ELEMENTS));
            for ((a, b), c) in operands.zip(results.chunks_mut(ELEMENTS)) {
                gemm_f16(&problem, a, b, c, 1);
            }
        })
    }

    /// One call for all of them, on all threads.
    pub(super) fn one_call(&self, round: u64) -> Result<Turn> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.on_the_host(round, |results| gemm_f16(&self.batched(round), &self.a, &self.b, results, threads))
    }

    /// A turn that took so long, if its results are right.
    pub(super) fn turn(&self, round: u64, elapsed: Duration, results: &[f32]) -> Result<Turn> {
        self.check(round, results)?;
        Ok(Turn { acknowledged: self.count, sample: Sample::Elapsed(elapsed) })
    }
}

/// Halves as bytes.
pub(super) fn bytes_of_halves(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_right_and_wrong_results_are_seen() {
        let data = ProductData::new(70);
        data.calls(1).expect("right");
        data.one_call(2).expect("right");
        let mut results: Vec<f32> = data.expected.iter().cycle().take(data.len()).copied().collect();
        data.check(0, &results).expect("right");
        assert!(data.check(1, &results).is_err(), "results of the round before");
        let last = results.last_mut().expect("elements");
        *last = f32::NAN;
        assert!(data.check(0, &results).is_err(), "one element not written");
        assert!(data.check(0, &results[1..]).is_err(), "one element missing");
    }
}
