//! The resident kernel: what each kind of item leads to, and how a kernel comes and goes.

mod common;
#[path = "common/items.rs"]
mod items;

use std::sync::Arc;
use std::time::{Duration, Instant};

use items::*;
use vyre_cpu::externals::{ExternalFunction, ExternalView, Externals};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::io_queue::{HostIo, IoReply};
use vyre_driver::protocol::{Fault, io, opcode};
use vyre_driver::ring::SlotImage;
use vyre_driver::{BackendError, KernelState, ResidentKernel, ResidentSpec, VyreBackend};
use vyre_foundation::externals::Signature;
use vyre_foundation::{Literal, ScalarType};

const LONG: Duration = Duration::from_secs(20);

fn session(threads: usize, capacity: u32) -> Session {
    Session::new(common::backend(threads), capacity, 0)
}

/// Waits for something that other threads bring about.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < LONG, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn every_outcome_becomes_its_completion() {
    let mut session = session(2, 64);
    session.item_deadline = Some(Duration::from_millis(20));
    let kernel = session.start().unwrap();
    let cases: &[(u32, &[u32], Result<u64, Fault>)] = &[
        (ADD_ONE, &[41], Ok(42)),
        (ADD_ONE, &[u32::MAX], Ok(0)),
        (TRAP, &[5], Err(Fault::Trap(5))),
        (TRAP, &[0xFFFF_FFFF], Err(Fault::Trap(0x7FFF_FFFF))),
        (SPIN, &[], Err(Fault::Deadline)),
        (COUNT_UP, &[0, 0], Ok(0)),
        (COUNT_UP, &[50, 0], Ok(50)),
        (BAD_STATUS, &[0], Err(Fault::Malformed)),
        (BAD_STATUS, &[5], Err(Fault::Malformed)),
        (BAD_STATUS, &[0x1_0003], Err(Fault::Malformed)),
        (BAD_STATUS, &[3], Ok(0)),
        (SUM, &[100], Ok(4950)),
        (SUM, &[0], Ok(0)),
        (HASH, &[1000, 7], Ok(hash(1000, 7))),
        (12345, &[], Err(Fault::UnknownOpcode)),
        (opcode::BATCH_FENCE, &[], Ok(0)),
    ];
    for repeat in 0..20 {
        let tickets: Vec<_> = cases.iter().map(|(op, args, _)| session.submit(*op, args)).collect();
        for (ticket, (op, args, expected)) in tickets.into_iter().zip(cases) {
            let completion = session.wait(ticket);
            let got = completion.as_fault().map_or(Ok(completion.result()), Err);
            assert_eq!(got, *expected, "opcode {op} with {args:?} in round {repeat}");
        }
    }
    assert_eq!(kernel.state(), KernelState::Running);
    kernel.quiesce(LONG).unwrap();
    assert_eq!(kernel.state(), KernelState::Stopped);
}

#[test]
fn an_item_past_its_deadline_spoils_only_itself() {
    let mut session = session(1, 32);
    session.item_deadline = Some(Duration::from_millis(5));
    // Published before the start, so that they run as one wave.
    let spins: Vec<_> = (0..3).map(|_| session.submit(SPIN, &[])).collect();
    let sums: Vec<_> = (0..20).map(|i| session.submit(HASH, &[3000, i])).collect();
    let _kernel = session.start().unwrap();
    for (i, ticket) in (0..).zip(sums) {
        assert_eq!(session.result(ticket), hash(3000, i));
    }
    for ticket in spins {
        assert_eq!(session.wait(ticket).as_fault(), Some(Fault::Deadline));
    }
}

#[test]
fn the_payload_is_read_from_the_shared_region() {
    let session = session(1, 8);
    let at = session.regions.layout.arena().offset;
    session.regions.h2d.copy_in(at + 40, &7777_u32.to_le_bytes()).unwrap();
    let _kernel = session.start().unwrap();
    let (inside, outside) =
        (session.submit(PAYLOAD, &[10]), session.submit(PAYLOAD, &[ARENA_BYTES as u32 / 4]));
    assert_eq!(session.result(inside), 7777);
    assert_eq!(session.result(outside), 0);
}

#[test]
fn a_fence_waits_for_its_tickets_and_holds_back_nothing() {
    for threads in [1, 2, 4] {
        let session = session(threads, 256);
        let _kernel = session.start().unwrap();
        let mut bumped = 0;
        for round in 0..30_u32 {
            // An IO wait nobody answers is complete for no fence that names it.
            let slow: Vec<_> = (0..20).map(|i| session.submit(HASH, &[200, i])).collect();
            let bumps: Vec<_> = (0..round).map(|_| session.submit(BUMP, &[0])).collect();
            let all = session.submit(opcode::BATCH_FENCE, &[0]);
            let behind = session.submit(ADD_ONE, &[1]);
            let last = session.submit(opcode::BATCH_FENCE, &[2]);
            bumped += u64::from(round);
            assert_eq!(session.result(all), bumped, "{threads} threads, round {round}");
            assert_eq!(session.result(behind), 2);
            session.result(last);
            slow.into_iter().chain(bumps).for_each(|ticket| assert!(session.wait(ticket).is_done()));
        }
    }
}

#[test]
fn a_fence_counts_back_from_itself() {
    let session = session(1, 64);
    let io = HostIo::new(&session.regions).unwrap();
    let _kernel = session.start().unwrap();
    let read = session.submit(READ, &[1, 2, 3]);
    let nop = session.submit(ADD_ONE, &[0]);
    // One ticket back: the item. Two: the read, which nobody has answered. More than there are: likewise.
    let one = session.submit(opcode::BATCH_FENCE, &[1]);
    assert_eq!(session.result(one), 0);
    let [two, many] = [3, u32::MAX].map(|count| session.submit(opcode::BATCH_FENCE, &[count]));
    session.result(nop);
    let behind = session.submit(ADD_ONE, &[1]);
    assert_eq!(session.result(behind), 2);
    for fence in [two, many] {
        assert_eq!(session.producer.poll_raw(fence).unwrap(), None);
    }
    let mut request = None;
    until("the request", || {
        request = io.next_request();
        request.is_some()
    });
    let (number, request) = request.unwrap();
    assert_eq!((request.operation, request.source, request.destination, request.bytes), (1, 1, 2, 3));
    io.reply(number, IoReply::Done { bytes: 2 }).unwrap();
    assert_eq!(session.result(read), 2);
    session.result(two);
    session.result(many);
}

#[test]
fn more_requests_than_the_queue_holds_are_served_in_turn() {
    let session = session(2, 64);
    let io = HostIo::new(&session.regions).unwrap();
    let kernel = session.start().unwrap();
    let reads: Vec<_> = (0..30).map(|i| session.submit(READ, &[i, 0, i])).collect();
    let mut served = 0;
    until("all requests", || {
        while let Some((number, request)) = io.next_request() {
            let reply = match request.source % 3 {
                0 => IoReply::Failed { errno: 2 },
                _ => IoReply::Done { bytes: request.source },
            };
            io.reply(number, reply).unwrap();
            kernel.ring_doorbell();
            served += 1;
        }
        served == 30
    });
    for (i, ticket) in (0..).zip(reads) {
        let completion = session.wait(ticket);
        match i % 3 {
            0 => assert_eq!((completion.as_fault(), completion.result()), (Some(Fault::Io), 2)),
            _ => assert_eq!((completion.is_done(), completion.result()), (true, i)),
        }
    }
}

#[test]
fn shutdown_is_the_last_item() {
    for threads in [1, 2, 4] {
        let session = session(threads, 64);
        let kernel = session.start().unwrap();
        let before: Vec<_> = (0..20).map(|_| session.submit(BUMP, &[0])).collect();
        let counting = session.submit(COUNT_UP, &[100, 0]);
        let stranger = session.producer.submit(&SlotImage { tenant: 1, ..image(opcode::SHUTDOWN, &[]) });
        let stranger = stranger.unwrap().into_raw();
        let shutdown = session.submit(opcode::SHUTDOWN, &[]);
        let after: Vec<_> = (0..10).map(|_| session.submit(BUMP, &[0])).collect();
        assert_eq!(session.result(shutdown), shutdown.position());
        // It is complete after everything before it.
        for ticket in before.into_iter().chain([counting, stranger]) {
            assert!(session.producer.take_raw(ticket).unwrap().is_some());
        }
        until("the kernel to leave", || kernel.state() != KernelState::Running);
        assert_eq!(kernel.state(), KernelState::ShutDown);
        for ticket in after {
            assert_eq!(session.producer.poll_raw(ticket).unwrap(), None);
        }
        let mut word = [0; 4];
        session.host.read_mirror(0, &mut word).unwrap();
        assert_eq!(u32::from_le_bytes(word), 20, "the mirror is written last");
    }
}

#[test]
fn endless_requeues_starve_nobody_and_end_with_the_kernel() {
    for threads in [1, 2] {
        let session = session(threads, 256);
        let kernel = session.start().unwrap();
        let endless: Vec<_> = (0..40).map(|_| session.submit(FOR_EVER, &[0])).collect();
        for i in 0..100 {
            let ticket = session.submit(ADD_ONE, &[i]);
            assert_eq!(session.result(ticket), u64::from(i) + 1);
        }
        let counted = session.submit(COUNT_UP, &[20, 0]);
        assert_eq!(session.result(counted), 20);
        let quiesced = kernel.quiesce(Duration::from_millis(30));
        assert!(matches!(quiesced, Err(BackendError::Deadline { .. })), "{quiesced:?}");
        kernel.reap(LONG).unwrap();
        assert_eq!(kernel.state(), KernelState::CutShort);
        assert!(endless.iter().all(|&ticket| session.producer.poll_raw(ticket).unwrap().is_none()));
    }
}

#[test]
fn reaping_stops_a_loop_and_leaves_it_unacknowledged() {
    let mut session = session(2, 16);
    let kernel = session.start().unwrap();
    let spin = session.submit(SPIN, &[]);
    until("the item to be in flight", || {
        (0..2).any(|worker| session.host.in_flight(worker).unwrap().is_some())
    });
    let beat = session.host.heartbeat().unwrap();
    until("a beat during a long item", || session.host.heartbeat().unwrap() > beat + 2);
    kernel.reap(LONG).unwrap();
    assert_eq!(session.producer.poll_raw(spin).unwrap(), None);
    // The host gives it up, and a new incarnation does not run it.
    session.producer.fail(spin.position(), Fault::DeviceLost).unwrap();
    let _kernel = session.restart();
    let next = session.submit(ADD_ONE, &[1]);
    assert_eq!(session.result(next), 2);
    assert_eq!(session.wait(spin).as_fault(), Some(Fault::DeviceLost));
}

#[test]
fn the_abort_flag_stops_loops() {
    let session = session(1, 16);
    let _kernel = session.start().unwrap();
    let spin = session.submit(SPIN, &[]);
    session.host.set_abort(true).unwrap();
    assert_eq!(session.wait(spin).as_fault(), Some(Fault::Deadline));
    session.host.set_abort(false).unwrap();
    let hashed = session.submit(HASH, &[5000, 3]);
    assert_eq!(session.result(hashed), hash(5000, 3));
}

#[test]
fn mirrors_follow_what_items_write() {
    let session = session(2, 16);
    let mirrored = |word: u64| {
        let mut bytes = [0; 4];
        session.host.read_mirror(word * 4, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    };
    common::write_u32(&session.backend, session.state, 5, 77);
    let kernel = session.start().unwrap();
    assert_eq!(mirrored(5), 77, "from the start");
    let bumps: Vec<_> = (0..10).map(|_| session.submit(BUMP, &[3])).collect();
    bumps.into_iter().for_each(|ticket| assert!(session.wait(ticket).is_done()));
    until("the mirror to follow", || mirrored(3) == 10);
    // A long item is no reason to stop mirroring what the others write.
    let _spin = session.submit(SPIN, &[]);
    until("the item to be in flight", || {
        (0..2).any(|worker| session.host.in_flight(worker).unwrap().is_some())
    });
    let bump = session.submit(BUMP, &[3]);
    assert!(session.wait(bump).is_done());
    until("the mirror to follow", || mirrored(3) == 11);
    kernel.reap(LONG).unwrap();
}

#[test]
fn a_kernel_leaves_when_its_lease_runs_out() {
    let mut session = session(2, 16);
    session.lease = Duration::from_millis(30);
    let kernel = session.start().unwrap();
    let ticket = session.submit(ADD_ONE, &[1]);
    assert_eq!(session.result(ticket), 2);
    until("the lease to run out", || kernel.state() == KernelState::Stopped);
    let after = session.submit(ADD_ONE, &[1]);
    assert_eq!(session.producer.poll_raw(after).unwrap(), None);
    // The item is run by the next incarnation, and a renewed lease keeps that one.
    let kernel = session.restart();
    assert_eq!(session.result(after), 2);
    for _ in 0..20 {
        session.host.renew_lease().unwrap();
        assert_eq!(kernel.state(), KernelState::Running);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn quiesce_awaits_the_host_and_leaves_fences() {
    let mut session = session(2, 16);
    let io = HostIo::new(&session.regions).unwrap();
    let kernel = session.start().unwrap();
    // More than the queue holds: those without a place have run as well.
    let reads: Vec<_> = (1..=6).map(|n| session.submit(READ, &[n, 1, 1])).collect();
    let fence = session.submit(opcode::BATCH_FENCE, &[1]);
    let other = session.submit(ADD_ONE, &[1]);
    session.result(other);
    std::thread::scope(|scope| {
        let quiesced = scope.spawn(|| kernel.quiesce(LONG));
        let first = {
            let mut first = None;
            until("the request", || {
                first = io.next_request();
                first.is_some()
            });
            first
        };
        // Whatever leaves would have left by the time that an aside is answered; nobody claims any more.
        assert_eq!(kernel.state(), KernelState::Running);
        let mut requests = first.into_iter().collect::<Vec<_>>();
        let mut served = 0;
        until("all requests", || {
            requests.extend(std::iter::from_fn(|| io.next_request()));
            for (number, request) in requests.drain(..) {
                io.reply(number, IoReply::Done { bytes: request.source }).unwrap();
                served += 1;
            }
            served == 6
        });
        quiesced.join().expect("no panic").unwrap();
    });
    assert_eq!(kernel.state(), KernelState::Stopped);
    for (n, read) in (1..).zip(reads) {
        assert_eq!(session.result(read), n);
    }
    session.restart();
    session.result(fence);
}

#[test]
fn a_host_that_is_away_for_two_leases_is_given_up() {
    let mut session = session(2, 16);
    session.lease = Duration::from_millis(30);
    let queue = HostIo::new(&session.regions).unwrap();
    let kernel = session.start().unwrap();
    let reads: Vec<_> = (0..6).map(|n| session.submit(READ, &[n, 1, 1])).collect();
    until("the kernel to leave", || kernel.state() != KernelState::Running);
    // It was not cut short: everything that it began has an answer.
    assert_eq!(kernel.state(), KernelState::Stopped);
    assert!(queue.next_request().is_some());
    for read in reads {
        let completion = session.wait(read);
        assert_eq!((completion.as_fault(), completion.result()), (Some(Fault::Io), io::TIMED_OUT.into()));
    }
}

#[test]
fn rings_of_one_slot_and_late_tickets_work() {
    for (capacity, first) in [(1, 0), (1, 70_000), (2, 1 << 40), (32, (1 << 51) - 200)] {
        let session = Session::new(common::backend(2), capacity, first);
        let _kernel = session.start().unwrap();
        for i in 0..100 {
            let ticket = match i % 5 {
                4 => session.submit(opcode::BATCH_FENCE, &[0]),
                _ => session.submit(ADD_ONE, &[i]),
            };
            assert_eq!(session.result(ticket), if i % 5 == 4 { 0 } else { u64::from(i) + 1 });
        }
    }
}

#[test]
fn what_cannot_start_is_refused() {
    let session = session(1, 8);
    let refused = |change: &dyn Fn(&mut vyre_driver::StartRequest)| {
        let mut request = session.request();
        change(&mut request);
        match session.pipeline.start(request) {
            Err(BackendError::InvalidArgument { argument, .. }) => argument,
            Err(other) => panic!("refused with {other}"),
            Ok(_) => panic!("started"),
        }
    };
    assert_eq!(refused(&|request| request.bindings.truncate(1)), "bindings");
    assert_eq!(refused(&|request| request.bindings.reverse()), "bindings");
    assert_eq!(refused(&|request| request.mirrors[0].d2h_offset += 4), "mirrors");
    assert_eq!(refused(&|request| request.mirrors[0].source.byte_offset = 1), "range");
    assert_eq!(
        refused(&|request| request.regions.d2h = request.regions.d2h.read_only().unwrap().into()),
        "regions"
    );
    let kernel: std::sync::Arc<dyn ResidentKernel> = session.start().unwrap();
    kernel.reap(LONG).unwrap();
}

/// Adds one to a word.
#[derive(Debug)]
struct AddOne;

impl ExternalFunction for AddOne {
    fn signature(&self) -> &Signature {
        const WORD: &[ScalarType] = &[ScalarType::U32];
        &Signature { name: "add_one", params: WORD, buffers: &[], results: WORD }
    }

    fn call(&self, scalars: &[Literal], _: &[ExternalView<'_>]) -> Vec<Literal> {
        match scalars {
            [Literal::U32(word)] => vec![Literal::U32(word + 1)],
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn items_of_workgroups_have_subgroups_and_external_functions() {
    for lanes in [1, 32] {
        let externals = Externals::none().with(Arc::new(AddOne));
        let backend = CpuBackend::with_externals(CpuConfig::default().lanes(lanes), externals);
        let mut session = Session::new(backend, 32, 0);
        let (lane, _) = items::programs();
        let workgroup = items::workgroup_of_subgroups(AddOne.signature());
        let spec = ResidentSpec {
            lane,
            accounting: None,
            workgroup: Some(workgroup),
            workgroup_opcodes: vec![items::SUM],
            worker_groups: 2,
        };
        session.pipeline = session.backend.compile_resident(&spec).expect("compiles");
        let _kernel = session.start().expect("starts");
        // 0 + 1 + ... + 31 from the first of two subgroups, whatever executes it.
        let tickets: Vec<_> = (0..20).map(|word| (word, session.submit(items::SUM, &[word]))).collect();
        for (word, ticket) in tickets {
            assert_eq!(session.result(ticket), 496 + u64::from(word) + 1, "{lanes} lanes");
        }
    }
}
