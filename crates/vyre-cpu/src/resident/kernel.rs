//! A running kernel: its handle, the phases of its life, its pulse.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vyre_driver::io_queue::DeviceIo;
use vyre_driver::region::SessionRegions;
use vyre_driver::view::DeviceView;
use vyre_driver::wait::{Notifier, Waiter};
use vyre_driver::{BackendError, Generation, KernelState, Mirror, ResidentKernel};

use super::parking::{Held, Parking};
use super::ring::Ring;
use super::runner::Programs;
use super::worker::{Worker, complete};
use crate::buffers::{Buffers, GENERATION};
use crate::memory::Memory;

/// Time between two beats. A beat does not depend on items: a long one is not a dead device.
const BEAT: Duration = Duration::from_millis(1);

/// How long a dropped kernel is given to leave before its threads are left to themselves. They hold all that
/// they touch, so this is about the promise to be gone, not about memory.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

/// How far a kernel is on its way out. It only ever goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Phase {
    /// Claiming.
    Running = 0,
    /// Finishing what is claimed.
    Quiescing = 1,
    /// A shutdown has run; nothing is left but to leave.
    ShutDown = 2,
    /// Leaving at once.
    Aborting = 3,
}

/// What tells the threads of a kernel to leave, and who has.
pub(super) struct Control {
    phase: AtomicU8,
    shut_down: AtomicBool,
    /// Held while a shutdown is claimed and run.
    pub(super) shutting_down: Mutex<()>,
    /// Threads that have not left.
    threads: Mutex<u32>,
    /// A thread has left, the phase has changed, or workers that nap are wanted.
    changed: Condvar,
    /// Workers that nap. Only a hint.
    napping: AtomicU32,
    /// Holds what is bound until the last thread has left.
    holder: Mutex<Option<Arc<str>>>,
}

impl Control {
    pub(super) fn new(holder: Arc<str>) -> Control {
        Control {
            phase: AtomicU8::new(0),
            shut_down: AtomicBool::new(false),
            shutting_down: Mutex::new(()),
            threads: Mutex::new(0),
            changed: Condvar::new(),
            napping: AtomicU32::new(0),
            holder: Mutex::new(Some(holder)),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Quiescing,
            2 => Phase::ShutDown,
            _ => Phase::Aborting,
        }
    }

    /// Goes forward to a phase, or stays if it is past it.
    pub(super) fn advance(&self, to: Phase) {
        if to == Phase::ShutDown {
            self.shut_down.store(true, Ordering::Relaxed);
        }
        self.phase.fetch_max(to as u8, Ordering::AcqRel);
        // Under the lock, so that nobody misses it between a look and a wait.
        let _threads = self.threads();
        self.changed.notify_all();
    }

    fn threads(&self) -> MutexGuard<'_, u32> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until roused, or for a while. A call that comes just before is missed; the while is short.
    pub(super) fn nap(&self, limit: Duration) {
        let threads = self.threads();
        self.napping.fetch_add(1, Ordering::Relaxed);
        drop(self.changed.wait_timeout(threads, limit));
        self.napping.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes workers that nap.
    pub(super) fn rouse(&self) {
        if self.napping.load(Ordering::Relaxed) > 0 {
            let _threads = self.threads();
            self.changed.notify_all();
        }
    }

    fn leave(&self) {
        let mut threads = self.threads();
        *threads = threads.saturating_sub(1);
        if *threads == 0 {
            *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.changed.notify_all();
    }

    /// Waits until all threads have left, or until a time.
    fn wait_until_gone(&self, until: Option<Instant>) -> bool {
        let mut threads = self.threads();
        while *threads > 0 {
            let left = until.map_or(BEAT, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            threads = self.changed.wait_timeout(threads, left).map_or_else(|e| e.into_inner().0, |(t, _)| t);
        }
        true
    }
}

/// Device buffers that are copied into the d2h region.
pub(super) struct Mirrors {
    sources: Vec<Source>,
    /// Workers that run items.
    busy: AtomicU32,
    /// How often a worker has run items.
    changes: AtomicU64,
    /// What `changes` was when the sources were last copied.
    copied: Mutex<u64>,
}

struct Source {
    memory: Arc<Memory>,
    offset: usize,
    bytes: usize,
    /// First byte in the mirror area.
    to: u64,
}

impl Mirrors {
    pub(super) fn new(
        buffers: &Buffers,
        regions: &SessionRegions,
        mirrors: &[Mirror],
    ) -> Result<Mirrors, BackendError> {
        let area = regions.layout.mirror();
        let mut sources = Vec::new();
        for mirror in mirrors {
            let (offset, bytes) = (mirror.source.byte_offset, mirror.source.byte_len);
            let memory = buffers.memory(mirror.source.buffer, offset, bytes)?;
            let to = mirror.d2h_offset.checked_sub(area.offset);
            let fits = to.filter(|to| to.checked_add(bytes).is_some_and(|end| end <= area.bytes));
            let Some(to) = fits.filter(|_| (offset | bytes | mirror.d2h_offset).is_multiple_of(4)) else {
                return Err(BackendError::invalid(
                    "mirrors",
                    format!("bytes {offset}..{offset}+{bytes} to {}", mirror.d2h_offset),
                    format!("words, to the mirror area of {} bytes at {}", area.bytes, area.offset),
                ));
            };
            sources.push(Source { memory, offset: offset as usize, bytes: bytes as usize, to });
        }
        let (busy, changes) = (AtomicU32::new(0), AtomicU64::new(0));
        Ok(Mirrors { sources, busy, changes, copied: Mutex::new(u64::MAX) })
    }

    /// Says that a worker begins to run items.
    pub(super) fn begin_change(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// Says that it has run them.
    pub(super) fn end_change(&self) {
        // Release: whoever sees the count copies what the items wrote.
        self.changes.fetch_add(1, Ordering::Release);
        self.busy.fetch_sub(1, Ordering::Release);
    }

    /// Copies unless no item has run since the last time.
    pub(super) fn copy_if_stale(&self, view: &DeviceView) {
        if self.sources.is_empty() {
            return;
        }
        let busy = self.busy.load(Ordering::Acquire) > 0;
        if let Ok(mut copied) = self.copied.try_lock()
            && (busy || *copied != self.changes.load(Ordering::Acquire))
        {
            self.copy_all(view, &mut copied);
        }
    }

    /// Copies, come what may.
    fn copy(&self, view: &DeviceView) {
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        self.copy_all(view, &mut copied);
    }

    fn copy_all(&self, view: &DeviceView, copied: &mut u64) {
        *copied = self.changes.load(Ordering::Acquire);
        let mut bytes = Vec::new();
        for source in &self.sources {
            bytes.resize(source.bytes, 0);
            source.memory.copy_out(source.offset, &mut bytes);
            if let Err(error) = view.write_mirror(source.to, &bytes) {
                tracing::error!(%error, "a mirror could not be written");
            }
        }
    }
}

/// What the threads of a kernel share.
pub(super) struct Shared {
    pub(super) programs: Programs,
    pub(super) rings: Vec<Ring>,
    pub(super) completed: Notifier,
    pub(super) idle: Waiter,
    pub(super) io: DeviceIo,
    pub(super) view: DeviceView,
    pub(super) control: Control,
    pub(super) parking: Parking,
    pub(super) mirrors: Mirrors,
    pub(super) lease: Duration,
}

/// The handle of a running kernel.
pub(super) struct Kernel {
    shared: Arc<Shared>,
    doorbell: Option<Notifier>,
}

impl Kernel {
    /// Starts the threads; all of them, or none.
    pub(super) fn launch(
        shared: Arc<Shared>,
        doorbell: Option<Notifier>,
        workers: u32,
    ) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        let kernel = Kernel { shared: Arc::clone(&shared), doorbell };
        // The first look at the mirrors must find something.
        shared.mirrors.copy(&shared.view);
        beat(&shared);
        for number in 0..workers {
            let worker = Worker::new(number, Arc::clone(&shared));
            kernel.spawn(format!("vyre-worker-{number}"), move || worker.run())?;
        }
        kernel.spawn("vyre-pulse".to_owned(), move || pulse(&shared, workers))?;
        Ok(Arc::new(kernel))
    }

    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> Result<(), BackendError> {
        let shared = Arc::clone(&self.shared);
        *shared.control.threads() += 1;
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            body();
            shared.control.leave();
        });
        match spawned {
            // Not joined: leaving is counted, and nothing is touched after that.
            Ok(_detached) => Ok(()),
            Err(error) => {
                // The caller gets no kernel, so those already started leave when it is dropped.
                self.shared.control.leave();
                Err(BackendError::Driver {
                    call: "thread::spawn",
                    code: error.raw_os_error().unwrap_or(0).into(),
                    text: error.to_string(),
                })
            }
        }
    }

    fn leave(&self, how: Phase, deadline: Duration, waited_for: &str) -> Result<(), BackendError> {
        self.shared.control.advance(how);
        self.wake();
        if self.shared.control.wait_until_gone(Instant::now().checked_add(deadline)) {
            return Ok(());
        }
        Err(BackendError::Deadline { waited_for: waited_for.to_owned(), after: deadline })
    }

    fn wake(&self) {
        if let Some(doorbell) = &self.doorbell {
            doorbell.wake();
        }
    }
}

impl ResidentKernel for Kernel {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn state(&self) -> KernelState {
        let control = &self.shared.control;
        if *control.threads() > 0 {
            KernelState::Running
        } else if control.shut_down.load(Ordering::Relaxed) {
            KernelState::ShutDown
        } else if control.phase() == Phase::Aborting {
            KernelState::CutShort
        } else {
            KernelState::Stopped
        }
    }

    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError> {
        self.leave(Phase::Quiescing, deadline, "the resident kernel to finish what it has claimed")
    }

    fn reap(&self, deadline: Duration) -> Result<(), BackendError> {
        self.leave(Phase::Aborting, deadline, "the resident kernel to leave")
    }

    fn ring_doorbell(&self) {
        if let Some(doorbell) = &self.doorbell {
            doorbell.notify();
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Err(error) = self.reap(DROP_DEADLINE) {
            tracing::error!(%error, "a dropped kernel has not left");
        }
    }
}

fn beat(shared: &Shared) {
    if let Err(error) = shared.view.beat() {
        tracing::error!(%error, "no heartbeat word");
    }
}

/// Beats, mirrors, and watches the host's lease, until the kernel leaves.
fn pulse(shared: &Shared, workers: u32) {
    let control = &shared.control;
    let lease = || shared.view.lease().unwrap_or(0);
    let mut seen = (lease(), Instant::now());
    loop {
        let threads = control.threads();
        // The workers first, then this thread: what they did last is mirrored.
        if *threads <= 1 {
            break;
        }
        drop(control.changed.wait_timeout(threads, BEAT));
        beat(shared);
        shared.mirrors.copy_if_stale(&shared.view);
        let now = lease();
        if now != seen.0 {
            seen = (now, Instant::now());
        } else if seen.1.elapsed() >= shared.lease {
            // Once to finish what is claimed; if that takes as long again, without answers of the host; then at once.
            let complete = |held: Held, completion| complete(shared, held.ring, held.ticket, completion);
            let next = if control.phase() == Phase::Running { Phase::Quiescing } else { Phase::Aborting };
            let given_up = next == Phase::Aborting && shared.parking.give_up_on_host(complete);
            tracing::warn!(?next, given_up, workers, "the host's lease has run out");
            if !given_up {
                control.advance(next);
            }
            seen.1 = Instant::now();
        }
    }
    shared.mirrors.copy(&shared.view);
    beat(shared);
    shared.completed.wake();
}
