//! What regions, rings, arenas and waits may answer instead of a result.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::error::BackendError;
use crate::protocol::Status;

/// An error of the shared-memory half of the crate. It holds no heap memory, so that a full ring costs its
/// caller nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The ring has no room for the submission. Take or reap the ticket named, then try again.
    #[error(
        "would block: ticket {oldest_untaken} still holds its slot; take, reap or forget it, then submit again"
    )]
    WouldBlock {
        /// The oldest ticket not yet taken.
        oldest_untaken: u64,
    },
    /// The batch can never fit.
    #[error("a batch of {len} items exceeds the ring's capacity of {capacity}; submit it in parts")]
    BatchTooLarge {
        /// Items submitted at once.
        len: usize,
        /// Slots of the ring.
        capacity: u32,
    },
    /// A reserved flag of an item is set.
    #[error("item flags {flags:#06x} set reserved bits; only bits 0 to 2 may be set")]
    ReservedFlags {
        /// The flags given.
        flags: u16,
    },
    /// The number of payloads is not the number of items.
    #[error("{payloads} payloads for {items} items; give one, possibly `None`, for each item")]
    PayloadCount {
        /// Payloads given.
        payloads: usize,
        /// Items given.
        items: usize,
    },
    /// The ticket, or the arena range, belongs to another ring or session.
    #[error("the {what} belongs to another ring or session; hand it to the one that it came from")]
    Foreign {
        /// What was refused.
        what: &'static str,
    },
    /// No such ticket has been issued yet.
    #[error("ticket {ticket} has not been issued; ask only for tickets that a submission returned")]
    NotIssued {
        /// The ticket asked for.
        ticket: u64,
    },
    /// The ticket was taken, reaped or forgotten before.
    #[error("ticket {ticket} was already taken; its completion is with whoever took or reaped it")]
    AlreadyTaken {
        /// The ticket asked for.
        ticket: u64,
    },
    /// The item is not fully published yet; its producer is still copying.
    #[error("ticket {ticket} is still being published; try again in a moment")]
    BeingPublished {
        /// The ticket asked for.
        ticket: u64,
    },
    /// The device wrote something that the protocol does not allow. It was counted, and not believed.
    #[error(
        "ring {ring}: completion of ticket {ticket} carries tag {tag:#010x}, expected lap {lap:#06x}; restart the device's side of the session"
    )]
    Violation {
        /// The ring.
        ring: u32,
        /// The ticket whose completion was read.
        ticket: u64,
        /// The tag found.
        tag: u32,
        /// The lap expected in its upper half.
        lap: u16,
    },
    /// An item ends only in DONE or FAULT.
    #[error("status {status:?} does not complete an item; only Done and Fault do")]
    NotFinal {
        /// The status refused.
        status: Status,
    },
    /// A wait ended before what it waited for.
    #[error(
        "deadline of {after:?} passed waiting for {waited_for} {number}; see that a consumer runs, or wait longer"
    )]
    Deadline {
        /// What was awaited.
        waited_for: &'static str,
        /// Which of them.
        number: u64,
        /// How long.
        after: Duration,
    },
    /// The arena has no free range of this size. Take finished tickets, then try again.
    #[error(
        "would block: the arena has no free range of {requested} bytes; take finished tickets, then try again"
    )]
    ArenaFull {
        /// Bytes asked for.
        requested: u64,
    },
    /// The arena can never hold this.
    #[error(
        "a range of {requested} bytes does not fit an arena of {capacity} bytes; ask for less, or lay out a larger one"
    )]
    RangeTooLarge {
        /// Bytes asked for.
        requested: u64,
        /// Bytes of the arena.
        capacity: u64,
    },
    /// A configuration field cannot be laid out.
    #[error("{field} is {got}; expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// Its value.
        got: u64,
        /// What is accepted.
        expected: &'static str,
    },
    /// A region's header contradicts the layout.
    #[error(
        "header field `{field}` is {got:#x}, expected {expected:#x}; create the regions anew with this version"
    )]
    Header {
        /// The field.
        field: &'static str,
        /// Its value.
        got: u64,
        /// The value that follows from the rest.
        expected: u64,
    },
    /// A region is smaller than its layout.
    #[error("the region has {got} bytes, at least {expected} are needed; create it as the layout says")]
    RegionSize {
        /// Bytes it has.
        got: u64,
        /// Bytes needed.
        expected: u64,
    },
    /// An access past the end of a region, or not aligned.
    #[error(
        "{bytes} bytes at offset {offset} are not inside a region of {region} bytes, or not aligned; use offsets of its layout"
    )]
    OutOfRegion {
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// Size of the region.
        region: u64,
    },
    /// An access past the end of a section or range.
    #[error("{what}: {bytes} bytes at {offset} exceed its {len} bytes; access less, or less far behind")]
    OutOfRange {
        /// What was accessed.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes.
        bytes: u64,
        /// Size.
        len: u64,
    },
    /// A write to a read-only mapping.
    #[error("the region is mapped read-only here; only the side that owns it writes to it")]
    ReadOnly,
    /// The memfd could be shrunk under its mapping.
    #[error("the descriptor's size is not sealed; seal it against shrinking and growing first")]
    Unsealed,
    /// A ring that the regions do not have.
    #[error("there is no ring {ring} in a session with {rings} rings; they are counted from 0")]
    NoSuchRing {
        /// The ring asked for.
        ring: u32,
        /// How many there are.
        rings: u32,
    },
    /// A worker that the regions do not have.
    #[error("there is no worker {worker} in a session with {workers} workers; they are counted from 0")]
    NoSuchWorker {
        /// The worker asked for.
        worker: u32,
        /// How many there are.
        workers: u32,
    },
    /// The operating system refused a call.
    #[error("{call} failed")]
    Os {
        /// The call.
        call: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl RingError {
    pub(crate) fn os(call: &'static str, errno: rustix::io::Errno) -> RingError {
        RingError::Os { call, source: errno.into() }
    }

    /// Whether the same call may succeed later unchanged.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            RingError::WouldBlock { .. }
                | RingError::ArenaFull { .. }
                | RingError::Deadline { .. }
                | RingError::BeingPublished { .. }
        )
    }
}

impl From<RingError> for BackendError {
    fn from(error: RingError) -> BackendError {
        match error {
            RingError::Os { call, source } => BackendError::Driver {
                call,
                code: i64::from(source.raw_os_error().unwrap_or(0)),
                text: source.to_string(),
            },
            other => BackendError::invalid("regions", other, "regions laid out by their header"),
        }
    }
}
