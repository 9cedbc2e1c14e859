//! The driver's own work item: a piece of input and a set of rules to apply to it.

use std::time::Duration;

use super::persistent::PersistentRing;
use super::ticket::Ticket;
use super::{Completion, RingError, SlotImage};
use crate::protocol::{ARG_WORDS, opcode};
use crate::wait::WaitStrategy;

/// A piece of input and what to do with it, in words 0 to 3 of an [`opcode::WORK_ITEM`] slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PersistentWorkItem {
    /// First byte of the input, in the buffer that the consumer reads input from.
    pub input_offset: u32,
    /// Bytes of input.
    pub input_len: u32,
    /// Which rules.
    pub rule_set_id: u32,
    /// The submitter's own number. It comes back from the submitter's private copy, not from the device.
    pub correlation: u32,
}

impl PersistentWorkItem {
    /// The item as a slot holds it.
    pub const fn to_image(self) -> SlotImage {
        let mut args = [0; ARG_WORDS];
        args[0] = self.input_offset;
        args[1] = self.input_len;
        args[2] = self.rule_set_id;
        args[3] = self.correlation;
        SlotImage::new(opcode::WORK_ITEM, args)
    }

    /// The work item in a slot, if it holds one.
    pub const fn from_image(image: &SlotImage) -> Option<PersistentWorkItem> {
        if image.opcode != opcode::WORK_ITEM {
            return None;
        }
        let [input_offset, input_len, rule_set_id, correlation, ..] = image.args;
        Some(PersistentWorkItem { input_offset, input_len, rule_set_id, correlation })
    }
}

/// A work item that was submitted: its ticket, and the submitter's number.
#[derive(Debug)]
#[must_use = "a dropped ticket forgets its item"]
pub struct WorkTicket<'a> {
    ticket: Ticket<'a>,
    correlation: u32,
}

impl<'a> WorkTicket<'a> {
    /// The submitter's number.
    pub fn correlation(&self) -> u32 {
        self.correlation
    }

    /// The ticket.
    pub fn ticket(&mut self) -> &mut Ticket<'a> {
        &mut self.ticket
    }

    /// Waits for the completion; answers it with the submitter's number.
    pub fn wait(
        &mut self,
        strategy: WaitStrategy,
        timeout: Duration,
    ) -> Result<(u32, Completion), RingError> {
        Ok((self.correlation, self.ticket.wait(strategy, timeout)?))
    }
}

impl PersistentRing {
    /// Submits a work item.
    pub fn submit_work(&self, item: PersistentWorkItem) -> Result<WorkTicket<'_>, RingError> {
        let ticket = self.submit(&item.to_image())?;
        Ok(WorkTicket { ticket, correlation: item.correlation })
    }
}
