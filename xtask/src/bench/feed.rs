//! How many items a session takes: from several threads, with tickets or without.

use std::collections::VecDeque;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use vyre_driver::ring::SlotImage;
use vyre_runtime::{BuiltinOpcode, MegakernelError, PersistentSession, SlotDescriptor, Ticket, Tickets};

use super::items::{self, FoldItems, expect, fold_args, fold_result};
use super::session::{DEADLINE, first_number};

/// How the items of a turn are fed.
#[derive(Clone, Copy)]
pub(super) struct Feed {
    pub(super) producers: u32,
    /// Items submitted at once.
    pub(super) batch: u32,
    /// Items of all producers.
    pub(super) items: u32,
    pub(super) kind: Kind,
}

/// What is submitted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Fold items with tickets, each made when it is submitted, its result taken and compared.
    Tracked,
    /// Finished no-op items that nobody asks about: the device's count is all that comes back.
    Detached,
}

/// How many items, and how long from before the first submission to after the last acknowledgement.
pub(super) fn feed(session: &PersistentSession, round: u64, feed: Feed) -> Result<(u64, Duration)> {
    let each = feed.items / feed.producers;
    let ready = Barrier::new(feed.producers as usize + 1);
    let elapsed = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..feed.producers)
            .map(|producer| {
                let ready = &ready;
                scope.spawn(move || {
                    ready.wait();
                    let first = first_number(round).wrapping_add(producer * each);
                    match feed.kind {
                        Kind::Tracked => {
                            let in_flight = session.capacity() / feed.producers / feed.batch;
                            tracked(session, first, each, feed.batch, in_flight.max(1) as usize)
                        }
                        Kind::Detached => detached(session, &vec![no_op(); feed.batch as usize], each),
                    }
                })
            })
            .collect();
        let started = Instant::now();
        ready.wait();
        for producer in producers {
            producer.join().map_err(|_| anyhow!("a producer panicked"))??;
        }
        session.drain(DEADLINE)?;
        anyhow::Ok(started.elapsed())
    })?;
    Ok((u64::from(each) * u64::from(feed.producers), elapsed))
}

/// An item that does nothing.
pub(super) fn no_op() -> SlotImage {
    SlotImage::new(BuiltinOpcode::Nop.wire(), [7; 12])
}

/// Submits these items again and again, until there are so many.
pub(super) fn detached(session: &PersistentSession, images: &[SlotImage], items: u32) -> Result<()> {
    let mut left = items as usize;
    let mut give_up = None;
    while left > 0 {
        let batch = images.get(..left).unwrap_or(images);
        match session.submit_batch_detached(batch) {
            Ok(()) => {
                left -= batch.len();
                give_up = None;
            }
            Err(MegakernelError::RingFull { .. }) => {
                let give_up = give_up.get_or_insert_with(|| Instant::now() + DEADLINE);
                if Instant::now() > *give_up {
                    bail!("the ring stayed full for {DEADLINE:?}; see whether the device is alive");
                }
                std::hint::spin_loop();
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Submits `items` fold items from `first` on, `batch` at once, and takes each result.
fn tracked(session: &PersistentSession, first: u32, items: u32, batch: u32, in_flight: usize) -> Result<()> {
    let give_up = Instant::now() + DEADLINE;
    let mut pending: VecDeque<(u32, Submitted)> = VecDeque::with_capacity(in_flight);
    let mut sent = 0;
    while sent < items || !pending.is_empty() {
        if sent < items && pending.len() < in_flight {
            let n = first.wrapping_add(sent);
            let count = batch.min(items - sent);
            match submit(session, n, count) {
                Ok(submitted) => {
                    pending.push_back((n, submitted));
                    sent += count;
                    continue;
                }
                // Another producer's items are in the way.
                Err(MegakernelError::RingFull { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        match pending.pop_front() {
            Some((n, submitted)) => submitted.take(session, n)?,
            None if Instant::now() > give_up => {
                bail!("the ring stayed full for {DEADLINE:?}; see which producer does not take its results")
            }
            None => std::thread::yield_now(),
        }
    }
    Ok(())
}

/// Tickets of what was submitted at once.
enum Submitted {
    One(Ticket),
    Batch(Tickets),
}

fn submit(session: &PersistentSession, n: u32, count: u32) -> Result<Submitted, MegakernelError> {
    if count == 1 {
        return session.submit(SlotDescriptor::new(items::FOLD).args(fold_args(n))).map(Submitted::One);
    }
    session.submit_batch(&FoldItems { first: n, count }).map(Submitted::Batch)
}

impl Submitted {
    /// Waits for the items numbered from `n`, and compares their results.
    fn take(self, session: &PersistentSession, n: u32) -> Result<()> {
        let check = |n: u32, ticket| {
            expect("item", n.into(), session.wait(ticket, DEADLINE)?.result(), fold_result(n).into())
        };
        match self {
            Submitted::One(ticket) => check(n, ticket),
            Submitted::Batch(tickets) => {
                (0..).zip(tickets).try_for_each(|(at, ticket)| check(n.wrapping_add(at), ticket))
            }
        }
    }
}
