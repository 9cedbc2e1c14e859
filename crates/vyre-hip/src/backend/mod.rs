//! The driver's traits over device, emitter and compiler.
//!
//! * `memory`: what a buffer is made of;
//! * `lane`: what one dispatch needs beside its kernel, kept for the next one;
//! * `kernel`: compiling a program, and running it;
//! * `offline`: compiling for a GPU that is elsewhere;
//! * `resident`: keeping a kernel resident, fed live;
//! * `watchdog`: aborting what runs past its deadline.
//!
//! A device that is lost stays lost: neither vendor gives it back to the process that lost it. Whoever wants to
//! go on hosts the backend in a child process.

mod kernel;
mod lane;
mod memory;
mod offline;
mod resident;
mod watchdog;

use std::sync::Arc;

use vyre_driver::table::{self, BufferTable};
use vyre_driver::{
    BackendError, BackendIdentity, BufferDesc, BufferHandle, Capabilities, CompiledPipeline, Generation,
    Loss, LossCause, ResidentPipeline, ResidentSpec, VyreBackend,
};
use vyre_foundation::limits::{MAX_WORKGROUP_BYTES, MAX_WORKGROUP_INVOCATIONS};
use vyre_foundation::{DataType, ValidatedProgram};

use crate::DeviceError;
use crate::api::Api;
use crate::compile::{Architecture, CompileError, Compiler, CompilerOptions};
use crate::device::{Context, DeviceInfo};

use kernel::Kernel;
use lane::Lanes;
use memory::Memory;
pub use offline::OfflineBackend;
use resident::{Pipeline, Prepared, Registered};
use watchdog::Watchdog;

/// The only incarnation of a device in one process.
const GENERATION: Generation = Generation(1);

/// One GPU of this process. See the [crate documentation](crate).
pub struct HipBackend {
    identity: BackendIdentity,
    capabilities: Capabilities,
    inner: Arc<Inner>,
}

/// What kernels share with their backend.
struct Inner {
    context: Arc<Context>,
    arch: Architecture,
    compiler: Compiler,
    buffers: BufferTable<Memory>,
    lanes: Lanes,
    watchdog: Watchdog,
    registered: Registered,
}

impl HipBackend {
    /// Opens device `ordinal` of the library that [`Api::open`] finds, with compilers and cache as the
    /// environment says.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] with every place tried if there is no library or no device,
    /// [`BackendError::InvalidArgument`] for an ordinal that there is not, and whatever the library answers.
    pub fn open(ordinal: u32) -> Result<HipBackend, BackendError> {
        let options = CompilerOptions::from_environment().map_err(unsupported)?;
        HipBackend::open_with(&Api::open().map_err(DeviceError::from)?, ordinal, options)
    }

    /// Opens a device of a library that is open already.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(
        api: &Arc<Api>,
        ordinal: u32,
        options: CompilerOptions,
    ) -> Result<HipBackend, BackendError> {
        let context = Context::open(api, ordinal, GENERATION)?;
        let info = context.info();
        let arch = Architecture::of_device(&info.arch).map_err(unsupported)?;
        let identity = BackendIdentity {
            name: "hip".to_owned(),
            device: info.name.clone(),
            build: format!(
                "vyre-hip {}, {}, {} driver {}",
                env!("CARGO_PKG_VERSION"),
                info.arch,
                info.platform,
                api.version_of_driver().map_err(DeviceError::from)?
            ),
        };
        let capabilities = capabilities(info);
        let inner = Inner {
            lanes: Lanes::new(&context),
            watchdog: Watchdog::new(),
            registered: Registered::default(),
            context,
            arch,
            compiler: Compiler::new(options),
            buffers: BufferTable::new(GENERATION),
        };
        Ok(HipBackend { identity, capabilities, inner: Arc::new(inner) })
    }

    /// Opens every device; what cannot be opened comes back as its error.
    pub fn open_all() -> (Vec<HipBackend>, Vec<BackendError>) {
        let api = match Api::open() {
            Ok(api) => api,
            Err(error) => return (Vec::new(), vec![DeviceError::from(error).into()]),
        };
        let (mut backends, mut errors) = (Vec::new(), Vec::new());
        for ordinal in 0..api.devices() {
            let options = CompilerOptions::from_environment().map_err(unsupported);
            match options.and_then(|options| HipBackend::open_with(&api, ordinal, options)) {
                Ok(backend) => backends.push(backend),
                Err(error) => errors.push(error),
            }
        }
        (backends, errors)
    }

    /// The library's number for the device.
    pub fn ordinal(&self) -> u32 {
        self.inner.context.info().ordinal
    }

    /// The device.
    pub fn context(&self) -> &Arc<Context> {
        &self.inner.context
    }

    /// The compiler that it uses, with its cache's counters.
    pub fn compiler(&self) -> &Compiler {
        &self.inner.compiler
    }
}

fn capabilities(info: &DeviceInfo) -> Capabilities {
    let invocations = info.max_workgroup_invocations.min(MAX_WORKGROUP_INVOCATIONS as u32);
    let each = info.max_invocations_multiprocessor / invocations.max(1);
    Capabilities {
        max_workgroup_invocations: invocations,
        // What is declared in a source; more has to be asked for at the launch.
        max_workgroup_bytes: u64::from(info.shared_bytes).min(MAX_WORKGROUP_BYTES),
        max_grid: info.max_grid,
        max_buffer_bytes: info.memory_bytes,
        memory_bytes: info.memory_bytes,
        subgroup_width: info.wave_width,
        subgroup_operations: true,
        resident_workgroups: info.multiprocessors.saturating_mul(each.max(1)),
        grid_barriers: true,
        persistent: true,
        storage: DataType::ALL.to_vec(),
    }
}

/// What the machine lacks, in the words of the driver.
fn unsupported(error: CompileError) -> BackendError {
    let remedy = match error {
        CompileError::NotPrebuilt { .. } => "see docs/kernels.md",
        _ => "see docs/kernels.md, or name a folder of what was built elsewhere by VYRE_PREBUILT_DIR",
    };
    BackendError::Unsupported { what: error.to_string(), remedy: remedy.to_owned() }
}

/// Why a source did not become a code object, in the words of the driver.
pub(crate) fn compile_failed(program: &str, error: CompileError) -> BackendError {
    if error.is_missing_compiler() {
        return unsupported(error);
    }
    let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
    let log = causes.fold(error.to_string(), |log, cause| format!("{log}: {cause}"));
    BackendError::CompileFailed { program: program.to_owned(), log }
}

impl VyreBackend for HipBackend {
    fn identity(&self) -> &BackendIdentity {
        &self.identity
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn generation(&self) -> Generation {
        GENERATION
    }

    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        Ok(Arc::new(Kernel::compile(&self.inner, program)?))
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        Ok(Arc::new(Pipeline::compile(&self.inner, spec)?))
    }

    fn prepare_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        Ok(Arc::new(Prepared::compile(&self.inner, spec)?))
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        let available = self.inner.context.memory_use()?.free;
        let bytes = table::check_desc(desc, available)?;
        let memory = Memory::zeroed(&self.inner, desc, bytes)?;
        Ok(self.inner.buffers.insert(desc, Arc::new(memory)))
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.inner.buffers.remove(buffer).map(drop)
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        let memory = self.inner.buffers.range(buffer, byte_offset, bytes.len() as u64)?;
        memory.write(byte_offset, bytes).map_err(BackendError::from)
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        let memory = self.inner.buffers.range(buffer, byte_offset, into.len() as u64)?;
        memory.read(byte_offset, into).map_err(BackendError::from)
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        match self.inner.context.lost() {
            None => Ok(GENERATION),
            Some(first) => Err(BackendError::DeviceLost(Loss {
                cause: LossCause::GivenUp,
                reason: format!(
                    "{first}; a process that lost its GPU cannot get it back, so host the backend in a child \
                     process"
                ),
            })),
        }
    }
}
