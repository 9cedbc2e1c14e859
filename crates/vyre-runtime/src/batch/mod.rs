//! Batch dispatch: four buffers of bytes in, the same four out.
//!
//! * **control**: counters with their header, tenant table, usage, windows ([`crate::state`]).
//! * **ring**: `n` slots of 64 bytes, then `n` completions of 16, in the layout of a ring's first lap.
//! * **debug log**: 257 words.
//! * **IO queue**: 64 requests of 32 bytes, then 64 replies of 16; omitted, it is an empty one.
//!
//! A dispatch runs every slot that is published and not finished, and returns when nothing is left that can
//! run: it needs no SHUTDOWN slot, and a deadline bounds it. Slots behind a SHUTDOWN of tenant 0 do not run.
//! Items that wait for the host stay in WAIT_IO, and so do fences behind them: serve the requests in the IO
//! queue, and dispatch again.
//!
//! One launch is one pass: every invocation goes through its share of the slots once. A fence whose
//! predecessors have not finished, and an item that asked to be run again, wait for the next pass. Whether
//! there must be one, the kernel tells by ending in a trap of its own, so that nothing has to be read back.
//!
//! Absent on purpose: what an item means ([`crate::item`]), and feeding a kernel while it runs (sessions).

mod buffers;
mod control;
mod device;
mod dispatch;
mod io;
mod kernel;
pub(crate) mod ring;
mod stats;
#[cfg(test)]
mod tests;

pub use buffers::{BatchBuffers, DebugLogBuffer};
pub use control::{ControlBuffer, TenantUsage};
pub use device::ResidentBatch;
pub use dispatch::{BatchTarget, DispatchOptions};
pub use io::{IO_ENTRIES, IoQueueBuffer};
pub use ring::{BatchCompletion, COMPLETION_BYTES, RingBuffer, SLOT_BYTES};
pub use stats::DispatchStats;

pub(crate) use device::destroy;
pub(crate) use dispatch::{BatchPipelines, BatchPrograms};

/// Slots of a batch at most, so that every word of its ring has a 32-bit index.
pub const MAX_BATCH_SLOTS: u32 = 1 << 24;

/// Reads a little-endian word; 0 past the end.
#[inline]
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at * 4..).and_then(|rest| rest.first_chunk()) {
        Some(word) => u32::from_le_bytes(*word),
        None => 0,
    }
}

/// Writes a little-endian word; nothing past the end.
pub(crate) fn set_word(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(word) = bytes.get_mut(at * 4..).and_then(|rest| rest.first_chunk_mut()) {
        *word = value.to_le_bytes();
    }
}

/// Words as bytes.
pub(crate) fn to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
