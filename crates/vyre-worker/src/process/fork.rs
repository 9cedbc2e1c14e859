//! From a prepared launch to a running executable.
//!
//! The child of a fork in a process with threads may only call what is async-signal-safe: no allocation, no lock,
//! nothing of the standard library that could take one. So everything is laid out before the fork, and the child
//! makes system calls on plain numbers until `execve`. It reports the first that fails through a pipe, which
//! closes by itself when the executable starts.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};

use super::error::ProcessError;

/// A launch as the kernel wants it.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) label: Arc<str>,
    pub(super) path: PathBuf,
    pub(super) program: CString,
    pub(super) args: Vec<CString>,
    pub(super) env: Vec<CString>,
    pub(super) fds: Vec<(RawFd, OwnedFd)>,
    pub(super) stdout_limit: Option<usize>,
}

/// A child whose executable runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) pid: u32,
    /// Stands for this child alone, whatever happens to its number.
    pub(super) pidfd: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) stdout: Option<OwnedFd>,
}

/// Forks and runs `image`. The kernel kills the child when the *calling thread* ends, so that thread must outlive
/// it. All signals should be blocked in it: until it has reset them, the child has this process's handlers.
pub(super) fn start(image: &Image) -> Result<Running, ProcessError> {
    let refused = |what: &'static str| move |errno: Errno| ProcessError::refused(&image.label, what, errno);
    let null = std::fs::File::open("/dev/null")
        .map_err(|source| ProcessError::refused(&image.label, "/dev/null", source))?;
    let (stderr, stderr_end) = output_pipe().map_err(refused("a pipe for standard error"))?;
    let captured = match image.stdout_limit {
        Some(_) => Some(output_pipe().map_err(refused("a pipe for standard output"))?),
        None => None,
    };
    let (stdout, stdout_end) = captured.unzip();
    let (report, report_end) = pipe_with(PipeFlags::CLOEXEC).map_err(refused("a pipe"))?;

    let out = stdout_end.as_ref().unwrap_or(&stderr_end);
    let mut moves = vec![(null.as_raw_fd(), 0), (out.as_raw_fd(), 1), (stderr_end.as_raw_fd(), 2)];
    moves.extend(image.fds.iter().map(|(target, fd)| (fd.as_raw_fd(), *target)));
    let mut plan = Plan {
        program: image.program.as_ptr(),
        args: pointers(&image.args),
        env: pointers(&image.env),
        first_spare: moves.iter().map(|(_, target)| target + 1).max().unwrap_or(0),
        moves,
        report: report_end.as_raw_fd(),
        parent: rustix::process::getpid(),
    };
    let Some((pid, pidfd)) = fork().map_err(refused("a process"))? else { plan.run() };
    drop(report_end);

    match first_failure(&report, &pidfd) {
        None => Ok(Running { pid: pid.as_raw_nonzero().get().unsigned_abs(), pidfd, stderr, stdout }),
        Some((step, source)) => {
            // It is exiting. An error means that something else in this process has reaped it.
            let _ = rustix::io::retry_on_intr(|| {
                rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
            });
            Err(match step {
                Step::Execute => ProcessError::from_exec(image.path.clone(), source),
                _ => ProcessError::refused(&image.label, step.what(), source),
            })
        }
    }
}

/// A pipe whose reading end never blocks. The writing end does: a full pipe must slow the child down, not lose
/// its words.
fn output_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
    Ok((read, write))
}

/// The array that ends with a null pointer, as `execve` wants it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Forks, and answers in the parent with the child's number and the descriptor that stands for it.
///
/// The system call itself: libc's `fork` would run the handlers that libraries of this process registered with
/// `pthread_atfork`, for a child that never returns to them.
fn fork() -> rustix::io::Result<Option<(Pid, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: without CLONE_VM the child gets a copy of the memory and, with a null stack, goes on with the copy of
    // this stack. `pidfd` is where CLONE_PIDFD writes; of the other two arguments, whose order differs between
    // architectures, neither is used by these flags.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut pidfd, none, none) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid) if let Some(pid) = Pid::from_raw(pid.max(0)) => {
            // SAFETY: the kernel has made this descriptor for us just now; nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some((pid, pidfd)))
        }
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
    }
}

/// The step that failed in the child, if one did. Returns once the executable runs, or the child has died.
fn first_failure(report: &OwnedFd, pidfd: &OwnedFd) -> Option<(Step, io::Error)> {
    // A process that something else forked meanwhile may hold the pipe open, so its end alone is not awaited.
    let mut fds = [PollFd::new(report, PollFlags::IN), PollFd::new(pidfd, PollFlags::IN)];
    while let Err(Errno::INTR) = poll(&mut fds, None) {}
    let [reported, _] = &fds;
    if reported.revents().is_empty() {
        return None; // Ended from outside before it could say anything: a death like any other.
    }
    let mut words = [0; REPORT];
    match rustix::io::retry_on_intr(|| rustix::io::read(report, &mut words)) {
        Ok(REPORT) => {
            let [step, a, b, c, d] = words;
            Some((Step::from_byte(step), io::Error::from_raw_os_error(i32::from_ne_bytes([a, b, c, d]))))
        }
        _ => None,
    }
}

/// A report: the step, and the error number.
const REPORT: usize = 5;

/// What the child does before `execve`.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Step {
    Parent,
    Descriptors,
    Session,
    Privileges,
    Execute,
}

impl Step {
    const ALL: [Step; 5] = [Step::Parent, Step::Descriptors, Step::Session, Step::Privileges, Step::Execute];

    fn from_byte(byte: u8) -> Step {
        Step::ALL.into_iter().find(|step| *step as u8 == byte).unwrap_or(Step::Execute)
    }

    fn what(self) -> &'static str {
        match self {
            Step::Parent => "a signal at the parent's death",
            Step::Descriptors => "a closed set of descriptors",
            Step::Session => "a session of its own",
            Step::Privileges => "giving up new privileges",
            Step::Execute => "execution",
        }
    }
}

/// What the child needs between fork and `execve`, in memory that it has already.
struct Plan {
    program: *const c_char,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Descriptors and where they go.
    moves: Vec<(RawFd, RawFd)>,
    /// Above every target.
    first_spare: RawFd,
    report: RawFd,
    parent: Pid,
}

impl Plan {
    /// Becomes the executable, or reports why not and exits. Runs in the child.
    fn run(&mut self) -> ! {
        let (step, errno) = match self.steps() {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        let [a, b, c, d] = errno.raw_os_error().to_ne_bytes();
        // SAFETY: `report` is open: it is the pipe's end, or its duplicate.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        let _ = rustix::io::write(report, &[step as u8, a, b, c, d]);
        // SAFETY: ends the child at once, without the exit handlers that it shares with its parent.
        unsafe { libc::_exit(127) }
    }

    fn steps(&mut self) -> Result<std::convert::Infallible, (Step, Errno)> {
        let failed = |step: Step| move |errno: Errno| (step, errno);
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed(Step::Parent))?;
        // A parent that died before that line sends no signal any more.
        if rustix::process::getppid() != Some(self.parent) {
            return Err((Step::Parent, Errno::SRCH));
        }
        self.place_descriptors().map_err(failed(Step::Descriptors))?;
        // Its own session: keys pressed in a terminal are for this process alone, and whatever the child starts
        // can be ended with it.
        rustix::process::setsid().map_err(failed(Step::Session))?;
        // No core dump, or the death of a large process would be known only after all of its memory was written.
        // One byte, as a limit of zero does not keep the kernel from piping a dump into a program.
        let maximum = rustix::process::getrlimit(Resource::Core).maximum;
        let none = Rlimit { current: Some(maximum.map_or(1, |maximum| maximum.min(1))), maximum };
        rustix::process::setrlimit(Resource::Core, none).map_err(failed(Step::Session))?;
        rustix::thread::set_no_new_privs(true).map_err(failed(Step::Privileges))?;
        reset_signals();
        // SAFETY: path, arguments and environment are strings that end with zero, in arrays that end with null, all
        // alive in the child's copy of the memory.
        unsafe { libc::execve(self.program, self.args.as_ptr(), self.env.as_ptr()) };
        Err((Step::Execute, last_errno()))
    }

    /// Lets only the planned descriptors live past `execve`.
    fn place_descriptors(&mut self) -> rustix::io::Result<()> {
        let first: libc::c_long = 3;
        let last = libc::c_long::from(u32::MAX);
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        // SAFETY: changes flags of this process's descriptors, a copy of its parent's; none is closed.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
        if closed != 0 {
            return Err(last_errno());
        }
        // Out of the way first: the source of one may be the target of another.
        for (source, _) in &mut self.moves {
            *source = duplicate_above(*source, self.first_spare)?;
        }
        self.report = duplicate_above(self.report, self.first_spare)?;
        for &(source, target) in &self.moves {
            // SAFETY: `target` is a number that nothing in the child uses: all that is needed was moved above it.
            if unsafe { libc::dup2(source, target) } < 0 {
                return Err(last_errno());
            }
        }
        Ok(())
    }
}

fn duplicate_above(fd: RawFd, lowest: RawFd) -> rustix::io::Result<RawFd> {
    // SAFETY: `fd` is open: the parent owned it at the fork, and the child has closed nothing since.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_dupfd_cloexec(fd, lowest).map(IntoRawFd::into_raw_fd)
}

/// Default actions for all signals, and none blocked: an ignored or blocked one would stay so past `execve`.
fn reset_signals() {
    // The system calls themselves, as libc keeps two signals to itself. To the kernel, zeros are the default action
    // with no flags, and the empty mask; its `sigaction` is at most this long.
    let zeros = [0_u64; 4];
    let size: libc::size_t = 8;
    let old = ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: `zeros` is a valid action. The two that cannot be changed are refused, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, zeros.as_ptr(), old, size) };
    }
    // SAFETY: `zeros` is a valid mask.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, zeros.as_ptr(), old, size) };
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}
