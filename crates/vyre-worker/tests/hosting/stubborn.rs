//! The CPU backend, but a resident kernel that was told to leave at once says that it has not.

use std::sync::Arc;
use std::time::Duration;

use vyre_cpu::CpuBackend;
use vyre_driver::{
    BackendError, BackendIdentity, BufferDesc, BufferHandle, Capabilities, CompiledPipeline, Generation,
    KernelState, ResidentKernel, ResidentPipeline, ResidentSpec, StartRequest, VyreBackend,
};
use vyre_foundation::ValidatedProgram;

pub struct Stubborn(CpuBackend, BackendIdentity);

impl Stubborn {
    pub fn new(cpu: CpuBackend) -> Stubborn {
        let identity = BackendIdentity { name: "stubborn".to_owned(), ..cpu.identity().clone() };
        Stubborn(cpu, identity)
    }
}

impl VyreBackend for Stubborn {
    fn identity(&self) -> &BackendIdentity {
        &self.1
    }
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }
    fn generation(&self) -> Generation {
        self.0.generation()
    }
    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        self.0.compile(program)
    }
    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        Ok(Arc::new(Pipeline(self.0.compile_resident(spec)?)))
    }
    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        self.0.create_buffer(desc)
    }
    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.0.destroy_buffer(buffer)
    }
    fn write_buffer(&self, buffer: BufferHandle, at: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.0.write_buffer(buffer, at, bytes)
    }
    fn read_buffer(&self, buffer: BufferHandle, at: u64, into: &mut [u8]) -> Result<(), BackendError> {
        self.0.read_buffer(buffer, at, into)
    }
    fn recover(&self) -> Result<Generation, BackendError> {
        self.0.recover()
    }
}

struct Pipeline(Arc<dyn ResidentPipeline>);

impl ResidentPipeline for Pipeline {
    fn generation(&self) -> Generation {
        self.0.generation()
    }
    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        Ok(Arc::new(Kernel(self.0.start(request)?)))
    }
}

struct Kernel(Arc<dyn ResidentKernel>);

impl ResidentKernel for Kernel {
    fn generation(&self) -> Generation {
        self.0.generation()
    }
    fn state(&self) -> KernelState {
        self.0.state()
    }
    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError> {
        self.0.quiesce(deadline)
    }
    fn reap(&self, after: Duration) -> Result<(), BackendError> {
        Err(BackendError::Deadline { waited_for: "a kernel that stays".to_owned(), after })
    }
    fn ring_doorbell(&self) {
        self.0.ring_doorbell();
    }
}
