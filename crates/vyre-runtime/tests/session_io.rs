//! LOAD_MISS in live sessions: bytes of files arrive in bound buffers, or the item faults.

mod support;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use support::{ADD_ONE, SUM_TABLE, TOTAL, WAIT, builder, item};
use vyre_cpu::CpuBackend;
use vyre_driver::{Fault, Status};
use vyre_runtime::io_service::{IoResource, IoResources};
use vyre_runtime::{
    BuiltinOpcode, DispatchOptions, MegakernelError, PersistentSession, SessionOptions, SlotDescriptor,
    TenantConfig,
};

fn start() -> PersistentSession {
    let megakernel = builder(Arc::new(CpuBackend::new())).tenant(1, TenantConfig::all()).build();
    let options = SessionOptions::new().bind_zeroed("table", 100_000).io_entries(4);
    megakernel.expect("a megakernel").start_with(options).expect("a session")
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file
}

fn load(resource: u32) -> SlotDescriptor {
    SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([resource])
}

fn sum(session: &PersistentSession) -> u64 {
    let ticket = session.submit(item(SUM_TABLE, &[])).expect("submitted");
    session.wait(ticket, WAIT).expect("answered").result()
}

#[test]
fn a_miss_loads_the_registered_range_and_says_how_much() {
    let session = start();
    let content: Vec<u8> = (0..90_000_u32).map(|n| (n % 7) as u8).collect();
    let whole = IoResource::new(file(&content), 10..80_010, "table", 100).expect("a range");
    session.register_resource(0, 5, whole).expect("registered");
    let ticket = session.submit(load(5)).expect("submitted");
    assert_eq!(session.wait(ticket, WAIT).expect("loaded").result(), 80_000);
    let expected: u64 = content[10..80_010].iter().map(|&byte| u64::from(byte)).sum();
    assert_eq!(sum(&session), expected);
    let mut around = [9; 300];
    session.download("table", 0, &mut around).expect("inside");
    assert_eq!(around[..100], [0; 100]);
    assert_eq!(around[100..], content[10..210]);

    // Shorter than promised: what there is.
    let short = IoResource::new(file(&content), 89_990..100_000, "table", 0).expect("a range");
    session.register_resource(0, 6, short).expect("registered");
    let ticket = session.submit(load(6)).expect("submitted");
    assert_eq!(session.wait(ticket, WAIT).expect("loaded").result(), 10);

    // Part of it: offset low and high, then bytes.
    let part = SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([5, 0, 0, 50, 0, 20]);
    let ticket = session.submit(part).expect("submitted");
    assert_eq!(session.wait(ticket, WAIT).expect("loaded").result(), 20);
}

#[test]
fn what_cannot_be_loaded_is_a_fault_of_the_item_and_of_nothing_else() {
    let session = start();
    let fault = |slot: SlotDescriptor| {
        let ticket = session.submit(slot).expect("submitted");
        match session.wait(ticket, WAIT) {
            Err(MegakernelError::Faulted { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    // With and without a thread that serves requests.
    assert_eq!(fault(load(1)), Fault::Io);
    let resource = || IoResource::new(file(&[1; 64]), 0..64, "table", 0).expect("a range");
    session.register_resource(0, 1, resource()).expect("registered");
    let past = IoResource::new(file(&[1; 64]), 0..64, "table", 99_990).expect("a range");
    session.register_resource(0, 2, past).expect("registered");
    let directory = File::open("/").expect("there is a root");
    let directory = IoResource::new(directory, 0..64, "table", 0).expect("a range");
    session.register_resource(0, 3, directory).expect("registered");
    assert_eq!(fault(load(1).tenant(1)), Fault::Io);
    assert_eq!(fault(load(2)), Fault::Io);
    assert_eq!(fault(load(3)), Fault::Io);
    assert_eq!(fault(SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([1, 0, 0, 65])), Fault::Io);
    assert_eq!(fault(SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([1, 0, 7])), Fault::Io);
    let ticket = session.submit(load(1)).expect("submitted");
    assert_eq!(session.wait(ticket, WAIT).expect("loaded").result(), 64);
    assert!(session.unregister_resource(0, 1));
    assert_eq!(fault(load(1)), Fault::Io);
    assert!(matches!(
        session.register_resource(9, 1, resource()),
        Err(MegakernelError::UnknownTenant { .. })
    ));
    let nowhere = IoResource::new(file(&[]), 0..0, "nowhere", 0).expect("a range");
    let refused = session.register_resource(0, 1, nowhere);
    assert!(matches!(refused, Err(MegakernelError::InvalidBinding { .. })));
}

#[test]
fn more_misses_than_the_queue_holds_are_all_served_across_restarts() {
    let session = start();
    for resource in 0..8 {
        let bytes = vec![1; 1000 * (resource as usize + 1)];
        let resource_of = IoResource::new(file(&bytes), 0..bytes.len() as u64, "table", 0).expect("a range");
        session.register_resource(0, resource, resource_of).expect("registered");
    }
    for round in 0..40 {
        let which = |n: u32| (n * 5 + round * 3 + n / 8) % 8;
        let tickets: Vec<_> =
            (0..48).map(|n| (which(n), session.submit(load(which(n))).expect("submitted"))).collect();
        if round % 4 != 3 {
            session.restart(WAIT).expect("restarted");
        }
        for (resource, ticket) in tickets {
            let loaded = session.wait(ticket, WAIT).expect("loaded").result();
            assert_eq!(loaded, 1000 * (u64::from(resource) + 1), "{round}");
        }
    }
}

#[test]
fn a_batch_that_waits_for_io_is_served_and_dispatched_again() {
    // A batch has no payload arena: what a session binds by itself is bound by hand.
    let builder = builder(Arc::new(CpuBackend::new())).bind_zeroed("table", 100).bind_zeroed("payload", 1);
    let megakernel = builder.build().expect("a megakernel");
    let resources = IoResources::default();
    let at_10 = |range| IoResource::new(file(&[7; 64]), range, "table", 10).expect("a range");
    resources.register(0, 1, at_10(0..64));
    resources.register(0, 2, at_10(0..64));
    let mut batch = megakernel.batch_buffers();
    let past = SlotDescriptor::new(BuiltinOpcode::LoadMiss).args([2, 0, 0, 64 << 1]);
    for (slot, item) in [(0, load(1)), (1, past), (2, load(3))] {
        batch.ring.publish(slot, &item).expect("a free slot");
    }
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("returns");
    assert_eq!(batch.ring.completion(0).expect("a slot").status, Status::WaitIo);
    assert_eq!(megakernel.serve_io(&resources, &mut batch.io_queue).expect("a queue"), 3);
    assert_eq!(megakernel.serve_io(&resources, &mut batch.io_queue).expect("a queue"), 0);
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("returns");
    let ended = |slot| {
        let completion = batch.ring.completion(slot).expect("a slot");
        (completion.status, completion.code, completion.result)
    };
    assert_eq!(ended(0), (Status::Done, 0, 64));
    assert_eq!(ended(1), (Status::Fault, Fault::Io.code(), 22));
    assert_eq!(ended(2), (Status::Fault, Fault::Io.code(), 2));
    let table = megakernel.buffer("table").expect("bound");
    let mut bytes = [0; 100];
    megakernel.backend().read_buffer(table.buffer, table.byte_offset, &mut bytes).expect("inside");
    assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == if (10..74).contains(&at) { 7 } else { 0 }));
}

#[test]
fn what_was_answered_while_an_older_item_awaits_io_is_not_run_again() {
    let megakernel = builder(Arc::new(CpuBackend::new())).build().expect("a megakernel");
    let big = 64 << 20;
    let options = SessionOptions::new().bind_zeroed("table", big);
    let session = megakernel.start_with(options).expect("a session");
    let sparse = tempfile::tempfile().expect("a file");
    sparse.set_len(big).expect("sparse");
    let resource = IoResource::new(sparse, 0..big, "table", 0).expect("a range");
    session.register_resource(0, 1, resource).expect("registered");
    // Long enough that all of what follows happens meanwhile.
    let misses: Vec<_> = (0..4).map(|_| session.submit(load(1)).expect("submitted")).collect();
    for n in 1..=10 {
        let ticket = session.submit(item(TOTAL, &[1])).expect("submitted");
        assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), n);
    }
    let kept: Vec<_> = (0..10).map(|_| session.submit(item(TOTAL, &[1])).expect("submitted")).collect();
    for ticket in &kept {
        while session.poll(ticket).expect("ours").is_none() {
            std::thread::yield_now();
        }
    }
    session.restart(WAIT).expect("restarted");
    for miss in misses {
        assert_eq!(session.wait(miss, WAIT).expect("loaded").result(), big);
    }
    let ticket = session.submit(item(TOTAL, &[1])).expect("submitted");
    assert_eq!(session.wait(ticket, WAIT).expect("answered").result(), 21);
    let sum: u64 = kept.iter().map(|ticket| session.wait(ticket, WAIT).expect("kept").result()).sum();
    assert_eq!(sum, (11..=20).sum::<u64>());
    session.stop().expect("stopped");
    // The misses were ended by their answers, not by a handler.
    assert_eq!(session.telemetry().done, 21);
}

#[test]
fn a_kernel_takes_no_answer_and_the_host_no_request_of_an_earlier_one() {
    let big = 64 << 20;
    let megakernel = builder(Arc::new(CpuBackend::new())).build().expect("a megakernel");
    let session = megakernel.start_with(SessionOptions::new().bind_zeroed("table", big)).expect("a session");
    for (id, bytes) in [(1, 100), (2, big), (3, 10)] {
        let sparse = tempfile::tempfile().expect("a file");
        sparse.set_len(bytes).expect("sparse");
        let resource = IoResource::new(sparse, 0..bytes, "table", 0).expect("a range");
        session.register_resource(0, id, resource).expect("registered");
    }
    let submit = |resource| session.submit(load(resource)).expect("submitted");
    let loaded = |ticket| session.wait(ticket, WAIT).expect("loaded").result();
    assert_eq!(loaded(submit(1)), 100);
    // Request 1 of the first kernel, and still being served when it is request 0 of the second.
    let slow = submit(2);
    while session.telemetry().occupancy.waiting == 0 {
        std::thread::yield_now();
    }
    session.restart(WAIT).expect("restarted");
    assert_eq!(loaded(submit(3)), 10);
    assert_eq!(loaded(slow), big);
    // The pages of the first kernel are those of the third; what it asked for is not asked for again.
    session.restart(WAIT).expect("restarted");
    for n in 0..500 {
        let ticket = session.submit(item(ADD_ONE, &[n])).expect("submitted");
        session.wait(ticket, WAIT).expect("answered");
    }
    assert_eq!(loaded(submit(3)), 10);
}
