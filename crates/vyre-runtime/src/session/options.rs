//! How to start a session.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use vyre_driver::ring::Completion;
use vyre_driver::wait::WaitStrategy;
use vyre_driver::{BufferBinding, PersistentThreadMode};

use super::Restore;
use crate::error::MegakernelError;
use crate::recovery::MegakernelRecoveryPolicy;

/// Told about items that nobody holds a ticket of and that ended in a fault: their [key](super::Ticket::key) and
/// completion.
pub type DetachedFaultHandler = Box<dyn Fn(u64, Completion) + Send + Sync>;

/// Puts device state back after a loss, before anything is replayed.
pub type RestoreHook = Arc<dyn Fn(&Restore<'_>) -> Result<(), MegakernelError> + Send + Sync>;

/// What a named buffer of the handlers is bound to.
pub(crate) enum BoundBuffer {
    /// A new buffer with this content.
    Bytes(Vec<u8>),
    /// A new buffer of so many elements, all zero.
    Zeroed(u64),
    /// A buffer that somebody else made.
    Given(BufferBinding),
}

/// How to start a session. The defaults suit a first try; every field has a method.
#[must_use]
pub struct SessionOptions {
    pub(crate) slots: Option<u32>,
    pub(crate) rings: u32,
    pub(crate) arena_bytes: Option<u32>,
    pub(crate) io_entries: u32,
    pub(crate) worker_groups: Option<u32>,
    pub(crate) reserved_handlers: u32,
    pub(crate) wait: WaitStrategy,
    pub(crate) lease: Duration,
    pub(crate) stop_deadline: Duration,
    pub(crate) item_deadline: Option<Duration>,
    pub(crate) probation_deadline: Duration,
    pub(crate) recovery_deadline: Duration,
    pub(crate) latency: bool,
    pub(crate) time_one_in: u32,
    pub(crate) observe: Option<String>,
    pub(crate) trace: Option<u32>,
    pub(crate) persistent: PersistentThreadMode,
    pub(crate) recovery: Option<MegakernelRecoveryPolicy>,
    pub(crate) on_detached_fault: Option<DetachedFaultHandler>,
    pub(crate) restore: Option<RestoreHook>,
    pub(crate) buffers: BTreeMap<String, BoundBuffer>,
}

impl Default for SessionOptions {
    fn default() -> SessionOptions {
        SessionOptions {
            slots: None,
            rings: 1,
            arena_bytes: None,
            io_entries: 64,
            worker_groups: None,
            reserved_handlers: 16,
            wait: WaitStrategy::Park,
            lease: Duration::from_secs(10),
            stop_deadline: Duration::from_secs(60),
            item_deadline: None,
            probation_deadline: Duration::from_secs(1),
            recovery_deadline: Duration::from_secs(60),
            latency: false,
            time_one_in: 1,
            observe: None,
            trace: None,
            persistent: PersistentThreadMode::Auto,
            recovery: None,
            on_detached_fault: None,
            restore: None,
            buffers: BTreeMap::new(),
        }
    }
}

impl SessionOptions {
    /// The defaults.
    pub fn new() -> SessionOptions {
        SessionOptions::default()
    }

    /// Rings that items go to by their [priority](crate::Priority), so that what is urgent does not queue behind what
    /// is not; 1 by default.
    ///
    /// Two have CRITICAL and HIGH items in the first one and all others in the second; three have LOW and IDLE items in
    /// the third. Order, fences and a full ring are a ring's own affair, and items submitted together go to one ring. A
    /// less urgent ring is served less often, but is served: docs/protocol.md says how often.
    pub fn priority_rings(mut self, rings: u32) -> SessionOptions {
        self.rings = rings;
        self
    }

    /// Slots of each ring, a power of two; the megakernel's slot count by default.
    pub fn slots(mut self, slots: u32) -> SessionOptions {
        self.slots = Some(slots);
        self
    }

    /// Bytes of the payload arena, a multiple of 16; by default 1 MiB if a handler binds the payload buffer,
    /// and none otherwise.
    pub fn arena_bytes(mut self, bytes: u32) -> SessionOptions {
        self.arena_bytes = Some(bytes);
        self
    }

    /// Entries of the IO queue, a power of two; 64 by default.
    pub fn io_entries(mut self, entries: u32) -> SessionOptions {
        self.io_entries = entries;
        self
    }

    /// Workgroups to keep resident; by default as many as the backend can.
    pub fn worker_groups(mut self, groups: u32) -> SessionOptions {
        self.worker_groups = Some(groups);
        self
    }

    /// How many handlers can be [added](super::PersistentSession::update_handlers) while the session runs, each
    /// for an opcode that it did not have before; 16 by default, and never more than 256 with those it starts
    /// with. Each has a word that the kernel mirrors at every heartbeat.
    pub fn reserve_handlers(mut self, handlers: u32) -> SessionOptions {
        self.reserved_handlers = handlers;
        self
    }

    /// How waits wait; parked by default.
    pub fn wait_strategy(mut self, strategy: WaitStrategy) -> SessionOptions {
        self.wait = strategy;
        self
    }

    /// How long the kernel goes on without a sign of life from this process; 10 s by default.
    pub fn lease(mut self, lease: Duration) -> SessionOptions {
        self.lease = lease;
        self
    }

    /// How long stopping waits for outstanding items before it abandons them, and then for the kernel to
    /// leave, which takes even an idle one a moment; 60 s by default.
    pub fn stop_deadline(mut self, deadline: Duration) -> SessionOptions {
        self.stop_deadline = deadline;
        self
    }

    /// The longest that one execution of an item may take; no limit by default. An item that is still in a
    /// loop then ends in [`Fault::Deadline`](vyre_driver::Fault::Deadline).
    ///
    /// Backends run several items side by side (the CPU backend up to 32 a thread), and items that go
    /// different ways take turns. Waiting for a turn does not count. The completions of items that run side
    /// by side appear together, so an endless item holds its neighbours' back until its own time is over.
    pub fn item_deadline(mut self, deadline: Duration) -> SessionOptions {
        self.item_deadline = Some(deadline);
        self
    }

    /// How long an item may take that is run alone because it was being run when the device was lost; 1 s by
    /// default. Everything else waits meanwhile. An item that has not ended by then ends in
    /// [`Fault::Deadline`](vyre_driver::Fault::Deadline), as it may be what the device died of.
    ///
    /// With an [item deadline](Self::item_deadline) that one counts, and a second for the kernel to start.
    pub fn probation_deadline(mut self, deadline: Duration) -> SessionOptions {
        self.probation_deadline = deadline;
        self
    }

    /// How long calls without a deadline of their own (uploads, downloads, recovery by hand) wait for a
    /// recovery that goes on; 60 s by default. The recovery itself is the backend's: it goes on after that.
    pub fn recovery_deadline(mut self, deadline: Duration) -> SessionOptions {
        self.recovery_deadline = deadline;
        self
    }

    /// Measures the latency of items; off by default, because it reads the clock twice for each. Detached
    /// items are not measured, nor those that another thread reaps before their submission has returned.
    pub fn measure_latency(mut self) -> SessionOptions {
        self.latency = true;
        self
    }

    /// Times one item in so many, for the latency and for a trace: a power of two, by default 1, which is each item. To
    /// time an item costs its threads some tens of nanoseconds, to pass over one a few (docs/observing.md). Which are
    /// timed follows from their positions, in no order that a batch could have.
    pub fn time_one_in(mut self, items: u32) -> SessionOptions {
        self.time_one_in = items;
        self
    }

    /// Publishes what the session measures, under this name, for `vyre top` and [`observe::list`]; off by default,
    /// unless the environment has `VYRE_OBSERVE=1`. It costs the items nothing, and the session's own thread a
    /// hundredth of its time at most. Without [`measure_latency`](Self::measure_latency) there is no latency in it.
    ///
    /// A session that is asked to and cannot is not started.
    ///
    /// [`observe::list`]: crate::observe::list
    pub fn observe(mut self, name: impl Into<String>) -> SessionOptions {
        self.observe = Some(name.into());
        self
    }

    /// Records what happens to the session, and to its last `items` items, for
    /// [`PersistentSession::trace`](super::PersistentSession::trace); off by default, because it reads the clock
    /// twice for each. It keeps at least as many items as a ring has slots, of each ring, rounded up to a power of two,
    /// at 24 bytes each, and [`MAX_ITEMS`](crate::trace::MAX_ITEMS) at most.
    pub fn trace(mut self, items: u32) -> SessionOptions {
        self.trace = Some(items);
        self
    }

    /// [`PersistentThreadMode::Disable`] refuses to start; the others start where the backend can.
    pub fn persistent(mut self, mode: PersistentThreadMode) -> SessionOptions {
        self.persistent = mode;
        self
    }

    /// What to do about a device loss; by default what the megakernel does.
    pub fn recovery(mut self, policy: MegakernelRecoveryPolicy) -> SessionOptions {
        self.recovery = Some(policy);
        self
    }

    /// Is told about forgotten and detached items that end in a fault, one after the other, on a thread of
    /// its own. It may take its time, but stopping waits for it, unless it is the handler that stops the
    /// session. A panic in it is logged, and the next fault told.
    pub fn on_detached_fault(
        mut self,
        handler: impl Fn(u64, Completion) + Send + Sync + 'static,
    ) -> SessionOptions {
        self.on_detached_fault = Some(Box::new(handler));
        self
    }

    /// Puts device state back after a loss, before anything is replayed. With it, items of replayable
    /// handlers are replayed even if they touch volatile buffers. It runs while the session is held: it may
    /// use what it is given, and nothing else of the session.
    pub fn restore(
        mut self,
        hook: impl Fn(&Restore<'_>) -> Result<(), MegakernelError> + Send + Sync + 'static,
    ) -> SessionOptions {
        self.restore = Some(Arc::new(hook));
        self
    }

    /// Binds a named buffer of the handlers to a new buffer with this content.
    pub fn bind_bytes(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> SessionOptions {
        self.buffers.insert(name.into(), BoundBuffer::Bytes(content.into()));
        self
    }

    /// Binds a named buffer of the handlers to a new buffer of `elements` zeros.
    pub fn bind_zeroed(mut self, name: impl Into<String>, elements: u64) -> SessionOptions {
        self.buffers.insert(name.into(), BoundBuffer::Zeroed(elements));
        self
    }

    /// Binds a named buffer of the handlers to a buffer that the caller made and keeps. Names that are not
    /// bound here are bound to the megakernel's buffers. After a device loss the session goes on with buffers
    /// of its own.
    pub fn bind(mut self, name: impl Into<String>, buffer: BufferBinding) -> SessionOptions {
        self.buffers.insert(name.into(), BoundBuffer::Given(buffer));
        self
    }
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionOptions")
            .field("slots", &self.slots)
            .field("arena_bytes", &self.arena_bytes)
            .field("lease", &self.lease)
            .field("recovery", &self.recovery)
            .field("buffers", &self.buffers.keys())
            .finish_non_exhaustive()
    }
}
