//! A store and a later load that may not change places, where one side is rare.
//!
//! A thread that submits an item has published it and looks at the gate; whoever closes the gate has stored that and
//! looks for items. Each needs a full barrier between the two. That of every submission would wait until the device has
//! let go of the slot's cache line, a tenth of a microsecond. `membarrier` (Linux 4.14) has the rare side pay for both:
//! it runs a full barrier on every core that runs a thread of this process. Where the kernel has none, both sides fence.

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

use rustix::thread::{MembarrierCommand, membarrier};

/// Whether the rare side pays. The same answer to all, from the first call on.
fn rare_side_pays() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok())
}

/// Between the store and the load of the frequent side.
#[inline]
pub(super) fn light() {
    if rare_side_pays() { compiler_fence(Ordering::SeqCst) } else { fence(Ordering::SeqCst) }
}

/// Between the store and the load of the rare side.
pub(super) fn heavy() {
    fence(Ordering::SeqCst);
    if rare_side_pays() && membarrier(MembarrierCommand::PrivateExpedited).is_err() {
        // It is registered, so the kernel has taken back what it promised.
        tracing::error!("membarrier is refused: an item submitted at this moment may wait for its deadline");
    }
}
