//! From a validated program to its flat form.
//!
//! Functions are lowered once each, callees first, so that a call knows its callee's registers. Registers of
//! a function lie above those of everything it calls; two functions that are never active together share.
//! Inside a function, registers are handed out like a stack that follows the scopes, so sibling blocks share
//! too. Constants, builtins and buffer lengths live in a pool of their own behind all frames and are filled
//! before a wave's first instruction.
//!
//! Absent on purpose: an optimiser. Programs that care bind common subexpressions to a local; what is done
//! here is only what is free, such as a `let` of a constant that costs nothing.

mod expr;
mod nodes;
mod registers;
mod subgroup;

use std::collections::HashMap;
use std::sync::Arc;

use vyre_foundation::{
    Axis, BufferId, Builtin, DataType, Function, FunctionId, Literal, Program, ScalarType, ValidatedProgram,
    VarId,
};

use crate::exec::MAX_WIDTH;
use crate::externals::ExternalFunction;
use crate::flat::{Code, ExternalCall, Flat, Inst, Malformed, Place, Registers, SwitchTable};
use registers::{File, Files, POOL_FIRST};

/// A mask register that always holds every lane.
const ALL_LANES: u32 = u32::MAX;

/// Why a validated program has no flat form.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LowerError {
    /// A register file is full.
    #[error("it needs more than {limit} {file} registers; split the program")]
    Registers {
        /// Which file.
        file: &'static str,
        /// How many there are.
        limit: usize,
    },
    /// The program breaks a rule that validation promises.
    #[error("it is not a validated program: {what}")]
    Invalid {
        /// What does not hold.
        what: &'static str,
    },
    /// The result broke an invariant of the flat form.
    #[error("its flat form is malformed")]
    Malformed(#[from] Malformed),
}

/// A quantity that is computed before the first instruction of a wave and never changes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pooled {
    Word(u32),
    Long(u64),
    Mask(u32),
    Builtin(Builtin),
    BufferLen(BufferId),
}

/// A function already lowered.
#[derive(Clone, Debug)]
struct Lowered {
    start: u32,
    params: Vec<Place>,
    results: Vec<Place>,
    return_address: u16,
    may_trap: bool,
    end: Files,
}

/// What is the same for a whole program.
struct Lowering<'p> {
    program: &'p Program,
    code: Vec<Inst>,
    tables: Vec<SwitchTable>,
    calls: Vec<ExternalCall>,
    pool: HashMap<Pooled, u16>,
    pool_sizes: Files,
    functions: HashMap<FunctionId, Lowered>,
    suspends: bool,
    grid_barriers: bool,
    subgroups: bool,
}

/// What is the same for a function.
struct Frame<'p> {
    function: &'p Function,
    entry: bool,
    registers: registers::Allocator,
    /// Where each local lives, once defined.
    locals: Vec<Option<Place>>,
    results: Vec<Place>,
    /// The lanes that have not returned, unless this is the entry.
    live: Option<u16>,
    loops: Vec<nodes::Loop>,
    /// One list of unresolved jumps for each open construct, innermost last.
    constructs: Vec<Vec<usize>>,
    /// How many `break`s and `continue`s of the innermost loop were lowered.
    loop_leaves: u32,
    /// How many statements were lowered after which a lane may be out of every construct of the function.
    escapes: u32,
    may_trap: bool,
}

/// Compiles a program whose external functions, in the order of its declarations, are these.
pub(crate) fn lower(
    validated: &ValidatedProgram,
    externals: Vec<Arc<dyn ExternalFunction>>,
) -> Result<Flat, LowerError> {
    let program = validated.program();
    let mut lowering = Lowering {
        program,
        code: Vec::new(),
        tables: Vec::new(),
        calls: Vec::new(),
        pool: HashMap::new(),
        pool_sizes: Files::default(),
        functions: HashMap::new(),
        suspends: false,
        grid_barriers: false,
        subgroups: validated.facts().subgroup_operations,
    };
    for &id in &validated.facts().call_order {
        let function = program
            .functions
            .get(id.0 as usize)
            .ok_or(LowerError::Invalid { what: "a function is missing" })?;
        let lowered = lowering.function(function, false)?;
        lowering.functions.insert(id, lowered);
    }
    let entry = lowering.function(&program.entry, true)?;
    lowering.finish(entry, externals)
}

impl<'p> Lowering<'p> {
    fn function(&mut self, function: &'p Function, entry: bool) -> Result<Lowered, LowerError> {
        let mut callees = Vec::new();
        nodes::callees(&function.body, &mut callees);
        let ends = callees.iter().filter_map(|id| self.functions.get(id)).map(|lowered| lowered.end);
        let base = ends.fold(Files::default(), Files::max);
        let mut frame = Frame {
            function,
            entry,
            registers: registers::Allocator::new(base),
            locals: vec![None; function.locals.len()],
            results: Vec::new(),
            live: None,
            loops: Vec::new(),
            constructs: vec![Vec::new()],
            loop_leaves: 0,
            escapes: 0,
            may_trap: false,
        };
        let start = self.here();
        let mut params = Vec::new();
        for (index, local) in function.locals.iter().take(function.params as usize).enumerate() {
            let place = frame.registers.place(local.ty)?;
            params.push(place);
            if let Some(slot) = frame.locals.get_mut(index) {
                *slot = Some(place);
            }
        }
        for &ty in &function.results {
            let place = frame.registers.place(ty)?;
            frame.results.push(place);
        }
        let return_address = frame.registers.mask()?;
        let saved = frame.registers.mask()?;
        if !entry {
            let live = frame.registers.mask()?;
            frame.live = Some(live);
            self.push(Inst::new(Code::Enter, saved, 0, live, 0));
        }
        self.block(&mut frame, &function.body)?;
        let jumps = frame.constructs.pop().unwrap_or_default();
        self.bind(jumps);
        if entry {
            self.push(Inst::new(Code::End, 0, 0, 0, 0));
        } else {
            self.push(Inst::new(Code::Ret, 0, saved, return_address, 0));
        }
        Ok(Lowered {
            start,
            params,
            results: frame.results,
            return_address,
            may_trap: frame.may_trap,
            end: frame.registers.high(),
        })
    }

    /// Emits what fills the pool, then puts the pool behind the frames.
    fn finish(
        mut self,
        entry: Lowered,
        externals: Vec<Arc<dyn ExternalFunction>>,
    ) -> Result<Flat, LowerError> {
        let start = self.here();
        let mut prologue: Vec<Inst> = Vec::new();
        for (&pooled, &register) in &self.pool {
            match pooled {
                Pooled::Word(_) | Pooled::Long(_) | Pooled::Mask(_) => {}
                Pooled::BufferLen(buffer) => {
                    prologue.push(Inst::new(Code::BufferLen, register, 0, 0, buffer.0 as u16));
                }
                Pooled::Builtin(builtin) => {
                    let (code, axis) = match builtin {
                        Builtin::GlobalId(axis) => (Code::GlobalId, axis),
                        Builtin::WorkgroupId(axis) => (Code::WorkgroupId, axis),
                        Builtin::LocalId(axis) => (Code::LocalId, axis),
                        Builtin::NumWorkgroups(axis) => (Code::NumWorkgroups, axis),
                        Builtin::SubgroupLane => (Code::SubgroupLane, Axis::X),
                        Builtin::SubgroupId => (Code::SubgroupId, Axis::X),
                        Builtin::WorkgroupSize(_) | Builtin::SubgroupSize => continue,
                    };
                    prologue.push(Inst::new(code, register, 0, 0, axis.index() as u16));
                }
            }
        }
        // The pool is a hash map; a fixed order makes two compilations of a program identical.
        prologue.sort_by_key(|inst| inst.d);
        self.code.append(&mut prologue);
        self.push(Inst::new(Code::Jump, 0, 0, 0, 0).with(entry.start));

        let relocation = Relocation { frames: entry.end, pool: self.pool_sizes };
        relocation.check()?;
        for inst in &mut self.code {
            relocation.apply(inst);
        }
        let mut flat = Flat {
            name: self.program.name.clone(),
            kind: self.program.kind,
            workgroup_size: self.program.workgroup_size,
            buffers: self.program.buffers.clone(),
            code: self.code,
            tables: self.tables,
            externals,
            calls: self.calls,
            start,
            registers: Registers {
                words: relocation.total(File::Word),
                longs: relocation.total(File::Long),
                masks: relocation.total(File::Mask),
            },
            word_constants: Vec::new(),
            long_constants: Vec::new(),
            mask_constants: Vec::new(),
            params: entry.params,
            results: entry.results,
            subgroups: self.subgroups,
            suspends: self.suspends,
            grid_barriers: self.grid_barriers,
        };
        for (&pooled, &register) in &self.pool {
            match pooled {
                Pooled::Word(v) => flat.word_constants.push((relocation.register(File::Word, register), v)),
                Pooled::Long(v) => flat.long_constants.push((relocation.register(File::Long, register), v)),
                Pooled::Mask(v) => flat.mask_constants.push((relocation.register(File::Mask, register), v)),
                Pooled::Builtin(_) | Pooled::BufferLen(_) => {}
            }
        }
        flat.word_constants.sort_unstable();
        flat.long_constants.sort_unstable();
        flat.mask_constants.sort_unstable();
        Ok(flat.verified()?)
    }

    fn here(&self) -> u32 {
        self.code.len() as u32
    }

    fn push(&mut self, inst: Inst) -> usize {
        self.code.push(inst);
        self.code.len() - 1
    }

    /// Makes unresolved jumps go to the next instruction. One that ends right before it is dropped.
    fn bind(&mut self, mut jumps: Vec<usize>) {
        let last = self.code.len().wrapping_sub(1);
        let falls_through = self.code.last().is_some_and(|inst| inst.code == Code::Jump);
        if falls_through && jumps.last() == Some(&last) {
            jumps.pop();
            self.code.pop();
        }
        let here = self.here();
        for at in jumps {
            if let Some(inst) = self.code.get_mut(at) {
                inst.t = here;
            }
        }
    }

    fn set_target(&mut self, at: usize) {
        let here = self.here();
        if let Some(inst) = self.code.get_mut(at) {
            inst.t = here;
        }
    }

    fn pooled(&mut self, pooled: Pooled) -> Result<Place, LowerError> {
        let file = match pooled {
            Pooled::Long(_) => File::Long,
            Pooled::Mask(_) => File::Mask,
            Pooled::Word(_) | Pooled::Builtin(_) | Pooled::BufferLen(_) => File::Word,
        };
        let register = match self.pool.get(&pooled) {
            Some(&register) => register,
            None => {
                let count = self.pool_sizes.get_mut(file);
                if *count >= POOL_FIRST as usize / 2 {
                    return Err(registers::full(file));
                }
                let register = POOL_FIRST - *count as u16;
                *count += 1;
                self.pool.insert(pooled, register);
                register
            }
        };
        Ok(file.place(register))
    }

    fn constant(&mut self, literal: Literal) -> Result<Place, LowerError> {
        self.pooled(match literal {
            Literal::Bool(v) => Pooled::Mask(if v { ALL_LANES } else { 0 }),
            Literal::U32(v) | Literal::F32(v) => Pooled::Word(v),
            Literal::I32(v) => Pooled::Word(v as u32),
            Literal::U64(v) => Pooled::Long(v),
        })
    }

    fn builtin(&mut self, builtin: Builtin) -> Result<Place, LowerError> {
        let size = |axis: Axis| self.program.workgroup_size.get(axis.index()).copied().unwrap_or(1);
        let pooled = match builtin {
            Builtin::WorkgroupSize(axis) => Pooled::Word(size(axis)),
            Builtin::SubgroupSize => Pooled::Word(MAX_WIDTH),
            // One invocation along an axis: the answer is known.
            Builtin::LocalId(axis) if size(axis) == 1 => Pooled::Word(0),
            Builtin::GlobalId(axis) if size(axis) == 1 => Pooled::Builtin(Builtin::WorkgroupId(axis)),
            other => Pooled::Builtin(other),
        };
        self.pooled(pooled)
    }

    fn element(&self, buffer: BufferId) -> Result<DataType, LowerError> {
        let decl = self.program.buffers.get(buffer.0 as usize);
        decl.map(|decl| decl.element).ok_or(LowerError::Invalid { what: "a buffer is missing" })
    }
}

impl Frame<'_> {
    fn local(&self, var: VarId) -> Result<Place, LowerError> {
        let place = self.locals.get(var.0 as usize).copied().flatten();
        place.ok_or(LowerError::Invalid { what: "a local is used before it is defined" })
    }

    fn local_type(&self, var: VarId) -> Result<ScalarType, LowerError> {
        let local = self.function.locals.get(var.0 as usize);
        local.map(|local| local.ty).ok_or(LowerError::Invalid { what: "a local is missing" })
    }

    fn is_mutable(&self, var: VarId) -> bool {
        self.function.locals.get(var.0 as usize).is_some_and(|local| local.mutable)
    }

    fn define(&mut self, var: VarId, place: Place) -> Result<(), LowerError> {
        let slot = self.locals.get_mut(var.0 as usize);
        *slot.ok_or(LowerError::Invalid { what: "a local is missing" })? = Some(place);
        Ok(())
    }
}

/// Moves the registers of the pool, which count down from [`POOL_FIRST`], to just above the frames.
struct Relocation {
    frames: Files,
    pool: Files,
}

impl Relocation {
    fn check(&self) -> Result<(), LowerError> {
        let full = File::ALL.into_iter().find(|&file| self.total(file) > usize::from(POOL_FIRST));
        full.map_or(Ok(()), |file| Err(registers::full(file)))
    }

    fn total(&self, file: File) -> usize {
        self.frames.get(file) + self.pool.get(file)
    }

    fn register(&self, file: File, register: u16) -> u16 {
        let from_top = usize::from(POOL_FIRST.saturating_sub(register));
        if from_top < self.pool.get(file) { (self.frames.get(file) + from_top) as u16 } else { register }
    }

    fn apply(&self, inst: &mut Inst) {
        let (fields, _) = inst.code.shape();
        for (field, value) in fields.into_iter().zip([&mut inst.d, &mut inst.a, &mut inst.b, &mut inst.c]) {
            if let Some(file) = File::of(field) {
                *value = self.register(file, *value);
            }
        }
    }
}
