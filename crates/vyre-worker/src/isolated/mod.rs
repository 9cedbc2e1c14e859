//! The parent's side: a backend whose work happens in a worker.
//!
//! [`IsolatedBackend`] is one more [`VyreBackend`]. Its buffers and pipelines live in a child process, behind
//! numbers; here are the handles, their generations and every check of what comes back. A resident kernel's
//! regions are memory of both processes, so items, completions, doorbells and waits cross no socket.
//!
//! | file | what it is for |
//! |---|---|
//! | here | the backend: buffers, programs |
//! | `options`, `error` | what it is made of, and why there is none |
//! | `worker`, `lanes` | one process: start, calls, verdict, end; its sockets |
//! | `compiled`, `resident` | pipelines, and kernels that stay |
//! | `watch` | the thread that notices silence |
//! | `recovery` | the next worker after one is lost, the spare, the budget |
//!
//! Absent on purpose: which work may run twice. Whoever submitted it knows.

mod compiled;
mod error;
mod lanes;
mod options;
mod recovery;
mod resident;
mod watch;
mod worker;

use std::sync::Arc;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use vyre_driver::table::{self, BufferTable};
use vyre_driver::{
    BackendError, BackendIdentity, BufferBinding, BufferDesc, BufferHandle, Capabilities, CompiledPipeline,
    Generation, ResidentPipeline, ResidentSpec, VyreBackend,
};
use vyre_foundation::{Program, ValidatedProgram, wire};

pub use error::StartError;
pub use options::IsolatedOptions;
pub use recovery::Replacement;

use crate::host::message::{Place, Range, Reply, Request};
use compiled::Compiled;
use recovery::Recovery;
use resident::CompiledResident;
use worker::{Remote, Worker};

/// Of the arena, how much one transfer takes at a time at most: others have room beside it.
const PIECES: u64 = 4;
/// And in bytes, so that copying in and copying out overlap a little among callers.
const PIECE_BYTES: u64 = 16 << 20;

/// A backend in a worker process. See the [module documentation](self).
///
/// Dropping it ends the worker and waits until it is gone, for
/// [`IsolatedOptions::stop_deadline`] at most.
pub struct IsolatedBackend {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What pipelines, kernels and threads share with their backend.
struct Shared {
    options: IsolatedOptions,
    identity: BackendIdentity,
    capabilities: Capabilities,
    current: ArcSwap<Incarnation>,
    recovery: Recovery,
}

/// One worker, as the device of one generation.
struct Incarnation {
    generation: Generation,
    worker: Arc<Worker>,
    /// Numbers of the worker's buffers by the handles that this side gave out.
    buffers: BufferTable<u64>,
}

impl Incarnation {
    fn new(generation: Generation, worker: Arc<Worker>) -> Incarnation {
        Incarnation { generation, worker, buffers: BufferTable::new(generation) }
    }

    /// Why it is lost, as an error.
    fn check(&self) -> Result<(), BackendError> {
        self.worker.loss().map_or(Ok(()), |loss| Err(BackendError::DeviceLost(loss.clone())))
    }

    fn range(&self, binding: &BufferBinding) -> Result<Range, BackendError> {
        let BufferBinding { buffer, byte_offset, byte_len } = *binding;
        let number = self.buffers.range(buffer, byte_offset, byte_len)?;
        Ok(Range { buffer: *number, byte_offset, byte_len })
    }
}

impl IsolatedBackend {
    /// Starts a worker and opens its backend. One that is ended from outside meanwhile, by SIGKILL say, is started
    /// again, twice at most.
    ///
    /// # Errors
    ///
    /// [`StartError`]: no executable to run, refused, dead or silent before it was ready.
    pub fn open(options: IsolatedOptions) -> Result<IsolatedBackend, StartError> {
        let worker = Arc::new(recovery::until_ready(|| Worker::start(&options, |_| ()), || false)?);
        let (identity, capabilities) = (worker.identity.clone(), worker.capabilities.clone());
        let recovery = Recovery::default();
        let current = ArcSwap::from_pointee(Incarnation::new(Generation(1), worker));
        let shared = Arc::new(Shared { options, identity, capabilities, current, recovery });
        let mut backend = IsolatedBackend { shared, threads: Vec::new() };
        backend.threads.push(watch::start(&backend.shared)?);
        if backend.shared.options.spare {
            backend.threads.push(recovery::start_spares(&backend.shared)?);
        }
        Ok(backend)
    }

    /// The process id of the current worker; none once the fallback is used.
    pub fn worker_pid(&self) -> Option<u32> {
        self.shared.current.load().worker.pid()
    }

    /// The process id of the warm spare, if there is one and it has compiled everything that is in use.
    pub fn spare_pid(&self) -> Option<u32> {
        self.shared.recovery.ready_spare()?.pid()
    }

    /// How the current worker came to replace the one before it, if it did.
    pub fn last_replacement(&self) -> Option<Replacement> {
        self.shared.recovery.last()
    }
}

impl Drop for IsolatedBackend {
    fn drop(&mut self) {
        let limit = self.shared.options.stop_deadline;
        self.shared.recovery.close();
        if !self.shared.current.load().worker.close(limit) {
            tracing::error!(?limit, "a worker's process is not gone yet; its keeper goes on waiting for it");
        }
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a thread of an isolated backend panicked");
            }
        }
    }
}

impl Shared {
    /// The current incarnation, unless it is lost.
    fn alive(&self) -> Result<Arc<Incarnation>, BackendError> {
        let current = self.current.load_full();
        current.check()?;
        Ok(current)
    }

    /// Refuses what was made in another generation than the current one.
    fn check_generation(&self, generation: Generation) -> Result<(), BackendError> {
        let current = self.current.load().generation;
        if generation == current {
            return Ok(());
        }
        Err(BackendError::StaleHandle { id: 0, generation, current })
    }

    /// Compiles in the current worker, unless that was done ahead of time.
    fn compile(self: &Arc<Shared>, request: Request) -> Result<Made, BackendError> {
        self.compile_as(request, None)
    }

    /// The same by a request of its own. A spare, and a later worker, compile as `request` says.
    fn compile_as(
        self: &Arc<Shared>,
        request: Request,
        instead: Option<Request>,
    ) -> Result<Made, BackendError> {
        let incarnation = self.alive()?;
        let worker = &incarnation.worker;
        worker.release();
        let request = Arc::new(request);
        let number = match worker.take_prepared(&request) {
            Some(number) => number,
            None => match worker.call(instead.as_ref().unwrap_or(&request), &[]) {
                Ok(Reply::Made(number)) => number,
                other => return Err(worker.unexpected(other)),
            },
        };
        let request = if self.options.spare { self.recovery.remember(request) } else { request };
        let remote = Remote { worker: Arc::clone(worker), number };
        Ok(Made { shared: Arc::clone(self), incarnation, remote, _request: request })
    }
}

/// Something compiled, and what keeps it.
struct Made {
    shared: Arc<Shared>,
    incarnation: Arc<Incarnation>,
    remote: Remote,
    /// While it is held, a spare compiles the same.
    _request: Arc<Request>,
}

impl Made {
    /// Refuses to be used in a later generation than its own.
    fn check(&self) -> Result<&Worker, BackendError> {
        self.shared.check_generation(self.incarnation.generation)?;
        Ok(&self.remote.worker)
    }
}

fn encoded(program: &Program) -> Result<Vec<u8>, BackendError> {
    wire::encode(program)
        .map_err(|error| BackendError::invalid("program", error, "a program that has a wire form"))
}

fn resident(spec: &ResidentSpec, beside: bool) -> Result<Request, BackendError> {
    let optional = |program: &Option<ValidatedProgram>| {
        program.as_ref().map(|program| encoded(program.program())).transpose()
    };
    Ok(Request::CompileResident {
        lane: encoded(spec.lane.program())?,
        accounting: optional(&spec.accounting)?,
        workgroup: optional(&spec.workgroup)?,
        workgroup_opcodes: spec.workgroup_opcodes.clone(),
        worker_groups: spec.worker_groups,
        beside,
    })
}

impl VyreBackend for IsolatedBackend {
    /// The fallback's, once that is used.
    fn identity(&self) -> &BackendIdentity {
        match &self.shared.options.fallback {
            Some(fallback) if self.worker_pid().is_none() => fallback.identity(),
            _ => &self.shared.identity,
        }
    }

    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn generation(&self) -> Generation {
        self.shared.current.load().generation
    }

    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        let request = Request::Compile { program: encoded(program.program())? };
        Ok(Arc::new(Compiled(self.shared.compile(request)?)))
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        Ok(Arc::new(CompiledResident(self.shared.compile(resident(spec, false)?)?)))
    }

    fn prepare_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        // A spare has no kernel to be beside of.
        let (alone, beside) = (resident(spec, false)?, resident(spec, true)?);
        Ok(Arc::new(CompiledResident(self.shared.compile_as(alone, Some(beside))?)))
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        let incarnation = self.shared.alive()?;
        table::check_desc(desc, u64::MAX)?;
        match incarnation.worker.call(&Request::create(desc), &[]) {
            Ok(Reply::Made(number)) => Ok(incarnation.buffers.insert(desc, Arc::new(number))),
            other => Err(incarnation.worker.unexpected(other)),
        }
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        let incarnation = self.shared.alive()?;
        let number = incarnation.buffers.range(buffer, 0, 0)?;
        match incarnation.worker.call(&Request::DestroyBuffer { buffer: *number }, &[]) {
            Ok(Reply::Done) => incarnation.buffers.remove(buffer).map(drop),
            other => Err(incarnation.worker.unexpected(other)),
        }
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        let incarnation = self.shared.alive()?;
        let number = incarnation.buffers.range(buffer, byte_offset, bytes.len() as u64)?;
        let worker = &incarnation.worker;
        let mut at = byte_offset;
        for piece in bytes.chunks(piece_bytes(worker)) {
            let staging = worker.staging(piece.len() as u64)?;
            staging.copy_in(0, piece).map_err(arena_error)?;
            let from = Place { offset: staging.offset(), bytes: piece.len() as u64 };
            match worker.call(&Request::Write { buffer: *number, byte_offset: at, from }, &[]) {
                Ok(Reply::Done) => at += from.bytes,
                other => return Err(worker.unexpected(other)),
            }
        }
        Ok(())
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        let incarnation = self.shared.alive()?;
        let number = incarnation.buffers.range(buffer, byte_offset, into.len() as u64)?;
        let worker = &incarnation.worker;
        let mut at = byte_offset;
        for piece in into.chunks_mut(piece_bytes(worker)) {
            let staging = worker.staging(piece.len() as u64)?;
            let to = Place { offset: staging.offset(), bytes: piece.len() as u64 };
            match worker.call(&Request::Read { buffer: *number, byte_offset: at, to }, &[]) {
                Ok(Reply::Done) => at += to.bytes,
                other => return Err(worker.unexpected(other)),
            }
            staging.copy_out(0, piece).map_err(arena_error)?;
        }
        Ok(())
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        self.shared.recover()
    }

    fn worker_pid(&self) -> Option<u32> {
        IsolatedBackend::worker_pid(self)
    }
}

fn piece_bytes(worker: &Worker) -> usize {
    (worker.arena.capacity() / PIECES).clamp(1, PIECE_BYTES) as usize
}

fn arena_error(error: crate::wire::WireError) -> BackendError {
    BackendError::invalid("bytes", error, "a range of the transfer arena")
}
