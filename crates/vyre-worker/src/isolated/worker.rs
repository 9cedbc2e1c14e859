//! One worker, from its start to its end: calls, and what becomes of them when it dies.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::error::{StartError, chain, own_failure};
use super::lanes::Lanes;
use super::options::IsolatedOptions;
use super::resident::Kernel;
use crate::host::message::{Answer, MAX_MESSAGE, Piece, Place, Reply, Request, decode, encode, kind};
use crate::host::service::{Descriptors, Service};
use crate::host::status::{STATUS_BYTES, Standing, StatusReader};
use crate::host::{self, HostConfig, WORKER_FD, WORKER_VARIABLE};
use crate::process::{Launch, Process};
use crate::sandbox::Sandbox;
use crate::wire::handshake::{self, HandshakeError, Hello};
use crate::wire::{ArenaView, Channel, Frame, MAX_PAYLOAD, Staging, TransferArena, WireError};
use vyre_driver::region::SharedRegion;
use vyre_driver::{
    BackendError, BackendIdentity, Capabilities, Generation, KernelState, Loss, LossCause, VyreBackend,
};

/// How long after its sockets a process may take to be reported dead.
const LAST_GASP: Duration = Duration::from_secs(2);
/// Bytes of a long answer that are fetched at a time.
const FETCH_BYTES: u64 = 1 << 20;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host of the backend, and what this side knows of it.
pub(super) struct Worker {
    link: Link,
    pub(super) arena: TransferArena,
    pub(super) identity: BackendIdentity,
    pub(super) capabilities: Capabilities,
    /// Why it is of no use any more. First come, first kept.
    verdict: OnceLock<Loss>,
    /// Why there is none after it.
    given_up: OnceLock<Loss>,
    /// What was compiled ahead of time, for who asks first.
    prepared: Mutex<Vec<(Weak<Request>, u64)>>,
    /// What lets go of things that nobody uses any more, with the next compilation.
    released: Mutex<Vec<Request>>,
    pub(super) kernels: Mutex<Vec<Weak<Kernel>>>,
    limits: Limits,
}

enum Link {
    Process(Box<Connection>),
    /// Hosted in this very process: the fallback.
    Here(Box<Service>),
}

struct Connection {
    process: Arc<Process>,
    lanes: Lanes,
    status: StatusReader,
    requests: AtomicU64,
}

/// What a compilation made in the worker; let go when dropped.
pub(super) struct Remote {
    pub(super) worker: Arc<Worker>,
    pub(super) number: u64,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.worker.release_later(Request::ReleasePipeline { pipeline: self.number });
    }
}

#[derive(Clone, Copy)]
struct Limits {
    call: Duration,
    compile: Duration,
    grace: Duration,
}

impl Limits {
    /// How long a request may take, unless as long as it wants.
    fn of(&self, request: &Request) -> Option<Duration> {
        match request {
            Request::Compile { .. } | Request::CompileResident { .. } => Some(self.compile),
            Request::Dispatch { deadline, .. } => {
                deadline.map(|deadline| deadline.saturating_add(self.grace))
            }
            Request::Quiesce { deadline, .. } | Request::Reap { deadline, .. } => {
                Some(deadline.saturating_add(self.grace))
            }
            _ => Some(self.call),
        }
    }
}

/// Why an exchange on a lane came to nothing.
enum Broken {
    Wire(WireError),
    /// The host said what no host of this version says.
    Nonsense(String),
    /// Nothing was asked, because there is no socket or thread for it. That is no fault of the worker's.
    NoLane(BackendError),
}

impl From<WireError> for Broken {
    fn from(error: WireError) -> Broken {
        Broken::Wire(error)
    }
}

impl From<postcard::Error> for Broken {
    fn from(error: postcard::Error) -> Broken {
        Broken::Nonsense(format!("a message that does not decode: {error}"))
    }
}

impl Worker {
    /// Starts a worker and waits until it is ready. `started` sees the process before that.
    pub(super) fn start(
        options: &IsolatedOptions,
        started: impl FnOnce(&Arc<Process>),
    ) -> Result<Worker, StartError> {
        // A worker that starts a worker that starts a worker: an executable that forgot to call `init`.
        if host::is_worker() {
            return Err(StartError::InsideWorker);
        }
        let until = in_at_most(options.start_deadline);
        let (first, theirs) = Channel::pair()?;
        let arena = TransferArena::create(options.arena_bytes)?;
        let page = SharedRegion::create(STATUS_BYTES)?;
        let status = StatusReader::new(&page)?;
        let launch = match &options.program {
            Some(program) => Launch::new(program),
            None if !host::is_initialised() => return Err(StartError::NotInitialised),
            None => Launch::reexec(),
        };
        let launch = options.env.iter().fold(launch, |launch, (key, value)| launch.env(key, value));
        let process = Process::spawn(
            launch
                .env(WORKER_VARIABLE, "1")
                .fd(WORKER_FD, theirs.into_fd())
                .label(format!("vyre-worker {}", options.backend)),
        )?;
        let process = Arc::new(process);
        started(&process);
        let config =
            HostConfig { strict: options.sandbox == Sandbox::Strict, backend: options.config.clone() };
        let config = encode(&config).map_err(|error| StartError::Version { got: error.to_string() })?;
        let hello = Hello::new(host::worker_name(&options.backend), arena.capacity(), config);
        if let Err(error) = handshake::connect(&first, &hello, &[arena.fd()], until) {
            return Err(not_ready(&process, error, options.start_deadline));
        }
        let lanes = Lanes::new(first);
        let connection = Connection { process, lanes, status, requests: AtomicU64::new(0) };
        Worker::attach(Link::Process(Box::new(connection)), arena, page, options)
    }

    /// A backend of this very process, behind the same calls.
    pub(super) fn here(
        backend: Arc<dyn VyreBackend>,
        options: &IsolatedOptions,
    ) -> Result<Worker, StartError> {
        let arena = TransferArena::create(options.arena_bytes)?;
        let fd = arena.fd().try_clone_to_owned()?;
        let service = Service::new(backend, ArenaView::attach(fd, arena.capacity())?);
        Worker::attach(Link::Here(Box::new(service)), arena, SharedRegion::create(STATUS_BYTES)?, options)
    }

    fn attach(
        link: Link,
        arena: TransferArena,
        page: SharedRegion,
        options: &IsolatedOptions,
    ) -> Result<Worker, StartError> {
        let mut worker = Worker {
            link,
            arena,
            identity: BackendIdentity { name: String::new(), device: String::new(), build: String::new() },
            capabilities: NOTHING,
            verdict: OnceLock::new(),
            given_up: OnceLock::new(),
            prepared: Mutex::default(),
            released: Mutex::default(),
            kernels: Mutex::default(),
            limits: Limits {
                call: options.start_deadline,
                compile: options.compile_deadline,
                grace: options.grace,
            },
        };
        let Reply::Attached(description) = worker.call(&Request::Attach, &[page.fd()])? else {
            return Err(StartError::Version { got: "no description of the backend".to_owned() });
        };
        (worker.identity, worker.capabilities) =
            description.read().map_err(|got| StartError::Version { got })?;
        if let Link::Process(connection) = &worker.link
            && !connection.status.is_signed()
        {
            return Err(StartError::Version { got: "a status page without its magic".to_owned() });
        }
        worker.limits.call = options.call_deadline;
        Ok(worker)
    }

    /// The process, unless it is this one.
    pub(super) fn pid(&self) -> Option<u32> {
        match &self.link {
            Link::Process(connection) => Some(connection.process.pid()),
            Link::Here(_) => None,
        }
    }

    /// Why it is lost, if it is. Makes no system call.
    pub(super) fn loss(&self) -> Option<&Loss> {
        self.given_up.get().or_else(|| self.own_loss())
    }

    fn own_loss(&self) -> Option<&Loss> {
        if let Some(loss) = self.verdict.get() {
            return Some(loss);
        }
        let Link::Process(connection) = &self.link else { return None };
        let death = connection.process.death()?;
        Some(self.verdict.get_or_init(|| death.loss()))
    }

    /// Says that it is final.
    pub(super) fn give_up(&self, loss: Loss) -> BackendError {
        BackendError::DeviceLost(self.given_up.get_or_init(|| loss).clone())
    }

    /// Ends it, because of something that it did or did not do. Every caller that waits for it learns why, at
    /// once, whether or not the kernel can end the process yet.
    pub(super) fn condemn(&self, cause: LossCause, reason: String) -> BackendError {
        let Link::Process(connection) = &self.link else {
            return BackendError::DeviceLost(self.verdict.get_or_init(|| Loss { cause, reason }).clone());
        };
        // A process that died by itself is not blamed for its silence afterwards.
        let loss = match self.own_loss() {
            Some(loss) => loss,
            None => self.verdict.get_or_init(|| {
                let tail = connection.process.stderr_tail();
                let wrote = if tail.is_empty() { String::new() } else { format!("; it wrote last: {tail}") };
                tracing::warn!(pid = connection.process.pid(), ?cause, reason, "a worker is ended");
                Loss { cause, reason: format!("{reason}{wrote}") }
            }),
        };
        connection.process.kill();
        connection.lanes.shut();
        BackendError::DeviceLost(loss.clone())
    }

    /// Ends it as its owner, and waits until it is gone.
    pub(super) fn close(&self, limit: Duration) -> bool {
        let Link::Process(connection) = &self.link else { return true };
        if self.own_loss().is_none() {
            let reason = "its owner closed it".to_owned();
            self.verdict.get_or_init(|| Loss { cause: LossCause::Killed, reason });
            connection.lanes.shut();
            // It leaves by itself, if it can.
            if connection.process.wait(limit / 2).is_some() {
                return true;
            }
        }
        self.bury(limit)
    }

    /// Makes sure that a lost worker's process is gone.
    pub(super) fn bury(&self, limit: Duration) -> bool {
        let Link::Process(connection) = &self.link else { return true };
        connection.process.kill();
        connection.process.wait(limit).is_some()
    }

    /// A heartbeat of the host, unless it is this process.
    pub(super) fn heartbeat(&self) -> Option<u64> {
        match &self.link {
            Link::Process(connection) => Some(connection.status.heartbeat()),
            Link::Here(_) => None,
        }
    }

    /// How a resident kernel stands. Makes no system call while it runs.
    pub(super) fn kernel_state(&self, slot: u32, number: u64) -> KernelState {
        if let Some(loss) = self.loss() {
            return KernelState::Lost(loss.clone());
        }
        let standing = match &self.link {
            Link::Process(connection) => connection.status.kernel(slot, number),
            Link::Here(_) => Ok(Standing::Lost),
        };
        match standing {
            Ok(Standing::Running) => KernelState::Running,
            Ok(Standing::ShutDown) => KernelState::ShutDown,
            Ok(Standing::Stopped) => KernelState::Stopped,
            Ok(Standing::CutShort) => KernelState::CutShort,
            Ok(Standing::Lost) => match self.call(&Request::State { kernel: number }, &[]) {
                Ok(Reply::Stands(state)) => {
                    let state = KernelState::from(state);
                    if let KernelState::Lost(loss) = &state {
                        self.condemn(loss.cause, loss.reason.clone());
                    }
                    state
                }
                other => lost_by(self.unexpected(other)),
            },
            Err(word) => {
                let reason = format!("its status page says {word:#x} of kernel {number}");
                lost_by(self.condemn(LossCause::Fault, reason))
            }
        }
    }

    /// Asks, and waits for the answer. A worker that does not answer in time, or with something else than an
    /// answer, is ended.
    pub(super) fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, BackendError> {
        if let Some(loss) = self.loss() {
            return Err(BackendError::DeviceLost(loss.clone()));
        }
        let name = request.name();
        let limit = self.limits.of(request);
        let answer = match &self.link {
            Link::Here(service) => service.serve(request.clone(), duplicated(fds)?),
            Link::Process(connection) => {
                let until = limit.and_then(|limit| Instant::now().checked_add(limit));
                let lane = match self.lane(connection, until) {
                    Ok(lane) => lane,
                    Err(broken) => return Err(self.broken(broken, name, limit)),
                };
                match self.exchange(&lane, connection, request, fds, until) {
                    Ok(answer) => {
                        connection.lanes.put_back(lane);
                        answer
                    }
                    Err(broken) => return Err(self.broken(broken, name, limit)),
                }
            }
        };
        answer.map_err(|failure| match failure.into_error(Generation(0)) {
            // It says that its device is gone: it is of no use any more.
            BackendError::DeviceLost(loss) => self.condemn(loss.cause, loss.reason),
            error => error,
        })
    }

    /// What an answer is that does not fit the question.
    pub(super) fn unexpected(&self, answer: Result<Reply, BackendError>) -> BackendError {
        match answer {
            Err(error) => error,
            Ok(reply) => self.condemn(LossCause::Fault, format!("it answered {reply:?} to another question")),
        }
    }

    /// Whether it answers a question, of a kernel that it does not have.
    pub(super) fn answers(&self) -> bool {
        match self.call(&Request::State { kernel: 0 }, &[]) {
            Err(error) => !error.is_device_loss(),
            Ok(_) => true,
        }
    }

    /// Room in the arena.
    pub(super) fn staging(&self, bytes: u64) -> Result<Staging, BackendError> {
        self.arena.allocate(bytes, in_at_most(self.limits.call)).map_err(|error| match error {
            WireError::ArenaFull { waited, .. } => BackendError::Deadline {
                waited_for: format!("{bytes} bytes of the transfer arena to become free"),
                after: waited,
            },
            error => BackendError::invalid(
                "bytes",
                error,
                "fewer at a time, or a larger IsolatedOptions::arena_bytes",
            ),
        })
    }

    /// Keeps what was compiled ahead of time, for as long as somebody uses the same.
    pub(super) fn prepare(&self, request: &Arc<Request>, number: u64) {
        lock(&self.prepared).push((Arc::downgrade(request), number));
    }

    pub(super) fn is_prepared(&self, request: &Request) -> bool {
        lock(&self.prepared).iter().any(|(prepared, _)| is(prepared, request))
    }

    /// Takes what was compiled ahead of time.
    pub(super) fn take_prepared(&self, request: &Request) -> Option<u64> {
        let mut prepared = lock(&self.prepared);
        let place = prepared.iter().position(|(prepared, _)| is(prepared, request))?;
        Some(prepared.swap_remove(place).1)
    }

    /// Has something let go of with the next compilation.
    pub(super) fn release_later(&self, request: Request) {
        lock(&self.released).push(request);
    }

    /// Lets go of what was dropped since the last time.
    pub(super) fn release(&self) {
        let mut released = std::mem::take(&mut *lock(&self.released));
        lock(&self.prepared).retain(|(request, number)| {
            let used = request.strong_count() > 0;
            if !used {
                released.push(Request::ReleasePipeline { pipeline: *number });
            }
            used
        });
        // What fails is tried again, unless the worker is lost, and all it had with it.
        released.retain(|request| self.call(request, &[]).is_err());
        lock(&self.released).extend(released);
    }

    /// An idle lane, or a new one. Where none can be made, the caller waits for one of the others.
    fn lane(&self, connection: &Connection, until: Option<Instant>) -> Result<Arc<Channel>, Broken> {
        if let Some(lane) = connection.lanes.idle() {
            return Ok(lane);
        }
        let lane = match self.new_lane(connection, until) {
            Err(Broken::NoLane(error)) => {
                tracing::warn!(%error, "no further lane to a worker; waiting for another");
                let until = until.unwrap_or_else(|| in_at_most(self.limits.call));
                let lane = connection.lanes.idle_by(until, || self.loss().is_some());
                lane.ok_or(Broken::NoLane(error))?
            }
            lane => lane?,
        };
        if self.verdict.get().is_some() {
            // Condemned meanwhile, and the lanes shut before this one was among them.
            return Err(WireError::Closed.into());
        }
        Ok(lane)
    }

    fn new_lane(&self, connection: &Connection, until: Option<Instant>) -> Result<Arc<Channel>, Broken> {
        let (ours, theirs) = Channel::pair().map_err(|error| Broken::NoLane(own_failure(&error)))?;
        // Whoever waits for a lane has less time for the answer.
        let most = in_at_most(self.limits.call);
        let until = until.map_or(most, |until| until.min(most));
        let first = connection.lanes.first_by(until);
        let first = first.ok_or(WireError::TimedOut { waited_for: "for a lane" })?;
        match self.exchange(&first, connection, &Request::Lane, &[theirs.fd()], Some(until))? {
            Ok(Reply::Done) => Ok(connection.lanes.add(ours)),
            Ok(reply) => Err(Broken::Nonsense(format!("{reply:?} when asked for a lane"))),
            // It has no thread for one.
            Err(failure) => Err(Broken::NoLane(failure.into_error(Generation(0)))),
        }
    }

    fn exchange(
        &self,
        lane: &Channel,
        connection: &Connection,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        until: Option<Instant>,
    ) -> Result<Answer, Broken> {
        let id = connection.requests.fetch_add(1, Ordering::Relaxed);
        let bytes = encode(request)?;
        let mut long = None;
        if bytes.len() <= MAX_PAYLOAD {
            lane.send(kind::CALL, id, &bytes, fds, until)?;
        } else {
            let room = until.unwrap_or_else(|| in_at_most(self.limits.call));
            let staging = self.arena.allocate(bytes.len() as u64, room)?;
            staging.copy_in(0, &bytes)?;
            let place = Place { offset: staging.offset(), bytes: bytes.len() as u64 };
            lane.send(kind::LONG_CALL, id, &encode(&place)?, fds, until)?;
            long = Some(staging);
        }
        let frame = receive(lane, id, until)?;
        drop(long);
        match frame.kind {
            kind::ANSWER => Ok(decode(&frame.payload)?),
            kind::LONG_ANSWER => self.fetch(lane, id, decode(&frame.payload)?, until),
            kind => Err(Broken::Nonsense(format!("a frame of kind {kind:#x} for an answer"))),
        }
    }

    /// Fetches an answer that no frame holds.
    fn fetch(&self, lane: &Channel, id: u64, bytes: u64, until: Option<Instant>) -> Result<Answer, Broken> {
        if bytes > MAX_MESSAGE {
            return Err(Broken::Nonsense(format!("an answer of {bytes} bytes")));
        }
        let mut answer = Vec::new();
        while (answer.len() as u64) < bytes {
            let from = answer.len() as u64;
            let piece = (bytes - from).min(FETCH_BYTES).min(self.arena.capacity());
            let room = until.unwrap_or_else(|| in_at_most(self.limits.call));
            let staging = self.arena.allocate(piece, room)?;
            let to = Place { offset: staging.offset(), bytes: piece };
            lane.send(kind::FETCH, id, &encode(&Piece { from, to })?, &[], until)?;
            if receive(lane, id, until)?.kind != kind::FETCHED {
                return Err(Broken::Nonsense("no piece of its own long answer".to_owned()));
            }
            let mut part = vec![0; piece as usize];
            staging.copy_out(0, &mut part)?;
            answer.extend(part);
        }
        Ok(decode(&answer)?)
    }

    /// What a caller is told of an exchange that came to nothing.
    fn broken(&self, broken: Broken, name: &str, limit: Option<Duration>) -> BackendError {
        let Link::Process(connection) = &self.link else {
            return BackendError::invalid("request", name, "a request that this process can serve itself");
        };
        match broken {
            Broken::Wire(WireError::Closed) => {
                if self.own_loss().is_none() {
                    connection.process.wait(LAST_GASP);
                }
                self.condemn(LossCause::Fault, "it closed a lane, and lives".to_owned())
            }
            Broken::Wire(WireError::TimedOut { .. }) => self.condemn(
                LossCause::Unresponsive,
                format!("it did not answer within {:?} when asked {name}", limit.unwrap_or_default()),
            ),
            Broken::Wire(error @ (WireError::ArenaFull { .. } | WireError::OutOfRange { .. })) => {
                BackendError::invalid(
                    "request",
                    error,
                    "a smaller one, or a larger IsolatedOptions::arena_bytes",
                )
            }
            Broken::Wire(error) => self.condemn(LossCause::Fault, chain(&error)),
            Broken::NoLane(error) => match self.loss() {
                Some(loss) => BackendError::DeviceLost(loss.clone()),
                None => error,
            },
            Broken::Nonsense(what) => self.condemn(LossCause::Fault, format!("it sent {what}")),
        }
    }
}

fn is(prepared: &Weak<Request>, request: &Request) -> bool {
    prepared.upgrade().is_some_and(|prepared| *prepared == *request)
}

/// The moment when a time is over, or a century from now if that is sooner.
fn in_at_most(limit: Duration) -> Instant {
    Instant::now() + limit.min(Duration::from_secs(3_000_000_000))
}

fn receive(lane: &Channel, id: u64, until: Option<Instant>) -> Result<Frame, Broken> {
    let frame = lane.receive(until)?;
    if frame.request != id {
        return Err(Broken::Nonsense(format!("an answer to request {} instead of {id}", frame.request)));
    }
    Ok(frame)
}

fn duplicated(fds: &[BorrowedFd<'_>]) -> Result<Descriptors, BackendError> {
    let duplicates = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<Result<_, _>>();
    duplicates.map_err(|error| BackendError::Driver {
        call: "dup",
        code: error.raw_os_error().unwrap_or(0).into(),
        text: error.to_string(),
    })
}

fn lost_by(error: BackendError) -> KernelState {
    KernelState::Lost(error.loss().cloned().unwrap_or_else(|| Loss::fault(error.to_string())))
}

fn not_ready(process: &Process, error: HandshakeError, after: Duration) -> StartError {
    match error {
        HandshakeError::Refused(refusal) => StartError::Refused(refusal),
        HandshakeError::Wire(WireError::Closed) => match process.wait(LAST_GASP) {
            Some(death) => StartError::Died(death.loss()),
            None => StartError::Wire(WireError::Closed),
        },
        HandshakeError::Wire(WireError::TimedOut { .. }) => {
            let tail = process.stderr_tail();
            let stderr = if tail.is_empty() { tail } else { format!("; it wrote last: {tail}") };
            StartError::Slow { after, stderr }
        }
        HandshakeError::Wire(error) => StartError::Wire(error),
        error => StartError::Version { got: error.to_string() },
    }
}

/// Until a backend has described itself.
const NOTHING: Capabilities = Capabilities {
    max_workgroup_invocations: 0,
    max_workgroup_bytes: 0,
    max_grid: [0; 3],
    max_buffer_bytes: 0,
    memory_bytes: 0,
    subgroup_width: 0,
    subgroup_operations: false,
    resident_workgroups: 0,
    grid_barriers: false,
    persistent: false,
    storage: Vec::new(),
};
