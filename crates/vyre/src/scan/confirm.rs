//! Exact positions, by the real regex, in the files where a table saw something.

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

/// All matches of some rules, in order of line, column and id.
pub fn confirm(rules: &Rules, which: impl IntoIterator<Item = usize>, bytes: &[u8]) -> Vec<Match> {
    let rules = rules.as_slice();
    let mut matches = Vec::new();
    for rule in which {
        let found = rules.get(rule).map(|known| known.regex.find_iter(bytes));
        matches.extend(found.into_iter().flatten().map(|found| Match {
            rule,
            line: 0,
            column: 0,
            start: found.start(),
            end: found.end(),
        }));
    }
    let id = |found: &Match| rules.get(found.rule).map(|rule| rule.id.as_bytes());
    matches.sort_unstable_by(|a, b| a.start.cmp(&b.start).then_with(|| id(a).cmp(&id(b))));

    let (mut line, mut line_start, mut counted) = (1, 0, 0);
    for found in &mut matches {
        let since = bytes.get(counted..found.start).unwrap_or_default();
        line += since.iter().filter(|&&byte| byte == b'\n').count() as u64;
        if let Some(last) = since.iter().rposition(|&byte| byte == b'\n') {
            line_start = counted + last + 1;
        }
        counted = found.start;
        found.line = line;
        found.column = (found.start - line_start) as u64 + 1;
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_bytes() {
        let rules = Rules::parse("b\té|\\n\na\t[a-z]+\ne\t(?-u:\\b)\n".as_bytes()).expect("rules");
        let text = "é ab\n\nc".as_bytes();
        let found: Vec<_> = confirm(&rules, [0, 1, 2], text)
            .iter()
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
        assert_eq!(confirm(&rules, [1], b""), []);
    }
}
