//! Losses that items are suspected of: each suspect runs alone, and one that faults again never runs again.

mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{ADD_ONE, GATED, GATED_ONCE, WAIT, builder, item, set_gate, until_claimed};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::view::InFlight;
use vyre_driver::{BackendError, Fault, Generation, LossCause};
use vyre_runtime::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
use vyre_runtime::session::Ticket;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, MegakernelError, PersistentSession, SessionOptions, SlotDescriptor,
};

/// Shorter than any wait of a test that is to expire.
const SOON: Duration = Duration::from_millis(50);

fn start(threads: usize, options: SessionOptions) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(threads));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let megakernel = builder(Arc::clone(&backend) as _).build().expect("a megakernel");
    (backend, megakernel.start_with(options).expect("a session"))
}

/// Submits items that one worker claims together, so that they are in flight together.
fn together(session: &PersistentSession, items: &[SlotDescriptor]) -> Vec<Ticket> {
    session.quiesce(WAIT).expect("quiesced");
    let batch = items.iter().fold(BatchDescriptor::new(), |batch, item| batch.slot(item.clone()));
    let tickets = session.submit_batch(&batch).expect("submitted").collect();
    session.restart(WAIT).expect("restarted");
    tickets
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "{what}");
        std::thread::yield_now();
    }
}

/// The result, or the fault.
fn answer(session: &PersistentSession, ticket: &Ticket) -> Result<u64, Fault> {
    match session.wait(ticket, WAIT) {
        Ok(done) => Ok(done.result()),
        Err(MegakernelError::Faulted { fault, .. }) => Err(fault),
        Err(other) => panic!("{ticket:?}: {other:?}"),
    }
}

fn is_deadline<T>(result: Result<T, MegakernelError>, of: &str) -> bool {
    matches!(result, Err(MegakernelError::Deadline { waited_for, .. }) if waited_for.contains(of))
}

/// Opens a gate as soon as there are gates again.
fn open_gate(session: &PersistentSession, gate: u32) {
    let open = || session.upload("gates", u64::from(gate) * 4, &1_u32.to_le_bytes()).is_ok();
    until("no gates", open);
}

#[test]
fn an_item_that_faults_the_device_twice_is_quarantined_and_its_neighbours_are_not() {
    for cause in [LossCause::Fault, LossCause::Unresponsive] {
        let (backend, session) = start(1, SessionOptions::new());
        backend.lose_when_running(GATED, Some(1), cause, 10);
        let items =
            [item(GATED, &[0, 7]), item(GATED, &[1, 8]), item(ADD_ONE, &[1]), item(GATED_ONCE, &[0, 9])];
        let tickets = together(&session, &items);
        let behind = session.submit(item(ADD_ONE, &[4])).expect("submitted");
        until("not lost", || backend.passes(FaultPoint::Recover) == 1);
        open_gate(&session, 0);
        let answers: Vec<_> = tickets.iter().map(|ticket| answer(&session, ticket)).collect();
        assert_eq!(answers, [Ok(7), Err(Fault::Quarantined), Ok(2), Err(Fault::DeviceLost)]);
        assert_eq!(answer(&session, &behind), Ok(5));
        until("no report", || session.last_recovery().is_some());
        let report = session.last_recovery().expect("it recovered");
        assert_eq!((report.number, report.losses, report.cause), (1, 2, cause));
        assert_eq!((report.before, report.after), (Generation(1), Generation(3)));
        // The one that had ended is none.
        assert_eq!(report.suspects, [0, 1, 3]);
        assert_eq!((report.tried_alone, &report.quarantined[..]), (2, &[1][..]));
        assert_eq!(report.failed_with(Fault::Quarantined), 1);
        assert_eq!(report.failed_with(Fault::DeviceLost), 1);
        let times = [report.gone_after, report.rebuilt_after, report.serving_after];
        assert!(times.iter().all(Option::is_some) && times.is_sorted(), "{report:?}");
        // It is not run a third time.
        assert_eq!(answer(&session, &session.submit(item(ADD_ONE, &[1])).expect("submitted")), Ok(2));
        assert_eq!((backend.passes(FaultPoint::Recover), session.telemetry().recoveries), (2, 1));
        session.stop().expect("stopped");
    }
}

#[test]
fn a_kill_from_outside_convicts_nobody() {
    let (backend, session) = start(1, SessionOptions::new());
    backend.lose_when_running(GATED, Some(1), LossCause::Killed, 1);
    let [held] = &together(&session, &[item(GATED, &[1, 8])])[..] else { panic!("one") };
    until("not recovered", || session.last_recovery().is_some());
    let report = session.last_recovery().expect("it recovered");
    assert_eq!((report.suspects.len(), report.tried_alone, report.replayed), (0, 0, 1));
    set_gate(&session, 1, true);
    assert_eq!(answer(&session, held), Ok(8));
}

#[test]
fn a_kill_while_a_suspect_runs_alone_convicts_nobody_and_it_runs_alone_again() {
    let (backend, session) = start(1, SessionOptions::new());
    backend.lose_when_running(GATED, Some(1), LossCause::Fault, 1);
    backend.lose_when_running(GATED, Some(2), LossCause::Killed, 1);
    let items = [item(GATED, &[0, 7]), item(GATED, &[1, 8]), item(GATED, &[2, 9])];
    let tickets = together(&session, &items);
    until("not lost", || backend.passes(FaultPoint::Recover) == 1);
    open_gate(&session, 0);
    open_gate(&session, 1);
    until("not lost again", || backend.passes(FaultPoint::Recover) == 2);
    open_gate(&session, 2);
    assert_eq!([0, 1, 2].map(|at| answer(&session, &tickets[at])), [Ok(7), Ok(8), Ok(9)]);
    until("not recovered", || session.last_recovery().is_some());
    let report = session.last_recovery().expect("it recovered");
    assert_eq!((report.losses, report.tried_alone, report.quarantined.len()), (2, 4, 0), "{report:?}");
}

/// A kernel that never runs convicts nobody either.
#[test]
fn a_loss_while_a_suspects_kernel_starts_or_leaves_convicts_nobody() {
    for (point, cause) in [
        (FaultPoint::Start, LossCause::Fault),
        // The suspect may be running by then, so that a fault would convict it.
        (FaultPoint::AfterStart, LossCause::Killed),
        (FaultPoint::Quiesce, LossCause::Fault),
        (FaultPoint::Reap, LossCause::Fault),
    ] {
        for skip in 0..3 {
            let (backend, session) = start(1, SessionOptions::new());
            set_gate(&session, 0, true);
            backend.lose_when_running(GATED, Some(1), LossCause::Fault, 1);
            let tickets =
                together(&session, &[item(ADD_ONE, &[1]), item(GATED, &[1, 8]), item(ADD_ONE, &[2])]);
            until("not lost", || backend.passes(FaultPoint::Recover) == 1);
            backend.arm(point, skip, InjectedFault::LossBy(cause));
            open_gate(&session, 1);
            let answers = [0, 1, 2].map(|at| answer(&session, &tickets[at]));
            assert_eq!(answers, [Ok(2), Ok(8), Ok(3)], "{point:?} {skip}");
            assert_eq!(answer(&session, &session.submit(item(ADD_ONE, &[1])).expect("submitted")), Ok(2));
        }
    }
}

#[test]
fn a_suspect_that_does_not_end_in_time_ends_in_a_deadline_and_holds_up_nobody_else() {
    let (backend, session) = start(1, SessionOptions::new().probation_deadline(SOON));
    set_gate(&session, 0, true);
    backend.lose_when_running(GATED, Some(1), LossCause::Unresponsive, 1);
    let tickets = together(&session, &[item(GATED, &[1, 8]), item(GATED, &[0, 7])]);
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
    assert_eq!(answer(&session, &tickets[0]), Err(Fault::Deadline));
    assert_eq!(answer(&session, &tickets[1]), Ok(7));
    // Nor did anybody take the end of the session for a suspect.
    assert_eq!(answer(&session, &last), Ok(0));
    session.stop().expect("nothing is left");
}

#[test]
fn what_a_mad_device_says_makes_nobody_a_suspect_who_cannot_be_one() {
    let (backend, session) = start(4, SessionOptions::new());
    let held: Vec<_> = (0..4).map(|n| session.submit(item(GATED, &[0, n])).expect("submitted")).collect();
    until_claimed(&session, 4);
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
    let word = |ring, first, count| InFlight { ring, first, count };
    // The end of the session, another ring's, one that was never issued; and one that is true.
    backend.leave_in_flight(vec![word(0, 4, 1), word(1, 0, 1), word(0, 1 << 40, 256), word(0, 3, 1)]);
    backend.lose_by(LossCause::Fault, "a test");
    open_gate(&session, 0);
    let answers: Vec<_> = held.iter().map(|ticket| answer(&session, ticket)).collect();
    assert_eq!(answers, [Ok(0), Ok(1), Ok(2), Ok(3)]);
    assert_eq!(answer(&session, &last), Ok(0));
    until("not recovered", || session.last_recovery().is_some());
    let report = session.last_recovery().expect("it recovered");
    assert_eq!((&report.suspects[..], report.tried_alone, report.replayed), (&[3][..], 1, 5), "{report:?}");
    session.stop().expect("nothing is left");
}

#[test]
fn after_a_device_was_given_up_everything_fails_at_once_and_nothing_is_tried_again() {
    for recovers in [false, true] {
        let (backend, session) = start(1, SessionOptions::new());
        let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
        until_claimed(&session, 1);
        let behind = session.submit(item(ADD_ONE, &[1])).expect("submitted");
        if recovers {
            backend.arm(FaultPoint::Recover, 0, InjectedFault::LossBy(LossCause::GivenUp));
            backend.lose("once too often");
        } else {
            backend.lose_by(LossCause::GivenUp, "too often");
        }
        assert_eq!(answer(&session, &held), Err(Fault::DeviceLost));
        assert_eq!(answer(&session, &behind), Err(Fault::DeviceLost));
        let refused = session.submit(item(ADD_ONE, &[1]));
        let closed =
            matches!(&refused, Err(MegakernelError::SessionClosed { state }) if state.contains("for good"));
        assert!(closed, "{refused:?}");
        for _ in 0..2 {
            let error = session.recover_after_device_loss().expect_err("given up");
            let MegakernelError::Backend { source: BackendError::DeviceLost(loss), .. } = &error else {
                panic!("{error:?}")
            };
            assert!(loss.cause == LossCause::GivenUp && !error.is_retryable(), "{error:?}");
        }
        assert_eq!(backend.passes(FaultPoint::Recover), u64::from(recovers));
        until("no report", || session.last_recovery().is_some());
        assert_eq!(session.last_recovery().map(|report| report.is_recovered()), Some(false));
        session.stop().expect("stopped");
    }
}

#[test]
fn no_call_waits_for_ever_for_a_recovery_that_hangs() {
    for point in [FaultPoint::Recover, FaultPoint::CompileResident, FaultPoint::CreateBuffer] {
        let options = SessionOptions::new().stop_deadline(SOON).recovery_deadline(SOON);
        let (backend, session) = start(1, options);
        let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
        until_claimed(&session, 1);
        backend.arm(point, 0, InjectedFault::Stall);
        backend.lose("a test");
        until("not stalled", || backend.is_stalled());
        let later = session.submit(item(ADD_ONE, &[1])).expect("items are taken meanwhile");
        assert!(is_deadline(session.wait(&later, SOON), "ticket"));
        assert!(is_deadline(session.quiesce(SOON), "recovery"));
        assert!(is_deadline(session.restart(SOON), "recovery"));
        assert!(is_deadline(session.drain(SOON), "ticket"));
        assert!(is_deadline(session.recover_after_device_loss(), "recovery"));
        if point == FaultPoint::CreateBuffer {
            assert!(is_deadline(session.upload("gates", 0, &[1]), "recovery"));
        }
        assert_eq!((session.telemetry().recoveries, session.debug_log().records.len()), (0, 0));
        assert!(is_deadline(session.stop(), "recovery"));
        // Whoever recovers ends the session when its backend comes back.
        backend.resume();
        assert_eq!(answer(&session, &held), Err(Fault::Abandoned), "{point:?}");
        assert_eq!(answer(&session, &later), Err(Fault::Abandoned), "{point:?}");
        assert!(matches!(session.submit(item(ADD_ONE, &[1])), Err(MegakernelError::SessionClosed { .. })));
    }
}

#[test]
fn a_session_dropped_while_its_recovery_hangs_is_left_to_it() {
    let (backend, session) = start(1, SessionOptions::new().stop_deadline(SOON));
    let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
    until_claimed(&session, 1);
    backend.arm(FaultPoint::CompileResident, 0, InjectedFault::Stall);
    backend.lose("a test");
    until("not stalled", || backend.is_stalled());
    drop(session);
    backend.resume();
    drop(held);
    let buffers = backend.live_buffers();
    until("its buffers stay", || backend.live_buffers() <= buffers);
}

#[test]
fn a_stop_during_a_recovery_waits_for_it_and_drains() {
    for cause in [LossCause::Killed, LossCause::Fault] {
        let (backend, session) = start(1, SessionOptions::new());
        let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
        until_claimed(&session, 1);
        let behind = session.submit(item(ADD_ONE, &[1])).expect("submitted");
        backend.arm(FaultPoint::Recover, 0, InjectedFault::Stall);
        backend.lose_by(cause, "a test");
        until("not stalled", || backend.is_stalled());
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| session.stop());
            backend.resume();
            open_gate(&session, 0);
            stopping.join().expect("no panic").expect("drained");
        });
        assert_eq!((answer(&session, &held), answer(&session, &behind)), (Ok(7), Ok(2)));
    }
}

#[test]
fn among_many_items_of_many_threads_the_guilty_alone_are_quarantined() {
    const PRODUCERS: u32 = 4;
    const QUARANTINED: u64 = 30;
    let (backend, session) = start(2, SessionOptions::new());
    backend.lose_when_running(GATED, Some(1), LossCause::Fault, u64::MAX);
    let [right, lost, convicted, twice] = [const { AtomicU64::new(0) }; 4];
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let (session, right, lost, convicted, twice) = (&session, &right, &lost, &convicted, &twice);
            scope.spawn(move || {
                let mut open: VecDeque<(Ticket, Option<u64>)> = VecDeque::new();
                let settle = |open: &mut VecDeque<(Ticket, Option<u64>)>| {
                    let Some((ticket, expected)) = open.pop_front() else { return };
                    match (answer(session, &ticket), expected) {
                        (Ok(result), expected) => {
                            assert_eq!(Some(result), expected, "{ticket:?}");
                            right.fetch_add(1, Ordering::Relaxed);
                        }
                        (Err(Fault::Quarantined), None) => _ = convicted.fetch_add(1, Ordering::Relaxed),
                        // Behind the guilty of one loss, and then guilty of the next itself.
                        (Err(Fault::DeviceLost), None) => _ = twice.fetch_add(1, Ordering::Relaxed),
                        (Err(Fault::DeviceLost), Some(_)) => _ = lost.fetch_add(1, Ordering::Relaxed),
                        (Err(fault), expected) => panic!("{ticket:?}: {fault:?}, expected {expected:?}"),
                    }
                    assert!(session.take(&ticket).is_err(), "{ticket:?} was answered twice");
                };
                for number in (producer * 1000).. {
                    if convicted.load(Ordering::Relaxed) >= QUARANTINED {
                        break;
                    }
                    // One in so many is deadly.
                    let deadly = number % 5000 == 4999;
                    let slot = if deadly { item(GATED, &[1, 0]) } else { item(ADD_ONE, &[number]) };
                    let expected = (!deadly).then(|| u64::from(number) + 1);
                    loop {
                        match session.submit(slot.clone()) {
                            Ok(ticket) => break open.push_back((ticket, expected)),
                            Err(MegakernelError::RingFull { .. }) => settle(&mut open),
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                }
                while !open.is_empty() {
                    settle(&mut open);
                }
            });
        }
    });
    let [right, lost, convicted, twice] = [right, lost, convicted, twice].map(AtomicU64::into_inner);
    let telemetry = session.telemetry();
    let all = right + lost + convicted + twice;
    assert_eq!((telemetry.submitted, telemetry.acknowledged), (all, all));
    println!("{right} right, {lost} lost, {convicted} convicted, {twice} replayed before: {telemetry:?}");
    assert!(convicted >= QUARANTINED && convicted > twice && right > lost);
    println!("the last: {:?}", session.last_recovery());
}
