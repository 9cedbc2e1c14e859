//! Where a ring's shared words live: in a mapping, or in loom's memory under the models.
//!
//! The ring is written once against [`Memory`]. [`Shared`] is the one users meet: mapped regions, four
//! quarters to a slot, sixteen lap bits. The models use one quarter and two lap bits, so that loom can
//! explore whole laps.

use std::fmt::Debug;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::RingError;
use crate::layout::Section;
use crate::region::{ReadOnlyU64, SharedRegion};
use crate::wait::Waiter;

/// A shared word that this side reads.
pub trait LoadWord: Send + Sync {
    /// Loads it.
    fn load(&self, order: Ordering) -> u64;
}

/// A shared word that this side writes.
pub trait StoreWord: LoadWord {
    /// Stores it.
    fn store(&self, value: u64, order: Ordering);
}

/// The slots or completions of a ring; how many there are is a power of two.
pub trait Cells: Send + Sync {
    /// One word.
    type Word;
    /// The words of one slot or completion.
    type Group: AsRef<[Self::Word]>;

    /// All of them.
    fn groups(&self) -> &[Self::Group];

    /// The one of a ticket.
    #[inline]
    fn group(&self, ticket: u64) -> &Self::Group {
        let groups = self.groups();
        let index = ticket as usize & groups.len().wrapping_sub(1);
        // SAFETY: there is at least one group, and a number masked with their number less one, a power of
        // two less one, is below their number.
        unsafe { groups.get_unchecked(index) }
    }
}

/// Splits tickets in a row at the end of a lap: for each part its lap, and where it lies in the ring.
#[inline]
pub(super) fn laps(first: u64, len: usize, shift: u32) -> [(u64, Range<usize>); 2] {
    let capacity = 1usize << shift;
    let start = first as usize & (capacity - 1);
    let end = start + len;
    let lap = first >> shift;
    [(lap, start..end.min(capacity)), (lap.wrapping_add(1), 0..end.saturating_sub(capacity))]
}

/// The storage of one ring.
pub trait Memory: 'static {
    /// Quarters in a slot, at most four.
    const QUARTERS: usize;
    /// Bits of a lap in a tag, at most sixteen.
    const LAP_BITS: u32;
    /// Slots, as the producer has them.
    type Slots: Cells<Word: StoreWord>;
    /// Slots, as a consumer has them.
    type SlotsView: Cells<Word: LoadWord>;
    /// Completions, as a consumer has them.
    type Completions: Cells<Word: StoreWord>;
    /// Completions, as the producer has them.
    type CompletionsView: Cells<Word: LoadWord>;
    /// How a thread of the producer parks until something completes.
    type Park: Send + Sync;
}

/// Storage in [`SharedRegion`]s.
#[derive(Clone, Copy, Debug)]
pub enum Shared {}

impl Memory for Shared {
    const QUARTERS: usize = 4;
    const LAP_BITS: u32 = 16;
    type Slots = MappedCells<AtomicU64, 8>;
    type SlotsView = MappedCells<ReadOnlyU64, 8>;
    type Completions = MappedCells<AtomicU64, 2>;
    type CompletionsView = MappedCells<ReadOnlyU64, 2>;
    type Park = Waiter;
}

impl LoadWord for ReadOnlyU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        ReadOnlyU64::load(self, order)
    }
}

impl LoadWord for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }
}

impl StoreWord for AtomicU64 {
    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }
}

/// Groups of `N` double words in a mapping that is kept alive.
#[derive(Debug)]
pub struct MappedCells<W, const N: usize> {
    base: NonNull<[W; N]>,
    count: usize,
    region: Arc<SharedRegion>,
}

// SAFETY: the pointer is into a mapping that `region` keeps alive, and what it points to is only ever
// reached through shared references to atomic words.
unsafe impl<W: Sync, const N: usize> Send for MappedCells<W, N> {}
// SAFETY: as above.
unsafe impl<W: Sync, const N: usize> Sync for MappedCells<W, N> {}

impl<const N: usize> MappedCells<AtomicU64, N> {
    /// The groups of a section, to load and store.
    pub fn writable(region: &Arc<SharedRegion>, section: Section) -> Result<Self, RingError> {
        if !region.is_writable() {
            return Err(RingError::ReadOnly);
        }
        MappedCells::map(region, section)
    }
}

impl<const N: usize> MappedCells<ReadOnlyU64, N> {
    /// The groups of a section, to load only.
    pub fn read_only(region: &Arc<SharedRegion>, section: Section) -> Result<Self, RingError> {
        MappedCells::map(region, section)
    }
}

impl<W, const N: usize> MappedCells<W, N> {
    /// The callers see to it that `W` stores only where the mapping can be written.
    fn map(region: &Arc<SharedRegion>, section: Section) -> Result<Self, RingError> {
        const { assert!(size_of::<[W; N]>() == 8 * N && align_of::<[W; N]>() == 8) };
        let Section { offset, bytes } = section;
        let count = bytes / (8 * N as u64);
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > region.len()) || !offset.is_multiple_of(8) || !count.is_power_of_two() {
            return Err(RingError::OutOfRegion { offset, bytes, region: region.len() });
        }
        // SAFETY: used below for atomic words only, and `region` is kept beside the pointer.
        let (base, _) = unsafe { region.raw() };
        // SAFETY: the offset is inside the mapping.
        let base = unsafe { base.add(offset as usize) };
        Ok(MappedCells { base: base.cast(), count: count as usize, region: Arc::clone(region) })
    }

    /// The region it maps.
    pub fn region(&self) -> &Arc<SharedRegion> {
        &self.region
    }
}

impl<W: Send + Sync, const N: usize> Cells for MappedCells<W, N> {
    type Word = W;
    type Group = [W; N];

    #[inline]
    fn groups(&self) -> &[[W; N]] {
        let groups = NonNull::slice_from_raw_parts(self.base, self.count);
        // SAFETY: `map` found so many groups inside the mapping, which lives as long as `self`; they are
        // aligned, and `W` is an atomic word.
        unsafe { groups.as_ref() }
    }
}
