//! What a Vyre backend must do, and the persistent work-item ring in shared memory.
//!
//! The crate has two halves. [`backend`] and [`resident`] hold the object-safe traits with their contract in
//! prose; [`ring`] and its neighbours hold the ring that feeds a resident kernel, in regions that another
//! mapping, process or device can consume. It names no concrete backend, and never will.

pub mod arena;
pub mod backend;
pub mod buffer;
pub mod error;
pub mod io_queue;
pub mod layout;
pub mod protocol;
pub mod region;
pub mod resident;
pub mod ring;
mod sync;
pub mod view;
pub mod wait;

pub use backend::{
    BackendIdentity, Capabilities, CompiledPipeline, DispatchConfig, DispatchOutcome, PersistentThreadMode,
    Trap, VyreBackend,
};
pub use buffer::{BufferBinding, BufferDesc, BufferHandle, Generation};
pub use error::BackendError;
pub use protocol::{Fault, Status};
pub use resident::{
    KernelState, Mirror, ResidentBinding, ResidentKernel, ResidentPipeline, ResidentSpec, StartRequest,
};

/// The programs that the traits speak of.
pub use vyre_foundation as foundation;
