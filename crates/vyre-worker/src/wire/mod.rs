//! What a parent and its worker say to each other: frames over a socket, bulk data in an arena.
//!
//! One frame is one packet of a SOCK_SEQPACKET pair, so a bad frame can never shift the next. Frames are small
//! and bounded; whatever is larger lies in a [`TransferArena`] that both sides map, and a frame says where.
//! Everything that arrives is untrusted until it was decoded: lengths and offsets are copied once, then checked.
//! docs/worker-protocol.md has the bytes.
//!
//! Absent on purpose: processes, and what a request means.

mod arena;
mod channel;
mod error;
mod frame;
pub mod handshake;
mod reader;

pub use arena::{ArenaView, Staging, TransferArena};
pub use channel::Channel;
pub use error::{Malformed, WireError};
pub use frame::{Fds, Frame, FrameHeader, HEADER_BYTES, MAX_FDS, MAX_PAYLOAD, VERSION};
pub use reader::{Reader, Writer};
