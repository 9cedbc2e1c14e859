//! Text into statements.

use super::ParseProblem;
use super::lexer::TokenKind;
use super::parser::{Name, Parser, Result};
use super::words::Words;
use crate::ir::{
    Atomic, AtomicOp, Expr, ExternalCall, Node, ReduceOp, RmwOp, Subgroup, SubgroupOp, SwitchCase, VarId,
};
use crate::types::ScalarType;
use crate::wire::MAX_DEPTH;

/// A local at its definition.
struct Definition<'t> {
    name: Name<'t>,
    /// The type, where it is written.
    ty: Option<ScalarType>,
    mutable: bool,
}

impl<'t> Parser<'t> {
    /// Statements up to and with the closing brace.
    pub(super) fn statements_to_brace(&mut self) -> Result<Vec<Node>> {
        let mut body = Vec::new();
        while !self.take_symbol("}") {
            body.push(self.statement()?);
        }
        Ok(body)
    }

    fn block(&mut self) -> Result<Vec<Node>> {
        self.symbol("{")?;
        self.statements_to_brace()
    }

    fn statement(&mut self) -> Result<Node> {
        self.lines.nodes.push(self.line());
        if self.statements >= MAX_DEPTH {
            return Err(self.error(ParseProblem::TooDeep));
        }
        self.statements += 1;
        let node = self.statement_inside()?;
        self.statements -= 1;
        Ok(node)
    }

    fn statement_inside(&mut self) -> Result<Node> {
        if self.at_symbol("{") {
            return Ok(Node::Block(self.block()?));
        }
        let TokenKind::Word(word) = self.kind_of_token() else {
            return Err(self.expected("a statement or `}`"));
        };
        let node = match word {
            "if" => return self.if_else(),
            "switch" => return self.switch(),
            "for" => return self.for_loop(),
            "while" => return self.while_loop(),
            "let" | "var" => self.definition()?,
            "atomic" => self.atomic(None)?,
            "call" => self.call(Vec::new())?,
            // No reserved word either: another one behind it makes it a call.
            "call_external" if matches!(self.second(), TokenKind::Word(_)) => {
                self.call_external(Vec::new())?
            }
            "return" => self.return_values()?,
            "trap" => {
                self.next();
                Node::Trap(self.expr()?)
            }
            "break" => self.past(Node::Break),
            "continue" => self.past(Node::Continue),
            "barrier" => self.past(Node::WorkgroupBarrier),
            "grid_barrier" => self.past(Node::GridBarrier),
            _ => self.store_or_assign()?,
        };
        self.symbol(";")?;
        Ok(node)
    }

    /// What the current token stands for alone; goes past it.
    pub(super) fn past<T>(&mut self, meaning: T) -> T {
        self.next();
        meaning
    }

    fn if_else(&mut self) -> Result<Node> {
        self.next();
        let condition = self.expr()?;
        let then = self.block()?;
        let mut otherwise = Vec::new();
        if self.take_word("else") {
            if self.at_word("if") {
                otherwise.push(self.statement()?);
            } else {
                otherwise = self.block()?;
            }
        }
        Ok(Node::If { condition, then, otherwise })
    }

    fn switch(&mut self) -> Result<Node> {
        self.next();
        let selector = self.expr()?;
        self.symbol("{")?;
        let mut cases = Vec::new();
        while self.take_word("case") {
            let mut values = Vec::new();
            self.list("{", |p| p.number("a case").map(|value| values.push(value)))?;
            cases.push(SwitchCase { values, body: self.statements_to_brace()? });
        }
        let default = if self.take_word("default") { self.block()? } else { Vec::new() };
        if !self.take_symbol("}") {
            return Err(self.expected("`case`, `default` or `}`, in this order"));
        }
        Ok(Node::Switch { selector, cases, default })
    }

    fn for_loop(&mut self) -> Result<Node> {
        self.next();
        let counter = self.defined(false)?;
        if !self.take_word("in") {
            return Err(self.expected("`in`"));
        }
        let start = self.expr()?;
        self.symbol("..")?;
        let end = self.expr()?;
        let step = if self.take_word("step") { self.number("a step")? } else { 1 };
        let var = self.define(counter, Some(ScalarType::U32))?;
        Ok(Node::For { var, start, end, step, body: self.block()? })
    }

    fn while_loop(&mut self) -> Result<Node> {
        self.next();
        Ok(Node::While { condition: self.expr()?, body: self.block()? })
    }

    fn return_values(&mut self) -> Result<Node> {
        self.next();
        let mut values = Vec::new();
        self.list(";", |p| p.expr().map(|value| values.push(value)))?;
        // The caller takes it, as after every statement without a block.
        self.back();
        Ok(Node::Return(values))
    }

    fn store_or_assign(&mut self) -> Result<Node> {
        match self.second() {
            TokenKind::Symbol("[") => {
                let (buffer, index) = self.element()?;
                self.symbol("=")?;
                Ok(Node::Store { buffer, index, value: self.expr()? })
            }
            TokenKind::Symbol("=") => {
                let name = self.name()?;
                let var = self.locals.resolve(name)?;
                self.next();
                Ok(Node::Assign { var, value: self.expr()? })
            }
            _ => Err(self.expected("a statement or `}`")),
        }
    }

    fn definition(&mut self) -> Result<Node> {
        let mutable = self.at_word("var");
        self.next();
        if self.take_symbol("(") {
            let mut results = Vec::new();
            self.list(")", |p| p.defined(mutable).map(|result| results.push(result)))?;
            self.symbol("=")?;
            return if self.at_word("call") { self.call(results) } else { self.call_external(results) };
        }
        let local = self.defined(mutable)?;
        if !self.at_symbol("=") {
            return Err(self.expected("`:` and a type, or `=`"));
        }
        self.next();
        if self.at_word("call") {
            return self.call(vec![local]);
        }
        if self.at_word("atomic") {
            return self.atomic(Some(local));
        }
        // These words are not reserved: elsewhere they may be names, and a dot makes one a builtin.
        if matches!(self.second(), TokenKind::Word(_)) {
            if self.at_word("subgroup") {
                return self.subgroup(local);
            }
            if self.at_word("call_external") {
                return self.call_external(vec![local]);
            }
        }
        // The value comes first: it cannot be made of what it defines.
        let value = self.expr()?;
        Ok(Node::Let { var: self.define(local, None)?, value })
    }

    /// A name, and its type if one is written.
    fn defined(&mut self, mutable: bool) -> Result<Definition<'t>> {
        let name = self.name()?;
        let ty = if self.take_symbol(":") { Some(self.any_word()?) } else { None };
        Ok(Definition { name, ty, mutable })
    }

    /// The local that a definition defines, whose type is `implied` if none is written.
    fn define(&mut self, definition: Definition<'t>, implied: Option<ScalarType>) -> Result<VarId> {
        let Definition { name, ty, mutable } = definition;
        let expected = |expected: &str| {
            let found = format!("`{}`", name.text);
            name.error(ParseProblem::Expected { expected: expected.to_owned(), found })
        };
        if self.listed {
            if ty.is_some() || mutable {
                return Err(expected("`let` and a name alone, since `locals` says the rest,"));
            }
            return self.locals.resolve(name);
        }
        match ty.or(implied) {
            Some(ty) => self.add_local(name, ty, mutable),
            None => Err(expected("a name with its type, such as `x: u32`")),
        }
    }

    fn atomic(&mut self, result: Option<Definition<'t>>) -> Result<Node> {
        self.next();
        let TokenKind::Word(verb) = self.kind_of_token() else {
            return Err(self.expected(RmwOp::WHAT));
        };
        let rmw = RmwOp::from_word(verb);
        if rmw.is_none() && !matches!(verb, "load" | "store" | "compare_exchange") {
            return Err(self.expected(RmwOp::WHAT));
        }
        self.next();
        let scope = self.any_word()?;
        let ordering = self.any_word()?;
        let (buffer, index) = self.element()?;
        let op = match (verb, rmw) {
            (_, Some(op)) => AtomicOp::Rmw(op, self.operand_after_comma()?),
            ("load", None) => AtomicOp::Load,
            ("store", None) => AtomicOp::Store(self.operand_after_comma()?),
            (_, None) => AtomicOp::CompareExchange {
                expected: self.operand_after_comma()?,
                replacement: self.operand_after_comma()?,
            },
        };
        let ty = self.buffer_decls.get(buffer.0 as usize).map(|buffer| buffer.element.scalar());
        let result = result.map(|result| self.define(result, ty)).transpose()?;
        Ok(Node::Atomic(Atomic { op, buffer, index, ordering, scope, result }))
    }

    fn subgroup(&mut self, result: Definition<'t>) -> Result<Node> {
        self.next();
        let verb = match self.kind_of_token() {
            TokenKind::Word(verb) => verb,
            _ => "",
        };
        let with_operand = matches!(verb, "broadcast" | "shuffle" | "shuffle_xor");
        self.next();
        let mut op = match verb {
            // With an operand, this stands for it until it is read.
            "broadcast_first" | "broadcast" | "shuffle" | "shuffle_xor" => SubgroupOp::BroadcastFirst,
            "reduce" => SubgroupOp::Reduce(self.any_word::<ReduceOp>()?),
            "inclusive_scan" => SubgroupOp::InclusiveScan(self.any_word()?),
            "exclusive_scan" => SubgroupOp::ExclusiveScan(self.any_word()?),
            "ballot" => SubgroupOp::Ballot,
            "any" => SubgroupOp::Any,
            "all" => SubgroupOp::All,
            _ => {
                self.back();
                return Err(self.expected("a subgroup operation, such as `reduce add` or `shuffle`"));
            }
        };
        let value = self.expr()?;
        if with_operand {
            let operand = self.operand_after_comma()?;
            op = match verb {
                "broadcast" => SubgroupOp::Broadcast(operand),
                "shuffle" => SubgroupOp::Shuffle(operand),
                _ => SubgroupOp::ShuffleXor(operand),
            };
        }
        let result = self.define(result, vote_type(&op))?;
        Ok(Node::Subgroup(Subgroup { op, value, result }))
    }

    fn operand_after_comma(&mut self) -> Result<Expr> {
        self.symbol(",")?;
        self.expr()
    }

    fn call(&mut self, results: Vec<Definition<'t>>) -> Result<Node> {
        self.word("call")?;
        let name = self.name()?;
        let function = self.functions.resolve(name)?;
        self.symbol("(")?;
        let mut args = Vec::new();
        self.list(")", |p| p.expr().map(|arg| args.push(arg)))?;
        let types = self.function_results.get(function.0 as usize).cloned().unwrap_or_default();
        Ok(Node::Call { results: self.define_all(results, types)?, function, args })
    }

    fn call_external(&mut self, results: Vec<Definition<'t>>) -> Result<Node> {
        if !self.take_word("call_external") {
            return Err(self.expected("`call` or `call_external`"));
        }
        let name = self.name()?;
        let external = self.externals.resolve(name)?;
        let (mut args, mut buffers) = (Vec::new(), Vec::new());
        self.symbol("(")?;
        self.list(")", |p| p.expr().map(|arg| args.push(arg)))?;
        self.word("buffers")?;
        self.symbol("(")?;
        self.list(")", |p| p.buffer_name().map(|buffer| buffers.push(buffer)))?;
        let declared = self.external_decls.get(external.0 as usize);
        let types = declared.map(|external| external.results.clone()).unwrap_or_default();
        let results = self.define_all(results, types)?;
        Ok(Node::CallExternal(ExternalCall { external, args, buffers, results }))
    }

    /// The locals that a call defines, each with the type of the function's result unless one is written.
    fn define_all(&mut self, results: Vec<Definition<'t>>, types: Vec<ScalarType>) -> Result<Vec<VarId>> {
        let types = types.into_iter().map(Some).chain(std::iter::repeat(None));
        results.into_iter().zip(types).map(|(result, ty)| self.define(result, ty)).collect()
    }
}

/// The type of a vote's result, which needs not be written.
pub(super) fn vote_type(op: &SubgroupOp) -> Option<ScalarType> {
    match op {
        SubgroupOp::Ballot => Some(ScalarType::U64),
        SubgroupOp::Any | SubgroupOp::All => Some(ScalarType::Bool),
        _ => None,
    }
}
