//! What happens after a device loss: decide once, rebuild once, run again once.
//!
//! A loss is recognised by [`BackendError::is_device_loss`], never by words. `Recoverable` holds what was
//! built for one device generation. However many threads notice that it is gone, one of them recovers the
//! backend and builds again, and the others wait for what it got, good or bad. A rebuild that fails leaves
//! the old build in place, where every use of it answers with the loss again, and hands out the backend's
//! own error.
//!
//! Whether work may run twice is not decided here: the caller says so, because only it knows what the work
//! has touched. What a live session does with its unacknowledged tickets is in
//! [`crate::session`]; both go through the same rebuild.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use vyre_driver::{BackendError, Generation, LossCause, VyreBackend};

use crate::error::MegakernelError;

/// What to do about a device loss without being asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MegakernelRecoveryPolicy {
    /// Nothing: the loss is the answer, until `recover_after_device_loss` is called by hand.
    Off,
    /// Recover and rebuild once for each loss, and run again once whatever may run twice.
    #[default]
    Once,
}

/// What was decided about one failed run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MegakernelRecoveryDecision {
    /// The device is not lost, so there is nothing to recover.
    NotALoss,
    /// The device is lost for good ([`LossCause::GivenUp`]): nothing is tried any more.
    GivenUp,
    /// The device is lost, and the policy says to leave it so.
    PolicyOff,
    /// The device is lost; it is rebuilt, but the work may not run twice.
    RebuildOnly,
    /// The device is lost; it is rebuilt, and the work runs once more.
    RebuildAndRetry,
}

impl MegakernelRecoveryDecision {
    /// Decides about the first failure of a run in generation `ran_in`; a second one is final. `replayable`
    /// says whether the work may run twice.
    ///
    /// A loss is what [`BackendError::is_device_loss`] says, and the refusal of a handle of `ran_in` by a
    /// device that is past it: somebody else recovered while the run was on its way.
    pub fn decide(
        error: &BackendError,
        ran_in: Generation,
        policy: MegakernelRecoveryPolicy,
        replayable: bool,
    ) -> Self {
        let overtaken = matches!(error, BackendError::StaleHandle { generation, current, .. }
            if *generation == ran_in && *current > ran_in);
        if is_given_up(error) {
            return MegakernelRecoveryDecision::GivenUp;
        }
        match (error.is_device_loss() || overtaken, policy, replayable) {
            (false, ..) => MegakernelRecoveryDecision::NotALoss,
            (true, MegakernelRecoveryPolicy::Off, _) => MegakernelRecoveryDecision::PolicyOff,
            (true, MegakernelRecoveryPolicy::Once, false) => MegakernelRecoveryDecision::RebuildOnly,
            (true, MegakernelRecoveryPolicy::Once, true) => MegakernelRecoveryDecision::RebuildAndRetry,
        }
    }
}

/// Whether the backend will not try again.
fn is_given_up(error: &BackendError) -> bool {
    error.loss().is_some_and(|loss| loss.cause == LossCause::GivenUp)
}

/// Something built for one device generation, and rebuilt for the next.
pub(crate) struct Recoverable<T> {
    backend: Arc<dyn VyreBackend>,
    current: ArcSwap<Built<T>>,
    /// Held for the length of a rebuild. What the last one answered, if it failed, and what was lost then.
    failed: Mutex<Option<(Generation, BackendError)>>,
}

/// How often something is built or started for the first time while its device keeps getting lost.
pub(crate) const ATTEMPTS: u32 = 4;

/// What a [`Recoverable`] holds at one time.
pub(crate) struct Built<T> {
    /// The generation it was built in.
    pub(crate) generation: Generation,
    /// What was built.
    pub(crate) parts: T,
}

/// Who asks for a rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The recovery policy: one attempt for each loss, whose answer everybody gets.
    ByPolicy,
    /// The user: a new attempt if the last one failed.
    ByHand,
}

impl<T: Send + Sync> Recoverable<T> {
    /// Builds for the first time. Nothing is lost with the device yet, so losing it costs further attempts, if the
    /// policy allows any.
    pub(crate) fn new(
        backend: Arc<dyn VyreBackend>,
        policy: MegakernelRecoveryPolicy,
        mut build: impl FnMut(&dyn VyreBackend) -> Result<T, BackendError>,
    ) -> Result<Recoverable<T>, BackendError> {
        let mut attempts = 1;
        loop {
            let generation = backend.generation();
            let error = match build(backend.as_ref()) {
                Ok(parts) => {
                    let current = ArcSwap::from_pointee(Built { generation, parts });
                    return Ok(Recoverable { backend, current, failed: Mutex::default() });
                }
                Err(error) => error,
            };
            let decision = MegakernelRecoveryDecision::decide(&error, generation, policy, true);
            if decision != MegakernelRecoveryDecision::RebuildAndRetry || attempts == ATTEMPTS {
                return Err(error);
            }
            attempts += 1;
            tracing::warn!(%error, "the device was lost while it was built for; once more");
            backend.recover()?;
        }
    }

    /// What is built now.
    pub(crate) fn current(&self) -> Arc<Built<T>> {
        self.current.load_full()
    }

    /// Has something else built for the current generation from now on; hands out what was. Not while somebody
    /// rebuilds.
    pub(crate) fn replace(&self, built: Arc<Built<T>>) -> Arc<Built<T>> {
        self.current.swap(built)
    }

    /// What is built for a generation later than `lost`: what somebody else has built already, or the
    /// result of recovering the backend and calling `build`. A device that turns out not to be lost
    /// changes nothing.
    pub(crate) fn rebuild(
        &self,
        lost: Generation,
        asked: Asked,
        build: impl FnOnce(&dyn VyreBackend) -> Result<T, BackendError>,
    ) -> Result<Arc<Built<T>>, BackendError> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        if current.generation > lost {
            return Ok(current);
        }
        if let Some((generation, error)) = failed.as_ref()
            && (is_given_up(error) || asked == Asked::ByPolicy && *generation == lost)
        {
            return Err(error.clone());
        }
        let rebuilt = self.backend.recover().and_then(|generation| {
            if generation == current.generation {
                return Ok(None);
            }
            tracing::warn!(%lost, %generation, "device lost; rebuilding");
            build(self.backend.as_ref()).map(|parts| Some(Built { generation, parts }))
        });
        match rebuilt {
            Ok(None) => Ok(current),
            Ok(Some(built)) => {
                let built = Arc::new(built);
                self.current.store(Arc::clone(&built));
                *failed = None;
                Ok(built)
            }
            Err(error) => {
                tracing::error!(%lost, %error, "the rebuild after a device loss failed");
                *failed = Some((lost, error.clone()));
                Err(error)
            }
        }
    }

    /// Runs something against what is built now. After a device loss the policy decides whether it is
    /// rebuilt, and, if `replayable` says of the failed run that it may be repeated, runs once more. The
    /// flag beside the answer tells whether that happened.
    pub(crate) fn run_with_recovery<R>(
        &self,
        policy: MegakernelRecoveryPolicy,
        mut run: impl FnMut(&Built<T>) -> Result<R, MegakernelError>,
        replayable: impl FnOnce() -> bool,
        build: impl FnOnce(&dyn VyreBackend) -> Result<T, BackendError>,
    ) -> Result<(R, bool), MegakernelError> {
        let built = self.current();
        let error = match run(&built) {
            Ok(answer) => return Ok((answer, false)),
            Err(error) => error,
        };
        let MegakernelError::Backend { source, .. } = &error else { return Err(error) };
        let decision = MegakernelRecoveryDecision::decide(source, built.generation, policy, replayable());
        match decision {
            MegakernelRecoveryDecision::GivenUp => {
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((built.generation, source.clone()));
                Err(error)
            }
            MegakernelRecoveryDecision::NotALoss | MegakernelRecoveryDecision::PolicyOff => Err(error),
            MegakernelRecoveryDecision::RebuildOnly | MegakernelRecoveryDecision::RebuildAndRetry => {
                let rebuilt = self
                    .rebuild(built.generation, Asked::ByPolicy, build)
                    .map_err(MegakernelError::backend("recover after a device loss"))?;
                if decision == MegakernelRecoveryDecision::RebuildOnly {
                    return Err(error);
                }
                run(&rebuilt).map(|answer| (answer, true))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    use vyre_cpu::CpuBackend;

    use super::*;
    use crate::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};

    fn lost() -> BackendError {
        BackendError::DeviceLost(vyre_driver::Loss::fault("a test"))
    }

    fn given_up() -> BackendError {
        let reason = "a test, too often".to_owned();
        BackendError::DeviceLost(vyre_driver::Loss { cause: LossCause::GivenUp, reason })
    }

    fn driver(text: &str) -> BackendError {
        BackendError::Driver { call: "test", code: 1, text: text.to_owned() }
    }

    #[test]
    fn a_loss_is_a_kind_of_error_and_not_a_choice_of_words() {
        use MegakernelRecoveryDecision::{GivenUp, NotALoss, PolicyOff, RebuildAndRetry, RebuildOnly};
        use MegakernelRecoveryPolicy::{Off, Once};
        let stale = |generation, current| BackendError::StaleHandle {
            id: 1,
            generation: Generation(generation),
            current: Generation(current),
        };
        let table = [
            (driver("device lost"), Once, true, NotALoss),
            (driver("device lost"), Off, true, NotALoss),
            (BackendError::invalid("device", "lost", "found"), Once, true, NotALoss),
            (given_up(), Once, true, GivenUp),
            (given_up(), Off, false, GivenUp),
            (lost(), Off, true, PolicyOff),
            (lost(), Once, false, RebuildOnly),
            (lost(), Once, true, RebuildAndRetry),
            // Overtaken by somebody else's recovery; a handle that was stale before is the caller's mistake.
            (stale(3, 4), Once, true, RebuildAndRetry),
            (stale(3, 3), Once, true, NotALoss),
            (stale(2, 3), Once, true, NotALoss),
        ];
        for (error, policy, replayable, expected) in table {
            let decided = MegakernelRecoveryDecision::decide(&error, Generation(3), policy, replayable);
            assert_eq!(decided, expected, "{error} {policy:?} {replayable}");
        }
    }

    #[test]
    fn sixteen_threads_that_see_one_loss_rebuild_once() {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let builds = AtomicU64::new(0);
        let build = |backend: &dyn VyreBackend| {
            builds.fetch_add(1, Ordering::Relaxed);
            Ok(backend.generation())
        };
        let recoverable = Recoverable::new(Arc::clone(&backend) as _, MegakernelRecoveryPolicy::Off, build)
            .expect("nothing fails");
        for loss in 1..=5 {
            backend.lose("a test");
            let together = Barrier::new(16);
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        let seen = recoverable.current().generation;
                        together.wait();
                        let rebuilt = recoverable.rebuild(seen, Asked::ByPolicy, build).expect("recovers");
                        assert_eq!(rebuilt.parts, Generation(loss + 1));
                    });
                }
            });
            assert_eq!(builds.load(Ordering::Relaxed), loss + 1);
            assert_eq!(backend.passes(FaultPoint::Recover), loss);
        }
    }

    #[test]
    fn a_rebuild_that_fails_fails_once_for_everybody_and_keeps_the_old_build() {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let recoverable =
            Recoverable::new(Arc::clone(&backend) as _, MegakernelRecoveryPolicy::Off, |_| Ok(1))
                .expect("nothing fails");
        backend.lose("a test");
        let attempts = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let rebuilt = recoverable.rebuild(Generation(1), Asked::ByPolicy, |_| {
                        attempts.fetch_add(1, Ordering::Relaxed);
                        Err(driver("the very words"))
                    });
                    assert!(rebuilt.is_err_and(|error| error.to_string().contains("the very words")));
                });
            }
        });
        assert_eq!(attempts.into_inner(), 1);
        assert_eq!(recoverable.current().parts, 1);
        let rebuilt = recoverable.rebuild(Generation(1), Asked::ByHand, |_| Ok(2)).expect("once more");
        assert_eq!((rebuilt.parts, rebuilt.generation), (2, Generation(2)));
        let again = recoverable.rebuild(Generation(2), Asked::ByHand, |_| Ok(3)).expect("nothing is lost");
        assert_eq!(again.parts, 2);
    }

    #[test]
    fn after_a_device_was_given_up_nothing_is_tried_again() {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let recoverable =
            Recoverable::new(Arc::clone(&backend) as _, MegakernelRecoveryPolicy::Off, |_| Ok(()))
                .expect("nothing fails");
        let run = |_: &Built<()>| Err::<(), _>(MegakernelError::backend("run")(given_up()));
        let once = MegakernelRecoveryPolicy::Once;
        let error = recoverable.run_with_recovery(once, run, || true, |_| Ok(())).expect_err("given up");
        assert!(error.is_device_loss() && !error.is_retryable(), "{error:?}");
        for asked in [Asked::ByPolicy, Asked::ByHand] {
            let rebuilt = recoverable.rebuild(Generation(1), asked, |_| Ok(()));
            assert!(rebuilt.is_err_and(|error| is_given_up(&error)));
        }
        assert_eq!(backend.passes(FaultPoint::Recover), 0);
    }

    #[test]
    fn a_device_lost_while_it_is_built_for_is_built_for_again_as_the_policy_says() {
        let attempted = |losses: u32, policy| {
            let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
            let mut attempts = 0;
            let built = Recoverable::new(Arc::clone(&backend) as _, policy, |_| {
                attempts += 1;
                if attempts <= losses {
                    backend.lose("a test");
                    return Err(lost());
                }
                Ok(backend.generation())
            });
            (attempts, built.ok().map(|built| (built.current().generation.0, built.current().parts.0)))
        };
        use MegakernelRecoveryPolicy::{Off, Once};
        assert_eq!(attempted(0, Once), (1, Some((1, 1))));
        assert_eq!(attempted(ATTEMPTS - 1, Once), (ATTEMPTS, Some((ATTEMPTS.into(), ATTEMPTS.into()))));
        assert_eq!(attempted(ATTEMPTS, Once), (ATTEMPTS, None));
        assert_eq!(attempted(1, Off), (1, None));
    }

    #[test]
    fn a_run_is_repeated_once_at_most() {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let recoverable =
            Recoverable::new(Arc::clone(&backend) as _, MegakernelRecoveryPolicy::Off, |_| Ok(()))
                .expect("nothing fails");
        let attempted = |replayable, failures: u64, policy| {
            let mut runs = 0;
            let outcome = recoverable.run_with_recovery(
                policy,
                |_| {
                    runs += 1;
                    if runs <= failures {
                        backend.lose("a test");
                        return Err(MegakernelError::backend("run")(lost()));
                    }
                    Ok(())
                },
                || replayable,
                |_| Ok(()),
            );
            if outcome.is_err() {
                recoverable
                    .rebuild(recoverable.current().generation, Asked::ByHand, |_| Ok(()))
                    .expect("recovers");
            }
            (runs, outcome.map(|((), again)| again).ok())
        };
        use MegakernelRecoveryPolicy::{Off, Once};
        assert_eq!(attempted(true, 0, Once), (1, Some(false)));
        assert_eq!(attempted(true, 1, Once), (2, Some(true)));
        assert_eq!(attempted(true, 2, Once), (2, None));
        assert_eq!(attempted(false, 1, Once), (1, None));
        assert_eq!(attempted(true, 1, Off), (1, None));
        backend.arm(FaultPoint::Recover, 0, InjectedFault::Failure);
        assert_eq!(attempted(true, 1, Once), (1, None));
    }
}
