//! The ring of a batch: slots, then completions.

use vyre_driver::protocol::{ARG_WORDS, flags};
use vyre_driver::ring::SlotImage;
use vyre_driver::{Fault, Status};

use super::{set_word, word};
use crate::descriptor::Publish;
use crate::error::MegakernelError;
use crate::opcode::{BuiltinOpcode, SlotOpcode};

/// Bytes of a slot.
pub const SLOT_BYTES: usize = 64;
/// Bytes of a completion.
pub const COMPLETION_BYTES: usize = 16;
/// The lap in every tag of a batch.
pub(crate) const LAP: u32 = 1 << 16;

/// How far an item has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BatchCompletion {
    /// [`Status::Empty`] until it has run.
    pub status: Status,
    /// Of a fault, why; of a faulted packed slot, the index of the inner operation.
    pub code: u32,
    /// The result; of an item in [`Status::WaitIo`], the place of its request.
    pub result: u64,
}

impl BatchCompletion {
    /// Why the item did not finish, if it ended so.
    pub const fn as_fault(&self) -> Option<Fault> {
        match self.status {
            Status::Fault => Some(Fault::from_code(self.code)),
            _ => None,
        }
    }
}

/// The bytes of a batch's ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingBuffer {
    slots: usize,
    pub(super) bytes: Vec<u8>,
}

impl RingBuffer {
    /// A ring of unpublished slots.
    pub(crate) fn empty(slots: u32) -> RingBuffer {
        let slots = slots as usize;
        RingBuffer { slots, bytes: vec![0; slots * (SLOT_BYTES + COMPLETION_BYTES)] }
    }

    /// Takes bytes for a ring of `slots` slots.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] unless they are exactly as many, and for a completion with a
    /// status that does not exist.
    pub fn from_bytes(slots: u32, bytes: Vec<u8>) -> Result<RingBuffer, MegakernelError> {
        let slots = slots as usize;
        let expected = slots * (SLOT_BYTES + COMPLETION_BYTES);
        if bytes.len() != expected {
            return Err(MegakernelError::MalformedBuffer {
                buffer: "ring buffer",
                got: format!("{} bytes", bytes.len()),
                expected: format!("{expected} bytes for {slots} slots"),
                remedy: "give 64 bytes for each slot, then 16 for each completion",
            });
        }
        let ring = RingBuffer { slots, bytes };
        for slot in 0..slots {
            ring.completion(slot)?;
        }
        Ok(ring)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// How many slots there are.
    pub fn slot_count(&self) -> usize {
        self.slots
    }

    /// Writes slots from slot `start` on, all or none, and tells how many.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::BatchTooLarge`], [`MegakernelError::SlotOccupied`], or the first rule that the
    /// descriptor breaks.
    #[inline]
    pub fn publish<P: Publish + ?Sized>(
        &mut self,
        start: usize,
        descriptor: &P,
    ) -> Result<usize, MegakernelError> {
        let count = descriptor.slot_count();
        let (slots, _) = self.bytes.split_at_mut(self.slots * SLOT_BYTES);
        let (slots, _) = slots.as_chunks_mut::<SLOT_BYTES>();
        let room = slots.len().saturating_sub(start);
        let Some(slots) = slots.get_mut(start..).and_then(|slots| slots.get_mut(..count)) else {
            return Err(MegakernelError::BatchTooLarge { got: count, limit: room });
        };
        // Folded rather than searched: a window is short, and nearly always free.
        if slots.iter().fold(0, |tags, slot| tags | first_tag(slot)) != 0 {
            let occupied = slots.iter().position(|slot| first_tag(slot) != 0).unwrap_or(0);
            return Err(MegakernelError::SlotOccupied { slot: start + occupied });
        }
        descriptor.encode(slots)?;
        Ok(count)
    }

    /// Makes a slot and its completion empty again.
    pub fn clear(&mut self, slot: usize) {
        let completion = self.completion_offset(slot);
        if slot >= self.slots {
            return;
        }
        for (start, len) in [(slot * SLOT_BYTES, SLOT_BYTES), (completion, COMPLETION_BYTES)] {
            if let Some(bytes) = self.bytes.get_mut(start..start + len) {
                bytes.fill(0);
            }
        }
    }

    /// Makes every completion empty, so that the same slots run again.
    pub fn rearm(&mut self) {
        let start = self.completion_offset(0);
        if let Some(completions) = self.bytes.get_mut(start..) {
            completions.fill(0);
        }
    }

    /// The item in a slot, if one is published there.
    pub fn slot(&self, slot: usize) -> Option<SlotImage> {
        let bytes = self.bytes.get(..self.slots * SLOT_BYTES)?;
        bytes.as_chunks::<SLOT_BYTES>().0.get(slot).and_then(decode)
    }

    /// How far the item in a slot has come; empty for a slot that does not exist.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] for a status that does not exist.
    pub fn completion(&self, slot: usize) -> Result<BatchCompletion, MegakernelError> {
        let at = self.completion_offset(slot) / 4;
        let [low, high, code, tag] = [0, 1, 2, 3].map(|place| word(&self.bytes, at + place));
        if tag & 0xFFFF_0000 != LAP {
            return Ok(BatchCompletion { status: Status::Empty, code: 0, result: 0 });
        }
        match Status::from_word(tag as u16) {
            Some(status) => {
                Ok(BatchCompletion { status, code, result: u64::from(high) << 32 | u64::from(low) })
            }
            None => Err(MegakernelError::MalformedBuffer {
                buffer: "completion of the ring buffer",
                got: format!("status {} in slot {slot}", tag & 0xFFFF),
                expected: "0, 3, 4, 6 or 7".to_owned(),
                remedy: "start from zeros, or from what a dispatch returned",
            }),
        }
    }

    /// Slots up to and with the first SHUTDOWN of tenant 0: those that run.
    pub(super) fn limit(&self) -> u32 {
        let shutdown = |image: SlotImage| {
            image.tenant == 0 && SlotOpcode::new(image.opcode).builtin() == Some(BuiltinOpcode::Shutdown)
        };
        let stop = (0..self.slots).find(|&slot| self.slot(slot).is_some_and(shutdown));
        stop.map_or(self.slots, |slot| slot + 1) as u32
    }

    fn completion_offset(&self, slot: usize) -> usize {
        self.slots * SLOT_BYTES + slot * COMPLETION_BYTES
    }
}

#[inline]
fn first_tag(slot: &[u8; SLOT_BYTES]) -> u32 {
    word(slot, 3)
}

/// The tags of a slot, lap included.
#[inline]
pub(crate) fn tags(image: &SlotImage) -> [u32; 4] {
    [
        LAP | image.opcode & 0xFFFF,
        LAP | image.opcode >> 16,
        LAP | u32::from(image.tenant),
        LAP | u32::from(image.flags),
    ]
}

/// Writes a slot: four quarters of three arguments and a tag.
#[inline]
pub(crate) fn encode(slot: &mut [u8; SLOT_BYTES], tags: [u32; 4], args: &[u32; ARG_WORDS]) {
    let [t0, t1, t2, t3] = tags;
    let [a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11] = *args;
    let values = [a0, a1, a2, t0, a3, a4, a5, t1, a6, a7, a8, t2, a9, a10, a11, t3];
    let (words, _) = slot.as_chunks_mut::<4>();
    for (word, value) in words.iter_mut().zip(values) {
        *word = value.to_le_bytes();
    }
}

/// Writes other tags into a slot.
pub(crate) fn set_tags(slot: &mut [u8; SLOT_BYTES], tags: [u32; 4]) {
    for (quarter, tag) in tags.into_iter().enumerate() {
        set_word(slot, quarter * 4 + 3, tag);
    }
}

/// Reads a slot; `None` unless every quarter is of this lap.
pub(crate) fn decode(slot: &[u8; SLOT_BYTES]) -> Option<SlotImage> {
    let tag = |quarter: usize| word(slot, quarter * 4 + 3);
    if (0..4).any(|quarter| tag(quarter) & 0xFFFF_0000 != LAP) {
        return None;
    }
    Some(SlotImage {
        opcode: tag(0) & 0xFFFF | tag(1) << 16,
        tenant: tag(2) as u16,
        flags: (tag(3) & flags::PRIORITY_MASK) as u16,
        args: std::array::from_fn(|arg| word(slot, arg / 3 * 4 + arg % 3)),
    })
}
