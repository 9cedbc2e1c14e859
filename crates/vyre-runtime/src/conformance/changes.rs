//! Handlers changed under producers: each answer is by a handler of its time, and nothing is lost.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_foundation::builder::Operand;
use vyre_foundation::{Axis, Builtin, DataType, Granularity};

use super::{Check, Nonconformance};
use crate::descriptor::SlotDescriptor;
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::megakernel::Megakernel;
use crate::session::{HandlerChange, HandlerUpdate, PersistentSession, SessionOptions, Ticket};

/// Completes with its argument and its version.
const VERSIONED: u32 = 0x50;
/// There in every other version.
const SOMETIMES: u32 = 0x51;
/// Bits of a result that hold the version.
const VERSION_BITS: u32 = 12;
/// Threads that submit.
const PRODUCERS: u32 = 4;
/// Items that each of them has on the way.
const UNDER_WAY: usize = 24;
/// The longest that anything may take.
const WAIT: Duration = Duration::from_secs(60);

/// Counts itself in a volatile buffer; every eighth version is run by a whole workgroup.
fn versioned(version: u32) -> OpcodeHandler {
    let granularity = if version % 8 == 7 { Granularity::Workgroup } else { Granularity::Lane };
    OpcodeHandler::new(VERSIONED, format!("version_{version}"), move |h| {
        let tally = h.buffer("tally");
        match granularity {
            Granularity::Lane => {
                h.atomic_add(tally, 0, 1);
            }
            Granularity::Workgroup => {
                let id = h.let_("id", Builtin::LocalId(Axis::X));
                h.if_(id.eq_(0), |h| {
                    h.atomic_add(tally, 0, 1);
                });
            }
        }
        h.complete((h.arg(0) << VERSION_BITS) + version);
    })
    .binding(HandlerBinding::read_write("tally", DataType::U32).min_len(1))
    .granularity(granularity)
}

fn sometimes() -> OpcodeHandler {
    OpcodeHandler::new(SOMETIMES, "sometimes", |h| h.complete(h.arg(0)))
}

/// What producers and the one who changes know of each other.
#[derive(Default)]
struct Progress {
    begun: AtomicU32,
    returned: AtomicU32,
    over: AtomicBool,
}

/// Changes handlers `changes` times (at most 4095), with a pause of `every` in between, under four producers.
/// Every answer must be of a version between the one last put in place when its item was submitted and the one
/// last begun when it was seen; each item must run once. The changes, in order.
///
/// # Errors
///
/// The first difference.
pub fn run_changes(
    backend: &Arc<dyn VyreBackend>,
    changes: u32,
    every: Duration,
) -> Result<Vec<HandlerChange>, Nonconformance> {
    let check = Check("changes of handlers");
    let megakernel =
        Megakernel::builder(Arc::clone(backend)).handler(versioned(0)).workgroup_size(64).build();
    let session = check.ok(check.ok(megakernel)?.start_with(SessionOptions::new().slots(256)))?;
    let progress = Progress::default();
    let (made, submitted) = std::thread::scope(|scope| {
        let producer = |_| scope.spawn(|| produce(&check, &session, &progress));
        let producers: Vec<_> = (0..PRODUCERS).map(producer).collect();
        let made = change(&check, &session, &progress, changes, every);
        progress.over.store(true, Ordering::Release);
        let counts = producers
            .into_iter()
            .map(|producer| producer.join().unwrap_or_else(|panic| resume_unwind(panic)));
        Ok::<_, Nonconformance>((made, counts.sum::<Result<u64, Nonconformance>>()?))
    })?;
    let made = made?;
    let mut tally = [0; 4];
    check.ok(session.download("tally", 0, &mut tally))?;
    check.same("the count of the handlers", u64::from(u32::from_le_bytes(tally)), submitted)?;
    check.ok(session.stop())?;
    let telemetry = session.telemetry();
    let counted = telemetry.opcodes.iter().find(|count| count.opcode.wire() == VERSIONED);
    check.same("the counter of the opcode", counted.map(|count| count.items), Some(submitted))?;
    check.same("the items that ended well", telemetry.done, submitted)?;
    check.same("the last change", telemetry.last_change, made.last().copied())?;
    Ok(made)
}

fn change(
    check: &Check,
    session: &PersistentSession,
    progress: &Progress,
    changes: u32,
    every: Duration,
) -> Result<Vec<HandlerChange>, Nonconformance> {
    let mut made = Vec::new();
    for version in 1..=changes {
        let update = HandlerUpdate::new().replace_handler(versioned(version));
        let update =
            if version % 2 == 1 { update.add_handler(sometimes()) } else { update.remove_handler(SOMETIMES) };
        // Before the handlers change, and after: whoever reads in between allows both.
        progress.begun.store(version, Ordering::SeqCst);
        made.push(check.ok(session.update_handlers(update, WAIT))?);
        progress.returned.store(version, Ordering::SeqCst);
        std::thread::sleep(every);
    }
    Ok(made)
}

/// Submits until it is told that it is over; how many items.
fn produce(check: &Check, session: &PersistentSession, progress: &Progress) -> Result<u64, Nonconformance> {
    let mut under_way: VecDeque<(Ticket, u32, u32)> = VecDeque::new();
    let settle = |(ticket, number, least): (Ticket, u32, u32)| {
        let result = check.ok(session.wait(ticket, WAIT))?.result();
        let most = progress.begun.load(Ordering::SeqCst);
        let (got, version) = (result >> VERSION_BITS, result & ((1 << VERSION_BITS) - 1));
        check.same("an item's argument", got, number.into())?;
        let allowed = u64::from(least)..=u64::from(most);
        check.same(&format!("whether version {version} is in {allowed:?}"), allowed.contains(&version), true)
    };
    let mut number = 0;
    while !progress.over.load(Ordering::Acquire) {
        let least = progress.returned.load(Ordering::SeqCst);
        match session.submit(SlotDescriptor::new(VERSIONED).args([number & 0xF_FFFF])) {
            Ok(ticket) => {
                under_way.push_back((ticket, number & 0xF_FFFF, least));
                number += 1;
            }
            Err(MegakernelError::RingFull { .. }) => {}
            Err(error) => return check.ok(Err(error)),
        }
        if under_way.len() == UNDER_WAY
            && let Some(oldest) = under_way.pop_front()
        {
            settle(oldest)?;
        }
    }
    under_way.into_iter().try_for_each(settle)?;
    Ok(number.into())
}
