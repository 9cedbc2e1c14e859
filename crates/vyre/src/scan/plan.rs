//! Which rules share a table, and how much of each rule the table sees.
//!
//! Every byte is stepped once for each table, so the fewer tables the better; and the more of a rule its table
//! sees, the fewer files are confirmed on the host in vain. Small sets of rules get tables of the whole rules;
//! larger ones get tables of prefixes; what does not fit even so is halved. A rule that fits no table by
//! itself is run on the host.
//!
//! Building takes 2 to 40 microseconds a state, and what is built in vain costs as much. So an attempt may grow
//! in proportion to the rules in it, which bounds what halving costs; and what fitted last is where the next
//! attempt begins: when a table of so many rules was built, twice as many are tried, but the more seldom, the
//! more often that was in vain. So the work grows with the number of rules, not faster.

use std::ops::Range;

use regex_automata::util::syntax;

use super::automaton::{Automaton, MAX_GROUP_RULES};
use super::prefix::necessary;
use super::rules::Rules;

/// How far rules are cut, and how large the dense table may then be in `regex-automata`, before another cut
/// is tried; [`table_limit`] bounds the last.
pub const ATTEMPTS: &[(Option<usize>, usize)] =
    &[(None, 256 << 10), (Some(12), 512 << 10), (Some(6), 4 << 20)];

/// Bytes that the dense table of so many rules may have, and of one rule before it is run on the host.
pub fn table_limit(rules: usize) -> usize {
    (rules * (128 << 10)).max(512 << 10)
}

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
        let mut groups = Vec::new();
        let host = divide(rules.len(), |chunk| {
            let chunk: Vec<usize> = chunk.collect();
            let built = ATTEMPTS.iter().find_map(|&(cut, most)| group(rules, &chunk, cut, most));
            let fits = built.is_some();
            groups.extend(built);
            fits
        });
        Plan { groups, host }
    }

    /// The groups that are stepped in the megakernel.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The rules that are run on the host, by their place in [`Rules::as_slice`].
    pub fn host(&self) -> &[usize] {
        &self.host
    }
}

/// Divides so many rules into chunks that fit a table each; returns those that do not by themselves.
fn divide(rules: usize, mut fits: impl FnMut(Range<usize>) -> bool) -> Vec<usize> {
    // Chunks of one size: 33 rules are 17 and 16, not 32 and 1.
    let chunks = rules.div_ceil(MAX_GROUP_RULES).max(1);
    let mut size = Size::new(rules.div_ceil(chunks));
    let (mut next, mut misfits) = (0, Vec::new());
    while next < rules {
        let chunk = next..rules.min(next + size.now);
        let len = chunk.len();
        if fits(chunk) {
            size.fitted();
        } else if len > 1 {
            size.too_large(len);
            continue;
        } else {
            misfits.push(next);
        }
        next += len;
    }
    misfits
}

/// How many rules the next table is tried with.
struct Size {
    now: usize,
    most: usize,
    /// Tables to build before twice as many rules are tried, and how many of them are built.
    patience: usize,
    built: usize,
    /// Whether the last table that was built was of half the size.
    doubled: bool,
}

impl Size {
    fn new(most: usize) -> Size {
        Size { now: most, most, patience: 1, built: 0, doubled: false }
    }

    fn fitted(&mut self) {
        if self.doubled {
            self.patience = 1;
        }
        self.built += 1;
        self.doubled = self.built >= self.patience && self.now < self.most;
        if self.doubled {
            self.now = (2 * self.now).min(self.most);
            self.built = 0;
        }
    }

    fn too_large(&mut self, rules: usize) {
        if self.doubled {
            self.patience *= 2;
        }
        self.doubled = false;
        self.built = 0;
        self.now = rules.div_ceil(2);
    }
}

fn group(rules: &Rules, chunk: &[usize], cut: Option<usize>, most: usize) -> Option<Group> {
    let config = syntax::Config::new().utf8(false);
    let expressions: Option<Vec<_>> = chunk
        .iter()
        .map(|&rule| {
            let pattern = rules.as_slice().get(rule)?.regex.as_str();
            Some(necessary(&syntax::parse_with(pattern, &config).ok()?, cut))
        })
        .collect();
    let automaton = Automaton::build(&expressions?, most.min(table_limit(chunk.len())))?;
    Some(Group { rules: chunk.to_vec(), automaton, cut })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chunks that fit, the rules that do not, and how many rules were tried in vain.
    fn divided(rules: usize, fits: impl Fn(&Range<usize>) -> bool) -> (Vec<usize>, Vec<usize>, usize) {
        let (mut chunks, mut vain) = (Vec::new(), 0);
        let misfits = divide(rules, |chunk| {
            let good = fits(&chunk);
            if good {
                chunks.push(chunk.len())
            } else {
                vain += chunk.len()
            }
            good
        });
        assert_eq!(chunks.iter().sum::<usize>() + misfits.len(), rules, "every rule has one place");
        (chunks, misfits, vain)
    }

    #[test]
    fn rules_that_fit_share_as_few_tables_as_can_be() {
        assert_eq!(divided(1, |_| true), (vec![1], vec![], 0));
        assert_eq!(divided(33, |_| true), (vec![17, 16], vec![], 0));
        assert_eq!(divided(1000, |_| true), ([vec![32; 31], vec![8]].concat(), vec![], 0));
        // One that fits nowhere costs a few smaller tables around it, and no more.
        let (chunks, misfits, _) = divided(1000, |chunk| !chunk.contains(&500));
        assert_eq!(misfits, [500]);
        assert!(chunks.len() <= 32 + 10, "{chunks:?}");
    }

    #[test]
    fn what_is_tried_in_vain_is_little() {
        // Halving each chunk of 32 anew would try 3,000 rules in vain.
        let (chunks, _, vain) = divided(1000, |chunk| chunk.len() <= 4);
        assert_eq!((chunks.len(), chunks.iter().max()), (250, Some(&4)));
        assert!(vain < 200, "{vain}");
        // Rules that all fit nowhere are tried one by one, once that is known.
        let (_, misfits, vain) = divided(1000, |_| false);
        assert_eq!(misfits.len(), 1000);
        assert!(vain < 1100, "{vain}");
        // And where larger tables come to fit, they are made.
        let (chunks, ..) = divided(1000, |chunk| chunk.start >= 100 || chunk.len() <= 2);
        assert!(chunks.iter().filter(|&&len| len == 32).count() > 20, "{chunks:?}");
    }
}
