//! Whether the uniformity analysis is sound: programs that it accepts are run one invocation at a time, with
//! loads that differ as much as they can, and all invocations must pass the same barriers in the same order.
//!
//! The programs are those of the generator, with barriers and early exits put in at random places; most are
//! refused, and the test counts that enough are not.

use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::semantics::{binary, bitcast, cast, fma, unary, widen, zero};
use vyre_foundation::{
    Atomic, Axis, BinaryOp, Builtin, Expr, Function, Granularity, Literal, MemorySpace, Node, Program,
    ProgramKind, ScalarType, text, validate,
};

const GROUPS: u32 = 3;
const PROGRAMS: u32 = 12_000;

#[test]
fn accepted_programs_pass_the_same_barriers() {
    let mut random = Random(1);
    let (mut accepted, mut passed, mut grids) = (0, 0, 0);
    for _ in 0..PROGRAMS {
        let bytes: Vec<u8> = (0..random.below(700)).map(|_| random.next() as u8).collect();
        let mut program = arbitrary_program(&bytes);
        disturb_function(&mut program.entry, &mut random);
        program.functions.iter_mut().for_each(|function| disturb_function(function, &mut random));
        if let Ok(program) = validate(program) {
            let (barriers, grid_barriers) = check(program.program(), random.next());
            accepted += 1;
            passed += u32::from(barriers);
            grids += u32::from(grid_barriers);
        }
    }
    println!("{accepted} accepted, {passed} pass barriers, {grids} pass grid barriers");
    assert!(passed > 300 && grids > 100, "too few: {accepted}, {passed}, {grids}");
}

/// Runs all invocations of a few workgroups; yields whether they passed workgroup and grid barriers.
fn check(program: &Program, seed: u64) -> (bool, bool) {
    let [nx, ny, nz] = program.workgroup_size;
    let mut grid: Option<Vec<*const Node>> = None;
    let mut any = false;
    for group in 0..GROUPS {
        let mut workgroup: Option<Vec<*const Node>> = None;
        for lane in 0..(nx * ny * nz).min(12) {
            let local = [lane % nx, lane / nx % ny, lane / nx / ny];
            let group = [group, 0, 0];
            // An item of workgroup granularity has the same words for all of the workgroup.
            let shared = Random(seed ^ u64::from(group[0]));
            let own = Random(seed.rotate_left(17) ^ u64::from(lane) << 32 ^ u64::from(group[0]));
            let mut words =
                if program.kind == ProgramKind::Item(Granularity::Lane) { own.clone() } else { shared };
            let params = program.entry.locals.iter().take(program.entry.params as usize);
            let args = params.map(|local| words.literal(local.ty)).collect();
            let mut machine =
                Machine { program, local, group, random: own, passed: Vec::new(), passed_grid: Vec::new() };
            // However it ends.
            let _ = machine.function(&program.entry, args);
            let Machine { passed, passed_grid, .. } = machine;
            any |= !passed.is_empty();
            let expected = workgroup.get_or_insert_with(|| passed.clone());
            assert_eq!(*expected, passed, "in a workgroup, invocation {lane} of\n{}", text::print(program));
            let expected = grid.get_or_insert_with(|| passed_grid.clone());
            assert_eq!(*expected, passed_grid, "in the grid, invocation {lane} of\n{}", text::print(program));
        }
    }
    (any, grid.is_some_and(|grid| !grid.is_empty()))
}

/// Who is running, and what it has passed.
struct Machine<'p> {
    program: &'p Program,
    local: [u32; 3],
    group: [u32; 3],
    random: Random,
    passed: Vec<*const Node>,
    passed_grid: Vec<*const Node>,
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
            Node::Store { .. } => {}
            Node::Atomic(Atomic { result, .. }) => {
                if let Some(var) = result {
                    let ty = locals[var.0 as usize].ty();
                    locals[var.0 as usize] = self.random.literal(ty);
                }
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
            Node::WorkgroupBarrier => self.passed.push(node),
            Node::GridBarrier => self.passed_grid.push(node),
            Node::Trap(_) => return Err(Exit::Trap),
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

/// Puts barriers and early exits into a function.
fn disturb_function(function: &mut Function, random: &mut Random) {
    let results: Vec<ScalarType> = function.results.clone();
    let likely = [0, 2, 6, 20][random.below(4) as usize];
    disturb(&mut function.body, &results, false, likely, random);
}

fn disturb(nodes: &mut Vec<Node>, results: &[ScalarType], in_loop: bool, likely: u64, random: &mut Random) {
    for node in nodes.iter_mut() {
        match node {
            Node::If { then, otherwise, .. } => {
                disturb(then, results, in_loop, likely, random);
                disturb(otherwise, results, in_loop, likely, random);
            }
            Node::Switch { cases, default, .. } => {
                cases.iter_mut().for_each(|case| disturb(&mut case.body, results, in_loop, likely, random));
                disturb(default, results, in_loop, likely, random);
            }
            Node::For { body, .. } | Node::While { body, .. } => {
                disturb(body, results, true, likely, random);
            }
            Node::Block(body) => disturb(body, results, in_loop, likely, random),
            _ => {}
        }
    }
    for at in (0..=nodes.len()).rev() {
        if random.below(100) >= likely {
            continue;
        }
        // The head of a `while true` counts the rounds: nothing may come before it.
        if in_loop && at < 2 {
            continue;
        }
        let node = match random.below(3) {
            0 => Node::WorkgroupBarrier,
            1 => exit(results, in_loop, random),
            _ => Node::If {
                condition: condition(random),
                then: vec![if random.below(2) == 0 {
                    Node::WorkgroupBarrier
                } else {
                    exit(results, in_loop, random)
                }],
                otherwise: vec![],
            },
        };
        let node = match node {
            // Alone it would end the block.
            Node::WorkgroupBarrier | Node::If { .. } => node,
            exit => Node::If { condition: condition(random), then: vec![exit], otherwise: vec![] },
        };
        nodes.insert(at, node);
    }
}

fn exit(results: &[ScalarType], in_loop: bool, random: &mut Random) -> Node {
    match random.below(4) {
        0 if in_loop => Node::Break,
        1 if in_loop => Node::Continue,
        2 => Node::Trap(Expr::Literal(Literal::U32(7))),
        _ => Node::Return(results.iter().map(|&ty| Expr::Literal(random.literal(ty))).collect()),
    }
}

fn condition(random: &mut Random) -> Expr {
    let builtin = [
        Builtin::LocalId(Axis::X),
        Builtin::WorkgroupId(Axis::X),
        Builtin::WorkgroupId(Axis::X),
        Builtin::NumWorkgroups(Axis::X),
        Builtin::WorkgroupSize(Axis::X),
    ][random.below(5) as usize];
    Expr::Binary {
        op: [BinaryOp::Eq, BinaryOp::Ne, BinaryOp::Gt][random.below(3) as usize],
        left: Box::new(Expr::Builtin(builtin)),
        right: Box::new(Expr::Literal(Literal::U32(random.below(4) as u32))),
    }
}

/// A linear congruential generator.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 >> 32 ^ self.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed >> 32 ^ mixed
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Storage bits, mostly of a small number.
    fn small(&mut self) -> u64 {
        let bits = self.next();
        if bits & 7 == 0 { bits >> 3 } else { bits >> 3 & 3 }
    }

    fn literal(&mut self, ty: ScalarType) -> Literal {
        cast(ty, Literal::U64(self.small()))
    }
}
