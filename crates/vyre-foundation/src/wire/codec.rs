//! Reading and writing of single values: cursor, bounds, depth, integers, names and lists.

use super::{MAX_DEPTH, WireError};

/// A value with one encoding.
pub(super) trait Wire: Sized {
    /// What an error calls it.
    const WHAT: &'static str;
    /// The least number of bytes a value occupies; never zero, or a count could not be checked.
    const MIN_SIZE: u32;

    fn put(&self, w: &mut Writer) -> Result<(), WireError>;
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError>;
}

/// The bytes written so far.
#[derive(Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    depth: u32,
}

impl Writer {
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn tag(&mut self, tag: u8) {
        self.bytes.push(tag);
    }

    /// Writes something that lies `levels` deeper than what holds it.
    pub(super) fn nested(
        &mut self,
        levels: u32,
        write: impl FnOnce(&mut Self) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        let outer = self.depth;
        self.depth = deeper(outer, levels)?;
        write(self)?;
        self.depth = outer;
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The bytes not read yet.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
    depth: u32,
}

impl<'a> Reader<'a> {
    /// Reads `bytes` from `offset`.
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset, depth: 0 }
    }

    fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.offset)
    }

    fn truncated(&self, what: &'static str, needed: u64) -> WireError {
        WireError::Truncated { what, offset: self.offset, needed, remaining: self.remaining() }
    }

    fn slice(&mut self, what: &'static str, len: usize) -> Result<&'a [u8], WireError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let slice = rest.get(..len).ok_or_else(|| self.truncated(what, len as u64))?;
        self.offset += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(what, N)?);
        Ok(array)
    }

    /// Reads a tag, and gives it to `of`, which says what it means.
    pub(super) fn tag<T>(
        &mut self,
        what: &'static str,
        of: impl FnOnce(&mut Self, u8) -> Result<Option<T>, WireError>,
    ) -> Result<T, WireError> {
        let offset = self.offset;
        let [tag] = self.array(what)?;
        of(self, tag)?.ok_or(WireError::BadTag { what, offset, tag })
    }

    /// Reads how many elements of at least `min_size` bytes follow.
    pub(super) fn count(&mut self, what: &'static str, min_size: u32) -> Result<u32, WireError> {
        let count = u32::take(self)?;
        let needed = u64::from(count) * u64::from(min_size);
        if needed > self.remaining() as u64 {
            return Err(self.truncated(what, needed));
        }
        Ok(count)
    }

    /// Reads something that lies `levels` deeper than what holds it.
    pub(super) fn nested<T>(
        &mut self,
        levels: u32,
        read: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<T, WireError> {
        let outer = self.depth;
        self.depth = deeper(outer, levels)?;
        let value = read(self)?;
        self.depth = outer;
        Ok(value)
    }

    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.remaining() {
            0 => Ok(()),
            count => Err(WireError::TrailingBytes { offset: self.offset, count }),
        }
    }
}

fn deeper(depth: u32, levels: u32) -> Result<u32, WireError> {
    depth.checked_add(levels).filter(|&depth| depth <= MAX_DEPTH).ok_or(WireError::TooDeep)
}

macro_rules! integers {
    ($($int:ident: $size:literal),*) => {$(
        impl Wire for $int {
            const WHAT: &'static str = stringify!($int);
            const MIN_SIZE: u32 = $size;

            fn put(&self, w: &mut Writer) -> Result<(), WireError> {
                w.bytes(&self.to_le_bytes());
                Ok(())
            }

            fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok($int::from_le_bytes(r.array(Self::WHAT)?))
            }
        }
    )*};
}

integers!(u16: 2, u32: 4, i32: 4, u64: 8);

impl Wire for bool {
    const WHAT: &'static str = "truth value";
    const MIN_SIZE: u32 = 1;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        w.tag(u8::from(*self));
        Ok(())
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        r.tag(Self::WHAT, |_, tag| {
            Ok(match tag {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            })
        })
    }
}

pub(super) fn put_count(w: &mut Writer, what: &'static str, len: usize) -> Result<(), WireError> {
    u32::try_from(len).map_err(|_| WireError::TooLong { what, len })?.put(w)
}

impl Wire for String {
    const WHAT: &'static str = "name";
    const MIN_SIZE: u32 = 4;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        put_count(w, Self::WHAT, self.len())?;
        w.bytes(self.as_bytes());
        Ok(())
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let len = u32::take(r)?;
        let offset = r.offset;
        let bytes = r.slice(Self::WHAT, len as usize)?;
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(name.to_owned()),
            Err(source) => Err(WireError::NotUtf8 { offset, source }),
        }
    }
}

impl<T: Wire> Wire for Vec<T> {
    const WHAT: &'static str = T::WHAT;
    const MIN_SIZE: u32 = 4;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        put_count(w, "list", self.len())?;
        self.iter().try_for_each(|element| element.put(w))
    }

    /// Nothing is reserved for the count: nested lists that each announce all that remains would multiply.
    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let count = r.count(T::WHAT, T::MIN_SIZE)?;
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(T::take(r)?);
        }
        Ok(elements)
    }
}

impl<T: Wire> Wire for Box<T> {
    const WHAT: &'static str = T::WHAT;
    const MIN_SIZE: u32 = T::MIN_SIZE;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        T::put(self, w)
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        T::take(r).map(Box::new)
    }
}

impl<T: Wire> Wire for Option<T> {
    const WHAT: &'static str = T::WHAT;
    const MIN_SIZE: u32 = 1;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        self.is_some().put(w)?;
        self.iter().try_for_each(|value| value.put(w))
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        if bool::take(r)? { T::take(r).map(Some) } else { Ok(None) }
    }
}

impl Wire for [u32; 3] {
    const WHAT: &'static str = "size";
    const MIN_SIZE: u32 = 12;

    fn put(&self, w: &mut Writer) -> Result<(), WireError> {
        self.iter().try_for_each(|n| n.put(w))
    }

    fn take(r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok([u32::take(r)?, u32::take(r)?, u32::take(r)?])
    }
}
