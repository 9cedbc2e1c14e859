//! The rule for identifiers, shared by validator, parser and printer.

use crate::limits::MAX_NAME_LEN;

/// Words of the text form, which no program, buffer, function or local may have as its name.
pub const RESERVED_WORDS: &[&str] = &[
    "atomic",
    "barrier",
    "bf16",
    "bool",
    "break",
    "buffer",
    "call",
    "case",
    "continue",
    "default",
    "else",
    "entry",
    "f16",
    "f32",
    "false",
    "fn",
    "for",
    "grid_barrier",
    "i32",
    "if",
    "in",
    "inf",
    "item",
    "kernel",
    "let",
    "locals",
    "nan",
    "program",
    "return",
    "step",
    "switch",
    "trap",
    "true",
    "u16",
    "u32",
    "u64",
    "u8",
    "var",
    "while",
];

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It has no characters.
    #[error("it is empty; give it at least one letter")]
    Empty,
    /// It has more than [`MAX_NAME_LEN`] bytes.
    #[error("it has {len} bytes; shorten it to {MAX_NAME_LEN}")]
    TooLong {
        /// Bytes it has.
        len: usize,
    },
    /// It is not `[A-Za-z_][A-Za-z0-9_]*`.
    #[error("it is not an identifier; use ASCII letters, digits and `_`, and no digit first")]
    NotAnIdentifier,
    /// It is one of [`RESERVED_WORDS`].
    #[error("it is a reserved word of the text form; add `_` to it")]
    Reserved,
}

/// Whether `name` may name something: `[A-Za-z_][A-Za-z0-9_]*`, at most [`MAX_NAME_LEN`] bytes, and not a
/// reserved word.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let Some(first) = name.bytes().next() else { return Err(NameError::Empty) };
    if name.len() > MAX_NAME_LEN {
        return Err(NameError::TooLong { len: name.len() });
    }
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if first.is_ascii_digit() || !name.bytes().all(word) {
        return Err(NameError::NotAnIdentifier);
    }
    if RESERVED_WORDS.binary_search(&name).is_ok() {
        return Err(NameError::Reserved);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let long = "a".repeat(MAX_NAME_LEN);
        let too_long = "a".repeat(MAX_NAME_LEN + 1);
        for (name, expected) in [
            ("x", Ok(())),
            ("_", Ok(())),
            ("X9_y", Ok(())),
            ("if_", Ok(())),
            (long.as_str(), Ok(())),
            ("", Err(NameError::Empty)),
            (too_long.as_str(), Err(NameError::TooLong { len: MAX_NAME_LEN + 1 })),
            ("9x", Err(NameError::NotAnIdentifier)),
            ("a b", Err(NameError::NotAnIdentifier)),
            ("a-b", Err(NameError::NotAnIdentifier)),
            ("é", Err(NameError::NotAnIdentifier)),
            ("if", Err(NameError::Reserved)),
            ("bf16", Err(NameError::Reserved)),
        ] {
            assert_eq!(check_name(name), expected, "{name:?}");
        }
    }

    #[test]
    fn reserved_words_are_sorted_for_the_search() {
        assert!(RESERVED_WORDS.is_sorted());
        for word in RESERVED_WORDS {
            assert_eq!(check_name(word), Err(NameError::Reserved), "{word}");
        }
    }
}
