//! What a Vyre backend must do, and the persistent work-item ring in shared memory.
//!
//! The crate has two halves. [`backend`] and [`resident`] hold the object-safe traits with their contract in
//! prose. [`ring`] and its neighbours hold the ring that feeds a resident kernel, in regions that another
//! mapping, process or device can consume:
//!
//! * [`region`] maps sealed memfds, [`layout`] says what lies where in them, [`view`] has the words beside items;
//! * [`ring`] carries items out and results back, [`arena`] holds their payloads, [`io_queue`] asks the host
//!   to move bytes, and [`wait`] sleeps and wakes;
//! * [`protocol`] has the numbers both sides agree on.
//!
//! Beside them, [`gemm`] states the matrix product that every backend has.
//!
//! It names no concrete backend, and never will; nor does it know what an opcode means.
//!
//! ```
//! use std::time::Duration;
//! use vyre_driver::ring::{Completion, PersistentRing, SlotImage};
//! use vyre_driver::wait::WaitStrategy;
//!
//! let ring = PersistentRing::new(64)?;
//! let mut ticket = ring.submit(&SlotImage::new(8, [7; 12]))?;
//!
//! // Elsewhere: another thread, another process, a device.
//! let claimed = ring.claim().expect("an item was submitted");
//! let sum = claimed.image.args.iter().map(|&word| u64::from(word)).sum();
//! ring.complete(claimed.ticket, Completion::done(sum))?;
//!
//! let done = ring.wait(&mut ticket, WaitStrategy::Park, Duration::from_secs(1))?;
//! assert_eq!(done.result(), 84);
//! # Ok::<(), vyre_driver::ring::RingError>(())
//! ```

pub mod arena;
pub mod backend;
pub mod buffer;
pub mod error;
pub mod gemm;
pub mod io_queue;
pub mod layout;
pub mod protocol;
pub mod region;
pub mod resident;
pub mod ring;
mod sync;
pub mod table;
pub mod view;
pub mod wait;

pub use backend::{
    BackendIdentity, Capabilities, CompiledPipeline, DispatchConfig, DispatchOutcome, PersistentThreadMode,
    Trap, VyreBackend,
};
pub use buffer::{BufferBinding, BufferDesc, BufferHandle, Generation};
pub use error::{BackendError, Loss, LossCause};
pub use protocol::{Fault, Status};
pub use resident::{
    KernelState, Mirror, ResidentBinding, ResidentKernel, ResidentPipeline, ResidentSpec, StartRequest,
};

/// The programs that the traits speak of.
pub use vyre_foundation as foundation;
