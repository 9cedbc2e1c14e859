//! A megakernel for tests of sessions: handlers that are quick, that fault, and that run until told.

#![allow(dead_code, unreachable_pub, reason = "not every test uses all of it")]

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_foundation::builder::Operand;
use vyre_foundation::{DataType, MemorySpace};
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{
    Backing, HandlerBinding, Megakernel, MegakernelBuilder, OpcodeHandler, PersistentSession, SlotDescriptor,
};

/// Completes with `a0 + 1`. Replayable.
pub const ADD_ONE: u32 = 0x40;
/// Traps with `a0`.
pub const TRAP: u32 = 0x41;
/// Runs until word `a0` of `gates` is not 0, then completes with `a1`. Replayable.
pub const GATED: u32 = 0x42;
/// The sum of the bytes of `table`, host-backed. Replayable.
pub const SUM_TABLE: u32 = 0x43;
/// The sum of `a1` bytes of the payload arena from `a0` on. Replayable.
pub const SUM_PAYLOAD: u32 = 0x44;
/// Adds `a0` to the only word of `total`, volatile; completes with the sum. Declared replayable.
pub const TOTAL: u32 = 0x45;
/// The same as [`GATED`], not replayable.
pub const GATED_ONCE: u32 = 0x46;

/// Longer than anything may take.
pub const WAIT: Duration = Duration::from_secs(20);

fn gated(opcode: u32, name: &str) -> OpcodeHandler {
    OpcodeHandler::new(opcode, name, |h| {
        let gates = h.buffer("gates");
        let open = h.var_("open", 0_u32);
        h.while_(open.eq_(0), |h| {
            let seen = h.atomic_load(gates, h.arg(0));
            h.assign(open, seen);
        });
        h.complete(h.arg(1));
    })
    .binding(HandlerBinding::read("gates", DataType::U32).in_space(MemorySpace::HostVisible))
}

fn handlers() -> Vec<OpcodeHandler> {
    let table = HandlerBinding::read("table", DataType::U8).min_len(16);
    let payload = HandlerBinding::read(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible);
    let total = HandlerBinding::read_write("total", DataType::U32).min_len(1);
    assert_eq!(total.backing, Backing::Volatile);
    vec![
        OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)).replayable(true),
        OpcodeHandler::new(TRAP, "trap_", |h| h.trap(h.arg(0))),
        gated(GATED, "gated").replayable(true),
        gated(GATED_ONCE, "gated_once"),
        OpcodeHandler::new(SUM_TABLE, "sum_table", |h| {
            let table = h.buffer("table");
            let sum = h.var_("sum", 0_u32);
            h.for_("at", 0, table.len(), |h, at| h.assign(sum, sum + table.load(at)));
            h.complete(sum);
        })
        .binding(table)
        .replayable(true),
        OpcodeHandler::new(SUM_PAYLOAD, "sum_payload", |h| {
            let payload = h.buffer(PAYLOAD_BINDING);
            let sum = h.var_("sum", 0_u32);
            h.for_("at", h.arg(0), h.arg(0) + h.arg(1), |h, at| h.assign(sum, sum + payload.load(at)));
            h.complete(sum);
        })
        .binding(payload)
        .replayable(true),
        OpcodeHandler::new(TOTAL, "total_", |h| {
            let total = h.buffer("total");
            let before = h.atomic_add(total, 0, h.arg(0));
            h.complete(before + h.arg(0));
        })
        .binding(total)
        .replayable(true),
    ]
}

/// 64 slots, all handlers, eight gates, all closed.
pub fn builder(backend: Arc<dyn VyreBackend>) -> MegakernelBuilder {
    Megakernel::builder(backend).slots(64).workgroup_size(32).handlers(handlers()).bind_zeroed("gates", 8)
}

/// An item.
pub fn item(opcode: u32, args: &[u32]) -> SlotDescriptor {
    SlotDescriptor::new(opcode).args(args)
}

/// Opens or closes a gate of a running session.
pub fn set_gate(session: &PersistentSession, gate: u32, open: bool) {
    let word = u32::from(open).to_le_bytes();
    session.upload("gates", u64::from(gate) * 4, &word).expect("the gates are bound");
}

/// Waits until a gated item was claimed: it is on a worker, or everything the ring holds is.
pub fn until_claimed(session: &PersistentSession, items: u64) {
    let started = std::time::Instant::now();
    while session.telemetry().occupancy.claimed < items {
        assert!(started.elapsed() < WAIT, "not claimed: {:?}", session.telemetry());
        std::thread::yield_now();
    }
}
