//! Three rings under four producers: what is slow below delays nothing above, fences hold in their own ring, each item
//! runs once, whatever its priority, and what is cancelled in time does not.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use vyre_driver::{Fault, VyreBackend};
use vyre_foundation::DataType;
use vyre_foundation::builder::Operand;

use super::{Check, Nonconformance};
use crate::descriptor::{BatchDescriptor, Priority, SlotDescriptor};
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::megakernel::Megakernel;
use crate::opcode::BuiltinOpcode;
use crate::session::{PersistentSession, SessionOptions, Ticket};

/// Adds one to word `a0` when it has run `a2` times more; completes with `a1`.
const ADD: u32 = 0x50;
/// Completes with word `a0`.
const READ: u32 = 0x51;
/// Adds one to word `a0`, then runs until word `a1` is not 0; completes with that.
const SLOW: u32 = 0x52;

/// Every priority.
const ALL: [Priority; 5] =
    [Priority::Critical, Priority::Low, Priority::Normal, Priority::High, Priority::Idle];
/// Threads that submit, each with a word of its own.
const PRODUCERS: u32 = 4;
/// The words of the slow item, behind those of the producers.
const BEGUN: u32 = PRODUCERS;
const GATE: u32 = PRODUCERS + 1;
/// Of the items without tickets.
const DETACHED: u32 = PRODUCERS + 2;
/// Of those half of which are cancelled.
const HALF: u32 = PRODUCERS + 3;
const WORDS: u32 = PRODUCERS + 4;
/// Items before each fence.
const BEFORE_A_FENCE: u32 = 12;
/// The longest that anything may take.
const WAIT: Duration = Duration::from_secs(60);

fn handlers() -> Vec<OpcodeHandler> {
    let words = || HandlerBinding::read_write("words", DataType::U32).min_len(WORDS);
    let add = OpcodeHandler::new(ADD, "add", |h| {
        let words = h.buffer("words");
        h.if_(h.arg(2).ne_(0), |h| h.requeue([h.arg(0), h.arg(1), h.arg(2) - 1]));
        h.atomic_add(words, h.arg(0), 1);
        h.complete(h.arg(1));
    });
    let read = OpcodeHandler::new(READ, "read", |h| {
        let words = h.buffer("words");
        let word = h.atomic_load(words, h.arg(0));
        h.complete(word);
    });
    let slow = OpcodeHandler::new(SLOW, "slow", |h| {
        let words = h.buffer("words");
        h.atomic_add(words, h.arg(0), 1);
        let open = h.var_("open", 0_u32);
        h.while_(open.eq_(0), |h| {
            let seen = h.atomic_load(words, h.arg(1));
            h.assign(open, seen);
        });
        h.complete(open);
    });
    [add, read, slow].map(|handler| handler.binding(words())).into()
}

/// Runs `rounds` of each of four producers through a session of three rings, on a backend with at least two workers;
/// how many items.
///
/// # Errors
///
/// The first difference.
pub fn run_rings(backend: &Arc<dyn VyreBackend>, rounds: u32) -> Result<u64, Nonconformance> {
    let check = Check("rings by priority");
    let megakernel = Megakernel::builder(Arc::clone(backend)).handlers(handlers()).workgroup_size(64).build();
    let options = SessionOptions::new().slots(256).priority_rings(3);
    let session = check.ok(check.ok(megakernel)?.start_with(options))?;
    let mut items = slow_below(&check, &session)?;
    items += under_load(&check, &session, rounds)?;
    let cancelled = half_cancelled(&check, &session)?;
    items += cancelled * 2;
    check.ok(session.drain(WAIT))?;
    check.same("the items without tickets", word(&check, &session, DETACHED)?, PRODUCERS * rounds)?;
    check.ok(session.stop())?;
    let telemetry = session.telemetry();
    check.same("the items submitted", telemetry.submitted, items)?;
    check.same("the items acknowledged", telemetry.acknowledged, items)?;
    check.same("the items that ended well", telemetry.done, items - cancelled)?;
    check.same("the rings in use", telemetry.rings.iter().filter(|ring| ring.acknowledged > 0).count(), 3)?;
    Ok(items)
}

fn item<const N: usize>(opcode: u32, priority: Priority, args: [u32; N]) -> SlotDescriptor {
    SlotDescriptor::new(opcode).priority(priority).args(args)
}

fn word(check: &Check, session: &PersistentSession, word: u32) -> Result<u32, Nonconformance> {
    let mut bytes = [0; 4];
    check.ok(session.download("words", u64::from(word) * 4, &mut bytes))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Whatever is urgent is answered while an item below does not end.
fn slow_below(check: &Check, session: &PersistentSession) -> Result<u64, Nonconformance> {
    let slow = check.ok(session.submit(item(SLOW, Priority::Low, [BEGUN, GATE])))?;
    let started = Instant::now();
    while word(check, session, BEGUN)? == 0 {
        check.same("whether the slow item begins in time", started.elapsed() < WAIT, true)?;
    }
    for n in 0..500 {
        for priority in [Priority::Critical, Priority::Normal, Priority::High] {
            let ticket = check.ok(session.submit(item(READ, priority, [BEGUN, 0])))?;
            check.same("an item above a slow one", check.ok(session.wait(ticket, WAIT))?.result(), 1)?;
        }
        check.same(&format!("the slow item after {n} rounds"), check.ok(session.poll(&slow))?, None)?;
    }
    check.ok(session.upload("words", u64::from(GATE) * 4, &7_u32.to_le_bytes()))?;
    check.same("the slow item", check.ok(session.wait(slow, WAIT))?.result(), 7)?;
    Ok(1501)
}

/// Four producers in all rings, and restarts meanwhile.
fn under_load(check: &Check, session: &PersistentSession, rounds: u32) -> Result<u64, Nonconformance> {
    let left = AtomicU32::new(PRODUCERS);
    std::thread::scope(|scope| {
        let producer = |number| {
            let left = &left;
            scope.spawn(move || {
                let counted = produce(check, session, number, rounds);
                left.fetch_sub(1, Ordering::Release);
                counted
            })
        };
        let producers: Vec<_> = (0..PRODUCERS).map(producer).collect();
        let mut restarted = Ok(());
        while restarted.is_ok() && left.load(Ordering::Acquire) > 0 {
            restarted = check.ok(session.restart(WAIT));
        }
        let counts = producers.into_iter().map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)));
        let counted = counts.sum::<Result<u64, Nonconformance>>();
        restarted.and(counted)
    })
}

/// Cancels every other item of those that no kernel has seen; how many.
fn half_cancelled(check: &Check, session: &PersistentSession) -> Result<u64, Nonconformance> {
    check.ok(session.quiesce(WAIT))?;
    let mut cancelled = 0;
    let mut tickets = Vec::new();
    for n in 0..40 {
        for priority in ALL {
            let ticket = check.ok(session.submit(item(ADD, priority, [HALF, n, n % 3])))?;
            if n % 2 == 1 {
                check.same("whether an item is open", check.ok(ticket.cancel())?, true)?;
                cancelled += 1;
            }
            tickets.push((n, ticket));
        }
    }
    check.ok(session.restart(WAIT))?;
    for (n, ticket) in tickets {
        let ended = match session.wait(&ticket, WAIT) {
            Err(MegakernelError::Faulted { fault, .. }) => Err(fault),
            done => Ok(check.ok(done)?.result()),
        };
        let expected = if n % 2 == 1 { Err(Fault::Abandoned) } else { Ok(n.into()) };
        check.same(&format!("the end of item {n} in ring {}", ticket.ring()), ended, expected)?;
    }
    check.same("the items not cancelled", u64::from(word(check, session, HALF)?), cancelled)?;
    Ok(cancelled)
}

/// Items and a fence behind them in one ring, then a look at what they did; how many items.
fn produce(
    check: &Check,
    session: &PersistentSession,
    number: u32,
    rounds: u32,
) -> Result<u64, Nonconformance> {
    let mut submitted = 0;
    for round in 1..=rounds {
        let priority = ALL.get(((round + number) % 5) as usize).copied().unwrap_or_default();
        let other = ALL.get(((round * 3 + number) % 5) as usize).copied().unwrap_or_default();
        let mut batch: BatchDescriptor =
            (0..BEFORE_A_FENCE).map(|n| item(ADD, priority, [number, n, n % 4 * 5])).collect();
        batch.push(item(BuiltinOpcode::BatchFence.wire(), priority, [BEFORE_A_FENCE, 0]));
        let mut tickets: Vec<Ticket> = retry(check, || session.submit_batch(&batch))?.collect();
        retry(check, || session.submit_detached(item(ADD, other, [DETACHED, 0])))?;
        if let Some(fence) = tickets.pop() {
            check.ok(session.wait(fence, WAIT))?;
        }
        // Of any ring: the fence is over.
        let seen = retry(check, || session.submit(item(READ, other, [number, 0])))?;
        let seen = check.ok(session.wait(seen, WAIT))?.result();
        check.same("what a fence has waited for", seen, u64::from(round * BEFORE_A_FENCE))?;
        for (n, ticket) in (0..).zip(tickets) {
            check.same("an item's argument", check.ok(session.wait(ticket, WAIT))?.result(), n)?;
        }
        submitted += u64::from(BEFORE_A_FENCE) + 3;
    }
    Ok(submitted)
}

/// Submits when there is room.
fn retry<T>(
    check: &Check,
    mut submit: impl FnMut() -> Result<T, MegakernelError>,
) -> Result<T, Nonconformance> {
    let started = Instant::now();
    loop {
        match submit() {
            Err(MegakernelError::RingFull { .. }) if started.elapsed() < WAIT => std::thread::yield_now(),
            submitted => return check.ok(submitted),
        }
    }
}
