//! The hosted backend by numbers: what each request does.
//!
//! Requests arrive on many lanes at once, and each lane has a thread. A lock here is held to look a number up,
//! never while the backend works.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use smallvec::SmallVec;
use vyre_driver::region::{SessionRegions, SharedRegion};
use vyre_driver::{
    BackendError, BufferBinding, BufferHandle, CompiledPipeline, Mirror, ResidentBinding, ResidentKernel,
    ResidentPipeline, ResidentSpec, StartRequest, VyreBackend,
};
use vyre_foundation::{ValidatedProgram, validate, wire};

use super::failure::Failure;
use super::message::{
    Answer, Bound, Description, Outcome, Place, Range, Reply, Request, State, buffer_desc, dispatch_config,
};
use super::status::StatusWriter;
use crate::wire::ArenaView;

/// Descriptors that came with a request.
pub(crate) type Descriptors = SmallVec<[OwnedFd; 4]>;

/// A backend that is hosted.
pub(crate) struct Service {
    backend: Arc<dyn VyreBackend>,
    arena: ArenaView,
    status: OnceLock<StatusWriter>,
    last: AtomicU64,
    buffers: Numbered<BufferHandle>,
    pipelines: Numbered<Arc<dyn CompiledPipeline>>,
    residents: Numbered<Arc<dyn ResidentPipeline>>,
    kernels: Numbered<Hosted>,
}

/// A resident kernel, and its slot on the status page.
#[derive(Clone)]
struct Hosted {
    kernel: Arc<dyn ResidentKernel>,
    slot: u32,
}

/// Things by number.
struct Numbered<T>(Mutex<BTreeMap<u64, T>>);

impl<T: Clone> Numbered<T> {
    fn new() -> Numbered<T> {
        Numbered(Mutex::new(BTreeMap::new()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, number: u64) -> Result<T, Failure> {
        self.lock().get(&number).cloned().ok_or(Failure::Stale { id: number })
    }

    fn all(&self) -> Vec<(u64, T)> {
        self.lock().iter().map(|(number, thing)| (*number, thing.clone())).collect()
    }
}

impl Service {
    pub(crate) fn new(backend: Arc<dyn VyreBackend>, arena: ArenaView) -> Service {
        Service {
            backend,
            arena,
            status: OnceLock::new(),
            last: AtomicU64::new(0),
            buffers: Numbered::new(),
            pipelines: Numbered::new(),
            residents: Numbered::new(),
            kernels: Numbered::new(),
        }
    }

    /// Does what is asked.
    pub(crate) fn serve(&self, request: Request, fds: Descriptors) -> Answer {
        match request {
            Request::Attach => self.attach(fds),
            // For whoever owns the threads.
            Request::Lane => Err(malformed("a lane where there can be none")),
            Request::Compile { program } => {
                let pipeline = self.backend.compile(&program_of(&program)?)?;
                Ok(self.made(&self.pipelines, pipeline))
            }
            Request::CompileResident {
                lane,
                accounting,
                workgroup,
                workgroup_opcodes,
                worker_groups,
                beside,
            } => {
                let optional =
                    |program: Option<Vec<u8>>| program.map(|program| program_of(&program)).transpose();
                let spec = ResidentSpec {
                    lane: program_of(&lane)?,
                    accounting: optional(accounting)?,
                    workgroup: optional(workgroup)?,
                    workgroup_opcodes,
                    worker_groups,
                };
                let pipeline = match beside {
                    false => self.backend.compile_resident(&spec)?,
                    true => self.backend.prepare_resident(&spec)?,
                };
                Ok(self.made(&self.residents, pipeline))
            }
            Request::CreateBuffer { label, element, len, space } => {
                let desc = buffer_desc(label, element, len, space)
                    .ok_or_else(|| malformed("the description of a buffer"))?;
                let buffer = self.backend.create_buffer(&desc)?;
                Ok(self.made(&self.buffers, buffer))
            }
            Request::DestroyBuffer { buffer } => {
                // Refused if a kernel has it bound: it stays known then.
                self.backend.destroy_buffer(self.buffers.get(buffer)?)?;
                self.buffers.lock().remove(&buffer);
                Ok(Reply::Done)
            }
            Request::Write { buffer, byte_offset, from } => {
                let handle = self.buffers.get(buffer)?;
                let bytes = self.copy_from_arena(from)?;
                self.backend.write_buffer(handle, byte_offset, &bytes)?;
                Ok(Reply::Done)
            }
            Request::Read { buffer, byte_offset, to } => {
                let handle = self.buffers.get(buffer)?;
                let mut bytes = self.room_for(to)?;
                self.backend.read_buffer(handle, byte_offset, &mut bytes)?;
                self.copy_to_arena(to, &bytes)?;
                Ok(Reply::Done)
            }
            Request::Dispatch { pipeline, rows, grid, deadline, label, persistent } => {
                let pipeline = self.pipelines.get(pipeline)?;
                let config = dispatch_config(grid, deadline, label, persistent)
                    .ok_or_else(|| malformed("the configuration of a dispatch"))?;
                let rows: Vec<Vec<BufferBinding>> = rows
                    .iter()
                    .map(|row| row.iter().map(|range| self.binding(range)).collect())
                    .collect::<Result<_, _>>()?;
                let outcomes = match rows.as_slice() {
                    [row] => vec![pipeline.dispatch(row, &config)?],
                    rows => {
                        let rows: Vec<&[BufferBinding]> = rows.iter().map(Vec::as_slice).collect();
                        pipeline.dispatch_rows(&rows, &config)?
                    }
                };
                Ok(Reply::Dispatched(outcomes.into_iter().map(Outcome::from).collect()))
            }
            Request::Start { pipeline, holder, bindings, mirrors, item_deadline, lease } => {
                let pipeline = self.residents.get(pipeline)?;
                let bindings = bindings.iter().map(|bound| self.resident_binding(bound));
                let mirrors = mirrors.iter().map(|(range, d2h_offset)| {
                    Ok(Mirror { source: self.binding(range)?, d2h_offset: *d2h_offset })
                });
                let request = StartRequest {
                    holder,
                    regions: regions_of(fds)?,
                    bindings: bindings.collect::<Result<_, Failure>>()?,
                    mirrors: mirrors.collect::<Result<_, Failure>>()?,
                    item_deadline,
                    lease,
                };
                self.start(pipeline.as_ref(), request)
            }
            Request::Quiesce { kernel, deadline } => {
                let hosted = self.kernels.get(kernel)?;
                hosted.kernel.quiesce(deadline)?;
                Ok(Reply::Stands(hosted.kernel.state().into()))
            }
            Request::Reap { kernel, deadline } => {
                let hosted = self.kernels.get(kernel)?;
                hosted.kernel.reap(deadline)?;
                Ok(Reply::Stands(hosted.kernel.state().into()))
            }
            Request::State { kernel } => Ok(Reply::Stands(self.kernels.get(kernel)?.kernel.state().into())),
            Request::ReleasePipeline { pipeline } => {
                let released =
                    (self.pipelines.lock().remove(&pipeline), self.residents.lock().remove(&pipeline));
                drop(released);
                Ok(Reply::Done)
            }
            Request::ReleaseKernel { kernel } => {
                let hosted = self.kernels.lock().remove(&kernel).ok_or(Failure::Stale { id: kernel })?;
                if let Some(status) = self.status.get() {
                    status.free_slot(hosted.slot);
                }
                Ok(Reply::Done)
            }
        }
    }

    /// Beats, and says of each kernel how it stands. Whether there is any.
    pub(crate) fn report(&self) -> bool {
        let Some(status) = self.status.get() else { return false };
        status.beat();
        let kernels = self.kernels.all();
        for (number, hosted) in &kernels {
            let state = State::from(hosted.kernel.state());
            // Under the lock, so that a slot that was given back meanwhile is not written.
            let current = self.kernels.lock();
            if current.contains_key(number) {
                status.set(hosted.slot, *number, &state);
            }
        }
        !kernels.is_empty()
    }

    /// Lets every kernel go, as far as a short time allows: nobody is left to be served.
    pub(crate) fn close(&self, each: std::time::Duration) {
        for (_, hosted) in self.kernels.all() {
            if let Err(error) = hosted.kernel.reap(each) {
                tracing::warn!(%error, "a kernel did not leave before its host");
            }
        }
    }

    /// Leaves an answer's piece in the arena.
    pub(crate) fn copy_to_arena(&self, to: Place, bytes: &[u8]) -> Result<(), Failure> {
        self.arena.copy_in(to.offset, bytes).map_err(malformed)
    }

    /// Takes bytes out of the arena, once.
    pub(crate) fn copy_from_arena(&self, from: Place) -> Result<Vec<u8>, Failure> {
        self.arena.read(from.offset, from.bytes).map_err(malformed)
    }

    /// Zeros for as many bytes as a place has, if the arena has as many.
    fn room_for(&self, place: Place) -> Result<Vec<u8>, Failure> {
        if place.bytes > self.arena.len() {
            return Err(malformed(format!("{} bytes of an arena of {}", place.bytes, self.arena.len())));
        }
        Ok(vec![0; usize::try_from(place.bytes).unwrap_or(0)])
    }

    fn attach(&self, mut fds: Descriptors) -> Answer {
        let page = fds.pop().ok_or_else(|| malformed("no status page"))?;
        let page = SharedRegion::from_fd(page, true).map_err(malformed)?;
        let writer = StatusWriter::new(page).map_err(malformed)?;
        writer.beat();
        self.status.set(writer).map_err(|_| malformed("a second status page"))?;
        let description = Description::new(self.backend.identity(), self.backend.capabilities());
        Ok(Reply::Attached(Box::new(description)))
    }

    fn start(&self, pipeline: &dyn ResidentPipeline, request: StartRequest) -> Answer {
        let status = self.status.get().ok_or_else(|| malformed("a start before a status page"))?;
        let slot = status.take_slot().ok_or_else(|| Failure::Unsupported {
            what: format!("more than {} resident kernels at a time", super::status::SLOTS),
            remedy: "stop one first".to_owned(),
        })?;
        let kernel = match pipeline.start(request) {
            Ok(kernel) => kernel,
            Err(error) => {
                status.free_slot(slot);
                return Err(error.into());
            }
        };
        let number = self.number();
        status.set(slot, number, &State::Running);
        self.kernels.lock().insert(number, Hosted { kernel, slot });
        Ok(Reply::Started { kernel: number, slot })
    }

    fn number(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn made<T: Clone>(&self, things: &Numbered<T>, thing: T) -> Reply {
        let number = self.number();
        things.lock().insert(number, thing);
        Reply::Made(number)
    }

    fn binding(&self, range: &Range) -> Result<BufferBinding, Failure> {
        let buffer = self.buffers.get(range.buffer)?;
        Ok(BufferBinding { buffer, byte_offset: range.byte_offset, byte_len: range.byte_len })
    }

    fn resident_binding(&self, bound: &Bound) -> Result<ResidentBinding, Failure> {
        match *bound {
            Bound::Buffer(range) => Ok(ResidentBinding::Buffer(self.binding(&range)?)),
            Bound::HostToDevice { byte_offset, byte_len } => {
                Ok(ResidentBinding::HostToDevice { byte_offset, byte_len })
            }
        }
    }
}

/// Validated again: what a backend gets is validated in the process that hosts it.
fn program_of(bytes: &[u8]) -> Result<ValidatedProgram, Failure> {
    let program = wire::decode(bytes).map_err(malformed)?;
    validate(program).map_err(malformed)
}

fn regions_of(mut fds: Descriptors) -> Result<SessionRegions, Failure> {
    let (d2h, h2d) = (fds.pop(), fds.pop());
    match (h2d, d2h) {
        (Some(h2d), Some(d2h)) => SessionRegions::attach(h2d, d2h).map_err(malformed),
        _ => Err(malformed("no descriptors of regions")),
    }
}

/// A request that no parent of this version makes.
fn malformed(what: impl std::fmt::Display) -> Failure {
    BackendError::invalid("request", what, "what the parent of this version sends").into()
}
