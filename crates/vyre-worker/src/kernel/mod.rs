//! A worker that turns bytes into bytes: what to write one with, and what is said to it.
//!
//! A kernel executable is a closure and one call:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use vyre_worker::kernel::{self, Response};
//!
//! fn main() -> ExitCode {
//!     kernel::main(|request: &[u8], response: &mut Response<'_>| {
//!         let room = response.reserve(request.len())?;
//!         room.iter_mut().zip(request).for_each(|(to, from)| *to = !from);
//!         Ok(())
//!     })
//! }
//! ```
//!
//! Run with `--server` it serves the parent that started it (see [`crate::server`]); run with
//! `--once REQUEST RESPONSE` it reads one file, writes the other and leaves with one of the [`exit`] codes.
//! docs/worker-protocol.md has the bytes, kernels/vyre_worker.hpp the same library for C++.
//!
//! The request is read, and the response written, where they lie in the arena. That the parent touches neither
//! until it is answered is its promise: a worker trusts the parent that started it, never the other way around.

mod arena;
mod entry;
mod message;
mod response;
mod serve;

pub(crate) use entry::{CONFIG_VARIABLE, DEVICE_VARIABLE, KERNEL_VARIABLE};
pub use entry::{exit, main, main_with};
pub use message::{
    CLOSE, DONE, Done, PING, PONG, REFUSED_REQUEST, REFUSED_RESPONSE_TOO_LARGE, REFUSED_USER, RUN, Range, Run,
};
pub use response::Response;
pub use serve::{Start, serve};

pub use crate::wire::handshake::Refusal;
