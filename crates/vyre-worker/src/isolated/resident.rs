//! Resident kernels in a worker: started and ended by requests, fed through memory of both processes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use vyre_driver::layout::HEARTBEAT;
use vyre_driver::region::{SessionRegions, SharedRegion};
use vyre_driver::wait::Notifier;
use vyre_driver::{
    BackendError, Generation, KernelState, LossCause, ResidentBinding, ResidentKernel, ResidentPipeline,
    StartRequest,
};

use super::worker::{Worker, lock};
use super::{Incarnation, Made};
use crate::host::message::{Bound, Reply, Request};

/// How long a dropped kernel is given to leave before its worker is ended.
const DROP_DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct CompiledResident(pub(super) Made);

impl ResidentPipeline for CompiledResident {
    fn generation(&self) -> Generation {
        self.0.incarnation.generation
    }

    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        let worker = self.0.check()?;
        let incarnation = &self.0.incarnation;
        incarnation.check()?;
        let bindings = request.bindings.iter().map(|binding| match binding {
            ResidentBinding::Buffer(binding) => Ok(Bound::Buffer(incarnation.range(binding)?)),
            ResidentBinding::HostToDevice { byte_offset, byte_len } => {
                Ok(Bound::HostToDevice { byte_offset: *byte_offset, byte_len: *byte_len })
            }
        });
        let mirrors = request.mirrors.iter();
        let mirrors = mirrors.map(|mirror| Ok((incarnation.range(&mirror.source)?, mirror.d2h_offset)));
        let asked = Request::Start {
            pipeline: self.0.remote.number,
            holder: request.holder,
            bindings: bindings.collect::<Result<_, BackendError>>()?,
            mirrors: mirrors.collect::<Result<_, BackendError>>()?,
            item_deadline: request.item_deadline,
            lease: request.lease,
        };
        let SessionRegions { h2d, d2h, .. } = &request.regions;
        let writable = self.0.shared.options.writable_regions;
        let read_only = if writable { None } else { Some(read_only(h2d)?) };
        let fds = [read_only.as_ref().map_or(h2d.fd(), AsFd::as_fd), d2h.fd()];
        let doorbell = Notifier::doorbell(&request.regions)
            .map_err(|error| BackendError::invalid("regions", error, "h2d mapped for writing"))?;
        let (number, slot) = match worker.call(&asked, &fds) {
            Ok(Reply::Started { kernel, slot }) => (kernel, slot),
            other => return Err(worker.unexpected(other)),
        };
        let kernel = Arc::new(Kernel {
            incarnation: Arc::clone(incarnation),
            number,
            slot,
            d2h: Arc::clone(d2h),
            doorbell,
            left: OnceLock::new(),
        });
        let mut kernels = lock(&worker.kernels);
        kernels.retain(|kernel| kernel.strong_count() > 0);
        kernels.push(Arc::downgrade(&kernel));
        drop(kernels);
        Ok(kernel)
    }
}

/// The same memory through a descriptor that cannot be mapped for writing: a device never writes that region.
fn read_only(region: &SharedRegion) -> Result<OwnedFd, BackendError> {
    let path = format!("/proc/self/fd/{}", region.fd().as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        BackendError::Driver {
            call: "open(/proc/self/fd)",
            code: errno.raw_os_error().into(),
            text: format!("{errno}: a read-only descriptor of the h2d region; see that /proc is mounted"),
        }
    })
}

/// A running incarnation of a megakernel, in a worker.
pub(super) struct Kernel {
    incarnation: Arc<Incarnation>,
    number: u64,
    slot: u32,
    d2h: Arc<SharedRegion>,
    doorbell: Notifier,
    /// How it left.
    left: OnceLock<KernelState>,
}

impl Kernel {
    fn worker(&self) -> &Worker {
        &self.incarnation.worker
    }

    /// Its own heartbeat while it runs, to be compared with an earlier one.
    pub(super) fn heartbeat(&self) -> Option<u64> {
        let running = self.state() == KernelState::Running;
        let word = self.d2h.word_u64(HEARTBEAT).ok().filter(|_| running)?;
        Some(word.load(std::sync::atomic::Ordering::Relaxed))
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Asks it to leave. `Ok` once it has.
    fn leave(&self, request: &Request) -> Result<(), BackendError> {
        if self.left.get().is_some() {
            return Ok(());
        }
        match self.worker().call(request, &[]) {
            Ok(Reply::Stands(state)) => match KernelState::from(state) {
                KernelState::Lost(loss) => Err(self.worker().condemn(loss.cause, loss.reason)),
                KernelState::Running => {
                    let reason = "a kernel that it said has left runs".to_owned();
                    Err(self.worker().condemn(LossCause::Fault, reason))
                }
                state => {
                    self.left.get_or_init(|| state);
                    Ok(())
                }
            },
            other => Err(self.worker().unexpected(other)),
        }
    }
}

impl ResidentKernel for Kernel {
    fn generation(&self) -> Generation {
        self.incarnation.generation
    }

    fn state(&self) -> KernelState {
        if let Some(state) = self.left.get() {
            return state.clone();
        }
        let state = self.worker().kernel_state(self.slot, self.number);
        if matches!(state, KernelState::Running | KernelState::Lost(_)) {
            return state;
        }
        self.left.get_or_init(|| state).clone()
    }

    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError> {
        self.leave(&Request::Quiesce { kernel: self.number, deadline })
    }

    /// A kernel that does not leave in time is ended with its worker.
    fn reap(&self, deadline: Duration) -> Result<(), BackendError> {
        match self.leave(&Request::Reap { kernel: self.number, deadline }) {
            Err(BackendError::Deadline { .. }) => {
                let reason = format!("a kernel did not leave within {deadline:?} when it was reaped");
                Err(self.worker().condemn(LossCause::Unresponsive, reason))
            }
            left => left,
        }
    }

    fn ring_doorbell(&self) {
        self.doorbell.notify();
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.worker().loss().is_some() {
            return;
        }
        let reaped = self.reap(DROP_DEADLINE);
        let released = reaped.and_then(|()| {
            self.worker().call(&Request::ReleaseKernel { kernel: self.number }, &[]).map(drop)
        });
        match released {
            Ok(()) => {}
            Err(error) if error.is_device_loss() => {
                tracing::warn!(%error, "a kernel was dropped with its worker")
            }
            Err(error) => {
                tracing::warn!(%error, "a dropped kernel runs on in its worker until its lease is over or it is asked again");
                self.worker().release_later(Request::ReleaseKernel { kernel: self.number });
            }
        }
    }
}
