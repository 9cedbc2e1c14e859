//! What a process between a session and its backend costs: the same sessions on the CPU backend, in process and
//! in a worker, turn by turn. `cargo run --release -p vyre-worker --example isolated`
//!
//! Printed are medians over the turns. Latency is the median of single items, each submitted and waited for;
//! throughput counts items acknowledged, with the ring kept full.

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
const TURNS: usize = 21;
const ITEMS: u32 = 200_000;
const SINGLE: u32 = 3_000;
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), Box<dyn Error>> {
    vyre_worker::init(&Registry::new().backend("cpu", |_| Ok(cpu())));
    println!(
        "{TURNS} turns each, interleaved; {SINGLE} single items, then {ITEMS} in batches; one worker thread"
    );
    for wait in [WaitStrategy::Park, WaitStrategy::Spin] {
        let isolated = IsolatedBackend::open(IsolatedOptions::new("cpu").sandbox(Sandbox::Strict))?;
        let sessions = [session(cpu(), wait)?, session(Arc::new(isolated), wait)?];
        let mut measured = [(Vec::new(), Vec::new()), (Vec::new(), Vec::new())];
        for turn in 0..=TURNS {
            for (session, (latencies, throughputs)) in sessions.iter().zip(&mut measured) {
                let (single, many) = (latency(session)?, throughput(session)?);
                // The first turn warms up.
                if turn > 0 {
                    latencies.push(single);
                    throughputs.push(many);
                }
            }
        }
        let [here, there] = measured.map(|(latencies, throughputs)| (median(latencies), median(throughputs)));
        println!("waiting by {wait:?}:");
        println!(
            "  latency us: in process {:.2}, isolated {:.2}, ratio {:.3}",
            here.0,
            there.0,
            there.0 / here.0
        );
        println!(
            "  M items/s: in process {:.3}, isolated {:.3}, ratio {:.3}",
            here.1,
            there.1,
            there.1 / here.1
        );
        for session in sessions {
            session.stop()?;
        }
    }
    Ok(())
}
