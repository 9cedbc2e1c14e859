//! The binary form: how a program is stored, sent and named by its digest.
//!
//! ```text
//! "VYIR"  version: u16  program
//! ```
//!
//! Integers are little endian and of fixed width, counts and lengths are `u32`, an enum is a one-byte tag
//! and its fields, a float is its bits. So every program has exactly one encoding: [`decode`] refuses what
//! [`encode`] would not have written, and a [`Digest`] of the bytes is a digest of the program.
//!
//! The form holds *any* [`Program`], valid or not: names of any characters, ids that point nowhere. What is
//! refused is only what could not be handled in bounded space: nesting past [`MAX_DEPTH`], more than
//! `u32::MAX` elements in a list. That is why encoding is fallible, and why it never fails for a validated
//! program, whose nesting is limited further.
//!
//! Decoding trusts nothing. A count is compared with the bytes that are left before anything is allocated,
//! lists grow only as their elements arrive, depth is counted, and trailing bytes are an error.
//!
//! Reserved, and refused by this version: expression tags 0x40 to 0x5f, node tags 0x42 to 0x4f. Adding a tag keeps
//! the version, as no program changes its bytes; changing what a tag means does not.

mod codec;
mod program;
mod tags;

use crate::ir::Program;
use codec::{Reader, Wire, Writer};
use std::fmt;

/// The first four bytes of every encoding.
pub const MAGIC: [u8; 4] = *b"VYIR";

/// The version written, and the only one read.
pub const VERSION: u16 = 1;

/// How many nodes and expressions may enclose one another. Deeper programs cannot be encoded, and deeper
/// bytes are refused: recursion over either is bounded by this.
pub const MAX_DEPTH: u32 = 256;

// A validated program always encodes.
const _: () = assert!(crate::limits::MAX_NESTING <= MAX_DEPTH as usize);

/// Why bytes are not a program, or a program cannot become bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The input does not begin with [`MAGIC`].
    #[error("the first bytes are {found:02x?}, not \"VYIR\": this is not a Vyre program; encode one")]
    BadMagic {
        /// The bytes found in its place, at most four.
        found: Vec<u8>,
    },
    /// The input is of another version.
    #[error("wire version {found}, but this build reads version {VERSION}: encode the program again")]
    UnsupportedVersion {
        /// The version found.
        found: u16,
    },
    /// The input ends inside a value.
    #[error("{what} at offset {offset} needs {needed} bytes, but {remaining} remain: the input is cut short")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it begins.
        offset: usize,
        /// Its size, or the least size of the elements announced.
        needed: u64,
        /// Bytes left.
        remaining: usize,
    },
    /// A tag that names nothing, or something reserved for a later version.
    #[error("{tag:#04x} at offset {offset} is no {what} of wire version {VERSION}: encode the program again")]
    BadTag {
        /// What was being read.
        what: &'static str,
        /// Where the tag is.
        offset: usize,
        /// The tag.
        tag: u8,
    },
    /// A name is not UTF-8.
    #[error("the name at offset {offset} is not UTF-8: encode the program again")]
    NotUtf8 {
        /// Where the name begins.
        offset: usize,
        /// What is wrong with it.
        source: std::str::Utf8Error,
    },
    /// Nodes and expressions enclose one another too deeply.
    #[error(
        "nested deeper than {MAX_DEPTH}: name intermediate values with `let`, or move code to a function"
    )]
    TooDeep,
    /// A list or name too long for a 32-bit count.
    #[error("{len} elements in one {what}: a count has 32 bits, so split it")]
    TooLong {
        /// What was being written.
        what: &'static str,
        /// Its length.
        len: usize,
    },
    /// Bytes after the program.
    #[error("{count} bytes follow the program, which ends at offset {offset}: cut them off")]
    TrailingBytes {
        /// Where the program ends.
        offset: usize,
        /// Bytes after it.
        count: usize,
    },
}

/// The one encoding of a program.
///
/// # Errors
///
/// [`WireError::TooDeep`] and [`WireError::TooLong`]; neither for a validated program.
pub fn encode(program: &Program) -> Result<Vec<u8>, WireError> {
    let mut writer = Writer::default();
    writer.bytes(&MAGIC);
    VERSION.put(&mut writer)?;
    program.put(&mut writer)?;
    Ok(writer.finish())
}

/// The program that `bytes` encode.
///
/// # Errors
///
/// Any [`WireError`] but `TooLong`, on the first byte that [`encode`] would not have written.
pub fn decode(bytes: &[u8]) -> Result<Program, WireError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(WireError::BadMagic { found: bytes.iter().copied().take(MAGIC.len()).collect() });
    }
    let mut reader = Reader::new(bytes, MAGIC.len());
    let version = u16::take(&mut reader)?;
    if version != VERSION {
        return Err(WireError::UnsupportedVersion { found: version });
    }
    let program = Program::take(&mut reader)?;
    reader.finish()?;
    Ok(program)
}

/// The digest of a program.
///
/// # Errors
///
/// As [`encode`].
pub fn digest(program: &Program) -> Result<Digest, WireError> {
    Ok(Digest::of(&encode(program)?))
}

/// The BLAKE3 hash of a program's encoding: equal exactly when the programs are. Displays as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of bytes that [`encode`] wrote.
    pub fn of(encoding: &[u8]) -> Digest {
        Digest(*blake3::hash(encoding).as_bytes())
    }

    /// The hash itself.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}
