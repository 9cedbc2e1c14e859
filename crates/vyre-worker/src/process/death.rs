//! How a child ended, and what that says about the device it had.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use vyre_driver::{Loss, LossCause};

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exit {
    /// It exited by itself with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It is gone, but something else in this process took its status: a `waitpid` for any child, or an ignored
    /// SIGCHLD.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => write!(f, "was ended by signal {signal}{}", meaning(signal)),
            Exit::Unknown => write!(f, "ended, and something else in this process took its status"),
        }
    }
}

fn meaning(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGQUIT => " (SIGQUIT)",
        libc::SIGILL => " (SIGILL: illegal instruction)",
        libc::SIGTRAP => " (SIGTRAP)",
        libc::SIGABRT => " (SIGABRT: abort)",
        libc::SIGBUS => " (SIGBUS: access beyond a mapped object)",
        libc::SIGFPE => " (SIGFPE: arithmetic fault)",
        libc::SIGKILL => " (SIGKILL)",
        libc::SIGSEGV => " (SIGSEGV: illegal address)",
        libc::SIGPIPE => " (SIGPIPE)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGSYS => " (SIGSYS: a system call that its sandbox does not allow)",
        _ => "",
    }
}

/// The end of a child, as its keeper saw it.
#[derive(Clone, Debug)]
pub struct Death {
    /// What ended it.
    pub how: Exit,
    /// The last lines of its standard error. Written by the child: text to show, never to act upon.
    pub stderr: String,
    /// When the kernel reported it.
    pub seen: Instant,
    /// Whether it was killed through [`Process::kill`](super::Process::kill), or by dropping it.
    pub by_us: bool,
    /// The process id it had.
    pub pid: u32,
    /// The label it was launched with.
    pub label: Arc<str>,
}

impl Death {
    /// The loss that this death is to whoever had a device in that process.
    ///
    /// A process that was ended from outside (SIGKILL, SIGTERM, SIGINT, SIGHUP), or by us, convicts nobody. Nor does
    /// one whose status somebody else took: how it ended is not known. Everything else is its own doing, an exit with code 0 included: nobody had asked it to leave. Whoever killed it because
    /// it was silent knows better, and says [`LossCause::Unresponsive`] instead.
    pub fn loss(&self) -> Loss {
        let cause = match self.how {
            Exit::Signal(libc::SIGKILL | libc::SIGTERM | libc::SIGINT | libc::SIGHUP) => LossCause::Killed,
            Exit::Unknown => LossCause::Killed,
            Exit::Code(_) | Exit::Signal(_) => LossCause::Fault,
        };
        Loss { cause, reason: self.to_string() }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker `{}` (process {}) {}", self.label, self.pid, self.how)?;
        match self.stderr.is_empty() {
            true => Ok(()),
            false => write!(f, "; it wrote last: {}", self.stderr),
        }
    }
}
