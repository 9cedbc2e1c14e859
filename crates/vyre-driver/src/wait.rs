//! Waiting: how to, for how long, and the handshake that makes a wake-up cost nothing when nobody sleeps.
//!
//! The handshake has two words with one writing side each. A thread that wants to sleep adds itself to the
//! sleepers, fences, and looks once more for what it waits for; only then it sleeps on the event word. A
//! thread that has published something fences, and looks at the sleepers; only if there are any it changes
//! the event word and makes the system call. Of the two looks at least one sees the other side's write, so
//! no wake-up is lost. A device cannot make the system call at all, and a process may die before it does:
//! a parked thread therefore looks again at least every [`RECHECK`].

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::fs::Timespec;
use rustix::thread::futex;

use crate::layout;
use crate::region::{MappedWord, ReadOnlyU32, SessionRegions, SharedRegion};
use crate::ring::RingError;
use crate::sync::{Ordering, fence};

/// The longest that a parked thread sleeps before it looks again.
pub const RECHECK: Duration = Duration::from_micros(100);

/// How to wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WaitStrategy {
    /// Keep looking. The fastest answer, and a whole core.
    Spin,
    /// Look, and let other threads run in between.
    Yield,
    /// Look a while, then sleep until woken.
    #[default]
    Park,
}

/// Fences after a publication and says whether anybody may be asleep.
#[inline]
pub(crate) fn must_wake(sleepers: impl FnOnce() -> u32) -> bool {
    // Pairs with the fence in `announce`: the publication before this fence, or the count after it.
    fence(Ordering::SeqCst);
    sleepers() != 0
}

/// Counts a thread as asleep and fences before its last look.
#[inline]
pub(crate) fn announce(add: impl FnOnce()) {
    add();
    // Pairs with the fence in `must_wake`.
    fence(Ordering::SeqCst);
}

/// The side that publishes: wakes those who sleep on an event word.
#[derive(Debug)]
pub struct Notifier {
    event: MappedWord<AtomicU32>,
    sleepers: MappedWord<ReadOnlyU32>,
}

impl Notifier {
    /// The host's doorbell: wakes consumers after a submission or an IO reply.
    pub fn doorbell(regions: &SessionRegions) -> Result<Notifier, RingError> {
        Notifier::new(&regions.h2d, layout::DOORBELL, &regions.d2h, layout::SLEEPERS)
    }

    /// The consumers' event: wakes host threads after a completion or an IO request.
    pub fn completion(regions: &SessionRegions) -> Result<Notifier, RingError> {
        Notifier::new(&regions.d2h, layout::COMPLETION_EVENT, &regions.h2d, layout::HOST_WAITERS)
    }

    fn new(
        events: &Arc<SharedRegion>,
        event: u64,
        counts: &Arc<SharedRegion>,
        sleepers: u64,
    ) -> Result<Notifier, RingError> {
        Ok(Notifier {
            event: MappedWord::<AtomicU32>::writable(events, event)?,
            sleepers: MappedWord::<ReadOnlyU32>::read_only(counts, sleepers)?,
        })
    }

    /// Wakes whoever sleeps. Call it after publishing; it costs a fence when nobody does.
    #[inline]
    pub fn notify(&self) {
        if must_wake(|| self.sleepers.load(Ordering::Relaxed)) {
            self.wake();
        }
    }

    /// Wakes sleepers without looking whether there are any.
    #[cold]
    pub fn wake(&self) {
        // A thread that read the old value and has not slept yet will not.
        self.event.fetch_add(1, Ordering::Release);
        // The only failures are of the address, which is a live mapping's.
        let _ = futex::wake(&self.event, futex::Flags::empty(), i32::MAX as u32);
    }
}

/// The side that sleeps.
#[derive(Debug)]
pub struct Waiter {
    event: MappedWord<ReadOnlyU32>,
    sleepers: MappedWord<AtomicU32>,
}

impl Waiter {
    /// A host thread that waits for completions or IO requests.
    pub fn completion(regions: &SessionRegions) -> Result<Waiter, RingError> {
        Waiter::new(&regions.d2h, layout::COMPLETION_EVENT, &regions.h2d, layout::HOST_WAITERS)
    }

    /// A consumer that waits for submissions or IO replies.
    pub fn doorbell(regions: &SessionRegions) -> Result<Waiter, RingError> {
        Waiter::new(&regions.h2d, layout::DOORBELL, &regions.d2h, layout::SLEEPERS)
    }

    fn new(
        events: &Arc<SharedRegion>,
        event: u64,
        counts: &Arc<SharedRegion>,
        sleepers: u64,
    ) -> Result<Waiter, RingError> {
        Ok(Waiter {
            event: MappedWord::<ReadOnlyU32>::read_only(events, event)?,
            sleepers: MappedWord::<AtomicU32>::writable(counts, sleepers)?,
        })
    }

    /// Sleeps until woken, for [`RECHECK`], or for `limit`, whichever is least, unless `ready` says at the
    /// last look that there is no need. Wakes up for no reason too: the caller looks again.
    pub fn park(&self, limit: Duration, ready: impl FnOnce() -> bool) {
        let seen = self.event.load(Ordering::Acquire);
        announce(|| {
            self.sleepers.fetch_add(1, Ordering::Relaxed);
        });
        if !ready() {
            let limit = limit.min(RECHECK);
            let timeout = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
            // Not the private flag: the waker may be another process. Every outcome means: look again.
            let _ = futex::wait(self.event.futex(), futex::Flags::empty(), seen, Some(&timeout));
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }
}
