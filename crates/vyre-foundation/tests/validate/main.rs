//! Every invariant of the validator, by its number: programs that keep it, and programs that break it with
//! what the validator says.

mod control;
mod declarations;
mod hostile;
mod memory;
mod types;
mod uniformity;

use vyre_foundation::builder::{Buffer, FunctionBuilder, ProgramBuilder};
use vyre_foundation::{
    BufferAccess, DataType, Function, Granularity, MemorySpace, Program, ScalarType, ValidatedProgram,
    validate,
};

pub(crate) use vyre_foundation::ScalarType::{Bool, F32, I32, U32, U64};

/// A program that is right, or panics with what the validator has against it.
#[track_caller]
pub(crate) fn accept(program: Program) -> ValidatedProgram {
    match validate(program) {
        Ok(program) => program,
        Err(errors) => panic!("refused:\n{errors}"),
    }
}

/// A program about which the validator says exactly these lines.
#[track_caller]
pub(crate) fn refuse(program: Program, expected: &[&str]) {
    match validate(program) {
        Ok(_) => panic!("accepted; expected:\n{}", expected.join("\n")),
        Err(errors) => assert_eq!(errors.to_string(), expected.join("\n")),
    }
}

/// A program about which the validator says one thing, which contains `expected`.
#[track_caller]
pub(crate) fn refuse_with(program: Program, expected: &str) {
    match validate(program) {
        Ok(_) => panic!("accepted; expected {expected}"),
        Err(errors) => {
            let said = errors.to_string();
            assert!(
                errors.errors().len() == 1 && said.contains(expected),
                "expected {expected}; said:\n{said}"
            );
        }
    }
}

/// Ends a closure that has to yield nothing.
pub(crate) fn ignore<T>(_: T) {}

/// The buffers that most tests use.
pub(crate) struct Buffers {
    pub(crate) words: Buffer,
    pub(crate) shared: Buffer,
    pub(crate) params: Buffer,
}

/// A kernel of 64 invocations a workgroup over a few buffers.
pub(crate) fn kernel(body: impl FnOnce(&mut FunctionBuilder, Buffers)) -> Program {
    kernel_with(|p, buffers| p.entry(|f| body(f, buffers)))
}

/// The same, with functions.
pub(crate) fn kernel_with(build: impl FnOnce(&mut ProgramBuilder, Buffers)) -> Program {
    let mut p = ProgramBuilder::kernel("test").workgroup_size([64, 1, 1]);
    let buffers = Buffers {
        words: p.buffer("words", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 0),
        shared: p.buffer("shared", MemorySpace::Workgroup, DataType::U32, BufferAccess::ReadWrite, 64),
        params: p.buffer("params", MemorySpace::Uniform, DataType::U32, BufferAccess::Read, 4),
    };
    build(&mut p, buffers);
    p.finish()
}

/// A kernel with one buffer `b` as declared.
pub(crate) fn with_buffer(
    space: MemorySpace,
    element: DataType,
    access: BufferAccess,
    body: impl FnOnce(&mut FunctionBuilder, Buffer),
) -> Program {
    let mut p = ProgramBuilder::kernel("test");
    let buffer = p.buffer("b", space, element, access, 4);
    p.entry(|f| body(f, buffer));
    p.finish()
}

/// An item program whose entry takes and returns one word.
pub(crate) fn item(granularity: Granularity, body: impl FnOnce(&mut FunctionBuilder)) -> Program {
    let mut p = ProgramBuilder::item("test", granularity).workgroup_size([64, 1, 1]);
    p.item_entry([("word", U32)], [U32], |f, [word]| {
        body(f);
        f.ret(word);
    });
    p.finish()
}

/// A kernel that calls nothing, with one function in it.
pub(crate) fn with_function(function: Function) -> Program {
    let mut p = ProgramBuilder::kernel("test");
    p.add_function(function);
    p.finish()
}

/// A function `f` with parameters `x`, `x_1`, ... of these types.
pub(crate) fn function<const N: usize>(
    params: [ScalarType; N],
    results: &[ScalarType],
    body: impl FnOnce(&mut FunctionBuilder, [vyre_foundation::builder::Var; N]),
) -> Function {
    let mut f = FunctionBuilder::new("f");
    let vars = params.map(|ty| f.param("x", ty));
    results.iter().for_each(|&ty| f.result(ty));
    body(&mut f, vars);
    f.finish()
}
