//! The errors of this crate.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use vyre_driver::ring::RingError;
use vyre_driver::{BackendError, Fault, Generation, Loss};
use vyre_foundation::ValidationErrors;

use crate::descriptor::Priority;
use crate::observe::ObserveError;
use crate::opcode::SlotOpcode;
use crate::packed::MAX_PACKED_OPS;
use crate::session::name_of;

/// Why the megakernel refused. Nothing was done unless the variant says otherwise.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MegakernelError {
    /// No free slot: take completions, or wait.
    #[error("the ring of {capacity} slots is full{}; take completions first", oldest(.oldest_untaken))]
    RingFull {
        /// Slots of the ring.
        capacity: u64,
        /// The key of the oldest ticket that nobody has taken, if one is known.
        oldest_untaken: Option<u64>,
    },
    /// Items submitted together whose priorities belong to different rings of the session.
    #[error(
        "items of priority {first:?} and {other:?} go to different rings of this session; submit them in calls of \
         their own"
    )]
    MixedPriorities {
        /// The priority of the first item.
        first: Priority,
        /// The first one of another ring.
        other: Priority,
    },
    /// A slot count, workgroup size or table size that cannot be.
    #[error("invalid geometry: {what} is {got}, expected {expected}")]
    InvalidGeometry {
        /// The quantity.
        what: &'static str,
        /// Its value.
        got: u64,
        /// What would have been accepted.
        expected: String,
    },
    /// More argument words than fit.
    #[error("{got} argument words for {what}, at most {limit} fit")]
    TooManyArgs {
        /// What the arguments were for.
        what: &'static str,
        /// How many were given.
        got: usize,
        /// How many fit.
        limit: usize,
    },
    /// More slots than there is room for.
    #[error(
        "{got} slots do not fit into the {limit} that there are; send fewer at once, or, into a batch's ring, start \
         at a lower slot"
    )]
    BatchTooLarge {
        /// Slots given.
        got: usize,
        /// Slots from the start position on.
        limit: usize,
    },
    /// A batch ring's slot that already holds an item.
    #[error("slot {slot} already holds an item; start after it or use another ring")]
    SlotOccupied {
        /// The slot.
        slot: usize,
    },
    /// An opcode that may not be used here.
    #[error("{opcode} is reserved; user opcodes are 8..=0xffef and 0x10000..=0x7fffffff")]
    ReservedOpcode {
        /// The opcode.
        opcode: SlotOpcode,
    },
    /// Two handlers of one opcode.
    #[error("{opcode} has two handlers, `{first}` and `{second}`; give one of them another opcode")]
    DuplicateOpcode {
        /// The opcode.
        opcode: SlotOpcode,
        /// The handler registered first.
        first: String,
        /// The handler refused.
        second: String,
    },
    /// An opcode without a handler.
    #[error("{opcode} has no handler in this megakernel; register one when building it")]
    UnknownOpcode {
        /// The opcode.
        opcode: SlotOpcode,
    },
    /// A tenant that is not configured.
    #[error("tenant {tenant} is not configured; add it when building the megakernel")]
    UnknownTenant {
        /// The tenant's id.
        tenant: u32,
    },
    /// A tenant may not use an opcode.
    #[error("tenant {tenant} is not permitted to use {opcode}; add it to `TenantConfig::permitting`")]
    PermissionDenied {
        /// The tenant's id.
        tenant: u16,
        /// The opcode.
        opcode: SlotOpcode,
    },
    /// A tenant's quota is used up, or cannot be changed as asked.
    #[error("the quota of tenant {tenant} is {limit}; raise it above that")]
    QuotaExceeded {
        /// The tenant's id.
        tenant: u16,
        /// Its limit.
        limit: u32,
    },
    /// A packed slot, a window or a batch that breaks a rule of its form.
    #[error("malformed {what}: {problem}; {remedy}")]
    MalformedDescriptor {
        /// The kind of descriptor.
        what: &'static str,
        /// What is wrong.
        problem: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Bytes that are not what they should be.
    #[error("malformed {buffer}: got {got}, expected {expected}; {remedy}")]
    MalformedBuffer {
        /// The buffer, and the part of it.
        buffer: &'static str,
        /// What was found.
        got: String,
        /// What would have been accepted.
        expected: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A handler that cannot be built.
    #[error("handler `{handler}`: {problem}; {remedy}")]
    InvalidHandler {
        /// The handler's name.
        handler: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A buffer that a handler declares, or that is bound to it, does not fit.
    #[error("binding `{binding}`: {problem}; {remedy}")]
    InvalidBinding {
        /// The binding's name.
        binding: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A DFA table that is not well formed.
    #[error("DFA table {table}: {problem}; `DfaTable` says what a table must be")]
    InvalidDfaTable {
        /// The table's id.
        table: u32,
        /// What is wrong.
        problem: String,
    },
    /// Something from before a device loss.
    #[error("{what} belongs to generation {generation}, the device is at generation {current}; {remedy}")]
    Stale {
        /// What is stale.
        what: &'static str,
        /// Its generation.
        generation: Generation,
        /// The device's generation now.
        current: Generation,
        /// What to do.
        remedy: &'static str,
    },
    /// A wait that expired.
    #[error("deadline of {after:?} passed waiting for {waited_for}")]
    Deadline {
        /// What was awaited.
        waited_for: String,
        /// How long.
        after: Duration,
    },
    /// The backend refused or failed.
    #[error("the backend failed to {attempted}")]
    Backend {
        /// What it was asked to do.
        attempted: &'static str,
        /// Its own error.
        #[source]
        source: BackendError,
    },
    /// A program built from the handlers is not valid IR.
    #[error("the {program} program is invalid")]
    Validation {
        /// Which program.
        program: &'static str,
        /// The validator's findings.
        #[source]
        source: ValidationErrors,
    },
    /// The shared-memory ring, the payload arena or the regions refused.
    #[error("failed to {attempted}")]
    Ring {
        /// What was attempted.
        attempted: &'static str,
        /// Its own error.
        #[source]
        source: RingError,
    },
    /// The item that was waited for ended in a fault. Its ticket is spent.
    #[error("the item of {} ended in a fault: {}", name_of(*ticket), cause(*code, *fault, ended_by.as_deref()))]
    Faulted {
        /// The ticket's key.
        ticket: u64,
        /// The code word; of a packed slot, the index of the inner operation.
        code: u32,
        /// What the code stands for, unless the slot was packed: a completion does not say whether it was.
        fault: Fault,
        /// Of an item that its session ended, and no handler: why, so of one lost with its device what ended that.
        ended_by: Option<Arc<str>>,
    },
    /// The session takes no more items.
    #[error("the session {state}; {}", way_out(state))]
    SessionClosed {
        /// What became of it.
        state: &'static str,
    },
    /// Device state that the item needs was lost with an earlier generation of the device.
    #[error(
        "{opcode} touches device state that was lost before generation {generation}; upload it again, then \
         call `accept_state_loss`"
    )]
    StateLost {
        /// The item's opcode.
        opcode: SlotOpcode,
        /// The device's generation now.
        generation: Generation,
    },
    /// A window that was not submitted, or was waited for or cancelled before.
    #[error("window {window_id} is not open; submit it first, and wait for each class once")]
    UnknownWindow {
        /// The window's id.
        window_id: u32,
    },
    /// A class of a window that another thread waits for.
    #[error("another thread waits for this class of window {window_id}; let one thread wait for it")]
    WindowBusy {
        /// The window's id.
        window_id: u32,
    },
    /// The operating system gave no descriptor.
    #[error("a descriptor for completions could not be made; see the process's limit of open files")]
    Descriptor {
        /// Its own error.
        #[source]
        source: std::io::Error,
    },
    /// The session cannot publish itself.
    #[error("the session cannot be observed")]
    Observe(#[from] ObserveError),
    /// The operating system gave no thread.
    #[error("a session's thread could not be started")]
    Thread {
        /// Its own error.
        #[source]
        source: std::io::Error,
    },
}

impl MegakernelError {
    /// Turns a backend's error into one of this crate that says what was attempted.
    pub(crate) fn backend(attempted: &'static str) -> impl Fn(BackendError) -> MegakernelError {
        move |source| match source {
            BackendError::Deadline { waited_for, after } => MegakernelError::Deadline { waited_for, after },
            source => MegakernelError::Backend { attempted, source },
        }
    }

    /// Whether the device was lost. Decided by the variant alone.
    pub const fn is_device_loss(&self) -> bool {
        self.loss().is_some()
    }

    /// The loss, if it is one.
    pub const fn loss(&self) -> Option<&Loss> {
        match self {
            MegakernelError::Backend { source, .. } => source.loss(),
            _ => None,
        }
    }

    /// Whether the same call may succeed later unchanged.
    pub const fn is_retryable(&self) -> bool {
        match self {
            MegakernelError::RingFull { .. } | MegakernelError::Deadline { .. } => true,
            MegakernelError::Backend { source, .. } => source.is_retryable(),
            MegakernelError::Ring { source, .. } => source.is_retryable(),
            _ => false,
        }
    }
}

/// [`MegakernelError::SessionClosed`]: its device was lost, and it was not recovered.
pub(crate) const LOST: &str = "lost its device";
/// [`MegakernelError::SessionClosed`]: its device was lost too often.
pub(crate) const LOST_FOR_GOOD: &str = "lost its device for good";

fn way_out(state: &str) -> &'static str {
    match state {
        LOST => "recover it, or start another one",
        LOST_FOR_GOOD => "find out what it dies of, open the backend anew, and start another one",
        _ => "start another one",
    }
}

/// What a fault's code says: a completion does not tell a packed slot, whose code is an index.
fn cause(code: u32, fault: Fault, ended_by: Option<&str>) -> String {
    let index = (code as usize) < MAX_PACKED_OPS;
    if let Some(reason) = ended_by {
        return format!("{fault}: {reason}");
    }
    match fault {
        // No fault has this code.
        _ if code == 0 => "operation 0 of a packed slot failed".to_owned(),
        fault if index => format!("{fault}; or, if its slot was packed, operation {code} of it failed"),
        fault => fault.to_string(),
    }
}

fn oldest(ticket: &Option<u64>) -> String {
    ticket.map(|ticket| format!(", {} the oldest not taken", name_of(ticket))).unwrap_or_default()
}
