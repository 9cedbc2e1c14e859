//! The `run:` comments: what goes in, and what must come out.

use crate::ir::{BufferDecl, MemorySpace, Program, ProgramKind};
use crate::semantics::widen;
use crate::text::lexer::{Token, TokenKind, tokens};
use crate::types::{DataType, Literal};
use std::fmt::Write as _;

/// What a backend is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunCase {
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
    /// First contents of the buffers, in the order of declaration, workgroup buffers left out.
    pub buffers: Vec<Vec<u8>>,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOutcome {
    /// The buffers of the case afterwards.
    pub buffers: Vec<Vec<u8>>,
    /// The trap code, if an invocation trapped.
    pub trap: Option<u32>,
}

/// What must come out.
pub(super) struct Expected {
    trap: Option<u32>,
    /// For each buffer of the case, its elements; `None` where the file does not say.
    buffers: Vec<Option<Vec<Element>>>,
}

/// An element as it is written.
#[derive(Clone, Copy)]
enum Element {
    /// `_`: anything.
    Any,
    /// `nan`: any NaN, and the quiet one with no payload where it goes in.
    Nan,
    /// Anything else: these bits.
    Bits(u64),
}

/// Buffers that a dispatch binds.
fn bound(program: &Program) -> impl Iterator<Item = &BufferDecl> {
    program.buffers.iter().filter(|buffer| buffer.space != MemorySpace::Workgroup)
}

/// Reads `grid(X, Y, Z) NAME=[...]... -> NAME=[...]... trap(CODE)`.
pub(super) fn parse(text: &str, program: &Program) -> Result<(RunCase, Expected), String> {
    if program.kind != ProgramKind::Kernel {
        return Err("only a kernel can be run".to_owned());
    }
    let tokens = tokens(text).map_err(|error| error.problem.to_string())?;
    let mut p = HeaderParser { tokens, at: 0 };
    p.word("grid")?;
    p.symbol("(")?;
    let x = p.number()?;
    p.symbol(",")?;
    let y = p.number()?;
    p.symbol(",")?;
    let z = p.number()?;
    p.symbol(")")?;
    let mut inputs = vec![None; bound(program).count()];
    while !p.take("->") {
        p.buffer(program, &mut inputs)?;
    }
    let mut outputs = vec![None; inputs.len()];
    let mut trap = None;
    while p.kind() != TokenKind::End {
        if p.kind() == TokenKind::Word("trap") && p.kind_after() == TokenKind::Symbol("(") {
            p.word("trap")?;
            p.symbol("(")?;
            trap = Some(p.number()?);
            p.symbol(")")?;
        } else {
            p.buffer(program, &mut outputs)?;
        }
    }
    let mut buffers = Vec::new();
    for (decl, elements) in bound(program).zip(&inputs) {
        // What is not given is zero, and as short as it may be.
        let zeros = vec![Element::Bits(0); decl.len as usize];
        buffers.push(bytes(decl.element, elements.as_ref().unwrap_or(&zeros))?);
    }
    Ok((RunCase { grid: [x, y, z], buffers }, Expected { trap, buffers: outputs }))
}

fn bytes(element: DataType, elements: &[Element]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    for of in elements {
        let bits = match of {
            Element::Any => return Err("`_` is for what comes out".to_owned()),
            Element::Nan => quiet_nan(element),
            Element::Bits(bits) => *bits,
        };
        bytes.extend(bits.to_le_bytes().iter().take(element.size()));
    }
    Ok(bytes)
}

fn quiet_nan(element: DataType) -> u64 {
    match element {
        DataType::F16 => 0x7e00,
        DataType::BF16 => 0x7fc0,
        _ => 0x7fc0_0000,
    }
}

impl Expected {
    /// A buffer of which the file says nothing must be as before, unless a trap was expected: what happens
    /// around one depends on the order of invocations.
    pub(super) fn compare(
        &self,
        program: &Program,
        case: &RunCase,
        outcome: &RunOutcome,
    ) -> Result<(), String> {
        if self.trap != outcome.trap {
            let shown = |trap: Option<u32>| trap.map_or("no trap".to_owned(), |code| format!("trap({code})"));
            return Err(format!("expected {}, found {}", shown(self.trap), shown(outcome.trap)));
        }
        if outcome.buffers.len() != case.buffers.len() {
            return Err(format!("{} buffers came back of {}", outcome.buffers.len(), case.buffers.len()));
        }
        let mut wrong = String::new();
        for (index, decl) in bound(program).enumerate() {
            let (Some(before), Some(after)) = (case.buffers.get(index), outcome.buffers.get(index)) else {
                continue;
            };
            let size = decl.element.size();
            if before.len() != after.len() {
                return Err(format!(
                    "`{}` came back with {} bytes of {}",
                    decl.name,
                    after.len(),
                    before.len()
                ));
            }
            let expected = match self.buffers.get(index).and_then(Option::as_ref) {
                Some(elements) => elements.clone(),
                None if self.trap.is_some() => continue,
                None => before.chunks(size).map(|bytes| Element::Bits(bits(bytes))).collect(),
            };
            if expected.len() * size != after.len() {
                let found = after.len() / size;
                return Err(format!("`{}` has {found} elements, not {}", decl.name, expected.len()));
            }
            for (at, (expected, found)) in expected.iter().zip(after.chunks(size)).enumerate() {
                if !expected.fits(decl.element, bits(found)) && wrong.lines().count() < 16 {
                    let (expected, found) = (expected.show(decl.element), show(decl.element, bits(found)));
                    // Writing to a string does not fail.
                    let _ = writeln!(wrong, "{}[{at}]: expected {expected}, found {found}", decl.name);
                }
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

fn bits(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

fn show(element: DataType, bits: u64) -> String {
    let value = match widen(element, bits) {
        Literal::F32(bits) => format!("{:?}", f32::from_bits(bits)),
        Literal::I32(v) => v.to_string(),
        Literal::U32(v) => v.to_string(),
        Literal::U64(v) => v.to_string(),
        Literal::Bool(v) => v.to_string(),
    };
    format!("{value} ({bits:#x})")
}

impl Element {
    fn fits(self, element: DataType, bits: u64) -> bool {
        match self {
            Element::Any => true,
            Element::Nan => matches!(widen(element, bits), Literal::F32(v) if f32::from_bits(v).is_nan()),
            Element::Bits(expected) => expected == bits,
        }
    }

    fn show(self, element: DataType) -> String {
        match self {
            Element::Any => "_".to_owned(),
            Element::Nan => "nan".to_owned(),
            Element::Bits(bits) => show(element, bits),
        }
    }
}

struct HeaderParser<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
}

impl<'t> HeaderParser<'t> {
    fn kind(&self) -> TokenKind<'t> {
        self.tokens.get(self.at).map_or(TokenKind::End, |token| token.kind)
    }

    fn kind_after(&self) -> TokenKind<'t> {
        self.tokens.get(self.at + 1).map_or(TokenKind::End, |token| token.kind)
    }

    fn expected(&self, expected: &str) -> String {
        let column = self.tokens.get(self.at).map_or(0, |token| token.column);
        format!("run, column {column}: expected {expected}, found {}", self.kind())
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = matches!(self.kind(), TokenKind::Symbol(found) if found == symbol);
        self.at += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &str) -> Result<(), String> {
        if self.take(symbol) { Ok(()) } else { Err(self.expected(&format!("`{symbol}`"))) }
    }

    fn word(&mut self, word: &str) -> Result<(), String> {
        if self.kind() != TokenKind::Word(word) {
            return Err(self.expected(&format!("`{word}`")));
        }
        self.at += 1;
        Ok(())
    }

    fn number(&mut self) -> Result<u32, String> {
        let TokenKind::Number { digits, suffix: "" } = self.kind() else {
            return Err(self.expected("a number"));
        };
        let value = integer(digits).and_then(|value| u32::try_from(value).ok());
        let value = value.ok_or_else(|| self.expected("a u32"))?;
        self.at += 1;
        Ok(value)
    }

    /// `NAME=[ELEMENT, ELEMENT x COUNT]`
    fn buffer(&mut self, program: &Program, buffers: &mut [Option<Vec<Element>>]) -> Result<(), String> {
        let found = match self.kind() {
            TokenKind::Word(name) => bound(program).enumerate().find(|(_, decl)| decl.name == name),
            _ => None,
        };
        let Some((index, decl)) = found else { return Err(self.expected("a bound buffer")) };
        let Some(buffer) = buffers.get_mut(index).filter(|buffer| buffer.is_none()) else {
            return Err(self.expected("each buffer once"));
        };
        self.at += 1;
        self.symbol("=")?;
        self.symbol("[")?;
        let mut elements = Vec::new();
        while !self.take("]") {
            let element = self.element(decl.element)?;
            let count = if self.kind() == TokenKind::Word("x") {
                self.at += 1;
                self.number()?
            } else {
                1
            };
            elements.extend(std::iter::repeat_n(element, count as usize));
            if !self.take(",") {
                self.symbol("]")?;
                break;
            }
        }
        *buffer = Some(elements);
        Ok(())
    }

    fn element(&mut self, ty: DataType) -> Result<Element, String> {
        let negative = self.take("-");
        let is_float = matches!(ty, DataType::F16 | DataType::BF16 | DataType::F32);
        let element = match self.kind() {
            TokenKind::Word("_") if !negative => Some(Element::Any),
            TokenKind::Word("nan") if is_float && !negative => Some(Element::Nan),
            TokenKind::Word("inf") if is_float => float(ty, f32::INFINITY, negative),
            TokenKind::Number { digits, suffix: "" } if is_float && !digits.starts_with("0x") => digits
                .parse()
                .ok()
                .filter(|value: &f32| value.is_finite())
                .and_then(|v| float(ty, v, negative)),
            TokenKind::Number { digits, suffix: "" } => integer(digits).and_then(|v| whole(ty, v, negative)),
            _ => None,
        };
        let element = element.ok_or_else(|| self.expected(&format!("a value that is exact in {ty}")))?;
        self.at += 1;
        Ok(element)
    }
}

fn integer(digits: &str) -> Option<u64> {
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

/// An integer, or the bits of anything.
fn whole(ty: DataType, value: u64, negative: bool) -> Option<Element> {
    let width = ty.size() as u32 * 8;
    let fits = u64::MAX.checked_shr(64 - width).is_some_and(|max| value <= max);
    match ty {
        DataType::I32 if negative => {
            let value = i32::try_from(-i64::try_from(value).ok()?).ok()?;
            Some(Element::Bits(u64::from(value as u32)))
        }
        _ if negative || !fits => None,
        _ => Some(Element::Bits(value)),
    }
}

/// A float that the type holds exactly, but for the rounding of decimals to `f32`.
fn float(ty: DataType, value: f32, negative: bool) -> Option<Element> {
    let value = if negative { -value } else { value };
    let bits = crate::semantics::narrow(ty, Literal::f32(value))?;
    (widen(ty, bits) == Literal::f32(value)).then_some(Element::Bits(bits))
}
