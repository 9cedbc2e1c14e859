//! What the built-in opcodes compute.

use vyre_driver::protocol::io;
use vyre_driver::{Fault, Status};
use vyre_foundation::ScalarType;
use vyre_foundation::builder::{Operand, Value, Var};

use super::buffers::ItemBuffers;
use crate::dfa;
use crate::handler::HandlerBuilder;
use crate::opcode::BuiltinOpcode;
use crate::state::{debug_log, header, tenant_row};

/// Writes the body of a built-in opcode; the tenant exists and is permitted to use it.
pub(super) fn write(builtin: BuiltinOpcode, h: &mut HandlerBuilder<'_>, buffers: &ItemBuffers) {
    match builtin {
        BuiltinOpcode::Nop => h.complete(0_u64),
        BuiltinOpcode::StoreU32 => {
            let at = state_word(h, buffers, 1);
            let old = h.atomic_exchange(buffers.windows, at, h.arg(0));
            h.complete(old);
        }
        BuiltinOpcode::AtomicAdd => {
            let at = state_word(h, buffers, 1);
            let old = h.atomic_add(buffers.windows, at, h.arg(0));
            h.complete(old);
        }
        BuiltinOpcode::LoadU32 => {
            let window = Window::of_tenant(h, buffers);
            refuse_unless(h, h.arg(1).lt(window.observables));
            refuse_unless(h, h.arg(0).lt(window.states));
            let value = h.atomic_load(buffers.windows, window.state + h.arg(0));
            h.atomic_store(buffers.windows, window.observable + h.arg(1), value);
            h.complete(value);
        }
        BuiltinOpcode::CompareSwap => {
            let at = state_word(h, buffers, 0);
            let old = h.atomic_compare_exchange(buffers.windows, at, h.arg(1), h.arg(2));
            h.complete(old);
        }
        BuiltinOpcode::Memcpy => memcpy(h, buffers),
        BuiltinOpcode::DfaStep => dfa_step(h, buffers),
        BuiltinOpcode::BatchFence => {
            let window = Window::of_tenant(h, buffers);
            refuse_unless(h, window.observables.ne_(0));
            let epoch = h.atomic_add(buffers.counters, header::EPOCH, 1);
            h.atomic_store(buffers.windows, window.observable, h.arg(1));
            h.complete(epoch + 1);
        }
        // The words of the request: operation, source, destination, offset, bytes, and the prefetch flag.
        BuiltinOpcode::LoadMiss => h.outcome_with(
            Status::WaitIo,
            [Value::from(io::READ), h.arg(0), h.arg(2), h.arg(3), h.arg(4), h.arg(5), h.arg(1)],
        ),
        BuiltinOpcode::Printf => printf(h, buffers),
        BuiltinOpcode::Shutdown => {
            h.if_(h.tenant().ne_(0), |h| h.fault_as(Fault::Permission));
            h.complete(0_u64);
        }
        // Taken apart before any handler runs; inside another packed slot it has no opcode.
        BuiltinOpcode::PackedSlot => h.fault_as(Fault::BadPacking),
    }
}

/// A tenant's window: first words and lengths.
struct Window {
    observable: Var,
    observables: Var,
    state: Var,
    states: Var,
}

impl Window {
    fn of_tenant(h: &mut HandlerBuilder<'_>, buffers: &ItemBuffers) -> Window {
        let row = h.let_("row", h.tenant() * tenant_row::WORDS);
        let observable = h.let_("observable", buffers.tenants.load(row + tenant_row::WINDOW));
        let observables = h.let_("observables", buffers.tenants.load(row + tenant_row::OBSERVABLE));
        let state = h.let_("state", observable + observables);
        let states = h.let_("states", buffers.tenants.load(row + tenant_row::STATE));
        Window { observable, observables, state, states }
    }
}

fn refuse_unless(h: &mut HandlerBuilder<'_>, condition: Value) {
    h.if_(!condition, |h| h.fault_as(Fault::Bounds));
}

/// The word of the tenant's state that argument `arg` names; faults the item if there is none.
fn state_word(h: &mut HandlerBuilder<'_>, buffers: &ItemBuffers, arg: usize) -> Value {
    let window = Window::of_tenant(h, buffers);
    refuse_unless(h, h.arg(arg).lt(window.states));
    window.state + h.arg(arg)
}

fn memcpy(h: &mut HandlerBuilder<'_>, buffers: &ItemBuffers) {
    let window = Window::of_tenant(h, buffers);
    let (source, target, words) = (h.arg(0), h.arg(1), h.arg(2));
    refuse_unless(h, (&words).le(window.states));
    let last = h.let_("last", window.states - &words);
    refuse_unless(h, (&source).le(last) & (&target).le(last));
    let from = h.let_("from", window.state + &source);
    let to = h.let_("to", window.state + &target);
    let windows = buffers.windows;
    // Like memmove: what is overwritten has been read before.
    h.if_else(
        to.le(from),
        |h| h.for_("i", 0, &words, |h, i| h.store(windows, to + i, windows.load(from + i))),
        |h| {
            h.for_("i", 0, &words, |h, i| {
                let back = h.let_("back", &words - 1 - i);
                h.store(windows, to + back, windows.load(from + back));
            });
        },
    );
    h.complete(words);
}

fn dfa_step(h: &mut HandlerBuilder<'_>, buffers: &ItemBuffers) {
    let (table, state, byte) = (h.arg(0), h.arg(1), h.arg(2));
    refuse_unless(h, table.clone().lt(dfa::ir::table_count(buffers.dfa_tables)));
    let table = dfa::ir::Table::load(h, buffers.dfa_tables, table);
    refuse_unless(h, state.clone().lt(table.states) & byte.clone().lt(256));
    let row = h.let_("state_row", table.row_of(state));
    let next = h.let_("next_row", table.step(row, byte));
    let accepted = h.let_("accepted", table.accepted(next));
    let result = table.state_of(next).cast(ScalarType::U64) | (accepted.cast(ScalarType::U64) << 32);
    h.complete(result);
}

fn printf(h: &mut HandlerBuilder<'_>, buffers: &ItemBuffers) {
    let log = buffers.debug_log;
    // Looked at before it is raised, so that it stays near the capacity and never comes round again.
    let seen = h.atomic_load(log, debug_log::CURSOR);
    h.if_(seen.lt(debug_log::CAPACITY), |h| {
        let record = h.atomic_add(log, debug_log::CURSOR, 1);
        h.if_(record.lt(debug_log::CAPACITY), |h| {
            let at = h.let_("at", record * debug_log::RECORD_WORDS + debug_log::RECORDS);
            let ticket = h.ticket().cast(ScalarType::U32);
            for (word, value) in (0_u32..).zip([h.arg(0), h.arg(1), h.arg(2), ticket]) {
                h.store(log, at + word, value);
            }
            h.complete(1_u64);
        });
    });
    h.atomic_add(buffers.counters, header::LOG_LOST, 1);
    h.complete(0_u64);
}
