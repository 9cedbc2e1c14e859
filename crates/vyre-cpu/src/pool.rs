//! Threads that help with a dispatch.
//!
//! Whoever dispatches works too, so a backend of one thread has no pool at all, and a busy pool delays
//! nobody: work that no helper took is done by the one who asked.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Work that several threads share: each takes parts of it until none is left.
pub(crate) trait Job: Send + Sync {
    /// Takes parts until none is left. Returns at once when there was none.
    fn work(&self);
}

struct Task {
    job: Arc<dyn Job>,
    /// How many more helpers may join.
    places: usize,
    /// How many helpers are at work.
    working: usize,
    number: u64,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    next_number: u64,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a task to help with, or the pool is closed.
    offered: Condvar,
    /// A helper has left its task.
    left: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn help(&self) {
        let mut state = self.state();
        loop {
            if state.closed {
                return;
            }
            let Some(task) = state.tasks.iter_mut().find(|task| task.places > 0) else {
                state = self.offered.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            task.places -= 1;
            task.working += 1;
            let (job, number) = (Arc::clone(&task.job), task.number);
            drop(state);
            job.work();
            drop(job);
            state = self.state();
            if let Some(task) = state.tasks.iter_mut().find(|task| task.number == number) {
                task.working -= 1;
            }
            self.left.notify_all();
        }
    }
}

/// A fixed number of helpers, started when first needed.
pub(crate) struct Pool {
    helpers: usize,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    pub(crate) fn new(helpers: usize) -> Pool {
        Pool { helpers, shared: Arc::default(), threads: Mutex::default() }
    }

    /// Works on a job together with up to `helpers` helpers, and returns when it is finished.
    pub(crate) fn run(&self, job: &Arc<dyn Job>, helpers: usize) {
        let places = helpers.min(self.helpers);
        if places == 0 {
            return job.work();
        }
        self.start_threads();
        let mut state = self.shared.state();
        let number = state.next_number;
        state.next_number += 1;
        state.tasks.push_back(Task { job: Arc::clone(job), places, working: 0, number });
        drop(state);
        for _ in 0..places {
            self.shared.offered.notify_one();
        }
        job.work();
        let mut state = self.shared.state();
        loop {
            let Some(task) = state.tasks.iter_mut().find(|task| task.number == number) else { return };
            task.places = 0;
            if task.working == 0 {
                break;
            }
            state = self.shared.left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.tasks.retain(|task| task.number != number);
    }

    fn start_threads(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while threads.len() < self.helpers {
            let shared = Arc::clone(&self.shared);
            let builder = std::thread::Builder::new().name("vyre-cpu".to_owned());
            match builder.spawn(move || shared.help()) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    tracing::warn!(%error, "no thread to help with a dispatch; going on with fewer");
                    return;
                }
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.offered.notify_all();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A helper that panicked has nothing to hand back.
            let _ = thread.join();
        }
    }
}
