//! Packed slots on the device: the rules of [`crate::packed`], as IR.

use vyre_driver::Fault;
use vyre_driver::protocol::{ARG_WORDS, opcode};
use vyre_foundation::ScalarType::U32;
use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Value, Var};

use super::body::PARAM_NAMES;
use super::execute::{Lookup, PACKABLE};

/// Names of the argument words.
fn arg_params(function: &mut FunctionBuilder) -> [Var; ARG_WORDS] {
    let mut names = PARAM_NAMES.into_iter().skip(4);
    std::array::from_fn(|_| function.param(names.next().unwrap_or("a"), U32))
}

fn operations(args: &[Var; ARG_WORDS]) -> Value {
    args[0] & 0xFF
}

fn total_words(args: &[Var; ARG_WORDS]) -> Value {
    (args[0] >> 8) & 0xFF
}

/// Words of the header in front of the arguments.
fn header_words(operations: Var) -> Value {
    (operations * 2 + 5) >> 2
}

/// Functions that take packed slots apart.
pub(super) struct Packing {
    /// `(row, a0..a11)` to the fault code of a slot that may not run, or 0.
    pub(super) check: FunctionHandle,
    /// `(operation, a0..a11)` to the operation's opcode and its arguments.
    pub(super) unpack: FunctionHandle,
}

impl Packing {
    pub(super) fn add(program: &mut ProgramBuilder, lookup: &Lookup, permitted: &FunctionHandle) -> Packing {
        let halfword = program.add_function(halfword());
        let check = program.add_function(check(&halfword, lookup, permitted));
        let unpack = program.add_function(unpack(&halfword));
        Packing { check, unpack }
    }
}

/// Half a word by its place in the slot's arguments.
fn halfword() -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("halfword");
    let place = f.param("place", U32);
    let args = arg_params(&mut f);
    f.result(U32);
    let word = f.let_("word", place >> 1);
    // A tree of selects by the bits of the word's place.
    let mut level: Vec<Value> = args.into_iter().map(Value::from).collect();
    for bit in 0..4 {
        let odd = f.let_("odd", (word & (1_u32 << bit)).ne_(0));
        level = level
            .chunks(2)
            .filter_map(|pair| match pair {
                [even, other] => Some(f.let_("word", odd.select(other, even)).into()),
                [even] => Some(even.clone()),
                _ => None,
            })
            .collect();
    }
    let word = level.pop().unwrap_or_else(|| 0_u32.into());
    f.ret((word >> ((place & 1) << 4)) & 0xFFFF);
    f.finish()
}

fn check(
    halfword: &FunctionHandle,
    lookup: &Lookup,
    permitted: &FunctionHandle,
) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("check_packed");
    let row = f.param("row", U32);
    let args = arg_params(&mut f);
    f.result(U32);
    let bad = Fault::BadPacking.code();
    let count = f.let_("count", operations(&args));
    let total = f.let_("total", total_words(&args));
    let fits = (header_words(count) + total).le(ARG_WORDS as u32);
    f.if_(!(fits & count.ne_(0)), |f| f.ret(bad));
    let least = f.var_("least", 0_u32);
    f.for_("operation", 0, count, |f, operation| {
        let half = call_halfword(f, halfword, operation + 1, &args);
        let begin = f.let_("begin", half >> 8);
        let opcode = f.let_("inner", half & 0xFF);
        let found = f.call_one(&lookup.function, opcode);
        // An opcode that nobody has comes back without the flag.
        let packable = (found & PACKABLE).ne_(0) & opcode.ne_(opcode::BATCH_FENCE);
        f.if_(!(packable & begin.ge(least) & begin.le(total)), |f| f.ret(bad));
        let allowed = f.call_one(permitted, (row, found & 0xFFFF));
        f.if_(!allowed, |f| f.ret(Fault::Permission.code()));
        f.assign(least, begin);
    });
    f.ret(0_u32);
    f.finish()
}

fn unpack(halfword: &FunctionHandle) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("unpack");
    let operation = f.param("operation", U32);
    let args = arg_params(&mut f);
    for _ in 0..=ARG_WORDS {
        f.result(U32);
    }
    let count = f.let_("count", operations(&args));
    let half = call_halfword(&mut f, halfword, operation + 1, &args);
    let next = call_halfword(&mut f, halfword, operation + 2, &args);
    let last = f.let_("last", (operation + 1).ge(count));
    let begin = f.let_("begin", half >> 8);
    let end = f.let_("end", last.select(total_words(&args), next >> 8));
    let length = f.let_("length", end - begin);
    let shift = f.let_("shift", header_words(count) + begin);
    // Shifts the words down by the bits of the distance, then blanks what belongs to the next operation.
    let mut words: [Value; ARG_WORDS] = args.map(Value::from);
    for bit in 0..4 {
        let distance = 1_usize << bit;
        let moves = f.let_("moves", (shift & distance as u32).ne_(0));
        words = std::array::from_fn(|place| {
            let from = words.get(place + distance).cloned().unwrap_or_else(|| 0_u32.into());
            let stays = words.get(place).cloned().unwrap_or_else(|| 0_u32.into());
            f.let_("word", moves.select(from, stays)).into()
        });
    }
    let mut results: Vec<Value> = vec![half & 0xFF];
    for (place, word) in (0_u32..).zip(words) {
        results.push(length.gt(place).select(word, 0));
    }
    f.ret(results);
    f.finish()
}

fn call_halfword(
    f: &mut FunctionBuilder,
    halfword: &FunctionHandle,
    place: Value,
    args: &[Var; ARG_WORDS],
) -> Var {
    let mut values = vec![place];
    values.extend(args.map(Value::from));
    f.call_one(halfword, values)
}
