//! Statements: every kind, under the rules that keep programs valid, short and free of races.

use std::cell::RefCell;

use super::expressions::{own, place_in_workgroup};
use super::{Frame, Known, MOST_ROUNDS, MOST_WORK, Maker, Place, Role, Visible};
use crate::builder::{FunctionBuilder, Operand, Value, Var};
use crate::ir::{
    Atomic, AtomicOp, BufferAccess, MemoryOrdering, MemoryScope, MemorySpace, Node, ReduceOp, RmwOp,
    SubgroupOp,
};
use crate::semantics::reduce_type;
use crate::types::ScalarType;

const DEEPEST: u8 = 4;

impl Maker<'_> {
    /// The statements of a block; what they define is out of scope afterwards.
    pub(super) fn statements(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let outer = frame.visible.len();
        for _ in 0..self.choices.below(8) {
            if self.nodes_left == 0 || self.choices.done() {
                break;
            }
            self.nodes_left = self.nodes_left.saturating_sub(1);
            frame.work = frame.work.saturating_add(frame.rounds);
            self.statement(f, frame, place);
        }
        // What the entry defines at its top level serves until its end.
        if place.depth > 0 {
            frame.visible.truncate(outer);
        }
    }

    fn statement(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let nested = place.depth < DEEPEST;
        match self.choices.below(20) {
            0..3 => self.store(f, frame),
            3 => self.define(f, frame),
            4 | 5 => self.assign(f, frame),
            6 | 7 if nested => self.if_(f, frame, place),
            8 if nested => self.switch(f, frame, place),
            9 if nested => self.for_(f, frame, place),
            10 if nested => self.while_(f, frame, place),
            11 if nested => {
                let place = Place { depth: place.depth + 1, ..place };
                f.block(|f| self.statements(f, frame, place));
            }
            12 | 13 => self.atomic(f, frame),
            14 => self.call(f, frame, place),
            15 | 16 => self.exchange(f, frame, place),
            17 => self.leave(f, frame, place),
            18 => self.leave_loop(f, place),
            19 => self.subgroup(f, frame, place),
            _ => self.store(f, frame),
        }
    }

    fn define(&mut self, f: &mut FunctionBuilder, frame: &mut Frame) {
        let (ty, uniform) = (self.scalar(), self.choices.flag());
        let value = self.value(frame, ty, uniform);
        let var = f.let_("x", value);
        frame.visible.push(Visible { var, uniform, assignable: false });
    }

    fn assign(&mut self, f: &mut FunctionBuilder, frame: &mut Frame) {
        let assignable: Vec<Var> =
            frame.visible.iter().filter(|known| known.assignable).map(|known| known.var).collect();
        match self.choices.among(&assignable) {
            Some(&var) if self.choices.flag() => {
                let value = self.value(frame, var.ty, false);
                f.assign(var, value);
            }
            _ => {
                let ty = self.scalar();
                let value = self.value(frame, ty, false);
                let var = f.var_("v", value);
                frame.visible.push(Visible { var, uniform: false, assignable: true });
            }
        }
    }

    fn store(&mut self, f: &mut FunctionBuilder, frame: &mut Frame) {
        let Some(known) = self.owned(frame) else { return self.define(f, frame) };
        let index = self.value(frame, ScalarType::U32, false);
        let value = self.value(frame, known.buffer.element.scalar(), false);
        f.store(known.buffer, own(frame, index), value);
    }

    /// A buffer in which the invocation has a slot at present.
    fn owned(&mut self, frame: &Frame) -> Option<Known> {
        let staged = self.staged;
        let owned = |known: &&Known| match known.role {
            Role::Own => true,
            Role::Stage => frame.entry && !staged,
            Role::Input | Role::Count(_) | Role::Shared => false,
        };
        let owned: Vec<Known> = self.buffers.iter().filter(owned).copied().collect();
        self.choices.among(&owned).copied()
    }

    /// A condition or selector for blocks inside `place`, and the place inside.
    fn decided(&mut self, frame: &Frame, ty: ScalarType, place: Place) -> (Value, Place) {
        let uniform = place.uniform && self.choices.flag();
        let inside = Place { depth: place.depth + 1, uniform, ..place };
        (self.value(frame, ty, uniform), inside)
    }

    fn if_(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let (condition, inside) = self.decided(frame, ScalarType::Bool, place);
        // The builder wants both blocks at once, and both need what makes them.
        let shared = RefCell::new((self, frame));
        let block = |f: &mut FunctionBuilder| {
            let (maker, frame) = &mut *shared.borrow_mut();
            maker.statements(f, frame, inside);
        };
        f.if_else(condition, block, block);
    }

    fn switch(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let (selector, inside) = self.decided(frame, ScalarType::U32, place);
        let selector = if self.choices.flag() { selector % 6 } else { selector };
        f.switch(selector, |s| {
            for case in 0..u32::from(self.choices.below(4)) {
                let values =
                    if self.choices.flag() { vec![case, case + 10, u32::MAX - case] } else { vec![case] };
                s.case(values, |f| self.statements(f, frame, inside));
            }
            s.default(|f| self.statements(f, frame, inside));
        });
    }

    /// The place in a loop's body that is uniform in every round, or in none.
    fn round(&mut self, place: Place) -> Place {
        let uniform = place.uniform && self.choices.flag();
        Place { depth: place.depth + 1, uniform, rounds_uniform: Some(uniform) }
    }

    fn for_(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let inside = self.round(place);
        let rounds = self.rounds(frame);
        let start = self.value(frame, ScalarType::U32, inside.uniform);
        let start = f.let_("start", start);
        let end = self.value(frame, ScalarType::U32, inside.uniform);
        let step = self.choices.one_of(&[1, 2, 1 << 30, u32::MAX]);
        // At most so many rounds, wherever it starts; at the upper end the sum saturates.
        let furthest = f.let_("furthest", start + rounds.saturating_mul(step).min(u32::MAX >> 1));
        let furthest = furthest.lt(start).select(u32::MAX, furthest);
        self.repeat(frame, u64::from(rounds), |maker, frame| {
            f.for_step("i", start, end.min(furthest), step, |f, i| {
                frame.visible.push(Visible { var: i, uniform: inside.uniform, assignable: false });
                maker.statements(f, frame, inside);
                frame.visible.pop();
            });
        });
    }

    fn while_(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let inside = self.round(place);
        let rounds = self.rounds(frame);
        let n = f.var_("n", 0);
        let more = self.value(frame, ScalarType::Bool, inside.uniform);
        let forever = self.choices.flag();
        let condition = if forever { true.into() } else { n.lt(rounds) & more };
        self.repeat(frame, u64::from(rounds), |maker, frame| {
            f.while_(condition, |f| {
                if forever {
                    f.if_(n.ge(rounds), |f| f.break_());
                }
                f.assign(n, n + 1);
                frame.visible.push(Visible { var: n, uniform: inside.uniform, assignable: false });
                maker.statements(f, frame, inside);
                frame.visible.pop();
            });
        });
    }

    fn rounds(&mut self, frame: &Frame) -> u32 {
        let rounds = u32::from(self.choices.below(5));
        if frame.rounds.saturating_mul(rounds.into()) > MOST_ROUNDS { 1 } else { rounds }
    }

    /// Makes a body that runs `rounds` times for each time the loop is reached.
    fn repeat(&mut self, frame: &mut Frame, rounds: u64, body: impl FnOnce(&mut Self, &mut Frame)) {
        let outside = frame.rounds;
        frame.rounds = outside.saturating_mul(rounds.max(1));
        body(self, frame);
        frame.rounds = outside;
    }

    fn atomic(&mut self, f: &mut FunctionBuilder, frame: &mut Frame) {
        let counts: Vec<(Known, RmwOp)> = self
            .buffers
            .iter()
            .filter_map(|&known| match known.role {
                Role::Count(op) => Some((known, op)),
                _ => None,
            })
            .collect();
        let index = self.value(frame, ScalarType::U32, false);
        if self.choices.flag()
            && let Some(&(known, op)) = self.choices.among(&counts)
        {
            let value = self.value(frame, known.buffer.element.scalar(), false);
            return self.count(f, known, op, index, value);
        }
        let Some(known) = self.owned(frame).filter(|known| known.buffer.element.is_atomic()) else {
            return self.store(f, frame);
        };
        self.own_atomic(f, frame, known, index);
    }

    /// A change whose result is dropped: the order of the changes would be seen in it.
    fn count(&mut self, f: &mut FunctionBuilder, known: Known, op: RmwOp, index: Value, value: Value) {
        let scope = match known.buffer.space {
            MemorySpace::Workgroup => MemoryScope::Workgroup,
            _ => MemoryScope::Device,
        };
        f.push(Node::Atomic(Atomic {
            op: AtomicOp::Rmw(op, value.into_expr()),
            buffer: known.buffer.id,
            index: index.into_expr(),
            ordering: self.rmw_ordering(),
            scope,
            result: None,
        }));
    }

    /// Any atomic on the invocation's own slot, where its result is certain.
    fn own_atomic(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, known: Known, index: Value) {
        let ty = known.buffer.element.scalar();
        let may_read = known.access == BufferAccess::ReadWrite;
        let may_modify = may_read && known.buffer.space == MemorySpace::Global;
        let value = self.value(frame, ty, false).into_expr();
        let (op, ordering, plain) = match self.choices.below(6) {
            1 if may_read => (
                AtomicOp::Load,
                self.choices.one_of(&[MemoryOrdering::Relaxed, MemoryOrdering::Acquire]),
                true,
            ),
            2 | 3 if may_modify => {
                let op = self.choices.one_of(&[
                    RmwOp::Add,
                    RmwOp::Sub,
                    RmwOp::And,
                    RmwOp::Or,
                    RmwOp::Xor,
                    RmwOp::Min,
                    RmwOp::Max,
                    RmwOp::Exchange,
                ]);
                (AtomicOp::Rmw(op, value), self.rmw_ordering(), false)
            }
            4 if may_modify => {
                let replacement = self.value(frame, ty, false).into_expr();
                (AtomicOp::CompareExchange { expected: value, replacement }, self.rmw_ordering(), false)
            }
            _ => {
                let ordering = self.choices.one_of(&[MemoryOrdering::Relaxed, MemoryOrdering::Release]);
                (AtomicOp::Store(value), ordering, true)
            }
        };
        let scopes = [MemoryScope::Device, MemoryScope::Workgroup, MemoryScope::System];
        let scope = match self.choices.one_of(&scopes) {
            MemoryScope::System if !plain => MemoryScope::Device,
            scope => scope,
        };
        let var = f.atomic(op, known.buffer, own(frame, index), ordering, scope);
        frame.visible.extend(var.map(|var| Visible { var, uniform: false, assignable: false }));
    }

    fn rmw_ordering(&mut self) -> MemoryOrdering {
        self.choices.one_of(&[
            MemoryOrdering::Relaxed,
            MemoryOrdering::Acquire,
            MemoryOrdering::Release,
            MemoryOrdering::AcqRel,
        ])
    }

    fn call(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let left = MOST_WORK.saturating_sub(frame.work);
        let callable: Vec<usize> = (0..self.functions.len())
            .filter(|&index| {
                self.functions.get(index).is_some_and(|callee| {
                    let together = place.uniform || !callee.barriers;
                    let stays = !callee.traps || !frame.barriers;
                    together && stays && callee.work.saturating_mul(frame.rounds) <= left
                })
            })
            .collect();
        let Some(&index) = self.choices.among(&callable) else { return self.store(f, frame) };
        let Some(callee) = self.functions.get(index) else { return };
        let (handle, params) = (callee.handle.clone(), callee.params.clone());
        frame.work = frame.work.saturating_add(callee.work.saturating_mul(frame.rounds));
        frame.traps |= callee.traps;
        let mut args = vec![frame.slot.clone()];
        args.extend(params.into_iter().map(|(ty, uniform)| self.value(frame, ty, uniform)));
        let results = f.call(&handle, args);
        frame.visible.extend(results.into_iter().map(|var| Visible {
            var,
            uniform: false,
            assignable: false,
        }));
    }

    /// Workgroup memory: all write, a barrier, all read, a barrier.
    fn exchange(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        if !place.uniform {
            return self.store(f, frame);
        }
        let shared: Vec<Known> =
            self.buffers.iter().filter(|known| known.role == Role::Shared).copied().collect();
        let Some(&known) = self.choices.among(&shared) else { return f.barrier() };
        let ty = known.buffer.element.scalar();
        let value = self.value(frame, ty, false);
        if known.buffer.element.is_atomic() && self.choices.flag() {
            let op = self.choices.one_of(&[RmwOp::Add, RmwOp::Xor, RmwOp::Max]);
            let index = self.value(frame, ScalarType::U32, false);
            self.count(f, known, op, index, value);
        } else {
            f.store(known.buffer, place_in_workgroup(), value);
        }
        f.barrier();
        let index = self.value(frame, ScalarType::U32, false);
        let var = f.let_("read", known.buffer.load(index));
        frame.visible.push(Visible { var, uniform: false, assignable: false });
        f.barrier();
    }

    fn subgroup(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        if !place.uniform {
            return self.store(f, frame);
        }
        let choice = self.choices.below(10);
        let ty = if choice < 3 { ScalarType::Bool } else { self.scalar() };
        let value = self.value(frame, ty, false);
        let op = self.choices.one_of(&[
            ReduceOp::Add,
            ReduceOp::Min,
            ReduceOp::Max,
            ReduceOp::And,
            ReduceOp::Or,
            ReduceOp::Xor,
        ]);
        let mut operand = |uniform| self.value(frame, ScalarType::U32, uniform).into_expr();
        let op = match choice {
            0 => SubgroupOp::Ballot,
            1 => SubgroupOp::Any,
            2 => SubgroupOp::All,
            3 => SubgroupOp::Broadcast(operand(true)),
            4 => SubgroupOp::Shuffle(operand(false)),
            5 => SubgroupOp::ShuffleXor(operand(false)),
            6 if reduce_type(op, ty).is_some() => SubgroupOp::InclusiveScan(op),
            7 if reduce_type(op, ty).is_some() => SubgroupOp::ExclusiveScan(op),
            8 if reduce_type(op, ty).is_some() => SubgroupOp::Reduce(op),
            _ => SubgroupOp::BroadcastFirst,
        };
        let var = f.subgroup(op, value);
        frame.visible.push(Visible { var, uniform: false, assignable: false });
    }

    /// A return or a trap.
    fn leave(&mut self, f: &mut FunctionBuilder, frame: &mut Frame, place: Place) {
        let together = place.uniform || !frame.barriers;
        // Grid barriers wait for the whole grid.
        if !together || self.grid {
            return self.store(f, frame);
        }
        if self.choices.flag() {
            frame.traps = true;
            let code = self.value(frame, ScalarType::U32, false);
            f.trap(code);
        } else {
            let values = self.results(frame);
            f.ret(values);
        }
    }

    fn leave_loop(&mut self, f: &mut FunctionBuilder, place: Place) {
        if place.rounds_uniform.is_some_and(|rounds_uniform| place.uniform || !rounds_uniform) {
            if self.choices.flag() { f.continue_() } else { f.break_() }
        }
    }
}
