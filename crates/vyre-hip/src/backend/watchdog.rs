//! Aborts dispatches at their deadlines, on a thread that makes no call of the GPU's library.
//!
//! Such a call can wait for a kernel that is to be aborted: freeing memory and unloading code wait for every
//! kernel of the context, under a lock of the library's that every other call of the process then waits for.
//! Whoever waits for an endless kernel by asking its stream would be among them, and never come to abort it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// What is done at a deadline. It is short, and makes no call of the library either.
type Abort = Box<dyn FnOnce() + Send>;

/// The deadlines of one backend.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    /// Started with the first deadline.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A deadline. Once it is dropped, its abort is past or will not happen.
pub(super) struct Watch {
    shared: Arc<Shared>,
    key: (Instant, u64),
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By time, and then by the order of arrival.
    watched: BTreeMap<(Instant, u64), Abort>,
    arrivals: u64,
    stopped: bool,
}

impl Watchdog {
    pub(super) fn new() -> Watchdog {
        Watchdog { shared: Arc::default(), thread: Mutex::default() }
    }

    /// Has `abort` called at `until`, unless the watch is dropped first.
    pub(super) fn watch(
        &self,
        until: Instant,
        abort: impl FnOnce() + Send + 'static,
    ) -> Result<Watch, io::Error> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            *thread = Some(
                thread::Builder::new().name("vyre-hip-watchdog".to_owned()).spawn(move || shared.run())?,
            );
        }
        drop(thread);
        let mut state = lock(&self.shared.state);
        let key = (until, state.arrivals);
        state.arrivals += 1;
        state.watched.insert(key, Box::new(abort));
        drop(state);
        self.shared.changed.notify_one();
        Ok(Watch { shared: Arc::clone(&self.shared), key })
    }
}

impl Shared {
    fn run(&self) {
        let mut state = lock(&self.state);
        while !state.stopped {
            let now = Instant::now();
            let wait = match state.watched.first_entry() {
                // Under the lock: whoever drops the watch afterwards can use what it aborts again.
                Some(first) if first.key().0 <= now => {
                    first.remove()();
                    continue;
                }
                Some(first) => Some(first.key().0 - now),
                None => None,
            };
            state = match wait {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.shared.state).watched.remove(&self.key);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.changed.notify_one();
        let thread = lock(&self.thread).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the watchdog of a GPU panicked");
        }
    }
}

/// Every change under these locks is whole, whatever panicked beside it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn deadlines_come_in_order_and_not_before_their_time() {
        let (send, receive) = mpsc::channel();
        let watchdog = Watchdog::new();
        let start = Instant::now();
        let watches: Vec<_> = [30_u64, 10, 20, 10]
            .into_iter()
            .map(|ms| {
                let (send, until) = (send.clone(), start + Duration::from_millis(ms));
                watchdog
                    .watch(until, move || send.send((ms, Instant::now())).expect("awaited"))
                    .expect("a thread")
            })
            .collect();
        let mut order = Vec::new();
        for _ in &watches {
            let (ms, at) = receive.recv_timeout(LONG).expect("aborted");
            assert!(at >= start + Duration::from_millis(ms));
            order.push(ms);
        }
        assert_eq!(order, [10, 10, 20, 30]);
    }

    #[test]
    fn a_watch_that_is_dropped_aborts_nothing() {
        let (send, receive) = mpsc::channel();
        let watchdog = Watchdog::new();
        let start = Instant::now();
        let dropped = send.clone();
        let watch = watchdog
            .watch(start + Duration::from_millis(5), move || dropped.send("dropped").expect("awaited"));
        drop(watch.expect("a thread"));
        let until = start + Duration::from_millis(20);
        let _watch = watchdog.watch(until, move || send.send("kept").expect("awaited")).expect("a thread");
        assert_eq!(receive.recv_timeout(LONG), Ok("kept"));
        // The dropped one's sender is gone, and this one's once its abort has returned.
        assert_eq!(receive.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_watchdog_leaves_with_deadlines_ahead() {
        let watchdog = Watchdog::new();
        let _watch = watchdog.watch(Instant::now() + LONG * 100, || panic!("too early")).expect("a thread");
        drop(watchdog);
    }
}
