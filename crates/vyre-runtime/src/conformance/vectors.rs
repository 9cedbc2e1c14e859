//! One item each: what it is given, and what it must leave behind, written by hand.

use vyre_driver::protocol::{ARG_WORDS, opcode};
use vyre_driver::ring::SlotImage;
use vyre_driver::{Fault, Status};

use super::fixture::{
    ADD_ONE, COUNTDOWN, ECHO_OPCODE, FALL_OFF, FAULT, LIMITED, NO_QUOTA, NO_WINDOW, SUM_LOCAL_IDS, TRAP,
    UNCONFIGURED,
};

/// One item and its outcome. States and observables are `(word, value)`; words not listed are zero before,
/// and as before after.
#[derive(Clone, Copy, Debug)]
pub struct Vector {
    /// What it shows.
    pub name: &'static str,
    /// The item's opcode.
    pub opcode: u32,
    /// Its tenant.
    pub tenant: u16,
    /// Its arguments; those not listed are zero.
    pub args: &'static [u32],
    /// The tenant's state before.
    pub state: &'static [(u32, u32)],
    /// How it ends.
    pub status: Status,
    /// The completion's code.
    pub code: u32,
    /// The completion's result.
    pub result: u64,
    /// What is different in the tenant's state after.
    pub state_after: &'static [(u32, u32)],
    /// What is in the tenant's observables after.
    pub observables_after: &'static [(u32, u32)],
}

impl Vector {
    const fn new(name: &'static str, opcode: u32, args: &'static [u32]) -> Vector {
        Vector {
            name,
            opcode,
            tenant: 0,
            args,
            state: &[],
            status: Status::Done,
            code: 0,
            result: 0,
            state_after: &[],
            observables_after: &[],
        }
    }

    const fn tenant(mut self, tenant: u16) -> Vector {
        self.tenant = tenant;
        self
    }

    const fn state(mut self, state: &'static [(u32, u32)]) -> Vector {
        self.state = state;
        self
    }

    const fn done(mut self, result: u64) -> Vector {
        self.result = result;
        self
    }

    const fn fault(self, fault: Fault) -> Vector {
        self.fault_code(fault.code())
    }

    const fn fault_code(mut self, code: u32) -> Vector {
        self.status = Status::Fault;
        self.code = code;
        self
    }

    const fn then_state(mut self, state: &'static [(u32, u32)]) -> Vector {
        self.state_after = state;
        self
    }

    const fn then_observables(mut self, observables: &'static [(u32, u32)]) -> Vector {
        self.observables_after = observables;
        self
    }

    /// The item.
    pub fn image(&self) -> SlotImage {
        let mut args = [0; ARG_WORDS];
        for (place, &arg) in args.iter_mut().zip(self.args) {
            *place = arg;
        }
        SlotImage { opcode: self.opcode, tenant: self.tenant, flags: 0, args }
    }
}

const MAX: u32 = u32::MAX;

/// Items whose outcome does not depend on others. Tenant 0 has 4 observables and 16 words of state.
pub const VECTORS: &[Vector] = &[
    Vector::new("nop", opcode::NOP, &[1, 2, 3]).done(0),
    // STORE_U32 value, word
    Vector::new("store", opcode::STORE_U32, &[7, 3]).state(&[(3, 5)]).done(5).then_state(&[(3, 7)]),
    Vector::new("store to the last word", opcode::STORE_U32, &[1, 15]).then_state(&[(15, 1)]),
    Vector::new("store past the state", opcode::STORE_U32, &[1, 16]).fault(Fault::Bounds),
    Vector::new("store to a word that wraps round", opcode::STORE_U32, &[1, MAX]).fault(Fault::Bounds),
    Vector::new("store without a window", opcode::STORE_U32, &[1, 0]).tenant(NO_WINDOW).fault(Fault::Bounds),
    // ATOMIC_ADD value, word
    Vector::new("add", opcode::ATOMIC_ADD, &[5, 2]).state(&[(2, 37)]).done(37).then_state(&[(2, 42)]),
    Vector::new("add wraps", opcode::ATOMIC_ADD, &[5, 0])
        .state(&[(0, MAX)])
        .done(0xFFFF_FFFF)
        .then_state(&[(0, 4)]),
    Vector::new("add past the state", opcode::ATOMIC_ADD, &[5, 16]).fault(Fault::Bounds),
    // LOAD_U32 word, observable
    Vector::new("load", opcode::LOAD_U32, &[2, 1]).state(&[(2, 9)]).done(9).then_observables(&[(1, 9)]),
    Vector::new("load to the last observable", opcode::LOAD_U32, &[15, 3])
        .state(&[(15, 8)])
        .done(8)
        .then_observables(&[(3, 8)]),
    Vector::new("load past the state", opcode::LOAD_U32, &[16, 0]).fault(Fault::Bounds),
    Vector::new("load past the observables", opcode::LOAD_U32, &[0, 4]).state(&[(0, 8)]).fault(Fault::Bounds),
    // COMPARE_SWAP word, expected, replacement
    Vector::new("swap on a match", opcode::COMPARE_SWAP, &[4, 10, 11])
        .state(&[(4, 10)])
        .done(10)
        .then_state(&[(4, 11)]),
    Vector::new("no swap without a match", opcode::COMPARE_SWAP, &[4, 10, 11]).state(&[(4, 12)]).done(12),
    Vector::new("swap past the state", opcode::COMPARE_SWAP, &[16, 0, 1]).fault(Fault::Bounds),
    // MEMCPY source, target, words
    Vector::new("copy apart", opcode::MEMCPY, &[0, 8, 3])
        .state(&[(0, 1), (1, 2), (2, 3), (8, 9), (11, 9)])
        .done(3)
        .then_state(&[(8, 1), (9, 2), (10, 3)]),
    Vector::new("copy up over itself", opcode::MEMCPY, &[0, 1, 4])
        .state(&[(0, 1), (1, 2), (2, 3), (3, 4)])
        .done(4)
        .then_state(&[(1, 1), (2, 2), (3, 3), (4, 4)]),
    Vector::new("copy down over itself", opcode::MEMCPY, &[1, 0, 4])
        .state(&[(1, 2), (2, 3), (3, 4), (4, 5)])
        .done(4)
        .then_state(&[(0, 2), (1, 3), (2, 4), (3, 5)]),
    Vector::new("copy onto itself", opcode::MEMCPY, &[0, 0, 16]).state(&[(0, 1), (15, 2)]).done(16),
    Vector::new("copy nothing at the end", opcode::MEMCPY, &[16, 16, 0]),
    Vector::new("copy from past the end", opcode::MEMCPY, &[14, 0, 3]).state(&[(14, 1)]).fault(Fault::Bounds),
    Vector::new("copy to past the end", opcode::MEMCPY, &[0, 14, 3]).state(&[(0, 1)]).fault(Fault::Bounds),
    Vector::new("copy more than there is", opcode::MEMCPY, &[0, 0, 17]).fault(Fault::Bounds),
    Vector::new("copy a length that wraps round", opcode::MEMCPY, &[1, 2, MAX]).fault(Fault::Bounds),
    Vector::new("copy from a word that wraps round", opcode::MEMCPY, &[MAX, 0, 2]).fault(Fault::Bounds),
    // DFA_STEP table, state, byte; table 1 accepts, with word 9, after `ab`
    Vector::new("step", opcode::DFA_STEP, &[1, 0, 0x61]).done(1),
    Vector::new("step to acceptance", opcode::DFA_STEP, &[1, 1, 0x62]).done(9 << 32 | 2),
    Vector::new("step away", opcode::DFA_STEP, &[1, 2, 0x78]).done(0),
    Vector::new("step in a table with one state", opcode::DFA_STEP, &[0, 0, 255]).done(3 << 32),
    Vector::new("step in no table", opcode::DFA_STEP, &[2, 0, 0]).fault(Fault::Bounds),
    Vector::new("step from no state", opcode::DFA_STEP, &[1, 3, 0]).fault(Fault::Bounds),
    Vector::new("step over no byte", opcode::DFA_STEP, &[1, 0, 256]).fault(Fault::Bounds),
    // BATCH_FENCE items before, word; what it completes with depends on the fences before it
    Vector::new("fence without observables", opcode::BATCH_FENCE, &[0, 7])
        .tenant(NO_WINDOW)
        .fault(Fault::Bounds),
    // PACKED_SLOT
    Vector::new("packed: the last result, in order", opcode::PACKED_SLOT, &[0x0001_0402, 0x0202, 7, 3, 5, 3])
        .done(7)
        .then_state(&[(3, 12)]),
    Vector::new("packed: arguments not given are 0", opcode::PACKED_SLOT, &[0x0001_0202, 0x0100, 7, 9])
        .then_state(&[(0, 7)]),
    Vector::new(
        "packed: stops at the first fault",
        opcode::PACKED_SLOT,
        &[0x0001_0603, 0x0401_0201, 7, 3, 8, 16, 9, 4],
    )
    .fault_code(1)
    .then_state(&[(3, 7)]),
    Vector::new("packed: a fault of the first has code 0", opcode::PACKED_SLOT, &[0x0001_0201, 1, 16])
        .fault_code(0),
    Vector::new("packed: 23 operations", opcode::PACKED_SLOT, &[23]),
    Vector::new(
        "packed: 11 words of arguments",
        opcode::PACKED_SLOT,
        &[0x0005_0B01, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    .state(&[(0, 6), (1, 7)])
    .done(2)
    .then_state(&[(8, 6), (9, 7)]),
    Vector::new("packed: a handler of the user", opcode::PACKED_SLOT, &[ADD_ONE << 16 | 0x0101, 41]).done(42),
    Vector::new(
        "packed: an inner trap has the index for code",
        opcode::PACKED_SLOT,
        &[0x0000_0102, FAULT, 5],
    )
    .fault_code(1),
    Vector::new("packed: no operations", opcode::PACKED_SLOT, &[0]).fault(Fault::BadPacking),
    Vector::new("packed: 24 operations", opcode::PACKED_SLOT, &[24]).fault(Fault::BadPacking),
    Vector::new("packed: 12 words of arguments", opcode::PACKED_SLOT, &[0x0C01]).fault(Fault::BadPacking),
    Vector::new("packed: 255 of both", opcode::PACKED_SLOT, &[0xFFFF]).fault(Fault::BadPacking),
    Vector::new("packed: begins decrease", opcode::PACKED_SLOT, &[0x0101_0202, 0x0001, 7, 3])
        .fault(Fault::BadPacking),
    Vector::new("packed: a begin past the end", opcode::PACKED_SLOT, &[0x0301_0201, 7, 3])
        .fault(Fault::BadPacking),
    Vector::new("packed: unknown inside, no effect", opcode::PACKED_SLOT, &[0x0001_0202, 200, 7, 3])
        .fault(Fault::BadPacking),
    Vector::new("packed: a fence inside, no effect", opcode::PACKED_SLOT, &[0x0001_0202, 0x0207, 7, 3])
        .fault(Fault::BadPacking),
    Vector::new(
        "packed: what requeues inside, no effect",
        opcode::PACKED_SLOT,
        &[0x0001_0202, COUNTDOWN | 0x0200, 7, 3],
    )
    .fault(Fault::BadPacking),
    Vector::new(
        "packed: a workgroup's inside, no effect",
        opcode::PACKED_SLOT,
        &[0x0001_0202, SUM_LOCAL_IDS | 0x0200, 7, 3],
    )
    .fault(Fault::BadPacking),
    Vector::new(
        "packed: not permitted inside, no effect",
        opcode::PACKED_SLOT,
        &[0x0001_0402, 0x0202, 7, 3, 5, 3],
    )
    .tenant(LIMITED)
    .fault(Fault::Permission),
    // PRINTF format, argument, argument
    Vector::new("printf", opcode::PRINTF, &[1, 2, 3]).done(1),
    // Handlers
    Vector::new("handler", ADD_ONE, &[41]).done(42),
    Vector::new("handler of the second range", ECHO_OPCODE, &[]).done(ECHO_OPCODE as u64),
    Vector::new("handler that faults", FAULT, &[5]).fault(Fault::Trap(5)),
    Vector::new("fault codes keep 31 bits", FAULT, &[MAX]).fault(Fault::Trap(0x7FFF_FFFF)),
    Vector::new("trap is a fault", TRAP, &[6]).fault(Fault::Trap(6)),
    Vector::new("no trap", TRAP, &[0]).done(1),
    Vector::new("falling off the end", FALL_OFF, &[9]).done(0),
    Vector::new("requeue until done", COUNTDOWN, &[5, 10]).done(15),
    Vector::new("requeue never", COUNTDOWN, &[0, 10]).done(10),
    Vector::new("a whole workgroup", SUM_LOCAL_IDS, &[0]).done(2016),
    Vector::new("a whole workgroup, and again", SUM_LOCAL_IDS, &[3]).done(2016),
    Vector::new("a whole workgroup faults", SUM_LOCAL_IDS, &[100]).fault(Fault::Trap(100)),
    // What nobody may
    Vector::new("unknown opcode", 99, &[]).fault(Fault::UnknownOpcode),
    Vector::new("the last opcode of a user", opcode::USER_HIGH_LAST, &[]).fault(Fault::UnknownOpcode),
    Vector::new("reserved opcode", 0xFFF0, &[]).fault(Fault::UnknownOpcode),
    Vector::new("the opcode beside PACKED_SLOT", 0x8000_0000, &[]).fault(Fault::UnknownOpcode),
    Vector::new("a tenant nobody configured", opcode::NOP, &[])
        .tenant(UNCONFIGURED)
        .fault(Fault::UnknownTenant),
    Vector::new("a tenant past the table", opcode::NOP, &[]).tenant(4095).fault(Fault::UnknownTenant),
    Vector::new("the last tenant of all", opcode::NOP, &[]).tenant(u16::MAX).fault(Fault::UnknownTenant),
    Vector::new("permitted", opcode::STORE_U32, &[7, 1]).tenant(LIMITED).then_state(&[(1, 7)]),
    Vector::new("not permitted", opcode::ATOMIC_ADD, &[7, 1]).tenant(LIMITED).fault(Fault::Permission),
    Vector::new("permitted handler", ADD_ONE, &[1]).tenant(LIMITED).done(2),
    Vector::new("handler not permitted", FAULT, &[1]).tenant(LIMITED).fault(Fault::Permission),
    Vector::new("workgroup handler not permitted", SUM_LOCAL_IDS, &[0])
        .tenant(LIMITED)
        .fault(Fault::Permission),
    Vector::new("only one's own window", opcode::STORE_U32, &[1, 4]).tenant(LIMITED).fault(Fault::Bounds),
    Vector::new("no quota", opcode::NOP, &[]).tenant(NO_QUOTA).fault(Fault::Quota),
    Vector::new("unknown before permission and quota", 99, &[]).tenant(NO_QUOTA).fault(Fault::UnknownOpcode),
];
