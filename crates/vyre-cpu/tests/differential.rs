//! Any valid program gives what a plain tree walk gives, in every setting.

mod common;
#[path = "common/reference.rs"]
mod reference;

use common::{Data, all_settings, run};
use proptest::prelude::*;
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Value};
use vyre_foundation::{
    Axis, BufferAccess, Builtin, DataType, FunctionId, Granularity, MemorySpace, Program, ProgramKind,
    ScalarType, ValidatedProgram, validate,
};

/// Items as a kernel: the entry becomes a function, called with arguments from a buffer; its results go to
/// another.
fn as_kernel(mut program: Program) -> Program {
    let ProgramKind::Item(granularity) = program.kind else { return program };
    let mut declared = ProgramBuilder::kernel("wrapped");
    for decl in &program.buffers {
        declared.buffer(decl.name.clone(), decl.space, decl.element, decl.access, decl.len);
    }
    let inputs = declared.buffer("inputs", MemorySpace::Uniform, DataType::U64, BufferAccess::Read, 8);
    let outputs = declared.buffer("outputs", MemorySpace::Global, DataType::U64, BufferAccess::Write, 0);
    let mut item = program.entry.clone();
    item.name = "item_entry".to_owned();
    let handle = FunctionHandle::new(FunctionId(program.functions.len() as u32), &item);
    let mut f = FunctionBuilder::new("main");
    if granularity == Granularity::Lane {
        // An item of its own for each invocation.
        program.workgroup_size = [program.workgroup_size.iter().product(), 1, 1];
    }
    let work_item = match granularity {
        Granularity::Lane => Builtin::GlobalId(Axis::X),
        Granularity::Workgroup => Builtin::WorkgroupId(Axis::X),
    };
    let args: Vec<Value> = (0..)
        .zip(item.locals.iter().take(item.params as usize))
        .map(|(index, local)| match index {
            0 => work_item.into(),
            _ => through_u32(inputs.load(index), local.ty),
        })
        .collect();
    let results = f.call(&handle, args);
    let [x, y, z] = [Axis::X, Axis::Y, Axis::Z].map(|axis| {
        let me = Value::from(Builtin::LocalId(axis));
        let size = Value::from(Builtin::WorkgroupSize(axis));
        (me, size)
    });
    let local = x.0 + (y.0 + z.0 * y.1.clone()) * x.1.clone();
    let all = x.1 * y.1 * z.1;
    let me = f.let_("me", (Value::from(Builtin::WorkgroupId(Axis::X)) * all + local) * 4);
    for (index, result) in (0_u32..).zip(results) {
        f.store(outputs, me + index, result.cast(ScalarType::U64));
    }
    let wrapper = declared.finish();
    program.functions.push(item);
    program.kind = ProgramKind::Kernel;
    program.buffers = wrapper.buffers;
    program.entry = f.finish();
    program
}

/// A value of any type with the bits of an integer, so that floats are not only whole numbers.
fn through_u32(value: Value, ty: ScalarType) -> Value {
    match ty {
        ScalarType::F32 => value.cast(ScalarType::U32).bitcast(ScalarType::F32),
        _ => value.cast(ty),
    }
}

/// Contents for the buffers of a program, from a seed.
fn contents(program: &ValidatedProgram, mut seed: u64) -> Vec<Data> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u32
    };
    let bound = program.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup);
    bound
        .map(|decl| {
            let extra = if next() % 2 == 0 { next() % 300 } else { next() % 8 };
            let len = decl.len + extra;
            let small = next() % 2 == 0;
            let mut bytes = Vec::new();
            for _ in 0..len {
                let number =
                    if small { u64::from(next() % 4) } else { u64::from(next()) << 32 | u64::from(next()) };
                bytes.extend_from_slice(&number.to_le_bytes()[..decl.element.size()]);
            }
            Data { element: decl.element, bytes }
        })
        .collect()
}

/// The same, except that NaNs of a float buffer all look alike.
fn comparable(data: &[Data]) -> Vec<Vec<u64>> {
    let elements = |data: &Data| {
        let size = data.element.size();
        let canonical = |bits: u64| match data.element {
            DataType::F16 if bits & 0x7fff > 0x7c00 => 0x7e00,
            DataType::BF16 if bits & 0x7fff > 0x7f80 => 0x7fc0,
            DataType::F32 if bits & 0x7fff_ffff > 0x7f80_0000 => 0x7fc0_0000,
            _ => bits,
        };
        let bits = |element: &[u8]| {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(element);
            canonical(u64::from_le_bytes(bytes))
        };
        data.bytes.chunks_exact(size).map(bits).collect()
    };
    data.iter().map(elements).collect()
}

fn check(bytes: &[u8], seed: u64, grid: [u32; 3]) -> Result<(), TestCaseError> {
    let program = as_kernel(arbitrary_program(bytes));
    let text = vyre_foundation::text::print(&program);
    let program = validate(program).map_err(|errors| TestCaseError::fail(format!("{errors}\n{text}")))?;
    let before = contents(&program, seed);
    let mut expected = before.clone();
    let trap = reference::run(&program, &mut expected, grid);
    let expected = comparable(&expected);
    for (setting, backend) in all_settings() {
        let mut data = before.clone();
        let outcome = run(&backend, &program, &mut data, grid)
            .map_err(|error| TestCaseError::fail(format!("with {setting}: {error}\n{text}")))?;
        for (index, (found, expected)) in comparable(&data).iter().zip(&expected).enumerate() {
            let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
            if let Some(at) = wrong {
                let (found, expected) = (found[at], expected[at]);
                return Err(TestCaseError::fail(format!(
                    "element {at} of bound buffer {index} is {found:#x}, not {expected:#x}, with {setting}\n{text}"
                )));
            }
        }
        let found = outcome.trap.map(|trap| (trap.invocation, trap.code));
        prop_assert_eq!(found, trap, "with {}\n{}", setting, text);
    }
    Ok(())
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn programs_agree_with_the_tree_walk(
        bytes in prop::collection::vec(any::<u8>(), 0..1500),
        seed: u64,
        grid in (1..4_u32, 1..3_u32, 1..2_u32),
    ) {
        check(&bytes, seed, [grid.0, grid.1, grid.2])?;
    }
}
