//! The child's side: a process that holds a backend for its parent.
//!
//! A host is this very executable run again, and becomes one in [`init`], at the top of `main`. It serves lanes,
//! each a socket with a thread of its own: the parent's callers share nothing, so a slow dispatch delays nobody.
//! It trusts its parent, which has made it, and checks what it gets only so far that a mistake is an error and
//! no crash; its parent trusts nothing that it says.
//!
//! | file | what it is for |
//! |---|---|
//! | here | which backends there are, and becoming a host |
//! | `message` | requests and answers as data; `failure`: errors as data |
//! | `service` | what each request does to the backend |
//! | `lanes` | the threads |
//! | `status` | the page on which a host reports without being asked |
//!
//! Absent on purpose: any concrete backend, and any decision about recovery.

pub(crate) mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
pub(crate) mod lanes;
pub(crate) mod message;
pub(crate) mod service;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use vyre_driver::{BackendError, VyreBackend};

use crate::kernel::{self, Response};
use crate::sandbox::{self, Sandbox};
use crate::wire::handshake::{self, HandshakeError, Hello, Refusal};
use crate::wire::{ArenaView, Channel, WireError};
use lanes::EXIT_SYSTEM;
use service::Service;

/// The variable that makes a process a worker: [`init`] looks for it.
pub const WORKER_VARIABLE: &str = "VYRE_WORKER";
/// The descriptor of a worker's first socket.
pub const WORKER_FD: RawFd = 3;

/// Exit code of a worker that did not get as far as serving; its last lines say why.
const EXIT_REFUSED: i32 = 69;
/// What HELLO calls a host of the backend with a name.
const BACKEND: &str = "backend ";

/// Whether [`init`] was called here, so that running this executable again gives a worker.
static INITIALISED: AtomicBool = AtomicBool::new(false);

type Kernel = Box<dyn Fn(&[u8], &mut Response<'_>) -> Result<(), Refusal> + Send + Sync>;
type OpenBackend = Box<dyn Fn(&[u8]) -> Result<Arc<dyn VyreBackend>, BackendError> + Send + Sync>;

/// What a worker of this executable can be: a host of a backend, or a kernel's server.
#[derive(Default)]
pub struct Registry {
    backends: BTreeMap<String, OpenBackend>,
    kernels: BTreeMap<String, Kernel>,
}

impl Registry {
    /// Nothing yet.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// One more, under a name. `open` is called in the worker, with the bytes of
    /// [`IsolatedOptions::config`](crate::IsolatedOptions::config).
    pub fn backend(
        mut self,
        name: impl Into<String>,
        open: impl Fn(&[u8]) -> Result<Arc<dyn VyreBackend>, BackendError> + Send + Sync + 'static,
    ) -> Registry {
        self.backends.insert(name.into(), Box::new(open));
        self
    }

    /// A kernel, under a name, for [`KernelSpec::reexec`](crate::server::KernelSpec::reexec): bytes in, bytes out.
    pub fn kernel(
        mut self,
        name: impl Into<String>,
        kernel: impl Fn(&[u8], &mut Response<'_>) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Registry {
        self.kernels.insert(name.into(), Box::new(kernel));
        self
    }

    fn find(&self, worker: &str) -> Result<&OpenBackend, (u32, String)> {
        let name = worker.strip_prefix(BACKEND);
        name.and_then(|name| self.backends.get(name)).ok_or_else(|| {
            let names =
                |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let text = format!(
                "no `{worker}`; this executable has the backends {}, and the kernels {}",
                names(self.backends.keys().map(String::as_str).collect()),
                names(self.kernels.keys().map(String::as_str).collect()),
            );
            (handshake::REFUSED_WORKER, text)
        })
    }
}

/// What HELLO's configuration holds for a host.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HostConfig {
    pub(crate) strict: bool,
    pub(crate) backend: Vec<u8>,
}

/// What HELLO calls a host of this backend.
pub(crate) fn worker_name(backend: &str) -> String {
    format!("{BACKEND}{backend}")
}

/// Whether running this executable again gives a worker.
pub(crate) fn is_initialised() -> bool {
    INITIALISED.load(Ordering::Relaxed)
}

/// Whether this process was started as a worker.
pub(crate) fn is_worker() -> bool {
    std::env::var_os(WORKER_VARIABLE).is_some()
}

/// Makes this process a worker if it was started as one; otherwise returns at once. Call it first of all in
/// `main`, before threads are started and arguments are read: a worker never returns from it.
pub fn init(registry: &Registry) {
    INITIALISED.store(true, Ordering::Relaxed);
    if is_worker() {
        std::process::exit(run(registry));
    }
}

fn run(registry: &Registry) -> i32 {
    // SAFETY: only asked whether there is such a descriptor; nothing is kept.
    let borrowed = unsafe { BorrowedFd::borrow_raw(WORKER_FD) };
    if rustix::io::fcntl_getfd(borrowed).is_err() {
        eprintln!("vyre-worker: {WORKER_VARIABLE} is set, but descriptor {WORKER_FD} is closed; unset it");
        return EXIT_SYSTEM;
    }
    // SAFETY: the parent that set the variable passed this descriptor to be owned here, and nothing ran yet
    // that could own it.
    let socket = unsafe { OwnedFd::from_raw_fd(WORKER_FD) };
    match serve(registry, socket) {
        Ok(code) => code,
        Err(text) => {
            eprintln!("vyre-worker: {text}");
            EXIT_REFUSED
        }
    }
}

/// The handshake, and then whatever the parent asked for.
fn serve(registry: &Registry, socket: OwnedFd) -> Result<i32, String> {
    let channel = Channel::from_fd(socket).map_err(text)?;
    let (hello, arena, _) = match handshake::accept(&channel, None) {
        // The parent thought better of it.
        Err(HandshakeError::Wire(WireError::Closed)) => return Ok(0),
        accepted => accepted.map_err(text)?,
    };
    let about = format!("{} in process {}", hello.worker, std::process::id());
    let ready = || handshake::ready(&channel, &about);
    if let Some(kernel) = registry.kernels.get(&hello.worker) {
        return kernel::serve(&channel, arena, &hello, ready, kernel).map(|()| 0).map_err(text);
    }
    match open(registry, &hello, arena) {
        Ok(service) => {
            ready().map_err(text)?;
            Ok(lanes::serve(service, channel))
        }
        Err((code, why)) => {
            handshake::refuse(&channel, code, &why).map_err(text)?;
            Err(why)
        }
    }
}

/// Opens the backend that is asked for, and gives up what it does not need from then on.
fn open(registry: &Registry, hello: &Hello, arena: OwnedFd) -> Result<Arc<Service>, (u32, String)> {
    let start = |error: &dyn std::fmt::Display| (handshake::REFUSED_START, error.to_string());
    let arena = ArenaView::attach(arena, hello.arena_bytes).map_err(|error| start(&error))?;
    let open = registry.find(&hello.worker)?;
    let HostConfig { strict, backend } = message::decode(&hello.config).map_err(|error| start(&error))?;
    let backend = open(&backend).map_err(|error| start(&error))?;
    if strict {
        sandbox::enter(Sandbox::Strict).map_err(|error| start(&error))?;
    }
    Ok(Arc::new(Service::new(backend, arena)))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
