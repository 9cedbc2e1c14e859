//! Items and their results, as values and as the words that cross.

use super::RingError;
use crate::protocol::{ARG_WORDS, Fault, Status, flags};

/// An item: what a slot holds, tags apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SlotImage {
    /// What to do.
    pub opcode: u32,
    /// For whom.
    pub tenant: u16,
    /// Bits 0 to 2 are the priority; the rest are zero.
    pub flags: u16,
    /// With what.
    pub args: [u32; ARG_WORDS],
}

impl SlotImage {
    /// An item of tenant 0 without flags.
    pub const fn new(opcode: u32, args: [u32; ARG_WORDS]) -> SlotImage {
        SlotImage { opcode, tenant: 0, flags: 0, args }
    }

    pub(crate) fn check(&self) -> Result<(), RingError> {
        if u32::from(self.flags) & !flags::PRIORITY_MASK != 0 {
            return Err(RingError::ReservedFlags { flags: self.flags });
        }
        Ok(())
    }

    /// The double words of a slot, `lap` in the upper half of each tag.
    #[inline(always)]
    pub(crate) fn words(&self, lap: u64) -> SlotWords {
        let [a0, a1, a2, b0, b1, b2, c0, c1, c2, d0, d1, d2] = self.args.map(u64::from);
        let headers = [self.opcode & 0xFFFF, self.opcode >> 16, self.tenant.into(), self.flags.into()];
        let [h0, h1, h2, h3] = headers.map(|header| u64::from(header) << 32 | lap << 48);
        [
            [a0 | a1 << 32, a2 | h0],
            [b0 | b1 << 32, b2 | h1],
            [c0 | c1 << 32, c2 | h2],
            [d0 | d1 << 32, d2 | h3],
        ]
    }

    /// Takes the item out of the double words of a slot.
    #[inline(always)]
    pub(crate) fn set_words(&mut self, words: &SlotWords) {
        let [[a, ah], [b, bh], [c, ch], [d, dh]] = *words;
        let (lo, hi) = (|word: u64| word as u32, |word: u64| (word >> 32) as u32);
        self.args = [lo(a), hi(a), lo(ah), lo(b), hi(b), lo(bh), lo(c), hi(c), lo(ch), lo(d), hi(d), lo(dh)];
        self.opcode = hi(ah) & 0xFFFF | hi(bh) << 16;
        self.tenant = hi(ch) as u16;
        self.flags = (hi(dh) & flags::PRIORITY_MASK) as u16;
    }
}

/// The four quarters of a slot: {word 0, word 1} and {word 2, tag} of each.
pub(crate) type SlotWords = [[u64; 2]; 4];

/// How an item ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Completion {
    status: Status,
    code: u32,
    result: u64,
}

impl Completion {
    /// Finished, with a result and code 0.
    pub const fn done(result: u64) -> Completion {
        Completion { status: Status::Done, code: 0, result }
    }

    /// Ended in a fault, with result 0.
    pub const fn fault(fault: Fault) -> Completion {
        Completion { status: Status::Fault, code: fault.code(), result: 0 }
    }

    /// From a status, a code and a result. Only [`Status::Done`] and [`Status::Fault`] end an item; any
    /// other status is refused.
    pub const fn new(status: Status, code: u32, result: u64) -> Result<Completion, RingError> {
        match status {
            Status::Done | Status::Fault => Ok(Completion { status, code, result }),
            _ => Err(RingError::NotFinal { status }),
        }
    }

    /// [`Status::Done`] or [`Status::Fault`].
    pub const fn status(&self) -> Status {
        self.status
    }

    /// Whether it finished.
    pub const fn is_done(&self) -> bool {
        matches!(self.status, Status::Done)
    }

    /// The code word: of a fault, why; of a faulted packed slot, the index of the inner operation.
    pub const fn code(&self) -> u32 {
        self.code
    }

    /// The result.
    pub const fn result(&self) -> u64 {
        self.result
    }

    /// Why it did not finish, if it did not.
    pub const fn as_fault(&self) -> Option<Fault> {
        match self.status {
            Status::Fault => Some(Fault::from_code(self.code)),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn words(&self, lap: u64) -> [u64; 2] {
        [self.result, u64::from(self.code) | (self.status as u64) << 32 | lap << 48]
    }

    /// Whether the second word is that of an item that was done in this lap.
    #[inline]
    pub(crate) const fn is_done_of(hi: u64, lap: u64) -> bool {
        hi >> 32 == lap << 16 | Status::Done as u64
    }

    /// The completion in words whose lap was checked before, if its status is one that ends an item.
    #[inline]
    pub(crate) fn from_words([result, hi]: [u64; 2]) -> Option<Completion> {
        const DONE: u16 = Status::Done as u16;
        const FAULT: u16 = Status::Fault as u16;
        let status = match (hi >> 32) as u16 {
            DONE => Status::Done,
            FAULT => Status::Fault,
            _ => return None,
        };
        Some(Completion { status, code: hi as u32, result })
    }
}
