//! Batches in device memory.

use std::sync::Arc;

use vyre_driver::{BackendError, BufferBinding, BufferDesc, BufferHandle, Generation, VyreBackend};
use vyre_foundation::DataType;

use super::buffers::BatchBuffers;
use super::io::IO_WORDS;
use super::kernel::{RESUME_WORDS, WORK_WORDS};
use super::ring::{COMPLETION_BYTES, SLOT_BYTES};
use super::stats::DispatchStats;
use crate::error::MegakernelError;
use crate::state::{StateLayout, debug_log, header};

/// A batch whose buffers are on the device: dispatched again and again, it moves no bytes. Made by
/// [`Megakernel::upload`](crate::Megakernel::upload). It belongs to one device generation.
pub struct ResidentBatch {
    backend: Arc<dyn VyreBackend>,
    layout: StateLayout,
    slots: u32,
    generation: Generation,
    /// Control, ring, debug log, IO queue.
    tables: [BufferHandle; 4],
    resume: BufferHandle,
    work: Option<BufferHandle>,
}

impl ResidentBatch {
    /// Allocates; the tables are zero.
    pub(super) fn create(
        backend: &Arc<dyn VyreBackend>,
        layout: StateLayout,
        slots: u32,
        with_work: bool,
        stats: &mut DispatchStats,
    ) -> Result<ResidentBatch, BackendError> {
        let slot_count = u64::from(slots);
        let ring_words = slot_count * ((SLOT_BYTES + COMPLETION_BYTES) / 4) as u64;
        let mut wanted = vec![
            ("batch control", layout.control_words().into()),
            ("batch ring", ring_words),
            ("batch debug log", debug_log::WORDS.into()),
            ("batch IO queue", IO_WORDS as u64),
            ("batch arguments of items to resume", slot_count * u64::from(RESUME_WORDS)),
        ];
        if with_work {
            wanted.push(("batch work list", slot_count * u64::from(WORK_WORDS)));
        }
        let mut made = Made { backend, handles: Vec::new() };
        for (label, words) in wanted {
            let desc = BufferDesc::new(label, DataType::U32, words);
            made.handles.push(backend.create_buffer(&desc)?);
            stats.allocation_events += 1;
            stats.allocation_bytes += words * 4;
        }
        let handles = std::mem::take(&mut made.handles);
        let [control, ring, log, io, resume, work @ ..] = handles.as_slice() else {
            return Err(BackendError::invalid("handles", handles.len(), "one for each buffer"));
        };
        Ok(ResidentBatch {
            backend: Arc::clone(backend),
            layout,
            slots,
            generation: control.generation,
            tables: [*control, *ring, *log, *io],
            resume: *resume,
            work: work.first().copied(),
        })
    }

    /// How many slots it has.
    pub fn slot_count(&self) -> u32 {
        self.slots
    }

    /// The device generation it belongs to.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Device buffers it consists of.
    pub(super) fn handle_count(&self) -> u32 {
        5 + u32::from(self.work.is_some())
    }

    pub(super) fn fits(&self, layout: StateLayout, slots: u32) -> bool {
        self.layout == layout && self.slots == slots
    }

    /// Copies a batch in; `limit` is how many of its slots run.
    pub(super) fn write(&self, from: &BatchBuffers, stats: &mut DispatchStats) -> Result<(), BackendError> {
        let limit = from.ring.limit().to_le_bytes();
        let [control, ring, log, io] = self.tables;
        for (handle, offset, bytes) in [
            (control, 0, from.control.as_bytes()),
            (control, u64::from(header::LIMIT) * 4, &limit),
            (ring, 0, from.ring.as_bytes()),
            (log, 0, from.debug_log.as_bytes()),
            (io, 0, from.io_queue.as_bytes()),
        ] {
            self.backend.write_buffer(handle, offset, bytes)?;
            stats.input_bytes += bytes.len() as u64;
            stats.moved_bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// Copies all four tables out.
    pub(super) fn read(
        &self,
        into: &mut BatchBuffers,
        stats: &mut DispatchStats,
    ) -> Result<(), BackendError> {
        let [control, ring, log, io] = self.tables;
        for (handle, bytes) in [
            (control, &mut into.control.bytes),
            (ring, &mut into.ring.bytes),
            (log, &mut into.debug_log.bytes),
            (io, &mut into.io_queue.bytes),
        ] {
            self.backend.read_buffer(handle, 0, bytes)?;
            stats.readback_bytes += bytes.len() as u64;
            stats.moved_bytes += bytes.len() as u64;
        }
        into.io_queue.asked_in = Some(self.generation);
        Ok(())
    }

    /// What a kernel binds for an item, user bindings apart.
    pub(super) fn system_bindings(&self, dfa_tables: BufferHandle) -> [BufferBinding; 6] {
        let [control, _, log, _] = self.tables;
        let layout = self.layout;
        let part = |first: u32, words: u32| control.slice(first.into(), words.into());
        [
            part(0, layout.counters_words()),
            part(layout.tenants_offset(), layout.tenants_words()),
            part(layout.usage_offset(), layout.usage_words()),
            part(layout.windows_offset(), layout.windows_words()),
            log.binding(),
            dfa_tables.binding(),
        ]
    }

    /// What a kernel binds beside that, with the launch's mode.
    pub(super) fn batch_bindings(&self, mode: BufferHandle) -> impl Iterator<Item = BufferBinding> {
        let [_, ring, _, io] = self.tables;
        let slot_words = u64::from(self.slots) * (SLOT_BYTES / 4) as u64;
        let completion_words = u64::from(self.slots) * (COMPLETION_BYTES / 4) as u64;
        let fixed = [
            ring.slice(0, slot_words),
            ring.slice(slot_words, completion_words),
            io.binding(),
            mode.binding(),
            self.resume.binding(),
        ];
        fixed.into_iter().chain(self.work.map(BufferHandle::binding))
    }
}

impl Drop for ResidentBatch {
    fn drop(&mut self) {
        destroy(&self.backend, self.tables.into_iter().chain([self.resume]).chain(self.work));
    }
}

/// Buffers made so far, given back unless the rest is made as well.
struct Made<'b> {
    backend: &'b Arc<dyn VyreBackend>,
    handles: Vec<BufferHandle>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        destroy(self.backend, self.handles.drain(..));
    }
}

/// Gives buffers back. Those of a lost device are gone already, so a refusal is no news.
pub(crate) fn destroy(backend: &Arc<dyn VyreBackend>, handles: impl IntoIterator<Item = BufferHandle>) {
    for handle in handles {
        if let Err(error) = backend.destroy_buffer(handle) {
            tracing::debug!(buffer = handle.id, %error, "a buffer was not given back");
        }
    }
}

impl std::fmt::Debug for ResidentBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResidentBatch")
            .field("slots", &self.slots)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Whether the error says that the batch is of an older generation than the device.
pub(super) fn stale(batch: &ResidentBatch, current: Generation) -> Result<(), MegakernelError> {
    if batch.generation == current {
        return Ok(());
    }
    Err(MegakernelError::Stale {
        what: "resident batch",
        generation: batch.generation,
        current,
        remedy: "upload it again",
    })
}
