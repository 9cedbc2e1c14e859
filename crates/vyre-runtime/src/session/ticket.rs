//! Tickets of a session, and payloads that travel with its items.

use std::fmt;
use std::sync::Arc;

use vyre_driver::Generation;
use vyre_driver::arena::ArenaRange;
use vyre_driver::ring::RawTicket;

use super::shared::{Shared, ring_error};
use crate::error::MegakernelError;

/// The right to the answer of one item, and proof of which session and device generation it was submitted
/// to. Dropping it forgets the item: it still runs unless it was [cancelled](Ticket::cancel), its slot is freed when it is finished, and a fault goes
/// to the session's handler for detached faults.
#[must_use = "a dropped ticket forgets its item"]
pub struct Ticket {
    pub(super) shared: Arc<Shared>,
    pub(super) raw: RawTicket,
    pub(super) generation: Generation,
}

impl Ticket {
    /// The item's position in its ring: 0 for the first item of that, one more for each.
    pub fn position(&self) -> u64 {
        self.raw.position()
    }

    /// The ring that the item's priority has brought it to: 0, the most urgent one, in a session of one ring.
    pub fn ring(&self) -> u32 {
        self.shared.rings.of(self.raw).ring()
    }

    /// The ticket's number in its session, as reports and errors have it: its position and, in the top byte, its ring.
    /// [`ring_of`](super::ring_of) and [`position_of`](super::position_of) take it apart.
    pub fn key(&self) -> u64 {
        self.shared.rings.key(self.raw)
    }

    /// Asks that the item not begin, and says whether it was without an answer until then. The ticket stays good: the item
    /// ends in [`Fault::Abandoned`](vyre_driver::Fault::Abandoned) if it is found queued, and as ever if it has begun. Once
    /// an item is admitted it has begun, so one that runs again, waits for IO, or waits for a workgroup goes on; a fence is
    /// asked when it is let go, and a SHUTDOWN never. What is cancelled counts towards no quota, and neither as done nor as
    /// faulted.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Ring`] for a ticket already taken.
    pub fn cancel(&self) -> Result<bool, MegakernelError> {
        self.shared.cancel(self.raw)
    }

    /// The session's number: no two sessions of a process share one.
    pub fn session(&self) -> u64 {
        self.shared.id
    }

    /// The device generation that was current when the item was submitted. The ticket outlives it: after a
    /// recovery it is answered by the replay, or by a fault.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // An error means that the ticket is spent: there is nothing left to forget.
        if self.shared.rings.of(self.raw).forget_raw(self.raw).is_ok() {
            self.shared.note_detached();
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("session", &self.session())
            .field("ring", &self.ring())
            .field("position", &self.position())
            .field("generation", &self.generation)
            .finish()
    }
}

/// The tickets of a batch, in order and with positions in a row. Those not taken out are forgotten when it
/// is dropped.
#[must_use = "dropped tickets forget their items"]
pub struct Tickets {
    pub(super) shared: Arc<Shared>,
    pub(super) next: u64,
    pub(super) left: u64,
    pub(super) generation: Generation,
}

impl Tickets {
    /// The [key](Ticket::key) of the next ticket.
    pub fn first(&self) -> u64 {
        self.next
    }
}

impl Iterator for Tickets {
    type Item = Ticket;

    fn next(&mut self) -> Option<Ticket> {
        self.left = self.left.checked_sub(1)?;
        let raw = self.shared.rings.raw(self.next);
        self.next = self.next.wrapping_add(1);
        Some(Ticket { shared: Arc::clone(&self.shared), raw, generation: self.generation })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for Tickets {}

impl Drop for Tickets {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tickets({}..{})", self.next, self.next.wrapping_add(self.left))
    }
}

/// A range of the session's payload arena: input for items, too long for twelve words.
///
/// An item finds it in the buffer [`PAYLOAD_BINDING`](super::PAYLOAD_BINDING) at [`Payload::offset`]. Either
/// keep it until every item that uses it is answered, or hand it over with
/// [`submit_with_payload`](super::PersistentSession::submit_with_payload): then it is freed with the item's
/// slot. Dropped, it is free for others at once.
#[derive(Debug)]
pub struct Payload {
    /// `None` once handed over.
    pub(super) range: Option<ArenaRange>,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl Payload {
    /// First byte, counted from the beginning of the payload buffer: what an item's `input_offset` says.
    pub fn offset(&self) -> u32 {
        self.offset
    }

    /// Bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to `at` bytes from its beginning; items submitted afterwards see them.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Ring`] past its end, and once it was handed over.
    pub fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), MegakernelError> {
        let range = self.range.as_mut().ok_or_else(spent)?;
        range.write(at.into(), bytes).map_err(ring_error("write a payload"))
    }
}

/// The answer to a payload that was handed over before.
pub(super) fn spent() -> MegakernelError {
    MegakernelError::MalformedDescriptor {
        what: "payload",
        problem: "it was handed over with an item before",
        remedy: "allocate another one",
    }
}
