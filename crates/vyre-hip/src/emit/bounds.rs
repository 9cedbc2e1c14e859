//! Which indices are in range by what is written: cheap facts, no solver.

use std::collections::BTreeMap;

use vyre_foundation::{
    BinaryOp, BufferId, Builtin, DataType, Expr, Function, Literal, MemorySpace, Program, ScalarType, VarId,
};

/// What is known about immutable locals at a statement.
#[derive(Default)]
pub(super) struct Bounds {
    /// The greatest value of a local, by its definition.
    defined: BTreeMap<VarId, u32>,
    /// A local that is the length of a buffer.
    is_len: BTreeMap<VarId, BufferId>,
    /// The greatest value of a local, by what encloses the statement.
    at_most: Vec<(VarId, u32)>,
    /// A local below the length of a buffer, by what encloses the statement.
    below_len: Vec<(VarId, BufferId)>,
}

/// How much was known at some point.
pub(super) struct Mark(usize, usize);

pub(super) struct Scope<'p> {
    pub(super) program: &'p Program,
    pub(super) function: &'p Function,
}

impl Bounds {
    /// Facts that are learnt later hold until [`Bounds::forget`].
    pub(super) fn mark(&self) -> Mark {
        Mark(self.at_most.len(), self.below_len.len())
    }

    pub(super) fn forget(&mut self, mark: &Mark) {
        self.at_most.truncate(mark.0);
        self.below_len.truncate(mark.1);
    }

    /// Learns from a definition, which holds wherever the local is visible.
    pub(super) fn define(&mut self, scope: &Scope<'_>, var: VarId, value: &Expr) {
        if !immutable(scope.function, var) {
            return;
        }
        if let Some(most) = self.most(scope, value) {
            self.defined.insert(var, most);
        }
        if let Some(buffer) = self.length(value) {
            self.is_len.insert(var, buffer);
        }
    }

    /// Learns from a loop: its counter is below its end, in the body.
    pub(super) fn count(&mut self, scope: &Scope<'_>, var: VarId, end: &Expr) {
        self.less(scope, &Expr::Var(var), end);
    }

    /// Learns from a condition that holds.
    pub(super) fn assume(&mut self, scope: &Scope<'_>, condition: &Expr) {
        let Expr::Binary { op, left, right } = condition else { return };
        match op {
            BinaryOp::And => {
                self.assume(scope, left);
                self.assume(scope, right);
            }
            BinaryOp::Lt => self.less(scope, left, right),
            BinaryOp::Gt => self.less(scope, right, left),
            _ => {}
        }
    }

    fn less(&mut self, scope: &Scope<'_>, lesser: &Expr, greater: &Expr) {
        let Expr::Var(var) = lesser else { return };
        // Only the unsigned comparison says something about indices, and only what cannot change stays known.
        let local = scope.function.locals.get(var.0 as usize);
        if !local.is_some_and(|local| local.ty == ScalarType::U32 && !local.mutable) {
            return;
        }
        if let Some(buffer) = self.length(greater) {
            self.below_len.push((*var, buffer));
        }
        if let Some(most) = self.most(scope, greater).and_then(|most| most.checked_sub(1)) {
            self.at_most.push((*var, most));
        }
    }

    fn length(&self, value: &Expr) -> Option<BufferId> {
        match value {
            Expr::BufferLen(buffer) => Some(*buffer),
            Expr::Var(var) => self.is_len.get(var).copied(),
            _ => None,
        }
    }

    /// Whether an index is surely below a buffer's length.
    pub(super) fn in_range(&self, scope: &Scope<'_>, buffer: BufferId, index: &Expr) -> bool {
        if let Expr::Var(var) = index
            && self.below_len.contains(&(*var, buffer))
        {
            return true;
        }
        let len = scope.program.buffers.get(buffer.0 as usize).map_or(0, |decl| decl.len);
        self.most(scope, index).is_some_and(|most| most < len)
    }

    /// The greatest value of a `u32`, where it is known.
    fn most(&self, scope: &Scope<'_>, value: &Expr) -> Option<u32> {
        match value {
            Expr::Literal(Literal::U32(value)) => Some(*value),
            Expr::Var(var) => {
                let assumed = self.at_most.iter().filter(|(known, _)| known == var).map(|(_, most)| most);
                assumed.chain(self.defined.get(var)).min().copied()
            }
            Expr::Builtin(Builtin::LocalId(axis)) => {
                scope.program.workgroup_size.get(axis.index()).and_then(|size| size.checked_sub(1))
            }
            Expr::Builtin(Builtin::WorkgroupSize(axis)) => {
                scope.program.workgroup_size.get(axis.index()).copied()
            }
            Expr::BufferLen(buffer) => {
                let decl = scope.program.buffers.get(buffer.0 as usize)?;
                (decl.space == MemorySpace::Workgroup).then_some(decl.len)
            }
            Expr::Load { buffer, .. } => match scope.program.buffers.get(buffer.0 as usize)?.element {
                DataType::U8 => Some(0xff),
                DataType::U16 => Some(0xffff),
                _ => None,
            },
            Expr::Binary { op, left, right } => {
                let (left_most, right_most) = (self.most(scope, left), self.most(scope, right));
                match op {
                    BinaryOp::Add => left_most?.checked_add(right_most?),
                    BinaryOp::Mul => left_most?.checked_mul(right_most?),
                    // A divisor of zero yields zero, and a remainder by zero the dividend.
                    BinaryOp::Div => left_most,
                    BinaryOp::Rem => match **right {
                        Expr::Literal(Literal::U32(by)) if by > 0 => Some(by - 1),
                        _ => left_most,
                    },
                    BinaryOp::And | BinaryOp::Min => [left_most, right_most].into_iter().flatten().min(),
                    BinaryOp::Shr => left_most,
                    _ => None,
                }
            }
            Expr::Select { if_true, if_false, .. } => {
                Some(self.most(scope, if_true)?.max(self.most(scope, if_false)?))
            }
            _ => None,
        }
    }
}

fn immutable(function: &Function, var: VarId) -> bool {
    function.locals.get(var.0 as usize).is_some_and(|local| !local.mutable)
}
