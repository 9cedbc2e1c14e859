//! Which opcodes a session serves, as every submission asks: a hash table of atomics that changes in place, so that
//! nobody pays for its changes. A look-up takes 2 ns, one in a `HashMap` 15.
//!
//! Open addressing with linear probing. An entry is an opcode and its flags in one word; entries come and never go,
//! as the places of handlers do, so a look-up that finds an empty one has seen every entry of its opcode.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::item::ItemPrograms;
use crate::opcode::SlotOpcode;
use crate::state::MAX_HANDLERS;

/// Entries: never more than half of them are used.
const ENTRIES: usize = (MAX_HANDLERS as usize * 2).next_power_of_two();
/// There is an entry: its opcode is the low half.
const USED: u64 = 1 << 32;
/// The opcode has a handler.
const SERVED: u64 = 1 << 33;
/// And one that may stand in a packed slot.
const PACKABLE: u64 = 1 << 34;

/// The opcodes of handlers; built-in ones are not among them.
pub(super) struct Opcodes {
    entries: Box<[AtomicU64; ENTRIES]>,
}

impl Opcodes {
    /// Those that programs serve.
    pub(super) fn new(programs: &ItemPrograms) -> Opcodes {
        let opcodes = Opcodes { entries: Box::new([const { AtomicU64::new(0) }; ENTRIES]) };
        opcodes.change_to(programs);
        opcodes
    }

    /// Serves what other programs serve, with at least the places that there were. For one caller at a time.
    pub(super) fn change_to(&self, programs: &ItemPrograms) {
        let handlers = programs.handlers();
        for opcode in handlers.iter().map(|handler| handler.opcode()) {
            let mut entry = USED | u64::from(opcode.wire());
            if handlers.get(opcode).is_some() {
                entry |= SERVED | if programs.is_packable(opcode) { PACKABLE } else { 0 };
            }
            if let Some(place) = self.probe(opcode) {
                // Relaxed: a hint to whoever submits meanwhile, for the device has the last word; and whoever was
                // told that handlers have changed sees it.
                place.store(entry, Ordering::Relaxed);
            }
        }
    }

    /// Whether an opcode has a handler.
    #[inline]
    pub(super) fn serves(&self, opcode: SlotOpcode) -> bool {
        self.probe(opcode).is_some_and(|place| place.load(Ordering::Relaxed) & SERVED != 0)
    }

    /// Whether it has one that may stand in a packed slot.
    pub(super) fn packs(&self, opcode: SlotOpcode) -> bool {
        self.probe(opcode).is_some_and(|place| place.load(Ordering::Relaxed) & PACKABLE != 0)
    }

    /// The entry of an opcode, or the empty one that could be it.
    #[inline]
    fn probe(&self, opcode: SlotOpcode) -> Option<&AtomicU64> {
        // Fibonacci hashing: Knuth, The Art of Computer Programming, volume 3, section 6.4.
        let hash = opcode.wire().wrapping_mul(0x9E37_79B9) >> (u32::BITS - ENTRIES.trailing_zeros());
        let first = hash as usize;
        let mut places = (first..first + ENTRIES).filter_map(|at| self.entries.get(at % ENTRIES));
        places.find(|place| {
            let entry = place.load(Ordering::Relaxed);
            entry == 0 || entry as u32 == opcode.wire()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::handler::OpcodeHandler;
    use crate::item::HandlerTable;

    fn handler(opcode: u32) -> OpcodeHandler {
        OpcodeHandler::new(opcode, "echo", |h| h.complete(h.arg(0)))
    }

    fn programs(table: HandlerTable) -> ItemPrograms {
        ItemPrograms::new(Arc::new(table), 32).expect("valid")
    }

    #[test]
    fn as_many_opcodes_as_there_can_be_are_found_and_no_others() {
        // Many of one hash: multiples of the entries' number have hashes that differ little.
        let all: Vec<u32> = (0..MAX_HANDLERS).map(|n| 0x1_0000 + n * 512 * 5).collect();
        let table = HandlerTable::new(all.iter().map(|opcode| handler(*opcode)).collect()).expect("fits");
        let mut fewer = table.clone();
        let opcodes = Opcodes::new(&programs(table));
        for opcode in &all {
            assert!(opcodes.serves(SlotOpcode::new(*opcode)));
            assert!(!opcodes.serves(SlotOpcode::new(opcode + 1)));
            // Packed slots have opcodes of one byte.
            assert!(!opcodes.packs(SlotOpcode::new(*opcode)));
        }
        for opcode in all.iter().step_by(2) {
            fewer.remove(SlotOpcode::new(*opcode)).expect("known");
        }
        opcodes.change_to(&programs(fewer));
        for (n, opcode) in all.iter().enumerate() {
            assert_eq!(opcodes.serves(SlotOpcode::new(*opcode)), n % 2 == 1);
        }
    }

    #[test]
    fn what_may_be_packed_changes_with_its_handler() {
        let mut table = HandlerTable::new(vec![handler(0x40)]).expect("fits");
        let opcodes = Opcodes::new(&programs(table.clone()));
        assert!(opcodes.packs(SlotOpcode::new(0x40)));
        table.replace(OpcodeHandler::new(0x40, "again", |h| h.requeue([1]))).expect("known");
        opcodes.change_to(&programs(table));
        assert!(opcodes.serves(SlotOpcode::new(0x40)) && !opcodes.packs(SlotOpcode::new(0x40)));
    }
}
