//! Memory that two processes, or a process and a device, share: sealed memfds and their mappings.
//!
//! The other side writes whenever it likes, so nothing here ever lends a plain reference into a mapping.
//! Access is by atomic words and by copies whose bytes are atomic one by one; offsets are checked. The
//! seals against shrinking are what make an access that passed its check safe from SIGBUS.
//!
//! Absent on purpose: what lies where (see [`crate::layout`]), and any typed meaning (see [`crate::view`]).

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};

use crate::layout::{RegionConfig, RegionLayout};
use crate::ring::RingError;

/// One mapping of one sealed memfd.
#[derive(Debug)]
pub struct SharedRegion {
    map: MmapRaw,
    fd: OwnedFd,
    writable: bool,
}

/// Neither may change while the region is mapped: an access past the end of the file is a SIGBUS.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl SharedRegion {
    /// A new region of `len` zero bytes, sealed against changes of its size and mapped for writing.
    pub fn create(len: u64) -> Result<SharedRegion, RingError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know the flag that later ones want to see.
        let fd = rustix::fs::memfd_create(c"vyre-region", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create(c"vyre-region", flags))
            .map_err(|errno| RingError::os("memfd_create", errno))?;
        rustix::fs::ftruncate(&fd, len).map_err(|errno| RingError::os("ftruncate", errno))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS | SealFlags::SEAL)
            .map_err(|errno| RingError::os("fcntl(F_ADD_SEALS)", errno))?;
        SharedRegion::from_fd(fd, true)
    }

    /// Maps a region that another process made. Refused unless its size is sealed.
    pub fn from_fd(fd: OwnedFd, writable: bool) -> Result<SharedRegion, RingError> {
        let seals =
            rustix::fs::fcntl_get_seals(&fd).map_err(|errno| RingError::os("fcntl(F_GET_SEALS)", errno))?;
        if !seals.contains(SEALS) {
            return Err(RingError::Unsealed);
        }
        let size = rustix::fs::fstat(&fd).map_err(|errno| RingError::os("fstat", errno))?.st_size;
        let len = usize::try_from(size).unwrap_or(0);
        if len == 0 {
            return Err(RingError::RegionSize { got: 0, expected: 1 });
        }
        let mut options = MmapOptions::new();
        options.len(len);
        let map = if writable { options.map_raw(&fd) } else { options.map_raw_read_only(&fd) };
        let map = map.map_err(|source| RingError::Os { call: "mmap", source })?;
        Ok(SharedRegion { map, fd, writable })
    }

    /// A second mapping of the same memory, read-only.
    pub fn read_only(&self) -> Result<SharedRegion, RingError> {
        let fd = self.fd.try_clone().map_err(|source| RingError::Os { call: "dup", source })?;
        SharedRegion::from_fd(fd, false)
    }

    /// Gives the region's memory back to the system although mappings of it remain: what is read there from
    /// now on is zero until somebody writes. For the d2h region of a dead incarnation, once every producer
    /// has turned to the next one; they keep the old one mapped.
    pub fn discard(&self) -> Result<(), RingError> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.fd, hole, 0, self.len())
            .map_err(|errno| RingError::os("fallocate", errno))
    }

    /// Size in bytes.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// Whether there are no bytes. Never so.
    pub fn is_empty(&self) -> bool {
        self.map.len() == 0
    }

    /// Whether this mapping may be written.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The descriptor, to hand to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether both are mappings of the same memory, whatever descriptors they were made from.
    ///
    /// # Errors
    ///
    /// [`RingError::Os`] if a descriptor cannot be looked at.
    pub fn is_same_memory(&self, other: &SharedRegion) -> Result<bool, RingError> {
        // A number is not given to another file while this one lives, and a mapping keeps it alive.
        let file = |region: &SharedRegion| {
            let stat = rustix::fs::fstat(&region.fd).map_err(|errno| RingError::os("fstat", errno))?;
            Ok((stat.st_dev, stat.st_ino))
        };
        Ok(file(self)? == file(other)?)
    }

    /// The mapping's address and length, for a backend that registers it with a device or binds part of it
    /// to a program.
    ///
    /// # Safety
    ///
    /// The memory is shared with writers that follow no rule of this process. Whoever dereferences the
    /// pointer uses atomic accesses only, never makes a reference to plain data from it, never writes if
    /// [`SharedRegion::is_writable`] is false, and lets the pointer go before the region.
    pub unsafe fn raw(&self) -> (NonNull<u8>, usize) {
        (self.base(), self.map.len())
    }

    fn base(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).unwrap_or(NonNull::dangling())
    }

    /// The address of `bytes` bytes at `offset`, aligned to `align`.
    fn at(&self, offset: u64, bytes: u64, align: u64) -> Result<NonNull<u8>, RingError> {
        let end = offset.checked_add(bytes);
        if end.is_none_or(|end| end > self.len()) || !offset.is_multiple_of(align) {
            return Err(RingError::OutOfRegion { offset, bytes, region: self.len() });
        }
        // SAFETY: the offset is at most the length of the mapping, so the sum stays inside it.
        Ok(unsafe { self.base().add(offset as usize) })
    }

    fn at_writable(&self, offset: u64, bytes: u64, align: u64) -> Result<NonNull<u8>, RingError> {
        if !self.writable {
            return Err(RingError::ReadOnly);
        }
        self.at(offset, bytes, align)
    }

    /// A word of a writable mapping.
    pub fn atomic_u32(&self, offset: u64) -> Result<&AtomicU32, RingError> {
        let word = self.at_writable(offset, 4, 4)?.cast::<AtomicU32>();
        // SAFETY: in bounds, aligned, writable, and mapped for as long as `self` lives.
        Ok(unsafe { word.as_ref() })
    }

    /// A double word of a writable mapping.
    pub fn atomic_u64(&self, offset: u64) -> Result<&AtomicU64, RingError> {
        let word = self.at_writable(offset, 8, 8)?.cast::<AtomicU64>();
        // SAFETY: in bounds, aligned, writable, and mapped for as long as `self` lives.
        Ok(unsafe { word.as_ref() })
    }

    /// A word of any mapping, to load only.
    pub fn word_u32(&self, offset: u64) -> Result<&ReadOnlyU32, RingError> {
        let word = self.at(offset, 4, 4)?.cast::<ReadOnlyU32>();
        // SAFETY: in bounds, aligned, mapped for as long as `self` lives, and the type only loads.
        Ok(unsafe { word.as_ref() })
    }

    /// A double word of any mapping, to load only.
    pub fn word_u64(&self, offset: u64) -> Result<&ReadOnlyU64, RingError> {
        let word = self.at(offset, 8, 8)?.cast::<ReadOnlyU64>();
        // SAFETY: in bounds, aligned, mapped for as long as `self` lives, and the type only loads.
        Ok(unsafe { word.as_ref() })
    }

    /// Copies bytes into the region. Each aligned eight of them, and each byte beside those, is one relaxed
    /// atomic store; a reader that overlaps the copy sees any mixture.
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<(), RingError> {
        let at = self.at_writable(offset, bytes.len() as u64, 1)?.cast::<AtomicU8>();
        // SAFETY: in bounds, writable, mapped for as long as `self` lives; every accessor is atomic.
        let cells = unsafe { NonNull::slice_from_raw_parts(at, bytes.len()).as_ref() };
        copy_to_cells(cells, bytes);
        Ok(())
    }

    /// Copies bytes out of the region, with loads as wide as the stores of [`SharedRegion::copy_in`].
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> Result<(), RingError> {
        let at = self.at(offset, into.len() as u64, 1)?.cast::<ReadOnlyU8>();
        // SAFETY: in bounds, mapped for as long as `self` lives; the type only loads, atomically.
        let cells = unsafe { NonNull::slice_from_raw_parts(at, into.len()).as_ref() };
        copy_from_cells(cells, into);
        Ok(())
    }
}

/// Copies bytes into cells, as many as there are of both. Each aligned eight of them, and each byte beside those, is one relaxed
/// atomic store.
pub fn copy_to_cells(cells: &[AtomicU8], bytes: &[u8]) {
    let count = cells.len().min(bytes.len());
    let (cells, bytes) = (cells.split_at(count).0, bytes.split_at(count).0);
    // SAFETY: eight aligned byte cells are a valid u64 cell: both are plain memory to atomic accesses.
    let (head, words, tail) = unsafe { cells.align_to::<AtomicU64>() };
    let (head_bytes, rest) = bytes.split_at(head.len());
    let (word_bytes, tail_bytes) = rest.split_at(words.len() * 8);
    head.iter().zip(head_bytes).for_each(|(cell, &byte)| cell.store(byte, Ordering::Relaxed));
    for (cell, chunk) in words.iter().zip(word_bytes.as_chunks::<8>().0) {
        cell.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
    }
    tail.iter().zip(tail_bytes).for_each(|(cell, &byte)| cell.store(byte, Ordering::Relaxed));
}

/// Copies bytes out of cells, as many as there are of both, with loads as wide as the stores of [`copy_to_cells`].
pub fn copy_from_cells(cells: &[ReadOnlyU8], into: &mut [u8]) {
    let count = cells.len().min(into.len());
    let (cells, into) = (cells.split_at(count).0, into.split_at_mut(count).0);
    // SAFETY: eight aligned byte cells are a valid u64 cell: both are plain memory to atomic loads.
    let (head, words, tail) = unsafe { cells.align_to::<ReadOnlyU64>() };
    let (head_bytes, rest) = into.split_at_mut(head.len());
    let (word_bytes, tail_bytes) = rest.split_at_mut(words.len() * 8);
    head.iter().zip(head_bytes).for_each(|(cell, byte)| *byte = cell.load(Ordering::Relaxed));
    for (cell, chunk) in words.iter().zip(word_bytes.as_chunks_mut::<8>().0) {
        *chunk = cell.load(Ordering::Relaxed).to_ne_bytes();
    }
    tail.iter().zip(tail_bytes).for_each(|(cell, byte)| *byte = cell.load(Ordering::Relaxed));
}

macro_rules! read_only_words {
    ($($name:ident($atomic:ident) $plain:ident),*) => {$(
        /// An atomic word that can only be loaded, so that a read-only mapping never takes a store.
        #[derive(Debug)]
        #[repr(transparent)]
        pub struct $name($atomic);

        impl $name {
            /// Loads the word.
            #[inline]
            pub fn load(&self, order: Ordering) -> $plain {
                // On read-only pages only relaxed loads are promised to be plain loads; a fence gives the
                // stronger orders.
                let value = self.0.load(Ordering::Relaxed);
                if order != Ordering::Relaxed {
                    fence(order);
                }
                value
            }
        }
    )*};
}

impl ReadOnlyU32 {
    /// The atomic itself, for a futex call: the kernel only loads what it waits on.
    pub(crate) fn futex(&self) -> &AtomicU32 {
        &self.0
    }
}

read_only_words!(ReadOnlyU8(AtomicU8) u8, ReadOnlyU32(AtomicU32) u32, ReadOnlyU64(AtomicU64) u64);

/// One atomic word of a mapping that is kept alive.
#[derive(Debug)]
pub struct MappedWord<W> {
    word: NonNull<W>,
    region: Arc<SharedRegion>,
}

// SAFETY: the pointer is into a mapping that `region` keeps alive, and is only ever used as a shared
// reference to an atomic word.
unsafe impl<W: Sync> Send for MappedWord<W> {}
// SAFETY: as above.
unsafe impl<W: Sync> Sync for MappedWord<W> {}

impl<W> MappedWord<W> {
    /// The region it maps.
    pub fn region(&self) -> &Arc<SharedRegion> {
        &self.region
    }
}

impl MappedWord<AtomicU32> {
    /// A word of a writable mapping.
    pub fn writable(region: &Arc<SharedRegion>, offset: u64) -> Result<Self, RingError> {
        Ok(MappedWord { word: NonNull::from(region.atomic_u32(offset)?), region: Arc::clone(region) })
    }
}

impl MappedWord<ReadOnlyU32> {
    /// A word of any mapping, to load only.
    pub fn read_only(region: &Arc<SharedRegion>, offset: u64) -> Result<Self, RingError> {
        Ok(MappedWord { word: NonNull::from(region.word_u32(offset)?), region: Arc::clone(region) })
    }
}

impl<W> Deref for MappedWord<W> {
    type Target = W;

    #[inline]
    fn deref(&self) -> &W {
        // SAFETY: made from a reference into the mapping that `region` keeps alive.
        unsafe { self.word.as_ref() }
    }
}

/// The two regions of a session, and where everything in them lies.
#[derive(Clone, Debug)]
pub struct SessionRegions {
    /// Written by the host, read by the device; lives as long as the session.
    pub h2d: Arc<SharedRegion>,
    /// Written by the device, read by the host; fresh for every incarnation.
    pub d2h: Arc<SharedRegion>,
    /// Offsets in both.
    pub layout: Arc<RegionLayout>,
}

impl SessionRegions {
    /// New regions. The h2d header is written here; the d2h header is the device's to write.
    pub fn create(config: &RegionConfig) -> Result<SessionRegions, RingError> {
        let layout = RegionLayout::new(config)?;
        let h2d = SharedRegion::create(layout.h2d_bytes())?;
        let d2h = SharedRegion::create(layout.d2h_bytes())?;
        layout.write_h2d_header(&h2d)?;
        Ok(SessionRegions { h2d: Arc::new(h2d), d2h: Arc::new(d2h), layout: Arc::new(layout) })
    }

    /// The device's end: maps regions made by another process, h2d read-only, and refuses an h2d header
    /// that does not describe them exactly.
    pub fn attach(h2d: OwnedFd, d2h: OwnedFd) -> Result<SessionRegions, RingError> {
        let h2d = SharedRegion::from_fd(h2d, false)?;
        let d2h = SharedRegion::from_fd(d2h, true)?;
        let layout = RegionLayout::read_h2d_header(&h2d)?;
        if d2h.len() < layout.d2h_bytes() {
            return Err(RingError::RegionSize { got: d2h.len(), expected: layout.d2h_bytes() });
        }
        Ok(SessionRegions { h2d: Arc::new(h2d), d2h: Arc::new(d2h), layout: Arc::new(layout) })
    }

    /// The host's end of the same regions: d2h mapped read-only, so that no mistake here can write it.
    pub fn for_host(&self) -> Result<SessionRegions, RingError> {
        Ok(SessionRegions { d2h: Arc::new(self.d2h.read_only()?), ..self.clone() })
    }

    /// The same h2d region with a new, empty d2h region, for the next incarnation.
    pub fn fresh_d2h(&self) -> Result<SessionRegions, RingError> {
        let d2h = SharedRegion::create(self.layout.d2h_bytes())?;
        Ok(SessionRegions {
            h2d: Arc::clone(&self.h2d),
            d2h: Arc::new(d2h),
            layout: Arc::clone(&self.layout),
        })
    }
}
