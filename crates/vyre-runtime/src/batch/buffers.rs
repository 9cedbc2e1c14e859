//! The four buffers of a batch.

use super::control::ControlBuffer;
use super::io::IoQueueBuffer;
use super::ring::RingBuffer;
use super::word;
use crate::debug_log::DebugLog;
use crate::error::MegakernelError;
use crate::item::HandlerTable;
use crate::state::{StateLayout, debug_log};
use crate::tenant::TenantTable;

/// The bytes of a batch's debug log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLogBuffer {
    pub(super) bytes: Vec<u8>,
}

impl Default for DebugLogBuffer {
    /// No records.
    fn default() -> DebugLogBuffer {
        DebugLogBuffer { bytes: vec![0; debug_log::WORDS as usize * 4] }
    }
}

impl DebugLogBuffer {
    /// Takes bytes.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] unless they are exactly as many.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<DebugLogBuffer, MegakernelError> {
        let expected = debug_log::WORDS as usize * 4;
        if bytes.len() != expected {
            return Err(MegakernelError::MalformedBuffer {
                buffer: "debug log",
                got: format!("{} bytes", bytes.len()),
                expected: format!("{expected} bytes"),
                remedy: "give a cursor and 64 records of four words",
            });
        }
        Ok(DebugLogBuffer { bytes })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// The words.
    pub fn words(&self) -> Vec<u32> {
        (0..debug_log::WORDS as usize).map(|at| word(&self.bytes, at)).collect()
    }
}

/// What a batch is dispatched over, and what it leaves behind. Made by
/// [`Megakernel::batch_buffers`](crate::Megakernel::batch_buffers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchBuffers {
    /// Counters, tenants, usage, windows.
    pub control: ControlBuffer,
    /// Slots and completions.
    pub ring: RingBuffer,
    /// What PRINTF items said.
    pub debug_log: DebugLogBuffer,
    /// What items ask of the host.
    pub io_queue: IoQueueBuffer,
}

impl BatchBuffers {
    /// Tenants as configured, and zeros.
    pub(super) fn empty(
        layout: StateLayout,
        tenants: &TenantTable,
        handlers: &HandlerTable,
        slots: u32,
    ) -> BatchBuffers {
        BatchBuffers {
            control: ControlBuffer::new(layout, tenants, handlers, slots),
            ring: RingBuffer::empty(slots),
            debug_log: DebugLogBuffer::default(),
            io_queue: IoQueueBuffer::default(),
        }
    }

    /// Takes the bytes of all four; without an IO queue, an empty one.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`].
    pub fn from_bytes(
        layout: StateLayout,
        slots: u32,
        control: Vec<u8>,
        ring: Vec<u8>,
        debug_log: Vec<u8>,
        io_queue: Option<Vec<u8>>,
    ) -> Result<BatchBuffers, MegakernelError> {
        Ok(BatchBuffers {
            control: ControlBuffer::from_bytes(layout, slots, control)?,
            ring: RingBuffer::from_bytes(slots, ring)?,
            debug_log: DebugLogBuffer::from_bytes(debug_log)?,
            io_queue: io_queue.map_or_else(|| Ok(IoQueueBuffer::default()), IoQueueBuffer::from_bytes)?,
        })
    }

    /// What PRINTF items said, and how many found the log full.
    pub fn debug_log(&self) -> DebugLog {
        DebugLog::decode(&self.debug_log.words(), self.control.log_lost().into())
    }
}
