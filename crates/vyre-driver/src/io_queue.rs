//! The IO queue: the device asks the host to move bytes, the host answers.
//!
//! The device posts request n in entry `n % entries` of the d2h region, as two quarters tagged with the
//! request's lap, and uses an entry again only after the reply of the same lap is there. The host serves
//! requests in order of n and answers in any order, with one record of the h2d region. Neither side takes
//! anything for granted that the other wrote.
//!
//! Both halves keep their state behind a mutex: a request costs a system call or more on the host.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::io;
use crate::region::{ReadOnlyU64, SessionRegions};
use crate::ring::{Cells, MappedCells, RingError};

/// What the device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoRequest {
    /// [`io::READ`], [`io::WRITE`] or [`io::FENCE`].
    pub operation: u32,
    /// For which tenant.
    pub tenant: u16,
    /// A handle: where the bytes come from.
    pub source: u32,
    /// A handle: where they go to.
    pub destination: u32,
    /// First byte in the file.
    pub offset: u64,
    /// How many.
    pub bytes: u32,
}

/// What the host answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoReply {
    /// Served; fewer bytes than asked for at the end of a file.
    Done {
        /// Bytes moved.
        bytes: u32,
    },
    /// Failed.
    Failed {
        /// The operating system's error number, or 0 if it was not asked.
        errno: u32,
    },
}

const fn lap_tag(lap: u64) -> u64 {
    (lap & 0xFFFF) << 48
}

/// The device's half.
pub struct DeviceIo {
    requests: MappedCells<AtomicU64, 4>,
    replies: MappedCells<ReadOnlyU64, 2>,
    state: Mutex<DeviceState>,
}

struct DeviceState {
    next: u64,
    /// For each entry, whether its request awaits a reply.
    open: Vec<bool>,
}

impl DeviceIo {
    /// The queue of a fresh incarnation.
    pub fn new(regions: &SessionRegions) -> Result<DeviceIo, RingError> {
        let layout = &regions.layout;
        Ok(DeviceIo {
            requests: MappedCells::<AtomicU64, 4>::writable(&regions.d2h, layout.io_requests())?,
            replies: MappedCells::<ReadOnlyU64, 2>::read_only(&regions.h2d, layout.io_replies())?,
            state: Mutex::new(DeviceState {
                next: 0,
                open: vec![false; layout.config().io_entries as usize],
            }),
        })
    }

    /// Posts a request and returns its number, or `None` while the entry it needs awaits its reply.
    pub fn post(&self, request: &IoRequest) -> Option<u64> {
        let mut state = lock(&self.state);
        let number = state.next;
        let entries = state.open.len() as u64;
        let open = state.open.get_mut((number % entries.max(1)) as usize)?;
        if *open {
            return None;
        }
        *open = true;
        state.next += 1;
        let tag = lap_tag(number / entries + 1);
        let [lo0, hi0, lo1, hi1] = self.requests.group(number);
        lo0.store(u64::from(request.operation) | u64::from(request.source) << 32, Ordering::Relaxed);
        let tenant = u64::from(request.tenant) << 32;
        // Release, twice: pairs with the host's acquire of each tag.
        hi0.store(u64::from(request.destination) | tenant | tag, Ordering::Release);
        lo1.store(request.offset, Ordering::Relaxed);
        hi1.store(u64::from(request.bytes) | tag, Ordering::Release);
        Some(number)
    }

    /// The reply to a request, if it is there; the entry is free then. A reply that makes no sense counts
    /// as a failed one.
    pub fn poll(&self, number: u64) -> Result<Option<IoReply>, RingError> {
        let mut state = lock(&self.state);
        let entries = state.open.len() as u64;
        if number >= state.next {
            return Err(RingError::NotIssued { ticket: number });
        }
        let newest = number + entries >= state.next;
        let open = state.open.get_mut((number % entries.max(1)) as usize);
        let Some(open) = open.filter(|open| newest && **open) else {
            return Err(RingError::AlreadyTaken { ticket: number });
        };
        let [lo, hi] = self.replies.group(number);
        // Acquire: pairs with the host's release, for the record and for the bytes it moved.
        let hi = hi.load(Ordering::Acquire);
        if hi >> 48 != (number / entries + 1) & 0xFFFF || hi >> 32 & 0xFFFF == 0 {
            return Ok(None);
        }
        *open = false;
        let lo = lo.load(Ordering::Relaxed);
        Ok(Some(match (hi >> 32) as u32 & 0xFFFF {
            io::OK => IoReply::Done { bytes: lo as u32 },
            _ => IoReply::Failed { errno: (lo >> 32) as u32 },
        }))
    }
}

/// The host's half.
pub struct HostIo {
    requests: MappedCells<ReadOnlyU64, 4>,
    replies: MappedCells<AtomicU64, 2>,
    state: Mutex<HostState>,
}

struct HostState {
    next: u64,
    open: Vec<bool>,
}

impl HostIo {
    /// The queue of a fresh incarnation. Replies to an earlier one are erased, so make it before the kernel
    /// is started, and after the old one is gone.
    pub fn new(regions: &SessionRegions) -> Result<HostIo, RingError> {
        let layout = &regions.layout;
        let replies = MappedCells::<AtomicU64, 2>::writable(&regions.h2d, layout.io_replies())?;
        let entries = layout.config().io_entries;
        for entry in 0..u64::from(entries) {
            replies.group(entry).iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        Ok(HostIo {
            requests: MappedCells::<ReadOnlyU64, 4>::read_only(&regions.d2h, layout.io_requests())?,
            replies,
            state: Mutex::new(HostState { next: 0, open: vec![false; entries as usize] }),
        })
    }

    /// The next request and its number, if one is there. Handles, ranges and the operation are the device's
    /// claims: whoever serves the request checks them.
    pub fn next_request(&self) -> Option<(u64, IoRequest)> {
        let mut state = lock(&self.state);
        let number = state.next;
        let entries = state.open.len() as u64;
        let open = state.open.get_mut((number % entries.max(1)) as usize)?;
        if *open {
            // The device has reused an entry before its reply: not before we have answered.
            return None;
        }
        let lap = (number / entries + 1) & 0xFFFF;
        let [lo0, hi0, lo1, hi1] = self.requests.group(number);
        // Acquire, twice: pairs with the device's release of each tag.
        let (hi0, hi1) = (hi0.load(Ordering::Acquire), hi1.load(Ordering::Acquire));
        let (lo0, lo1) = (lo0.load(Ordering::Relaxed), lo1.load(Ordering::Relaxed));
        let operation = lo0 as u32;
        if hi0 >> 48 != lap || hi1 >> 48 != lap || operation == 0 {
            return None;
        }
        *open = true;
        state.next += 1;
        Some((
            number,
            IoRequest {
                operation,
                tenant: (hi0 >> 32) as u16,
                source: (lo0 >> 32) as u32,
                destination: hi0 as u32,
                offset: lo1,
                bytes: hi1 as u32,
            },
        ))
    }

    /// Answers a request, once.
    pub fn reply(&self, number: u64, reply: IoReply) -> Result<(), RingError> {
        let mut state = lock(&self.state);
        let entries = state.open.len() as u64;
        if number >= state.next {
            return Err(RingError::NotIssued { ticket: number });
        }
        let newest = number + entries >= state.next;
        let open = state.open.get_mut((number % entries.max(1)) as usize);
        let Some(open) = open.filter(|open| newest && **open) else {
            return Err(RingError::AlreadyTaken { ticket: number });
        };
        *open = false;
        let (lo, status) = match reply {
            IoReply::Done { bytes } => (u64::from(bytes), io::OK),
            IoReply::Failed { errno } => (u64::from(errno) << 32, io::ERROR),
        };
        let [lo_cell, hi_cell] = self.replies.group(number);
        lo_cell.store(lo, Ordering::Relaxed);
        hi_cell.store(u64::from(status) << 32 | lap_tag(number / entries + 1), Ordering::Release);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
