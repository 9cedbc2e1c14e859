//! Uses only the worker layer: hosts a backend of its own in a worker, which is this executable run again.

use std::sync::Arc;

use vyre_worker::driver::{
    BackendError, BackendIdentity, BufferDesc, BufferHandle, Capabilities, CompiledPipeline, Generation,
    ResidentPipeline, ResidentSpec, VyreBackend,
};
use vyre_worker::foundation::{DataType, ValidatedProgram};
use vyre_worker::{IsolatedBackend, IsolatedOptions, Registry};

/// A device without memory and without a compiler: all its answers are errors.
struct Nothing(BackendIdentity, Capabilities);

impl Nothing {
    fn new() -> Nothing {
        let name = "nothing".to_owned();
        let capabilities = Capabilities {
            max_workgroup_invocations: 1,
            max_workgroup_bytes: 0,
            max_grid: [1, 1, 1],
            max_buffer_bytes: 0,
            memory_bytes: 0,
            subgroup_width: 1,
            subgroup_operations: false,
            resident_workgroups: 0,
            grid_barriers: false,
            persistent: false,
            storage: vec![DataType::U32],
        };
        let device = format!("process {}", std::process::id());
        Nothing(BackendIdentity { name, device, build: "1".to_owned() }, capabilities)
    }

    fn no<T>(&self, what: &str) -> Result<T, BackendError> {
        Err(BackendError::Unsupported { what: what.to_owned(), remedy: "use a device".to_owned() })
    }
}

impl VyreBackend for Nothing {
    fn identity(&self) -> &BackendIdentity {
        &self.0
    }
    fn capabilities(&self) -> &Capabilities {
        &self.1
    }
    fn generation(&self) -> Generation {
        Generation(1)
    }
    fn compile(&self, _: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        self.no("compiling")
    }
    fn compile_resident(&self, _: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        self.no("residency")
    }
    fn create_buffer(&self, _: &BufferDesc) -> Result<BufferHandle, BackendError> {
        self.no("memory")
    }
    fn destroy_buffer(&self, _: BufferHandle) -> Result<(), BackendError> {
        self.no("memory")
    }
    fn write_buffer(&self, _: BufferHandle, _: u64, _: &[u8]) -> Result<(), BackendError> {
        self.no("memory")
    }
    fn read_buffer(&self, _: BufferHandle, _: u64, _: &mut [u8]) -> Result<(), BackendError> {
        self.no("memory")
    }
    fn recover(&self) -> Result<Generation, BackendError> {
        Ok(Generation(1))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    vyre_worker::init(&Registry::new().backend("nothing", |_| Ok(Arc::new(Nothing::new()))));
    let backend = IsolatedBackend::open(IsolatedOptions::new("nothing"))?;
    let here = format!("process {}", std::process::id());
    assert_ne!(backend.identity().device, here);
    let refused = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 1));
    assert!(matches!(refused, Err(BackendError::Unsupported { .. })), "{refused:?}");
    println!("hosted in {}, and refused from there: {refused:?}", backend.identity().device);
    Ok(())
}
