//! Where in a text the parts of its program stand, so that the validator's errors can be shown there.

use crate::ir::{Node, Program};
use crate::validate::Location;
use crate::wire::MAX_DEPTH;

/// Lines of a parsed text, counted from 1.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    pub(super) program: u32,
    pub(super) buffers: Vec<u32>,
    pub(super) externals: Vec<u32>,
    pub(super) functions: Vec<Lines>,
    pub(super) entry: Lines,
}

/// Lines of a function.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    head: u32,
    /// One for each statement, in the order of the text.
    pub(super) nodes: Vec<u32>,
}

impl Lines {
    pub(super) fn at(head: u32) -> Lines {
        Lines { head, nodes: Vec::new() }
    }
}

impl SourceMap {
    /// The line of a place in the program that was parsed with this map; that of `program` for the program
    /// as a whole, and for a place it does not have.
    pub fn line(&self, program: &Program, location: &Location) -> u32 {
        self.find(program, location).unwrap_or(self.program)
    }

    fn find(&self, program: &Program, location: &Location) -> Option<u32> {
        match location {
            Location::Program => None,
            Location::Buffer(name) => {
                let index = program.buffers.iter().position(|buffer| buffer.name == *name)?;
                self.buffers.get(index).copied()
            }
            Location::External(name) => {
                let index = program.externals.iter().position(|external| external.name == *name)?;
                self.externals.get(index).copied()
            }
            Location::Function { entry, name, path } => {
                let (function, lines) = if *entry {
                    (&program.entry, &self.entry)
                } else {
                    let index = program.functions.iter().position(|function| function.name == *name)?;
                    (program.functions.get(index)?, self.functions.get(index)?)
                };
                if path.is_empty() {
                    return Some(lines.head);
                }
                let mut before = 0;
                let found = find(&function.body, "body", path, 1, &mut before);
                found.then(|| lines.nodes.get(before).copied()).flatten()
            }
        }
    }
}

/// Counts the statements before the one at `path`; whether there is one. `to` is the path to the block.
fn find(block: &[Node], to: &str, path: &str, depth: u32, before: &mut usize) -> bool {
    let inner = depth + 1;
    // No parsed program is deeper, and no map has lines for another.
    if depth > MAX_DEPTH {
        return false;
    }
    block.iter().enumerate().any(|(index, node)| {
        let here = format!("{to}[{index}]");
        if here == path {
            return true;
        }
        *before += 1;
        match node {
            Node::If { then, otherwise, .. } => {
                find(then, &format!("{here}.then"), path, inner, before)
                    || find(otherwise, &format!("{here}.else"), path, inner, before)
            }
            Node::Switch { cases, default, .. } => {
                let mut cases = cases.iter().enumerate();
                cases.any(|(case, it)| {
                    find(&it.body, &format!("{here}.cases[{case}].body"), path, inner, before)
                }) || find(default, &format!("{here}.default"), path, inner, before)
            }
            Node::For { body, .. } | Node::While { body, .. } => {
                find(body, &format!("{here}.body"), path, inner, before)
            }
            Node::Block(body) => find(body, &format!("{here}.block"), path, inner, before),
            _ => false,
        }
    })
}
