//! A backend in a child process: isolation and supervision.
//!
//! A device fault ends the process that owns the device's context. So that it never is the user's process, this
//! crate hosts a backend that the caller registers in a child, the caller's own executable run again, and
//! speaks to it over a socket and shared memory. It names no backend.
//!
//! * [`isolated`] is the parent's side: [`IsolatedBackend`] is a backend like any other, and survives its worker;
//! * [`host`] is the child's: [`init`], at the top of `main`, makes a process a worker;
//! * [`process`], [`sandbox`], [`wire`]: a child, what it may do, and how to speak with it;
//! * [`server`] pools workers that run one kernel each, [`kernel`] is for writing one.

pub mod host;
pub mod isolated;
pub mod kernel;
pub mod process;
pub mod sandbox;
pub mod server;
pub mod wire;

pub use host::{Registry, init};
pub use isolated::{IsolatedBackend, IsolatedOptions, Replacement, StartError};
/// The traits that a hosted backend implements, and an isolated one as well.
pub use vyre_driver as driver;
/// The programs that the traits speak of.
pub use vyre_foundation as foundation;

#[cfg(fuzzing)]
pub use host::fuzzing;
