//! Who is to be woken when a ticket is answered, and the thread that looks.
//!
//! A future that finds its ticket without an answer *registers* a waker, and then looks once more. One thread
//! of the session looks at the registered tickets and wakes those that are answered, by whomever: a kernel, a
//! recovery, a stop. It sleeps on the completions' event word as a waiting thread does; it starts with the
//! first registration and sleeps for good while there is none, so items that nobody awaits cost nothing.
//!
//! # Why no wake-up is lost
//!
//! * *Answered while registering.* The registration is in the table before the future looks again. If it
//!   still finds no answer, the answer comes after the registration, and the thread finds both.
//! * *Registered while the thread falls asleep.* The count of registrations is raised after the table was
//!   changed. The thread sleeps without a limit only when it has read zero; whoever raises the count from
//!   zero unparks it, and an unpark that comes before the park is remembered.
//! * *Answered while the thread falls asleep.* [`Waiter::park`] has it look once more after it was counted
//!   among the sleepers. What a device, or the host itself, answers without waking anybody is found within
//!   [`RECHECK`].
//!
//! A waker is the user's code. It runs on this thread under no lock, and a panic in it is logged.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use vyre_driver::wait::{RECHECK, Waiter};

use super::service::Service;
use super::shared::{Shared, lock};
use crate::error::MegakernelError;

/// How many looks in vain come before the thread sleeps: as many as a waiting thread takes.
const LOOKS: u32 = 128;
/// Tables, so that threads seldom meet at one.
const SHARDS: u64 = 8;

/// Who waits for what.
#[derive(Default)]
pub(super) struct Wakers {
    shards: [Mutex<BTreeMap<u64, Waiting>>; SHARDS as usize],
    /// Registrations in all tables. Raised after a table was changed.
    registered: AtomicUsize,
    last: AtomicU64,
    /// The thread that looks, if there is one.
    thread: Mutex<Option<Thread>>,
}

/// One registration.
struct Waiting {
    position: u64,
    until: Option<Instant>,
    waker: Waker,
}

/// The name of a registration; a future has at most one, and forgets it when it is dropped.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registration(Option<u64>);

impl Wakers {
    fn shard(&self, id: u64) -> MutexGuard<'_, BTreeMap<u64, Waiting>> {
        let [first, ..] = &self.shards;
        lock(self.shards.get((id % SHARDS) as usize).unwrap_or(first))
    }

    /// Adds a registration, or changes the one that there is.
    fn register(
        &self,
        registration: &mut Registration,
        position: u64,
        until: Option<Instant>,
        waker: &Waker,
    ) {
        // Cloned before a table is locked, and the old one dropped after it: both are the user's code.
        let mut waiting = Waiting { position, until, waker: waker.clone() };
        if let Some(id) = registration.0
            && let Some(known) = self.shard(id).get_mut(&id)
        {
            std::mem::swap(known, &mut waiting);
            return;
        }
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        self.shard(id).insert(id, waiting);
        registration.0 = Some(id);
        // SeqCst: before the look that follows, for everybody.
        if self.registered.fetch_add(1, Ordering::SeqCst) == 0
            && let Some(thread) = &*lock(&self.thread)
        {
            thread.unpark();
        }
    }

    /// Strikes a registration off. False if there is none any more, because its waker was woken.
    pub(super) fn forget(&self, registration: &mut Registration) -> bool {
        let Some(id) = registration.0.take() else { return false };
        let removed = self.shard(id).remove(&id);
        if removed.is_some() {
            self.registered.fetch_sub(1, Ordering::SeqCst);
        }
        removed.is_some()
    }

    fn is_empty(&self) -> bool {
        self.registered.load(Ordering::SeqCst) == 0
    }

    /// Wakes whoever `ready` says so of. Whether there was anybody.
    fn wake(&self, ready: impl Fn(&Waiting) -> bool) -> bool {
        let mut any = false;
        for shard in &self.shards {
            let woken: Vec<Waiting> =
                lock(shard).extract_if(.., |_, waiting| ready(waiting)).map(|(_, waiting)| waiting).collect();
            self.registered.fetch_sub(woken.len(), Ordering::SeqCst);
            any |= !woken.is_empty();
            for Waiting { waker, position, .. } in woken {
                if panic::catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
                    tracing::error!(position, "a waker panicked");
                }
            }
        }
        any
    }
}

impl Shared {
    /// Whether a ticket is answered, as a future asks: if not, its waker is woken when it is, or `until` then.
    pub(super) fn poll_answered(
        self: &Arc<Self>,
        registration: &mut Registration,
        position: u64,
        until: Option<Instant>,
        context: &Context<'_>,
    ) -> Poll<Result<(), MegakernelError>> {
        if self.is_answered(position) {
            self.wakers.forget(registration);
            return Poll::Ready(Ok(()));
        }
        self.wakers.register(registration, position, until, context.waker());
        if let Err(error) = self.have_waking_thread() {
            self.wakers.forget(registration);
            return Poll::Ready(Err(error));
        }
        // Once more, now that whoever answers it finds somebody to wake: unless that has happened, and comes
        // back as another poll.
        if self.is_answered(position) && self.wakers.forget(registration) {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Starts the thread that looks, if there is none.
    fn have_waking_thread(self: &Arc<Self>) -> Result<(), MegakernelError> {
        let mut thread = lock(&self.wakers.thread);
        if thread.is_none() {
            *thread = Some(Service::start_waking(self)?);
        }
        Ok(())
    }

    /// The body of the thread that looks. It ends when the session does and everybody was woken.
    pub(super) fn wake_the_answered(&self, stopped: impl Fn() -> bool) {
        let mut vain = 0;
        loop {
            if self.wakers.is_empty() {
                let mut thread = lock(&self.wakers.thread);
                // Under the lock: whoever registers from here on finds no thread, and starts one.
                if stopped() && self.wakers.is_empty() {
                    *thread = None;
                    return;
                }
                drop(thread);
                thread::park();
                continue;
            }
            vain = if self.wake_once() { 0 } else { vain + 1 };
            if vain < LOOKS {
                std::hint::spin_loop();
                continue;
            }
            vain = LOOKS - 1;
            let waiter: Arc<Waiter> = self.completions.load_full();
            waiter.park(RECHECK, || self.wake_once());
        }
    }

    fn wake_once(&self) -> bool {
        let now = Instant::now();
        self.wakers.wake(|waiting| {
            waiting.until.is_some_and(|until| until <= now) || self.is_answered(waiting.position)
        })
    }
}

/// A moment that a timeout ends in; none if it never does.
pub(super) fn moment_after(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
