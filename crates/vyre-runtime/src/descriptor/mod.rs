//! What a host says it wants done: one slot, a batch of slots, a window of slots.
//!
//! Descriptors are plain values. They are checked as a whole when they are published, and then published as
//! a whole, into the bytes of a batch ring ([`RingBuffer::publish`](crate::RingBuffer::publish)) or into a
//! session. Arguments are held inline: no slot costs an allocation.
//!
//! Absent on purpose: knowledge of handlers and tenants. Whether an opcode has a handler, and whether the
//! tenant may use it, is for [`Megakernel::check`](crate::Megakernel::check) and, in any case, for the
//! device.

mod batch;
mod slot;
mod window;

pub use batch::BatchDescriptor;
pub use slot::{Priority, SlotDescriptor};
pub use window::{WINDOW_PAYLOAD_WORDS, WindowClass, WindowDescriptor};

use std::borrow::Cow;

use vyre_driver::protocol::ARG_WORDS;
use vyre_driver::ring::SlotImage;

use crate::batch::{SLOT_BYTES, ring};
use crate::error::MegakernelError;

/// Something that becomes slots, all or none.
pub trait Publish {
    /// How many slots.
    fn slot_count(&self) -> usize;

    /// Checks everything, then hands over each slot in order. `sink` is not called unless all is well.
    ///
    /// # Errors
    ///
    /// The first rule broken.
    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError>;

    /// Writes as many slots of a batch ring as there are in the descriptor; nothing unless all is well.
    ///
    /// # Errors
    ///
    /// The first rule broken.
    fn encode(&self, into: &mut [[u8; SLOT_BYTES]]) -> Result<(), MegakernelError> {
        let mut places = into.iter_mut();
        self.publish(&mut |image| {
            if let Some(place) = places.next() {
                ring::encode(place, ring::tags(image), &image.args);
            }
        })
    }

    /// The slots.
    ///
    /// # Errors
    ///
    /// The first rule broken.
    fn images(&self) -> Result<Vec<SlotImage>, MegakernelError> {
        let mut images = Vec::with_capacity(self.slot_count());
        self.publish(&mut |image| images.push(*image))?;
        Ok(images)
    }

    /// The slots, borrowed from a descriptor that has them.
    ///
    /// # Errors
    ///
    /// The first rule broken.
    fn encoded(&self) -> Result<Cow<'_, [SlotImage]>, MegakernelError> {
        self.images().map(Cow::Owned)
    }
}

/// A finished item as it is, unknown and reserved opcodes included: the device has the last word.
impl Publish for SlotImage {
    fn slot_count(&self) -> usize {
        1
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        sink(self);
        Ok(())
    }

    fn encoded(&self) -> Result<Cow<'_, [SlotImage]>, MegakernelError> {
        Ok(Cow::Borrowed(std::slice::from_ref(self)))
    }
}

/// The same, several of them: nothing is copied but into the ring.
impl Publish for [SlotImage] {
    fn slot_count(&self) -> usize {
        self.len()
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        self.iter().for_each(sink);
        Ok(())
    }

    fn encoded(&self) -> Result<Cow<'_, [SlotImage]>, MegakernelError> {
        Ok(Cow::Borrowed(self))
    }
}

/// Copies arguments into an array padded with zeros.
#[inline]
fn padded(args: &[u32]) -> Result<[u32; ARG_WORDS], MegakernelError> {
    let mut words = [0; ARG_WORDS];
    match words.get_mut(..args.len()) {
        Some(place) => {
            place.copy_from_slice(args);
            Ok(words)
        }
        None => Err(MegakernelError::TooManyArgs { what: "a slot", got: args.len(), limit: ARG_WORDS }),
    }
}
