//! One invocation run by itself, with loads that yield anything: what it passes and touches on the way.

use vyre_foundation::semantics::{binary, bitcast, cast, fma, unary, widen, zero};
use vyre_foundation::{
    Atomic, AtomicOp, Builtin, Expr, Function, Granularity, Literal, MemorySpace, Node, Program, ProgramKind,
    RmwOp, ScalarType, Subgroup,
};

/// Workgroups, or items of workgroup granularity, in x.
pub(crate) const GROUPS: u32 = 3;
/// Invocations run of each workgroup.
pub(crate) const LANES: u32 = 12;

/// What an invocation did.
#[derive(Default)]
pub(crate) struct Journal {
    pub(crate) barriers: Vec<*const Node>,
    pub(crate) grid_barriers: Vec<*const Node>,
    pub(crate) accesses: Vec<Access>,
}

/// One access to memory other than uniform.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) buffer: u32,
    pub(crate) index: u32,
    pub(crate) kind: Kind,
    /// Barriers passed before, those of the grid apart.
    pub(crate) phase: usize,
    pub(crate) grid_phase: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Load,
    Store,
    /// An atomic whose result is used, or that is no read-modify-write.
    Atomic,
    /// A read-modify-write whose result is dropped.
    Count(RmwOp),
}

/// Runs one invocation of a valid program.
pub(crate) fn run(program: &Program, seed: u64, group: u32, lane: u32) -> Journal {
    let [nx, ny, _] = program.workgroup_size;
    let own = Random(seed.rotate_left(17) ^ u64::from(lane) << 32 ^ u64::from(group));
    // An item of workgroup granularity has the same words for all of the workgroup.
    let (first, mut words) = match program.kind {
        ProgramKind::Item(Granularity::Lane) => (group * LANES + lane, own.clone()),
        _ => (group, Random(seed ^ u64::from(group))),
    };
    let params = program.entry.locals.iter().take(program.entry.params as usize);
    let mut args: Vec<Literal> = params.map(|local| words.literal(local.ty)).collect();
    if let Some(arg) = args.first_mut() {
        *arg = Literal::U32(first);
    }
    let local = [lane % nx, lane / nx % ny, lane / nx / ny];
    let mut machine =
        Machine { program, local, group: [group, 0, 0], random: own, journal: Journal::default() };
    // However it ends.
    let _ = machine.function(&program.entry, args);
    machine.journal
}

struct Machine<'p> {
    program: &'p Program,
    local: [u32; 3],
    group: [u32; 3],
    random: Random,
    journal: Journal,
}

/// How a statement was left.
enum Exit {
    Break,
    Continue,
    Return(Vec<Literal>),
    Trap,
}

type Locals = Vec<Literal>;

impl Machine<'_> {
    fn function(&mut self, function: &Function, args: Vec<Literal>) -> Result<Vec<Literal>, Exit> {
        let mut locals: Locals = function.locals.iter().map(|local| zero(local.ty)).collect();
        locals[..args.len()].copy_from_slice(&args);
        match self.block(&function.body, &mut locals) {
            Err(Exit::Return(values)) => Ok(values),
            Err(exit) => Err(exit),
            Ok(()) => Ok(Vec::new()),
        }
    }

    fn block(&mut self, nodes: &[Node], locals: &mut Locals) -> Result<(), Exit> {
        nodes.iter().try_for_each(|node| self.node(node, locals))
    }

    fn node(&mut self, node: &Node, locals: &mut Locals) -> Result<(), Exit> {
        match node {
            Node::Let { var, value } | Node::Assign { var, value } => {
                locals[var.0 as usize] = self.value(value, locals);
            }
            // Nobody reads what is written: loads yield anything.
            Node::Store { buffer, index, value } => {
                self.value(value, locals);
                let index = self.word(index, locals);
                self.touch(buffer.0, index, Kind::Store);
            }
            Node::Atomic(Atomic { op, buffer, index, result, .. }) => {
                let index = self.word(index, locals);
                let kind = match (op, result) {
                    (AtomicOp::Rmw(op, value), None) => {
                        self.value(value, locals);
                        Kind::Count(*op)
                    }
                    _ => Kind::Atomic,
                };
                self.touch(buffer.0, index, kind);
                if let Some(var) = result {
                    let ty = locals[var.0 as usize].ty();
                    locals[var.0 as usize] = self.random.literal(ty);
                }
            }
            // The other lanes are elsewhere: they contribute anything.
            Node::Subgroup(Subgroup { op, value, result }) => {
                for operand in op.operand().into_iter().chain([value]) {
                    self.value(operand, locals);
                }
                let ty = locals[result.0 as usize].ty();
                locals[result.0 as usize] = self.random.literal(ty);
            }
            Node::If { condition, then, otherwise } => {
                let block =
                    if self.value(condition, locals) == Literal::Bool(true) { then } else { otherwise };
                self.block(block, locals)?;
            }
            Node::Switch { selector, cases, default } => {
                let selector = self.word(selector, locals);
                let case = cases.iter().find(|case| case.values.contains(&selector));
                self.block(case.map_or(default, |case| &case.body), locals)?;
            }
            Node::For { var, start, end, step, body } => {
                let (start, end) = (self.word(start, locals), self.word(end, locals));
                let mut next = (start < end).then_some(start);
                while let Some(counter) = next {
                    locals[var.0 as usize] = Literal::U32(counter);
                    match self.block(body, locals) {
                        Err(Exit::Break) => break,
                        Ok(()) | Err(Exit::Continue) => {}
                        exit => return exit,
                    }
                    next = counter.checked_add(*step).filter(|&counter| counter < end);
                }
            }
            Node::While { condition, body } => {
                while self.value(condition, locals) == Literal::Bool(true) {
                    match self.block(body, locals) {
                        Err(Exit::Break) => break,
                        Ok(()) | Err(Exit::Continue) => {}
                        exit => return exit,
                    }
                }
            }
            Node::Break => return Err(Exit::Break),
            Node::Continue => return Err(Exit::Continue),
            Node::Return(values) => {
                return Err(Exit::Return(values.iter().map(|value| self.value(value, locals)).collect()));
            }
            Node::Block(body) => self.block(body, locals)?,
            Node::WorkgroupBarrier => self.journal.barriers.push(node),
            Node::GridBarrier => self.journal.grid_barriers.push(node),
            Node::Trap(_) => return Err(Exit::Trap),
            Node::CallExternal(_) => panic!("arbitrary programs have no external functions"),
            Node::Call { results, function, args } => {
                let args = args.iter().map(|arg| self.value(arg, locals)).collect();
                let values = self.function(&self.program.functions[function.0 as usize], args)?;
                for (var, value) in results.iter().zip(values) {
                    locals[var.0 as usize] = value;
                }
            }
        }
        Ok(())
    }

    fn touch(&mut self, buffer: u32, index: u32, kind: Kind) {
        let (phase, grid_phase) = (self.journal.barriers.len(), self.journal.grid_barriers.len());
        self.journal.accesses.push(Access { buffer, index, kind, phase, grid_phase });
    }

    fn word(&mut self, expr: &Expr, locals: &Locals) -> u32 {
        match self.value(expr, locals) {
            Literal::U32(word) => word,
            other => panic!("{other:?} is no u32"),
        }
    }

    fn value(&mut self, expr: &Expr, locals: &Locals) -> Literal {
        match expr {
            Expr::Literal(literal) => *literal,
            Expr::Var(var) => locals[var.0 as usize],
            Expr::Load { buffer, index } => {
                let index = self.word(index, locals);
                let decl = &self.program.buffers[buffer.0 as usize];
                let bits = if decl.space == MemorySpace::Uniform {
                    Random(u64::from(buffer.0) << 32 | u64::from(index)).small()
                } else {
                    self.touch(buffer.0, index, Kind::Load);
                    self.random.small()
                };
                widen(decl.element, bits)
            }
            Expr::BufferLen(buffer) => Literal::U32(self.program.buffers[buffer.0 as usize].len + 3),
            Expr::Builtin(builtin) => {
                let size = self.program.workgroup_size;
                Literal::U32(match builtin {
                    Builtin::GlobalId(axis) => {
                        let axis = axis.index();
                        self.group[axis] * size[axis] + self.local[axis]
                    }
                    Builtin::WorkgroupId(axis) => self.group[axis.index()],
                    Builtin::LocalId(axis) => self.local[axis.index()],
                    Builtin::NumWorkgroups(axis) => [GROUPS, 1, 1][axis.index()],
                    Builtin::WorkgroupSize(axis) => size[axis.index()],
                    Builtin::SubgroupSize => 32,
                    Builtin::SubgroupLane | Builtin::SubgroupId => self.random.below(32) as u32,
                })
            }
            Expr::Unary { op, value } => unary(*op, self.value(value, locals)).unwrap(),
            Expr::Binary { op, left, right } => {
                binary(*op, self.value(left, locals), self.value(right, locals)).unwrap()
            }
            Expr::Select { condition, if_true, if_false } => {
                let values = (self.value(if_true, locals), self.value(if_false, locals));
                if self.value(condition, locals) == Literal::Bool(true) { values.0 } else { values.1 }
            }
            Expr::Cast { to, value } => cast(*to, self.value(value, locals)),
            Expr::Bitcast { to, value } => bitcast(*to, self.value(value, locals)).unwrap(),
            Expr::Fma { a, b, c } => {
                fma(self.value(a, locals), self.value(b, locals), self.value(c, locals)).unwrap()
            }
        }
    }
}

/// A linear congruential generator.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 >> 32 ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed >> 32 ^ mixed
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Storage bits, mostly of a small number.
    fn small(&mut self) -> u64 {
        let bits = self.next();
        if bits & 7 == 0 { bits >> 3 } else { bits >> 3 & 3 }
    }

    pub(crate) fn literal(&mut self, ty: ScalarType) -> Literal {
        cast(ty, Literal::U64(self.small()))
    }
}
