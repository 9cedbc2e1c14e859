//! Size and nesting, measured without recursion: what passes here may be walked recursively.

use super::error::{Location, ValidationErrorKind};
use super::report::{Report, Step, at};
use crate::depth::operands;
use crate::ir::{Atomic, AtomicOp, Expr, Function, Node, Program};
use crate::limits::{MAX_NESTING, MAX_NODES};

/// Counts the nodes of each function, the entry last. `None` where a limit is exceeded.
pub(super) fn measure(program: &Program, report: &mut Report) -> Option<Vec<u64>> {
    let mut total = 0_u64;
    let mut sizes = Vec::with_capacity(program.functions.len() + 1);
    let functions = program.functions.iter().map(|function| (function, false));
    for (function, entry) in functions.chain([(&program.entry, true)]) {
        let before = total;
        for (index, node) in function.body.iter().enumerate() {
            if let Err(kind) = measure_node(node, &mut total) {
                report.add(|| place(function, entry, index, &kind), kind.clone());
                return None;
            }
        }
        sizes.push(total - before);
    }
    Some(sizes)
}

fn place(function: &Function, entry: bool, index: usize, kind: &ValidationErrorKind) -> Location {
    match kind {
        ValidationErrorKind::Limit { what: TOO_MANY, .. } => Location::Program,
        _ => at(function, entry, &[Step::Body(index)]),
    }
}

const TOO_MANY: &str = "statements and expressions";

enum Part<'p> {
    Node(&'p Node),
    Expr(&'p Expr),
}

fn measure_node(node: &Node, total: &mut u64) -> Result<(), ValidationErrorKind> {
    let mut pending = vec![(Part::Node(node), 1_usize)];
    while let Some((part, depth)) = pending.pop() {
        if depth > MAX_NESTING {
            return Err(ValidationErrorKind::Limit {
                what: "statements and expressions enclose one another",
                count: depth as u64,
                limit: MAX_NESTING as u64,
                remedy: "bind parts of the expression to locals, or move blocks into functions",
            });
        }
        let mut size = 1;
        let mut inside = |part| pending.push((part, depth + 1));
        match part {
            Part::Node(node) => size += children(node, &mut inside),
            Part::Expr(expr) => operands(expr).for_each(|expr| inside(Part::Expr(expr))),
        }
        *total += size;
        if *total > MAX_NODES {
            return Err(ValidationErrorKind::Limit {
                what: TOO_MANY,
                count: *total,
                limit: MAX_NODES,
                remedy: "split the program",
            });
        }
    }
    Ok(())
}

/// Visits everything directly inside a statement; the number returned is that of its switch values.
fn children<'p>(node: &'p Node, visit: &mut impl FnMut(Part<'p>)) -> u64 {
    let block = |nodes: &'p [Node], visit: &mut dyn FnMut(Part<'p>)| {
        nodes.iter().for_each(|node| visit(Part::Node(node)));
    };
    match node {
        Node::Let { value, .. } | Node::Assign { value, .. } | Node::Trap(value) => visit(Part::Expr(value)),
        Node::Store { index, value, .. } => {
            visit(Part::Expr(index));
            visit(Part::Expr(value));
        }
        Node::Atomic(Atomic { op, index, .. }) => {
            visit(Part::Expr(index));
            match op {
                AtomicOp::Load => {}
                AtomicOp::Store(value) | AtomicOp::Rmw(_, value) => visit(Part::Expr(value)),
                AtomicOp::CompareExchange { expected, replacement } => {
                    visit(Part::Expr(expected));
                    visit(Part::Expr(replacement));
                }
            }
        }
        Node::Subgroup(subgroup) => {
            visit(Part::Expr(&subgroup.value));
            subgroup.op.operand().into_iter().for_each(|operand| visit(Part::Expr(operand)));
        }
        Node::If { condition, then, otherwise } => {
            visit(Part::Expr(condition));
            block(then, visit);
            block(otherwise, visit);
        }
        Node::Switch { selector, cases, default } => {
            visit(Part::Expr(selector));
            cases.iter().for_each(|case| block(&case.body, visit));
            block(default, visit);
            return cases.iter().map(|case| case.values.len() as u64).sum();
        }
        Node::For { start, end, body, .. } => {
            visit(Part::Expr(start));
            visit(Part::Expr(end));
            block(body, visit);
        }
        Node::While { condition, body } => {
            visit(Part::Expr(condition));
            block(body, visit);
        }
        Node::Block(body) => block(body, visit),
        Node::Return(values) | Node::Call { args: values, .. } => {
            values.iter().for_each(|value| visit(Part::Expr(value)));
        }
        Node::CallExternal(call) => call.args.iter().for_each(|value| visit(Part::Expr(value))),
        Node::Break | Node::Continue | Node::WorkgroupBarrier | Node::GridBarrier => {}
    }
    0
}
