//! What computes products: the host's threads, or a GPU.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use serde::Serialize;
use vyre_cpu::externals::gemm_f16;
use vyre_driver::gemm::{GemmOutput, GemmProblem};
use vyre_driver::{BackendError, VyreBackend as _};
use vyre_hip::HipBackend;
use vyre_hip::compile::Platform;
use vyre_hip::device::DeviceMemory;
use vyre_hip::gemm::{Gemm, GemmMatrix, copy_rate};

use super::data::{GemmElements, GemmOperands};

/// A sample of times lasts so long at least, where one product is shorter.
const SAMPLE: Duration = Duration::from_millis(2);
/// Products in a sample at most.
const MOST_LAUNCHES: u32 = 500;
/// Bytes that the host copies to measure its memory.
const HOST_COPY: usize = 256 << 20;

/// What a product runs on and is made of, as far as it applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GemmFacts {
    /// `cpu` or `hip`.
    pub backend: String,
    /// The device's name.
    pub device: String,
    /// What the code is compiled for.
    pub arch: String,
    /// The kernel.
    pub entry: String,
    /// Blocks.
    pub grid: Option<u32>,
    /// Invocations of a block, or threads of the host.
    pub block: u32,
    /// Bytes of shared memory asked for at the launch.
    pub shared_bytes: Option<u32>,
    /// Blocks that share the k range of a tile.
    pub split_k: Option<u32>,
    /// The compiler, and its version.
    pub compiler: Option<String>,
    /// Digest of the compiler's path, version and files.
    pub compiler_digest: Option<String>,
    /// What it was called with, source and output left out.
    pub build_command: Option<String>,
    /// Where the code object came from: the cache (`hit`), the compiler (`miss`, `heal`, `uncached`), or what was
    /// built elsewhere (`prebuilt`).
    pub code_object_from: Option<String>,
    /// The file that keeps the code object.
    pub code_object_path: Option<PathBuf>,
    /// blake3 of the source, its headers and its flags.
    pub source_digest: Option<String>,
    /// blake3 of the code object.
    pub code_object_digest: Option<String>,
    /// Registers of an invocation.
    pub registers: Option<u32>,
    /// What went to memory for want of registers.
    pub spills: Option<u32>,
}

/// How long products took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GemmTiming {
    /// Seconds of one product: the median of the samples.
    pub seconds: f64,
    /// The fastest sample's.
    pub least_seconds: f64,
    /// How many samples.
    pub samples: u32,
    /// Products in a sample, back to back.
    pub launches: u32,
    /// Whose clock.
    pub clock: &'static str,
}

/// Something that computes products.
pub trait GemmDevice {
    /// What it is, and how it would launch this product.
    fn facts(&self, problem: &GemmProblem, operands: &GemmOperands) -> Result<GemmFacts, BackendError>;

    /// Computes C in place.
    fn multiply(&self, problem: &GemmProblem, operands: &mut GemmOperands) -> Result<(), BackendError>;

    /// Takes the time of a product, after one that is not counted.
    fn time(
        &self,
        problem: &GemmProblem,
        operands: &mut GemmOperands,
        samples: u32,
    ) -> Result<GemmTiming, BackendError>;

    /// Bytes a second that a large copy moves, each read and written.
    fn copy_rate(&self) -> Result<f64, BackendError>;

    /// Multiplications and additions that take it about a second, copies to it and back included: what larger
    /// products are repeated less for.
    fn quick_operations(&self) -> f64 {
        2e10
    }

    /// Whether matrix instructions may take fp16's subnormals for zero, as gfx908's and gfx90a's do.
    fn may_flush_subnormals(&self) -> bool {
        false
    }
}

/// The host's threads.
#[derive(Debug)]
pub struct CpuGemm {
    threads: usize,
}

impl Default for CpuGemm {
    fn default() -> CpuGemm {
        CpuGemm { threads: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

fn output_of(elements: &GemmElements) -> GemmOutput {
    match elements {
        GemmElements::F32(_) => GemmOutput::F32,
        GemmElements::F16(_) => GemmOutput::F16,
    }
}

impl GemmDevice for CpuGemm {
    fn facts(&self, _: &GemmProblem, _: &GemmOperands) -> Result<GemmFacts, BackendError> {
        Ok(GemmFacts {
            backend: "cpu".to_owned(),
            device: vyre_cpu::CpuBackend::new().identity().device.clone(),
            arch: std::env::consts::ARCH.to_owned(),
            entry: "vyre_cpu::externals::gemm_f16".to_owned(),
            block: u32::try_from(self.threads).unwrap_or(u32::MAX),
            ..GemmFacts::default()
        })
    }

    fn multiply(&self, problem: &GemmProblem, operands: &mut GemmOperands) -> Result<(), BackendError> {
        let GemmOperands { a, b, c, first } = operands;
        let first = *first as usize;
        let (a, b) = (a.get(first..).unwrap_or_default(), b.get(first..).unwrap_or_default());
        let len = c.len().saturating_sub(first);
        problem.check(a.len() as u64, b.len() as u64, len as u64)?;
        match c {
            GemmElements::F32(c) => {
                gemm_f16(problem, a, b, c.get_mut(first..).unwrap_or_default(), self.threads);
            }
            GemmElements::F16(c) => {
                gemm_f16(problem, a, b, c.get_mut(first..).unwrap_or_default(), self.threads);
            }
        }
        Ok(())
    }

    fn time(
        &self,
        problem: &GemmProblem,
        operands: &mut GemmOperands,
        samples: u32,
    ) -> Result<GemmTiming, BackendError> {
        self.multiply(problem, operands)?;
        sampled(samples, "the host's, around each sample", |launches| {
            let started = Instant::now();
            for _ in 0..launches {
                self.multiply(problem, operands)?;
            }
            Ok(started.elapsed())
        })
    }

    fn copy_rate(&self) -> Result<f64, BackendError> {
        let (from, mut to) = (vec![1_u8; HOST_COPY], vec![0_u8; HOST_COPY]);
        to.copy_from_slice(&from);
        let timing = sampled(5, "the host's", |launches| {
            let started = Instant::now();
            for _ in 0..launches {
                to.copy_from_slice(std::hint::black_box(&from));
            }
            Ok(started.elapsed())
        })?;
        Ok(2.0 * HOST_COPY as f64 / timing.seconds.max(f64::MIN_POSITIVE))
    }
}

/// Samples of as many launches as make a sample long enough.
fn sampled(
    samples: u32,
    clock: &'static str,
    mut run: impl FnMut(u32) -> Result<Duration, BackendError>,
) -> Result<GemmTiming, BackendError> {
    let once = run(1)?.max(Duration::from_nanos(100));
    let launches = (SAMPLE.as_secs_f64() / once.as_secs_f64()).ceil().clamp(1.0, MOST_LAUNCHES.into()) as u32;
    let mut times = Vec::new();
    for _ in 0..samples.max(1) {
        times.push(run(launches)?.as_secs_f64() / f64::from(launches));
    }
    times.sort_by(f64::total_cmp);
    let at = |index: usize| times.get(index).copied().unwrap_or(0.0);
    let (seconds, least_seconds) = (at(times.len() / 2), at(0));
    Ok(GemmTiming { seconds, least_seconds, samples: samples.max(1), launches, clock })
}

/// A GPU.
pub struct HipGemm {
    gemm: Gemm,
}

impl HipGemm {
    /// Compiles and loads the kernels for a backend's device.
    ///
    /// # Errors
    ///
    /// As [`Gemm::new`].
    pub fn new(backend: &HipBackend) -> Result<HipGemm, BackendError> {
        Ok(HipGemm { gemm: Gemm::new(backend)? })
    }

    /// The matrices in device memory.
    fn upload(&self, operands: &GemmOperands) -> Result<[Arc<DeviceMemory>; 3], BackendError> {
        let place = |what: &str, bytes: Vec<u8>| -> Result<_, BackendError> {
            let memory = DeviceMemory::new(self.gemm.context(), what, bytes.len() as u64)?;
            memory.write(0, &bytes)?;
            Ok(memory)
        };
        let halves = |all: &[f16]| all.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
        let c = match &operands.c {
            GemmElements::F32(all) => all.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect(),
            GemmElements::F16(all) => halves(all),
        };
        Ok([
            place("matrix A", halves(&operands.a))?,
            place("matrix B", halves(&operands.b))?,
            place("matrix C", c)?,
        ])
    }
}

fn matrices(memory: &[Arc<DeviceMemory>; 3], first: u64) -> [GemmMatrix<'_>; 3] {
    memory.each_ref().map(|memory| GemmMatrix { memory, first })
}

impl GemmDevice for HipGemm {
    fn facts(&self, problem: &GemmProblem, operands: &GemmOperands) -> Result<GemmFacts, BackendError> {
        // Where operands begin counts, and what is in them does not.
        let room = operands.first * 2 + 16;
        let memory = DeviceMemory::new(self.gemm.context(), "an empty matrix", room)?;
        let matrix = GemmMatrix { memory: &memory, first: operands.first };
        let launch = self.gemm.launch_of(problem, matrix, matrix);
        let (object, info) = (self.gemm.object(), self.gemm.context().info());
        let compiler = &object.compiler;
        let used = object.resources.iter().find(|resources| resources.entry == launch.entry);
        Ok(GemmFacts {
            backend: "hip".to_owned(),
            device: info.name.clone(),
            arch: self.gemm.arch().to_string(),
            entry: launch.entry,
            grid: Some(launch.grid),
            block: launch.block,
            shared_bytes: Some(launch.shared_bytes),
            split_k: Some(launch.split_k),
            compiler: Some(format!("{}: {}", compiler.path.display(), compiler.version)),
            compiler_digest: Some(compiler.digest.clone()),
            build_command: Some(format!("{} {}", compiler.path.display(), object.arguments.join(" "))),
            code_object_from: Some(format!("{:?}", object.outcome).to_lowercase()),
            code_object_path: object.path.clone(),
            source_digest: Some(self.gemm.source_digest().to_owned()),
            code_object_digest: Some(object.digest_text()),
            registers: used.map(|used| used.registers),
            spills: used.map(|used| used.spills),
        })
    }

    fn multiply(&self, problem: &GemmProblem, operands: &mut GemmOperands) -> Result<(), BackendError> {
        let memory = self.upload(operands)?;
        let [a, b, c] = matrices(&memory, operands.first);
        self.gemm.run(problem, output_of(&operands.c), a, b, c)?;
        let mut bytes = vec![0; c.memory.len() as usize];
        c.memory.read(0, &mut bytes)?;
        match &mut operands.c {
            GemmElements::F32(all) => {
                let words = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
                all.iter_mut().zip(words).for_each(|(slot, value)| *slot = value);
            }
            GemmElements::F16(all) => {
                let words = bytes.as_chunks::<2>().0.iter().map(|word| f16::from_le_bytes(*word));
                all.iter_mut().zip(words).for_each(|(slot, value)| *slot = value);
            }
        }
        Ok(())
    }

    fn time(
        &self,
        problem: &GemmProblem,
        operands: &mut GemmOperands,
        samples: u32,
    ) -> Result<GemmTiming, BackendError> {
        let memory = self.upload(operands)?;
        let matrices = matrices(&memory, operands.first);
        let output = output_of(&operands.c);
        let run = |launches| self.gemm.time(launches, problem, output, matrices);
        run(1)?;
        sampled(samples, "the device's events, around each sample", run)
    }

    fn copy_rate(&self) -> Result<f64, BackendError> {
        copy_rate(self.gemm.context())
    }

    fn quick_operations(&self) -> f64 {
        1e12
    }

    fn may_flush_subnormals(&self) -> bool {
        let arch = self.gemm.arch();
        arch.platform() == Platform::Amd && ["gfx908", "gfx90a"].contains(&arch.processor())
    }
}
