//! A backend in a child process: isolation and supervision.
//!
//! A device fault ends the process that owns the device's context. So that it never is the user's process, this
//! crate hosts a backend that the caller registers in a child, the caller's own executable run again, and
//! speaks to it over a socket and shared memory. It names no backend.

pub mod kernel;
pub mod process;
pub mod wire;
