//! The text form, `.vir`: how people read and write programs. `docs/vir.md` is the reference.
//!
//! ```
//! let text = "\
//! program add_one kernel workgroup(64, 1, 1)
//! buffer data: global u32 read_write min 1
//!
//! entry {
//!   let i: u32 = global_id.x;
//!   if i < len(data) {
//!     data[i] = data[i] + 1u32;
//!   }
//! }
//! ";
//! let program = vyre_foundation::text::parse(text)?;
//! assert_eq!(vyre_foundation::text::print(&program), text);
//! # Ok::<(), vyre_foundation::text::ParseError>(())
//! ```
//!
//! [`parse`] gives back what [`print()`] was given, for every program whose names are names and unique, and
//! whose ids point at something: floats bit for bit, ill-typed and misplaced things included. So the text
//! form can say most of what the validator refuses. What is no such program prints too, as text that
//! [`parse`] refuses.
//!
//! The parser resolves names and checks nothing else: types, scopes and limits are the validator's. It makes
//! nothing that the wire form cannot hold, so its recursion has the same bound.
//!
//! Absent on purpose: type inference, untyped literals, implicit conversions, macros, includes. The form is
//! as explicit as the data structure.

mod expression;
pub(crate) mod lexer;
mod parser;
mod printer;
mod source_map;
mod statement;
mod words;

use crate::ir::Program;
use crate::names::NameError;
use crate::wire::MAX_DEPTH;

pub use source_map::SourceMap;

/// The name of an entry that is written without one.
pub const ENTRY_NAME: &str = "main";

/// The text of a program.
pub fn print(program: &Program) -> String {
    printer::print(program)
}

/// The program that a text describes.
///
/// # Errors
///
/// The first thing that is no part of one.
pub fn parse(text: &str) -> Result<Program, ParseError> {
    parse_with_source_map(text).map(|(program, _)| program)
}

/// The program that a text describes, and the lines its parts stand on.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_with_source_map(text: &str) -> Result<(Program, SourceMap), ParseError> {
    parser::Parser::new(text)?.program()
}

/// Why a text is not a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {problem}")]
pub struct ParseError {
    /// The line, counted from 1.
    pub line: u32,
    /// The column, in characters, counted from 1.
    pub column: u32,
    /// What is wrong there.
    pub problem: ParseProblem,
}

/// What is wrong at a place of a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseProblem {
    /// More text than lines and columns can be counted in.
    #[error("the text has {0} bytes; split the program: one has at most 4294967295")]
    TooLong(usize),
    /// A character that begins no token.
    #[error("no token begins with {0:?}; outside of comments the text is ASCII")]
    Character(char),
    /// Something else should be here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What should be here.
        expected: String,
        /// What is.
        found: String,
    },
    /// A number that is no literal of its type.
    #[error("`{text}` is no literal: {reason}")]
    Literal {
        /// The number.
        text: String,
        /// Why it is not.
        reason: &'static str,
    },
    /// A name that may not be one.
    #[error("`{name}` cannot be a name: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        reason: NameError,
    },
    /// A name that nothing bears.
    #[error("there is no {what} called `{name}`{hint}")]
    Unknown {
        /// What it should name.
        what: &'static str,
        /// The name.
        name: String,
        /// Where one must come from.
        hint: &'static str,
    },
    /// A name borne twice.
    #[error("the {what} `{name}` is already defined on line {line}; rename one")]
    Duplicate {
        /// What bears it.
        what: &'static str,
        /// The name.
        name: String,
        /// Where the other is.
        line: u32,
    },
    /// Blocks or expressions nest too deeply.
    #[error(
        "nested too deeply, more than {MAX_DEPTH} levels; name intermediate values with `let`, or move code to a function"
    )]
    TooDeep,
}
