//! What a parent and a kernel worker say after the handshake. Fixed layouts, little endian.

use std::time::Duration;

use crate::wire::{Malformed, Reader, Writer};

/// Parent: run this request.
pub const RUN: u16 = 0x10;
/// Worker: the response is where it was asked for.
pub const DONE: u16 = 0x11;
/// Parent: is anybody there. Any payload.
pub const PING: u16 = 0x12;
/// Worker: yes, with the payload of the question.
pub const PONG: u16 = 0x13;
/// Parent: leave, with exit code 0. Not answered.
pub const CLOSE: u16 = 0x14;

/// [`Refusal::code`](super::Refusal::code): a frame that cannot be served: an unknown kind, a range outside of
/// the arena.
pub const REFUSED_REQUEST: u32 = 4;
/// [`Refusal::code`](super::Refusal::code): the response does not fit where it was asked for.
pub const REFUSED_RESPONSE_TOO_LARGE: u32 = 5;
/// The first [`Refusal::code`](super::Refusal::code) that is the kernel's own.
pub const REFUSED_USER: u32 = 64;

/// Bytes of the arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first one, counted from the beginning of the arena.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// The payload of a RUN frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Where the request lies.
    pub request: Range,
    /// Where there is room for the response.
    pub response: Range,
    /// How long the parent will wait from the frame's arrival on; it kills the worker then.
    pub limit: Option<Duration>,
}

impl Run {
    /// Bytes of the payload.
    pub const BYTES: usize = 40;

    /// The payload.
    pub fn encode(&self) -> [u8; Run::BYTES] {
        let mut bytes = [0; Run::BYTES];
        let mut writer = Writer::over(&mut bytes);
        for word in [self.request.offset, self.request.bytes, self.response.offset, self.response.bytes] {
            writer.u64(word);
        }
        // Zero says no limit, so the shortest limit is one nanosecond.
        let nanoseconds = |limit: Duration| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
        writer.u64(self.limit.map_or(0, nanoseconds));
        bytes
    }

    /// Reads the payload. Whether the ranges exist is not known here.
    pub fn decode(payload: &[u8]) -> Result<Run, Malformed> {
        let mut reader = Reader::new("RUN", payload);
        let request = Range { offset: reader.u64()?, bytes: reader.u64()? };
        let response = Range { offset: reader.u64()?, bytes: reader.u64()? };
        let limit = reader.u64()?;
        reader.finish()?;
        let limit = if limit == 0 { None } else { Some(Duration::from_nanos(limit)) };
        Ok(Run { request, response, limit })
    }
}

/// The payload of a DONE frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Bytes of the response, from the beginning of the room given.
    pub bytes: u64,
}

impl Done {
    /// The payload.
    pub fn encode(&self) -> [u8; 8] {
        self.bytes.to_le_bytes()
    }

    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Result<Done, Malformed> {
        let mut reader = Reader::new("DONE", payload);
        let bytes = reader.u64()?;
        reader.finish()?;
        Ok(Done { bytes })
    }
}
