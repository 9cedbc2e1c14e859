//! The next worker after one is lost: a spare or a new one, as long as the crash budget lasts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vyre_driver::{BackendError, Generation, Loss, LossCause};

use super::error::StartError;
use super::worker::{Worker, lock};
use super::{Incarnation, Shared};
use crate::host::message::{Reply, Request};
use crate::process::Process;

/// Starts that are tried when each is ended from outside before it is ready: that convicts nobody.
const STARTS: u32 = 3;
/// The pause after a spare that did not start, or died; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How long the spare is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a lost worker was replaced.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Replacement {
    /// The generation that the new worker serves.
    pub generation: Generation,
    /// What was lost before it.
    pub loss: Loss,
    /// When recovery was asked for.
    pub asked: Instant,
    /// How much later the lost process was known to be gone.
    pub gone_after: Duration,
    /// And how much later than that the new worker was ready.
    pub ready_after: Duration,
    /// Whether it was the warm spare.
    pub from_spare: bool,
    /// Whether there is no new worker, and [`IsolatedOptions::fallback`](crate::IsolatedOptions::fallback) took over.
    pub fell_back: bool,
}

/// What recovery remembers.
#[derive(Default)]
pub(super) struct Recovery {
    /// Held for the length of a recovery: many that notice one loss recover once.
    budget: Mutex<Budget>,
    last: Mutex<Option<Replacement>>,
    closed: AtomicBool,
    /// The processes that are being started now, so that closing need not wait for them.
    starting: Mutex<Vec<Weak<Process>>>,
    /// Programs in use, for the spare.
    programs: Mutex<Vec<Weak<Request>>>,
    spare: Mutex<Option<Arc<Worker>>>,
    /// Whether there is something to do for the spare.
    wanted: Mutex<bool>,
    wants: Condvar,
}

/// Crashes that are not forgiven yet.
#[derive(Default)]
struct Budget {
    charged: Option<Generation>,
    crashes: Vec<Instant>,
}

impl Budget {
    /// Counts the loss of a generation, once.
    fn charge(&mut self, generation: Generation, cause: LossCause, now: Instant) {
        if self.charged != Some(generation) && cause.has_suspects() {
            self.crashes.push(now);
        }
        self.charged = Some(generation);
    }

    /// Whether more have crashed than may.
    fn is_spent(&mut self, now: Instant, allowed: u32, forgiveness: Duration) -> bool {
        self.crashes.retain(|at| now.duration_since(*at) < forgiveness);
        self.crashes.len() > allowed as usize
    }
}

impl Recovery {
    pub(super) fn last(&self) -> Option<Replacement> {
        lock(&self.last).clone()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Ends the spare and what is being started. There is no recovery any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for process in lock(&self.starting).iter().filter_map(Weak::upgrade) {
            process.kill();
        }
        self.end_spare();
        self.want_spare();
    }

    /// Ends the spare. Whoever waits for what it compiles learns so at once.
    fn end_spare(&self) {
        let spare = lock(&self.spare).take();
        if let Some(spare) = spare {
            spare.close(Duration::ZERO);
        }
    }

    /// Takes the spare out if it is lost, and says why.
    fn take_lost_spare(&self) -> Option<Loss> {
        let lost = lock(&self.spare).take_if(|spare| spare.loss().is_some());
        lost?.loss().cloned()
    }

    pub(super) fn spare(&self) -> Option<Arc<Worker>> {
        lock(&self.spare).clone()
    }

    /// The spare, once everything that is in use is compiled in it.
    pub(super) fn ready_spare(&self) -> Option<Arc<Worker>> {
        let spare = self.spare().filter(|spare| spare.loss().is_none())?;
        let programs: Vec<_> = lock(&self.programs).iter().filter_map(Weak::upgrade).collect();
        programs.iter().all(|program| spare.is_prepared(program)).then_some(spare)
    }

    /// Keeps a program in mind for as long as what this answers is held: one request for all who use the same.
    pub(super) fn remember(&self, request: Arc<Request>) -> Arc<Request> {
        let mut programs = lock(&self.programs);
        programs.retain(|program| program.strong_count() > 0);
        if let Some(known) = programs.iter().filter_map(Weak::upgrade).find(|known| *known == request) {
            return known;
        }
        programs.push(Arc::downgrade(&request));
        drop(programs);
        self.want_spare();
        request
    }

    /// Has the spare looked after at once.
    pub(super) fn want_spare(&self) {
        *lock(&self.wanted) = true;
        self.wants.notify_all();
    }

    /// Waits until something is to be done for the spare, or for a while.
    fn wait_for_wants(&self, limit: Duration) {
        let wanted = lock(&self.wanted);
        let waited = self.wants.wait_timeout_while(wanted, limit, |wanted| !*wanted);
        let mut wanted = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(wanted, _)| wanted);
        *wanted = false;
    }

    fn start(&self, shared: &Shared) -> Result<Worker, StartError> {
        let mut own = Weak::new();
        let started = Worker::start(&shared.options, |process| {
            own = Arc::downgrade(process);
            let mut starting = lock(&self.starting);
            starting.push(Weak::clone(&own));
            if self.is_closed() {
                process.kill();
            }
        });
        lock(&self.starting).retain(|process| !process.ptr_eq(&own));
        started
    }

    /// Sees to it that there is a spare, with everything compiled that is in use; none where it would never be
    /// taken. Whether there was one.
    fn tend_spare(&self, shared: &Shared) -> Result<bool, StartError> {
        if shared.is_past_workers() {
            self.end_spare();
            return Ok(true);
        }
        let known = self.spare();
        let was_there = known.is_some();
        let spare = match known {
            Some(known) => known,
            None => {
                let spare = Arc::new(self.start(shared)?);
                let mut place = lock(&self.spare);
                // Under the lock, so that who ends the spare either finds it or is seen here.
                if self.is_closed() || shared.is_past_workers() {
                    return Ok(was_there);
                }
                tracing::debug!(pid = spare.pid(), "a spare worker is ready");
                *place = Some(Arc::clone(&spare));
                drop(place);
                spare
            }
        };
        spare.release();
        let programs: Vec<_> = lock(&self.programs).iter().filter_map(Weak::upgrade).collect();
        for program in programs {
            if spare.is_prepared(&program) {
                continue;
            }
            match spare.call(&program, &[]) {
                Ok(Reply::Made(number)) => spare.prepare(&program, number),
                other => return Err(spare.unexpected(other).into()),
            }
        }
        Ok(was_there)
    }
}

/// Starts a worker, and another one where it was ended from outside before it was ready, unless it is `over`.
pub(super) fn until_ready(
    mut start: impl FnMut() -> Result<Worker, StartError>,
    over: impl Fn() -> bool,
) -> Result<Worker, StartError> {
    let mut tried = 1;
    loop {
        let error = match start() {
            Err(error) => error,
            ready => return ready,
        };
        let from_outside = error.loss().is_some_and(|loss| !loss.cause.has_suspects());
        if !from_outside || tried == STARTS || over() {
            return Err(error);
        }
        tracing::warn!(error = error.chain(), "a worker did not live until it was ready; the next one");
        tried += 1;
    }
}

impl Shared {
    /// Makes the backend usable after a loss. See [`VyreBackend::recover`](vyre_driver::VyreBackend::recover).
    pub(super) fn recover(&self) -> Result<Generation, BackendError> {
        let recovery = &self.recovery;
        let mut budget = lock(&recovery.budget);
        let current = self.current.load_full();
        let Some(loss) = current.worker.loss().cloned() else { return Ok(current.generation) };
        if loss.cause == LossCause::GivenUp || recovery.is_closed() {
            return Err(BackendError::DeviceLost(loss));
        }
        let asked = Instant::now();
        let limit = self.options.stop_deadline;
        if !current.worker.bury(limit) {
            let reason = format!("{loss}; its process is not gone after {limit:?}");
            return Err(BackendError::DeviceLost(Loss { cause: loss.cause, reason }));
        }
        let gone = Instant::now();
        budget.charge(current.generation, loss.cause, gone);
        let (worker, from_spare) = if self.is_spent(&mut budget) {
            let fallback = self.last_resort(&current.worker, &loss);
            // One that was being started meanwhile is to be ended as well.
            recovery.want_spare();
            (fallback?, false)
        } else {
            self.next_worker(&mut budget)?
        };
        let fell_back = worker.pid().is_none();
        if worker.identity != self.identity && !fell_back {
            tracing::warn!(was = ?self.identity, is = ?worker.identity, "the next worker has another device");
        }
        let generation = Generation(current.generation.0 + 1);
        let replacement = Replacement {
            generation,
            loss,
            asked,
            gone_after: gone - asked,
            ready_after: gone.elapsed(),
            from_spare,
            fell_back,
        };
        tracing::info!(
            %generation,
            pid = worker.pid(),
            cause = ?replacement.loss.cause,
            reason = replacement.loss.reason,
            gone_after = ?replacement.gone_after,
            ready_after = ?replacement.ready_after,
            from_spare,
            fell_back,
            "a lost worker was replaced"
        );
        self.current.store(Arc::new(Incarnation::new(generation, worker)));
        *lock(&recovery.last) = Some(replacement);
        recovery.want_spare();
        Ok(generation)
    }

    /// Whether there is no next worker after the current one: it was given up, or is the fallback.
    fn is_past_workers(&self) -> bool {
        let worker = &self.current.load().worker;
        worker.pid().is_none() || worker.loss().is_some_and(|loss| loss.cause == LossCause::GivenUp)
    }

    fn is_spent(&self, budget: &mut Budget) -> bool {
        budget.is_spent(Instant::now(), self.options.crash_budget, self.options.forgiveness)
    }

    /// The spare, or a new one.
    fn next_worker(&self, budget: &mut Budget) -> Result<(Arc<Worker>, bool), BackendError> {
        // Asked, because it may have died so lately that nobody has been told; and where it is, because there its
        // silence is noticed.
        if let Some(asked) = self.recovery.spare().filter(|spare| spare.answers())
            && let Some(spare) = lock(&self.recovery.spare).take_if(|spare| Arc::ptr_eq(spare, &asked))
        {
            return Ok((spare, true));
        }
        let error = match until_ready(|| self.recovery.start(self), || self.recovery.is_closed()) {
            Ok(worker) => return Ok((Arc::new(worker), false)),
            Err(error) => error,
        };
        if let Some(own) = error.own_failure() {
            return Err(own);
        }
        let lost_as = error.loss().map(|loss| loss.cause);
        if lost_as.is_some_and(LossCause::has_suspects) {
            budget.crashes.push(Instant::now());
        }
        let cause = lost_as.unwrap_or(LossCause::Fault);
        let reason = format!("the next worker did not start: {}", error.chain());
        Err(BackendError::DeviceLost(Loss { cause, reason }))
    }

    /// What is left when the budget is spent.
    fn last_resort(&self, lost: &Worker, loss: &Loss) -> Result<Arc<Worker>, BackendError> {
        self.recovery.end_spare();
        let (budget, forgiveness) = (self.options.crash_budget, self.options.forgiveness);
        let reason = format!("more than {budget} crashes within {forgiveness:?}, the last of them: {loss}");
        let Some(fallback) = &self.options.fallback else {
            tracing::error!(reason, "the worker is not started again");
            return Err(lost.give_up(Loss { cause: LossCause::GivenUp, reason }));
        };
        tracing::error!(reason, fallback = fallback.identity().name, "work goes on in this process");
        Worker::here(Arc::clone(fallback), &self.options).map(Arc::new).map_err(|error| {
            let reason = format!("{reason}; and the fallback did not start: {}", error.chain());
            lost.give_up(Loss { cause: LossCause::GivenUp, reason })
        })
    }
}

/// Starts the thread that keeps a spare. It ends with its backend.
pub(super) fn start_spares(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    shared.recovery.want_spare();
    thread::Builder::new().name("vyre-spare".to_owned()).spawn(move || {
        let mut pause = LONGEST_PAUSE;
        let mut next = FIRST_PAUSE;
        loop {
            shared.recovery.wait_for_wants(pause);
            if shared.recovery.is_closed() {
                return;
            }
            if let Some(loss) = shared.recovery.take_lost_spare() {
                tracing::warn!(cause = ?loss.cause, reason = loss.reason, "the spare worker was lost");
                thread::park_timeout(next);
                next = (next * 2).min(LONGEST_PAUSE);
            }
            match shared.recovery.tend_spare(&shared) {
                // One that was just started has yet to live a while.
                Ok(was_there) => {
                    pause = LONGEST_PAUSE;
                    next = if was_there { FIRST_PAUSE } else { next };
                }
                Err(error) => {
                    tracing::warn!(error = error.chain(), "no spare worker");
                    thread::park_timeout(next);
                    (pause, next) = (Duration::ZERO, (next * 2).min(LONGEST_PAUSE));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_losses_with_suspects_count_each_once_and_are_forgiven_with_time() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let (minute, second) = (Duration::from_secs(60), Duration::from_secs(1));
        budget.charge(Generation(1), LossCause::Killed, start);
        assert!(!budget.is_spent(start, 0, minute));
        for _ in 0..3 {
            budget.charge(Generation(2), LossCause::Fault, start);
        }
        assert!(budget.is_spent(start, 0, minute) && !budget.is_spent(start, 1, minute));
        budget.charge(Generation(3), LossCause::Unresponsive, start + second);
        assert!(budget.is_spent(start + second, 1, minute));
        assert!(!budget.is_spent(start + minute, 1, minute));
        assert!(!budget.is_spent(start + minute + second, 0, minute));
    }
}
