//! The text being written: lines, indentation, and what each line stems from.

use std::fmt::{self, Write as _};

use super::LineMap;

/// One step from a block's owner to a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Body(usize),
    Then(usize),
    Otherwise(usize),
    Case(usize, usize),
    Default(usize),
    Block(usize),
}

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
    pub(super) fn mark(&mut self, entry: bool, function: &str, path: &[Step]) {
        self.lines.push((self.line + 1, place(entry, function, path)));
    }

    /// Says that what follows stems from no statement.
    pub(super) fn unmark(&mut self) {
        self.lines.push((self.line + 1, String::new()));
    }

    pub(super) fn finish(self) -> (String, LineMap) {
        (self.text, LineMap(self.lines))
    }
}

/// A place as the validator shows it.
fn place(entry: bool, function: &str, path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        if !text.is_empty() {
            text.push('.');
        }
        let _ = match step {
            Step::Body(index) => write!(text, "body[{index}]"),
            Step::Then(index) => write!(text, "then[{index}]"),
            Step::Otherwise(index) => write!(text, "else[{index}]"),
            Step::Case(case, index) => write!(text, "cases[{case}].body[{index}]"),
            Step::Default(index) => write!(text, "default[{index}]"),
            Step::Block(index) => write!(text, "block[{index}]"),
        };
    }
    format!("{} {function} / {text}", if entry { "entry" } else { "fn" })
}
