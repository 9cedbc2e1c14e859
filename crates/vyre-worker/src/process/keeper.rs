//! The thread that a child belongs to: forks it, drains it, sees it die, reaps it.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::death::{Death, Exit};
use super::error::ProcessError;
use super::fork::{self, Image, Running};
use super::output::{Head, Lines, Tail};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// Bytes that are still read after the death. A pipe holds no more, and who keeps writing then is somebody else.
const LAST_WORDS: usize = 1 << 20;

/// How long lines are still logged after the death; a slow subscriber must not keep the keeper for ever.
const LAST_LOGGING: Duration = Duration::from_secs(1);

/// What the keeper and the owner of a child share.
#[derive(Debug)]
pub(super) struct Watched {
    label: Arc<str>,
    pid: u32,
    pidfd: OwnedFd,
    killed: AtomicBool,
    death: OnceLock<Death>,
    stage: Mutex<Stage>,
    changed: Condvar,
    stderr: Mutex<Tail>,
    stdout: Mutex<Head>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Alive,
    Dead,
    /// Dead, and the keeper has nothing left to do.
    Finished,
}

impl Watched {
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn death(&self) -> Option<&Death> {
        self.death.get()
    }

    pub(super) fn wait(&self, limit: Duration) {
        if self.death().is_none() {
            self.wait_for(Stage::Dead, limit);
        }
    }

    pub(super) fn wait_finished(&self, limit: Duration) -> bool {
        self.wait_for(Stage::Finished, limit) == Stage::Finished
    }

    fn wait_for(&self, wanted: Stage, limit: Duration) -> Stage {
        let guard = lock(&self.stage);
        let waited = self.changed.wait_timeout_while(guard, limit, |stage| *stage < wanted);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn enter(&self, stage: Stage) {
        *lock(&self.stage) = stage;
        self.changed.notify_all();
    }

    pub(super) fn kill(&self) {
        if self.death().is_some() {
            return;
        }
        // Relaxed: read after the death that the signal causes, which the kernel orders after it.
        self.killed.store(true, Ordering::Relaxed);
        // The one way to fail is that it is dead already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    pub(super) fn stderr_tail(&self) -> String {
        lock(&self.stderr).text()
    }

    pub(super) fn stdout(&self) -> Vec<u8> {
        lock(&self.stdout).bytes()
    }
}

/// Each of these locks guards plain bytes or a word: one that a panic has poisoned is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a keeper, which starts the child.
pub(super) fn start(image: Image) -> Result<(Arc<Watched>, JoinHandle<()>), ProcessError> {
    let label = Arc::clone(&image.label);
    let refused = |source| ProcessError::refused(&label, "a thread", source);
    let (report, started) = sync_channel(1);
    let keeper =
        std::thread::Builder::new().name("vyre-keeper".to_owned()).spawn(move || keep(image, &report));
    let keeper = keeper.map_err(refused)?;
    match started.recv() {
        Ok(Ok(watched)) => Ok((watched, keeper)),
        Ok(Err(error)) => {
            let _ = keeper.join();
            Err(error)
        }
        Err(_) => Err(refused(std::io::Error::other("it ended before it had started the child"))),
    }
}

fn keep(image: Image, report: &SyncSender<Result<Arc<Watched>, ProcessError>>) {
    block_signals();
    let Running { pid, pidfd, stderr, stdout } = match fork::start(&image) {
        Ok(running) => running,
        Err(error) => {
            drop(image);
            let _ = report.send(Err(error));
            return;
        }
    };
    let watched = Arc::new(Watched {
        label: Arc::clone(&image.label),
        pid,
        pidfd,
        killed: AtomicBool::new(false),
        death: OnceLock::new(),
        stage: Mutex::new(Stage::Alive),
        changed: Condvar::new(),
        stderr: Mutex::new(Tail::default()),
        stdout: Mutex::new(Head::new(image.stdout_limit.unwrap_or(0))),
    });
    // This process's copies of the mapped descriptors: an open one would hide the child's end of a socket.
    drop(image);
    let _ = report.send(Ok(Arc::clone(&watched)));
    let lines = Lines::default();
    Keeper { watched: Arc::clone(&watched), stderr: Some(stderr), stdout, lines, buffer: vec![0; CHUNK] }
        .run();
    watched.enter(Stage::Finished);
}

/// Signals are for the threads of the user: the keeper runs none of their handlers, and the child that it forks
/// runs none before it has reset them.
fn block_signals() {
    // SAFETY: all zero is a valid set, which `sigfillset` then overwrites.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is a set to write to.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: changes this thread's mask alone, to an initialised set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()) };
}

struct Keeper {
    watched: Arc<Watched>,
    /// Until the child has closed it, and every process that it gave it to.
    stderr: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    lines: Lines,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

impl Keeper {
    fn run(&mut self) {
        // A subscriber may be slow: the child is looked at before each line, and nothing more is read until all
        // lines are logged.
        let mut line: Option<String> = None;
        while !self.poll(line.is_some()) {
            self.read(Stream::Out);
            match line.take() {
                Some(text) => log_line(&self.watched, &text),
                None => {
                    let read = self.read(Stream::Err);
                    self.lines.push(self.buffer.get(..read).unwrap_or_default());
                }
            }
            line = self.lines.take(false);
        }
        self.finish(line);
    }

    /// Waits for something to do, unless there `is_work`. True when the child is dead.
    fn poll(&self, is_work: bool) -> bool {
        let mut fds = vec![PollFd::new(&self.watched.pidfd, PollFlags::IN)];
        let streams = [&self.stderr, &self.stdout].into_iter().flatten();
        fds.extend(streams.map(|stream| PollFd::new(stream, PollFlags::IN)));
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, is_work.then_some(&at_once)) {
            Ok(_) => fds.first().is_some_and(|pidfd| !pidfd.revents().is_empty()),
            // Interrupted, or the kernel is short of memory: look again.
            Err(_) => false,
        }
    }

    /// Reads once, and answers how many bytes there were; 0 when there is nothing now.
    fn read(&mut self, stream: Stream) -> usize {
        let fd = match stream {
            Stream::Out => &mut self.stdout,
            Stream::Err => &mut self.stderr,
        };
        let read = match fd {
            Some(open) => rustix::io::read(open, self.buffer.as_mut_slice()),
            None => return 0,
        };
        match read {
            Ok(count) if count > 0 => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                match stream {
                    Stream::Out => lock(&self.watched.stdout).push(bytes),
                    Stream::Err => lock(&self.watched.stderr).push(bytes),
                }
                count
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            _ => {
                *fd = None;
                0
            }
        }
    }

    /// Reaps the child and publishes its death; then, and not before, logs `line` and what it had left to say.
    fn finish(&mut self, mut line: Option<String>) {
        let seen = Instant::now();
        let watched = Arc::clone(&self.watched);
        // Its process group, where it has left processes in it. The number is still its own: it is a zombie, or
        // this call fails.
        let zombie = rustix::process::waitid(
            WaitId::PidFd(watched.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        if zombie.is_ok_and(|status| status.is_some())
            && let Some(group) = i32::try_from(watched.pid).ok().and_then(Pid::from_raw)
        {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let last_words = self.drain(Stream::Err);
        self.drain(Stream::Out);
        let how = reap(&watched.pidfd);
        // Relaxed: see `Watched::kill`.
        let by_us = watched.killed.load(Ordering::Relaxed) && how == Exit::Signal(libc::SIGKILL);
        let death = Death {
            how,
            stderr: watched.stderr_tail(),
            seen,
            by_us,
            pid: watched.pid,
            label: Arc::clone(&watched.label),
        };
        let _ = watched.death.set(death);
        watched.enter(Stage::Dead);

        self.lines.push(&last_words);
        let published = Instant::now();
        while let Some(text) = line.take().or_else(|| self.lines.take(true)) {
            log_line(&watched, &text);
            if published.elapsed() > LAST_LOGGING && self.lines.len() > 0 {
                log_line(
                    &watched,
                    &format!("({} bytes more are not logged: that is too slow)", self.lines.len()),
                );
                break;
            }
        }
    }

    /// Reads what there is, without waiting for more.
    fn drain(&mut self, stream: Stream) -> Vec<u8> {
        let mut drained = Vec::new();
        while drained.len() < LAST_WORDS {
            match self.read(stream) {
                0 => break,
                read => drained.extend_from_slice(self.buffer.get(..read).unwrap_or_default()),
            }
        }
        drained
    }
}

/// A line of the child's, for the log. A subscriber that panics must not take the keeper along: the kernel would
/// kill the child, and nobody would be told.
fn log_line(watched: &Watched, line: &str) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        tracing::info!(pid = watched.pid, label = watched.label(), "{line}");
    }));
}

/// Takes the status of a child; waits for its death if need be.
fn reap(pidfd: &OwnedFd) -> Exit {
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
    });
    match status {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        },
        _ => Exit::Unknown,
    }
}
