//! The progress bar: on a terminal, and nowhere else.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{FileType, fstat};

/// A bar over files.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar on stderr if that is a terminal and stdout is no pipe: a pager would draw over it.
    pub(crate) fn new(files: usize) -> Progress {
        let visible = io::stderr().is_terminal() && !is_pipe(io::stdout());
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(files as u64), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:32} {pos}/{len} files  {msg}  {elapsed}") {
            bar.set_style(style);
        }
        Progress { bar }
    }

    /// One file is done, and so many bytes in all.
    pub(crate) fn file(&self, bytes: u64) {
        self.bar.inc(1);
        if !self.bar.is_hidden() {
            self.bar.set_message(format!("{} MB", bytes / 1_000_000));
        }
    }

    /// Writes something else to the terminal, with the bar out of the way.
    pub(crate) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn is_pipe(stream: impl AsFd) -> bool {
    let kind = fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
    matches!(kind, Ok(FileType::Fifo | FileType::Socket))
}
