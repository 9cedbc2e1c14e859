use std::time::{Duration, Instant};

/// Bounds of a [`KernelServer`](super::KernelServer).
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Most processes at a time, of all kernels together: 16. Zero counts as one.
    pub processes: usize,
    /// Most workers of one kernel: 1. Requests beyond that wait, first come first. Zero counts as one.
    pub workers_per_kernel: usize,
    /// How long a worker may do nothing before it is closed: 60 s.
    pub idle: Duration,
    /// How long a process has to become ready: 30 s. A worker that opens a GPU needs some of that.
    pub start: Duration,
    /// How long a worker that is asked to leave has before it is killed: 200 ms.
    pub grace: Duration,
    /// The second start in a row after a failure waits for this long, each further one for twice as long: 10 ms.
    pub backoff: Duration,
    /// ... and never longer than this: 2 s.
    pub backoff_limit: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            processes: 16,
            workers_per_kernel: 1,
            idle: Duration::from_secs(60),
            start: Duration::from_secs(30),
            grace: Duration::from_millis(200),
            backoff: Duration::from_millis(10),
            backoff_limit: Duration::from_secs(2),
        }
    }
}

impl ServerOptions {
    /// How long to wait before the next start after so many failures in a row. One costs nothing.
    pub(super) fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 | 1 => Duration::ZERO,
            more => {
                let doubled = 1u32.checked_shl(more - 2).unwrap_or(u32::MAX);
                self.backoff.saturating_mul(doubled).min(self.backoff_limit)
            }
        }
    }
}

/// A limit that is as good as none, and still a time that the clock can show.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// When a limit is over.
pub(super) fn until(begun: Instant, limit: Duration) -> Instant {
    begun + limit.min(CENTURY)
}

/// How one request is to be run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// From the call until the response: 30 s.
    pub limit: Duration,
    /// Running the request twice does no harm: if its worker dies with it, it is tried once more.
    pub idempotent: bool,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions { limit: Duration::from_secs(30), idempotent: false }
    }
}

impl RunOptions {
    /// With another limit.
    pub fn limit(limit: Duration) -> RunOptions {
        RunOptions { limit, ..RunOptions::default() }
    }
}

/// What a [`KernelServer`](super::KernelServer) has done, and has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStats {
    /// Requests answered, refusals included.
    pub answered: u64,
    /// Processes that became workers.
    pub started: u64,
    /// Starts that failed.
    pub not_started: u64,
    /// Workers found dead before a request was sent, and replaced.
    pub replaced: u64,
    /// Workers that were lost with a request: died, silent past the deadline, or out of the protocol.
    pub lost: u64,
    /// Requests that were tried a second time.
    pub retried: u64,
    /// Idle workers closed to make room, or because their executable was replaced.
    pub evicted: u64,
    /// Idle workers closed because nobody needed them for so long.
    pub expired: u64,
    /// Workers that are ready now.
    pub idle: usize,
    /// Processes there are now: starting, idle, busy, or being reaped.
    pub processes: usize,
    /// Callers that wait for a worker now.
    pub waiting: usize,
}
