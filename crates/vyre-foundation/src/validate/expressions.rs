//! The types of expressions, and what may be read where.
//!
//! The types that an operation takes are not listed here a second time: they are those on which
//! [`crate::semantics`] defines it.

use super::error::ValidationErrorKind;
use super::statements::Checker;
use crate::ir::{Builtin, Expr, Granularity, ProgramKind, Subgroup, SubgroupOp};
use crate::semantics;
use crate::types::ScalarType;

impl<'p> Checker<'p, '_> {
    /// The type of an expression, or `None` where an error in it has been reported.
    pub(super) fn expr(&mut self, expr: &'p Expr) -> Option<ScalarType> {
        match expr {
            Expr::Literal(literal) => Some(literal.ty()),
            Expr::Var(var) => self.local(*var),
            Expr::Load { buffer, index } => self.load(*buffer, index),
            Expr::BufferLen(buffer) => {
                self.buffer(*buffer);
                Some(ScalarType::U32)
            }
            Expr::Builtin(builtin) => {
                self.builtin(*builtin);
                Some(ScalarType::U32)
            }
            Expr::Unary { op, value } => {
                let ty = self.expr(value)?;
                let result = semantics::unary_type(*op, ty);
                self.exists(result, || format!("{op:?}"), || ty.to_string())
            }
            Expr::Binary { op, left, right } => {
                let (left, right) = (self.expr(left), self.expr(right));
                let (left, right) = (left?, right?);
                let result = semantics::binary_type(*op, left, right);
                self.exists(result, || format!("{op:?}"), || format!("{left} and {right}"))
            }
            Expr::Select { condition, if_true, if_false } => {
                self.expect("the condition of select", condition, ScalarType::Bool);
                let (if_true, if_false) = (self.expr(if_true), self.expr(if_false));
                self.same_type("the second value of select", if_true, if_false);
                if_true.or(if_false)
            }
            Expr::Cast { to, value } => {
                self.expr(value);
                Some(*to)
            }
            Expr::Bitcast { to, value } => {
                let ty = self.expr(value)?;
                let result = semantics::bitcast_type(*to, ty);
                self.exists(result, || format!("bitcast to {to}"), || ty.to_string())
            }
            Expr::Fma { a, b, c } => {
                for operand in [a, b, c] {
                    self.expect("an operand of fma", operand, ScalarType::F32);
                }
                Some(ScalarType::F32)
            }
        }
    }

    /// Checks an expression whose type is given by its place.
    pub(super) fn expect(&mut self, what: &'static str, expr: &'p Expr, expected: ScalarType) {
        let found = self.expr(expr);
        self.same_type(what, Some(expected), found);
    }

    /// Reports two types that differ; one that is unknown has been reported already.
    pub(super) fn same_type(
        &mut self,
        what: &'static str,
        expected: Option<ScalarType>,
        found: Option<ScalarType>,
    ) {
        if let (Some(expected), Some(found)) = (expected, found)
            && expected != found
        {
            self.fail(ValidationErrorKind::Type { what: what.to_owned(), expected, found });
        }
    }

    fn exists(
        &mut self,
        result: Option<ScalarType>,
        operation: impl FnOnce() -> String,
        operands: impl FnOnce() -> String,
    ) -> Option<ScalarType> {
        if result.is_none() {
            let (operation, operands) = (operation(), operands());
            self.fail(ValidationErrorKind::NoOperation { operation, operands });
        }
        result
    }

    /// Checks a subgroup operation but for its result; yields the type of that.
    pub(super) fn subgroup(&mut self, subgroup: &'p Subgroup) -> Option<ScalarType> {
        self.uses.subgroups = true;
        if let Some(operand) = subgroup.op.operand() {
            self.expect("the lane or mask of the subgroup operation", operand, ScalarType::U32);
        }
        let ty = self.expr(&subgroup.value);
        match subgroup.op {
            SubgroupOp::BroadcastFirst
            | SubgroupOp::Broadcast(_)
            | SubgroupOp::Shuffle(_)
            | SubgroupOp::ShuffleXor(_) => ty,
            SubgroupOp::Reduce(op) | SubgroupOp::InclusiveScan(op) | SubgroupOp::ExclusiveScan(op) => {
                let ty = ty?;
                let result = semantics::reduce_type(op, ty);
                self.exists(result, || format!("subgroup {op:?}"), || ty.to_string())
            }
            SubgroupOp::Ballot | SubgroupOp::Any | SubgroupOp::All => {
                self.same_type("the value of a vote", Some(ScalarType::Bool), ty);
                let ballot = matches!(subgroup.op, SubgroupOp::Ballot);
                Some(if ballot { ScalarType::U64 } else { ScalarType::Bool })
            }
        }
    }

    fn builtin(&mut self, builtin: Builtin) {
        let of_subgroups =
            matches!(builtin, Builtin::SubgroupSize | Builtin::SubgroupLane | Builtin::SubgroupId);
        self.uses.subgroups |= of_subgroups;
        let ProgramKind::Item(granularity) = self.program.kind else { return };
        let (place, remedy) = match (granularity, builtin) {
            (Granularity::Lane, _) => ("in an item of lane granularity", "use the item's own words instead"),
            (Granularity::Workgroup, Builtin::LocalId(_) | Builtin::WorkgroupSize(_)) => return,
            (Granularity::Workgroup, _) if of_subgroups => return,
            (Granularity::Workgroup, _) => {
                ("in an item of workgroup granularity", "use local ids and the item's own words instead")
            }
        };
        let what = match builtin {
            Builtin::GlobalId(_) => "a global id",
            Builtin::WorkgroupId(_) => "a workgroup id",
            Builtin::LocalId(_) => "a local id",
            Builtin::NumWorkgroups(_) => "the number of workgroups",
            Builtin::WorkgroupSize(_) => "the workgroup size",
            Builtin::SubgroupSize => "the subgroup size",
            Builtin::SubgroupLane => "a subgroup lane",
            Builtin::SubgroupId => "a subgroup id",
        };
        self.fail(ValidationErrorKind::NotHere { what, place, remedy });
    }
}
