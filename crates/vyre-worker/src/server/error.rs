use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::host::WORKER_VARIABLE;
use crate::process::{Death, Exit, ProcessError};
use crate::wire::WireError;
use crate::wire::handshake::{HandshakeError, Refusal};

/// Why a kernel gave no response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is no such executable.
    #[error("kernel executable {} cannot be examined; build it, or correct the path", path.display())]
    Executable {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The operating system started no process.
    #[error("no process for kernel {kernel}")]
    Spawn {
        /// The kernel's type.
        kernel: String,
        /// Why.
        source: Box<ProcessError>,
    },
    /// A process was started, and ended before it was a worker.
    #[error(
        "worker of kernel {kernel} ended before it was ready: {death}; see that its main calls vyre_worker::kernel::main, or vyre_worker::init, first of all"
    )]
    EndedEarly {
        /// The kernel's type.
        kernel: String,
        /// How it ended.
        death: Box<Death>,
    },
    /// A process was started, and is no worker: it refused, was silent too long, or does not speak the protocol.
    #[error("worker of kernel {kernel} did not become ready; it wrote last: {stderr:?}{}", remedy(.source))]
    Handshake {
        /// The kernel's type.
        kernel: String,
        /// Its last lines on standard error.
        stderr: String,
        /// What it did instead.
        source: HandshakeError,
    },
    /// No worker could be started; everybody who waited for one has this error.
    #[error("kernel {kernel} has no worker")]
    NotStarted {
        /// The kernel's type.
        kernel: String,
        /// The failure, shared by all who waited.
        source: Arc<KernelError>,
    },
    /// Workers of this kernel failed one after another, and the next is not to be tried before the deadline.
    #[error(
        "kernel {kernel} failed {failures} times in a row, last with: {last}; it is tried again in {wait:?}: raise RunOptions::limit to wait for that"
    )]
    BackingOff {
        /// The kernel's type.
        kernel: String,
        /// Failures since the last success.
        failures: u32,
        /// How long from now.
        wait: Duration,
        /// The last failure; whose call it was has the error itself.
        last: String,
    },
    /// The worker's answer is no. It lives on.
    #[error("kernel {kernel} refused the request")]
    Refused {
        /// The kernel's type.
        kernel: String,
        /// Its reason.
        source: Refusal,
    },
    /// The worker died with the request. Whether it was executed is not known.
    #[error(
        "kernel {kernel} died with the request: {death}; where running it twice does no harm, RunOptions::idempotent has it tried again"
    )]
    Died {
        /// The kernel's type.
        kernel: String,
        /// How it ended.
        death: Box<Death>,
    },
    /// The worker left the protocol and was killed. Whether the request was executed is not known.
    #[error(
        "worker of kernel {kernel} does not follow the protocol and was killed; it wrote last: {stderr:?}"
    )]
    Protocol {
        /// The kernel's type.
        kernel: String,
        /// Its last lines on standard error.
        stderr: String,
        /// What it did.
        source: WireError,
    },
    /// The deadline passed. A worker that had the request was killed.
    #[error(
        "kernel {kernel}: waited {waited:?} for {waited_for}; it wrote last: {stderr:?}; raise RunOptions::limit if it needs longer"
    )]
    Deadline {
        /// The kernel's type.
        kernel: String,
        /// What did not happen.
        waited_for: &'static str,
        /// How long.
        waited: Duration,
        /// The worker's last lines on standard error, if there was a worker.
        stderr: String,
    },
    /// Request and room for the response do not fit into the worker's arena.
    #[error(
        "{bytes} bytes of request and response; the arena of kernel {kernel} has {arena}: raise KernelSpec::arena_bytes"
    )]
    TooLarge {
        /// The kernel's type.
        kernel: String,
        /// Bytes that are needed.
        bytes: u64,
        /// Bytes there are.
        arena: u64,
    },
    /// A process that was started for one request failed.
    #[error("kernel {kernel} {exit} ({meaning}); standard error: {stderr:?}; standard output: {stdout:?}")]
    OneShot {
        /// The kernel's type.
        kernel: String,
        /// How it ended.
        exit: Exit,
        /// What docs/worker-protocol.md says of that.
        meaning: &'static str,
        /// Its last lines on standard error.
        stderr: String,
        /// The beginning of its standard output.
        stdout: String,
    },
    /// This executable cannot become a worker of [`KernelSpec::reexec`](super::KernelSpec::reexec).
    #[error(
        "no worker for kernel {kernel}: this executable does not call vyre_worker::init at the top of main; call it there, or name an executable with KernelSpec::new"
    )]
    NotInitialised {
        /// The kernel's type.
        kernel: String,
    },
    /// This process is a worker itself, and would start a chain of its own executable.
    #[error(
        "no worker for kernel {kernel}: {WORKER_VARIABLE} is set, so this process is a worker; call vyre_worker::init at the top of main, before a kernel is run"
    )]
    InsideWorker {
        /// The kernel's type.
        kernel: String,
    },
    /// The server was closed.
    #[error("the kernel server is closed; open another")]
    Closed,
    /// The operating system had no socket, memory or thread.
    #[error("resources for a worker of kernel {kernel}")]
    Resources {
        /// The kernel's type.
        kernel: String,
        /// What failed.
        source: WireError,
    },
}

/// What to do about a handshake that came to nothing, where that does not say so itself.
fn remedy(error: &HandshakeError) -> &'static str {
    match error {
        HandshakeError::Wire(WireError::TimedOut { .. }) => "; raise ServerOptions::start if it needs longer",
        _ => "",
    }
}

impl KernelError {
    /// Whether the same call may succeed later unchanged. Of [`KernelError::Died`], [`KernelError::Protocol`] and
    /// [`KernelError::Deadline`] it must not matter that the request runs twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            KernelError::Died { .. }
            | KernelError::Protocol { .. }
            | KernelError::Deadline { .. }
            | KernelError::BackingOff { .. }
            | KernelError::Resources { .. } => true,
            KernelError::NotStarted { source, .. } => source.is_retryable(),
            KernelError::EndedEarly { death, .. } => !death.loss().cause.has_suspects(),
            KernelError::Spawn { source, .. } => source.is_retryable(),
            _ => false,
        }
    }
}
