//! The opcode that steps a table over a piece of input, in IR.
//!
//! | argument | meaning |
//! |---|---|
//! | 0 | first byte in the payload buffer, warm-up included |
//! | 1 | bytes of warm-up |
//! | 2 | bytes behind it |
//! | 3 | table |
//! | 4 | state before the first byte |
//!
//! The result has the last state in bits 0 to 15, the state behind the warm-up in bits 16 to 31, and in bits
//! 32 to 63 the accept words of every state reached behind the warm-up, combined. A table that does not exist
//! faults. A state that does not, or a range past the end of the payload, is read as zeros: no harm is done,
//! and the answer means nothing.

use vyre_foundation::builder::Operand as _;
use vyre_foundation::{DataType, MemorySpace, ScalarType};
use vyre_runtime::dfa::ir::{Table, table_count};
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{HandlerBinding, OpcodeHandler};

/// The opcode.
pub const SCAN_OPCODE: u32 = 0x5CA0;

/// The buffer with the words of the [`DfaTables`](vyre_runtime::DfaTables).
pub const TABLES_BINDING: &str = "scan_tables";

/// The handler's fault code for a table that does not exist.
pub const NO_TABLE: u32 = 1;

/// The handler of [`SCAN_OPCODE`].
pub fn scan_handler() -> OpcodeHandler {
    OpcodeHandler::new(SCAN_OPCODE, "scan", |h| {
        let (tables, payload) = (h.buffer(TABLES_BINDING), h.buffer(PAYLOAD_BINDING));
        let id = h.arg(3);
        h.if_(id.clone().ge(table_count(tables)), |h| h.fault(NO_TABLE));
        let table = Table::load(h, tables, id);
        let row = h.var_("row", table.row_of(h.arg(4)));

        let begin = h.let_("begin", h.arg(0) + h.arg(1));
        h.for_("w", h.arg(0), begin, |h, at| h.assign(row, table.step(row, payload.load(at))));
        let border = h.let_("border", table.state_of(row));

        // Accepting is rare, so the common path is one comparison.
        let accepted = h.var_("accepted", 0_u32);
        let end = h.let_("end", begin + h.arg(2));
        h.for_("i", begin, end, |h, at| {
            h.assign(row, table.step(row, payload.load(at)));
            h.if_(table.is_accepting(row), |h| h.assign(accepted, accepted | table.accepted(row)));
        });
        let states = h.let_("states", table.state_of(row) | (border << 16));
        h.complete(states.cast(ScalarType::U64) | (accepted.cast(ScalarType::U64) << 32));
    })
    .replayable(true)
    .binding(HandlerBinding::read(TABLES_BINDING, DataType::U32))
    .binding(HandlerBinding::read(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible))
}
