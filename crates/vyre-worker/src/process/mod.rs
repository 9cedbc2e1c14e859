//! One child process: started closed, watched until it is gone, reaped.
//!
//! A child gets what it is given and nothing else: the environment of [`Launch`], the descriptors mapped there,
//! standard error into `tracing`, no new privileges, a session of its own. It ends with this process, whatever
//! ends this process.
//!
//! Each child has one *keeper*, a thread that forks it, drains its standard error for ever, sees it die, reaps it
//! and publishes a [`Death`]. It lives exactly as long as the child, because the kernel's parent-death signal is
//! bound to the thread that forked, not to the process. Children share no lock: a busy one delays nobody.
//!
//! What is absent on purpose: the wire, restarting, and every decision about what a death means for pending work.

mod death;
mod error;
mod fork;
mod keeper;
mod launch;
mod output;

pub use death::{Death, Exit};
pub use error::ProcessError;
pub use launch::Launch;
pub(crate) use output::printable;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use keeper::Watched;

/// How long dropping a [`Process`] waits for the kernel to let go of it. A process that is stuck in a driver can
/// take longer; its keeper reaps it then, and the drop does not wait for that.
const DROP_LIMIT: Duration = Duration::from_secs(2);

/// A running child process, or one that has died. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    watched: Arc<Watched>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts the child; returns once its executable runs.
    ///
    /// Fails with a typed error when the executable is missing or cannot be run, when a descriptor or a string of
    /// `launch` cannot be passed, and when the operating system refuses a process, a thread or a pipe.
    pub fn spawn(launch: Launch) -> Result<Process, ProcessError> {
        let (watched, keeper) = keeper::start(launch.prepare()?)?;
        Ok(Process { watched, keeper: Some(keeper) })
    }

    /// The child's process id. After its death another process may have the same one.
    pub fn pid(&self) -> u32 {
        self.watched.pid()
    }

    /// How it ended, if it has. Makes no system call.
    pub fn death(&self) -> Option<Death> {
        self.watched.death().cloned()
    }

    /// Waits until it has ended, for `limit` at most.
    pub fn wait(&self, limit: Duration) -> Option<Death> {
        self.watched.wait(limit);
        self.death()
    }

    /// Ends it with SIGKILL. Harmless when it is dead already, and never reaches another process.
    pub fn kill(&self) {
        self.watched.kill();
    }

    /// The last lines that it wrote to its standard error, so far.
    pub fn stderr_tail(&self) -> String {
        self.watched.stderr_tail()
    }

    /// What it has written to its standard output so far, where [`Launch::capture_stdout`] asked for it: the
    /// first bytes, up to the limit given there.
    pub fn stdout(&self) -> Vec<u8> {
        self.watched.stdout()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if !self.watched.wait_finished(DROP_LIMIT) {
            tracing::warn!(
                pid = self.pid(),
                label = self.watched.label(),
                limit = ?DROP_LIMIT,
                "the kernel has not let go of a killed worker yet; it is reaped when it does"
            );
            return;
        }
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked has published the death like any other.
            let _ = keeper.join();
        }
    }
}
