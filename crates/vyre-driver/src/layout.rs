//! Where everything lies in the two regions, and the headers that say so.
//!
//! A layout is a pure function of its [`RegionConfig`]. A header holds the configuration, every offset that
//! follows from it, and a checksum. It is read back by recomputing: copy the header once, take the
//! configuration out of the copy, lay it out again, and compare every field. A header that disagrees with
//! itself in any way is refused by the name of the field, and no offset out of shared memory is ever used
//! as such.
//!
//! Words are little-endian. Sections start on cache lines, and words with different writers never share
//! one. docs/protocol.md lists the bytes.

use crate::region::SharedRegion;
use crate::ring::RingError;

/// Bytes in a cache line.
pub const LINE: u64 = 64;
/// Bytes in a page: sections that may be bound to programs start on one.
pub const PAGE: u64 = 4096;
/// First word of the h2d region: "VYREH2D" and a zero byte.
pub const H2D_MAGIC: u64 = u64::from_le_bytes(*b"VYREH2D\0");
/// First word of the d2h region: "VYRED2H" and a zero byte.
pub const D2H_MAGIC: u64 = u64::from_le_bytes(*b"VYRED2H\0");
/// Version of everything on this page.
pub const VERSION: u32 = 2;
/// Bytes of a header, the ring table included.
pub const HEADER_BYTES: u64 = 512;
/// Rings a session may have.
pub const MAX_RINGS: usize = 8;
/// Slots a ring may have.
pub const MAX_CAPACITY: u32 = 1 << 24;
/// Workers a session may have.
pub const MAX_WORKERS: u32 = 1 << 16;
/// Entries an IO queue may have.
pub const MAX_IO_ENTRIES: u32 = 1 << 12;
/// Bytes the tenant table and the mirror area may have each.
pub const MAX_AREA_BYTES: u64 = 1 << 32;
/// Bytes the payload arena may have.
pub const MAX_ARENA_BYTES: u64 = 1 << 35;

/// Tickets begin below this number; they have more than a machine's life to grow from there.
pub const FIRST_TICKET_END: u64 = 1 << 51;

/// Bytes of a slot.
pub const SLOT_BYTES: u64 = 64;
/// Bytes of a completion.
pub const COMPLETION_BYTES: u64 = 16;
/// Bytes of a slot's cancellation word.
pub const CANCELLATION_BYTES: u64 = 8;
/// Bytes of an IO request.
pub const IO_REQUEST_BYTES: u64 = 32;
/// Bytes of an IO reply.
pub const IO_REPLY_BYTES: u64 = 16;

/// h2d: the host's lease, a u64 that changes while the host lives.
pub const HOST_LEASE: u64 = HEADER_BYTES;
/// h2d: the abort flag, a u32.
pub const ABORT_FLAG: u64 = HEADER_BYTES + 8;
/// h2d: whether a cancellation was ever asked for, a u32. With the abort flag it makes an aligned double word, which a
/// device reads at once.
pub const ANY_CANCELLATION: u64 = ABORT_FLAG + 4;
/// h2d: the doorbell, a u32 that parked consumers wait on.
pub const DOORBELL: u64 = HEADER_BYTES + LINE;
/// h2d: how many host threads are parked, a u32.
pub const HOST_WAITERS: u64 = HEADER_BYTES + 2 * LINE;
/// h2d: first byte past the fixed words.
pub const H2D_FIXED_END: u64 = HEADER_BYTES + 3 * LINE;

/// d2h: the device's heartbeat, a u64 that changes while the device lives.
pub const HEARTBEAT: u64 = HEADER_BYTES;
/// d2h: how many consumers are parked, a u32.
pub const SLEEPERS: u64 = HEADER_BYTES + LINE;
/// d2h: the completion event, a u32 that parked host threads wait on.
pub const COMPLETION_EVENT: u64 = HEADER_BYTES + 2 * LINE;
/// d2h: first byte past the fixed words.
pub const D2H_FIXED_END: u64 = HEADER_BYTES + 3 * LINE;

const RING_TABLE: u64 = 192;
const RING_ENTRY_BYTES: u64 = 32;
/// The last double word of a header: the 64-bit FNV-1a hash of the bytes before it.
const CHECKSUM: u64 = HEADER_BYTES - 8;
const _: () = assert!(RING_TABLE + RING_ENTRY_BYTES * MAX_RINGS as u64 <= CHECKSUM);
const _: () = assert!(SLOT_BYTES == 4 * 4 * 4 && COMPLETION_BYTES == 4 * 4);
const _: () = assert!(ABORT_FLAG.is_multiple_of(8) && ANY_CANCELLATION + 4 <= DOORBELL);
const _: () = assert!(HEADER_BYTES.is_multiple_of(LINE) && LINE.is_multiple_of(SLOT_BYTES));

/// What a session's regions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionConfig {
    /// The capacity of each ring, a power of two from 1 up.
    pub rings: Vec<u32>,
    /// Bytes of the tenant table.
    pub tenant_bytes: u64,
    /// Bytes of the payload arena, a multiple of 16.
    pub arena_bytes: u64,
    /// Entries of the IO queue, a power of two.
    pub io_entries: u32,
    /// Workers, each with an in-flight word.
    pub workers: u32,
    /// Bytes of the area that device buffers are mirrored into.
    pub mirror_bytes: u64,
}

impl RegionConfig {
    /// One ring, one worker, 64 IO entries, and nothing else.
    pub fn new(capacity: u32) -> RegionConfig {
        RegionConfig {
            rings: vec![capacity],
            tenant_bytes: 0,
            arena_bytes: 0,
            io_entries: 64,
            workers: 1,
            mirror_bytes: 0,
        }
    }
}

/// Part of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Section {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Where the parts of one ring lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Slots, and completions.
    pub capacity: u32,
    /// h2d: the first ticket to claim, a u64, then one bit for each of the next `capacity` tickets.
    pub start_record: Section,
    /// h2d: the slots.
    pub slots: Section,
    /// h2d: for each slot the ticket that is not to begin, and one: a u64.
    pub cancellations: Section,
    /// d2h: the completions.
    pub completions: Section,
}

/// Every offset in a session's two regions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    config: RegionConfig,
    rings: Vec<RingLayout>,
    io_replies: Section,
    tenants: Section,
    arena: Section,
    in_flight: Section,
    io_requests: Section,
    mirror: Section,
    h2d_bytes: u64,
    d2h_bytes: u64,
}

/// Hands out sections one after another.
struct Cursor(u64);

impl Cursor {
    fn section(&mut self, bytes: u64, align: u64) -> Section {
        let offset = self.0.next_multiple_of(align);
        self.0 = offset + bytes;
        Section { offset, bytes }
    }
}

impl RegionLayout {
    /// Lays a configuration out, or names the field that cannot be.
    pub fn new(config: &RegionConfig) -> Result<RegionLayout, RingError> {
        check(config)?;
        // The limits just checked keep every sum below far under 2^64.
        let (mut h2d, mut d2h) = (Cursor(H2D_FIXED_END), Cursor(D2H_FIXED_END));
        let io_replies = h2d.section(u64::from(config.io_entries) * IO_REPLY_BYTES, LINE);
        let in_flight = d2h.section(u64::from(config.workers) * LINE, LINE);
        let io_requests = d2h.section(u64::from(config.io_entries) * IO_REQUEST_BYTES, LINE);
        let rings = config
            .rings
            .iter()
            .map(|&capacity| {
                let slots = u64::from(capacity);
                RingLayout {
                    capacity,
                    start_record: h2d.section(8 + slots.div_ceil(64) * 8, LINE),
                    slots: h2d.section(slots * SLOT_BYTES, LINE),
                    cancellations: h2d.section(slots * CANCELLATION_BYTES, LINE),
                    completions: d2h.section(slots * COMPLETION_BYTES, LINE),
                }
            })
            .collect();
        let tenants = h2d.section(config.tenant_bytes, PAGE);
        let arena = h2d.section(config.arena_bytes, PAGE);
        let mirror = d2h.section(config.mirror_bytes, PAGE);
        Ok(RegionLayout {
            config: config.clone(),
            rings,
            io_replies,
            tenants,
            arena,
            in_flight,
            io_requests,
            mirror,
            h2d_bytes: h2d.0.next_multiple_of(PAGE),
            d2h_bytes: d2h.0.next_multiple_of(PAGE),
        })
    }

    /// What it was laid out for.
    pub fn config(&self) -> &RegionConfig {
        &self.config
    }

    /// All rings.
    pub fn rings(&self) -> &[RingLayout] {
        &self.rings
    }

    /// One ring.
    pub fn ring(&self, ring: u32) -> Result<&RingLayout, RingError> {
        let rings = self.rings.len() as u32;
        self.rings.get(ring as usize).ok_or(RingError::NoSuchRing { ring, rings })
    }

    /// Size of the h2d region, whole pages.
    pub fn h2d_bytes(&self) -> u64 {
        self.h2d_bytes
    }

    /// Size of the d2h region, whole pages.
    pub fn d2h_bytes(&self) -> u64 {
        self.d2h_bytes
    }

    /// h2d: the IO replies.
    pub fn io_replies(&self) -> Section {
        self.io_replies
    }

    /// h2d: the tenant table.
    pub fn tenants(&self) -> Section {
        self.tenants
    }

    /// h2d: the payload arena.
    pub fn arena(&self) -> Section {
        self.arena
    }

    /// d2h: the in-flight words, each the first of a cache line of its own.
    pub fn in_flight(&self) -> Section {
        self.in_flight
    }

    /// d2h: the IO requests.
    pub fn io_requests(&self) -> Section {
        self.io_requests
    }

    /// d2h: the mirror area.
    pub fn mirror(&self) -> Section {
        self.mirror
    }

    /// Writes the h2d header.
    pub fn write_h2d_header(&self, region: &SharedRegion) -> Result<(), RingError> {
        region.copy_in(0, &encode(&self.h2d_fields()))
    }

    /// Writes the d2h header; the device does this first of all.
    pub fn write_d2h_header(&self, region: &SharedRegion) -> Result<(), RingError> {
        region.copy_in(0, &encode(&self.d2h_fields()))
    }

    /// Reads a layout out of an h2d header, believing nothing that does not follow from the rest.
    pub fn read_h2d_header(region: &SharedRegion) -> Result<RegionLayout, RingError> {
        let header = copy_header(region)?;
        expect(&header, H2D_MAGIC)?;
        let rings = word(&header, 24) as usize;
        if rings > MAX_RINGS {
            return Err(config_error("rings", rings as u64, "from 1 to 8 rings"));
        }
        let config = RegionConfig {
            rings: (0..rings as u64)
                .map(|ring| word(&header, RING_TABLE + ring * RING_ENTRY_BYTES))
                .collect(),
            workers: word(&header, 28),
            io_entries: word(&header, 32),
            tenant_bytes: double(&header, 56),
            arena_bytes: double(&header, 72),
            mirror_bytes: double(&header, 80),
        };
        let layout = RegionLayout::new(&config)?;
        compare_all(&header, &layout.h2d_fields())?;
        if region.len() < layout.h2d_bytes {
            return Err(RingError::RegionSize { got: region.len(), expected: layout.h2d_bytes });
        }
        Ok(layout)
    }

    /// Whether the h2d region carries the header that belongs to this layout.
    pub fn check_h2d_header(&self, region: &SharedRegion) -> Result<(), RingError> {
        let header = copy_header(region)?;
        expect(&header, H2D_MAGIC)?;
        compare_all(&header, &self.h2d_fields())
    }

    /// Whether the d2h region carries the header that belongs to this layout.
    pub fn check_d2h_header(&self, region: &SharedRegion) -> Result<(), RingError> {
        let header = copy_header(region)?;
        expect(&header, D2H_MAGIC)?;
        compare_all(&header, &self.d2h_fields())
    }

    /// The h2d header: every field by name.
    pub fn h2d_fields(&self) -> Vec<HeaderField> {
        let mut fields = self.common_fields(H2D_MAGIC, self.h2d_bytes);
        fields.extend([
            HeaderField::double("io replies offset", 40, self.io_replies.offset),
            HeaderField::double("tenant table offset", 48, self.tenants.offset),
            HeaderField::double("tenant table bytes", 56, self.tenants.bytes),
            HeaderField::double("arena offset", 64, self.arena.offset),
            HeaderField::double("arena bytes", 72, self.arena.bytes),
            HeaderField::double("mirror bytes", 80, self.mirror.bytes),
        ]);
        for (ring, at) in self.rings.iter().zip((RING_TABLE..).step_by(RING_ENTRY_BYTES as usize)) {
            fields.extend([
                HeaderField::word("ring capacity", at, ring.capacity),
                HeaderField::double("ring start record offset", at + 8, ring.start_record.offset),
                HeaderField::double("ring slots offset", at + 16, ring.slots.offset),
                HeaderField::double("ring cancellations offset", at + 24, ring.cancellations.offset),
            ]);
        }
        with_checksum(fields)
    }

    /// The d2h header: every field by name.
    pub fn d2h_fields(&self) -> Vec<HeaderField> {
        let mut fields = self.common_fields(D2H_MAGIC, self.d2h_bytes);
        fields.extend([
            HeaderField::double("in-flight words offset", 40, self.in_flight.offset),
            HeaderField::double("io requests offset", 48, self.io_requests.offset),
            HeaderField::double("mirror offset", 56, self.mirror.offset),
            HeaderField::double("mirror bytes", 64, self.mirror.bytes),
        ]);
        for (ring, at) in self.rings.iter().zip((RING_TABLE..).step_by(RING_ENTRY_BYTES as usize)) {
            fields.extend([
                HeaderField::word("ring capacity", at, ring.capacity),
                HeaderField::double("ring completions offset", at + 8, ring.completions.offset),
            ]);
        }
        with_checksum(fields)
    }

    fn common_fields(&self, magic: u64, region_bytes: u64) -> Vec<HeaderField> {
        vec![
            HeaderField::double("magic", 0, magic),
            HeaderField::word("version", 8, VERSION),
            HeaderField::word("header bytes", 12, HEADER_BYTES as u32),
            HeaderField::double("region bytes", 16, region_bytes),
            HeaderField::word("rings", 24, self.rings.len() as u32),
            HeaderField::word("workers", 28, self.config.workers),
            HeaderField::word("io entries", 32, self.config.io_entries),
        ]
    }
}

/// One field of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderField {
    /// What it says.
    pub name: &'static str,
    /// First byte in the region.
    pub offset: u64,
    /// Bytes: 4 or 8.
    pub width: u64,
    /// What it holds.
    pub value: u64,
}

impl HeaderField {
    fn word(name: &'static str, offset: u64, value: u32) -> HeaderField {
        HeaderField { name, offset, width: 4, value: u64::from(value) }
    }

    fn double(name: &'static str, offset: u64, value: u64) -> HeaderField {
        HeaderField { name, offset, width: 8, value }
    }

    fn get(&self, header: &[u8; HEADER_BYTES as usize]) -> u64 {
        if self.width == 4 { u64::from(word(header, self.offset)) } else { double(header, self.offset) }
    }
}

fn check(config: &RegionConfig) -> Result<(), RingError> {
    if config.rings.is_empty() || config.rings.len() > MAX_RINGS {
        return Err(config_error("rings", config.rings.len() as u64, "from 1 to 8 rings"));
    }
    for &capacity in &config.rings {
        if !capacity.is_power_of_two() || capacity > MAX_CAPACITY {
            return Err(config_error("ring capacity", u64::from(capacity), "a power of two, at most 2^24"));
        }
    }
    if config.workers == 0 || config.workers > MAX_WORKERS {
        return Err(config_error("workers", u64::from(config.workers), "from 1 to 65536"));
    }
    if !config.io_entries.is_power_of_two() || config.io_entries > MAX_IO_ENTRIES {
        return Err(config_error("io entries", u64::from(config.io_entries), "a power of two, at most 4096"));
    }
    if config.tenant_bytes > MAX_AREA_BYTES {
        return Err(config_error("tenant table bytes", config.tenant_bytes, "at most 4 GiB"));
    }
    if config.mirror_bytes > MAX_AREA_BYTES {
        return Err(config_error("mirror bytes", config.mirror_bytes, "at most 4 GiB"));
    }
    if config.arena_bytes > MAX_ARENA_BYTES || !config.arena_bytes.is_multiple_of(16) {
        return Err(config_error("arena bytes", config.arena_bytes, "a multiple of 16, at most 32 GiB"));
    }
    Ok(())
}

/// Refuses a first ticket that leaves no room to count.
pub(crate) fn check_first_ticket(ticket: u64) -> Result<(), RingError> {
    if ticket < FIRST_TICKET_END { Ok(()) } else { Err(config_error("first ticket", ticket, "below 2^51")) }
}

fn config_error(field: &'static str, got: u64, expected: &'static str) -> RingError {
    RingError::Config { field, got, expected }
}

/// Some fields follow from no other: the checksum is what ties them to the rest.
fn with_checksum(mut fields: Vec<HeaderField>) -> Vec<HeaderField> {
    let header = encode(&fields);
    let bytes = header.iter().take(CHECKSUM as usize);
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325, |hash: u64, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    fields.push(HeaderField::double("checksum", CHECKSUM, hash));
    fields
}

fn encode(fields: &[HeaderField]) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    for field in fields {
        let (at, width) = (field.offset as usize, field.width as usize);
        let bytes = field.value.to_le_bytes();
        for (to, from) in header.iter_mut().skip(at).zip(bytes.iter().take(width)) {
            *to = *from;
        }
    }
    header
}

fn copy_header(region: &SharedRegion) -> Result<[u8; HEADER_BYTES as usize], RingError> {
    let mut header = [0; HEADER_BYTES as usize];
    region.copy_out(0, &mut header)?;
    Ok(header)
}

/// The fields that decide how to read the others.
fn expect(header: &[u8; HEADER_BYTES as usize], magic: u64) -> Result<(), RingError> {
    compare(
        header,
        &[
            HeaderField::double("magic", 0, magic),
            HeaderField::word("version", 8, VERSION),
            HeaderField::word("header bytes", 12, HEADER_BYTES as u32),
        ],
    )
}

fn compare(header: &[u8; HEADER_BYTES as usize], fields: &[HeaderField]) -> Result<(), RingError> {
    match fields.iter().find(|field| field.get(header) != field.value) {
        Some(field) => {
            Err(RingError::Header { field: field.name, got: field.get(header), expected: field.value })
        }
        None => Ok(()),
    }
}

/// What [`compare`] does, and that every byte between the fields is zero.
fn compare_all(header: &[u8; HEADER_BYTES as usize], fields: &[HeaderField]) -> Result<(), RingError> {
    compare(header, fields)?;
    match header.iter().zip(encode(fields)).find(|(got, expected)| **got != *expected) {
        Some((&got, _)) => {
            Err(RingError::Header { field: "reserved bytes", got: u64::from(got), expected: 0 })
        }
        None => Ok(()),
    }
}

fn word(header: &[u8; HEADER_BYTES as usize], offset: u64) -> u32 {
    double(header, offset) as u32
}

/// Eight bytes of the header; what lies past its end reads as zero.
fn double(header: &[u8; HEADER_BYTES as usize], offset: u64) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(header.iter().skip(offset as usize)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}
