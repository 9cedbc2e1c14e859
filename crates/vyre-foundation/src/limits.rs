//! The limits of a program, by name. The validator enforces all of them; the parser and the decoder refuse
//! early what they can see, so that no input makes them recurse or allocate without bound.

/// Bytes in an identifier.
pub const MAX_NAME_LEN: usize = 64;

/// How many statements and expressions may enclose one another, the innermost included: a statement in a
/// function's body with a literal in it is 2 deep.
pub const MAX_NESTING: usize = 128;

/// Statements, expressions and switch values in the whole program, functions and entry together.
pub const MAX_NODES: u64 = 1 << 18;

/// The same, counted once for every path of calls from the entry: what a backend that inlines everything
/// has to compile.
pub const MAX_INLINED_NODES: u64 = 1 << 20;

/// Buffers of a program.
pub const MAX_BUFFERS: usize = 512;

/// Functions of a program, the entry left out.
pub const MAX_FUNCTIONS: usize = 4096;

/// External functions of a program.
pub const MAX_EXTERNALS: usize = 64;

/// Calls active at once, the entry left out.
pub const MAX_CALL_DEPTH: usize = 64;

/// Parameters of a function, and, counted apart, its results, and the buffers of an external one.
pub const MAX_ARITY: usize = 64;

/// Locals of a function, parameters included.
pub const MAX_LOCALS: usize = 1 << 14;

/// Invocations of a workgroup.
pub const MAX_WORKGROUP_INVOCATIONS: u64 = 1024;

/// Bytes in all workgroup buffers together: what every device that is worth having offers.
pub const MAX_WORKGROUP_BYTES: u64 = 48 * 1024;

/// Errors that one validation reports; later ones are counted, not kept.
pub const MAX_REPORTED_ERRORS: usize = 64;
