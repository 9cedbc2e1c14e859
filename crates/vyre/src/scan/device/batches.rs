//! A megakernel without a session: each batch is one dispatch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vyre_driver::{BackendError, BufferDesc, BufferHandle, VyreBackend};
use vyre_foundation::DataType;
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{BatchDescriptor, DispatchOptions, Megakernel, MegakernelError};

use super::super::ScanOptions;
use super::super::chain::Outcome;
use super::super::error::ScanError;
use super::super::handler::{TABLES_BINDING, scan_handler};
use super::super::plan::Plan;
use super::super::stats::Occupancy;
use super::{BATCHES, DEADLINE, Item, in_order_of_length, payload_bytes, table_words, too_large};

/// Items of a dispatch, at least: a launch and its copies cost what thousands of bytes do.
const BATCH_ITEMS: usize = 4096;

/// Invocations of a workgroup. Items are as long as they are; small workgroups end together sooner.
const WORKGROUP: u32 = 64;

/// The bytes of a batch on the host, and where they go on the device.
pub(in super::super) struct Staged {
    bytes: Vec<u8>,
    /// Their first byte in the buffer of all payloads.
    offset: u32,
}

impl Staged {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn write(&mut self, at: u32, bytes: &[u8]) {
        let place = self.bytes.get_mut(at as usize..).and_then(|rest| rest.get_mut(..bytes.len()));
        if let Some(place) = place {
            place.copy_from_slice(bytes);
        }
    }
}

/// A megakernel, and a buffer with room for the payloads of all producers.
pub(in super::super) struct Batches {
    backend: Arc<dyn VyreBackend>,
    megakernel: Megakernel,
    payloads: BufferHandle,
    batch_items: usize,
    payload_bytes: u32,
    /// Payloads given out.
    given: AtomicU64,
    /// Items dispatched, in how many dispatches, and the most in one.
    sum: AtomicU64,
    looks: AtomicU64,
    most: AtomicU64,
}

impl Batches {
    pub(super) fn start(
        backend: Arc<dyn VyreBackend>,
        plan: &Plan,
        options: &ScanOptions,
    ) -> Result<Batches, ScanError> {
        let batch_items = BATCH_ITEMS.max(plan.groups().len()).next_multiple_of(WORKGROUP as usize);
        let too_large = |_| too_large(plan, options);
        let slots = u32::try_from(batch_items).map_err(too_large)?;
        let payload_bytes =
            u32::try_from(payload_bytes(batch_items).next_multiple_of(16)).map_err(too_large)?;
        // Offsets are words of a slot.
        let room = options.producers.saturating_mul(BATCHES).saturating_mul(payload_bytes as usize);
        let room = u32::try_from(room).map_err(too_large)?;
        let payloads = backend
            .create_buffer(&BufferDesc::new(PAYLOAD_BINDING, DataType::U8, room.into()))
            .map_err(backend_error("allocate the payloads"))?;
        let megakernel = Megakernel::builder(Arc::clone(&backend))
            .slots(slots)
            .workgroup_size(WORKGROUP)
            .handler(scan_handler())
            .bind_bytes(TABLES_BINDING, table_words(plan)?)
            .bind(PAYLOAD_BINDING, payloads.binding())
            .build()
            .map_err(ScanError::megakernel("build the megakernel"))?;
        Ok(Batches {
            backend,
            megakernel,
            payloads,
            batch_items,
            payload_bytes,
            given: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            most: AtomicU64::new(0),
        })
    }

    pub(super) fn batch_items(&self) -> usize {
        self.batch_items
    }

    /// Room for the bytes of a batch. There is as much as [`BATCHES`] for each producer, and it is not given
    /// back: producers keep theirs to the end.
    pub(super) fn payload(&self) -> Result<Staged, ScanError> {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let offset = number * u64::from(self.payload_bytes);
        if offset + u64::from(self.payload_bytes) > self.payloads.len {
            return Err(ScanError::NoRoom { after: std::time::Duration::ZERO });
        }
        // Less than the room, whose size is a `u32`.
        Ok(Staged { bytes: vec![0; self.payload_bytes as usize], offset: offset as u32 })
    }

    /// Dispatches items, and gives their outcomes in the order in which the items are given.
    pub(super) fn run(&self, payload: &Staged, items: &[Item]) -> Result<Vec<Outcome>, ScanError> {
        let used = items.iter().map(|item| item.offset + item.steps()).max().unwrap_or(0) as usize;
        let used = payload.bytes.get(..used).unwrap_or(&payload.bytes);
        self.backend
            .write_buffer(self.payloads, payload.offset.into(), used)
            .map_err(backend_error("upload a payload"))?;
        let order = in_order_of_length(items);
        let in_order = order.iter().filter_map(|&at| items.get(at as usize));
        let batch: BatchDescriptor = in_order.map(|item| item.slot(payload.offset)).collect();
        let mut buffers = self.megakernel.batch_buffers();
        buffers.ring.publish(0, &batch).map_err(ScanError::megakernel("publish a batch"))?;
        let options = DispatchOptions { deadline: DEADLINE, ..DispatchOptions::default() };
        self.megakernel.dispatch(&mut buffers, &options).map_err(ScanError::megakernel("run a batch"))?;
        let mut outcomes = vec![Outcome::default(); items.len()];
        for (slot, at) in order.into_iter().enumerate() {
            let done = buffers.ring.completion(slot).map_err(ScanError::megakernel("read a completion"))?;
            if let Some(fault) = done.as_fault() {
                let source = MegakernelError::Faulted { ticket: slot as u64, code: done.code, fault };
                return Err(ScanError::Megakernel { attempted: "run an item", source });
            }
            if let Some(outcome) = outcomes.get_mut(at as usize) {
                *outcome = Outcome::from_result(done.result);
            }
        }
        let count = items.len() as u64;
        self.sum.fetch_add(count, Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(count, Ordering::Relaxed);
        Ok(outcomes)
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let looks = self.looks.load(Ordering::Relaxed).max(1);
        Occupancy {
            slots: self.megakernel.slot_count().into(),
            mean: self.sum.load(Ordering::Relaxed) as f64 / looks as f64,
            most: self.most.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // It fails if the device is lost, and the memory with it.
        let _ = self.backend.destroy_buffer(self.payloads);
    }
}

fn backend_error(attempted: &'static str) -> impl Fn(BackendError) -> ScanError {
    move |source| ScanError::Megakernel { attempted, source: MegakernelError::Backend { attempted, source } }
}
