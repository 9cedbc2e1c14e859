//! The buffers that item programs declare, in the order in which they are bound.

use vyre_foundation::builder::{Buffer, ProgramBuilder};
use vyre_foundation::{BufferAccess, DataType, MemorySpace};

use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::state::{debug_log, header, tenant_row, usage_row};

/// The first buffers of every item program, in order: see [`crate::state`] for their words. Each is `u32`.
///
/// | buffer | space and access | in a session | in a batch |
/// |---|---|---|---|
/// | `counters` | global, read and write | a buffer | control buffer |
/// | `tenants` | host-visible, read | h2d region | control buffer |
/// | `usage` | global, read and write | a buffer | control buffer |
/// | `windows` | global, read and write | a buffer | control buffer |
/// | `debug_log` | global, read and write | a buffer | buffer of its own |
/// | `dfa_tables` | global, read | a buffer | a buffer |
pub const SYSTEM_BUFFERS: [&str; 6] = ["counters", "tenants", "usage", "windows", "debug_log", "dfa_tables"];

/// Where the bindings of handlers begin.
pub const FIRST_USER_BUFFER: usize = SYSTEM_BUFFERS.len();

/// What the batch kernels' own buffers begin with.
pub(crate) const BATCH_PREFIX: &str = "batch_";

pub(super) fn is_reserved_name(name: &str) -> bool {
    SYSTEM_BUFFERS.contains(&name) || name.starts_with(BATCH_PREFIX)
}

/// The buffers of a program, as bodies refer to them.
pub(crate) struct ItemBuffers {
    pub(crate) counters: Buffer,
    pub(crate) tenants: Buffer,
    pub(crate) usage: Buffer,
    pub(crate) windows: Buffer,
    pub(crate) debug_log: Buffer,
    pub(crate) dfa_tables: Buffer,
    bindings: Vec<(String, Buffer)>,
}

impl ItemBuffers {
    /// The binding with this name.
    pub(super) fn binding(&self, name: &str) -> Option<Buffer> {
        self.bindings.iter().find(|(bound, _)| bound == name).map(|&(_, buffer)| buffer)
    }
}

/// Declares the system buffers, then the bindings. In a batch the tenant table is part of the control
/// buffer, which the host does not touch meanwhile; in a session it is in the h2d region.
pub(crate) fn declare(
    program: &mut ProgramBuilder,
    tenants_space: MemorySpace,
    bindings: &[HandlerBinding],
) -> ItemBuffers {
    let mut table = |name: &str, space, access, len| program.buffer(name, space, DataType::U32, access, len);
    let (global, read, both) = (MemorySpace::Global, BufferAccess::Read, BufferAccess::ReadWrite);
    let [counters, tenants, usage, windows, debug_log, dfa_tables] = SYSTEM_BUFFERS;
    ItemBuffers {
        counters: table(counters, global, both, header::WORDS),
        tenants: table(tenants, tenants_space, read, tenant_row::WORDS),
        usage: table(usage, global, both, usage_row::WORDS),
        windows: table(windows, global, both, 1),
        debug_log: table(debug_log, global, both, debug_log::WORDS),
        dfa_tables: table(dfa_tables, global, read, 1),
        bindings: bindings
            .iter()
            .map(|b| (b.name.clone(), program.buffer(&b.name, b.space, b.element, b.access, b.min_len)))
            .collect(),
    }
}

/// Declares the workgroup memory of a handler; yields its names for it.
pub(super) fn declare_workgroup(
    program: &mut ProgramBuilder,
    index: u32,
    handler: &OpcodeHandler,
) -> Vec<(String, Buffer)> {
    let declare = |own: &crate::handler::WorkgroupBuffer| {
        let name = format!("wg{index}_{}", own.name);
        let access = BufferAccess::ReadWrite;
        (own.name.clone(), program.buffer(name, MemorySpace::Workgroup, own.element, access, own.len))
    };
    handler.workgroup_buffers().iter().map(declare).collect()
}
