//! The Vyre megakernel: opcode handlers, descriptors, batch dispatch, persistent sessions and recovery.

pub mod batch;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod debug_log;
pub mod descriptor;
pub mod dfa;
pub mod error;
#[cfg(any(test, feature = "fault-injection"))]
pub mod fault_injection;
pub mod handler;
pub mod io_service;
pub mod item;
pub mod megakernel;
pub mod opcode;
pub mod packed;
pub mod pipelines;
pub mod recovery;
pub mod session;
pub mod state;
pub mod telemetry;
pub mod tenant;

pub use batch::{
    BatchBuffers, BatchCompletion, BatchTarget, ControlBuffer, DebugLogBuffer, DispatchOptions, DispatchStats,
    IoQueueBuffer, ResidentBatch, RingBuffer,
};
pub use descriptor::{BatchDescriptor, Priority, Publish, SlotDescriptor, WindowClass, WindowDescriptor};
pub use dfa::{DfaTable, DfaTables};
pub use error::MegakernelError;
pub use handler::{Backing, HandlerBinding, HandlerBuilder, OpcodeHandler};
pub use item::{HandlerTable, ItemPrograms};
pub use megakernel::{Megakernel, MegakernelBuilder, PipelineId, worker_groups_for_geometry};
pub use opcode::{BuiltinOpcode, SlotOpcode};
pub use packed::PackedOpDescriptor;
pub use pipelines::PipelineCache;
pub use recovery::{MegakernelRecoveryDecision, MegakernelRecoveryPolicy};
pub use session::{PersistentSession, SessionOptions};
pub use state::StateLayout;
pub use tenant::{TenantConfig, TenantTable, TenantWindow};

/// Backends, buffers, errors: what a megakernel runs on.
pub use vyre_driver as driver;
/// The IR that handlers are written in.
pub use vyre_foundation as foundation;
