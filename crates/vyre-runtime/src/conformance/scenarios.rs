//! Several items: order, isolation, quotas, logs, IO, shutdown.

use std::sync::Arc;

use vyre_driver::io_queue::{IoReply, IoRequest};
use vyre_driver::protocol::{io, opcode};
use vyre_driver::{Fault, Status, VyreBackend};

use super::fixture::{ADD_ONE, COUNTDOWN, HUNDRED, LATE, LIMITED, SLOTS, SUM_LOCAL_IDS, WORKGROUP_SIZE};
use super::{Check, Nonconformance, Scenario, builder};
use crate::batch::{BatchBuffers, BatchCompletion, DispatchOptions};
use crate::descriptor::SlotDescriptor;
use crate::error::MegakernelError;
use crate::handler::OpcodeHandler;
use crate::megakernel::Megakernel;
use crate::opcode::BuiltinOpcode;
use crate::tenant::TenantConfig;

type Outcome = Result<(), Nonconformance>;
type Backend = Arc<dyn VyreBackend>;

/// The scenarios.
pub const SCENARIOS: &[Scenario] = &[
    ("tenants are isolated", isolation),
    ("a quota is exact", quota),
    ("a quota can be raised", raised_quota),
    ("seventy records", seventy_records),
    ("fences order what is before them", fences),
    ("a fence waits for those it names", fence_of_some),
    ("a fence behind work that is requeued", fence_behind_requeues),
    ("nothing runs behind a shutdown", shutdown),
    ("a shutdown of another tenant", shutdown_of_another),
    ("loads wait for the host", loads),
    ("more loads than the queue has room for", many_loads),
    ("a fence behind a load", fence_behind_a_load),
    ("256 handlers", all_handlers),
    ("workgroup items beside lane items", mixed_granularity),
    ("atomics of all lanes", atomics),
    ("the same slots again", rearmed),
    ("what is finished stays", finished_stays),
];

/// A fixture and a batch on it.
struct Run {
    at: Check,
    megakernel: Megakernel,
    batch: BatchBuffers,
}

impl Run {
    fn new(name: &'static str, backend: &Backend) -> Result<Run, Nonconformance> {
        let at = Check(name);
        let megakernel = at.ok(builder(Arc::clone(backend)).and_then(|builder| builder.build()))?;
        let batch = megakernel.batch_buffers();
        Ok(Run { at, megakernel, batch })
    }

    fn put(&mut self, slot: usize, descriptor: &SlotDescriptor) -> Outcome {
        self.at.ok(self.batch.ring.publish(slot, descriptor)).map(|_| ())
    }

    fn dispatch(&mut self) -> Outcome {
        self.at.ok(self.megakernel.dispatch(&mut self.batch, &DispatchOptions::default())).map(|_| ())
    }

    fn completion(&self, slot: usize) -> Result<BatchCompletion, Nonconformance> {
        self.at.ok(self.batch.ring.completion(slot))
    }

    fn expect_done(&self, slot: usize, result: u64) -> Outcome {
        let expected = BatchCompletion { status: Status::Done, code: 0, result };
        self.at.same(&format!("slot {slot}"), self.completion(slot)?, expected)
    }

    fn expect_fault(&self, slot: usize, fault: Fault) -> Outcome {
        let expected = BatchCompletion { status: Status::Fault, code: fault.code(), result: 0 };
        self.at.same(&format!("slot {slot}"), self.completion(slot)?, expected)
    }

    fn expect_status(&self, slot: usize, status: Status) -> Outcome {
        self.at.same(&format!("the status of slot {slot}"), self.completion(slot)?.status, status)
    }

    /// How many slots ended so.
    fn count(&self, wanted: Status) -> Result<usize, Nonconformance> {
        let mut count = 0;
        for slot in 0..SLOTS as usize {
            count += usize::from(self.completion(slot)?.status == wanted);
        }
        Ok(count)
    }
}

fn slot(opcode: impl Into<crate::SlotOpcode>, args: &[u32]) -> SlotDescriptor {
    SlotDescriptor::new(opcode).args(args)
}

fn isolation(backend: &Backend) -> Outcome {
    let mut run = Run::new("tenants are isolated", backend)?;
    for (at, tenant) in [0, LIMITED, HUNDRED].into_iter().enumerate() {
        let value = u32::from(tenant) + 70;
        run.put(at, &slot(BuiltinOpcode::StoreU32, &[value, 0]).tenant(tenant))?;
    }
    run.dispatch()?;
    for tenant in [0, LIMITED, HUNDRED] {
        let state = run.at.ok(run.batch.control.state(tenant))?;
        let mut expected = vec![0; state.len()];
        expected.splice(..1, [u32::from(tenant) + 70]);
        run.at.same(&format!("the state of tenant {tenant}"), state, expected)?;
        let observables = run.at.ok(run.batch.control.observables(tenant))?;
        run.at.same("its observables", observables.iter().all(|&word| word == 0), true)?;
    }
    Ok(())
}

fn quota(backend: &Backend) -> Outcome {
    let mut run = Run::new("a quota is exact", backend)?;
    for at in 0..SLOTS as usize {
        run.put(at, &slot(BuiltinOpcode::AtomicAdd, &[1, 0]).tenant(HUNDRED))?;
    }
    run.dispatch()?;
    run.at.same("items admitted", run.count(Status::Done)?, 100)?;
    run.at.same("items refused", run.count(Status::Fault)?, SLOTS as usize - 100)?;
    run.at.same("the sum", run.at.ok(run.batch.control.state(HUNDRED))?, vec![100])?;
    let usage = run.at.ok(run.batch.control.usage(HUNDRED))?;
    run.at.same("usage", (usage.used, usage.done, usage.faulted), (100, 100, 156))?;
    let totals = (run.batch.control.done_count(), run.batch.control.fault_count());
    run.at.same("totals", totals, (100, 156))
}

fn raised_quota(backend: &Backend) -> Outcome {
    let mut run = Run::new("a quota can be raised", backend)?;
    for at in 0..150 {
        run.put(at, &slot(BuiltinOpcode::Nop, &[]).tenant(HUNDRED))?;
    }
    run.dispatch()?;
    let lowered = run.batch.control.raise_quota(HUNDRED, 99);
    run.at.same("a limit lowered is refused", lowered.is_err(), true)?;
    run.at.ok(run.batch.control.raise_quota(HUNDRED, 120))?;
    for at in 150..200 {
        run.put(at, &slot(BuiltinOpcode::Nop, &[]).tenant(HUNDRED))?;
    }
    run.dispatch()?;
    run.at.same("items admitted", run.count(Status::Done)?, 120)
}

fn seventy_records(backend: &Backend) -> Outcome {
    let mut run = Run::new("seventy records", backend)?;
    // Not from slot 0, so that lanes that run together find the log nearly full and fill it.
    let slots = 3..73_u32;
    for at in slots.clone() {
        run.put(at as usize, &slot(BuiltinOpcode::Printf, &[1000 + at, at, 7]))?;
    }
    run.dispatch()?;
    let log = run.batch.debug_log();
    run.at.same("records and losses", (log.records.len(), log.lost), (64, 6))?;
    let mut tickets: Vec<u32> = log.records.iter().map(|record| record.ticket).collect();
    tickets.sort_unstable();
    tickets.dedup();
    run.at.same("records of different items", tickets.len(), 64)?;
    for record in log.records {
        let got = (record.format, record.args);
        run.at.same("a record", got, (1000 + record.ticket, [record.ticket, 7]))?;
    }
    let mut answered = 0;
    for at in slots {
        answered += run.completion(at as usize)?.result;
    }
    run.at.same("items told that their record is kept", answered, 64)
}

fn fences(backend: &Backend) -> Outcome {
    let mut run = Run::new("fences order what is before them", backend)?;
    let is_fence = |at: usize| at % 8 == 7;
    for at in 0..SLOTS as usize {
        if is_fence(at) {
            run.put(at, &slot(BuiltinOpcode::BatchFence, &[0, at as u32]))?;
        } else {
            run.put(at, &slot(LATE, &[at as u32 * 7 % 5]))?;
        }
    }
    run.dispatch()?;
    let mut before = 0;
    for at in 0..SLOTS as usize {
        if is_fence(at) {
            before += 1;
            run.expect_done(at, before)?;
        } else {
            run.expect_status(at, Status::Done)?;
            let seen = run.completion(at)?.result;
            run.at.same(&format!("no later fence before slot {at}"), seen <= before, true)?;
        }
    }
    let observables = run.at.ok(run.batch.control.observables(0))?;
    run.at.same("the last fence's word", observables.first().copied(), Some(SLOTS - 1))?;
    run.at.same("the epoch", run.batch.control.epoch(), SLOTS / 8)
}

fn fence_of_some(backend: &Backend) -> Outcome {
    let mut run = Run::new("a fence waits for those it names", backend)?;
    run.put(0, &slot(LATE, &[9]))?;
    run.put(1, &slot(LATE, &[2]))?;
    run.put(2, &slot(BuiltinOpcode::BatchFence, &[1, 0]))?;
    run.dispatch()?;
    // It waited for slot 1, and not for slot 0.
    run.expect_done(0, 1)?;
    run.expect_done(1, 0)?;
    run.expect_done(2, 1)
}

fn fence_behind_requeues(backend: &Backend) -> Outcome {
    let mut run = Run::new("a fence behind work that is requeued", backend)?;
    run.put(0, &slot(LATE, &[9]))?;
    run.put(1, &slot(SUM_LOCAL_IDS, &[4]))?;
    run.put(2, &slot(BuiltinOpcode::BatchFence, &[2, 5]))?;
    run.put(3, &slot(BuiltinOpcode::BatchFence, &[1, 6]))?;
    run.put(4, &slot(BuiltinOpcode::BatchFence, &[u32::MAX, 7]))?;
    run.dispatch()?;
    run.expect_done(0, 0)?;
    run.expect_done(1, 2016)?;
    run.expect_done(2, 1)?;
    run.expect_done(3, 2)?;
    run.expect_done(4, 3)?;
    let usage = run.at.ok(run.batch.control.usage(0))?;
    run.at.same("items charged, each once", usage.used, 5)
}

fn shutdown(backend: &Backend) -> Outcome {
    let mut run = Run::new("nothing runs behind a shutdown", backend)?;
    for at in [0, 1, 3, 4] {
        run.put(at, &slot(BuiltinOpcode::AtomicAdd, &[1, 0]))?;
    }
    run.put(2, &slot(BuiltinOpcode::Shutdown, &[]))?;
    run.dispatch()?;
    run.expect_done(2, 0)?;
    run.expect_status(3, Status::Empty)?;
    run.expect_status(4, Status::Empty)?;
    let state = run.at.ok(run.batch.control.state(0))?;
    run.at.same("the sum", state.first().copied(), Some(2))
}

fn shutdown_of_another(backend: &Backend) -> Outcome {
    let mut run = Run::new("a shutdown of another tenant", backend)?;
    run.put(0, &slot(BuiltinOpcode::Shutdown, &[]).tenant(HUNDRED))?;
    run.put(1, &slot(BuiltinOpcode::Nop, &[]))?;
    run.dispatch()?;
    run.expect_fault(0, Fault::Permission)?;
    run.expect_done(1, 0)
}

fn loads(backend: &Backend) -> Outcome {
    let mut run = Run::new("loads wait for the host", backend)?;
    run.put(0, &slot(BuiltinOpcode::LoadMiss, &[11, 1, 22, 0x5678, 0x1234, 99]).tenant(HUNDRED))?;
    run.put(1, &slot(BuiltinOpcode::LoadMiss, &[12]))?;
    run.put(2, &slot(BuiltinOpcode::Nop, &[]))?;
    run.dispatch()?;
    run.expect_status(0, Status::WaitIo)?;
    run.expect_status(1, Status::WaitIo)?;
    run.expect_done(2, 0)?;
    let mut requests: Vec<(usize, IoRequest)> = run.batch.io_queue.requests().collect();
    requests.sort_by_key(|(_, request)| request.source);
    let expected = IoRequest {
        operation: io::READ,
        tenant: HUNDRED,
        source: 11,
        destination: 22,
        offset: 0x1234_0000_5678,
        bytes: 99,
    };
    run.at.same("the request", requests.first().map(|(_, request)| *request), Some(expected))?;
    // Nothing is answered, so nothing happens.
    run.dispatch()?;
    run.expect_status(0, Status::WaitIo)?;
    for (place, request) in requests {
        let reply =
            if request.source == 11 { IoReply::Done { bytes: 40 } } else { IoReply::Failed { errno: 5 } };
        run.at.ok(run.batch.io_queue.reply(place, reply))?;
    }
    run.dispatch()?;
    run.expect_done(0, 40)?;
    let failed = BatchCompletion { status: Status::Fault, code: Fault::Io.code(), result: 5 };
    run.at.same("slot 1", run.completion(1)?, failed)?;
    run.at.same("requests left", run.batch.io_queue.requests().count(), 0)?;
    let usage = run.at.ok(run.batch.control.usage(HUNDRED))?;
    run.at.same("usage", (usage.used, usage.done, usage.faulted), (1, 1, 0))
}

fn many_loads(backend: &Backend) -> Outcome {
    let mut run = Run::new("more loads than the queue has room for", backend)?;
    for at in 0..100 {
        run.put(at, &slot(BuiltinOpcode::LoadMiss, &[at as u32]))?;
    }
    let mut rounds = 0;
    while run.count(Status::Done)? < 100 && rounds < 10 {
        run.dispatch()?;
        let waiting: Vec<usize> = run.batch.io_queue.requests().map(|(place, _)| place).collect();
        for place in waiting {
            let source = run.batch.io_queue.request(place).map_or(0, |request| request.source);
            run.at.ok(run.batch.io_queue.reply(place, IoReply::Done { bytes: source + 1000 }))?;
        }
        rounds += 1;
    }
    for at in 0..100 {
        run.expect_done(at, at as u64 + 1000)?;
    }
    let usage = run.at.ok(run.batch.control.usage(0))?;
    run.at.same("items charged, each once", usage.used, 100)
}

fn fence_behind_a_load(backend: &Backend) -> Outcome {
    let mut run = Run::new("a fence behind a load", backend)?;
    run.put(0, &slot(BuiltinOpcode::LoadMiss, &[1]))?;
    run.put(1, &slot(BuiltinOpcode::BatchFence, &[1, 5]))?;
    run.put(2, &slot(BuiltinOpcode::BatchFence, &[0, 6]))?;
    run.put(3, &slot(BuiltinOpcode::BatchFence, &[1, 7]))?;
    run.put(4, &slot(BuiltinOpcode::AtomicAdd, &[1, 0]))?;
    run.dispatch()?;
    for fence in [1, 2, 3] {
        run.expect_status(fence, Status::WaitIo)?;
    }
    run.expect_done(4, 0)?;
    run.at.same("the epoch", run.batch.control.epoch(), 0)?;
    run.at.ok(run.batch.io_queue.reply(0, IoReply::Done { bytes: 8 }))?;
    run.dispatch()?;
    run.expect_done(0, 8)?;
    for fence in [1, 2, 3] {
        run.expect_done(fence, fence as u64)?;
    }
    Ok(())
}

fn all_handlers(backend: &Backend) -> Outcome {
    let at = Check("256 handlers");
    let opcode = |n: u32| opcode::USER_HIGH_FIRST + 7 * n;
    let permitted = |n: u32| n % 5 == 3;
    let handlers = (0..256_u32)
        .map(|n| OpcodeHandler::new(opcode(n), format!("add_{n}"), move |h| h.complete(h.arg(0) + n)));
    let some = TenantConfig::permitting((0..256).filter(|&n| permitted(n)).map(opcode));
    let builder = Megakernel::builder(Arc::clone(backend)).handlers(handlers).tenant(1, some);
    let megakernel = at.ok(builder.build())?;
    for tenant in [0, 1] {
        let mut batch = megakernel.batch_buffers();
        for n in 0..256_u32 {
            let descriptor = slot(opcode(n), &[1000]).tenant(tenant);
            at.ok(batch.ring.publish(n as usize, &descriptor))?;
        }
        at.ok(megakernel.dispatch(&mut batch, &DispatchOptions::default()))?;
        for n in 0..256_u32 {
            let got = at.ok(batch.ring.completion(n as usize))?;
            let runs = batch.control.run_count(megakernel.handlers(), opcode(n));
            if tenant == 0 || permitted(n) {
                let expected = BatchCompletion { status: Status::Done, code: 0, result: u64::from(1000 + n) };
                at.same(&format!("handler {n} and its counter"), (got, runs), (expected, Some(1)))?;
            } else {
                let expected = (Some(Fault::Permission), Some(0));
                at.same(&format!("handler {n}, not permitted"), (got.as_fault(), runs), expected)?;
            }
        }
    }
    Ok(())
}

fn mixed_granularity(backend: &Backend) -> Outcome {
    let mut run = Run::new("workgroup items beside lane items", backend)?;
    for at in 0..SLOTS as usize {
        match at % 3 {
            0 => run.put(at, &slot(SUM_LOCAL_IDS, &[at as u32 % 4]))?,
            1 => run.put(at, &slot(ADD_ONE, &[at as u32]))?,
            _ => {}
        }
    }
    run.dispatch()?;
    let sum = u64::from(WORKGROUP_SIZE * (WORKGROUP_SIZE - 1) / 2);
    for at in 0..SLOTS as usize {
        match at % 3 {
            0 => run.expect_done(at, sum)?,
            1 => run.expect_done(at, at as u64 + 1)?,
            _ => run.expect_status(at, Status::Empty)?,
        }
    }
    let done = (0..SLOTS).filter(|at| at % 3 != 2).count() as u32;
    run.at.same("items done", run.batch.control.done_count(), done)
}

fn atomics(backend: &Backend) -> Outcome {
    let mut run = Run::new("atomics of all lanes", backend)?;
    for at in 0..SLOTS as usize {
        run.put(at, &slot(BuiltinOpcode::AtomicAdd, &[1, 3]))?;
    }
    run.dispatch()?;
    let mut seen = Vec::new();
    for at in 0..SLOTS as usize {
        seen.push(run.completion(at)?.result);
    }
    seen.sort_unstable();
    run.at.same("the old values", seen, (0..u64::from(SLOTS)).collect())
}

fn rearmed(backend: &Backend) -> Outcome {
    let mut run = Run::new("the same slots again", backend)?;
    run.put(0, &slot(COUNTDOWN, &[3, 0]))?;
    run.put(1, &slot(BuiltinOpcode::AtomicAdd, &[1, 0]))?;
    let resident = run.at.ok(run.megakernel.upload(&run.batch))?;
    let again = DispatchOptions { rearm: true, ..DispatchOptions::default() };
    let first = run.at.ok(run.megakernel.dispatch(&resident, &DispatchOptions::default()))?;
    for _ in 0..4 {
        let stats = run.at.ok(run.megakernel.dispatch(&resident, &again))?;
        let moved =
            (stats.moved_bytes, stats.allocation_bytes, stats.allocation_events, stats.output_buffers);
        run.at.same("bytes moved by a repetition", moved, (0, 0, 0, 0))?;
        run.at.same("launches", stats.launches, first.launches + 1)?;
    }
    run.at.ok(run.megakernel.download(&resident, &mut run.batch))?;
    run.expect_done(0, 3)?;
    run.expect_done(1, 4)
}

fn finished_stays(backend: &Backend) -> Outcome {
    let mut run = Run::new("what is finished stays", backend)?;
    run.put(0, &slot(BuiltinOpcode::AtomicAdd, &[1, 0]))?;
    run.dispatch()?;
    run.put(1, &slot(BuiltinOpcode::AtomicAdd, &[1, 0]))?;
    run.dispatch()?;
    run.expect_done(0, 0)?;
    run.expect_done(1, 1)?;
    run.at.same("occupied slots are refused", is_occupied(run.batch.ring.publish(1, &slot(0, &[]))), true)
}

fn is_occupied(published: Result<usize, MegakernelError>) -> bool {
    matches!(published, Err(MegakernelError::SlotOccupied { slot: 1 }))
}
