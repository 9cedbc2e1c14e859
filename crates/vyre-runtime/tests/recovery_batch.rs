//! Batches that lose their device: run again once if they may, from unmodified inputs, or failed whole.

use std::sync::{Arc, Barrier};

use vyre_cpu::CpuBackend;
use vyre_driver::{BackendError, Status};
use vyre_foundation::DataType;
use vyre_runtime::fault_injection::{FaultInjectingBackend, FaultPoint, InjectedFault};
use vyre_runtime::{
    BatchBuffers, BuiltinOpcode, DispatchOptions, HandlerBinding, Megakernel, MegakernelError,
    MegakernelRecoveryPolicy, OpcodeHandler, SlotDescriptor,
};

const ADD_ONE: u32 = 0x40;
const SLOTS: u32 = 64;

fn build(volatile: bool, policy: MegakernelRecoveryPolicy) -> (Arc<FaultInjectingBackend>, Megakernel) {
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
    let mut add = OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1));
    if volatile {
        add = add.binding(HandlerBinding::read_write("scratch", DataType::U32).min_len(1));
    }
    let builder = Megakernel::builder(Arc::clone(&backend) as _).slots(SLOTS).workgroup_size(32);
    let megakernel = builder.handler(add).recovery(policy).build().expect("a megakernel");
    (backend, megakernel)
}

/// Every other slot adds one, every other counts in the tenant's state.
fn batch(megakernel: &Megakernel, first: u32) -> BatchBuffers {
    let mut batch = megakernel.batch_buffers();
    for slot in 0..SLOTS {
        let item = if slot % 2 == 0 {
            SlotDescriptor::new(ADD_ONE).args([first + slot])
        } else {
            SlotDescriptor::new(BuiltinOpcode::AtomicAdd).args([1, 3])
        };
        batch.ring.publish(slot as usize, &item).expect("a free slot");
    }
    batch
}

fn check(batch: &BatchBuffers, first: u32) {
    for slot in (0..SLOTS).step_by(2) {
        let completion = batch.ring.completion(slot as usize).expect("a slot");
        assert_eq!((completion.status, completion.result), (Status::Done, u64::from(first + slot) + 1));
    }
    // From unmodified inputs: counted once, however often it ran.
    assert_eq!(batch.control.state(0).expect("tenant 0")[3], SLOTS / 2);
}

#[test]
fn a_batch_of_bytes_runs_again_after_a_loss_at_any_step() {
    for point in [
        FaultPoint::CreateBuffer,
        FaultPoint::WriteBuffer,
        FaultPoint::Dispatch,
        FaultPoint::AfterDispatch,
        FaultPoint::ReadBuffer,
    ] {
        for skip in 0..2 {
            let (backend, megakernel) = build(false, MegakernelRecoveryPolicy::Once);
            let before = megakernel.pipeline_id();
            let mut buffers = batch(&megakernel, 100);
            let passes = backend.passes(point);
            backend.arm(point, skip, InjectedFault::Loss);
            let stats = megakernel.dispatch(&mut buffers, &DispatchOptions::default());
            let stats = stats.unwrap_or_else(|error| panic!("{point:?} {skip}: {error:?}"));
            check(&buffers, 100);
            let fired = backend.passes(point) > passes + skip;
            assert_eq!(stats.recovered, fired, "{point:?} {skip}");
            assert_eq!(megakernel.pipeline_id() != before, fired, "{point:?} {skip}");
        }
    }
}

#[test]
fn a_batch_that_may_not_run_twice_fails_whole_and_the_next_one_runs() {
    let (backend, megakernel) = build(true, MegakernelRecoveryPolicy::Once);
    let mut buffers = batch(&megakernel, 7);
    let input = buffers.clone();
    backend.arm(FaultPoint::AfterDispatch, 0, InjectedFault::Loss);
    let error = megakernel.dispatch(&mut buffers, &DispatchOptions::default()).expect_err("volatile state");
    assert!(error.is_device_loss(), "{error:?}");
    assert_eq!(buffers, input);
    megakernel.dispatch(&mut buffers, &DispatchOptions::default()).expect("rebuilt meanwhile");
    check(&buffers, 7);
}

#[test]
fn a_batch_on_the_device_is_lost_with_it_and_its_handle_is_refused() {
    let (backend, megakernel) = build(false, MegakernelRecoveryPolicy::Once);
    let buffers = batch(&megakernel, 7);
    let resident = megakernel.upload(&buffers).expect("uploaded");
    backend.arm(FaultPoint::Dispatch, 0, InjectedFault::Loss);
    let error = megakernel.dispatch(&resident, &DispatchOptions::default()).expect_err("lost");
    assert!(error.is_device_loss(), "{error:?}");
    let error = megakernel.dispatch(&resident, &DispatchOptions::default()).expect_err("stale");
    assert!(matches!(error, MegakernelError::Stale { .. }), "{error:?}");
    let resident = megakernel.upload(&buffers).expect("uploaded again");
    megakernel.dispatch(&resident, &DispatchOptions::default()).expect("a new handle");
}

#[test]
fn without_a_policy_a_loss_stays_until_somebody_recovers() {
    let (backend, megakernel) = build(false, MegakernelRecoveryPolicy::Off);
    let mut buffers = batch(&megakernel, 7);
    backend.lose("a test");
    for _ in 0..3 {
        let error = megakernel.dispatch(&mut buffers, &DispatchOptions::default()).expect_err("lost");
        assert!(error.is_device_loss(), "{error:?}");
    }
    assert_eq!(backend.passes(FaultPoint::Recover), 0);
    backend.arm(FaultPoint::Compile, 0, InjectedFault::Failure);
    let error = megakernel.recover_after_device_loss().expect_err("armed");
    match &error {
        MegakernelError::Backend { source: BackendError::Driver { text, .. }, .. } => {
            assert!(text.contains("Compile"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    megakernel.recover_after_device_loss().expect("recovered");
    megakernel.dispatch(&mut buffers, &DispatchOptions::default()).expect("runs");
    check(&buffers, 7);
}

#[test]
fn sixteen_threads_recover_from_one_loss_with_one_compilation() {
    let (backend, megakernel) = build(false, MegakernelRecoveryPolicy::Once);
    let compiled = backend.passes(FaultPoint::Compile);
    for round in 1..=5 {
        let together = Barrier::new(16);
        backend.lose("a test");
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (megakernel, together) = (&megakernel, &together);
                scope.spawn(move || {
                    let mut buffers = batch(megakernel, thread * 1000);
                    together.wait();
                    megakernel.dispatch(&mut buffers, &DispatchOptions::default()).expect("recovers");
                    check(&buffers, thread * 1000);
                });
            }
        });
        assert_eq!(backend.passes(FaultPoint::Recover), round);
        assert_eq!(backend.passes(FaultPoint::Compile), compiled * (round + 1));
    }
}
