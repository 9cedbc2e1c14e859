//! What the compiler would write with a recursion as deep as the IR is, without one: dropping and cloning.
//!
//! A program is taken apart, and copied, by whoever built it, before anybody has checked how deep it is. A
//! thread's stack ends near 100,000 levels, and with it the process.

use crate::ir::{Expr, Node, SwitchCase};
use crate::types::Literal;

/// Stands where an operand or a statement was moved out, or is about to be filled in.
const NO_EXPR: Expr = Expr::Literal(Literal::Bool(false));
const NO_NODE: Node = Node::Break;

/// What is directly inside an expression or a statement, by shared and by exclusive reference.
macro_rules! parts {
    ($operands:ident, $blocks:ident $(, $mutable:ident)?) => {
        /// The operands of an expression.
        pub(crate) fn $operands(expr: &$($mutable)? Expr) -> impl Iterator<Item = &$($mutable)? Expr> {
            let operands: [Option<&$($mutable)? Expr>; 3] = match expr {
                Expr::Literal(_) | Expr::Var(_) | Expr::BufferLen(_) | Expr::Builtin(_) => [None, None, None],
                Expr::Load { index: value, .. }
                | Expr::Unary { value, .. }
                | Expr::Cast { value, .. }
                | Expr::Bitcast { value, .. } => [Some(value), None, None],
                Expr::Binary { left, right, .. } => [Some(left), Some(right), None],
                Expr::Select { condition: a, if_true: b, if_false: c } | Expr::Fma { a, b, c } => {
                    [Some(a), Some(b), Some(c)]
                }
            };
            operands.into_iter().flatten()
        }

        /// The blocks of a statement.
        fn $blocks<'n>(node: &'n $($mutable)? Node, visit: &mut dyn FnMut(&'n $($mutable)? Vec<Node>)) {
            match node {
                Node::If { then, otherwise, .. } => {
                    visit(then);
                    visit(otherwise);
                }
                Node::Switch { cases, default, .. } => {
                    for case in cases {
                        visit(&$($mutable)? case.body);
                    }
                    visit(default);
                }
                Node::For { body, .. } | Node::While { body, .. } | Node::Block(body) => visit(body),
                Node::Let { .. }
                | Node::Assign { .. }
                | Node::Store { .. }
                | Node::Atomic(_)
                | Node::Subgroup(_)
                | Node::Break
                | Node::Continue
                | Node::Return(_)
                | Node::WorkgroupBarrier
                | Node::GridBarrier
                | Node::Trap(_)
                | Node::Call { .. }
                | Node::CallExternal(_) => {}
            }
        }
    };
}

parts!(operands, blocks);
parts!(operands_mut, blocks_mut, mut);

impl Drop for Expr {
    fn drop(&mut self) {
        let mut pending = Vec::new();
        detach_operands(self, &mut pending);
        while let Some(mut expr) = pending.pop() {
            detach_operands(&mut expr, &mut pending);
        }
    }
}

/// Moves out the operands that have operands themselves; the compiler's drop does the rest.
fn detach_operands(expr: &mut Expr, pending: &mut Vec<Expr>) {
    let deep = operands_mut(expr).filter(|operand| operands(operand).next().is_some());
    pending.extend(deep.map(|operand| std::mem::replace(operand, NO_EXPR)));
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut pending = Vec::new();
        detach_blocks(self, &mut pending);
        while let Some(mut block) = pending.pop() {
            block.iter_mut().for_each(|node| detach_blocks(node, &mut pending));
        }
    }
}

fn detach_blocks(node: &mut Node, pending: &mut Vec<Vec<Node>>) {
    blocks_mut(node, &mut |block| {
        if !block.is_empty() {
            pending.push(std::mem::take(block));
        }
    });
}

impl Clone for Expr {
    fn clone(&self) -> Expr {
        let mut copy = NO_EXPR;
        let mut pending = vec![(self, &mut copy)];
        while let Some((from, to)) = pending.pop() {
            *to = without_operands(from);
            pending.extend(operands(from).zip(operands_mut(to)));
        }
        copy
    }
}

fn without_operands(expr: &Expr) -> Expr {
    let hole = || Box::new(NO_EXPR);
    match *expr {
        Expr::Literal(value) => Expr::Literal(value),
        Expr::Var(var) => Expr::Var(var),
        Expr::Load { buffer, .. } => Expr::Load { buffer, index: hole() },
        Expr::BufferLen(buffer) => Expr::BufferLen(buffer),
        Expr::Builtin(builtin) => Expr::Builtin(builtin),
        Expr::Unary { op, .. } => Expr::Unary { op, value: hole() },
        Expr::Binary { op, .. } => Expr::Binary { op, left: hole(), right: hole() },
        Expr::Select { .. } => Expr::Select { condition: hole(), if_true: hole(), if_false: hole() },
        Expr::Cast { to, .. } => Expr::Cast { to, value: hole() },
        Expr::Bitcast { to, .. } => Expr::Bitcast { to, value: hole() },
        Expr::Fma { .. } => Expr::Fma { a: hole(), b: hole(), c: hole() },
    }
}

impl Clone for Node {
    fn clone(&self) -> Node {
        let mut copy = NO_NODE;
        let mut pending = vec![(self, &mut copy)];
        while let Some((from, to)) = pending.pop() {
            *to = without_blocks(from);
            let mut sources = Vec::new();
            blocks(from, &mut |block| sources.push(block));
            let mut sources = sources.into_iter();
            blocks_mut(to, &mut |block| {
                let source = sources.next().map(Vec::as_slice).unwrap_or_default();
                block.resize_with(source.len(), || NO_NODE);
                pending.extend(source.iter().zip(block));
            });
        }
        copy
    }
}

fn without_blocks(node: &Node) -> Node {
    match node {
        Node::Let { var, value } => Node::Let { var: *var, value: value.clone() },
        Node::Assign { var, value } => Node::Assign { var: *var, value: value.clone() },
        Node::Store { buffer, index, value } => {
            Node::Store { buffer: *buffer, index: index.clone(), value: value.clone() }
        }
        Node::Atomic(atomic) => Node::Atomic(atomic.clone()),
        Node::Subgroup(subgroup) => Node::Subgroup(subgroup.clone()),
        Node::If { condition, .. } => {
            Node::If { condition: condition.clone(), then: Vec::new(), otherwise: Vec::new() }
        }
        Node::Switch { selector, cases, .. } => Node::Switch {
            selector: selector.clone(),
            cases: cases
                .iter()
                .map(|case| SwitchCase { values: case.values.clone(), body: Vec::new() })
                .collect(),
            default: Vec::new(),
        },
        Node::For { var, start, end, step, .. } => {
            Node::For { var: *var, start: start.clone(), end: end.clone(), step: *step, body: Vec::new() }
        }
        Node::While { condition, .. } => Node::While { condition: condition.clone(), body: Vec::new() },
        Node::Break => Node::Break,
        Node::Continue => Node::Continue,
        Node::Return(values) => Node::Return(values.clone()),
        Node::Block(_) => Node::Block(Vec::new()),
        Node::WorkgroupBarrier => Node::WorkgroupBarrier,
        Node::GridBarrier => Node::GridBarrier,
        Node::Trap(code) => Node::Trap(code.clone()),
        Node::Call { results, function, args } => {
            Node::Call { results: results.clone(), function: *function, args: args.clone() }
        }
        Node::CallExternal(call) => Node::CallExternal(call.clone()),
    }
}
