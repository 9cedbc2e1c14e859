//! A GPU's backend that can be made to fault: what a worker hosts when its death is the test.
//!
//! Emitted kernels cannot fault, so the kernels that do are written by hand, in `kernels/bench/faults`. A program
//! that bears the name of one of them is that kernel; every other program is the wrapped backend's.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use vyre_driver::{
    BackendError, BackendIdentity, BufferBinding, BufferDesc, BufferHandle, Capabilities, CompiledPipeline,
    DispatchConfig, DispatchOutcome, Generation, ResidentPipeline, ResidentSpec, VyreBackend,
};
use vyre_foundation::ValidatedProgram;
use vyre_foundation::builder::ProgramBuilder;
use vyre_hip::HipBackend;
use vyre_hip::compile::{Architecture, CompileRequest};
use vyre_hip::device::{Function, LaunchConfig, Module, Stream, StreamPriority};

const SOURCE: &str = include_str!("../../../kernels/bench/faults/faults.hip");

/// How long a kernel that hangs is waited for, where whoever waits is not ended first.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a device, or its process, can do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceFault {
    IllegalAddress,
    IllegalInstruction,
    Trap,
    Hang,
}

impl DeviceFault {
    pub(crate) const ALL: [DeviceFault; 4] =
        [DeviceFault::IllegalAddress, DeviceFault::IllegalInstruction, DeviceFault::Trap, DeviceFault::Hang];

    /// The kernel's name, and that of the program that stands for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            DeviceFault::IllegalAddress => "fault_illegal_address",
            DeviceFault::IllegalInstruction => "fault_illegal_instruction",
            DeviceFault::Trap => "fault_trap",
            DeviceFault::Hang => "fault_hang",
        }
    }

    /// A program that a [`FaultyBackend`] takes for this fault. Elsewhere it does nothing.
    pub(crate) fn program(self) -> Result<ValidatedProgram, String> {
        let mut program = ProgramBuilder::kernel(self.name()).workgroup_size([1, 1, 1]);
        program.entry(|_| {});
        program.validate().map_err(|errors| errors.to_string())
    }
}

/// See the module's documentation.
pub(crate) struct FaultyBackend {
    inner: Arc<HipBackend>,
    module: OnceLock<Result<Arc<Module>, BackendError>>,
}

impl FaultyBackend {
    pub(crate) fn open(ordinal: u32) -> Result<FaultyBackend, BackendError> {
        Ok(FaultyBackend { inner: Arc::new(HipBackend::open(ordinal)?), module: OnceLock::new() })
    }

    fn module(&self) -> Result<&Arc<Module>, BackendError> {
        let load = || {
            let context = self.inner.context();
            let arch = Architecture::of_device(&context.info().arch)
                .map_err(|error| BackendError::invalid("device", error, "an architecture with a compiler"))?;
            let request = CompileRequest {
                name: "faults",
                source: SOURCE,
                headers: &[],
                arch: &arch,
                flags: &[],
                lines: None,
            };
            let object = self.inner.compiler().compile(&request).map_err(|error| {
                BackendError::CompileFailed { program: "faults".to_owned(), log: error.to_string() }
            })?;
            Module::load(context, &object.image).map_err(BackendError::from)
        };
        self.module.get_or_init(load).as_ref().map_err(Clone::clone)
    }
}

impl VyreBackend for FaultyBackend {
    fn identity(&self) -> &BackendIdentity {
        self.inner.identity()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        let name = program.program().name.as_str();
        if !DeviceFault::ALL.iter().any(|fault| fault.name() == name) {
            return self.inner.compile(program);
        }
        let function = self.module()?.function(name)?;
        let stream = Stream::new(self.inner.context(), StreamPriority::Normal)?;
        Ok(Arc::new(Faulting { generation: self.generation(), function, stream }))
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        self.inner.compile_resident(spec)
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        self.inner.create_buffer(desc)
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.inner.destroy_buffer(buffer)
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner.write_buffer(buffer, byte_offset, bytes)
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        self.inner.read_buffer(buffer, byte_offset, into)
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        self.inner.recover()
    }
}

/// A kernel that ends the context.
struct Faulting {
    generation: Generation,
    function: Function,
    stream: Stream,
}

impl CompiledPipeline for Faulting {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn dispatch(
        &self,
        _bindings: &[BufferBinding],
        _config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError> {
        let started = Instant::now();
        let launch = LaunchConfig { grid: [1, 1, 1], workgroup: [1, 1, 1], shared_bytes: 0 };
        // SAFETY: the argument is the one word that each of these kernels takes. What the kernel does to the
        // context is the purpose.
        unsafe { self.function.launch(&self.stream, &launch, &1u32.to_ne_bytes()) }?;
        self.stream.wait(PATIENCE)?;
        Ok(DispatchOutcome { elapsed: started.elapsed(), trap: None })
    }
}
