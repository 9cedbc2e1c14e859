//! What goes wrong below the backend.
//!
//! Three layers, one type each: [`HipError`] is one call's status, [`OpenError`] says why there is no library
//! to call, [`DeviceError`] is what the device layer answers. The variant or the code decides what kind of
//! failure it is, never the text.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use vyre_driver::{BackendError, Loss};

use crate::api::{Attempt, Outcome, Status, status};

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{call} failed with {name} ({code}): {text}")]
pub struct HipError {
    /// The function called, by the library's name for it.
    pub call: &'static str,
    /// The status in HIP's numbers ([`crate::api::status`]), whichever library it came from.
    pub code: Status,
    /// The library's name for its own status.
    pub name: String,
    /// The library's words for it.
    pub text: String,
}

impl HipError {
    /// The library does not have the function at all.
    pub(crate) fn missing(call: &'static str) -> HipError {
        HipError {
            call,
            code: status::NOT_SUPPORTED,
            name: "not in the library".to_owned(),
            text: "this version of the library does not have the function; install a newer one".to_owned(),
        }
    }

    /// Whether the device is lost to this process: every later call fails too, resets included.
    pub const fn is_sticky(&self) -> bool {
        status::is_sticky(self.code)
    }
}

/// Why no GPU library could be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No library loads.
    #[error(
        "no GPU library found; install ROCm or the NVIDIA driver, or set VYRE_HIP_LIBRARY; tried:{}",
        list(tried)
    )]
    LibraryNotFound {
        /// Each place, and why not.
        tried: Vec<Attempt>,
    },
    /// A library loads, but is not one this crate can use.
    #[error("{} lacks the function {symbol}; use ROCm 5.2 or later, or a CUDA 12 driver; tried:{}", library.display(), list(tried))]
    MissingSymbol {
        /// The library.
        library: PathBuf,
        /// The first function missed.
        symbol: &'static str,
        /// Each place, and why not.
        tried: Vec<Attempt>,
    },
    /// A library loads, but does not initialise.
    #[error("{} does not initialise; check that the kernel driver fits it; tried:{}", library.display(), list(tried))]
    NotInitialized {
        /// The library.
        library: PathBuf,
        /// What it said.
        source: HipError,
        /// Each place, and why not.
        tried: Vec<Attempt>,
    },
    /// A library works, and sees no device.
    #[error("no GPU: {reason}; tried:{}", list(tried))]
    NoDevice {
        /// Why, as far as can be told, and what to do.
        reason: String,
        /// Each place, and why not.
        tried: Vec<Attempt>,
    },
    /// A library works, and this process may not open the device.
    #[error("permission denied on {}: {remedy}; tried:{}", path.display(), list(tried))]
    PermissionDenied {
        /// The device file.
        path: PathBuf,
        /// Who may, and how to become one of them.
        remedy: String,
        /// Each place, and why not.
        tried: Vec<Attempt>,
    },
    /// `VYRE_HIP_PLATFORM` names none.
    #[error("unknown GPU platform `{value}`; set VYRE_HIP_PLATFORM to amd or nvidia, or unset it")]
    UnknownPlatform {
        /// The variable's value.
        value: String,
    },
}

impl OpenError {
    /// The reason that is nearest to a working GPU, out of all that was tried.
    pub(crate) fn from_attempts(tried: Vec<Attempt>) -> OpenError {
        let closest = tried.iter().max_by_key(|attempt| match attempt.outcome {
            Outcome::NotLoaded(_) | Outcome::OtherPlatform(_) | Outcome::Devices(_) => 0,
            Outcome::MissingSymbol(_) => 1,
            Outcome::NoDevice { .. } => 2,
            Outcome::NotInitialized(_) => 3,
            Outcome::PermissionDenied { .. } => 4,
        });
        let Some(Attempt { library, outcome, .. }) = closest.cloned() else {
            return OpenError::LibraryNotFound { tried };
        };
        match outcome {
            Outcome::MissingSymbol(symbol) => OpenError::MissingSymbol { library, symbol, tried },
            Outcome::NotInitialized(source) => OpenError::NotInitialized { library, source, tried },
            Outcome::NoDevice { reason } => OpenError::NoDevice { reason, tried },
            Outcome::PermissionDenied { path, remedy } => OpenError::PermissionDenied { path, remedy, tried },
            Outcome::NotLoaded(_) | Outcome::OtherPlatform(_) | Outcome::Devices(_) => {
                OpenError::LibraryNotFound { tried }
            }
        }
    }

    /// What was tried, and what became of it.
    pub fn tried(&self) -> &[Attempt] {
        match self {
            OpenError::LibraryNotFound { tried }
            | OpenError::MissingSymbol { tried, .. }
            | OpenError::NotInitialized { tried, .. }
            | OpenError::NoDevice { tried, .. }
            | OpenError::PermissionDenied { tried, .. } => tried,
            OpenError::UnknownPlatform { .. } => &[],
        }
    }
}

fn list(tried: &[Attempt]) -> String {
    if tried.is_empty() {
        return " nothing".to_owned();
    }
    tried.iter().fold(String::new(), |mut lines, attempt| {
        // Writing to a string does not fail.
        let _ = write!(lines, "\n  {attempt}");
        lines
    })
}

/// What the device layer answers.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No library to call.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A call failed; the device is still usable.
    #[error(transparent)]
    Hip(#[from] HipError),
    /// The device is lost to this process. Every later call on its context answers this.
    #[error("device lost; a process that lost its device cannot recover it: start another")]
    Lost(#[source] HipError),
    /// Not enough memory on the device, or of the pinned kind on the host.
    #[error("out of memory: {requested} bytes requested for {what}, {available} available")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        requested: u64,
        /// Bytes free on the device afterwards.
        available: u64,
        /// What the library said.
        source: HipError,
    },
    /// The code object is for another architecture.
    #[error("the code object has nothing for {arch}; compile it for that architecture")]
    NoCodeObject {
        /// The device's architecture.
        arch: String,
        /// What the loader said.
        source: HipError,
    },
    /// The code object is damaged, or none.
    #[error("the loader for {arch} refused a code object of {bytes} bytes; compile it again")]
    InvalidImage {
        /// The device's architecture.
        arch: String,
        /// The image's size.
        bytes: usize,
        /// What the loader said.
        source: HipError,
    },
    /// A wait ended before what it waited for.
    #[error("deadline of {after:?} passed waiting for {waited_for}")]
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
    /// The library or the device cannot do this.
    #[error("unsupported: {what}; {remedy}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What to do instead.
        remedy: String,
    },
}

impl DeviceError {
    /// Whether the device is lost to this process.
    pub const fn is_lost(&self) -> bool {
        matches!(self, DeviceError::Lost(_))
    }

    /// Whether the loader refused a code object, so that compiling it again may help.
    pub const fn is_image_refused(&self) -> bool {
        matches!(self, DeviceError::NoCodeObject { .. } | DeviceError::InvalidImage { .. })
    }

    pub(crate) fn invalid(
        argument: &'static str,
        got: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> DeviceError {
        DeviceError::InvalidArgument { argument, got: got.to_string(), expected: expected.to_string() }
    }
}

impl From<HipError> for BackendError {
    fn from(error: HipError) -> BackendError {
        if error.is_sticky() {
            return BackendError::DeviceLost(Loss::fault(error.to_string()));
        }
        let HipError { call, code, name, text } = error;
        BackendError::Driver { call, code: code.into(), text: format!("{name}: {text}") }
    }
}

impl From<OpenError> for BackendError {
    fn from(error: OpenError) -> BackendError {
        let remedy = "see docs/gpu-setup.md, or use the CPU backend".to_owned();
        BackendError::Unsupported { what: error.to_string(), remedy }
    }
}

impl From<DeviceError> for BackendError {
    fn from(error: DeviceError) -> BackendError {
        match error {
            DeviceError::Open(error) => error.into(),
            DeviceError::Hip(error) => error.into(),
            DeviceError::Lost(first) => BackendError::DeviceLost(Loss::fault(first.to_string())),
            DeviceError::OutOfMemory { what, requested, available, .. } => {
                BackendError::OutOfMemory { what, requested, available }
            }
            DeviceError::NoCodeObject { source, .. } | DeviceError::InvalidImage { source, .. } => {
                source.into()
            }
            DeviceError::Deadline { waited_for, after } => BackendError::Deadline { waited_for, after },
            DeviceError::InvalidArgument { argument, got, expected } => {
                BackendError::InvalidArgument { argument, got, expected }
            }
            DeviceError::Unsupported { what, remedy } => BackendError::Unsupported { what, remedy },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(outcome: Outcome) -> Attempt {
        Attempt { library: PathBuf::from("library"), platform: None, outcome }
    }

    #[test]
    fn the_reason_nearest_to_a_working_gpu_is_the_one_told() {
        let refused = HipError { call: "hipInit", code: 35, name: String::new(), text: String::new() };
        let from_far_to_near = [
            attempt(Outcome::NotLoaded("no such file".to_owned())),
            attempt(Outcome::MissingSymbol("hipInit")),
            attempt(Outcome::NoDevice { reason: "no /dev/kfd".to_owned() }),
            attempt(Outcome::NotInitialized(refused)),
            attempt(Outcome::PermissionDenied { path: PathBuf::from("/dev/kfd"), remedy: String::new() }),
        ];
        let told: Vec<_> = (0..=from_far_to_near.len())
            .map(|count| {
                // Whichever was tried first.
                let tried = from_far_to_near[..count].iter().rev().cloned().collect();
                let error = OpenError::from_attempts(tried);
                assert_eq!(error.tried().len(), count);
                error
            })
            .collect();
        assert!(matches!(told[0], OpenError::LibraryNotFound { .. }));
        assert!(matches!(told[1], OpenError::LibraryNotFound { .. }));
        assert!(matches!(told[2], OpenError::MissingSymbol { .. }));
        assert!(matches!(told[3], OpenError::NoDevice { .. }));
        assert!(matches!(told[4], OpenError::NotInitialized { .. }));
        assert!(matches!(told[5], OpenError::PermissionDenied { .. }));
    }
}
