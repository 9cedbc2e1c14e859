//! Products are compiled as items: by the vendors' compilers, and in kernels of batches and of sessions.

use std::sync::{Arc, Mutex};

use vyre_driver::VyreBackend as _;
use vyre_hip::OfflineBackend;
use vyre_runtime::{Megakernel, conformance};

use crate::compilers::{compile_for_amd, compile_for_nvidia};

/// What a megakernel of products has compiled, for batches and for sessions.
fn products() -> Vec<String> {
    let sources = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&sources);
    let backend = Arc::new(OfflineBackend::new(&"sm_90a".parse().unwrap(), move |source| {
        kept.lock().unwrap().push(source.source.to_owned());
        Ok(())
    }));
    let builder = Megakernel::builder(backend.clone()).handler(conformance::gemm_handler());
    backend.compile_resident(&builder.build().unwrap().programs().spec(1)).unwrap();
    let sources = sources.lock().unwrap();
    sources.iter().filter(|source| source.contains("vyre_externals.h")).cloned().collect()
}

#[test]
fn products_compile_for_amd() {
    for source in products() {
        for arch in ["gfx90a", "gfx1030"] {
            compile_for_amd(&source, arch);
        }
    }
}

/// cicc of CUDA 13.0 has not ended on one of them.
#[test]
fn products_compile_for_nvidia() {
    let products = products();
    assert!(products.len() > 1, "batches and sessions have kernels of their own");
    for source in products {
        compile_for_nvidia(&source, "sm_90");
    }
}
