//! What can end a scan as a whole.

use thiserror::Error;
use vyre_runtime::MegakernelError;

/// Why a scan did not begin or did not end. What is wrong with single files is in their reports.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The megakernel refused.
    #[error("cannot {attempted} on the backend")]
    Megakernel {
        /// What was attempted.
        attempted: &'static str,
        /// Its answer.
        #[source]
        source: MegakernelError,
    },
    /// The backend runs a kernel and returns, while a scan feeds one that stays.
    #[error(
        "backend `{backend}` keeps no kernel resident, and a scan needs one; use `cpu`, or `hip` on a GPU"
    )]
    NotPersistent {
        /// Its name.
        backend: String,
    },
    /// The ring or its payloads would be larger than they can be.
    #[error("{tables} tables for {producers} producers are too many; use fewer rules or fewer producers")]
    TooLarge {
        /// Tables that the rules need.
        tables: usize,
        /// Threads that feed the ring.
        producers: usize,
    },
    /// The ring stayed full.
    #[error("the ring had no room for a batch for {after:?}; use fewer producers")]
    NoRoom {
        /// How long.
        after: std::time::Duration,
    },
    /// An option is out of range.
    #[error("{option} is {got}, expected {expected}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        got: usize,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// Not even one thread could be started.
    #[error("cannot start a thread; allow this process more of them")]
    Spawn(#[source] std::io::Error),
    /// A thread of the scan ended without an answer.
    #[error("a {0} thread ended without an answer; scan again, and report it if that ends likewise")]
    Thread(&'static str),
}

impl ScanError {
    pub(super) fn megakernel(attempted: &'static str) -> impl FnOnce(MegakernelError) -> ScanError {
        move |source| ScanError::Megakernel { attempted, source }
    }
}
