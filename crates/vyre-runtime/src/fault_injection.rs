//! A backend that fails when told to: the proof that recovery works.
//!
//! [`FaultInjectingBackend`] wraps a working backend and passes every call through, counting. An armed
//! [`FaultPoint`] turns one pass into a failure, or into the loss of the device: every buffer is gone, every
//! resident kernel dies where it stands, every call fails until [`VyreBackend::recover`], and handles and
//! pipelines from before are refused. The wrapped backend itself is never lost, so a test can compare what
//! survives a loss with what would have happened without one.
//!
//! Compiled for tests and under the feature `fault-injection` only.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vyre_driver::{
    BackendError, BackendIdentity, BufferBinding, BufferDesc, BufferHandle, Capabilities, CompiledPipeline,
    DispatchConfig, DispatchOutcome, Generation, KernelState, Loss, Mirror, ResidentBinding, ResidentKernel,
    ResidentPipeline, ResidentSpec, StartRequest, VyreBackend,
};
use vyre_foundation::ValidatedProgram;

/// How long a loss waits for the wrapped backend's kernels to be gone.
const REAP_DEADLINE: Duration = Duration::from_secs(10);

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FaultPoint {
    /// [`VyreBackend::compile`].
    Compile,
    /// [`VyreBackend::compile_resident`].
    CompileResident,
    /// [`VyreBackend::create_buffer`].
    CreateBuffer,
    /// [`VyreBackend::destroy_buffer`].
    DestroyBuffer,
    /// [`VyreBackend::write_buffer`].
    WriteBuffer,
    /// [`VyreBackend::read_buffer`].
    ReadBuffer,
    /// [`CompiledPipeline::dispatch`], before anything ran.
    Dispatch,
    /// [`CompiledPipeline::dispatch`], after everything ran: the effects are there, the answer is not.
    AfterDispatch,
    /// [`ResidentPipeline::start`], before the kernel runs.
    Start,
    /// [`ResidentPipeline::start`], when the kernel already runs.
    AfterStart,
    /// [`ResidentKernel::ring_doorbell`]: something was just published.
    Doorbell,
    /// [`ResidentKernel::state`]: the host looks after a running kernel.
    State,
    /// [`ResidentKernel::quiesce`], while the kernel still claims.
    Quiesce,
    /// [`ResidentKernel::reap`].
    Reap,
    /// [`VyreBackend::recover`].
    Recover,
}

/// What an armed point does when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectedFault {
    /// The device is lost.
    Loss,
    /// The call alone fails, with [`BackendError::Driver`]; nothing is lost.
    Failure,
}

/// A backend that fails when told to. See the [module documentation](self).
pub struct FaultInjectingBackend {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<dyn VyreBackend>,
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lost: Option<String>,
    passes: BTreeMap<FaultPoint, u64>,
    armed: Vec<Armed>,
    next_buffer: u64,
    buffers: HashMap<u64, BufferHandle>,
    kernels: Vec<Weak<dyn ResidentKernel>>,
}

struct Armed {
    point: FaultPoint,
    at_pass: u64,
    fault: InjectedFault,
}

impl FaultInjectingBackend {
    /// Wraps a backend.
    pub fn new(inner: Arc<dyn VyreBackend>) -> FaultInjectingBackend {
        let generation = AtomicU64::new(1);
        FaultInjectingBackend { shared: Arc::new(Shared { inner, generation, state: Mutex::default() }) }
    }

    /// Makes a later pass of `point` fail: the next one for `skip` 0.
    pub fn arm(&self, point: FaultPoint, skip: u64, fault: InjectedFault) {
        let mut state = self.shared.lock();
        let passed = state.passes.get(&point).copied().unwrap_or(0);
        state.armed.push(Armed { point, at_pass: passed.saturating_add(skip).saturating_add(1), fault });
    }

    /// Loses the device now.
    pub fn lose(&self, reason: &str) {
        self.shared.lose(reason);
    }

    /// How often `point` was passed, failures included.
    pub fn passes(&self, point: FaultPoint) -> u64 {
        self.shared.lock().passes.get(&point).copied().unwrap_or(0)
    }

    /// Buffers alive now.
    pub fn live_buffers(&self) -> usize {
        self.shared.lock().buffers.len()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Counts a pass of a point, and takes out what is armed for it.
    fn count(&self, point: FaultPoint) -> Option<InjectedFault> {
        let mut state = self.lock();
        let passes = state.passes.entry(point).or_insert(0);
        *passes += 1;
        let now = *passes;
        let fired = state.armed.iter().position(|armed| armed.point == point && armed.at_pass == now);
        fired.map(|index| state.armed.swap_remove(index).fault)
    }

    /// Counts a pass and answers what the plan says, a loss already suffered included.
    fn pass(&self, point: FaultPoint) -> Result<(), BackendError> {
        let fired = self.count(point);
        if point != FaultPoint::Recover
            && let Some(reason) = &self.lock().lost
        {
            return Err(BackendError::DeviceLost(Loss::fault(reason.clone())));
        }
        match fired {
            None => Ok(()),
            Some(InjectedFault::Loss) => {
                let reason = format!("injected at {point:?}");
                self.lose(&reason);
                Err(BackendError::DeviceLost(Loss::fault(reason)))
            }
            Some(InjectedFault::Failure) => Err(injected(point)),
        }
    }

    fn lose(&self, reason: &str) {
        let (kernels, buffers) = {
            let mut state = self.lock();
            if state.lost.is_some() {
                return;
            }
            state.lost = Some(reason.to_owned());
            (std::mem::take(&mut state.kernels), std::mem::take(&mut state.buffers))
        };
        for kernel in kernels.iter().filter_map(Weak::upgrade) {
            if let Err(error) = kernel.reap(REAP_DEADLINE) {
                tracing::error!(%error, "a kernel outlived its injected loss");
            }
        }
        for buffer in buffers.into_values() {
            if let Err(error) = self.inner.destroy_buffer(buffer) {
                tracing::error!(%error, "a buffer outlived its injected loss");
            }
        }
    }

    fn inner_handle(&self, outer: BufferHandle) -> Result<BufferHandle, BackendError> {
        let current = self.current();
        let stale = || BackendError::StaleHandle { id: outer.id, generation: outer.generation, current };
        if outer.generation != current {
            return Err(stale());
        }
        let state = self.lock();
        if let Some(reason) = &state.lost {
            return Err(BackendError::DeviceLost(Loss::fault(reason.clone())));
        }
        state.buffers.get(&outer.id).copied().ok_or_else(stale)
    }

    /// What the wrapped backend answered, or the loss that happened meanwhile and made it answer so.
    fn answer<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        match (result, &self.lock().lost) {
            (Err(_), Some(reason)) => Err(BackendError::DeviceLost(Loss::fault(reason.clone()))),
            (result, _) => result,
        }
    }

    fn inner_binding(&self, outer: BufferBinding) -> Result<BufferBinding, BackendError> {
        Ok(BufferBinding { buffer: self.inner_handle(outer.buffer)?, ..outer })
    }

    fn check_pipeline(&self, generation: Generation) -> Result<(), BackendError> {
        let current = self.current();
        if generation == current {
            return Ok(());
        }
        Err(BackendError::StaleHandle { id: 0, generation, current })
    }
}

impl VyreBackend for FaultInjectingBackend {
    fn identity(&self) -> &BackendIdentity {
        self.shared.inner.identity()
    }

    fn capabilities(&self) -> &Capabilities {
        self.shared.inner.capabilities()
    }

    fn generation(&self) -> Generation {
        self.shared.current()
    }

    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        self.shared.pass(FaultPoint::Compile)?;
        let generation = self.shared.current();
        let inner = self.shared.inner.compile(program)?;
        Ok(Arc::new(InjectedPipeline { shared: Arc::clone(&self.shared), inner, generation }))
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        self.shared.pass(FaultPoint::CompileResident)?;
        let generation = self.shared.current();
        let inner = self.shared.inner.compile_resident(spec)?;
        Ok(Arc::new(InjectedResident { shared: Arc::clone(&self.shared), inner, generation }))
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        self.shared.pass(FaultPoint::CreateBuffer)?;
        let inner = self.shared.inner.create_buffer(desc)?;
        let mut state = self.shared.lock();
        state.next_buffer += 1;
        let id = state.next_buffer;
        state.buffers.insert(id, inner);
        Ok(BufferHandle { id, generation: self.shared.current(), ..inner })
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.shared.pass(FaultPoint::DestroyBuffer)?;
        let inner = self.shared.inner_handle(buffer)?;
        self.shared.lock().buffers.remove(&buffer.id);
        self.shared.inner.destroy_buffer(inner)
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.shared.pass(FaultPoint::WriteBuffer)?;
        let inner = self.shared.inner_handle(buffer)?;
        self.shared.answer(self.shared.inner.write_buffer(inner, byte_offset, bytes))
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        self.shared.pass(FaultPoint::ReadBuffer)?;
        let inner = self.shared.inner_handle(buffer)?;
        self.shared.answer(self.shared.inner.read_buffer(inner, byte_offset, into))
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        self.shared.pass(FaultPoint::Recover)?;
        let mut state = self.shared.lock();
        if state.lost.take().is_some() {
            self.shared.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(self.shared.current())
    }
}

/// The error of a failure that is no loss.
fn injected(point: FaultPoint) -> BackendError {
    BackendError::Driver { call: "fault_injection", code: -1, text: format!("injected failure at {point:?}") }
}

struct InjectedPipeline {
    shared: Arc<Shared>,
    inner: Arc<dyn CompiledPipeline>,
    generation: Generation,
}

impl CompiledPipeline for InjectedPipeline {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn dispatch(
        &self,
        bindings: &[BufferBinding],
        config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError> {
        self.shared.pass(FaultPoint::Dispatch)?;
        self.shared.check_pipeline(self.generation)?;
        let bindings: Result<Vec<_>, _> = bindings.iter().map(|b| self.shared.inner_binding(*b)).collect();
        let outcome = self.shared.answer(self.inner.dispatch(&bindings?, config))?;
        self.shared.pass(FaultPoint::AfterDispatch)?;
        Ok(outcome)
    }
}

struct InjectedResident {
    shared: Arc<Shared>,
    inner: Arc<dyn ResidentPipeline>,
    generation: Generation,
}

impl ResidentPipeline for InjectedResident {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        self.shared.pass(FaultPoint::Start)?;
        self.shared.check_pipeline(self.generation)?;
        let mut request = request;
        for binding in &mut request.bindings {
            if let ResidentBinding::Buffer(buffer) = binding {
                *buffer = self.shared.inner_binding(*buffer)?;
            }
        }
        for mirror in &mut request.mirrors {
            *mirror = Mirror { source: self.shared.inner_binding(mirror.source)?, ..*mirror };
        }
        let inner = self.shared.answer(self.inner.start(request))?;
        {
            let mut state = self.shared.lock();
            state.kernels.retain(|kernel| kernel.strong_count() > 0);
            state.kernels.push(Arc::downgrade(&inner));
        }
        let kernel = InjectedKernel { shared: Arc::clone(&self.shared), inner, generation: self.generation };
        self.shared.pass(FaultPoint::AfterStart)?;
        Ok(Arc::new(kernel))
    }
}

struct InjectedKernel {
    shared: Arc<Shared>,
    inner: Arc<dyn ResidentKernel>,
    generation: Generation,
}

impl InjectedKernel {
    /// Why this incarnation is dead, if it is.
    fn lost(&self) -> Option<String> {
        if self.generation != self.shared.current() {
            return Some("an earlier loss".to_owned());
        }
        self.shared.lock().lost.clone()
    }
}

impl ResidentKernel for InjectedKernel {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn state(&self) -> KernelState {
        match self.lost() {
            Some(reason) => KernelState::Lost(Loss::fault(reason)),
            None => match self.shared.pass(FaultPoint::State) {
                Err(BackendError::DeviceLost(loss)) => KernelState::Lost(loss),
                _ => self.inner.state(),
            },
        }
    }

    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError> {
        if let Some(reason) = self.lost() {
            return Err(BackendError::DeviceLost(Loss::fault(reason)));
        }
        self.shared.pass(FaultPoint::Quiesce)?;
        self.inner.quiesce(deadline)
    }

    fn reap(&self, deadline: Duration) -> Result<(), BackendError> {
        match self.shared.count(FaultPoint::Reap) {
            Some(InjectedFault::Failure) => return Err(injected(FaultPoint::Reap)),
            // A kernel that dies while being reaped is as gone as one that was reaped.
            Some(InjectedFault::Loss) => self.shared.lose("injected at Reap"),
            None => {}
        }
        self.inner.reap(deadline)
    }

    fn ring_doorbell(&self) {
        if self.lost().is_none() && self.shared.pass(FaultPoint::Doorbell).is_ok() {
            self.inner.ring_doorbell();
        }
    }
}
