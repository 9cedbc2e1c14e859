//! Tickets and windows as futures, and the descriptor for event loops.

mod support;

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use support::{ADD_ONE, GATED, GATED_ONCE, TRAP, WAIT, builder, item, set_gate, until_claimed};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::Fault;
use vyre_driver::ring::{Completion, RingError};
use vyre_runtime::fault_injection::FaultInjectingBackend;
use vyre_runtime::session::{CompletionFd, TicketFuture};
use vyre_runtime::{
    MegakernelError, MegakernelRecoveryPolicy, PersistentSession, SessionOptions, Ticket, WindowClass,
    WindowDescriptor,
};

fn start(options: SessionOptions) -> PersistentSession {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(2));
    let megakernel = builder(Arc::new(cpu)).build().expect("a megakernel");
    megakernel.start_with(options).expect("a session")
}

/// One future of an executor: polled again when it was woken, and not before.
struct Task {
    woken: AtomicBool,
    thread: Thread,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Runs futures side by side on this thread; their outputs in order.
fn run_all<F: Future + Unpin>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut tasks: Vec<_> = futures
        .into_iter()
        .map(|future| {
            let task = Arc::new(Task { woken: AtomicBool::new(true), thread: thread::current() });
            (future, task, None)
        })
        .collect();
    let started = Instant::now();
    let mut left = tasks.len();
    while left != 0 {
        let mut any = false;
        for (future, task, output) in &mut tasks {
            if !task.woken.swap(false, Ordering::Acquire) || output.is_some() {
                continue;
            }
            any = true;
            let waker = Waker::from(Arc::clone(task));
            if let Poll::Ready(ready) = Pin::new(future).poll(&mut Context::from_waker(&waker)) {
                *output = Some(ready);
                left -= 1;
            }
        }
        assert!(started.elapsed() < WAIT, "{left} futures were not woken");
        if !any {
            thread::park_timeout(WAIT);
        }
    }
    tasks.into_iter().map(|(_, _, output)| output.expect("ready")).collect()
}

fn run<F: IntoFuture<IntoFuture: Unpin>>(future: F) -> <F as IntoFuture>::Output {
    run_all([future.into_future()]).remove(0)
}

/// Polls once, for nobody.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

fn fault_of(answer: Result<Completion, MegakernelError>) -> Fault {
    match answer {
        Err(MegakernelError::Faulted { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ten_thousand_futures_of_four_threads_are_woken_and_those_dropped_midway_are_forgotten() {
    let session = start(SessionOptions::new().slots(256));
    let sum = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (session, sum) = (&session, &sum);
            scope.spawn(move || {
                let mut futures = Vec::new();
                let await_all = |futures: &mut Vec<TicketFuture>| {
                    for done in run_all(futures.drain(..)) {
                        sum.fetch_add(done.expect("done").result(), Ordering::Relaxed);
                    }
                };
                for n in thread * 2500..(thread + 1) * 2500 {
                    let ticket = loop {
                        match session.submit(item(ADD_ONE, &[n])) {
                            Err(MegakernelError::RingFull { .. }) => await_all(&mut futures),
                            submitted => break submitted.expect("submitted"),
                        }
                    };
                    let mut future = ticket.into_future();
                    // Every tenth is polled, so that it is registered, and dropped.
                    if n % 10 != 0 {
                        futures.push(future);
                    } else if let Poll::Ready(done) = poll_once(&mut future) {
                        sum.fetch_add(done.expect("done").result(), Ordering::Relaxed);
                    }
                    if futures.len() == 50 {
                        await_all(&mut futures);
                    }
                }
                await_all(&mut futures);
            });
        }
    });
    session.stop().expect("stopped");
    let telemetry = session.telemetry();
    assert_eq!((telemetry.submitted, telemetry.acknowledged, telemetry.done), (10_000, 10_000, 10_000));
    // One in ten was dropped, unless it was faster.
    let all: u64 = (1..=10_000).sum();
    let sum = sum.into_inner();
    assert!(sum >= all * 8 / 10 && sum <= all, "{sum} of {all}");
}

#[test]
fn a_future_is_pending_until_its_item_is_answered_and_a_fault_is_an_error() {
    let session = start(SessionOptions::new());
    let gated = session.submit(item(GATED, &[0, 9])).expect("submitted");
    until_claimed(&session, 1);
    let trap = session.submit(item(TRAP, &[3])).expect("submitted");
    let mut gated = gated.into_future();
    assert!(poll_once(&mut gated).is_pending());
    assert_eq!(fault_of(run(trap)), Fault::Trap(3));
    assert!(poll_once(&mut gated).is_pending());
    set_gate(&session, 0, true);
    assert_eq!(run_all([&mut gated]).remove(0).expect("done").result(), 9);
    // Its ticket is spent.
    let again = run_all([&mut gated]).remove(0);
    assert!(matches!(again, Err(MegakernelError::Ring { source: RingError::AlreadyTaken { .. }, .. })));
}

#[test]
fn a_deadline_ends_a_future_and_a_ticket_that_was_lent_is_as_good_as_before() {
    let session = start(SessionOptions::new());
    let ticket = session.submit(item(GATED, &[0, 5])).expect("submitted");
    let expired = run((&ticket).into_future().within(Duration::from_millis(5)));
    assert!(
        matches!(&expired, Err(MegakernelError::Deadline { waited_for, .. }) if waited_for.contains("ticket 0")),
        "{expired:?}"
    );
    set_gate(&session, 0, true);
    assert_eq!(run((&ticket).into_future().within(WAIT)).expect("done").result(), 5);
    let never = session.submit(item(ADD_ONE, &[1])).expect("submitted").into_future();
    assert_eq!(run(never.within(Duration::MAX)).expect("done").result(), 2);
}

#[test]
fn a_device_loss_and_a_stop_answer_futures() {
    for policy in [MegakernelRecoveryPolicy::Off, MegakernelRecoveryPolicy::Once] {
        let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
        let megakernel = builder(Arc::clone(&backend) as _).build().expect("a megakernel");
        let session = megakernel.start_with(SessionOptions::new().recovery(policy)).expect("a session");
        let once = session.submit(item(GATED_ONCE, &[0, 1])).expect("submitted").into_future();
        let again = session.submit(item(GATED, &[0, 2])).expect("submitted").into_future();
        let waiter = thread::spawn(move || {
            let mut answers = run_all([once, again]);
            (answers.remove(0), answers.remove(0))
        });
        until_claimed(&session, 1);
        backend.lose("a test");
        if policy == MegakernelRecoveryPolicy::Once {
            let started = Instant::now();
            while session.telemetry().recoveries == 0 {
                assert!(started.elapsed() < WAIT, "not recovered");
                thread::yield_now();
            }
            set_gate(&session, 0, true);
        }
        let (once, again) = waiter.join().expect("woken");
        assert_eq!(fault_of(once), Fault::DeviceLost);
        match policy {
            MegakernelRecoveryPolicy::Off => assert_eq!(fault_of(again), Fault::DeviceLost),
            MegakernelRecoveryPolicy::Once => assert_eq!(again.expect("replayed").result(), 2),
        }
    }
    for drops in [false, true] {
        let session = start(SessionOptions::new().stop_deadline(Duration::from_millis(20)));
        let futures: Vec<_> =
            (0..8).map(|_| session.submit(item(GATED, &[0, 1])).expect("submitted").into_future()).collect();
        let waiter = thread::spawn(move || run_all(futures));
        until_claimed(&session, 1);
        if drops {
            drop(session);
        } else {
            assert!(matches!(session.stop(), Err(MegakernelError::Deadline { .. })));
        }
        for answer in waiter.join().expect("woken") {
            assert_eq!(fault_of(answer), Fault::Abandoned);
        }
    }
}

#[test]
fn a_future_whose_item_somebody_else_reaps_ends() {
    let session = start(SessionOptions::new());
    let waited = session.submit(item(GATED, &[0, 1])).expect("submitted").into_future();
    let waiter = thread::spawn(move || run_all([waited]).remove(0));
    until_claimed(&session, 1);
    set_gate(&session, 0, true);
    // Whoever is faster.
    session.drain(WAIT).expect("drained");
    let reaped = session.reap(|_, completion| assert_eq!(completion.result(), 1));
    match waiter.join().expect("woken") {
        Ok(completion) => assert_eq!((reaped, completion.result()), (0, 1)),
        Err(MegakernelError::Ring { source: RingError::AlreadyTaken { .. }, .. }) => assert_eq!(reaped, 1),
        Err(other) => panic!("{other:?}"),
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker of a test");
    }
}

#[test]
fn a_waker_that_panics_harms_nobody() {
    let session = start(SessionOptions::new());
    let mut futures: Vec<_> =
        (0..20).map(|_| session.submit(item(GATED, &[0, 4])).expect("submitted").into_future()).collect();
    let panics = Waker::from(Arc::new(Panics));
    for future in futures.iter_mut().step_by(2) {
        assert!(Pin::new(future).poll(&mut Context::from_waker(&panics)).is_pending());
    }
    let others: Vec<_> = futures.iter_mut().skip(1).step_by(2).collect();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| run_all(others));
        set_gate(&session, 0, true);
        for done in waiter.join().expect("woken") {
            assert_eq!(done.expect("done").result(), 4);
        }
    });
}

#[test]
fn a_window_is_awaited_by_class_and_dropping_the_future_gives_it_back() {
    let session = start(SessionOptions::new());
    let window = WindowDescriptor::new(GATED, 0).required([9]).required([9]).lookahead([9]);
    session.submit_window(&window).expect("fits");
    let mut required = session.window(0, WindowClass::Required).expect("open");
    let busy = session.window(0, WindowClass::Required);
    assert!(matches!(busy, Err(MegakernelError::WindowBusy { window_id: 0 })));
    assert!(poll_once(&mut required).is_pending());
    drop(required);
    let expired =
        run(session.window(0, WindowClass::Required).expect("open").within(Duration::from_millis(5)));
    assert!(matches!(expired, Err(MegakernelError::Deadline { .. })), "{expired:?}");
    let waiter = session.window(0, WindowClass::Required).expect("open");
    let waiter = thread::spawn(move || run(waiter));
    set_gate(&session, 0, true);
    let done = waiter.join().expect("woken").expect("answered");
    // The arguments of a window's slots begin with its id, gate 0, and the class.
    assert_eq!(done.iter().map(|done| done.result()).collect::<Vec<_>>(), [0, 0]);
    let mut lookahead = session.window(0, WindowClass::Lookahead).expect("open");
    assert_eq!(run_all([&mut lookahead]).remove(0).expect("answered").len(), 1);
    let over = run_all([&mut lookahead]).remove(0);
    assert!(matches!(over, Err(MegakernelError::UnknownWindow { window_id: 0 })), "{over:?}");
    session.submit_window(&window).expect("the id is free again");
}

fn is_readable(event: &CompletionFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).expect("a short time");
    poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&limit)).expect("a descriptor") == 1
}

#[test]
fn a_descriptor_is_readable_once_for_each_ticket_watched() {
    let session = start(SessionOptions::new());
    let event = session.completion_fd().expect("a descriptor");
    let mut gated: Vec<Ticket> = Vec::new();
    for gate in 0..2 {
        // On a worker each: items that run side by side are completed together.
        let pair = [item(GATED, &[gate, 6]), item(GATED, &[gate, 6])];
        gated.extend(session.submit_batch(pair.as_slice()).expect("submitted"));
        until_claimed(&session, u64::from(gate + 1) * 2);
    }
    gated.iter().for_each(|ticket| event.watch(ticket).expect("ours"));
    assert!(!is_readable(&event, Duration::from_millis(5)));
    assert_eq!(event.clear().expect("open"), 0);
    for gate in 0..2 {
        set_gate(&session, gate, true);
        let mut told = 0;
        while told < 2 {
            assert!(is_readable(&event, WAIT), "told of {told} by gate {gate}");
            told += event.clear().expect("open");
        }
        assert_eq!((told, is_readable(&event, Duration::ZERO)), (2, false));
    }
    for ticket in gated {
        assert_eq!(session.take(&ticket).expect("ours").map(|done| done.result()), Some(6));
        assert!(event.watch(&ticket).is_err(), "it is spent");
    }
    // Answered before it is watched.
    let done = session.submit(item(ADD_ONE, &[1])).expect("submitted");
    session.drain(WAIT).expect("drained");
    event.watch(&done).expect("ours");
    assert!(is_readable(&event, WAIT));
    assert_eq!(event.clear().expect("open"), 1);
    let other = start(SessionOptions::new());
    let foreign = other.submit(item(ADD_ONE, &[1])).expect("submitted");
    assert!(matches!(event.watch(&foreign), Err(MegakernelError::Ring { .. })));
}
