//! Items that write files, across restarts and losses: a write is carried out once, or its handler said that twice is
//! as good.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use support::{ADD_ONE, WAIT, builder, item};
use vyre_cpu::CpuBackend;
use vyre_driver::{Fault, VyreBackend};
use vyre_foundation::DataType;
use vyre_runtime::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
use vyre_runtime::io_service::{IoResource, IoResources};
use vyre_runtime::session::Ticket;
use vyre_runtime::{
    Backing, DispatchOptions, HandlerBinding, Megakernel, MegakernelError, OpcodeHandler, PersistentSession,
    SessionOptions,
};

/// Handler: counts itself, stores `a0` in the only word of its buffer, and writes that.
const WRITE: u32 = 0x60;
/// Resource: [`WRITE`] may write it.
const FILE: u32 = 3;

fn handler(replayable: bool) -> OpcodeHandler {
    let backing = if replayable { Backing::HostBacked } else { Backing::Volatile };
    let word = |name| HandlerBinding::read_write(name, DataType::U32).min_len(1).backing(backing);
    OpcodeHandler::new(WRITE, "write", |h| {
        let (word, runs) = (h.buffer("word"), h.buffer("runs"));
        h.atomic_add(runs, 0, 1);
        h.store(word, 0, h.arg(0));
        h.io_write(FILE, 0, 4);
    })
    .binding(word("word"))
    .binding(word("runs"))
    .replayable(replayable)
}

fn resource(file: &File) -> IoResource {
    let file = file.try_clone().expect("another");
    IoResource::new(file, 0..4, "word", 0).and_then(IoResource::writable).expect("a file to write")
}

struct Fixture {
    backend: Arc<FaultInjectingBackend>,
    session: PersistentSession,
    file: File,
}

impl Fixture {
    fn new(replayable: bool) -> Fixture {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let megakernel = builder(Arc::clone(&backend) as _).handler(handler(replayable)).build();
        let options = SessionOptions::new().bind_zeroed("word", 1).bind_zeroed("runs", 1);
        let session = megakernel.expect("a megakernel").start_with(options).expect("a session");
        let file = tempfile::tempfile().expect("a file");
        session.register_resource(0, FILE, resource(&file)).expect("registered");
        Fixture { backend, session, file }
    }

    fn submit(&self, value: u32) -> Ticket {
        self.session.submit(item(WRITE, &[value])).expect("submitted")
    }

    fn answer(&self, ticket: &Ticket) -> Result<u64, Fault> {
        match self.session.wait(ticket, WAIT) {
            Ok(done) => Ok(done.result()),
            Err(MegakernelError::Faulted { fault, .. }) => Err(fault),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.file.metadata().expect("a file").len() as usize];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    fn runs(&self) -> u32 {
        let mut runs = [0; 4];
        self.session.download("runs", 0, &mut runs).expect("bound");
        u32::from_le_bytes(runs)
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn an_item_that_asked_is_not_run_again_by_a_restart() {
    let fixture = Fixture::new(false);
    fixture.backend.arm(FaultPoint::ReadBuffer, 0, InjectedFault::Stall);
    let ticket = fixture.submit(0x5EED);
    until("the write", || fixture.backend.is_stalled());
    let quiesces = fixture.backend.passes(FaultPoint::Quiesce);
    std::thread::scope(|scope| {
        let restarted = scope.spawn(|| fixture.session.restart(WAIT));
        until("the quiesce", || fixture.backend.passes(FaultPoint::Quiesce) > quiesces);
        fixture.backend.resume();
        restarted.join().expect("no panic").expect("restarted");
    });
    assert_eq!(fixture.answer(&ticket), Ok(4));
    assert_eq!((fixture.runs(), fixture.content()), (1, 0x5EED_u32.to_le_bytes().to_vec()));
    assert_eq!(fixture.session.telemetry().starts, 2);
}

#[test]
fn a_write_is_repeated_after_a_loss_only_if_its_handler_says_so() {
    for replayable in [false, true] {
        let fixture = Fixture::new(replayable);
        fixture.backend.arm(FaultPoint::ReadBuffer, 0, InjectedFault::Loss);
        let ticket = fixture.submit(0x5EED);
        let (answer, content) = match replayable {
            false => (Err(Fault::DeviceLost), Vec::new()),
            true => (Ok(4), 0x5EED_u32.to_le_bytes().to_vec()),
        };
        assert_eq!(fixture.answer(&ticket), answer, "replayable: {replayable}");
        // Whatever was to be served late is served before this.
        until("recovered", || fixture.session.telemetry().recoveries == 1);
        let after = fixture.session.submit(item(ADD_ONE, &[1])).expect("submitted");
        assert_eq!(fixture.answer(&after), Ok(2));
        assert_eq!(fixture.content(), content, "replayable: {replayable}");
    }
}

/// A batch's dispatch only asks. So one that is run again after a loss has written nothing yet, and what asked before a
/// loss is not written from buffers made after it.
#[test]
fn a_batch_writes_what_its_dispatch_computed_or_nothing() {
    let file = tempfile::tempfile().expect("a file");
    let resources = IoResources::default();
    resources.register(0, FILE, resource(&file));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
    let built = Megakernel::builder(Arc::clone(&backend) as Arc<dyn VyreBackend>)
        .slots(32)
        .workgroup_size(32)
        .handler(handler(true))
        .bind_zeroed("word", 1)
        .bind_zeroed("runs", 1)
        .build();
    let megakernel = built.expect("a megakernel");
    let options = DispatchOptions::default();
    let mut batch = megakernel.batch_buffers();
    batch.ring.publish(0, &item(WRITE, &[0x5EED])).expect("a free slot");
    let fresh = batch.clone();
    // Lost when all had run: run again, and asked once.
    backend.arm(FaultPoint::AfterDispatch, 0, InjectedFault::Loss);
    assert!(megakernel.dispatch(&mut batch, &options).expect("run again").recovered);
    assert_eq!(batch.io_queue.requests().count(), 1);
    assert_eq!(file.metadata().expect("a file").len(), 0);
    // Lost between the two: the word is gone.
    let mut before = batch.clone();
    backend.lose("a test");
    megakernel.recover_after_device_loss().expect("recovered");
    let refused = megakernel.serve_io(&resources, &mut before.io_queue);
    assert!(matches!(refused, Err(MegakernelError::Stale { .. })), "{refused:?}");
    assert_eq!(file.metadata().expect("a file").len(), 0);
    // From its first bytes.
    let mut batch = fresh;
    megakernel.dispatch(&mut batch, &options).expect("runs");
    assert_eq!(megakernel.serve_io(&resources, &mut batch.io_queue).expect("served"), 1);
    megakernel.dispatch(&mut batch, &options).expect("runs");
    assert_eq!(batch.ring.completion(0).expect("a slot").result, 4);
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 0).expect("written");
    assert_eq!(bytes, 0x5EED_u32.to_le_bytes());
}
