//! Rust's operators on values, locals and constants.

use std::ops;

use super::value::{Value, Var};
use crate::ir::{BinaryOp, UnaryOp};

macro_rules! binary_operators {
    ($($trait:ident $method:ident $op:ident;)*) => {$(
        binary_operators! { @value $trait $method $op: Value &Value Var }
        binary_operators! { @constant $trait $method $op: u32 i32 u64 f32 bool }
    )*};
    (@value $trait:ident $method:ident $op:ident: $($left:ty)*) => {$(
        impl<R: Into<Value>> ops::$trait<R> for $left {
            type Output = Value;
            fn $method(self, right: R) -> Value {
                Value::binary(BinaryOp::$op, self.into(), right.into())
            }
        }
    )*};
    (@constant $trait:ident $method:ident $op:ident: $($left:ty)*) => {$(
        impl ops::$trait<Value> for $left {
            type Output = Value;
            fn $method(self, right: Value) -> Value {
                Value::binary(BinaryOp::$op, self.into(), right)
            }
        }
        impl ops::$trait<Var> for $left {
            type Output = Value;
            fn $method(self, right: Var) -> Value {
                Value::binary(BinaryOp::$op, self.into(), right.into())
            }
        }
    )*};
}

binary_operators! {
    Add add Add;
    Sub sub Sub;
    Mul mul Mul;
    Div div Div;
    Rem rem Rem;
    BitAnd bitand And;
    BitOr bitor Or;
    BitXor bitxor Xor;
    Shl shl Shl;
    Shr shr Shr;
}

macro_rules! unary_operators {
    ($($trait:ident $method:ident $op:ident: $($operand:ty)*;)*) => {$($(
        impl ops::$trait for $operand {
            type Output = Value;
            fn $method(self) -> Value {
                Value::unary(UnaryOp::$op, self.into())
            }
        }
    )*)*};
}

unary_operators! {
    Neg neg Neg: Value &Value Var;
    Not not Not: Value &Value Var;
}
