//! Which backends this version has, where they run, and opening one.
//!
//! A backend joins by a line in [`worker_registry`], one in [`in_process`], one in [`survey`] and, if `Auto` may choose it,
//! a line in [`OpenOptions::open`].

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use vyre_cpu::CpuBackend;
use vyre_driver::{BackendError, BackendIdentity, Capabilities, VyreBackend};
use vyre_hip::HipBackend;
use vyre_hip::api::Api;
use vyre_worker::sandbox::Sandbox;
use vyre_worker::{IsolatedBackend, IsolatedOptions, Registry, StartError};

/// Which backend to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendChoice {
    /// The first GPU if there is one, else the host's own threads.
    #[default]
    Auto,
    /// The host's own threads.
    Cpu,
    /// The first GPU, through HIP or the CUDA driver.
    Hip,
}

/// In which process a backend works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// A GPU in a worker, since a device fault ends the process that owns the device; the host's threads here.
    #[default]
    Auto,
    /// Here. A device fault then ends all use of that device in this process.
    InProcess,
    /// In a worker, whichever backend it is.
    Worker,
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
    /// The worker that was to host it does not start.
    #[error("no worker for backend `{backend}`")]
    Worker {
        /// Its name.
        backend: &'static str,
        /// What happened. [`StartError::NotInitialised`] says that [`worker_main`] was not called.
        #[source]
        source: Box<StartError>,
    },
}

/// Makes this process a worker if it was started as one; otherwise returns at once. Call it first of all in `main`
/// of a program that isolates a backend, before threads are started and arguments are read: the worker is the same
/// executable, run again, and never returns from here.
///
/// A program with backends or kernels of its own calls [`vyre_worker::init`] instead, with what it adds to
/// [`worker_registry`].
pub fn worker_main() {
    vyre_worker::init(&worker_registry());
}

/// The backends that this crate can host in a worker.
pub fn worker_registry() -> Registry {
    [Named::Cpu, Named::Hip]
        .into_iter()
        .fold(Registry::new(), |registry, named| registry.backend(named.name(), move |_| in_process(named)))
}

/// A backend by name.
#[derive(Clone, Copy)]
enum Named {
    Cpu,
    Hip,
}

impl Named {
    const fn name(self) -> &'static str {
        match self {
            Named::Cpu => "cpu",
            Named::Hip => "hip",
        }
    }
}

fn in_process(named: Named) -> Result<Arc<dyn VyreBackend>, BackendError> {
    Ok(match named {
        Named::Cpu => Arc::new(CpuBackend::new()),
        Named::Hip => Arc::new(HipBackend::open(0)?),
    })
}

/// Whether there is a GPU at all. Makes no context, so this process never owns a device.
fn has_gpu() -> bool {
    Api::open().is_ok_and(|api| api.devices() > 0)
}

/// Opens a backend: a GPU in a worker, the host's threads in this process.
///
/// # Errors
///
/// As [`OpenOptions::open`].
pub fn open(choice: BackendChoice) -> Result<Arc<dyn VyreBackend>, OpenError> {
    OpenOptions::new(choice).open()
}

/// What to open, and how.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct OpenOptions {
    choice: BackendChoice,
    isolation: Isolation,
    spare: bool,
    fall_back: bool,
    crash_budget: Option<(u32, Duration)>,
}

impl OpenOptions {
    /// A backend, isolated as [`Isolation::Auto`] says, without a spare, without a fallback.
    pub fn new(choice: BackendChoice) -> OpenOptions {
        OpenOptions { choice, ..OpenOptions::default() }
    }

    /// In which process it works.
    pub fn isolation(self, isolation: Isolation) -> OpenOptions {
        OpenOptions { isolation, ..self }
    }

    /// Whether a second worker is kept ready, so that a loss is recovered from in milliseconds. It costs a process
    /// and, on a GPU, a context.
    pub fn spare(self, spare: bool) -> OpenOptions {
        OpenOptions { spare, ..self }
    }

    /// How many crashes of the worker, device faults among them, are recovered from within `forgiveness`; the next
    /// one is final, or the fallback's turn. A kill from outside does not count. Default: 8 within 60 s.
    pub fn crash_budget(self, crashes: u32, forgiveness: Duration) -> OpenOptions {
        OpenOptions { crash_budget: Some((crashes, forgiveness)), ..self }
    }

    /// Whether work goes on with the host's threads once the worker has crashed too often. Without it that is final.
    /// [`VyreBackend::identity`] and [`RecoveryReport::rebuilt_on`](vyre_runtime::session::RecoveryReport::rebuilt_on)
    /// say that it has come to that.
    pub fn fall_back_to_cpu(self, fall_back: bool) -> OpenOptions {
        OpenOptions { fall_back, ..self }
    }

    /// Opens it.
    ///
    /// # Errors
    ///
    /// [`OpenError::Backend`] if it does not start, [`OpenError::Worker`] if its worker does not. `Auto` is refused
    /// only when there is a GPU that ought to work.
    pub fn open(&self) -> Result<Arc<dyn VyreBackend>, OpenError> {
        let named = self.named();
        let isolated = match (self.isolation, named) {
            (Isolation::Worker, _) | (Isolation::Auto, Named::Hip) => true,
            (Isolation::InProcess, _) | (Isolation::Auto, Named::Cpu) => false,
        };
        if isolated {
            return Ok(self.open_worker()?);
        }
        in_process(named).map_err(|source| OpenError::Backend { backend: named.name(), source })
    }

    /// Opens it in a worker, whatever the isolation, for who wants to know more of it: the process ids of worker and
    /// spare, and how the last lost worker was replaced.
    ///
    /// # Errors
    ///
    /// [`OpenError::Worker`] if the worker does not start.
    pub fn open_worker(&self) -> Result<Arc<IsolatedBackend>, OpenError> {
        let named = self.named();
        let backend = named.name();
        let mut options = IsolatedOptions::new(backend).spare(self.spare);
        if let Some((crashes, forgiveness)) = self.crash_budget {
            options = options.crash_budget(crashes, forgiveness);
        }
        let mut options = match named {
            Named::Cpu => options.sandbox(Sandbox::Strict),
            // It loads a library and runs a compiler, wherever this process would find them; and drivers register
            // memory with a device only if it can be mapped for writing.
            Named::Hip => {
                vyre_hip::ENVIRONMENT.iter().fold(options.writable_regions(true), |options, name| {
                    match std::env::var_os(name) {
                        Some(value) => options.env(name, value),
                        None => options,
                    }
                })
            }
        };
        if self.fall_back {
            options = options.fallback(Arc::new(CpuBackend::new()));
        }
        match IsolatedBackend::open(options) {
            Ok(opened) => Ok(Arc::new(opened)),
            Err(source) => Err(OpenError::Worker { backend, source: Box::new(source) }),
        }
    }

    fn named(&self) -> Named {
        match self.choice {
            BackendChoice::Cpu => Named::Cpu,
            BackendChoice::Hip => Named::Hip,
            BackendChoice::Auto if has_gpu() => Named::Hip,
            BackendChoice::Auto => Named::Cpu,
        }
    }
}

/// What is known about one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendReport {
    /// Its name: `cpu`, `hip`.
    pub name: &'static str,
    /// Its device, or the reason why it is not available.
    pub status: Result<(BackendIdentity, Capabilities), String>,
}

/// Every backend that this version knows of, each with its device or the reason why it is not available. They are
/// opened in this process for that.
pub fn survey() -> Vec<BackendReport> {
    let status = |opened: Result<Arc<dyn VyreBackend>, BackendError>| match opened {
        Ok(backend) => Ok((backend.identity().clone(), backend.capabilities().clone())),
        Err(error) => Err(chain(&error)),
    };
    let report = |named: Named| BackendReport { name: named.name(), status: status(in_process(named)) };
    vec![report(Named::Cpu), report(Named::Hip)]
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
