//! Slots that belong together: what a step needs, and what later steps may need.

use vyre_driver::protocol::ARG_WORDS;
use vyre_driver::ring::SlotImage;

use super::{BatchDescriptor, Priority, Publish, SlotDescriptor};
use crate::batch::{SLOT_BYTES, ring};
use crate::error::MegakernelError;
use crate::opcode::SlotOpcode;

/// Payload words of a window's slot: the arguments after window id and class.
pub const WINDOW_PAYLOAD_WORDS: usize = ARG_WORDS - 2;

/// Why a slot is in its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum WindowClass {
    /// The window is not complete without it.
    Required = 0,
    /// Work done ahead; the first to be cancelled.
    Lookahead = 1,
}

impl WindowClass {
    /// The class with this argument word.
    pub const fn from_word(word: u32) -> Option<WindowClass> {
        match word {
            0 => Some(WindowClass::Required),
            1 => Some(WindowClass::Lookahead),
            _ => None,
        }
    }
}

/// A group of slots of one opcode and tenant. The arguments of each are the window's id, its class, and up
/// to ten words of payload; required slots come first.
///
/// ```
/// use vyre_runtime::{Publish, WindowDescriptor};
///
/// let window = WindowDescriptor::new(0x40, 17).tenant(2).required([1, 2]).lookahead([3, 4]);
/// let images = window.images()?;
/// assert_eq!(images[0].args[..4], [17, 0, 1, 2]);
/// assert_eq!(images[1].args[..4], [17, 1, 3, 4]);
/// # Ok::<(), vyre_runtime::MegakernelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowDescriptor {
    opcode: SlotOpcode,
    tenant: u16,
    priority: Priority,
    window_id: u32,
    /// The slots as a batch ring holds them: publishing there is one copy.
    slots: Vec<[u8; SLOT_BYTES]>,
    required: usize,
    /// The first rule broken while entries were added.
    broken: Option<Broken>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    PayloadTooLong(usize),
    RequiredAfterLookahead,
}

impl WindowDescriptor {
    /// An empty window of tenant 0 and normal priority.
    pub fn new(opcode: impl Into<SlotOpcode>, window_id: u32) -> WindowDescriptor {
        WindowDescriptor {
            opcode: opcode.into(),
            tenant: 0,
            priority: Priority::Normal,
            window_id,
            slots: Vec::new(),
            required: 0,
            broken: None,
        }
    }

    /// For whom it runs.
    #[must_use]
    pub fn tenant(mut self, tenant: u16) -> WindowDescriptor {
        self.tenant = tenant;
        self.head_again();
        self
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> WindowDescriptor {
        self.priority = priority;
        self.head_again();
        self
    }

    /// Adds a slot that the window needs.
    #[must_use]
    pub fn required(mut self, payload: impl AsRef<[u32]>) -> WindowDescriptor {
        self.push(WindowClass::Required, payload);
        self
    }

    /// Adds a slot that may be cancelled.
    #[must_use]
    pub fn lookahead(mut self, payload: impl AsRef<[u32]>) -> WindowDescriptor {
        self.push(WindowClass::Lookahead, payload);
        self
    }

    /// Adds a slot. A rule broken here is reported when the window is published.
    pub fn push(&mut self, class: WindowClass, payload: impl AsRef<[u32]>) {
        let payload = payload.as_ref();
        let mut args = [0; ARG_WORDS];
        let [id, class_word, place @ ..] = &mut args;
        *id = self.window_id;
        *class_word = class as u32;
        match place.get_mut(..payload.len()) {
            Some(place) => place.copy_from_slice(payload),
            None => self.break_rule(Broken::PayloadTooLong(payload.len())),
        }
        if class == WindowClass::Required {
            if self.required < self.slots.len() {
                self.break_rule(Broken::RequiredAfterLookahead);
            }
            self.required += 1;
        }
        let mut slot = [0; SLOT_BYTES];
        ring::encode(&mut slot, ring::tags(&self.head()), &args);
        self.slots.push(slot);
    }

    /// The window's id.
    pub fn window_id(&self) -> u32 {
        self.window_id
    }

    /// How many slots are required; they come first.
    pub fn required_count(&self) -> usize {
        self.required
    }

    /// The window's slots as a batch.
    ///
    /// # Errors
    ///
    /// The first rule broken.
    pub fn try_into_batch(self) -> Result<BatchDescriptor, MegakernelError> {
        let slot = |image: SlotImage| {
            SlotDescriptor::new(self.opcode).tenant(self.tenant).priority(self.priority).args(image.args)
        };
        Ok(self.images()?.into_iter().map(slot).collect())
    }

    /// Opcode, tenant and flags of every slot; arguments zero.
    fn head(&self) -> SlotImage {
        SlotImage {
            opcode: self.opcode.wire(),
            tenant: self.tenant,
            flags: self.priority as u16,
            args: [0; ARG_WORDS],
        }
    }

    /// Writes a changed head into the slots that are there.
    fn head_again(&mut self) {
        let tags = ring::tags(&self.head());
        for slot in &mut self.slots {
            ring::set_tags(slot, tags);
        }
    }

    fn check(&self) -> Result<(), MegakernelError> {
        if self.opcode.is_reserved() {
            return Err(MegakernelError::ReservedOpcode { opcode: self.opcode });
        }
        match self.broken {
            None => Ok(()),
            Some(Broken::PayloadTooLong(got)) => Err(MegakernelError::TooManyArgs {
                what: "the payload of a window's slot",
                got,
                limit: WINDOW_PAYLOAD_WORDS,
            }),
            Some(Broken::RequiredAfterLookahead) => Err(MegakernelError::MalformedDescriptor {
                what: "window",
                problem: "a required slot stands after a lookahead slot",
                remedy: "add the required slots first",
            }),
        }
    }

    fn break_rule(&mut self, rule: Broken) {
        self.broken.get_or_insert(rule);
    }
}

impl Publish for WindowDescriptor {
    fn slot_count(&self) -> usize {
        self.slots.len()
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        self.check()?;
        self.slots.iter().filter_map(ring::decode).for_each(|image| sink(&image));
        Ok(())
    }

    fn encode(&self, into: &mut [[u8; SLOT_BYTES]]) -> Result<(), MegakernelError> {
        self.check()?;
        let count = into.len().min(self.slots.len());
        if let (Some(into), Some(slots)) = (into.get_mut(..count), self.slots.get(..count)) {
            into.copy_from_slice(slots);
        }
        Ok(())
    }
}
