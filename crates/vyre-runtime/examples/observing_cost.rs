//! What telemetry, publishing and tracing cost on the CPU backend: throughput with each, as a ratio to without.
//!
//! Two measurements. *The host's path*: processor time of this thread, for an item, to submit 512 and to take 512 that
//! are answered; nothing else that happens on the machine is in it. *The whole*: processor time of the process for an
//! item, workers and their spinning included. Sessions of every way take turns of 20 ms, those that wait for theirs
//! without a kernel, and of its turns the least disturbed tenth is a way's figure. `off again` says how much of a
//! difference is noise. What publishing costs is measured by itself, as the part of one processor that a session takes
//! which does nothing.
//!
//! ```text
//! cargo run --release -p vyre-runtime --example observing_cost [ROUNDS]
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vyre_cpu::CpuBackend;
use vyre_runtime::{
    BatchDescriptor, Megakernel, MegakernelError, OpcodeHandler, PersistentSession, SessionOptions,
    SlotDescriptor,
};

const WORK: u32 = 0x40;
const WAIT: Duration = Duration::from_secs(60);
/// How long a turn takes.
const TURN: Duration = Duration::from_millis(20);
/// Items submitted, and then taken, to measure the host's path.
const HELD: u32 = 512;

type Way = (&'static str, fn(SessionOptions) -> SessionOptions);

const WAYS: [Way; 6] = [
    ("off", |options| options),
    ("off again", |options| options),
    ("latency", |options| options.measure_latency()),
    ("trace", |options| options.trace(1 << 16)),
    ("all three", |options| options.measure_latency().observe("cost").trace(1 << 16)),
    ("1 item in 64", |options| options.measure_latency().observe("cost").trace(1 << 16).time_one_in(64)),
];

/// Name, items submitted at once, and rounds of a loop in each.
const LOADS: [(&str, u32, u32); 4] = [
    ("one item, empty, and its answer", 1, 0),
    ("batches of 32, empty", 32, 0),
    ("batches of 32, 100 rounds of a loop", 32, 100),
    ("batches of 32, 1000 rounds of a loop", 32, 1000),
];

/// Processor time so far.
fn used(clock: ClockId) -> Duration {
    let used = clock_gettime(clock);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec as u32)
}

/// Nanoseconds of processor time for an item, by answers.
fn turn(session: &PersistentSession, batch: &BatchDescriptor, items: u32) -> Result<f64, MegakernelError> {
    let (mut done, began, before) = (0_u64, Instant::now(), used(ClockId::ProcessCPUTime));
    while began.elapsed() < TURN {
        for ticket in session.submit_batch(batch)? {
            session.wait(ticket, WAIT)?;
        }
        done += u64::from(items);
    }
    Ok((used(ClockId::ProcessCPUTime) - before).as_secs_f64() * 1e9 / done as f64)
}

/// Nanoseconds of this thread's processor time to submit an item and to take its answer.
fn host_path(session: &PersistentSession, batch: &BatchDescriptor) -> Result<f64, MegakernelError> {
    let clock = || used(ClockId::ThreadCPUTime);
    let before = clock();
    let tickets = session.submit_batch(batch)?;
    let submitted = clock();
    session.drain(WAIT)?;
    let drained = clock();
    for ticket in tickets {
        session.wait(ticket, WAIT)?;
    }
    Ok((submitted - before + (clock() - drained)).as_secs_f64() * 1e9 / f64::from(HELD))
}

/// What a tenth of the values is below.
fn tenth(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 10).copied().unwrap_or(f64::NAN)
}

/// The figure of each way.
fn compare(
    megakernel: &Megakernel,
    rounds: usize,
    measure: impl Fn(&PersistentSession) -> Result<f64, MegakernelError>,
) -> Result<[f64; WAYS.len()], MegakernelError> {
    let mut ways = Vec::new();
    for (_, way) in WAYS {
        let session = megakernel.start_with(way(SessionOptions::new()))?;
        session.quiesce(WAIT)?;
        ways.push((session, Vec::new()));
    }
    for round in 0..rounds {
        // Another one first in each round.
        ways.rotate_left(round % 2);
        for (session, figures) in &mut ways {
            session.restart(WAIT)?;
            figures.push(measure(session)?);
            session.quiesce(WAIT)?;
        }
        ways.rotate_right(round % 2);
    }
    let mut tenths = [0.0; WAYS.len()];
    for ((session, figures), least) in ways.iter_mut().zip(&mut tenths) {
        session.stop()?;
        *least = tenth(figures);
    }
    Ok(tenths)
}

fn main() -> Result<(), MegakernelError> {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(200);
    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new()))
        .slots(1024)
        .handler(OpcodeHandler::new(WORK, "work", |h| {
            let sum = h.var_("sum", 0_u32);
            h.for_("n", 0, h.arg(0), |h, n| h.assign(sum, sum * 3 + n));
            h.complete(sum);
        }))
        .build()?;
    let batch = |items, loops| -> BatchDescriptor {
        (0..items).map(|_| SlotDescriptor::new(WORK).args([loops])).collect()
    };
    let held = batch(HELD, 0);
    let host = compare(&megakernel, rounds, |session| host_path(session, &held))?;
    println!("the host's path: {:.1} ns an item without", host[0]);
    for ((way, _), figure) in WAYS.iter().zip(host) {
        println!("  {way:<12} {:+.1} ns", figure - host[0]);
    }
    for (load, items, loops) in LOADS {
        let batch = batch(items, loops);
        let whole = compare(&megakernel, rounds, |session| turn(session, &batch, items))?;
        println!("the whole, {load}: {:.0} ns an item without", whole[0]);
        for ((way, _), figure) in WAYS.iter().zip(whole) {
            println!("  {way:<12} {:.3}", figure / whole[0]);
        }
    }
    for (way, options) in [("off", SessionOptions::new()), ("observe", SessionOptions::new().observe("cost"))]
    {
        let session = megakernel.start_with(options)?;
        let before = used(ClockId::ProcessCPUTime);
        std::thread::sleep(Duration::from_secs(5));
        let part = (used(ClockId::ProcessCPUTime) - before).as_secs_f64() / 5.0;
        println!("a session of 1024 slots that does nothing, {way}: {:.2} % of a processor", part * 100.0);
        session.stop()?;
    }
    Ok(())
}
