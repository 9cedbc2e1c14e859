//! Expressions of a wanted type.

use super::{Choices, Frame, Maker, Role, SLOT};
use crate::builder::{Operand, Value, Var};
use crate::ir::{
    Axis, BinaryOp, BufferAccess, Builtin, Expr, Granularity, MemorySpace, ProgramKind, UnaryOp,
};
use crate::semantics::{binary_type, unary_type};
use crate::types::{Literal, ScalarType};

const AXES: [Axis; 3] = [Axis::X, Axis::Y, Axis::Z];

const UNARY: [UnaryOp; 11] = [
    UnaryOp::Neg,
    UnaryOp::Not,
    UnaryOp::Abs,
    UnaryOp::Floor,
    UnaryOp::Ceil,
    UnaryOp::Trunc,
    UnaryOp::RoundEven,
    UnaryOp::Sqrt,
    UnaryOp::CountOnes,
    UnaryOp::LeadingZeros,
    UnaryOp::TrailingZeros,
];

const BINARY: [BinaryOp; 12] = [
    BinaryOp::Add,
    BinaryOp::Sub,
    BinaryOp::Mul,
    BinaryOp::Div,
    BinaryOp::Rem,
    BinaryOp::Min,
    BinaryOp::Max,
    BinaryOp::And,
    BinaryOp::Or,
    BinaryOp::Xor,
    BinaryOp::Shl,
    BinaryOp::Shr,
];

const COMPARISONS: [BinaryOp; 6] =
    [BinaryOp::Eq, BinaryOp::Ne, BinaryOp::Lt, BinaryOp::Le, BinaryOp::Gt, BinaryOp::Ge];

/// The number of the invocation in the grid.
pub(super) fn linear_global_id() -> Value {
    let size = |axis| Value::from(Builtin::NumWorkgroups(axis)) * Builtin::WorkgroupSize(axis);
    let id = |axis| Value::from(Builtin::GlobalId(axis));
    (id(Axis::Z) * size(Axis::Y) + id(Axis::Y)) * size(Axis::X) + id(Axis::X)
}

/// The number of the invocation among those of all items.
pub(super) fn linear_local_id(item: Var) -> Value {
    let size = |axis| Value::from(Builtin::WorkgroupSize(axis));
    ((Value::from(item) * size(Axis::Z) + Builtin::LocalId(Axis::Z)) * size(Axis::Y)
        + Builtin::LocalId(Axis::Y))
        * size(Axis::X)
        + Builtin::LocalId(Axis::X)
}

/// The number of the invocation in its workgroup.
pub(super) fn place_in_workgroup() -> Value {
    let size = |axis| Value::from(Builtin::WorkgroupSize(axis));
    (Value::from(Builtin::LocalId(Axis::Z)) * size(Axis::Y) + Builtin::LocalId(Axis::Y)) * size(Axis::X)
        + Builtin::LocalId(Axis::X)
}

impl Choices<'_> {
    fn literal(&mut self, ty: ScalarType) -> Literal {
        match ty {
            ScalarType::Bool => Literal::Bool(self.flag()),
            ScalarType::U32 => Literal::U32(self.word()),
            ScalarType::I32 => Literal::I32(self.word() as i32),
            ScalarType::U64 => Literal::U64(u64::from(self.word()) << 32 | u64::from(self.word())),
            ScalarType::F32 => match self.below(4) {
                0 => Literal::f32(f32::from(self.byte() as i8)),
                1 => Literal::f32(self.one_of(&[
                    -0.0,
                    0.5,
                    1e30,
                    f32::INFINITY,
                    f32::NAN,
                    f32::MIN_POSITIVE,
                    65519.0,
                ])),
                _ => Literal::F32(self.word()),
            },
        }
    }
}

impl Maker<'_> {
    /// A value of type `ty`; of one that is the same in the workgroup where `uniform` is asked for.
    pub(super) fn value(&mut self, frame: &Frame, ty: ScalarType, uniform: bool) -> Value {
        self.grown(frame, ty, uniform, 4)
    }

    /// Values for a return.
    pub(super) fn results(&mut self, frame: &Frame) -> Vec<Value> {
        frame.results.iter().map(|&ty| self.value(frame, ty, false)).collect()
    }

    fn grown(&mut self, frame: &Frame, ty: ScalarType, uniform: bool, height: u8) -> Value {
        self.nodes_left = self.nodes_left.saturating_sub(1);
        if height == 0 || self.nodes_left == 0 || self.choices.done() {
            return self.leaf(frame, ty, uniform);
        }
        let height = height - 1;
        match self.choices.below(12) {
            0..3 => self.leaf(frame, ty, uniform),
            3 => {
                let op = self.choices.one_of(&UNARY);
                let operand = self.grown(frame, ty, uniform, height);
                match unary_type(op, ty) {
                    Some(_) => Value::new(Expr::Unary { op, value: Box::new(operand.into_expr()) }, ty),
                    None => operand,
                }
            }
            4..7 if ty == ScalarType::Bool => {
                let op = self.choices.one_of(&COMPARISONS);
                let operands = self.scalar();
                let left = self.grown(frame, operands, uniform, height);
                match binary_type(op, operands, operands) {
                    Some(_) => {
                        let right = self.grown(frame, operands, uniform, height);
                        pair(op, left, right, ty)
                    }
                    None => left.cast(ty),
                }
            }
            4..7 => {
                let op = self.choices.one_of(&BINARY);
                let left = self.grown(frame, ty, uniform, height);
                let other = if op.is_shift() { ScalarType::U32 } else { ty };
                match binary_type(op, ty, other) {
                    Some(_) => {
                        let right = self.grown(frame, other, uniform, height);
                        pair(op, left, right, ty)
                    }
                    None => left,
                }
            }
            7 => {
                let condition = self.grown(frame, ScalarType::Bool, uniform, height);
                let if_true = self.grown(frame, ty, uniform, height);
                condition.select(if_true, self.grown(frame, ty, uniform, height))
            }
            8 => {
                let from = self.scalar();
                self.grown(frame, from, uniform, height).cast(ty)
            }
            9 if matches!(ty, ScalarType::U32 | ScalarType::I32) => {
                // The bits of a NaN are not the same everywhere.
                let value = self.grown(frame, ScalarType::F32, uniform, height);
                (&value).eq_(&value).select(&value, 0.0).bitcast(ty)
            }
            9 if ty == ScalarType::F32 => {
                let from = self.choices.one_of(&[ScalarType::U32, ScalarType::I32]);
                self.grown(frame, from, uniform, height).bitcast(ty)
            }
            10 if ty == ScalarType::F32 => {
                let a = self.grown(frame, ty, uniform, height);
                let b = self.grown(frame, ty, uniform, height);
                a.fma(b, self.grown(frame, ty, uniform, height))
            }
            _ => self.load(frame, ty, uniform, height),
        }
    }

    fn leaf(&mut self, frame: &Frame, ty: ScalarType, uniform: bool) -> Value {
        match self.choices.below(5) {
            2 | 3 => {
                let fits = |known: &&super::Visible| known.var.ty == ty && (known.uniform || !uniform);
                let fitting: Vec<Var> = frame.visible.iter().filter(fits).map(|known| known.var).collect();
                if let Some(&var) = self.choices.among(&fitting) {
                    return var.into();
                }
            }
            4 if ty == ScalarType::U32 => {
                if self.choices.flag()
                    && let Some(known) = self.choices.among(&self.buffers)
                {
                    return known.buffer.len();
                }
                if let Some(builtin) = self.builtin(uniform) {
                    return builtin.into();
                }
            }
            _ => {}
        }
        self.choices.literal(ty).into()
    }

    fn builtin(&mut self, uniform: bool) -> Option<Builtin> {
        let axis = self.choices.one_of(&AXES);
        let any = [
            Builtin::WorkgroupSize(axis),
            Builtin::LocalId(axis),
            Builtin::NumWorkgroups(axis),
            Builtin::WorkgroupId(axis),
            Builtin::GlobalId(axis),
        ];
        let subgroup = [Builtin::SubgroupLane, Builtin::SubgroupId, Builtin::SubgroupSize];
        if self.kind != ProgramKind::Item(Granularity::Lane) && self.choices.below(4) == 3 {
            let of_subgroup = self.choices.one_of(&subgroup);
            return Some(if uniform { Builtin::SubgroupSize } else { of_subgroup });
        }
        match (self.kind, uniform) {
            (ProgramKind::Kernel, false) => Some(self.choices.one_of(&any)),
            (ProgramKind::Kernel, true) => self.choices.among(&[any[0], any[2], any[3]]).copied(),
            (ProgramKind::Item(Granularity::Workgroup), false) => {
                Some(self.choices.one_of(&[any[0], any[1]]))
            }
            (ProgramKind::Item(Granularity::Workgroup), true) => Some(any[0]),
            (ProgramKind::Item(Granularity::Lane), _) => None,
        }
    }

    /// A load from a buffer that may be read here, converted to the type wanted.
    fn load(&mut self, frame: &Frame, ty: ScalarType, uniform: bool, height: u8) -> Value {
        let staged = self.staged;
        let readable = |known: &&super::Known| match known.role {
            Role::Input => !uniform || known.buffer.space == MemorySpace::Uniform,
            Role::Own => !uniform && known.access == BufferAccess::ReadWrite,
            Role::Stage => !uniform && frame.entry,
            Role::Count(_) | Role::Shared => false,
        };
        let readable: Vec<super::Known> = self.buffers.iter().filter(readable).copied().collect();
        let Some(&known) = self.choices.among(&readable) else { return self.leaf(frame, ty, uniform) };
        let index = self.grown(frame, ScalarType::U32, uniform, height);
        let index = match known.role {
            Role::Own => own(frame, index),
            Role::Stage if !staged => own(frame, index),
            _ => index,
        };
        let loaded = known.buffer.load(index);
        if loaded.ty() == ty { loaded } else { loaded.cast(ty) }
    }
}

/// An index in the invocation's own slot.
pub(super) fn own(frame: &Frame, index: Value) -> Value {
    &frame.slot * SLOT + index % SLOT
}

fn pair(op: BinaryOp, left: Value, right: Value, ty: ScalarType) -> Value {
    let (left, right) = (Box::new(left.into_expr()), Box::new(right.into_expr()));
    Value::new(Expr::Binary { op, left, right }, ty)
}
