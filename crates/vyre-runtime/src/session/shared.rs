//! What all handles and tickets of a session share, and the path of an item through it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use vyre_driver::arena::{Arena, ArenaRange};
use vyre_driver::io_queue::HostIo;
use vyre_driver::protocol::opcode;
use vyre_driver::region::SharedRegion;
use vyre_driver::ring::{Completion, RawTicket, RingError, SlotImage};
use vyre_driver::view::HostView;
use vyre_driver::wait::{WaitStrategy, Waiter};
use vyre_driver::{BackendError, Fault, Generation, ResidentKernel, ResidentPipeline};

use super::barrier;
use super::buffers::DeviceBuffers;
use super::change::HandlerChange;
use super::lifecycle::Control;
use super::options::RestoreHook;
use super::plan::SessionPlan;
use super::replay::touches_volatile;
use super::report::{RecoveryReport, Verdicts};
use super::rings::{MAX_RINGS, Rings, key_of, name_of, position_of, ring_of};
use super::service::Service;
use super::trace::Timing;
use super::wakers::Wakers;
use super::window::Windows;
use crate::error::{LOST, LOST_FOR_GOOD, MegakernelError};
use crate::io_service::IoResources;
use crate::opcode::SlotOpcode;
use crate::recovery::{MegakernelRecoveryPolicy, Recoverable};
use crate::telemetry::Totals;

/// Whether items may be submitted. Everything from [`Gate::Lost`] on means that nothing will claim them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Gate {
    /// Yes.
    Open = 0,
    /// Only items that touch no volatile state: it was lost, and nobody has accepted that.
    StateLost = 1,
    /// A SHUTDOWN item was submitted.
    ShuttingDown = 2,
    /// The session is being stopped.
    Stopping = 3,
    /// The device is lost and was not recovered.
    Lost = 4,
    /// Stopped by a SHUTDOWN item.
    ShutDown = 5,
    /// Stopped.
    Stopped = 6,
    /// The device is lost and will not be recovered.
    GivenUp = 7,
}

impl Gate {
    pub(super) const fn from_byte(byte: u8) -> Gate {
        match byte {
            0 => Gate::Open,
            1 => Gate::StateLost,
            2 => Gate::ShuttingDown,
            3 => Gate::Stopping,
            4 => Gate::Lost,
            5 => Gate::ShutDown,
            7 => Gate::GivenUp,
            _ => Gate::Stopped,
        }
    }

    pub(super) const fn describe(self) -> &'static str {
        match self {
            Gate::Open | Gate::StateLost => "runs",
            Gate::ShuttingDown | Gate::ShutDown => "was shut down",
            Gate::Stopping | Gate::Stopped => "was stopped",
            Gate::Lost => LOST,
            Gate::GivenUp => LOST_FOR_GOOD,
        }
    }
}

/// A running kernel, for those who ring its bell.
pub(super) struct Running(pub(super) Arc<dyn ResidentKernel>);

/// The state of a session.
pub(super) struct Shared {
    pub(super) id: u64,
    pub(super) plan: SessionPlan,
    pub(super) options: Settings,
    pub(super) worker_groups: u32,
    pub(super) pipeline: Recoverable<Arc<dyn ResidentPipeline>>,
    pub(super) h2d: Arc<SharedRegion>,
    pub(super) tenants_at: u64,
    pub(super) rings: Rings,
    pub(super) arena: Arc<Arena>,
    pub(super) gate: AtomicU8,
    /// The device generation, for tickets.
    pub(super) generation: AtomicU64,
    pub(super) kernel: ArcSwapOption<Running>,
    /// Whether that one's consumers park.
    pub(super) parks: AtomicBool,
    /// Held while the kernel is started, stopped or replaced. Taken before every other lock but `changing`.
    pub(super) control: Mutex<Control>,
    /// The host's end of the current incarnation's regions. Held while mirrors are taken over; taken before
    /// `buffers`.
    pub(super) view: Mutex<HostView>,
    pub(super) buffers: Mutex<DeviceBuffers>,
    pub(super) quotas: Mutex<Vec<u32>>,
    pub(super) windows: Windows,
    pub(super) wakers: Wakers,
    /// Where the current incarnation says that it has completed something.
    pub(super) completions: ArcSwap<Waiter>,
    pub(super) timing: Option<Timing>,
    pub(super) counters: Mutex<Totals>,
    pub(super) usage: Mutex<Totals>,
    pub(super) starts: AtomicU64,
    pub(super) recoveries: AtomicU64,
    /// Held for the length of a change of handlers. Taken before `control`.
    pub(super) changing: Mutex<()>,
    pub(super) last_change: Mutex<Option<HandlerChange>>,
    /// Losses, recovered from or not.
    pub(super) losses: AtomicU64,
    pub(super) last_recovery: Mutex<Option<RecoveryReport>>,
    pub(super) verdicts: Mutex<Verdicts>,
    /// Whoever holds `control` is to end the session as soon as it can: its users have stopped waiting.
    pub(super) ending: AtomicBool,
    pub(super) io: IoResources,
    pub(super) io_queue: Mutex<Arc<HostIo>>,
    /// Requests fetched and not answered.
    pub(super) io_waiting: AtomicU64,
    pub(super) service: Service,
    /// Detached items that ended in a fault, for the service thread to report.
    pub(super) detached_faults: Arc<Mutex<Vec<(u64, Completion)>>>,
    /// Whether any item was ever without a ticket, so that somebody has to look after those.
    pub(super) any_detached: AtomicBool,
    /// All tickets of each ring below it were seen answered.
    pub(super) drained: [AtomicU64; MAX_RINGS as usize],
    /// For each slot of each ring, one more than the key of the last ticket replayed in it.
    pub(super) replayed: Mutex<Vec<u64>>,
}

/// The options that outlive the start.
pub(super) struct Settings {
    pub(super) wait: WaitStrategy,
    pub(super) lease: Duration,
    pub(super) stop_deadline: Duration,
    pub(super) item_deadline: Option<Duration>,
    pub(super) probation_deadline: Duration,
    pub(super) recovery_deadline: Duration,
    pub(super) recovery: MegakernelRecoveryPolicy,
    pub(super) restore: Option<RestoreHook>,
}

/// Turns a ring's error into one of this crate that says what was attempted.
pub(super) fn ring_error(attempted: &'static str) -> impl Fn(RingError) -> MegakernelError {
    move |source| match source {
        RingError::Deadline { waited_for, number, after } => {
            MegakernelError::Deadline { waited_for: format!("{waited_for} {number}"), after }
        }
        source => MegakernelError::Ring { attempted, source },
    }
}

/// Locks, whether or not another holder panicked: what these mutexes guard is consistent between any two
/// statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks as [`lock`] does, or says after a while what it waited for.
pub(super) fn lock_within<'m, T>(
    mutex: &'m Mutex<T>,
    limit: Duration,
    waited_for: &str,
) -> Result<MutexGuard<'m, T>, MegakernelError> {
    let mut started = None;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
        if started.get_or_insert_with(Instant::now).elapsed() >= limit {
            return Err(MegakernelError::Deadline { waited_for: waited_for.to_owned(), after: limit });
        }
        std::thread::sleep(vyre_driver::wait::RECHECK);
    }
}

/// Whether a slot stops the session.
fn is_shutdown(image: &SlotImage) -> bool {
    image.opcode == opcode::SHUTDOWN && image.tenant == 0
}

impl Shared {
    pub(super) fn gate(&self) -> Gate {
        Gate::from_byte(self.gate.load(Ordering::Acquire))
    }

    pub(super) fn set_gate(&self, gate: Gate) {
        self.gate.store(gate as u8, Ordering::SeqCst);
        if gate >= Gate::Lost {
            barrier::heavy();
        }
    }

    /// Moves the gate, if it is where it is said to be.
    pub(super) fn swap_gate(&self, from: Gate, to: Gate) -> bool {
        self.gate.compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Relaxed))
    }

    /// The device buffers, unless a recovery or an upload holds them for too long.
    pub(super) fn buffers(&self) -> Result<MutexGuard<'_, DeviceBuffers>, MegakernelError> {
        let limit = self.options.recovery_deadline;
        lock_within(&self.buffers, limit, "a recovery, or another upload, to let go of the session's buffers")
    }

    /// Does something with the device buffers. Handles that a recovery has overtaken are those of buffers that it is
    /// about to make again: it does so first.
    pub(super) fn with_buffers<T>(
        &self,
        mut act: impl FnMut(&mut DeviceBuffers) -> Result<T, MegakernelError>,
    ) -> Result<T, MegakernelError> {
        let started = Instant::now();
        loop {
            let done = act(&mut *self.buffers()?);
            let overtaken = matches!(
                &done,
                Err(MegakernelError::Backend {
                    source: BackendError::StaleHandle { generation, current, .. },
                    ..
                }) if generation < current
            );
            let recovers =
                !matches!(self.gate(), Gate::Lost | Gate::GivenUp | Gate::ShutDown | Gate::Stopped);
            if !overtaken || !recovers || started.elapsed() >= self.options.recovery_deadline {
                return done;
            }
            std::thread::sleep(vyre_driver::wait::RECHECK);
        }
    }

    /// Checks items and publishes all of them or none; with tickets if `tracked`. Returns the first key.
    #[inline]
    pub(super) fn publish(
        &self,
        images: &[SlotImage],
        payloads: Option<&mut [Option<ArenaRange>]>,
        tracked: bool,
    ) -> Result<u64, MegakernelError> {
        // Most batches are of one kind, and only a packed slot has operations of its own.
        let mut checked = None;
        for image in images {
            let kind = Some((image.tenant, image.opcode));
            if kind != checked || image.opcode == opcode::PACKED_SLOT {
                self.plan.check_image(image)?;
                checked = kind;
            }
        }
        self.publish_unchecked(images, payloads, tracked)
    }

    /// The same without a look at opcodes and tenants: the device does that anyway.
    #[inline]
    pub(super) fn publish_unchecked(
        &self,
        images: &[SlotImage],
        payloads: Option<&mut [Option<ArenaRange>]>,
        tracked: bool,
    ) -> Result<u64, MegakernelError> {
        let shutdown = self.admit(images)?;
        self.publish_admitted(images, payloads, tracked, shutdown)
    }

    /// The same once the gate was seen open, which it may no longer be.
    #[inline]
    fn publish_admitted(
        &self,
        images: &[SlotImage],
        payloads: Option<&mut [Option<ArenaRange>]>,
        tracked: bool,
        shutdown: bool,
    ) -> Result<u64, MegakernelError> {
        let ring = self.rings.for_images(images)?;
        let submitted_at = self.timing.as_ref().and_then(|timing| {
            let next = key_of(ring.ring(), ring.head());
            timing.before(next..next.wrapping_add(images.len() as u64))
        });
        let published = match (payloads, tracked) {
            (None, true) => match images {
                [image] => ring.submit(image).map(|ticket| ticket.into_raw().position()),
                _ => ring.submit_batch(images).map(keep),
            },
            (None, false) => match images {
                [image] => ring.submit_detached(image),
                _ => ring.submit_batch_detached(images),
            },
            (Some(payloads), true) => ring.submit_with(images, payloads).map(keep),
            (Some(payloads), false) => ring.submit_detached_with(images, payloads),
        };
        let first = published.map_err(|error| self.submit_error(ring.ring(), error))?;
        let first = key_of(ring.ring(), first);
        let tickets = first..first.wrapping_add(images.len() as u64);
        if let (Some(timing), Some(at)) = (&self.timing, submitted_at) {
            timing.submitted(first, images, tracked, at);
        }
        if !tracked {
            self.note_detached();
        }
        if shutdown {
            // Whoever was faster gets an answer when the kernel has gone.
            for open in [Gate::Open, Gate::StateLost] {
                self.swap_gate(open, Gate::ShuttingDown);
            }
        }
        // A kernel that parks looks again by itself before long, should it have taken the place of one that does not.
        if self.parks.load(Ordering::Relaxed)
            && let Some(running) = self.kernel.load().as_ref()
        {
            running.0.ring_doorbell();
        }
        // Pairs with the barrier of whoever closed the gate and then looks for items to fail: either it sees these,
        // or we see the gate.
        barrier::light();
        if self.gate.load(Ordering::Relaxed) >= Gate::Lost as u8 {
            self.fail_stranded(tickets);
        }
        Ok(first)
    }

    /// Whether the session takes these items; says whether the last one stops it.
    #[inline]
    fn admit(&self, images: &[SlotImage]) -> Result<bool, MegakernelError> {
        if self.gate.load(Ordering::Relaxed) != Gate::Open as u8 {
            self.refuse(images)?;
        }
        let mut stops = images.iter().map(is_shutdown);
        let shutdown = stops.next_back().unwrap_or(false);
        if stops.any(|stop| stop) {
            return Err(MegakernelError::MalformedDescriptor {
                what: "batch",
                problem: "a SHUTDOWN stands before other items",
                remedy: "make it the last item",
            });
        }
        Ok(shutdown)
    }

    #[cold]
    fn refuse(&self, images: &[SlotImage]) -> Result<(), MegakernelError> {
        match self.gate() {
            Gate::Open => Ok(()),
            Gate::StateLost => {
                let handlers = self.plan.handlers();
                match images.iter().find(|image| touches_volatile(&handlers, image)) {
                    None => Ok(()),
                    Some(image) => Err(MegakernelError::StateLost {
                        opcode: SlotOpcode::new(image.opcode),
                        generation: self.generation(),
                    }),
                }
            }
            closed => Err(MegakernelError::SessionClosed { state: closed.describe() }),
        }
    }

    #[cold]
    fn submit_error(&self, ring: u32, error: RingError) -> MegakernelError {
        match error {
            RingError::WouldBlock { oldest_untaken } => MegakernelError::RingFull {
                capacity: self.rings.capacity().into(),
                oldest_untaken: Some(key_of(ring, oldest_untaken)),
            },
            RingError::BatchTooLarge { len, capacity } => {
                MegakernelError::BatchTooLarge { got: len, limit: capacity as usize }
            }
            other => ring_error("submit")(other),
        }
    }

    /// Ends items that were published when nothing would claim them any more.
    #[cold]
    fn fail_stranded(&self, tickets: std::ops::Range<u64>) {
        // Whoever holds it for longer is about to start a kernel for them, or to fail them itself.
        let Ok(control) = self.hold(self.options.recovery_deadline, "to fail stranded items") else { return };
        let gate = self.gate();
        if gate >= Gate::Lost {
            let lost = matches!(gate, Gate::Lost | Gate::GivenUp);
            let fault = if lost { Fault::DeviceLost } else { Fault::Abandoned };
            for ticket in tickets {
                let _ = self.rings.get(ring_of(ticket)).fail(position_of(ticket), fault);
            }
        }
        drop(control);
    }

    pub(super) fn note_detached(&self) {
        if !self.any_detached.load(Ordering::Relaxed) {
            self.any_detached.store(true, Ordering::Relaxed);
        }
    }

    /// The completion, if there is one, taken.
    pub(super) fn take(&self, raw: RawTicket) -> Result<Option<Completion>, MegakernelError> {
        let taken = self.rings.of(raw).take_raw(raw).map_err(ring_error("take a ticket"))?;
        if let Some(completion) = &taken {
            self.acknowledged(raw, completion);
        }
        Ok(taken)
    }

    /// Wishes that an item not begin; says whether it had no answer yet.
    pub(super) fn cancel(&self, raw: RawTicket) -> Result<bool, MegakernelError> {
        let answered = self.rings.of(raw).poll_raw(raw).map_err(ring_error("cancel an item"))?;
        if answered.is_none() {
            self.rings.cancel(self.rings.key(raw)).map_err(ring_error("cancel an item"))?;
        }
        Ok(answered.is_none())
    }

    /// Waits for the completion and takes it.
    #[inline]
    pub(super) fn wait(&self, raw: RawTicket, timeout: Duration) -> Result<Completion, MegakernelError> {
        match self.rings.of(raw).wait_raw(raw, self.options.wait, timeout) {
            Ok(completion) => {
                self.acknowledged(raw, &completion);
                Ok(completion)
            }
            Err(RingError::Deadline { after, .. }) => Err(self.expired(self.rings.key(raw), after)),
            Err(error) => Err(ring_error("wait for a ticket")(error)),
        }
    }

    /// The answer to whoever has waited for a ticket for too long.
    #[cold]
    pub(super) fn expired(&self, key: u64, after: Duration) -> MegakernelError {
        MegakernelError::Deadline { waited_for: format!("the completion of {}", name_of(key)), after }
    }

    /// A fault is an error to whoever waits, so that a result is never mistaken.
    #[inline]
    pub(super) fn refuse_fault(
        &self,
        raw: RawTicket,
        completion: Completion,
    ) -> Result<Completion, MegakernelError> {
        match completion.as_fault() {
            None => Ok(completion),
            Some(fault) => {
                let (ticket, code) = (self.rings.key(raw), completion.code());
                let ended_by = lock(&self.verdicts).take(ticket);
                Err(MegakernelError::Faulted { ticket, code, fault, ended_by })
            }
        }
    }

    #[inline]
    pub(super) fn acknowledged(&self, raw: RawTicket, completion: &Completion) {
        if let Some(timing) = &self.timing {
            timing.acknowledged(self.rings.key(raw), completion);
        }
    }

    /// Whether a ticket has its answer, whoever holds it and whether or not it was taken.
    pub(super) fn is_answered(&self, key: u64) -> bool {
        let ring = self.rings.get(ring_of(key));
        !matches!(ring.poll_raw(ring.raw(position_of(key))), Ok(None))
    }

    /// The answer to whoever has drained for too long.
    pub(super) fn undrained(&self, key: u64, after: Duration) -> MegakernelError {
        let waited_for = format!("the completion of {}, to drain the session", name_of(key));
        MegakernelError::Deadline { waited_for, after }
    }

    /// Waits until every ticket submitted before the call has its answer.
    pub(super) fn drain(&self, timeout: Duration) -> Result<(), MegakernelError> {
        let (started, heads) = (Instant::now(), self.rings.heads());
        for (ring, drained) in (0..self.rings.len()).zip(&self.drained) {
            let head = heads.of(ring);
            // An answer is for good.
            let oldest =
                head.saturating_sub(self.rings.capacity().into()).max(drained.load(Ordering::Relaxed));
            for key in key_of(ring, oldest)..key_of(ring, head) {
                self.await_answer(key, started, timeout)?;
            }
            drained.fetch_max(head, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until a ticket has its answer, as [`drain`](Self::drain) does.
    fn await_answer(&self, key: u64, started: Instant, timeout: Duration) -> Result<(), MegakernelError> {
        for looks in 1_u64.. {
            if self.is_answered(key) {
                break;
            }
            if !looks.is_multiple_of(LOOKS) {
                std::hint::spin_loop();
                continue;
            }
            let left = timeout.saturating_sub(started.elapsed());
            match self.options.wait {
                _ if left.is_zero() => return Err(self.undrained(key, timeout)),
                WaitStrategy::Spin => {}
                WaitStrategy::Yield => std::thread::yield_now(),
                WaitStrategy::Park => self.completions.load().park(left, || self.is_answered(key)),
            }
        }
        Ok(())
    }
}

/// How many looks for an answer come before anything that lets go of the core.
const LOOKS: u64 = 128;

/// The position of tickets whose owner the caller makes.
fn keep(tickets: vyre_driver::ring::Tickets<'_>) -> u64 {
    let first = tickets.first();
    tickets.for_each(|ticket| {
        ticket.into_raw();
    });
    first
}

#[cfg(test)]
mod tests {
    use vyre_cpu::CpuBackend;

    use super::*;
    use crate::megakernel::Megakernel;

    #[test]
    fn an_item_that_slips_through_a_closing_gate_is_answered() {
        let megakernel = Megakernel::bootstrap(Arc::new(CpuBackend::new())).expect("a megakernel");
        let nop = SlotImage::new(opcode::NOP, [0; 12]);
        for (gate, fault) in [(Gate::Stopped, Fault::Abandoned), (Gate::Lost, Fault::DeviceLost)] {
            let session = megakernel.start().expect("a session");
            session.stop().expect("stopped");
            let shared = session.shared();
            shared.set_gate(gate);
            let key = shared.publish_admitted(&[nop], None, true, false).expect("published");
            let raw = shared.rings.raw(key);
            let answer = shared.rings.of(raw).poll_raw(raw).expect("a ticket");
            assert_eq!(answer.and_then(|completion| completion.as_fault()), Some(fault));
        }
    }
}
