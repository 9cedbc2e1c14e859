//! What the validator says.

use std::fmt;

use crate::limits::MAX_REPORTED_ERRORS;
use crate::names::NameError;
use crate::types::{DataType, ScalarType};
use crate::wire::WireError;

/// Everything that is wrong with a program, in the order of the program; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidationErrors {
    pub(super) errors: Vec<ValidationError>,
    pub(super) unreported: u64,
}

impl ValidationErrors {
    /// The first [`MAX_REPORTED_ERRORS`] errors.
    pub fn errors(&self) -> &[ValidationError] {
        &self.errors
    }

    /// How many more there are.
    pub fn unreported(&self) -> u64 {
        self.unreported
    }
}

impl fmt::Display for ValidationErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        if self.unreported > 0 {
            write!(f, "\nand {} more than the {MAX_REPORTED_ERRORS} reported", self.unreported)?;
        }
        Ok(())
    }
}

impl std::error::Error for ValidationErrors {}

/// One violation of an invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {kind}")]
#[non_exhaustive]
pub struct ValidationError {
    /// Where.
    pub location: Location,
    /// What, and the remedy.
    pub kind: ValidationErrorKind,
}

/// Where in a program an error is. Displayed as `fn add_one / body[3].then[0]`: the first statement in the
/// first block of the fourth statement of the function `add_one`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Location {
    /// The program as a whole.
    Program,
    /// The declaration of the buffer of this name.
    Buffer(String),
    /// The declaration of the external function of this name.
    External(String),
    /// A function, by name.
    Function {
        /// Whether it is the entry.
        entry: bool,
        /// Its name.
        name: String,
        /// Path to the statement, empty for the function as a whole.
        path: String,
    },
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Program => f.write_str("program"),
            Location::Buffer(name) => write!(f, "buffer {name}"),
            Location::External(name) => write!(f, "external {name}"),
            Location::Function { entry, name, path } => {
                f.write_str(if *entry { "entry " } else { "fn " })?;
                f.write_str(name)?;
                if !path.is_empty() {
                    write!(f, " / {path}")?;
                }
                Ok(())
            }
        }
    }
}

/// What is wrong, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValidationErrorKind {
    /// An identifier breaks the rule of [`crate::names`].
    #[error("the {what} name {name:?} is refused: {reason}")]
    Name {
        /// What bears it.
        what: &'static str,
        /// The name, or its beginning.
        name: String,
        /// Why it is refused.
        reason: NameError,
    },
    /// A name is borne twice.
    #[error("there are two {what}s called `{name}`; rename one")]
    DuplicateName {
        /// What bears it.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A function that counts more parameters than it has locals.
    #[error("{params} parameters are counted, and there are {locals} locals; parameters are locals too")]
    MissingParameters {
        /// Parameters counted.
        params: u32,
        /// Locals there are.
        locals: usize,
    },
    /// A limit of [`crate::limits`] is exceeded.
    #[error("{count} {what}, and the limit is {limit}; {remedy}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much there is, or how much was counted before giving up.
        count: u64,
        /// How much there may be.
        limit: u64,
        /// What to do.
        remedy: &'static str,
    },
    /// A dimension of the workgroup size is zero.
    #[error("the workgroup size along {axis} is 0; it must be at least 1")]
    ZeroWorkgroupSize {
        /// `x`, `y` or `z`.
        axis: char,
    },
    /// A buffer's declaration contradicts itself.
    #[error("{problem}; {remedy}")]
    BufferDeclaration {
        /// What is wrong.
        problem: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// An id that is out of range.
    #[error("there is no {what} {id}; {}", ids(*.count))]
    NoSuch {
        /// `local`, `buffer`, `function` or `external function`.
        what: &'static str,
        /// The id.
        id: u32,
        /// How many there are.
        count: usize,
    },
    /// A local is used where it has no value.
    #[error("`{local}` is used {problem}; {remedy}")]
    Scope {
        /// The local.
        local: String,
        /// When or where it is used.
        problem: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A local has two definitions.
    #[error("`{local}` is defined a second time; define another local, or assign to this one")]
    DefinedTwice {
        /// The local.
        local: String,
    },
    /// A local has no definition.
    #[error("nothing defines `{local}`; define it, make it a parameter, or remove it")]
    NeverDefined {
        /// The local.
        local: String,
    },
    /// An assignment to an immutable local.
    #[error("`{local}` is not mutable, so it cannot be assigned; declare it mutable with `var`")]
    NotMutable {
        /// The local.
        local: String,
    },
    /// A parameter, a loop counter or the result of an atomic, a subgroup operation or a call declared mutable.
    #[error("`{local}` is {role}, which cannot be mutable; copy it into a mutable local")]
    MustBeImmutable {
        /// The local.
        local: String,
        /// What it is.
        role: &'static str,
    },
    /// A value of the wrong type.
    #[error("{what} must be {expected}, and is {found}; cast it, or change the type")]
    Type {
        /// What has the wrong type.
        what: String,
        /// What it has to be.
        expected: ScalarType,
        /// What it is.
        found: ScalarType,
    },
    /// An operation that does not exist on the operands' types.
    #[error("there is no {operation} on {operands}; cast the operands to a type that has it")]
    NoOperation {
        /// The operation.
        operation: String,
        /// Types of the operands.
        operands: String,
    },
    /// A buffer is used against its declaration.
    #[error("`{buffer}` is declared {declared}, so it cannot be {attempted}; {remedy}")]
    Access {
        /// The buffer.
        buffer: String,
        /// Its access, or its space.
        declared: &'static str,
        /// What is attempted.
        attempted: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A buffer that an external function cannot take.
    #[error("`{buffer}` cannot be given to `{external}`, which takes {wanted}: it is {problem}; {remedy}")]
    ExternalBuffer {
        /// The buffer.
        buffer: String,
        /// The external function.
        external: String,
        /// What it takes.
        wanted: String,
        /// What the buffer is instead.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An atomic on an element that has none.
    #[error("there are no atomics on the {element} elements of `{buffer}`; use u32, i32 or u64")]
    AtomicElement {
        /// The buffer.
        buffer: String,
        /// Its element type.
        element: DataType,
    },
    /// An ordering or a scope that an atomic cannot have.
    #[error("an atomic {operation} cannot have {what}; {remedy}")]
    AtomicForm {
        /// What the atomic does.
        operation: &'static str,
        /// What it cannot have.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// `break` or `continue` outside of a loop.
    #[error("`{statement}` is outside of a loop; put it into one, or return")]
    OutsideLoop {
        /// Which of the two.
        statement: &'static str,
    },
    /// A switch with a case that lists no value.
    #[error("case {case} lists no value; list one, or remove the case")]
    EmptyCase {
        /// The case, counted from 0.
        case: usize,
    },
    /// A switch with a value listed twice.
    #[error("the value {value} chooses two blocks; list it once")]
    DuplicateCase {
        /// The value.
        value: u32,
    },
    /// A `for` with a step of zero.
    #[error("the step of a `for` is 0; make it at least 1, or use `while`")]
    ZeroStep,
    /// The wrong number of values.
    #[error("{what}: {found} given, {expected} needed; give one value for each")]
    Count {
        /// What is counted.
        what: String,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A function with results whose end can be reached.
    #[error("the end of the function can be reached, and it has results; end every path with return or trap")]
    MissingReturn,
    /// Functions that call one another in a circle.
    #[error("calls must not be recursive: {cycle}; use a loop")]
    Recursion {
        /// The functions in the circle.
        cycle: String,
    },
    /// An entry that does not fit the program's kind.
    #[error(
        "the entry of a kernel has {params} parameters and {results} results, and must have none; read and write buffers"
    )]
    KernelSignature {
        /// Parameters it has.
        params: u32,
        /// Results it has.
        results: usize,
    },
    /// Something that the program's kind excludes.
    #[error("{what} cannot be used {place}; {remedy}")]
    NotHere {
        /// What is used.
        what: &'static str,
        /// In what.
        place: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A barrier that some invocations may reach and others not.
    #[error("{barrier} must be reached by {who} or by none, and whether it is depends on {cause}; {remedy}")]
    NonUniform {
        /// The barrier, or the call that leads to one.
        barrier: String,
        /// Whom the barrier waits for.
        who: &'static str,
        /// Where the difference comes from.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A value on which a workgroup has to agree.
    #[error("{what} must be the same in the whole workgroup, and depends on {cause}; {remedy}")]
    NonUniformValue {
        /// The value.
        what: String,
        /// Where the difference comes from.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The program has no wire form, so no digest.
    #[error("the program cannot be encoded; shorten it")]
    Encoding(#[from] WireError),
}

/// Which ids there are.
fn ids(count: usize) -> String {
    match count.checked_sub(1) {
        None => "none is declared, so declare it first".to_owned(),
        Some(last) => format!("use one of 0 to {last}, or declare it"),
    }
}
