use std::os::fd::OwnedFd;
use std::time::Instant;

use super::arena::ArenaBytes;
use super::message::{CLOSE, DONE, Done, PING, PONG, REFUSED_REQUEST, RUN, Run};
use super::response::Response;
use crate::wire::handshake::{Hello, REFUSED, Refusal};
use crate::wire::{Channel, Frame, Malformed, Reader, WireError};

/// What a kernel worker is told at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The kernel's type: one executable may have several.
    pub kernel: String,
    /// Which device to use, counted among those that the process sees.
    pub device: u32,
    /// The caller's own bytes.
    pub config: Vec<u8>,
}

impl Start {
    /// The config of a HELLO frame: the device, then the caller's own.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.device.to_le_bytes().to_vec();
        bytes.extend(&self.config);
        bytes
    }

    /// What a HELLO says to a kernel worker.
    pub fn from_hello(hello: &Hello) -> Result<Start, Malformed> {
        let mut reader = Reader::new("config of HELLO", &hello.config);
        let device = reader.u32()?;
        Ok(Start { kernel: hello.worker.clone(), device, config: reader.rest().to_vec() })
    }
}

/// Serves requests until the parent closes the channel, or asks for the end: both are success. The caller has
/// answered HELLO with READY, or does so by `ready`, which is called once the arena is mapped.
///
/// # Errors
///
/// The parent left the protocol, the arena cannot be mapped, or a system call failed: there is nobody to tell.
pub fn serve(
    channel: &Channel,
    arena: OwnedFd,
    hello: &Hello,
    ready: impl FnOnce() -> Result<(), WireError>,
    mut handler: impl FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
) -> Result<(), WireError> {
    let mut arena = ArenaBytes::attach(arena, hello.arena_bytes)?;
    match ready() {
        Err(WireError::Closed) => return Ok(()),
        result => result?,
    }
    loop {
        let frame = match channel.receive(None) {
            Err(WireError::Closed) => return Ok(()),
            frame => frame?,
        };
        let answered = match frame.kind {
            RUN => run(channel, &mut arena, &frame, &mut handler),
            PING => channel.send(PONG, frame.request, &frame.payload, &[], None),
            CLOSE => return Ok(()),
            kind => refuse_request(channel, &frame, format!("frames of kind {kind:#x} are not known")),
        };
        match answered {
            Err(WireError::Closed) => return Ok(()),
            answered => answered?,
        }
    }
}

fn run(
    channel: &Channel,
    arena: &mut ArenaBytes,
    frame: &Frame,
    handler: &mut impl FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
) -> Result<(), WireError> {
    let run = match Run::decode(&frame.payload) {
        Ok(run) => run,
        Err(malformed) => return refuse_request(channel, frame, malformed.to_string()),
    };
    let Some((request, room)) = arena.ranges(run.request, run.response) else {
        let text = format!("ranges {:?} and {:?} overlap or leave the arena", run.request, run.response);
        return refuse_request(channel, frame, text);
    };
    let deadline = run.limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut response = Response::in_place(room, deadline);
    match handler(request, &mut response) {
        Ok(()) => {
            let done = Done { bytes: response.len() as u64 };
            channel.send(DONE, frame.request, &done.encode(), &[], None)
        }
        Err(refusal) => channel.send(REFUSED, frame.request, &refusal.encode(), &[], None),
    }
}

fn refuse_request(channel: &Channel, frame: &Frame, text: String) -> Result<(), WireError> {
    let refusal = Refusal { code: REFUSED_REQUEST, text };
    channel.send(REFUSED, frame.request, &refusal.encode(), &[], None)
}
