//! Several slots, published together.

use std::borrow::Cow;

use vyre_driver::ring::SlotImage;

use super::{Publish, SlotDescriptor};
use crate::error::MegakernelError;

/// Slots that are published together or not at all; a fence among them counts back in this batch.
///
/// They are encoded as they are added, so that a batch can be published again and again for the price of a copy.
/// An empty batch is legal and publishes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchDescriptor {
    images: Vec<SlotImage>,
    /// The first slot that breaks a rule; nothing is added behind it.
    refused: Option<SlotDescriptor>,
}

impl BatchDescriptor {
    /// An empty batch.
    pub fn new() -> BatchDescriptor {
        BatchDescriptor::default()
    }

    /// Adds a slot at the end. One that breaks a rule is reported when the batch is published.
    pub fn push(&mut self, slot: SlotDescriptor) {
        match slot.to_image() {
            Ok(image) if self.refused.is_none() => self.images.push(image),
            Err(_) if self.refused.is_none() => self.refused = Some(slot),
            _ => {}
        }
    }

    /// Adds a slot at the end, as [`push`](Self::push) does.
    #[must_use]
    pub fn slot(mut self, slot: SlotDescriptor) -> BatchDescriptor {
        self.push(slot);
        self
    }

    /// How many slots were added.
    pub fn len(&self) -> usize {
        self.images.len() + usize::from(self.refused.is_some())
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn check(&self) -> Result<&[SlotImage], MegakernelError> {
        self.refused.as_ref().map_or(Ok(()), |slot| slot.to_image().map(drop))?;
        Ok(&self.images)
    }
}

impl FromIterator<SlotDescriptor> for BatchDescriptor {
    fn from_iter<I: IntoIterator<Item = SlotDescriptor>>(slots: I) -> BatchDescriptor {
        let mut batch = BatchDescriptor::new();
        batch.extend(slots);
        batch
    }
}

impl Extend<SlotDescriptor> for BatchDescriptor {
    fn extend<I: IntoIterator<Item = SlotDescriptor>>(&mut self, slots: I) {
        slots.into_iter().for_each(|slot| self.push(slot));
    }
}

impl Publish for BatchDescriptor {
    fn slot_count(&self) -> usize {
        self.len()
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        self.check()?.iter().for_each(sink);
        Ok(())
    }

    fn encoded(&self) -> Result<Cow<'_, [SlotImage]>, MegakernelError> {
        self.check().map(Cow::Borrowed)
    }
}

impl Publish for [SlotDescriptor] {
    fn slot_count(&self) -> usize {
        self.len()
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        // Twice over the slots rather than an allocation: encoding one is a copy of 48 bytes.
        for slot in self {
            slot.to_image()?;
        }
        for slot in self {
            sink(&slot.to_image()?);
        }
        Ok(())
    }

    fn images(&self) -> Result<Vec<SlotImage>, MegakernelError> {
        let mut images = Vec::with_capacity(self.len());
        for slot in self {
            images.push(slot.to_image()?);
        }
        Ok(images)
    }
}
