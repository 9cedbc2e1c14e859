//! Sessions of several rings: what is urgent goes first, nobody starves, and nothing is lost or counted twice.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use support::{ADD_ONE, GATED, GATED_ONCE, TOTAL, WAIT, builder, item, set_gate, until_claimed};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{Fault, LossCause, VyreBackend};
use vyre_runtime::conformance::run_rings;
use vyre_runtime::fault_injection::FaultInjectingBackend;
use vyre_runtime::session::{Ticket, position_of, ring_of};
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, MegakernelError, PersistentSession, Priority, SessionOptions,
    SlotDescriptor, WindowClass, WindowDescriptor,
};

const CLASSES: [Priority; 3] = [Priority::Critical, Priority::Normal, Priority::Low];

fn start(threads: usize, options: SessionOptions) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(threads));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let megakernel = builder(Arc::clone(&backend) as _).build().expect("a megakernel");
    (backend, megakernel.start_with(options).expect("a session"))
}

fn three(threads: usize) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    start(threads, SessionOptions::new().priority_rings(3))
}

fn submit(session: &PersistentSession, priority: Priority, opcode: u32, args: &[u32]) -> Ticket {
    session.submit(item(opcode, args).priority(priority)).expect("submitted")
}

fn result(session: &PersistentSession, ticket: &Ticket) -> u64 {
    session.wait(ticket, WAIT).expect("done").result()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn priorities_choose_the_ring_and_tickets_say_which() {
    let (_, session) = three(2);
    let mut keys = BTreeSet::new();
    for (priority, ring) in [
        (Priority::Critical, 0),
        (Priority::High, 0),
        (Priority::Normal, 1),
        (Priority::Low, 2),
        (Priority::Idle, 2),
    ] {
        let ticket = submit(&session, priority, ADD_ONE, &[1]);
        assert_eq!(
            (ticket.ring(), ring_of(ticket.key()), ticket.position()),
            (ring, ring, position_of(ticket.key()))
        );
        assert!(keys.insert(ticket.key()));
        assert_eq!(result(&session, &ticket), 2);
    }
    assert_eq!((session.rings(), session.capacity()), (3, 64));
    for rings in [0, 4, 9] {
        let megakernel = builder(Arc::new(CpuBackend::new())).build().expect("a megakernel");
        let refused = megakernel.start_with(SessionOptions::new().priority_rings(rings));
        assert!(
            matches!(refused, Err(MegakernelError::InvalidGeometry { got, .. }) if got == u64::from(rings))
        );
    }
}

#[test]
fn one_submission_goes_to_one_ring_or_nowhere() {
    let (_, session) = three(1);
    let batch: BatchDescriptor = [Priority::High, Priority::Critical, Priority::Idle]
        .map(|p| item(ADD_ONE, &[1]).priority(p))
        .into_iter()
        .collect();
    let refused = session.submit_batch(&batch).expect_err("refused");
    assert!(
        matches!(refused, MegakernelError::MixedPriorities { first: Priority::High, other: Priority::Idle }),
        "{refused:?}"
    );
    assert!(refused.to_string().contains("High and Idle"), "{refused}");
    assert_eq!(session.telemetry().submitted, 0);
    // Of one ring they are taken.
    let batch: BatchDescriptor =
        [Priority::High, Priority::Critical].map(|p| item(ADD_ONE, &[1]).priority(p)).into_iter().collect();
    let tickets: Vec<_> = session.submit_batch(&batch).expect("submitted").collect();
    assert_eq!(tickets.iter().map(|ticket| ticket.key()).collect::<Vec<_>>(), [0, 1]);
    // And a session of one ring takes anything.
    let (_, single) = start(1, SessionOptions::new());
    let batch: BatchDescriptor = CLASSES.map(|p| item(ADD_ONE, &[1]).priority(p)).into_iter().collect();
    assert_eq!(single.submit_batch(&batch).expect("submitted").map(|ticket| ticket.key()).sum::<u64>(), 3);
}

#[test]
fn the_cpu_conforms_by_priority() {
    let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::with_config(CpuConfig::default().threads(2)));
    let items = run_rings(&backend, 100).unwrap_or_else(|difference| panic!("{difference}: {difference:?}"));
    assert_eq!(items, 4 * 100 * 15 + 1501 + 200);
}

/// One worker, which says in which order it ran things: TOTAL counts up.
#[test]
fn rings_are_served_by_priority_and_a_saturated_one_leaves_the_others_their_share() {
    const SLOTS: u32 = 1024;
    let (_, session) = start(1, SessionOptions::new().priority_rings(3).slots(SLOTS));
    session.quiesce(WAIT).expect("quiesced");
    let fill = |priority| {
        let batch: BatchDescriptor = (0..SLOTS).map(|_| item(TOTAL, &[1]).priority(priority)).collect();
        session.submit_batch(&batch).expect("submitted").collect::<Vec<_>>()
    };
    let [low, normal, critical] = [Priority::Low, Priority::Normal, Priority::Critical].map(fill);
    session.restart(WAIT).expect("restarted");
    let ranks = |tickets: &[Ticket]| -> Vec<u64> {
        let mut ranks: Vec<_> = tickets.iter().map(|ticket| result(&session, ticket)).collect();
        ranks.sort_unstable();
        ranks
    };
    let [critical, normal, low] = [&critical, &normal, &low].map(|tickets| ranks(tickets));
    // Eight turns of 32 for the first ring, one for each of the others, and so on.
    let first = |ranks: &[u64], items: usize| (ranks[0], ranks[items - 1]);
    assert_eq!(first(&critical, 256), (1, 256));
    assert_eq!(first(&normal, 32), (257, 288));
    assert_eq!(first(&low, 32), (289, 320));
    assert_eq!((critical[256], normal[32], low[32]), (321, 577, 609));
    assert!(low[1023] == 3 * 1024 && normal[1023] < low[1023] && critical[1023] < normal[1023]);
}

#[test]
fn a_slow_item_below_delays_nothing_above() {
    let (_, session) = three(2);
    let slow = submit(&session, Priority::Low, GATED, &[0, 7]);
    until_claimed(&session, 1);
    for n in 0..1000 {
        let priority = if n % 2 == 0 { Priority::Critical } else { Priority::Normal };
        assert_eq!(result(&session, &submit(&session, priority, ADD_ONE, &[n])), u64::from(n) + 1);
    }
    // A ring that is full is full by itself.
    let behind: Vec<_> = (0..63).map(|n| submit(&session, Priority::Idle, ADD_ONE, &[n])).collect();
    let full = session.submit(item(ADD_ONE, &[1]).priority(Priority::Low)).expect_err("full");
    assert!(
        matches!(full, MegakernelError::RingFull { oldest_untaken: Some(key), .. } if key == slow.key()),
        "{full:?}"
    );
    assert!(full.to_string().contains("ticket 0 of ring 2"), "{full}");
    assert_eq!(result(&session, &submit(&session, Priority::High, ADD_ONE, &[1])), 2);
    let late = session.wait(&slow, std::time::Duration::from_millis(1)).expect_err("held");
    assert!(late.to_string().contains("ticket 0 of ring 2"), "{late}");
    assert!(session.poll(&slow).expect("a ticket").is_none());
    set_gate(&session, 0, true);
    assert_eq!(result(&session, &slow), 7);
    for (n, ticket) in (0..).zip(&behind) {
        assert_eq!(result(&session, ticket), n + 1);
    }
}

#[test]
fn fences_and_windows_are_a_rings_own_and_a_shutdown_is_everybodys() {
    let (_, session) = three(2);
    let held = submit(&session, Priority::Low, GATED, &[0, 7]);
    until_claimed(&session, 1);
    let fence = SlotDescriptor::new(BuiltinOpcode::BatchFence);
    let [above, beside] = [Priority::Normal, Priority::Low]
        .map(|priority| session.submit(fence.clone().priority(priority)).expect("submitted"));
    assert_eq!(result(&session, &above), 1);
    let window = WindowDescriptor::new(ADD_ONE, 3).priority(Priority::High).required([]).lookahead([]);
    session.submit_window(&window).expect("submitted");
    for class in [WindowClass::Required, WindowClass::Lookahead] {
        assert_eq!(session.wait_window(3, class, WAIT).expect("done").len(), 1);
    }
    assert!(session.poll(&beside).expect("a ticket").is_none());
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
    assert_eq!(last.ring(), 1);
    assert!(session.poll(&last).expect("a ticket").is_none());
    set_gate(&session, 0, true);
    assert_eq!([&held, &beside, &last].map(|ticket| result(&session, ticket)), [7, 2, 0]);
}

#[test]
fn draining_as_a_future_waits_for_every_ring() {
    let (_, session) = three(2);
    let context = &mut Context::from_waker(Waker::noop());
    let held = submit(&session, Priority::Low, GATED, &[0, 7]);
    let mut drained = std::pin::pin!(session.drained());
    assert!(drained.as_mut().poll(context).is_pending());
    // What comes later is not waited for.
    let later = submit(&session, Priority::Critical, GATED, &[1, 8]);
    set_gate(&session, 0, true);
    until("not drained", || session.poll(&held).expect("a ticket").is_some());
    assert!(matches!(drained.as_mut().poll(context), Poll::Ready(Ok(()))));
    let mut late = std::pin::pin!(session.drained().within(std::time::Duration::ZERO));
    assert!(matches!(late.as_mut().poll(context), Poll::Ready(Err(MegakernelError::Deadline { .. }))));
    set_gate(&session, 1, true);
    assert_eq!(result(&session, &later), 8);
    drop(held);
}

#[test]
fn reaping_telemetry_and_traces_know_every_ring() {
    let (_, session) = start(1, SessionOptions::new().priority_rings(3).trace(64).measure_latency());
    let mut keys: Vec<u64> = Vec::new();
    for (priority, count) in CLASSES.into_iter().zip([1, 2, 3]) {
        for n in 0..count {
            keys.push(submit(&session, priority, ADD_ONE, &[n]).key());
            session.drain(WAIT).expect("drained");
        }
    }
    // Their tickets are gone, so nobody reaps them; these are kept.
    let kept: Vec<_> = CLASSES.into_iter().map(|p| submit(&session, p, ADD_ONE, &[9])).collect();
    session.drain(WAIT).expect("drained");
    let complete: Vec<u64> = session.telemetry().rings.iter().map(|ring| ring.occupancy.complete).collect();
    assert_eq!(complete, [1, 1, 1]);
    let mut reaped = Vec::new();
    assert_eq!(session.reap(|key, completion| reaped.push((key, completion.result()))), 3);
    assert_eq!(reaped, kept.iter().map(|ticket| (ticket.key(), 10)).collect::<Vec<_>>());
    let telemetry = session.telemetry();
    assert_eq!((telemetry.capacity, telemetry.submitted, telemetry.acknowledged), (192, 9, 9));
    assert_eq!(telemetry.rings.iter().map(|ring| ring.submitted).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(telemetry.latency.expect("measured").items, 3);
    let trace = session.trace().expect("traced");
    keys.extend(kept.iter().map(Ticket::key));
    keys.sort_unstable();
    assert_eq!(
        (trace.items().iter().map(|item| item.ticket).collect::<Vec<_>>(), trace.dropped()),
        (keys, 0)
    );
}

#[test]
fn restarts_and_losses_answer_every_ring_once() {
    for lose in [false, true] {
        let (backend, session) = three(2);
        let held = CLASSES.map(|priority| submit(&session, priority, GATED, &[0, 7]));
        let once = submit(&session, Priority::Low, GATED_ONCE, &[0, 8]);
        if lose {
            until_claimed(&session, 1);
            backend.lose("a test");
            until("not recovered", || session.telemetry().recoveries == 1);
        } else {
            // They leave when the gate opens.
            set_gate(&session, 0, true);
            session.restart(WAIT).expect("restarted");
        }
        let more = CLASSES.map(|priority| submit(&session, priority, ADD_ONE, &[1]));
        set_gate(&session, 0, true);
        assert_eq!(held.each_ref().map(|ticket| result(&session, ticket)), [7; 3]);
        assert_eq!(more.each_ref().map(|ticket| result(&session, ticket)), [2; 3]);
        match session.wait(&once, WAIT) {
            Ok(done) => assert!(!lose && done.result() == 8),
            Err(MegakernelError::Faulted { ticket, fault, ended_by, .. }) => {
                assert_eq!((lose, ticket, fault), (true, once.key(), Fault::DeviceLost));
                assert!(ended_by.is_some_and(|reason| reason.contains("a test")));
            }
            Err(other) => panic!("{other:?}"),
        }
        session.stop().expect("stopped");
        assert_eq!(session.telemetry().acknowledged, 7);
    }
}

#[test]
fn a_suspect_of_any_ring_runs_alone_and_is_quarantined() {
    for (guilty, priority) in (0..).zip(CLASSES) {
        let (backend, session) = three(1);
        // One worker: what waits in any ring would hold it for ever, if it ran beside the guilty one.
        let culprit = submit(&session, priority, GATED, &[1, 8]);
        until_claimed(&session, 1);
        let others = CLASSES.map(|priority| submit(&session, priority, GATED, &[0, 7]));
        backend.lose_when_running(GATED, Some(1), LossCause::Fault, 10);
        let Err(MegakernelError::Faulted { ticket, fault, .. }) = session.wait(&culprit, WAIT) else {
            panic!("it runs for ever")
        };
        assert_eq!((ticket, fault), (culprit.key(), Fault::Quarantined));
        until("no report", || session.last_recovery().is_some());
        let report = session.last_recovery().expect("it recovered");
        assert_eq!((report.losses, report.quarantined), (2, vec![culprit.key()]));
        assert_eq!((report.suspects, culprit.ring()), (vec![culprit.key()], guilty));
        set_gate(&session, 0, true);
        assert_eq!(others.each_ref().map(|ticket| result(&session, ticket)), [7; 3]);
        session.stop().expect("stopped");
    }
}
