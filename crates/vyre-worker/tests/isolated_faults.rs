//! Every fault at every step of the protocol: the caller gets a typed error, and the next worker serves.
//!
//! The fault is in the worker's process, between its host and its parent: a relay that passes every frame on, on
//! every lane, and does one thing wrong before or after one of them.

mod hosting;

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hosting::{WAIT, options};
use rustix::net::SendFlags;
use rustix::process::{Signal, getpid, kill_process};
use vyre_driver::{BackendError, BufferDesc, DispatchConfig, Generation, LossCause, VyreBackend};
use vyre_foundation::DataType;
use vyre_runtime::{
    Megakernel, MegakernelError, MegakernelRecoveryPolicy, OpcodeHandler, SessionOptions, SlotDescriptor,
};
use vyre_worker::host::{WORKER_FD, WORKER_VARIABLE};
use vyre_worker::sandbox::Sandbox;
use vyre_worker::wire::handshake::READY;
use vyre_worker::wire::{Channel, Frame, FrameHeader};
use vyre_worker::{IsolatedBackend, IsolatedOptions};

/// What goes wrong, and what a loss by it is.
const FAULTS: [(&str, LossCause); 16] = [
    ("kill", LossCause::Killed),
    ("segv", LossCause::Fault),
    ("stop", LossCause::Unresponsive),
    ("abort", LossCause::Fault),
    ("exit", LossCause::Fault),
    ("stderr", LossCause::Fault),
    ("close", LossCause::Fault),
    ("mute", LossCause::Unresponsive),
    ("garbage", LossCause::Fault),
    ("short", LossCause::Fault),
    ("oversized", LossCause::Fault),
    ("version", LossCause::Fault),
    ("kind", LossCause::Fault),
    ("request", LossCause::Fault),
    ("trailing", LossCause::Fault),
    ("other answer", LossCause::Fault),
];

/// What a worker may take for anything, on a busy machine.
const SLOW: Duration = Duration::from_secs(2);
/// All faults at all steps, which takes minutes; otherwise each step gets some of them.
const ALL: &str = "VYRE_TEST_ALL_FAULTS";

const FAULT: &str = "VYRE_TEST_FAULT";
const STEP: &str = "VYRE_TEST_STEP";
const AFTER: &str = "VYRE_TEST_AFTER";
const ONCE: &str = "VYRE_TEST_ONCE";

/// In the worker: one fault, once.
struct Relay {
    fault: String,
    step: u32,
    after: bool,
    once: PathBuf,
    frames: AtomicU32,
}

impl Relay {
    /// Puts itself between descriptor 3 and the host, if this process is to be faulty.
    fn install() -> Option<()> {
        std::env::var_os(WORKER_VARIABLE)?;
        let relay = Relay {
            fault: std::env::var(FAULT).ok()?,
            step: std::env::var(STEP).ok()?.parse().ok()?,
            after: std::env::var(AFTER).ok()? == "1",
            once: std::env::var_os(ONCE)?.into(),
            frames: AtomicU32::new(0),
        };
        // SAFETY: the parent passed it to be owned by whoever is first, and that is this.
        let socket = unsafe { OwnedFd::from_raw_fd(WORKER_FD) };
        let (ours, theirs) = Channel::pair().expect("a pair");
        let outer = Channel::from_fd(socket.try_clone().expect("a duplicate")).expect("a channel");
        let mut place = socket;
        rustix::io::dup2(theirs.fd(), &mut place).expect("in its place");
        // For the host to own.
        std::mem::forget(place);
        let relay = Arc::new(relay);
        std::thread::spawn(move || relay.run(&outer, ours));
        Some(())
    }

    fn run(self: Arc<Relay>, outer: &Channel, inner: Channel) {
        while let Ok(frame) = outer.receive(None) {
            let step = self.frames.fetch_add(1, Ordering::Relaxed);
            let due = step == self.step && std::fs::File::create_new(&self.once).is_ok();
            if due && !self.after && self.misbehave(outer, &frame) {
                return;
            }
            let Frame { kind, request, payload, fds } = frame;
            let fds: Vec<OwnedFd> = fds.into_iter().map(|fd| self.around(fd)).collect();
            let borrowed: Vec<_> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
            inner.send(kind, request, &payload, &borrowed, None).expect("the host listens");
            let Ok(answer) = inner.receive(None) else { return };
            if due && self.after && self.misbehave(outer, &answer) {
                return;
            }
            outer.send(answer.kind, answer.request, &answer.payload, &[], None).expect("the parent listens");
        }
    }

    /// The same descriptor, or the end of another relay if it is a lane's socket.
    fn around(self: &Arc<Relay>, fd: OwnedFd) -> OwnedFd {
        let Ok(outer) = Channel::from_fd(fd.try_clone().expect("a duplicate")) else { return fd };
        let (ours, theirs) = Channel::pair().expect("a pair");
        let relay = Arc::clone(self);
        std::thread::spawn(move || relay.run(&outer, ours));
        theirs.into_fd()
    }

    /// Whether that was the end of the lane.
    fn misbehave(&self, outer: &Channel, frame: &Frame) -> bool {
        let raw = |bytes: &[u8]| {
            rustix::net::send(outer.fd(), bytes, SendFlags::NOSIGNAL).expect("sent");
        };
        let payload = frame.payload.len() as u32;
        let header = FrameHeader { kind: frame.kind, payload, fds: 0, request: frame.request }.encode();
        match self.fault.as_str() {
            "kill" => drop(kill_process(getpid(), Signal::KILL)),
            // SAFETY: none; this is the fault.
            "segv" => unsafe { std::ptr::null_mut::<u32>().write_volatile(1) },
            "stop" => drop(kill_process(getpid(), Signal::STOP)),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "stderr" => {
                eprintln!("{}", "x".repeat(1 << 20));
                std::process::exit(7);
            }
            "close" => return true,
            "mute" => std::thread::sleep(20 * WAIT),
            "garbage" => raw(&[0xAA; 100]),
            "short" => raw(&header[..5]),
            "oversized" => {
                raw(&FrameHeader { kind: frame.kind, payload: u32::MAX, fds: 0, request: frame.request }
                    .encode())
            }
            "version" if frame.kind == READY => {
                let mut payload = frame.payload.clone();
                payload[0] ^= 1;
                outer.send(READY, frame.request, &payload, &[], None).expect("sent");
            }
            "version" => {
                let mut bytes = [header.as_slice(), &frame.payload].concat();
                bytes[4] ^= 0x80;
                raw(&bytes);
            }
            "kind" => outer.send(0x7F, frame.request, &frame.payload, &[], None).expect("sent"),
            "request" => {
                outer.send(frame.kind, frame.request + 1, &frame.payload, &[], None).expect("sent");
            }
            "trailing" => {
                let payload = [frame.payload.as_slice(), &[0]].concat();
                outer.send(frame.kind, frame.request, &payload, &[], None).expect("sent");
            }
            // How a kernel stands, and that it runs, which is the answer to nothing here.
            "other answer" => outer.send(0x50, frame.request, &[0, 5, 0], &[], None).expect("sent"),
            other => panic!("no fault is called {other}"),
        }
        // Whoever is alive has lied, and says nothing more on this lane.
        std::thread::sleep(WAIT);
        true
    }
}

/// A bit of everything that crosses the socket.
fn script(backend: &Arc<IsolatedBackend>) -> Result<(), MegakernelError> {
    let failed =
        |what: &'static str| move |source: BackendError| MegakernelError::Backend { attempted: what, source };
    let data = backend
        .create_buffer(&BufferDesc::new("data", DataType::U32, 100))
        .map_err(failed("create a buffer"))?;
    backend.write_buffer(data, 0, &21_u32.to_le_bytes().repeat(100)).map_err(failed("write"))?;
    let pipeline = backend.compile(&hosting::program(hosting::DOUBLE)).map_err(failed("compile"))?;
    let config = DispatchConfig { deadline: Some(SLOW), ..DispatchConfig::new([2, 1, 1]) };
    pipeline.dispatch(&[data.binding()], &config).map_err(failed("dispatch"))?;
    let mut doubled = [0; 400];
    backend.read_buffer(data, 0, &mut doubled).map_err(failed("read"))?;
    assert_eq!(doubled.as_slice(), 42_u32.to_le_bytes().repeat(100));
    backend.destroy_buffer(data).map_err(failed("destroy"))?;
    let megakernel = Megakernel::builder(Arc::clone(backend) as Arc<dyn VyreBackend>)
        .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)))
        .recovery(MegakernelRecoveryPolicy::Off)
        .build()?;
    let session = megakernel.start_with(SessionOptions::new().slots(64).stop_deadline(SLOW))?;
    for number in 0..20 {
        let ticket = session.submit(SlotDescriptor::new(0x40).args([number]))?;
        assert_eq!(session.wait(&ticket, WAIT)?.result(), u64::from(number) + 1);
    }
    session.stop()
}

fn faulty(fault: &str, step: u32, after: bool, once: &std::path::Path) -> IsolatedOptions {
    options()
        // The relay opens a file.
        .sandbox(Sandbox::None)
        .silence(SLOW)
        .start_deadline(SLOW)
        .call_deadline(SLOW)
        .compile_deadline(SLOW)
        .grace(SLOW)
        .env(FAULT, fault)
        .env(STEP, step.to_string())
        .env(AFTER, if after { "1" } else { "0" })
        .env(ONCE, once)
}

/// One fault at one step; whether there was such a step.
fn one(fault: &str, cause: LossCause, step: u32, after: bool) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let once = folder.path().join("once");
    let options = faulty(fault, step, after, &once);
    let at = format!("{fault} {} frame {step}", if after { "after" } else { "before" });
    let backend = match IsolatedBackend::open(options.clone()) {
        Ok(backend) => Arc::new(backend),
        Err(error) => {
            assert!(once.exists(), "{at}: {error:?}");
            let again = IsolatedBackend::open(options).unwrap_or_else(|error| panic!("{at}: {error:?}"));
            script(&Arc::new(again)).unwrap_or_else(|error| panic!("{at}: {error:?}"));
            return true;
        }
    };
    let first = script(&backend);
    if !once.exists() {
        first.unwrap_or_else(|error| panic!("{at}: nothing was wrong: {error:?}"));
        return false;
    }
    match first {
        // A lie that is a legal answer, or a fault after the last answer that mattered.
        Ok(()) => {}
        Err(error) => {
            let lost = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 1));
            let lost = lost.expect_err("lost until it is recovered");
            let loss = lost.loss().unwrap_or_else(|| panic!("{at}: {error:?}, {lost:?}"));
            assert_eq!(loss.cause, cause, "{at}: {loss}");
            assert_eq!(backend.recover().ok(), Some(Generation(2)), "{at}");
        }
    }
    script(&backend)
        .or_else(|_| {
            // Noticed only now.
            backend.recover().and_then(|_| backend.recover()).expect("recovers");
            script(&backend)
        })
        .unwrap_or_else(|error| panic!("{at}: {error:?}"));
    true
}

fn at_every_step(after: bool) {
    let all = std::env::var_os(ALL).is_some();
    let (next, ran, last) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(u32::MAX));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    let due = FAULTS.iter().zip(0_u32..).filter(|((_, cause), number)| {
                        // Those that cost a deadline come seldom.
                        let every = if *cause == LossCause::Unresponsive { 12 } else { 4 };
                        all || (step + number) % every == 0
                    });
                    for ((fault, cause), _) in due {
                        if !one(fault, *cause, step, after) {
                            last.fetch_min(step, Ordering::Relaxed);
                            return;
                        }
                        ran.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (ran, last) = (ran.into_inner(), last.into_inner());
    println!("{ran} faults at {last} frames");
    assert!(last > 30 && ran >= last * 3, "{ran} faults at {last} frames");
}

fn every_fault_before_every_frame() {
    at_every_step(false);
}

fn every_fault_after_every_frame() {
    at_every_step(true);
}

fn main() {
    Relay::install();
    hosting::run(tests![every_fault_before_every_frame, every_fault_after_every_frame]);
}
