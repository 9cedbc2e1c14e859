//! Which backends this version has, and opening one.
//!
//! A backend joins by a line in [`survey`] and, if `Auto` may choose it, a line in [`open`].

use std::sync::Arc;

use thiserror::Error;
use vyre_cpu::CpuBackend;
use vyre_driver::{BackendError, BackendIdentity, Capabilities, VyreBackend};
use vyre_hip::HipBackend;

/// Which backend to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The fastest that works here.
    #[default]
    Auto,
    /// The host's own threads.
    Cpu,
    /// The first GPU, through HIP or the CUDA driver.
    Hip,
}

/// Why a backend was not opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The backend is there and does not start.
    #[error("backend `{backend}` does not start")]
    Backend {
        /// Its name.
        backend: &'static str,
        /// What it answered.
        #[source]
        source: BackendError,
    },
}

/// Opens a backend.
///
/// # Errors
///
/// [`OpenError::Backend`] if it does not start.
pub fn open(choice: BackendChoice) -> Result<Arc<dyn VyreBackend>, OpenError> {
    match choice {
        // Sessions need a resident kernel, which only this one has yet.
        BackendChoice::Auto | BackendChoice::Cpu => open_cpu(),
        BackendChoice::Hip => open_hip(),
    }
}

fn open_hip() -> Result<Arc<dyn VyreBackend>, OpenError> {
    let opened = HipBackend::open(0).map_err(|source| OpenError::Backend { backend: "hip", source })?;
    Ok(Arc::new(opened))
}

fn open_cpu() -> Result<Arc<dyn VyreBackend>, OpenError> {
    Ok(Arc::new(CpuBackend::new()))
}

/// What is known about one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendReport {
    /// Its name: `cpu`, `hip`.
    pub name: &'static str,
    /// Its device, or the reason why it is not available.
    pub status: Result<(BackendIdentity, Capabilities), String>,
}

/// Every backend that this version knows of, each with its device or the reason why it is not available.
pub fn survey() -> Vec<BackendReport> {
    let status = |opened: Result<Arc<dyn VyreBackend>, OpenError>| match opened {
        Ok(backend) => Ok((backend.identity().clone(), backend.capabilities().clone())),
        Err(error) => Err(chain(&error)),
    };
    vec![
        BackendReport { name: "cpu", status: status(open_cpu()) },
        BackendReport { name: "hip", status: status(open_hip()) },
    ]
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
