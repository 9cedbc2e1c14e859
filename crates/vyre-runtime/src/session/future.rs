//! Tickets, windows and drains as futures.

use std::borrow::Borrow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use vyre_driver::ring::Completion;

use super::shared::Shared;
use super::ticket::Ticket;
use super::wakers::{Registration, moment_after};
use super::window::Borrowed;
use crate::error::MegakernelError;

/// When to give up, and what that is called then.
#[derive(Clone, Copy, Debug)]
struct Deadline {
    until: Instant,
    after: Duration,
}

impl Deadline {
    fn new(after: Duration) -> Option<Deadline> {
        Some(Deadline { until: moment_after(after)?, after })
    }

    fn has_passed(self) -> bool {
        Instant::now() >= self.until
    }
}

/// The answer of one item, as a future: what [`wait`](super::PersistentSession::wait) is to a thread. Made by
/// awaiting a [`Ticket`], or a reference to one.
///
/// It needs no reactor and no particular executor: a thread of the session wakes it, within 100 us where a
/// device completes the item. It never stays pending for good, because every ticket is answered: after a
/// device loss or a stop it ends in the fault that says so.
///
/// Dropping the future of a ticket forgets the item, which still runs: [cancel](Ticket::cancel) the ticket first if
/// it need not. Dropping the future of a *reference* leaves the ticket as good as before.
///
/// ```
/// # use std::sync::Arc;
/// # use std::task::{Context, Poll, Waker};
/// # use vyre_runtime::{Megakernel, MegakernelError, OpcodeHandler, SlotDescriptor};
/// # let megakernel = Megakernel::builder(Arc::new(vyre_cpu::CpuBackend::new()))
/// #     .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)))
/// #     .build()?;
/// let session = megakernel.start()?;
/// let sum = async {
///     let first = session.submit(SlotDescriptor::new(0x40).args([7]))?;
///     let second = session.submit(SlotDescriptor::new(0x40).args([8]))?;
///     Ok::<u64, MegakernelError>(first.await?.result() + second.await?.result())
/// };
/// # let mut sum = std::pin::pin!(sum);
/// # let sum = loop {
/// #     if let Poll::Ready(sum) = sum.as_mut().poll(&mut Context::from_waker(Waker::noop())) { break sum };
/// # };
/// assert_eq!(sum?, 17);
/// # Ok::<(), MegakernelError>(())
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct TicketFuture<T: Borrow<Ticket> = Ticket> {
    ticket: T,
    deadline: Option<Deadline>,
    registration: Registration,
}

impl<T: Borrow<Ticket>> TicketFuture<T> {
    fn new(ticket: T) -> TicketFuture<T> {
        TicketFuture { ticket, deadline: None, registration: Registration::default() }
    }

    /// Gives up `timeout` from now, with [`MegakernelError::Deadline`].
    pub fn within(mut self, timeout: Duration) -> TicketFuture<T> {
        self.deadline = Deadline::new(timeout);
        self
    }
}

impl<T: Borrow<Ticket> + Unpin> Future for TicketFuture<T> {
    /// As [`wait`](super::PersistentSession::wait): a fault is an error.
    type Output = Result<Completion, MegakernelError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let TicketFuture { ticket, deadline, registration } = self.get_mut();
        let Ticket { shared, raw, .. } = (*ticket).borrow();
        loop {
            if let Some(completion) = shared.take(*raw)? {
                shared.wakers.forget(registration);
                return Poll::Ready(shared.refuse_fault(*raw, completion));
            }
            if let Some(deadline) = deadline.filter(|deadline| deadline.has_passed()) {
                shared.wakers.forget(registration);
                return Poll::Ready(Err(shared.expired(shared.rings.key(*raw), deadline.after)));
            }
            let until = deadline.map(|deadline| deadline.until);
            match shared.poll_answered(registration, shared.rings.key(*raw), until, context) {
                Poll::Ready(answered) => answered?,
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<T: Borrow<Ticket>> Drop for TicketFuture<T> {
    fn drop(&mut self) {
        self.ticket.borrow().shared.wakers.forget(&mut self.registration);
    }
}

impl<T: Borrow<Ticket>> fmt::Debug for TicketFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TicketFuture").field(self.ticket.borrow()).finish()
    }
}

/// Awaits the answer and spends the ticket.
impl IntoFuture for Ticket {
    type Output = Result<Completion, MegakernelError>;
    type IntoFuture = TicketFuture<Ticket>;

    fn into_future(self) -> TicketFuture<Ticket> {
        TicketFuture::new(self)
    }
}

/// Awaits the answer and, once it is there, spends the ticket; until then the ticket stays the caller's.
impl<'t> IntoFuture for &'t Ticket {
    type Output = Result<Completion, MegakernelError>;
    type IntoFuture = TicketFuture<&'t Ticket>;

    fn into_future(self) -> TicketFuture<&'t Ticket> {
        TicketFuture::new(self)
    }
}

/// The answers of one class of a window, in order, as a future: what
/// [`wait_window`](super::PersistentSession::wait_window) is to a thread.
///
/// Dropped before it is ready, it leaves the window as it was before.
#[must_use = "futures do nothing unless polled"]
pub struct WindowFuture {
    shared: Arc<Shared>,
    items: Borrowed,
    deadline: Option<Deadline>,
    registration: Registration,
}

impl WindowFuture {
    pub(super) fn new(shared: &Arc<Shared>, items: Borrowed) -> WindowFuture {
        WindowFuture {
            shared: Arc::clone(shared),
            items,
            deadline: None,
            registration: Registration::default(),
        }
    }

    /// Gives up `timeout` from now, with [`MegakernelError::Deadline`].
    pub fn within(mut self, timeout: Duration) -> WindowFuture {
        self.deadline = Deadline::new(timeout);
        self
    }
}

impl Future for WindowFuture {
    /// The first error is that of an item that somebody else has reaped; faults are among the completions.
    type Output = Result<Vec<Completion>, MegakernelError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let WindowFuture { shared, items, deadline, registration } = self.get_mut();
        while let Some(position) = items.next() {
            match shared.take(shared.rings.raw(position)) {
                Ok(Some(completion)) => items.answered(Ok(completion)),
                Err(error) => items.answered(Err(error)),
                Ok(None) => {
                    if let Some(deadline) = deadline.filter(|deadline| deadline.has_passed()) {
                        shared.wakers.forget(registration);
                        return Poll::Ready(Err(shared.expired(position, deadline.after)));
                    }
                    let until = deadline.map(|deadline| deadline.until);
                    match shared.poll_answered(registration, position, until, context) {
                        Poll::Ready(answered) => answered?,
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
        }
        shared.wakers.forget(registration);
        Poll::Ready(items.finish(&shared.windows))
    }
}

impl Drop for WindowFuture {
    fn drop(&mut self) {
        self.shared.wakers.forget(&mut self.registration);
        self.items.give_back(&self.shared.windows);
    }
}

impl fmt::Debug for WindowFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowFuture").field("items", &self.items).finish_non_exhaustive()
    }
}

/// Ready when every item submitted before it was made is answered, taken or not: what
/// [`drain`](super::PersistentSession::drain) is to a thread.
#[must_use = "futures do nothing unless polled"]
pub struct DrainFuture {
    shared: Arc<Shared>,
    /// Keys that may have no answer yet.
    left: Box<dyn Iterator<Item = u64> + Send + Sync + Unpin>,
    next: Option<u64>,
    deadline: Option<Deadline>,
    registration: Registration,
}

impl DrainFuture {
    pub(super) fn new(shared: &Arc<Shared>) -> DrainFuture {
        let mut left = Box::new(shared.rings.in_use());
        DrainFuture {
            shared: Arc::clone(shared),
            next: left.next(),
            left,
            deadline: None,
            registration: Registration::default(),
        }
    }

    /// Gives up `timeout` from now, with [`MegakernelError::Deadline`].
    pub fn within(mut self, timeout: Duration) -> DrainFuture {
        self.deadline = Deadline::new(timeout);
        self
    }
}

impl Future for DrainFuture {
    type Output = Result<(), MegakernelError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let DrainFuture { shared, left, next, deadline, registration } = self.get_mut();
        while let Some(key) = *next {
            if !shared.is_answered(key) {
                if let Some(deadline) = deadline.filter(|deadline| deadline.has_passed()) {
                    shared.wakers.forget(registration);
                    return Poll::Ready(Err(shared.undrained(key, deadline.after)));
                }
                let until = deadline.map(|deadline| deadline.until);
                match shared.poll_answered(registration, key, until, context) {
                    Poll::Ready(answered) => answered?,
                    Poll::Pending => return Poll::Pending,
                }
            }
            *next = left.next();
        }
        shared.wakers.forget(registration);
        Poll::Ready(Ok(()))
    }
}

impl Drop for DrainFuture {
    fn drop(&mut self) {
        self.shared.wakers.forget(&mut self.registration);
    }
}

impl fmt::Debug for DrainFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainFuture").field("next", &self.next).finish_non_exhaustive()
    }
}
