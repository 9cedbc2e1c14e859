//! Opcodes as types: which are built in, which are the user's, and what may stand inside a packed slot.

use std::fmt;

use vyre_driver::protocol::opcode;

/// The opcode of a slot: any 32-bit value, checked when the slot is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotOpcode(u32);

impl SlotOpcode {
    /// The opcode with this wire value.
    pub const fn new(wire: u32) -> SlotOpcode {
        SlotOpcode(wire)
    }

    /// Its wire value.
    pub const fn wire(self) -> u32 {
        self.0
    }

    /// The built-in operation it stands for, if it is one.
    #[inline]
    pub const fn builtin(self) -> Option<BuiltinOpcode> {
        BuiltinOpcode::from_wire(self.0)
    }

    /// Whether a user may give a handler this opcode.
    #[inline]
    pub const fn is_user(self) -> bool {
        opcode::is_user(self.0)
    }

    /// Whether it is neither built in nor the user's.
    #[inline]
    pub const fn is_reserved(self) -> bool {
        // The user's range first: nearly every slot is of it.
        !self.is_user() && self.builtin().is_none()
    }
}

impl From<u32> for SlotOpcode {
    fn from(wire: u32) -> SlotOpcode {
        SlotOpcode(wire)
    }
}

impl From<BuiltinOpcode> for SlotOpcode {
    fn from(builtin: BuiltinOpcode) -> SlotOpcode {
        SlotOpcode(builtin.wire())
    }
}

impl fmt::Display for SlotOpcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.builtin() {
            Some(builtin) => write!(f, "opcode {}", builtin.name()),
            None => write!(f, "opcode {:#x}", self.0),
        }
    }
}

/// As [`fmt::Display`]: numbers of opcodes are read in hexadecimal everywhere.
impl fmt::Debug for SlotOpcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The operations every megakernel has. docs/protocol.md has the table of arguments and results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum BuiltinOpcode {
    /// Does nothing; result 0.
    Nop,
    /// `state[a1] = a0`; result the old value.
    StoreU32,
    /// `state[a1] += a0`; result the old value.
    AtomicAdd,
    /// `observable[a1] = state[a0]`; result the value.
    LoadU32,
    /// `if state[a0] == a1 { state[a0] = a2 }`; result the old value.
    CompareSwap,
    /// Copies `a2` words from `state[a0..]` to `state[a1..]` as memmove does; result `a2`.
    Memcpy,
    /// One step of DFA table `a0` from state `a1` over byte `a2`; result the next state, and in the high
    /// word what it accepts.
    DfaStep,
    /// Completes after the `a0` items before it, all for 0; then `EPOCH += 1` and `observable[0] = a1`;
    /// result the epoch.
    BatchFence,
    /// Asks the host to load resource `a0`; result the bytes loaded. `a1` is 1 for a prefetch, `a2` a
    /// destination (0 for the one registered with the resource), `a3` and `a4` the low and high word of the
    /// first byte, `a5` how many bytes (0 for all the rest).
    LoadMiss,
    /// Appends `{a0, a1, a2, ticket}` to the debug log; result 1, or 0 when the log was full.
    Printf,
    /// Tenant 0 only: nothing behind it runs.
    Shutdown,
    /// Several operations in one slot; see [`PackedOpDescriptor`](crate::PackedOpDescriptor).
    PackedSlot,
}

impl BuiltinOpcode {
    /// Every built-in opcode, in the order of [`index`](Self::index).
    pub const ALL: [BuiltinOpcode; 12] = [
        BuiltinOpcode::Nop,
        BuiltinOpcode::StoreU32,
        BuiltinOpcode::AtomicAdd,
        BuiltinOpcode::LoadU32,
        BuiltinOpcode::CompareSwap,
        BuiltinOpcode::Memcpy,
        BuiltinOpcode::DfaStep,
        BuiltinOpcode::BatchFence,
        BuiltinOpcode::LoadMiss,
        BuiltinOpcode::Printf,
        BuiltinOpcode::Shutdown,
        BuiltinOpcode::PackedSlot,
    ];

    /// The value in a slot.
    pub const fn wire(self) -> u32 {
        match self {
            BuiltinOpcode::Nop => opcode::NOP,
            BuiltinOpcode::StoreU32 => opcode::STORE_U32,
            BuiltinOpcode::AtomicAdd => opcode::ATOMIC_ADD,
            BuiltinOpcode::LoadU32 => opcode::LOAD_U32,
            BuiltinOpcode::CompareSwap => opcode::COMPARE_SWAP,
            BuiltinOpcode::Memcpy => opcode::MEMCPY,
            BuiltinOpcode::DfaStep => opcode::DFA_STEP,
            BuiltinOpcode::BatchFence => opcode::BATCH_FENCE,
            BuiltinOpcode::LoadMiss => opcode::LOAD_MISS,
            BuiltinOpcode::Printf => opcode::PRINTF,
            BuiltinOpcode::Shutdown => opcode::SHUTDOWN,
            BuiltinOpcode::PackedSlot => opcode::PACKED_SLOT,
        }
    }

    /// The operation with this value in a slot.
    #[inline]
    pub const fn from_wire(wire: u32) -> Option<BuiltinOpcode> {
        Some(match wire {
            opcode::NOP => BuiltinOpcode::Nop,
            opcode::STORE_U32 => BuiltinOpcode::StoreU32,
            opcode::ATOMIC_ADD => BuiltinOpcode::AtomicAdd,
            opcode::LOAD_U32 => BuiltinOpcode::LoadU32,
            opcode::COMPARE_SWAP => BuiltinOpcode::CompareSwap,
            opcode::MEMCPY => BuiltinOpcode::Memcpy,
            opcode::DFA_STEP => BuiltinOpcode::DfaStep,
            opcode::BATCH_FENCE => BuiltinOpcode::BatchFence,
            opcode::LOAD_MISS => BuiltinOpcode::LoadMiss,
            opcode::PRINTF => BuiltinOpcode::Printf,
            opcode::SHUTDOWN => BuiltinOpcode::Shutdown,
            opcode::PACKED_SLOT => BuiltinOpcode::PackedSlot,
            _ => return None,
        })
    }

    /// Its place in [`ALL`](Self::ALL): the bit in a tenant's word of permitted built-ins, and the place of
    /// its counter.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Its name in the protocol.
    pub const fn name(self) -> &'static str {
        match self {
            BuiltinOpcode::Nop => "NOP",
            BuiltinOpcode::StoreU32 => "STORE_U32",
            BuiltinOpcode::AtomicAdd => "ATOMIC_ADD",
            BuiltinOpcode::LoadU32 => "LOAD_U32",
            BuiltinOpcode::CompareSwap => "COMPARE_SWAP",
            BuiltinOpcode::Memcpy => "MEMCPY",
            BuiltinOpcode::DfaStep => "DFA_STEP",
            BuiltinOpcode::BatchFence => "BATCH_FENCE",
            BuiltinOpcode::LoadMiss => "LOAD_MISS",
            BuiltinOpcode::Printf => "PRINTF",
            BuiltinOpcode::Shutdown => "SHUTDOWN",
            BuiltinOpcode::PackedSlot => "PACKED_SLOT",
        }
    }

    /// Whether it may stand inside a packed slot. A fence may not, because the consumer parks fences and
    /// does not look inside; the others have no one-byte opcode.
    pub const fn is_packable(self) -> bool {
        self.wire() < opcode::BATCH_FENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_values_and_indices_agree_both_ways() {
        for (place, builtin) in BuiltinOpcode::ALL.into_iter().enumerate() {
            assert_eq!(builtin.index() as usize, place);
            assert_eq!(BuiltinOpcode::from_wire(builtin.wire()), Some(builtin));
        }
    }

    #[test]
    fn every_value_is_built_in_or_the_users_or_reserved() {
        for (wire, builtin, user) in [
            (0, true, false),
            (7, true, false),
            (8, false, true),
            (0xFFEF, false, true),
            (0xFFF0, false, false),
            (0xFFFC, false, false),
            (0xFFFD, true, false),
            (0xFFFE, true, false),
            (0xFFFF, false, false),
            (0x1_0000, false, true),
            (0x7FFF_FFFF, false, true),
            (0x8000_0000, false, false),
            (0x8000_0001, true, false),
            (0x8000_0002, false, false),
            (0xFFFF_FFFE, false, false),
            (0xFFFF_FFFF, true, false),
        ] {
            let opcode = SlotOpcode::new(wire);
            assert_eq!(opcode.builtin().is_some(), builtin, "{opcode}");
            assert_eq!(opcode.is_user(), user, "{opcode}");
            assert_eq!(opcode.is_reserved(), !builtin && !user, "{opcode}");
        }
    }
}
