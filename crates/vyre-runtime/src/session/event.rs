//! A descriptor that tells an event loop of completions.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::shared::{Shared, ring_error};
use super::ticket::Ticket;
use super::wakers::Registration;
use crate::error::MegakernelError;

/// An eventfd for `poll`, `epoll` and io_uring: readable from the moment that one of the tickets given to
/// [`watch`](Self::watch) is answered until [`clear`](Self::clear) is called.
///
/// It says how many were answered and not which: [`take`](super::PersistentSession::take) tells, ticket by
/// ticket. Dropping it closes it once the tickets watched are answered.
pub struct CompletionFd {
    shared: Arc<Shared>,
    event: Arc<Event>,
}

struct Event(OwnedFd);

impl Wake for Event {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It would block only past 2^64 - 2 completions, and it is readable then.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl CompletionFd {
    pub(super) fn new(shared: &Arc<Shared>) -> Result<CompletionFd, MegakernelError> {
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let fd = made.map_err(|errno| MegakernelError::Descriptor { source: errno.into() })?;
        Ok(CompletionFd { shared: Arc::clone(shared), event: Arc::new(Event(fd)) })
    }

    /// Has the descriptor count this ticket when it is answered, or at once if it is. A ticket that is taken or
    /// dropped before counts too.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Ring`] for a ticket of another session, or one already taken.
    pub fn watch(&self, ticket: &Ticket) -> Result<(), MegakernelError> {
        self.shared.rings.of(ticket.raw).poll_raw(ticket.raw).map_err(ring_error("watch a ticket"))?;
        let waker = Waker::from(Arc::clone(&self.event));
        let context = Context::from_waker(&waker);
        // Never forgotten: it is struck off when the descriptor has been told.
        let mut registration = Registration::default();
        match self.shared.poll_answered(&mut registration, ticket.key(), None, &context) {
            Poll::Pending => Ok(()),
            Poll::Ready(answered) => answered.map(|()| waker.wake_by_ref()),
        }
    }

    /// How many of the tickets were answered since the last call, or none. It is readable no more.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::Descriptor`] if the descriptor cannot be read.
    pub fn clear(&self) -> Result<u64, MegakernelError> {
        let mut count = [0; 8];
        match rustix::io::read(&self.event.0, &mut count) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(MegakernelError::Descriptor { source: io::Error::from(errno) }),
        }
    }
}

impl AsFd for CompletionFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.0.as_fd()
    }
}

impl std::fmt::Debug for CompletionFd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompletionFd").field("session", &self.shared.id).finish_non_exhaustive()
    }
}
