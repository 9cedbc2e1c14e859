//! One slot.

use smallvec::SmallVec;
use vyre_driver::protocol::ARG_WORDS;
use vyre_driver::ring::SlotImage;

use super::{Publish, padded};
use crate::batch::{SLOT_BYTES, ring};
use crate::error::MegakernelError;
use crate::opcode::SlotOpcode;

/// How urgent an item is. A slot always carries it; a session with several
/// [rings](crate::SessionOptions::priority_rings) acts on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Priority {
    /// The default.
    #[default]
    Normal = 0,
    /// Before everything else.
    Critical = 1,
    /// Before normal items.
    High = 2,
    /// After normal items.
    Low = 3,
    /// When there is nothing else; from time to time all the same.
    Idle = 4,
}

impl Priority {
    /// The priority in a slot's flags. What has no name counts as normal.
    pub const fn of_flags(flags: u16) -> Priority {
        match flags as u32 & vyre_driver::protocol::flags::PRIORITY_MASK {
            1 => Priority::Critical,
            2 => Priority::High,
            3 => Priority::Low,
            4 => Priority::Idle,
            _ => Priority::Normal,
        }
    }
}

/// One item to be run.
///
/// ```
/// use vyre_runtime::{BuiltinOpcode, Priority, SlotDescriptor};
///
/// let slot = SlotDescriptor::new(BuiltinOpcode::StoreU32).tenant(3).priority(Priority::High).args([7, 0]);
/// assert_eq!(slot.to_image()?.args[..2], [7, 0]);
/// # Ok::<(), vyre_runtime::MegakernelError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotDescriptor {
    opcode: SlotOpcode,
    tenant: u16,
    priority: Priority,
    args: SmallVec<[u32; ARG_WORDS]>,
}

impl SlotDescriptor {
    /// An item of tenant 0 and normal priority without arguments: those not given are 0.
    #[inline]
    pub fn new(opcode: impl Into<SlotOpcode>) -> SlotDescriptor {
        SlotDescriptor { opcode: opcode.into(), tenant: 0, priority: Priority::Normal, args: SmallVec::new() }
    }

    /// For whom it runs.
    #[must_use]
    #[inline]
    pub fn tenant(mut self, tenant: u16) -> SlotDescriptor {
        self.tenant = tenant;
        self
    }

    /// How urgent it is.
    #[must_use]
    #[inline]
    pub fn priority(mut self, priority: Priority) -> SlotDescriptor {
        self.priority = priority;
        self
    }

    /// Its arguments, at most twelve; more are refused when it is published.
    #[must_use]
    #[inline]
    pub fn args(mut self, args: impl AsRef<[u32]>) -> SlotDescriptor {
        self.args = SmallVec::from_slice(args.as_ref());
        self
    }

    /// Its opcode.
    pub fn opcode(&self) -> SlotOpcode {
        self.opcode
    }

    /// The words of the slot.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::ReservedOpcode`], [`MegakernelError::TooManyArgs`].
    #[inline]
    pub fn to_image(&self) -> Result<SlotImage, MegakernelError> {
        if self.opcode.is_reserved() {
            return Err(MegakernelError::ReservedOpcode { opcode: self.opcode });
        }
        Ok(SlotImage {
            opcode: self.opcode.wire(),
            tenant: self.tenant,
            flags: self.priority as u16,
            args: padded(&self.args)?,
        })
    }
}

impl Publish for SlotDescriptor {
    fn slot_count(&self) -> usize {
        1
    }

    fn publish(&self, sink: &mut dyn FnMut(&SlotImage)) -> Result<(), MegakernelError> {
        sink(&self.to_image()?);
        Ok(())
    }

    #[inline]
    fn encode(&self, into: &mut [[u8; SLOT_BYTES]]) -> Result<(), MegakernelError> {
        let image = self.to_image()?;
        if let [place] = into {
            ring::encode(place, ring::tags(&image), &image.args);
        }
        Ok(())
    }
}
