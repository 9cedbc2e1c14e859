//! Text into programs: declarations, functions and the tokens they are made of. Statements are in
//! `statement.rs`, expressions in `expression.rs`.

use super::lexer::{Token, TokenKind, tokens};
use super::source_map::{Lines, SourceMap};
use super::words::Words;
use super::{ENTRY_NAME, ParseError, ParseProblem};
use crate::ir::{
    BufferDecl, BufferId, External, ExternalBuffer, ExternalId, Function, FunctionId, Local, MemorySpace,
    Program, ProgramKind, VarId,
};
use crate::names::check_name;
use crate::types::ScalarType;
use std::collections::HashMap;

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Names of one kind, with the line that defines each.
pub(super) struct Names<'t, Id> {
    what: &'static str,
    hint: &'static str,
    of: HashMap<&'t str, (Id, u32)>,
}

impl<'t, Id: Copy> Names<'t, Id> {
    fn new(what: &'static str, hint: &'static str) -> Self {
        Names { what, hint, of: HashMap::new() }
    }

    fn define(&mut self, name: Name<'t>, id: Id) -> Result<()> {
        match self.of.insert(name.text, (id, name.line)) {
            None => Ok(()),
            Some((_, line)) => {
                let problem = ParseProblem::Duplicate { what: self.what, name: name.text.to_owned(), line };
                Err(name.error(problem))
            }
        }
    }

    pub(super) fn resolve(&self, name: Name<'_>) -> Result<Id> {
        self.of.get(name.text).map(|(id, _)| *id).ok_or_else(|| {
            let (what, hint) = (self.what, self.hint);
            name.error(ParseProblem::Unknown { what, name: name.text.to_owned(), hint })
        })
    }
}

/// A name and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Name<'t> {
    pub(super) text: &'t str,
    line: u32,
    column: u32,
}

impl Name<'_> {
    pub(super) fn error(self, problem: ParseProblem) -> ParseError {
        ParseError { line: self.line, column: self.column, problem }
    }
}

pub(super) struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
    /// Statements around the current token.
    pub(super) statements: u32,
    pub(super) buffers: Names<'t, BufferId>,
    pub(super) buffer_decls: Vec<BufferDecl>,
    pub(super) externals: Names<'t, ExternalId>,
    pub(super) external_decls: Vec<External>,
    pub(super) functions: Names<'t, FunctionId>,
    /// Results of every function, those not parsed yet included.
    pub(super) function_results: Vec<Vec<ScalarType>>,
    pub(super) locals: Names<'t, VarId>,
    pub(super) local_decls: Vec<Local>,
    /// Whether the current function lists its locals, so that definitions define no more.
    pub(super) listed: bool,
    pub(super) lines: Lines,
}

impl<'t> Parser<'t> {
    pub(super) fn new(text: &'t str) -> Result<Self> {
        Ok(Parser {
            tokens: tokens(text)?,
            at: 0,
            statements: 0,
            buffers: Names::new("buffer", "; declare it with `buffer` before the functions"),
            buffer_decls: Vec::new(),
            externals: Names::new("external function", "; declare it with `external` before the functions"),
            external_decls: Vec::new(),
            functions: Names::new("function", ""),
            function_results: Vec::new(),
            locals: Names::new("local", " defined above"),
            local_decls: Vec::new(),
            listed: false,
            lines: Lines::default(),
        })
    }

    pub(super) fn program(mut self) -> Result<(Program, SourceMap)> {
        let mut map = SourceMap { program: self.line(), ..SourceMap::default() };
        self.word("program")?;
        let name = self.name()?.text.to_owned();
        let kind = self.kind()?;
        self.word("workgroup")?;
        self.symbol("(")?;
        let x = self.number("the workgroup size along x")?;
        self.symbol(",")?;
        let y = self.number("the workgroup size along y")?;
        self.symbol(",")?;
        let z = self.number("the workgroup size along z")?;
        self.symbol(")")?;
        while self.at_word("buffer") {
            map.buffers.push(self.line());
            self.buffer()?;
        }
        while self.at_word("external") {
            map.externals.push(self.line());
            self.external()?;
        }
        self.signatures()?;
        let mut functions = Vec::new();
        while self.at_word("fn") {
            self.lines = Lines::at(self.line());
            self.next();
            let name = self.name()?.text.to_owned();
            functions.push(self.function(name)?);
            map.functions.push(std::mem::take(&mut self.lines));
        }
        if !self.at_word("entry") {
            return Err(self.expected("`buffer`, `external`, `fn` or `entry`, in this order"));
        }
        self.lines = Lines::at(self.line());
        self.next();
        let has_name = !self.at_symbol("(") && !self.at_symbol("{");
        let entry_name = if has_name { self.name()?.text } else { ENTRY_NAME };
        let entry = self.function(entry_name.to_owned())?;
        map.entry = std::mem::take(&mut self.lines);
        if self.kind_of_token() != TokenKind::End {
            return Err(self.expected("the end of the text: the entry comes last"));
        }
        let (buffers, externals) = (self.buffer_decls, self.external_decls);
        Ok((Program { name, kind, workgroup_size: [x, y, z], buffers, externals, functions, entry }, map))
    }

    fn kind(&mut self) -> Result<ProgramKind> {
        if self.take_word("kernel") {
            return Ok(ProgramKind::Kernel);
        }
        if !self.take_word("item") {
            return Err(self.expected("`kernel` or `item`"));
        }
        self.symbol("(")?;
        let granularity = self.any_word()?;
        self.symbol(")")?;
        Ok(ProgramKind::Item(granularity))
    }

    fn buffer(&mut self) -> Result<()> {
        self.next();
        let name = self.name()?;
        self.symbol(":")?;
        let space = self.any_word()?;
        let element = self.any_word()?;
        let access = self.any_word()?;
        self.word(if space == MemorySpace::Workgroup { "len" } else { "min" })?;
        let len = self.number("a number of elements")?;
        self.buffers.define(name, BufferId(self.buffer_decls.len() as u32))?;
        let name = name.text.to_owned();
        self.buffer_decls.push(BufferDecl { name, space, element, access, len });
        Ok(())
    }

    fn external(&mut self) -> Result<()> {
        self.next();
        let name = self.name()?;
        let (mut params, mut buffers) = (Vec::new(), Vec::new());
        self.symbol("(")?;
        self.list(")", |p| p.any_word().map(|ty| params.push(ty)))?;
        self.word("buffers")?;
        self.symbol("(")?;
        self.list(")", |p| {
            buffers.push(ExternalBuffer { element: p.any_word()?, access: p.any_word()? });
            Ok(())
        })?;
        let results = self.results()?;
        self.externals.define(name, ExternalId(self.external_decls.len() as u32))?;
        self.external_decls.push(External { name: name.text.to_owned(), params, buffers, results });
        Ok(())
    }

    /// Looks ahead for the signatures of all functions, so that one can call another that comes later. `fn`
    /// is reserved, so it stands nowhere but before a function.
    fn signatures(&mut self) -> Result<()> {
        let start = self.at;
        let functions = (start..).zip(self.tokens.get(start..).unwrap_or_default());
        let functions = functions.filter(|(_, token)| token.kind == TokenKind::Word("fn"));
        let functions: Vec<usize> = functions.map(|(at, _)| at).collect();
        for at in functions {
            self.at = at + 1;
            let name = self.name()?;
            self.params()?;
            let results = self.results()?;
            self.functions.define(name, FunctionId(self.function_results.len() as u32))?;
            self.function_results.push(results);
        }
        self.at = start;
        Ok(())
    }

    /// Forgets the locals of the function before.
    fn no_params(&mut self) -> u32 {
        self.locals.of.clear();
        self.local_decls.clear();
        0
    }

    /// Forgets the locals of the function before, and reads the parameters of the next.
    fn params(&mut self) -> Result<u32> {
        self.no_params();
        self.symbol("(")?;
        self.list(")", |p| p.declaration())?;
        Ok(self.local_decls.len() as u32)
    }

    /// `x: u32` or `var x: u32`, in a list of parameters or locals.
    fn declaration(&mut self) -> Result<()> {
        let mutable = self.take_word("var");
        let name = self.name()?;
        self.symbol(":")?;
        let ty = self.any_word()?;
        self.add_local(name, ty, mutable).map(drop)
    }

    pub(super) fn add_local(&mut self, name: Name<'t>, ty: ScalarType, mutable: bool) -> Result<VarId> {
        let id = VarId(self.local_decls.len() as u32);
        self.locals.define(name, id)?;
        self.local_decls.push(Local { name: name.text.to_owned(), ty, mutable });
        Ok(id)
    }

    fn results(&mut self) -> Result<Vec<ScalarType>> {
        if !self.take_symbol("->") {
            return Ok(Vec::new());
        }
        if !self.take_symbol("(") {
            return Ok(vec![self.any_word()?]);
        }
        let mut results = Vec::new();
        self.list(")", |p| p.any_word().map(|ty| results.push(ty)))?;
        Ok(results)
    }

    /// From the parameters to the closing brace.
    fn function(&mut self, name: String) -> Result<Function> {
        // Only the entry may have no parentheses; for all others, `signatures` has seen them.
        let params = if self.at_symbol("{") { self.no_params() } else { self.params()? };
        let results = self.results()?;
        self.symbol("{")?;
        self.listed = self.take_word("locals");
        if self.listed {
            self.symbol("(")?;
            self.list(")", |p| p.declaration())?;
            self.symbol(";")?;
        }
        let body = self.statements_to_brace()?;
        let locals = std::mem::take(&mut self.local_decls);
        Ok(Function { name, params, results, locals, body })
    }

    /// Elements with commas between them, up to the closing symbol.
    pub(super) fn list(
        &mut self,
        close: &'static str,
        mut element: impl FnMut(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if self.take_symbol(close) {
            return Ok(());
        }
        loop {
            element(self)?;
            if self.take_symbol(close) {
                return Ok(());
            }
            if !self.take_symbol(",") {
                return Err(self.expected(&format!("`,` or `{close}`")));
            }
        }
    }

    fn token(&self) -> Token<'t> {
        let end = Token { kind: TokenKind::End, line: 1, column: 1 };
        self.tokens.get(self.at).or(self.tokens.last()).copied().unwrap_or(end)
    }

    pub(super) fn kind_of_token(&self) -> TokenKind<'t> {
        self.token().kind
    }

    /// The token after the current one.
    pub(super) fn second(&self) -> TokenKind<'t> {
        self.tokens.get(self.at + 1).map_or(TokenKind::End, |token| token.kind)
    }

    pub(super) fn line(&self) -> u32 {
        self.token().line
    }

    pub(super) fn next(&mut self) {
        self.at += 1;
    }

    /// To the token before.
    pub(super) fn back(&mut self) {
        self.at = self.at.saturating_sub(1);
    }

    pub(super) fn error(&self, problem: ParseProblem) -> ParseError {
        let Token { line, column, .. } = self.token();
        ParseError { line, column, problem }
    }

    pub(super) fn expected(&self, expected: &str) -> ParseError {
        let found = self.kind_of_token().to_string();
        self.error(ParseProblem::Expected { expected: expected.to_owned(), found })
    }

    pub(super) fn at_symbol(&self, symbol: &str) -> bool {
        matches!(self.kind_of_token(), TokenKind::Symbol(found) if found == symbol)
    }

    pub(super) fn at_word(&self, word: &str) -> bool {
        matches!(self.kind_of_token(), TokenKind::Word(found) if found == word)
    }

    pub(super) fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = self.at_symbol(symbol);
        self.at += usize::from(found);
        found
    }

    pub(super) fn take_word(&mut self, word: &str) -> bool {
        let found = self.at_word(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn symbol(&mut self, symbol: &str) -> Result<()> {
        if self.take_symbol(symbol) { Ok(()) } else { Err(self.expected(&format!("`{symbol}`"))) }
    }

    pub(super) fn word(&mut self, word: &str) -> Result<()> {
        if self.take_word(word) { Ok(()) } else { Err(self.expected(&format!("`{word}`"))) }
    }

    /// One of the words of an enum.
    pub(super) fn any_word<T: Words>(&mut self) -> Result<T> {
        let found = match self.kind_of_token() {
            TokenKind::Word(word) => T::from_word(word),
            _ => None,
        };
        let value = found.ok_or_else(|| self.expected(T::WHAT))?;
        self.next();
        Ok(value)
    }

    pub(super) fn name(&mut self) -> Result<Name<'t>> {
        let TokenKind::Word(text) = self.kind_of_token() else { return Err(self.expected("a name")) };
        if let Err(reason) = check_name(text) {
            return Err(self.error(ParseProblem::Name { name: text.to_owned(), reason }));
        }
        let Token { line, column, .. } = self.token();
        self.next();
        Ok(Name { text, line, column })
    }

    /// A `u32` without a suffix: a size, a case, a step.
    pub(super) fn number(&mut self, what: &str) -> Result<u32> {
        let TokenKind::Number { digits, suffix: "" } = self.kind_of_token() else {
            return Err(self.expected(&format!("{what}, a number without a type")));
        };
        let value = u32::try_from(self.integer(digits)?);
        let value = value.map_err(|_| self.bad_literal("it is above 4294967295"))?;
        self.next();
        Ok(value)
    }

    /// The value of the digits of the current token.
    pub(super) fn integer(&self, digits: &str) -> Result<u64> {
        let parsed = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        parsed.map_err(|error| {
            self.bad_literal(match error.kind() {
                std::num::IntErrorKind::PosOverflow => "it is above 18446744073709551615",
                _ => "an integer is decimal digits, or `0x` and hexadecimal ones",
            })
        })
    }

    pub(super) fn bad_literal(&self, reason: &'static str) -> ParseError {
        let text = self.kind_of_token().to_string().replace('`', "");
        self.error(ParseProblem::Literal { text, reason })
    }
}
