//! What a session is made from: programs, tables, and the regions and buffers that follow from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use vyre_driver::layout::{RegionConfig, Section};
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::SlotImage;
use vyre_driver::{BackendError, BufferBinding, BufferDesc, PersistentThreadMode, ResidentSpec, VyreBackend};
use vyre_foundation::{BufferAccess, DataType, MemorySpace};

use super::buffers::{Content, DeviceBuffers, Entry, Place, zeros};
use super::opcodes::Opcodes;
use super::options::{BoundBuffer, SessionOptions};
use super::rings;
use super::shared::ring_error;
use crate::dfa::DfaTables;
use crate::error::MegakernelError;
use crate::handler::{Backing, HandlerBinding};
use crate::item::{HandlerTable, ItemPrograms, SYSTEM_BUFFERS};
use crate::megakernel::{Megakernel, Parts};
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::packed;
use crate::recovery::{Built, MegakernelRecoveryPolicy};
use crate::state::{StateLayout, debug_log, tenant_row};
use crate::tenant::{TenantConfig, TenantTable};

/// The binding through which handlers read the session's payload arena: `u8`, host-visible, read only. Only
/// sessions have an arena: a megakernel whose handlers declare it needs `bind_bytes` for batch dispatch.
pub const PAYLOAD_BINDING: &str = "payload";

/// Bytes of the arena if a handler wants one and the options do not say.
const DEFAULT_ARENA_BYTES: u32 = 1 << 20;

/// What a session takes from its megakernel.
pub(super) struct SessionPlan {
    /// Where it runs.
    pub(super) backend: Arc<dyn VyreBackend>,
    /// What runs: other programs after a change of handlers.
    programs: ArcSwap<ItemPrograms>,
    /// What of them every submission asks.
    opcodes: Opcodes,
    /// Invocations of a workgroup.
    pub(super) workgroup_size_x: u32,
    /// For whom.
    pub(super) tenants: Arc<TenantTable>,
    /// The sizes of the tables, with places for handlers that are yet to come.
    pub(super) layout: StateLayout,
    /// The DFA tables.
    pub(super) dfa: Arc<DfaTables>,
    /// Slots of a ring unless the options say otherwise.
    pub(super) slots: u32,
    /// What to do about a loss unless the options say otherwise.
    pub(super) recovery: MegakernelRecoveryPolicy,
    /// The megakernel's buffers, bound unless the options bind others.
    pub(super) bound: BTreeMap<String, BufferBinding>,
    /// Keeps them.
    pub(super) _parts: Arc<Built<Parts>>,
}

impl SessionPlan {
    /// What a session takes from a megakernel; it does not need the megakernel itself.
    pub(super) fn of(megakernel: &Megakernel, options: &SessionOptions) -> SessionPlan {
        let parts = megakernel.built();
        let names = megakernel.handlers().bindings().iter().map(|binding| &binding.name);
        SessionPlan {
            backend: Arc::clone(megakernel.backend()),
            programs: ArcSwap::new(Arc::clone(megakernel.programs())),
            opcodes: Opcodes::new(megakernel.programs()),
            workgroup_size_x: megakernel.workgroup_size_x(),
            tenants: Arc::clone(megakernel.tenants()),
            layout: megakernel.layout().with_reserve(options.reserved_handlers),
            dfa: Arc::clone(megakernel.dfa_tables()),
            slots: megakernel.slot_count(),
            recovery: megakernel.recovery_policy(),
            bound: names.filter_map(|name| Some((name.clone(), megakernel.buffer(name)?))).collect(),
            _parts: parts,
        }
    }

    /// Has other programs run from now on.
    pub(super) fn change_to(&self, programs: &Arc<ItemPrograms>) {
        self.opcodes.change_to(programs);
        self.programs.store(Arc::clone(programs));
    }

    /// What a backend compiles to run the programs.
    pub(super) fn spec(&self, worker_groups: u32) -> ResidentSpec {
        self.programs.load().spec(worker_groups)
    }

    /// The handlers.
    pub(super) fn handlers(&self) -> Arc<HandlerTable> {
        Arc::clone(self.programs.load().handlers())
    }

    /// Refuses what cannot be a session, before anything is made.
    pub(super) fn check(&self, options: &SessionOptions) -> Result<(), MegakernelError> {
        let unsupported = |what: &str, remedy: &str| {
            let source = BackendError::Unsupported { what: what.to_owned(), remedy: remedy.to_owned() };
            Err(MegakernelError::Backend { attempted: "start a session", source })
        };
        if options.persistent == PersistentThreadMode::Disable {
            return unsupported(
                "a session without persistent threads",
                "use Auto or Force, or dispatch batches",
            );
        }
        if !self.backend.capabilities().persistent {
            return unsupported(
                "a resident kernel on this backend",
                "dispatch batches, or use another backend",
            );
        }
        rings::check_count(options.rings)?;
        let slots = self.slots(options);
        if !slots.is_power_of_two() {
            return Err(MegakernelError::InvalidGeometry {
                what: "the slot count of a session",
                got: slots.into(),
                expected: "a power of two; `SessionOptions::slots` sets it apart from the batch's".to_owned(),
            });
        }
        options.buffers.keys().try_for_each(|name| self.check_destination(name))
    }

    /// Refuses an item that no handler runs, or that its tenant may not submit. The device checks again.
    #[inline]
    pub(super) fn check_image(&self, image: &SlotImage) -> Result<(), MegakernelError> {
        let tenant = self.tenants.get(image.tenant)?;
        let opcode = SlotOpcode::new(image.opcode);
        self.check_opcode(tenant, image.tenant, opcode)?;
        if opcode.builtin() == Some(BuiltinOpcode::PackedSlot) {
            for op in packed::decode(&image.args)? {
                let opcode = op.opcode();
                self.check_opcode(tenant, image.tenant, opcode)?;
                let packable = opcode.builtin().map(BuiltinOpcode::is_packable);
                if !packable.unwrap_or_else(|| self.opcodes.packs(opcode)) {
                    return Err(MegakernelError::MalformedDescriptor {
                        what: "packed slot",
                        problem: "an operation has no handler that can be packed",
                        remedy: "use handlers of lane granularity that never requeue",
                    });
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn check_opcode(
        &self,
        config: &TenantConfig,
        tenant: u16,
        opcode: SlotOpcode,
    ) -> Result<(), MegakernelError> {
        if !self.opcodes.serves(opcode) && opcode.builtin().is_none() {
            return Err(MegakernelError::UnknownOpcode { opcode });
        }
        if !config.permits(opcode) {
            return Err(MegakernelError::PermissionDenied { tenant, opcode });
        }
        Ok(())
    }

    /// Refuses the name of a buffer that is no handler's.
    pub(super) fn check_destination(&self, name: &str) -> Result<(), MegakernelError> {
        let known = self.handlers().bindings().iter().any(|binding| binding.name == name);
        if known && name != PAYLOAD_BINDING {
            return Ok(());
        }
        Err(MegakernelError::InvalidBinding {
            binding: name.to_owned(),
            problem: "no handler names it, or it is the session's own".to_owned(),
            remedy: "use the name of a handler's binding",
        })
    }

    /// The limit of every row of the tenant table.
    pub(super) fn quotas(&self) -> Vec<u32> {
        let limit = |tenant: u32| match u16::try_from(tenant).map(|tenant| self.tenants.get(tenant)) {
            Ok(Ok(config)) => config.quota_limit().unwrap_or(tenant_row::UNLIMITED),
            _ => tenant_row::UNLIMITED,
        };
        (0..self.tenants.row_count()).map(limit).collect()
    }

    fn slots(&self, options: &SessionOptions) -> u32 {
        options.slots.unwrap_or(self.slots)
    }

    /// Workgroups to keep resident.
    pub(super) fn worker_groups(&self, options: &SessionOptions) -> u32 {
        options.worker_groups.unwrap_or(self.backend.capabilities().resident_workgroups).max(1)
    }

    /// The regions, laid out and with the tenant table in place.
    pub(super) fn regions(&self, options: &SessionOptions) -> Result<SessionRegions, MegakernelError> {
        let wants_arena = self.handlers().bindings().iter().any(|binding| binding.name == PAYLOAD_BINDING);
        let default_arena = if wants_arena { DEFAULT_ARENA_BYTES } else { 0 };
        let config = RegionConfig {
            rings: vec![self.slots(options); options.rings as usize],
            tenant_bytes: u64::from(self.layout.tenants_words()) * 4,
            arena_bytes: options.arena_bytes.unwrap_or(default_arena).into(),
            io_entries: options.io_entries,
            workers: self.worker_groups(options),
            mirror_bytes: u64::from(self.mirror_words()) * 4,
        };
        let regions = SessionRegions::create(&config).map_err(ring_error("lay out the session's regions"))?;
        let words = self.tenants.encode(&self.handlers());
        regions
            .h2d
            .copy_in(regions.layout.tenants().offset, &to_bytes(&words))
            .map_err(ring_error("write the tenant table"))?;
        Ok(regions)
    }

    fn mirror_words(&self) -> u32 {
        self.layout.usage_words() + debug_log::WORDS.next_multiple_of(4) + self.layout.counters_words()
    }

    /// All buffers in the order of declaration, not yet made.
    pub(super) fn buffers(
        &self,
        options: &SessionOptions,
        regions: &SessionRegions,
    ) -> Result<DeviceBuffers, MegakernelError> {
        let layout = self.layout;
        let table = |name: &str, words: u32| BufferDesc::new(name, DataType::U32, words.into());
        // The counters come last in the mirror area: their magic word says that the others are there.
        let log_at = u64::from(layout.usage_words()) * 4;
        let counters_at = log_at + u64::from(debug_log::WORDS.next_multiple_of(4)) * 4;
        let mirrored = |last: Vec<u8>, offset: u64| Content::Mirrored { last, offset };
        let mut counters = layout.header(0).to_vec();
        counters.resize(layout.counters_words() as usize, 0);
        let [counters_name, tenants, usage, windows, log, dfa] = SYSTEM_BUFFERS;
        let dfa_words = self.dfa.words();
        let mut entries = vec![
            Entry::device(
                table(counters_name, layout.counters_words()),
                mirrored(to_bytes(&counters), counters_at),
            ),
            Entry { name: tenants.to_owned(), place: section(regions.layout.tenants()) },
            Entry::device(table(usage, layout.usage_words()), mirrored(vec![0; log_at as usize], 0)),
            Entry::device(table(windows, layout.windows_words()), Content::Volatile),
            Entry::device(
                table(log, debug_log::WORDS),
                mirrored(vec![0; debug_log::WORDS as usize * 4], log_at),
            ),
            Entry::device(table(dfa, dfa_words.len() as u32), Content::HostCopy(to_bytes(dfa_words))),
        ];
        for binding in self.handlers().bindings() {
            let to = options.buffers.get(&binding.name);
            entries.push(self.entry(binding, to, regions.layout.arena())?);
        }
        Ok(DeviceBuffers::new(Arc::clone(&self.backend), entries))
    }

    /// What a binding is bound to.
    pub(super) fn entry(
        &self,
        binding: &HandlerBinding,
        to: Option<&BoundBuffer>,
        arena: Section,
    ) -> Result<Entry, MegakernelError> {
        if binding.name != PAYLOAD_BINDING {
            return self.bound(binding, to);
        }
        check_payload_binding(binding)?;
        Ok(Entry { name: binding.name.clone(), place: section(arena) })
    }

    /// The buffer of one binding, bound or made of zeros.
    fn bound(&self, binding: &HandlerBinding, to: Option<&BoundBuffer>) -> Result<Entry, MegakernelError> {
        let refuse = |problem: String, remedy| {
            Err(MegakernelError::InvalidBinding { binding: binding.name.clone(), problem, remedy })
        };
        let size = binding.element.size() as u64;
        let own = self.bound.get(&binding.name).copied().map(BoundBuffer::Given);
        let to = to.or(own.as_ref());
        let (elements, initial) = match to {
            None if binding.min_len == 0 => {
                return refuse(
                    "nothing is bound to it".to_owned(),
                    "bind a buffer when starting the session",
                );
            }
            None => (u64::from(binding.min_len), None),
            Some(BoundBuffer::Zeroed(elements)) => (*elements, None),
            Some(BoundBuffer::Bytes(bytes)) => {
                let len = bytes.len() as u64;
                if !len.is_multiple_of(size) {
                    return refuse(
                        format!("{len} bytes are no whole number of {} elements", binding.element),
                        "bind whole elements",
                    );
                }
                (len / size, Some(bytes.clone()))
            }
            Some(BoundBuffer::Given(given)) => {
                return Entry::given(binding, *given, self.backend.as_ref());
            }
        };
        check_len(binding, elements)?;
        let desc = BufferDesc::new(&binding.name, binding.element, elements).in_space(binding.space);
        let content = match (binding.backing, initial) {
            (Backing::HostBacked, Some(bytes)) => Content::HostCopy(bytes),
            (Backing::HostBacked, None) => Content::HostCopy(zeros(&desc)?),
            (Backing::Volatile, Some(bytes)) => Content::Initial(bytes),
            (Backing::Volatile, None) => Content::Volatile,
        };
        Ok(Entry::device(desc, content))
    }
}

/// Refuses fewer elements than declared.
pub(super) fn check_len(binding: &HandlerBinding, elements: u64) -> Result<(), MegakernelError> {
    if elements >= binding.min_len.into() {
        return Ok(());
    }
    Err(MegakernelError::InvalidBinding {
        binding: binding.name.clone(),
        problem: format!("{elements} elements are bound to it, {} declared", binding.min_len),
        remedy: "bind at least the declared length",
    })
}

fn section(section: Section) -> Place {
    Place::HostToDevice { byte_offset: section.offset, byte_len: section.bytes }
}

pub(super) fn check_payload_binding(binding: &HandlerBinding) -> Result<(), MegakernelError> {
    let fits = binding.element == DataType::U8
        && binding.space == MemorySpace::HostVisible
        && binding.access == BufferAccess::Read;
    if fits {
        return Ok(());
    }
    Err(MegakernelError::InvalidBinding {
        binding: binding.name.clone(),
        problem: "it is the session's payload arena".to_owned(),
        remedy: "declare it as `HandlerBinding::read(PAYLOAD_BINDING, DataType::U8)\
                 .in_space(MemorySpace::HostVisible)`",
    })
}

/// Words as little-endian bytes.
pub(super) fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Little-endian bytes as words; bytes past the last whole word are left out.
pub(super) fn to_words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}
