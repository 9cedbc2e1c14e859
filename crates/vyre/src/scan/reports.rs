//! Reports on their way from the producers to the caller, in the order of the files and in bounded memory.
//!
//! A report about a file whose turn has not come waits for it. What waits is counted in matches: past
//! [`HELD_MATCHES`], a producer with more of them waits for the turn of its file before it sends them. A file
//! with more than [`PART_MATCHES`] matches waits for its turn in any case, and sends them part by part then.
//!
//! A producer that waits has taken the results of all its items, so its slots in the ring are free: the
//! producer whose turn it is can always go on.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::confirm::Match;
use super::source::FileError;

/// Matches in one report at most.
pub const PART_MATCHES: usize = 1024;

/// Matches that wait for the turns of their files at most.
const HELD_MATCHES: usize = 256 * PART_MATCHES;

/// Reports in the queue to the caller's thread, so that a producer seldom waits for a slow reader.
pub(super) const QUEUED_REPORTS: usize = 256;

/// What was found in one file, or a part of it.
#[derive(Debug)]
pub struct FileReport {
    /// The file, as the walk named it.
    pub path: PathBuf,
    /// Its length in bytes, 0 if it could not be read.
    pub bytes: u64,
    /// Matches in order of line, column and id, at most [`PART_MATCHES`]; or why there are none.
    pub outcome: Result<Vec<Match>, FileError>,
    /// Whether this is the last report about the file. The others before it are of the same file, and none
    /// of them is an error.
    pub complete: bool,
}

impl FileReport {
    pub(super) fn matches(&self) -> usize {
        self.outcome.as_ref().map_or(0, Vec::len)
    }
}

/// Whose turn it is, and how much waits.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The file whose reports are handed over now.
    turn: usize,
    /// Matches sent and not yet handed over.
    held: usize,
    /// Nobody waits any more.
    stopped: bool,
}

impl Turns {
    /// Whether so many more matches may be sent before the turn of `file`. If so, they count as held.
    pub(super) fn admit(&self, file: usize, matches: usize) -> bool {
        let mut state = self.lock();
        let fits = matches == 0 || state.turn == file || state.held + matches <= HELD_MATCHES;
        state.held += if fits { matches } else { 0 };
        fits
    }

    /// Waits until it is the turn of `file`, or the scan was stopped. Then so many more matches count as held.
    pub(super) fn await_turn(&self, file: usize, matches: usize) {
        let waiting = |state: &mut State| !state.stopped && state.turn != file;
        let state = self.changed.wait_while(self.lock(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).held += matches;
    }

    /// Lets everybody go who waits, now and later.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn handed_over(&self, turn: usize, matches: usize) {
        let mut state = self.lock();
        state.turn = turn;
        state.held -= matches.min(state.held);
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands reports over in the order of their files, until the caller breaks off or no more come.
pub(super) fn in_order(
    reports: Receiver<(usize, FileReport)>,
    turns: &Turns,
    each: &mut impl FnMut(FileReport) -> ControlFlow<()>,
) {
    let mut early = BTreeMap::new();
    let mut turn = 0;
    for (file, report) in reports {
        early.insert(file, report);
        while let Some(report) = early.remove(&turn) {
            let matches = report.matches();
            turn += usize::from(report.complete);
            let wish = each(report);
            turns.handed_over(turn, matches);
            if wish.is_break() {
                return;
            }
        }
    }
}
