//! The backend itself: the driver's trait over the other rooms.

use std::num::NonZero;
use std::sync::Arc;

use vyre_driver::{
    BackendError, BackendIdentity, BufferDesc, BufferHandle, Capabilities, CompiledPipeline, Generation,
    ResidentPipeline, ResidentSpec, VyreBackend,
};
use vyre_foundation::limits::{MAX_WORKGROUP_BYTES, MAX_WORKGROUP_INVOCATIONS};
use vyre_foundation::{DataType, ProgramKind, ValidatedProgram};

use crate::buffers::{Buffers, GENERATION};
use crate::dispatch::Kernel;
use crate::exec::{MAX_WIDTH, Width};
use crate::externals::Externals;
use crate::flat::Flat;
use crate::lower::lower;
use crate::memory::Budget;
use crate::pool::Pool;
use crate::resident::Pipeline;

/// Workgroups along each axis of a grid. Linear ids of all invocations fit a `u64`.
pub(crate) const MAX_GRID: [u32; 3] = [0xFF_FFFF, 0xFFFF, 0x3FF];

/// What [`CpuConfig::default`] allows.
const DEFAULT_MEMORY_BYTES: u64 = 4 << 30;

/// How much of the machine a backend may use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuConfig {
    /// Threads that run one dispatch, the calling one included, and workers that a resident kernel has at
    /// most. Zero means one.
    pub threads: usize,
    /// Bytes that all buffers together may have.
    pub memory_bytes: u64,
    /// Lanes that execute together at most: 1, 8 or 32; a number between counts as the next lower one.
    /// Results do not depend on it: a program that has subgroup operations is executed with 32 whatever it is.
    pub lanes: u32,
}

impl Default for CpuConfig {
    /// A thread for each processor that the process may use, 4 GiB of buffers, and 32 lanes.
    fn default() -> CpuConfig {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        CpuConfig { threads, memory_bytes: DEFAULT_MEMORY_BYTES, lanes: MAX_WIDTH }
    }
}

impl CpuConfig {
    /// The same with another number of threads.
    pub fn threads(self, threads: usize) -> CpuConfig {
        CpuConfig { threads, ..self }
    }

    /// The same with another amount of memory.
    pub fn memory_bytes(self, memory_bytes: u64) -> CpuConfig {
        CpuConfig { memory_bytes, ..self }
    }

    /// The same with another number of lanes.
    pub fn lanes(self, lanes: u32) -> CpuConfig {
        CpuConfig { lanes, ..self }
    }
}

/// What pipelines and kernels share with their backend.
pub(crate) struct Inner {
    pub(crate) buffers: Buffers,
    pub(crate) externals: Externals,
    pub(crate) pool: Pool,
    pub(crate) threads: usize,
    pub(crate) width: Width,
}

/// A backend that executes programs on threads of this process. See the [crate documentation](crate).
pub struct CpuBackend {
    identity: BackendIdentity,
    capabilities: Capabilities,
    inner: Arc<Inner>,
}

impl CpuBackend {
    /// A backend with the default configuration.
    pub fn new() -> CpuBackend {
        CpuBackend::with_config(CpuConfig::default())
    }

    /// A backend that may use so much of the machine, with [`Externals::standard`].
    pub fn with_config(config: CpuConfig) -> CpuBackend {
        let externals = Externals::standard(config.threads);
        CpuBackend::with_externals(config, externals)
    }

    /// A backend with these external functions.
    pub fn with_externals(config: CpuConfig, externals: Externals) -> CpuBackend {
        let threads = config.threads.max(1);
        let width = Width::within(config.lanes);
        let identity = BackendIdentity {
            name: "cpu".to_owned(),
            device: format!("{} host threads", threads),
            build: format!("vyre-cpu {}", env!("CARGO_PKG_VERSION")),
        };
        let capabilities = Capabilities {
            max_workgroup_invocations: MAX_WORKGROUP_INVOCATIONS as u32,
            max_workgroup_bytes: MAX_WORKGROUP_BYTES,
            max_grid: MAX_GRID,
            max_buffer_bytes: config.memory_bytes,
            memory_bytes: config.memory_bytes,
            subgroup_width: MAX_WIDTH,
            subgroup_operations: true,
            resident_workgroups: u32::try_from(threads).unwrap_or(u32::MAX),
            grid_barriers: true,
            persistent: true,
            storage: DataType::ALL.to_vec(),
        };
        let buffers = Buffers::new(Budget::new(config.memory_bytes));
        CpuBackend {
            identity,
            capabilities,
            inner: Arc::new(Inner { buffers, externals, pool: Pool::new(threads - 1), threads, width }),
        }
    }
}

impl Default for CpuBackend {
    fn default() -> CpuBackend {
        CpuBackend::new()
    }
}

/// Compiles a program, in the words of the driver.
pub(crate) fn compile(inner: &Inner, program: &ValidatedProgram) -> Result<Flat, BackendError> {
    let externals = inner.externals.resolve(program.program())?;
    lower(program, externals).map_err(|error| BackendError::CompileFailed {
        program: program.program().name.clone(),
        log: error.to_string(),
    })
}

impl VyreBackend for CpuBackend {
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
        if program.program().kind != ProgramKind::Kernel {
            return Err(BackendError::invalid(
                "program",
                format!("the item program `{}`", program.program().name),
                "a kernel; items run in a resident kernel",
            ));
        }
        let flat = compile(&self.inner, program)?;
        Ok(Arc::new(Kernel::new(Arc::clone(&self.inner), flat)))
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        Ok(Arc::new(Pipeline::compile(Arc::clone(&self.inner), spec)?))
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        self.inner.buffers.create(desc)
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.inner.buffers.destroy(buffer)
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner.buffers.write(buffer, byte_offset, bytes)
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        self.inner.buffers.read(buffer, byte_offset, into)
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        Ok(GENERATION)
    }
}
