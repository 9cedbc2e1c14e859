//! Expressions. Each becomes a register: its own if it computes something, else the one that holds it.

use vyre_foundation::{BinaryOp, Expr, ScalarType, UnaryOp};

use super::{Frame, LowerError, Lowering, Pooled};
use crate::flat::{Code, Inst, Place, load_code};

impl Place {
    /// The number, whatever the file.
    pub(super) const fn register(self) -> u16 {
        match self {
            Place::Word(register) | Place::Long(register) | Place::Mask(register) => register,
        }
    }

    const fn mov(self) -> Code {
        match self {
            Place::Word(_) => Code::MovW,
            Place::Long(_) => Code::MovL,
            Place::Mask(_) => Code::MovM,
        }
    }

    pub(super) const fn mov_masked(self) -> Code {
        match self {
            Place::Word(_) => Code::MovMaskedW,
            Place::Long(_) => Code::MovMaskedL,
            Place::Mask(_) => Code::MovMaskedM,
        }
    }
}

const INVALID: LowerError =
    LowerError::Invalid { what: "an operation does not exist on its operands' types" };

impl Lowering<'_> {
    /// A register that holds the value now. Temporaries are given back by the caller's mark.
    pub(super) fn expr(&mut self, frame: &mut Frame<'_>, expr: &Expr) -> Result<u16, LowerError> {
        if let Some(place) = self.held(frame, expr)? {
            return Ok(place.register());
        }
        let ty = self.type_of(frame, expr)?;
        let place = frame.registers.place(ty)?;
        self.expr_into(frame, expr, place)?;
        Ok(place.register())
    }

    /// The register that holds the value already, if one does.
    pub(super) fn held(&mut self, frame: &Frame<'_>, expr: &Expr) -> Result<Option<Place>, LowerError> {
        Ok(Some(match expr {
            Expr::Literal(literal) => self.constant(*literal)?,
            Expr::Var(var) => frame.local(*var)?,
            Expr::BufferLen(buffer) => self.pooled(Pooled::BufferLen(*buffer))?,
            Expr::Builtin(builtin) => self.builtin(*builtin)?,
            Expr::Bitcast { value, .. } => return self.held(frame, value),
            Expr::Cast { to, value } if is_free(self.type_of(frame, value)?, *to) => {
                return self.held(frame, value);
            }
            _ => return Ok(None),
        }))
    }

    /// Computes the value into a register that the expression does not read.
    pub(super) fn expr_into(
        &mut self,
        frame: &mut Frame<'_>,
        expr: &Expr,
        place: Place,
    ) -> Result<(), LowerError> {
        if let Some(held) = self.held(frame, expr)? {
            self.push(Inst::new(place.mov(), place.register(), held.register(), 0, 0));
            return Ok(());
        }
        let mark = frame.registers.mark();
        let d = place.register();
        match expr {
            Expr::Literal(_) | Expr::Var(_) | Expr::BufferLen(_) | Expr::Builtin(_) => {}
            Expr::Bitcast { value, .. } => self.expr_into(frame, value, place)?,
            Expr::Load { buffer, index } => {
                let code = load_code(self.element(*buffer)?);
                // Most indices are sums, and a load adds for nearly nothing.
                let (a, b) = match &**index {
                    Expr::Binary { op: BinaryOp::Add, left, right } => {
                        (self.expr(frame, left)?, self.expr(frame, right)?)
                    }
                    index => (self.expr(frame, index)?, self.pooled(Pooled::Word(0))?.register()),
                };
                self.push(Inst::new(code, d, a, b, buffer.0 as u16));
            }
            Expr::Unary { op, value } => {
                let code = unary_code(*op, self.type_of(frame, value)?).ok_or(INVALID)?;
                let a = self.expr(frame, value)?;
                self.push(Inst::new(code, d, a, 0, 0));
            }
            Expr::Binary { op, left, right } => {
                let code = binary_code(*op, self.type_of(frame, left)?).ok_or(INVALID)?;
                let mut a = self.expr(frame, left)?;
                let mut b = self.expr(frame, right)?;
                if matches!(op, BinaryOp::Gt | BinaryOp::Ge) {
                    std::mem::swap(&mut a, &mut b);
                }
                self.push(Inst::new(code, d, a, b, 0));
            }
            Expr::Select { condition, if_true, if_false } => {
                let code = match place {
                    Place::Word(_) => Code::SelectW,
                    Place::Long(_) => Code::SelectL,
                    Place::Mask(_) => Code::SelectM,
                };
                let c = self.expr(frame, condition)?;
                let a = self.expr(frame, if_true)?;
                let b = self.expr(frame, if_false)?;
                self.push(Inst::new(code, d, a, b, c));
            }
            Expr::Cast { to, value } => {
                let from = self.type_of(frame, value)?;
                match cast_code(from, *to) {
                    Some(code) => {
                        let a = self.expr(frame, value)?;
                        self.push(Inst::new(code, d, a, 0, 0));
                    }
                    None => self.expr_into(frame, value, place)?,
                }
            }
            Expr::Fma { a, b, c } => {
                let a = self.expr(frame, a)?;
                let b = self.expr(frame, b)?;
                let c = self.expr(frame, c)?;
                self.push(Inst::new(Code::Fma, d, a, b, c));
            }
        }
        frame.registers.release(mark);
        Ok(())
    }

    pub(super) fn type_of(&self, frame: &Frame<'_>, expr: &Expr) -> Result<ScalarType, LowerError> {
        Ok(match expr {
            Expr::Literal(literal) => literal.ty(),
            Expr::Var(var) => frame.local_type(*var)?,
            Expr::Load { buffer, .. } => self.element(*buffer)?.scalar(),
            Expr::BufferLen(_) | Expr::Builtin(_) => ScalarType::U32,
            Expr::Unary { value, .. } => self.type_of(frame, value)?,
            Expr::Binary { op, .. } if op.is_comparison() => ScalarType::Bool,
            Expr::Binary { left, .. } => self.type_of(frame, left)?,
            Expr::Select { if_true, .. } => self.type_of(frame, if_true)?,
            Expr::Cast { to, .. } | Expr::Bitcast { to, .. } => *to,
            Expr::Fma { .. } => ScalarType::F32,
        })
    }
}

fn is_free(from: ScalarType, to: ScalarType) -> bool {
    cast_code(from, to).is_none()
}

/// `None` where the bits stay the same.
fn cast_code(from: ScalarType, to: ScalarType) -> Option<Code> {
    use ScalarType::{Bool, F32, I32, U32, U64};
    Some(match (from, to) {
        (Bool, Bool) | (U64, U64) | (F32, F32) | (U32 | I32, U32 | I32) => return None,
        (Bool, U32 | I32) => Code::MaskToW,
        (Bool, U64) => Code::MaskToX,
        (Bool, F32) => Code::MaskToF,
        (U32 | I32, Bool) => Code::WToMask,
        (U64, Bool) => Code::XToMask,
        (F32, Bool) => Code::FToMask,
        (U32, U64) => Code::UToX,
        (I32, U64) => Code::IToX,
        (U64, U32 | I32) => Code::XToW,
        (F32, U32) => Code::FToU,
        (F32, I32) => Code::FToI,
        (F32, U64) => Code::FToX,
        (U32, F32) => Code::UToF,
        (I32, F32) => Code::IToF,
        (U64, F32) => Code::XToF,
    })
}

fn unary_code(op: UnaryOp, ty: ScalarType) -> Option<Code> {
    use ScalarType::{Bool, F32, I32, U32, U64};
    Some(match (op, ty) {
        (UnaryOp::Neg, U32 | I32) => Code::NegW,
        (UnaryOp::Neg, U64) => Code::NegX,
        (UnaryOp::Neg, F32) => Code::NegF,
        (UnaryOp::Not, Bool) => Code::NotM,
        (UnaryOp::Not, U32 | I32) => Code::NotW,
        (UnaryOp::Not, U64) => Code::NotX,
        (UnaryOp::Abs, I32) => Code::AbsI,
        (UnaryOp::Abs, F32) => Code::AbsF,
        (UnaryOp::Floor, F32) => Code::Floor,
        (UnaryOp::Ceil, F32) => Code::Ceil,
        (UnaryOp::Trunc, F32) => Code::Trunc,
        (UnaryOp::RoundEven, F32) => Code::RoundEven,
        (UnaryOp::Sqrt, F32) => Code::Sqrt,
        (UnaryOp::CountOnes, U32 | I32) => Code::CountOnesW,
        (UnaryOp::CountOnes, U64) => Code::CountOnesX,
        (UnaryOp::LeadingZeros, U32 | I32) => Code::LeadingZerosW,
        (UnaryOp::LeadingZeros, U64) => Code::LeadingZerosX,
        (UnaryOp::TrailingZeros, U32 | I32) => Code::TrailingZerosW,
        (UnaryOp::TrailingZeros, U64) => Code::TrailingZerosX,
        _ => return None,
    })
}

/// `Gt` and `Ge` are `Lt` and `Le` with their operands swapped.
fn binary_code(op: BinaryOp, ty: ScalarType) -> Option<Code> {
    use BinaryOp::*;
    Some(match ty {
        ScalarType::Bool => match op {
            And => Code::AndM,
            Or => Code::OrM,
            Xor | Ne => Code::XorM,
            Eq => Code::XnorM,
            _ => return None,
        },
        ScalarType::U32 | ScalarType::I32 => {
            let signed = ty == ScalarType::I32;
            match op {
                Add => Code::AddW,
                Sub => Code::SubW,
                Mul => Code::MulW,
                Div if signed => Code::DivI,
                Div => Code::DivU,
                Rem if signed => Code::RemI,
                Rem => Code::RemU,
                Min if signed => Code::MinI,
                Min => Code::MinU,
                Max if signed => Code::MaxI,
                Max => Code::MaxU,
                And => Code::AndW,
                Or => Code::OrW,
                Xor => Code::XorW,
                Shl => Code::ShlW,
                Shr if signed => Code::ShrI,
                Shr => Code::ShrU,
                Eq => Code::EqW,
                Ne => Code::NeW,
                Lt | Gt if signed => Code::LtI,
                Lt | Gt => Code::LtU,
                Le | Ge if signed => Code::LeI,
                Le | Ge => Code::LeU,
            }
        }
        ScalarType::U64 => match op {
            Add => Code::AddX,
            Sub => Code::SubX,
            Mul => Code::MulX,
            Div => Code::DivX,
            Rem => Code::RemX,
            Min => Code::MinX,
            Max => Code::MaxX,
            And => Code::AndX,
            Or => Code::OrX,
            Xor => Code::XorX,
            Shl => Code::ShlX,
            Shr => Code::ShrX,
            Eq => Code::EqX,
            Ne => Code::NeX,
            Lt | Gt => Code::LtX,
            Le | Ge => Code::LeX,
        },
        ScalarType::F32 => match op {
            Add => Code::AddF,
            Sub => Code::SubF,
            Mul => Code::MulF,
            Div => Code::DivF,
            Rem => Code::RemF,
            Min => Code::MinF,
            Max => Code::MaxF,
            Eq => Code::EqF,
            Ne => Code::NeF,
            Lt | Gt => Code::LtF,
            Le | Ge => Code::LeF,
            And | Or | Xor | Shl | Shr => return None,
        },
    })
}
