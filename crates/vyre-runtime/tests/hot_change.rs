//! Handlers changed while a session lives.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{ADD_ONE, GATED, SUM_PAYLOAD, TOTAL, TRAP, WAIT, builder, item, set_gate, until_claimed};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::ring::SlotImage;
use vyre_driver::{Fault, VyreBackend};
use vyre_foundation::builder::Operand;
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, Granularity, MemorySpace};
use vyre_runtime::conformance::run_changes;
use vyre_runtime::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{
    BuiltinOpcode, HandlerBinding, HandlerUpdate, Megakernel, MegakernelError, OpcodeHandler,
    PersistentSession, SessionOptions, SlotDescriptor, TenantConfig,
};

/// An opcode that the fixture does not have.
const NEW: u32 = 0x60;

fn add(opcode: u32, n: u32) -> OpcodeHandler {
    OpcodeHandler::new(opcode, format!("add_{n}"), move |h| h.complete(h.arg(0) + n)).replayable(true)
}

fn start(options: SessionOptions) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(2));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let built = builder(Arc::clone(&backend) as _).tenant(3, TenantConfig::permitting([ADD_ONE])).build();
    let session = built.expect("a megakernel").start_with(options).expect("a session");
    (backend, session)
}

fn run(session: &PersistentSession, slot: SlotDescriptor) -> Result<u64, Fault> {
    let ticket = session.submit(slot).expect("submitted");
    match session.wait(ticket, WAIT) {
        Ok(done) => Ok(done.result()),
        Err(MegakernelError::Faulted { fault, .. }) => Err(fault),
        Err(other) => panic!("{other:?}"),
    }
}

/// What the device says to an item that the host did not look at.
fn run_image(session: &PersistentSession, opcode: u32, tenant: u16) -> Option<Fault> {
    let ticket =
        session.submit_image(&SlotImage { opcode, tenant, ..SlotImage::default() }).expect("submitted");
    session.drain(WAIT).expect("drained");
    session.take(&ticket).expect("ours").expect("answered").as_fault()
}

fn count(session: &PersistentSession, opcode: u32) -> Option<u64> {
    session.quiesce(WAIT).expect("counters are mirrored");
    let telemetry = session.telemetry();
    session.restart(WAIT).expect("restarted");
    telemetry.opcodes.iter().find(|count| count.opcode.wire() == opcode).map(|count| count.items)
}

#[test]
fn a_change_every_ten_milliseconds_under_four_producers_loses_nothing() {
    for threads in [1, 2, 4] {
        let cpu = CpuBackend::with_config(CpuConfig::default().threads(threads));
        let backend: Arc<dyn VyreBackend> = Arc::new(cpu);
        let changes = run_changes(&backend, 40, Duration::from_millis(10)).expect("conforms");
        let numbers: Vec<u64> = changes.iter().map(|change| change.number).collect();
        assert_eq!(numbers, (1..=40).collect::<Vec<u64>>());
        assert!(changes.iter().all(|change| change.left_in <= change.pause && change.pause > Duration::ZERO));
    }
}

#[test]
fn what_was_claimed_ends_under_the_old_handler_and_what_was_not_runs_under_the_new_one() {
    let (backend, session) = start(SessionOptions::new());
    let claimed = session.submit(item(GATED, &[0, 7])).expect("submitted");
    until_claimed(&session, 1);
    // It claims no more from here on, and cannot leave.
    let expired = session.quiesce(Duration::from_millis(5)).expect_err("an item is running");
    assert!(matches!(expired, MegakernelError::Deadline { .. }), "{expired:?}");
    let queued: Vec<_> = (0..40).map(|n| session.submit(item(GATED, &[n])).expect("accepted")).collect();
    std::thread::scope(|scope| {
        let changed = scope.spawn(|| session.replace_handler(add(GATED, 100), WAIT));
        while backend.passes(FaultPoint::Quiesce) < 2 {
            std::thread::yield_now();
        }
        assert!(session.poll(&claimed).expect("ours").is_none() && !changed.is_finished());
        set_gate(&session, 0, true);
        changed.join().expect("no panic").expect("changed");
    });
    assert_eq!(session.wait(claimed, WAIT).expect("answered").result(), 7);
    for (n, ticket) in (100..).zip(queued) {
        assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), n);
    }
}

#[test]
fn opcodes_come_and_go_and_keep_their_places() {
    let (_, session) = start(SessionOptions::new().reserve_handlers(1));
    let unknown = session.submit(item(NEW, &[1])).expect_err("nobody serves it");
    assert!(matches!(unknown, MegakernelError::UnknownOpcode { .. }));
    session.add_handler(add(NEW, 10), WAIT).expect("added");
    assert_eq!(run(&session, item(NEW, &[1])), Ok(11));
    assert_eq!(run(&session, item(ADD_ONE, &[1])), Ok(2));
    let full = session.add_handler(add(NEW + 1, 1), WAIT).expect_err("one place was reserved");
    assert!(matches!(&full, MegakernelError::InvalidGeometry { got: 9, .. }), "{full:?}");
    assert!(full.to_string().contains("reserve_handlers"), "{full}");

    // Queued when it is removed, and submitted afterwards past the host's checks.
    session.quiesce(WAIT).expect("quiesced");
    let queued = session.submit(item(NEW, &[1])).expect("accepted");
    let change = session.update_handlers(HandlerUpdate::new().remove_handler(NEW), WAIT).expect("removed");
    assert_eq!((change.number, change.pause), (2, Duration::ZERO));
    assert!(session.poll(&queued).expect("ours").is_none(), "the session stays quiesced");
    session.restart(WAIT).expect("restarted");
    let fault = session.wait(queued, WAIT).expect_err("nobody serves it any more");
    assert!(matches!(fault, MegakernelError::Faulted { fault: Fault::UnknownOpcode, .. }), "{fault:?}");
    let unknown = session.submit(item(NEW, &[1])).expect_err("refused by the host");
    assert!(matches!(unknown, MegakernelError::UnknownOpcode { .. }));
    assert_eq!(run_image(&session, NEW, 0), Some(Fault::UnknownOpcode));

    // Back in its old place, where its counter goes on; there is still no place for another.
    session.add_handler(add(NEW, 20), WAIT).expect("added again");
    assert_eq!(run(&session, item(NEW, &[1])), Ok(21));
    assert_eq!(count(&session, NEW), Some(2));
    assert_eq!(count(&session, ADD_ONE), Some(1));
    assert!(session.add_handler(add(NEW + 1, 1), WAIT).is_err());
    session.stop().expect("stopped");
}

#[test]
fn tenants_limited_to_some_opcodes_stay_so() {
    let (_, session) = start(SessionOptions::new());
    session.add_handler(add(NEW, 10), WAIT).expect("added");
    let refused = session.submit(item(NEW, &[1]).tenant(3)).expect_err("not permitted");
    assert!(matches!(refused, MegakernelError::PermissionDenied { tenant: 3, .. }));
    assert_eq!(run_image(&session, NEW, 3), Some(Fault::Permission));
    assert_eq!(run_image(&session, NEW, 0), None);
    session.replace_handler(add(ADD_ONE, 5), WAIT).expect("replaced");
    assert_eq!(run(&session, item(ADD_ONE, &[1]).tenant(3)), Ok(6));
    session.update_handlers(HandlerUpdate::new().remove_handler(ADD_ONE), WAIT).expect("removed");
    session.add_handler(add(ADD_ONE, 7), WAIT).expect("added again");
    assert_eq!(run(&session, item(ADD_ONE, &[1]).tenant(3)), Ok(8));
}

#[test]
fn state_payloads_and_new_buffers_are_there_after_a_change() {
    let (_, session) = start(SessionOptions::new().arena_bytes(256));
    let word = SlotDescriptor::new(BuiltinOpcode::StoreU32).args([77, 3]);
    assert_eq!(run(&session, word), Ok(0));
    assert_eq!(run(&session, item(TOTAL, &[5])), Ok(5));
    let mut payload = session.payload(16).expect("fits");
    payload.write(0, &[2; 16]).expect("inside");

    let scaled = OpcodeHandler::new(NEW, "scaled", |h| {
        let scales = h.buffer("scales");
        h.complete(h.arg(0) * scales.load(h.arg(1)));
    });
    let scales = HandlerBinding::read("scales", DataType::U32).min_len(2);
    let update = HandlerUpdate::new().add_handler(scaled.binding(scales));
    let scales: Vec<u8> = [3_u32, 10].into_iter().flat_map(u32::to_le_bytes).collect();
    session.update_handlers(update.bind_bytes("scales", scales), WAIT).expect("added");
    assert_eq!(run(&session, item(NEW, &[7, 1])), Ok(70));
    session.upload("scales", 4, &11_u32.to_le_bytes()).expect("bound");
    assert_eq!(run(&session, item(NEW, &[7, 1])), Ok(77));

    assert_eq!(run(&session, item(TOTAL, &[1])), Ok(6));
    let word = SlotDescriptor::new(BuiltinOpcode::AtomicAdd).args([1, 3]);
    assert_eq!(run(&session, word), Ok(77));
    assert_eq!(run(&session, item(SUM_PAYLOAD, &[payload.offset(), 16])), Ok(32));

    // A whole workgroup where there was a lane, and none where there was one.
    let ids = OpcodeHandler::new(NEW, "ids", |h| {
        let sum = h.buffer("sum");
        let id = h.let_("id", Builtin::LocalId(Axis::X));
        h.if_(id.eq_(0), |h| h.atomic_store(sum, 0, 0));
        h.barrier();
        h.atomic_add(sum, 0, id);
        h.barrier();
        let total = h.atomic_load(sum, 0);
        h.complete(total);
    })
    .workgroup_buffer("sum", DataType::U32, 1)
    .granularity(Granularity::Workgroup);
    session.replace_handler(ids, WAIT).expect("replaced");
    assert_eq!(run(&session, item(NEW, &[])), Ok(31 * 32 / 2));
    session.replace_handler(add(NEW, 1), WAIT).expect("replaced");
    assert_eq!(run(&session, item(NEW, &[1])), Ok(2));
}

#[test]
fn a_change_that_is_refused_changes_nothing() {
    let (backend, session) = start(SessionOptions::new());
    let starts = session.telemetry().starts;
    let with = |name: &str, binding: HandlerBinding| {
        let name = name.to_owned();
        OpcodeHandler::new(NEW, "new", move |h| {
            let len = h.buffer(&name).len();
            h.complete(len);
        })
        .binding(binding)
    };
    let total = HandlerBinding::read_write("total", DataType::U32);
    let payload = HandlerBinding::read(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible);
    let writes = HandlerBinding { access: BufferAccess::ReadWrite, ..payload };
    let update = HandlerUpdate::new;
    let binding = |error: &MegakernelError| matches!(error, MegakernelError::InvalidBinding { .. });
    type Expected<'e> = &'e dyn Fn(&MegakernelError) -> bool;
    let table: [(&str, HandlerUpdate, Expected<'_>); 12] = [
        ("known", update().add_handler(add(ADD_ONE, 1)), &|e| {
            matches!(e, MegakernelError::DuplicateOpcode { .. })
        }),
        ("unknown", update().replace_handler(add(NEW, 1)), &|e| {
            matches!(e, MegakernelError::UnknownOpcode { .. })
        }),
        ("nobody", update().remove_handler(NEW), &|e| matches!(e, MegakernelError::UnknownOpcode { .. })),
        ("built in", update().remove_handler(0), &|e| matches!(e, MegakernelError::UnknownOpcode { .. })),
        ("reserved", update().add_handler(add(0, 1)), &|e| {
            matches!(e, MegakernelError::ReservedOpcode { .. })
        }),
        (
            "twice",
            update().replace_handler(add(ADD_ONE, 9)).add_handler(add(NEW, 1)).add_handler(add(NEW, 2)),
            &|e| matches!(e, MegakernelError::DuplicateOpcode { .. }),
        ),
        (
            "no such buffer",
            update().replace_handler(OpcodeHandler::new(ADD_ONE, "names", |h| {
                let nothing = h.buffer("nothing").load(0);
                h.complete(nothing);
            })),
            &|e| matches!(e, MegakernelError::InvalidHandler { .. }),
        ),
        (
            "unbound",
            update().add_handler(with("fresh", HandlerBinding::read("fresh", DataType::U32))),
            &binding,
        ),
        (
            "another shape",
            update().add_handler(with("total", HandlerBinding::read("total", DataType::U8))),
            &binding,
        ),
        ("too long", update().add_handler(with("total", total.min_len(2))), &binding),
        ("writes payloads", update().add_handler(with(PAYLOAD_BINDING, writes)), &binding),
        ("bound before", update().replace_handler(add(ADD_ONE, 9)).bind_zeroed("gates", 8), &binding),
    ];
    for (what, update, expected) in table {
        let error = session.update_handlers(update, WAIT).expect_err(what);
        assert!(expected(&error), "{what}: {error:?}");
    }
    for point in [FaultPoint::CompileResident, FaultPoint::CreateBuffer] {
        backend.arm(point, 0, InjectedFault::Failure);
        let fresh = HandlerBinding::read("fresh", DataType::U32).min_len(1);
        let update = update().replace_handler(add(ADD_ONE, 9)).add_handler(with("fresh", fresh));
        let error = session.update_handlers(update, WAIT).expect_err("the backend refuses");
        assert!(matches!(error, MegakernelError::Backend { .. }), "{error:?}");
    }
    assert_eq!(run(&session, item(ADD_ONE, &[1])), Ok(2));
    let telemetry = session.telemetry();
    assert_eq!((telemetry.starts, telemetry.last_change), (starts, None));
    // The new kernel does not start: the old one does.
    for point in [FaultPoint::Start, FaultPoint::AfterStart] {
        backend.arm(point, 0, InjectedFault::Failure);
        let fresh = HandlerBinding::read("fresh", DataType::U32).min_len(1);
        let update = update().replace_handler(add(ADD_ONE, 9)).add_handler(with("fresh", fresh));
        let error = session.update_handlers(update, WAIT).expect_err("the kernel does not start");
        assert!(matches!(error, MegakernelError::Backend { .. }), "{error:?}");
        assert_eq!(run(&session, item(ADD_ONE, &[1])), Ok(2));
        assert_eq!(run_image(&session, NEW, 0), Some(Fault::UnknownOpcode));
        assert!(session.download("fresh", 0, &mut [0; 4]).is_err(), "its buffer is gone again");
    }
    session.replace_handler(add(ADD_ONE, 9), WAIT).expect("replaced");
    assert_eq!(run(&session, item(ADD_ONE, &[1])), Ok(10));
}

#[test]
fn a_session_without_an_arena_gets_no_payload_handler() {
    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new())).handler(add(ADD_ONE, 1)).build();
    let session = megakernel.expect("a megakernel").start().expect("a session");
    let payload = HandlerBinding::read(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible);
    let error = session.add_handler(add(NEW, 1).binding(payload), WAIT).expect_err("there is no arena");
    assert!(error.to_string().contains("arena_bytes"), "{error}");
}

#[test]
fn a_loss_in_a_change_is_recovered_from_and_the_change_made_once_more() {
    for point in [
        FaultPoint::Quiesce,
        FaultPoint::Start,
        FaultPoint::AfterStart,
        FaultPoint::State,
        FaultPoint::Doorbell,
    ] {
        let (backend, session) = start(SessionOptions::new());
        let fresh = HandlerBinding::read("fresh", DataType::U32).min_len(1);
        let queued = session.submit(item(ADD_ONE, &[1])).expect("submitted");
        session.drain(WAIT).expect("drained");
        let update =
            HandlerUpdate::new().replace_handler(add(ADD_ONE, 9)).add_handler(add(NEW, 1).binding(fresh));
        backend.arm(point, 0, InjectedFault::Loss);
        session.update_handlers(update, WAIT).unwrap_or_else(|error| panic!("{point:?}: {error:?}"));
        assert_eq!(session.wait(queued, WAIT).expect("answered").result(), 2);
        assert_eq!(run(&session, item(ADD_ONE, &[1])), Ok(10), "{point:?}");
        assert_eq!(run(&session, item(NEW, &[1])), Ok(2), "{point:?}");
        // And one after it is recovered from with the new handlers.
        let recoveries = session.telemetry().recoveries;
        backend.lose("a test");
        while session.telemetry().recoveries == recoveries {
            std::thread::yield_now();
        }
        assert_eq!(run(&session, item(ADD_ONE, &[1])), Ok(10), "{point:?}");
        assert_eq!(run(&session, item(NEW, &[1])), Ok(2), "{point:?}");
        session.download("fresh", 0, &mut [0; 4]).expect("made again");
    }
}

#[test]
fn queued_items_are_replayed_as_the_handler_says_that_runs_them() {
    let (backend, session) = start(SessionOptions::new());
    let claimed = session.submit(item(GATED, &[0, 1])).expect("submitted");
    until_claimed(&session, 1);
    session.drain(Duration::ZERO).expect_err("it runs");
    drop(claimed);
    set_gate(&session, 0, true);
    // Not replayable any more.
    let once = OpcodeHandler::new(GATED, "once", |h| h.trap(h.arg(0)));
    session.replace_handler(once, WAIT).expect("replaced");
    session.quiesce(WAIT).expect("quiesced");
    let queued = session.submit(item(GATED, &[4])).expect("accepted");
    backend.lose("a test");
    session.restart(WAIT).expect("recovered");
    let fault = session.wait(queued, WAIT).expect_err("not replayed");
    assert!(matches!(fault, MegakernelError::Faulted { fault: Fault::DeviceLost, .. }), "{fault:?}");
}

#[test]
fn a_change_meets_a_stop_a_shutdown_and_other_changes() {
    for _ in 0..20 {
        let (_, session) = start(SessionOptions::new());
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (session, stopped) = (&session, &stopped);
                scope.spawn(move || {
                    for n in 0.. {
                        match session.replace_handler(add(ADD_ONE, n * 2 + thread), WAIT) {
                            Ok(_) => {}
                            Err(MegakernelError::SessionClosed { .. }) => break,
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    assert!(stopped.load(Ordering::SeqCst));
                });
            }
            let tickets: Vec<_> =
                (0..60).map(|_| session.submit(item(ADD_ONE, &[1])).expect("submitted")).collect();
            stopped.store(true, Ordering::SeqCst);
            session.stop().expect("stopped");
            for ticket in tickets {
                session.wait(ticket, WAIT).expect("answered");
            }
        });
        let telemetry = session.telemetry();
        assert_eq!((telemetry.done, telemetry.submitted), (60, 60));
        let late = session.replace_handler(add(ADD_ONE, 1), WAIT).expect_err("it was stopped");
        assert!(matches!(late, MegakernelError::SessionClosed { .. }));
    }
    for n in 0..20 {
        let (_, session) = start(SessionOptions::new());
        let shutdown = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
        session.wait(shutdown, WAIT).expect("answered");
        let refused = match n % 2 {
            0 => session.replace_handler(add(ADD_ONE, 1), WAIT).err(),
            _ => session.restart(WAIT).err(),
        };
        assert!(matches!(refused, Some(MegakernelError::SessionClosed { .. })), "{refused:?}");
        assert_eq!(session.telemetry().starts, 1);
    }
}

#[test]
fn an_item_that_does_not_end_in_time_keeps_its_handler() {
    let (_, session) = start(SessionOptions::new());
    let stuck = session.submit(item(GATED, &[0, 3])).expect("submitted");
    until_claimed(&session, 1);
    let expired = session.replace_handler(add(TRAP, 1), Duration::from_millis(5)).expect_err("it runs");
    assert!(matches!(expired, MegakernelError::Deadline { .. }), "{expired:?}");
    set_gate(&session, 0, true);
    assert_eq!(session.wait(stuck, WAIT).expect("answered").result(), 3);
    // Serves again by itself, with the handlers it had.
    assert_eq!(run(&session, item(TRAP, &[6])), Err(Fault::Trap(6)));
}
