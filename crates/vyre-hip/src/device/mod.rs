//! What lives on a GPU: context, streams, events, modules, buffers.
//!
//! A [`Context`] is one device of one process; everything else belongs to one and keeps it alive. Any thread
//! may use anything. Each call makes its context current, checks the status, and, once a status says that the
//! device is lost, is refused without being made ([`DeviceError::Lost`]).
//!
//! *Memory stays until the device is done with it.* What an operation on a [`Stream`] uses is kept alive by
//! the stream until it has been seen idle. Freeing waits for every stream on both vendors, for ever if one of
//! them runs a resident kernel; while a [`ReleaseHold`] lives, what is dropped is therefore freed later.
//!
//! *Every wait has a deadline* and polls: a blocked wait of HIP looks for a fault only every four seconds.
//! The one exception are copies between device memory and a plain slice, which block until the slice may be
//! touched again; they wait for a bus and for no kernel.
//!
//! Absent on purpose: what is launched and why, and the driver's handles; those are the backend's.

mod context;
mod event;
mod graph;
mod host;
mod info;
mod memory;
mod module;
mod release;
mod stream;
mod wait;

pub use context::{Context, MemoryUse};
pub use event::Event;
pub use graph::Graph;
pub use host::{HostMemory, PinnedMemory, RegisteredMemory};
pub use info::DeviceInfo;
pub use memory::DeviceMemory;
pub use module::{Function, FunctionAttributes, LaunchConfig, Module};
pub use release::ReleaseHold;
pub use stream::{Stream, StreamPriority};

pub use crate::error::DeviceError;
