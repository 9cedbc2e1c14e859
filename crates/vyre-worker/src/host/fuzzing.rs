//! Messages without processes, for the fuzz targets.

use std::sync::Arc;

use vyre_driver::{BackendError, Generation, VyreBackend};

use super::message::{Answer, Reply, Request, decode, encode};
use super::service::{Descriptors, Service};
use crate::wire::{ArenaView, TransferArena};

/// A host's service with an arena of its own.
pub struct Host {
    service: Service,
    _arena: TransferArena,
}

impl Host {
    /// Hosts a backend here.
    pub fn new(backend: Arc<dyn VyreBackend>, arena_bytes: u64) -> Option<Host> {
        let arena = TransferArena::create(arena_bytes).ok()?;
        let fd = arena.fd().try_clone_to_owned().ok()?;
        let view = ArenaView::attach(fd, arena.capacity()).ok()?;
        Some(Host { service: Service::new(backend, view), _arena: arena })
    }

    /// Serves a request, if that is what the bytes are; whether the answer survives its own encoding.
    pub fn request(&self, bytes: &[u8]) -> bool {
        let Ok(request) = decode::<Request>(bytes) else { return true };
        let answer = self.service.serve(request, Descriptors::new());
        self.service.report();
        encode(&answer).is_ok_and(|bytes| decode::<Answer>(&bytes).is_ok())
    }
}

/// What a parent makes of an answer: the error of a backend, if it is one.
pub fn answer(bytes: &[u8]) -> Option<BackendError> {
    match decode::<Answer>(bytes).ok()? {
        Ok(Reply::Attached(description)) => {
            let _ = description.read();
            None
        }
        Ok(_) => None,
        Err(failure) => Some(failure.into_error(Generation(1))),
    }
}
