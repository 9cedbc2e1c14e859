//! A backend's error on its way through a socket: the variant survives, so a caller decides by it as in process.

use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vyre_driver::{BackendError, Generation, Loss, LossCause};

/// A [`BackendError`] as data.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) enum Failure {
    Lost { cause: Cause, reason: String },
    OutOfMemory { what: String, requested: u64, available: u64 },
    Unsupported { what: String, remedy: String },
    CompileFailed { program: String, log: String },
    UnknownExternal { program: String, declared: String, available: String },
    Deadline { waited_for: String, after: Duration },
    InvalidArgument { argument: String, got: String, expected: String },
    Stale { id: u64 },
    Driver { call: String, code: i64, text: String },
}

/// A [`LossCause`] as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    Fault,
    Killed,
    Unresponsive,
    GivenUp,
}

impl From<LossCause> for Cause {
    fn from(cause: LossCause) -> Cause {
        match cause {
            LossCause::Killed => Cause::Killed,
            LossCause::Unresponsive => Cause::Unresponsive,
            LossCause::GivenUp => Cause::GivenUp,
            _ => Cause::Fault,
        }
    }
}

impl From<Cause> for LossCause {
    fn from(cause: Cause) -> LossCause {
        match cause {
            Cause::Fault => LossCause::Fault,
            Cause::Killed => LossCause::Killed,
            Cause::Unresponsive => LossCause::Unresponsive,
            Cause::GivenUp => LossCause::GivenUp,
        }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Failure {
        match error {
            BackendError::DeviceLost(Loss { cause, reason }) => Failure::Lost { cause: cause.into(), reason },
            BackendError::OutOfMemory { what, requested, available } => {
                Failure::OutOfMemory { what, requested, available }
            }
            BackendError::Unsupported { what, remedy } => Failure::Unsupported { what, remedy },
            BackendError::CompileFailed { program, log } => Failure::CompileFailed { program, log },
            BackendError::UnknownExternal { program, declared, available } => Failure::UnknownExternal {
                program: program.into(),
                declared: declared.into(),
                available: available.into(),
            },
            BackendError::Deadline { waited_for, after } => Failure::Deadline { waited_for, after },
            BackendError::InvalidArgument { argument, got, expected } => {
                Failure::InvalidArgument { argument: argument.to_owned(), got, expected }
            }
            BackendError::StaleHandle { id, .. } => Failure::Stale { id },
            BackendError::Driver { call, code, text } => {
                Failure::Driver { call: call.to_owned(), code, text }
            }
            // A kind of error that this version does not know keeps its words.
            other => Failure::Driver { call: UNKNOWN_CALL.to_owned(), code: -1, text: other.to_string() },
        }
    }
}

impl Failure {
    /// The error it was, in a parent whose backend is at this generation.
    pub(crate) fn into_error(self, current: Generation) -> BackendError {
        match self {
            Failure::Lost { cause, reason } => BackendError::DeviceLost(Loss { cause: cause.into(), reason }),
            Failure::OutOfMemory { what, requested, available } => {
                BackendError::OutOfMemory { what, requested, available }
            }
            Failure::Unsupported { what, remedy } => BackendError::Unsupported { what, remedy },
            Failure::CompileFailed { program, log } => BackendError::CompileFailed { program, log },
            Failure::UnknownExternal { program, declared, available } => BackendError::UnknownExternal {
                program: program.into(),
                declared: declared.into(),
                available: available.into(),
            },
            Failure::Deadline { waited_for, after } => BackendError::Deadline { waited_for, after },
            Failure::InvalidArgument { argument, got, expected } => BackendError::InvalidArgument {
                argument: interned(&argument).unwrap_or("argument"),
                got,
                expected,
            },
            Failure::Stale { id } => BackendError::StaleHandle { id, generation: current, current },
            Failure::Driver { call, code, text } => match interned(&call) {
                Some(call) => BackendError::Driver { call, code, text },
                None => BackendError::Driver { call: UNKNOWN_CALL, code, text: format!("{call}: {text}") },
            },
        }
    }
}

const UNKNOWN_CALL: &str = "the worker's backend";

/// Names that a worker may make this process remember.
const NAMES: usize = 256;
/// Bytes of one.
const NAME_BYTES: usize = 64;

/// The same name for ever. A worker is not trusted to send only names from its source, so there is room for
/// a bounded number of short ones, which are kept once each; past that there is `None`. No lock is held that
/// another backend's caller could wait for.
fn interned(name: &str) -> Option<&'static str> {
    static KNOWN: [OnceLock<&'static str>; NAMES] = [const { OnceLock::new() }; NAMES];
    if name.len() > NAME_BYTES || name.chars().any(char::is_control) {
        return None;
    }
    // Whoever is first in an empty place has it; a name that lost the race for one goes on to the next.
    KNOWN.iter().map(|place| *place.get_or_init(|| Box::leak(name.into()))).find(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One after the other: the second fills a table of the process.
    #[test]
    fn names_survive_and_a_worker_that_invents_them_is_remembered_a_bounded_number() {
        every_variant_survives_the_way_there_and_back();
        invented_names_are_bounded();
    }

    fn every_variant_survives_the_way_there_and_back() {
        let text = |word: &str| word.to_owned();
        let errors = [
            BackendError::DeviceLost(Loss { cause: LossCause::Unresponsive, reason: text("silent") }),
            BackendError::OutOfMemory { what: text("a buffer"), requested: 9, available: 8 },
            BackendError::Unsupported { what: text("this"), remedy: text("that") },
            BackendError::CompileFailed { program: text("p"), log: text("line 1\nline 2") },
            BackendError::UnknownExternal {
                program: "p".into(),
                declared: "f".into(),
                available: "g".into(),
            },
            BackendError::Deadline { waited_for: text("a kernel"), after: Duration::from_millis(3) },
            BackendError::invalid("grid", "[0, 1, 1]", "more"),
            BackendError::StaleHandle { id: 7, generation: Generation(3), current: Generation(3) },
            BackendError::Driver { call: "hipMalloc", code: -2, text: text("no") },
        ];
        for error in errors {
            let sent = postcard::to_allocvec(&Failure::from(error.clone())).expect("encodes");
            let failure: Failure = postcard::from_bytes(&sent).expect("decodes");
            assert_eq!(format!("{:?}", failure.into_error(Generation(3))), format!("{error:?}"));
        }
    }

    fn invented_names_are_bounded() {
        let known = interned("grid").expect("there is room");
        assert!(std::ptr::eq(known, interned("grid").expect("known")));
        assert_eq!(interned(&"x".repeat(NAME_BYTES + 1)), None);
        assert_eq!(interned("two\nlines"), None);
        let kept = (0..2 * NAMES).filter(|n| interned(&format!("invented {n}")).is_some()).count();
        assert!(kept < NAMES, "{kept} names kept");
        assert!(std::ptr::eq(known, interned("grid").expect("still known")));
    }
}
