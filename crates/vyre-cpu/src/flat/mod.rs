//! The flat form: what a program looks like when it runs.
//!
//! One list of fixed-size instructions over three register files. A *word* register holds 32 bits for each
//! lane of a wave, a *long* register 64 bits for each lane, and a *mask* register one bit for each lane;
//! a `bool` of the IR is a mask. Control flow is structured: an instruction that splits the wave saves the
//! lanes it takes out in a mask register of its own, so no stack exists at run time.
//!
//! Two invariants let the executor index without checks; [`Flat::verified`] establishes them for every
//! instruction, and nothing changes a `Flat` afterwards:
//! * every register, buffer, table and jump target exists;
//! * a word or long register that an instruction writes is not among those it reads, except where
//!   [`Code::shape`] says that it is both.
//!
//! Calls are jumps: a function that cannot be active twice needs only one frame, laid out at compile time.

mod code;

use std::sync::Arc;

use vyre_foundation::{BufferDecl, ProgramKind, ScalarType};

use crate::externals::ExternalFunction;

pub(crate) use code::{AtomicWord, Code, CombineWord, Extent, Extra, Field, Inst, load_code, store_code};

/// Where each value of a selector goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SwitchTable {
    /// Values and targets, sorted by value.
    pub(crate) cases: Vec<(u32, u32)>,
    /// Where every other value goes.
    pub(crate) default: u32,
    /// What follows the switch.
    pub(crate) end: u32,
}

impl SwitchTable {
    /// The target of one value.
    pub(crate) fn target(&self, value: u32) -> u32 {
        match self.cases.binary_search_by_key(&value, |&(value, _)| value) {
            Ok(at) => self.cases.get(at).map_or(self.default, |&(_, target)| target),
            Err(_) => self.default,
        }
    }
}

/// A call of an external function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExternalCall {
    /// Which of the program's external functions.
    pub(crate) external: usize,
    /// Registers of the scalars, in order.
    pub(crate) args: Vec<(Place, ScalarType)>,
    /// The program's buffers that it is given.
    pub(crate) buffers: Vec<usize>,
    /// Registers of the results, in order.
    pub(crate) results: Vec<(Place, ScalarType)>,
}

/// A compiled program.
#[derive(Clone, Debug)]
pub(crate) struct Flat {
    /// The program's name, for messages.
    pub(crate) name: String,
    /// How it is run.
    pub(crate) kind: ProgramKind,
    /// Invocations per workgroup along each axis.
    pub(crate) workgroup_size: [u32; 3],
    /// The buffers, workgroup buffers included.
    pub(crate) buffers: Vec<BufferDecl>,
    /// The instructions.
    pub(crate) code: Vec<Inst>,
    /// The switch tables.
    pub(crate) tables: Vec<SwitchTable>,
    /// The external functions, in the order of the program's declarations.
    pub(crate) externals: Vec<Arc<dyn ExternalFunction>>,
    /// The calls of them.
    pub(crate) calls: Vec<ExternalCall>,
    /// Where a wave starts.
    pub(crate) start: u32,
    /// How many registers of each file a wave needs.
    pub(crate) registers: Registers,
    /// Registers that hold the same constant in every lane of every wave.
    pub(crate) word_constants: Vec<(u16, u32)>,
    /// The same for longs.
    pub(crate) long_constants: Vec<(u16, u64)>,
    /// The same for masks.
    pub(crate) mask_constants: Vec<(u16, u32)>,
    /// Registers of the entry's parameters, in order.
    pub(crate) params: Vec<Place>,
    /// Registers of the entry's results, in order.
    pub(crate) results: Vec<Place>,
    /// Whether it has subgroup operations, so that its waves are of full width.
    pub(crate) subgroups: bool,
    /// Whether a wave may suspend itself before its end.
    pub(crate) suspends: bool,
    /// Whether it may do so to wait for the whole dispatch.
    pub(crate) grid_barriers: bool,
}

/// Sizes of the register files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registers {
    pub(crate) words: usize,
    pub(crate) longs: usize,
    pub(crate) masks: usize,
}

/// A register with its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Word(u16),
    Long(u16),
    Mask(u16),
}

/// Why a flat form is not one. A defect of the compiler, reported instead of trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction {at} ({inst:?}) refers to something that does not exist")]
pub(crate) struct Malformed {
    at: usize,
    inst: Inst,
}

impl Flat {
    /// Checks the invariants of the module, once.
    pub(crate) fn verified(self) -> Result<Flat, Malformed> {
        for (at, inst) in self.code.iter().enumerate() {
            if !self.holds(inst) {
                return Err(Malformed { at, inst: *inst });
            }
        }
        let last = self.code.last().copied().unwrap_or(Inst::new(Code::End, 0, 0, 0, 0));
        let tables_hold = self.tables.iter().all(|table| {
            let targets = table.cases.iter().map(|&(_, target)| target);
            targets.chain([table.default, table.end]).all(|target| (target as usize) < self.code.len())
        });
        let constants_hold = self.word_constants.iter().all(|&(r, _)| usize::from(r) < self.registers.words)
            && self.long_constants.iter().all(|&(r, _)| usize::from(r) < self.registers.longs)
            && self.mask_constants.iter().all(|&(r, _)| usize::from(r) < self.registers.masks);
        let calls = self.calls.iter().flat_map(|call| call.args.iter().chain(&call.results));
        let places = self.params.iter().chain(&self.results).chain(calls.map(|(place, _)| place));
        let places_hold = places.copied().all(|place| match place {
            Place::Word(r) => usize::from(r) < self.registers.words,
            Place::Long(r) => usize::from(r) < self.registers.longs,
            Place::Mask(r) => usize::from(r) < self.registers.masks,
        });
        // The instruction after a call or a barrier must exist too, so the last one never falls through.
        let ends = matches!(last.code, Code::End | Code::Jump) && (self.start as usize) < self.code.len();
        if tables_hold && constants_hold && places_hold && ends {
            Ok(self)
        } else {
            Err(Malformed { at: self.code.len(), inst: last })
        }
    }

    fn holds(&self, inst: &Inst) -> bool {
        let (fields, extra) = inst.code.shape();
        let values = [inst.d, inst.a, inst.b, inst.c];
        let exist = fields.iter().zip(values).all(|(field, value)| {
            let value = usize::from(value);
            match field {
                Field::None => true,
                Field::Word => value < self.registers.words,
                Field::Long => value < self.registers.longs,
                Field::Mask => value < self.registers.masks,
                Field::Buffer => value < self.buffers.len(),
                Field::Axis => value < 3,
            }
        });
        let apart = !matches!(fields[0], Field::Word | Field::Long)
            || (1..4).all(|source| fields[source] != fields[0] || values[source] != inst.d);
        let reaches = match extra {
            Extra::None | Extra::Combine => true,
            Extra::Call => (inst.t as usize) < self.calls.len(),
            Extra::Target => (inst.t as usize) < self.code.len(),
            Extra::Table => (inst.t as usize) < self.tables.len(),
            Extra::Atomic => AtomicWord::unpack(inst.t).buffer < self.buffers.len(),
        };
        exist && apart && reaches
    }

    /// Invocations in a workgroup.
    pub(crate) fn invocations(&self) -> u32 {
        self.workgroup_size.iter().product()
    }
}

#[cfg(test)]
mod tests {
    use vyre_foundation::{BufferAccess, DataType, MemorySpace, RmwOp};

    use super::*;

    /// A program with one buffer and a register or two of each file, and a single instruction before its end.
    fn flat(inst: Inst) -> Flat {
        let end = Inst::new(Code::End, 0, 0, 0, 0);
        Flat {
            name: "test".to_owned(),
            kind: ProgramKind::Kernel,
            workgroup_size: [1, 1, 1],
            buffers: vec![BufferDecl {
                name: "data".to_owned(),
                space: MemorySpace::Global,
                element: DataType::U32,
                access: BufferAccess::ReadWrite,
                len: 0,
            }],
            code: vec![inst, end],
            tables: vec![SwitchTable { cases: vec![(5, 1), (9, 0)], default: 1, end: 1 }],
            externals: Vec::new(),
            calls: vec![ExternalCall {
                external: 0,
                args: vec![(Place::Long(1), ScalarType::U64)],
                buffers: vec![0],
                results: Vec::new(),
            }],
            start: 0,
            registers: Registers { words: 3, longs: 2, masks: 2 },
            word_constants: vec![(2, 7)],
            long_constants: Vec::new(),
            mask_constants: Vec::new(),
            params: Vec::new(),
            results: Vec::new(),
            subgroups: false,
            suspends: false,
            grid_barriers: false,
        }
    }

    #[test]
    fn verification_finds_what_does_not_exist() {
        use Code::*;
        let atomic = |buffer| AtomicWord { op: RmwOp::Max, signed: true, ordering: 3, buffer }.pack();
        let cases = [
            (Inst::new(AddW, 0, 1, 2, 0), true),
            (Inst::new(AddW, 0, 1, 1, 0), true),
            (Inst::new(AddW, 3, 1, 2, 0), false),
            (Inst::new(AddW, 0, 3, 2, 0), false),
            (Inst::new(AddW, 0, 1, 3, 0), false),
            // Written and read at once.
            (Inst::new(AddW, 1, 1, 2, 0), false),
            (Inst::new(AddW, 2, 1, 2, 0), false),
            (Inst::new(AndM, 1, 1, 1, 0), true),
            (Inst::new(AndM, 2, 1, 1, 0), false),
            (Inst::new(UToX, 1, 1, 0, 0), true),
            (Inst::new(UToX, 2, 1, 0, 0), false),
            (Inst::new(Fma, 0, 1, 2, 3), false),
            (Inst::new(LoadW, 0, 1, 2, 0), true),
            (Inst::new(LoadW, 0, 1, 2, 1), false),
            (Inst::new(StoreW, 0, 1, 1, 1), false),
            (Inst::new(LocalId, 0, 0, 0, 3), false),
            (Inst::new(Jump, 0, 0, 0, 0).with(1), true),
            (Inst::new(Jump, 0, 0, 0, 0).with(2), false),
            (Inst::new(If, 0, 1, 0, 0).with(2), false),
            (Inst::new(SwitchNext, 0, 0, 0, 0).with(0), true),
            (Inst::new(SwitchNext, 0, 0, 0, 0).with(1), false),
            (Inst::new(RmwW, 0, 1, 2, 0).with(atomic(0)), true),
            (Inst::new(RmwW, 0, 1, 2, 0).with(atomic(1)), false),
            (Inst::new(External, 0, 0, 0, 0).with(0), true),
            (Inst::new(External, 0, 0, 0, 0).with(1), false),
        ];
        for (inst, holds) in cases {
            assert_eq!(flat(inst).verified().is_ok(), holds, "{inst:?}");
        }
        let nothing = Inst::new(MovM, 0, 1, 0, 0);
        let broken: [fn(&mut Flat); 7] = [
            |flat| flat.calls.iter_mut().for_each(|call| call.args.push((Place::Mask(2), ScalarType::Bool))),
            |flat| flat.code.truncate(1),
            |flat| flat.start = 2,
            |flat| flat.tables.iter_mut().for_each(|table| table.end = 2),
            |flat| flat.tables.iter_mut().for_each(|table| table.cases.push((1, 2))),
            |flat| flat.word_constants.push((3, 0)),
            |flat| flat.results.push(Place::Long(2)),
        ];
        for (index, change) in broken.into_iter().enumerate() {
            let mut flat = flat(nothing);
            change(&mut flat);
            assert!(flat.verified().is_err(), "change {index}");
        }
    }

    #[test]
    fn atomic_words_survive_packing() {
        use RmwOp::*;
        for op in [Add, Sub, And, Or, Xor, Min, Max, Exchange] {
            for (signed, ordering, buffer) in [(false, 0, 0), (true, 3, 511), (false, 2, 7)] {
                let word = AtomicWord { op, signed, ordering, buffer };
                assert_eq!(AtomicWord::unpack(word.pack()), word);
            }
        }
    }

    #[test]
    fn combine_words_survive_packing() {
        use vyre_foundation::{ReduceOp::*, ScalarType};
        for op in [Add, Min, Max, And, Or, Xor] {
            for ty in ScalarType::ALL {
                for extent in [Extent::All, Extent::Inclusive, Extent::Exclusive] {
                    let word = CombineWord { op, ty, extent };
                    assert_eq!(CombineWord::unpack(word.pack()), word);
                }
            }
        }
    }

    #[test]
    fn switch_tables_find_their_targets() {
        let table = SwitchTable { cases: vec![(0, 3), (5, 1), (u32::MAX, 2)], default: 9, end: 8 };
        for (value, target) in [(0, 3), (1, 9), (5, 1), (6, 9), (u32::MAX, 2)] {
            assert_eq!(table.target(value), target);
        }
    }
}
