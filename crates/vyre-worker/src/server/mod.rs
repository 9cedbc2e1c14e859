//! A keyed pool of kernel workers: bytes in, bytes out.
//!
//! ```no_run
//! use vyre_worker::server::{KernelServer, KernelSpec, RunOptions, ServerOptions};
//!
//! # fn main() -> Result<(), vyre_worker::server::KernelError> {
//! let server = KernelServer::new(ServerOptions::default())?;
//! let kernel = KernelSpec::new("gemm_f16", "/opt/kernels/gemm_f16");
//! let mut response = vec![0; 4096];
//! let bytes = server.run_into(&kernel, b"request", &mut response, RunOptions::default())?;
//! # let _ = bytes; Ok(())
//! # }
//! ```
//!
//! A worker is kept for the kernel's type, executable and device; an executable that was rebuilt since is another
//! one. A worker serves one caller at a time and the rest wait in the order in which they came. The one lock of
//! a server covers table look-ups and nothing that could take time: processes are started, pinged, closed and
//! reaped outside of it, so a slow or wedged worker delays its own callers only.
//!
//! A worker that was dead before a request was sent is replaced, and the caller notices nothing. One that dies
//! with a request is an error, because nobody knows how far it came; [`RunOptions::idempotent`] has it tried once
//! more. One that leaves the protocol, or is silent past the deadline, is killed.
//!
//! Trust: what a worker says is checked before it is believed. docs/worker-protocol.md has what it may say.

mod error;
mod oneshot;
mod options;
mod pool;
mod spec;
mod state;
mod worker;

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use error::KernelError;
pub use options::{RunOptions, ServerOptions, ServerStats};
use pool::Pool;
pub use spec::KernelSpec;
use worker::{CallError, Worker};

use crate::wire::WireError;

/// The pool, and the duty to end its processes. Dropping it kills them.
pub struct KernelServer {
    pool: Arc<Pool>,
    housekeeper: Option<JoinHandle<()>>,
}

impl KernelServer {
    /// An empty pool. Fails only if the system has no thread for its housekeeping.
    pub fn new(options: ServerOptions) -> Result<KernelServer, KernelError> {
        let pool = Pool::new(options);
        let own = Arc::clone(&pool);
        let housekeeper = thread::Builder::new()
            .name("vyre-kernel-pool".into())
            .spawn(move || own.keep_house())
            .map_err(|source| KernelError::Resources {
                kernel: String::new(),
                source: WireError::Os { call: "clone", source },
            })?;
        Ok(KernelServer { pool, housekeeper: Some(housekeeper) })
    }

    /// Runs one request on a pooled worker, starting one if there is none. At most `room` bytes come back.
    pub fn run(
        &self,
        kernel: &KernelSpec,
        request: &[u8],
        room: usize,
        options: RunOptions,
    ) -> Result<Vec<u8>, KernelError> {
        fits(kernel, request, room)?;
        let mut response = zeroed(kernel, room)?;
        let bytes = self.run_into(kernel, request, &mut response, options)?;
        response.truncate(bytes);
        Ok(response)
    }

    /// The same, into memory of the caller's; the length of the response. What lies behind it, and all of it if
    /// there is an error, is unspecified.
    pub fn run_into(
        &self,
        kernel: &KernelSpec,
        request: &[u8],
        response: &mut [u8],
        options: RunOptions,
    ) -> Result<usize, KernelError> {
        fits(kernel, request, response.len())?;
        let begun = Instant::now();
        self.on_worker(kernel, options, begun, |worker, until| worker.call(request, response, begun, until))
    }

    /// Runs one request in a process of its own, which ends with it. Nothing of the pool is used, and no other
    /// request shares anything with it.
    pub fn oneshot(
        &self,
        kernel: &KernelSpec,
        request: &[u8],
        room: usize,
        options: RunOptions,
    ) -> Result<Vec<u8>, KernelError> {
        kernel.key()?;
        oneshot::run(kernel, request, room, options)
    }

    /// How long a worker takes to answer a question that asks nothing, the wait for one that is free included.
    pub fn ping(&self, kernel: &KernelSpec, limit: Duration) -> Result<Duration, KernelError> {
        let begun = Instant::now();
        let options = RunOptions { limit, idempotent: true };
        self.on_worker(kernel, options, begun, |worker, until| worker.ping(begun, until))?;
        Ok(begun.elapsed())
    }

    fn on_worker<T>(
        &self,
        kernel: &KernelSpec,
        options: RunOptions,
        begun: Instant,
        mut call: impl FnMut(&mut Worker, Instant) -> Result<T, CallError>,
    ) -> Result<T, KernelError> {
        let until = options::until(begun, options.limit);
        let mut retries = u32::from(options.idempotent);
        loop {
            let key = kernel.key()?;
            let mut worker = self.pool.acquire(&key, begun, until)?;
            match call(&mut worker, until) {
                Ok(value) => {
                    self.pool.release(&key, worker);
                    return Ok(value);
                }
                Err(CallError::Kept(error)) => {
                    self.pool.release(&key, worker);
                    return Err(error);
                }
                Err(CallError::Unsent(error)) => self.pool.lost(&key, worker, false, &error),
                Err(CallError::Lost(error)) => {
                    self.pool.lost(&key, worker, true, &error);
                    if retries == 0 || matches!(error, KernelError::Deadline { .. }) {
                        return Err(error);
                    }
                    retries -= 1;
                    self.pool.retried();
                }
            }
        }
    }

    /// What was done so far, and what there is now.
    pub fn stats(&self) -> ServerStats {
        self.pool.stats()
    }

    /// Takes no more requests, asks idle workers to leave, ends those that are still starting, waits for busy ones
    /// until `limit` is over, then kills what is left. Whether every process is gone.
    pub fn close(&self, limit: Duration) -> bool {
        self.pool.close(options::until(Instant::now(), limit))
    }
}

impl Drop for KernelServer {
    fn drop(&mut self) {
        if !self.pool.close(Instant::now()) {
            tracing::warn!(stats = ?self.stats(), "killed workers are not gone yet; they are reaped when they are");
        }
        if let Some(housekeeper) = self.housekeeper.take() {
            // It returns nothing.
            let _ = housekeeper.join();
        }
    }
}

impl std::fmt::Debug for KernelServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelServer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// Whether the arena holds a request and the room for its response, which begins on a cache line of its own.
fn fits(kernel: &KernelSpec, request: &[u8], room: usize) -> Result<(), KernelError> {
    let bytes = (request.len() as u64).next_multiple_of(worker::ALIGN).saturating_add(room as u64);
    let arena = kernel.arena();
    if bytes > arena {
        return Err(KernelError::TooLarge { kernel: kernel.kernel().to_owned(), bytes, arena });
    }
    Ok(())
}

/// Memory for a response, where there is that much.
fn zeroed(kernel: &KernelSpec, bytes: usize) -> Result<Vec<u8>, KernelError> {
    let mut response = Vec::new();
    response.try_reserve_exact(bytes).map_err(|error| KernelError::Resources {
        kernel: kernel.kernel().to_owned(),
        source: WireError::Os { call: "malloc", source: std::io::Error::other(error) },
    })?;
    response.resize(bytes, 0);
    Ok(response)
}
