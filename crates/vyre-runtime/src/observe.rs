//! Sessions seen from other processes: where they publish what they measure, and who reads it.
//!
//! An observed session ([`SessionOptions::observe`](crate::SessionOptions::observe)) writes a snapshot a few times a
//! second, as JSON, into a folder of its user's: `$XDG_RUNTIME_DIR/vyre`, or `/tmp/vyre-UID` where that variable is
//! not set. The folder is for its owner alone, and one that is not is refused. A file's name has the process's id,
//! the process's start time and the session's number; it is replaced by a rename, so a reader sees all of a snapshot
//! or none, and removed when the session ends. One left behind by a process that was killed names a process that
//! is no more: readers remove it.
//!
//! Absent on purpose: other users' sessions, and anything that a reader could ask a session to do.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::telemetry::{TelemetrySnapshot, nanoseconds};

/// Set to anything but `0`, it has every session of the process publish itself.
pub const VARIABLE: &str = "VYRE_OBSERVE";

/// How often a session publishes itself, at least while that costs next to nothing.
pub const INTERVAL: Duration = Duration::from_millis(250);

/// The form of the snapshot: another one is refused.
pub const VERSION: u32 = 1;

/// What a session publishes about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Published {
    /// [`VERSION`].
    pub version: u32,
    /// The name that the session was given.
    pub name: String,
    /// The process that has the session.
    pub pid: u32,
    /// The session's number in that process.
    pub session: u64,
    /// The backend's name.
    pub backend: String,
    /// Its device, in the words of its driver.
    pub device: String,
    /// The process that owns the device, if that is another one.
    pub worker_pid: Option<u32>,
    /// The device generation that it runs in.
    pub generation: u64,
    /// `runs`, or what became of it.
    pub state: String,
    /// What was observed of the last device loss.
    pub last_loss: Option<String>,
    /// When this was written, in milliseconds since 1970.
    pub written_ms: u64,
    /// The same as time since the session's start: rates are differences of two snapshots by this.
    #[serde(rename = "uptime_ns", with = "nanoseconds")]
    pub uptime: Duration,
    /// What the session has measured.
    #[serde(flatten)]
    pub telemetry: TelemetrySnapshot,
}

impl Published {
    /// How long ago it was written.
    pub fn age(&self) -> Duration {
        let written = UNIX_EPOCH + Duration::from_millis(self.written_ms);
        SystemTime::now().duration_since(written).unwrap_or_default()
    }
}

/// Why sessions cannot be published, or those published cannot be listed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// The folder is there and is not for its owner alone.
    #[error("{}: {problem}; remove it, or set XDG_RUNTIME_DIR to a folder of your own", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The operating system refused.
    #[error("{}: cannot {attempted}; set XDG_RUNTIME_DIR to a folder of your own, with room on it", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was attempted.
        attempted: &'static str,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

fn io_error(path: &Path, attempted: &'static str) -> impl FnOnce(io::Error) -> ObserveError {
    move |source| ObserveError::Io { path: path.to_owned(), attempted, source }
}

/// The folder of this user's observed sessions.
pub fn folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path.join("vyre"),
        None => PathBuf::from(format!("/tmp/vyre-{}", rustix::process::getuid().as_raw())),
    }
}

/// Refuses a folder that somebody else could write to.
fn check_folder(path: &Path) -> Result<(), ObserveError> {
    // Not what a link points to: a link could be turned elsewhere later.
    let found = fs::symlink_metadata(path).map_err(io_error(path, "look at the folder"))?;
    let problem = if !found.is_dir() {
        "it is not a folder"
    } else if found.uid() != rustix::process::getuid().as_raw() {
        "it belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "others than its owner may use it"
    } else {
        return Ok(());
    };
    Err(ObserveError::Folder { path: path.to_owned(), problem })
}

/// Makes the folder, or checks the one that there is.
pub(crate) fn prepare_folder(path: &Path) -> Result<(), ObserveError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io_error(path, "make the folder")(error))
        }
        _ => check_folder(path),
    }
}

/// Who writes a file. A process's id comes again; together with its start time it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Writer {
    pid: u32,
    /// In the system's ticks since it was started.
    started: u64,
    session: u64,
}

impl Writer {
    /// A session of this process.
    pub(crate) fn new(session: u64) -> Result<Writer, ObserveError> {
        let (pid, path) = (std::process::id(), Path::new("/proc/self/stat"));
        let started = fs::read_to_string(path).and_then(|stat| {
            start_time(&stat).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in it"))
        });
        let started = started.map_err(io_error(path, "read this process's start time"))?;
        Ok(Writer { pid, started, session })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn session(&self) -> u64 {
        self.session
    }

    /// The file's name, the extension apart.
    pub(crate) fn stem(&self) -> String {
        format!("{}-{}-{}", self.pid, self.started, self.session)
    }

    fn from_stem(stem: &str) -> Option<Writer> {
        let mut parts = stem.split('-');
        let writer = Writer {
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
            session: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(writer)
    }

    /// Whether the process is still there.
    fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.is_ok_and(|stat| start_time(&stat) == Some(self.started))
    }
}

/// The start time in a line of /proc/PID/stat; none of a process that is dead and not yet buried.
fn start_time(stat: &str) -> Option<u64> {
    // The second field is the executable's name in brackets, whatever it has in it; the third is the state.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

/// What is published in a folder.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The sessions of processes that live, by process and number.
    pub sessions: Vec<Published>,
    /// Files of such processes that cannot be understood, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// The observed sessions of this user. Files that dead processes left behind are removed.
///
/// # Errors
///
/// [`ObserveError`] if the folder is there and cannot be read, or others than its owner may use it.
pub fn list() -> Result<Listing, ObserveError> {
    list_in(&folder())
}

fn list_in(folder: &Path) -> Result<Listing, ObserveError> {
    match check_folder(folder) {
        Err(ObserveError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Listing::default());
        }
        checked => checked?,
    }
    let mut listing = Listing::default();
    let entries = fs::read_dir(folder).map_err(io_error(folder, "list the folder"))?;
    for entry in entries {
        let path = entry.map_err(io_error(folder, "list the folder"))?.path();
        // What is named otherwise is not a session's.
        let Some(writer) = path.file_stem().and_then(|stem| Writer::from_stem(stem.to_str()?)) else {
            continue;
        };
        if !writer.is_alive() {
            // Another reader may have been faster.
            drop(fs::remove_file(&path));
            continue;
        }
        // A pipe of that name would be waited for.
        let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        if path.extension().is_none_or(|extension| extension != "json") || !is_file {
            continue;
        }
        match fs::read(&path) {
            Ok(bytes) => match parse(&bytes) {
                Ok(published) => listing.sessions.push(published),
                Err(problem) => listing.unreadable.push((path, problem)),
            },
            // The session has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => listing.unreadable.push((path, error.to_string())),
        }
    }
    listing.sessions.sort_by_key(|published| (published.pid, published.session));
    Ok(listing)
}

fn parse(bytes: &[u8]) -> Result<Published, String> {
    #[derive(Deserialize)]
    struct Form {
        version: u32,
    }
    let malformed = |error: serde_json::Error| format!("it is not a session's snapshot: {error}; remove it");
    let Form { version } = serde_json::from_slice(bytes).map_err(malformed)?;
    if version != VERSION {
        return Err(format!(
            "its form is number {version}, and this vyre reads {VERSION}; use the vyre of the program that wrote it"
        ));
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A folder for its owner alone.
    fn private() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("private");
        folder
    }

    #[test]
    fn a_start_time_is_found_behind_any_name() {
        let fields = |state: &str| format!("{state} 1 {} 4711 9", "0 ".repeat(17));
        for name in ["vyre", "a b", ") Z (", "x)"] {
            assert_eq!(start_time(&format!("7 ({name}) {}", fields("S"))), Some(4711), "{name}");
            assert_eq!(start_time(&format!("7 ({name}) {}", fields("Z"))), None, "{name}");
        }
        assert_eq!(start_time("7 (short) S 1 2"), None);
        assert!(Writer::new(1).expect("this process").is_alive());
    }

    #[test]
    fn files_of_dead_processes_are_removed_and_others_left_alone() {
        let folder = private();
        let mine = Writer::new(7).expect("this process");
        // The same id, and a process that was there before it.
        let dead = Writer { started: mine.started - 1, ..mine };
        for name in [
            format!("{}.json", dead.stem()),
            format!("{}.tmp", dead.stem()),
            format!("{}.json", mine.stem()),
            format!("{}.tmp", mine.stem()),
            "notes.json".to_owned(),
        ] {
            fs::write(folder.path().join(name), "{\"version\": 2}").expect("written");
        }
        let listing = list_in(folder.path()).expect("listed");
        assert_eq!((listing.sessions.len(), listing.unreadable.len()), (0, 1));
        let (path, problem) = &listing.unreadable[0];
        assert!(path.ends_with(format!("{}.json", mine.stem())) && problem.contains("number 2"), "{problem}");
        let left = fs::read_dir(folder.path()).expect("listed").flatten().map(|entry| entry.file_name());
        let left: BTreeSet<_> = left.map(|name| name.to_string_lossy().into_owned()).collect();
        let expected =
            [format!("{}.json", mine.stem()), format!("{}.tmp", mine.stem()), "notes.json".to_owned()];
        assert_eq!(left, BTreeSet::from(expected));
    }

    #[test]
    fn a_folder_that_others_may_use_is_refused_and_one_that_is_missing_is_empty() {
        let parent = private();
        let path = parent.path().join("vyre");
        assert!(list_in(&path).expect("nothing is no error").sessions.is_empty());
        prepare_folder(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o700);
        prepare_folder(&path).expect("there");
        let refused = |path: &Path, expected: &str| {
            for error in [prepare_folder(path).expect_err("refused"), list_in(path).expect_err("refused")] {
                assert!(error.to_string().contains(expected), "{error}");
            }
        };
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        refused(&link, "it is not a folder; remove it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("opened");
        refused(&path, "others than its owner");
    }
}
