//! Searching many files for many regexes, with a megakernel doing the stepping.
//!
//! ```text
//!  rules file --> rules --> plan (groups) --> tables on the device
//!                                                   |
//!  paths --> walk --> producers: read, cut  --> items of about 1 KiB, through the ring
//!                        ^                          |
//!                        | wrong guess: run again   v
//!                        +----------------------- results: state at the border, last state, rules seen
//!                                                   |
//!                     confirm: find_iter of the rules seen, on the host --> reports, in order of path
//! ```
//!
//! The matches reported are those of [`regex::bytes::Regex::find_iter`] for each rule by itself on the whole
//! file. The device decides only which rules can match in which files; a table never misses a match, and
//! where it sees more than there is, confirming finds nothing.
//!
//! Absent on purpose: mapped files (a file that shrinks would kill the process), encodings, ignore files, and
//! any state kept between two scans.

mod automaton;
mod chain;
mod compare;
mod confirm;
mod device;
mod error;
mod handler;
mod plan;
mod prefix;
mod producer;
mod reports;
mod rules;
mod source;
mod stats;
mod walk;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use vyre_driver::VyreBackend;
use vyre_runtime::SessionTrace;

pub use automaton::{Automaton, MAX_GROUP_RULES, MAX_STATES, State};
pub use chain::{PIECE_BYTES, WARM_UP_BYTES};
pub use compare::{Fingerprint, Plain, compare};
pub use confirm::{Match, Matches, confirm};
pub use error::ScanError;
pub use handler::{NO_TABLE, SCAN_OPCODE, TABLES_BINDING, scan_handler};
pub use plan::{ATTEMPTS, Group, Plan, table_limit};
pub use producer::KEEP_BYTES;
pub use reports::{FileReport, PART_MATCHES};
pub use rules::{Rule, RuleError, RuleErrorKind, Rules, RulesError};
pub use source::FileError;
pub use stats::{Latency, Occupancy, ScanStats, TableStats};
pub use walk::{Walk, walk};

use device::Device;
use producer::{Producer, Shared};
use reports::{QUEUED_REPORTS, Turns, in_order};
use stats::Counts;

/// Producers at most.
pub const MAX_PRODUCERS: usize = 64;

/// How to scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanOptions {
    /// Threads that read, cut, submit and confirm; 4 by default, 1 to [`MAX_PRODUCERS`].
    pub producers: usize,
    /// Whether to measure the latency of items; off by default, because it reads the clock twice for each.
    pub latency: bool,
    /// Whether the session publishes itself, as `scan`, for `vyre top`; off by default.
    pub observe: bool,
    /// How many of its last items the session records, for [`Scanner::trace`]; off by default.
    pub trace: Option<u32>,
}

impl Default for ScanOptions {
    fn default() -> ScanOptions {
        ScanOptions { producers: 4, latency: false, observe: false, trace: None }
    }
}

/// Rules, their tables, and a session of a megakernel that steps them.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::ops::ControlFlow;
/// use vyre::scan::{Rules, ScanOptions, Scanner, walk};
///
/// let rules = Rules::parse(b"todo\tTODO|FIXME\n")?;
/// let scanner = Scanner::new(vyre::open(vyre::BackendChoice::Auto)?, rules, ScanOptions::default())?;
/// scanner.scan(&walk(&["src"]).files, |file| {
///     println!("{}: {:?}", file.path.display(), file.outcome);
///     ControlFlow::Continue(())
/// })?;
/// # Ok(())
/// # }
/// ```
pub struct Scanner {
    rules: Rules,
    plan: Plan,
    device: Device,
    options: ScanOptions,
    setup: Duration,
    /// Held during a scan: the device has room for the batches of one.
    scanning: Mutex<()>,
}

impl Scanner {
    /// Builds the tables and starts a session on the backend.
    ///
    /// # Errors
    ///
    /// [`ScanError::Option`] for an option out of range, [`ScanError::Megakernel`] if the session does not
    /// start.
    pub fn new(
        backend: Arc<dyn VyreBackend>,
        rules: Rules,
        options: ScanOptions,
    ) -> Result<Scanner, ScanError> {
        if !(1..=MAX_PRODUCERS).contains(&options.producers) {
            let (option, expected) = ("producers", "1 to 64");
            return Err(ScanError::Option { option, got: options.producers, expected });
        }
        let began = Instant::now();
        let plan = Plan::new(&rules);
        let device = Device::start(backend, &plan, &options)?;
        Ok(Scanner { rules, plan, device, options, setup: began.elapsed(), scanning: Mutex::new(()) })
    }

    /// What was observed of the last device loss, if there was one.
    pub fn last_loss(&self) -> Option<String> {
        self.device.last_loss()
    }

    /// What was recorded up to now, over all scans, if the options asked for it.
    pub fn trace(&self) -> Option<SessionTrace> {
        self.device.trace()
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Which rules share a table, and which are run on the host.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Scans files, and hands over reports in their order: one for each, or several for a file with more than
    /// [`PART_MATCHES`] matches. Breaking off ends the scan as soon as the producers notice. Another scan on
    /// the same scanner waits for this one.
    ///
    /// # Errors
    ///
    /// Whatever keeps the megakernel from going on. What is wrong with a file is in its report.
    pub fn scan(
        &self,
        files: &[PathBuf],
        mut each: impl FnMut(FileReport) -> ControlFlow<()>,
    ) -> Result<ScanStats, ScanError> {
        let _alone = self.scanning.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let shared = Shared {
            rules: &self.rules,
            plan: &self.plan,
            device: &self.device,
            files,
            next: 0.into(),
            stop: false.into(),
            turns: Turns::default(),
        };
        let (sender, receiver) = sync_channel(QUEUED_REPORTS);
        let counts = thread::scope(|scope| {
            let mut producers = Vec::new();
            for number in 0..self.options.producers {
                let producer = Producer::new(&shared, sender.clone());
                let builder = thread::Builder::new().name(format!("vyre-scan-{number}"));
                match builder.spawn_scoped(scope, || producer.run()) {
                    Ok(handle) => producers.push(handle),
                    Err(source) if producers.is_empty() => return Err(ScanError::Spawn(source)),
                    // Fewer threads do as well.
                    Err(_) => break,
                }
            }
            drop(sender);
            in_order(receiver, &shared.turns, &mut each);
            shared.stop();
            let mut counts = Counts::default();
            for producer in producers {
                counts.add(&producer.join().map_err(|_| ScanError::Thread("producer"))??);
            }
            Ok(counts)
        })?;
        Ok(ScanStats::new(&counts, began.elapsed(), self.setup, &self.rules, &self.plan, &self.device))
    }
}
