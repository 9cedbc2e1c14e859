//! Workgroup handlers that call external functions: a matrix product as an item, live and in a batch.

use std::sync::Arc;
use std::time::Duration;

use half::f16;
use vyre_cpu::externals::{Externals, gemm_f64};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::gemm::GemmProblem;
use vyre_driver::{BackendError, VyreBackend};
use vyre_foundation::builder::Value;
use vyre_foundation::externals::{GEMM_F16, GEMM_F16_F16};
use vyre_foundation::{DataType, Granularity};
use vyre_runtime::conformance::{GEMM_BINDINGS, gemm_handler, gemm_item, run_gemm};
use vyre_runtime::fault_injection::FaultInjectingBackend;
use vyre_runtime::{HandlerBinding, Megakernel, MegakernelError, OpcodeHandler};

const WAIT: Duration = Duration::from_secs(60);

#[test]
fn the_cpu_conforms() {
    for threads in [1, 3] {
        let cpu = CpuBackend::with_config(CpuConfig::default().threads(threads));
        let backend: Arc<dyn VyreBackend> = Arc::new(cpu);
        run_gemm(&backend).unwrap_or_else(|difference| panic!("{threads} threads: {difference}"));
    }
}

/// Random values against fp64, by the bound that every kernel of the product must keep; and after a loss.
#[test]
fn random_values_are_within_the_bound_before_and_after_a_loss() {
    let problem = GemmProblem::dense(64, 64, 64);
    let mut state = 7_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f16::from_f64((state >> 40) as f64 / (1 << 23) as f64 - 1.0)
    };
    let a: Vec<f16> = (0..64 * 64).map(|_| random()).collect();
    let b: Vec<f16> = (0..64 * 64).map(|_| random()).collect();
    let expected = gemm_f64::<f32>(&problem, &a, &b, &[0.0; 64 * 64]);
    let bytes = |values: &[f16]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let backend = Arc::new(FaultInjectingBackend::new(Arc::new(CpuBackend::new())));
    let [name_a, name_b, name_c] = GEMM_BINDINGS;
    let megakernel = Megakernel::builder(Arc::clone(&backend) as _)
        .slots(64)
        .workgroup_size(64)
        .handler(gemm_handler())
        .bind_bytes(name_a, bytes(&a))
        .bind_bytes(name_b, bytes(&b))
        .bind_zeroed(name_c, 64 * 64)
        .build()
        .expect("a megakernel");
    let session = megakernel.start().expect("a session");
    for loss in 0..2 {
        let ticket = session.submit(gemm_item(&problem, [0; 3])).expect("submitted");
        session.wait(ticket, WAIT).expect("computed");
        let mut c = vec![0; 64 * 64 * 4];
        session.download(name_c, 0, &mut c).expect("read");
        let bound = (0.5 * 64_f64.sqrt() + 4.0) * 2_f64.powi(-24);
        for (found, expected) in c.as_chunks::<4>().0.iter().zip(&expected) {
            let error = (f64::from(f32::from_le_bytes(*found)) - expected.value).abs();
            assert!(error <= bound * expected.magnitude, "{error}, {expected:?}, after {loss} losses");
        }
        backend.lose("a test");
        while session.telemetry().recoveries <= loss {
            std::thread::yield_now();
        }
        // C was volatile.
        session.accept_state_loss();
    }
}

fn refusal(backend: CpuBackend, handlers: Vec<OpcodeHandler>) -> MegakernelError {
    let bound: Vec<_> = handlers.iter().flat_map(|handler| handler.bindings().to_vec()).collect();
    let builder = Megakernel::builder(Arc::new(backend)).handlers(handlers);
    let builder = bound.iter().fold(builder, |builder, binding| builder.bind_zeroed(&binding.name, 16));
    builder.build().expect_err("refused")
}

#[test]
fn what_cannot_be_called_is_refused_by_name() {
    let bare = CpuBackend::with_externals(CpuConfig::default(), Externals::none());
    let error = refusal(bare, vec![gemm_handler()]);
    let unknown = matches!(&error, MegakernelError::Backend {
        source: BackendError::UnknownExternal { declared, .. }, ..
    } if declared.contains("gemm_f16"));
    assert!(unknown, "{error:?}");

    let on_a_lane = OpcodeHandler::new(9, "lane", |h| h.complete(0_u32)).external(GEMM_F16.declare());
    let undeclared = OpcodeHandler::new(9, "undeclared", |h| {
        h.call_external("gemm_f16", (), []);
    })
    .granularity(Granularity::Workgroup);
    let mut other = GEMM_F16_F16.declare();
    other.name = GEMM_F16.name.to_owned();
    let differs = OpcodeHandler::new(9, "differs", |h| h.complete(0_u32))
        .granularity(Granularity::Workgroup)
        .external(other);
    // Another element type than the function takes is found when the program is validated.
    let wrong = OpcodeHandler::new(9, "wrong", |h| {
        let words = h.buffer("words");
        let scalars: Vec<Value> = (0..11).map(|_| 0_u32.into()).collect();
        h.call_external("gemm_f16", scalars, [words, words, words]);
    })
    .granularity(Granularity::Workgroup)
    .binding(HandlerBinding::read_write("words", DataType::U32).min_len(1))
    .external(GEMM_F16.declare());
    for (handlers, expected) in [
        (vec![on_a_lane], "runs on one lane"),
        (vec![undeclared], "which it does not declare"),
        (vec![gemm_handler(), differs], "another handler `gemm_f16"),
    ] {
        let error = refusal(CpuBackend::new(), handlers);
        let said =
            matches!(&error, MegakernelError::InvalidHandler { problem, .. } if problem.contains(expected));
        assert!(said, "{error:?}");
    }
    let error = refusal(CpuBackend::new(), vec![wrong]);
    assert!(matches!(error, MegakernelError::Validation { .. }), "{error:?}");
}
