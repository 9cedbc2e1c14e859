//! The atomics of everything private to one side, switched to loom's under `cfg(loom)`.
//!
//! Words in shared memory are never loom's: the ring reaches them through [`crate::ring::Memory`], which
//! has a second implementation for the models.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

/// Locks, whether or not another holder panicked: what these mutexes guard is consistent between any two
/// statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
