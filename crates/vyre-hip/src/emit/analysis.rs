//! What is known about functions before they are written: where loops are, and who may leave early.

use std::collections::BTreeSet;

use vyre_foundation::{AtomicOp, Expr, FunctionId, Literal, Node, ValidatedProgram, VarId};

/// Rounds of a loop with constant bounds that are run without a look at the clock.
const UNPOLLED_ROUNDS: u32 = 64;

/// How a `for` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoopForm {
    /// Few rounds of no loops: as it stands.
    Plain,
    /// No loops inside: chunks that run without polls.
    Chunked,
    /// A poll in every round.
    Polled,
}

/// What is known about each function.
#[derive(Debug, Default)]
pub(super) struct Analysis {
    functions: Vec<Summary>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Summary {
    /// Whether it has a loop, or calls one that has.
    loops: bool,
    /// Whether it may end the invocation: by a trap, or because a loop is cut short.
    leaves: bool,
}

impl Analysis {
    pub(super) fn new(program: &ValidatedProgram) -> Analysis {
        let functions = &program.program().functions;
        let mut analysis = Analysis { functions: vec![Summary::default(); functions.len()] };
        // Callees come first.
        for &id in &program.facts().call_order {
            let Some(function) = functions.get(id.0 as usize) else { continue };
            let summary = analysis.summarize(&function.body);
            if let Some(slot) = analysis.functions.get_mut(id.0 as usize) {
                *slot = summary;
            }
        }
        analysis
    }

    fn summarize(&self, body: &[Node]) -> Summary {
        let mut summary = Summary::default();
        walk(body, &mut |node| match node {
            Node::For { start, end, step, body, .. } => {
                summary.loops = true;
                summary.leaves |= self.form(start, end, *step, body) != LoopForm::Plain;
            }
            Node::While { .. } | Node::CallExternal(_) => summary = Summary { loops: true, leaves: true },
            Node::Trap(_) => summary.leaves = true,
            Node::Call { function, .. } => {
                let callee = self.of(*function);
                summary.loops |= callee.loops;
                summary.leaves |= callee.leaves;
            }
            _ => {}
        });
        summary
    }

    fn of(&self, function: FunctionId) -> Summary {
        self.functions.get(function.0 as usize).copied().unwrap_or_default()
    }

    /// Whether a function may end the invocation.
    pub(super) fn leaves(&self, function: FunctionId) -> bool {
        self.of(function).leaves
    }

    /// Whether statements may end the invocation.
    pub(super) fn leaves_within(&self, body: &[Node]) -> bool {
        self.summarize(body).leaves
    }

    /// How a `for` is written.
    pub(super) fn form(&self, start: &Expr, end: &Expr, step: u32, body: &[Node]) -> LoopForm {
        if self.summarize(body).loops {
            return LoopForm::Polled;
        }
        match (start, end) {
            (Expr::Literal(Literal::U32(start)), Expr::Literal(Literal::U32(end)))
                if end.saturating_sub(*start).div_ceil(step.max(1)) <= UNPOLLED_ROUNDS =>
            {
                LoopForm::Plain
            }
            _ => LoopForm::Chunked,
        }
    }
}

/// Visits every statement, those in blocks included.
pub(super) fn walk<'n>(nodes: &'n [Node], visit: &mut impl FnMut(&'n Node)) {
    for node in nodes {
        visit(node);
        match node {
            Node::If { then, otherwise, .. } => {
                walk(then, visit);
                walk(otherwise, visit);
            }
            Node::Switch { cases, default, .. } => {
                cases.iter().for_each(|case| walk(&case.body, visit));
                walk(default, visit);
            }
            Node::For { body, .. } | Node::While { body, .. } | Node::Block(body) => walk(body, visit),
            _ => {}
        }
    }
}

/// The locals that statements read or assign.
pub(super) fn used(nodes: &[Node]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    walk(nodes, &mut |node| {
        if let Node::Assign { var, .. } = node {
            found.insert(var.0);
        }
        values(node, &mut |expr| variables(expr, &mut found));
    });
    found
}

/// The buffers that statements load from, atomics apart.
pub(super) fn loaded(nodes: &[Node]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    walk(nodes, &mut |node| {
        values(node, &mut |expr| {
            visit(expr, &mut |expr| {
                if let Expr::Load { buffer, .. } = expr {
                    found.insert(buffer.0);
                }
            });
        });
    });
    found
}

/// The locals that statements assign.
pub(super) fn assigned(nodes: &[Node]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    walk(nodes, &mut |node| {
        if let Node::Assign { var, .. } = node {
            found.insert(var.0);
        }
    });
    found
}

/// The locals that one statement defines for those behind it.
pub(super) fn defined(node: &Node) -> Vec<VarId> {
    match node {
        Node::Let { var, .. } => vec![*var],
        Node::Atomic(atomic) => atomic.result.into_iter().collect(),
        Node::Subgroup(subgroup) => vec![subgroup.result],
        Node::Call { results, .. } => results.clone(),
        Node::CallExternal(call) => call.results.clone(),
        _ => Vec::new(),
    }
}

/// The expressions directly in a statement.
fn values<'n>(node: &'n Node, visit: &mut impl FnMut(&'n Expr)) {
    match node {
        Node::Let { value, .. } | Node::Assign { value, .. } => visit(value),
        Node::Store { index, value, .. } => {
            visit(index);
            visit(value);
        }
        Node::Atomic(atomic) => {
            visit(&atomic.index);
            match &atomic.op {
                AtomicOp::Load => {}
                AtomicOp::Store(value) | AtomicOp::Rmw(_, value) => visit(value),
                AtomicOp::CompareExchange { expected, replacement } => {
                    visit(expected);
                    visit(replacement);
                }
            }
        }
        Node::If { condition, .. } | Node::While { condition, .. } => visit(condition),
        Node::Switch { selector, .. } => visit(selector),
        Node::For { start, end, .. } => {
            visit(start);
            visit(end);
        }
        Node::Subgroup(subgroup) => {
            visit(&subgroup.value);
            subgroup.op.operand().into_iter().for_each(visit);
        }
        Node::CallExternal(call) => call.args.iter().for_each(visit),
        Node::Return(values) => values.iter().for_each(visit),
        Node::Trap(code) => visit(code),
        Node::Call { args, .. } => args.iter().for_each(visit),
        Node::Break | Node::Continue | Node::Block(_) | Node::WorkgroupBarrier | Node::GridBarrier => {}
    }
}

fn variables(expr: &Expr, found: &mut BTreeSet<u32>) {
    visit(expr, &mut |expr| {
        if let Expr::Var(var) = expr {
            found.insert(var.0);
        }
    });
}

/// Visits an expression and all in it.
fn visit<'n>(expr: &'n Expr, seen: &mut impl FnMut(&'n Expr)) {
    seen(expr);
    match expr {
        Expr::Var(_) | Expr::Literal(_) | Expr::BufferLen(_) | Expr::Builtin(_) => {}
        Expr::Load { index: value, .. }
        | Expr::Unary { value, .. }
        | Expr::Cast { value, .. }
        | Expr::Bitcast { value, .. } => visit(value, seen),
        Expr::Binary { left, right, .. } => {
            visit(left, seen);
            visit(right, seen);
        }
        Expr::Select { condition: a, if_true: b, if_false: c } | Expr::Fma { a, b, c } => {
            [a, b, c].into_iter().for_each(|value| visit(value, seen));
        }
    }
}
