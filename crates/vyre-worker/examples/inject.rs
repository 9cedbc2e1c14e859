//! Kills a worker a thousand times while four producers feed a session in it, and counts: tickets answered once
//! and right, what this process holds before and after, and how fast a death becomes an error.
//!
//! `cargo run --release -p vyre-worker --example inject -- --faults 1000`

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{BackendError, BufferDesc, DispatchConfig, Fault, LossCause, VyreBackend};
use vyre_foundation::{DataType, text, validate};
use vyre_runtime::session::Ticket;
use vyre_runtime::{
    Megakernel, MegakernelError, OpcodeHandler, PersistentSession, SessionOptions, SlotDescriptor,
};
use vyre_worker::{IsolatedBackend, IsolatedOptions, Registry};

const PRODUCERS: u32 = 4;
const REPLAYABLE: u32 = 0x40;
const ONCE: u32 = 0x41;
const WAIT: Duration = Duration::from_secs(60);
/// After so long without a sign of life a worker is ended.
const SILENCE: Duration = Duration::from_millis(150);

const SPIN: &str = "\
program spin kernel workgroup(1, 1, 1)
buffer data: global u32 read_write min 0
entry {
  while true {
    data[0u32] = data[0u32] + 1u32;
  }
}
";

type Failure = Box<dyn Error + Send + Sync>;

/// A generator that needs nothing but a word; xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// In the worker: something dies, at a time of its own.
fn misbehave(seed: u64) {
    let mut random = Random(seed | 1);
    std::thread::sleep(Duration::from_micros(random.below(40_000)));
    match random.below(10) {
        // SAFETY: none; that is the point. It is this process's own end.
        0 => unsafe { std::ptr::null_mut::<u32>().write_volatile(1) },
        1 => std::process::abort(),
        2 => std::process::exit(3),
        3 => {
            eprintln!("{}", "x".repeat(1 << 20));
            std::process::exit(4);
        }
        4 => drop(kill_process(rustix::process::getpid(), Signal::STOP)),
        // The parent does the killing.
        _ => {}
    }
}

fn registry() -> Registry {
    let open = || Arc::new(CpuBackend::with_config(CpuConfig::default().threads(2))) as Arc<dyn VyreBackend>;
    Registry::new().backend("cpu", move |_| Ok(open())).backend("doomed", move |_| {
        let seed = u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let doom = std::thread::Builder::new().name("doom".to_owned()).spawn(move || misbehave(seed));
        doom.map(|_| open()).map_err(|error| BackendError::Driver {
            call: "spawn",
            code: 0,
            text: error.to_string(),
        })
    })
}

/// What this process holds that could leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    regions: usize,
    threads: usize,
    children: usize,
}

impl Held {
    fn now() -> Result<Held, Failure> {
        let entries = |path: &str| -> Result<usize, Failure> { Ok(std::fs::read_dir(path)?.count()) };
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let mut children = 0;
        for task in std::fs::read_dir("/proc/self/task")? {
            let list = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children += list.split_whitespace().count();
        }
        Ok(Held {
            descriptors: entries("/proc/self/fd")?,
            regions: maps.lines().filter(|line| line.contains("memfd:vyre")).count(),
            threads: entries("/proc/self/task")?,
            children,
        })
    }
}

#[derive(Default)]
struct Counts {
    right: AtomicU64,
    wrong: AtomicU64,
    twice: AtomicU64,
    lost: AtomicU64,
    faults: Mutex<BTreeMap<String, u64>>,
}

impl Counts {
    fn settle(&self, session: &PersistentSession, (ticket, expected): (Ticket, u64)) {
        match session.wait(&ticket, WAIT) {
            Ok(done) if done.result() == expected => self.right.fetch_add(1, Ordering::Relaxed),
            Ok(_) => self.wrong.fetch_add(1, Ordering::Relaxed),
            Err(MegakernelError::Faulted { fault, .. }) => {
                let expected = matches!(fault, Fault::DeviceLost | Fault::Quarantined);
                if !expected {
                    self.wrong.fetch_add(1, Ordering::Relaxed);
                }
                if let Ok(mut faults) = self.faults.lock() {
                    *faults.entry(format!("{fault:?}")).or_default() += 1;
                }
                0
            }
            Err(error) => {
                eprintln!("a ticket without an answer: {error:?}");
                self.lost.fetch_add(1, Ordering::Relaxed)
            }
        };
        if session.take(&ticket).is_ok() {
            self.twice.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Submits until told to stop; how many.
fn produce(
    session: &PersistentSession,
    producer: u32,
    counts: &Counts,
    over: &AtomicBool,
) -> Result<u64, Failure> {
    let mut open = VecDeque::new();
    let (mut number, mut submitted) = (producer, 0);
    while !over.load(Ordering::Relaxed) {
        number = number.wrapping_add(PRODUCERS) & 0x7FFF_FFFF;
        let opcode = if number % 8 < PRODUCERS { REPLAYABLE } else { ONCE };
        match session.submit(SlotDescriptor::new(opcode).args([number])) {
            Ok(ticket) => {
                submitted += 1;
                open.push_back((ticket, u64::from(number) + 1));
            }
            Err(MegakernelError::RingFull { .. }) => {
                if let Some(oldest) = open.pop_front() {
                    counts.settle(session, oldest);
                }
            }
            // A second loss during a recovery: the session leaves that to us.
            Err(MegakernelError::SessionClosed { .. }) => drop(session.recover_after_device_loss()),
            Err(error) => return Err(error.into()),
        }
    }
    while let Some(oldest) = open.pop_front() {
        counts.settle(session, oldest);
    }
    Ok(submitted)
}

fn open(name: &str) -> Result<Arc<IsolatedBackend>, Failure> {
    let options = IsolatedOptions::new(name)
        .crash_budget(u32::MAX, WAIT)
        .silence(SILENCE)
        .start_deadline(Duration::from_secs(1))
        .arena_bytes(1 << 20);
    let mut last = None;
    // One that is doomed may not live to be opened.
    for _ in 0..20 {
        match IsolatedBackend::open(options.clone()) {
            Ok(backend) => return Ok(Arc::new(backend)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| "not opened".into(), |error| error.into()))
}

fn start(backend: &Arc<IsolatedBackend>) -> Result<PersistentSession, Failure> {
    let add_one = |opcode, name: &str| OpcodeHandler::new(opcode, name, |h| h.complete(h.arg(0) + 1));
    for _ in 0..50 {
        let started = Megakernel::builder(Arc::clone(backend) as Arc<dyn VyreBackend>)
            .handler(add_one(REPLAYABLE, "replayable").replayable(true))
            .handler(add_one(ONCE, "once"))
            .build()
            .and_then(|megakernel| megakernel.start_with(SessionOptions::new().slots(1024)));
        match started {
            Ok(session) => return Ok(session),
            Err(error) if error.is_device_loss() => drop(backend.recover()),
            Err(error) => return Err(error.into()),
        }
    }
    Err("no session in fifty attempts".into())
}

/// Producers against faults.
fn storm(name: &str, faults: u64) -> Result<(), Failure> {
    let backend = open(name)?;
    let session = start(&backend)?;
    let (counts, over) = (Counts::default(), AtomicBool::new(false));
    let started = Instant::now();
    let first = backend_generation(&backend);
    let submitted = std::thread::scope(|scope| -> Result<u64, Failure> {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (session, counts, over) = (&session, &counts, &over);
                scope.spawn(move || produce(session, producer, counts, over))
            })
            .collect();
        let mut random = Random(0x2545_F491_4F6C_DD1D);
        let signals = [Signal::KILL, Signal::KILL, Signal::TERM, Signal::ABORT, Signal::ILL, Signal::BUS];
        let mut shown = Instant::now();
        while backend_generation(&backend) - first < faults && started.elapsed() < Duration::from_secs(560) {
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            let signal = signals.get(random.below(6) as usize).copied().unwrap_or(Signal::KILL);
            if let Some(pid) = backend.worker_pid().and_then(|pid| Pid::from_raw(pid as i32)) {
                // It may have gone by itself.
                let _ = kill_process(pid, signal);
            }
            if shown.elapsed() > Duration::from_secs(10) {
                shown = Instant::now();
                eprintln!("{} workers lost", backend_generation(&backend) - first);
            }
        }
        over.store(true, Ordering::Relaxed);
        producers.into_iter().map(|thread| thread.join().map_err(|_| "a producer panicked")?).sum()
    })?;
    let telemetry = session.telemetry();
    let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let faulted: u64 = counts.faults.lock().map_or(0, |faults| faults.values().sum());
    println!("{name}: {} workers lost in {:.1?}", backend_generation(&backend) - first, started.elapsed());
    println!("  {submitted} tickets: {} right, {faulted} answered by a fault", load(&counts.right));
    println!("  faults: {:?}", counts.faults.lock().map(|faults| faults.clone()).unwrap_or_default());
    let bad = [load(&counts.lost), load(&counts.wrong), load(&counts.twice)];
    println!("  {} lost, {} wrong, {} answered twice", bad[0], bad[1], bad[2]);
    println!("  {} recoveries of the session, {} starts", telemetry.recoveries, telemetry.starts);
    if submitted != load(&counts.right) + faulted || bad != [0; 3] {
        return Err("tickets do not add up".into());
    }
    // It may be lost once more.
    if let Err(error) = session.stop() {
        println!("  the session ended with: {error}");
    }
    Ok(())
}

fn backend_generation(backend: &IsolatedBackend) -> u64 {
    backend.generation().0
}

/// From a death that the kernel reports to the error of a caller that waits in a dispatch.
fn death_to_error(rounds: usize) -> Result<Vec<Duration>, Failure> {
    let backend = open("cpu")?;
    let program = validate(text::parse(SPIN)?)?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 1))?;
        let pipeline = backend.compile(&program)?;
        let pid = backend.worker_pid().and_then(|pid| Pid::from_raw(pid as i32)).ok_or("no process")?;
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let elapsed = std::thread::scope(|scope| -> Result<Duration, Failure> {
            let caller = scope.spawn(|| {
                let answer = pipeline.dispatch(&[data.binding()], &DispatchConfig::new([1, 1, 1]));
                (Instant::now(), answer)
            });
            std::thread::sleep(Duration::from_millis(5));
            let watcher = scope.spawn(|| {
                let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
                let polled = rustix::event::poll(&mut fds, None);
                (Instant::now(), polled)
            });
            std::thread::sleep(Duration::from_millis(5));
            kill_process(pid, Signal::KILL)?;
            let (reported, polled) = watcher.join().map_err(|_| "the watcher panicked")?;
            polled?;
            let (told, answer) = caller.join().map_err(|_| "the caller panicked")?;
            match answer {
                Err(BackendError::DeviceLost(loss)) if loss.cause == LossCause::Killed => {}
                other => return Err(format!("{other:?} for an answer").into()),
            }
            Ok(told.saturating_duration_since(reported))
        })?;
        times.push(elapsed);
        backend.recover()?;
    }
    times.sort();
    Ok(times)
}

fn main() -> Result<(), Failure> {
    vyre_worker::init(&registry());
    let mut faults = 1000;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next().and_then(|value| value.parse().ok())) {
            ("--faults", Some(value)) => faults = value,
            _ => return Err("usage: inject [--faults N]".into()),
        }
    }
    // Once over everything, so that what a first time leaves behind is no leak.
    storm("doomed", 5)?;
    let before = Held::now()?;
    storm("doomed", faults)?;
    let times = death_to_error(100)?;
    let at = |part: f64| times.get((part * (times.len() - 1) as f64) as usize).copied().unwrap_or_default();
    println!(
        "death reported to error of a caller, 100 kills: p50 {:?}, p99 {:?}, max {:?}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    let after = Held::now()?;
    println!("held before: {before:?}\nheld after:  {after:?}");
    if before != after {
        return Err("something leaked".into());
    }
    let late = times.iter().filter(|time| **time > Duration::from_millis(5)).count();
    println!("later than 5 ms: {late} of {}", times.len());
    Ok(())
}
