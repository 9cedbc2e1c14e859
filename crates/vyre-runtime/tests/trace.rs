//! Traces of sessions: every ticket once, bounded, and what happened to the session beside them.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use support::{ADD_ONE, GATED, TRAP, WAIT, builder, item, set_gate};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::LossCause;
use vyre_runtime::fault_injection::FaultInjectingBackend;
use vyre_runtime::trace::{ItemEnd, MAX_ITEMS};
use vyre_runtime::{BatchDescriptor, MegakernelError, PersistentSession, SessionOptions};

fn start(options: SessionOptions) -> (Arc<FaultInjectingBackend>, PersistentSession) {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(1));
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(cpu)));
    let megakernel = builder(Arc::clone(&backend) as _).build().expect("a megakernel");
    (backend, megakernel.start_with(options).expect("a session"))
}

/// The file: what it says of itself, and its events.
fn chrome(session: &PersistentSession) -> (Value, Vec<Value>) {
    let mut file = Vec::new();
    session.trace().expect("traced").write_chrome(&mut file).expect("written");
    let mut file: Value = serde_json::from_slice(&file).expect("JSON");
    let Value::Array(events) = file["traceEvents"].take() else { panic!("an array") };
    (file["otherData"].take(), events)
}

fn of_kind<'e>(events: &'e [Value], ph: &str) -> Vec<&'e Value> {
    events.iter().filter(|event| event["ph"] == ph).collect()
}

#[test]
fn every_ticket_is_a_span_once_however_its_answer_is_taken() {
    let (_, session) = start(SessionOptions::new().trace(256));
    // One by one, in a batch, by taking, by reaping; detached; and one that is not taken at all.
    for n in 0..10 {
        let ticket = session.submit(item(ADD_ONE, &[n])).expect("submitted");
        session.wait(ticket, WAIT).expect("done");
    }
    let batch: BatchDescriptor = (0..30).map(|n| item(ADD_ONE, &[n])).collect();
    for ticket in session.submit_batch(&batch).expect("submitted") {
        session.wait(ticket, WAIT).expect("done");
    }
    let trap = session.submit(item(TRAP, &[3])).expect("submitted");
    session.drain(WAIT).expect("drained");
    assert!(session.take(&trap).expect("a ticket").is_some_and(|completion| completion.as_fault().is_some()));
    let reaped = session.submit(item(ADD_ONE, &[1])).expect("submitted");
    session.drain(WAIT).expect("drained");
    assert_eq!(session.reap(|_, _| ()), 1);
    drop(reaped);
    session.submit_detached(item(ADD_ONE, &[1])).expect("submitted");
    let open = session.submit(item(ADD_ONE, &[1])).expect("submitted");
    session.stop().expect("stopped");

    let (about, events) = chrome(&session);
    assert_eq!(
        (&about["items"], &about["dropped_items"], &about["backend"]),
        (&44.into(), &0.into(), &"cpu".into())
    );
    let spans = |ph| {
        let spans = of_kind(&events, ph);
        let by_id: BTreeMap<u64, &Value> =
            spans.iter().map(|event| (event["id"].as_u64().expect("a ticket"), *event)).collect();
        assert_eq!(by_id.len(), spans.len(), "a ticket twice");
        by_id
    };
    let (begun, ended, detached) = (spans("b"), spans("e"), spans("n"));
    assert!(begun.keys().copied().eq((0..42).chain([43])), "{:?}", begun.keys());
    assert!(ended.keys().copied().eq(0..42), "{:?}", ended.keys());
    assert!(detached.keys().copied().eq([42]));
    for (ticket, end) in &ended {
        assert!(begun[ticket]["ts"].as_f64() <= end["ts"].as_f64(), "{ticket}");
        assert_eq!(end["args"]["faulted"] == true, *ticket == 40, "{ticket}");
        assert_eq!(begun[ticket]["name"], if *ticket == 40 { "trap_" } else { "add_one" });
    }
    drop(open);

    let named = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    assert_eq!((named("start"), named("quiesced"), named("end")), (1, 1, 1));
}

#[test]
fn the_last_items_are_kept_and_the_others_counted() {
    // Fewer than the ring has slots are as many as those.
    let (_, session) = start(SessionOptions::new().slots(16).trace(5));
    for n in 0..100 {
        let ticket = session.submit(item(ADD_ONE, &[n])).expect("submitted");
        session.wait(ticket, WAIT).expect("done");
    }
    let trace = session.trace().expect("traced");
    assert!(trace.items().iter().map(|item| item.ticket).eq(84..100));
    assert!(
        trace
            .items()
            .iter()
            .all(|item| matches!(item.end, ItemEnd::Taken { at, .. } if at >= item.submitted))
    );
    assert!(trace.items().is_sorted_by_key(|item| item.submitted));
    assert_eq!(trace.dropped(), 84);
    let (about, _) = chrome(&session);
    assert_eq!(about["dropped_items"], 84);

    let megakernel = builder(Arc::new(CpuBackend::new())).build().expect("a megakernel");
    let error = megakernel.start_with(SessionOptions::new().trace(MAX_ITEMS + 1)).expect_err("too many");
    assert!(
        matches!(error, MegakernelError::InvalidGeometry { .. }) && error.to_string().contains("16777217")
    );
    assert!(megakernel.start().expect("a session").trace().is_none());
}

#[test]
fn a_loss_and_what_the_device_says_are_in_it() {
    let (backend, session) = start(SessionOptions::new().trace(64));
    backend.lose_when_running(GATED, Some(1), LossCause::Fault, 10);
    let guilty = session.submit(item(GATED, &[1, 8])).expect("submitted");
    session.wait(&guilty, WAIT).expect_err("quarantined");
    let started = Instant::now();
    while session.last_recovery().is_none() {
        assert!(started.elapsed() < WAIT, "not recovered");
        std::thread::yield_now();
    }
    let (_, events) = chrome(&session);
    let one = |name: &str| {
        let found: Vec<_> = events.iter().filter(|event| event["name"] == name).collect();
        let [one] = found[..] else { panic!("{name}: {found:?}") };
        one.clone()
    };
    assert_eq!(one("quarantined")["args"]["ticket"], "0");
    assert_eq!(one("suspect alone")["args"]["ticket"], "0");
    let recovery = one("recovery");
    assert_eq!(
        (&recovery["args"]["recovered"], &recovery["args"]["quarantined"]),
        (&"true".into(), &"[0]".into())
    );
    // Its parts fill it.
    let parts = ["old kernel leaves", "rebuild", "replay and start"].map(one);
    let sum: f64 = parts.iter().map(|part| part["dur"].as_f64().expect("a time")).sum();
    let whole = recovery["dur"].as_f64().expect("a time");
    assert!((sum - whole).abs() < 1.0 && parts[0]["ts"] == recovery["ts"], "{parts:?} {recovery:?}");
    assert_eq!(events.iter().filter(|event| event["name"] == "start").count(), 3);

    // Samples come by and by: one of a worker that is busy.
    let held = session.submit(item(GATED, &[0, 7])).expect("submitted");
    let started = Instant::now();
    loop {
        let (_, events) = chrome(&session);
        let busy = |event: &&&Value| event["name"] == "running" && event["args"]["running"] == 1;
        if of_kind(&events, "C").iter().filter(busy).count() >= 2 {
            let beats = events.iter().filter(|event| event["name"] == "heartbeat");
            assert!(beats.map(|event| event["args"]["heartbeat"].as_u64()).max().flatten() > Some(0));
            break;
        }
        assert!(started.elapsed() < WAIT, "no samples");
        std::thread::yield_now();
    }
    set_gate(&session, 0, true);
    session.wait(held, WAIT).expect("done");
}

#[test]
fn one_item_in_so_many_is_timed() {
    let megakernel = builder(Arc::new(CpuBackend::new())).build().expect("a megakernel");
    let options = || SessionOptions::new().measure_latency().trace(64);
    let refused = megakernel.start_with(options().time_one_in(3)).map(drop);
    assert!(matches!(refused, Err(MegakernelError::InvalidGeometry { got: 3, .. })), "{refused:?}");
    let timed = |one_in| {
        let session = megakernel.start_with(options().time_one_in(one_in)).expect("a session");
        for _ in 0..128 {
            let batch: BatchDescriptor = (0..32).map(|n| item(ADD_ONE, &[n])).collect();
            for ticket in session.submit_batch(&batch).expect("submitted") {
                session.wait(ticket, WAIT).expect("answered");
            }
        }
        let latency = session.telemetry().latency.expect("measured");
        let trace = session.trace().expect("traced");
        assert!(trace.items().iter().all(|item| matches!(item.end, ItemEnd::Taken { .. })), "{trace:?}");
        let places: BTreeSet<u64> = trace.items().iter().map(|item| item.ticket % 32).collect();
        session.stop().expect("stopped");
        (latency.items, trace.items().len(), places.len())
    };
    assert_eq!(timed(1), (4096, 64, 32));
    let (measured, traced, places) = timed(8);
    // One in eight, and of the last 64 not always the same place of a batch.
    assert!((384..=640).contains(&measured), "{measured}");
    assert!((4..=16).contains(&traced) && places > 4, "{traced} traced, of {places} places");
}
