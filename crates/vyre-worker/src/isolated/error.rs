//! Why there is no worker.

use std::time::Duration;

use thiserror::Error;
use vyre_driver::ring::RingError;
use vyre_driver::{BackendError, Loss};

use crate::host::WORKER_VARIABLE;
use crate::process::ProcessError;
use crate::wire::WireError;
use crate::wire::handshake::Refusal;

/// A worker that did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// Nothing says which executable is a worker.
    #[error(
        "no worker to start: this executable does not call vyre_worker::init at the top of main; call it there, or name an executable that does with IsolatedOptions::program"
    )]
    NotInitialised,
    /// This process is a worker itself, or thinks so.
    #[error(
        "{WORKER_VARIABLE} is set, so this process is a worker and starts none; call vyre_worker::init at the top of main, before a backend is opened"
    )]
    InsideWorker,
    /// The process could not be started.
    #[error("the worker's process")]
    Process(#[from] ProcessError),
    /// Shared memory or a socket could not be made, or something else than a worker answered.
    #[error("the worker's channel")]
    Wire(#[from] WireError),
    /// Shared memory could not be made.
    #[error("the worker's status page")]
    Region(#[from] RingError),
    /// The worker cannot host this backend, and says why.
    #[error("the worker refused")]
    Refused(#[from] Refusal),
    /// It ended before it was ready.
    #[error(
        "the worker ended before it was ready: {0}; see that its main calls vyre_worker::init first of all"
    )]
    Died(Loss),
    /// It was not ready in time.
    #[error(
        "the worker was not ready in {after:?}{stderr}; give it longer with IsolatedOptions::start_deadline, or see that its main calls vyre_worker::init first of all"
    )]
    Slow {
        /// How long it had.
        after: Duration,
        /// What it wrote last.
        stderr: String,
    },
    /// What it said is not what a worker of this version says.
    #[error("the worker is of another version: {got}; build both from one version")]
    Version {
        /// What was understood.
        got: String,
    },
    /// Its backend did not describe itself.
    #[error("the worker's backend")]
    Backend(#[from] BackendError),
    /// A thread could not be started.
    #[error("the thread that looks after the worker")]
    Thread(#[from] std::io::Error),
}

impl StartError {
    /// What ended it, if it had started.
    pub(super) fn loss(&self) -> Option<&Loss> {
        match self {
            StartError::Died(loss) | StartError::Backend(BackendError::DeviceLost(loss)) => Some(loss),
            _ => None,
        }
    }

    /// The error of a start that this process could not make: no worker is to blame, and later it may succeed.
    pub(super) fn own_failure(&self) -> Option<BackendError> {
        let source = match self {
            StartError::Backend(error @ BackendError::Driver { .. }) => return Some(error.clone()),
            StartError::Process(ProcessError::Refused { source, .. })
            | StartError::Wire(WireError::Os { source, .. })
            | StartError::Thread(source) => source.raw_os_error(),
            StartError::Process(_) | StartError::Region(_) | StartError::Wire(WireError::Region(_)) => None,
            _ => return None,
        };
        let code = source.unwrap_or(0).into();
        Some(BackendError::Driver { call: "start of a worker", code, text: self.chain() })
    }

    /// The error and its causes on one line.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// A system call of this process that failed.
pub(super) fn own_failure(error: &WireError) -> BackendError {
    let (call, code) = match error {
        WireError::Os { call, source } => (*call, source.raw_os_error().unwrap_or(0)),
        _ => ("socketpair", 0),
    };
    let text = format!("{}; close descriptors, or raise the limit on them (ulimit -n)", chain(error));
    BackendError::Driver { call, code: code.into(), text }
}

pub(super) fn chain(error: &WireError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
