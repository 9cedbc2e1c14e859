//! The numbers both sides of a ring agree on: opcodes, statuses, fault codes, and the shape of an item.
//!
//! docs/protocol.md explains each; this file is where code finds them. What is absent on purpose: the
//! layouts of the regions (see [`crate::layout`]) and what an opcode computes (that is IR, built by the
//! runtime).

use thiserror::Error;
use vyre_foundation::ScalarType;

/// Argument words of a slot.
pub const ARG_WORDS: usize = 12;

/// Opcode values with a meaning of their own.
pub mod opcode {
    /// Does nothing; result 0.
    pub const NOP: u32 = 0;
    /// `state[a1] = a0`; result the old value.
    pub const STORE_U32: u32 = 1;
    /// `state[a1] += a0`; result the old value.
    pub const ATOMIC_ADD: u32 = 2;
    /// `observable[a1] = state[a0]`; result the value.
    pub const LOAD_U32: u32 = 3;
    /// `if state[a0] == a1 { state[a0] = a2 }`; result the old value.
    pub const COMPARE_SWAP: u32 = 4;
    /// Copies `a2` words from `state[a0..]` to `state[a1..]`; result `a2`.
    pub const MEMCPY: u32 = 5;
    /// One DFA step: table `a0`, state `a1`, byte `a2`; result next state, accept mask in the high word.
    pub const DFA_STEP: u32 = 6;
    /// Completes after the `a0` tickets before it (0: all earlier ones of its ring). Consumers park it.
    pub const BATCH_FENCE: u32 = 7;
    /// First opcode free for users.
    pub const USER_FIRST: u32 = 8;
    /// Last opcode of the first user range.
    pub const USER_LAST: u32 = 0xFFEF;
    /// A [`PersistentWorkItem`](crate::ring::PersistentWorkItem) of the driver's own ring.
    pub const WORK_ITEM: u32 = 0xFFF0;
    /// Asks the host to load resource `a0`; result bytes loaded.
    pub const LOAD_MISS: u32 = 0xFFFD;
    /// Appends `{a0, a1, a2, ticket}` to the debug log; result 1, or 0 when the log was full.
    pub const PRINTF: u32 = 0xFFFE;
    /// First opcode of the second user range.
    pub const USER_HIGH_FIRST: u32 = 0x1_0000;
    /// Last opcode of the second user range.
    pub const USER_HIGH_LAST: u32 = 0x7FFF_FFFF;
    /// Several inner operations in one slot.
    pub const PACKED_SLOT: u32 = 0x8000_0001;
    /// Tenant 0 only: the consumer stops after everything published before it.
    pub const SHUTDOWN: u32 = 0xFFFF_FFFF;

    /// Whether a user may give a handler this opcode.
    pub const fn is_user(value: u32) -> bool {
        (value >= USER_FIRST && value <= USER_LAST) || (value >= USER_HIGH_FIRST && value <= USER_HIGH_LAST)
    }
}

/// What a completion, or the outcome of one execution of an item, says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    /// Nothing has been written here in this lap.
    Empty = 0,
    /// Finished; the result is valid.
    Done = 3,
    /// Waiting for the host to answer an IO request. Only inside a consumer, and in a batch's returned copy.
    WaitIo = 4,
    /// To be run again with new arguments. Only inside a consumer, and in a batch's returned copy.
    Requeue = 6,
    /// Ended without a result; the code says why.
    Fault = 7,
}

impl Status {
    /// The status with this number, if there is one.
    pub const fn from_word(word: u16) -> Option<Status> {
        match word {
            0 => Some(Status::Empty),
            3 => Some(Status::Done),
            4 => Some(Status::WaitIo),
            6 => Some(Status::Requeue),
            7 => Some(Status::Fault),
            _ => None,
        }
    }
}

/// Why an item ended in [`Status::Fault`]: the decoded form of a completion's code word.
///
/// | code | meaning |
/// |---|---|
/// | 1 | unknown opcode |
/// | 2 | permission |
/// | 3 | quota |
/// | 4 | bounds |
/// | 5 | bad packing |
/// | 6 | deadline |
/// | 7 | state lost |
/// | 8 | abandoned |
/// | 9 | quarantined |
/// | 10 | device lost |
/// | 11 | unknown tenant |
/// | 12 | io error |
/// | 13 | malformed |
/// | 0x8000_0000 + n | trap(n), n below 2^31 |
///
/// A packed slot that faults carries the index of the failing inner operation in its code instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Fault {
    /// No handler has this opcode.
    #[error("no handler has the item's opcode")]
    UnknownOpcode,
    /// The tenant may not use this handler.
    #[error("the tenant is not permitted to use the handler")]
    Permission,
    /// The tenant's quota is used up.
    #[error("the tenant's quota is used up")]
    Quota,
    /// An index lies outside the tenant's window or the table.
    #[error("an index lies outside the tenant's window")]
    Bounds,
    /// A packed slot does not decode.
    #[error("the packed slot is malformed")]
    BadPacking,
    /// The item ran past its deadline, or the session was aborted.
    #[error("the item was stopped at its deadline")]
    Deadline,
    /// The device was lost, and with it state that the item needs.
    #[error("device state the item needs was lost")]
    StateLost,
    /// The session ended before the item did, which may have begun.
    #[error("the session ended before the item did")]
    Abandoned,
    /// The item faulted the device twice and is not run again.
    #[error("the item faulted the device repeatedly and is quarantined")]
    Quarantined,
    /// The device was lost while the item was in flight, and it may not be replayed.
    #[error("the device was lost while the item was in flight")]
    DeviceLost,
    /// The tenant id is not configured.
    #[error("the tenant id is not configured")]
    UnknownTenant,
    /// The host could not serve the item's IO request.
    #[error("the host could not serve the IO request")]
    Io,
    /// The item's words make no sense to its handler, or its outcome made none to the consumer.
    #[error("the item or its outcome is malformed")]
    Malformed,
    /// The handler ended in `trap` or `fault` with this code.
    #[error("the handler trapped with code {0}")]
    Trap(u32),
    /// A code this version does not know.
    #[error("unknown fault code {0:#x}")]
    Unknown(u32),
}

impl Fault {
    const TRAP: u32 = 0x8000_0000;

    /// The code word. A trap keeps the low 31 bits of its code.
    pub const fn code(self) -> u32 {
        match self {
            Fault::UnknownOpcode => 1,
            Fault::Permission => 2,
            Fault::Quota => 3,
            Fault::Bounds => 4,
            Fault::BadPacking => 5,
            Fault::Deadline => 6,
            Fault::StateLost => 7,
            Fault::Abandoned => 8,
            Fault::Quarantined => 9,
            Fault::DeviceLost => 10,
            Fault::UnknownTenant => 11,
            Fault::Io => 12,
            Fault::Malformed => 13,
            Fault::Trap(code) => Fault::TRAP | (code & !Fault::TRAP),
            Fault::Unknown(code) => code,
        }
    }

    /// The fault a code word stands for.
    pub const fn from_code(code: u32) -> Fault {
        match code {
            1 => Fault::UnknownOpcode,
            2 => Fault::Permission,
            3 => Fault::Quota,
            4 => Fault::Bounds,
            5 => Fault::BadPacking,
            6 => Fault::Deadline,
            7 => Fault::StateLost,
            8 => Fault::Abandoned,
            9 => Fault::Quarantined,
            10 => Fault::DeviceLost,
            11 => Fault::UnknownTenant,
            12 => Fault::Io,
            13 => Fault::Malformed,
            code if code & Fault::TRAP != 0 => Fault::Trap(code & !Fault::TRAP),
            code => Fault::Unknown(code),
        }
    }
}

/// Ordinary dispatches report this trap code when the deadline or the abort flag stopped an invocation.
pub const TRAP_DEADLINE: u32 = Fault::Deadline.code();

/// The parameters of an item program's entry, in order: opcode, tenant, flags, ticket, then the arguments.
pub const ITEM_PARAMS: [ScalarType; 4 + ARG_WORDS] = {
    let mut params = [ScalarType::U32; 4 + ARG_WORDS];
    params[3] = ScalarType::U64;
    params
};

/// The results of an item program's entry, in order: status, code, result, then twelve words: the new
/// arguments for [`Status::Requeue`], the request for [`Status::WaitIo`] (operation, source, destination,
/// offset low, offset high, byte count), ignored otherwise.
pub const ITEM_RESULTS: [ScalarType; 3 + ARG_WORDS] = {
    let mut results = [ScalarType::U32; 3 + ARG_WORDS];
    results[2] = ScalarType::U64;
    results
};

/// Bits of an item's flags. Bits not named here are zero.
pub mod flags {
    /// The item's priority.
    pub const PRIORITY_MASK: u32 = 0b111;
    /// Set by the consumer, and by nobody else, on every run of an item after its first: it was admitted
    /// and charged to its tenant's quota before. A consumer clears it in what it takes from a slot.
    pub const RESUMED: u32 = 0x8000;
}

/// IO operations.
pub mod io {
    /// Moves `bytes` at `offset` of the source, a file, into the buffer that mirrors it.
    pub const READ: u32 = 1;
    /// Moves `bytes` of the buffer that mirrors the destination, a file, to `offset` of that.
    pub const WRITE: u32 = 2;
    /// Answered when what the tenant's requests before it have written to the destination is on disk.
    pub const FENCE: u32 = 3;
    /// The destination of a FENCE that is for all files of its tenant.
    pub const ALL: u32 = u32::MAX;
    /// Reply status: served, possibly short.
    pub const OK: u32 = 0x10;
    /// Reply status: failed; the word beside it is an OS error number.
    pub const ERROR: u32 = 0x11;
    /// The error number of a request that a kernel has given up waiting for.
    pub const TIMED_OUT: u32 = 110;
}
