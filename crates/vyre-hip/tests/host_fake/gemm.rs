//! What a matrix product launches, and what it refuses before it does.

use std::sync::Arc;

use vyre_driver::BackendError;
use vyre_driver::gemm::{GemmOutput, GemmProblem};
use vyre_hip::HipBackend;
use vyre_hip::api::Platform;
use vyre_hip::device::DeviceMemory;
use vyre_hip::gemm::{Gemm, GemmMatrix};

use crate::compilers::{compiler_in, options};
use crate::fake::{self, api, context};

/// A product on the fake library's AMD device.
fn gemm() -> Gemm {
    let folder = tempfile::tempdir().unwrap();
    let options = options(compiler_in(folder.path()));
    let backend = HipBackend::open_with(&api(Platform::Amd), 0, options).unwrap();
    Gemm::new(&backend).unwrap()
}

fn memory(gemm: &Gemm, bytes: u64) -> Arc<DeviceMemory> {
    DeviceMemory::new(gemm.context(), "a matrix", bytes).unwrap()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Offsets as in `kernels/gemm/arguments.h`.
#[test]
fn the_argument_is_the_kernels_struct() {
    let gemm = gemm();
    let problem = GemmProblem {
        lda: 21,
        ldb: 31,
        ldc: 41,
        batch: 2,
        stride_a: 1001,
        stride_b: 1002,
        stride_c: 1003,
        alpha: 0.5,
        beta: -2.0,
        ..GemmProblem::dense(12, 13, 14)
    };
    let [a, b, c] = [4096, 4096, 8192].map(|bytes| memory(&gemm, bytes));
    let [at_a, at_b, at_c] = [(&a, 3), (&b, 0), (&c, 7)].map(|(memory, first)| GemmMatrix { memory, first });
    gemm.enqueue(&problem, GemmOutput::F16, at_a, at_b, at_c).unwrap();
    let launch = fake::launches().pop().unwrap();
    let bytes = &launch.arguments;
    assert_eq!(bytes.len(), 144);
    let addresses = [a.address() + 6, b.address(), c.address() + 14, 0, 0];
    let sizes = [12, 13, 14, 21, 31, 41, 2, 1001, 1002, 1003];
    for (index, expected) in addresses.into_iter().chain(sizes).enumerate() {
        assert_eq!(word(bytes, index * 8), expected, "word {index}");
    }
    let tail = [0.5_f32.to_bits(), (-2.0_f32).to_bits(), 1, 1, 8, 0];
    for (index, expected) in tail.into_iter().enumerate() {
        assert_eq!(half_word(bytes, 120 + index * 4), expected, "half word {index}");
    }
    let planned = gemm.launch_of(&problem, at_a, at_b);
    assert!(planned.entry.ends_with("_element"), "an odd leading dimension: {}", planned.entry);
    assert_eq!((launch.grid, launch.block), ([planned.grid, 1, 1], [planned.block, 1, 1]));
    gemm.enqueue(&GemmProblem { beta: 0.0, ..problem }, GemmOutput::F32, at_a, at_b, at_c).unwrap();
    assert_eq!(half_word(&fake::launches().pop().unwrap().arguments, 128), 0, "fp32");
}

#[test]
fn sixteen_bytes_at_a_time_where_all_is_aligned() {
    let gemm = gemm();
    let problem = GemmProblem { batch: 2, ..GemmProblem::dense(16, 16, 16) };
    let memory = memory(&gemm, 4096);
    let entry = |problem: &GemmProblem, first| {
        let matrix = GemmMatrix { memory: &memory, first };
        gemm.launch_of(problem, matrix, GemmMatrix::new(&memory)).entry
    };
    assert!(!entry(&problem, 0).ends_with("_element"));
    assert!(!entry(&problem, 8).ends_with("_element"));
    assert!(entry(&problem, 4).ends_with("_element"));
    assert!(entry(&GemmProblem { stride_b: 260, ..problem }, 0).ends_with("_element"));
    assert!(entry(&GemmProblem { lda: 20, ..problem }, 0).ends_with("_element"));
    // The stride of a single product is nowhere.
    assert!(!entry(&GemmProblem { batch: 1, stride_b: 260, ..problem }, 0).ends_with("_element"));
}

#[test]
fn a_split_k_has_a_workspace_that_stays() {
    let gemm = gemm();
    let problem = GemmProblem::dense(16, 16, 4096);
    let [a, b, c] = [16 * 4096 * 2, 16 * 4096 * 2, 1024].map(|bytes| memory(&gemm, bytes));
    let matrices = [&a, &b, &c].map(GemmMatrix::new);
    let [at_a, at_b, at_c] = matrices;
    assert!(gemm.launch_of(&problem, at_a, at_b).split_k > 1);
    let before = (fake::calls("memory_allocate"), fake::calls("memory_fill"));
    for _ in 0..3 {
        gemm.enqueue(&problem, GemmOutput::F32, at_a, at_b, at_c).unwrap();
    }
    let launches: Vec<_> = fake::launches().iter().map(|launch| launch.arguments.clone()).collect();
    let workspaces: Vec<_> = launches.iter().map(|bytes| (word(bytes, 24), word(bytes, 32))).collect();
    assert!(workspaces[0].0 != 0 && workspaces[0].1 != 0);
    assert!(workspaces.iter().all(|workspace| *workspace == workspaces[0]), "{workspaces:?}");
    assert_eq!(fake::calls("memory_allocate") - before.0, 2, "partial sums and counters, once");
    assert_eq!(fake::calls("memory_fill") - before.1, 1, "the counters are cleared once");
}

#[test]
fn what_does_not_fit_is_never_launched() {
    let gemm = gemm();
    let [a, b, c] = [200, 200, 400].map(|bytes| memory(&gemm, bytes));
    let run = |problem: GemmProblem, a: GemmMatrix<'_>| {
        gemm.enqueue(&problem, GemmOutput::F32, a, GemmMatrix::new(&b), GemmMatrix::new(&c))
    };
    let dense = GemmProblem::dense(10, 10, 10);
    let refused = [
        (GemmProblem { m: 11, ..dense }, 0, "A has 100 elements and A of 11 x 10"),
        (dense, 1, "A has 99 elements"),
        (dense, u64::MAX, "A has 0 elements"),
        (GemmProblem { lda: 9, ..dense }, 0, "the leading dimension of A is 9"),
        (GemmProblem { batch: 2, m: 5, stride_a: 50, stride_b: 0, stride_c: 49, ..dense }, 0, "overlap"),
    ];
    for (problem, first, expected) in refused {
        match run(problem, GemmMatrix { memory: &a, first }) {
            Err(BackendError::InvalidArgument { got, .. }) => assert!(got.contains(expected), "{got}"),
            other => panic!("{problem:?}: {other:?}"),
        }
    }
    let elsewhere = DeviceMemory::new(&context(Platform::Amd), "another context's", 200).unwrap();
    let foreign = run(dense, GemmMatrix::new(&elsewhere));
    assert!(matches!(foreign, Err(BackendError::InvalidArgument { argument: "a", .. })), "{foreign:?}");
    run(GemmProblem { m: 0, ..dense }, GemmMatrix::new(&a)).unwrap();
    assert_eq!(fake::calls("launch"), 0);
    run(dense, GemmMatrix::new(&a)).unwrap();
    assert_eq!(fake::calls("launch"), 1);
}
