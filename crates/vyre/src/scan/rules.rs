//! The rules file: `id<TAB>regex` lines, and `#` comments.
//!
//! A rule means what [`regex::bytes::Regex::find_iter`] finds with it, by itself, on a whole file. Each rule
//! is compiled here once, so every mistake in the file is found before the first byte is scanned, and all
//! of them are reported together with their line numbers.

use std::collections::HashMap;
use std::fmt;

use regex::bytes::Regex;
use thiserror::Error;

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What a match is reported as; unique in its file, without white space.
    pub id: String,
    /// The line of the rules file, from 1.
    pub line: usize,
    /// The rule itself.
    pub regex: Regex,
}

/// The rules of one file, in file order; at least one.
#[derive(Clone, Debug)]
pub struct Rules {
    rules: Vec<Rule>,
}

/// Everything wrong with a rules file, in line order.
#[derive(Debug, Error)]
#[error("{} in the rules file", count(.errors.len()))]
pub struct RulesError {
    /// The single errors.
    pub errors: Vec<RuleError>,
}

/// One thing wrong with a rules file.
#[derive(Debug)]
pub struct RuleError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub kind: RuleErrorKind,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.kind)
    }
}

impl std::error::Error for RuleError {
    // The kind is part of the text above; its cause, if it has one, is not.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.kind)
    }
}

/// What can be wrong with a line of a rules file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuleErrorKind {
    /// The line is not UTF-8.
    #[error("not UTF-8; write other bytes as \\xNN with (?-u)")]
    NotUtf8,
    /// The line has no tab.
    #[error("no tab in {0:?}; write id, a tab, and the regex")]
    NoTab(String),
    /// The id is empty or holds white space or control characters.
    #[error("bad id {0:?}; use one or more characters without white space")]
    BadId(String),
    /// The id was used before.
    #[error("id {id:?} is already that of line {first}; rename one")]
    DuplicateId {
        /// The id.
        id: String,
        /// Where it was used first.
        first: usize,
    },
    /// The regex is empty, which would match between any two bytes.
    #[error("rule {0:?} has an empty regex; write (?:) if that is meant")]
    EmptyRegex(String),
    /// The regex is valid, and too large.
    #[error(
        "rule {id:?} compiles to more than {limit} bytes; repeat less often, use (?-u), or make two rules of it"
    )]
    TooLarge {
        /// The rule's id.
        id: String,
        /// Bytes that a compiled regex may have.
        limit: usize,
    },
    /// The regex does not compile.
    #[error("rule {id:?} is not a valid regex")]
    BadRegex {
        /// The rule's id.
        id: String,
        /// The regex crate's words, which show the place.
        #[source]
        error: Box<regex::Error>,
    },
    /// The file has no rule at all.
    #[error("no rule in the file; write lines of the form id<TAB>regex")]
    NoRules,
}

impl Rules {
    /// Reads a rules file that is already in memory.
    pub fn parse(file: &[u8]) -> Result<Rules, RulesError> {
        let mut rules: Vec<Rule> = Vec::new();
        let mut errors = Vec::new();
        let file = file.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(file);
        let mut last = 1;
        // Those of wrong rules too: all mistakes are reported together.
        let mut ids = HashMap::new();
        for (index, bytes) in file.split(|&byte| byte == b'\n').enumerate() {
            let line = index + 1;
            let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
            if bytes.is_empty() || bytes.starts_with(b"#") {
                continue;
            }
            last = line;
            match parse_line(bytes, line, &mut ids) {
                Ok(rule) => rules.push(rule),
                Err(kind) => errors.push(RuleError { line, kind }),
            }
        }
        if rules.is_empty() && errors.is_empty() {
            errors.push(RuleError { line: last, kind: RuleErrorKind::NoRules });
        }
        if errors.is_empty() { Ok(Rules { rules }) } else { Err(RulesError { errors }) }
    }

    /// The rules, in file order.
    pub fn as_slice(&self) -> &[Rule] {
        &self.rules
    }

    /// How many there are; never zero.
    #[expect(clippy::len_without_is_empty, reason = "there is always a rule")]
    pub fn len(&self) -> usize {
        self.rules.len()
    }
}

/// Parses a line; `ids` has the line of each id before it.
fn parse_line(bytes: &[u8], line: usize, ids: &mut HashMap<String, usize>) -> Result<Rule, RuleErrorKind> {
    let text = std::str::from_utf8(bytes).map_err(|_| RuleErrorKind::NotUtf8)?;
    let (id, pattern) = text.split_once('\t').ok_or_else(|| RuleErrorKind::NoTab(beginning(text)))?;
    let id = id.to_owned();
    if id.is_empty() || id.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(RuleErrorKind::BadId(id));
    }
    if let Some(&first) = ids.get(&id) {
        return Err(RuleErrorKind::DuplicateId { id, first });
    }
    ids.insert(id.clone(), line);
    if pattern.is_empty() {
        return Err(RuleErrorKind::EmptyRegex(id));
    }
    match Regex::new(pattern) {
        Ok(regex) => Ok(Rule { id, line, regex }),
        Err(regex::Error::CompiledTooBig(limit)) => Err(RuleErrorKind::TooLarge { id, limit }),
        Err(error) => Err(RuleErrorKind::BadRegex { id, error: Box::new(error) }),
    }
}

/// Enough of a line to find it by.
fn beginning(text: &str) -> String {
    const SHOWN: usize = 40;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => text.get(..end).unwrap_or_default().to_owned() + "...",
        None => text.to_owned(),
    }
}

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_files() {
        for (file, expected) in [
            (&b"a\tx"[..], &[("a", 1, "x")][..]),
            (b"# c\n\na\tx y\t\n\nb\t\\d+\n", &[("a", 3, "x y\t"), ("b", 5, "\\d+")]),
            (b"\xEF\xBB\xBF# c\r\na:b\tx\r\n#b\t[\n", &[("a:b", 2, "x")]),
            ("ключ\té".as_bytes(), &[("ключ", 1, "é")]),
        ] {
            let rules = Rules::parse(file).expect("a good file");
            let found: Vec<_> =
                rules.as_slice().iter().map(|r| (r.id.as_str(), r.line, r.regex.as_str())).collect();
            assert_eq!(found, expected, "{}", String::from_utf8_lossy(file));
        }
    }

    #[test]
    fn bad_files_name_every_line() {
        for (file, expected) in [
            (&b""[..], &["line 1: no rule in the file; write lines of the form id<TAB>regex"][..]),
            (b"# only\n", &["line 1: no rule in the file; write lines of the form id<TAB>regex"]),
            (b"a b", &["line 1: no tab in \"a b\"; write id, a tab, and the regex"]),
            (
                b"a\t(?:\\w{1000}){1000}",
                &[
                    "line 1: rule \"a\" compiles to more than 10485760 bytes; repeat less often, use (?-u), or make two rules of it",
                ],
            ),
            (b"\tx", &["line 1: bad id \"\"; use one or more characters without white space"]),
            (b"a b\tx", &["line 1: bad id \"a b\"; use one or more characters without white space"]),
            (b"a\t", &["line 1: rule \"a\" has an empty regex; write (?:) if that is meant"]),
            (
                b"a\t\na\tx",
                &[
                    "line 1: rule \"a\" has an empty regex; write (?:) if that is meant",
                    "line 2: id \"a\" is already that of line 1; rename one",
                ],
            ),
            (b"a\tx\n\xFF\ty", &["line 2: not UTF-8; write other bytes as \\xNN with (?-u)"]),
            (
                b"a\tx\n#\na\ty\nb\n",
                &[
                    "line 3: id \"a\" is already that of line 1; rename one",
                    "line 4: no tab in \"b\"; write id, a tab, and the regex",
                ],
            ),
        ] {
            let error = Rules::parse(file).expect_err("a bad file");
            let found: Vec<_> = error.errors.iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{}", String::from_utf8_lossy(file));
        }
        let error = Rules::parse(b"ok\tx\nbad\t(x\n").expect_err("a bad regex");
        assert_eq!(error.to_string(), "1 error in the rules file");
        let error = &error.errors[0];
        assert_eq!(error.to_string(), "line 2: rule \"bad\" is not a valid regex");
        let cause = std::error::Error::source(error).expect("the regex crate's error").to_string();
        assert!(cause.contains("unclosed group"), "{cause}");
    }
}
