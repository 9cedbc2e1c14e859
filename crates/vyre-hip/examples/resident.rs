//! A session on a GPU beside the physical limit: one item at a time, and batches of 32. Answers are checked and
//! acknowledgements counted.
//!
//! `--emit` prints the kernel of the conformance handlers instead, and needs no GPU.

use std::error::Error;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vyre_driver::layout::RegionConfig;
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{ProducerOptions, RingProducer, SlotImage};
use vyre_driver::wait::WaitStrategy;
use vyre_driver::{BufferDesc, ResidentBinding, StartRequest, VyreBackend};
use vyre_foundation::MemorySpace;
use vyre_hip::HipBackend;
use vyre_hip::compile::{Architecture, CompileRequest};
use vyre_hip::device::{HostMemory as _, LaunchConfig, Module, PinnedMemory, Stream, StreamPriority};
use vyre_hip::emit::{self, QuarterAccess};
use vyre_runtime::item::{HandlerTable, ItemPrograms};
use vyre_runtime::session::SessionOptions;
use vyre_runtime::state::{header, tenant_row};
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, Megakernel, MegakernelError, OpcodeHandler, PersistentSession,
    SlotDescriptor, conformance,
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
        print!("{}", emit::resident(&programs.spec(1), QuarterAccess::from_environment())?.source);
        return Ok(());
    }
    let backend = Arc::new(HipBackend::open(0)?);
    let echo_us = echo(&backend)?;
    let backend: Arc<dyn VyreBackend> = backend;
    let megakernel = Megakernel::builder(Arc::clone(&backend))
        .slots(1 << 15)
        .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()?;
    let started = Instant::now();
    let session = megakernel.start_with(SessionOptions::new().wait_strategy(WaitStrategy::Spin))?;
    println!("started in {:.1} ms, compiling included", started.elapsed().as_secs_f64() * 1e3);
    let item_us = one_by_one(&session, "NOP", BuiltinOpcode::Nop.wire(), |_| 0)?;
    println!("a NOP's p50 is {:.2} of the echo's", item_us / echo_us);
    one_by_one(&session, "ADD_ONE", ADD_ONE, |n| u64::from(n) + 1)?;
    for producers in [1, 2, 4] {
        batches(&session, producers)?;
    }
    let restarted = Instant::now();
    session.restart(WAIT)?;
    println!("restarted in {:.2} ms", restarted.elapsed().as_secs_f64() * 1e3);
    one_by_one(&session, "ADD_ONE", ADD_ONE, |n| u64::from(n) + 1)?;
    session.stop()?;
    bare_ring(&megakernel)?;
    println!("stopped; {:?}", session.telemetry());
    println!("conformance vectors: {}", conformance::run_sessions(&backend)?);
    Ok(())
}

/// The physical limit, among others: a thread that answers a word of the host's with another.
const OPPONENTS: &str = include_str!("../../../kernels/bench/ring/opponents.hip");
/// Looks at a word that stays as it is, a microsecond each, after which the echo leaves.
const MOST_LOOKS: u32 = 1 << 24;

/// Its p50 in microseconds.
fn echo(backend: &HipBackend) -> Result<f64, Box<dyn Error>> {
    let context = backend.context();
    let arch = Architecture::of_device(&context.info().arch)?;
    let request = CompileRequest {
        name: "opponents",
        source: OPPONENTS,
        headers: &[],
        arch: &arch,
        flags: &[],
        lines: None,
    };
    let object = backend.compiler().compile(&request)?;
    let function = Module::load(context, &object.image)?.function("echo")?;
    let stream = Stream::new(context, StreamPriority::High)?;
    let words = PinnedMemory::new(context, "the words of the echo", 128)?;
    let launch = LaunchConfig { grid: [1; 3], workgroup: [1; 3], shared_bytes: 0 };
    let addresses =
        [words.device_address(), words.device_address() + 64].into_iter().flat_map(u64::to_le_bytes);
    let arguments: Vec<u8> = addresses.chain(MOST_LOOKS.to_le_bytes()).collect();
    // SAFETY: the kernel takes the addresses of two of the words, which live until it has ended, and a number.
    unsafe { function.launch(&stream, &launch, &arguments) }?;
    let (asked, answered) = (words.word(0)?, words.word(64)?);
    let mut times = Vec::with_capacity(SINGLES as usize);
    for n in (1..=SINGLES).chain([u32::MAX]) {
        let start = Instant::now();
        asked.store(n, Ordering::Release);
        while answered.load(Ordering::Acquire) != n {
            std::hint::spin_loop();
        }
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    stream.wait(WAIT)?;
    Ok(print_times("bare echo kernel", &mut times))
}

/// Prints the distribution, and yields the median.
fn print_times(name: &str, times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    let [min, p50, p99, rare] = [0.0, 0.5, 0.99, 0.999].map(at);
    println!("{name}: min {min:.2} p50 {p50:.2} p99 {p99:.2} p99.9 {rare:.2} us");
    p50
}

/// Submit, wait, next.
fn one_by_one(
    session: &PersistentSession,
    name: &str,
    opcode: u32,
    expected: impl Fn(u32) -> u64,
) -> Result<f64, Box<dyn Error>> {
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
    let p50 = print_times(name, &mut times);
    println!("  wrong answers: {wrong} of {SINGLES}");
    Ok(p50)
}

/// Batches of detached items, counted by what the device did.
fn batches(session: &PersistentSession, producers: u32) -> Result<(), Box<dyn Error>> {
    let batch: BatchDescriptor = (0..BATCH).map(|_| SlotDescriptor::new(BuiltinOpcode::Nop)).collect();
    let produce = || -> Result<(), MegakernelError> {
        for _ in 0..BATCHES {
            while let Err(error) = session.submit_batch_detached(&batch) {
                if !matches!(error, MegakernelError::RingFull { .. }) {
                    return Err(error);
                }
                std::hint::spin_loop();
            }
        }
        Ok(())
    };
    // The kernel mirrors its counts before it leaves, and every millisecond else.
    session.restart(WAIT)?;
    let before = session.telemetry().done;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..producers).map(|_| scope.spawn(produce)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    session.drain(WAIT)?;
    let seconds = start.elapsed().as_secs_f64();
    session.restart(WAIT)?;
    let items = u64::from(BATCH * BATCHES * producers);
    let done = session.telemetry().done - before;
    println!(
        "{producers} producers, batches of {BATCH}: {:.1} M items/s; {done} of {items} done",
        items as f64 / seconds / 1e6
    );
    Ok(())
}

/// The same without a session: one thread that submits finished images of 64 bytes.
fn bare_ring(megakernel: &Megakernel) -> Result<(), Box<dyn Error>> {
    let backend = megakernel.backend();
    let spec = megakernel.programs().spec(backend.capabilities().resident_workgroups);
    let mut config = RegionConfig::new(1 << 15);
    (config.tenant_bytes, config.workers) = (u64::from(tenant_row::WORDS) * 4, spec.worker_groups);
    let regions = SessionRegions::create(&config)?;
    let table = regions.layout.tenants();
    // One tenant that may do everything.
    let mut row = [u32::MAX; tenant_row::WORDS as usize];
    row[tenant_row::FLAGS as usize] = tenant_row::CONFIGURED;
    let row: Vec<u8> = row.iter().flat_map(|word| word.to_le_bytes()).collect();
    regions.h2d.copy_in(table.offset, &row)?;
    let mut bindings = Vec::new();
    for decl in &spec.lane.program().buffers {
        bindings.push(if decl.space == MemorySpace::HostVisible {
            ResidentBinding::HostToDevice { byte_offset: table.offset, byte_len: table.bytes }
        } else {
            let desc = BufferDesc::new(&decl.name, decl.element, 4096);
            ResidentBinding::Buffer(backend.create_buffer(&desc)?.binding())
        });
    }
    let counters = bindings.first().copied();
    let options = ProducerOptions { first_ticket: 0, arena: None, on_detached_fault: None };
    let ring = RingProducer::new(&regions, 0, options)?;
    ring.write_start_record(&regions)?;
    let lease = Duration::from_secs(60);
    let request = StartRequest {
        holder: "a bare kernel".to_owned(),
        regions,
        bindings,
        mirrors: Vec::new(),
        item_deadline: None,
        lease,
    };
    let kernel = backend.compile_resident(&spec)?.start(request)?;
    let images = [SlotImage::new(BuiltinOpcode::Nop.wire(), [7; 12]); BATCH as usize];
    let items = u64::from(BATCH) * 1_000_000;
    let start = Instant::now();
    while ring.head() < items {
        if ring.submit_batch_detached(&images).is_err() {
            std::hint::spin_loop();
        }
        if start.elapsed() > WAIT * 2 {
            return Err(format!("{} of {items} submitted after {:?}", ring.head(), start.elapsed()).into());
        }
    }
    while ring.oldest_unacknowledged() < items && start.elapsed() < WAIT * 4 {
        ring.counters();
    }
    let seconds = start.elapsed().as_secs_f64();
    kernel.quiesce(WAIT)?;
    let mut done = [0; 4];
    if let Some(ResidentBinding::Buffer(counters)) = counters {
        backend.read_buffer(counters.buffer, u64::from(header::DONE_COUNT) * 4, &mut done)?;
    }
    println!(
        "bare ring, one producer, batches of {BATCH}: {:.1} M items/s; {} of {items} done",
        items as f64 / seconds / 1e6,
        u32::from_le_bytes(done)
    );
    Ok(())
}
