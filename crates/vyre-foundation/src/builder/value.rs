//! Expressions under construction: values, locals and buffers.

use crate::ir::{BinaryOp, BufferId, Builtin, Expr, MemorySpace, UnaryOp, VarId};
use crate::types::{DataType, Literal, ScalarType};

/// An expression with the type the builder believes it has; the validator has the last word.
#[derive(Clone, Debug)]
pub struct Value {
    expr: Expr,
    ty: ScalarType,
    /// Made from a Rust `i32` that is not negative, and nothing else: a `u32` that may still become an `i32`
    /// or a `u64`.
    adapts: bool,
}

impl Value {
    /// A value of a given type.
    pub fn new(expr: Expr, ty: ScalarType) -> Value {
        Value { expr, ty, adapts: false }
    }

    /// Its type. That of an ill-typed operation is a guess.
    pub fn ty(&self) -> ScalarType {
        self.ty
    }

    /// The expression.
    pub fn into_expr(self) -> Expr {
        self.expr
    }

    /// The same number as a constant of type `ty`, if it is one that adapts.
    pub(super) fn fit(self, ty: ScalarType) -> Value {
        let Expr::Literal(Literal::U32(number)) = self.expr else { return self };
        match ty {
            ScalarType::I32 if self.adapts => Literal::I32(number as i32).into(),
            ScalarType::U64 if self.adapts => Literal::U64(number.into()).into(),
            _ => self,
        }
    }

    pub(super) fn binary(op: BinaryOp, left: Value, right: Value) -> Value {
        let (left, right) = if op.is_shift() {
            (left, right.fit(ScalarType::U32))
        } else if left.adapts {
            (left.fit(right.ty), right)
        } else {
            let ty = left.ty;
            (left, right.fit(ty))
        };
        let ty = if op.is_comparison() { ScalarType::Bool } else { left.ty };
        Value::new(Expr::Binary { op, left: Box::new(left.expr), right: Box::new(right.expr) }, ty)
    }

    pub(super) fn unary(op: UnaryOp, value: Value) -> Value {
        let ty = value.ty;
        Value::new(Expr::Unary { op, value: Box::new(value.expr) }, ty)
    }
}

/// A local or parameter of the function under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Var {
    /// Its place among the function's locals.
    pub id: VarId,
    /// Its type.
    pub ty: ScalarType,
}

/// A buffer as function bodies refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Its place among the program's buffers.
    pub id: BufferId,
    /// What its elements are.
    pub element: DataType,
    /// Where it lives; decides the default scope of atomics on it.
    pub space: MemorySpace,
}

impl Buffer {
    /// One element, widened to its scalar type; zero past the end.
    pub fn load(self, index: impl Into<Value>) -> Value {
        let index = Box::new(index.into().fit(ScalarType::U32).expr);
        Value::new(Expr::Load { buffer: self.id, index }, self.element.scalar())
    }

    /// How many elements are bound, a `u32`.
    pub fn len(self) -> Value {
        Value::new(Expr::BufferLen(self.id), ScalarType::U32)
    }
}

impl From<&Value> for Value {
    fn from(value: &Value) -> Value {
        value.clone()
    }
}

impl From<Var> for Value {
    fn from(var: Var) -> Value {
        Value::new(Expr::Var(var.id), var.ty)
    }
}

impl From<Builtin> for Value {
    fn from(builtin: Builtin) -> Value {
        Value::new(Expr::Builtin(builtin), ScalarType::U32)
    }
}

impl From<Literal> for Value {
    fn from(literal: Literal) -> Value {
        Value::new(Expr::Literal(literal), literal.ty())
    }
}

impl From<bool> for Value {
    fn from(truth: bool) -> Value {
        Literal::Bool(truth).into()
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Literal::U32(number).into()
    }
}

/// A negative number is an `i32`. Any other takes the type of its surroundings where that is an integer type,
/// and is a `u32` elsewhere.
impl From<i32> for Value {
    fn from(number: i32) -> Value {
        match u32::try_from(number) {
            Ok(number) => Value { adapts: true, ..Literal::U32(number).into() },
            Err(_) => Literal::I32(number).into(),
        }
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Literal::U64(number).into()
    }
}

impl From<f32> for Value {
    fn from(number: f32) -> Value {
        Literal::f32(number).into()
    }
}

macro_rules! binary_methods {
    ($($(#[$doc:meta])* $name:ident: $op:ident;)*) => {$(
        $(#[$doc])*
        fn $name(self, right: impl Into<Value>) -> Value {
            Value::binary(BinaryOp::$op, self.into(), right.into())
        }
    )*};
}

macro_rules! unary_methods {
    ($($(#[$doc:meta])* $name:ident: $op:ident;)*) => {$(
        $(#[$doc])*
        fn $name(self) -> Value {
            Value::unary(UnaryOp::$op, self.into())
        }
    )*};
}

/// What can be computed from a [`Value`], a `&Value` or a [`Var`], beside Rust's operators
/// `+ - * / % & | ^ << >> ! -`.
///
/// `eq_` and `ne_` carry an underscore because `==` in Rust must yield a Rust `bool`.
pub trait Operand: Into<Value> {
    binary_methods! {
        /// Equal.
        eq_: Eq;
        /// Different.
        ne_: Ne;
        /// Less.
        lt: Lt;
        /// Less or equal.
        le: Le;
        /// Greater.
        gt: Gt;
        /// Greater or equal.
        ge: Ge;
        /// The lesser; see [`BinaryOp::Min`].
        min: Min;
        /// The greater; see [`BinaryOp::Max`].
        max: Max;
    }

    unary_methods! {
        /// The magnitude; see [`UnaryOp::Abs`].
        abs: Abs;
        /// Towards negative infinity.
        floor: Floor;
        /// Towards positive infinity.
        ceil: Ceil;
        /// Towards zero.
        trunc: Trunc;
        /// To the nearest integer, ties to even.
        round_even: RoundEven;
        /// Square root.
        sqrt: Sqrt;
        /// Bits set.
        count_ones: CountOnes;
        /// Zero bits above the highest set one.
        leading_zeros: LeadingZeros;
        /// Zero bits below the lowest set one.
        trailing_zeros: TrailingZeros;
    }

    /// Conversion by value.
    fn cast(self, to: ScalarType) -> Value {
        Value::new(Expr::Cast { to, value: Box::new(self.into().expr) }, to)
    }

    /// The same 32 bits under another type.
    fn bitcast(self, to: ScalarType) -> Value {
        Value::new(Expr::Bitcast { to, value: Box::new(self.into().expr) }, to)
    }

    /// `if_true` where this `bool` holds, `if_false` where not; both are evaluated.
    fn select(self, if_true: impl Into<Value>, if_false: impl Into<Value>) -> Value {
        let (if_true, if_false) = (if_true.into(), if_false.into());
        let (if_true, if_false) = if if_true.adapts {
            (if_true.fit(if_false.ty), if_false)
        } else {
            let ty = if_true.ty;
            (if_true, if_false.fit(ty))
        };
        let ty = if_true.ty;
        let expr = Expr::Select {
            condition: Box::new(self.into().expr),
            if_true: Box::new(if_true.expr),
            if_false: Box::new(if_false.expr),
        };
        Value::new(expr, ty)
    }

    /// `self * factor + addend`, rounded once.
    fn fma(self, factor: impl Into<Value>, addend: impl Into<Value>) -> Value {
        let expr = Expr::Fma {
            a: Box::new(self.into().expr),
            b: Box::new(factor.into().expr),
            c: Box::new(addend.into().expr),
        };
        Value::new(expr, ScalarType::F32)
    }
}

impl Operand for Value {}
impl Operand for &Value {}
impl Operand for Var {}

/// Several values in order: `()`, one value, a tuple of up to six, an array or a `Vec`.
pub trait Values {
    /// The values.
    fn into_values(self) -> Vec<Value>;
}

macro_rules! one_value {
    ($($one:ty)*) => {$(
        impl Values for $one {
            fn into_values(self) -> Vec<Value> {
                vec![self.into()]
            }
        }
    )*};
}
one_value! { Value &Value Var bool u32 i32 u64 f32 }

impl<V: Into<Value>, const N: usize> Values for [V; N] {
    fn into_values(self) -> Vec<Value> {
        self.into_iter().map(Into::into).collect()
    }
}

impl<V: Into<Value>> Values for Vec<V> {
    fn into_values(self) -> Vec<Value> {
        self.into_iter().map(Into::into).collect()
    }
}

macro_rules! tuple_values {
    ($(($($item:ident)*))*) => {$(
        impl<$($item: Into<Value>),*> Values for ($($item,)*) {
            fn into_values(self) -> Vec<Value> {
                #[allow(non_snake_case, reason = "one name for a type and its value")]
                let ($($item,)*) = self;
                vec![$($item.into()),*]
            }
        }
    )*};
}
tuple_values! { () (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) }
