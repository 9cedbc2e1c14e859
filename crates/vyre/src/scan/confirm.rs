//! Exact positions, by the real regex, in the files where a table saw something.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::rules::Rules;

/// A match, as [`regex::bytes::Regex::find_iter`] of its rule by itself finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Match {
    /// The rule's place in [`Rules::as_slice`].
    pub rule: usize,
    /// The line the match begins on, from 1; lines end after `\n`.
    pub line: u64,
    /// The byte of the line it begins at, from 1.
    pub column: u64,
    /// First byte, from 0.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

/// All matches of some rules, in order of line, column and id. They are found as they are asked for: what is
/// kept is one match for each rule, however many there are.
pub fn confirm<'a>(rules: &'a Rules, which: impl IntoIterator<Item = usize>, bytes: &'a [u8]) -> Matches<'a> {
    let head = |index: usize| {
        let rule = rules.as_slice().get(index)?;
        let mut rest = rule.regex.find_iter(bytes);
        Some(Head { next: rest.next()?, id: &rule.id, rule: index, rest })
    };
    let heads = which.into_iter().filter_map(head).collect();
    Matches { bytes, heads, line: 1, line_start: 0, counted: 0 }
}

/// The matches that [`confirm`] finds.
pub struct Matches<'a> {
    bytes: &'a [u8],
    heads: BinaryHeap<Head<'a>>,
    /// The line that byte `counted` is on, and where it begins.
    line: u64,
    line_start: usize,
    counted: usize,
}

impl Matches<'_> {
    /// The rules of which there are matches to come.
    pub fn rules(&self) -> impl Iterator<Item = usize> {
        self.heads.iter().map(|head| head.rule)
    }
}

impl Iterator for Matches<'_> {
    type Item = Match;

    fn next(&mut self) -> Option<Match> {
        let mut head = self.heads.peek_mut()?;
        let (rule, start, end) = (head.rule, head.next.start(), head.next.end());
        match head.rest.next() {
            Some(next) => head.next = next,
            None => drop(PeekMut::pop(head)),
        }

        let since = self.bytes.get(self.counted..start).unwrap_or_default();
        self.line += since.iter().filter(|&&byte| byte == b'\n').count() as u64;
        if let Some(last) = since.iter().rposition(|&byte| byte == b'\n') {
            self.line_start = self.counted + last + 1;
        }
        self.counted = start;
        let column = (start - self.line_start) as u64 + 1;
        Some(Match { rule, line: self.line, column, start, end })
    }
}

/// The next match of one rule, and those behind it.
struct Head<'a> {
    next: regex::bytes::Match<'a>,
    id: &'a str,
    rule: usize,
    rest: regex::bytes::Matches<'a, 'a>,
}

impl Head<'_> {
    fn key(&self) -> (usize, &str) {
        (self.next.start(), self.id)
    }
}

/// The first match is the greatest: what a heap gives out first.
impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Head<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_bytes() {
        let rules = Rules::parse("b\té|\\n\na\t[a-z]+\ne\t(?-u:\\b)\n".as_bytes()).expect("rules");
        let text = "é ab\n\nc".as_bytes();
        let found: Vec<_> = confirm(&rules, [0, 1, 2], text)
            .map(|m| (rules.as_slice()[m.rule].id.as_str(), m.line, m.column, m.start, m.end))
            .collect();
        let expected = [
            ("b", 1, 1, 0, 2),
            ("a", 1, 4, 3, 5),
            ("e", 1, 4, 3, 3),
            ("b", 1, 6, 5, 6),
            ("e", 1, 6, 5, 5),
            ("b", 2, 1, 6, 7),
            ("a", 3, 1, 7, 8),
            ("e", 3, 1, 7, 7),
            ("e", 3, 2, 8, 8),
        ];
        assert_eq!(found, expected);
        assert_eq!(confirm(&rules, [1], b"").count(), 0);
    }
}
