//! Cancellation: what is queued ends without having begun, what has begun ends as ever, and each is answered once.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use support::{ADD_ONE, GATED, TOTAL, TRAP, WAIT, builder, item, set_gate, until_claimed};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::Fault;
use vyre_driver::ring::RingError;
use vyre_foundation::builder::Operand;
use vyre_foundation::{DataType, MemorySpace};
use vyre_runtime::fault_injection::FaultInjectingBackend;
use vyre_runtime::session::Ticket;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, HandlerBinding, MegakernelError, OpcodeHandler, PersistentSession,
    Priority, SessionOptions, SlotDescriptor, WindowClass, WindowDescriptor,
};

/// One worker, so that what is behind a gated item is queued.
fn start(options: SessionOptions) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(1));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let megakernel = builder(Arc::clone(&backend) as _).build().expect("a megakernel");
    (backend, megakernel.start_with(options).expect("a session"))
}

/// Holds the only worker until gate 0 is open.
fn hold(session: &PersistentSession) -> Ticket {
    let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
    until_claimed(session, 1);
    held
}

fn submit(session: &PersistentSession, opcode: u32, args: &[u32]) -> Ticket {
    session.submit(item(opcode, args)).expect("submitted")
}

/// The result, or the fault.
fn answer(session: &PersistentSession, ticket: &Ticket) -> Result<u64, Fault> {
    match session.wait(ticket, WAIT) {
        Ok(done) => Ok(done.result()),
        Err(MegakernelError::Faulted { fault, .. }) => Err(fault),
        Err(other) => panic!("{ticket:?}: {other:?}"),
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "{what}");
        std::thread::yield_now();
    }
}

fn total(session: &PersistentSession) -> u32 {
    let mut total = [0; 4];
    session.download("total", 0, &mut total).expect("bound");
    u32::from_le_bytes(total)
}

#[test]
fn queued_items_end_abandoned_and_their_neighbours_run() {
    for rings in [1, 3] {
        let (_, session) = start(SessionOptions::new().slots(512).priority_rings(rings));
        session.quiesce(WAIT).expect("quiesced");
        let mut tickets = Vec::new();
        for priority in [Priority::Low, Priority::Critical, Priority::Normal] {
            let batch: BatchDescriptor =
                (0..100).map(|n| item(TOTAL, &[1 << (n % 3 * 10)]).priority(priority)).collect();
            tickets.extend(session.submit_batch(&batch).expect("submitted"));
        }
        // Wave by wave all, some, and none.
        let is_cancelled = |n: usize| n % 100 < 32 || n % 3 == 1 && n % 100 < 64;
        for (n, ticket) in tickets.iter().enumerate() {
            assert!(!is_cancelled(n) || ticket.cancel().expect("a ticket"));
        }
        session.restart(WAIT).expect("restarted");
        let mut left = 0;
        for (n, ticket) in tickets.iter().enumerate() {
            let answer = answer(&session, ticket);
            assert_eq!(answer.err(), is_cancelled(n).then_some(Fault::Abandoned), "{n}");
            left += if is_cancelled(n) { 0 } else { 1 << (n % 100 % 3 * 10) };
        }
        assert_eq!(total(&session), left);
        session.stop().expect("stopped");
        let telemetry = session.telemetry();
        assert_eq!((telemetry.acknowledged, telemetry.faulted), (300, 0));
        assert_eq!(telemetry.done, (0..300).filter(|n| !is_cancelled(*n)).count() as u64);
    }
}

#[test]
fn what_has_begun_is_answered_already_or_was_taken_is_not_touched() {
    let (_, session) = start(SessionOptions::new());
    let held = hold(&session);
    assert!(held.cancel().expect("a ticket"));
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &held), Ok(7));
    let taken = held.cancel().expect_err("taken");
    assert!(
        matches!(&taken, MegakernelError::Ring { source: RingError::AlreadyTaken { .. }, .. }),
        "{taken:?}"
    );
    let answered = submit(&session, ADD_ONE, &[1]);
    session.drain(WAIT).expect("drained");
    assert!(!answered.cancel().expect("a ticket"));
    assert_eq!(answer(&session, &answered), Ok(2));
    // The next tickets of the slots are others.
    for n in 0..200 {
        assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[n])), Ok(u64::from(n) + 1));
    }
}

/// It runs again and again until the gate is open, so it is found queued between two runs.
#[test]
fn what_runs_again_has_begun() {
    const AGAIN: u32 = 0x60;
    let again = OpcodeHandler::new(AGAIN, "again", |h| {
        let open = h.atomic_load(h.buffer("gates"), 0);
        h.if_(open.eq_(0), |h| h.requeue([h.arg(0)]));
        h.complete(h.arg(0));
    })
    .binding(HandlerBinding::read("gates", DataType::U32).in_space(MemorySpace::HostVisible));
    let cpu = Arc::new(CpuBackend::with_config(CpuConfig::default().threads(1)));
    let session = builder(cpu).handler(again).build().and_then(|built| built.start()).expect("a session");
    let ticket = submit(&session, AGAIN, &[9]);
    let runs =
        || session.telemetry().opcodes.iter().find(|count| count.name == "again").map(|count| count.items);
    until("not begun", || runs() > Some(0));
    assert!(ticket.cancel().expect("a ticket"));
    let before = runs();
    until("it stands still", || runs() > before);
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &ticket), Ok(9));
}

#[test]
fn a_fence_may_be_cancelled_and_the_end_may_not() {
    let (_, session) = start(SessionOptions::new());
    let held = hold(&session);
    let fence = || session.submit(SlotDescriptor::new(BuiltinOpcode::BatchFence)).expect("submitted");
    let (cancelled, kept) = (fence(), fence());
    assert!(cancelled.cancel().expect("a ticket"));
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
    assert!(last.cancel().expect("a ticket"));
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &held), Ok(7));
    assert_eq!(answer(&session, &cancelled), Err(Fault::Abandoned));
    // It counted no epoch.
    assert_eq!((answer(&session, &kept), answer(&session, &last)), (Ok(1), Ok(0)));
}

#[test]
fn a_cancellation_outlives_the_kernel() {
    for lose in [false, true] {
        let (backend, session) = start(SessionOptions::new());
        let held = hold(&session);
        let (cancelled, kept) = (submit(&session, ADD_ONE, &[1]), submit(&session, ADD_ONE, &[2]));
        assert!(cancelled.cancel().expect("a ticket"));
        if lose {
            backend.lose("a test");
            until("not recovered", || session.telemetry().recoveries == 1);
        } else {
            set_gate(&session, 0, true);
            session.restart(WAIT).expect("restarted");
        }
        set_gate(&session, 0, true);
        assert_eq!(answer(&session, &held), Ok(7));
        assert_eq!(answer(&session, &cancelled), Err(Fault::Abandoned));
        assert_eq!(answer(&session, &kept), Ok(3));
    }
}

#[test]
fn lookahead_that_is_cancelled_does_not_run_and_nobody_hears_of_it() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let tell = move |key, _| telling.lock().expect("no panic").push(key);
    let (_, session) = start(SessionOptions::new().on_detached_fault(tell));
    let held = hold(&session);
    // The first word of a window's payload is the third argument, so TOTAL adds the window's id.
    let window =
        WindowDescriptor::new(TOTAL, 5).required([]).required([]).lookahead([]).lookahead([]).lookahead([]);
    session.submit_window(&window).expect("submitted");
    assert_eq!(session.cancel_lookahead(5).expect("open"), 3);
    session.submit_detached(item(TRAP, &[3])).expect("submitted");
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &held), Ok(7));
    assert_eq!(session.wait_window(5, WindowClass::Required, WAIT).expect("done").len(), 2);
    session.drain(WAIT).expect("drained");
    assert_eq!(total(&session), 10);
    session.stop().expect("stopped");
    assert_eq!(*told.lock().expect("no panic"), [6]);
    assert_eq!(session.telemetry().acknowledged, 7);
}

#[test]
fn a_full_ring_gives_lookahead_up_first() {
    let (_, session) = start(SessionOptions::new().slots(8).priority_rings(2));
    let held = hold(&session);
    let window = |id, required: usize, lookahead: usize| {
        let window = (0..required).fold(WindowDescriptor::new(TOTAL, id), |window, _| window.required([]));
        (0..lookahead).fold(window, |window, _| window.lookahead([]))
    };
    let submitted = session.submit_window(&window(1, 2, 3)).expect("submitted");
    assert_eq!((submitted.required, submitted.lookahead), (2, 3));
    // Its own lookahead first: two slots are left, and one is enough.
    let submitted = session.submit_window(&window(2, 1, 2)).expect("submitted");
    assert_eq!((submitted.required, submitted.lookahead, submitted.cancelled), (1, 0, 2));
    // That of another ring is no help, and stays.
    let urgent = window(3, 1, 1).priority(Priority::High);
    session.submit_window(&urgent).expect("submitted");
    // Then everybody's.
    let full = session.submit_window(&window(4, 6, 1)).expect_err("full");
    assert!(matches!(full, MegakernelError::RingFull { .. }) && full.is_retryable(), "{full:?}");
    let gone = session.wait_window(1, WindowClass::Lookahead, WAIT).expect_err("cancelled");
    assert!(matches!(gone, MegakernelError::UnknownWindow { window_id: 1 }), "{gone:?}");
    set_gate(&session, 0, true);
    let wait = |id, class, items| {
        let done = session.wait_window(id, class, WAIT).expect("done");
        assert_eq!(done.iter().filter(|completion| completion.as_fault().is_none()).count(), items);
    };
    assert_eq!(answer(&session, &held), Ok(7));
    wait(1, WindowClass::Required, 2);
    wait(2, WindowClass::Required, 1);
    wait(3, WindowClass::Required, 1);
    wait(3, WindowClass::Lookahead, 1);
    // Two of its slots are those of the lookahead that was in the way.
    assert_eq!(session.submit_window(&window(4, 6, 0)).expect("there is room").required, 6);
    wait(4, WindowClass::Required, 6);
    // Two of 1, one of 2, two of 3, six of 4.
    assert_eq!(total(&session), 2 + 2 + 2 * 3 + 6 * 4);
}

/// Four threads submit and cancel while the kernel runs: each item runs and is done, or does not and is abandoned.
#[test]
fn items_run_or_are_abandoned_and_never_both() {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(2));
    let megakernel = builder(Arc::new(cpu)).build().expect("a megakernel");
    let session =
        megakernel.start_with(SessionOptions::new().slots(128).priority_rings(3)).expect("a session");
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (session, done) = (&session, &done);
            scope.spawn(move || {
                for n in 0..500 {
                    let priority = [Priority::High, Priority::Normal, Priority::Idle][(n + thread) % 3];
                    let batch: BatchDescriptor =
                        (0..8).map(|_| item(TOTAL, &[1]).priority(priority)).collect();
                    let tickets: Vec<_> = loop {
                        match session.submit_batch(&batch) {
                            Err(MegakernelError::RingFull { .. }) => std::thread::yield_now(),
                            tickets => break tickets.expect("submitted").collect(),
                        }
                    };
                    for ticket in tickets.iter().skip(n % 4) {
                        ticket.cancel().expect("a ticket");
                    }
                    for (place, ticket) in tickets.iter().enumerate() {
                        match answer(session, ticket) {
                            Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                            Err(fault) => assert!(fault == Fault::Abandoned && place >= n % 4),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(u64::from(total(&session)), done.into_inner());
    session.stop().expect("stopped");
    assert_eq!(session.telemetry().acknowledged, 4 * 500 * 8);
}
