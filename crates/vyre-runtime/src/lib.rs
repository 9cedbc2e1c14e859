//! The Vyre megakernel: opcode handlers, descriptors, batch dispatch, persistent sessions and recovery.
//!
//! A [`Megakernel`] is one program that runs very many small items: each names an opcode, and the opcode's
//! handler, written once in IR, says what is computed. There are two ways to feed it, with the same
//! handlers and the same results: a *batch* ([`Megakernel::dispatch`]) goes in and comes out as bytes, and a
//! *session* ([`Megakernel::start`]) stays on the device and is fed live from any thread.
//!
//! ```
//! use std::sync::Arc;
//!
//! use vyre_runtime::{DispatchOptions, Megakernel, OpcodeHandler, SlotDescriptor};
//!
//! const ADD_ONE: u32 = 0x40;
//!
//! let megakernel = Megakernel::builder(Arc::new(vyre_cpu::CpuBackend::new()))
//!     .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
//!     .build()?;
//! let mut batch = megakernel.batch_buffers();
//! batch.ring.publish(0, &SlotDescriptor::new(ADD_ONE).args([7]))?;
//! megakernel.dispatch(&mut batch, &DispatchOptions::default())?;
//! assert_eq!(batch.ring.completion(0)?.result, 8);
//! # Ok::<(), vyre_runtime::MegakernelError>(())
//! ```
//!
//! **Items are unordered** unless fenced: a STORE and a LOAD of one word need a wait or a fence in between.
//!
//! What is where: [`descriptor`] and [`packed`] say what a host wants done; [`handler`] how an opcode is
//! written; [`item`] is the IR that gives every item its meaning, [`state`] the tables it works on,
//! [`tenant`] and [`dfa`] what is in two of them; [`batch`] and [`session`] run it; [`recovery`] is what
//! happens after a device loss; [`telemetry`], [`observe`] and [`trace`] are three ways to see what goes on.
//!
//! Absent on purpose: any concrete backend, and the ring itself ([`vyre_driver::ring`]).

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
pub mod observe;
pub mod opcode;
pub mod packed;
pub mod pipelines;
pub mod recovery;
pub mod session;
pub mod state;
pub mod telemetry;
pub mod tenant;
pub mod trace;

pub use batch::{
    BatchBuffers, BatchCompletion, BatchTarget, ControlBuffer, DebugLogBuffer, DispatchOptions,
    DispatchStats, IoQueueBuffer, ResidentBatch, RingBuffer,
};
pub use debug_log::{DebugLog, DebugRecord};
pub use descriptor::{BatchDescriptor, Priority, Publish, SlotDescriptor, WindowClass, WindowDescriptor};
pub use dfa::{DfaTable, DfaTables};
pub use error::MegakernelError;
pub use handler::{Backing, HandlerBinding, HandlerBuilder, OpcodeHandler};
pub use io_service::{IoResource, IoResources};
pub use item::{HandlerTable, ItemPrograms};
pub use megakernel::{Megakernel, MegakernelBuilder, PipelineId, worker_groups_for_geometry};
pub use opcode::{BuiltinOpcode, SlotOpcode};
pub use packed::PackedOpDescriptor;
pub use pipelines::PipelineCache;
pub use recovery::{MegakernelRecoveryDecision, MegakernelRecoveryPolicy};
pub use session::{
    HandlerChange, HandlerUpdate, PAYLOAD_BINDING, Payload, PersistentSession, RecoveryReport,
    SessionOptions, Ticket, Tickets,
};
pub use state::StateLayout;
pub use telemetry::TelemetrySnapshot;
pub use tenant::{TenantConfig, TenantTable, TenantWindow};
pub use trace::SessionTrace;

/// Backends, buffers, errors: what a megakernel runs on.
pub use vyre_driver as driver;
/// The IR that handlers are written in.
pub use vyre_foundation as foundation;
