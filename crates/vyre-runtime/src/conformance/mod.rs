//! What every backend must compute, as data: vectors of one item each, and scenarios of several.
//!
//! [`run_batches`] runs all of it through batch dispatch on a backend, and says what differed;
//! [`run_sessions`] runs the same [`VECTORS`] live, [`run_changes`] changes handlers under load, [`run_rings`] submits by
//! priority, [`run_io`] has items write files; [`run_gemm`] is for those that have the matrix product.

mod changes;
mod data;
mod fixture;
mod gemm;
mod io;
mod rings;
mod scenarios;
mod sessions;
mod vectors;

use std::fmt::Debug;
use std::sync::Arc;

use vyre_driver::VyreBackend;

pub use changes::run_changes;
pub use data::run_resident_data;
pub use fixture::{
    ADD_ONE, COUNTDOWN, ECHO_OPCODE, FALL_OFF, FAULT, HUNDRED, LATE, LIMITED, NO_QUOTA, NO_WINDOW, SLOTS,
    SUM_LOCAL_IDS, TRAP, UNCONFIGURED, WORKGROUP_SIZE, builder, handlers,
};
pub use gemm::{GEMM, GEMM_BINDINGS, gemm_handler, gemm_item, run_gemm};
pub use io::run_io;
pub use rings::run_rings;
pub use scenarios::SCENARIOS;
pub use sessions::run_sessions;
pub use vectors::{VECTORS, Vector};

use crate::batch::{BatchCompletion, DispatchOptions};
use crate::error::MegakernelError;
use crate::megakernel::Megakernel;

/// A difference between what a backend did and what it must do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Nonconformance {
    /// Something has another value.
    #[error("{vector}: {what} is {got}, expected {expected}")]
    Differs {
        /// The vector or scenario.
        vector: String,
        /// What differs.
        what: String,
        /// What the backend made of it.
        got: String,
        /// What it must be.
        expected: String,
    },
    /// The megakernel answered with an error.
    #[error("{vector}: the megakernel answered with an error")]
    Failed {
        /// The vector or scenario.
        vector: String,
        /// Its error.
        #[source]
        source: MegakernelError,
    },
    /// The system refused what a scenario did with a file of its own.
    #[error("{vector}: a file of its own could not be used")]
    File {
        /// The scenario.
        vector: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// A named scenario, given a backend.
pub type Scenario = (&'static str, fn(&Arc<dyn VyreBackend>) -> Result<(), Nonconformance>);

/// Runs every vector and every scenario through batch dispatch; how many.
///
/// # Errors
///
/// The first difference.
pub fn run_batches(backend: &Arc<dyn VyreBackend>) -> Result<usize, Nonconformance> {
    let failed = |source| Nonconformance::Failed { vector: "the fixture".to_owned(), source };
    let megakernel = builder(Arc::clone(backend)).and_then(|builder| builder.build()).map_err(failed)?;
    for vector in VECTORS {
        run_vector(&megakernel, vector)?;
    }
    for (_, scenario) in SCENARIOS {
        scenario(backend)?;
    }
    Ok(VECTORS.len() + SCENARIOS.len())
}

/// Runs one vector in a batch of its own.
///
/// # Errors
///
/// What differs.
pub fn run_vector(megakernel: &Megakernel, vector: &Vector) -> Result<(), Nonconformance> {
    let at = Check(vector.name);
    let tenant = if megakernel.tenants().get(vector.tenant).is_ok() { vector.tenant } else { 0 };
    let mut batch = megakernel.batch_buffers();
    for &(word, value) in vector.state {
        at.ok(batch.control.set_state(tenant, word, &[value]))?;
    }
    let mut state = at.ok(batch.control.state(tenant))?;
    let mut observables = at.ok(batch.control.observables(tenant))?;
    // Not the first slot: a ticket of 0 hides mistakes.
    let slot = 5;
    at.ok(batch.ring.publish(slot, &vector.image()))?;
    at.ok(megakernel.dispatch(&mut batch, &DispatchOptions::default()))?;

    let expected = BatchCompletion { status: vector.status, code: vector.code, result: vector.result };
    at.same("the completion", at.ok(batch.ring.completion(slot))?, expected)?;
    change(&mut state, vector.state_after);
    change(&mut observables, vector.observables_after);
    at.same("the state", at.ok(batch.control.state(tenant))?, state)?;
    at.same("the observables", at.ok(batch.control.observables(tenant))?, observables)
}

fn change(words: &mut [u32], changes: &[(u32, u32)]) {
    for &(word, value) in changes {
        if let Some(place) = words.get_mut(word as usize) {
            *place = value;
        }
    }
}

/// Compares on behalf of a vector or scenario.
struct Check(&'static str);

impl Check {
    fn ok<T>(&self, result: Result<T, MegakernelError>) -> Result<T, Nonconformance> {
        result.map_err(|source| Nonconformance::Failed { vector: self.0.to_owned(), source })
    }

    fn file<T>(&self, result: Result<T, std::io::Error>) -> Result<T, Nonconformance> {
        result.map_err(|source| Nonconformance::File { vector: self.0.to_owned(), source })
    }

    fn same<T: PartialEq + Debug>(&self, what: &str, got: T, expected: T) -> Result<(), Nonconformance> {
        if got == expected {
            return Ok(());
        }
        Err(Nonconformance::Differs {
            vector: self.0.to_owned(),
            what: what.to_owned(),
            got: format!("{got:?}"),
            expected: format!("{expected:?}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use vyre_cpu::CpuBackend;

    use super::*;

    #[test]
    fn the_cpu_conforms() {
        let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        let mut wrong = Vec::new();
        let megakernel = builder(Arc::clone(&backend)).and_then(|b| b.build()).expect("the fixture builds");
        for vector in VECTORS {
            if let Err(difference) = run_vector(&megakernel, vector) {
                wrong.push(format!("{difference}"));
            }
        }
        for (name, scenario) in SCENARIOS {
            if let Err(difference) = scenario(&backend) {
                wrong.push(format!("{name}: {difference:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn the_cpu_keeps_data() {
        let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        run_resident_data(&backend).unwrap_or_else(|difference| panic!("{difference}: {difference:?}"));
    }

    #[test]
    fn the_cpu_writes_files() {
        let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        run_io(&backend).unwrap_or_else(|difference| panic!("{difference}: {difference:?}"));
    }

    #[test]
    fn the_cpu_conforms_live() {
        let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
        let vectors =
            run_sessions(&backend).unwrap_or_else(|difference| panic!("{difference}: {difference:?}"));
        assert_eq!(vectors, VECTORS.len());
    }
}
