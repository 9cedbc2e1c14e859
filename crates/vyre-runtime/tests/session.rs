//! Sessions on the CPU backend: what they do.

mod support;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{
    ADD_ONE, GATED, SUM_PAYLOAD, SUM_TABLE, TOTAL, TRAP, WAIT, builder, item, set_gate, until_claimed,
};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::Fault;
use vyre_driver::wait::WaitStrategy;
use vyre_runtime::{
    BatchDescriptor, BuiltinOpcode, MegakernelError, PackedOpDescriptor, PersistentSession, SessionOptions,
    SlotDescriptor, TenantConfig, Ticket, WindowClass, WindowDescriptor,
};

fn start(options: SessionOptions) -> PersistentSession {
    let megakernel = builder(Arc::new(CpuBackend::new())).build().expect("a megakernel");
    megakernel.start_with(options).expect("a session")
}

#[test]
fn items_are_answered_whatever_the_wait_strategy() {
    for strategy in [WaitStrategy::Spin, WaitStrategy::Yield, WaitStrategy::Park] {
        let session = start(SessionOptions::new().wait_strategy(strategy));
        for n in 0..200 {
            let ticket = session.submit(item(ADD_ONE, &[n])).expect("submitted");
            assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), u64::from(n) + 1);
        }
        session.stop().expect("stopped");
    }
}

#[test]
fn a_ring_of_one_slot_and_threads_that_fight_for_it() {
    let session = start(SessionOptions::new().slots(1));
    let sum = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (session, sum) = (session.clone(), &sum);
            scope.spawn(move || {
                for n in 0..100 {
                    let ticket = loop {
                        match session.submit(item(ADD_ONE, &[thread * 100 + n])) {
                            Ok(ticket) => break ticket,
                            Err(error) => assert!(error.is_retryable(), "{error:?}"),
                        }
                        std::thread::yield_now();
                    };
                    let done = session.wait(ticket, WAIT).expect("answered");
                    sum.fetch_add(done.result(), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), (1..=400).sum::<u64>());
}

#[test]
fn a_fault_is_an_error_of_wait_and_a_completion_of_take() {
    let session = start(SessionOptions::new());
    let ticket = session.submit(item(TRAP, &[77])).expect("submitted");
    match session.wait(&ticket, WAIT) {
        Err(MegakernelError::Faulted { ticket: 0, fault: Fault::Trap(77), .. }) => {}
        other => panic!("{other:?}"),
    }
    let ticket = session.submit(item(TRAP, &[78])).expect("submitted");
    session.drain(WAIT).expect("drained");
    let polled = session.poll(&ticket).expect("ours").expect("answered");
    assert_eq!(polled.as_fault(), Some(Fault::Trap(78)));
    assert_eq!(session.take(&ticket).expect("ours"), Some(polled));
}

#[test]
fn a_batch_is_submitted_whole_and_answered_in_order_of_its_tickets() {
    let session = start(SessionOptions::new());
    let batch: BatchDescriptor = (0..64).map(|n| item(ADD_ONE, &[n])).collect();
    for round in 0..5 {
        let tickets = session.submit_batch(&batch).expect("fits exactly");
        assert_eq!((tickets.len(), tickets.first()), (64, round * 64));
        for (n, ticket) in (1..).zip(tickets) {
            assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), n);
        }
    }
    let empty = session.submit_batch(&BatchDescriptor::new()).expect("nothing to do");
    assert_eq!(empty.len(), 0);
    session.submit_batch_detached(&batch).expect("submitted");
    session.drain(WAIT).expect("drained");
    assert_eq!(session.telemetry().acknowledged, 6 * 64);
}

#[test]
fn a_deadline_names_what_was_awaited_and_the_ticket_stays_good() {
    let session = start(SessionOptions::new());
    let ticket = session.submit(item(GATED, &[0, 5])).expect("submitted");
    let expired = session.wait(&ticket, Duration::from_millis(5)).expect_err("the gate is closed");
    assert!(
        matches!(&expired, MegakernelError::Deadline { waited_for, .. } if waited_for.contains("ticket 0"))
    );
    assert!(expired.is_retryable());
    let expired = session.drain(Duration::from_millis(5)).expect_err("the gate is closed");
    assert!(
        matches!(&expired, MegakernelError::Deadline { waited_for, .. } if waited_for.contains("ticket 0"))
    );
    set_gate(&session, 0, true);
    assert_eq!(session.wait(&ticket, WAIT).expect("answered").result(), 5);
}

#[test]
fn items_submitted_to_a_quiesced_session_run_after_the_restart_and_only_then() {
    let session = start(SessionOptions::new());
    let before = session.submit(item(TOTAL, &[1])).expect("submitted");
    session.drain(WAIT).expect("drained");
    session.quiesce(WAIT).expect("quiesced");
    session.quiesce(WAIT).expect("nothing is left to do");
    let during: Vec<_> = (0..60).map(|_| session.submit(item(TOTAL, &[1])).expect("accepted")).collect();
    assert!(during.iter().all(|ticket| session.poll(ticket).expect("ours").is_none()));
    // Answered before the kernel left, and not run again by the next one.
    session.restart(WAIT).expect("restarted");
    session.restart(WAIT).expect("restarted at once");
    assert_eq!(session.wait(before, WAIT).expect("kept").result(), 1);
    let mut sums: Vec<_> =
        during.iter().map(|ticket| session.wait(ticket, WAIT).expect("answered").result()).collect();
    sums.sort_unstable();
    assert_eq!(sums, (2..=61).collect::<Vec<u64>>());
    session.stop().expect("stopped");
    let telemetry = session.telemetry();
    assert_eq!((telemetry.done, telemetry.starts), (61, 3));
}

#[test]
fn a_restart_waits_for_what_is_claimed() {
    let session = start(SessionOptions::new());
    let ticket = session.submit(item(GATED, &[1, 9])).expect("submitted");
    until_claimed(&session, 1);
    let expired = session.restart(Duration::from_millis(5)).expect_err("an item is running");
    assert!(matches!(expired, MegakernelError::Deadline { .. }));
    set_gate(&session, 1, true);
    session.restart(WAIT).expect("restarted");
    assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), 9);
    session.stop().expect("stopped");
    assert_eq!(session.telemetry().done, 1);
}

#[test]
fn stopping_drains_and_what_cannot_be_drained_is_abandoned() {
    let session = start(SessionOptions::new().stop_deadline(Duration::from_millis(50)));
    let done = session.submit(item(ADD_ONE, &[1])).expect("submitted");
    let stuck = session.submit(item(GATED, &[2, 0])).expect("submitted");
    until_claimed(&session, 1);
    let behind: Vec<_> = (0..40).map(|_| session.submit(item(GATED, &[2, 0])).expect("submitted")).collect();
    let stopped = session.stop().expect_err("an item never ends");
    assert!(matches!(stopped, MegakernelError::Deadline { .. }), "{stopped:?}");
    assert_eq!(session.wait(done, WAIT).expect("answered before").result(), 2);
    for ticket in behind.iter().chain([&stuck]) {
        let answer = session.take(ticket).expect("ours").expect("answered");
        assert_eq!(answer.as_fault(), Some(Fault::Abandoned));
    }
    for refused in [
        session.submit(item(ADD_ONE, &[1])).err(),
        session.restart(WAIT).err(),
        session.quiesce(WAIT).err(),
        session.stop().err(),
        session.recover_after_device_loss().err(),
    ] {
        assert!(matches!(refused, Some(MegakernelError::SessionClosed { .. })), "{refused:?}");
    }
}

#[test]
fn shutdown_is_the_last_item_and_what_comes_too_late_is_answered() {
    let session = start(SessionOptions::new().slots(1024));
    let answers = Mutex::new((0, 0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (session, answers) = (&session, &answers);
            scope.spawn(move || {
                let settle = |ticket: Ticket| match session.wait(&ticket, WAIT) {
                    Ok(_) => answers.lock().expect("counts").0 += 1,
                    Err(MegakernelError::Faulted { fault: Fault::Abandoned, .. }) => {
                        answers.lock().expect("counts").1 += 1;
                    }
                    Err(other) => panic!("{other:?}"),
                };
                let mut tickets = VecDeque::new();
                for n in 0.. {
                    let slot = if thread == 0 && n == 40 {
                        SlotDescriptor::new(BuiltinOpcode::Shutdown)
                    } else {
                        item(ADD_ONE, &[n])
                    };
                    let submitted = loop {
                        match session.submit(slot.clone()) {
                            Err(MegakernelError::RingFull { .. }) => match tickets.pop_front() {
                                Some(ticket) => settle(ticket),
                                None => std::thread::yield_now(),
                            },
                            other => break other,
                        }
                    };
                    match submitted {
                        Ok(ticket) => tickets.push_back(ticket),
                        Err(MegakernelError::SessionClosed { .. }) => break,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                tickets.into_iter().for_each(settle);
            });
        }
    });
    session.stop().expect("there is nothing left to stop");
    let (done, abandoned) = answers.into_inner().expect("counts");
    let telemetry = session.telemetry();
    assert_eq!((telemetry.submitted, telemetry.done), (done + abandoned, done));
    assert!(done > 40, "{done} done, {abandoned} abandoned");
}

#[test]
fn fences_order_items_and_count_epochs() {
    let session = start(SessionOptions::new());
    for epoch in 1..=20_u32 {
        let batch = BatchDescriptor::new()
            .slot(SlotDescriptor::new(BuiltinOpcode::StoreU32).args([epoch * 3, 7]))
            .slot(SlotDescriptor::new(BuiltinOpcode::BatchFence).args([1, epoch]))
            .slot(SlotDescriptor::new(BuiltinOpcode::Nop));
        let tickets: Vec<_> = session.submit_batch(&batch).expect("submitted").collect();
        assert_eq!(session.wait(&tickets[1], WAIT).expect("answered").result(), u64::from(epoch));
        // Behind the fence, what was before it is seen.
        let load = SlotDescriptor::new(BuiltinOpcode::LoadU32).args([7, 1]);
        let load = session.submit(load).expect("submitted");
        assert_eq!(session.wait(load, WAIT).expect("answered").result(), u64::from(epoch * 3));
        assert_eq!(session.observables(0).expect("tenant 0")[..2], [epoch, epoch * 3]);
        if epoch % 7 == 0 {
            session.restart(WAIT).expect("restarted");
        }
    }
    session.stop().expect("stopped");
    assert_eq!(session.telemetry().epoch, 20);
}

#[test]
fn windows_are_awaited_by_class_and_give_up_lookahead_first() {
    let session = start(SessionOptions::new().slots(8));
    let window = WindowDescriptor::new(GATED, 0).required([9, 0]).required([0, 0]).lookahead([0, 0]);
    // Arguments of a window's slots begin with its id and class: gate 0, result 0 or 1.
    let submitted = session.submit_window(&window).expect("fits");
    assert_eq!((submitted.required, submitted.lookahead, submitted.cancelled), (2, 1, 0));
    let again = session.submit_window(&window).expect_err("still open");
    assert!(matches!(again, MegakernelError::MalformedDescriptor { .. }));
    let expired = session.wait_window(0, WindowClass::Required, Duration::from_millis(5));
    assert!(matches!(expired, Err(MegakernelError::Deadline { .. })));
    set_gate(&session, 0, true);
    let required = session.wait_window(0, WindowClass::Required, WAIT).expect("answered");
    assert_eq!(required.iter().map(|done| done.result()).collect::<Vec<_>>(), [0, 0]);
    let lookahead = session.wait_window(0, WindowClass::Lookahead, WAIT).expect("answered");
    assert_eq!(lookahead.iter().map(|done| done.result()).collect::<Vec<_>>(), [1]);
    let closed = session.wait_window(0, WindowClass::Required, WAIT).expect_err("taken");
    assert!(matches!(closed, MegakernelError::UnknownWindow { window_id: 0 }));

    // Eight slots, six taken: the required two fit, the lookahead two do not.
    set_gate(&session, 1, false);
    let held: Vec<_> = (0..6).map(|_| session.submit(item(GATED, &[1, 0])).expect("fits")).collect();
    let window = WindowDescriptor::new(ADD_ONE, 4).required([]).required([]).lookahead([]).lookahead([]);
    let submitted = session.submit_window(&window).expect("the required ones fit");
    assert_eq!((submitted.required, submitted.lookahead, submitted.cancelled), (2, 0, 2));
    let full = session.submit_window(&WindowDescriptor::new(ADD_ONE, 5).required([])).expect_err("full");
    assert!(matches!(full, MegakernelError::RingFull { capacity: 8, oldest_untaken: Some(_) }));
    set_gate(&session, 1, true);
    assert_eq!(session.wait_window(4, WindowClass::Required, WAIT).expect("answered").len(), 2);
    drop(held);

    let window = WindowDescriptor::new(ADD_ONE, 6).required([]).lookahead([]);
    session.drain(WAIT).expect("drained");
    session.submit_window(&window).expect("fits");
    assert_eq!(session.cancel_lookahead(6).expect("open"), 1);
    assert_eq!(session.wait_window(6, WindowClass::Required, WAIT).expect("answered").len(), 1);
    assert!(session.cancel_lookahead(6).is_err());
}

#[test]
fn payloads_travel_with_their_items_and_come_back() {
    let session = start(SessionOptions::new().arena_bytes(256));
    let mut payload = session.payload(200).expect("fits");
    let full = session.payload(100).expect_err("does not");
    assert!(full.is_retryable(), "{full:?}");
    assert!(!session.payload(300).expect_err("never will").is_retryable());
    payload.write(0, &[1; 100]).expect("inside");
    payload.write(100, &[2; 100]).expect("inside");
    assert!(payload.write(101, &[0; 100]).is_err());
    // Kept, and used by several.
    for (at, bytes, sum) in [(0, 200, 300), (100, 100, 200), (99, 2, 3)] {
        let ticket = session.submit(item(SUM_PAYLOAD, &[payload.offset() + at, bytes])).expect("submitted");
        assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), sum);
    }
    // Handed over, and free when the ticket is taken.
    let sum = item(SUM_PAYLOAD, &[payload.offset(), 200]);
    let ticket = session.submit_with_payload(sum.clone(), &mut payload).expect("submitted");
    assert!(session.submit_with_payload(sum, &mut payload).is_err());
    assert!(payload.write(0, &[0]).is_err());
    session.drain(WAIT).expect("drained");
    assert!(session.payload(200).is_err());
    assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), 300);
    let other = start(SessionOptions::new().arena_bytes(256));
    let mut foreign = other.payload(16).expect("fits");
    assert!(session.submit_with_payload(item(ADD_ONE, &[0]), &mut foreign).is_err());
    assert_eq!(session.payload(200).expect("free again").len(), 200);
}

#[test]
fn buffers_are_uploaded_and_downloaded_while_the_kernel_runs() {
    let options = SessionOptions::new().bind_bytes("table", [3_u8; 20]).bind_zeroed("total", 1);
    let session = start(options);
    let sum = |expected| {
        let ticket = session.submit(item(SUM_TABLE, &[])).expect("submitted");
        assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), expected);
    };
    sum(60);
    session.upload("table", 5, &[10; 10]).expect("inside");
    sum(30 + 100);
    session.restart(WAIT).expect("restarted");
    sum(30 + 100);
    let ticket = session.submit(item(TOTAL, &[41])).expect("submitted");
    session.wait(ticket, WAIT).expect("answered");
    let mut total = [0; 4];
    session.download("total", 0, &mut total).expect("inside");
    assert_eq!(u32::from_le_bytes(total), 41);
    for (name, at, bytes) in [("table", 15, 6), ("table", u64::MAX, 2), ("tenants", 0, 4), ("nothing", 0, 1)]
    {
        let refused = session.upload(name, at, &vec![0; bytes]);
        assert!(matches!(refused, Err(MegakernelError::InvalidBinding { .. })), "{name} {refused:?}");
        assert!(session.download(name, at, &mut vec![0; bytes]).is_err(), "{name}");
    }
}

#[test]
fn quotas_hold_and_can_be_raised_while_the_kernel_runs() {
    let tenant = TenantConfig::permitting([ADD_ONE]).quota(5);
    let megakernel = builder(Arc::new(CpuBackend::new())).tenant(3, tenant).build().expect("a megakernel");
    let session = megakernel.start().expect("a session");
    let run = || {
        let slot = item(ADD_ONE, &[1]).tenant(3);
        let tickets: Vec<_> = (0..10).map(|_| session.submit(slot.clone()).expect("submitted")).collect();
        tickets.iter().filter(|ticket| session.wait(*ticket, WAIT).is_ok()).count()
    };
    assert_eq!(run(), 5);
    assert_eq!(run(), 0);
    assert!(matches!(session.raise_quota(3, 5), Err(MegakernelError::QuotaExceeded { limit: 5, .. })));
    assert!(matches!(session.raise_quota(4, 5), Err(MegakernelError::UnknownTenant { tenant: 4 })));
    session.raise_quota(3, 12).expect("higher");
    session.restart(WAIT).expect("what was used stays used");
    assert_eq!(run(), 7);
    session.stop().expect("stopped");
    let telemetry = session.telemetry();
    let tenant = telemetry.tenants.iter().find(|tenant| tenant.tenant == 3).expect("configured");
    assert_eq!((tenant.used, tenant.done, tenant.faulted), (12, 12, 18));
}

#[test]
fn telemetry_counts_what_is_where() {
    let config = CpuConfig::default().threads(1);
    let megakernel = builder(Arc::new(CpuBackend::with_config(config))).build().expect("a megakernel");
    let session = megakernel.start_with(SessionOptions::new().measure_latency()).expect("a session");
    let first = session.submit(item(GATED, &[0, 0])).expect("submitted");
    until_claimed(&session, 1);
    let behind: Vec<_> = (0..9).map(|n| session.submit(item(ADD_ONE, &[n])).expect("submitted")).collect();
    let occupancy = session.telemetry().occupancy;
    assert_eq!((occupancy.claimed, occupancy.published, occupancy.complete), (1, 9, 0));
    set_gate(&session, 0, true);
    session.drain(WAIT).expect("drained");
    let telemetry = session.telemetry();
    assert_eq!(telemetry.occupancy.complete, 10);
    assert!((telemetry.fill() - 10.0 / 64.0).abs() < 1e-9);
    assert_eq!((telemetry.submitted, telemetry.acknowledged), (10, 0));
    for ticket in behind.iter().chain([&first]) {
        session.wait(ticket, WAIT).expect("answered");
    }
    session.stop().expect("stopped");
    let telemetry = session.telemetry();
    assert_eq!((telemetry.acknowledged, telemetry.done, telemetry.faulted), (10, 10, 0));
    let of = |opcode: u32| {
        telemetry.opcodes.iter().find(|count| count.opcode.wire() == opcode).map(|count| count.items)
    };
    assert_eq!((of(GATED), of(ADD_ONE), of(TRAP), of(0)), (Some(1), Some(9), Some(0), Some(0)));
    let latency = telemetry.latency.expect("measured");
    assert_eq!(latency.items, 10);
    assert!(latency.min <= latency.p50 && latency.p50 <= latency.p99 && latency.p99 <= latency.max);
}

#[test]
fn the_debug_log_keeps_64_records_and_counts_the_others() {
    let session = start(SessionOptions::new().slots(128));
    let printf = SlotDescriptor::new(BuiltinOpcode::Printf).args([1, 2, 3]);
    let tickets: Vec<_> = (0..70).map(|_| session.submit(printf.clone()).expect("submitted")).collect();
    let kept: u64 = tickets.iter().map(|t| session.wait(t, WAIT).expect("answered").result()).sum();
    assert_eq!(kept, 64);
    session.quiesce(WAIT).expect("what was written last is mirrored");
    let log = session.debug_log();
    assert_eq!((log.records.len(), log.lost), (64, 6));
    assert!(log.records.iter().all(|record| record.format == 1 && record.args == [2, 3]));
    let mut tickets: Vec<_> = log.records.iter().map(|record| record.ticket).collect();
    tickets.sort_unstable();
    tickets.dedup();
    assert_eq!(tickets.len(), 64);
}

#[test]
fn faults_of_items_without_a_ticket_are_reported() {
    let faults = Arc::new(Mutex::new(Vec::new()));
    let reported = Arc::clone(&faults);
    let session = start(SessionOptions::new().on_detached_fault(move |ticket, completion| {
        reported.lock().expect("faults").push((ticket, completion.as_fault()));
    }));
    session.submit_detached(item(TRAP, &[1])).expect("submitted");
    session.submit_detached(item(ADD_ONE, &[1])).expect("submitted");
    drop(session.submit(item(TRAP, &[3])).expect("submitted"));
    drop(session.submit_batch([item(TRAP, &[4]), item(ADD_ONE, &[4])].as_slice()).expect("submitted"));
    session.stop().expect("stopped");
    let mut faults = faults.lock().expect("faults").clone();
    faults.sort_unstable_by_key(|(ticket, _)| *ticket);
    let expected = [(0, 1), (2, 3), (3, 4)].map(|(ticket, code)| (ticket, Some(Fault::Trap(code))));
    assert_eq!(faults, expected);
    assert_eq!(session.telemetry().acknowledged, 5);
}

#[test]
fn a_kernel_whose_lease_runs_out_is_started_again() {
    // Shorter than any host can renew it: the kernel leaves again and again.
    let session = start(SessionOptions::new().lease(Duration::from_micros(1)));
    let mut submitted = 0;
    while session.telemetry().starts < 10 {
        let ticket = session.submit(item(TOTAL, &[1])).expect("submitted");
        submitted += 1;
        assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), submitted);
    }
    session.stop().expect("stopped");
    assert_eq!(session.telemetry().done, submitted);
}

#[test]
fn packed_slots_run_live() {
    let session = start(SessionOptions::new());
    let ops = [
        PackedOpDescriptor::new(1).args([5, 0]),
        PackedOpDescriptor::new(2).args([6, 0]),
        PackedOpDescriptor::new(ADD_ONE as u8).args([41]),
    ];
    let ticket = session.submit(SlotDescriptor::packed(&ops).expect("fits")).expect("submitted");
    assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), 42);
}
