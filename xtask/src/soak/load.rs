//! One producer: items of all kinds, in an order that looks random and repeats, each with what it has to answer.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vyre_driver::Fault;
use vyre_driver::ring::Completion;
use vyre_runtime::conformance::GEMM_BINDINGS;
use vyre_runtime::session::Ticket;
use vyre_runtime::{
    BuiltinOpcode, MegakernelError, PackedOpDescriptor, PersistentSession, Priority, SlotDescriptor,
    WindowClass, WindowDescriptor,
};

use super::handlers::{
    FETCH, INDEX_BITS, LOADED_BYTES, LOOK_UP, ONCE, PEEK, SCRATCH_WORDS, STORE, SUM, SUM_PAYLOAD,
    TABLE_WORDS, VERSION_BITS, VERSIONED,
};
use super::ledger::{Ledger, Twice};
use super::products::{ELEMENTS, Products};

/// Threads that submit.
pub(super) const PRODUCERS: u32 = 4;
/// A ticket that has no answer after so long is stuck.
pub(super) const STUCK: Duration = Duration::from_secs(30);
/// Whose quota is raised again and again.
pub(super) const LIMITED: u16 = 1;
/// Its quota at the start, and what it is raised by.
pub(super) const QUOTA: u32 = 5000;
/// The file that items read from.
pub(super) const RESOURCE: u32 = 7;
/// How long is waited for room.
pub(super) const FULL: Duration = Duration::from_micros(100);
/// Items that a producer has under way.
const UNDER_WAY: usize = 192;
/// Items of a batch.
const BATCH: u32 = 32;
/// Bytes of a payload.
const PAYLOAD_BYTES: u32 = 256;

/// What an item has to answer.
#[derive(Debug)]
enum Answer {
    Exactly(u64),
    /// A version between the one last put in place at the submission and the one last begun at the answer.
    Versioned {
        number: u32,
        least: u32,
    },
    /// A word of the table, uploaded between the same moments.
    TableWord {
        index: u32,
        least: u32,
    },
    /// Either, as long as there is quota.
    WithinQuota(u64),
    /// Or none, as it was cancelled.
    UnlessCancelled(u64),
    /// 1, or 0 if the log is full.
    Logged,
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    answer: Answer,
    twice: Twice,
    /// Losses over when it was submitted.
    losses: u32,
    /// Of the ring that fences are submitted to.
    fenced: bool,
}

/// One thread that submits.
pub(super) struct Producer<'a> {
    session: &'a PersistentSession,
    ledger: &'a Ledger,
    products: &'a Products,
    /// What the file has.
    file: &'a [u8],
    number: u32,
    random: fastrand::Rng,
    under_way: VecDeque<Pending>,
    sent: u32,
    quota: u32,
}

impl<'a> Producer<'a> {
    pub(super) fn new(
        session: &'a PersistentSession,
        ledger: &'a Ledger,
        products: &'a Products,
        file: &'a [u8],
        number: u32,
    ) -> Producer<'a> {
        let random = fastrand::Rng::with_seed(u64::from(number) + 1);
        let (under_way, sent, quota) = (VecDeque::new(), 0, QUOTA);
        Producer { session, ledger, products, file, number, random, under_way, sent, quota }
    }

    /// Submits until it is over, and takes every answer.
    pub(super) fn run(mut self) -> Result<()> {
        while !self.ledger.is_over() {
            self.step()?;
            while self.under_way.len() > UNDER_WAY {
                self.settle_oldest()?;
            }
        }
        while self.settle_oldest()? {}
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        match self.random.u32(0..100) {
            0..28 => self.versioned(),
            28..30 => self.cancelled(),
            30..45 => self.batch(),
            45..55 => self.detached(),
            55..63 => self.packed(),
            63..75 => self.look_up(),
            75..81 => self.limited(),
            81..87 => self.payload(),
            87..91 => self.window(),
            91..93 => self.log(),
            93..96 => self.memory(),
            96..97 => self.fence(),
            97..99 => self.product(),
            _ => self.file(),
        }
    }

    /// A number of its own.
    fn next(&mut self) -> u32 {
        self.sent = self.sent.wrapping_add(1);
        (self.sent % (1 << 16)) * PRODUCERS + self.number
    }

    /// Tries until there is room; takes answers meanwhile.
    fn with_room<T>(
        &mut self,
        what: &str,
        mut submit: impl FnMut(&PersistentSession) -> Result<T, MegakernelError>,
    ) -> Result<T> {
        loop {
            match submit(self.session) {
                Ok(done) => return Ok(done),
                Err(error) if error.is_retryable() => {
                    self.ledger.refused();
                    if !self.settle_oldest()? {
                        // Others' items are in the way. Asleep, so that whoever runs them has a core.
                        std::thread::sleep(FULL);
                    }
                }
                Err(error) => return Err(error).with_context(|| format!("submitting {what}")),
            }
        }
    }

    fn await_later(&mut self, ticket: Ticket, answer: Answer, twice: Twice, losses: u32, fenced: bool) {
        self.ledger.tracked.fetch_add(1, Ordering::Relaxed);
        self.under_way.push_back(Pending { ticket, answer, twice, losses, fenced });
    }

    /// Submits one item whose answer is taken later.
    fn send(&mut self, slot: &SlotDescriptor, answer: Answer, twice: Twice) -> Result<()> {
        let losses = self.ledger.losses.over();
        let ticket = self.with_room("an item", |session| session.submit(slot.clone()))?;
        self.await_later(ticket, answer, twice, losses, true);
        Ok(())
    }

    /// Submits one item and takes its answer, which is none if the item ended in a fault.
    fn ask(&mut self, slot: &SlotDescriptor, answer: Answer, twice: Twice) -> Result<Option<Completion>> {
        let losses = self.ledger.losses.over();
        let ticket = self.with_room("an item", |session| session.submit(slot.clone()))?;
        self.ledger.tracked.fetch_add(1, Ordering::Relaxed);
        self.settle(Pending { ticket, answer, twice, losses, fenced: false })
    }

    fn settle_oldest(&mut self) -> Result<bool> {
        match self.under_way.pop_front() {
            Some(oldest) => self.settle(oldest).map(|_| true),
            None => Ok(false),
        }
    }

    /// Waits for an answer and judges it.
    fn settle(&mut self, pending: Pending) -> Result<Option<Completion>> {
        let ticket = &pending.ticket;
        let answered = match self.session.wait(ticket, STUCK) {
            Ok(done) => {
                self.ledger.right();
                if let Err(wrong) = self.judge(&pending.answer, done.result()) {
                    self.ledger.problem(format_args!("{pending:?}: {wrong}"));
                }
                Some(done)
            }
            Err(MegakernelError::Faulted { fault, .. }) => {
                match (&pending.answer, fault) {
                    (Answer::WithinQuota(_), Fault::Quota) => {
                        self.ledger.expected_fault(fault);
                        self.raise_quota();
                    }
                    (Answer::UnlessCancelled(_), Fault::Abandoned) => self.ledger.expected_fault(fault),
                    _ => self.ledger.faulted(&pending, fault, pending.twice, pending.losses),
                }
                None
            }
            Err(MegakernelError::Deadline { .. }) => {
                bail!("{ticket:?} is stuck: no answer within {STUCK:?} ({:?})", pending.answer);
            }
            Err(error) => return Err(error).with_context(|| format!("{ticket:?} has no answer")),
        };
        if self.session.take(ticket).is_ok() {
            self.ledger.problem(format_args!("{ticket:?} was answered twice"));
        }
        Ok(answered)
    }

    fn judge(&self, answer: &Answer, result: u64) -> Result<(), String> {
        let within = |what: &str, got: u64, number: u32, allowed: RangeInclusive<u32>, of: u64| {
            if of == u64::from(number) && u32::try_from(got).is_ok_and(|got| allowed.contains(&got)) {
                return Ok(());
            }
            Err(format!("{what} {got} of {of}, not one of {allowed:?} of {number}"))
        };
        match *answer {
            Answer::Exactly(expected) | Answer::WithinQuota(expected) | Answer::UnlessCancelled(expected) => {
                if result == expected {
                    Ok(())
                } else {
                    Err(format!("{result}, not {expected}"))
                }
            }
            Answer::Versioned { number, least } => {
                let (of, version) = (result >> VERSION_BITS, result & ((1 << VERSION_BITS) - 1));
                within("version", version, number, least..=self.ledger.changes.begun(), of)
            }
            Answer::TableWord { index, least } => {
                let (epoch, of) = (result >> INDEX_BITS, result & ((1 << INDEX_BITS) - 1));
                within("epoch", epoch, index, least..=self.ledger.uploads.begun(), of)
            }
            Answer::Logged if result <= 1 => Ok(()),
            Answer::Logged => Err(format!("{result} records of one item")),
        }
    }

    fn versioned(&mut self) -> Result<()> {
        let (number, least) = (self.next(), self.ledger.changes.over());
        let priority =
            [Priority::Normal, Priority::Normal, Priority::High, Priority::Low][(number % 4) as usize];
        let slot = SlotDescriptor::new(VERSIONED).args([number]).priority(priority);
        let losses = self.ledger.losses.over();
        let ticket = self.with_room("an item", |session| session.submit(slot.clone()))?;
        let answer = Answer::Versioned { number, least };
        self.await_later(ticket, answer, Twice::May, losses, priority == Priority::Normal);
        self.ledger.count("versioned", 1);
        Ok(())
    }

    /// Items that may not run twice.
    fn batch(&mut self) -> Result<()> {
        let first = self.next();
        let batch: Vec<_> =
            (0..BATCH).map(|at| SlotDescriptor::new(ONCE).args([first.wrapping_add(at)])).collect();
        let losses = self.ledger.losses.over();
        let tickets = self.with_room("a batch", |session| session.submit_batch(batch.as_slice()))?;
        for (at, ticket) in (0..BATCH).zip(tickets) {
            let answer = Answer::Exactly(u64::from(first.wrapping_add(at)) + 1);
            self.await_later(ticket, answer, Twice::MayNot, losses, true);
        }
        self.ledger.count("batch", BATCH.into());
        Ok(())
    }

    /// Items that are cancelled as soon as they are there: some have begun by then.
    fn cancelled(&mut self) -> Result<()> {
        let first = self.next();
        let batch: Vec<_> =
            (0..8).map(|at| SlotDescriptor::new(ONCE).args([first.wrapping_add(at)])).collect();
        let losses = self.ledger.losses.over();
        let tickets = self.with_room("a batch", |session| session.submit_batch(batch.as_slice()))?;
        for (at, ticket) in (0..8).zip(tickets) {
            ticket.cancel().context("cancelling an item")?;
            let answer = Answer::UnlessCancelled(u64::from(first.wrapping_add(at)) + 1);
            self.await_later(ticket, answer, Twice::MayNot, losses, true);
        }
        self.ledger.count("cancelled", 8);
        Ok(())
    }

    fn detached(&mut self) -> Result<()> {
        let first = self.next();
        let batch: Vec<_> =
            (0..BATCH).map(|at| SlotDescriptor::new(ONCE).args([first.wrapping_add(at)])).collect();
        self.with_room("a detached batch", |session| session.submit_batch_detached(batch.as_slice()))?;
        let single = SlotDescriptor::new(SUM).args([first, 1, 2]);
        self.with_room("a detached item", |session| session.submit_detached(single.clone()))?;
        self.ledger.detached.fetch_add(u64::from(BATCH) + 1, Ordering::Relaxed);
        self.ledger.count("detached", u64::from(BATCH) + 1);
        Ok(())
    }

    fn packed(&mut self) -> Result<()> {
        let number = self.next();
        let may_not = number % 2 == 1;
        let last = if may_not { ONCE } else { SUM } as u8;
        let slot = SlotDescriptor::packed(&[
            PackedOpDescriptor::new(SUM as u8).args([number, 1]),
            PackedOpDescriptor::new(0),
            PackedOpDescriptor::new(last).args([number]),
        ])?;
        let answer = Answer::Exactly(u64::from(number) + u64::from(may_not));
        self.ledger.count("packed", 1);
        self.send(&slot, answer, if may_not { Twice::MayNot } else { Twice::May })
    }

    fn look_up(&mut self) -> Result<()> {
        for _ in 0..4 {
            let (index, least) = (self.random.u32(0..TABLE_WORDS), self.ledger.uploads.over());
            let slot = SlotDescriptor::new(LOOK_UP).args([index]);
            self.send(&slot, Answer::TableWord { index, least }, Twice::May)?;
        }
        self.ledger.count("look-up", 4);
        Ok(())
    }

    fn limited(&mut self) -> Result<()> {
        let number = self.next();
        let slot = SlotDescriptor::new(SUM).args([number, 3]).tenant(LIMITED);
        self.ledger.count("quota", 1);
        self.send(&slot, Answer::WithinQuota(u64::from(number) + 3), Twice::May)
    }

    /// Another producer may have raised it further.
    fn raise_quota(&mut self) {
        while let Err(MegakernelError::QuotaExceeded { limit, .. }) =
            self.session.raise_quota(LIMITED, self.quota)
        {
            self.quota = limit.saturating_add(QUOTA);
        }
    }

    fn payload(&mut self) -> Result<()> {
        let number = self.next();
        let bytes: Vec<u8> = (0..PAYLOAD_BYTES).map(|at| (number.wrapping_mul(31) + at * 7) as u8).collect();
        let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
        let mut payload = self.with_room("a payload", |session| session.payload(PAYLOAD_BYTES))?;
        payload.write(0, &bytes)?;
        let slot = SlotDescriptor::new(SUM_PAYLOAD).args([payload.offset(), PAYLOAD_BYTES]);
        let losses = self.ledger.losses.over();
        let submit = |session: &PersistentSession| session.submit_with_payload(slot.clone(), &mut payload);
        let ticket = self.with_room("an item with a payload", submit)?;
        self.await_later(ticket, Answer::Exactly(sum), Twice::May, losses, true);
        self.ledger.count("payload", 1);
        Ok(())
    }

    /// Four items that are waited for, and four of which every other window gives up.
    fn window(&mut self) -> Result<()> {
        let id = self.next();
        let mut window = WindowDescriptor::new(SUM, id);
        for at in 0..8 {
            let class = if at < 4 { WindowClass::Required } else { WindowClass::Lookahead };
            window.push(class, [at]);
        }
        let losses = self.ledger.losses.over();
        let submitted = self.with_room("a window", |session| session.submit_window(&window))?;
        let (required, lookahead) = (u64::from(submitted.required), u64::from(submitted.lookahead));
        self.ledger.count("window", required + lookahead);
        let gives_up = id.is_multiple_of(2) && lookahead > 0;
        if gives_up {
            // Unless it was for room that others needed.
            let given_up = self.session.cancel_lookahead(id).map(drop);
            unless_unknown(given_up).context("giving lookahead items up")?;
        }
        let classes = [(WindowClass::Required, required), (WindowClass::Lookahead, lookahead)];
        for (class, items) in classes {
            if items == 0 || gives_up && class == WindowClass::Lookahead {
                self.ledger.detached.fetch_add(items, Ordering::Relaxed);
                continue;
            }
            let done = self.session.wait_window(id, class, STUCK);
            let done = if class == WindowClass::Lookahead { unless_unknown(done) } else { done.map(Some) };
            let done = done.with_context(|| format!("window {id}, {class:?}, is stuck or lost"))?;
            let Some(done) = done else {
                self.ledger.detached.fetch_add(items, Ordering::Relaxed);
                continue;
            };
            self.ledger.tracked.fetch_add(items, Ordering::Relaxed);
            let first = if class == WindowClass::Required { 0 } else { 4 };
            for (at, completion) in (first..).zip(done) {
                let expected = u64::from(id) + class as u64 + at;
                match completion.as_fault() {
                    None if completion.result() == expected => self.ledger.right(),
                    None => {
                        let got = completion.result();
                        self.ledger.right();
                        self.ledger.problem(format_args!("window {id}, item {at}: {got}, not {expected}"));
                    }
                    Some(fault) => self.ledger.faulted(&(id, at), fault, Twice::May, losses),
                }
            }
        }
        Ok(())
    }

    fn log(&mut self) -> Result<()> {
        let number = self.next();
        let slot = SlotDescriptor::new(BuiltinOpcode::Printf).args([number, !number, 1]);
        self.ledger.count("printf", 1);
        self.send(&slot, Answer::Logged, Twice::MayNot)
    }

    /// What one item has written another one reads, unless there was a loss in between.
    fn memory(&mut self) -> Result<()> {
        let at = self.number * SCRATCH_WORDS + self.random.u32(0..SCRATCH_WORDS);
        let number = self.next();
        let losses = self.ledger.losses.over();
        let store = SlotDescriptor::new(STORE).args([at, number]);
        self.ledger.count("memory", 2);
        let stored = self.ask(&store, Answer::Exactly(number.into()), Twice::MayNot)?;
        let fetch = SlotDescriptor::new(FETCH).args([at]);
        let before = self.ledger.losses.over();
        let ticket = self.with_room("an item", |session| session.submit(fetch.clone()))?;
        self.ledger.tracked.fetch_add(1, Ordering::Relaxed);
        // What is there after a loss is not known.
        let found = self.session.wait(&ticket, STUCK);
        match found {
            Ok(done) => {
                self.ledger.right();
                let undisturbed = stored.is_some() && self.ledger.losses.begun() == losses;
                if undisturbed && done.result() != u64::from(number) {
                    let got = done.result();
                    self.ledger.problem(format_args!("word {at} was {number} and is {got}"));
                }
                Ok(())
            }
            Err(MegakernelError::Faulted { fault, .. }) => {
                self.ledger.faulted(&ticket, fault, Twice::May, before);
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("{ticket:?} is stuck or lost")),
        }
    }

    /// Behind a fence everything before it has an answer.
    fn fence(&mut self) -> Result<()> {
        let slot = SlotDescriptor::new(BuiltinOpcode::BatchFence);
        let losses = self.ledger.losses.over();
        let ticket = self.with_room("a fence", |session| session.submit(slot.clone()))?;
        self.ledger.tracked.fetch_add(1, Ordering::Relaxed);
        self.ledger.count("fence", 1);
        match self.session.wait(&ticket, STUCK) {
            Ok(done) => {
                self.ledger.right();
                if done.result() == 0 {
                    self.ledger.problem("a fence counted no epoch");
                }
                for earlier in self.under_way.iter().filter(|pending| pending.fenced) {
                    if self.session.poll(&earlier.ticket)?.is_none() {
                        let earlier = &earlier.ticket;
                        self.ledger
                            .problem(format_args!("{earlier:?} has no answer behind fence {ticket:?}"));
                    }
                }
                Ok(())
            }
            Err(MegakernelError::Faulted { fault, .. }) => {
                self.ledger.faulted(&ticket, fault, Twice::MayNot, losses);
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("fence {ticket:?} is stuck or lost")),
        }
    }

    fn product(&mut self) -> Result<()> {
        let (losses, factor) = (self.ledger.losses.over(), self.next() % 64 + 1);
        let item = Products::item(self.number, factor);
        self.ledger.count("product", 1);
        if self.ask(&item, Answer::Exactly(ELEMENTS.into()), Twice::MayNot)?.is_none() {
            return Ok(());
        }
        let [_, _, c] = GEMM_BINDINGS;
        let mut found = vec![0; ELEMENTS as usize * 4];
        let downloaded = self.session.download(c, u64::from(self.number * ELEMENTS) * 4, &mut found);
        if self.ledger.losses.begun() != losses {
            return Ok(());
        }
        downloaded.context("downloading a product")?;
        if let Err(wrong) = self.products.check(factor, &found) {
            self.ledger.problem(wrong);
        }
        Ok(())
    }

    /// Reads a file, and looks at what was read.
    fn file(&mut self) -> Result<()> {
        let slot = SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([RESOURCE]);
        // Until it has been read once there is nothing to be seen.
        if self.ask(&slot, Answer::Exactly(LOADED_BYTES.into()), Twice::MayNot)?.is_none() {
            return Ok(());
        }
        let at = self.random.u32(0..LOADED_BYTES);
        let byte = self.file.get(at as usize).copied().unwrap_or(0);
        let peek = SlotDescriptor::new(PEEK).args([at]);
        self.ledger.count("file", 2);
        self.send(&peek, Answer::Exactly(byte.into()), Twice::May)
    }
}

/// Nothing of a window whose lookahead items were given up because a ring was full.
fn unless_unknown<T>(done: Result<T, MegakernelError>) -> Result<Option<T>, MegakernelError> {
    match done {
        Err(MegakernelError::UnknownWindow { .. }) => Ok(None),
        done => done.map(Some),
    }
}
