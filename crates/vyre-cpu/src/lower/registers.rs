//! Handing out registers.

use vyre_foundation::ScalarType;

use super::LowerError;
use crate::flat::{Field, Place};

/// The last register number; the pool counts down from here until everything is laid out.
pub(super) const POOL_FIRST: u16 = u16::MAX;

/// A register file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum File {
    Word,
    Long,
    Mask,
}

impl File {
    pub(super) const ALL: [File; 3] = [File::Word, File::Long, File::Mask];

    pub(super) const fn of(field: Field) -> Option<File> {
        match field {
            Field::Word => Some(File::Word),
            Field::Long => Some(File::Long),
            Field::Mask => Some(File::Mask),
            Field::None | Field::Buffer | Field::Axis => None,
        }
    }

    pub(super) const fn place(self, register: u16) -> Place {
        match self {
            File::Word => Place::Word(register),
            File::Long => Place::Long(register),
            File::Mask => Place::Mask(register),
        }
    }
}

/// A number for each file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    words: usize,
    longs: usize,
    masks: usize,
}

impl Files {
    pub(super) const fn get(&self, file: File) -> usize {
        match file {
            File::Word => self.words,
            File::Long => self.longs,
            File::Mask => self.masks,
        }
    }

    pub(super) fn get_mut(&mut self, file: File) -> &mut usize {
        match file {
            File::Word => &mut self.words,
            File::Long => &mut self.longs,
            File::Mask => &mut self.masks,
        }
    }

    pub(super) fn max(self, other: Files) -> Files {
        Files {
            words: self.words.max(other.words),
            longs: self.longs.max(other.longs),
            masks: self.masks.max(other.masks),
        }
    }
}

/// The registers of one function.
#[derive(Debug)]
pub(super) struct Allocator {
    next: Files,
    high: Files,
}

/// A point to which registers can be given back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(Files);

impl Allocator {
    pub(super) fn new(base: Files) -> Allocator {
        Allocator { next: base, high: base }
    }

    fn take(&mut self, file: File) -> Result<u16, LowerError> {
        let next = self.next.get_mut(file);
        // Half of the numbers belong to the pool until its size is known.
        if *next >= usize::from(POOL_FIRST) / 2 {
            return Err(full(file));
        }
        let register = *next as u16;
        *next += 1;
        self.high = self.high.max(self.next);
        Ok(register)
    }

    pub(super) fn word(&mut self) -> Result<u16, LowerError> {
        self.take(File::Word)
    }

    pub(super) fn long(&mut self) -> Result<u16, LowerError> {
        self.take(File::Long)
    }

    pub(super) fn mask(&mut self) -> Result<u16, LowerError> {
        self.take(File::Mask)
    }

    /// A register for a value of this type.
    pub(super) fn place(&mut self, ty: ScalarType) -> Result<Place, LowerError> {
        let file = match ty {
            ScalarType::Bool => File::Mask,
            ScalarType::U32 | ScalarType::I32 | ScalarType::F32 => File::Word,
            ScalarType::U64 => File::Long,
        };
        Ok(file.place(self.take(file)?))
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(self.next)
    }

    /// Gives back everything taken since the mark.
    pub(super) fn release(&mut self, mark: Mark) {
        self.next = mark.0;
    }

    /// One past the highest register ever taken.
    pub(super) fn high(&self) -> Files {
        self.high
    }
}

pub(super) fn full(file: File) -> LowerError {
    let name = match file {
        File::Word => "word",
        File::Long => "long",
        File::Mask => "mask",
    };
    LowerError::Registers { file: name, limit: usize::from(POOL_FIRST) / 2 }
}
