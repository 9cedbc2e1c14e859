//! What a process between a session and its backend costs: the same sessions on the CPU backend, in process and
//! in a worker, turn by turn. `cargo run --release -p vyre-worker --example isolated`
//!
//! Turns are short and many, so that most find a busy machine quiet for a moment; printed are the median of them and
//! the best tenth. Latency is the median of a turn's single items, each submitted and waited for; throughput counts
//! items acknowledged, with the ring kept half full.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::VyreBackend;
use vyre_driver::wait::WaitStrategy;
use vyre_runtime::session::Ticket;
use vyre_runtime::{Megakernel, OpcodeHandler, PersistentSession, SessionOptions, SlotDescriptor};
use vyre_worker::sandbox::Sandbox;
use vyre_worker::{IsolatedBackend, IsolatedOptions, Registry};

const ADD_ONE: u32 = 0x40;
const SLOTS: u32 = 4096;
const TURNS: usize = 301;
const ITEMS: u32 = 20_480;
const SINGLE: u32 = 200;
const WAIT: Duration = Duration::from_secs(60);

fn cpu() -> Arc<dyn VyreBackend> {
    Arc::new(CpuBackend::with_config(CpuConfig::default().threads(1)))
}

fn session(backend: Arc<dyn VyreBackend>, wait: WaitStrategy) -> Result<PersistentSession, Box<dyn Error>> {
    let megakernel = Megakernel::builder(backend)
        .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()?;
    Ok(megakernel.start_with(SessionOptions::new().slots(SLOTS).wait_strategy(wait))?)
}

/// Microseconds from submission to acknowledgement, the median.
fn latency(session: &PersistentSession) -> Result<f64, Box<dyn Error>> {
    let mut times = Vec::new();
    for number in 0..SINGLE {
        let started = Instant::now();
        let ticket = session.submit(SlotDescriptor::new(ADD_ONE).args([number]))?;
        let done = session.wait(&ticket, WAIT)?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
        if done.result() != u64::from(number) + 1 {
            return Err("a wrong result".into());
        }
    }
    Ok(median(times))
}

/// Millions of items a second.
fn throughput(session: &PersistentSession) -> Result<f64, Box<dyn Error>> {
    let started = Instant::now();
    let half: Vec<u32> = (0..SLOTS / 2).collect();
    let mut before: Vec<Ticket> = Vec::new();
    let (mut submitted, mut sum, mut expected) = (0, 0_u64, 0_u64);
    while submitted < ITEMS || !before.is_empty() {
        let mut next = Vec::new();
        if submitted < ITEMS {
            let batch: Vec<_> = half.iter().map(|n| SlotDescriptor::new(ADD_ONE).args([*n])).collect();
            next = session.submit_batch(batch.as_slice())?.collect();
            submitted += SLOTS / 2;
            expected += half.iter().map(|n| u64::from(*n) + 1).sum::<u64>();
        }
        for ticket in std::mem::replace(&mut before, next) {
            sum += session.wait(&ticket, WAIT)?.result();
        }
    }
    if sum != expected {
        return Err("wrong results".into());
    }
    Ok(f64::from(submitted) / started.elapsed().as_secs_f64() / 1e6)
}

/// The value that this part of the values is below.
fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (part * values.len() as f64) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn median(mut values: Vec<f64>) -> f64 {
    quantile(&mut values, 0.5)
}

fn main() -> Result<(), Box<dyn Error>> {
    vyre_worker::init(&Registry::new().backend("cpu", |_| Ok(cpu())));
    println!(
        "{TURNS} turns each, interleaved; {SINGLE} single items, then {ITEMS} in batches; one worker thread"
    );
    for wait in [WaitStrategy::Park, WaitStrategy::Spin] {
        let isolated = |sandbox| -> Result<Arc<dyn VyreBackend>, Box<dyn Error>> {
            Ok(Arc::new(IsolatedBackend::open(IsolatedOptions::new("cpu").sandbox(sandbox))?))
        };
        let backends = [cpu(), isolated(Sandbox::None)?, isolated(Sandbox::Strict)?];
        let sessions: Vec<_> =
            backends.into_iter().map(|backend| session(backend, wait)).collect::<Result<_, _>>()?;
        let mut latencies = [const { Vec::new() }; 3];
        let mut throughputs = [const { Vec::new() }; 3];
        for turn in 0..=TURNS {
            // Each in each place as often: what ran before leaves its mark.
            for place in 0..sessions.len() {
                let index = (place + turn) % sessions.len();
                let Some(session) = sessions.get(index) else { continue };
                let (single, many) = (latency(session)?, throughput(session)?);
                // The first turn warms up.
                if turn > 0 {
                    latencies[index].push(single);
                    throughputs[index].push(many);
                }
            }
        }
        println!("waiting by {wait:?}:          in process  isolated    strict   ratios");
        for (name, low, high) in [("median", 0.5, 0.5), ("best tenth", 0.1, 0.9)] {
            let [a, b, c] = latencies.each_mut().map(|values| quantile(values, low));
            println!("  latency us, {name:<12} {a:10.2} {b:10.2} {c:10.2} {:7.3} {:7.3}", b / a, c / a);
            let [a, b, c] = throughputs.each_mut().map(|values| quantile(values, high));
            println!("  M items/s, {name:<12}  {a:10.3} {b:10.3} {c:10.3} {:7.3} {:7.3}", b / a, c / a);
        }
        for session in sessions {
            session.stop()?;
        }
    }
    Ok(())
}
