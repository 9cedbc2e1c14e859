//! The sockets to one worker: each serves one caller at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Instant;

use rustix::net::Shutdown;
use vyre_driver::wait::RECHECK;

use super::worker::lock;
use crate::wire::Channel;

/// Lanes kept for later callers; each costs the host a thread.
const IDLE_LANES: usize = 16;

pub(super) struct Lanes {
    /// On which further lanes are asked for.
    first: Mutex<Arc<Channel>>,
    idle: Mutex<Vec<Arc<Channel>>>,
    returned: Condvar,
    /// Every lane there is, to be shut when the worker is condemned.
    all: Mutex<Vec<Weak<Channel>>>,
}

impl Lanes {
    pub(super) fn new(first: Channel) -> Lanes {
        let first = Arc::new(first);
        let all = Mutex::new(vec![Arc::downgrade(&first)]);
        Lanes { first: Mutex::new(first), idle: Mutex::default(), returned: Condvar::new(), all }
    }

    /// The first lane, unless others ask for lanes on it until then.
    pub(super) fn first_by(&self, until: Instant) -> Option<MutexGuard<'_, Arc<Channel>>> {
        loop {
            match self.first.try_lock() {
                Ok(first) => return Some(first),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(RECHECK),
            }
        }
    }

    pub(super) fn add(&self, lane: Channel) -> Arc<Channel> {
        let lane = Arc::new(lane);
        let mut all = lock(&self.all);
        all.retain(|lane| lane.strong_count() > 0);
        all.push(Arc::downgrade(&lane));
        lane
    }

    pub(super) fn idle(&self) -> Option<Arc<Channel>> {
        lock(&self.idle).pop()
    }

    /// Waits for a lane to become idle, in vain if it is over with all of them or nobody has one.
    pub(super) fn idle_by(&self, until: Instant, over: impl Fn() -> bool) -> Option<Arc<Channel>> {
        let mut idle = lock(&self.idle);
        loop {
            if let Some(lane) = idle.pop() {
                return Some(lane);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || over() || !self.are_in_use() {
                return None;
            }
            let waited = self.returned.wait_timeout(idle, left);
            idle = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether there is one beside the first.
    fn are_in_use(&self) -> bool {
        lock(&self.all).iter().filter(|lane| lane.strong_count() > 0).count() > 1
    }

    pub(super) fn put_back(&self, lane: Arc<Channel>) {
        let mut idle = lock(&self.idle);
        if idle.len() < IDLE_LANES {
            idle.push(lane);
        }
        self.returned.notify_one();
    }

    pub(super) fn shut(&self) {
        for lane in lock(&self.all).iter().filter_map(Weak::upgrade) {
            // Fails when the other side is gone already.
            let _ = rustix::net::shutdown(lane.fd(), Shutdown::Both);
        }
        // Under their lock, so that no waiter is between its look and its sleep.
        let _idle = lock(&self.idle);
        self.returned.notify_all();
    }
}
