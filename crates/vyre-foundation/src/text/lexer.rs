//! Text into tokens, each with its place.

use super::{ParseError, ParseProblem};
use std::fmt;

/// A token and where it begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'t> {
    pub(crate) kind: TokenKind<'t>,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenKind<'t> {
    /// A name or a word of the language.
    Word(&'t str),
    /// A number as written, and the type after it, which may be empty.
    Number { digits: &'t str, suffix: &'t str },
    /// Punctuation, one of [`SYMBOLS`].
    Symbol(&'static str),
    /// After the last token.
    End,
}

impl fmt::Display for TokenKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenKind::Word(word) => write!(f, "`{word}`"),
            TokenKind::Number { digits, suffix } => write!(f, "`{digits}{suffix}`"),
            TokenKind::Symbol(symbol) => write!(f, "`{symbol}`"),
            TokenKind::End => f.write_str("the end of the text"),
        }
    }
}

/// Longer ones first, so that the first that fits is the longest that fits.
const SYMBOLS: &[&str] = &[
    "->", "..", "==", "!=", "<=", ">=", "<<", ">>", "(", ")", "{", "}", "[", "]", ",", ";", ":", "=", ".",
    "+", "-", "*", "/", "%", "&", "|", "^", "<", ">", "!",
];

/// All tokens, [`TokenKind::End`] last.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    if u32::try_from(text.len()).is_err() {
        return Err(ParseError { line: 1, column: 1, problem: ParseProblem::TooLong(text.len()) });
    }
    let mut tokens = Vec::new();
    let mut end = (1, 1);
    for (line, text) in (1..).zip(text.split('\n')) {
        let mut rest = text;
        let mut column = 1;
        loop {
            let blank = rest.len() - rest.trim_start().len();
            column += skip(&mut rest, blank);
            if rest.is_empty() || rest.starts_with("//") {
                break;
            }
            let Some((kind, len)) = token(rest) else {
                let problem = ParseProblem::Character(rest.chars().next().unwrap_or_default());
                return Err(ParseError { line, column, problem });
            };
            tokens.push(Token { kind, line, column });
            column += skip(&mut rest, len);
            end = (line, column);
        }
    }
    tokens.push(Token { kind: TokenKind::End, line: end.0, column: end.1 });
    Ok(tokens)
}

/// Drops `len` bytes, and says how many characters those were.
fn skip(rest: &mut &str, len: usize) -> u32 {
    let (skipped, after) = rest.split_at_checked(len).unwrap_or((rest, ""));
    *rest = after;
    u32::try_from(skipped.chars().count()).unwrap_or(u32::MAX)
}

/// The token that `text` begins with, and its length in bytes.
fn token(text: &str) -> Option<(TokenKind<'_>, usize)> {
    let first = text.bytes().next()?;
    if first.is_ascii_digit() {
        let digits = number(text);
        let (digits, after) = text.split_at_checked(digits)?;
        let (suffix, _) = after.split_at_checked(word(after))?;
        return Some((TokenKind::Number { digits, suffix }, digits.len() + suffix.len()));
    }
    let (found, _) = text.split_at_checked(word(text))?;
    if !found.is_empty() {
        return Some((TokenKind::Word(found), found.len()));
    }
    let symbol = SYMBOLS.iter().find(|symbol| text.starts_with(**symbol))?;
    Some((TokenKind::Symbol(symbol), symbol.len()))
}

/// Length of the name or word that `text` begins with.
fn word(text: &str) -> usize {
    run(text, |byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Length of the number that `text` begins with: `12`, `0x1f`, `1.5`, `1e-45`. In `0..9` the number is `0`.
fn number(text: &str) -> usize {
    let digits = |at: usize| run(text.get(at..).unwrap_or_default(), |byte| byte.is_ascii_digit());
    if text.starts_with("0x") {
        return 2 + run(text.get(2..).unwrap_or_default(), |byte| byte.is_ascii_hexdigit());
    }
    let byte = |at: usize| text.as_bytes().get(at).copied().unwrap_or_default();
    let mut len = digits(0);
    if byte(len) == b'.' && digits(len + 1) > 0 {
        len += 1 + digits(len + 1);
    }
    let sign = usize::from(matches!(byte(len + 1), b'+' | b'-'));
    if byte(len) == b'e' && digits(len + 1 + sign) > 0 {
        len += 1 + sign + digits(len + 1 + sign);
    }
    len
}

fn run(text: &str, of: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| of(*byte)).count()
}
