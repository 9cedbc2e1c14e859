//! The validator: the only maker of [`ValidatedProgram`], which is all that a backend accepts.
//!
//! # Invariants
//!
//! Each has tests, under its number, in `tests/validate.rs`.
//!
//! *Names and sizes.*
//!
//! 1. Names are identifiers as [`crate::names`] says.
//! 2. Names are unique: among the buffers; among the external functions; among the functions and the entry;
//!    among the locals of a function.
//! 3. Nesting stays within [`MAX_NESTING`], and the program within [`MAX_NODES`].
//! 4. There are at most [`MAX_BUFFERS`] buffers, [`MAX_EXTERNALS`] external functions and [`MAX_FUNCTIONS`]
//!    functions, and in a function at most [`MAX_ARITY`] parameters, as many results, as many buffers that an
//!    external one takes, and [`MAX_LOCALS`] locals.
//! 5. The workgroup size is at least 1 along each axis, and has at most [`MAX_WORKGROUP_INVOCATIONS`].
//!
//! *Buffers.*
//!
//! 6. A uniform buffer is read only.
//! 7. A workgroup buffer is read and written, has at least one element, and all together have at most
//!    [`MAX_WORKGROUP_BYTES`].
//!
//! *Locals.*
//!
//! 8. Every id names something, and a function has its parameters among its locals.
//! 9. Every local is defined exactly once: as a parameter, by a let, as a loop counter, as the result of an
//!    atomic or a subgroup operation, or as a result of a call.
//! 10. A local is used only after its definition, in the block that holds the definition (a loop counter:
//!     in the body of the loop).
//! 11. Only a mutable local is assigned. Parameters, loop counters and results of atomics, subgroup operations
//!     and calls are not mutable.
//!
//! *Types.*
//!
//! 12. Operations are applied to types on which [`crate::semantics`] defines them; the two values of a
//!     select have one type, the operands of fma are `f32`.
//! 13. Conditions are `bool`; indices, selectors, counters and their bounds, and trap codes are `u32`; what
//!     is stored has the element's scalar type, as have the operands and the result of an atomic; what is
//!     let or assigned has the local's type. Lanes and masks are `u32`, votes `bool`.
//! 14. A return gives the function's results, a call its parameters, each by number and type; the locals
//!     that a call defines fit the results. The same holds for external functions.
//!
//! *Memory.*
//!
//! 15. Only a readable buffer is loaded from, only a writable one stored to, and only one that is both is
//!     changed by a read-modify-write.
//! 16. Atomics are on `u32`, `i32` and `u64` elements, not in uniform memory, and a read-modify-write (a
//!     compare-exchange is one) not in host-visible memory.
//! 17. Only loads and stores have system scope; workgroup memory has workgroup scope. A load is relaxed or
//!     acquire, a store relaxed or release and without a result. An external function is given buffers by
//!     number, element and access, none in workgroup memory, and one that it writes only once.
//!
//! *Control.*
//!
//! 18. Break and continue are inside a loop.
//! 19. A switch's cases list at least one value each, and no value twice. The step of a `for` is not zero.
//! 20. The end of a function with results is out of reach. Return, break, continue and trap do not go on to
//!     the next statement; an `if` goes on where one of its blocks does, a switch where a case or the default
//!     does (no default is an empty one), a block where all its statements do; `while true` never goes on
//!     if its body has no break of its own; every other statement goes on.
//! 21. Calls are acyclic, at most [`MAX_CALL_DEPTH`] deep, and with all of them inlined the program stays
//!     within [`MAX_INLINED_NODES`].
//!
//! *Kinds of program.*
//!
//! 22. A kernel's entry has neither parameters nor results.
//! 23. A grid barrier stands at the top level of a kernel's entry.
//! 24. An item of lane granularity has, in no function, barriers, subgroup operations, calls of external
//!     functions, builtin ids and sizes, or workgroup buffers.
//! 25. An item of workgroup granularity has, in no function, global ids, workgroup ids and the number of
//!     workgroups.
//!
//! *Uniformity.*
//!
//! 26. A workgroup barrier, a subgroup operation, a call of an external function, and a call that leads to one,
//!     is reached by all invocations of the workgroup or by none. They agree on the lane of a broadcast, and on
//!     what they give to an external function.
//! 27. A grid barrier is reached by all invocations of the dispatch.
//!
//! What differs between invocations: local and global ids, what is loaded from any buffer but a uniform one,
//! what an atomic, a subgroup operation or a call with such values yields, and a mutable local that is assigned such a value or is
//! assigned where they decide. The same in a workgroup: workgroup ids, the words of an item of workgroup
//! granularity, results of external functions. The same everywhere: literals, buffer lengths, sizes, loads from a uniform buffer at such an
//! index. Returns, traps, breaks and continues that only some invocations reach count for what follows them.
//! The analysis ignores the order of assignments to a local, and refuses some programs that would be right.
//!
//! # Choices
//!
//! Unreachable statements are accepted and checked like others, because generated code has them; so are
//! functions that nobody calls. A local may have the name of a buffer or of a function.
//!
//! Absent on purpose: bounds of indices and races, which [`crate::semantics`] gives a meaning; and a load of
//! workgroup memory, or a reduction by a subgroup, that counts as uniform.
//!
//! [`MAX_NESTING`]: crate::limits::MAX_NESTING
//! [`MAX_NODES`]: crate::limits::MAX_NODES
//! [`MAX_BUFFERS`]: crate::limits::MAX_BUFFERS
//! [`MAX_EXTERNALS`]: crate::limits::MAX_EXTERNALS
//! [`MAX_FUNCTIONS`]: crate::limits::MAX_FUNCTIONS
//! [`MAX_ARITY`]: crate::limits::MAX_ARITY
//! [`MAX_LOCALS`]: crate::limits::MAX_LOCALS
//! [`MAX_WORKGROUP_INVOCATIONS`]: crate::limits::MAX_WORKGROUP_INVOCATIONS
//! [`MAX_WORKGROUP_BYTES`]: crate::limits::MAX_WORKGROUP_BYTES
//! [`MAX_CALL_DEPTH`]: crate::limits::MAX_CALL_DEPTH
//! [`MAX_INLINED_NODES`]: crate::limits::MAX_INLINED_NODES

mod calls;
mod declarations;
mod error;
mod expressions;
mod memory;
mod report;
mod shape;
mod spread;
mod statements;
mod uniformity;

pub use error::{Location, ValidationError, ValidationErrorKind, ValidationErrors};
pub use report::{Step, at};

use std::sync::Arc;

use crate::ir::{FunctionId, Node, Program};
use crate::wire::{self, Digest};
use report::Report;

/// A program that keeps every invariant of this module, with what the validator learnt about it. Only
/// [`validate`] makes one, and clones share it.
#[derive(Clone, Debug)]
pub struct ValidatedProgram(Arc<Validated>);

#[derive(Debug)]
struct Validated {
    program: Program,
    facts: Facts,
    digest: Digest,
}

impl ValidatedProgram {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.0.program
    }

    /// The hash of its wire form: equal exactly when programs are.
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// What is known about the program.
    pub fn facts(&self) -> &Facts {
        &self.0.facts
    }
}

/// What backends want to know about a program before they compile it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Whether the entry has a grid barrier.
    pub grid_barriers: bool,
    /// Whether the entry, or a function it calls, has a workgroup barrier or another statement that all
    /// invocations of a workgroup reach together.
    pub workgroup_barriers: bool,
    /// For each function, whether it or one that it calls has one of these.
    pub barriers_in: Vec<bool>,
    /// Whether any function has subgroup operations, or asks about subgroups: a backend without them refuses
    /// the program.
    pub subgroup_operations: bool,
    /// Bytes in all workgroup buffers.
    pub workgroup_bytes: u64,
    /// Statements, expressions and switch values, functions and entry together, each counted once.
    pub nodes: u64,
    /// The same, counted once for every path of calls from the entry.
    pub inlined_nodes: u64,
    /// Calls active at once at most.
    pub call_depth: u32,
    /// The functions that the entry reaches, each after those it calls.
    pub call_order: Vec<FunctionId>,
}

/// Checks every invariant.
///
/// # Errors
///
/// All violations, up to [`MAX_REPORTED_ERRORS`](crate::limits::MAX_REPORTED_ERRORS) of them. Uniformity is
/// checked only where everything else is in order, and nothing else where nesting or size is not.
pub fn validate(program: Program) -> Result<ValidatedProgram, ValidationErrors> {
    let mut report = Report::default();
    let Some(sizes) = shape::measure(&program, &mut report) else {
        return Err(report.into_errors());
    };
    let Some(facts) = check(&program, &sizes, &mut report) else {
        return Err(report.into_errors());
    };
    match wire::digest(&program) {
        Ok(digest) => Ok(ValidatedProgram(Arc::new(Validated { program, facts, digest }))),
        Err(error) => {
            report.add(|| Location::Program, error.into());
            Err(report.into_errors())
        }
    }
}

/// Checks a program of bounded size and depth; yields nothing if anything is wrong.
fn check(program: &Program, sizes: &[u64], report: &mut Report) -> Option<Facts> {
    let workgroup_bytes = declarations::check(program, report);
    let functions = program.functions.iter().map(|function| (function, false));
    let functions = functions.chain([(&program.entry, true)]);
    let mut subgroup_operations = false;
    let mut calls = Vec::with_capacity(sizes.len());
    for (function, entry) in functions {
        let uses = statements::check(program, function, entry, report);
        subgroup_operations |= uses.subgroups;
        calls.push(uses.calls);
    }
    let graph = calls::check(program, &calls, sizes, report).filter(|_| report.is_empty())?;
    let mut barriers = uniformity::check(program, &graph.order, report);
    if !report.is_empty() {
        return None;
    }
    let entry_barriers = barriers.pop().unwrap_or(false);
    Some(Facts {
        grid_barriers: program.entry.body.contains(&Node::GridBarrier),
        workgroup_barriers: entry_barriers,
        barriers_in: barriers,
        subgroup_operations,
        workgroup_bytes,
        nodes: sizes.iter().sum(),
        inlined_nodes: graph.inlined_nodes,
        call_depth: graph.depth,
        call_order: graph.order.into_iter().take(graph.reached).collect(),
    })
}
