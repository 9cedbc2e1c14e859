//! The text being written: lines, indentation, and what each line stems from.

use std::fmt::{self, Write as _};

use vyre_foundation::Function;
use vyre_foundation::validate::{Step, at};

use super::LineMap;

#[derive(Default)]
pub(super) struct Source {
    text: String,
    line: u32,
    depth: usize,
    lines: Vec<(u32, String)>,
}

impl Source {
    /// Writes one line.
    pub(super) fn line(&mut self, content: impl fmt::Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{:width$}{content}", "", width = self.depth * 2);
        self.line += 1;
    }

    /// An empty line.
    pub(super) fn gap(&mut self) {
        self.text.push('\n');
        self.line += 1;
    }

    /// A line that opens a block.
    pub(super) fn open(&mut self, content: impl fmt::Display) {
        self.line(content);
        self.depth += 1;
    }

    /// A line that closes one block and opens another.
    pub(super) fn reopen(&mut self, content: impl fmt::Display) {
        self.depth = self.depth.saturating_sub(1);
        self.open(content);
    }

    /// A line that closes a block.
    pub(super) fn close(&mut self, content: impl fmt::Display) {
        self.depth = self.depth.saturating_sub(1);
        self.line(content);
    }

    /// Says that what follows stems from a statement.
    pub(super) fn mark(&mut self, entry: bool, function: &Function, path: &[Step]) {
        self.lines.push((self.line + 1, at(function, entry, path).to_string()));
    }

    /// Says that what follows stems from no statement.
    pub(super) fn unmark(&mut self) {
        self.lines.push((self.line + 1, String::new()));
    }

    pub(super) fn finish(self) -> (String, LineMap) {
        (self.text, LineMap(self.lines))
    }
}
