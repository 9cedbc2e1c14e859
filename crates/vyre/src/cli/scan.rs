//! `vyre scan`.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use vyre::scan::{Fingerprint, Rules, RulesError, ScanOptions, ScanStats, Scanner, compare, walk};
use vyre::{Isolation, OpenOptions};

use super::output::Output;
use super::progress::Progress;
use super::summary::{self, Comparison};
use super::{Backend, FAILURE, messages};

/// What `--help` says behind the options.
const HELP: &str = "\
Every regular file below each PATH is searched, hidden ones too; symbolic links below a PATH are not followed.

Output, in order of path, line, column and id, the columns in bytes from 1:
  path:line:column:id
With --json, one object a line: path, line, column, id, start, end (bytes from 0, end behind the last), and
path_bytes, an array, if the path is not UTF-8. A path is written byte for byte; for paths with newlines in
them use --json. Errors are lines `vyre: PATH: WHAT` on stderr.

Exit status:
  0  there are matches
  1  there are none
  2  something went wrong; what could be scanned was scanned, and its matches were written";

/// Items of a trace: 6 MiB while the search runs, and 60 MB of JSON.
const TRACE_ITEMS: u32 = 1 << 18;

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct ScanArguments {
    /// The rules: lines of the form id<TAB>regex, and # comments.
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// Where to run.
    #[arg(long, value_enum, default_value_t = Backend::Auto)]
    backend: Backend,
    /// Run the backend in a child process, so that its death is not the end of the search. A GPU always is.
    #[arg(long)]
    isolated: bool,
    /// Write one JSON object for each match, and one for --stats.
    #[arg(long)]
    json: bool,
    /// Say on stderr what was measured.
    #[arg(long)]
    stats: bool,
    /// Search once more with regex::bytes alone, compare time and matches, and say so; implies --stats.
    #[arg(long)]
    compare: bool,
    /// Let `vyre top` see the search while it runs; `VYRE_OBSERVE=1` does the same.
    #[arg(long)]
    observe: bool,
    /// Write the last 262,144 items, and what happened to the session, in Chrome's trace format.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Threads that read files and feed the ring.
    #[arg(long, value_name = "N", default_value_t = ScanOptions::default().producers)]
    producers: usize,
    /// Files, and folders of files.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(crate) fn run(arguments: &ScanArguments) -> anyhow::Result<ExitCode> {
    let Some(rules) = read_rules(arguments)? else { return Ok(ExitCode::from(FAILURE)) };
    let found = walk(&arguments.paths);
    let mut failed = !found.errors.is_empty();
    for (path, error) in &found.errors {
        messages::path_error(path, error);
    }

    let isolation = if arguments.isolated { Isolation::Worker } else { Isolation::Auto };
    let backend = OpenOptions::new(arguments.backend.into()).isolation(isolation).open()?;
    let with_stats = arguments.stats || arguments.compare;
    // Before anything is searched: a file that cannot be written is known then.
    let trace = arguments.trace.as_deref().map(create_trace).transpose()?;
    let options = ScanOptions {
        producers: arguments.producers,
        latency: with_stats || arguments.observe,
        observe: arguments.observe,
        trace: trace.is_some().then_some(TRACE_ITEMS),
    };
    let scanner = Scanner::new(backend, rules, options)?;
    let mut output = Output::to_stdout(arguments.json, scanner.rules());
    let progress = Progress::new(found.files.len());
    let (mut bytes, mut write_error) = (0, None);
    let (mut fingerprint, mut fingerprints) = (Fingerprint::default(), Vec::new());
    let stats = scanner.scan(&found.files, |report| {
        if arguments.compare {
            fingerprint.add(&report);
        }
        if report.complete {
            fingerprints.push(std::mem::take(&mut fingerprint).value());
            bytes += report.bytes;
            progress.file(bytes);
        }
        match report.outcome {
            Ok(matches) if matches.is_empty() => {}
            Ok(matches) => {
                if let Err(error) = progress.aside(|| output.file(&report.path, &matches)) {
                    write_error = Some(error);
                    return ControlFlow::Break(());
                }
            }
            Err(error) => {
                failed = true;
                progress.aside(|| messages::path_error(&report.path, &error));
            }
        }
        ControlFlow::Continue(())
    });
    progress.finish();
    // Of a search that was given up too: that is when one wants to see it.
    if let (Some(path), Some(file), Some(recorded)) = (&arguments.trace, trace, scanner.trace()) {
        let mut file = BufWriter::new(file);
        let written = recorded.write_chrome(&mut file).and_then(|()| file.flush());
        written.with_context(|| {
            format!("--trace {}: cannot be written; name a file on a disk with room", path.display())
        })?;
    }
    let stats = match stats {
        Ok(stats) => stats,
        Err(error) => {
            drop(output.flush());
            let last = scanner
                .last_loss()
                .map(|loss| format!("; the device was lost before, the last time because: {loss}"));
            let last = last.unwrap_or_default().replace('\n', " | ");
            return Err(error).context(format!("the scan was given up, and its output is incomplete{last}"));
        }
    };
    if let Some(loss) = &stats.last_loss {
        let times = stats.recoveries;
        messages::error(&format!(
            "the device was lost and replaced, {times} in all, the last time because: {}; nothing was left out",
            loss.replace('\n', " | ")
        ));
    }
    match write_error.map_or_else(|| output.flush(), Err) {
        // Who reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write the matches")?,
    }
    if with_stats {
        failed |= !summarize(arguments, &stats, &scanner, &found.files, &fingerprints)?;
    }
    Ok(ExitCode::from(if failed { FAILURE } else { u8::from(stats.matches == 0) }))
}

fn create_trace(path: &Path) -> anyhow::Result<File> {
    File::create(path)
        .with_context(|| format!("--trace {}: cannot be written; name a file that can", path.display()))
}

/// Reads the rules; `None` if the file is wrong, which has then been said line by line.
fn read_rules(arguments: &ScanArguments) -> anyhow::Result<Option<Rules>> {
    let path = &arguments.rules;
    let file = std::fs::read(path).with_context(|| format!("{}: cannot read the rules", path.display()))?;
    match Rules::parse(&file) {
        Ok(rules) => Ok(Some(rules)),
        Err(RulesError { errors }) => {
            for error in &errors {
                messages::path_error(path, error);
            }
            Ok(None)
        }
    }
}

/// Writes the summary; `false` if the plain search found something else.
fn summarize(
    arguments: &ScanArguments,
    stats: &ScanStats,
    scanner: &Scanner,
    files: &[PathBuf],
    fingerprints: &[Option<u64>],
) -> anyhow::Result<bool> {
    let comparison = if arguments.compare {
        let plain = compare(scanner.rules(), files)?;
        let differs = |&(file, fingerprint): &(usize, &Option<u64>)| !plain.agrees(file, *fingerprint);
        Some(Comparison {
            plain_seconds: plain.elapsed.as_secs_f64(),
            ratio: plain.elapsed.as_secs_f64() / stats.seconds.max(f64::MIN_POSITIVE),
            disagreements: fingerprints.iter().enumerate().filter(differs).count(),
        })
    } else {
        None
    };
    let text = if arguments.json {
        summary::json(stats, comparison.as_ref())? + "\n"
    } else {
        summary::text(stats, comparison.as_ref())
    };
    messages::plain(&text);
    Ok(comparison.is_none_or(|comparison| comparison.disagreements == 0))
}
