//! Valid programs from arbitrary bytes, for differential tests and fuzzing of backends.
//!
//! [`arbitrary_program`] turns any bytes into a program that is valid, ends soon, and has *one* right outcome
//! however its invocations are scheduled: two backends that differ on it are not both right. Only NaN
//! payloads in float buffers are free. Programs with subgroup operations have one outcome for each size of
//! subgroups.
//!
//! To run one, bind any contents to its buffers, each at least as long as declared; a length that is shorter
//! than what the invocations address exercises the bounds. A kernel takes any grid. An item program takes
//! items whose first word, the first parameter of the entry and a `u32`, is small and differs from item to
//! item; the other words may be anything.
//!
//! How races are kept out: each invocation has a slot of its own in the buffers that are written, called
//! `own`, and touches no other; `count` buffers are only changed, by one commutative operation, and never
//! looked at; `stage` buffers are as `own` before the last grid barrier, and only read, by all, behind it;
//! `shared` memory is written and read in turns, with barriers in between. Subgroup operations touch none.
//!
//! Absent on purpose: racing programs, whose outcomes are many, external functions, which only some backends
//! have, and programs that the validator refuses.

mod expressions;
mod statements;

use crate::builder::{Buffer, FunctionBuilder, FunctionHandle, ProgramBuilder, Value, Var};
use crate::ir::{BufferAccess, Granularity, MemorySpace, Program, ProgramKind, RmwOp};
use crate::types::{DataType, ScalarType};

/// The program that `bytes` choose. Each choice takes the next byte, and past the end every choice is the
/// first and least: so shorter bytes make smaller programs, and no bytes an empty one.
pub fn arbitrary_program(bytes: &[u8]) -> Program {
    let mut choices = Choices(bytes);
    let kind = match choices.below(4) {
        0 | 1 => ProgramKind::Kernel,
        2 => ProgramKind::Item(Granularity::Lane),
        _ => ProgramKind::Item(Granularity::Workgroup),
    };
    let (builder, size) = match kind {
        ProgramKind::Kernel => (
            ProgramBuilder::kernel("arbitrary"),
            choices.one_of(&[[1, 1, 1], [4, 1, 1], [64, 1, 1], [3, 2, 2]]),
        ),
        ProgramKind::Item(granularity) => (
            ProgramBuilder::item("arbitrary", granularity),
            choices.one_of(&[[1, 1, 1], [8, 1, 1], [33, 1, 1], [2, 3, 2]]),
        ),
    };
    let maker = Maker {
        grid: kind == ProgramKind::Kernel && choices.flag(),
        kind,
        choices,
        buffers: Vec::new(),
        functions: Vec::new(),
        nodes_left: MOST_NODES,
        staged: false,
    };
    maker.program(builder.workgroup_size(size))
}

/// Expressions and statements after which only leaves follow.
const MOST_NODES: u32 = 4000;
/// Statements that an invocation runs at most, about.
const MOST_WORK: u64 = 20_000;
/// Rounds of loops in loops together.
const MOST_ROUNDS: u64 = 64;
/// Elements of an `own` buffer that belong to one invocation.
const SLOT: u32 = 4;

struct Choices<'b>(&'b [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn done(&self) -> bool {
        self.0.is_empty()
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn below(&mut self, end: u8) -> u8 {
        self.byte() % end.max(1)
    }

    /// One of some values, the first by default.
    fn one_of<T: Copy, const N: usize>(&mut self, values: &[T; N]) -> T {
        const { assert!(N > 0) };
        values[usize::from(self.byte()) % N]
    }

    /// One of what there is.
    fn among<'t, T>(&mut self, values: &'t [T]) -> Option<&'t T> {
        let index = usize::from(self.byte()).checked_rem(values.len())?;
        values.get(index)
    }

    fn word(&mut self) -> u32 {
        match self.byte() {
            small @ 0..160 => u32::from(small % 8),
            160..180 => u32::MAX,
            180..200 => 1 << 31,
            _ => u32::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }
}

/// What the program does with a buffer; the module says how that avoids races.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Input,
    Own,
    Stage,
    Count(RmwOp),
    Shared,
}

#[derive(Clone, Copy)]
struct Known {
    buffer: Buffer,
    role: Role,
    access: BufferAccess,
}

/// A function that later ones may call.
struct Callable {
    handle: FunctionHandle,
    /// Types of the parameters behind the slot, and whether the callers promise them uniform.
    params: Vec<(ScalarType, bool)>,
    barriers: bool,
    traps: bool,
    work: u64,
}

struct Maker<'b> {
    choices: Choices<'b>,
    kind: ProgramKind,
    /// Whether the entry has grid barriers, so that nobody may leave before them.
    grid: bool,
    buffers: Vec<Known>,
    functions: Vec<Callable>,
    nodes_left: u32,
    /// Whether the last grid barrier is behind.
    staged: bool,
}

/// A local in scope.
#[derive(Clone, Copy)]
struct Visible {
    var: Var,
    uniform: bool,
    assignable: bool,
}

/// The function being made.
struct Frame {
    slot: Value,
    visible: Vec<Visible>,
    results: Vec<ScalarType>,
    /// Whether there may be barriers; then nobody leaves early but all together.
    barriers: bool,
    entry: bool,
    traps: bool,
    /// How often the statement at hand runs at most.
    rounds: u64,
    work: u64,
}

/// The block being made.
#[derive(Clone, Copy)]
struct Place {
    depth: u8,
    /// Whether all invocations of the workgroup are here, or none.
    uniform: bool,
    /// Inside a loop: whether all take part in each of its rounds.
    rounds_uniform: Option<bool>,
}

impl Maker<'_> {
    fn program(mut self, mut p: ProgramBuilder) -> Program {
        self.declare(&mut p);
        for index in 0..self.choices.below(4) {
            self.function(&mut p, index);
        }
        let mut f = FunctionBuilder::new("main");
        let lane = self.kind == ProgramKind::Item(Granularity::Lane);
        let mut frame = Frame {
            slot: 0.into(),
            visible: Vec::new(),
            results: Vec::new(),
            barriers: !lane && (self.grid || self.choices.flag()),
            entry: true,
            traps: false,
            rounds: 1,
            work: 0,
        };
        match self.kind {
            ProgramKind::Kernel => {
                let slot = f.let_("slot", expressions::linear_global_id());
                frame.slot = slot.into();
            }
            ProgramKind::Item(granularity) => {
                let uniform = granularity == Granularity::Workgroup;
                let item = f.param("work_item", ScalarType::U32);
                frame.visible.push(Visible { var: item, uniform, assignable: false });
                for _ in 0..self.choices.below(4) {
                    let ty = self.scalar();
                    let var = f.param("word", ty);
                    frame.visible.push(Visible { var, uniform, assignable: false });
                }
                for _ in 0..self.choices.below(4) {
                    let ty = self.choices.one_of(&[ScalarType::U32, ScalarType::U64, ScalarType::I32]);
                    f.result(ty);
                    frame.results.push(ty);
                }
                let slot = if uniform { expressions::linear_local_id(item) } else { item.into() };
                frame.slot = f.let_("slot", slot).into();
            }
        }
        let place = Place { depth: 0, uniform: frame.barriers, rounds_uniform: None };
        if self.grid {
            for _ in 0..=self.choices.below(3) {
                self.statements(&mut f, &mut frame, place);
                f.grid_barrier();
            }
            self.staged = true;
            // Behind the last grid barrier it matters no more who leaves.
            self.grid = false;
        }
        self.statements(&mut f, &mut frame, place);
        self.last_return(&mut f, &mut frame);
        p.set_entry(f.finish());
        p.finish()
    }

    fn declare(&mut self, p: &mut ProgramBuilder) {
        for index in 0..self.choices.below(9) {
            let element = self.choices.one_of(&DataType::ALL);
            let len = u32::from(self.choices.below(20)) + 1;
            let (name, role, space, access) = match self.choices.below(10) {
                0..3 => ("own", Role::Own, MemorySpace::Global, BufferAccess::ReadWrite),
                3 => ("own", Role::Own, MemorySpace::HostVisible, BufferAccess::ReadWrite),
                4 => ("own", Role::Own, MemorySpace::Global, BufferAccess::Write),
                5 => ("input", Role::Input, MemorySpace::Global, BufferAccess::Read),
                6 => ("constant", Role::Input, MemorySpace::Uniform, BufferAccess::Read),
                7 if self.kind != ProgramKind::Item(Granularity::Lane) => {
                    ("shared", Role::Shared, MemorySpace::Workgroup, BufferAccess::ReadWrite)
                }
                8 if self.grid => ("stage", Role::Stage, MemorySpace::Global, BufferAccess::ReadWrite),
                _ if element.is_atomic() => {
                    let op = self.choices.one_of(&[
                        RmwOp::Add,
                        RmwOp::Sub,
                        RmwOp::And,
                        RmwOp::Or,
                        RmwOp::Xor,
                        RmwOp::Min,
                        RmwOp::Max,
                    ]);
                    ("count", Role::Count(op), MemorySpace::Global, BufferAccess::ReadWrite)
                }
                _ => ("input", Role::Input, MemorySpace::HostVisible, BufferAccess::Read),
            };
            let buffer = p.buffer(format!("{name}_{index}"), space, element, access, len);
            self.buffers.push(Known { buffer, role, access });
        }
    }

    fn function(&mut self, p: &mut ProgramBuilder, index: u8) {
        let mut f = FunctionBuilder::new(format!("function_{index}"));
        let slot = f.param("slot", ScalarType::U32);
        let barriers = self.kind != ProgramKind::Item(Granularity::Lane) && self.choices.flag();
        let mut frame = Frame {
            slot: slot.into(),
            visible: Vec::new(),
            results: Vec::new(),
            barriers,
            entry: false,
            traps: false,
            rounds: 1,
            work: 0,
        };
        let mut params = Vec::new();
        for _ in 0..self.choices.below(4) {
            let (ty, uniform) = (self.scalar(), barriers && self.choices.flag());
            let var = f.param("x", ty);
            params.push((ty, uniform));
            frame.visible.push(Visible { var, uniform, assignable: false });
        }
        for _ in 0..self.choices.below(3) {
            let ty = self.scalar();
            f.result(ty);
            frame.results.push(ty);
        }
        let place = Place { depth: 0, uniform: barriers, rounds_uniform: None };
        self.statements(&mut f, &mut frame, place);
        self.last_return(&mut f, &mut frame);
        let handle = p.add_function(f.finish());
        let (traps, work) = (frame.traps, frame.work);
        self.functions.push(Callable { handle, params, barriers, traps, work });
    }

    fn last_return(&mut self, f: &mut FunctionBuilder, frame: &mut Frame) {
        if !frame.results.is_empty() {
            let values = self.results(frame);
            f.ret(values);
        }
    }

    fn scalar(&mut self) -> ScalarType {
        self.choices.one_of(&[
            ScalarType::U32,
            ScalarType::F32,
            ScalarType::I32,
            ScalarType::U64,
            ScalarType::Bool,
        ])
    }
}
