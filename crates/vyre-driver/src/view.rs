//! What host and device tell each other beside items: signs of life, stop signs, progress.
//!
//! [`HostView`] writes h2d and reads d2h, [`DeviceView`] the other way round. All of it is evidence, not
//! truth: a dead device's heartbeat stays what it was, and a mad one's says anything.

use std::sync::atomic::Ordering;

use crate::layout::{self, LINE, Section};
use crate::region::SessionRegions;
use crate::ring::RingError;

/// Items a worker is busy with: tickets in a row of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InFlight {
    /// The ring, at most 7.
    pub ring: u32,
    /// The first ticket, below 2^53 - 1.
    pub first: u64,
    /// How many, from 1 to 256.
    pub count: u32,
}

impl InFlight {
    /// The word: `(first + 1) << 11 | ring << 8 | count - 1`. Never 0, which says idle.
    pub const fn to_word(self) -> u64 {
        self.first.wrapping_add(1) << 11
            | (self.ring as u64 & 7) << 8
            | (self.count.wrapping_sub(1) as u64 & 0xFF)
    }

    /// What a word says, or `None` for idle.
    pub const fn from_word(word: u64) -> Option<InFlight> {
        match word >> 11 {
            0 => None,
            first => Some(InFlight {
                ring: (word >> 8 & 7) as u32,
                first: first - 1,
                count: (word & 0xFF) as u32 + 1,
            }),
        }
    }
}

fn in_section(section: Section, what: &'static str, offset: u64, bytes: usize) -> Result<u64, RingError> {
    let bytes = bytes as u64;
    if offset.checked_add(bytes).is_none_or(|end| end > section.bytes) {
        return Err(RingError::OutOfRange { what, offset, bytes, len: section.bytes });
    }
    Ok(section.offset + offset)
}

fn in_flight_word(regions: &SessionRegions, worker: u32) -> Result<u64, RingError> {
    let workers = regions.layout.config().workers;
    if worker >= workers {
        return Err(RingError::NoSuchWorker { worker, workers });
    }
    Ok(regions.layout.in_flight().offset + u64::from(worker) * LINE)
}

/// The host's end of a session's regions, for one incarnation.
#[derive(Clone, Debug)]
pub struct HostView {
    regions: SessionRegions,
}

impl HostView {
    /// The host's end. `regions` is the one whose h2d mapping is writable.
    pub fn new(regions: &SessionRegions) -> Result<HostView, RingError> {
        if !regions.h2d.is_writable() {
            return Err(RingError::ReadOnly);
        }
        Ok(HostView { regions: regions.clone() })
    }

    /// The regions viewed.
    pub fn regions(&self) -> &SessionRegions {
        &self.regions
    }

    /// Whether the device has written the d2h header that belongs to the layout.
    pub fn check_device_header(&self) -> Result<(), RingError> {
        self.regions.layout.check_d2h_header(&self.regions.d2h)
    }

    /// Renews the host's lease.
    pub fn renew_lease(&self) -> Result<(), RingError> {
        self.regions.h2d.atomic_u64(layout::HOST_LEASE)?.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Raises or lowers the abort flag.
    pub fn set_abort(&self, abort: bool) -> Result<(), RingError> {
        self.regions.h2d.atomic_u32(layout::ABORT_FLAG)?.store(u32::from(abort), Ordering::Release);
        Ok(())
    }

    /// The device's heartbeat.
    pub fn heartbeat(&self) -> Result<u64, RingError> {
        Ok(self.regions.d2h.word_u64(layout::HEARTBEAT)?.load(Ordering::Acquire))
    }

    /// What a worker says it is busy with.
    pub fn in_flight(&self, worker: u32) -> Result<Option<InFlight>, RingError> {
        let word = self.regions.d2h.word_u64(in_flight_word(&self.regions, worker)?)?;
        Ok(InFlight::from_word(word.load(Ordering::Acquire)))
    }

    /// Copies out of the mirror area.
    pub fn read_mirror(&self, offset: u64, into: &mut [u8]) -> Result<(), RingError> {
        let at = in_section(self.regions.layout.mirror(), "mirror area", offset, into.len())?;
        self.regions.d2h.copy_out(at, into)
    }

    /// Copies into the tenant table.
    pub fn write_tenants(&self, offset: u64, bytes: &[u8]) -> Result<(), RingError> {
        let at = in_section(self.regions.layout.tenants(), "tenant table", offset, bytes.len())?;
        self.regions.h2d.copy_in(at, bytes)
    }
}

/// The device's end of a session's regions.
#[derive(Clone, Debug)]
pub struct DeviceView {
    regions: SessionRegions,
}

impl DeviceView {
    /// The device's end: checks the h2d header against the layout and writes the d2h header.
    pub fn new(regions: &SessionRegions) -> Result<DeviceView, RingError> {
        regions.layout.check_h2d_header(&regions.h2d)?;
        regions.layout.write_d2h_header(&regions.d2h)?;
        Ok(DeviceView { regions: regions.clone() })
    }

    /// The regions viewed.
    pub fn regions(&self) -> &SessionRegions {
        &self.regions
    }

    /// The host's lease: it changes while the host lives.
    pub fn lease(&self) -> Result<u64, RingError> {
        Ok(self.regions.h2d.word_u64(layout::HOST_LEASE)?.load(Ordering::Relaxed))
    }

    /// Whether the abort flag is raised.
    pub fn is_aborted(&self) -> Result<bool, RingError> {
        Ok(self.regions.h2d.word_u32(layout::ABORT_FLAG)?.load(Ordering::Relaxed) != 0)
    }

    /// Beats.
    pub fn beat(&self) -> Result<(), RingError> {
        self.regions.d2h.atomic_u64(layout::HEARTBEAT)?.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Says what a worker is busy with. Each word has one writing thread.
    pub fn set_in_flight(&self, worker: u32, items: Option<InFlight>) -> Result<(), RingError> {
        let word = self.regions.d2h.atomic_u64(in_flight_word(&self.regions, worker)?)?;
        word.store(items.map_or(0, InFlight::to_word), Ordering::Release);
        Ok(())
    }

    /// Copies into the mirror area.
    pub fn write_mirror(&self, offset: u64, bytes: &[u8]) -> Result<(), RingError> {
        let at = in_section(self.regions.layout.mirror(), "mirror area", offset, bytes.len())?;
        self.regions.d2h.copy_in(at, bytes)
    }
}
