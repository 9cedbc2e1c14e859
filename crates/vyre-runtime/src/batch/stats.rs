//! What a dispatch measured.

use std::time::Duration;

/// What a dispatch did, counted and timed as it was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DispatchStats {
    /// Bytes copied to the device.
    pub input_bytes: u64,
    /// Bytes handed to the caller in output buffers.
    pub output_bytes: u64,
    /// Bytes copied from the device.
    pub readback_bytes: u64,
    /// Bytes copied either way.
    pub moved_bytes: u64,
    /// Bytes of device memory allocated.
    pub allocation_bytes: u64,
    /// Device allocations.
    pub allocation_events: u32,
    /// From the call to its answer.
    pub latency: Duration,
    /// Of that, running kernels, as the backend measured it.
    pub device_time: Duration,
    /// Output buffers handed to the caller.
    pub output_buffers: u32,
    /// Slots that were on the device already.
    pub resident_rows: u32,
    /// Device buffers bound that were there already.
    pub resident_handles: u32,
    /// Kernels launched.
    pub launches: u32,
    /// Times that the host waited for the device.
    pub sync_points: u32,
    /// Whether the device was lost and the dispatch ran again on the next one.
    pub recovered: bool,
}
