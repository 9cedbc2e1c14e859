//! The traits a backend implements.
//!
//! # Contract
//!
//! *Who validates.* Programs arrive validated ([`ValidatedProgram`]); a backend relies on it and does not
//! check again. Handles, ranges, grids and sizes arrive unvalidated; a backend checks each before it acts,
//! and an error means that nothing was done.
//!
//! *Who synchronises.* Every method may be called from any thread at any time. [`CompiledPipeline::dispatch`]
//! returns when the work is finished and its writes are visible to [`VyreBackend::read_buffer`]. Two
//! dispatches that touch one buffer at the same time are unordered; the caller orders them. Host reads and
//! writes of a buffer while a resident kernel runs are allowed and race with it element by element.
//!
//! *What an error means.* [`BackendError::DeviceLost`] means that everything of the current generation is
//! gone; every later call fails the same way until [`VyreBackend::recover`] succeeds and the generation is
//! one higher. Handles and pipelines of an older generation are refused with
//! [`BackendError::StaleHandle`], never reinterpreted. Any other error leaves the backend usable.
//!
//! *What always ends.* Every wait has a deadline. A dispatch past its deadline is stopped at its next back
//! edge and answers [`BackendError::Deadline`]; its buffers then hold any mixture of old and new elements.
//!
//! *What is deterministic.* A program without data races gives the same bytes on every backend and run. The
//! first trap reported is that of the invocation with the least linear global id among those that trapped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_foundation::{DataType, ValidatedProgram};

use crate::buffer::{BufferBinding, BufferDesc, BufferHandle, Generation};
use crate::error::BackendError;
use crate::resident::{ResidentPipeline, ResidentSpec};

/// A device, or something that behaves like one. See the [module documentation](self) for the contract.
pub trait VyreBackend: Send + Sync {
    /// Who this is: enough to key a cache of compiled pipelines.
    fn identity(&self) -> &BackendIdentity;

    /// What it can do, and how much.
    fn capabilities(&self) -> &Capabilities;

    /// The current device incarnation.
    fn generation(&self) -> Generation;

    /// Compiles a [`vyre_foundation::ProgramKind::Kernel`] program.
    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError>;

    /// Compiles the item programs of a megakernel for residency.
    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError>;

    /// Compiles item programs for a kernel that is to take the place of one that is resident. What cannot be done
    /// beside that one, such as loading where that waits for running kernels, is left to the first
    /// [`ResidentPipeline::start`]; everything that is slow is not. A backend around another one forwards this.
    fn prepare_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        self.compile_resident(spec)
    }

    /// Allocates a buffer filled with zeros.
    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError>;

    /// Gives a buffer back. One that a resident kernel has bound is refused, with the name of who had that started.
    /// Memory that a dispatch under way uses lives on until that ends, and where giving back would wait for
    /// resident kernels, it waits until there is none.
    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError>;

    /// Copies bytes into a buffer.
    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError>;

    /// Copies bytes out of a buffer.
    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError>;

    /// Makes the backend usable after a device loss and returns the new generation. When it does, nothing that the
    /// lost device was running touches its buffers, or the regions of its kernels, any more. Without a loss it
    /// changes nothing and returns the current one.
    fn recover(&self) -> Result<Generation, BackendError>;

    /// The id of the process that owns the device, if that is another one than this.
    fn worker_pid(&self) -> Option<u32> {
        None
    }
}

/// A compiled kernel, bound to one device generation.
pub trait CompiledPipeline: Send + Sync {
    /// The generation it was compiled in.
    fn generation(&self) -> Generation;

    /// Runs the kernel over a grid and waits for it. `bindings` are in declaration order, workgroup buffers
    /// left out.
    fn dispatch(
        &self,
        bindings: &[BufferBinding],
        config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError>;

    /// Runs the kernel once for each row of bindings, in order, and waits for all of them. The deadline is
    /// for the whole. Backends whose launches cost time wait once.
    ///
    /// After an error the rows before the one that failed have run, and those behind it may have.
    fn dispatch_rows(
        &self,
        rows: &[&[BufferBinding]],
        config: &DispatchConfig,
    ) -> Result<Vec<DispatchOutcome>, BackendError> {
        let started = Instant::now();
        let row = |bindings: &&[BufferBinding]| {
            let left = config.deadline.map(|deadline| deadline.saturating_sub(started.elapsed()));
            self.dispatch(bindings, &DispatchConfig { deadline: left, ..config.clone() })
        };
        rows.iter().map(row).collect()
    }
}

/// Who a backend is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendIdentity {
    /// The backend's name: `cpu`, `hip`.
    pub name: String,
    /// The device, in the words of its driver.
    pub device: String,
    /// Whatever else changes compiled code: versions, architecture, flags.
    pub build: String,
}

/// What a backend can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Invocations a workgroup may have.
    pub max_workgroup_invocations: u32,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u64,
    /// Workgroups along each axis of a grid.
    pub max_grid: [u32; 3],
    /// Bytes in one buffer.
    pub max_buffer_bytes: u64,
    /// Bytes in all buffers together.
    pub memory_bytes: u64,
    /// Lanes of a subgroup in a program that has subgroup operations.
    pub subgroup_width: u32,
    /// Whether subgroup operations work. Without them, compiling a program that has some answers
    /// [`BackendError::Unsupported`].
    pub subgroup_operations: bool,
    /// Workgroups that can be co-resident, for the largest workgroup.
    pub resident_workgroups: u32,
    /// Whether grid barriers work.
    pub grid_barriers: bool,
    /// Whether a resident kernel can be fed while it runs.
    pub persistent: bool,
    /// Storage types supported.
    pub storage: Vec<DataType>,
}

/// How to run one dispatch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchConfig {
    /// Workgroups along x, y and z; none may be zero.
    pub grid: [u32; 3],
    /// Stop after this long.
    pub deadline: Option<Duration>,
    /// For traces and error messages.
    pub label: Option<String>,
    /// Whether to run on a resident kernel where there is a choice.
    pub persistent: PersistentThreadMode,
}

impl DispatchConfig {
    /// A grid, and defaults for the rest: no deadline, no label, [`PersistentThreadMode::Auto`].
    pub fn new(grid: [u32; 3]) -> DispatchConfig {
        DispatchConfig { grid, deadline: None, label: None, persistent: PersistentThreadMode::Auto }
    }

    /// Refuses a grid without workgroups along an axis, or with more than `most`.
    ///
    /// # Errors
    ///
    /// [`BackendError::InvalidArgument`].
    pub fn check_grid(&self, most: [u32; 3]) -> Result<(), BackendError> {
        if self.grid.iter().zip(most).all(|(&n, most)| (1..=most).contains(&n)) {
            return Ok(());
        }
        let got = format!("{:?}", self.grid);
        Err(BackendError::invalid("grid", got, format!("from [1, 1, 1] to {most:?}")))
    }
}

/// Whether work goes through a resident kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PersistentThreadMode {
    /// Where the backend advertises it.
    #[default]
    Auto,
    /// Always; [`BackendError::Unsupported`] where the backend cannot.
    Force,
    /// Never.
    Disable,
}

/// What a finished dispatch measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatchOutcome {
    /// From call to completion, as measured.
    pub elapsed: Duration,
    /// The first trap, if an invocation trapped.
    pub trap: Option<Trap>,
}

/// An invocation that ended in `trap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Its code.
    pub code: u32,
    /// The invocation's linear global id: workgroup first, x fastest, then the place in the workgroup.
    pub invocation: u64,
}
