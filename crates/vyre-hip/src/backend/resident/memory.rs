//! What a resident kernel uses, in one allocation, and the argument that says where it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vyre_driver::layout::{self, RingLayout};
use vyre_driver::region::{SessionRegions, SharedRegion};
use vyre_driver::ring::RingError;
use vyre_driver::{BackendError, ResidentBinding, ResidentSpec, StartRequest, table};
use vyre_foundation::{BufferAccess, BufferDecl, MemorySpace};

use super::super::{Inner, memory as buffers};
use crate::device::{DeviceMemory, HostMemory as _, PinnedMemory, RegisteredMemory};
use crate::emit::abi::{
    self, FENCE_BYTES, GROUP_ENTRY_BYTES, ItemBinding, LIVE_BYTES, MirrorCopy, Resident, Ring,
};

/// Where the words are in pinned memory: what the host commands, and the kernel's status, on cache lines of their
/// own.
pub(super) const COMMAND: u64 = 0;
pub(super) const STATUS: u64 = 64;

/// How long zeroing may take.
const ZERO_DEADLINE: Duration = Duration::from_secs(10);

/// Sections begin on a cache line of the device.
const LINE: u64 = 128;

/// Numbers that the launch decides.
pub(super) struct Shape {
    pub(super) scheduler_groups: u32,
    pub(super) lane_groups: u32,
    pub(super) claim: u32,
    /// Whether the bindings are in the argument.
    pub(super) inline: bool,
}

/// Everything in device memory.
pub(super) struct Memory {
    /// Keeps what the argument names.
    _all: Arc<DeviceMemory>,
    /// Keeps what is bound and mirrored.
    _buffers: Vec<Arc<buffers::Memory>>,
    /// The argument of both kernels.
    pub(super) argument: Vec<u8>,
}

/// Regions that this backend cannot use.
pub(super) fn refused(error: RingError) -> BackendError {
    BackendError::invalid("regions", error, "the two regions of a session, d2h fresh and both writable")
}

/// A mapping of a region of the backend's own: nobody else registers it.
pub(super) fn mapped(region: &SharedRegion) -> Result<Arc<SharedRegion>, BackendError> {
    let fd = region.fd().try_clone_to_owned();
    let fd = fd.map_err(|source| refused(RingError::Os { call: "dup", source }))?;
    Ok(Arc::new(SharedRegion::from_fd(fd, true).map_err(refused)?))
}

/// Sections of the allocation, those with content first.
#[derive(Default)]
struct Plan {
    content: Vec<u8>,
    bytes: u64,
}

impl Plan {
    /// Room for bytes that are uploaded.
    fn upload(&mut self, bytes: &[u8]) -> u64 {
        let at = self.content.len().next_multiple_of(LINE as usize);
        self.content.resize(at, 0);
        self.content.extend_from_slice(bytes);
        self.bytes = self.content.len() as u64;
        at as u64
    }

    /// Room for zeros, after all uploads.
    fn zeros(&mut self, bytes: u64) -> u64 {
        let at = self.bytes.next_multiple_of(LINE);
        self.bytes = at + bytes;
        at
    }
}

impl Memory {
    pub(super) fn new(
        inner: &Inner,
        spec: &ResidentSpec,
        request: &StartRequest,
        shape: &Shape,
        h2d: &RegisteredMemory,
        d2h: &RegisteredMemory,
        pinned: &PinnedMemory,
    ) -> Result<Memory, BackendError> {
        let regions = &request.regions;
        let layout = &regions.layout;
        let decls = &spec.lane.program().buffers;
        table::check_count(decls, request.bindings.len())?;
        let mut kept = Vec::new();
        let mut bindings = Vec::with_capacity(request.bindings.len());
        for (decl, binding) in table::bound(decls).zip(&request.bindings) {
            bindings.push(bind(inner, decl, binding, h2d, &mut kept)?);
        }
        let mirrors = mirrors(inner, request, d2h, &mut kept)?;

        let mut plan = Plan::default();
        let opcodes: Vec<u8> = spec.workgroup_opcodes.iter().flat_map(|word| word.to_le_bytes()).collect();
        let group_opcodes = plan.upload(&opcodes);
        let tenants = plan.upload(&tenant_table(regions)?);
        let starts: Vec<Start> =
            layout.rings().iter().map(|ring| Start::read(regions, ring)).collect::<Result<_, _>>()?;
        let marks: Vec<u64> = starts.iter().map(|start| plan.upload(&start.marks)).collect();
        // Their content is only known once the allocation has an address.
        let rings_at = plan.upload(&vec![0; size_of::<Ring>() * starts.len()]);
        let mirrors_at = plan.upload(&vec![0; size_of::<MirrorCopy>() * mirrors.len()]);
        let table_at = plan.upload(&vec![0; size_of::<ItemBinding>() * bindings.len()]);
        let uploaded = plan.bytes;
        let live = plan.zeros(LIVE_BYTES);
        let slots: u64 = layout.rings().iter().map(|ring| u64::from(ring.capacity)).sum();
        let queue = slots.next_power_of_two();
        let [ready, parked, posting] = [0; 3].map(|_| plan.zeros(queue * 8));
        let groups = plan.zeros(if spec.workgroup.is_some() { queue * GROUP_ENTRY_BYTES } else { 0 });
        let fences = plan.zeros(queue * FENCE_BYTES);
        let io_open = plan.zeros(u64::from(layout.config().io_entries) * 8);
        let shadows: Vec<u64> = mirrors.iter().map(|mirror| plan.zeros(mirror.words * 4)).collect();
        let own: Vec<[u64; 3]> = layout
            .rings()
            .iter()
            .map(|ring| [64, 8, 64].map(|each| plan.zeros(u64::from(ring.capacity) * each)))
            .collect();

        let all = DeviceMemory::new(&inner.context, "a resident kernel's own memory", plan.bytes)?;
        let at = |offset: u64| all.address() + offset;
        let rings: Vec<u8> = layout
            .rings()
            .iter()
            .zip(&starts)
            .zip(marks.iter().zip(&own))
            .flat_map(|((ring, start), (&marks, &[local, laps, records]))| {
                let ring = Ring {
                    slots: h2d.device_address() + ring.slots.offset,
                    completions: d2h.device_address() + ring.completions.offset,
                    first: start.first,
                    local: at(local),
                    laps: at(laps),
                    records: at(records),
                    marks: at(marks),
                    marked: start.marked,
                    capacity: ring.capacity,
                    shift: ring.capacity.trailing_zeros(),
                    cancellations: h2d.device_address() + ring.cancellations.offset,
                };
                ring.to_bytes()
            })
            .collect();
        plan.place(rings_at, &rings);
        let copies: Vec<u8> = mirrors
            .iter()
            .zip(&shadows)
            .flat_map(|(mirror, &shadow)| MirrorCopy { shadow: at(shadow), ..*mirror }.to_bytes())
            .collect();
        plan.place(mirrors_at, &copies);
        let table_section = layout.tenants();
        let host_tenants = h2d.device_address() + table_section.offset;
        let bindings: Vec<u8> = bindings
            .into_iter()
            .flat_map(|binding| {
                let data = match binding {
                    ItemBinding { len: 0, .. } => at(live),
                    ItemBinding { origin, .. } if origin == host_tenants && table_section.bytes > 0 => {
                        at(tenants)
                    }
                    ItemBinding { data, .. } => data,
                };
                ItemBinding { data, ..binding }.to_bytes()
            })
            .collect();
        plan.place(table_at, &bindings);

        let resident = Resident {
            rings: at(rings_at),
            live: at(live),
            command: pinned.device_address() + COMMAND,
            status: pinned.device_address() + STATUS,
            abort: h2d.device_address() + layout::ABORT_FLAG,
            lease: h2d.device_address() + layout::HOST_LEASE,
            heartbeat: d2h.device_address() + layout::HEARTBEAT,
            in_flight: d2h.device_address() + layout.in_flight().offset,
            io_requests: d2h.device_address() + layout.io_requests().offset,
            io_replies: h2d.device_address() + layout.io_replies().offset,
            io_open: at(io_open),
            mirrors: at(mirrors_at),
            ready: at(ready),
            groups: at(groups),
            parked: at(parked),
            fences: at(fences),
            posting: at(posting),
            group_opcodes: at(group_opcodes),
            lease_limit: nanoseconds(request.lease),
            item_deadline: request.item_deadline.map_or(0, |limit| nanoseconds(limit).max(1)),
            ring_count: starts.len() as u32,
            workers: layout.config().workers,
            io_entries: layout.config().io_entries,
            mirror_count: mirrors.len() as u32,
            queue_shift: queue.trailing_zeros(),
            group_opcode_count: spec.workgroup_opcodes.len() as u32,
            scheduler_groups: shape.scheduler_groups,
            lane_groups: shape.lane_groups,
            claim: shape.claim,
            reserved: 0,
        };
        let mut argument = resident.to_bytes().to_vec();
        if shape.inline {
            argument.extend_from_slice(&bindings);
        } else {
            argument.extend_from_slice(&at(table_at).to_le_bytes());
        }
        let lane = inner.lanes.take()?;
        lane.stream().fill(&all, uploaded, plan.bytes - uploaded, 0)?;
        lane.stream().wait(ZERO_DEADLINE)?;
        inner.lanes.give_back(lane);
        all.write(0, &plan.content)?;
        Ok(Memory { _all: all, _buffers: kept, argument })
    }
}

impl Plan {
    /// The content of a section that was planned before.
    fn place(&mut self, at: u64, bytes: &[u8]) {
        self.content.iter_mut().skip(at as usize).zip(bytes).for_each(|(to, from)| *to = *from);
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One buffer of the item programs, by its address on the device.
fn bind(
    inner: &Inner,
    decl: &BufferDecl,
    binding: &ResidentBinding,
    h2d: &RegisteredMemory,
    kept: &mut Vec<Arc<buffers::Memory>>,
) -> Result<ItemBinding, BackendError> {
    let (address, bytes) = match *binding {
        ResidentBinding::Buffer(binding) => {
            let memory = inner.buffers.bind(decl, &binding)?;
            table::check_elements(decl, binding.byte_offset, binding.byte_len)?;
            let address = memory.address() + binding.byte_offset;
            kept.push(memory);
            (address, binding.byte_len)
        }
        ResidentBinding::HostToDevice { byte_offset, byte_len } => {
            let inside = byte_offset.checked_add(byte_len).is_some_and(|end| end <= h2d.len());
            let read = decl.access == BufferAccess::Read && decl.space == MemorySpace::HostVisible;
            if !inside || !read {
                return Err(BackendError::invalid(
                    "bindings",
                    format!(
                        "bytes {byte_offset} to {byte_offset} + {byte_len} of the h2d region for `{}`",
                        decl.name
                    ),
                    format!(
                        "a range of its {} bytes, for a host-visible buffer that is only read",
                        h2d.len()
                    ),
                ));
            }
            table::check_elements(decl, byte_offset, byte_len)?;
            (h2d.device_address() + byte_offset, byte_len)
        }
    };
    // Indices are 32 bits: what lies behind them cannot be reached.
    let len = (bytes / decl.element.size() as u64).min(u32::MAX.into());
    Ok(ItemBinding { data: address, len, origin: address })
}

/// The mirrors; their shadows follow.
fn mirrors(
    inner: &Inner,
    request: &StartRequest,
    d2h: &RegisteredMemory,
    kept: &mut Vec<Arc<buffers::Memory>>,
) -> Result<Vec<MirrorCopy>, BackendError> {
    let area = request.regions.layout.mirror();
    let mut mirrors = Vec::with_capacity(request.mirrors.len());
    for mirror in &request.mirrors {
        let (offset, bytes) = (mirror.source.byte_offset, mirror.source.byte_len);
        let memory = inner.buffers.range(mirror.source.buffer, offset, bytes)?;
        let to = mirror.d2h_offset.checked_sub(area.offset);
        let fits = to.is_some_and(|to| to.checked_add(bytes).is_some_and(|end| end <= area.bytes));
        if !fits || !(offset | bytes | mirror.d2h_offset).is_multiple_of(4) {
            return Err(BackendError::invalid(
                "mirrors",
                format!("bytes {offset}..{offset}+{bytes} to {}", mirror.d2h_offset),
                format!("words, to the mirror area of {} bytes at {}", area.bytes, area.offset),
            ));
        }
        mirrors.push(MirrorCopy {
            source: memory.address() + offset,
            target: d2h.device_address() + mirror.d2h_offset,
            shadow: 0,
            words: bytes / 4,
        });
        kept.push(memory);
    }
    Ok(mirrors)
}

/// The tenant table as it is now. Its words stay, or only rise.
fn tenant_table(regions: &SessionRegions) -> Result<Vec<u8>, BackendError> {
    let section = regions.layout.tenants();
    let mut bytes = vec![0; section.bytes as usize];
    regions.h2d.copy_out(section.offset, &mut bytes).map_err(refused)?;
    Ok(bytes)
}

/// The start record of a ring.
struct Start {
    first: u64,
    /// Whole double words of marks, as far as there are any.
    marks: Vec<u8>,
    /// Tickets that they are for.
    marked: u64,
}

impl Start {
    fn read(regions: &SessionRegions, ring: &RingLayout) -> Result<Start, BackendError> {
        let record = ring.start_record;
        let word = |offset| regions.h2d.word_u64(offset).map(|word| word.load(Ordering::Acquire));
        let first = word(record.offset).map_err(refused)?;
        if first >= layout::FIRST_TICKET_END {
            return Err(BackendError::invalid("regions", format!("first ticket {first}"), "below 2^51"));
        }
        let marks = (record.offset + 8..record.offset + record.bytes).step_by(8).map(word);
        let marks: Vec<u64> = marks.collect::<Result<_, _>>().map_err(refused)?;
        let used = marks.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
        let marks: Vec<u8> = marks.iter().take(used).flat_map(|word| word.to_le_bytes()).collect();
        Ok(Start { first, marks, marked: used as u64 * 64 })
    }
}

const _: () = assert!(size_of::<Resident>().is_multiple_of(8) && abi::MAX_INLINE_ITEM_BINDINGS > 0);
