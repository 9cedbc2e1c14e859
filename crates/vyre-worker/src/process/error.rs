//! Why a child could not be started.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A child that did not start. Nothing is left behind: no process, thread or descriptor.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// There is no such file.
    #[error(
        "the worker's executable {} does not exist; build or install it, and give its path: PATH is not searched",
        program.display()
    )]
    ExecutableMissing {
        /// The path as given.
        program: PathBuf,
    },
    /// There is a file, and the kernel does not run it.
    #[error("the worker's executable {} cannot be run; {remedy}", program.display())]
    NotExecutable {
        /// The path as given.
        program: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The launch itself is wrong; nothing was started.
    #[error("worker `{label}` cannot be launched: {argument} is {got}, expected {expected}")]
    InvalidLaunch {
        /// The label of the launch.
        label: String,
        /// What of the launch is meant.
        argument: &'static str,
        /// The value refused.
        got: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// The operating system had no process, thread, pipe or memory to give, or is too old.
    #[error("the operating system refused {what} for worker `{label}`; {remedy}")]
    Refused {
        /// The label of the launch.
        label: String,
        /// What was asked of it.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl ProcessError {
    /// Whether the same launch may succeed later unchanged.
    pub fn is_retryable(&self) -> bool {
        match self {
            ProcessError::Refused { source, .. } => {
                matches!(
                    source.raw_os_error(),
                    Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE)
                )
            }
            _ => false,
        }
    }

    pub(super) fn refused(label: &str, what: &'static str, source: impl Into<io::Error>) -> ProcessError {
        let source = source.into();
        let remedy = match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => {
                "close descriptors, or raise the limit on open files (ulimit -n)"
            }
            Some(libc::EAGAIN) => {
                "end processes or threads, or raise the limit on them (ulimit -u, pids.max)"
            }
            Some(libc::ENOMEM) => "free memory, or raise the limit on it",
            Some(libc::ENOSYS) => {
                "Linux 5.11 or later is needed, and a container that lets its calls through"
            }
            _ => "see the answer below",
        };
        ProcessError::Refused { label: label.to_owned(), what, remedy, source }
    }

    /// What a failed `execve` means.
    pub(super) fn from_exec(program: PathBuf, source: io::Error) -> ProcessError {
        let remedy = match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) if !program.exists() => {
                return ProcessError::ExecutableMissing { program };
            }
            Some(libc::ENOENT) => "install the interpreter or loader that it names",
            Some(libc::EACCES) if program.is_dir() => "it is a directory: name a file in it",
            Some(libc::EACCES) => {
                "allow its execution (chmod +x), and see that its file system is not mounted noexec"
            }
            Some(libc::ENOEXEC) => "give a binary for this machine, or a script that begins with #!",
            Some(libc::ETXTBSY) => "it is being written: wait until that is done",
            Some(libc::E2BIG) => "pass fewer or shorter arguments and variables",
            _ => "see the answer below",
        };
        ProcessError::NotExecutable { program, remedy, source }
    }
}
