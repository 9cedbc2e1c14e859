//! Where errors are collected, and how places are named.

use std::fmt::Write as _;

use super::error::{Location, ValidationError, ValidationErrorKind, ValidationErrors};
use crate::ir::Function;
use crate::limits::{MAX_NAME_LEN, MAX_REPORTED_ERRORS};

/// The errors found so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    errors: Vec<ValidationError>,
    unreported: u64,
}

impl Report {
    /// Adds an error; its location is only worked out if there is room for it.
    pub(super) fn add(&mut self, location: impl FnOnce() -> Location, kind: ValidationErrorKind) {
        if self.errors.len() < MAX_REPORTED_ERRORS {
            self.errors.push(ValidationError { location: location(), kind });
        } else {
            self.unreported += 1;
        }
    }

    /// Counts an error that nobody will see.
    pub(super) fn add_unseen(&mut self) {
        self.unreported += 1;
    }

    pub(super) fn is_full(&self) -> bool {
        self.errors.len() >= MAX_REPORTED_ERRORS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    pub(super) fn into_errors(self) -> ValidationErrors {
        ValidationErrors { errors: self.errors, unreported: self.unreported }
    }
}

/// One step from a block's owner to a statement, by its index in the block.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// In the body of a function or a loop.
    Body(usize),
    /// In what an `if` runs if it holds.
    Then(usize),
    /// In what an `if` runs if it does not.
    Otherwise(usize),
    /// In the body of a case of a switch, by the case's index.
    Case(usize, usize),
    /// In what a switch runs if no case fits.
    Default(usize),
    /// In a plain block.
    Block(usize),
}

/// The place of a statement in a function, the program's entry or another.
pub fn at(function: &Function, entry: bool, path: &[Step]) -> Location {
    let mut text = String::new();
    for step in path {
        if !text.is_empty() {
            text.push('.');
        }
        // Writing to a string does not fail.
        let _ = match step {
            Step::Body(index) => write!(text, "body[{index}]"),
            Step::Then(index) => write!(text, "then[{index}]"),
            Step::Otherwise(index) => write!(text, "else[{index}]"),
            Step::Case(case, index) => write!(text, "cases[{case}].body[{index}]"),
            Step::Default(index) => write!(text, "default[{index}]"),
            Step::Block(index) => write!(text, "block[{index}]"),
        };
    }
    Location::Function { entry, name: shown(&function.name), path: text }
}

/// A name fit for a message, whatever it contains: names are shown before they are known to be valid.
pub(super) fn shown(name: &str) -> String {
    let end = name.floor_char_boundary(MAX_NAME_LEN);
    match name.get(..end) {
        Some(start) if start.len() < name.len() => format!("{}...", start.escape_debug()),
        _ => name.escape_debug().to_string(),
    }
}

/// The name of the local with an id, or its number where there is none.
pub(super) fn local_name(function: &Function, id: u32) -> String {
    function.locals.get(id as usize).map_or_else(|| format!("#{id}"), |local| shown(&local.name))
}
