//! The megakernel that the vectors are for.

use std::sync::Arc;

use vyre_driver::VyreBackend;
use vyre_driver::protocol::opcode;
use vyre_foundation::builder::{Buffer, Operand};
use vyre_foundation::{Axis, BufferId, Builtin, DataType, Granularity, MemorySpace};

use crate::dfa::{DfaTable, DfaTables};
use crate::error::MegakernelError;
use crate::handler::OpcodeHandler;
use crate::megakernel::{Megakernel, MegakernelBuilder};
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::state::header;
use crate::tenant::TenantConfig;

/// Handler: completes with its argument plus one.
pub const ADD_ONE: u32 = opcode::USER_FIRST;
/// Handler: faults with its argument.
pub const FAULT: u32 = 9;
/// Handler: traps with its argument unless that is 0, in the middle of an expression's block.
pub const TRAP: u32 = 10;
/// Handler: without a statement.
pub const FALL_OFF: u32 = 11;
/// Handler: requeues `(a0 - 1, a1 + 1)` until `a0` is 0, then completes with `a1`.
pub const COUNTDOWN: u32 = 12;
/// Handler of a workgroup: the sum of all local ids, after `a0` times in the queue; faults for 100.
pub const SUM_LOCAL_IDS: u32 = 13;
/// Handler: requeues `a0` times, then completes with the number of fences completed by then.
pub const LATE: u32 = 14;
/// Handler: completes with its opcode.
pub const ECHO_OPCODE: u32 = opcode::USER_HIGH_FIRST;

/// May store, run packed slots, and [`ADD_ONE`]; 1 observable and 4 words of state.
pub const LIMITED: u16 = 1;
/// May do everything, has no window.
pub const NO_WINDOW: u16 = 2;
/// May do everything, and nothing at all: its quota is 0.
pub const NO_QUOTA: u16 = 3;
/// Nobody configured it, though there is a row.
pub const UNCONFIGURED: u16 = 4;
/// May run 100 items.
pub const HUNDRED: u16 = 5;

/// Invocations of a workgroup, which [`SUM_LOCAL_IDS`] adds up.
pub const WORKGROUP_SIZE: u32 = 64;
/// Slots.
pub const SLOTS: u32 = 256;

/// The handlers.
pub fn handlers() -> Vec<OpcodeHandler> {
    vec![
        OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)).replayable(true),
        OpcodeHandler::new(FAULT, "fault", |h| h.fault(h.arg(0))),
        OpcodeHandler::new(TRAP, "trap_", |h| {
            h.for_("i", 0, 1, |h, _| h.if_(h.arg(0).ne_(0), |h| h.trap(h.arg(0))));
            h.complete(1_u32);
        }),
        OpcodeHandler::new(FALL_OFF, "fall_off", |_| ()),
        OpcodeHandler::new(COUNTDOWN, "countdown", |h| {
            h.if_(h.arg(0).eq_(0), |h| h.complete(h.arg(1)));
            h.requeue([h.arg(0) - 1, h.arg(1) + 1]);
        }),
        OpcodeHandler::new(SUM_LOCAL_IDS, "sum_local_ids", |h| {
            let sum = h.buffer("sum");
            let id = h.let_("id", Builtin::LocalId(Axis::X));
            h.if_(h.arg(0).eq_(100), |h| h.fault(100_u32));
            h.if_(h.arg(0).ne_(0), |h| h.requeue([h.arg(0) - 1]));
            h.if_(id.eq_(0), |h| h.atomic_store(sum, 0, 0));
            h.barrier();
            h.atomic_add(sum, 0, id);
            h.barrier();
            let total = h.atomic_load(sum, 0);
            h.complete(total);
        })
        .workgroup_buffer("sum", DataType::U32, 1)
        .granularity(Granularity::Workgroup),
        OpcodeHandler::new(LATE, "late", |h| {
            h.if_(h.arg(0).ne_(0), |h| h.requeue([h.arg(0) - 1]));
            // The first buffer of every item program, which handlers cannot name.
            let counters = Buffer { id: BufferId(0), element: DataType::U32, space: MemorySpace::Global };
            let epoch = h.atomic_load(counters, header::EPOCH);
            h.complete(epoch);
        }),
        OpcodeHandler::new(ECHO_OPCODE, "echo_opcode", |h| h.complete(h.opcode())),
    ]
}

/// The builder of the fixture, for a backend.
pub fn builder(backend: Arc<dyn VyreBackend>) -> Result<MegakernelBuilder, MegakernelError> {
    let limited: [SlotOpcode; 3] =
        [BuiltinOpcode::StoreU32.into(), BuiltinOpcode::PackedSlot.into(), ADD_ONE.into()];
    let mut classes = [0; 256];
    for (byte, class) in [(b'a', 1), (b'b', 2)] {
        if let Some(place) = classes.get_mut(usize::from(byte)) {
            *place = class;
        }
    }
    let tables = DfaTables::new(&[
        DfaTable { start: 0, classes: [0; 256], class_count: 1, transitions: vec![0], accepts: vec![3] },
        DfaTable {
            start: 0,
            classes,
            class_count: 3,
            transitions: vec![0, 1, 0, 0, 1, 2, 0, 1, 0],
            accepts: vec![9],
        },
    ])?;
    Ok(Megakernel::builder(backend)
        .slots(SLOTS)
        .workgroup_size(WORKGROUP_SIZE)
        .handlers(handlers())
        .tenant(0, TenantConfig::all().window(4, 16))
        .tenant(LIMITED, TenantConfig::permitting(limited).window(1, 4))
        .tenant(NO_WINDOW, TenantConfig::all().window(0, 0))
        .tenant(NO_QUOTA, TenantConfig::all().quota(0))
        .tenant(HUNDRED, TenantConfig::all().quota(100).window(1, 1))
        .dfa_tables(tables))
}
