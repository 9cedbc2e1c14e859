//! What the figures were measured on.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// The machine, and the version.
#[derive(Debug, Serialize)]
pub(super) struct Machine {
    /// Of the workspace the program was built from, if it is at hand; a star behind it: with changes.
    commit: String,
    processor: String,
    cores: usize,
    kernel: String,
    /// The load of the last minute when the run began: others were at work if it is not near 0.
    load: f64,
    /// Devices by backend.
    pub(super) devices: Vec<(String, String)>,
}

impl Machine {
    /// `commit` is believed where there is no checkout to ask.
    pub(super) fn look(commit: Option<&str>) -> Machine {
        let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = line("/proc/cpuinfo");
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            commit: checked_out().or(commit.map(str::to_owned)).unwrap_or_else(|| "unknown".to_owned()),
            processor: processor.map_or("unknown", |(_, name)| name).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: line("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: line("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            devices: Vec::new(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "commit {}; {}, {} cores, Linux {}, load {:.2}",
            self.commit, self.processor, self.cores, self.kernel, self.load
        )?;
        self.devices.iter().try_for_each(|(backend, device)| writeln!(f, "{backend}: {device}"))
    }
}

/// The commit of the workspace that this program was built in, if it is still there.
fn checked_out() -> Option<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let is_changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|text| !text.is_empty());
    Some(if is_changed { commit + "*" } else { commit })
}
