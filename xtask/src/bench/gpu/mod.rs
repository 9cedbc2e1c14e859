//! What the ring is measured against on a GPU, written by hand in `kernels/bench/ring`.
//!
//! * `echo` is the least that a resident kernel can do: the physical limit;
//! * `launches` does the same work by launching kernels, one by one or as a graph;
//! * `products` launches the matrix product.

mod echo;
mod launches;
mod products;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use vyre_hip::HipBackend;
use vyre_hip::compile::{Architecture, CompileRequest};
use vyre_hip::device::{DeviceMemory, Function, LaunchConfig, Module, Stream, StreamPriority};

pub(super) use echo::Echo;
pub(super) use launches::Launches;
pub(super) use products::GpuProducts;

const SOURCE: &str = include_str!("../../../../kernels/bench/ring/opponents.hip");
/// What is waited for here takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// The kernels, loaded, and a stream for them.
pub(super) struct Gpu {
    backend: Arc<HipBackend>,
    module: Arc<Module>,
    stream: Stream,
}

impl Gpu {
    /// Compiles, or finds the code object in the cache, and loads.
    pub(super) fn new(backend: &Arc<HipBackend>) -> Result<Gpu> {
        let context = backend.context();
        let arch = Architecture::of_device(&context.info().arch)?;
        let request = CompileRequest {
            name: "bench_ring",
            source: SOURCE,
            headers: &[],
            arch: &arch,
            flags: &[],
            lines: None,
        };
        let object = backend.compiler().compile(&request).context("compile kernels/bench/ring")?;
        let module = Module::load(context, &object.image)?;
        let stream = Stream::new(context, StreamPriority::Normal)?;
        Ok(Gpu { backend: Arc::clone(backend), module, stream })
    }

    fn memory(&self, what: &str, bytes: &[u8]) -> Result<Arc<DeviceMemory>> {
        let memory = DeviceMemory::new(self.backend.context(), what, bytes.len() as u64)?;
        memory.write(0, bytes)?;
        Ok(memory)
    }
}

/// Enqueues a launch of one of the kernels.
///
/// # Safety
///
/// As for [`Function::launch`].
unsafe fn launch(function: &Function, stream: &Stream, shape: [u32; 2], arguments: &Arguments) -> Result<()> {
    let [groups, invocations] = shape;
    let config = LaunchConfig { grid: [groups, 1, 1], workgroup: [invocations, 1, 1], shared_bytes: 0 };
    // SAFETY: the caller's promise.
    unsafe { function.launch(stream, &config, &arguments.0) }?;
    Ok(())
}

/// A kernel's parameters: addresses first, then words, so that nothing needs padding.
struct Arguments(Vec<u8>);

impl Arguments {
    fn new(addresses: &[u64], words: &[u32]) -> Arguments {
        let addresses = addresses.iter().flat_map(|address| address.to_le_bytes());
        Arguments(addresses.chain(words.iter().flat_map(|word| word.to_le_bytes())).collect())
    }
}
