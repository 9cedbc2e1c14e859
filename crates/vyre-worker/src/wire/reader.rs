//! Little-endian fields, one after the other.

use super::error::Malformed;

/// Reads fields off the front of bytes; never past their end.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    what: &'static str,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// `what`: the message's name, for errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { what, whole: bytes.len(), rest: bytes }
    }

    /// The next bytes, as they are.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.short(count))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.short(N))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn short(&self, needed: usize) -> Malformed {
        let read = self.whole - self.rest.len();
        let expected = (read as u64).saturating_add(needed as u64);
        Malformed::Short { what: self.what, got: self.whole as u64, expected }
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length of four bytes, then as many bytes of text.
    pub fn text(&mut self, field: &'static str) -> Result<String, Malformed> {
        let text = std::str::from_utf8(self.counted()?).map_err(|_| Malformed::Text { field })?;
        Ok(text.to_owned())
    }

    /// A length of four bytes, then as many bytes.
    pub fn counted(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.u32()?;
        self.bytes(count as usize)
    }

    /// A field that may have one value only.
    pub(super) fn expect(
        &mut self,
        field: &'static str,
        expected: u64,
        read: impl FnOnce(&mut Self) -> Result<u64, Malformed>,
    ) -> Result<(), Malformed> {
        let got = read(self)?;
        if got == expected { Ok(()) } else { Err(Malformed::Field { field, got, expected }) }
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// Refuses bytes that are left over.
    pub fn finish(self) -> Result<(), Malformed> {
        let left = self.rest.len() as u64;
        if left == 0 {
            return Ok(());
        }
        Err(Malformed::Bound { field: self.what, got: self.whole as u64, limit: self.whole as u64 - left })
    }
}

/// Writes fields one after the other; what does not fit into the bytes given is left out.
#[derive(Debug)]
pub struct Writer<'a> {
    rest: &'a mut [u8],
}

impl<'a> Writer<'a> {
    /// Writes over `bytes`, from their front.
    pub fn over(bytes: &'a mut [u8]) -> Writer<'a> {
        Writer { rest: bytes }
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if let Some((front, rest)) = std::mem::take(&mut self.rest).split_at_mut_checked(bytes.len()) {
            front.copy_from_slice(bytes);
            self.rest = rest;
        }
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}
