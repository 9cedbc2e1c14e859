//! Memory that programs and host threads may touch at the same time, and the views programs have of it.
//!
//! The one room with `unsafe` on memory. All access is atomic: relaxed, of the element's width, for plain
//! loads and stores; so a program that races with another, or with the host, gets old or new values and
//! nothing worse. Nothing here ever lends a plain reference to the bytes.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use vyre_driver::region::SharedRegion;

/// Alignment of every allocation: a cache line, and more than any element needs.
const ALIGN: usize = 64;

/// How much memory a backend may use, and does.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Arc<Budget> {
        Arc::new(Budget { limit, used: AtomicU64::new(0) })
    }

    pub(crate) fn available(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Relaxed))
    }

    /// Takes bytes out of the budget until the charge is dropped; `None` if there are not as many.
    pub(crate) fn charge(self: &Arc<Budget>, bytes: u64) -> Option<Charge> {
        // Only a counter: no other memory is published through it.
        let fits = |used: u64| used.checked_add(bytes).filter(|&used| used <= self.limit);
        self.used.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(Charge { budget: Arc::clone(self), bytes })
    }
}

/// Bytes taken out of a budget.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// A zeroed allocation.
#[derive(Debug)]
pub(crate) struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    layout: Layout,
    /// Gives the bytes back to the backend's budget, after they are given back to the system.
    _charge: Option<Charge>,
}

// SAFETY: the allocation is owned, and is only ever accessed through atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Allocates, or `None` if the system has not that much.
    pub(crate) fn zeroed(bytes: u64, charge: Option<Charge>) -> Option<Memory> {
        let bytes = usize::try_from(bytes).ok()?;
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).ok()?.pad_to_align();
        // SAFETY: the layout has a size of at least one byte.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Memory { base, bytes, layout, _charge: charge })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    fn cells(&self, offset: usize, len: usize) -> Option<&[AtomicU8]> {
        if offset.checked_add(len)? > self.bytes {
            return None;
        }
        // SAFETY: the range was just checked to lie in the allocation.
        let first = unsafe { self.base.add(offset) }.cast::<AtomicU8>();
        // SAFETY: in bounds, initialised, and never accessed but atomically; lives as long as `self`.
        Some(unsafe { NonNull::slice_from_raw_parts(first, len).as_ref() })
    }

    /// Copies bytes in, or does nothing and says `false` where they do not fit.
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(cells) = self.cells(offset, bytes.len()) else { return false };
        let (head, words, tail) = wide(cells);
        let (head_bytes, rest) = bytes.split_at(head.len());
        let (word_bytes, tail_bytes) = rest.split_at(words.len() * 8);
        head.iter().zip(head_bytes).for_each(|(cell, &byte)| cell.store(byte, Relaxed));
        for (cell, chunk) in words.iter().zip(word_bytes.as_chunks::<8>().0) {
            cell.store(u64::from_ne_bytes(*chunk), Relaxed);
        }
        tail.iter().zip(tail_bytes).for_each(|(cell, &byte)| cell.store(byte, Relaxed));
        true
    }

    /// Copies bytes out, or does nothing and says `false` where there are not as many.
    pub(crate) fn copy_out(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(cells) = self.cells(offset, into.len()) else { return false };
        let (head, words, tail) = wide(cells);
        let (head_bytes, rest) = into.split_at_mut(head.len());
        let (word_bytes, tail_bytes) = rest.split_at_mut(words.len() * 8);
        head.iter().zip(head_bytes).for_each(|(cell, byte)| *byte = cell.load(Relaxed));
        for (cell, chunk) in words.iter().zip(word_bytes.as_chunks_mut::<8>().0) {
            *chunk = cell.load(Relaxed).to_ne_bytes();
        }
        tail.iter().zip(tail_bytes).for_each(|(cell, byte)| *byte = cell.load(Relaxed));
        true
    }

    /// Zeros everything. For memory that nobody else uses meanwhile.
    pub(crate) fn clear(&self) {
        let cells = self.cells(0, self.bytes).unwrap_or_default();
        let (head, words, tail) = wide(cells);
        words.iter().for_each(|cell| cell.store(0, Relaxed));
        head.iter().chain(tail).for_each(|cell| cell.store(0, Relaxed));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, and not given back before.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// The same bytes with the aligned eights of them as words.
fn wide(cells: &[AtomicU8]) -> (&[AtomicU8], &[AtomicU64], &[AtomicU8]) {
    // SAFETY: eight aligned byte cells are a valid u64 cell; both are plain memory to atomic accesses.
    unsafe { cells.align_to::<AtomicU64>() }
}

/// What keeps the memory behind a view alive.
#[derive(Clone, Debug)]
pub(crate) enum Keep {
    /// A buffer, or the memory of a workgroup.
    Memory(Arc<Memory>),
    /// The h2d region of a session; never written.
    Region(Arc<SharedRegion>),
}

/// A buffer as an executing program sees it: where its elements start and how many there are. Whoever makes
/// a view keeps the [`Keep`] it came from for as long as the view is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    base: NonNull<u8>,
    len: u32,
}

// SAFETY: a view only gives atomic access to memory that is shared between threads.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

static NOTHING: AtomicU64 = AtomicU64::new(0);

impl View {
    /// No elements, of any type.
    pub(crate) const EMPTY: View = View { base: NonNull::from_ref(&NOTHING).cast(), len: 0 };

    /// Elements of `size` bytes from `offset`, as many as fit `bytes`; no more than an index can name.
    /// `None` unless the range lies in the memory and is aligned for its elements.
    pub(crate) fn new(keep: &Keep, offset: u64, bytes: u64, size: u64) -> Option<View> {
        let (base, available) = match keep {
            Keep::Memory(memory) => (memory.base, memory.bytes()),
            Keep::Region(region) => {
                // SAFETY: all access through a view is atomic; a program bound to a region only loads, which
                // binding checks; and the region is kept with the view.
                let (base, len) = unsafe { region.raw() };
                (base, len as u64)
            }
        };
        if offset.checked_add(bytes)? > available || size == 0 {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        if !(base.addr().get() + offset).is_multiple_of(size as usize) {
            return None;
        }
        // SAFETY: the range was just checked to lie in the memory.
        let base = unsafe { base.add(offset) };
        Some(View { base, len: u32::try_from(bytes / size).unwrap_or(u32::MAX) })
    }

    /// How many elements there are.
    #[inline(always)]
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// The `u32` element at an index, if it is in bounds.
    #[inline(always)]
    pub(crate) fn word(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: `index` is below the length.
        (index < self.len).then(|| unsafe { self.cell(index) })
    }

    /// The `u64` element at an index, if it is in bounds.
    #[inline(always)]
    pub(crate) fn long(&self, index: u32) -> Option<&AtomicU64> {
        // SAFETY: `index` is below the length.
        (index < self.len).then(|| unsafe { self.cell(index) })
    }

    /// The bits of an element of so many bytes; zero past the end.
    ///
    /// # Safety
    ///
    /// The view is of elements of this width.
    pub(crate) unsafe fn bits(&self, index: u32, width: usize) -> u64 {
        if index >= self.len {
            return 0;
        }
        match width {
            // SAFETY: the index was just checked; the caller vouches for the width.
            1 => u64::from(unsafe { self.load_u8(index) }),
            // SAFETY: as above.
            2 => u64::from(unsafe { self.load_u16(index) }),
            // SAFETY: as above.
            4 => u64::from(unsafe { self.load_u32(index) }),
            // SAFETY: as above.
            _ => unsafe { self.load_u64(index) },
        }
    }

    /// Stores the bits of an element of so many bytes; nothing past the end.
    ///
    /// # Safety
    ///
    /// The view is of elements of this width, and of memory that may be written.
    pub(crate) unsafe fn set_bits(&self, index: u32, width: usize, bits: u64) {
        if index >= self.len {
            return;
        }
        match width {
            // SAFETY: the index was just checked; the caller vouches for the width.
            1 => unsafe { self.store_u8(index, bits as u8) },
            // SAFETY: as above.
            2 => unsafe { self.store_u16(index, bits as u16) },
            // SAFETY: as above.
            4 => unsafe { self.store_u32(index, bits as u32) },
            // SAFETY: as above.
            _ => unsafe { self.store_u64(index, bits) },
        }
    }

    /// An element.
    ///
    /// # Safety
    ///
    /// The index is below [`View::len`], and `T` is the atomic of the element's width.
    #[inline(always)]
    unsafe fn cell<T>(&self, index: u32) -> &T {
        // SAFETY: the caller promises that the element exists.
        let cell = unsafe { self.base.cast::<T>().add(index as usize) };
        // SAFETY: it is in bounds and aligned, as checked when the view was made.
        unsafe { cell.as_ref() }
    }
}

macro_rules! accessors {
    ($($load:ident $store:ident $plain:ident $atomic:ident;)*) => {
        impl View {$(
            /// Loads an element.
            ///
            /// # Safety
            ///
            /// The index is below [`View::len`], and the view is of elements of this width.
            #[inline(always)]
            pub(crate) unsafe fn $load(&self, index: u32) -> $plain {
                // SAFETY: the caller's promise is the one asked for.
                unsafe { self.cell::<$atomic>(index) }.load(Relaxed)
            }

            /// Stores an element.
            ///
            /// # Safety
            ///
            /// The index is below [`View::len`], and the view is of elements of this width.
            #[inline(always)]
            pub(crate) unsafe fn $store(&self, index: u32, value: $plain) {
                // SAFETY: the caller's promise is the one asked for.
                unsafe { self.cell::<$atomic>(index) }.store(value, Relaxed);
            }
        )*}
    };
}

accessors! {
    load_u8 store_u8 u8 AtomicU8;
    load_u16 store_u16 u16 AtomicU16;
    load_u32 store_u32 u32 AtomicU32;
    load_u64 store_u64 u64 AtomicU64;
}
