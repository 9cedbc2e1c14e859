//! What the tests of this crate share: running a program over buffers given as bytes.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::time::Duration;

use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{BackendError, BufferDesc, BufferHandle, DispatchConfig, DispatchOutcome, VyreBackend};
use vyre_foundation::{DataType, MemorySpace, ValidatedProgram};

/// The bytes of a buffer, and what its elements are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub element: DataType,
    pub bytes: Vec<u8>,
}

impl Data {
    pub fn u32s(values: &[u32]) -> Data {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Data { element: DataType::U32, bytes }
    }

    pub fn u64s(values: &[u64]) -> Data {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Data { element: DataType::U64, bytes }
    }

    pub fn u8s(values: &[u8]) -> Data {
        Data { element: DataType::U8, bytes: values.to_vec() }
    }

    pub fn to_u32s(&self) -> Vec<u32> {
        self.bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }

    pub fn to_u64s(&self) -> Vec<u64> {
        self.bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
    }
}

pub fn backend(threads: usize) -> CpuBackend {
    CpuBackend::with_config(CpuConfig::default().threads(threads))
}

pub fn write_u32(backend: &CpuBackend, buffer: BufferHandle, index: u64, value: u32) {
    backend.write_buffer(buffer, index * 4, &value.to_le_bytes()).unwrap();
}

/// Backends that must not differ in anything a program can see.
pub fn all_settings() -> Vec<(String, CpuBackend)> {
    let settings = [(1, 1), (1, 8), (1, 32), (3, 1), (3, 32)];
    let backend = |(threads, lanes)| {
        let config = CpuConfig::default().threads(threads).lanes(lanes);
        (format!("{threads} threads, {lanes} lanes"), CpuBackend::with_config(config))
    };
    settings.into_iter().map(backend).collect()
}

/// Runs a kernel over whole buffers, in place.
pub fn run(
    backend: &CpuBackend,
    program: &ValidatedProgram,
    data: &mut [Data],
    grid: [u32; 3],
) -> Result<DispatchOutcome, BackendError> {
    let pipeline = backend.compile(program)?;
    let decls = program.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup);
    let mut handles = Vec::new();
    for (decl, data) in decls.zip(data.iter()) {
        let len = (data.bytes.len() / data.element.size()) as u64;
        let desc = BufferDesc::new(decl.name.clone(), data.element, len).in_space(decl.space);
        let handle = backend.create_buffer(&desc)?;
        backend.write_buffer(handle, 0, &data.bytes)?;
        handles.push(handle);
    }
    let bindings: Vec<_> = handles.iter().map(|handle| handle.binding()).collect();
    let mut config = DispatchConfig::new(grid);
    config.deadline = Some(Duration::from_secs(20));
    let outcome = pipeline.dispatch(&bindings, &config)?;
    for (handle, data) in handles.iter().zip(data.iter_mut()) {
        backend.read_buffer(*handle, 0, &mut data.bytes)?;
        backend.destroy_buffer(*handle)?;
    }
    Ok(outcome)
}
