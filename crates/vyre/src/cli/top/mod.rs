//! `vyre top`: running sessions of other processes, as they publish themselves.
//!
//! `watch` keeps the last snapshots and computes rates from two of them, `text` makes lines of that, and `screen`
//! shows the lines on a terminal until somebody has seen enough. Nothing here touches a session: all of it is read.

mod screen;
mod text;
mod watch;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use vyre::runtime::observe::{self, INTERVAL, Listing};

use super::messages;
use watch::{Session, Watch};

/// What `--help` says behind the options.
const HELP: &str = "\
A session is seen if its program asked for that (SessionOptions::observe), if the environment of its process has
VYRE_OBSERVE=1, or, of `vyre scan`, with --observe. Sessions of other users are not seen.

Keys: up and down choose a session, Enter shows it, Esc goes back, q leaves.

Exit status:
  0  there is a session
  1  there is none
  2  something went wrong";

/// The exit status where there is no session.
const NONE: u8 = 1;
/// How long `--once` waits for the second snapshot that rates need.
const SECOND: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct TopArguments {
    /// Print what is published once, and leave.
    #[arg(long)]
    once: bool,
    /// Print one JSON object.
    #[arg(long, requires = "once")]
    json: bool,
    /// Show the sessions of this process only.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds, conflicts_with = "once")]
    interval: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0.1 to 3600 seconds".to_owned()),
    }
}

pub(crate) fn run(arguments: &TopArguments) -> anyhow::Result<ExitCode> {
    if !arguments.once && !io::stdout().is_terminal() {
        bail!("standard output is no terminal; use --once, or --once --json");
    }
    let mut watch = Watch::default();
    let listing = look(arguments, &mut watch)?;
    for (path, problem) in &listing.unreadable {
        messages::error(&format!("{}: {problem}", path.display()));
    }
    if watch.sessions().next().is_none() {
        messages::error(&nothing(arguments.pid, &listing));
        if arguments.json {
            print(&json(&watch)?)?;
        }
        return Ok(ExitCode::from(NONE));
    }
    if !arguments.once {
        screen::show(Duration::from_secs_f64(arguments.interval), watch, |watch| {
            look(arguments, watch).map(drop)
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let began = Instant::now();
    while watch.sessions().any(|session| session.rates.is_none()) && began.elapsed() < SECOND {
        std::thread::sleep(INTERVAL / 10);
        let before = watch.clone();
        look(arguments, &mut watch)?;
        if watch.sessions().next().is_none() {
            // They have just ended; what they published last is worth more than nothing.
            watch = before;
            break;
        }
    }
    if arguments.json {
        print(&json(&watch)?)?;
    } else {
        let sessions: Vec<_> = watch.sessions().map(|session| text::session(session).join("\n")).collect();
        print(&(sessions.join("\n\n") + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads what is published now.
fn look(arguments: &TopArguments, watch: &mut Watch) -> anyhow::Result<Listing> {
    let listing = observe::list()?;
    let wanted = |pid| arguments.pid.is_none_or(|only| only == pid);
    watch.update(listing.sessions.iter().filter(|session| wanted(session.pid)));
    Ok(listing)
}

/// Why there is nothing to see.
fn nothing(pid: Option<u32>, listing: &Listing) -> String {
    match pid {
        Some(pid) if !listing.sessions.is_empty() => {
            let others: Vec<_> = listing.sessions.iter().map(|session| session.pid.to_string()).collect();
            format!("process {pid} has no observed session; those that have: {}", others.join(" "))
        }
        _ => format!(
            "no observed session in {}; start one with `SessionOptions::observe`, with VYRE_OBSERVE=1 in its \
             environment, or with `vyre scan --observe`",
            observe::folder().display()
        ),
    }
}

fn json(watch: &Watch) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Top<'w> {
        sessions: Vec<&'w Session>,
    }
    serde_json::to_string(&Top { sessions: watch.sessions().collect() }).map(|text| text + "\n")
}

fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Who reads has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
