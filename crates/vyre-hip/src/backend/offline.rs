//! A backend that compiles and does not run.

use std::path::PathBuf;
use std::sync::Arc;

use vyre_driver::table::{self, BufferTable};
use vyre_driver::{
    BackendError, BackendIdentity, BufferBinding, BufferDesc, BufferHandle, Capabilities, CompiledPipeline,
    DispatchConfig, DispatchOutcome, Generation, ResidentKernel, ResidentPipeline, ResidentSpec,
    StartRequest, VyreBackend,
};
use vyre_foundation::limits::{MAX_WORKGROUP_BYTES, MAX_WORKGROUP_INVOCATIONS};
use vyre_foundation::{DataType, ValidatedProgram};

use super::kernel::{emitted, must_be_kernel};
use super::{GENERATION, compile_failed, resident};
use crate::compile::{Architecture, CompileError, Compiler, CompilerOptions, EmittedSource, Platform};
use crate::emit::GridBarriers;

/// Every backend that runs is limited by its memory; this one has none.
const UNLIMITED: u64 = u64::MAX;

/// Compiles what [`HipBackend`](crate::HipBackend) would compile on a GPU of one architecture, and runs nothing: to
/// build, where a compiler is, what a machine without one runs.
///
/// A program builds its megakernel on it as on any backend. Buffers have sizes and no content; what would run
/// answers [`BackendError::Unsupported`]. A session's kernel is compiled by
/// [`compile_resident`](VyreBackend::compile_resident), or by starting the session, which is then refused.
///
/// ```no_run
/// use std::sync::Arc;
/// use vyre_driver::VyreBackend as _;
/// use vyre_hip::OfflineBackend;
/// use vyre_hip::compile::CompilerOptions;
/// use vyre_runtime::{Megakernel, OpcodeHandler};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = CompilerOptions::from_environment()?;
/// let offline = Arc::new(OfflineBackend::into_folder("sm_90a".parse()?, options, "prebuilt"));
/// let add_one = OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0)));
/// let megakernel = Megakernel::builder(offline.clone()).handler(add_one).build()?; // its batch kernels
/// offline.compile_resident(&megakernel.programs().spec(1))?; // the kernel of its sessions
/// # Ok(())
/// # }
/// ```
///
/// Sources depend on programs, which depend on handlers, their order, and the size of a workgroup; nothing in them
/// depends on what else a device says of itself, so what is built here is what a device looks for.
pub struct OfflineBackend {
    identity: BackendIdentity,
    capabilities: Capabilities,
    keep: Box<Keep>,
    buffers: BufferTable<()>,
}

type Keep = dyn Fn(&EmittedSource<'_>) -> Result<(), CompileError> + Send + Sync;

impl OfflineBackend {
    /// For an architecture (`sm_90a`, not `sm_90`, for a device that says `sm_90`: see
    /// [`Architecture::of_device`]). `keep` gets each source that a device of it would have compiled.
    pub fn new(
        arch: &Architecture,
        keep: impl Fn(&EmittedSource<'_>) -> Result<(), CompileError> + Send + Sync + 'static,
    ) -> OfflineBackend {
        OfflineBackend {
            identity: BackendIdentity {
                name: "hip".to_owned(),
                device: format!("none, compiling for {arch}"),
                build: format!("vyre-hip {}, {arch}", env!("CARGO_PKG_VERSION")),
            },
            capabilities: capabilities(arch),
            keep: Box::new(keep),
            buffers: BufferTable::new(GENERATION),
        }
    }

    /// Compiles into a folder, with a manifest, for `VYRE_PREBUILT_DIR` to name. What the folder has stays;
    /// `cargo xtask build-kernels` begins it anew, so comes first. Errors name the file that could not be written.
    pub fn into_folder(
        arch: Architecture,
        mut options: CompilerOptions,
        folder: impl Into<PathBuf>,
    ) -> OfflineBackend {
        // What was built before is what is to be built.
        options.search.prebuilt = None;
        let (compiler, folder) = (Compiler::new(options), folder.into());
        OfflineBackend::new(&arch.clone(), move |source| {
            source.request(&arch, |request| compiler.compile_into(&folder, request))
        })
    }

    fn keep(&self, source: &EmittedSource<'_>) -> Result<Arc<NotRun>, BackendError> {
        (self.keep)(source).map_err(|error| compile_failed(source.name, error))?;
        Ok(Arc::new(NotRun { program: source.name.to_owned() }))
    }
}

/// What the devices of an architecture have in common; of what differs among them, so much that nothing is refused
/// here that one of them runs.
fn capabilities(arch: &Architecture) -> Capabilities {
    // GCN and CDNA have waves of 64 lanes; what came after them is compiled for 32, as is everything of NVIDIA's.
    let wide = arch.platform() == Platform::Amd && !arch.number().starts_with('1');
    Capabilities {
        max_workgroup_invocations: MAX_WORKGROUP_INVOCATIONS as u32,
        max_workgroup_bytes: MAX_WORKGROUP_BYTES,
        max_grid: [i32::MAX as u32, 65535, 65535],
        max_buffer_bytes: UNLIMITED,
        memory_bytes: UNLIMITED,
        subgroup_width: if wide { 64 } else { 32 },
        subgroup_operations: true,
        resident_workgroups: 1,
        grid_barriers: true,
        persistent: true,
        storage: DataType::ALL.to_vec(),
    }
}

fn not_run(what: String) -> BackendError {
    BackendError::Unsupported {
        what: format!("{what} on a backend that only compiles"),
        remedy: "run it where the GPU is, with VYRE_PREBUILT_DIR naming what was built here".to_owned(),
    }
}

impl VyreBackend for OfflineBackend {
    fn identity(&self) -> &BackendIdentity {
        &self.identity
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn generation(&self) -> Generation {
        GENERATION
    }

    /// In every form that a device may ask for: with grid barriers, whole and in passes.
    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        must_be_kernel(program)?;
        let form = |form| {
            let emitted = emitted(program, form)?;
            let name = &program.program().name;
            self.keep(&EmittedSource { name, source: &emitted.source, lines: &emitted.lines })
        };
        let whole = form(GridBarriers::Native)?;
        if program.facts().grid_barriers {
            form(GridBarriers::Split)?;
        }
        Ok(whole)
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        let emitted = resident::emitted(spec)?;
        let name = &spec.lane.program().name;
        Ok(self.keep(&EmittedSource { name, source: &emitted.source, lines: &emitted.lines })?)
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        table::check_desc(desc, UNLIMITED)?;
        Ok(self.buffers.insert(desc, Arc::new(())))
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.buffers.remove(buffer).map(drop)
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.buffers.range(buffer, byte_offset, bytes.len() as u64).map(drop)
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        self.buffers.range(buffer, byte_offset, into.len() as u64)?;
        Err(not_run(format!("reading buffer {}", buffer.id)))
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        Ok(GENERATION)
    }
}

/// A program that was compiled.
struct NotRun {
    program: String,
}

impl CompiledPipeline for NotRun {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn dispatch(&self, _: &[BufferBinding], _: &DispatchConfig) -> Result<DispatchOutcome, BackendError> {
        Err(not_run(format!("a dispatch of `{}`", self.program)))
    }
}

impl ResidentPipeline for NotRun {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn start(&self, _: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        Err(not_run(format!("a resident kernel of `{}`", self.program)))
    }
}
