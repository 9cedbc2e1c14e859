//! The programs in IR; `kernels/bench/emitted/opponents.hip` has them by hand.

use vyre_foundation::builder::{Operand as _, ProgramBuilder};
use vyre_foundation::{
    Axis, BufferAccess, Builtin, DataType, MemorySpace, ScalarType, ValidatedProgram, ValidationErrors,
};

type Built = Result<ValidatedProgram, ValidationErrors>;

/// Elements that a workgroup adds up.
pub(crate) const CHUNK: u32 = 4096;
/// Bytes that an invocation steps over.
pub(crate) const PIECE: u32 = 1024;
const WORKGROUP: u32 = 256;

pub(crate) fn saxpy() -> Built {
    let mut p = ProgramBuilder::kernel("saxpy").workgroup_size([WORKGROUP, 1, 1]);
    let a = p.buffer("a", MemorySpace::Uniform, DataType::F32, BufferAccess::Read, 1);
    let x = p.buffer("x", MemorySpace::Global, DataType::F32, BufferAccess::Read, 1);
    let y = p.buffer("y", MemorySpace::Global, DataType::F32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let i = f.let_("i", Builtin::GlobalId(Axis::X));
        f.if_(i.lt(y.len()), |f| f.store(y, i, a.load(0).fma(x.load(i), y.load(i))));
    });
    p.validate()
}

pub(crate) fn reduce() -> Built {
    let mut p = ProgramBuilder::kernel("reduce").workgroup_size([WORKGROUP, 1, 1]);
    let x = p.buffer("x", MemorySpace::Global, DataType::U32, BufferAccess::Read, 1);
    let total = p.buffer("total", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    let sums = p.buffer("sums", MemorySpace::Workgroup, DataType::U32, BufferAccess::ReadWrite, WORKGROUP);
    p.entry(|f| {
        let me = f.let_("me", Builtin::LocalId(Axis::X));
        let group = vyre_foundation::builder::Value::from(Builtin::WorkgroupId(Axis::X));
        let base = f.let_("base", group * CHUNK + me);
        let sum = f.var_("sum", 0_u32);
        f.for_step("at", base, base + CHUNK, WORKGROUP, |f, at| f.assign(sum, sum + x.load(at)));
        f.store(sums, me, sum);
        f.barrier();
        let mut width = WORKGROUP / 2;
        while width > 0 {
            f.if_(me.lt(width), |f| f.store(sums, me, sums.load(me) + sums.load(me + width)));
            f.barrier();
            width /= 2;
        }
        f.if_(me.eq_(0), |f| {
            f.atomic_add(total, 0, sums.load(0));
        });
    });
    p.validate()
}

pub(crate) fn scan() -> Built {
    let mut p = ProgramBuilder::kernel("scan").workgroup_size([WORKGROUP, 1, 1]);
    let table = p.buffer("table", MemorySpace::Global, DataType::U32, BufferAccess::Read, 1);
    let input = p.buffer("input", MemorySpace::Global, DataType::U8, BufferAccess::Read, 1);
    let states = p.buffer("states", MemorySpace::Global, DataType::U32, BufferAccess::Write, 1);
    p.entry(|f| {
        let i = f.let_("i", Builtin::GlobalId(Axis::X));
        let state = f.var_("state", 0_u32);
        f.for_("at", i * PIECE, i * PIECE + PIECE, |f, at| {
            f.assign(state, table.load(state * 256 + input.load(at).cast(ScalarType::U32)));
        });
        f.store(states, i, state);
    });
    p.validate()
}
