//! Sessions: a kernel that stays, fed live, stopped and started again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use vyre_driver::region::SessionRegions;
use vyre_driver::{
    BufferDesc, Fault, KernelState, ResidentBinding, ResidentKernel, StartRequest, VyreBackend,
};
use vyre_foundation::MemorySpace;
use vyre_runtime::conformance::{self, ADD_ONE, COUNTDOWN, LATE, SUM_LOCAL_IDS};
use vyre_runtime::session::SessionOptions;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, MegakernelError, OpcodeHandler, PersistentSession, SlotDescriptor,
};

use super::Device;
use super::programs::describe;
use super::trial::{Records, Verdict};

type Backend = Arc<dyn VyreBackend>;
type Body = fn(&Backend) -> Result<(), String>;

const TRIALS: &[(&str, Body)] = &[
    ("fences", fences),
    ("producers", producers),
    ("restarts_under_load", restarts_under_load),
    ("changes", changes),
    ("rings", rings),
    ("resident_data", resident_data),
    ("endless_items", endless_items),
    ("shutdown", shutdown),
    ("lease", lease),
    ("reap", reap),
];

/// The longest that one wait may take.
const WAIT: Duration = Duration::from_secs(30);

/// Adds the trials of one device.
pub(crate) fn add(device: &Device, records: &Records, trials: &mut Vec<Trial>) {
    for &(name, body) in TRIALS {
        let backend = Arc::clone(&device.backend);
        let name = format!("{}::session::{name}", device.name);
        trials.push(records.trial_alone(device, name, move || {
            if !backend.capabilities().persistent {
                return Verdict::Unsupported("the backend keeps no kernel resident".to_owned());
            }
            body(&backend).into()
        }));
    }
}

fn failed(error: MegakernelError) -> String {
    describe(&error)
}

/// A session over the handlers of the vectors and one that never ends.
fn session(backend: &Backend, options: SessionOptions) -> Result<PersistentSession, String> {
    let endless = OpcodeHandler::new(ENDLESS, "endless", |h| h.while_(true, |_| ()));
    let builder = conformance::builder(Arc::clone(backend)).map_err(failed)?;
    builder.handler(endless).build().and_then(|megakernel| megakernel.start_with(options)).map_err(failed)
}

/// A handler without an end.
const ENDLESS: u32 = 0x50;

fn slot(opcode: u32, args: &[u32]) -> SlotDescriptor {
    SlotDescriptor::new(opcode).args(args)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    if got == expected { Ok(()) } else { Err(format!("{what} is {got:?}, expected {expected:?}")) }
}

/// Items before a fence see none of it, whatever they do: run again and again, or by a workgroup.
fn fences(backend: &Backend) -> Result<(), String> {
    let session = session(backend, SessionOptions::new())?;
    for round in 0..20_u64 {
        let mut batch = BatchDescriptor::new();
        for n in 0..64_u32 {
            batch.push(match n % 8 {
                7 => slot(BuiltinOpcode::BatchFence.wire(), &[0, n]),
                6 => slot(SUM_LOCAL_IDS, &[n % 3]),
                5 => slot(COUNTDOWN, &[40, n]),
                _ => slot(LATE, &[n * 7 % 23]),
            });
        }
        let mut before = round * 8;
        for (n, ticket) in (0_u64..).zip(session.submit_batch(&batch).map_err(failed)?) {
            let done = session.wait(ticket, WAIT).map_err(failed)?;
            match n % 8 {
                7 => {
                    before += 1;
                    same(&format!("fence {before}"), done.result(), before)?;
                }
                6 => same("the sum of all local ids", done.result(), 63 * 32)?,
                5 => same("what was counted", done.result(), 40 + n)?,
                _ if done.result() > before => {
                    return Err(format!("an item before fence {} saw {}", before + 1, done.result()));
                }
                _ => {}
            }
        }
    }
    session.stop().map_err(failed)
}

fn submit(
    session: &PersistentSession,
    item: &SlotDescriptor,
) -> Result<vyre_runtime::session::Ticket, String> {
    let until = Instant::now() + WAIT;
    loop {
        match session.submit(item.clone()) {
            Err(MegakernelError::RingFull { .. }) if Instant::now() < until => thread::yield_now(),
            answer => return answer.map_err(failed),
        }
    }
}

/// Adds one again and again, and checks every answer.
fn produce(session: &PersistentSession, numbers: impl Iterator<Item = u32>) -> Result<(), String> {
    for n in numbers {
        let ticket = submit(session, &slot(ADD_ONE, &[n]))?;
        same("the sum", session.wait(ticket, WAIT).map_err(failed)?.result(), u64::from(n) + 1)?;
    }
    Ok(())
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, String>>) -> Result<T, String> {
    thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
}

fn producers(backend: &Backend) -> Result<(), String> {
    let session = session(backend, SessionOptions::new().slots(64))?;
    thread::scope(|scope| {
        let start = |from: u32| {
            let session = &session;
            scope.spawn(move || produce(session, from..from + 5000))
        };
        let threads: Vec<_> = (0..4).map(|thread| start(thread * 100_000)).collect();
        threads.into_iter().try_for_each(join)
    })?;
    same("items done", session.telemetry().acknowledged, 20_000)?;
    session.stop().map_err(failed)
}

fn restarts_under_load(backend: &Backend) -> Result<(), String> {
    let session = session(backend, SessionOptions::new())?;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let start = |from: u32| {
            let (session, over) = (&session, &over);
            scope.spawn(move || produce(session, (from..).take_while(|_| !over.load(Ordering::Relaxed))))
        };
        let threads: Vec<_> = (0..2).map(|thread| start(thread << 24)).collect();
        let restarted = (0..20).try_for_each(|_| session.restart(WAIT).map_err(failed));
        over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(join).and(restarted)
    })?;
    session.stop().map_err(failed)
}

/// Every answer is of a version that was in place.
fn changes(backend: &Backend) -> Result<(), String> {
    let made = conformance::run_changes(backend, 20, Duration::from_millis(10));
    same("changes made", made.map_err(|difference| describe(&difference))?.len(), 20)
}

/// What is slow below delays nothing above, and nothing is lost.
fn rings(backend: &Backend) -> Result<(), String> {
    let counted = conformance::run_rings(backend, 300);
    same("items", counted.map_err(|difference| describe(&difference))?, 4 * 300 * 15 + 1501 + 200)
}

/// Data is moved beside a kernel, and freed under it.
fn resident_data(backend: &Backend) -> Result<(), String> {
    conformance::run_resident_data(backend).map(drop).map_err(|difference| describe(&difference))
}

/// An item is stopped at its deadline, and holds back nobody for ever.
fn endless_items(backend: &Backend) -> Result<(), String> {
    let options = SessionOptions::new().item_deadline(Duration::from_millis(50));
    let session = session(backend, options)?;
    for n in 0..3 {
        let endless = submit(&session, &slot(ENDLESS, &[]))?;
        produce(&session, n..n + 200)?;
        // A fault is an error of `wait`.
        session.drain(WAIT).map_err(failed)?;
        let ended = session.take(&endless).map_err(failed)?;
        same("how an endless item ended", ended.and_then(|done| done.as_fault()), Some(Fault::Deadline))?;
    }
    session.stop().map_err(failed)
}

fn shutdown(backend: &Backend) -> Result<(), String> {
    let session = session(backend, SessionOptions::new())?;
    let items: BatchDescriptor = (0..100).map(|n| slot(COUNTDOWN, &[n % 30, n])).collect();
    let tickets: Vec<_> = session.submit_batch(&items).map_err(failed)?.collect();
    let last = submit(&session, &slot(BuiltinOpcode::Shutdown.wire(), &[]))?;
    for (n, ticket) in (0_u64..).zip(tickets) {
        same("what was counted", session.wait(ticket, WAIT).map_err(failed)?.result(), n % 30 + n)?;
    }
    session.wait(last, WAIT).map_err(failed)?;
    let refused = session.submit(slot(ADD_ONE, &[1]));
    if !matches!(refused, Err(MegakernelError::SessionClosed { .. })) {
        return Err(format!("an item behind a shutdown: {refused:?}"));
    }
    Ok(())
}

/// A kernel that nothing is submitted to, and whose lease nobody renews.
fn bare_kernel(backend: &Backend, lease: Duration) -> Result<Arc<dyn ResidentKernel>, String> {
    let builder = conformance::builder(Arc::clone(backend)).map_err(failed)?;
    let megakernel = builder.build().map_err(failed)?;
    let error = |error: vyre_driver::BackendError| describe(&error);
    let spec = megakernel.programs().spec(2);
    let pipeline = backend.compile_resident(&spec).map_err(error)?;
    let mut config = vyre_driver::layout::RegionConfig::new(64);
    (config.tenant_bytes, config.workers) = (4096, 2);
    let regions = SessionRegions::create(&config).map_err(|error| describe(&error))?;
    let mut bindings = Vec::new();
    for decl in spec.lane.program().buffers.iter() {
        bindings.push(if decl.space == MemorySpace::HostVisible {
            let section = regions.layout.tenants();
            ResidentBinding::HostToDevice { byte_offset: section.offset, byte_len: section.bytes }
        } else {
            let desc = BufferDesc::new(&decl.name, decl.element, u64::from(decl.len.max(1)));
            ResidentBinding::Buffer(backend.create_buffer(&desc).map_err(error)?.binding())
        });
    }
    let request = StartRequest {
        holder: "a bare kernel".to_owned(),
        regions,
        bindings,
        mirrors: Vec::new(),
        item_deadline: None,
        lease,
    };
    pipeline.start(request).map_err(error)
}

fn lease(backend: &Backend) -> Result<(), String> {
    let started = Instant::now();
    let kernel = bare_kernel(backend, Duration::from_millis(50))?;
    while kernel.state() == KernelState::Running {
        if started.elapsed() > WAIT {
            return Err("a kernel whose lease ran out runs on".to_owned());
        }
        thread::yield_now();
    }
    same("how it ended", kernel.state(), KernelState::Stopped)
}

fn reap(backend: &Backend) -> Result<(), String> {
    let kernel = bare_kernel(backend, WAIT)?;
    same("a kernel that was started", kernel.state(), KernelState::Running)?;
    kernel.reap(WAIT).map_err(|error| describe(&error))?;
    same("how it ended", kernel.state(), KernelState::CutShort)
}
