//! What an isolated backend is made of, and how patient it is.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vyre_driver::VyreBackend;

use crate::sandbox::Sandbox;

/// How to host a backend in a worker. Every wait has a default that suits a CPU; a device's first compilation
/// may need longer.
#[derive(Clone)]
pub struct IsolatedOptions {
    pub(super) backend: String,
    pub(super) config: Vec<u8>,
    pub(super) program: Option<PathBuf>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) sandbox: Sandbox,
    pub(super) arena_bytes: u64,
    pub(super) start_deadline: Duration,
    pub(super) call_deadline: Duration,
    pub(super) compile_deadline: Duration,
    pub(super) grace: Duration,
    pub(super) silence: Duration,
    pub(super) stop_deadline: Duration,
    pub(super) crash_budget: u32,
    pub(super) forgiveness: Duration,
    pub(super) spare: bool,
    pub(super) writable_regions: bool,
    pub(super) fallback: Option<Arc<dyn VyreBackend>>,
}

impl IsolatedOptions {
    /// The backend that the worker's [`Registry`](crate::Registry) has under this name, with nothing for its
    /// configuration.
    pub fn new(backend: impl Into<String>) -> IsolatedOptions {
        IsolatedOptions {
            backend: backend.into(),
            config: Vec::new(),
            program: None,
            env: Vec::new(),
            sandbox: Sandbox::None,
            arena_bytes: 64 << 20,
            start_deadline: Duration::from_secs(30),
            call_deadline: Duration::from_secs(60),
            compile_deadline: Duration::from_secs(600),
            grace: Duration::from_secs(1),
            silence: Duration::from_secs(2),
            stop_deadline: Duration::from_secs(5),
            crash_budget: 8,
            forgiveness: Duration::from_secs(60),
            spare: false,
            writable_regions: false,
            fallback: None,
        }
    }

    /// Bytes for the function that opens the backend in the worker. What they mean is between it and the caller.
    pub fn config(mut self, config: impl Into<Vec<u8>>) -> IsolatedOptions {
        self.config = config.into();
        self
    }

    /// The executable to run, which calls [`init`](crate::init) first of all. Without it, this process's own is
    /// run again.
    pub fn program(mut self, program: impl Into<PathBuf>) -> IsolatedOptions {
        self.program = Some(program.into());
        self
    }

    /// A variable for the worker beside those that are passed on anyway.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> IsolatedOptions {
        self.env.push((key.into(), value.into()));
        self
    }

    /// What the worker denies itself once its backend is open. Default: [`Sandbox::None`].
    pub fn sandbox(mut self, sandbox: Sandbox) -> IsolatedOptions {
        self.sandbox = sandbox;
        self
    }

    /// Bytes of the memory that bulk data goes through; larger transfers go in pieces. Default: 64 MiB.
    pub fn arena_bytes(mut self, bytes: u64) -> IsolatedOptions {
        self.arena_bytes = bytes;
        self
    }

    /// How long a worker may take until it is ready. Default: 30 s.
    pub fn start_deadline(mut self, deadline: Duration) -> IsolatedOptions {
        self.start_deadline = deadline;
        self
    }

    /// How long a worker may take for a request that is no dispatch and no compilation. Default: 60 s.
    pub fn call_deadline(mut self, deadline: Duration) -> IsolatedOptions {
        self.call_deadline = deadline;
        self
    }

    /// How long a worker may take to compile. Default: 10 min.
    pub fn compile_deadline(mut self, deadline: Duration) -> IsolatedOptions {
        self.compile_deadline = deadline;
        self
    }

    /// How long after a request's own deadline its answer may come. Past that the worker is ended. A dispatch that
    /// has no deadline is waited for as long as the worker gives signs of life. Default: 1 s.
    pub fn grace(mut self, grace: Duration) -> IsolatedOptions {
        self.grace = grace;
        self
    }

    /// How long a worker, or a resident kernel of it, may give no sign of life before it is ended. A long item
    /// or dispatch is no silence; time during which this process itself did not run is not counted. Default: 2 s.
    pub fn silence(mut self, silence: Duration) -> IsolatedOptions {
        self.silence = silence;
        self
    }

    /// How long is waited for a worker to be gone, by recovery and by dropping the backend. Default: 5 s.
    pub fn stop_deadline(mut self, deadline: Duration) -> IsolatedOptions {
        self.stop_deadline = deadline;
        self
    }

    /// How many losses that [have suspects](vyre_driver::LossCause::has_suspects) are recovered from within
    /// `forgiveness`; the next one is final. A kill from outside does not count. Default: 8 within 60 s.
    pub fn crash_budget(mut self, losses: u32, forgiveness: Duration) -> IsolatedOptions {
        (self.crash_budget, self.forgiveness) = (losses, forgiveness);
        self
    }

    /// Whether a second worker is kept ready, with everything compiled and nothing launched. It costs what a
    /// worker costs: a process, and on a GPU a context. Default: no.
    pub fn spare(mut self, spare: bool) -> IsolatedOptions {
        self.spare = spare;
        self
    }

    /// Whether the worker gets a session's h2d region through a descriptor that can be mapped for writing, for
    /// drivers that register memory with a device only so. Without it the worker, and a device that has gone mad,
    /// cannot change what the parent reads back when it decides about replays. Default: no.
    pub fn writable_regions(mut self, writable: bool) -> IsolatedOptions {
        self.writable_regions = writable;
        self
    }

    /// What to use, in this process, once the crash budget is spent; otherwise that is final. The identity is this
    /// one's then; the capabilities stay those of the worker's backend, so it must be able to do as much. Default:
    /// nothing.
    pub fn fallback(mut self, backend: Arc<dyn VyreBackend>) -> IsolatedOptions {
        self.fallback = Some(backend);
        self
    }
}

impl fmt::Debug for IsolatedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IsolatedOptions")
            .field("backend", &self.backend)
            .field("program", &self.program)
            .field("sandbox", &self.sandbox)
            .field("spare", &self.spare)
            .finish_non_exhaustive()
    }
}
