//! A session that publishes itself, for other processes to look at.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::shared::{Shared, lock};
use crate::observe::{self, INTERVAL, ObserveError, Published, VARIABLE, VERSION, Writer};

/// Publishing may take this part of the session's own thread: a large ring takes longer to look at.
const SHARE: u32 = 100;
/// The longest pause because of that. An observer takes a session for silent after two of them.
const LONGEST: Duration = Duration::from_secs(1);

/// Writes a session's snapshots, and removes the last one.
pub(super) struct Publisher {
    name: String,
    writer: Writer,
    started: Instant,
    file: PathBuf,
    /// Written first, then renamed.
    temporary: PathBuf,
    due: Instant,
    /// The last one was not written, which was said.
    failed: bool,
}

impl Publisher {
    /// For a session that was asked to publish itself under a name, or whose process was.
    pub(super) fn wanted(asked: Option<&str>, session: u64) -> Result<Option<Publisher>, ObserveError> {
        if let Some(name) = asked {
            return Publisher::new(name.to_owned(), session).map(Some);
        }
        if std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty() || value == "0") {
            return Ok(None);
        }
        let executable = std::env::current_exe().ok();
        let name = executable.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
        // The program did not ask for it, so it does not fail for it.
        Ok(Publisher::new(name.to_string_lossy().into_owned(), session)
            .inspect_err(|error| tracing::warn!(%error, "a session is not published"))
            .ok())
    }

    fn new(name: String, session: u64) -> Result<Publisher, ObserveError> {
        let folder = observe::folder();
        observe::prepare_folder(&folder)?;
        let writer = Writer::new(session)?;
        let file = folder.join(format!("{}.json", writer.stem()));
        let temporary = file.with_extension("tmp");
        let now = Instant::now();
        Ok(Publisher { name, writer, started: now, file, temporary, due: now, failed: false })
    }

    /// Publishes if it is time.
    pub(super) fn tick(&mut self, shared: &Shared) {
        let began = Instant::now();
        if began < self.due {
            return;
        }
        match self.publish(shared) {
            Ok(()) => self.failed = false,
            Err(error) if !self.failed => {
                self.failed = true;
                tracing::warn!(session = self.writer.session(), %error, "a session is not published");
            }
            Err(_) => {}
        }
        // On a busy machine most of the time that passed may have been others'.
        let rest = (began.elapsed() * SHARE).clamp(INTERVAL, LONGEST);
        self.due = Instant::now() + rest;
    }

    /// Publishes now.
    pub(super) fn publish(&self, shared: &Shared) -> Result<(), ObserveError> {
        let identity = shared.plan.backend.identity();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let published = Published {
            version: VERSION,
            name: self.name.clone(),
            pid: self.writer.pid(),
            session: self.writer.session(),
            backend: identity.name.clone(),
            device: identity.device.clone(),
            worker_pid: shared.plan.backend.worker_pid(),
            generation: shared.generation().0,
            state: shared.gate().describe().to_owned(),
            last_loss: lock(&shared.last_recovery).as_ref().map(|report| report.reason.clone()),
            written_ms: since_1970.as_millis() as u64,
            uptime: self.started.elapsed(),
            telemetry: shared.telemetry(),
        };
        let failed = |attempted: &'static str| {
            let path = self.file.clone();
            move |source| ObserveError::Io { path, attempted, source }
        };
        let text =
            serde_json::to_vec(&published).map_err(|error| failed("encode a snapshot")(error.into()))?;
        fs::write(&self.temporary, text).map_err(failed("write a snapshot"))?;
        fs::rename(&self.temporary, &self.file).map_err(failed("put a snapshot in its place"))
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        for path in [&self.temporary, &self.file] {
            // There may be none.
            drop(fs::remove_file(path));
        }
    }
}
