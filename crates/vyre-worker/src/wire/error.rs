use std::io;
use std::time::Duration;

use vyre_driver::ring::RingError;

/// Why a frame was not sent or received, or bulk data not moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The other side's process ended, or closed its socket.
    #[error("the other side closed the channel")]
    Closed,
    /// The deadline passed first.
    #[error("timed out waiting {waited_for}")]
    TimedOut {
        /// What was waited for.
        waited_for: &'static str,
    },
    /// What arrived is not the protocol. The other side is not to be spoken to any more.
    #[error("malformed frame from the other side; end that worker")]
    Malformed(#[from] Malformed),
    /// More than one frame carries.
    #[error("{got} {what} in a frame; at most {limit}; send bulk data through the arena")]
    TooLarge {
        /// Bytes, or descriptors.
        what: &'static str,
        /// How many there are.
        got: u64,
        /// How many there may be.
        limit: u64,
    },
    /// The descriptor is not a connected SOCK_SEQPACKET socket.
    #[error("descriptor is {got}; a worker's channel is an AF_UNIX SOCK_SEQPACKET socket")]
    NotAChannel {
        /// What it is.
        got: String,
    },
    /// No room in the arena for so long.
    #[error(
        "arena of {capacity} bytes had no room for {requested} in {waited:?}; drop a staging or ask for less"
    )]
    ArenaFull {
        /// Bytes asked for.
        requested: u64,
        /// Bytes that an empty arena can give in one piece.
        capacity: u64,
        /// How long it was tried.
        waited: Duration,
    },
    /// A range that the arena does not have, whoever asks.
    #[error("{bytes} bytes at {offset} are outside of {limit}")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// Bytes there are.
        limit: u64,
    },
    /// The shared memory is not what it must be.
    #[error("shared memory of the arena")]
    Region(#[from] RingError),
    /// A system call failed.
    #[error("system call {call} failed")]
    Os {
        /// Its name.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl WireError {
    pub(crate) fn os(call: &'static str, errno: rustix::io::Errno) -> WireError {
        WireError::Os { call, source: errno.into() }
    }
}

/// What is wrong with a packet or its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Shorter than its fixed part.
    #[error("{what} of {got} bytes; at least {expected} expected")]
    Short {
        /// The frame, or the message.
        what: &'static str,
        /// Bytes there are.
        got: u64,
        /// Bytes there must be.
        expected: u64,
    },
    /// Longer than anything that may be sent.
    #[error("packet longer than {limit} bytes")]
    Oversized {
        /// The bound.
        limit: u64,
    },
    /// A field does not have the one value it may have.
    #[error("{field} is {got:#x}; expected {expected:#x}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What was found.
        got: u64,
        /// What belongs there.
        expected: u64,
    },
    /// A field is larger than it may be.
    #[error("{field} is {got}; at most {limit}")]
    Bound {
        /// Its name.
        field: &'static str,
        /// What was found.
        got: u64,
        /// The bound.
        limit: u64,
    },
    /// A text is not UTF-8.
    #[error("{field} is not UTF-8")]
    Text {
        /// Its name.
        field: &'static str,
    },
    /// More descriptors than a frame may carry.
    #[error("descriptors were cut off: more than {limit} sent")]
    Descriptors {
        /// The bound.
        limit: u64,
    },
    /// A frame of a kind that has no place here.
    #[error("frame of kind {got:#x} where {expected} was expected")]
    Kind {
        /// What came.
        got: u16,
        /// What should have come.
        expected: &'static str,
    },
    /// An answer to something else than what was asked.
    #[error("answer to request {got}; request {expected} was asked")]
    Request {
        /// What came.
        got: u64,
        /// What was asked.
        expected: u64,
    },
}
