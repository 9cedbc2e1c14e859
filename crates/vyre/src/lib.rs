//! Vyre: a resident megakernel fed live through a ring; the facade crate and the `vyre` command.
//!
//! ```
//! use std::time::Duration;
//! use vyre::builder::Operand;
//! use vyre::{BackendChoice, Megakernel, OpcodeHandler, SlotDescriptor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! vyre::worker_main(); // first of all: a GPU is owned by a child process, which is this program run again
//! let backend = vyre::open(BackendChoice::Auto)?;
//! let megakernel = Megakernel::builder(backend)
//!     .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1))) // IR, written once
//!     .build()?;
//!
//! let session = megakernel.start()?; // one launch; resident from here on
//! let ticket = session.submit(SlotDescriptor::new(0x40).args([7]))?; // from any thread
//! assert_eq!(session.wait(ticket, Duration::from_secs(10))?.result(), 8);
//! session.stop()?; // drains, then leaves the device
//! # Ok(())
//! # }
//! ```
//!
//! The layers are crates of their own, each usable alone, and re-exported here whole: [`foundation`] (the
//! typed IR), [`driver`] (what a backend must do, and the ring), [`cpu`] (the embedded backend), [`hip`] (GPUs),
//! [`worker`] (any backend in a child process) and [`runtime`] (the megakernel). What this crate adds is choosing a backend ([`open`], [`survey`]), the scanner behind
//! `vyre scan` ([`scan`]), and the verified matrix product behind `vyre gemm` ([`gemm`]).

mod backends;
pub mod gemm;
pub mod scan;

pub use backends::{
    BackendChoice, BackendReport, Isolation, OpenError, OpenOptions, open, survey, worker_main,
    worker_registry,
};
pub use vyre_cpu as cpu;
pub use vyre_driver as driver;
pub use vyre_driver::{BackendError, BackendIdentity, Capabilities, VyreBackend};
pub use vyre_foundation as foundation;
pub use vyre_foundation::builder;
pub use vyre_hip as hip;
pub use vyre_runtime as runtime;
pub use vyre_runtime::{
    BatchDescriptor, HandlerBinding, Megakernel, MegakernelError, OpcodeHandler, PersistentSession,
    SessionOptions, SlotDescriptor,
};
pub use vyre_worker as worker;

/// The README's snippets and those about observing, compiled and run as they stand.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/observing.md")]
struct Readme;
