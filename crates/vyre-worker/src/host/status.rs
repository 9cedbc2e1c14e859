//! The status page: what a host says of itself without being asked.
//!
//! One memfd that the parent makes and maps read-only; the host alone writes it. Words are little-endian `u64`.
//!
//! | byte | what |
//! |---|---|
//! | 0 | magic: "VYRESTAT" |
//! | 64 | heartbeat: changes while the host's own thread runs |
//! | 128 + 64 n | resident kernel in slot n: its number << 8, its state in the low byte; 0 when the slot is free |
//!
//! All of it is evidence: the parent copies a word once and refuses what makes no sense.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use vyre_driver::layout::LINE;
use vyre_driver::region::SharedRegion;
use vyre_driver::ring::RingError;

use super::message::State;

/// Bytes of the page.
pub(crate) const STATUS_BYTES: u64 = 4 * 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"VYRESTAT");
const HEARTBEAT: u64 = LINE;
const KERNELS: u64 = 2 * LINE;
/// Resident kernels that a host may have at a time.
pub(crate) const SLOTS: u32 = ((STATUS_BYTES - KERNELS) / LINE) as u32;

/// What a kernel's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Running,
    ShutDown,
    Stopped,
    CutShort,
    /// Why is to be asked.
    Lost,
}

impl Standing {
    const ALL: [Standing; 5] =
        [Standing::Running, Standing::ShutDown, Standing::Stopped, Standing::CutShort, Standing::Lost];

    fn of(state: &State) -> Standing {
        match state {
            State::Running => Standing::Running,
            State::ShutDown => Standing::ShutDown,
            State::Stopped => Standing::Stopped,
            State::CutShort => Standing::CutShort,
            State::Lost { .. } => Standing::Lost,
        }
    }
}

fn kernel_word(slot: u32) -> u64 {
    KERNELS + u64::from(slot) * LINE
}

/// The host's end.
pub(crate) struct StatusWriter {
    page: SharedRegion,
    free: Mutex<BTreeSet<u32>>,
}

impl StatusWriter {
    /// Signs a page of the right size.
    pub(crate) fn new(page: SharedRegion) -> Result<StatusWriter, RingError> {
        if page.len() != STATUS_BYTES {
            return Err(RingError::RegionSize { got: page.len(), expected: STATUS_BYTES });
        }
        page.atomic_u64(0)?.store(MAGIC, Ordering::Release);
        Ok(StatusWriter { page, free: Mutex::new((0..SLOTS).collect()) })
    }

    /// Beats.
    pub(crate) fn beat(&self) {
        if let Ok(word) = self.page.atomic_u64(HEARTBEAT) {
            word.fetch_add(1, Ordering::Release);
        }
    }

    /// Takes a free slot, if there is one.
    pub(crate) fn take_slot(&self) -> Option<u32> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }

    /// Says how a kernel stands.
    pub(crate) fn set(&self, slot: u32, kernel: u64, state: &State) {
        let code = Standing::of(state) as u64;
        self.store(slot, kernel << 8 | code);
    }

    /// Gives a slot back.
    pub(crate) fn free_slot(&self, slot: u32) {
        self.store(slot, 0);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).insert(slot);
    }

    fn store(&self, slot: u32, value: u64) {
        if let Ok(word) = self.page.atomic_u64(kernel_word(slot)) {
            // Release: what the kernel did before it left is seen by who sees that it left.
            word.store(value, Ordering::Release);
        }
    }
}

/// The parent's end.
pub(crate) struct StatusReader {
    page: SharedRegion,
}

impl StatusReader {
    /// A reader of a page, which it maps read-only.
    pub(crate) fn new(page: &SharedRegion) -> Result<StatusReader, RingError> {
        Ok(StatusReader { page: page.read_only()? })
    }

    /// Whether a host has signed the page.
    pub(crate) fn is_signed(&self) -> bool {
        self.page.word_u64(0).is_ok_and(|word| word.load(Ordering::Acquire) == MAGIC)
    }

    /// The host's heartbeat.
    pub(crate) fn heartbeat(&self) -> u64 {
        self.page.word_u64(HEARTBEAT).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// How a kernel stands, or the word if it says nothing about this kernel.
    pub(crate) fn kernel(&self, slot: u32, kernel: u64) -> Result<Standing, u64> {
        let word = self.page.word_u64(kernel_word(slot)).map_or(0, |word| word.load(Ordering::Acquire));
        let standing = Standing::ALL.get((word & 0xFF) as usize);
        standing.copied().filter(|_| word >> 8 == kernel & (u64::MAX >> 8)).ok_or(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_another_kernel_or_of_none_says_nothing() {
        let page = SharedRegion::create(STATUS_BYTES).expect("a page");
        let reader = StatusReader::new(&page).expect("a reader");
        assert!(!reader.is_signed());
        let writer = StatusWriter::new(page).expect("a writer");
        assert!(reader.is_signed());
        let slot = writer.take_slot().expect("free");
        assert_eq!(reader.kernel(slot, 7), Err(0));
        writer.set(slot, 7, &State::CutShort);
        assert_eq!(reader.kernel(slot, 7), Ok(Standing::CutShort));
        assert_eq!(reader.kernel(slot, 8), Err(7 << 8 | 3));
        writer.store(slot, 7 << 8 | 5);
        assert_eq!(reader.kernel(slot, 7), Err(7 << 8 | 5));
        writer.free_slot(slot);
        assert_eq!(reader.kernel(slot, 7), Err(0));
        assert_eq!((0..=SLOTS).filter(|_| writer.take_slot().is_some()).count(), SLOTS as usize);
        assert_eq!(reader.kernel(SLOTS, 1), Err(0));
        let before = reader.heartbeat();
        writer.beat();
        assert_ne!(reader.heartbeat(), before);
    }
}
