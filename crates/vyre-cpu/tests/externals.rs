//! External functions: what is called how often and with what, and what is refused.

mod common;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use common::{Data, run};
use vyre_cpu::externals::{ExternalFunction, ExternalView, Externals};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{BackendError, VyreBackend};
use vyre_foundation::externals::Signature;
use vyre_foundation::{
    BufferAccess, DataType, ExternalBuffer, Literal, ScalarType, ValidatedProgram, text, validate,
};

const MIX: Signature = Signature {
    name: "mix",
    params: &[ScalarType::Bool, ScalarType::U64, ScalarType::I32],
    buffers: &[
        ExternalBuffer { element: DataType::U16, access: BufferAccess::Read },
        ExternalBuffer { element: DataType::U32, access: BufferAccess::ReadWrite },
    ],
    results: &[ScalarType::U32, ScalarType::Bool, ScalarType::U64],
};

#[derive(Debug, Default)]
struct Mix {
    calls: AtomicU32,
    seen: Mutex<Vec<Literal>>,
}

impl ExternalFunction for Mix {
    fn signature(&self) -> &Signature {
        &MIX
    }

    fn call(&self, scalars: &[Literal], buffers: &[ExternalView<'_>]) -> Vec<Literal> {
        self.calls.fetch_add(1, Relaxed);
        self.seen.lock().unwrap().extend_from_slice(scalars);
        let [words, sums] = buffers else { panic!("{} buffers", buffers.len()) };
        assert_eq!((words.len(), words.element()), (3, DataType::U16));
        assert_eq!(words.load(3), Literal::U32(0));
        // Not the function's to write, nor there, nor of the type.
        words.store(0, Literal::U32(9));
        sums.store(u64::MAX, Literal::U32(9));
        sums.store(0, Literal::I32(9));
        let Literal::U32(old) = sums.load(1) else { panic!("no u32") };
        sums.store(1, Literal::U32(old + 1));
        // The second result is of another type, and counts as false; the third is missing.
        vec![words.load(2), Literal::U32(1)]
    }
}

fn program(text: &str) -> ValidatedProgram {
    validate(text::parse(text).unwrap()).unwrap_or_else(|errors| panic!("{errors}"))
}

const CALLS: &str = "\
program calls kernel workgroup(40, 2, 1)
buffer words: global u16 read_write min 3
buffer sums: global u32 read_write min 2
buffer out: global u32 write min 240
external mix(bool, u64, i32) buffers(u16 read, u32 read_write) -> (u32, bool, u64)

fn twice(x: u64) -> u32 {
  let (a, b, c) = call_external mix(true, x, -3i32) buffers(words, sums);
  return a + u32(b) + u32(c) + sums[1u32] * 256u32;
}

entry {
  let i: u32 = workgroup_id.x * 80u32 + local_id.y * 40u32 + local_id.x;
  if workgroup_id.x != 1u32 {
    let x = call twice(u64(workgroup_id.x));
    out[i] = x;
  }
}
";

#[test]
fn a_workgroup_calls_once_and_all_get_the_results() {
    for lanes in [1, 8, 32] {
        let mix = Arc::new(Mix::default());
        let externals = Externals::none().with(mix.clone());
        let backend = CpuBackend::with_externals(CpuConfig::default().threads(1).lanes(lanes), externals);
        let words = [1_u16, 2, 7].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let mut data = [
            Data { element: DataType::U16, bytes: words.clone() },
            Data { element: DataType::U32, bytes: vec![0; 8] },
            Data { element: DataType::U32, bytes: vec![0; 960] },
        ];
        run(&backend, &program(CALLS), &mut data, [3, 1, 1]).unwrap();
        assert_eq!(mix.calls.load(Relaxed), 2, "{lanes} lanes");
        let expected =
            [(0, -3), (2, -3)].map(|(x, y)| [Literal::Bool(true), Literal::U64(x), Literal::I32(y)]);
        assert_eq!(*mix.seen.lock().unwrap(), expected.concat());
        assert_eq!(data[0].bytes, words);
        assert_eq!(data[1].bytes, [0, 0, 0, 0, 2, 0, 0, 0]);
        // One thread runs the workgroups in their order, so what each sees of the count is known.
        let group = |value: u32| value.to_le_bytes().repeat(80);
        assert_eq!(data[2].bytes, [group(7 + 256), group(0), group(7 + 512)].concat());
    }
}

#[test]
fn unknown_functions_and_other_signatures_are_refused_by_name() {
    let standard = CpuBackend::new();
    let Err(error) = standard.compile(&program(CALLS)) else { panic!("accepted") };
    assert!(matches!(error, BackendError::UnknownExternal { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "program `calls` declares the external function `mix(bool, u64, i32) buffers(u16 read, u32 read_write) -> \
         (u32, bool, u64)`, and this backend has gemm_f16, gemm_f16_f16; declare one of these, or give the backend \
         this one"
    );
    let other =
        program("program other kernel workgroup(1, 1, 1) external gemm_f16(u32) buffers() -> u32 entry { }");
    let Err(error) = standard.compile(&other) else { panic!("accepted") };
    let expected = "`gemm_f16(u32) buffers() -> u32`, and this backend has `gemm_f16(u32, u32, u32, u32, u32, u32, u64, \
                    u64, u64, f32, f32) buffers(f16 read, f16 read, f32 read_write)`;";
    assert!(error.to_string().contains(expected), "{error}");
    let bare = CpuBackend::with_externals(CpuConfig::default(), Externals::none());
    let Err(error) = bare.compile(&other) else { panic!("accepted") };
    assert!(error.to_string().contains("this backend has none;"), "{error}");
}
