//! Who has which worker, who waits for one, and what is to be started or given up: decisions only. Nothing here
//! makes a system call, so the lock around it is held for as long as a few table look-ups take.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, OnceLock, Weak};
use std::time::Instant;

use super::error::KernelError;
use super::options::{ServerOptions, ServerStats};
use super::spec::Key;
use super::worker::Worker;
use crate::process::Process;

/// Everything that a pool knows.
#[derive(Default)]
pub(super) struct State {
    entries: HashMap<Key, Entry>,
    /// All processes, to end them when the pool closes; by worker id.
    pub(super) alive: HashMap<u64, Weak<Process>>,
    /// Those of them that are no workers yet.
    starting: HashSet<u64>,
    /// Processes that exist, or are about to, or are being reaped.
    pub(super) processes: usize,
    /// Those of them that are being reaped: room to come.
    reaping: usize,
    next: u64,
    pub(super) closed: bool,
    pub(super) stats: ServerStats,
}

/// One key.
#[derive(Default)]
struct Entry {
    idle: Vec<(Worker, Instant)>,
    /// Workers that are idle or busy, and processes that are to become some.
    live: usize,
    starting: usize,
    queue: VecDeque<Arc<Waiter>>,
    failures: u32,
    not_before: Option<Instant>,
    /// The last failure, in words.
    last: String,
}

/// A caller in a queue.
#[derive(Default)]
pub(super) struct Waiter {
    turn: u64,
    pub(super) changed: Condvar,
    /// Set by whoever took it out of the queue.
    pub(super) failure: OnceLock<Arc<KernelError>>,
}

/// What a caller without a worker is to do.
pub(super) enum Step {
    /// It is its turn.
    Take(Worker),
    /// Start a process of this id for this key, outside of the lock.
    Start(u64),
    /// Give up this worker of another key, outside of the lock, and wait.
    Evict(Worker),
    /// Wait for a change, or until then.
    Wait(Option<Instant>),
}

impl Entry {
    /// Whether a process more would help somebody.
    fn is_short(&self, options: &ServerOptions) -> bool {
        self.idle.is_empty()
            && self.starting < self.queue.len()
            && self.live < options.workers_per_kernel.max(1)
    }

    fn backs_off(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|&then| then > now)
    }

    fn failed(&mut self, options: &ServerOptions, error: &KernelError) {
        self.failures = self.failures.saturating_add(1);
        self.not_before = Instant::now().checked_add(options.delay(self.failures));
        self.last = chain(error);
    }
}

impl State {
    /// A worker at once, if one is idle and nobody waits for it.
    pub(super) fn take(&mut self, key: &Key) -> Option<Worker> {
        let entry = self.entries.get_mut(key).filter(|entry| entry.queue.is_empty())?;
        entry.idle.pop().map(|(worker, _)| worker)
    }

    /// A place at the end of the queue.
    pub(super) fn queue(&mut self, key: &Key) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter { turn: self.next_number(), ..Waiter::default() });
        self.entries.entry(key.clone()).or_default().queue.push_back(Arc::clone(&waiter));
        self.stats.waiting += 1;
        waiter
    }

    /// Leaves the queue.
    pub(super) fn leave(&mut self, key: &Key, waiter: &Arc<Waiter>) {
        if let Some(entry) = self.entries.get_mut(key) {
            let before = entry.queue.len();
            entry.queue.retain(|other| !Arc::ptr_eq(other, waiter));
            self.stats.waiting -= before - entry.queue.len();
        }
        self.wake();
    }

    /// What a caller in the queue does next.
    pub(super) fn step(&mut self, key: &Key, waiter: &Arc<Waiter>, options: &ServerOptions) -> Step {
        let now = Instant::now();
        let starved = self.most_starved(options, now);
        let Some(entry) = self.entries.get_mut(key) else { return Step::Wait(None) };
        if entry.queue.front().is_some_and(|first| Arc::ptr_eq(first, waiter))
            && let Some((worker, _)) = entry.idle.pop()
        {
            return Step::Take(worker);
        }
        if !entry.is_short(options) {
            return Step::Wait(None);
        }
        if let Some(then) = entry.backs_off(now) {
            return Step::Wait(Some(then));
        }
        // Room for a process goes to the key whose first caller has waited longest.
        let first = entry.queue.front().map(|first| first.turn);
        if self.processes < options.processes.max(1) {
            if first != starved {
                return Step::Wait(None);
            }
            entry.live += 1;
            entry.starting += 1;
            self.processes += 1;
            let id = self.next_number();
            self.starting.insert(id);
            self.wake();
            return Step::Start(id);
        }
        match self.reaping {
            0 => self.evict().map_or(Step::Wait(None), Step::Evict),
            _ => Step::Wait(None),
        }
    }

    /// The turn of the caller that has waited longest for room.
    fn most_starved(&self, options: &ServerOptions, now: Instant) -> Option<u64> {
        let short = |entry: &&Entry| entry.is_short(options) && entry.backs_off(now).is_none();
        self.entries
            .values()
            .filter(short)
            .filter_map(|entry| entry.queue.front())
            .map(|first| first.turn)
            .min()
    }

    /// Takes the worker that has been idle longest.
    fn evict(&mut self) -> Option<Worker> {
        let since = |entry: &Entry| entry.idle.first().map(|&(_, since)| since);
        let entry =
            self.entries.values_mut().filter(|entry| since(entry).is_some()).min_by_key(|e| since(e))?;
        entry.live -= 1;
        let (worker, _) = entry.idle.remove(0);
        self.reaping += 1;
        self.stats.evicted += 1;
        Some(worker)
    }

    /// A process became a worker. None: it is the pool's; some: the pool closed meanwhile.
    pub(super) fn started(&mut self, key: &Key, worker: Worker) -> Option<Worker> {
        self.stats.started += 1;
        self.starting.remove(&worker.id);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.starting -= 1;
        }
        self.put(key, worker)
    }

    /// A process did not become a worker, and is gone. Nobody is left waiting for one that nobody starts.
    pub(super) fn not_started(
        &mut self,
        key: &Key,
        id: u64,
        error: &Arc<KernelError>,
        options: &ServerOptions,
    ) {
        self.stats.not_started += 1;
        self.processes -= 1;
        self.alive.remove(&id);
        self.starting.remove(&id);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.starting -= 1;
            entry.live -= 1;
            entry.failed(options, error);
            if entry.live == 0 {
                self.stats.waiting -= entry.queue.len();
                for waiter in entry.queue.drain(..) {
                    // Only set here, and it leaves the queue with it.
                    let _ = waiter.failure.set(Arc::clone(error));
                    waiter.changed.notify_one();
                }
            }
        }
        self.wake();
    }

    /// A worker comes back from a caller, as good as before. One that is returned has to be given up: somebody
    /// else has waited longer for its room, or the pool is closed.
    pub(super) fn release(&mut self, key: &Key, worker: Worker, options: &ServerOptions) -> Option<Worker> {
        let starved = self.most_starved(options, Instant::now());
        let full = self.processes >= options.processes.max(1) && self.reaping == 0;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.failures = 0;
        entry.not_before = None;
        entry.last.clear();
        let own = entry.queue.front().map(|first| first.turn);
        if full && !self.closed && starved.is_some_and(|starved| own.is_none_or(|own| starved < own)) {
            entry.live -= 1;
            self.reaping += 1;
            self.stats.evicted += 1;
            return Some(worker);
        }
        self.put(key, worker)
    }

    fn put(&mut self, key: &Key, worker: Worker) -> Option<Worker> {
        let entry = self.entries.entry(key.clone()).or_default();
        if self.closed {
            entry.live -= 1;
            self.reaping += 1;
            return Some(worker);
        }
        entry.idle.push((worker, Instant::now()));
        self.wake();
        None
    }

    /// A worker is not to be used again.
    pub(super) fn lost(&mut self, key: &Key, error: &KernelError, options: &ServerOptions) {
        self.reaping += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            entry.live -= 1;
            entry.failed(options, error);
        }
        self.wake();
    }

    /// Why a caller whose deadline is `until` need not wait for the next start.
    pub(super) fn hopeless(&self, key: &Key, until: Instant) -> Option<KernelError> {
        let entry = self.entries.get(key).filter(|entry| entry.live == 0)?;
        let now = Instant::now();
        let then = entry.not_before.filter(|&then| then > until && then > now)?;
        Some(KernelError::BackingOff {
            kernel: key.spec.kernel().to_owned(),
            failures: entry.failures,
            wait: then - now,
            last: entry.last.clone(),
        })
    }

    /// Takes out the workers that nobody has needed since before `since`; forgets keys that have nothing left.
    pub(super) fn expire(&mut self, since: Instant) -> Vec<Worker> {
        let mut expired = Vec::new();
        for entry in self.entries.values_mut() {
            let old = entry.idle.partition_point(|&(_, idle_since)| idle_since <= since);
            expired.extend(entry.idle.drain(..old).map(|(worker, _)| worker));
            entry.live -= old;
        }
        self.entries.retain(|_, entry| {
            entry.live != 0 || !entry.queue.is_empty() || entry.not_before.is_some_and(|then| then > since)
        });
        self.reaping += expired.len();
        self.stats.expired += expired.len() as u64;
        expired
    }

    /// Takes out the idle workers of the same kernel whose executable has been replaced.
    pub(super) fn replaced(&mut self, key: &Key) -> Vec<Worker> {
        let mut old = Vec::new();
        for (other, entry) in &mut self.entries {
            if other.spec == key.spec && other.identity != key.identity {
                entry.live -= entry.idle.len();
                old.extend(entry.idle.drain(..).map(|(worker, _)| worker));
            }
        }
        self.reaping += old.len();
        self.stats.evicted += old.len() as u64;
        old
    }

    /// Nobody gets a worker any more. The idle ones, and the processes that nobody waits for to become one.
    pub(super) fn close(&mut self) -> (Vec<Worker>, Vec<Arc<Process>>) {
        self.closed = true;
        let starting = self.starting.iter().filter_map(|id| self.alive.get(id)?.upgrade()).collect();
        let mut idle = Vec::new();
        for entry in self.entries.values_mut() {
            entry.live -= entry.idle.len();
            idle.extend(entry.idle.drain(..).map(|(worker, _)| worker));
            entry.queue.iter().for_each(|waiter| waiter.changed.notify_one());
        }
        self.reaping += idle.len();
        (idle, starting)
    }

    /// When the first idle worker became so.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.idle.first()).map(|&(_, since)| since).min()
    }

    /// These processes are gone.
    pub(super) fn reaped(&mut self, ids: &[u64]) {
        self.processes -= ids.len();
        self.reaping -= ids.len();
        ids.iter().for_each(|id| drop(self.alive.remove(id)));
        self.wake();
    }

    /// What was done, and what there is.
    pub(super) fn stats(&self) -> ServerStats {
        let idle = self.entries.values().map(|entry| entry.idle.len()).sum();
        ServerStats { idle, processes: self.processes, ..self.stats }
    }

    /// Lets the first caller of each queue look again.
    fn wake(&self) {
        if self.stats.waiting != 0 {
            let first = self.entries.values().filter_map(|entry| entry.queue.front());
            first.for_each(|waiter| waiter.changed.notify_one());
        }
    }

    fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
