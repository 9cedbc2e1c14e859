//! The payload arena: variable-length input of items, in the h2d region.
//!
//! A range is allocated, written by copying, and attached to an item when that is submitted; from then on
//! the ring owns it and frees it with the item's slot. Ranges are aligned to 16 bytes.
//!
//! Absent on purpose: any way to read or borrow a range. The host knows what it wrote, and a device reads
//! it through its own mapping.

use std::fmt;
use std::sync::{Arc, Mutex};

use offset_allocator::{Allocation, Allocator};

use crate::region::{SessionRegions, SharedRegion};
use crate::ring::RingError;

/// Ranges begin at multiples of this many bytes.
pub const ARENA_ALIGN: u64 = 16;

/// Allocates ranges of a session's arena section.
pub struct Arena {
    region: Arc<SharedRegion>,
    base: u64,
    bytes: u64,
    /// The largest range that an empty arena can give.
    largest: u64,
    state: Mutex<State>,
}

struct State {
    allocator: Allocator<u32>,
    /// What is allocated, by the number that stands for it in a ring's private words.
    live: Vec<Option<Allocation<u32>>>,
    vacant: Vec<u32>,
}

/// Most ranges that can be allocated at a time.
const MAX_RANGES: u64 = 64 * 1024;

impl Arena {
    /// The arena of a session. There may be only one for each: it alone knows what is free.
    pub fn new(regions: &SessionRegions) -> Result<Arc<Arena>, RingError> {
        let section = regions.layout.arena();
        if !regions.h2d.is_writable() {
            return Err(RingError::ReadOnly);
        }
        let units = section.bytes / ARENA_ALIGN;
        // A range may cost two of the allocator's nodes: itself, and the rest of what it was cut from.
        let nodes = 2 * units.min(MAX_RANGES) + 2;
        let allocator = Allocator::with_max_allocs(units as u32, nodes as u32);
        let largest = u64::from(allocator.storage_report().largest_free_region) * ARENA_ALIGN;
        Ok(Arc::new(Arena {
            region: Arc::clone(&regions.h2d),
            base: section.offset,
            bytes: section.bytes,
            largest,
            state: Mutex::new(State { allocator, live: Vec::new(), vacant: Vec::new() }),
        }))
    }

    /// Bytes of the section.
    pub fn capacity(&self) -> u64 {
        self.bytes
    }

    /// A range of at least `len` bytes; its content is whatever was there before. Dropped, it is free again.
    pub fn alloc(self: &Arc<Self>, len: u64) -> Result<ArenaRange, RingError> {
        if len > self.largest {
            return Err(RingError::RangeTooLarge { requested: len, capacity: self.largest });
        }
        let units = len.div_ceil(ARENA_ALIGN).max(1) as u32;
        let mut state = self.state();
        let allocation = state.allocator.allocate(units).ok_or(RingError::ArenaFull { requested: len })?;
        let number = state.vacant.pop().unwrap_or(state.live.len() as u32);
        match state.live.get_mut(number as usize) {
            Some(entry) => *entry = Some(allocation),
            None => state.live.push(Some(allocation)),
        }
        drop(state);
        let offset = u64::from(allocation.offset) * ARENA_ALIGN;
        Ok(ArenaRange { arena: Arc::clone(self), number, offset, len })
    }

    /// Bytes free now, in however many pieces.
    pub fn free_bytes(&self) -> u64 {
        u64::from(self.state().allocator.storage_report().total_free_space) * ARENA_ALIGN
    }

    pub(crate) fn free_packed(&self, PackedRange(number): PackedRange) {
        let mut state = self.state();
        let entry = state.live.get_mut(number as usize).and_then(Option::take);
        if let Some(allocation) = entry {
            state.allocator.free(allocation);
            state.vacant.push(number as u32);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("base", &self.base).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// A range of an arena, and the duty to free it.
#[derive(Debug)]
pub struct ArenaRange {
    arena: Arc<Arena>,
    number: u32,
    offset: u64,
    len: u64,
}

/// A range without its arena, as a ring keeps it.
pub(crate) struct PackedRange(pub(crate) u64);

impl PackedRange {
    /// No range: past every number given out.
    pub(crate) const NONE: PackedRange = PackedRange(u32::MAX as u64);
}

impl ArenaRange {
    /// First byte, counted from the beginning of the arena: what an item's `input_offset` says.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// First byte, counted from the beginning of the h2d region.
    pub fn region_offset(&self) -> u64 {
        self.arena.base + self.offset
    }

    /// Bytes, as asked for.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies bytes to `at` bytes from the beginning of the range. They are visible to whoever claims the
    /// item that the range is attached to afterwards.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), RingError> {
        let count = bytes.len() as u64;
        if at.checked_add(count).is_none_or(|end| end > self.len) {
            return Err(RingError::OutOfRange {
                what: "arena range",
                offset: at,
                bytes: count,
                len: self.len,
            });
        }
        self.arena.region.copy_in(self.region_offset() + at, bytes)
    }

    pub(crate) fn is_of(&self, arena: &Arc<Arena>) -> bool {
        Arc::ptr_eq(&self.arena, arena)
    }

    /// Hands the duty to free it to the caller.
    pub(crate) fn into_packed(mut self) -> PackedRange {
        let packed = PackedRange(u64::from(self.number));
        // Past every number given out: dropping `self` frees nothing, and lets the arena go.
        self.number = u32::MAX;
        packed
    }
}

impl Drop for ArenaRange {
    fn drop(&mut self) {
        self.arena.free_packed(PackedRange(u64::from(self.number)));
    }
}
