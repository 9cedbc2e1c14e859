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

    /// The two double words of a quarter, `lap` in the tag's upper half.
    #[inline]
    pub(crate) fn quarter(&self, quarter: usize, lap: u64) -> [u64; 2] {
        let header = match quarter {
            0 => self.opcode & 0xFFFF,
            1 => self.opcode >> 16,
            2 => u32::from(self.tenant),
            _ => u32::from(self.flags),
        };
        let arg = |word: usize| u64::from(self.args.get(3 * quarter + word).copied().unwrap_or(0));
        [arg(0) | arg(1) << 32, arg(2) | u64::from(header) << 32 | lap << 48]
    }

    /// Takes a quarter out of its two double words.
    #[inline]
    pub(crate) fn set_quarter(&mut self, quarter: usize, [lo, hi]: [u64; 2]) {
        for (word, value) in [lo as u32, (lo >> 32) as u32, hi as u32].into_iter().enumerate() {
            if let Some(arg) = self.args.get_mut(3 * quarter + word) {
                *arg = value;
            }
        }
        let header = (hi >> 32) as u16;
        match quarter {
            0 => self.opcode = self.opcode & !0xFFFF | u32::from(header),
            1 => self.opcode = self.opcode & 0xFFFF | u32::from(header) << 16,
            2 => self.tenant = header,
            _ => self.flags = header & flags::PRIORITY_MASK as u16,
        }
    }
}

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

    /// The completion in words whose lap was checked before, or the status that makes no sense.
    #[inline]
    pub(crate) fn from_words([lo, hi]: [u64; 2]) -> Result<Completion, u16> {
        let status = (hi >> 32) as u16;
        match Status::from_word(status) {
            Some(final_status @ (Status::Done | Status::Fault)) => {
                Ok(Completion { status: final_status, code: hi as u32, result: lo })
            }
            _ => Err(status),
        }
    }
}
