//! What a session's own threads and those of its user may do to each other.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use support::*;
use vyre_cpu::CpuBackend;
use vyre_driver::ring::RingError;
use vyre_foundation::builder::Operand;
use vyre_foundation::{DataType, MemorySpace};
use vyre_runtime::{
    HandlerBinding, MegakernelError, OpcodeHandler, PersistentSession, SessionOptions, WindowClass,
    WindowDescriptor,
};

/// The kernel leaves again and again, so the session serves only as long as its thread starts it again.
const NO_LEASE: Duration = Duration::from_micros(1);

fn start(options: SessionOptions) -> PersistentSession {
    builder(Arc::new(CpuBackend::new()))
        .build()
        .expect("a megakernel")
        .start_with(options)
        .expect("a session")
}

/// Waits until the session's thread has started another kernel or two.
fn looked_after(session: &PersistentSession) {
    let (before, started) = (session.telemetry().starts, Instant::now());
    while session.telemetry().starts < before + 2 {
        assert!(started.elapsed() < WAIT, "nobody looks after the session: {:?}", session.telemetry());
        thread::yield_now();
    }
}

fn codes(session: &PersistentSession, codes: &[u32]) {
    for &code in codes {
        session.submit_detached(item(TRAP, &[code])).expect("submitted");
    }
}

#[test]
fn a_handler_of_detached_faults_may_take_its_time() {
    let (begun, begins) = mpsc::sync_channel(1);
    let (go_on, goes_on) = mpsc::sync_channel::<()>(1);
    let goes_on = std::sync::Mutex::new(goes_on);
    let session = start(SessionOptions::new().lease(NO_LEASE).on_detached_fault(move |_, completion| {
        begun.send(completion.code()).expect("awaited");
        goes_on.lock().expect("one thread").recv_timeout(WAIT).expect("told to go on");
    }));
    codes(&session, &[5, 6]);
    for fault in ["the first fault", "the second fault"] {
        // Its code, or that it was cut short.
        begins.recv_timeout(WAIT).expect(fault);
        looked_after(&session);
        go_on.send(()).expect("awaited");
    }
    session.stop().expect("stopped");
}

#[test]
fn a_handler_of_detached_faults_may_panic() {
    let told = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&told);
    let session = start(SessionOptions::new().lease(NO_LEASE).on_detached_fault(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        panic!("as the test wants it");
    }));
    codes(&session, &[1, 2, 3]);
    looked_after(&session);
    session.stop().expect("stopped");
    assert_eq!(told.load(Ordering::Relaxed), 3);
}

#[test]
fn a_handler_of_detached_faults_may_stop_the_session() {
    let (send, receive) = mpsc::channel::<PersistentSession>();
    let receive = std::sync::Mutex::new(receive);
    let (stopped, stops) = mpsc::channel();
    let session = start(SessionOptions::new().on_detached_fault(move |_, _| {
        let session = receive.lock().expect("one thread").recv_timeout(WAIT).expect("a session");
        stopped.send(session.stop().is_ok()).expect("awaited");
    }));
    send.send(session.clone()).expect("awaited");
    codes(&session, &[1]);
    assert_eq!(stops.recv_timeout(WAIT), Ok(true));
}

#[test]
fn a_refused_stop_stops_nothing() {
    let session = start(SessionOptions::new().lease(NO_LEASE));
    let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
    thread::scope(|scope| {
        let first = scope.spawn(|| session.stop());
        // Whoever comes second is refused; until there is a first, an item is not.
        let started = Instant::now();
        while !matches!(
            session.submit_detached(item(ADD_ONE, &[0])),
            Err(MegakernelError::SessionClosed { .. })
        ) {
            assert!(started.elapsed() < WAIT, "the session was not stopped");
        }
        assert!(matches!(session.stop(), Err(MegakernelError::SessionClosed { .. })));
        looked_after(&session);
        set_gate(&session, 0, true);
        first.join().expect("no panic").expect("stopped");
    });
    assert_eq!(session.wait(held, WAIT).expect("answered").result(), 7);
}

#[test]
fn the_id_of_a_window_is_not_free_while_somebody_waits_for_it() {
    let session = start(SessionOptions::new().slots(8));
    let window = WindowDescriptor::new(GATED, 0).required([0, 0]).lookahead([0, 0]);
    session.submit_window(&window).expect("fits");
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            loop {
                match session.wait_window(0, WindowClass::Required, WAIT) {
                    Err(MegakernelError::WindowBusy { window_id: 0 }) => thread::yield_now(),
                    answered => return answered,
                }
            }
        });
        let started = Instant::now();
        loop {
            match session.wait_window(0, WindowClass::Required, Duration::ZERO) {
                Err(MegakernelError::WindowBusy { window_id: 0 }) => break,
                other => assert!(matches!(other, Err(MegakernelError::Deadline { .. })), "{other:?}"),
            }
            assert!(started.elapsed() < WAIT, "nobody waits");
        }
        assert_eq!(session.cancel_lookahead(0).expect("nobody waits for those"), 1);
        let again = session.submit_window(&window).expect_err("somebody waits for it");
        assert!(matches!(again, MegakernelError::MalformedDescriptor { .. }), "{again:?}");
        set_gate(&session, 0, true);
        assert_eq!(waits.join().expect("no panic").expect("answered").len(), 1);
    });
    session.submit_window(&window).expect("its id is free again");
}

#[test]
fn a_window_whose_items_were_reaped_is_closed_by_whoever_asks() {
    let session = start(SessionOptions::new().slots(8));
    let window = WindowDescriptor::new(ADD_ONE, 3).required([]).required([]).lookahead([]).lookahead([]);
    for _ in 0..20 {
        session.submit_window(&window).expect("its id is free");
        session.drain(WAIT).expect("drained");
        assert_eq!(session.reap(|_, _| {}), 4);
        let taken = session.wait_window(3, WindowClass::Required, WAIT);
        assert!(
            matches!(&taken, Err(MegakernelError::Ring { source: RingError::AlreadyTaken { .. }, .. })),
            "{taken:?}"
        );
        assert_eq!(session.cancel_lookahead(3).expect("open"), 0);
    }
}

#[test]
fn a_window_that_was_reaped_in_part_stays_incomplete_over_a_deadline() {
    const GATED_BY_PAYLOAD: u32 = 0x50;
    // It runs again and again rather than on and on: items that run side by side end together.
    let gated = OpcodeHandler::new(GATED_BY_PAYLOAD, "gated_by_payload", |h| {
        let gates = h.buffer("gates");
        let open = h.atomic_load(gates, h.arg(2));
        h.if_(open.eq_(0), |h| h.requeue([h.arg(0), h.arg(1), h.arg(2)]));
        h.complete(0_u32);
    })
    .binding(HandlerBinding::read("gates", DataType::U32).in_space(MemorySpace::HostVisible));
    let megakernel = builder(Arc::new(CpuBackend::new())).handler(gated).build().expect("a megakernel");
    let session = megakernel.start_with(SessionOptions::new().slots(8)).expect("a session");
    set_gate(&session, 0, true);
    let window = WindowDescriptor::new(GATED_BY_PAYLOAD, 3).required([0]).required([1]);
    session.submit_window(&window).expect("fits");
    let started = Instant::now();
    while session.reap(|_, _| {}) == 0 {
        assert!(started.elapsed() < WAIT, "the first item does not end");
        thread::yield_now();
    }
    let early = session.wait_window(3, WindowClass::Required, Duration::ZERO);
    assert!(matches!(early, Err(MegakernelError::Deadline { .. })), "{early:?}");
    set_gate(&session, 1, true);
    let taken = session.wait_window(3, WindowClass::Required, WAIT);
    assert!(
        matches!(&taken, Err(MegakernelError::Ring { source: RingError::AlreadyTaken { .. }, .. })),
        "{taken:?}"
    );
}
