//! Data that stays on the device while a kernel does: moved beside it, freed under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vyre_driver::{BackendError, BufferDesc, VyreBackend};
use vyre_foundation::DataType;

use super::{Check, Nonconformance, builder};
use crate::descriptor::SlotDescriptor;
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::session::{PersistentSession, SessionOptions, Ticket};

/// Handler: stores word `a0` of the source, plus `a1`, in the same word of the target; completes with it.
const MOVE: u32 = 0x70;
/// Words of either.
const WORDS: u32 = 1 << 16;
/// Words that each round uploads and downloads.
const PIECE: u32 = 1 << 12;
/// The longest that one wait may take.
const WAIT: Duration = Duration::from_secs(60);

/// Moves data beside a kernel under load, frees buffers under it, and has one that it has bound refused; how many rounds.
///
/// # Errors
///
/// The first difference.
pub fn run_resident_data(backend: &Arc<dyn VyreBackend>) -> Result<u32, Nonconformance> {
    let at = Check("resident data");
    let source = || HandlerBinding::read("source", DataType::U32).min_len(WORDS);
    let handler = OpcodeHandler::new(MOVE, "move_word", |h| {
        let (source, target) = (h.buffer("source"), h.buffer("target"));
        let word = h.let_("word", source.load(h.arg(0)) + h.arg(1));
        h.store(target, h.arg(0), word);
        h.complete(word);
    })
    .binding(source())
    .binding(HandlerBinding::read_write("target", DataType::U32).min_len(WORDS));
    let driver = |error: BackendError| MegakernelError::backend("use a buffer")(error);
    let make = |label: &str| at.ok(backend.create_buffer(&desc(label)).map_err(driver));
    let (given, target) = (make("given")?, make("target")?);
    let options = SessionOptions::new().bind("source", given.binding()).bind("target", target.binding());
    let started = builder(Arc::clone(backend)).and_then(|b| b.handler(handler).build()?.start_with(options));
    let session = at.ok(started)?;
    let over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        let load = scope.spawn(|| keep_busy(&session, &over));
        let rounds = (0..WORDS / PIECE).try_for_each(|round| {
            // A buffer that nobody has bound comes and goes.
            let passing = make("passing")?;
            at.ok(backend.write_buffer(passing, 0, &words(0..PIECE, round)).map_err(driver))?;
            round_trip(&at, &session, round)?;
            let mut back = vec![0; PIECE as usize * 4];
            at.ok(backend.read_buffer(passing, 0, &mut back).map_err(driver))?;
            at.ok(backend.destroy_buffer(passing).map_err(driver))?;
            at.same("what a passing buffer holds", back == words(0..PIECE, round), true)
        });
        over.store(true, Ordering::Release);
        let loaded = match load.join() {
            Ok(loaded) => at.ok(loaded),
            Err(_) => at.same("how the load ended", "by a panic", "when told to"),
        };
        rounds.and(loaded)
    });
    rounds?;
    for (label, buffer) in [("given", given), ("target", target)] {
        match backend.destroy_buffer(buffer) {
            Err(error @ BackendError::InvalidArgument { .. }) => {
                let text = error.to_string();
                at.same(&format!("who holds `{label}` in: {text}"), text.contains("which session "), true)?;
            }
            other => at.same(
                &format!("freeing `{label}`, which is bound"),
                format!("{other:?}"),
                "refused".to_owned(),
            )?,
        }
    }
    // Still there, and the session's.
    round_trip(&at, &session, 0)?;
    at.ok(session.stop())?;
    at.ok(backend.destroy_buffer(given).and(backend.destroy_buffer(target)).map_err(driver))?;
    Ok(WORDS / PIECE)
}

fn desc(label: &str) -> BufferDesc {
    BufferDesc::new(label, DataType::U32, WORDS.into())
}

/// The words of a range, each its number and a little more.
fn words(range: std::ops::Range<u32>, more: u32) -> Vec<u8> {
    range.flat_map(|word| word.wrapping_mul(3).wrapping_add(more).to_le_bytes()).collect()
}

/// Items without end, until it is over; they touch the last word only.
fn keep_busy(session: &PersistentSession, over: &AtomicBool) -> Result<(), MegakernelError> {
    while !over.load(Ordering::Acquire) {
        match session.submit(SlotDescriptor::new(MOVE).args([WORDS - 1, 0])) {
            Ok(ticket) => drop(session.wait(ticket, WAIT)?),
            // A whole ring ahead of the other thread's oldest item.
            Err(MegakernelError::RingFull { .. }) => thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Uploads a piece, has items move some of its words, and downloads what they stored.
fn round_trip(at: &Check, session: &PersistentSession, round: u32) -> Result<(), Nonconformance> {
    let first = round * PIECE;
    let piece = words(first..first + PIECE, round);
    at.ok(session.upload("source", u64::from(first) * 4, &piece))?;
    let picked = || (first..first + PIECE).step_by(97);
    let mut tickets = Vec::new();
    let take_all = |tickets: &mut Vec<Ticket>| {
        at.ok(tickets.drain(..).try_for_each(|ticket| session.wait(ticket, WAIT).map(drop)))
    };
    for word in picked() {
        let started = Instant::now();
        loop {
            match session.submit(SlotDescriptor::new(MOVE).args([word, 7])) {
                Ok(ticket) => break tickets.push(ticket),
                // The other thread went on while this one slept: an answer that either has not taken is in the way.
                Err(MegakernelError::RingFull { .. }) if started.elapsed() < WAIT => take_all(&mut tickets)?,
                Err(error) => return at.ok(Err(error)),
            }
        }
        if tickets.len() == 32 {
            take_all(&mut tickets)?;
        }
    }
    take_all(&mut tickets)?;
    let mut moved = vec![0; piece.len()];
    at.ok(session.download("target", u64::from(first) * 4, &mut moved))?;
    let wrong = picked().find(|word| {
        let expected = word.wrapping_mul(3).wrapping_add(round + 7).to_le_bytes();
        moved.as_chunks::<4>().0.get((word - first) as usize) != Some(&expected)
    });
    at.same("the first word that was not moved", wrong, None)
}
