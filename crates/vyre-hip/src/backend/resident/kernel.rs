//! The handle of a resident kernel: its state by its stream and by what it leaves in host memory.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vyre_driver::{BackendError, Generation, KernelState, Loss, ResidentKernel};

use super::super::GENERATION;
use super::memory::{COMMAND, Memory, STATUS};
use crate::DeviceError;
use crate::device::{PinnedMemory, RegisteredMemory, ReleaseHold, Stream};

/// Bytes of pinned memory that a kernel has.
pub(super) const PINNED_BYTES: u64 = 192;

/// How long the kernel may take to say that it is resident; it gives up by itself before.
const START_DEADLINE: Duration = Duration::from_secs(5);

/// How long a dropped kernel is given to leave before all that it uses is leaked.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at a kernel that is to leave.
const LOOK: Duration = Duration::from_micros(50);

/// How far a kernel is on its way out, as in `kernels/resident/live.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
enum Phase {
    Quiescing = 1,
    ShutDown = 2,
    Aborting = 3,
}

/// What the kernel says of its start.
const RESIDENT: u32 = 1;
const NOT_RESIDENT: u32 = 2;

/// What a kernel uses. Dropped in this order: the hold goes last, and gives back the rest.
pub(super) struct Parts {
    pub(super) stream: Stream,
    #[allow(dead_code, reason = "kept for the kernel, and never read")]
    pub(super) memory: Memory,
    #[allow(dead_code, reason = "as above")]
    pub(super) h2d: Arc<RegisteredMemory>,
    #[allow(dead_code, reason = "as above")]
    pub(super) d2h: Arc<RegisteredMemory>,
    pub(super) pinned: Arc<PinnedMemory>,
    #[allow(dead_code, reason = "as above: what is bound stays while this does")]
    pub(super) holder: Arc<str>,
    #[allow(dead_code, reason = "as above")]
    pub(super) hold: ReleaseHold,
}

/// The handle.
pub(super) struct Kernel {
    pinned: Arc<PinnedMemory>,
    state: Mutex<State>,
}

enum State {
    Running(Box<Parts>),
    Over(KernelState),
}

impl Kernel {
    pub(super) fn new(parts: Parts) -> Kernel {
        Kernel { pinned: Arc::clone(&parts.pinned), state: Mutex::new(State::Running(Box::new(parts))) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn word(&self, offset: u64) -> u32 {
        self.pinned.word(offset).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Looks whether it has left, and if so gives back what it used.
    fn look(&self) -> KernelState {
        let mut state = self.lock();
        let now = match &*state {
            State::Over(over) => return over.clone(),
            State::Running(parts) => match parts.stream.is_idle() {
                Ok(false) => return KernelState::Running,
                Ok(true) => match self.word(STATUS + 8) {
                    phase if phase == Phase::ShutDown as u32 => KernelState::ShutDown,
                    phase if phase == Phase::Quiescing as u32 => KernelState::Stopped,
                    _ => KernelState::CutShort,
                },
                Err(error @ DeviceError::Lost(_)) => {
                    let reason =
                        std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
                    KernelState::Lost(Loss::fault(reason))
                }
                Err(error) => {
                    tracing::warn!(%error, "a resident kernel could not be looked at");
                    return KernelState::Running;
                }
            },
        };
        let over = std::mem::replace(&mut *state, State::Over(now.clone()));
        drop(state);
        // Outside the lock: giving back takes its time.
        drop(over);
        now
    }

    /// Waits until all workgroups run at once.
    pub(super) fn wait_until_resident(&self, grid: u32) -> Result<(), BackendError> {
        let until = Instant::now() + START_DEADLINE;
        loop {
            let said = self.word(STATUS);
            if said == RESIDENT {
                return Ok(());
            }
            let state = self.look();
            if let KernelState::Lost(loss) = state {
                return Err(BackendError::DeviceLost(loss));
            }
            // A kernel as short as a shutdown may have been resident and have left.
            if self.word(STATUS) == RESIDENT {
                return Ok(());
            }
            if said == NOT_RESIDENT || state != KernelState::Running || Instant::now() >= until {
                let arrived = self.word(STATUS + 4);
                self.command(Phase::Aborting);
                return Err(BackendError::Deadline {
                    waited_for: format!(
                        "the {grid} workgroups of a resident kernel to run at once; {arrived} did, so another \
                         program may use the device, or a profiler or debugger may take turns"
                    ),
                    after: START_DEADLINE,
                });
            }
            thread::yield_now();
        }
    }

    fn command(&self, phase: Phase) {
        if let Ok(word) = self.pinned.word(COMMAND) {
            word.fetch_max(phase as u32, Ordering::Release);
        }
    }

    fn leave(&self, how: Phase, deadline: Duration, waited_for: &str) -> Result<(), BackendError> {
        self.command(how);
        let start = Instant::now();
        loop {
            match self.look() {
                KernelState::Running => {}
                KernelState::Lost(loss) => return Err(BackendError::DeviceLost(loss)),
                _ => return Ok(()),
            }
            if start.elapsed() >= deadline {
                let waited_for = waited_for.to_owned();
                return Err(BackendError::Deadline { waited_for, after: deadline });
            }
            thread::sleep(LOOK);
        }
    }
}

impl ResidentKernel for Kernel {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn state(&self) -> KernelState {
        self.look()
    }

    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError> {
        self.leave(Phase::Quiescing, deadline, "the resident kernel to finish what it has claimed")
    }

    fn reap(&self, deadline: Duration) -> Result<(), BackendError> {
        self.leave(Phase::Aborting, deadline, "the resident kernel to leave")
    }

    /// The kernel looks at the host's memory by itself.
    fn ring_doorbell(&self) {}

    fn parks(&self) -> bool {
        false
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let Err(error) = self.reap(DROP_DEADLINE) else { return };
        let state = std::mem::replace(&mut *self.lock(), State::Over(KernelState::CutShort));
        if !matches!(error, BackendError::DeviceLost(_)) {
            tracing::error!(%error, "a dropped resident kernel has not left; what it uses is leaked");
            std::mem::forget(state);
        }
    }
}
