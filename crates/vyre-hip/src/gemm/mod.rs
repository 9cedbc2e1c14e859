//! The fp16 matrix product on a GPU: `kernels/gemm_f16.hip` behind checked arguments.
//!
//! * `choice`: which kernel a shape gets, as `kernels/gemm/choice.h` says;
//! * `rate`: how fast the device copies, to measure a product against.

mod choice;
mod rate;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use vyre_driver::BackendError;
use vyre_driver::gemm::{GemmOutput, GemmProblem};

use crate::backend::{HipBackend, compile_failed};
use crate::compile::{Architecture, CodeObject, CompileRequest};
use crate::device::{Context, DeviceMemory, Event, Function, LaunchConfig, Module, Stream, StreamPriority};
use crate::{DeviceError, kernels};

pub use rate::copy_rate;

use choice::{Choice, ENTRIES, Loop, Target, choose};

/// The kernel's file.
const SOURCE: &str = "gemm_f16.hip";
/// Bytes of the argument, `VyreGemmArguments` of `kernels/gemm/arguments.h`.
const ARGUMENT_BYTES: usize = 144;
/// How long a product may take: the largest that fits a device takes seconds.
const DEADLINE: Duration = Duration::from_secs(300);

/// The product for one device: loaded kernels, and a stream that products run on one after the other.
#[derive(Debug)]
pub struct Gemm {
    context: Arc<Context>,
    arch: Architecture,
    object: CodeObject,
    source_digest: String,
    module: Arc<Module>,
    /// By place in [`ENTRIES`]: with 16-byte accesses, and element by element. Loaded when first used.
    functions: [[OnceLock<Function>; 2]; ENTRIES.len()],
    target: Target,
    stream: Stream,
    /// Held while a launch is made. Launches on one stream use the workspace one after the other.
    workspace: Mutex<Workspace>,
}

/// What products with a split k add up in.
#[derive(Debug, Default)]
struct Workspace {
    partials: Option<Arc<DeviceMemory>>,
    /// Zero between launches: each leaves them so.
    counters: Option<Arc<DeviceMemory>>,
}

/// A matrix in device memory.
#[derive(Clone, Copy, Debug)]
pub struct GemmMatrix<'m> {
    /// Where it is.
    pub memory: &'m Arc<DeviceMemory>,
    /// Elements in front of it.
    pub first: u64,
}

impl<'m> GemmMatrix<'m> {
    /// A matrix that begins where the memory does.
    pub fn new(memory: &'m Arc<DeviceMemory>) -> GemmMatrix<'m> {
        GemmMatrix { memory, first: 0 }
    }

    /// Elements from the matrix's first to the memory's end.
    fn len(&self, element: u64) -> u64 {
        (self.memory.len() / element).saturating_sub(self.first)
    }

    fn address(&self, element: u64) -> u64 {
        self.memory.address().wrapping_add(self.first.wrapping_mul(element))
    }
}

/// How a product is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GemmLaunch {
    /// The kernel.
    pub entry: String,
    /// Blocks; 0 where there is nothing to write.
    pub grid: u32,
    /// Invocations of a block.
    pub block: u32,
    /// Bytes of shared memory asked for at the launch.
    pub shared_bytes: u32,
    /// How many blocks share the k range of a tile.
    pub split_k: u32,
    /// Rows of tiles that are walked together.
    pub tile_group: u32,
}

impl Gemm {
    /// Compiles the kernels for the backend's device, or takes them from its compiler's cache, and loads them.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] without a compiler for the device, [`BackendError::CompileFailed`] with the
    /// compiler's words, and what the loader answers.
    pub fn new(backend: &HipBackend) -> Result<Gemm, BackendError> {
        let (context, compiler) = (backend.context(), backend.compiler());
        let arch =
            Architecture::of_device(&context.info().arch).map_err(|error| compile_failed(SOURCE, error))?;
        let failed = |log: String| BackendError::CompileFailed { program: SOURCE.to_owned(), log };
        let source = kernels::find(SOURCE).ok_or_else(|| failed("it is not embedded".to_owned()))?;
        let headers = source.headers();
        let request = CompileRequest {
            name: "gemm_f16",
            source: source.text,
            headers: &headers,
            arch: &arch,
            flags: &[],
            lines: None,
        };
        let source_digest = request.source_digest();
        let compile = || compiler.compile(&request).map_err(|error| compile_failed(SOURCE, error));
        let mut object = compile()?;
        let module = match Module::load(context, &object.image) {
            Err(error) if error.is_image_refused() && compiler.refuse(&object) => {
                object = compile()?;
                Module::load(context, &object.image)?
            }
            loaded => loaded?,
        };
        let info = context.info();
        let target = Target {
            units: info.multiprocessors,
            with: Loop::of(&arch),
            shared_bytes: info.shared_bytes_opt_in,
        };
        Ok(Gemm {
            stream: Stream::new(context, StreamPriority::Normal)?,
            context: Arc::clone(context),
            functions: Default::default(),
            workspace: Mutex::default(),
            source_digest,
            arch,
            object,
            module,
            target,
        })
    }

    /// The architecture that the kernels were compiled for.
    pub fn arch(&self) -> &Architecture {
        &self.arch
    }

    /// The kernels as compiled.
    pub fn object(&self) -> &CodeObject {
        &self.object
    }

    /// [`CompileRequest::source_digest`] of the kernels.
    pub fn source_digest(&self) -> &str {
        &self.source_digest
    }

    /// Where products run, in the order of the calls.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// How a product is launched.
    pub fn launch_of(&self, problem: &GemmProblem, a: GemmMatrix<'_>, b: GemmMatrix<'_>) -> GemmLaunch {
        let choice = choose(sizes(problem), problem.k, &self.target);
        GemmLaunch {
            entry: entry_name(&choice, is_vector(problem, a, b)),
            grid: choice.grid,
            block: choice.entry.threads(self.target.with),
            shared_bytes: choice.entry.dynamic_shared(self.target.with),
            split_k: choice.split_k,
            tile_group: choice.tile_group,
        }
    }

    /// Checks a product and enqueues it on [`stream`](Self::stream), which keeps the matrices until it is done.
    /// Of matrices that overlap, C holds any mixture afterwards.
    ///
    /// # Errors
    ///
    /// [`BackendError::InvalidArgument`] for shapes that do not fit their matrices and for memory of another
    /// device; [`BackendError::OutOfMemory`] if there is none for partial sums. Nothing was enqueued then.
    pub fn enqueue(
        &self,
        problem: &GemmProblem,
        output: GemmOutput,
        a: GemmMatrix<'_>,
        b: GemmMatrix<'_>,
        c: GemmMatrix<'_>,
    ) -> Result<(), BackendError> {
        problem.check(a.len(2), b.len(2), c.len(output.size()))?;
        for (name, matrix) in [("a", a), ("b", b), ("c", c)] {
            self.context.must_own(name, matrix.memory.context())?;
        }
        if problem.is_empty() {
            return Ok(());
        }
        let choice = choose(sizes(problem), problem.k, &self.target);
        let vector = is_vector(problem, a, b);
        let function = self.function(&choice, vector)?;
        let mut workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let partials = workspace.partials(self, choice.workspace_floats(sizes(problem)) * 4)?;
        let counters = workspace.counters(self, choice.counters(sizes(problem)) * 4)?;
        let mut argument = Vec::with_capacity(ARGUMENT_BYTES);
        let address = |memory: &Option<Arc<DeviceMemory>>| memory.as_ref().map_or(0, |m| m.address());
        let GemmProblem { m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c, alpha, beta } =
            *problem;
        for word in [
            a.address(2),
            b.address(2),
            c.address(output.size()),
            address(&partials),
            address(&counters),
            m,
            n,
            k,
            lda,
            ldb,
            ldc,
            batch,
            stride_a,
            stride_b,
            stride_c,
        ] {
            argument.extend(word.to_le_bytes());
        }
        let kind = match output {
            GemmOutput::F32 => 0_u32,
            GemmOutput::F16 => 1,
        };
        for word in [alpha.to_bits(), beta.to_bits(), kind, choice.split_k, choice.tile_group, 0] {
            argument.extend(word.to_le_bytes());
        }
        let launch = LaunchConfig {
            grid: [choice.grid, 1, 1],
            workgroup: [choice.entry.threads(self.target.with), 1, 1],
            shared_bytes: choice.entry.dynamic_shared(self.target.with),
        };
        // SAFETY: the argument is the kernel's struct, made of sizes that were checked against the matrices; the
        // stream keeps all memory in it: what follows, before this thread or any other lets go of it.
        unsafe { function.launch(&self.stream, &launch, &argument) }?;
        [a, b, c].iter().for_each(|matrix| self.stream.keep_alive(matrix.memory));
        [partials, counters].iter().flatten().for_each(|memory| self.stream.keep_alive(memory));
        Ok(())
    }

    /// Computes a product and waits for it.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue), and what the device answers.
    pub fn run(
        &self,
        problem: &GemmProblem,
        output: GemmOutput,
        a: GemmMatrix<'_>,
        b: GemmMatrix<'_>,
        c: GemmMatrix<'_>,
    ) -> Result<(), BackendError> {
        self.enqueue(problem, output, a, b, c)?;
        Ok(self.stream.wait(DEADLINE)?)
    }

    /// The device's time for `launches` products, enqueued back to back.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn time(
        &self,
        launches: u32,
        problem: &GemmProblem,
        output: GemmOutput,
        [a, b, c]: [GemmMatrix<'_>; 3],
    ) -> Result<Duration, BackendError> {
        let [start, end] = [Event::new(&self.context)?, Event::new(&self.context)?];
        start.record(&self.stream)?;
        for _ in 0..launches {
            self.enqueue(problem, output, a, b, c)?;
        }
        end.record(&self.stream)?;
        self.stream.wait(DEADLINE)?;
        Ok(end.elapsed_since(&start)?)
    }

    fn function(&self, choice: &Choice, vector: bool) -> Result<&Function, BackendError> {
        let slot = &self.functions[choice.index][usize::from(!vector)];
        if let Some(function) = slot.get() {
            return Ok(function);
        }
        let function = self.module.function(&entry_name(choice, vector))?;
        Ok(slot.get_or_init(|| function))
    }
}

impl Workspace {
    fn partials(&mut self, gemm: &Gemm, bytes: u64) -> Result<Option<Arc<DeviceMemory>>, DeviceError> {
        if bytes == 0 {
            return Ok(None);
        }
        if self.partials.as_ref().is_none_or(|memory| memory.len() < bytes) {
            // First the old one goes: no launch before needs it once the stream has let go of it.
            self.partials = None;
            self.partials = Some(DeviceMemory::new(&gemm.context, "partial sums of a product", bytes)?);
        }
        Ok(self.partials.clone())
    }

    fn counters(&mut self, gemm: &Gemm, bytes: u64) -> Result<Option<Arc<DeviceMemory>>, DeviceError> {
        if bytes == 0 {
            return Ok(None);
        }
        if self.counters.as_ref().is_none_or(|memory| memory.len() < bytes) {
            let memory = DeviceMemory::new(&gemm.context, "tile counters of a product", bytes)?;
            gemm.stream.fill(&memory, 0, bytes, 0)?;
            self.counters = Some(memory);
        }
        Ok(self.counters.clone())
    }
}

fn sizes(problem: &GemmProblem) -> [u64; 3] {
    [problem.m, problem.n, problem.batch]
}

fn entry_name(choice: &Choice, vector: bool) -> String {
    format!("{}{}", choice.entry.name, if vector { "" } else { "_element" })
}

/// Whether all rows of A and B begin at multiples of 16 bytes.
fn is_vector(problem: &GemmProblem, a: GemmMatrix<'_>, b: GemmMatrix<'_>) -> bool {
    let strides = if problem.batch > 1 { problem.stride_a | problem.stride_b } else { 0 };
    (a.address(2) | b.address(2)).is_multiple_of(16)
        && (problem.lda | problem.ldb | strides).is_multiple_of(8)
}
