//! A host that is told anything: requests one after the other, each any bytes. Nothing panics, and every answer can
//! be sent.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_worker::fuzzing::Host;

fuzz_target!(|requests: Vec<Vec<u8>>| {
    let backend = CpuBackend::with_config(CpuConfig::default().threads(1).memory_bytes(1 << 20));
    let host = Host::new(Arc::new(backend), 1 << 16).expect("shared memory");
    for request in requests.iter().take(16) {
        assert!(host.request(request));
    }
});
