use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::KernelError;
use crate::host;
use crate::kernel::Start;
use crate::process::Launch;

/// What to start, and what to tell it. Cheap to clone. Two specs are the same kernel if all of them is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KernelSpec(Arc<Inner>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Inner {
    kernel: String,
    /// None: this process's own executable.
    executable: Option<PathBuf>,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    device: u32,
    config: Vec<u8>,
    arena_bytes: u64,
}

/// The running executable, even where the file was replaced since.
const OWN: &str = "/proc/self/exe";

impl KernelSpec {
    /// A kernel of this type, served by an executable that speaks docs/worker-protocol.md.
    pub fn new(kernel: impl Into<String>, executable: impl Into<PathBuf>) -> KernelSpec {
        KernelSpec::with(kernel.into(), Some(executable.into()))
    }

    /// A kernel that this very executable has registered under this name; see `vyre_worker::init`.
    pub fn reexec(kernel: impl Into<String>) -> KernelSpec {
        KernelSpec::with(kernel.into(), None)
    }

    fn with(kernel: String, executable: Option<PathBuf>) -> KernelSpec {
        let (args, env, config) = (Vec::new(), Vec::new(), Vec::new());
        KernelSpec(Arc::new(Inner {
            kernel,
            executable,
            args,
            env,
            device: 0,
            config,
            arena_bytes: 64 << 20,
        }))
    }

    /// An argument, before the one that says what to do.
    pub fn arg(mut self, arg: impl Into<OsString>) -> KernelSpec {
        self.edit().args.push(arg.into());
        self
    }

    /// A variable beside the few that a worker inherits.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> KernelSpec {
        self.edit().env.push((key.into(), value.into()));
        self
    }

    /// Which device, counted among those that the worker sees; 0 if nothing is said.
    pub fn device(mut self, device: u32) -> KernelSpec {
        self.edit().device = device;
        self
    }

    /// Bytes that the kernel gets at its start.
    pub fn config(mut self, config: impl Into<Vec<u8>>) -> KernelSpec {
        self.edit().config = config.into();
        self
    }

    /// Bytes of shared memory for one request and its response; 64 MiB if nothing is said. Only what is touched
    /// is used.
    pub fn arena_bytes(mut self, bytes: u64) -> KernelSpec {
        self.edit().arena_bytes = bytes;
        self
    }

    fn edit(&mut self) -> &mut Inner {
        Arc::make_mut(&mut self.0)
    }

    /// The kernel's type.
    pub fn kernel(&self) -> &str {
        &self.0.kernel
    }

    pub(super) fn arena(&self) -> u64 {
        self.0.arena_bytes
    }

    pub(super) fn is_reexec(&self) -> bool {
        self.0.executable.is_none()
    }

    pub(super) fn start(&self) -> Start {
        let Inner { kernel, device, config, .. } = &*self.0;
        Start { kernel: kernel.clone(), device: *device, config: config.clone() }
    }

    fn executable(&self) -> &Path {
        self.0.executable.as_deref().unwrap_or(Path::new(OWN))
    }

    /// The process to start, but for descriptors and mode.
    pub(super) fn launch(&self) -> Launch {
        let launch = match &self.0.executable {
            Some(path) => Launch::new(path),
            None => Launch::reexec(),
        };
        let launch = self.0.args.iter().fold(launch, |launch, arg| launch.arg(arg));
        let launch = launch.label(format!("kernel {}", self.0.kernel));
        self.0.env.iter().fold(launch, |launch, (key, value)| launch.env(key, value))
    }

    /// The pool's key now. A rebuilt executable is another one.
    pub(super) fn key(&self) -> Result<Key, KernelError> {
        // A worker that starts a worker that starts a worker: an executable that forgot to call `init`.
        if self.is_reexec() && host::is_worker() {
            return Err(KernelError::InsideWorker { kernel: self.0.kernel.clone() });
        }
        if self.is_reexec() && !host::is_initialised() {
            return Err(KernelError::NotInitialised { kernel: self.0.kernel.clone() });
        }
        let path = self.executable();
        let file =
            fs::metadata(path).map_err(|source| KernelError::Executable { path: path.to_owned(), source })?;
        let identity = Identity {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
        };
        Ok(Key { spec: self.clone(), identity })
    }
}

/// What a pooled worker was made from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) spec: KernelSpec,
    pub(super) identity: Identity,
}

/// Which file an executable was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}
