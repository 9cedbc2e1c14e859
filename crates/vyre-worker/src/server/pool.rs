//! Carries out what [`State`] decides: starting, reaping and waiting, none of it under the lock.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::error::KernelError;
use super::options::{ServerOptions, ServerStats};
use super::spec::Key;
use super::state::{State, Step, Waiter};
use super::worker::Worker;
use crate::process::Process;
use crate::wire::WireError;

pub(super) struct Pool {
    pub(super) options: ServerOptions,
    state: Mutex<State>,
    /// Told when a worker becomes idle where none was, and at the end.
    housekeeping: Condvar,
    /// Told when the last process is gone.
    empty: Condvar,
}

impl Pool {
    pub(super) fn new(options: ServerOptions) -> Arc<Pool> {
        let (housekeeping, empty) = (Condvar::new(), Condvar::new());
        Arc::new(Pool { options, state: Mutex::default(), housekeeping, empty })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A worker for this caller alone, until [`Pool::release`] or [`Pool::lost`].
    pub(super) fn acquire(
        self: &Arc<Self>,
        key: &Key,
        begun: Instant,
        until: Instant,
    ) -> Result<Worker, KernelError> {
        let mut state = self.state();
        if state.closed {
            return Err(KernelError::Closed);
        }
        if let Some(worker) = state.take(key) {
            return Ok(worker);
        }
        let old = state.replaced(key);
        let waiter = state.queue(key);
        drop(state);
        self.reap(old, true);
        let got = self.wait(key, &waiter, begun, until);
        if got.is_err() && waiter.failure.get().is_none() {
            self.state().leave(key, &waiter);
        }
        got
    }

    fn wait(
        self: &Arc<Self>,
        key: &Key,
        waiter: &Arc<Waiter>,
        begun: Instant,
        until: Instant,
    ) -> Result<Worker, KernelError> {
        let mut state = self.state();
        loop {
            // First, as closing ends the process that this caller waits for.
            if state.closed {
                return Err(KernelError::Closed);
            }
            if let Some(error) = waiter.failure.get() {
                let source = Arc::clone(error);
                return Err(KernelError::NotStarted { kernel: key.spec.kernel().to_owned(), source });
            }
            let again = match state.step(key, waiter, &self.options) {
                Step::Take(worker) => {
                    state.leave(key, waiter);
                    return Ok(worker);
                }
                Step::Start(id) => {
                    drop(state);
                    self.start(key, id);
                    state = self.state();
                    continue;
                }
                Step::Evict(worker) => {
                    drop(state);
                    self.reap(vec![worker], true);
                    state = self.state();
                    continue;
                }
                Step::Wait(again) => again,
            };
            if let Some(error) = state.hopeless(key, until) {
                return Err(error);
            }
            let now = Instant::now();
            if now >= until {
                return Err(KernelError::Deadline {
                    kernel: key.spec.kernel().to_owned(),
                    waited_for: "a worker",
                    waited: begun.elapsed(),
                    stderr: String::new(),
                });
            }
            let limit = again.map_or(until, |again| again.min(until)).saturating_duration_since(now);
            state = match waiter.changed.wait_timeout(state, limit) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Starts a process on a thread of its own: a caller that stops waiting does not stop it.
    fn start(self: &Arc<Self>, key: &Key, id: u64) {
        let (pool, own) = (Arc::clone(self), key.clone());
        let starter = move || {
            let started =
                Worker::start(id, &own.spec, pool.options.start, |process| pool.spawned(id, process));
            match started {
                Ok(worker) => {
                    let surplus = pool.state().started(&own, worker);
                    pool.housekeeping.notify_one();
                    pool.reap(surplus.into_iter().collect(), true);
                }
                Err(error) => pool.not_started(&own, id, error),
            }
        };
        if let Err(error) = thread::Builder::new().name("vyre-kernel-start".into()).spawn(starter) {
            self.not_started(key, id, no_thread(key, error));
        }
    }

    fn spawned(&self, id: u64, process: &Arc<Process>) {
        let mut state = self.state();
        state.alive.insert(id, Arc::downgrade(process));
        if state.closed {
            drop(state);
            process.kill();
        }
    }

    fn not_started(&self, key: &Key, id: u64, error: KernelError) {
        tracing::warn!(kernel = key.spec.kernel(), %error, "no worker");
        let mut state = self.state();
        state.not_started(key, id, &Arc::new(error), &self.options);
        if state.processes == 0 {
            self.empty.notify_all();
        }
    }

    /// A worker that is as good as before.
    pub(super) fn release(self: &Arc<Self>, key: &Key, worker: Worker) {
        let mut state = self.state();
        state.stats.answered += 1;
        let surplus = state.release(key, worker, &self.options);
        drop(state);
        if let Some(worker) = surplus {
            self.reap(vec![worker], true);
        }
    }

    /// A worker that is dead, or is to be. `sent`: with a request.
    pub(super) fn lost(self: &Arc<Self>, key: &Key, worker: Worker, sent: bool, error: &KernelError) {
        tracing::warn!(kernel = key.spec.kernel(), %error, sent, "worker lost");
        let mut state = self.state();
        match sent {
            true => state.stats.lost += 1,
            false => state.stats.replaced += 1,
        }
        state.lost(key, error, &self.options);
        drop(state);
        self.reap(vec![worker], false);
    }

    pub(super) fn retried(&self) {
        self.state().stats.retried += 1;
    }

    pub(super) fn stats(&self) -> ServerStats {
        self.state().stats()
    }

    /// Ends workers on a thread of their own: to reap a process can take long, and nobody needs to wait for it.
    fn reap(self: &Arc<Self>, workers: Vec<Worker>, politely: bool) {
        if workers.is_empty() {
            return;
        }
        let cell = Arc::new(Mutex::new(workers));
        let reaper = {
            let (pool, cell) = (Arc::clone(self), Arc::clone(&cell));
            move || pool.reap_now(take(&cell), politely)
        };
        if thread::Builder::new().name("vyre-kernel-reap".into()).spawn(reaper).is_err() {
            self.reap_now(take(&cell), politely);
        }
    }

    fn reap_now(&self, workers: Vec<Worker>, politely: bool) {
        let ids: Vec<u64> = workers.iter().map(|worker| worker.id).collect();
        if politely {
            workers.iter().for_each(Worker::close);
            let until = super::options::until(Instant::now(), self.options.grace);
            let left = workers.iter().filter(|worker| worker.left(until)).count();
            tracing::debug!(asked = workers.len(), left, "workers closed");
        }
        drop(workers);
        let mut state = self.state();
        state.reaped(&ids);
        if state.processes == 0 {
            self.empty.notify_all();
        }
    }

    /// Closes what has been idle for too long, until the pool is closed.
    pub(super) fn keep_house(self: &Arc<Self>) {
        let mut state = self.state();
        while !state.closed {
            let now = Instant::now();
            let old = now.checked_sub(self.options.idle).map(|since| state.expire(since)).unwrap_or_default();
            if !old.is_empty() {
                drop(state);
                self.reap(old, true);
                state = self.state();
                continue;
            }
            let next = state.idle_since().and_then(|since| since.checked_add(self.options.idle));
            // Entries without workers are forgotten as well: look now and then.
            let limit = next.map_or(self.options.idle, |next| next.saturating_duration_since(now));
            state = match self.housekeeping.wait_timeout(state, limit.max(Duration::from_millis(1))) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Asks all to leave, kills those that are starting, waits for those that are busy until `until`, then kills.
    /// Whether all are gone.
    pub(super) fn close(self: &Arc<Self>, until: Instant) -> bool {
        let (idle, starting) = self.state().close();
        starting.iter().for_each(|process| process.kill());
        self.housekeeping.notify_all();
        self.reap(idle, true);
        if self.empty_by(until) {
            return true;
        }
        let alive: Vec<_> = self.state().alive.values().cloned().collect();
        alive.iter().filter_map(|process| process.upgrade()).for_each(|process| process.kill());
        self.empty_by(Instant::now() + LAST)
    }

    fn empty_by(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let waited = self.empty.wait_timeout_while(self.state(), left, |state| state.processes != 0);
        let state = match waited {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
        state.processes == 0
    }
}

/// How long killed processes may take to be gone.
const LAST: Duration = Duration::from_secs(5);

fn take(cell: &Mutex<Vec<Worker>>) -> Vec<Worker> {
    std::mem::take(&mut *cell.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

fn no_thread(key: &Key, source: io::Error) -> KernelError {
    KernelError::Resources {
        kernel: key.spec.kernel().to_owned(),
        source: WireError::Os { call: "clone", source },
    }
}
