//! Text into expressions: operator precedence with a stack of its own, so that no depth of text costs depth
//! of recursion.

use super::ParseProblem;
use super::lexer::TokenKind;
use super::parser::{Parser, Result};
use super::words::{BuiltinWord, Level, Words, bitcast_from_word, builtin_from_word};
use crate::ir::{BinaryOp, BufferId, Builtin, Expr, UnaryOp};
use crate::types::{Literal, ScalarType};
use crate::wire;

/// An expression, and how many expressions its longest branch has.
struct Tree {
    expr: Expr,
    height: u32,
}

/// An operation written as a function.
#[derive(Clone, Copy)]
enum Operation {
    Unary(UnaryOp),
    Binary(BinaryOp),
    Select,
    Fma,
    Cast(ScalarType),
    Bitcast(ScalarType),
}

impl Operation {
    fn from_word(word: &str) -> Option<Operation> {
        match word {
            "select" => return Some(Operation::Select),
            "fma" => return Some(Operation::Fma),
            _ => {}
        }
        let cast = || ScalarType::from_word(word).map(Operation::Cast);
        let bitcast = || bitcast_from_word(word).map(Operation::Bitcast);
        let unary = || UnaryOp::from_word(word).map(Operation::Unary);
        let binary = || BinaryOp::from_word(word).map(Operation::Binary);
        cast().or_else(bitcast).or_else(unary).or_else(binary)
    }

    fn arity(self) -> usize {
        match self {
            Operation::Unary(_) | Operation::Cast(_) | Operation::Bitcast(_) => 1,
            Operation::Binary(_) => 2,
            Operation::Select | Operation::Fma => 3,
        }
    }

    /// The operation on its operands, `None` if they are not [`arity`](Self::arity) many.
    fn of(self, operands: impl IntoIterator<Item = Expr>) -> Option<Expr> {
        let mut operands = operands.into_iter();
        let mut next = || operands.next().map(Box::new);
        Some(match self {
            Operation::Unary(op) => Expr::Unary { op, value: next()? },
            Operation::Cast(to) => Expr::Cast { to, value: next()? },
            Operation::Bitcast(to) => Expr::Bitcast { to, value: next()? },
            Operation::Binary(op) => Expr::Binary { op, left: next()?, right: next()? },
            Operation::Select => Expr::Select { condition: next()?, if_true: next()?, if_false: next()? },
            Operation::Fma => Expr::Fma { a: next()?, b: next()?, c: next()? },
        })
    }
}

/// What waits for the operand that is read next.
enum Pending {
    /// `(`, and nothing before it.
    Parenthesis,
    Prefix(UnaryOp),
    Infix {
        op: BinaryOp,
        level: Level,
        left: Tree,
    },
    /// A buffer and `[`.
    Index(BufferId),
    /// An operation, `(`, and the arguments before the next.
    Arguments(Operation, Vec<Tree>),
}

impl Parser<'_> {
    pub(super) fn expr(&mut self) -> Result<Expr> {
        let mut pending = Vec::new();
        loop {
            let Some(mut tree) = self.operand(&mut pending)? else { continue };
            // Whatever waits for the tree and is complete with it becomes the tree, until something waits
            // for another operand.
            loop {
                let operator = self.operator();
                tree = self.reduce(&mut pending, tree, operator.map(|(_, level)| level))?;
                if let Some((op, level)) = operator {
                    self.next();
                    pending.push(Pending::Infix { op, level, left: tree });
                    break;
                }
                match pending.pop() {
                    Some(Pending::Parenthesis) => self.symbol(")")?,
                    Some(Pending::Index(buffer)) => {
                        self.symbol("]")?;
                        let index = Box::new(tree.expr);
                        tree = self.above(tree.height, Expr::Load { buffer, index })?;
                    }
                    Some(Pending::Arguments(operation, mut args)) => {
                        args.push(tree);
                        if args.len() < operation.arity() {
                            self.symbol(",")?;
                            pending.push(Pending::Arguments(operation, args));
                            break;
                        }
                        self.symbol(")")?;
                        tree = self.operation(operation, args)?;
                    }
                    // `reduce` has left no operator: there is no token for one after the tree.
                    Some(Pending::Prefix(_) | Pending::Infix { .. }) | None => return Ok(tree.expr),
                }
            }
        }
    }

    /// Reads one operand, or adds to `pending` what begins another.
    fn operand(&mut self, pending: &mut Vec<Pending>) -> Result<Option<Tree>> {
        let begun = match self.kind_of_token() {
            TokenKind::Symbol("(") => Pending::Parenthesis,
            TokenKind::Symbol("!") => Pending::Prefix(UnaryOp::Not),
            TokenKind::Symbol("-") => {
                if let TokenKind::Number { .. } | TokenKind::Word("inf") = self.second() {
                    self.next();
                    return self.literal(true).map(Some);
                }
                Pending::Prefix(UnaryOp::Neg)
            }
            TokenKind::Number { .. } | TokenKind::Word("true" | "false" | "inf" | "nan") => {
                return self.literal(false).map(Some);
            }
            // What begins with another word is told by the token after it: few words need be reserved.
            TokenKind::Word(word) => match self.second() {
                TokenKind::Symbol("(") if word == "len" => return self.buffer_len().map(Some),
                TokenKind::Symbol("(") => {
                    let operation = Operation::from_word(word).ok_or_else(|| {
                        self.expected(
                            "an operation (a function of the program is called by a statement, `call`)",
                        )
                    })?;
                    self.next();
                    Pending::Arguments(operation, Vec::new())
                }
                TokenKind::Symbol("[") => Pending::Index(self.buffer_name()?),
                TokenKind::Symbol(".") => return self.builtin(word).map(Some),
                _ => {
                    let name = self.name()?;
                    let var = self.locals.resolve(name)?;
                    return self.above(0, Expr::Var(var)).map(Some);
                }
            },
            _ => return Err(self.expected("an expression")),
        };
        self.next();
        pending.push(begun);
        Ok(None)
    }

    /// Gives `tree` to the operators that wait for it and are not looser than `next`, the level of the
    /// operator after it, if there is one.
    fn reduce(&mut self, pending: &mut Vec<Pending>, mut tree: Tree, next: Option<Level>) -> Result<Tree> {
        loop {
            let waits = |top: &mut Pending| match top {
                Pending::Prefix(_) => true,
                Pending::Infix { level, .. } => next.is_none_or(|next| *level >= next),
                Pending::Parenthesis | Pending::Index(_) | Pending::Arguments(..) => false,
            };
            match pending.pop_if(waits) {
                Some(Pending::Prefix(op)) => {
                    tree = self.above(tree.height, Expr::Unary { op, value: Box::new(tree.expr) })?;
                }
                Some(Pending::Infix { op, level, left }) => {
                    if level == Level::Comparison && next.is_some() {
                        return Err(self.expected("parentheses around one of two comparisons"));
                    }
                    let height = left.height.max(tree.height);
                    let (left, right) = (Box::new(left.expr), Box::new(tree.expr));
                    tree = self.above(height, Expr::Binary { op, left, right })?;
                }
                _ => return Ok(tree),
            }
        }
    }

    /// The binary operation whose operator is the current token.
    fn operator(&self) -> Option<(BinaryOp, Level)> {
        let TokenKind::Symbol(symbol) = self.kind_of_token() else { return None };
        let op = BinaryOp::from_word(symbol)?;
        Some((op, Level::of(op)?))
    }

    /// The tree of an expression whose highest operand has `height`, none being 0 high.
    fn above(&self, height: u32, expr: Expr) -> Result<Tree> {
        if self.statements + height >= wire::MAX_DEPTH {
            return Err(self.error(ParseProblem::TooDeep));
        }
        Ok(Tree { expr, height: height + 1 })
    }

    fn operation(&self, operation: Operation, args: Vec<Tree>) -> Result<Tree> {
        let height = args.iter().map(|arg| arg.height).max().unwrap_or_default();
        let expr = operation.of(args.into_iter().map(|arg| arg.expr));
        self.above(height, expr.ok_or_else(|| self.expected("other operands"))?)
    }

    pub(super) fn buffer_name(&mut self) -> Result<BufferId> {
        let name = self.name()?;
        self.buffers.resolve(name)
    }

    /// A buffer and the index of one of its elements, in a statement.
    pub(super) fn element(&mut self) -> Result<(BufferId, Expr)> {
        let buffer = self.buffer_name()?;
        self.symbol("[")?;
        let index = self.expr()?;
        self.symbol("]")?;
        Ok((buffer, index))
    }

    fn buffer_len(&mut self) -> Result<Tree> {
        self.next();
        self.symbol("(")?;
        let buffer = self.buffer_name()?;
        self.symbol(")")?;
        self.above(0, Expr::BufferLen(buffer))
    }

    fn builtin(&mut self, word: &str) -> Result<Tree> {
        let Some(first) = builtin_from_word(word) else {
            return Err(self.expected(
                "`global_id`, `workgroup_id`, `local_id`, `num_workgroups`, `workgroup_size` or `subgroup`",
            ));
        };
        self.next();
        self.symbol(".")?;
        let builtin = match (first, self.kind_of_token()) {
            (BuiltinWord::Axis(builtin), _) => builtin(self.any_word()?),
            (BuiltinWord::Subgroup, TokenKind::Word("size")) => self.past(Builtin::SubgroupSize),
            (BuiltinWord::Subgroup, TokenKind::Word("lane")) => self.past(Builtin::SubgroupLane),
            (BuiltinWord::Subgroup, TokenKind::Word("id")) => self.past(Builtin::SubgroupId),
            (BuiltinWord::Subgroup, _) => return Err(self.expected("`size`, `lane` or `id`")),
        };
        self.above(0, Expr::Builtin(builtin))
    }

    fn literal(&mut self, negative: bool) -> Result<Tree> {
        let value = match self.kind_of_token() {
            TokenKind::Word("true") => Literal::Bool(true),
            TokenKind::Word("false") => Literal::Bool(false),
            TokenKind::Word("inf") if negative => Literal::f32(f32::NEG_INFINITY),
            TokenKind::Word("inf") => Literal::f32(f32::INFINITY),
            TokenKind::Word("nan") => self.nan()?,
            TokenKind::Number { digits, suffix } => self.number_literal(digits, suffix, negative)?,
            _ => return Err(self.expected("a literal")),
        };
        self.next();
        self.above(0, Expr::Literal(value))
    }

    /// `nan(0x7fc00001)`: the bits, up to but not including the parenthesis.
    fn nan(&mut self) -> Result<Literal> {
        self.next();
        self.symbol("(")?;
        let bits = self.number("the bits of a NaN")?;
        if !f32::from_bits(bits).is_nan() {
            self.back();
            return Err(self.bad_literal("these are not the bits of a NaN"));
        }
        if !self.at_symbol(")") {
            return Err(self.expected("`)`"));
        }
        Ok(Literal::F32(bits))
    }

    fn number_literal(&self, digits: &str, suffix: &str, negative: bool) -> Result<Literal> {
        let range = |_| self.bad_literal("it is outside the range of its type");
        let signed = |value: u64| if negative { -i128::from(value) } else { i128::from(value) };
        match suffix {
            "u32" => u32::try_from(signed(self.integer(digits)?)).map(Literal::U32).map_err(range),
            "i32" => i32::try_from(signed(self.integer(digits)?)).map(Literal::I32).map_err(range),
            "u64" => u64::try_from(signed(self.integer(digits)?)).map(Literal::U64).map_err(range),
            "f32" => {
                // Nothing but decimal digits, a point and an exponent gets here: `parse` rounds to nearest.
                let value: f32 = digits.parse().map_err(|_| {
                    self.bad_literal("a float is decimal digits, with a point or an exponent")
                })?;
                if value.is_infinite() {
                    return Err(self.bad_literal("it is beyond the greatest float; infinity is `inf`"));
                }
                Ok(Literal::f32(if negative { -value } else { value }))
            }
            "" => Err(self.expected("a literal with its type, such as `7u32` or `1.5f32`")),
            _ => Err(self.bad_literal("its type is not `u32`, `i32`, `u64` or `f32`")),
        }
    }
}
