//! The threads of a host: one for each lane, and one that beats.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::Duration;

use serde::Serialize;
use vyre_driver::BackendError;

use super::failure::Failure;
use super::message::{Answer, MAX_MESSAGE, Piece, Place, Reply, Request, decode, encode, kind};
use super::service::Service;
use crate::wire::{Channel, Fds, Frame, MAX_PAYLOAD, WireError};

/// Exit code after a frame or a message that is none.
pub(crate) const EXIT_PROTOCOL: i32 = 65;
/// Exit code when the host has no thread, socket or descriptor.
pub(crate) const EXIT_SYSTEM: i32 = 71;
/// Exit code after a panic of the hosted backend.
pub(crate) const EXIT_PANIC: i32 = 101;

/// Time between two beats while kernels run: how they stand is known so late at most.
const BEAT: Duration = Duration::from_millis(1);
/// And while there are none.
const IDLE_BEAT: Duration = Duration::from_millis(10);
/// How long each kernel is given when the parent has closed.
const LAST_REAP: Duration = Duration::from_millis(100);

/// What ends a lane, and with it the host: the parent speaks another language.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error("a frame of kind {0:#x}, and no parent sends one")]
    Kind(u16),
    #[error("a message that does not decode: {0}")]
    Message(#[from] postcard::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// What the threads of a host share.
struct Host {
    service: Arc<Service>,
    beat: Thread,
}

/// Serves the first lane, on which sockets of further ones arrive, until the parent closes it. The exit code.
pub(crate) fn serve(service: Arc<Service>, first: Channel) -> i32 {
    let beating = Arc::clone(&service);
    let beat = thread::Builder::new().name("vyre-host-beat".to_owned()).spawn(move || {
        loop {
            let busy = beating.report();
            thread::park_timeout(if busy { BEAT } else { IDLE_BEAT });
        }
    });
    let beat = match beat {
        Ok(beat) => beat.thread().clone(),
        Err(error) => {
            eprintln!("vyre-worker: no thread for the heartbeat: {error}");
            return EXIT_SYSTEM;
        }
    };
    let host = Arc::new(Host { service, beat });
    host.serve_lane(&first, true);
    host.service.close(LAST_REAP);
    0
}

impl Host {
    /// Serves a lane until the parent closes it. Whatever else happens on one ends the whole process, and the
    /// parent learns of it as of every other end.
    fn serve_lane(self: &Arc<Host>, channel: &Channel, first: bool) {
        let run = || Lane { host: self, channel, first, held: Vec::new() }.run();
        match panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(LaneError::Wire(WireError::Os { call, source }))) => {
                eprintln!(
                    "vyre-worker: {call}: {source}; raise the limit on open files (ulimit -n), or free memory"
                );
                std::process::exit(EXIT_SYSTEM);
            }
            Ok(Err(error)) => {
                eprintln!("vyre-worker: {error}; the parent and this process are not of one version");
                std::process::exit(EXIT_PROTOCOL);
            }
            // The panic has said what it is.
            Err(_) => std::process::exit(EXIT_PANIC),
        }
    }

    /// Serves another lane, on a thread of its own.
    fn add_lane(self: &Arc<Host>, mut fds: Fds) -> Answer {
        let socket = fds.pop().ok_or_else(|| BackendError::invalid("lane", "no socket", "one"))?;
        let channel = Channel::from_fd(socket)
            .map_err(|error| BackendError::invalid("lane", error, "a socket of the parent's"))?;
        let host = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("vyre-host-lane".to_owned())
            .spawn(move || host.serve_lane(&channel, false));
        match spawned {
            Ok(_detached) => Ok(Reply::Done),
            Err(error) => Err(Failure::from(BackendError::Driver {
                call: "thread::spawn",
                code: error.raw_os_error().unwrap_or(0).into(),
                text: error.to_string(),
            })),
        }
    }
}

/// A lane, and the last answer if it is too long for a frame.
struct Lane<'h> {
    host: &'h Arc<Host>,
    channel: &'h Channel,
    first: bool,
    held: Vec<u8>,
}

impl Lane<'_> {
    fn run(&mut self) -> Result<(), LaneError> {
        loop {
            let frame = match self.channel.receive(None) {
                Err(WireError::Closed) => return Ok(()),
                frame => frame?,
            };
            match self.serve(frame) {
                // Nobody is left to be answered.
                Err(LaneError::Wire(WireError::Closed)) => return Ok(()),
                served => served?,
            }
        }
    }

    fn serve(&mut self, frame: Frame) -> Result<(), LaneError> {
        let Frame { kind, request: id, payload, fds } = frame;
        match kind {
            kind::CALL => self.answer(id, decode(&payload)?, fds),
            kind::LONG_CALL => match self.host.service.copy_from_arena(decode(&payload)?) {
                Ok(bytes) => self.answer(id, decode(&bytes)?, fds),
                Err(failure) => self.send_answer(id, &Err(failure)),
            },
            kind::FETCH => {
                let Piece { from, to } = decode(&payload)?;
                match self.fetch(from, to) {
                    Ok(()) => self.send(kind::FETCHED, id, &()),
                    Err(failure) => self.send_answer(id, &Err(failure)),
                }
            }
            kind => Err(LaneError::Kind(kind)),
        }
    }

    fn answer(&mut self, id: u64, request: Request, fds: Fds) -> Result<(), LaneError> {
        let answer = match request {
            Request::Lane if self.first => self.host.add_lane(fds),
            request => self.host.service.serve(request, fds),
        };
        if matches!(answer, Ok(Reply::Started { .. })) {
            self.host.beat.unpark();
        }
        self.send_answer(id, &answer)
    }

    fn send_answer(&mut self, id: u64, answer: &Answer) -> Result<(), LaneError> {
        let bytes = encode(answer)?;
        if bytes.len() <= MAX_PAYLOAD {
            return Ok(self.channel.send(kind::ANSWER, id, &bytes, &[], None)?);
        }
        let long = bytes.len() as u64;
        if long > MAX_MESSAGE {
            let expected = format!("at most {MAX_MESSAGE}: ask for less at a time");
            return self
                .send_answer(id, &Err(BackendError::invalid("answer's bytes", long, expected).into()));
        }
        self.held = bytes;
        self.send(kind::LONG_ANSWER, id, &long)
    }

    fn fetch(&self, from: u64, to: Place) -> Result<(), Failure> {
        let end = from.saturating_add(to.bytes);
        let piece = usize::try_from(from).ok().zip(usize::try_from(end).ok());
        let piece = piece.and_then(|(from, end)| self.held.get(from..end));
        let piece =
            piece.ok_or_else(|| BackendError::invalid("piece", from, "inside the last long answer"))?;
        self.host.service.copy_to_arena(to, piece)
    }

    fn send<T: Serialize>(&self, kind: u16, id: u64, message: &T) -> Result<(), LaneError> {
        Ok(self.channel.send(kind, id, &encode(message)?, &[], None)?)
    }
}
