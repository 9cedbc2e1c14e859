//! A session on a GPU: one item at a time and batches of 32, every answer checked.
//!
//! `--emit` prints the kernel of the conformance handlers instead, and needs no GPU.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_driver::VyreBackend;
use vyre_driver::wait::WaitStrategy;
use vyre_hip::HipBackend;
use vyre_runtime::item::{HandlerTable, ItemPrograms};
use vyre_runtime::session::SessionOptions;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, Megakernel, OpcodeHandler, PersistentSession, SlotDescriptor, conformance,
};

const ADD_ONE: u32 = 0x40;
const WAIT: Duration = Duration::from_secs(5);
const SINGLES: u32 = 30_000;
const BATCH: u32 = 32;
const BATCHES: u32 = 40_000;

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().any(|argument| argument == "--emit") {
        let handlers = HandlerTable::new(conformance::handlers())?;
        let programs = ItemPrograms::new(Arc::new(handlers), conformance::WORKGROUP_SIZE)?;
        print!("{}", vyre_hip::emit::resident(programs.lane(), programs.workgroup())?.source);
        return Ok(());
    }
    let backend: Arc<dyn VyreBackend> = Arc::new(HipBackend::open(0)?);
    let megakernel = Megakernel::builder(Arc::clone(&backend))
        .slots(1 << 15)
        .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()?;
    let started = Instant::now();
    let session = megakernel.start_with(SessionOptions::new().wait_strategy(WaitStrategy::Spin))?;
    println!("started in {:.1} ms, compiling included", started.elapsed().as_secs_f64() * 1e3);
    one_by_one(&session, "NOP", BuiltinOpcode::Nop.wire(), |_| 0)?;
    one_by_one(&session, "ADD_ONE", ADD_ONE, |n| u64::from(n) + 1)?;
    batches(&session)?;
    let restarted = Instant::now();
    session.restart(WAIT)?;
    println!("restarted in {:.2} ms", restarted.elapsed().as_secs_f64() * 1e3);
    one_by_one(&session, "ADD_ONE", ADD_ONE, |n| u64::from(n) + 1)?;
    session.stop()?;
    println!("stopped; {:?}", session.telemetry());
    println!("conformance vectors: {}", conformance::run_sessions(&backend)?);
    Ok(())
}

/// Submit, wait, next.
fn one_by_one(
    session: &PersistentSession,
    name: &str,
    opcode: u32,
    expected: impl Fn(u32) -> u64,
) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::with_capacity(SINGLES as usize);
    let mut wrong = 0;
    for n in 0..SINGLES {
        let argument = n.wrapping_mul(0x9e37_79b1) >> 1;
        let start = Instant::now();
        let ticket = session.submit(SlotDescriptor::new(opcode).args([argument]))?;
        let done = session.wait(ticket, WAIT)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        wrong += u32::from(done.result() != expected(argument));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!(
        "{name}: one item min {:.2} p50 {:.2} p99 {:.2} p99.9 {:.2} us; wrong {wrong} of {SINGLES}",
        at(0.0),
        at(0.5),
        at(0.99),
        at(0.999)
    );
    Ok(())
}

/// Batches of detached items, counted by what the device acknowledged.
fn batches(session: &PersistentSession) -> Result<(), Box<dyn Error>> {
    let batch: BatchDescriptor = (0..BATCH).map(|_| SlotDescriptor::new(BuiltinOpcode::Nop)).collect();
    for _ in 0..3 {
        let before = session.telemetry().done;
        let start = Instant::now();
        for _ in 0..BATCHES {
            while let Err(error) = session.submit_batch_detached(&batch) {
                if !matches!(error, vyre_runtime::MegakernelError::RingFull { .. }) {
                    return Err(error.into());
                }
                std::hint::spin_loop();
            }
        }
        session.drain(WAIT)?;
        let seconds = start.elapsed().as_secs_f64();
        // The kernel mirrors its counts at every beat.
        std::thread::sleep(Duration::from_millis(20));
        let items = f64::from(BATCH * BATCHES);
        let done = session.telemetry().done - before;
        println!("batches of {BATCH}: {:.1} M items/s; {done} of {items} done", items / seconds / 1e6);
    }
    Ok(())
}
