//! Expressions. What C++ defines in the same way is an operator, all else a function of `vyre_device.h`.

use std::fmt::Write as _;

use vyre_foundation::{
    Axis, BinaryOp, BufferDecl, BufferId, Builtin, DataType, Expr, Function, Literal, MemorySpace, Program,
    ScalarType, UnaryOp,
};

use super::bounds::{Bounds, Scope};

/// Stands where an id names nothing, which no validated program has: the compiler would refuse it.
pub(super) const NOTHING: &str = "vyre_nothing";

/// Writes the expressions of a function.
pub(super) struct Expressions<'p> {
    pub(super) program: &'p Program,
    pub(super) function: &'p Function,
    pub(super) bounds: Bounds,
}

impl<'p> Expressions<'p> {
    pub(super) fn new(program: &'p Program, function: &'p Function) -> Expressions<'p> {
        Expressions { program, function, bounds: Bounds::default() }
    }

    pub(super) fn scope(&self) -> Scope<'p> {
        Scope { program: self.program, function: self.function }
    }

    /// The text of an expression, as a statement has it.
    pub(super) fn text(&self, expr: &Expr) -> String {
        let mut out = String::new();
        self.write(&mut out, expr, false);
        out
    }

    /// The name of a local.
    pub(super) fn local(&self, id: u32) -> String {
        local_name(self.function, id)
    }

    pub(super) fn decl(&self, id: BufferId) -> Option<&'p BufferDecl> {
        self.program.buffers.get(id.0 as usize)
    }

    /// The name of a buffer.
    pub(super) fn buffer(&self, id: BufferId) -> String {
        self.decl(id).map_or_else(|| NOTHING.to_owned(), |decl| format!("vyre.b_{}", decl.name))
    }

    /// `get` or `put` where the index is in range, else the checked access.
    pub(super) fn access(
        &self,
        buffer: BufferId,
        index: &Expr,
        checked: &'static str,
        in_range: &'static str,
    ) -> &'static str {
        if self.bounds.in_range(&self.scope(), buffer, index) { in_range } else { checked }
    }

    pub(super) fn ty(&self, expr: &Expr) -> ScalarType {
        match expr {
            Expr::Literal(literal) => literal.ty(),
            Expr::Var(var) => {
                self.function.locals.get(var.0 as usize).map_or(ScalarType::U32, |local| local.ty)
            }
            Expr::Load { buffer, .. } => {
                self.decl(*buffer).map_or(ScalarType::U32, |decl| decl.element.scalar())
            }
            Expr::BufferLen(_) | Expr::Builtin(_) => ScalarType::U32,
            Expr::Unary { value, .. } => self.ty(value),
            Expr::Binary { op, .. } if op.is_comparison() => ScalarType::Bool,
            Expr::Binary { left, .. } => self.ty(left),
            Expr::Select { if_true, .. } => self.ty(if_true),
            Expr::Cast { to, .. } | Expr::Bitcast { to, .. } => *to,
            Expr::Fma { .. } => ScalarType::F32,
        }
    }

    /// Writes an expression; with `enclosed`, so that an operator may stand beside it.
    fn write(&self, out: &mut String, expr: &Expr, enclosed: bool) {
        match expr {
            Expr::Literal(value) => out.push_str(&literal(*value)),
            Expr::Var(var) => out.push_str(&self.local(var.0)),
            Expr::Load { buffer, index } => {
                let access = self.access(*buffer, index, "load", "get");
                // Writing to a string does not fail.
                let _ = write!(out, "{}.{access}", self.buffer(*buffer));
                self.call(out, "", [&**index]);
            }
            Expr::BufferLen(buffer) => match self.decl(*buffer) {
                Some(decl) if decl.space == MemorySpace::Workgroup => {
                    let _ = write!(out, "{}u", decl.len);
                }
                _ => {
                    let _ = write!(out, "{}.len", self.buffer(*buffer));
                }
            },
            Expr::Builtin(builtin) => out.push_str(&self.builtin(*builtin)),
            Expr::Unary { op, value } => match (op, self.ty(value)) {
                (UnaryOp::Not, ScalarType::Bool) => self.prefix(out, "!", value),
                (UnaryOp::Not, _) => self.prefix(out, "~", value),
                _ => self.call(out, unary_function(*op), [&**value]),
            },
            Expr::Binary { op, left, right } => match infix(*op, self.ty(left), right) {
                Some(operator) => {
                    parenthesis(out, enclosed, '(');
                    self.write(out, left, true);
                    let _ = write!(out, " {operator} ");
                    self.write(out, right, true);
                    parenthesis(out, enclosed, ')');
                }
                None => self.call(out, binary_function(*op), [&**left, &**right]),
            },
            Expr::Select { condition, if_true, if_false } => {
                parenthesis(out, enclosed, '(');
                self.write(out, condition, true);
                out.push_str(" ? ");
                self.write(out, if_true, true);
                out.push_str(" : ");
                self.write(out, if_false, true);
                parenthesis(out, enclosed, ')');
            }
            Expr::Cast { to, value } => self.cast(out, *to, value, enclosed),
            Expr::Bitcast { to, value } => {
                let function = match to {
                    ScalarType::I32 => "vyre_bitcast_i32",
                    ScalarType::F32 => "vyre_bitcast_f32",
                    _ => "vyre_bitcast_u32",
                };
                self.call(out, function, [&**value]);
            }
            Expr::Fma { a, b, c } => self.call(out, "vyre_fma", [&**a, &**b, &**c]),
        }
    }

    fn cast(&self, out: &mut String, to: ScalarType, value: &Expr, enclosed: bool) {
        let from = self.ty(value);
        match (to, from) {
            _ if to == from => self.write(out, value, enclosed),
            (ScalarType::Bool, _) => {
                parenthesis(out, enclosed, '(');
                self.write(out, value, true);
                out.push_str(if from == ScalarType::F32 { " != 0.0f" } else { " != 0" });
                parenthesis(out, enclosed, ')');
            }
            (ScalarType::U32, ScalarType::F32) => self.call(out, "vyre_to_u32", [value]),
            (ScalarType::I32, ScalarType::F32) => self.call(out, "vyre_to_i32", [value]),
            (ScalarType::U64, ScalarType::F32) => self.call(out, "vyre_to_u64", [value]),
            _ => {
                let _ = write!(out, "({to})");
                self.write(out, value, true);
            }
        }
    }

    fn prefix(&self, out: &mut String, operator: &str, value: &Expr) {
        out.push_str(operator);
        self.write(out, value, true);
    }

    fn call<const N: usize>(&self, out: &mut String, function: &str, args: [&Expr; N]) {
        let _ = write!(out, "{function}(");
        for (index, arg) in args.into_iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            self.write(out, arg, false);
        }
        out.push(')');
    }

    fn builtin(&self, builtin: Builtin) -> String {
        let size = |axis: Axis| self.program.workgroup_size.get(axis.index()).copied().unwrap_or(1);
        match builtin {
            Builtin::GlobalId(axis) => format!("vyre_global_id_{}({}u)", letter(axis), size(axis)),
            Builtin::WorkgroupId(axis) => format!("vyre_workgroup_id_{}()", letter(axis)),
            Builtin::LocalId(axis) if size(axis) == 1 => "0u".to_owned(),
            Builtin::LocalId(axis) => format!("vyre_local_id_{}()", letter(axis)),
            Builtin::NumWorkgroups(axis) => format!("vyre_num_workgroups_{}()", letter(axis)),
            Builtin::WorkgroupSize(axis) => format!("{}u", size(axis)),
            Builtin::SubgroupSize => "vyre_subgroup_size()".to_owned(),
            Builtin::SubgroupLane => "vyre_subgroup_lane(vyre)".to_owned(),
            Builtin::SubgroupId => "vyre_subgroup_id(vyre)".to_owned(),
        }
    }
}

pub(super) fn local_name(function: &Function, id: u32) -> String {
    function.locals.get(id as usize).map_or_else(|| NOTHING.to_owned(), |local| format!("l_{}", local.name))
}

pub(super) const fn letter(axis: Axis) -> char {
    match axis {
        Axis::X => 'x',
        Axis::Y => 'y',
        Axis::Z => 'z',
    }
}

/// The type of a buffer's elements in memory.
pub(super) const fn element(element: DataType) -> &'static str {
    match element {
        DataType::F16 => "vyre_f16",
        DataType::BF16 => "vyre_bf16",
        _ => element.name(),
    }
}

fn parenthesis(out: &mut String, wanted: bool, which: char) {
    if wanted {
        out.push(which);
    }
}

fn literal(value: Literal) -> String {
    match value {
        Literal::Bool(value) => value.to_string(),
        Literal::U32(value) => format!("{value}u"),
        Literal::U64(value) => format!("{value}ull"),
        Literal::I32(i32::MIN) => "(-2147483647 - 1)".to_owned(),
        Literal::I32(value) if value < 0 => format!("({value})"),
        Literal::I32(value) => value.to_string(),
        Literal::F32(bits) => {
            let value = f32::from_bits(bits);
            // The shortest decimal reads back as the same float; what compilers might read otherwise is written
            // by its bits.
            match (value == 0.0 || value.is_normal(), value.is_sign_negative()) {
                (true, false) => format!("{value:?}f"),
                (true, true) => format!("({value:?}f)"),
                (false, _) => format!("vyre_f32({bits:#x}u)"),
            }
        }
    }
}

fn unary_function(op: UnaryOp) -> &'static str {
    match op {
        UnaryOp::Neg => "vyre_neg",
        UnaryOp::Not => "vyre_not",
        UnaryOp::Abs => "vyre_abs",
        UnaryOp::Floor => "vyre_floor",
        UnaryOp::Ceil => "vyre_ceil",
        UnaryOp::Trunc => "vyre_trunc",
        UnaryOp::RoundEven => "vyre_round_even",
        UnaryOp::Sqrt => "vyre_sqrt",
        UnaryOp::CountOnes => "vyre_count_ones",
        UnaryOp::LeadingZeros => "vyre_leading_zeros",
        UnaryOp::TrailingZeros => "vyre_trailing_zeros",
    }
}

fn binary_function(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "vyre_add",
        BinaryOp::Sub => "vyre_sub",
        BinaryOp::Mul => "vyre_mul",
        BinaryOp::Div => "vyre_div",
        BinaryOp::Rem => "vyre_rem",
        BinaryOp::Min => "vyre_min",
        BinaryOp::Max => "vyre_max",
        BinaryOp::Shl => "vyre_shl",
        BinaryOp::Shr => "vyre_shr",
        // These are always operators.
        _ => NOTHING,
    }
}

/// The C++ operator that means the same, if there is one.
fn infix(op: BinaryOp, ty: ScalarType, right: &Expr) -> Option<&'static str> {
    let unsigned = matches!(ty, ScalarType::U32 | ScalarType::U64);
    match op {
        BinaryOp::Eq => Some("=="),
        BinaryOp::Ne => Some("!="),
        BinaryOp::Lt => Some("<"),
        BinaryOp::Le => Some("<="),
        BinaryOp::Gt => Some(">"),
        BinaryOp::Ge => Some(">="),
        BinaryOp::And => Some("&"),
        BinaryOp::Or => Some("|"),
        BinaryOp::Xor if ty == ScalarType::Bool => Some("!="),
        BinaryOp::Xor => Some("^"),
        BinaryOp::Add if unsigned => Some("+"),
        BinaryOp::Sub if unsigned => Some("-"),
        BinaryOp::Mul if unsigned => Some("*"),
        BinaryOp::Div if divides(right) => Some("/"),
        BinaryOp::Rem if divides(right) => Some("%"),
        // A signed left shift may overflow.
        BinaryOp::Shl if unsigned && shifts(ty, right) => Some("<<"),
        BinaryOp::Shr if shifts(ty, right) => Some(">>"),
        _ => None,
    }
}

/// Whether a divisor is one for which C++ defines every quotient.
fn divides(divisor: &Expr) -> bool {
    match divisor {
        Expr::Literal(Literal::U32(by)) => *by != 0,
        Expr::Literal(Literal::U64(by)) => *by != 0,
        Expr::Literal(Literal::I32(by)) => !matches!(by, 0 | -1),
        _ => false,
    }
}

/// Whether a shift stays below the width.
fn shifts(ty: ScalarType, amount: &Expr) -> bool {
    let width = if ty == ScalarType::U64 { 64 } else { 32 };
    matches!(amount, Expr::Literal(Literal::U32(by)) if *by < width)
}
