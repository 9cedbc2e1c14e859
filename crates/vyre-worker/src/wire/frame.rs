use std::os::fd::OwnedFd;

use smallvec::SmallVec;

use super::error::Malformed;
use super::reader::{Reader, Writer};

/// Bytes of a frame before its payload.
pub const HEADER_BYTES: usize = 32;

/// Most bytes of a frame's payload: a frame is at most 64 KiB.
pub const MAX_PAYLOAD: usize = 64 * 1024 - HEADER_BYTES;

/// Most descriptors that a frame carries.
pub const MAX_FDS: usize = 4;

/// The frame format's version; a peer of another is refused.
pub const VERSION: u16 = 1;

/// "VYRF" as bytes.
const MAGIC: u32 = u32::from_le_bytes(*b"VYRF");

/// Descriptors that came with a frame, in the order sent.
pub type Fds = SmallVec<[OwnedFd; MAX_FDS]>;

/// A frame that arrived whole. Its payload is bytes of the other side's choice.
#[derive(Debug)]
pub struct Frame {
    /// What it is.
    pub kind: u16,
    /// Which request it belongs to; an answer has that of its question.
    pub request: u64,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
    /// At most [`MAX_FDS`].
    pub fds: Fds,
}

/// The first 32 bytes of a frame, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: u16,
    /// Bytes after the header.
    pub payload: u32,
    /// Descriptors that came along.
    pub fds: u32,
    /// Which request it belongs to.
    pub request: u64,
}

impl FrameHeader {
    /// The bytes that go in front of the payload.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut writer = Writer::over(&mut bytes);
        writer.u32(MAGIC);
        writer.u16(VERSION);
        writer.u16(self.kind);
        writer.u32(self.payload);
        writer.u32(self.fds);
        writer.u64(self.request);
        bytes
    }

    /// Splits a packet with `fds` descriptors into header and payload, and refuses all that is not exactly so.
    pub fn decode(packet: &[u8], fds: usize) -> Result<(FrameHeader, &[u8]), Malformed> {
        let mut reader = Reader::new("frame", packet);
        reader.expect("magic", MAGIC.into(), |r| r.u32().map(u64::from))?;
        reader.expect("version", VERSION.into(), |r| r.u16().map(u64::from))?;
        let kind = reader.u16()?;
        let payload = reader.u32()?;
        let declared = reader.u32()?;
        let request = reader.u64()?;
        reader.expect("reserved bytes", 0, Reader::u64)?;
        let rest = reader.rest();
        exactly("payload length", payload.into(), rest.len() as u64)?;
        exactly("descriptor count", declared.into(), fds as u64)?;
        Ok((FrameHeader { kind, payload, fds: declared, request }, rest))
    }
}

fn exactly(field: &'static str, got: u64, expected: u64) -> Result<(), Malformed> {
    if got == expected { Ok(()) } else { Err(Malformed::Field { field, got, expected }) }
}
