//! Batches whose device is lost.

use std::sync::Arc;

use vyre_cpu::CpuBackend;
use vyre_driver::{BackendError, Generation};
use vyre_foundation::DataType;

use super::{BatchBuffers, DispatchOptions};
use crate::descriptor::SlotDescriptor;
use crate::error::MegakernelError;
use crate::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
use crate::handler::{Backing, HandlerBinding, OpcodeHandler};
use crate::megakernel::Megakernel;
use crate::opcode::BuiltinOpcode;
use crate::recovery::MegakernelRecoveryPolicy;

const ADD_TO_TABLE: u32 = 0x40;

fn faulty() -> Arc<FaultInjectingBackend> {
    Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())))
}

/// With a handler that adds its argument to a buffer of one word, which holds 100 at first.
fn with_table(backend: &Arc<FaultInjectingBackend>, backing: Backing) -> Megakernel {
    let add = OpcodeHandler::new(ADD_TO_TABLE, "add_to_table", |h| {
        let old = h.atomic_add(h.buffer("table"), 0, h.arg(0));
        h.complete(old + h.arg(0));
    })
    .binding(HandlerBinding::read_write("table", DataType::U32).backing(backing));
    let builder = Megakernel::builder(Arc::clone(backend) as _).slots(8).workgroup_size(8);
    builder.handler(add).bind_bytes("table", [100, 0, 0, 0]).build().expect("built")
}

fn plain(backend: &Arc<FaultInjectingBackend>, policy: MegakernelRecoveryPolicy) -> Megakernel {
    let builder = Megakernel::builder(Arc::clone(backend) as _).slots(8).workgroup_size(8);
    builder.recovery(policy).build().expect("built")
}

/// Adds 5 to the first word of state.
fn adding(megakernel: &Megakernel) -> BatchBuffers {
    let mut batch = megakernel.batch_buffers();
    let add = SlotDescriptor::new(BuiltinOpcode::AtomicAdd).args([5, 0]);
    batch.ring.publish(3, &add).expect("free");
    batch
}

#[test]
fn a_dispatch_over_bytes_runs_again_from_the_same_bytes() {
    for point in [
        FaultPoint::CreateBuffer,
        FaultPoint::WriteBuffer,
        FaultPoint::Dispatch,
        FaultPoint::AfterDispatch,
        FaultPoint::ReadBuffer,
    ] {
        let backend = faulty();
        let megakernel = plain(&backend, MegakernelRecoveryPolicy::Once);
        let mut batch = adding(&megakernel);
        let mut expected = batch.clone();
        megakernel.dispatch(&mut expected, &DispatchOptions::default()).expect("nothing is armed");
        let before = megakernel.pipeline_id();

        backend.arm(point, 0, InjectedFault::Loss);
        if point == FaultPoint::CreateBuffer {
            // The first dispatch kept its buffers for the next; only an upload makes new ones.
            let resident = megakernel.upload(&batch).expect("recovered");
            megakernel.dispatch(&resident, &DispatchOptions::default()).expect("runs");
            megakernel.download(&resident, &mut batch).expect("its own");
        } else {
            let stats = megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("recovered");
            assert!(stats.recovered, "{point:?}");
        }
        assert_eq!(batch, expected, "{point:?}");
        assert_eq!(megakernel.generation(), Generation(2), "{point:?}");
        assert_eq!(megakernel.pipeline_id().program, before.program);
        assert_ne!(megakernel.pipeline_id(), before);
    }
}

#[test]
fn without_a_policy_the_loss_is_the_answer_and_nothing_is_changed() {
    let backend = faulty();
    let megakernel = plain(&backend, MegakernelRecoveryPolicy::Off);
    let mut batch = adding(&megakernel);
    let before = batch.clone();
    backend.arm(FaultPoint::AfterDispatch, 0, InjectedFault::Loss);
    for _ in 0..2 {
        let lost = megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect_err("lost");
        assert!(lost.is_device_loss(), "{lost:?}");
        assert_eq!(batch, before);
    }
    assert_eq!(megakernel.recover_after_device_loss().expect("by hand"), Generation(2));
    assert_eq!(megakernel.recover_after_device_loss().expect("no loss, no change"), Generation(2));
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
    assert_eq!(batch.control.state(0).expect("tenant 0").first(), Some(&5));
}

#[test]
fn a_failure_that_is_no_loss_is_not_retried() {
    let backend = faulty();
    let megakernel = plain(&backend, MegakernelRecoveryPolicy::Once);
    let mut batch = adding(&megakernel);
    backend.arm(FaultPoint::Dispatch, 0, InjectedFault::Failure);
    let failed = megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect_err("failed");
    assert!(!failed.is_device_loss(), "{failed:?}");
    assert_eq!((megakernel.generation(), backend.passes(FaultPoint::Recover)), (Generation(1), 0));
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
}

#[test]
fn a_rebuild_that_fails_keeps_the_old_pipeline_and_the_backends_words() {
    let backend = faulty();
    let megakernel = plain(&backend, MegakernelRecoveryPolicy::Once);
    let mut batch = adding(&megakernel);
    let before = (batch.clone(), megakernel.pipeline_id());
    backend.arm(FaultPoint::Dispatch, 0, InjectedFault::Loss);
    backend.arm(FaultPoint::Compile, 0, InjectedFault::Failure);
    let failed = megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect_err("not rebuilt");
    let MegakernelError::Backend { source, .. } = failed else { panic!("{failed:?}") };
    assert!(matches!(source, BackendError::Driver { .. }), "{source:?}");
    assert_eq!((batch.clone(), megakernel.pipeline_id()), before);
    assert_eq!(megakernel.recover_after_device_loss().expect("by hand"), Generation(2));
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
}

#[test]
fn a_resident_batch_of_a_lost_device_is_stale() {
    let backend = faulty();
    let megakernel = plain(&backend, MegakernelRecoveryPolicy::Once);
    let resident = megakernel.upload(&adding(&megakernel)).expect("uploaded");
    backend.arm(FaultPoint::Dispatch, 0, InjectedFault::Loss);
    let lost = megakernel.dispatch(&resident, &DispatchOptions::default()).expect_err("not retried");
    assert!(lost.is_device_loss(), "{lost:?}");
    let stale = megakernel.dispatch(&resident, &DispatchOptions::default()).expect_err("stale");
    assert!(matches!(stale, MegakernelError::Stale { generation: Generation(1), .. }), "{stale:?}");
    let stale = megakernel.download(&resident, &mut megakernel.batch_buffers()).expect_err("stale");
    assert!(matches!(stale, MegakernelError::Stale { .. }), "{stale:?}");
}

#[test]
fn what_a_loss_destroys_decides_whether_work_runs_twice() {
    for (backing, retried) in [(Backing::HostBacked, true), (Backing::Volatile, false)] {
        let backend = faulty();
        let megakernel = with_table(&backend, backing);
        let mut batch = megakernel.batch_buffers();
        batch.ring.publish(0, &SlotDescriptor::new(ADD_TO_TABLE).args([7])).expect("free");
        backend.arm(FaultPoint::AfterDispatch, 0, InjectedFault::Loss);
        let answer = megakernel.dispatch(&mut batch, &DispatchOptions::default());
        assert_eq!(answer.is_ok_and(|stats| stats.recovered), retried, "{backing:?}");
        // Rebuilt in any case; the addition of the run that was lost is gone with its device.
        assert_eq!(megakernel.generation(), Generation(2));
        if retried {
            assert_eq!(batch.ring.completion(0).expect("well formed").result, 107);
        }
    }
}

#[test]
fn nothing_is_left_behind_on_the_device() {
    let backend = faulty();
    let megakernel = with_table(&backend, Backing::HostBacked);
    let mut batch = megakernel.batch_buffers();
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
    let resident = megakernel.upload(&batch).expect("uploaded");
    assert!(backend.live_buffers() > 0);
    drop((resident, megakernel));
    assert_eq!(backend.live_buffers(), 0);

    // Failing at any allocation gives back those before it.
    for skip in 0..8 {
        let backend = faulty();
        backend.arm(FaultPoint::CreateBuffer, skip, InjectedFault::Failure);
        let builder = Megakernel::builder(Arc::clone(&backend) as _).slots(8).workgroup_size(8);
        if let Ok(megakernel) = builder.build() {
            let _ = megakernel.upload(&megakernel.batch_buffers());
        }
        assert_eq!(backend.live_buffers(), 0, "{skip}");
    }
}
