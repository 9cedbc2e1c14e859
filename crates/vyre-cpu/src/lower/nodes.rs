//! Statements.
//!
//! A *construct* is anything at whose end lanes that took different ways meet again: the blocks of an `if`,
//! a case, a loop's body, a function's body. A lane leaves one early by taking itself out of the masks of
//! everything it leaves; the rest of the construct is skipped once nobody is left.
//!
//! Only assignments, stores, atomics and subgroup operations look at the active lanes. A `let` may write every lane: a lane that
//! is not active does not see the local before it has passed the `let` itself.

use vyre_foundation::{
    Atomic, AtomicOp, DataType, Expr, FunctionId, MemoryOrdering, Node, RmwOp, ScalarType, SwitchCase, VarId,
};

use super::{ALL_LANES, Frame, LowerError, Lowering, Pooled};
use crate::flat::{AtomicWord, Code, ExternalCall, Inst, Place, SwitchTable, store_code};

/// An open loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loop {
    /// The lanes that go on.
    lanes: u16,
    /// The lanes still in this round, where `continue` makes a difference.
    round: Option<u16>,
}

/// Whether anything can come after a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Continues,
    Ends,
}

/// How often lanes may have left, at some point of the lowering.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Leaves {
    of_loop: u32,
    escapes: u32,
}

impl<'p> Lowering<'p> {
    /// A scope.
    pub(super) fn block(&mut self, frame: &mut Frame<'p>, nodes: &'p [Node]) -> Result<(), LowerError> {
        self.scope(frame, nodes).map(|_| ())
    }

    fn scope(&mut self, frame: &mut Frame<'p>, nodes: &'p [Node]) -> Result<Flow, LowerError> {
        let mark = frame.registers.mark();
        let mut flow = Flow::Continues;
        for node in nodes {
            flow = self.node(frame, node)?;
            if flow == Flow::Ends {
                break;
            }
        }
        frame.registers.release(mark);
        Ok(flow)
    }

    /// A scope at whose end lanes meet again.
    fn construct(&mut self, frame: &mut Frame<'p>, nodes: &'p [Node]) -> Result<(), LowerError> {
        frame.constructs.push(Vec::new());
        self.block(frame, nodes)?;
        let jumps = frame.constructs.pop().unwrap_or_default();
        self.bind(jumps);
        Ok(())
    }

    fn node(&mut self, frame: &mut Frame<'p>, node: &'p Node) -> Result<Flow, LowerError> {
        match node {
            Node::Let { var, value } => self.define(frame, *var, value)?,
            Node::Assign { var, value } => {
                let mark = frame.registers.mark();
                let place = frame.local(*var)?;
                let a = self.expr(frame, value)?;
                if a != place.register() {
                    self.push(Inst::new(place.mov_masked(), place.register(), a, 0, 0));
                }
                frame.registers.release(mark);
            }
            Node::Store { buffer, index, value } => {
                let mark = frame.registers.mark();
                let code = store_code(self.element(*buffer)?);
                let a = self.expr(frame, index)?;
                let b = self.expr(frame, value)?;
                self.push(Inst::new(code, 0, a, b, buffer.0 as u16));
                frame.registers.release(mark);
            }
            Node::Atomic(atomic) => self.atomic(frame, atomic)?,
            Node::Subgroup(subgroup) => self.subgroup(frame, subgroup)?,
            Node::If { condition, then, otherwise } => self.if_(frame, condition, then, otherwise)?,
            Node::Switch { selector, cases, default } => self.switch(frame, selector, cases, default)?,
            Node::For { var, start, end, step, body } => {
                self.for_(frame, *var, (start, end, *step), body)?;
            }
            Node::While { condition, body } => self.while_(frame, condition, body)?,
            Node::Break => {
                let innermost = frame
                    .loops
                    .last()
                    .copied()
                    .ok_or(LowerError::Invalid { what: "`break` is outside of a loop" })?;
                self.clear(innermost.lanes);
                self.clear_round(innermost);
                frame.loop_leaves += 1;
                return Ok(self.leave(frame));
            }
            Node::Continue => {
                let innermost = frame
                    .loops
                    .last()
                    .copied()
                    .ok_or(LowerError::Invalid { what: "`continue` is outside of a loop" })?;
                self.clear_round(innermost);
                frame.loop_leaves += 1;
                return Ok(self.leave(frame));
            }
            Node::Return(values) => {
                self.return_(frame, values)?;
                return Ok(self.leave(frame));
            }
            Node::Block(nodes) => return self.scope(frame, nodes),
            Node::WorkgroupBarrier => {
                self.suspends = true;
                self.push(Inst::new(Code::WorkgroupBarrier, 0, 0, 0, 0));
            }
            Node::GridBarrier => {
                self.suspends = true;
                self.grid_barriers = true;
                self.push(Inst::new(Code::GridBarrier, 0, 0, 0, 0));
            }
            Node::Trap(code) => {
                let mark = frame.registers.mark();
                let a = self.expr(frame, code)?;
                self.push(Inst::new(Code::Trap, 0, a, 0, 0));
                frame.registers.release(mark);
                frame.may_trap = true;
                frame.escapes += 1;
                return Ok(self.leave(frame));
            }
            Node::Call { results, function, args } => {
                let missing = LowerError::Invalid { what: "a function is called before it is lowered" };
                let callee = self.functions.get(function).cloned().ok_or(missing)?;
                for (arg, param) in args.iter().zip(&callee.params) {
                    self.expr_into(frame, arg, *param)?;
                }
                self.push(Inst::new(Code::Call, callee.return_address, 0, 0, 0).with(callee.start));
                if callee.may_trap {
                    frame.may_trap = true;
                    frame.escapes += 1;
                    let at = self.push(Inst::new(Code::JumpIfNone, 0, 0, 0, 0));
                    self.pend(frame, at);
                }
                for (var, result) in results.iter().zip(callee.results) {
                    // The frame of the callee is overwritten by its next call.
                    let place = frame.registers.place(frame.local_type(*var)?)?;
                    self.copy(place, result);
                    frame.define(*var, place)?;
                }
            }
            Node::CallExternal(call) => self.call_external(frame, call)?,
        }
        Ok(Flow::Continues)
    }

    fn call_external(
        &mut self,
        frame: &mut Frame<'p>,
        call: &vyre_foundation::ExternalCall,
    ) -> Result<(), LowerError> {
        self.suspends = true;
        let mut results = Vec::new();
        for &var in &call.results {
            let ty = frame.local_type(var)?;
            let place = frame.registers.place(ty)?;
            frame.define(var, place)?;
            results.push((place, ty));
        }
        let mark = frame.registers.mark();
        let mut args = Vec::new();
        for arg in &call.args {
            let ty = self.type_of(frame, arg)?;
            let place = frame.registers.place(ty)?;
            self.expr_into(frame, arg, place)?;
            args.push((place, ty));
        }
        let at = self.calls.len() as u32;
        let buffers = call.buffers.iter().map(|buffer| buffer.0 as usize).collect();
        self.calls.push(ExternalCall { external: call.external.0 as usize, args, buffers, results });
        self.push(Inst::new(Code::External, 0, 0, 0, 0).with(at));
        frame.registers.release(mark);
        Ok(())
    }

    fn copy(&mut self, to: Place, from: Place) {
        let code = match to {
            Place::Word(_) => Code::MovW,
            Place::Long(_) => Code::MovL,
            Place::Mask(_) => Code::MovM,
        };
        self.push(Inst::new(code, to.register(), from.register(), 0, 0));
    }

    fn define(&mut self, frame: &mut Frame<'p>, var: VarId, value: &Expr) -> Result<(), LowerError> {
        if !frame.is_mutable(var)
            && let Some(place) = self.unchanging(frame, value)?
        {
            return frame.define(var, place);
        }
        let place = frame.registers.place(frame.local_type(var)?)?;
        self.expr_into(frame, value, place)?;
        frame.define(var, place)
    }

    /// The register that holds the value for as long as it is in scope, if one does.
    fn unchanging(&mut self, frame: &Frame<'p>, value: &Expr) -> Result<Option<Place>, LowerError> {
        let mut inner = value;
        while let Expr::Bitcast { value, .. } | Expr::Cast { value, .. } = inner {
            inner = value;
        }
        match inner {
            Expr::Var(var) if frame.is_mutable(*var) => Ok(None),
            _ => self.held(frame, value),
        }
    }

    fn atomic(&mut self, frame: &mut Frame<'p>, atomic: &Atomic) -> Result<(), LowerError> {
        let element = self.element(atomic.buffer)?;
        let wide = element == DataType::U64;
        let result = match atomic.result {
            Some(var) => {
                let place = frame.registers.place(element.scalar())?;
                frame.define(var, place)?;
                Some(place.register())
            }
            None => None,
        };
        let mark = frame.registers.mark();
        let d = match result {
            Some(register) => register,
            None if wide => frame.registers.long()?,
            None => frame.registers.word()?,
        };
        let ordering = match atomic.ordering {
            MemoryOrdering::Relaxed => 0,
            MemoryOrdering::Acquire => 1,
            MemoryOrdering::Release => 2,
            MemoryOrdering::AcqRel => 3,
        };
        let buffer = atomic.buffer.0 as usize;
        let word = |op| AtomicWord { op, signed: element == DataType::I32, ordering, buffer }.pack();
        let a = self.expr(frame, &atomic.index)?;
        let inst = match &atomic.op {
            AtomicOp::Load => {
                let code = if wide { Code::AtomicLoadL } else { Code::AtomicLoadW };
                Inst::new(code, d, a, 0, 0).with(word(RmwOp::Exchange))
            }
            AtomicOp::Store(value) => {
                let b = self.expr(frame, value)?;
                let code = if wide { Code::AtomicStoreL } else { Code::AtomicStoreW };
                Inst::new(code, 0, a, b, 0).with(word(RmwOp::Exchange))
            }
            AtomicOp::Rmw(op, value) => {
                let b = self.expr(frame, value)?;
                let code = if wide { Code::RmwL } else { Code::RmwW };
                Inst::new(code, d, a, b, 0).with(word(*op))
            }
            AtomicOp::CompareExchange { expected, replacement } => {
                let b = self.expr(frame, expected)?;
                let c = self.expr(frame, replacement)?;
                let code = if wide { Code::CompareExchangeL } else { Code::CompareExchangeW };
                Inst::new(code, d, a, b, c).with(word(RmwOp::Exchange))
            }
        };
        self.push(inst);
        frame.registers.release(mark);
        Ok(())
    }

    fn if_(
        &mut self,
        frame: &mut Frame<'p>,
        condition: &Expr,
        then: &'p [Node],
        otherwise: &'p [Node],
    ) -> Result<(), LowerError> {
        let mark = frame.registers.mark();
        let before = frame.leaves();
        let saved = frame.registers.mask()?;
        let other = frame.registers.mask()?;
        let a = self.expr(frame, condition)?;
        if otherwise.is_empty() {
            let split = self.push(Inst::new(Code::If, saved, a, 0, 0));
            self.construct(frame, then)?;
            self.meet(frame, saved, before)?;
            self.set_target(split);
        } else {
            let split = self.push(Inst::new(Code::IfElse, saved, a, other, 0));
            self.construct(frame, then)?;
            let turn = self.push(Inst::new(Code::Else, 0, 0, other, 0));
            self.set_target(split);
            self.construct(frame, otherwise)?;
            self.set_target(turn);
            self.meet(frame, saved, before)?;
        }
        frame.registers.release(mark);
        Ok(())
    }

    fn switch(
        &mut self,
        frame: &mut Frame<'p>,
        selector: &Expr,
        cases: &'p [SwitchCase],
        default: &'p [Node],
    ) -> Result<(), LowerError> {
        let mark = frame.registers.mark();
        let before = frame.leaves();
        let saved = frame.registers.mask()?;
        let rest = frame.registers.mask()?;
        let targets = frame.registers.word()?;
        let a = self.expr(frame, selector)?;
        let table = self.tables.len() as u32;
        self.tables.push(SwitchTable::default());
        self.push(Inst::new(Code::SaveExec, saved, 0, 0, 0));
        self.push(Inst::new(Code::Switch, targets, a, rest, 0).with(table));
        let mut built = SwitchTable::default();
        let next = Inst::new(Code::SwitchNext, 0, targets, rest, 0).with(table);
        for case in cases {
            let here = self.here();
            built.cases.extend(case.values.iter().map(|&value| (value, here)));
            self.construct(frame, &case.body)?;
            self.push(next);
        }
        built.default = self.here();
        self.construct(frame, default)?;
        self.push(next);
        built.end = self.here();
        built.cases.sort_unstable();
        if let Some(slot) = self.tables.get_mut(table as usize) {
            *slot = built;
        }
        self.meet(frame, saved, before)?;
        frame.registers.release(mark);
        Ok(())
    }

    fn for_(
        &mut self,
        frame: &mut Frame<'p>,
        var: VarId,
        (start, end, step): (&Expr, &Expr, u32),
        body: &'p [Node],
    ) -> Result<(), LowerError> {
        let mark = frame.registers.mark();
        let counter = frame.registers.place(ScalarType::U32)?;
        let bound = match self.unchanging(frame, end)? {
            Some(place) => place,
            None => {
                let place = frame.registers.place(ScalarType::U32)?;
                self.expr_into(frame, end, place)?;
                place
            }
        };
        self.expr_into(frame, start, counter)?;
        frame.define(var, counter)?;
        let step = self.pooled(Pooled::Word(step))?;
        let (saved, lanes) = (frame.registers.mask()?, frame.registers.mask()?);
        self.push(Inst::new(Code::Enter, saved, 0, lanes, 0));
        let (counter, bound) = (counter.register(), bound.register());
        let test = self.push(Inst::new(Code::ForTest, 0, counter, bound, lanes));
        let again = self.here();
        let escapes = self.round(frame, lanes, body)?;
        self.push(Inst::new(Code::ForNext, counter, step.register(), bound, lanes).with(again));
        self.set_target(test);
        self.meet(frame, saved, escapes)?;
        frame.registers.release(mark);
        Ok(())
    }

    fn while_(
        &mut self,
        frame: &mut Frame<'p>,
        condition: &Expr,
        body: &'p [Node],
    ) -> Result<(), LowerError> {
        let mark = frame.registers.mark();
        let (saved, lanes) = (frame.registers.mask()?, frame.registers.mask()?);
        self.push(Inst::new(Code::Enter, saved, 0, lanes, 0));
        let again = self.here();
        let temporaries = frame.registers.mark();
        let a = self.expr(frame, condition)?;
        frame.registers.release(temporaries);
        let test = self.push(Inst::new(Code::WhileTest, 0, a, lanes, 0));
        let escapes = self.round(frame, lanes, body)?;
        self.push(Inst::new(Code::LoopBack, 0, 0, lanes, 0).with(again));
        self.set_target(test);
        self.meet(frame, saved, escapes)?;
        frame.registers.release(mark);
        Ok(())
    }

    /// A loop's body. What leaves the loop alone does not count for what is around it.
    fn round(&mut self, frame: &mut Frame<'p>, lanes: u16, body: &'p [Node]) -> Result<Leaves, LowerError> {
        let before = frame.leaves();
        let round = if continues(body) { Some(frame.registers.mask()?) } else { None };
        if let Some(round) = round {
            self.push(Inst::new(Code::SaveExec, round, 0, 0, 0));
        }
        frame.loops.push(Loop { lanes, round });
        self.construct(frame, body)?;
        frame.loops.pop();
        frame.loop_leaves = before.of_loop;
        Ok(before)
    }

    fn return_(&mut self, frame: &mut Frame<'p>, values: &[Expr]) -> Result<(), LowerError> {
        let mark = frame.registers.mark();
        for (value, place) in values.iter().zip(frame.results.clone()) {
            let a = self.expr(frame, value)?;
            self.push(Inst::new(place.mov_masked(), place.register(), a, 0, 0));
        }
        frame.registers.release(mark);
        // At the end of the function's own block everybody who is left returns, and nobody asks any more.
        if frame.constructs.len() > 1 {
            frame.escapes += 1;
            if frame.entry {
                self.push(Inst::new(Code::EndLanes, 0, 0, 0, 0));
            } else {
                for open in frame.loops.clone() {
                    self.clear(open.lanes);
                    self.clear_round(open);
                }
                if let Some(live) = frame.live {
                    self.clear(live);
                }
            }
        }
        Ok(())
    }

    /// Activates the lanes that came to a split and have not left since.
    fn meet(&mut self, frame: &mut Frame<'p>, saved: u16, before: Leaves) -> Result<(), LowerError> {
        if frame.leaves() == before {
            self.push(Inst::new(Code::EndIf, 0, saved, 0, 0));
            return Ok(());
        }
        let innermost = frame.loops.last().map(|open| open.round.unwrap_or(open.lanes));
        let live = match innermost.or(frame.live) {
            Some(live) => live,
            None => self.pooled(Pooled::Mask(ALL_LANES))?.register(),
        };
        let at = self.push(Inst::new(Code::Restore, 0, saved, live, 0));
        self.pend(frame, at);
        Ok(())
    }

    fn leave(&mut self, frame: &mut Frame<'p>) -> Flow {
        let at = self.push(Inst::new(Code::Jump, 0, 0, 0, 0));
        self.pend(frame, at);
        Flow::Ends
    }

    /// The instruction will go to the end of the innermost construct.
    fn pend(&mut self, frame: &mut Frame<'p>, at: usize) {
        if let Some(jumps) = frame.constructs.last_mut() {
            jumps.push(at);
        }
    }

    fn clear(&mut self, mask: u16) {
        self.push(Inst::new(Code::ClearM, mask, 0, 0, 0));
    }

    fn clear_round(&mut self, open: Loop) {
        if let Some(round) = open.round {
            self.clear(round);
        }
    }
}

impl Frame<'_> {
    fn leaves(&self) -> Leaves {
        Leaves { of_loop: self.loop_leaves, escapes: self.escapes }
    }
}

/// Whether a `continue` belongs to the loop whose body this is.
fn continues(body: &[Node]) -> bool {
    body.iter().any(|node| match node {
        Node::Continue => true,
        Node::If { then, otherwise, .. } => continues(then) || continues(otherwise),
        Node::Switch { cases, default, .. } => {
            continues(default) || cases.iter().any(|case| continues(&case.body))
        }
        Node::Block(body) => continues(body),
        _ => false,
    })
}

/// The functions called in a body, some perhaps more than once.
pub(super) fn callees(body: &[Node], into: &mut Vec<FunctionId>) {
    for node in body {
        match node {
            Node::Call { function, .. } => into.push(*function),
            Node::If { then, otherwise, .. } => {
                callees(then, into);
                callees(otherwise, into);
            }
            Node::Switch { cases, default, .. } => {
                callees(default, into);
                for case in cases {
                    callees(&case.body, into);
                }
            }
            Node::Block(body) | Node::For { body, .. } | Node::While { body, .. } => callees(body, into),
            _ => {}
        }
    }
}
