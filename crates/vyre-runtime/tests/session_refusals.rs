//! What sessions refuse, each by name and before anything is done; and what they leave behind.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{ADD_ONE, GATED, TRAP, WAIT, builder, item, set_gate, until_claimed};
use vyre_cpu::CpuBackend;
use vyre_driver::ring::{RingError, SlotImage};
use vyre_driver::{BackendError, Fault, PersistentThreadMode};
use vyre_foundation::{DataType, MemorySpace};
use vyre_runtime::session::PAYLOAD_BINDING;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, HandlerBinding, Megakernel, MegakernelError, OpcodeHandler,
    PersistentSession, SessionOptions, SlotDescriptor, TenantConfig,
};

fn megakernel() -> Megakernel {
    let tenant = TenantConfig::permitting([ADD_ONE]);
    builder(Arc::new(CpuBackend::new())).tenant(2, tenant).build().expect("a megakernel")
}

fn start() -> PersistentSession {
    megakernel().start().expect("a session")
}

#[test]
fn a_session_that_cannot_be_is_not_started() {
    let megakernel = megakernel();
    let refused = |options: SessionOptions| megakernel.start_with(options).expect_err("refused");
    for slots in [0, 3, 768] {
        let error = refused(SessionOptions::new().slots(slots));
        let got = u64::from(slots);
        assert!(matches!(error, MegakernelError::InvalidGeometry { got: g, .. } if g == got), "{error:?}");
    }
    let error = refused(SessionOptions::new().persistent(PersistentThreadMode::Disable));
    assert!(
        matches!(&error, MegakernelError::Backend { source: BackendError::Unsupported { .. }, .. }),
        "{error:?}"
    );
    for (what, options) in [
        ("nobody names it", SessionOptions::new().bind_zeroed("nothing", 1)),
        ("a system buffer", SessionOptions::new().bind_zeroed("windows", 1)),
        ("the session's own", SessionOptions::new().bind_zeroed(PAYLOAD_BINDING, 1)),
        ("too short", SessionOptions::new().bind_zeroed("table", 15)),
        ("no whole elements", SessionOptions::new().bind_bytes("gates", [0; 5])),
    ] {
        let error = refused(options);
        assert!(matches!(error, MegakernelError::InvalidBinding { .. }), "{what}: {error:?}");
    }
    let error = refused(SessionOptions::new().io_entries(3));
    assert!(matches!(&error, MegakernelError::Ring { source: RingError::Config { .. }, .. }), "{error:?}");
    megakernel.start_with(SessionOptions::new().persistent(PersistentThreadMode::Force)).expect("it can");

    let unbound = OpcodeHandler::new(0x60, "unbound", |h| h.complete(h.buffer("b").len()))
        .binding(HandlerBinding::read("b", DataType::U32));
    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new())).handler(unbound).build();
    let error = megakernel.expect("nothing is missing yet").start().expect_err("something is now");
    assert!(matches!(&error, MegakernelError::InvalidBinding { binding, .. } if binding == "b"));

    let writes = HandlerBinding::read_write(PAYLOAD_BINDING, DataType::U8).in_space(MemorySpace::HostVisible);
    let writer = OpcodeHandler::new(0x60, "writer", |h| h.complete(0_u32)).binding(writes);
    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new())).handler(writer).build();
    let error = megakernel.expect("batches could").start().expect_err("the payloads are the host's");
    assert!(matches!(&error, MegakernelError::InvalidBinding { binding, .. } if binding == PAYLOAD_BINDING));
}

#[test]
fn a_grid_barrier_in_a_handler_is_refused() {
    let handler = OpcodeHandler::new(0x60, "grid", |h| {
        h.push(vyre_foundation::Node::GridBarrier);
        h.complete(0_u32);
    });
    let error = Megakernel::builder(Arc::new(CpuBackend::new())).handler(handler).build();
    let error = error.expect_err("refused");
    assert!(
        matches!(error, MegakernelError::Validation { .. } | MegakernelError::InvalidHandler { .. }),
        "{error:?}"
    );
}

#[test]
fn wrong_items_are_refused_and_nothing_of_their_batch_is_submitted() {
    let session = start();
    let good = || item(ADD_ONE, &[1]);
    let shutdown = || SlotDescriptor::new(BuiltinOpcode::Shutdown);
    type Is = fn(&MegakernelError) -> bool;
    let table: [(&str, SlotDescriptor, Is); 8] = [
        ("no handler", item(0x99, &[]), |e| matches!(e, MegakernelError::UnknownOpcode { .. })),
        ("reserved", item(0xFFF7, &[]), |e| matches!(e, MegakernelError::ReservedOpcode { .. })),
        ("13 words", item(ADD_ONE, &[0; 13]), |e| matches!(e, MegakernelError::TooManyArgs { .. })),
        ("no tenant", good().tenant(1), |e| matches!(e, MegakernelError::UnknownTenant { tenant: 1 })),
        ("no such row", good().tenant(9), |e| matches!(e, MegakernelError::UnknownTenant { tenant: 9 })),
        ("not permitted", item(TRAP, &[]).tenant(2), |e| {
            matches!(e, MegakernelError::PermissionDenied { tenant: 2, .. })
        }),
        ("not packable", item(0x8000_0001, &[0x0000_0001 | 0x99 << 16]), |e| {
            matches!(e, MegakernelError::UnknownOpcode { .. } | MegakernelError::MalformedDescriptor { .. })
        }),
        ("an early SHUTDOWN", shutdown(), |e| matches!(e, MegakernelError::MalformedDescriptor { .. })),
    ];
    for (what, wrong, is) in table {
        let batch = BatchDescriptor::new().slot(good()).slot(wrong).slot(good());
        let error = session.submit_batch(&batch).expect_err(what);
        assert!(is(&error), "{what}: {error:?}");
        assert!(!error.is_retryable(), "{what}");
    }
    let error = session.submit_batch(vec![good(); 65].as_slice()).expect_err("too many");
    assert!(matches!(error, MegakernelError::BatchTooLarge { got: 65, limit: 64 }), "{error:?}");
    let flags = SlotImage { flags: 8, ..good().to_image().expect("right otherwise") };
    let error = session.submit_image(&flags).expect_err("reserved flags");
    assert!(matches!(&error, MegakernelError::Ring { source: RingError::ReservedFlags { .. }, .. }));
    assert_eq!(session.telemetry().submitted, 0);
    // Of another tenant it is an item like others, and the device refuses it.
    let other = session.submit_image(&SlotImage { tenant: 2, ..SlotImage::new(0xFFFF_FFFF, [0; 12]) });
    match session.wait(other.expect("submitted"), WAIT) {
        Err(MegakernelError::Faulted { fault: Fault::Permission, .. }) => {}
        other => panic!("{other:?}"),
    }
    session.submit(good()).map(drop).expect("the session runs");
}

#[test]
fn a_full_ring_names_the_oldest_ticket_not_taken() {
    let session = start();
    let tickets: Vec<_> = (0..64).map(|n| session.submit(item(ADD_ONE, &[n])).expect("fits")).collect();
    session.drain(WAIT).expect("drained");
    session.take(&tickets[0]).expect("ours").expect("answered");
    session.take(&tickets[2]).expect("ours").expect("answered");
    session.submit(item(ADD_ONE, &[0])).map(std::mem::forget).expect("there is room for one");
    let error = session.submit(item(ADD_ONE, &[0])).expect_err("full");
    assert!(
        matches!(error, MegakernelError::RingFull { capacity: 64, oldest_untaken: Some(1) }),
        "{error:?}"
    );
    let two = [item(ADD_ONE, &[0]), item(ADD_ONE, &[0])];
    assert!(session.submit_batch(two.as_slice()).expect_err("full").is_retryable());
    let mut reaped = 0;
    reaped += session.reap(|_, completion| assert!(completion.is_done()));
    session.drain(WAIT).expect("drained");
    reaped += session.reap(|_, completion| assert!(completion.is_done()));
    assert_eq!(reaped, 63);
    assert!(matches!(
        session.poll(&tickets[1]),
        Err(MegakernelError::Ring { source: RingError::AlreadyTaken { ticket: 1 }, .. })
    ));
    session.submit_batch(two.as_slice()).map(drop).expect("all the room there is");
}

#[test]
fn tickets_are_good_once_and_in_their_own_session() {
    let (session, other) = (start(), start());
    let ticket = session.submit(item(ADD_ONE, &[1])).expect("submitted");
    assert_ne!(ticket.session(), other.submit(item(ADD_ONE, &[1])).expect("submitted").session());
    for error in [other.poll(&ticket).err(), other.take(&ticket).err(), other.wait(&ticket, WAIT).err()] {
        assert!(
            matches!(error, Some(MegakernelError::Ring { source: RingError::Foreign { .. }, .. })),
            "{error:?}"
        );
    }
    session.wait(&ticket, WAIT).expect("answered");
    for error in [session.poll(&ticket).err(), session.take(&ticket).err(), session.wait(&ticket, WAIT).err()]
    {
        assert!(
            matches!(
                error,
                Some(MegakernelError::Ring { source: RingError::AlreadyTaken { ticket: 0 }, .. })
            ),
            "{error:?}"
        );
    }
}

#[test]
fn nothing_is_submitted_after_a_shutdown() {
    let session = start();
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
    for error in [
        session.submit(item(ADD_ONE, &[1])).map(drop).err(),
        session.submit_batch(&BatchDescriptor::new().slot(item(ADD_ONE, &[1]))).map(drop).err(),
        session.submit_detached(item(ADD_ONE, &[1])).err(),
    ] {
        let closed =
            matches!(&error, Some(MegakernelError::SessionClosed { state }) if state.contains("shut"));
        assert!(closed, "{error:?}");
    }
    assert_eq!(session.wait(last, WAIT).expect("answered").result(), 0);
    session.stop().expect("nothing is left");
}

/// Everything that a process holds open or runs, by its kernel's account.
fn held() -> (usize, usize) {
    let count = |of| std::fs::read_dir(of).expect("procfs").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

#[test]
fn a_dropped_session_leaves_nothing_behind() {
    // In a process of its own, because other tests start threads and open files.
    const CHILD: &str = "VYRE_TEST_SESSION_LEAKS";
    if std::env::var_os(CHILD).is_none() {
        let name = "a_dropped_session_leaves_nothing_behind";
        let this = std::env::current_exe().expect("a test is a program");
        let child = std::process::Command::new(this)
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("it runs");
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        return;
    }
    let megakernel = megakernel();
    let baseline = held();
    for round in 0..20 {
        let session = megakernel.start_with(SessionOptions::new().stop_deadline(WAIT)).expect("a session");
        // Sessions of one megakernel share its buffers.
        set_gate(&session, 0, false);
        let mut running = Some(session.submit(item(GATED, &[0, 0])).expect("submitted"));
        until_claimed(&session, 1);
        let kept = session.submit(item(ADD_ONE, &[1])).expect("submitted");
        match round % 4 {
            // Dropped with items running, some of which nobody holds.
            0 => running = None,
            1 => {
                set_gate(&session, 0, true);
                session.stop().expect("stopped");
            }
            2 => {
                set_gate(&session, 0, true);
                for _ in 0..10 {
                    session.restart(WAIT).expect("restarted");
                }
            }
            _ => {
                session.register_resource(0, 1, resource()).expect("registered");
                let clone = session.clone();
                std::thread::spawn(move || drop(clone)).join().expect("dropped");
            }
        }
        drop(session);
        // A ticket outlives its session, and is answered.
        assert!(kept.position() > 0);
        drop((kept, running));
        let started = std::time::Instant::now();
        // Threads that have done their last are gone a moment later.
        while held() != baseline {
            assert!(started.elapsed() < Duration::from_secs(5), "{baseline:?} became {:?}", held());
            std::thread::yield_now();
        }
    }
}

fn resource() -> vyre_runtime::io_service::IoResource {
    let file = tempfile::tempfile().expect("a file");
    vyre_runtime::io_service::IoResource::new(file, 0..0, "table", 0).expect("a range")
}
