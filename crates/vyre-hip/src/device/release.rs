//! Giving things back: now, or when no resident kernel runs any more.

use std::sync::Arc;

use vyre_driver::region::SharedRegion;

use super::context::{Context, Handle};
use super::stream::KeptAlive;
use crate::HipError;
use crate::api::Api;

/// Something of the library's that is to be given back.
#[derive(Debug)]
#[allow(dead_code, reason = "what is kept alive is dropped with this, and never read")]
pub(crate) enum Release {
    Device {
        address: Handle,
        bytes: u64,
    },
    Pinned {
        address: Handle,
    },
    /// The region is unmapped once the device has let it go.
    Registered {
        address: Handle,
        region: Arc<SharedRegion>,
    },
    Module(Handle),
    Event(Handle),
    Graph(Handle),
    Stream {
        handle: Handle,
        kept: KeptAlive,
    },
}

/// What waits to be given back, and how many holds there are.
#[derive(Debug, Default)]
pub(crate) struct Deferred {
    holds: usize,
    waiting: Vec<Release>,
}

/// While one lives, what is dropped is given back later, when the last hold goes.
///
/// Take one before the launch of a resident kernel and drop it after that has ended: freeing device or pinned
/// memory, unregistering, unloading and destroying a stream may wait for every stream, a resident kernel's
/// included. Nothing limits what waits: allocate before, rather than during, residency.
#[derive(Debug)]
pub struct ReleaseHold {
    context: Arc<Context>,
}

impl Context {
    /// Holds back all that is dropped from now on.
    pub fn hold_releases(self: &Arc<Self>) -> ReleaseHold {
        self.deferred().holds += 1;
        ReleaseHold { context: Arc::clone(self) }
    }

    /// Things that were dropped and wait for the last hold to go.
    pub fn releases_waiting(&self) -> usize {
        self.deferred().waiting.len()
    }

    /// Whether what is dropped now is given back later.
    pub(crate) fn is_holding(&self) -> bool {
        self.deferred().holds > 0
    }

    /// Gives something back, or remembers to. Failures are recorded: nobody is left to tell.
    pub(crate) fn release(&self, what: Release) {
        // Destroying an event waits for nothing.
        if !matches!(what, Release::Event(_)) {
            let mut deferred = self.deferred();
            if deferred.holds > 0 {
                deferred.waiting.push(what);
                return;
            }
        }
        self.release_now(what);
    }

    fn release_now(&self, what: Release) {
        if let Release::Device { bytes, .. } = what {
            self.count_freed(bytes);
        }
        // On a lost device every call fails, and the process's end is what frees.
        if self.lost().is_none()
            && let Err(error) = self.call(|api| give_back(api, &what))
        {
            tracing::warn!(device = self.info().ordinal, ?what, %error, "giving back failed");
        }
    }
}

fn give_back(api: &Api, what: &Release) -> Result<(), HipError> {
    match what {
        // SAFETY: each handle came from the matching call, was wrapped by one owner whose drop made this
        // value, and nothing on a stream uses it: streams keep what they use.
        Release::Device { address, .. } => unsafe { api.memory_free(address.0) },
        // SAFETY: as above.
        Release::Pinned { address } => unsafe { api.host_free(address.0) },
        // SAFETY: as above; the region is still mapped.
        Release::Registered { address, .. } => unsafe { api.host_unregister(address.0) },
        // SAFETY: as above.
        Release::Module(handle) => unsafe { api.module_unload(handle.0) },
        // SAFETY: as above.
        Release::Event(handle) => unsafe { api.event_destroy(handle.0) },
        // SAFETY: as above.
        Release::Graph(handle) => unsafe { api.graph_executable_destroy(handle.0) },
        // SAFETY: as above; what the stream still had to do was waited for, or keeps what it needs.
        Release::Stream { handle, .. } => unsafe { api.stream_destroy(handle.0) },
    }
}

impl Drop for ReleaseHold {
    fn drop(&mut self) {
        let waiting = {
            let mut deferred = self.context.deferred();
            deferred.holds = deferred.holds.saturating_sub(1);
            if deferred.holds > 0 {
                return;
            }
            std::mem::take(&mut deferred.waiting)
        };
        // Not under the lock: what a stream kept alive is dropped here too, and comes by again.
        for what in waiting {
            self.context.release_now(what);
        }
    }
}
