//! Vyre: a resident megakernel fed live through a ring; the facade crate and the `vyre` command.
//!
//! The layers are crates of their own, each usable alone, and re-exported here:
//!
//! * [`foundation`]: the typed IR, its validation, text form and wire form;
//! * [`driver`]: what a backend must do, and the work-item ring;
//! * [`cpu`]: the embedded backend;
//! * [`runtime`]: the megakernel, its handlers, descriptors and sessions.
//!
//! What this crate adds is choosing a backend ([`open`], [`survey`]) and the scanner behind `vyre scan`
//! ([`scan`]).

mod backends;
pub mod scan;

pub use backends::{BackendChoice, BackendReport, OpenError, open, survey};
pub use vyre_cpu as cpu;
pub use vyre_driver as driver;
pub use vyre_driver::{BackendError, BackendIdentity, Capabilities, VyreBackend};
pub use vyre_foundation as foundation;
pub use vyre_runtime as runtime;
