//! What the items of a soak compute, and what their answers have to be.

use vyre_foundation::{DataType, Granularity, MemorySpace};
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{HandlerBinding, OpcodeHandler};

/// Completes with its argument and its version; replaced while the session runs. May run twice.
pub(super) const VERSIONED: u32 = 0x40;
/// Completes with its argument plus one; may not run twice.
pub(super) const ONCE: u32 = 0x41;
/// Completes with its arguments' sum; may run twice.
pub(super) const SUM: u32 = 0x42;
/// Completes with a word of the table that is uploaded while the session runs. May run twice.
pub(super) const LOOK_UP: u32 = 0x43;
/// Writes a word of memory that is gone after a loss.
pub(super) const STORE: u32 = 0x44;
/// Completes with a word of that memory.
pub(super) const FETCH: u32 = 0x45;
/// Completes with the sum of its payload's bytes. May run twice.
pub(super) const SUM_PAYLOAD: u32 = 0x46;
/// Completes with a byte that was read from a file.
pub(super) const PEEK: u32 = 0x47;
/// There in every other version.
pub(super) const SOMETIMES: u32 = 0x48;

/// Bits of a result that hold the version.
pub(super) const VERSION_BITS: u32 = 12;
/// Bits of a word of the table that hold its index.
pub(super) const INDEX_BITS: u32 = 10;
/// Words of the table.
pub(super) const TABLE_WORDS: u32 = 1 << INDEX_BITS;
/// Words of memory that each producer writes.
pub(super) const SCRATCH_WORDS: u32 = 64;
/// Bytes that are read from a file.
pub(super) const LOADED_BYTES: u32 = 4096;
/// The names of the buffers.
pub(super) const TABLE: &str = "table";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const LOADED: &str = "loaded";

/// Every eighth version is run by a whole workgroup.
pub(super) fn versioned(version: u32) -> OpcodeHandler {
    let granularity = if version % 8 == 7 { Granularity::Workgroup } else { Granularity::Lane };
    OpcodeHandler::new(VERSIONED, format!("version_{version}"), move |h| {
        h.complete((h.arg(0) << VERSION_BITS) + version);
    })
    .granularity(granularity)
    .replayable(true)
}

pub(super) fn sometimes() -> OpcodeHandler {
    OpcodeHandler::new(SOMETIMES, "sometimes", |h| h.complete(h.arg(0)))
}

/// All but those of products.
pub(super) fn handlers() -> Vec<OpcodeHandler> {
    let scratch = || HandlerBinding::read_write(SCRATCH, DataType::U32);
    let table = HandlerBinding::read(TABLE, DataType::U32).min_len(TABLE_WORDS);
    // Items write into it what they have read, and after a loss the host's copy is as good.
    let loaded = HandlerBinding::read(LOADED, DataType::U8).min_len(LOADED_BYTES);
    let payload = HandlerBinding::read(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible);
    vec![
        versioned(0),
        OpcodeHandler::new(ONCE, "once", |h| h.complete(h.arg(0) + 1)),
        OpcodeHandler::new(SUM, "sum", |h| h.complete(h.arg(0) + h.arg(1) + h.arg(2))).replayable(true),
        OpcodeHandler::new(LOOK_UP, "look_up", |h| {
            let table = h.buffer(TABLE);
            h.complete(table.load(h.arg(0)));
        })
        .binding(table)
        .replayable(true),
        OpcodeHandler::new(STORE, "store", |h| {
            let scratch = h.buffer(SCRATCH);
            h.store(scratch, h.arg(0), h.arg(1));
            h.complete(h.arg(1));
        })
        .binding(scratch()),
        OpcodeHandler::new(FETCH, "fetch", |h| {
            let scratch = h.buffer(SCRATCH);
            h.complete(scratch.load(h.arg(0)));
        })
        .binding(scratch())
        .replayable(true),
        OpcodeHandler::new(SUM_PAYLOAD, "sum_payload", |h| {
            let bytes = h.buffer(PAYLOAD_BINDING);
            let sum = h.var_("sum", 0_u32);
            let end = h.arg(0) + h.arg(1);
            h.for_("at", h.arg(0), end, |h, at| h.assign(sum, sum + bytes.load(at)));
            h.complete(sum);
        })
        .binding(payload)
        .replayable(true),
        OpcodeHandler::new(PEEK, "peek", |h| {
            let bytes = h.buffer(LOADED);
            h.complete(bytes.load(h.arg(0)));
        })
        .binding(loaded)
        .replayable(true),
    ]
}

/// The table of one epoch of uploads.
pub(super) fn table(epoch: u32) -> Vec<u8> {
    (0..TABLE_WORDS).flat_map(|index| (epoch << INDEX_BITS | index).to_le_bytes()).collect()
}
