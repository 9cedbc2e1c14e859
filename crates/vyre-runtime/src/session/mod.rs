//! Persistent sessions: a megakernel that is launched once and fed live from any thread.
//!
//! [`PersistentSession`] is a handle; clones share one session, and the last one dropped ends it. Inside are
//! its rings in shared memory, the device's tables, one resident kernel at a time, and one thread that keeps
//! the lease, looks after the kernel, and recovers it. Submitting and waiting touch neither that thread nor
//! any lock.
//!
//! # What is promised
//!
//! * Every ticket is answered exactly once: by the device, or by a fault that says why not. Quiesce, restart,
//!   stop, SHUTDOWN and device loss change nothing about that.
//! * An item runs at most once, unless its handler is replayable and the device was lost.
//! * **Items are unordered**, unless a fence of their ring or a wait stands between them.
//! * Every wait has a deadline, and says what it waited for.
//!
//! # Rooms
//!
//! `shared` is the path of an item, `opcodes` what it asks, `rings` where it goes; `lifecycle` starts and stops kernels, `change` changes
//! handlers in between; `recover` deals with losses, `probation` with those suspected of one, `replay` decides
//! what runs twice, `report` tells of it; `service` is the session's own threads; `buffers` and `plan` say what is
//! made at the start, `pages` what is used again; `window`, `ticket`, `measure`, `observe`, `trace` and `options` are what their names say.
//! `future` and `event` are other ways to wait, `wakers` is what wakes them.
//!
//! Absent on purpose: batch dispatch (see [`crate::batch`]), retries of full rings (the caller knows what
//! else it could do), and taking a published item back (its slot belongs to the device, which may be asked to
//! answer without beginning it: [`Ticket::cancel`]).

mod barrier;
mod buffers;
mod change;
mod event;
mod future;
mod lifecycle;
mod measure;
mod observe;
mod opcodes;
mod options;
mod pages;
mod plan;
mod probation;
mod recover;
mod replay;
mod report;
mod rings;
mod service;
mod shared;
mod start;
mod ticket;
mod trace;
mod wakers;
mod window;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vyre_driver::Generation;
use vyre_driver::ring::{Completion, RingProducer, SlotImage};

use crate::debug_log::DebugLog;
use crate::descriptor::{Publish, SlotDescriptor, WindowClass, WindowDescriptor};
use crate::error::MegakernelError;
use crate::io_service::IoResource;
use crate::state::tenant_row;
use crate::telemetry::TelemetrySnapshot;
use crate::trace::SessionTrace;

use self::service::Service;
use self::shared::{Gate, Shared, lock, lock_within, ring_error};

pub use self::change::{HandlerChange, HandlerUpdate};
pub use self::event::CompletionFd;
pub use self::future::{DrainFuture, TicketFuture, WindowFuture};
pub use self::options::{DetachedFaultHandler, RestoreHook, SessionOptions};
pub use self::plan::PAYLOAD_BINDING;
pub use self::replay::Restore;
pub use self::report::RecoveryReport;
pub(crate) use self::rings::{key_of, name_of};
pub use self::rings::{position_of, ring_of};
pub use self::ticket::{Payload, Ticket, Tickets};
pub use self::window::SubmittedWindow;

/// A running megakernel. See the [module documentation](self).
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use vyre_cpu::CpuBackend;
/// use vyre_runtime::{Megakernel, OpcodeHandler, SlotDescriptor};
///
/// const ADD_ONE: u32 = 0x40;
///
/// let megakernel = Megakernel::builder(Arc::new(CpuBackend::new()))
///     .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
///     .build()?;
/// let session = megakernel.start()?;
/// let ticket = session.submit(SlotDescriptor::new(ADD_ONE).args([7]))?;
/// let done = session.wait(ticket, Duration::from_secs(1))?;
/// assert_eq!(done.result(), 8);
/// session.stop()?;
/// # Ok::<(), vyre_runtime::MegakernelError>(())
/// ```
#[derive(Clone)]
pub struct PersistentSession {
    handle: Arc<Handle>,
}

/// Ends the session when the last handle goes; tickets do not keep it running.
struct Handle {
    shared: Arc<Shared>,
}

impl PersistentSession {
    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn ticket(&self, key: u64) -> Ticket {
        let shared = Arc::clone(&self.handle.shared);
        Ticket { raw: shared.rings.raw(key), generation: shared.generation(), shared }
    }

    fn tickets(&self, first: u64, count: usize) -> Tickets {
        let shared = Arc::clone(&self.handle.shared);
        Tickets { next: first, left: count as u64, generation: shared.generation(), shared }
    }

    /// Submits one item.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::RingFull`], naming the oldest ticket not taken; whatever is wrong with the item;
    /// [`MegakernelError::SessionClosed`] after a SHUTDOWN, a stop, or a loss that was not recovered.
    #[inline]
    pub fn submit(&self, slot: impl Into<SlotDescriptor>) -> Result<Ticket, MegakernelError> {
        let image = slot.into().to_image()?;
        let first = self.shared().publish(std::slice::from_ref(&image), None, true)?;
        Ok(self.ticket(first))
    }

    /// Submits a finished item as it is, unknown and reserved opcodes included: the device has the last word.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit), checks of opcode, tenant and packing apart.
    pub fn submit_image(&self, image: &SlotImage) -> Result<Ticket, MegakernelError> {
        let first = self.shared().publish_unchecked(std::slice::from_ref(image), None, true)?;
        Ok(self.ticket(first))
    }

    /// Submits a batch, or anything else that becomes slots: all of it or nothing.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit), and [`MegakernelError::BatchTooLarge`] past the ring's capacity.
    pub fn submit_batch(&self, batch: &(impl Publish + ?Sized)) -> Result<Tickets, MegakernelError> {
        let images = batch.encoded()?;
        let first = self.shared().publish(&images, None, true)?;
        Ok(self.tickets(first, images.len()))
    }

    /// Submits one item that nobody will ask about. A fault goes to the handler given in the options.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    #[inline]
    pub fn submit_detached(&self, slot: impl Into<SlotDescriptor>) -> Result<(), MegakernelError> {
        let image = slot.into().to_image()?;
        self.shared().publish(std::slice::from_ref(&image), None, false).map(drop)
    }

    /// Submits a batch that nobody will ask about: all of it or nothing.
    ///
    /// # Errors
    ///
    /// As [`submit_batch`](Self::submit_batch).
    pub fn submit_batch_detached(&self, batch: &(impl Publish + ?Sized)) -> Result<(), MegakernelError> {
        self.shared().publish(&batch.encoded()?, None, false).map(drop)
    }

    /// A range of the payload arena, at least `len` bytes of whatever was there before.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Ring`]: retryable if other payloads are in the way, final if it can never fit.
    /// [`MegakernelError::InvalidBinding`] if no handler takes payloads.
    pub fn payload(&self, len: u32) -> Result<Payload, MegakernelError> {
        if self.shared().arena.capacity() == 0 {
            return Err(MegakernelError::InvalidBinding {
                binding: PAYLOAD_BINDING.to_owned(),
                problem: "no handler declares it, so the session has no arena".to_owned(),
                remedy: "declare `HandlerBinding::read(PAYLOAD_BINDING, DataType::U8)\
                         .in_space(MemorySpace::HostVisible)` in a handler; `SessionOptions::arena_bytes` sizes it",
            });
        }
        let range = self.shared().arena.alloc(len.into()).map_err(ring_error("allocate a payload"))?;
        // The arena is smaller than 4 GiB.
        let offset = range.offset() as u32;
        Ok(Payload { range: Some(range), offset, len })
    }

    /// Submits one item and hands the payload over: it is freed with the item's slot. After an error it is
    /// still the caller's, for another try.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit), and for a payload that was handed over before or is another session's.
    pub fn submit_with_payload(
        &self,
        slot: impl Into<SlotDescriptor>,
        payload: &mut Payload,
    ) -> Result<Ticket, MegakernelError> {
        if payload.range.is_none() {
            return Err(ticket::spent());
        }
        let image = slot.into().to_image()?;
        let ranges = std::slice::from_mut(&mut payload.range);
        let first = self.shared().publish(std::slice::from_ref(&image), Some(ranges), true)?;
        Ok(self.ticket(first))
    }

    /// Submits a window. If its ring has no room for all of it, its lookahead items are cancelled; its
    /// required items are submitted all or none. If these find no room either, the lookahead items of all open windows
    /// of that ring for which nobody waits are cancelled as [`cancel_lookahead`](Self::cancel_lookahead) does: the
    /// answer is [`MegakernelError::RingFull`], and another try finds the room that they leave.
    ///
    /// # Errors
    ///
    /// As [`submit_batch`](Self::submit_batch), and for a window id that is still open.
    pub fn submit_window(&self, window: &WindowDescriptor) -> Result<SubmittedWindow, MegakernelError> {
        self.shared().submit_window(window)
    }

    /// Waits for the items of one class of a window and takes their completions, in order. After a deadline
    /// the window is as good as before. The window is closed, and its id free, once each class that has items
    /// was waited for or cancelled.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Deadline`], [`MegakernelError::UnknownWindow`]; [`MegakernelError::WindowBusy`]
    /// while another thread waits for the class; [`MegakernelError::Ring`], when all have been waited for,
    /// if [`reap`](Self::reap) had taken any.
    pub fn wait_window(
        &self,
        window_id: u32,
        class: WindowClass,
        timeout: Duration,
    ) -> Result<Vec<Completion>, MegakernelError> {
        self.shared().wait_window(window_id, class, timeout)
    }

    /// The same as a future. It holds the class of the window until it is ready or dropped.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownWindow`]; [`MegakernelError::WindowBusy`] while somebody else waits for the
    /// class.
    pub fn window(&self, window_id: u32, class: WindowClass) -> Result<WindowFuture, MegakernelError> {
        let items = self.shared().windows.borrow(window_id, class)?;
        Ok(WindowFuture::new(&self.handle.shared, items))
    }

    /// A descriptor that becomes readable when tickets given to it are answered: for event loops.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Descriptor`] if the process has none left.
    pub fn completion_fd(&self) -> Result<CompletionFd, MegakernelError> {
        CompletionFd::new(&self.handle.shared)
    }

    /// Cancels the lookahead items of a window and says how many they were. Those that have begun end as ever, but
    /// nobody has to wait for any of them, and their slots free themselves.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownWindow`]; [`MegakernelError::WindowBusy`] while a thread waits for them.
    pub fn cancel_lookahead(&self, window_id: u32) -> Result<u32, MegakernelError> {
        self.shared().cancel_lookahead(window_id)
    }

    /// Waits for an item and takes its completion; the ticket is spent, and its slot free. With a reference
    /// to the ticket it can be waited for again after a deadline; given away, it is forgotten then.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Faulted`] if the item ended in a fault, so that a result is never mistaken;
    /// [`take`](Self::take) hands a fault out as a completion. [`MegakernelError::Deadline`];
    /// [`MegakernelError::Ring`] for a ticket of another session, or one already taken.
    #[inline]
    pub fn wait(
        &self,
        ticket: impl Borrow<Ticket>,
        timeout: Duration,
    ) -> Result<Completion, MegakernelError> {
        let raw = ticket.borrow().raw;
        let completion = self.shared().wait(raw, timeout)?;
        self.shared().refuse_fault(raw, completion)
    }

    /// The completion, fault or not, if there is one; the ticket stays good.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Ring`] for a ticket of another session, or one already taken.
    pub fn poll(&self, ticket: &Ticket) -> Result<Option<Completion>, MegakernelError> {
        self.shared().rings.of(ticket.raw).poll_raw(ticket.raw).map_err(ring_error("poll a ticket"))
    }

    /// The completion, fault or not, if there is one; the ticket is spent then.
    ///
    /// # Errors
    ///
    /// As [`poll`](Self::poll).
    pub fn take(&self, ticket: &Ticket) -> Result<Option<Completion>, MegakernelError> {
        self.shared().take(ticket.raw)
    }

    /// Takes every completion there is, whoever holds its ticket, and hands it over with its [key](Ticket::key).
    /// Returns how many.
    pub fn reap(&self, mut each: impl FnMut(u64, Completion)) -> u64 {
        let shared = self.shared();
        let mut reap = |ring: &RingProducer| {
            ring.reap(|ticket, completion| {
                shared.acknowledged(ticket, &completion);
                each(key_of(ring.ring(), ticket.position()), completion);
            })
        };
        shared.rings.iter().map(&mut reap).sum()
    }

    /// Waits until every item submitted before the call is answered, taken or not.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Deadline`], naming the first ticket without an answer.
    pub fn drain(&self, timeout: Duration) -> Result<(), MegakernelError> {
        self.shared().drain(timeout)
    }

    /// The same as a future.
    pub fn drained(&self) -> DrainFuture {
        DrainFuture::new(&self.handle.shared)
    }

    /// Has the kernel finish what it has claimed, and leave. Items are accepted all the same; they wait for
    /// [`restart`](Self::restart), together with fences and items that await IO.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Deadline`] if it has not left by then: it claims no more, and a second call goes
    /// on waiting. [`MegakernelError::SessionClosed`].
    pub fn quiesce(&self, timeout: Duration) -> Result<(), MegakernelError> {
        self.shared().quiesce(timeout)
    }

    /// Quiesces, unless that was done, and starts again at the oldest item without an answer, skipping those
    /// that have one. Items are accepted all the time.
    ///
    /// # Errors
    ///
    /// As [`quiesce`](Self::quiesce), and whatever the backend says to the start; the session is quiesced
    /// then, and can be restarted.
    pub fn restart(&self, timeout: Duration) -> Result<(), MegakernelError> {
        self.shared().restart(timeout)
    }

    /// Refuses new items, waits for the others, and ends the kernel. Tickets can be taken afterwards;
    /// everything else is refused. Items that have no answer when the stop deadline of the options has
    /// passed end in [`Fault::Abandoned`](vyre_driver::Fault::Abandoned).
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Deadline`] if that happened, or whatever the backend answers to the start that a
    /// quiesced session needs for what it holds; the session is stopped all the same.
    /// [`MegakernelError::SessionClosed`] the second time.
    pub fn stop(&self) -> Result<(), MegakernelError> {
        let shared = self.shared();
        let deadline = shared.options.stop_deadline;
        let stopped = shared.stop(deadline);
        // Whoever was refused did not stop anything: the threads still serve the one who is stopping.
        if !matches!(stopped, Err(MegakernelError::SessionClosed { .. })) {
            let ending = shared.ending.load(Ordering::Acquire);
            shared.service.stop(if ending { Duration::ZERO } else { deadline });
        }
        stopped
    }

    /// Recovers from a device loss that the policy did not, or could not, recover from. Without a loss it
    /// does nothing.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Backend`] with the backend's own words; the session stays lost, and the call can
    /// be repeated, unless the backend has given the device up
    /// ([`LossCause::GivenUp`](vyre_driver::LossCause::GivenUp)): then nothing is tried any more.
    /// [`MegakernelError::Deadline`] if it is not over when the recovery deadline of the options has passed; it
    /// goes on.
    pub fn recover_after_device_loss(&self) -> Result<(), MegakernelError> {
        self.shared().ask_to_recover()
    }

    /// Lets items run again that touch volatile device state, after a loss that no restore hook made good.
    /// What they find is zeros, and whatever was uploaded since.
    pub fn accept_state_loss(&self) {
        self.shared().swap_gate(Gate::StateLost, Gate::Open);
    }

    /// Raises the limit of a tenant's quota.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`]; [`MegakernelError::QuotaExceeded`] for a limit that is not
    /// higher than the current one.
    pub fn raise_quota(&self, tenant: u16, limit: u32) -> Result<(), MegakernelError> {
        let shared = self.shared();
        shared.plan.tenants.get(tenant)?;
        let mut quotas = lock(&shared.quotas);
        let current = quotas
            .get_mut(usize::from(tenant))
            .ok_or(MegakernelError::UnknownTenant { tenant: tenant.into() })?;
        if limit <= *current {
            return Err(MegakernelError::QuotaExceeded { tenant, limit: *current });
        }
        let word = u32::from(tenant) * tenant_row::WORDS + tenant_row::QUOTA;
        let at = shared.tenants_at + u64::from(word) * 4;
        let place = shared.h2d.atomic_u32(at).map_err(ring_error("raise a quota"))?;
        place.store(limit, Ordering::Release);
        *current = limit;
        Ok(())
    }

    /// Copies bytes into a buffer, by the name of its binding or of a system buffer. A kernel that runs sees
    /// them element by element. The host keeps a copy of what goes into a host-backed buffer.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidBinding`], [`MegakernelError::Backend`].
    pub fn upload(&self, name: &str, byte_offset: u64, bytes: &[u8]) -> Result<(), MegakernelError> {
        self.shared().with_buffers(|buffers| buffers.upload(name, byte_offset, bytes))
    }

    /// Copies bytes out of a buffer, by the name of its binding or of a system buffer.
    ///
    /// # Errors
    ///
    /// As [`upload`](Self::upload).
    pub fn download(&self, name: &str, byte_offset: u64, into: &mut [u8]) -> Result<(), MegakernelError> {
        self.shared().with_buffers(|buffers| buffers.download(name, byte_offset, into))
    }

    /// The words that a tenant shows to the host.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`], and as [`download`](Self::download).
    pub fn observables(&self, tenant: u16) -> Result<Vec<u32>, MegakernelError> {
        let window = self.shared().plan.tenants.window(tenant)?;
        let mut bytes = vec![0; window.observable_words as usize * 4];
        let [_, _, _, windows, ..] = crate::item::SYSTEM_BUFFERS;
        self.download(windows, u64::from(window.offset) * 4, &mut bytes)?;
        Ok(plan::to_words(&bytes))
    }

    /// Registers what items of a tenant read or write by a resource id, or replaces it.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`]; [`MegakernelError::InvalidBinding`] if no handler names the
    /// buffer that the bytes go to.
    pub fn register_resource(
        &self,
        tenant: u16,
        id: u32,
        resource: IoResource,
    ) -> Result<(), MegakernelError> {
        let shared = self.shared();
        shared.plan.tenants.get(tenant)?;
        shared.plan.check_destination(resource.binding())?;
        shared.io.register(tenant, id, resource);
        Service::start_io(&self.handle.shared)
    }

    /// Takes a resource back. Whether there was one.
    pub fn unregister_resource(&self, tenant: u16, id: u32) -> bool {
        self.shared().io.unregister(tenant, id)
    }

    /// What PRINTF items have written, as the kernel mirrored it at its last heartbeat: the record of an item
    /// answered just now may come with the next one, a millisecond later. That of an item without an answer may
    /// be half-written.
    pub fn debug_log(&self) -> DebugLog {
        self.shared().debug_log()
    }

    /// What the session has measured. The device's counters are as old as its last heartbeat.
    pub fn telemetry(&self) -> TelemetrySnapshot {
        self.shared().telemetry()
    }

    /// What was recorded up to now, if the options asked for a [trace](SessionOptions::trace). Also after the
    /// session was stopped.
    pub fn trace(&self) -> Option<SessionTrace> {
        self.shared().trace()
    }

    /// What the session did about its last device loss, if it had one.
    pub fn last_recovery(&self) -> Option<RecoveryReport> {
        lock(&self.shared().last_recovery).clone()
    }

    /// The device generation it runs in.
    pub fn generation(&self) -> Generation {
        self.shared().generation()
    }

    /// Slots of each ring.
    pub fn capacity(&self) -> u32 {
        self.shared().rings.capacity()
    }

    /// Rings.
    pub fn rings(&self) -> u32 {
        self.shared().rings.len()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let shared = &self.shared;
        let deadline = shared.options.stop_deadline;
        // Nobody waits for a recovery any more.
        shared.ending.store(true, Ordering::Release);
        match shared.hold_to_end(deadline) {
            Ok(mut control) if shared.gate() != Gate::Stopped => shared.end(&mut control, Gate::Stopped),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a session was dropped and is left to its recovery"),
        }
        shared.service.stop(deadline);
        match lock_within(&shared.buffers, deadline, "the session's buffers") {
            Ok(mut buffers) => buffers.destroy(),
            Err(error) => tracing::error!(%error, "buffers of a session were not given back"),
        }
    }
}

impl fmt::Debug for PersistentSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistentSession")
            .field("id", &self.shared().id)
            .field("generation", &self.generation())
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<PersistentSession>();
    send_and_sync::<Ticket>();
    send_and_sync::<Payload>();
};
