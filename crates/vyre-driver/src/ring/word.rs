//! The producer's private double word for each slot: which lap the slot is in, and how far it has come.
//!
//! | bits | meaning |
//! |---|---|
//! | 0..2 | state |
//! | 2..11 | epoch: how often the ring was restarted, modulo 512 |
//! | 11 | an arena range is attached |
//! | 12..64 | lap, `ticket / capacity` |
//!
//! A slot goes Free(lap) -> Pending(lap) -> [Saved(lap) ->] Free(lap + 1); a forgotten or detached one is
//! Detached instead of Pending, and a restart changes the epoch. Every transition but the first and the last of a
//! detached one is a compare-and-swap from the exact word that was examined: whoever wins it has acknowledged, taken
//! or freed the slot, and nobody else has. The lap makes two words of one slot equal only if nothing happened in
//! between. A word leaves the state Detached under a lock.

const STATE: u64 = 0b11;
const EPOCH_SHIFT: u32 = 2;
const EPOCH: u64 = 0x1FF;
const ATTACHED: u64 = 1 << 11;
const LAP_SHIFT: u32 = 12;

/// How far a slot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum State {
    /// Free for the ticket of this lap, or reserved for it and not yet fully published.
    Free = 0,
    /// Published; somebody holds the ticket.
    Pending = 1,
    /// Acknowledged, the completion saved on the producer's side; somebody holds the ticket.
    Saved = 2,
    /// Published; nobody holds the ticket.
    Detached = 3,
}

/// A private word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const fn free(lap: u64) -> Word {
        Word(lap << LAP_SHIFT)
    }

    pub(crate) const fn new(lap: u64, state: State, epoch: u64, attached: bool) -> Word {
        let attached = if attached { ATTACHED } else { 0 };
        Word(lap << LAP_SHIFT | attached | (epoch & EPOCH) << EPOCH_SHIFT | state as u64)
    }

    pub(crate) const fn lap(self) -> u64 {
        self.0 >> LAP_SHIFT
    }

    pub(crate) const fn state(self) -> State {
        match self.0 & STATE {
            0 => State::Free,
            1 => State::Pending,
            2 => State::Saved,
            _ => State::Detached,
        }
    }

    pub(crate) const fn is_attached(self) -> bool {
        self.0 & ATTACHED != 0
    }

    /// Whether it is Pending or Detached, of this lap.
    #[inline]
    pub(crate) const fn is_published(self, lap: u64) -> bool {
        let other_bits = EPOCH << EPOCH_SHIFT | ATTACHED | (State::Detached as u64 ^ State::Pending as u64);
        self.0 & !other_bits == lap << LAP_SHIFT | State::Pending as u64
    }

    pub(crate) const fn is_of_epoch(self, epoch: u64) -> bool {
        self.0 >> EPOCH_SHIFT & EPOCH == epoch & EPOCH
    }

    pub(crate) const fn with_epoch(self, epoch: u64) -> Word {
        Word(self.0 & !(EPOCH << EPOCH_SHIFT) | (epoch & EPOCH) << EPOCH_SHIFT)
    }

    pub(crate) const fn with_state(self, state: State) -> Word {
        Word(self.0 & !STATE | state as u64)
    }

    /// The word after this lap is over.
    pub(crate) const fn freed(self) -> Word {
        Word::free(self.lap().wrapping_add(1))
    }
}
