//! What a backend may answer instead of a result.

use std::fmt;
use std::time::Duration;

use thiserror::Error;
use vyre_foundation::Program;
use vyre_foundation::externals::Signature;

use crate::buffer::Generation;

/// Why everything of a generation is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Whose doing it was, as far as can be told.
    pub cause: LossCause,
    /// What was observed.
    pub reason: String,
}

impl Loss {
    /// A loss by the device's own doing, or by something that ran on it.
    pub fn fault(reason: impl Into<String>) -> Loss {
        Loss { cause: LossCause::Fault, reason: reason.into() }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// Whose doing a loss was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossCause {
    /// The device faulted, or the process that owned it crashed: what was running is suspect.
    Fault,
    /// The process that owned the device was ended from outside: that convicts nobody.
    Killed,
    /// It gave no sign of life any more and was ended: what was running is suspect.
    Unresponsive,
    /// It was lost too often and is not started again.
    GivenUp,
}

impl LossCause {
    /// Whether what was running at the time may be the reason.
    pub const fn has_suspects(self) -> bool {
        matches!(self, LossCause::Fault | LossCause::Unresponsive)
    }

    const fn remedy(self) -> &'static str {
        match self {
            LossCause::GivenUp => "find out what it dies of, and open the backend anew",
            _ => "recover the backend, then build again what it held",
        }
    }
}

/// An error of a backend. The variant, never the text, says what kind of failure it is.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The device, or the process that owned it, is gone. Everything of this generation is lost.
    #[error("device lost: {0}; {remedy}", remedy = .0.cause.remedy())]
    DeviceLost(Loss),
    /// The device has not enough memory.
    #[error(
        "out of memory: {requested} bytes requested for {what}, {available} available; free something, or ask for less"
    )]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        available: u64,
    },
    /// The backend cannot do this at all.
    #[error("unsupported: {what}; {remedy}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// A validated program did not compile. The compiler's own words are kept whole.
    #[error("program `{program}` did not compile: {log}")]
    CompileFailed {
        /// The program's name.
        program: String,
        /// The compiler's messages.
        log: String,
    },
    /// A program declares an external function that the backend does not have, or not with this signature.
    #[error(
        "program `{program}` declares the external function `{declared}`, and this backend has {available}; declare one of these, or give the backend this one"
    )]
    UnknownExternal {
        /// The program's name.
        program: Box<str>,
        /// The function as declared.
        declared: Box<str>,
        /// What there is: the function of this name, if there is one, else the names of all.
        available: Box<str>,
    },
    /// A wait ended before what it waited for.
    #[error("deadline of {after:?} passed waiting for {waited_for}; wait longer, or see why it hangs")]
    Deadline {
        /// Who or what was awaited.
        waited_for: String,
        /// How long.
        after: Duration,
    },
    /// An argument is wrong; nothing was done.
    #[error("invalid argument `{argument}`: got {got}, expected {expected}")]
    InvalidArgument {
        /// The argument's name.
        argument: &'static str,
        /// The value refused.
        got: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A handle from before a device loss, or of a buffer already destroyed.
    #[error(
        "stale handle: buffer {id} of generation {generation} was destroyed, or lost with a device that is at generation {current} now; create the buffer anew"
    )]
    StaleHandle {
        /// The handle's number.
        id: u64,
        /// The handle's generation.
        generation: Generation,
        /// The backend's generation now.
        current: Generation,
    },
    /// The operating system or the device's library refused a call.
    #[error("{call} failed with code {code}: {text}")]
    Driver {
        /// The function called.
        call: &'static str,
        /// Its status.
        code: i64,
        /// The library's words for it.
        text: String,
    },
}

// Errors of the megakernel hold one of these, and every descriptor's encoding may answer one of those: when this
// type was a word larger, making and encoding a descriptor took twice as long.
const _: () = assert!(size_of::<BackendError>() <= 64);

impl BackendError {
    /// Whether everything of this generation is lost. Decided by the variant alone.
    pub const fn is_device_loss(&self) -> bool {
        matches!(self, BackendError::DeviceLost(_))
    }

    /// The loss, if it is one.
    pub const fn loss(&self) -> Option<&Loss> {
        match self {
            BackendError::DeviceLost(loss) => Some(loss),
            _ => None,
        }
    }

    /// Whether the same call may succeed later unchanged: after recovery, after more time, or after memory
    /// was freed.
    pub const fn is_retryable(&self) -> bool {
        match self {
            BackendError::DeviceLost(loss) => !matches!(loss.cause, LossCause::GivenUp),
            BackendError::Deadline { .. } | BackendError::OutOfMemory { .. } => true,
            _ => false,
        }
    }

    /// The first external function of a program that is not among those a backend has.
    ///
    /// # Errors
    ///
    /// [`BackendError::UnknownExternal`].
    pub fn check_externals(program: &Program, available: &[Signature]) -> Result<(), BackendError> {
        for declared in &program.externals {
            if available.iter().any(|signature| signature.is(declared)) {
                continue;
            }
            let same_name = available.iter().find(|signature| signature.name == declared.name);
            let all = || available.iter().map(|signature| signature.name).collect::<Vec<_>>().join(", ");
            return Err(BackendError::UnknownExternal {
                program: program.name.as_str().into(),
                declared: declared.to_string().into(),
                available: match same_name {
                    Some(signature) => format!("`{signature}`").into(),
                    None if available.is_empty() => "none".into(),
                    None => all().into(),
                },
            });
        }
        Ok(())
    }

    /// An [`BackendError::InvalidArgument`] from anything printable.
    pub fn invalid(
        argument: &'static str,
        got: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> BackendError {
        BackendError::InvalidArgument { argument, got: got.to_string(), expected: expected.to_string() }
    }
}
