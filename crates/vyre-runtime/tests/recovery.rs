//! Sessions that lose their device: every ticket is answered once, by the replay or by a fault.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::{
    ADD_ONE, GATED, GATED_ONCE, SUM_PAYLOAD, SUM_TABLE, TOTAL, TRAP, WAIT, builder, item, set_gate,
    until_claimed,
};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{Fault, Generation, LossCause};
use vyre_runtime::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
use vyre_runtime::io_service::IoResource;
use vyre_runtime::session::Ticket;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, MegakernelError, MegakernelRecoveryPolicy, PersistentSession,
    SessionOptions, SlotDescriptor, TenantConfig,
};

fn start(threads: usize, options: SessionOptions) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(threads));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let built = builder(Arc::clone(&backend) as _)
        .tenant(3, TenantConfig::permitting([ADD_ONE]).quota(5))
        .bind_bytes("table", [2; 16])
        .build();
    let session = built.expect("a megakernel").start_with(options).expect("a session");
    (backend, session)
}

fn submit(session: &PersistentSession, opcode: u32, args: &[u32]) -> Ticket {
    session.submit(item(opcode, args)).expect("submitted")
}

fn until(session: &PersistentSession, what: &str, holds: impl Fn(&PersistentSession) -> bool) {
    let started = Instant::now();
    while !holds(session) {
        assert!(started.elapsed() < WAIT, "{what}: {:?}", session.telemetry());
        std::thread::yield_now();
    }
}

fn until_recovered(session: &PersistentSession, recoveries: u64) {
    until(session, "not recovered", |session| session.telemetry().recoveries >= recoveries);
}

/// The result, or the fault.
fn answer(session: &PersistentSession, ticket: &Ticket) -> Result<u64, Fault> {
    match session.wait(ticket, WAIT) {
        Ok(done) => Ok(done.result()),
        Err(MegakernelError::Faulted { fault, .. }) => Err(fault),
        Err(other) => panic!("{ticket:?}: {other:?}"),
    }
}

#[test]
fn a_loss_finds_tickets_at_every_step_and_each_is_answered() {
    let (backend, session) = start(2, SessionOptions::new());
    let complete = submit(&session, TOTAL, &[5]);
    session.drain(WAIT).expect("drained");
    // One worker is held by an item; the other parks a fence, then is held as well.
    let claimed = submit(&session, GATED, &[0, 7]);
    until_claimed(&session, 1);
    let fence = session.submit(SlotDescriptor::new(BuiltinOpcode::BatchFence)).expect("submitted");
    let claimed_once = submit(&session, GATED_ONCE, &[0, 8]);
    until_claimed(&session, 2);
    let mut payload = session.payload(100).expect("fits");
    payload.write(0, &[1; 100]).expect("inside");
    let sum = item(SUM_PAYLOAD, &[payload.offset(), 100]);
    let published = [
        (submit(&session, ADD_ONE, &[1]), Ok(2)),
        (submit(&session, SUM_TABLE, &[]), Ok(32)),
        (session.submit_with_payload(sum, &mut payload).expect("submitted"), Ok(100)),
        (submit(&session, 0, &[]), Ok(0)),
        (submit(&session, TRAP, &[1]), Err(Fault::DeviceLost)),
        (submit(&session, TOTAL, &[1]), Err(Fault::StateLost)),
        (submit(&session, 1, &[1, 1]), Err(Fault::DeviceLost)),
    ];
    backend.lose("a test");
    until_recovered(&session, 1);
    assert_eq!(session.generation(), Generation(2));
    let after = submit(&session, ADD_ONE, &[10]);
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &complete), Ok(5));
    assert_eq!(answer(&session, &claimed), Ok(7));
    assert_eq!(answer(&session, &claimed_once), Err(Fault::DeviceLost));
    assert_eq!(answer(&session, &fence), Err(Fault::DeviceLost));
    for (ticket, expected) in &published {
        assert_eq!(answer(&session, ticket), *expected, "{ticket:?}");
    }
    assert_eq!(answer(&session, &after), Ok(11));
    assert_eq!((complete.generation(), after.generation()), (Generation(1), Generation(2)));
    session.stop().expect("stopped");
    let telemetry = session.telemetry();
    assert_eq!((telemetry.submitted, telemetry.acknowledged), (12, 12));
    assert_eq!((telemetry.starts, telemetry.recoveries), (2, 1));
}

#[test]
fn lost_state_is_not_touched_until_its_loss_is_accepted() {
    let (backend, session) = start(2, SessionOptions::new());
    assert_eq!(answer(&session, &submit(&session, TOTAL, &[5])), Ok(5));
    backend.lose("a test");
    until_recovered(&session, 1);
    let store = SlotDescriptor::new(BuiltinOpcode::StoreU32);
    let packed = vyre_runtime::PackedOpDescriptor::new(1).args([1, 1]);
    for refused in [
        session.submit(item(TOTAL, &[1])).map(drop),
        session.submit(store.clone()).map(drop),
        session.submit(SlotDescriptor::packed(&[packed]).expect("fits")).map(drop),
        session.submit_detached(item(TOTAL, &[1])),
        session.submit_batch(&BatchDescriptor::new().slot(item(ADD_ONE, &[])).slot(store.clone())).map(drop),
    ] {
        let lost = matches!(refused, Err(MegakernelError::StateLost { generation: Generation(2), .. }));
        assert!(lost, "{refused:?}");
    }
    assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[1])), Ok(2));
    assert_eq!(answer(&session, &submit(&session, SUM_TABLE, &[])), Ok(32));
    session.upload("total", 0, &40_u32.to_le_bytes()).expect("inside");
    session.accept_state_loss();
    assert_eq!(answer(&session, &submit(&session, TOTAL, &[2])), Ok(42));
    session.submit(store).map(drop).expect("accepted");
    backend.lose("again");
    until_recovered(&session, 2);
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("touches nothing");
    assert!(matches!(session.submit(item(ADD_ONE, &[])), Err(MegakernelError::SessionClosed { .. })));
    assert_eq!(answer(&session, &last), Ok(0));
}

#[test]
fn a_restore_hook_makes_state_whole_before_anything_is_replayed() {
    let restores = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&restores);
    let options = SessionOptions::new().restore(move |session| {
        counted.fetch_add(1, Ordering::Relaxed);
        session.upload("total", 0, &1000_u32.to_le_bytes())
    });
    let (backend, session) = start(1, options);
    assert_eq!(answer(&session, &submit(&session, TOTAL, &[5])), Ok(5));
    let held = submit(&session, GATED, &[0, 7]);
    until_claimed(&session, 1);
    let replayed = submit(&session, TOTAL, &[1]);
    backend.lose("a test");
    until_recovered(&session, 1);
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &held), Ok(7));
    assert_eq!(answer(&session, &replayed), Ok(1001));
    assert_eq!(answer(&session, &submit(&session, TOTAL, &[1])), Ok(1002));
    assert_eq!(restores.load(Ordering::Relaxed), 1);
}

#[test]
fn a_restore_hook_that_fails_leaves_the_session_lost() {
    let options = SessionOptions::new().restore(|session| session.upload("nothing", 0, &[]));
    let (backend, session) = start(1, options);
    let held = submit(&session, GATED, &[0, 7]);
    until_claimed(&session, 1);
    backend.lose("a test");
    assert_eq!(answer(&session, &held), Err(Fault::DeviceLost));
    assert!(matches!(session.submit(item(ADD_ONE, &[1])), Err(MegakernelError::SessionClosed { .. })));
    let error = session.recover_after_device_loss().expect_err("the hook fails again");
    assert!(matches!(error, MegakernelError::InvalidBinding { .. }), "{error:?}");
}

#[test]
fn uploads_quotas_and_counts_outlive_the_device() {
    let (backend, session) = start(2, SessionOptions::new());
    session.upload("table", 0, &[9, 9]).expect("inside");
    for _ in 0..3 {
        let ticket = session.submit(item(ADD_ONE, &[1]).tenant(3)).expect("submitted");
        session.wait(ticket, WAIT).expect("within the quota");
    }
    let fence = session.submit(SlotDescriptor::new(BuiltinOpcode::BatchFence)).expect("submitted");
    assert_eq!(answer(&session, &fence), Ok(1));
    // What the device counted is mirrored by the time a kernel has left.
    session.restart(WAIT).expect("restarted");
    backend.lose("a test");
    until_recovered(&session, 1);
    assert_eq!(answer(&session, &submit(&session, SUM_TABLE, &[])), Ok(18 + 28));
    let quota: Vec<_> = (0..4)
        .map(|_| {
            let ticket = session.submit(item(ADD_ONE, &[1]).tenant(3)).expect("submitted");
            answer(&session, &ticket)
        })
        .collect();
    assert_eq!(quota, [Ok(2), Ok(2), Err(Fault::Quota), Err(Fault::Quota)]);
    session.accept_state_loss();
    let fence = session.submit(SlotDescriptor::new(BuiltinOpcode::BatchFence)).expect("submitted");
    assert_eq!(answer(&session, &fence), Ok(2));
}

#[test]
fn an_upload_that_a_recovery_overtakes_waits_for_the_new_buffers() {
    let (backend, session) = start(1, SessionOptions::new());
    backend.arm(FaultPoint::CompileResident, 0, InjectedFault::Stall);
    backend.lose("a test");
    until(&session, "no stall", |_| backend.is_stalled());
    let writes = backend.passes(FaultPoint::WriteBuffer);
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| session.upload("table", 0, &[9, 9]));
        until(&session, "no upload", |_| backend.passes(FaultPoint::WriteBuffer) > writes);
        backend.resume();
        upload.join().expect("no panic").expect("uploaded");
    });
    let mut table = [0; 4];
    session.download("table", 0, &mut table).expect("inside");
    assert_eq!(table, [9, 9, 2, 2]);
}

#[test]
fn without_a_policy_the_loss_is_the_answer_until_somebody_recovers() {
    let (backend, session) = start(1, SessionOptions::new().recovery(MegakernelRecoveryPolicy::Off));
    let held = submit(&session, GATED, &[0, 7]);
    until_claimed(&session, 1);
    let behind = submit(&session, ADD_ONE, &[1]);
    session.recover_after_device_loss().expect("nothing to do");
    backend.lose("a test");
    assert_eq!(answer(&session, &held), Err(Fault::DeviceLost));
    assert_eq!(answer(&session, &behind), Err(Fault::DeviceLost));
    for refused in
        [session.submit(item(ADD_ONE, &[1])).map(drop), session.restart(WAIT), session.quiesce(WAIT)]
    {
        let lost =
            matches!(&refused, Err(MegakernelError::SessionClosed { state }) if state.contains("lost"));
        assert!(lost, "{refused:?}");
    }
    assert_eq!(session.telemetry().recoveries, 0);
    session.recover_after_device_loss().expect("recovered");
    assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[1])), Ok(2));
    session.stop().expect("stopped");
}

#[test]
fn an_item_is_replayed_after_every_kill_and_after_one_loss_that_may_be_its_doing() {
    let (backend, session) = start(1, SessionOptions::new());
    let held = submit(&session, GATED, &[0, 7]);
    for kills in 1..=3 {
        until_claimed(&session, 1);
        backend.lose("killed");
        until_recovered(&session, kills);
    }
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &held), Ok(7));

    set_gate(&session, 0, false);
    let suspect = submit(&session, GATED_ONCE, &[0, 8]);
    until_claimed(&session, 1);
    // Not begun at the first of these losses, and begun at the others.
    let behind = submit(&session, GATED, &[0, 9]);
    for (losses, cause) in [(4, LossCause::Fault), (5, LossCause::Killed), (6, LossCause::Fault)] {
        backend.lose_by(cause, "a test");
        until_recovered(&session, losses);
        until_claimed(&session, u64::from(losses < 6));
    }
    assert_eq!(answer(&session, &suspect), Err(Fault::DeviceLost));
    assert_eq!(answer(&session, &behind), Err(Fault::DeviceLost));
}

#[test]
fn a_recovery_that_fails_says_why_and_can_be_repeated_by_hand() {
    for point in [
        FaultPoint::Recover,
        FaultPoint::CompileResident,
        FaultPoint::CreateBuffer,
        FaultPoint::WriteBuffer,
        FaultPoint::Start,
        FaultPoint::AfterStart,
        FaultPoint::Reap,
    ] {
        let fault = InjectedFault::Failure;
        let options = SessionOptions::new().stop_deadline(Duration::from_secs(5));
        let (backend, session) = start(1, options);
        let held = submit(&session, GATED, &[0, 7]);
        until_claimed(&session, 1);
        let behind: Vec<_> = (0..5).map(|n| submit(&session, ADD_ONE, &[n])).collect();
        backend.arm(point, 0, fault);
        backend.lose("a test");
        for ticket in behind.iter().chain([&held]) {
            let answered = answer(&session, ticket);
            // A kernel that started before the fault may have run it.
            let ran = point == FaultPoint::AfterStart && answered.is_ok();
            assert!(ran || answered == Err(Fault::DeviceLost), "{point:?} {answered:?}");
        }
        until(&session, "not given up", |session| session.last_recovery().is_some());
        let refused = session.submit(item(ADD_ONE, &[1]));
        assert!(matches!(refused, Err(MegakernelError::SessionClosed { .. })), "{point:?}");
        // And once more by hand, in vain, with the backend's own words.
        if point != FaultPoint::Reap {
            backend.arm(point, 0, fault);
            let error = session.recover_after_device_loss().expect_err("armed again");
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            assert!(source.contains(&format!("{point:?}")), "{point:?}: {error:?}");
        }
        session.recover_after_device_loss().expect("recovered");
        set_gate(&session, 0, true);
        assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[1])), Ok(2), "{point:?}");
        session.stop().expect("stopped");
    }
}

#[test]
fn a_loss_while_it_recovers_costs_another_attempt_up_to_a_number() {
    for point in [
        FaultPoint::Recover,
        FaultPoint::CompileResident,
        FaultPoint::CreateBuffer,
        FaultPoint::WriteBuffer,
        FaultPoint::Start,
        FaultPoint::AfterStart,
        FaultPoint::Reap,
    ] {
        for losses in [1, 3, 4] {
            let (backend, session) = start(1, SessionOptions::new());
            let held = submit(&session, GATED, &[0, 7]);
            until_claimed(&session, 1);
            let behind = submit(&session, ADD_ONE, &[1]);
            for loss in 0..losses {
                backend.arm(point, loss, InjectedFault::LossBy(LossCause::Killed));
            }
            backend.lose("a test");
            // It is as lost as can be already when it is reaped.
            if losses < 4 || point == FaultPoint::Reap {
                until_recovered(&session, 1);
                set_gate(&session, 0, true);
                assert_eq!(answer(&session, &held), Ok(7), "{point:?} {losses}");
                assert_eq!(answer(&session, &behind), Ok(2), "{point:?} {losses}");
                until(&session, "no report", |session| session.last_recovery().is_some());
                let report = session.last_recovery().expect("it recovered");
                let expected = if point == FaultPoint::Reap { 1 } else { losses as u32 + 1 };
                assert_eq!(
                    (report.losses, report.cause),
                    (expected, LossCause::Killed),
                    "{point:?} {losses}"
                );
                continue;
            }
            assert_eq!(answer(&session, &held), Err(Fault::DeviceLost), "{point:?}");
            until(&session, "not given up", |session| session.last_recovery().is_some());
            let report = session.last_recovery().expect("it tried");
            assert!(
                !report.is_recovered() && report.losses == 4 && report.before == Generation(1),
                "{report:?}"
            );
            // A kernel that started before its loss may have run the other one.
            let ran = u64::from(answer(&session, &behind).is_ok());
            assert!(ran == 0 || point == FaultPoint::AfterStart, "{point:?}");
            assert_eq!(report.failed_with(Fault::DeviceLost), 2 - ran, "{report:?}");
            session.recover_after_device_loss().expect("by hand");
            assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[1])), Ok(2), "{point:?}");
        }
    }
}

#[test]
fn a_loss_while_the_session_is_quiesced_or_restarted_or_stopped() {
    for point in [FaultPoint::Quiesce, FaultPoint::Start, FaultPoint::AfterStart] {
        let (backend, session) = start(1, SessionOptions::new());
        let answered = submit(&session, ADD_ONE, &[1]);
        session.drain(WAIT).expect("drained");
        backend.arm(point, 0, InjectedFault::Loss);
        session.restart(WAIT).expect("it recovers");
        assert_eq!(session.telemetry().recoveries, 1, "{point:?}");
        assert_eq!(answer(&session, &answered), Ok(2), "{point:?}");
        assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[2])), Ok(3), "{point:?}");

        session.quiesce(WAIT).expect("quiesced");
        let waiting = submit(&session, ADD_ONE, &[4]);
        backend.lose("while nothing runs");
        session.restart(WAIT).expect("it recovers");
        assert_eq!(answer(&session, &waiting), Ok(5), "{point:?}");

        let held = submit(&session, GATED, &[0, 7]);
        until_claimed(&session, 1);
        let (lose, gate) = (Arc::clone(&backend), session.clone());
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| session.stop());
            lose.lose("while stopping");
            until_recovered(&gate, 3);
            set_gate(&gate, 0, true);
            stopping.join().expect("no panic").expect("stopped");
        });
        assert_eq!(answer(&session, &held), Ok(7), "{point:?}");
    }
}

#[test]
fn a_shutdown_that_has_not_run_is_replayed() {
    let (backend, session) = start(1, SessionOptions::new());
    let held = submit(&session, GATED, &[0, 7]);
    until_claimed(&session, 1);
    let last = session.submit(SlotDescriptor::new(BuiltinOpcode::Shutdown)).expect("submitted");
    backend.lose("a test");
    until_recovered(&session, 1);
    assert!(matches!(session.submit(item(ADD_ONE, &[])), Err(MegakernelError::SessionClosed { .. })));
    set_gate(&session, 0, true);
    assert_eq!((answer(&session, &held), answer(&session, &last)), (Ok(7), Ok(0)));
    session.stop().expect("nothing is left");
}

#[test]
fn a_loss_while_the_host_reads_a_file_answers_the_item_and_serves_the_next() {
    use std::io::{Seek, SeekFrom, Write};
    let mut file = tempfile::tempfile().expect("a file");
    file.seek(SeekFrom::Start(64 << 20)).expect("sparse");
    file.write_all(&[1]).expect("written");
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(1));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let megakernel = builder(Arc::clone(&backend) as _).build().expect("a megakernel");
    let options = SessionOptions::new().bind_zeroed("table", 65 << 20);
    let session = megakernel.start_with(options).expect("a session");
    let whole = IoResource::new(file, 0..(64 << 20) + 1, "table", 0).expect("a range");
    session.register_resource(0, 1, whole).expect("registered");
    let ten = tempfile::tempfile().expect("a file");
    ten.set_len(10).expect("sparse");
    let ten = IoResource::new(ten, 0..10, "table", 0).expect("a range");
    session.register_resource(0, 2, ten).expect("registered");
    let load = |resource| {
        let slot = SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([resource]);
        session.submit(slot).expect("submitted")
    };
    let miss = load(1);
    until(&session, "not asked for", |session| session.telemetry().occupancy.waiting > 0);
    backend.lose("a test");
    // Lost, unless the read was faster; never blamed on the file.
    let lost = answer(&session, &miss);
    assert!(matches!(lost, Err(Fault::DeviceLost) | Ok(_)), "{lost:?}");
    until_recovered(&session, 1);
    // The first request of the new kernel, as the one being served was of the old.
    assert_eq!(answer(&session, &load(2)), Ok(10));
    assert_eq!(answer(&session, &load(1)), Ok((64 << 20) + 1));
    session.stop().expect("stopped");
}

#[test]
fn losses_at_any_moment_leave_no_ticket_without_an_answer_and_none_with_two() {
    let points = [
        FaultPoint::Doorbell,
        FaultPoint::State,
        FaultPoint::Quiesce,
        FaultPoint::Start,
        FaultPoint::AfterStart,
    ];
    let (backend, session) = start(2, SessionOptions::new());
    let (right, lost) = (AtomicU64::new(0), AtomicU64::new(0));
    const PRODUCERS: u32 = 4;
    const RECOVERIES: u64 = 100;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (session, right, lost, over) = (&session, &right, &lost, &over);
                scope.spawn(move || {
                    let mut open = std::collections::VecDeque::new();
                    let settle = |open: &mut std::collections::VecDeque<(Ticket, u64)>| {
                        let Some((ticket, expected)) = open.pop_front() else { return };
                        match answer(session, &ticket) {
                            Ok(result) => {
                                assert_eq!(result, expected, "{ticket:?}");
                                right.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(Fault::DeviceLost) => {
                                lost.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(other) => panic!("{ticket:?}: {other:?}"),
                        }
                        assert!(session.take(&ticket).is_err(), "{ticket:?} was answered twice");
                    };
                    let mut number = producer;
                    while !over.load(Ordering::Relaxed) {
                        number = number.wrapping_add(PRODUCERS) & 0x7FFF_FFFF;
                        loop {
                            match session.submit(item(ADD_ONE, &[number])) {
                                Ok(ticket) => break open.push_back((ticket, u64::from(number) + 1)),
                                Err(MegakernelError::RingFull { .. }) => settle(&mut open),
                                // A loss during a recovery: nobody recovers but us.
                                Err(MegakernelError::SessionClosed { .. }) => {
                                    let _ = session.recover_after_device_loss();
                                }
                                Err(other) => panic!("{other:?}"),
                            }
                        }
                    }
                    while !open.is_empty() {
                        settle(&mut open);
                    }
                })
            })
            .collect();
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        while session.telemetry().recoveries < RECOVERIES {
            assert!(producers.iter().all(|producer| !producer.is_finished()), "a producer gave up");
            match random(6) {
                0 => backend.lose("at any moment"),
                1 => drop(session.restart(WAIT)),
                _ => {
                    let point = points[random(points.len() as u64) as usize];
                    backend.arm(point, random(50), InjectedFault::Loss);
                }
            }
            std::thread::sleep(Duration::from_micros(random(2000)));
        }
        over.store(true, Ordering::Relaxed);
    });
    let (right, lost) = (right.into_inner(), lost.into_inner());
    let telemetry = session.telemetry();
    assert_eq!((telemetry.submitted, telemetry.acknowledged), (right + lost, right + lost));
    assert!(right > lost && lost > 0, "{right} right, {lost} lost, {telemetry:?}");
    println!("{right} right, {lost} lost, {} recoveries, {} starts", telemetry.recoveries, telemetry.starts);
}

#[test]
fn a_loss_while_a_session_starts_costs_another_attempt_or_is_the_answer() {
    for point in [
        FaultPoint::CompileResident,
        FaultPoint::CreateBuffer,
        FaultPoint::WriteBuffer,
        FaultPoint::ReadBuffer,
        FaultPoint::Start,
        FaultPoint::AfterStart,
    ] {
        for policy in [MegakernelRecoveryPolicy::Once, MegakernelRecoveryPolicy::Off] {
            let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
            let megakernel = builder(Arc::clone(&backend) as _).recovery(policy).build().expect("built");
            let buffers = backend.live_buffers();
            backend.arm(point, 0, InjectedFault::Failure);
            let error = megakernel.start().expect_err("no loss, and no session");
            assert!(!error.is_device_loss(), "{point:?}: {error:?}");
            assert_eq!(backend.live_buffers(), buffers, "{point:?}");
            backend.arm(point, 0, InjectedFault::Loss);
            let started = megakernel.start();
            let session = match (policy, started) {
                (MegakernelRecoveryPolicy::Once, Ok(session)) => session,
                (MegakernelRecoveryPolicy::Off, Err(error)) => {
                    assert!(error.is_device_loss(), "{point:?}: {error:?}");
                    megakernel.recover_after_device_loss().expect("recovered");
                    megakernel.start().expect("a session")
                }
                (_, other) => panic!("{point:?} {policy:?}: {other:?}"),
            };
            assert_eq!(answer(&session, &submit(&session, ADD_ONE, &[1])), Ok(2), "{point:?} {policy:?}");
            session.stop().expect("stopped");
        }
    }
}

#[test]
fn what_a_kernel_cuts_short_when_its_lease_runs_out_runs_again_only_if_it_may() {
    // The first lease is over at once; the item does not end before the second is.
    let (_, session) = start(1, SessionOptions::new().lease(Duration::from_micros(1)));
    let total = submit(&session, TOTAL, &[5]);
    assert_eq!(answer(&session, &total), Ok(5));
    assert_eq!(answer(&session, &submit(&session, GATED_ONCE, &[0, 8])), Err(Fault::DeviceLost));
    let held = submit(&session, GATED, &[0, 7]);
    let starts = session.telemetry().starts;
    until(&session, "not started again", |session| session.telemetry().starts > starts + 3);
    set_gate(&session, 0, true);
    assert_eq!(answer(&session, &held), Ok(7));
    // Nothing was lost: not the device, nor its state.
    assert_eq!(answer(&session, &submit(&session, TOTAL, &[1])), Ok(6));
    assert_eq!(session.telemetry().recoveries, 0);
}

#[test]
fn a_stop_whose_kernel_does_not_start_answers_everything_all_the_same() {
    for point in [FaultPoint::Start, FaultPoint::AfterStart] {
        for fault in [InjectedFault::Failure, InjectedFault::Loss] {
            let (backend, session) = start(1, SessionOptions::new());
            session.quiesce(WAIT).expect("quiesced");
            let waiting = submit(&session, ADD_ONE, &[4]);
            backend.arm(point, 0, fault);
            assert!(session.stop().is_err(), "{point:?} {fault:?}");
            let answered = answer(&session, &waiting);
            // A kernel that started before the fault may have run it.
            let ran = point == FaultPoint::AfterStart && answered == Ok(5);
            assert!(ran || answered == Err(Fault::Abandoned), "{point:?} {fault:?} {answered:?}");
        }
    }
}
