//! The first two frames of a channel: what the parent has, and whether the worker can serve it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use super::channel::Channel;
use super::error::{Malformed, WireError};
use super::frame::{Fds, Frame, MAX_PAYLOAD};
use super::reader::Reader;
use crate::process::printable;

/// Version of what is said after the handshake.
pub const PROTOCOL_VERSION: u32 = 1;

/// Parent: here is the arena; serve this.
pub const HELLO: u16 = 0x01;
/// Worker: ready.
pub const READY: u16 = 0x02;
/// Worker: no, and why. Also the answer to a request; the worker lives on after that.
pub const REFUSED: u16 = 0x03;

/// [`Refusal::code`]: the protocol versions differ.
pub const REFUSED_VERSION: u32 = 1;
/// [`Refusal::code`]: the worker does not know this type of worker.
pub const REFUSED_WORKER: u32 = 2;
/// [`Refusal::code`]: the worker could not begin: no device, no memory.
pub const REFUSED_START: u32 = 3;

/// What a parent says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the parent.
    pub version: u32,
    /// Which of the things it can serve the worker is to serve: `backend cpu`, or a kernel's type.
    pub worker: String,
    /// Bytes of the arena, whose memfd comes with the frame as the first descriptor.
    pub arena_bytes: u64,
    /// For the worker: what it means is between it and its caller.
    pub config: Vec<u8>,
}

impl Hello {
    /// A greeting of this version.
    pub fn new(worker: impl Into<String>, arena_bytes: u64, config: Vec<u8>) -> Hello {
        Hello { version: PROTOCOL_VERSION, worker: worker.into(), arena_bytes, config }
    }

    /// The payload of a HELLO frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(20 + self.worker.len() + self.config.len());
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.arena_bytes.to_le_bytes());
        put_counted(&mut bytes, self.worker.as_bytes());
        put_counted(&mut bytes, &self.config);
        bytes
    }

    /// Reads the payload of a HELLO frame. Of another version only the version can be read.
    pub fn decode(payload: &[u8]) -> Result<Hello, HandshakeError> {
        let mut reader = Reader::new("HELLO", payload);
        let version = reader.u32()?;
        same_version(version)?;
        let arena_bytes = reader.u64()?;
        let worker = reader.text("worker type")?;
        let config = reader.counted()?.to_vec();
        reader.finish()?;
        Ok(Hello { version, worker, arena_bytes, config })
    }
}

/// What a worker that can serve answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// [`PROTOCOL_VERSION`] of the worker.
    pub version: u32,
    /// The worker about itself, for logs; decoded, it has no control characters but line ends and tabs.
    pub text: String,
}

impl Ready {
    /// The payload of a READY frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.version.to_le_bytes().to_vec();
        put_counted(&mut bytes, self.text.as_bytes());
        bytes
    }

    /// Reads the payload of a READY frame.
    pub fn decode(payload: &[u8]) -> Result<Ready, HandshakeError> {
        let mut reader = Reader::new("READY", payload);
        let version = reader.u32()?;
        same_version(version)?;
        let text = printable(reader.text("text")?.as_bytes());
        reader.finish()?;
        Ok(Ready { version, text })
    }
}

/// A worker's typed no. It lives on, unless it is the answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused by the worker with code {code}: {text}")]
pub struct Refusal {
    /// What kind of no; below 64 it is the protocol's.
    pub code: u32,
    /// The reason, for people; decoded, it has no control characters but line ends and tabs.
    pub text: String,
}

impl Refusal {
    /// The payload of a REFUSED frame; a text too long for it is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.code.to_le_bytes().to_vec();
        let end = self.text.floor_char_boundary(MAX_PAYLOAD - 8);
        put_counted(&mut bytes, self.text.get(..end).unwrap_or_default().as_bytes());
        bytes
    }

    /// Reads the payload of a REFUSED frame.
    pub fn decode(payload: &[u8]) -> Result<Refusal, Malformed> {
        let mut reader = Reader::new("REFUSED", payload);
        let code = reader.u32()?;
        let text = printable(reader.text("text")?.as_bytes());
        reader.finish()?;
        Ok(Refusal { code, text })
    }
}

/// Why there is no worker at the other end of a channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The channel failed.
    #[error("handshake with the worker")]
    Wire(#[from] WireError),
    /// The worker will not serve.
    #[error("the worker does not start")]
    Refused(#[from] Refusal),
    /// The two sides were built from different versions.
    #[error("the other side speaks protocol version {got}, this one {expected}; build both from one version")]
    Version {
        /// The other side's.
        got: u32,
        /// This side's.
        expected: u32,
    },
}

impl From<Malformed> for HandshakeError {
    fn from(malformed: Malformed) -> HandshakeError {
        HandshakeError::Wire(malformed.into())
    }
}

/// The parent's side. `fds`: the arena first, then what else this type of worker wants.
pub fn connect(
    channel: &Channel,
    hello: &Hello,
    fds: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<Ready, HandshakeError> {
    channel.send(HELLO, 0, &hello.encode(), fds, Some(until))?;
    let Frame { kind, request, payload, fds } = channel.receive(Some(until))?;
    if request != 0 {
        return Err(Malformed::Request { got: request, expected: 0 }.into());
    }
    if !fds.is_empty() {
        return Err(Malformed::Bound { field: "descriptors", got: fds.len() as u64, limit: 0 }.into());
    }
    match kind {
        READY => Ready::decode(&payload),
        REFUSED => Err(Refusal::decode(&payload)?.into()),
        got => Err(Malformed::Kind { got, expected: "READY or REFUSED" }.into()),
    }
}

/// The worker's side: waits for the greeting. A parent of another version is told so. What is right is answered
/// by [`ready`] or [`refuse`].
pub fn accept(channel: &Channel, until: Option<Instant>) -> Result<(Hello, OwnedFd, Fds), HandshakeError> {
    let Frame { kind, payload, mut fds, .. } = channel.receive(until)?;
    if kind != HELLO {
        return Err(Malformed::Kind { got: kind, expected: "HELLO" }.into());
    }
    let hello = Hello::decode(&payload);
    if let Err(error @ HandshakeError::Version { .. }) = &hello {
        refuse(channel, REFUSED_VERSION, &error.to_string())?;
    }
    let hello = hello?;
    if fds.is_empty() {
        return Err(Malformed::Field { field: "descriptors of HELLO", got: 0, expected: 1 }.into());
    }
    let arena = fds.remove(0);
    Ok((hello, arena, fds))
}

/// The worker can serve.
pub fn ready(channel: &Channel, text: &str) -> Result<(), WireError> {
    let end = text.floor_char_boundary(MAX_PAYLOAD - 8);
    let text = text.get(..end).unwrap_or_default().to_owned();
    channel.send(READY, 0, &Ready { version: PROTOCOL_VERSION, text }.encode(), &[], None)
}

/// The worker cannot serve, and ends.
pub fn refuse(channel: &Channel, code: u32, text: &str) -> Result<(), WireError> {
    channel.send(REFUSED, 0, &Refusal { code, text: text.to_owned() }.encode(), &[], None)
}

fn same_version(got: u32) -> Result<(), HandshakeError> {
    if got == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(HandshakeError::Version { got, expected: PROTOCOL_VERSION })
}

fn put_counted(into: &mut Vec<u8>, bytes: &[u8]) {
    into.extend((bytes.len() as u32).to_le_bytes());
    into.extend(bytes);
}
