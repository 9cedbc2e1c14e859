//! Packed slots: several small operations in the argument words of one slot.
//!
//! ```text
//! byte 0        operations, at least 1
//! byte 1        argument words of all of them together
//! byte 2 + 2n   opcode of operation n
//! byte 3 + 2n   where its arguments begin, in words from the first argument
//! ...           zeros up to a whole word, then the arguments
//! ```
//!
//! Begins never decrease, and an operation's arguments end where the next one's begin; arguments that it
//! does not have read as 0. The operations run in order, and the first that faults ends the slot: its index
//! is the completion's code, and the effects of those before it stay. The result is the last operation's.
//!
//! Whatever [`SlotDescriptor::packed`] and [`decode`] accept, the device executes; it checks by the same
//! rules, and all of them before the first effect.

use smallvec::SmallVec;
use vyre_driver::protocol::{ARG_WORDS, opcode};

use crate::descriptor::SlotDescriptor;
use crate::error::MegakernelError;
use crate::opcode::{BuiltinOpcode, SlotOpcode};

/// Operations at most: without arguments, two bytes each fill the slot.
pub const MAX_PACKED_OPS: usize = (ARG_WORDS * 4 - 2) / 2;

/// Words of the header in front of the arguments, for `ops` operations.
const fn header_words(ops: usize) -> usize {
    (2 + 2 * ops).div_ceil(4)
}

/// One operation of a packed slot. Its opcode is one byte: a built-in below BATCH_FENCE, or a user
/// handler's that has lane granularity and never requeues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedOpDescriptor {
    opcode: u8,
    args: SmallVec<[u32; ARG_WORDS]>,
}

impl PackedOpDescriptor {
    /// An operation without arguments.
    pub fn new(opcode: u8) -> PackedOpDescriptor {
        PackedOpDescriptor { opcode, args: SmallVec::new() }
    }

    /// Its arguments.
    #[must_use]
    pub fn args(mut self, args: impl AsRef<[u32]>) -> PackedOpDescriptor {
        self.args = SmallVec::from_slice(args.as_ref());
        self
    }

    /// Its opcode.
    pub fn opcode(&self) -> SlotOpcode {
        SlotOpcode::new(self.opcode.into())
    }

    /// Its arguments, those not given left out.
    pub fn arg_words(&self) -> &[u32] {
        &self.args
    }
}

impl SlotDescriptor {
    /// A packed slot.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedDescriptor`] without operations and for an operation that cannot be
    /// packed, [`MegakernelError::TooManyArgs`] if they do not fit.
    pub fn packed(ops: &[PackedOpDescriptor]) -> Result<SlotDescriptor, MegakernelError> {
        let total: usize = ops.iter().map(|op| op.args.len()).sum();
        let begin = header_words(ops.len());
        if ops.is_empty() {
            return Err(malformed("it has no operations", "add one"));
        }
        if ops.len() > MAX_PACKED_OPS || begin.saturating_add(total) > ARG_WORDS {
            return Err(MegakernelError::TooManyArgs {
                what: "a packed slot, headers included",
                got: begin.saturating_add(total),
                limit: ARG_WORDS,
            });
        }
        let mut words = [0_u32; ARG_WORDS];
        let mut put = |byte: usize, value: u8| {
            if let Some(word) = words.get_mut(byte / 4) {
                *word |= u32::from(value) << (byte % 4 * 8);
            }
        };
        put(0, ops.len() as u8);
        put(1, total as u8);
        let mut args: SmallVec<[u32; ARG_WORDS]> = SmallVec::new();
        for (op, at) in ops.iter().zip((2..).step_by(2)) {
            check_packable(op.opcode)?;
            put(at, op.opcode);
            put(at + 1, args.len() as u8);
            args.extend_from_slice(&op.args);
        }
        for (place, arg) in words.iter_mut().skip(begin).zip(args) {
            *place = arg;
        }
        Ok(SlotDescriptor::new(BuiltinOpcode::PackedSlot).args(words))
    }
}

/// The operations in a packed slot's arguments.
///
/// # Errors
///
/// [`MegakernelError::MalformedDescriptor`] where the device would answer
/// [`Fault::BadPacking`](vyre_driver::Fault::BadPacking), handlers apart.
pub fn decode(words: &[u32; ARG_WORDS]) -> Result<SmallVec<[PackedOpDescriptor; 4]>, MegakernelError> {
    let byte = |at: usize| words.get(at / 4).map_or(0, |word| (word >> (at % 4 * 8)) as u8);
    let (count, total) = (usize::from(byte(0)), usize::from(byte(1)));
    if count == 0 {
        return Err(malformed("it has no operations", "add one"));
    }
    let begin = header_words(count);
    let Some(args) = words.get(begin..begin + total) else {
        return Err(malformed("its operations and arguments do not fit into the slot", "use two slots"));
    };
    let mut ops = SmallVec::new();
    for op in 0..count {
        let opcode = byte(2 + 2 * op);
        check_packable(opcode)?;
        let first = usize::from(byte(3 + 2 * op));
        let end = if op + 1 < count { usize::from(byte(5 + 2 * op)) } else { total };
        let Some(args) = args.get(first..end) else {
            return Err(malformed(
                "an operation's arguments begin past the end, or before those of the one before it",
                "lay the arguments out in order",
            ));
        };
        ops.push(PackedOpDescriptor::new(opcode).args(args));
    }
    Ok(ops)
}

fn check_packable(opcode: u8) -> Result<(), MegakernelError> {
    if u32::from(opcode) == opcode::BATCH_FENCE {
        return Err(malformed("a fence cannot be packed", "give it a slot of its own"));
    }
    Ok(())
}

fn malformed(problem: &'static str, remedy: &'static str) -> MegakernelError {
    MegakernelError::MalformedDescriptor { what: "packed slot", problem, remedy }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(slot: &SlotDescriptor) -> [u32; ARG_WORDS] {
        slot.to_image().expect("a packed slot fits").args
    }

    #[test]
    fn layout_of_two_operations() {
        let ops = [PackedOpDescriptor::new(1).args([10, 11]), PackedOpDescriptor::new(2).args([20])];
        let slot = SlotDescriptor::packed(&ops).expect("fits");
        assert_eq!(words(&slot), [0x0001_0302, 0x0000_0202, 10, 11, 20, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn capacity_is_exact() {
        for (ops, args_each, fits) in [
            (23, 0, true),
            (24, 0, false),
            (1, 11, true),
            (1, 12, false),
            (4, 2, true),
            (5, 2, false),
            (7, 1, true),
            (8, 1, false),
        ] {
            let ops = vec![PackedOpDescriptor::new(0).args(vec![9; args_each]); ops];
            assert_eq!(SlotDescriptor::packed(&ops).is_ok(), fits, "{} x {args_each}", ops.len());
        }
        assert_eq!(MAX_PACKED_OPS, 23);
    }

    #[test]
    fn malformed_words_are_refused() {
        for (first, second, why) in [
            (0x0000_0000, 0, "no operations"),
            (0x0000_0018, 0, "24 operations"),
            (0x0000_0c01, 0, "12 argument words behind a header"),
            (0x0007_0001, 0, "a fence"),
            (0x0201_0101, 0, "arguments begin past the end"),
            (0x0101_0102, 0x0000_0000, "begins decrease"),
        ] {
            let mut words = [0; ARG_WORDS];
            words[0] = first;
            words[1] = second;
            assert!(decode(&words).is_err(), "{why}");
        }
    }

    fn any_ops() -> impl Strategy<Value = Vec<PackedOpDescriptor>> {
        let opcode = any::<u8>().prop_filter("fences are not packed", |&opcode| opcode != 7);
        let op = (opcode, prop::collection::vec(any::<u32>(), 0..5))
            .prop_map(|(opcode, args)| PackedOpDescriptor::new(opcode).args(args));
        prop::collection::vec(op, 1..24)
    }

    proptest! {
        #[test]
        fn decoding_inverts_packing(ops in any_ops()) {
            if let Ok(slot) = SlotDescriptor::packed(&ops) {
                let decoded = decode(&words(&slot)).expect("what was packed decodes");
                prop_assert_eq!(decoded.as_slice(), ops.as_slice());
            }
        }

        #[test]
        fn decoding_never_panics_and_packs_again(words in any::<[u32; ARG_WORDS]>(), count in 0_u32..24, total in 0_u32..12) {
            let mut words = words;
            words[0] = words[0] & 0xFFFF_0000 | total << 8 | count;
            if let Ok(ops) = decode(&words) {
                prop_assert!(SlotDescriptor::packed(&ops).is_ok());
            }
        }
    }
}
