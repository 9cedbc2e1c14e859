//! Polling with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::DeviceError;

/// A kernel of microseconds is seen at once ...
const SPIN: Duration = Duration::from_micros(100);
/// ... one of a millisecond costs the thread its time slice ...
const YIELD: Duration = Duration::from_millis(1);
/// ... and a longer one sleeps between looks.
const SLEEP: Duration = Duration::from_micros(50);

/// Looks until `ready`, or until `timeout` has passed. Looks at least once.
pub(super) fn poll(
    timeout: Duration,
    waited_for: impl FnOnce() -> String,
    mut ready: impl FnMut() -> Result<bool, DeviceError>,
) -> Result<(), DeviceError> {
    let start = Instant::now();
    loop {
        if ready()? {
            return Ok(());
        }
        let waited = start.elapsed();
        if waited >= timeout {
            return Err(DeviceError::Deadline { waited_for: waited_for(), after: timeout });
        }
        if waited < SPIN {
            std::hint::spin_loop();
        } else if waited < YIELD {
            thread::yield_now();
        } else {
            thread::sleep(SLEEP.min(timeout - waited));
        }
    }
}
