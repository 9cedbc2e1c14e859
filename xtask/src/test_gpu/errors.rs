//! Error paths: a backend says what is wrong, with the right variant, and goes on.

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use vyre_driver::{BackendError, BufferDesc, BufferHandle, DispatchConfig, Generation, VyreBackend};
use vyre_foundation::DataType;

use super::Device;
use super::programs::{describe, endless};
use super::trial::{Body, Records};

const TRIALS: &[(&str, Body)] = &[
    ("out_of_memory", out_of_memory),
    ("deadline", deadline),
    ("ranges", ranges),
    ("stale_handles", stale_handles),
    ("launch_arguments", launch_arguments),
];

/// Adds the trials of one device.
pub(crate) fn add(device: &Device, records: &Records, trials: &mut Vec<Trial>) {
    for &(name, body) in TRIALS {
        let backend = Arc::clone(&device.backend);
        let name = format!("{}::error::{name}", device.name);
        trials.push(
            records.trial(name, move || {
                body(backend.as_ref()).and_then(|()| still_works(backend.as_ref())).into()
            }),
        );
    }
}

/// A round trip of a few bytes.
fn still_works(backend: &dyn VyreBackend) -> Result<(), String> {
    let error = |error: BackendError| format!("afterwards: {}", describe(&error));
    let buffer = backend.create_buffer(&BufferDesc::new("after", DataType::U8, 5)).map_err(error)?;
    backend.write_buffer(buffer, 1, &[1, 2, 3]).map_err(error)?;
    let mut bytes = [9; 5];
    backend.read_buffer(buffer, 0, &mut bytes).map_err(error)?;
    backend.destroy_buffer(buffer).map_err(error)?;
    if bytes == [0, 1, 2, 3, 0] { Ok(()) } else { Err(format!("afterwards a buffer holds {bytes:?}")) }
}

fn expect<T: std::fmt::Debug>(
    what: &str,
    answer: Result<T, BackendError>,
    accepts: fn(&BackendError) -> bool,
) -> Result<(), String> {
    match answer {
        Err(error) if accepts(&error) => Ok(()),
        Err(error) => Err(format!("{what}: {}", describe(&error))),
        Ok(value) => Err(format!("{what} was accepted: {value:?}")),
    }
}

fn invalid(error: &BackendError) -> bool {
    matches!(error, BackendError::InvalidArgument { .. })
}

fn stale(error: &BackendError) -> bool {
    matches!(error, BackendError::StaleHandle { .. })
}

fn out_of_memory(backend: &dyn VyreBackend) -> Result<(), String> {
    let refused = |error: &BackendError| {
        matches!(error, BackendError::OutOfMemory { .. } | BackendError::InvalidArgument { .. })
    };
    for len in [u64::MAX / 8, u64::MAX / 4, 1 << 60, backend.capabilities().memory_bytes] {
        let desc = BufferDesc::new("too large", DataType::U64, len);
        expect(&format!("a buffer of {len} elements"), backend.create_buffer(&desc), refused)?;
    }
    Ok(())
}

fn deadline(backend: &dyn VyreBackend) -> Result<(), String> {
    let program = endless()?;
    let error = |error: BackendError| describe(&error);
    let pipeline = backend.compile(&program).map_err(error)?;
    let gate = backend.create_buffer(&BufferDesc::new("gate", DataType::U32, 1)).map_err(error)?;
    let mut config = DispatchConfig::new([4, 1, 1]);
    config.deadline = Some(Duration::from_millis(100));
    config.label = Some("a dispatch that never ends".to_owned());
    let passed = |error: &BackendError| matches!(error, BackendError::Deadline { .. });
    for _ in 0..3 {
        expect("an endless dispatch", pipeline.dispatch(&[gate.binding()], &config), passed)?;
    }
    backend.write_buffer(gate, 0, &1_u32.to_le_bytes()).map_err(error)?;
    pipeline.dispatch(&[gate.binding()], &config).map_err(error)?;
    backend.destroy_buffer(gate).map_err(error)
}

fn ranges(backend: &dyn VyreBackend) -> Result<(), String> {
    let error = |error: BackendError| describe(&error);
    let buffer = backend.create_buffer(&BufferDesc::new("bytes", DataType::U8, 16)).map_err(error)?;
    expect("a write past the end", backend.write_buffer(buffer, 9, &[0; 8]), invalid)?;
    expect("a write far past the end", backend.write_buffer(buffer, u64::MAX, &[0; 1]), invalid)?;
    expect("a read past the end", backend.read_buffer(buffer, 16, &mut [0; 1]), invalid)?;
    backend.write_buffer(buffer, 16, &[]).map_err(error)?;
    backend.destroy_buffer(buffer).map_err(error)
}

fn stale_handles(backend: &dyn VyreBackend) -> Result<(), String> {
    let error = |error: BackendError| describe(&error);
    let buffer = backend.create_buffer(&BufferDesc::new("gone", DataType::U32, 4)).map_err(error)?;
    let other = BufferHandle { generation: Generation(buffer.generation.0 + 1), ..buffer };
    expect("a handle of another generation", backend.write_buffer(other, 0, &[0; 4]), stale)?;
    backend.destroy_buffer(buffer).map_err(error)?;
    expect("a destroyed buffer", backend.read_buffer(buffer, 0, &mut [0; 4]), stale)?;
    expect("a buffer destroyed twice", backend.destroy_buffer(buffer), stale)
}

fn launch_arguments(backend: &dyn VyreBackend) -> Result<(), String> {
    let program = endless()?;
    let error = |error: BackendError| describe(&error);
    let pipeline = backend.compile(&program).map_err(error)?;
    let gate = backend.create_buffer(&BufferDesc::new("gate", DataType::U32, 2)).map_err(error)?;
    backend.write_buffer(gate, 0, &[1; 8]).map_err(error)?;
    let whole = [gate.binding()];
    for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, u32::MAX, u32::MAX]] {
        let config = DispatchConfig::new(grid);
        expect(&format!("a grid of {grid:?}"), pipeline.dispatch(&whole, &config), invalid)?;
    }
    let config = DispatchConfig::new([1, 1, 1]);
    expect("no bindings", pipeline.dispatch(&[], &config), invalid)?;
    expect("a binding too many", pipeline.dispatch(&[gate.binding(), gate.binding()], &config), invalid)?;
    expect("a binding past the end", pipeline.dispatch(&[gate.slice(1, 2)], &config), invalid)?;
    expect("a binding too short", pipeline.dispatch(&[gate.slice(1, 0)], &config), invalid)?;
    let mut crooked = gate.binding();
    (crooked.byte_offset, crooked.byte_len) = (2, 4);
    expect("a binding between two elements", pipeline.dispatch(&[crooked], &config), invalid)?;
    pipeline.dispatch(&[gate.slice(1, 1)], &config).map_err(error)?;
    backend.destroy_buffer(gate).map_err(error)
}
