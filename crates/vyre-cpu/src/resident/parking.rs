//! What waits without occupying a worker: fences, items that wait for the host, items to run again.
//!
//! Parked items are looked after by whichever worker comes by; nobody waits for the lock.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vyre_driver::io_queue::{DeviceIo, IoReply, IoRequest};
use vyre_driver::protocol::{Fault, Status, io};
use vyre_driver::ring::{ClaimedTicket, Completion, SlotImage};

use super::ring::Ring;
use super::turns::Turns;

/// An item claimed and not complete.
pub(super) struct Held {
    pub(super) ring: usize,
    pub(super) ticket: ClaimedTicket,
    pub(super) image: SlotImage,
    /// Whether a whole workgroup runs it.
    pub(super) by_workgroup: bool,
}

struct Fence {
    held: Held,
    /// The first ticket it waits for that may be incomplete.
    next: u64,
}

#[derive(Default)]
struct Waiting {
    fences: Vec<Fence>,
    /// Requests that the queue had no room for yet.
    to_post: VecDeque<(IoRequest, Held)>,
    /// Requests posted, with their numbers.
    posted: Vec<(u64, Held)>,
}

/// Everything parked in a kernel.
pub(super) struct Parking {
    waiting: Mutex<Waiting>,
    /// How much is in `waiting`, to see without the lock that it is nothing. Only a hint.
    waiting_len: AtomicUsize,
    /// What is to be run, a queue for each ring.
    ready: Mutex<Box<[VecDeque<Held>]>>,
    /// How much is in `ready`, likewise.
    ready_len: AtomicUsize,
}

impl Parking {
    pub(super) fn new(rings: usize) -> Parking {
        Parking {
            waiting: Mutex::default(),
            waiting_len: AtomicUsize::new(0),
            ready: Mutex::new((0..rings).map(|_| VecDeque::new()).collect()),
            ready_len: AtomicUsize::new(0),
        }
    }

    /// Parks a fence until the tickets it names are complete.
    pub(super) fn park_fence(&self, rings: &[Ring], held: Held) {
        let [count, ..] = held.image.args;
        let ticket = held.ticket.position();
        let next = rings.get(held.ring).map_or(ticket, |ring| ring.oldest_of(ticket, count));
        let mut waiting = lock(&self.waiting);
        waiting.fences.push(Fence { held, next });
        self.count(&waiting);
    }

    /// Parks an item until the host has answered its request.
    pub(super) fn park_io(&self, request: IoRequest, held: Held) {
        let mut waiting = lock(&self.waiting);
        waiting.to_post.push_back((request, held));
        self.count(&waiting);
    }

    /// Queues an item behind everything of its ring that is to be run again.
    pub(super) fn push_ready(&self, held: Held) {
        let mut ready = lock(&self.ready);
        if let Some(of_ring) = ready.get_mut(held.ring) {
            of_ring.push_back(held);
            self.ready_len.fetch_add(1, Relaxed);
        }
    }

    /// Takes items to run together, of the ring whose turn it is: one for a workgroup, or some for lanes whose tickets
    /// are in a row.
    pub(super) fn take_ready(&self, most: usize, turns: &mut Turns, into: &mut Vec<Held>) {
        if self.ready_len.load(Relaxed) == 0 {
            return;
        }
        let mut queues = lock(&self.ready);
        let has_some = |ring: usize| queues.get(ring).is_some_and(|ready| !ready.is_empty());
        let count = queues.len();
        let Some(ring) = turns.order(count).find(|ring| has_some(*ring)) else { return };
        turns.served(ring, has_some, count);
        let Some(ready) = queues.get_mut(ring) else { return };
        while into.len() < most
            && let Some(next) = ready.front()
        {
            let fits = into.last().is_none_or(|last: &Held| {
                let in_a_row = next.ticket.position() == last.ticket.position().wrapping_add(1);
                in_a_row && !next.by_workgroup && !last.by_workgroup
            });
            if !fits {
                break;
            }
            into.extend(ready.pop_front());
        }
        self.ready_len.fetch_sub(into.len(), Relaxed);
    }

    /// Whether an item is ready to run.
    pub(super) fn has_ready(&self) -> bool {
        self.ready_len.load(Relaxed) != 0
    }

    /// Whether an item waits for the host.
    pub(super) fn awaits_host(&self) -> bool {
        self.waiting_len.load(Relaxed) != 0 && {
            let waiting = lock(&self.waiting);
            !waiting.to_post.is_empty() || !waiting.posted.is_empty()
        }
    }

    /// Ends the items that wait for the host, which has been away for too long. Says whether there were any.
    pub(super) fn give_up_on_host(&self, complete: impl Fn(Held, Completion)) -> bool {
        let mut waiting = lock(&self.waiting);
        let posted = std::mem::take(&mut waiting.posted).into_iter().map(|(_, held)| held);
        let to_post = std::mem::take(&mut waiting.to_post).into_iter().map(|(_, held)| held);
        self.count(&waiting);
        posted.chain(to_post).map(|held| complete(held, failed(io::TIMED_OUT))).count() > 0
    }

    /// Posts requests, takes answers, and releases fences, unless another worker is at it. Answered items
    /// are handed to `complete`. Says whether anything moved.
    pub(super) fn tend(
        &self,
        rings: &[Ring],
        io: &DeviceIo,
        mut complete: impl FnMut(Held, Completion),
    ) -> bool {
        if self.waiting_len.load(Relaxed) == 0 {
            return false;
        }
        let Ok(mut waiting) = self.waiting.try_lock() else { return false };
        let mut moved = false;
        while let Some((request, _)) = waiting.to_post.front()
            && let Some(number) = io.post(request)
        {
            let posted = waiting.to_post.pop_front();
            waiting.posted.extend(posted.map(|(_, held)| (number, held)));
            moved = true;
        }
        for (held, completion) in answered(&mut waiting.posted, io) {
            complete(held, completion);
            moved = true;
        }
        let fences = std::mem::take(&mut waiting.fences);
        for mut fence in fences {
            let ticket = fence.held.ticket.position();
            let ring = rings.get(fence.held.ring);
            if ring.is_none_or(|ring| ring.pass_complete(&mut fence.next, ticket)) {
                self.push_ready(fence.held);
                moved = true;
            } else {
                waiting.fences.push(fence);
            }
        }
        self.count(&waiting);
        moved
    }

    fn count(&self, waiting: &Waiting) {
        let len = waiting.fences.len() + waiting.to_post.len() + waiting.posted.len();
        self.waiting_len.store(len, Relaxed);
    }
}

/// Takes out the items whose requests are answered.
fn answered(posted: &mut Vec<(u64, Held)>, io: &DeviceIo) -> Vec<(Held, Completion)> {
    let mut answered = Vec::new();
    for (number, held) in std::mem::take(posted) {
        match io.poll(number) {
            Ok(None) => posted.push((number, held)),
            Ok(Some(IoReply::Done { bytes })) => answered.push((held, Completion::done(u64::from(bytes)))),
            Ok(Some(IoReply::Failed { errno })) => answered.push((held, failed(errno))),
            Err(_) => answered.push((held, failed(0))),
        }
    }
    answered
}

/// How an item ends whose request failed.
fn failed(errno: u32) -> Completion {
    let fault = Completion::new(Status::Fault, Fault::Io.code(), errno.into());
    fault.unwrap_or(Completion::fault(Fault::Io))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
