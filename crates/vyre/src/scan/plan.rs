//! Which rules share a table, and how much of each rule the table sees.
//!
//! Every byte is stepped once for each table, so the fewer tables the better; and the more of a rule its table
//! sees, the fewer files are confirmed on the host in vain. Small sets of rules get tables of the whole rules;
//! larger ones get tables of prefixes; what does not fit even so is halved. A rule that fits no table by
//! itself is run on the host.
//!
//! Building takes some 50 microseconds a state, which is why the early attempts give up early.

use regex_automata::util::syntax;

use super::automaton::{Automaton, MAX_GROUP_RULES};
use super::prefix::necessary;
use super::rules::Rules;

/// How far rules are cut, and how large the dense table may then be in `regex-automata`, before another cut
/// is tried. The last line is the stated limit: a single rule that is past it is run on the host.
pub const ATTEMPTS: &[(Option<usize>, usize)] =
    &[(None, 256 << 10), (Some(12), 512 << 10), (Some(6), 4 << 20)];

/// How the rules are run.
#[derive(Debug)]
pub struct Plan {
    groups: Vec<Group>,
    host: Vec<usize>,
}

/// Rules that share a table.
#[derive(Debug)]
pub struct Group {
    /// The rules by their place in [`Rules::as_slice`]; rule `i` of this list is bit `i` of a mask.
    pub rules: Vec<usize>,
    /// Their table.
    pub automaton: Automaton,
    /// Bytes of a rule's prefix that the table sees, if it was cut.
    pub cut: Option<usize>,
}

impl Plan {
    /// Builds the tables.
    pub fn new(rules: &Rules) -> Plan {
        let mut plan = Plan { groups: Vec::new(), host: Vec::new() };
        let all: Vec<usize> = (0..rules.len()).collect();
        // Chunks of one size: 33 rules are 17 and 16, not 32 and 1.
        let chunks = rules.len().div_ceil(MAX_GROUP_RULES);
        for chunk in all.chunks(rules.len().div_ceil(chunks.max(1)).max(1)) {
            plan.add(rules, chunk);
        }
        plan
    }

    /// The groups that are stepped in the megakernel.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The rules that are run on the host, by their place in [`Rules::as_slice`].
    pub fn host(&self) -> &[usize] {
        &self.host
    }

    fn add(&mut self, rules: &Rules, chunk: &[usize]) {
        if let Some(group) = ATTEMPTS.iter().find_map(|&(cut, limit)| group(rules, chunk, cut, limit)) {
            self.groups.push(group);
        } else if chunk.len() > 1 {
            let (left, right) = chunk.split_at(chunk.len() / 2);
            self.add(rules, left);
            self.add(rules, right);
        } else {
            self.host.extend(chunk);
        }
    }
}

fn group(rules: &Rules, chunk: &[usize], cut: Option<usize>, limit: usize) -> Option<Group> {
    let config = syntax::Config::new().utf8(false);
    let expressions: Option<Vec<_>> = chunk
        .iter()
        .map(|&rule| {
            let pattern = rules.as_slice().get(rule)?.regex.as_str();
            Some(necessary(&syntax::parse_with(pattern, &config).ok()?, cut))
        })
        .collect();
    let automaton = Automaton::build(&expressions?, limit)?;
    Some(Group { rules: chunk.to_vec(), automaton, cut })
}
