use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::KernelError;
use super::spec::KernelSpec;
use crate::kernel::{CLOSE, DONE, Done, PING, PONG, RUN, Range, Run};
use crate::process::Process;
use crate::wire::handshake::{self, HandshakeError, Hello, REFUSED, Refusal};
use crate::wire::{Channel, Frame, Malformed, Staging, TransferArena, WireError};

/// The variable that tells an executable that it was started as a worker.
const WORKER_VARIABLE: &str = "VYRE_WORKER";

/// The descriptor of the channel in a worker.
const CHANNEL_FD: i32 = 3;

/// Room for the response begins at a multiple of this.
pub(super) const ALIGN: u64 = 64;

/// How often a waiting call looks whether the process still lives. The end of the channel says so sooner, unless
/// a child of the worker holds it open.
const LIVENESS: Duration = Duration::from_millis(200);

/// How long after its channel closed a process may take until the system reports its end.
const DEATH: Duration = Duration::from_secs(1);

/// One process that is ready, in one caller's hands at a time.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: u64,
    spec: KernelSpec,
    process: Arc<Process>,
    channel: Channel,
    arena: TransferArena,
    requests: u64,
}

/// What became of a call, and of its worker.
#[derive(Debug)]
pub(super) enum CallError {
    /// The worker is as good as before.
    Kept(KernelError),
    /// The worker is gone, and never had the request.
    Unsent(KernelError),
    /// The worker is gone, or not to be used again, and may have run the request.
    Lost(KernelError),
}

impl Worker {
    /// Starts a process and makes a worker of it. `spawned` gets to know the process before it is waited for.
    pub(super) fn start(
        id: u64,
        spec: &KernelSpec,
        limit: Duration,
        spawned: impl FnOnce(&Arc<Process>),
    ) -> Result<Worker, KernelError> {
        let kernel = || spec.kernel().to_owned();
        let until = super::options::until(Instant::now(), limit);
        let resources = |source| KernelError::Resources { kernel: kernel(), source };
        let (channel, theirs) = Channel::pair().map_err(resources)?;
        let arena = TransferArena::create(spec.arena()).map_err(resources)?;
        let launch = spec.launch().env(WORKER_VARIABLE, "kernel").fd(CHANNEL_FD, theirs.into_fd());
        let launch = if spec.is_reexec() { launch } else { launch.arg("--server") };
        let process = Process::spawn(launch)
            .map_err(|source| KernelError::Spawn { kernel: kernel(), source: Box::new(source) })?;
        let process = Arc::new(process);
        spawned(&process);
        let hello = Hello::new(kernel(), arena.capacity(), spec.start().encode());
        match handshake::connect(&channel, &hello, &[arena.fd()], until) {
            Ok(ready) => {
                tracing::debug!(
                    kernel = spec.kernel(),
                    pid = process.pid(),
                    ready = ready.text,
                    "worker ready"
                );
                Ok(Worker { id, spec: spec.clone(), process, channel, arena, requests: 0 })
            }
            Err(source) => {
                let death = match &source {
                    HandshakeError::Wire(WireError::Closed) | HandshakeError::Refused(_) => {
                        process.wait(DEATH)
                    }
                    _ => None,
                };
                // One that refused has said why, and how it ended then is of no interest.
                if let (Some(death), HandshakeError::Wire(_)) = (death, &source) {
                    return Err(KernelError::EndedEarly { kernel: kernel(), death: Box::new(death) });
                }
                let stderr = process.stderr_tail();
                Err(KernelError::Handshake { kernel: kernel(), stderr, source })
            }
        }
    }

    /// Runs one request; the length of its response. `response` is all the room that it has.
    pub(super) fn call(
        &mut self,
        request: &[u8],
        response: &mut [u8],
        begun: Instant,
        until: Instant,
    ) -> Result<usize, CallError> {
        if let Some(death) = self.process.death() {
            return Err(CallError::Unsent(self.died(death)));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CallError::Kept(self.late("a worker", begun)));
        }
        let (bytes, room) = (request.len() as u64, response.len() as u64);
        let after = bytes.next_multiple_of(ALIGN);
        let staging = self.arena.allocate(after.saturating_add(room), until).map_err(|source| {
            CallError::Kept(KernelError::Resources { kernel: self.spec.kernel().to_owned(), source })
        })?;
        staging.copy_in(0, request).map_err(|error| self.broken(error))?;
        let run = Run {
            request: Range { offset: staging.offset(), bytes },
            response: Range { offset: staging.offset() + after, bytes: room },
            limit: Some(left),
        };
        let answer = self.ask(RUN, &run.encode(), begun, until)?;
        self.answer(answer, &staging, after, response)
    }

    fn answer(
        &self,
        answer: Frame,
        staging: &Staging,
        after: u64,
        response: &mut [u8],
    ) -> Result<usize, CallError> {
        match answer.kind {
            DONE => {
                let done = Done::decode(&answer.payload).map_err(|bad| self.broken(bad.into()))?;
                let limit = response.len() as u64;
                let filled = usize::try_from(done.bytes).ok().and_then(|bytes| response.get_mut(..bytes));
                let Some(filled) = filled else {
                    let bound = Malformed::Bound { field: "response bytes", got: done.bytes, limit };
                    return Err(self.broken(bound.into()));
                };
                staging.copy_out(after, filled).map_err(|error| self.broken(error))?;
                Ok(filled.len())
            }
            REFUSED => {
                let source = Refusal::decode(&answer.payload).map_err(|bad| self.broken(bad.into()))?;
                let kernel = self.spec.kernel().to_owned();
                Err(CallError::Kept(KernelError::Refused { kernel, source }))
            }
            got => Err(self.broken(Malformed::Kind { got, expected: "DONE or REFUSED" }.into())),
        }
    }

    /// Whether it answers.
    pub(super) fn ping(&mut self, begun: Instant, until: Instant) -> Result<(), CallError> {
        if let Some(death) = self.process.death() {
            return Err(CallError::Unsent(self.died(death)));
        }
        match self.ask(PING, &[], begun, until)?.kind {
            PONG => Ok(()),
            got => Err(self.broken(Malformed::Kind { got, expected: "PONG" }.into())),
        }
    }

    /// One frame, and the answer to it.
    fn ask(&mut self, kind: u16, payload: &[u8], begun: Instant, until: Instant) -> Result<Frame, CallError> {
        self.requests += 1;
        match self.channel.send(kind, self.requests, payload, &[], Some(until)) {
            Err(WireError::Closed) => return Err(CallError::Unsent(self.gone())),
            sent => sent.map_err(|error| self.broken(error))?,
        }
        loop {
            let look = until.min(Instant::now() + LIVENESS);
            match self.channel.receive(Some(look)) {
                Ok(Frame { request, .. }) if request != self.requests => {
                    let bad = Malformed::Request { got: request, expected: self.requests };
                    return Err(self.broken(bad.into()));
                }
                Ok(Frame { fds, .. }) if !fds.is_empty() => {
                    let bad = Malformed::Bound { field: "descriptors", got: fds.len() as u64, limit: 0 };
                    return Err(self.broken(bad.into()));
                }
                Ok(frame) => return Ok(frame),
                Err(WireError::Closed) => return Err(CallError::Lost(self.gone())),
                Err(WireError::TimedOut { .. }) if look < until => {
                    if let Some(death) = self.process.death() {
                        return Err(CallError::Lost(self.died(death)));
                    }
                }
                Err(WireError::TimedOut { .. }) => {
                    self.process.kill();
                    return Err(CallError::Lost(self.late("the worker's answer", begun)));
                }
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// Asks it to leave; whether it does is seen in [`Worker::left`].
    pub(super) fn close(&self) {
        // One that is gone, or does not read, is ended by dropping it.
        let _ = self.channel.send(CLOSE, 0, &[], &[], Some(Instant::now()));
    }

    /// Waits until it has left.
    pub(super) fn left(&self, until: Instant) -> bool {
        self.process.wait(until.saturating_duration_since(Instant::now())).is_some()
    }

    /// The channel is closed: the process is dead, or has given the channel up.
    fn gone(&self) -> KernelError {
        match self.process.wait(DEATH) {
            Some(death) => self.died(death),
            None => self.protocol(WireError::Closed),
        }
    }

    fn late(&self, waited_for: &'static str, begun: Instant) -> KernelError {
        let (kernel, stderr) = (self.spec.kernel().to_owned(), self.process.stderr_tail());
        KernelError::Deadline { kernel, waited_for, waited: begun.elapsed(), stderr }
    }

    fn died(&self, death: crate::process::Death) -> KernelError {
        KernelError::Died { kernel: self.spec.kernel().to_owned(), death: Box::new(death) }
    }

    fn broken(&self, source: WireError) -> CallError {
        CallError::Lost(self.protocol(source))
    }

    fn protocol(&self, source: WireError) -> KernelError {
        self.process.kill();
        let stderr = self.process.stderr_tail();
        KernelError::Protocol { kernel: self.spec.kernel().to_owned(), stderr, source }
    }
}
