//! The session's own threads: one that keeps it alive, one that runs the user's handler of detached faults if
//! there is one, one for IO once there is something to serve, and one for futures once there is one to wake.
//!
//! The first renews the lease, looks after the kernel, takes the mirrors over, frees what nobody holds a ticket
//! of, and publishes what the session measures, if it is observed. It is on nobody's path to an answer: waiters
//! look at the completions themselves. The others exist because a handler, a read and a waker may take long, and
//! a lease may not wait for them.

use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use vyre_driver::io_queue::{HostIo, IoReply};
use vyre_driver::region::SessionRegions;
use vyre_driver::view::HostView;
use vyre_driver::wait::RECHECK;
use vyre_driver::{KernelState, Loss};

use super::buffers::DeviceBuffers;
use super::lifecycle::Control;
use super::observe::Publisher;
use super::options::DetachedFaultHandler;
use super::plan::to_words;
use super::report::RecoveryReport;
use super::shared::{Gate, Shared, lock, lock_within, ring_error};
use super::trace::Sampling;
use crate::error::MegakernelError;
use crate::io_service::{BoundBytes, Refusal};
use crate::item::SYSTEM_BUFFERS;
use crate::state::header;

/// How often the session looks after itself.
const TICK: Duration = Duration::from_millis(1);
/// Ticks between two looks for detached items that are finished, while producers are at work: those look for
/// themselves, and words that two threads look at are far from both.
const SWEEP_TICKS: u64 = 16;
/// How long the IO thread keeps looking without sleeping after it has served something.
const BUSY: Duration = Duration::from_micros(200);

/// The threads of a session.
#[derive(Default)]
pub(super) struct Service {
    stop: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether the IO thread serves requests; until it does, the other one does.
    io_thread: AtomicBool,
    /// Held while requests are carried out.
    serving_io: Mutex<()>,
    /// Ticks so far, and the tickets issued at the last one.
    ticks: AtomicU64,
    seen_head: AtomicU64,
}

impl Service {
    /// Starts the thread that looks after a session, and the one that runs the user's handler.
    pub(super) fn start(
        shared: &Arc<Shared>,
        on_detached_fault: Option<DetachedFaultHandler>,
        mut publisher: Option<Publisher>,
    ) -> Result<(), MegakernelError> {
        let reporter = match on_detached_fault {
            None => None,
            Some(handler) => {
                let reported = Arc::clone(shared);
                Some(shared.service.spawn("vyre-session-faults", move || {
                    let handler = Some(&handler);
                    while !reported.service.stop.load(Ordering::Acquire) {
                        reported.report_detached(handler);
                        thread::park_timeout(RECHECK);
                    }
                    reported.report_detached(handler);
                })?)
            }
        };
        let looked_after = Arc::clone(shared);
        let body = move || {
            let (mut running, mut sampling) = (true, Sampling::default());
            while running {
                running = !looked_after.service.stop.load(Ordering::Acquire);
                if running {
                    looked_after.tick();
                    looked_after.sample(&mut sampling);
                    if let Some(publisher) = &mut publisher {
                        publisher.tick(&looked_after);
                    }
                }
                match &reporter {
                    None => looked_after.report_detached(None),
                    Some(reporter) if !lock(&looked_after.detached_faults).is_empty() => reporter.unpark(),
                    Some(_) => {}
                }
                if running {
                    thread::park_timeout(TICK);
                }
            }
        };
        shared.service.spawn("vyre-session", body).map(drop)
    }

    /// Starts the IO thread, if it is not there yet.
    pub(super) fn start_io(shared: &Arc<Shared>) -> Result<(), MegakernelError> {
        if shared.service.io_thread.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let served = Arc::clone(shared);
        let spawned = shared.service.spawn("vyre-session-io", move || {
            let mut last = Instant::now();
            while !served.service.stop.load(Ordering::Acquire) {
                if served.serve_io() {
                    last = Instant::now();
                } else if last.elapsed() < BUSY {
                    thread::yield_now();
                } else {
                    thread::park_timeout(RECHECK);
                }
            }
        });
        if spawned.is_err() {
            shared.service.io_thread.store(false, Ordering::Release);
        }
        spawned.map(drop)
    }

    /// Starts the thread that wakes futures.
    pub(super) fn start_waking(shared: &Arc<Shared>) -> Result<Thread, MegakernelError> {
        let woken = Arc::clone(shared);
        shared.service.spawn("vyre-session-wake", move || {
            woken.wake_the_answered(|| woken.service.stop.load(Ordering::Acquire));
        })
    }

    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<Thread, MegakernelError> {
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(body);
        let handle = spawned.map_err(|source| MegakernelError::Thread { source })?;
        let thread = handle.thread().clone();
        lock(&self.threads).push(handle);
        Ok(thread)
    }

    /// Ends the threads and waits for them, except for the one that calls. Those that have not ended after
    /// `limit` are left to themselves.
    pub(super) fn stop(&self, limit: Duration) {
        self.stop.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *lock(&self.threads));
        let started = Instant::now();
        for thread in threads {
            thread.thread().unpark();
            if thread.thread().id() == thread::current().id() {
                continue;
            }
            while !thread.is_finished() && started.elapsed() < limit {
                thread::sleep(RECHECK);
            }
            if !thread.is_finished() {
                tracing::error!(after = ?limit, "a thread of a session has not ended");
            } else if thread.join().is_err() {
                tracing::error!("a thread of a session panicked");
            }
        }
    }
}

/// The session's buffers as far as they are those of the kernel that asked. Each step holds its queue: before another
/// kernel's buffers are made, the step is over, and no later one begins.
struct Asked<'s> {
    shared: &'s Shared,
    queue: &'s Arc<HostIo>,
}

impl Asked<'_> {
    fn hold(&self) -> Result<MutexGuard<'_, Arc<HostIo>>, Refusal> {
        let current = lock(&self.shared.io_queue);
        if Arc::ptr_eq(&current, self.queue) {
            return Ok(current);
        }
        Err(Refusal::Gone(MegakernelError::SessionClosed { state: "has another kernel by now" }))
    }
}

impl BoundBytes for Asked<'_> {
    fn byte_len(&mut self, binding: &str) -> Result<u64, Refusal> {
        let _asking = self.hold()?;
        lock(&self.shared.buffers).byte_len(binding).map_err(Refusal::of)
    }

    fn store(&mut self, binding: &str, at: u64, bytes: &[u8]) -> Result<(), Refusal> {
        let _asking = self.hold()?;
        lock(&self.shared.buffers).upload(binding, at, bytes).map_err(Refusal::of)
    }

    fn load(
        &mut self,
        binding: &str,
        at: u64,
        into: &mut [u8],
        out: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Refusal> {
        let _asking = self.hold()?;
        lock(&self.shared.buffers).download(binding, at, into).map_err(Refusal::of)?;
        out(into);
        Ok(())
    }
}

impl Shared {
    /// One look at everything.
    fn tick(&self) {
        self.renew_lease();
        match self.control.try_lock() {
            Ok(mut control) => self.look_after(&mut control),
            Err(TryLockError::Poisoned(poisoned)) => self.look_after(&mut poisoned.into_inner()),
            // Whoever holds it is looking after the kernel.
            Err(TryLockError::WouldBlock) => {}
        }
        let head = self.rings.heads().total();
        let idle = self.service.seen_head.swap(head, Ordering::Relaxed) == head;
        let turn = self.service.ticks.fetch_add(1, Ordering::Relaxed);
        if self.any_detached.load(Ordering::Relaxed) && (idle || turn.is_multiple_of(SWEEP_TICKS)) {
            self.rings.sweep_detached();
        }
        self.serve_io_alone();
    }

    fn look_after(&self, control: &mut Control) {
        if let Some(loss) = control.met.take()
            && let Err(error) = self.handle_loss(control, loss)
        {
            tracing::error!(session = self.id, %error, "a session lost its device");
        }
        for reply in std::mem::take(&mut control.by_hand) {
            // Whoever asked may have stopped waiting.
            let _ = reply.send(self.recover_by_hand(control));
        }
        let Some(kernel) = control.kernel.clone().filter(|_| !control.lost) else { return };
        let outcome = match kernel.state() {
            KernelState::Running => {
                // A long upload may hold the buffers: the lease does not wait for it, and the next tick
                // takes over what this one leaves.
                if let (Ok(view), Ok(mut buffers)) = (self.view.try_lock(), self.buffers.try_lock()) {
                    self.absorb_mirrors(&view, &mut buffers);
                }
                return;
            }
            KernelState::ShutDown => {
                self.end(control, Gate::ShutDown);
                return;
            }
            // Its lease ran out: this process was stopped for a while.
            state @ (KernelState::Stopped | KernelState::CutShort) => {
                control.cut_short = state == KernelState::CutShort;
                self.forget_kernel(control);
                self.relaunch(control)
            }
            KernelState::Lost(loss) => self.handle_loss(control, loss),
        };
        match outcome {
            Ok(()) => {}
            Err(error) if control.lost => {
                tracing::error!(session = self.id, %error, "a session has no kernel any more");
            }
            Err(error) => match error.loss() {
                Some(loss) => {
                    if let Err(error) = self.handle_loss(control, loss.clone()) {
                        tracing::error!(session = self.id, %error, "a session lost its device");
                    }
                }
                None => {
                    tracing::error!(session = self.id, %error, "a session has no kernel any more");
                    let loss = Loss::fault(error.to_string());
                    let mut report = RecoveryReport::new(0, self.generation(), &loss);
                    self.give_up(control, error, &mut report);
                }
            },
        }
    }

    /// Takes over what the kernel mirrors, once it has mirrored all of it.
    pub(super) fn absorb_mirrors(&self, view: &HostView, buffers: &mut DeviceBuffers) {
        let [counters, _, usage, ..] = SYSTEM_BUFFERS;
        let mut complete = false;
        buffers.for_each_mirror(|name, at, last| {
            let mut now = vec![0; last.len()];
            if view.read_mirror(at, &mut now).is_err() {
                return;
            }
            let words = to_words(&now);
            if name == counters {
                complete = words.get(header::MAGIC as usize) == Some(&header::MAGIC_VALUE);
            }
            if !complete {
                return;
            }
            if name == counters {
                lock(&self.counters).absorb(&words);
            } else if name == usage {
                lock(&self.usage).absorb(&words);
            }
            *last = now;
        });
    }

    /// Serves IO requests if no thread of its own does.
    pub(super) fn serve_io_alone(&self) {
        if !self.service.io_thread.load(Ordering::Acquire) {
            self.serve_io();
        }
    }

    /// Serves every IO request there is, in order; says whether there was any.
    fn serve_io(&self) -> bool {
        // One thread at a time: a FENCE is behind what was asked before it.
        let _only = match self.service.serving_io.try_lock() {
            Ok(only) => only,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let queue = Arc::clone(&lock(&self.io_queue));
        let requests: Vec<_> = std::iter::from_fn(|| queue.next_request()).collect();
        if requests.is_empty() {
            return false;
        }
        self.io_waiting.store(requests.len() as u64, Ordering::Relaxed);
        for (number, request) in requests {
            match self.io.serve(&request, &mut Asked { shared: self, queue: &queue }) {
                Ok(reply) => self.reply(&queue, number, reply),
                Err(error) => tracing::debug!(%error, "nobody is left to be answered"),
            }
            self.io_waiting.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    fn reply(&self, queue: &Arc<HostIo>, number: u64, reply: IoReply) {
        // Held while replying: the kernel that asked may be gone, and the next one numbers its requests from
        // zero again.
        let current = lock(&self.io_queue);
        if !Arc::ptr_eq(&current, queue) {
            return;
        }
        if let Err(error) = queue.reply(number, reply) {
            tracing::warn!(%error, "an IO request was not answered");
        }
        drop(current);
        if let Some(running) = self.kernel.load().as_ref() {
            running.0.ring_doorbell();
        }
    }

    /// Opens the IO queue of the next kernel. The old one is gone: what it asked for and nobody has carried out is
    /// not carried out any more, and its requests get no reply.
    pub(super) fn open_io_queue(&self, regions: &SessionRegions) -> Result<(), MegakernelError> {
        let waited_for = "the IO request that is being carried out";
        let mut current = lock_within(&self.io_queue, self.options.stop_deadline, waited_for)?;
        *current = Arc::new(HostIo::new(regions).map_err(ring_error("open the IO queue"))?);
        Ok(())
    }

    /// Tells the user about detached items that faulted, while no lock is held.
    fn report_detached(&self, handler: Option<&DetachedFaultHandler>) {
        let faults = std::mem::take(&mut *lock(&self.detached_faults));
        for (position, completion) in faults {
            match handler {
                // The next fault is still to be told.
                Some(handler) => {
                    let told = panic::catch_unwind(AssertUnwindSafe(|| handler(position, completion)));
                    if told.is_err() {
                        tracing::error!(position, "the handler of detached faults panicked");
                    }
                }
                None => tracing::warn!(position, code = completion.code(), "a detached item faulted"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vyre_cpu::CpuBackend;
    use vyre_foundation::DataType;

    use super::*;
    use crate::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
    use crate::{HandlerBinding, Megakernel, OpcodeHandler, SessionOptions};

    #[test]
    fn what_a_lost_kernel_asked_for_never_finds_the_buffers_of_the_next() {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let handler = OpcodeHandler::new(8, "write", |h| h.io_write(1, 0, 4))
            .binding(HandlerBinding::read_write("word", DataType::U32));
        let megakernel = Megakernel::builder(Arc::clone(&backend) as _).handler(handler).build();
        let options = SessionOptions::new().bind_zeroed("word", 1);
        let session = megakernel.expect("a megakernel").start_with(options).expect("a session");
        let shared = &session.handle.shared;
        let queue = Arc::clone(&lock(&shared.io_queue));
        let asked = || {
            let mut out = None;
            let mut word = [0; 4];
            let loaded = Asked { shared, queue: &queue }.load("word", 0, &mut word, &mut |_| out = Some(()));
            (loaded.is_ok(), out)
        };
        assert_eq!(asked(), (true, Some(())));
        // The old kernel is gone, and the next one's buffers are not made yet.
        backend.arm(FaultPoint::CreateBuffer, 0, InjectedFault::Stall);
        backend.lose("a test");
        let started = Instant::now();
        while !backend.is_stalled() {
            assert!(started.elapsed() < Duration::from_secs(20), "no recovery");
            thread::yield_now();
        }
        assert!(!Arc::ptr_eq(&lock(&shared.io_queue), &queue));
        backend.resume();
        while shared.recoveries.load(Ordering::Acquire) == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "no recovery");
            thread::yield_now();
        }
        assert_eq!(asked(), (false, None));
    }
}
