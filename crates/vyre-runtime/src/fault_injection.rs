//! A backend that fails when told to: the proof that recovery works.
//!
//! [`FaultInjectingBackend`] wraps a working backend and passes every call through, counting. An armed
//! [`FaultPoint`] turns one pass into a failure, or into the loss of the device: every buffer is gone, every
//! resident kernel dies where it stands, every call fails until [`VyreBackend::recover`], and handles and
//! pipelines from before are refused. The wrapped backend itself is never lost, so a test can compare what
//! survives a loss with what would have happened without one.
//!
//! A loss leaves the words in which workers say what they run as they were when it came, as a device that dies
//! leaves them. [`FaultInjectingBackend::lose_when_running`] loses the device whenever a worker says that it
//! runs an item of one's choice; the host's looks after the kernel are when that is noticed, so the item has to
//! run until then.
//!
//! Compiled for tests and under the feature `fault-injection` only.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vyre_driver::layout::LINE;
use vyre_driver::region::SessionRegions;
use vyre_driver::view::{HostView, InFlight};
use vyre_driver::{
    BackendError, BackendIdentity, BufferBinding, BufferDesc, BufferHandle, Capabilities, CompiledPipeline,
    DispatchConfig, DispatchOutcome, Generation, KernelState, Loss, LossCause, Mirror, ResidentBinding,
    ResidentKernel, ResidentPipeline, ResidentSpec, StartRequest, VyreBackend,
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
    /// The device is lost, by its own doing.
    Loss,
    /// The device is lost, and this is whose doing it was.
    LossBy(LossCause),
    /// The call does not return before [`FaultInjectingBackend::resume`]; then it goes on as if nothing were.
    Stall,
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
    resumed: Condvar,
    /// Held while the device dies: nobody finds it half dead.
    dying: Mutex<()>,
}

#[derive(Default)]
struct State {
    lost: Option<Loss>,
    /// A call stands still.
    stalled: bool,
    deadly: Vec<DeadlyItem>,
    last_words: Vec<InFlight>,
    passes: BTreeMap<FaultPoint, u64>,
    armed: Vec<Armed>,
    next_buffer: u64,
    buffers: HashMap<u64, BufferHandle>,
    kernels: Vec<Running>,
}

/// A kernel of the wrapped backend, and where it says what it runs.
struct Running {
    kernel: Weak<dyn ResidentKernel>,
    regions: SessionRegions,
}

/// An item that loses the device when it is run.
struct DeadlyItem {
    opcode: u32,
    first_arg: Option<u32>,
    cause: LossCause,
    times: u64,
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
        let (state, resumed, dying) = (Mutex::default(), Condvar::new(), Mutex::default());
        FaultInjectingBackend { shared: Arc::new(Shared { inner, generation, state, resumed, dying }) }
    }

    /// Makes a later pass of `point` fail: the next one for `skip` 0.
    pub fn arm(&self, point: FaultPoint, skip: u64, fault: InjectedFault) {
        let mut state = self.shared.lock();
        let passed = state.passes.get(&point).copied().unwrap_or(0);
        state.armed.push(Armed { point, at_pass: passed.saturating_add(skip).saturating_add(1), fault });
    }

    /// Loses the device now, from outside: [`LossCause::Killed`].
    pub fn lose(&self, reason: &str) {
        self.lose_by(LossCause::Killed, reason);
    }

    /// Loses the device now, by somebody's doing.
    pub fn lose_by(&self, cause: LossCause, reason: &str) {
        self.shared.lose(Loss { cause, reason: reason.to_owned() });
    }

    /// Loses the device the next `times` times that a worker is seen running an item of this opcode, and with
    /// this first argument if one is given.
    pub fn lose_when_running(&self, opcode: u32, first_arg: Option<u32>, cause: LossCause, times: u64) {
        self.shared.lock().deadly.push(DeadlyItem { opcode, first_arg, cause, times });
    }

    /// What the first workers of a kernel say that they run when the device is lost the next time, as a device
    /// that has gone mad may.
    pub fn leave_in_flight(&self, words: Vec<InFlight>) {
        self.shared.lock().last_words = words;
    }

    /// Whether a call stands still because of [`InjectedFault::Stall`].
    pub fn is_stalled(&self) -> bool {
        self.shared.lock().stalled
    }

    /// Lets calls that stand still go on.
    pub fn resume(&self) {
        self.shared.lock().stalled = false;
        self.shared.resumed.notify_all();
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
            && let Some(loss) = &self.lock().lost
        {
            return Err(BackendError::DeviceLost(loss.clone()));
        }
        let cause = match fired {
            None => return Ok(()),
            Some(InjectedFault::Failure) => return Err(injected(point)),
            Some(InjectedFault::Stall) => return self.stall(),
            Some(InjectedFault::Loss) => LossCause::Fault,
            Some(InjectedFault::LossBy(cause)) => cause,
        };
        let loss = Loss { cause, reason: format!("injected at {point:?}") };
        self.lose(loss.clone());
        Err(BackendError::DeviceLost(loss))
    }

    /// Stands still until somebody resumes.
    fn stall(&self) -> Result<(), BackendError> {
        let mut state = self.lock();
        state.stalled = true;
        while state.stalled {
            state = self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Loses the device if a worker runs an item that is to do so.
    fn look_for_deadly_items(&self, regions: &SessionRegions) {
        let named = in_flight(regions);
        let deadly = {
            let mut state = self.lock();
            let mut armed = state.deadly.iter_mut().filter(|item| item.times > 0);
            let dies = armed.find(|item| named.iter().any(|(_, word)| item.is_among(word, regions)));
            dies.map(|item| {
                item.times -= 1;
                Loss { cause: item.cause, reason: format!("an item of opcode {:#x} ran", item.opcode) }
            })
        };
        if let Some(loss) = deadly {
            self.lose(loss);
        }
    }

    fn lose(&self, loss: Loss) {
        let _dying = self.dying.lock().unwrap_or_else(PoisonError::into_inner);
        let (kernels, buffers, last_words) = {
            let mut state = self.lock();
            if state.lost.is_some() {
                return;
            }
            state.lost = Some(loss);
            let last_words = std::mem::take(&mut state.last_words);
            (std::mem::take(&mut state.kernels), std::mem::take(&mut state.buffers), last_words)
        };
        for Running { kernel, regions } in &kernels {
            let Some(kernel) = kernel.upgrade() else { continue };
            // Those who are reaped put their words in order; the dead do not.
            let words = in_flight(regions);
            if let Err(error) = kernel.reap(REAP_DEADLINE) {
                tracing::error!(%error, "a kernel outlived its injected loss");
            }
            for (worker, word) in words.into_iter().chain((0..).zip(last_words.iter().copied())) {
                put_back(regions, worker, word);
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
        if let Some(loss) = &state.lost {
            return Err(BackendError::DeviceLost(loss.clone()));
        }
        state.buffers.get(&outer.id).copied().ok_or_else(stale)
    }

    /// What the wrapped backend answered, or the loss that happened meanwhile and made it answer so.
    fn answer<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        match (result, &self.lock().lost) {
            (Err(_), Some(loss)) => Err(BackendError::DeviceLost(loss.clone())),
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
        self.shared.inner.destroy_buffer(inner)?;
        self.shared.lock().buffers.remove(&buffer.id);
        Ok(())
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
        if let Some(loss) = state.lost.take() {
            if loss.cause == LossCause::GivenUp {
                state.lost = Some(loss.clone());
                return Err(BackendError::DeviceLost(loss));
            }
            self.shared.generation.fetch_add(1, Ordering::AcqRel);
        }
        Ok(self.shared.current())
    }
}

/// The error of a failure that is no loss.
fn injected(point: FaultPoint) -> BackendError {
    BackendError::Driver { call: "fault_injection", code: -1, text: format!("injected failure at {point:?}") }
}

/// What the workers of a kernel say they run.
fn in_flight(regions: &SessionRegions) -> Vec<(u32, InFlight)> {
    let Ok(view) = HostView::new(regions) else { return Vec::new() };
    let busy = |worker| Some((worker, view.in_flight(worker).ok().flatten()?));
    (0..regions.layout.config().workers).filter_map(busy).collect()
}

/// Stores a word in place of a worker that has gone.
fn put_back(regions: &SessionRegions, worker: u32, word: InFlight) {
    let at = regions.layout.in_flight().offset + u64::from(worker) * LINE;
    match regions.d2h.atomic_u64(at) {
        Ok(place) => place.store(word.to_word(), Ordering::Release),
        Err(error) => tracing::error!(%error, "an in-flight word was not put back"),
    }
}

impl DeadlyItem {
    /// Whether an item like this is among those of a worker's word.
    fn is_among(&self, word: &InFlight, regions: &SessionRegions) -> bool {
        let Ok(ring) = regions.layout.ring(word.ring) else { return false };
        (word.first..).take(word.count as usize).any(|ticket| {
            let slot = ring.slots.offset + (ticket & (u64::from(ring.capacity) - 1)) * 64;
            // Words of a slot: arguments 0 and 1, argument 2 and a tag with the opcode's low half; 3 and 4, 5 and
            // a tag with its high half.
            let word = |at| regions.h2d.word_u64(slot + at).map_or(0, |word| word.load(Ordering::Acquire));
            let (args, low, high) = (word(0), word(8), word(24));
            let opcode = (high >> 32 & 0xFFFF) << 16 | (low >> 32 & 0xFFFF);
            opcode == u64::from(self.opcode) && self.first_arg.is_none_or(|arg| arg == args as u32)
        })
    }
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
        let regions = request.regions.clone();
        let inner = self.shared.answer(self.inner.start(request))?;
        {
            let mut state = self.shared.lock();
            state.kernels.retain(|running| running.kernel.strong_count() > 0);
            state.kernels.push(Running { kernel: Arc::downgrade(&inner), regions: regions.clone() });
        }
        let generation = self.generation;
        let kernel = InjectedKernel { shared: Arc::clone(&self.shared), inner, regions, generation };
        self.shared.pass(FaultPoint::AfterStart)?;
        Ok(Arc::new(kernel))
    }
}

struct InjectedKernel {
    shared: Arc<Shared>,
    inner: Arc<dyn ResidentKernel>,
    regions: SessionRegions,
    generation: Generation,
}

impl InjectedKernel {
    /// Why this incarnation is dead, if it is.
    fn lost(&self) -> Option<Loss> {
        if self.generation != self.shared.current() {
            return Some(Loss::fault("an earlier loss"));
        }
        self.shared.lock().lost.clone()
    }
}

impl ResidentKernel for InjectedKernel {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn state(&self) -> KernelState {
        if self.lost().is_none() {
            self.shared.look_for_deadly_items(&self.regions);
        }
        match self.lost() {
            Some(loss) => KernelState::Lost(loss),
            None => match self.shared.pass(FaultPoint::State) {
                Err(BackendError::DeviceLost(loss)) => KernelState::Lost(loss),
                _ => self.inner.state(),
            },
        }
    }

    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError> {
        if let Some(loss) = self.lost() {
            return Err(BackendError::DeviceLost(loss));
        }
        self.shared.pass(FaultPoint::Quiesce)?;
        self.inner.quiesce(deadline)
    }

    fn reap(&self, deadline: Duration) -> Result<(), BackendError> {
        match self.shared.count(FaultPoint::Reap) {
            Some(InjectedFault::Failure) => return Err(injected(FaultPoint::Reap)),
            // A kernel that dies while being reaped is as gone as one that was reaped.
            Some(InjectedFault::Loss) => self.shared.lose(Loss::fault("injected at Reap")),
            Some(InjectedFault::LossBy(cause)) => {
                self.shared.lose(Loss { cause, reason: "injected at Reap".to_owned() });
            }
            Some(InjectedFault::Stall) => self.shared.stall()?,
            None => {}
        }
        drop(self.shared.dying.lock());
        self.inner.reap(deadline)
    }

    fn ring_doorbell(&self) {
        if self.lost().is_none() && self.shared.pass(FaultPoint::Doorbell).is_ok() {
            self.inner.ring_doorbell();
        }
    }
}
