//! A second implementation of the IR, as plain as can be: it walks the tree of one invocation at a time with
//! `vyre_foundation::semantics`, and knows nothing of lanes, masks or registers. Where there are barriers,
//! each invocation is a thread.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::sync::{Condvar, Mutex};

use vyre_foundation::semantics::{
    binary, bitcast, cast, exclusive_scan, inclusive_scan, narrow, reduce, rmw, unary, widen, zero,
};
use vyre_foundation::{
    AtomicOp, BinaryOp, BufferDecl, BufferId, Builtin, Expr, Function, Literal, MemorySpace, Node, Program,
    Subgroup, SubgroupOp, ValidatedProgram, VarId,
};

use super::common::Data;

/// Runs a kernel over whole buffers, in place; the trap of the first invocation that trapped, and its id.
pub fn run(program: &ValidatedProgram, data: &mut [Data], grid: [u32; 3]) -> Option<(u64, u32)> {
    let facts = program.facts();
    let program = program.program();
    let bound: Vec<_> = data.iter().map(|data| Mutex::new(data.bytes.clone())).collect();
    let size = program.workgroup_size;
    let invocations = size.iter().product::<u32>();
    let groups: Vec<Group> = (0..grid.iter().product::<u32>())
        .map(|index| {
            let place = [index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]];
            let own = program.buffers.iter().filter(|decl| decl.space == MemorySpace::Workgroup);
            let memory =
                own.map(|decl| Mutex::new(vec![0; decl.len as usize * decl.element.size()])).collect();
            let values = Mutex::new(vec![Literal::U32(0); invocations as usize]);
            Group { index, place, memory, values, barrier: Rendezvous::new(invocations) }
        })
        .collect();
    let everybody = Rendezvous::new(invocations * groups.len() as u32);
    let invoke = |group: &Group, linear: u32| {
        let local = [linear % size[0], linear / size[0] % size[1], linear / size[0] / size[1]];
        let invocation = Invocation { program, bound: &bound, group, local, grid, everybody: &everybody };
        let ended = invocation.call(&program.entry, Vec::new());
        group.barrier.leave();
        everybody.leave();
        let id = u64::from(group.index) * u64::from(invocations) + u64::from(linear);
        ended.err().map(|code| (id, code))
    };
    let mut traps: Vec<(u64, u32)> = Vec::new();
    if facts.grid_barriers || facts.workgroup_barriers {
        let together = if facts.grid_barriers { groups.len() } else { 1 };
        for groups in groups.chunks(together) {
            std::thread::scope(|scope| {
                let invoke = &invoke;
                let threads: Vec<_> = groups
                    .iter()
                    .flat_map(|group| (0..invocations).map(move |linear| (group, linear)))
                    .map(|(group, linear)| scope.spawn(move || invoke(group, linear)))
                    .collect();
                traps.extend(threads.into_iter().filter_map(|thread| thread.join().unwrap()));
            });
        }
    } else {
        for group in &groups {
            traps.extend((0..invocations).filter_map(|linear| invoke(group, linear)));
        }
    }
    for (data, bytes) in data.iter_mut().zip(bound) {
        data.bytes = bytes.into_inner().unwrap();
    }
    traps.into_iter().min()
}

struct Group {
    index: u32,
    place: [u32; 3],
    memory: Vec<Mutex<Vec<u8>>>,
    /// What each invocation contributes to the subgroup operation at hand.
    values: Mutex<Vec<Literal>>,
    barrier: Rendezvous,
}

/// Lanes of a subgroup.
const LANES: usize = 32;

/// A barrier that those who have ended need not come to.
struct Rendezvous {
    state: Mutex<(u32, u32, u32)>,
    changed: Condvar,
}

impl Rendezvous {
    fn new(all: u32) -> Rendezvous {
        Rendezvous { state: Mutex::new((all, 0, 0)), changed: Condvar::new() }
    }

    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        let round = state.2;
        state.1 += 1;
        if state.1 == state.0 {
            (state.1, state.2) = (0, round + 1);
            self.changed.notify_all();
        }
        while state.2 == round {
            state = self.changed.wait(state).unwrap();
        }
    }

    fn leave(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 -= 1;
        if state.0 > 0 && state.1 == state.0 {
            (state.1, state.2) = (0, state.2 + 1);
            self.changed.notify_all();
        }
    }
}

/// Why a block was left before its end.
enum Leave {
    Break,
    Continue,
    Return(Vec<Literal>),
    Trap(u32),
}

struct Invocation<'p> {
    program: &'p Program,
    bound: &'p [Mutex<Vec<u8>>],
    group: &'p Group,
    local: [u32; 3],
    grid: [u32; 3],
    everybody: &'p Rendezvous,
}

type Locals = Vec<Option<Literal>>;

impl Invocation<'_> {
    fn call(&self, function: &Function, args: Vec<Literal>) -> Result<Vec<Literal>, u32> {
        let mut locals: Locals = args.into_iter().map(Some).collect();
        locals.resize(function.locals.len(), None);
        match self.block(&mut locals, &function.body) {
            Ok(()) => Ok(Vec::new()),
            Err(Leave::Return(values)) => Ok(values),
            Err(Leave::Trap(code)) => Err(code),
            Err(Leave::Break | Leave::Continue) => panic!("left a loop outside of one"),
        }
    }

    fn block(&self, locals: &mut Locals, nodes: &[Node]) -> Result<(), Leave> {
        nodes.iter().try_for_each(|node| self.node(locals, node))
    }

    /// A loop's body; `false` once the loop was left.
    fn round(&self, locals: &mut Locals, body: &[Node]) -> Result<bool, Leave> {
        match self.block(locals, body) {
            Err(Leave::Break) => Ok(false),
            Ok(()) | Err(Leave::Continue) => Ok(true),
            Err(leave) => Err(leave),
        }
    }

    fn node(&self, locals: &mut Locals, node: &Node) -> Result<(), Leave> {
        match node {
            Node::Let { var, value } | Node::Assign { var, value } => {
                let value = self.eval(locals, value);
                set(locals, *var, value);
            }
            Node::Store { buffer, index, value } => {
                let (index, value) = (self.u32(locals, index), self.eval(locals, value));
                self.with(*buffer, |decl, bytes| store(decl, bytes, index, value));
            }
            Node::Atomic(atomic) => {
                let index = self.u32(locals, &atomic.index);
                let operands: Vec<Literal> = match &atomic.op {
                    AtomicOp::Load => vec![],
                    AtomicOp::Store(value) | AtomicOp::Rmw(_, value) => vec![self.eval(locals, value)],
                    AtomicOp::CompareExchange { expected, replacement } => {
                        vec![self.eval(locals, expected), self.eval(locals, replacement)]
                    }
                };
                let old = self.with(atomic.buffer, |decl, bytes| {
                    let old = load(decl, bytes, index);
                    let new = match &atomic.op {
                        AtomicOp::Load => old,
                        AtomicOp::Store(_) => operands[0],
                        AtomicOp::Rmw(op, _) => rmw(*op, old, operands[0]).unwrap(),
                        AtomicOp::CompareExchange { .. } if old == operands[0] => operands[1],
                        AtomicOp::CompareExchange { .. } => old,
                    };
                    store(decl, bytes, index, new);
                    old
                });
                if let Some(var) = atomic.result {
                    set(locals, var, old);
                }
            }
            Node::Subgroup(subgroup) => {
                let value = self.subgroup(locals, subgroup);
                set(locals, subgroup.result, value);
            }
            Node::If { condition, then, otherwise } => {
                let block = if self.bool(locals, condition) { then } else { otherwise };
                self.block(locals, block)?;
            }
            Node::Switch { selector, cases, default } => {
                let value = self.u32(locals, selector);
                let case = cases.iter().find(|case| case.values.contains(&value));
                self.block(locals, case.map_or(default, |case| &case.body))?;
            }
            Node::For { var, start, end, step, body } => {
                let mut at = u64::from(self.u32(locals, start));
                let end = u64::from(self.u32(locals, end));
                while at < end {
                    set(locals, *var, Literal::U32(at as u32));
                    if !self.round(locals, body)? {
                        break;
                    }
                    at += u64::from(*step);
                }
            }
            Node::While { condition, body } => {
                while self.bool(locals, condition) && self.round(locals, body)? {}
            }
            Node::Break => return Err(Leave::Break),
            Node::Continue => return Err(Leave::Continue),
            Node::Return(values) => {
                return Err(Leave::Return(values.iter().map(|value| self.eval(locals, value)).collect()));
            }
            Node::Block(nodes) => self.block(locals, nodes)?,
            Node::WorkgroupBarrier => self.group.barrier.wait(),
            Node::GridBarrier => self.everybody.wait(),
            Node::Trap(code) => return Err(Leave::Trap(self.u32(locals, code))),
            Node::CallExternal(_) => panic!("arbitrary programs have no external functions"),
            Node::Call { results, function, args } => {
                let args = args.iter().map(|arg| self.eval(locals, arg)).collect();
                let callee = &self.program.functions[function.0 as usize];
                let values = self.call(callee, args).map_err(Leave::Trap)?;
                results.iter().zip(values).for_each(|(var, value)| set(locals, *var, value));
            }
        }
        Ok(())
    }

    fn linear(&self) -> usize {
        let [x, y, _] = self.program.workgroup_size;
        (self.local[0] + x * (self.local[1] + y * self.local[2])) as usize
    }

    fn subgroup(&self, locals: &Locals, subgroup: &Subgroup) -> Literal {
        let own = self.eval(locals, &subgroup.value);
        let linear = self.linear();
        self.group.values.lock().unwrap()[linear] = own;
        self.group.barrier.wait();
        let first = linear / LANES * LANES;
        let values: Vec<Literal> =
            self.group.values.lock().unwrap().iter().skip(first).take(LANES).copied().collect();
        self.group.barrier.wait();
        let lane = linear - first;
        let of_lane = |lane: u32| values.get(lane as usize).copied().unwrap_or(zero(own.ty()));
        let mut truths = values.iter().map(|value| *value == Literal::Bool(true));
        match &subgroup.op {
            SubgroupOp::BroadcastFirst => values[0],
            SubgroupOp::Broadcast(of) | SubgroupOp::Shuffle(of) => of_lane(self.u32(locals, of)),
            SubgroupOp::ShuffleXor(mask) => of_lane(lane as u32 ^ self.u32(locals, mask)),
            SubgroupOp::Reduce(op) => reduce(*op, &values).expect("exists"),
            SubgroupOp::InclusiveScan(op) => inclusive_scan(*op, &values).expect("exists")[lane],
            SubgroupOp::ExclusiveScan(op) => exclusive_scan(*op, &values).expect("exists")[lane],
            SubgroupOp::Ballot => {
                Literal::U64(truths.enumerate().map(|(lane, value)| u64::from(value) << lane).sum())
            }
            SubgroupOp::Any => Literal::Bool(truths.any(|value| value)),
            SubgroupOp::All => Literal::Bool(truths.all(|value| value)),
        }
    }

    fn eval(&self, locals: &Locals, expr: &Expr) -> Literal {
        match expr {
            Expr::Literal(literal) => *literal,
            Expr::Var(var) => locals[var.0 as usize].expect("defined before it is used"),
            Expr::Load { buffer, index } => {
                let index = self.u32(locals, index);
                self.with(*buffer, |decl, bytes| load(decl, bytes, index))
            }
            Expr::BufferLen(buffer) => {
                self.with(*buffer, |decl, bytes| Literal::U32((bytes.len() / decl.element.size()) as u32))
            }
            Expr::Builtin(builtin) => Literal::U32(self.builtin(*builtin)),
            Expr::Unary { op, value } => unary(*op, self.eval(locals, value)).expect("exists"),
            Expr::Binary { op, left, right } => self.binary(locals, *op, left, right),
            Expr::Select { condition, if_true, if_false } => {
                let (yes, no) = (self.eval(locals, if_true), self.eval(locals, if_false));
                if self.bool(locals, condition) { yes } else { no }
            }
            Expr::Cast { to, value } => cast(*to, self.eval(locals, value)),
            Expr::Bitcast { to, value } => bitcast(*to, self.eval(locals, value)).expect("exists"),
            Expr::Fma { a, b, c } => {
                let [a, b, c] = [a, b, c].map(|factor| match self.eval(locals, factor) {
                    Literal::F32(bits) => f32::from_bits(bits),
                    other => panic!("{other:?} is no f32"),
                });
                Literal::f32(a.mul_add(b, c))
            }
        }
    }

    fn binary(&self, locals: &Locals, op: BinaryOp, left: &Expr, right: &Expr) -> Literal {
        binary(op, self.eval(locals, left), self.eval(locals, right)).expect("exists")
    }

    fn builtin(&self, builtin: Builtin) -> u32 {
        let size = self.program.workgroup_size;
        match builtin {
            Builtin::GlobalId(axis) => {
                let axis = axis.index();
                self.group.place[axis] * size[axis] + self.local[axis]
            }
            Builtin::WorkgroupId(axis) => self.group.place[axis.index()],
            Builtin::LocalId(axis) => self.local[axis.index()],
            Builtin::NumWorkgroups(axis) => self.grid[axis.index()],
            Builtin::WorkgroupSize(axis) => size[axis.index()],
            Builtin::SubgroupSize => LANES as u32,
            Builtin::SubgroupLane => (self.linear() % LANES) as u32,
            Builtin::SubgroupId => (self.linear() / LANES) as u32,
        }
    }

    fn u32(&self, locals: &Locals, expr: &Expr) -> u32 {
        match self.eval(locals, expr) {
            Literal::U32(value) => value,
            other => panic!("{other:?} is no u32"),
        }
    }

    fn bool(&self, locals: &Locals, expr: &Expr) -> bool {
        match self.eval(locals, expr) {
            Literal::Bool(value) => value,
            other => panic!("{other:?} is no bool"),
        }
    }

    fn with<R>(&self, buffer: BufferId, f: impl FnOnce(&BufferDecl, &mut Vec<u8>) -> R) -> R {
        let index = buffer.0 as usize;
        let decl = &self.program.buffers[index];
        let before = &self.program.buffers[..index];
        let own = before.iter().filter(|decl| decl.space == MemorySpace::Workgroup).count();
        let memory = match decl.space {
            MemorySpace::Workgroup => &self.group.memory[own],
            _ => &self.bound[index - own],
        };
        f(decl, &mut memory.lock().unwrap())
    }
}

fn set(locals: &mut Locals, var: VarId, value: Literal) {
    locals[var.0 as usize] = Some(value);
}

fn load(decl: &BufferDecl, bytes: &[u8], index: u32) -> Literal {
    let size = decl.element.size();
    let Some(element) = bytes.chunks_exact(size).nth(index as usize) else {
        return zero(decl.element.scalar());
    };
    let mut bits = [0; 8];
    bits[..size].copy_from_slice(element);
    widen(decl.element, u64::from_le_bytes(bits))
}

fn store(decl: &BufferDecl, bytes: &mut [u8], index: u32, value: Literal) {
    let size = decl.element.size();
    let bits = narrow(decl.element, value).expect("exists").to_le_bytes();
    if let Some(element) = bytes.chunks_exact_mut(size).nth(index as usize) {
        element.copy_from_slice(&bits[..size]);
    }
}
