//! Many small matrix products by launches of `kernels/gemm_f16.hip`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vyre_driver::gemm::{GemmOutput, GemmProblem};
use vyre_hip::device::DeviceMemory;
use vyre_hip::gemm::{Gemm, GemmMatrix};

use super::super::measure::Turn;
use super::super::products::{ProductData, bytes_of_halves};
use super::{DEADLINE, Gpu};

/// The products, on the device.
pub(in super::super) struct GpuProducts {
    data: Arc<ProductData>,
    gemm: Gemm,
    a: Arc<DeviceMemory>,
    b: Arc<DeviceMemory>,
    c: Arc<DeviceMemory>,
}

impl GpuProducts {
    pub(in super::super) fn new(gpu: &Gpu, data: &Arc<ProductData>) -> Result<GpuProducts> {
        Ok(GpuProducts {
            data: Arc::clone(data),
            gemm: Gemm::new(&gpu.backend).context("load the matrix product")?,
            a: gpu.memory("matrices A", &bytes_of_halves(&data.a))?,
            b: gpu.memory("matrices B", &bytes_of_halves(&data.b))?,
            c: DeviceMemory::new(gpu.backend.context(), "matrices C", data.len() as u64 * 4)?,
        })
    }

    /// A launch for each product, back to back.
    pub(in super::super) fn each(&self, round: u64) -> Result<Turn> {
        let problem = ProductData::one(round);
        self.turn(round, || {
            (0..self.data.count).try_for_each(|n| self.enqueue(&problem, ProductData::first(n)))
        })
    }

    /// The same launches as a graph. Recording it, and its first launch, are not timed.
    pub(in super::super) fn graph(&self, round: u64) -> Result<Turn> {
        let problem = ProductData::one(round);
        let stream = self.gemm.stream();
        let graph = stream.capture(|| {
            (0..self.data.count).try_for_each(|n| self.enqueue(&problem, ProductData::first(n)))
        })?;
        let launch = || -> Result<()> {
            // SAFETY: `enqueue` has checked every product against the matrices, which the graph keeps.
            unsafe { stream.launch_graph(&graph) }?;
            Ok(())
        };
        // Brings it to the device.
        launch()?;
        stream.wait(DEADLINE)?;
        self.turn(round, launch)
    }

    /// One launch for all of them.
    pub(in super::super) fn batched(&self, round: u64) -> Result<Turn> {
        self.turn(round, || self.enqueue(&self.data.batched(round), 0))
    }

    fn enqueue(&self, problem: &GemmProblem, first: u64) -> Result<()> {
        let [a, b, c] = [&self.a, &self.b, &self.c].map(|memory| GemmMatrix { memory, first });
        Ok(self.gemm.enqueue(problem, GemmOutput::F32, a, b, c)?)
    }

    fn turn(&self, round: u64, run: impl FnOnce() -> Result<()>) -> Result<Turn> {
        // All bits set is a NaN: what is not written is seen.
        self.gemm.stream().fill(&self.c, 0, self.c.len(), 0xff)?;
        self.gemm.stream().wait(DEADLINE)?;
        let started = Instant::now();
        run()?;
        self.gemm.stream().wait(DEADLINE)?;
        let elapsed = started.elapsed();
        let mut bytes = vec![0; self.c.len() as usize];
        self.c.read(0, &mut bytes)?;
        let results: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
        self.data.turn(round, elapsed, &results)
    }
}
