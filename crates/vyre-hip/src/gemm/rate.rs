//! How fast a device copies its own memory.

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::BackendError;

use crate::device::{Context, DeviceMemory, Event, Stream, StreamPriority};

/// Bytes to copy at most: many times what a cache holds.
const MOST: u64 = 1 << 30;
const COPIES: usize = 9;
const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes a second that a large copy on the device moves, each byte counted as read and as written; the median
/// of some.
///
/// # Errors
///
/// What the device answers.
pub fn copy_rate(context: &Arc<Context>) -> Result<f64, BackendError> {
    let bytes = (context.memory_use()?.free / 8).clamp(1, MOST);
    let [from, to] =
        ["a copy's source", "a copy's target"].map(|what| DeviceMemory::new(context, what, bytes));
    let (from, to) = (from?, to?);
    let stream = Stream::new(context, StreamPriority::Normal)?;
    stream.fill(&from, 0, bytes, 1)?;
    stream.copy_on_device(&to, 0, &from, 0, bytes)?;
    let mut times = Vec::with_capacity(COPIES);
    for _ in 0..COPIES {
        let [start, end] = [Event::new(context)?, Event::new(context)?];
        start.record(&stream)?;
        stream.copy_on_device(&to, 0, &from, 0, bytes)?;
        end.record(&stream)?;
        stream.wait(DEADLINE)?;
        times.push(end.elapsed_since(&start)?);
    }
    times.sort_unstable();
    let median = times.get(COPIES / 2).map_or(0.0, Duration::as_secs_f64);
    Ok(if median > 0.0 { 2.0 * bytes as f64 / median } else { 0.0 })
}
