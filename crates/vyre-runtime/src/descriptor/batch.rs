//! Several slots, published together.

use vyre_driver::ring::SlotImage;

use super::{Publish, SlotDescriptor};
use crate::error::MegakernelError;

/// Slots that are published together or not at all; a fence among them counts back in this batch.
///
/// An empty batch is legal and publishes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchDescriptor {
    slots: Vec<SlotDescriptor>,
}

impl BatchDescriptor {
    /// An empty batch.
    pub fn new() -> BatchDescriptor {
        BatchDescriptor::default()
    }

    /// Adds a slot at the end.
    pub fn push(&mut self, slot: SlotDescriptor) {
        self.slots.push(slot);
    }

    /// Adds a slot at the end.
    #[must_use]
    pub fn slot(mut self, slot: SlotDescriptor) -> BatchDescriptor {
        self.push(slot);
        self
    }

    /// The slots.
    pub fn slots(&self) -> &[SlotDescriptor] {
        &self.slots
    }
}

impl FromIterator<SlotDescriptor> for BatchDescriptor {
    fn from_iter<I: IntoIterator<Item = SlotDescriptor>>(slots: I) -> BatchDescriptor {
        BatchDescriptor { slots: slots.into_iter().collect() }
    }
}

impl Extend<SlotDescriptor> for BatchDescriptor {
    fn extend<I: IntoIterator<Item = SlotDescriptor>>(&mut self, slots: I) {
        self.slots.extend(slots);
    }
}

impl Publish for BatchDescriptor {
    fn slot_count(&self) -> usize {
        self.slots.len()
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        self.slots.as_slice().publish(sink)
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
}
