//! Sessions that publish themselves, read as another process would.

mod support;

use std::sync::Arc;
use std::time::Instant;

use support::{ADD_ONE, WAIT, builder, item};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_runtime::observe::{self, Published};
use vyre_runtime::{BuiltinOpcode, PersistentSession, SessionOptions, TenantConfig};

fn start(options: SessionOptions) -> PersistentSession {
    let cpu = CpuBackend::with_config(CpuConfig::default().threads(1));
    let megakernel = builder(Arc::new(cpu)).tenant(3, TenantConfig::permitting([ADD_ONE])).build();
    megakernel.expect("a megakernel").start_with(options.slots(64)).expect("a session")
}

/// What this process publishes under a name.
fn published(name: &str) -> Vec<Published> {
    let sessions = observe::list().expect("listed").sessions;
    sessions.into_iter().filter(|one| one.pid == std::process::id() && one.name == name).collect()
}

#[test]
fn a_session_is_published_from_its_start_to_its_stop() {
    let name = "from start to \"stop\"\u{1b}[2J";
    assert_eq!(published(name), []);
    let session = start(SessionOptions::new().observe(name));
    let [first] = published(name).try_into().expect("one");
    assert_eq!((first.backend.as_str(), first.state.as_str(), first.worker_pid), ("cpu", "runs", None));
    assert_eq!((first.telemetry.capacity, first.telemetry.submitted), (64, 0));
    assert!(first.telemetry.latency.is_none());

    // Two of the same name are two.
    let other = start(SessionOptions::new().observe(name).measure_latency());
    assert_eq!(published(name).len(), 2);
    drop(other);
    assert_eq!(published(name).len(), 1);
    session.stop().expect("stopped");
    assert_eq!(published(name), []);
}

#[test]
fn what_is_published_is_what_the_session_counts() {
    let session = start(SessionOptions::new().observe("counts").measure_latency());
    for n in 0..300 {
        let ticket = session.submit(item(ADD_ONE, &[n]).tenant(3)).expect("submitted");
        session.wait(ticket, WAIT).expect("done");
    }
    let out_of_bounds =
        session.submit(item(BuiltinOpcode::LoadU32.wire(), &[1 << 30, 0])).expect("submitted");
    session.wait(out_of_bounds, WAIT).expect_err("a fault");
    let started = Instant::now();
    // The device's counters come with its next heartbeats, and the snapshot with the next after that.
    let seen = loop {
        let [seen] = published("counts").try_into().expect("one");
        if seen.telemetry.done + seen.telemetry.faulted >= 301 && seen.telemetry == session.telemetry() {
            break seen;
        }
        assert!(started.elapsed() < WAIT, "{seen:?}");
        std::thread::yield_now();
    };
    let telemetry = &seen.telemetry;
    assert_eq!((telemetry.done, telemetry.faulted, telemetry.acknowledged), (300, 1, 301));
    let add_one = telemetry.opcodes.iter().find(|opcode| opcode.name == "add_one").expect("a handler");
    assert_eq!((add_one.opcode.wire(), add_one.items), (ADD_ONE, 300));
    let tenant = telemetry.tenants.iter().find(|tenant| tenant.tenant == 3).expect("a tenant");
    assert_eq!((tenant.used, tenant.done), (300, 300));
    assert_eq!(seen.telemetry.latency.map(|latency| latency.items), Some(301));
    assert_eq!(seen.generation, session.generation().0);
}

#[test]
fn a_session_that_nobody_asked_to_publish_does_not() {
    if std::env::var_os(observe::VARIABLE).is_some() {
        return;
    }
    let before = observe::list().expect("listed").sessions;
    let session = start(SessionOptions::new());
    let id = session.submit(item(ADD_ONE, &[1])).expect("submitted").session();
    let mine = |one: &Published| one.pid == std::process::id() && one.session == id;
    assert!(!observe::list().expect("listed").sessions.iter().any(mine), "{before:?}");
}
