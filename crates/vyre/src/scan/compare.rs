//! The same search with `regex::bytes` alone, to compare with: how long it takes, and whether it agrees.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::confirm::{Match, confirm};
use super::error::ScanError;
use super::reports::FileReport;
use super::rules::Rules;
use super::source::Source;

/// What a plain search found.
#[derive(Clone, Debug)]
pub struct Plain {
    /// From the first file to the last.
    pub elapsed: Duration,
    /// Bytes searched.
    pub bytes: u64,
    /// For each file, what identifies its matches; `None` where it could not be read.
    fingerprints: Vec<Option<u64>>,
}

impl Plain {
    /// Whether a file's report says the same. Files that one of the two could not read do not count.
    pub fn agrees(&self, file: usize, report: Option<u64>) -> bool {
        match (self.fingerprints.get(file).copied().flatten(), report) {
            (Some(plain), Some(report)) => plain == report,
            _ => true,
        }
    }
}

/// What identifies the matches of one file, to compare them without keeping them.
#[derive(Clone, Debug, Default)]
pub struct Fingerprint {
    hasher: DefaultHasher,
    failed: bool,
}

impl Fingerprint {
    /// Takes in a report about the file; its reports are taken in in order.
    pub fn add(&mut self, report: &FileReport) {
        match &report.outcome {
            Ok(matches) => matches.iter().for_each(|found| self.add_match(found)),
            Err(_) => self.failed = true,
        }
    }

    fn add_match(&mut self, found: &Match) {
        found.hash(&mut self.hasher);
    }

    /// The same for the same matches; `None` for a file with an error.
    pub fn value(&self) -> Option<u64> {
        (!self.failed).then(|| self.hasher.finish())
    }
}

/// Runs [`regex::bytes::Regex::find_iter`] of every rule over every file, on as many threads as the machine
/// has cores.
///
/// # Errors
///
/// [`ScanError::Thread`] if a thread does not end as it should.
pub fn compare(rules: &Rules, files: &[PathBuf]) -> Result<Plain, ScanError> {
    let began = Instant::now();
    let next = AtomicUsize::new(0);
    let work = || {
        // A clone of its own: threads that share a regex wait for each other's scratch memory.
        let rules = rules.clone();
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = files.get(index) else { return found };
            let mut bytes = Vec::new();
            let read = Source::open(path).and_then(|mut source| source.read_whole(&mut bytes));
            if read.is_ok() {
                let mut fingerprint = Fingerprint::default();
                confirm(&rules, 0..rules.len(), &bytes).for_each(|found| fingerprint.add_match(&found));
                found.push((index, bytes.len() as u64, fingerprint.value()));
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let found = thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for other in others {
            all.extend(other.join().map_err(|_| ScanError::Thread("comparing"))?);
        }
        Ok(all)
    })?;
    let mut plain = Plain { elapsed: began.elapsed(), bytes: 0, fingerprints: vec![None; files.len()] };
    for (index, bytes, fingerprint) in found {
        plain.bytes += bytes;
        if let Some(slot) = plain.fingerprints.get_mut(index) {
            *slot = fingerprint;
        }
    }
    Ok(plain)
}
