//! What was asked, what was answered, and whether that is what the rules allow.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use vyre_driver::Fault;

/// Wrong answers that are told, of those counted.
const TOLD: usize = 20;

/// What a loss may do to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twice {
    /// It runs again, unless it was run again after a loss before.
    May,
    /// It ends in a fault.
    MayNot,
}

/// How often something was begun, and how often it was over.
#[derive(Debug, Default)]
pub(super) struct Span {
    begun: AtomicU32,
    over: AtomicU32,
}

impl Span {
    pub(super) fn begin(&self) -> u32 {
        self.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(super) fn end(&self) {
        self.over.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn over(&self) -> u32 {
        self.over.load(Ordering::SeqCst)
    }
}

/// What all threads of a soak know of each other.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Losses of the worker, until something right was computed again.
    pub(super) losses: Span,
    /// Changes of handlers.
    pub(super) changes: Span,
    /// Uploads of the table.
    pub(super) uploads: Span,
    /// Nothing more is to be begun.
    over: AtomicBool,
    /// Items that have a ticket.
    pub(super) tracked: AtomicU64,
    /// Items that nobody asks about, and those of them that ended in a fault.
    pub(super) detached: AtomicU64,
    pub(super) detached_faults: AtomicU64,
    right: AtomicU64,
    faulted: AtomicU64,
    refused: AtomicU64,
    rest: Mutex<Rest>,
}

#[derive(Debug, Default)]
struct Rest {
    kinds: BTreeMap<&'static str, u64>,
    faults: BTreeMap<String, u64>,
    wrong: u64,
    problems: Vec<String>,
}

/// The sums of a [`Ledger`].
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sums {
    pub(super) tracked: u64,
    pub(super) detached: u64,
    pub(super) right: u64,
    pub(super) faulted: u64,
    /// Submissions that found no room, and were repeated.
    pub(super) refused: u64,
    pub(super) wrong: u64,
    pub(super) kinds: BTreeMap<&'static str, u64>,
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) detached_faults: u64,
    pub(super) problems: Vec<String>,
}

impl Ledger {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Takes down what must not be.
    pub(super) fn problem(&self, problem: impl fmt::Display) {
        let mut rest = self.rest();
        rest.wrong += 1;
        if rest.problems.len() < TOLD {
            eprintln!("WRONG: {problem}");
            rest.problems.push(problem.to_string());
        }
    }

    pub(super) fn count(&self, kind: &'static str, items: u64) {
        *self.rest().kinds.entry(kind).or_default() += items;
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn right(&self) {
        self.right.fetch_add(1, Ordering::Relaxed);
    }

    /// An item ended in a fault: whether a loss allows that. `losses_over` were over when it was submitted.
    pub(super) fn faulted(&self, what: &dyn fmt::Debug, fault: Fault, twice: Twice, losses_over: u32) {
        self.faulted.fetch_add(1, Ordering::Relaxed);
        *self.rest().faults.entry(format!("{fault:?}")).or_default() += 1;
        let losses = self.losses.begun().saturating_sub(losses_over);
        let allowed = match (fault, twice) {
            (Fault::DeviceLost, Twice::MayNot) => losses >= 1,
            (Fault::DeviceLost, Twice::May) => losses >= 2,
            _ => false,
        };
        if !allowed {
            self.problem(format_args!(
                "{what:?} ended in {fault:?}, with {losses} losses since it was submitted"
            ));
        }
    }

    /// A fault that an item of its kind may end in at any time.
    pub(super) fn expected_fault(&self, fault: Fault) {
        self.faulted.fetch_add(1, Ordering::Relaxed);
        *self.rest().faults.entry(format!("{fault:?}")).or_default() += 1;
    }

    pub(super) fn sums(&self) -> Sums {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let rest = self.rest();
        Sums {
            tracked: load(&self.tracked),
            detached: load(&self.detached),
            right: load(&self.right),
            faulted: load(&self.faulted),
            refused: load(&self.refused),
            wrong: rest.wrong,
            kinds: rest.kinds.clone(),
            faults: rest.faults.clone(),
            detached_faults: load(&self.detached_faults),
            problems: rest.problems.clone(),
        }
    }
}
