//! Four producers, one disturber, and a device that must get everything right: shared by the soak test and
//! the `soak` example.
//!
//! Every item carries a number that no other item has and 1 KiB of bytes made from it. Its handler, in IR,
//! computes a checksum of the bytes and the number; the producer computes the same on the host. Meanwhile
//! the disturber stalls, quiesces and restarts the session at random moments.

#![allow(unreachable_pub, reason = "a module of a test and of an example")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vyre_driver::VyreBackend;
use vyre_foundation::{DataType, MemorySpace};
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{
    HandlerBinding, Megakernel, MegakernelError, OpcodeHandler, PersistentSession, SessionOptions,
    SlotDescriptor,
};

/// Items of one round, all producers together.
pub const ITEMS: u64 = 10_000;
/// Threads that submit.
pub const PRODUCERS: u64 = 4;
/// Bytes of an item.
pub const BYTES: u32 = 1024;

const CHECKSUM: u32 = 0x50;
const SLOTS: u32 = 1024;
const WAIT: Duration = Duration::from_secs(30);

/// What a run counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Soaked {
    /// Rounds of [`ITEMS`] items.
    pub rounds: u64,
    /// Items whose answer was taken, once, and right.
    pub items: u64,
    /// Submissions that found the ring or the arena full and were repeated.
    pub refused: u64,
    /// Kernels started after the first.
    pub restarts: u64,
    /// Times the session stood still without a kernel.
    pub quiesced: u64,
}

/// The handler: over `input_len` bytes at `input_offset`, `sum = sum * 31 + byte`, beginning with the number.
pub fn checksum_handler() -> OpcodeHandler {
    OpcodeHandler::new(CHECKSUM, "checksum", |h| {
        let bytes = h.buffer(PAYLOAD_BINDING);
        let sum = h.var_("sum", h.arg(2));
        let end = h.arg(0) + h.arg(1);
        h.for_("at", h.arg(0), end, |h, at| h.assign(sum, sum * 31 + bytes.load(at)));
        h.complete(sum);
    })
    .binding(HandlerBinding::read(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible))
    .replayable(true)
}

/// The same on the host.
fn checksum(number: u32, bytes: &[u8]) -> u64 {
    bytes.iter().fold(number, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into())).into()
}

/// The bytes of an item: a xorshift of its number.
fn fill(number: u32, bytes: &mut [u8]) {
    let mut state = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let word = state.to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// Runs rounds until the time is over, at least one; says what was counted, or what went wrong.
pub fn soak(backend: Arc<dyn VyreBackend>, time: Duration, disturb: bool) -> Result<Soaked, String> {
    let failed = |what: &'static str| move |error: MegakernelError| format!("{what}: {error:?}");
    let megakernel = Megakernel::builder(backend).handler(checksum_handler()).build();
    let megakernel = megakernel.map_err(failed("build"))?;
    let options = SessionOptions::new().slots(SLOTS).arena_bytes(SLOTS * BYTES);
    let session = megakernel.start_with(options).map_err(failed("start"))?;
    let (refused, quiesced) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let started = Instant::now();
    let mut soaked = Soaked::default();
    std::thread::scope(|scope| {
        let disturber = disturb.then(|| scope.spawn(|| disturb_session(&session, &over, &quiesced)));
        let mut outcome = Ok(());
        while outcome.is_ok() && (soaked.rounds == 0 || started.elapsed() < time) {
            let round = soaked.rounds;
            let (session, refused) = (&session, &refused);
            let produce = |producer| scope.spawn(move || produce(session, round, producer, refused));
            let producers: Vec<_> = (0..PRODUCERS).map(produce).collect();
            for producer in producers {
                match producer.join() {
                    Ok(Ok(items)) => soaked.items += items,
                    Ok(Err(error)) => outcome = Err(error),
                    Err(_) => outcome = Err("a producer panicked".to_owned()),
                }
            }
            soaked.rounds += 1;
        }
        over.store(true, Ordering::Relaxed);
        let disturbed = disturber.map_or(Ok(()), |disturber| {
            disturber.join().map_err(|_| "the disturber panicked".to_owned()).flatten()
        });
        outcome.and(disturbed)
    })?;
    session.stop().map_err(failed("stop"))?;
    let telemetry = session.telemetry();
    soaked.refused = refused.into_inner();
    soaked.quiesced = quiesced.into_inner();
    soaked.restarts = telemetry.starts - 1;
    // Once each, by the count of the device as well as by that of the ring.
    let counts = [telemetry.submitted, telemetry.acknowledged, telemetry.done, soaked.items];
    if counts != [soaked.rounds * ITEMS; 4] || telemetry.faulted != 0 || telemetry.violations != 0 {
        return Err(format!("{soaked:?} and {telemetry:?} do not add up"));
    }
    Ok(soaked)
}

/// Submits one producer's share of a round and takes every answer.
fn produce(
    session: &PersistentSession,
    round: u64,
    producer: u64,
    refused: &AtomicU64,
) -> Result<u64, String> {
    let share = ITEMS / PRODUCERS;
    let mut waiting = VecDeque::new();
    let mut bytes = [0; BYTES as usize];
    let mut taken = 0;
    let mut take = |waiting: &mut VecDeque<_>| -> Result<bool, String> {
        let Some((ticket, expected)) = waiting.pop_front() else { return Ok(false) };
        let done = session.wait(&ticket, WAIT).map_err(|error| format!("wait: {error:?}"))?;
        if done.result() != expected {
            return Err(format!("{ticket:?} answered {} instead of {expected}", done.result()));
        }
        // Spent: a second answer is refused.
        if session.take(&ticket).is_ok() {
            return Err(format!("{ticket:?} was answered twice"));
        }
        taken += 1;
        Ok(true)
    };
    for item in 0..share {
        let number = ((round * PRODUCERS + producer) * share + item) as u32;
        fill(number, &mut bytes);
        let expected = checksum(number, &bytes);
        let mut payload = loop {
            match session.payload(BYTES) {
                Ok(payload) => break payload,
                Err(error) if error.is_retryable() => give_way(&mut take, &mut waiting, refused)?,
                Err(error) => return Err(format!("payload: {error:?}")),
            }
        };
        payload.write(0, &bytes).map_err(|error| format!("write: {error:?}"))?;
        let slot = SlotDescriptor::new(CHECKSUM).args([payload.offset(), BYTES, number]);
        let ticket = loop {
            match session.submit_with_payload(slot.clone(), &mut payload) {
                Ok(ticket) => break ticket,
                Err(error) if error.is_retryable() => give_way(&mut take, &mut waiting, refused)?,
                Err(error) => return Err(format!("submit: {error:?}")),
            }
        };
        waiting.push_back((ticket, expected));
    }
    while take(&mut waiting)? {}
    Ok(taken)
}

/// There is no room: take an own answer, or let others take theirs.
fn give_way<W>(
    take: &mut impl FnMut(&mut W) -> Result<bool, String>,
    waiting: &mut W,
    refused: &AtomicU64,
) -> Result<(), String> {
    refused.fetch_add(1, Ordering::Relaxed);
    if !take(waiting)? {
        std::thread::yield_now();
    }
    Ok(())
}

/// Stalls, quiesces and restarts, in an order and with pauses that look random and repeat.
fn disturb_session(
    session: &PersistentSession,
    over: &AtomicBool,
    quiesced: &AtomicU64,
) -> Result<(), String> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    while !over.load(Ordering::Relaxed) {
        match random(4) {
            0 => {
                session.quiesce(WAIT).map_err(|error| format!("quiesce: {error:?}"))?;
                quiesced.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(random(3000)));
                session.restart(WAIT).map_err(|error| format!("restart: {error:?}"))?;
            }
            1 => session.restart(WAIT).map_err(|error| format!("restart: {error:?}"))?,
            _ => std::thread::sleep(Duration::from_micros(random(20_000))),
        }
    }
    Ok(())
}
