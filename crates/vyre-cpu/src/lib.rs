//! The embedded CPU backend of Vyre: executes the IR on host threads, and is the oracle of the other backends.
//!
//! [`CpuBackend`] implements the driver's traits. A program is compiled once to a flat form and then executed a
//! *wave* of up to 32 lanes at a time, one instruction for all lanes under a mask, as on a GPU. So workgroup
//! memory and barriers are right by construction, and the cost of interpreting an instruction is shared by 32
//! invocations.
//!
//! What a program may rely on: results are those of `vyre_foundation::semantics`, bit for bit, whatever the
//! number of threads and lanes. What it may not: that one lane makes progress while another lane of its wave
//! loops. A lane that waits for its neighbour waits until its deadline, as on many GPUs; lanes of different
//! workgroups do make progress independently only as far as there are threads.
//!
//! A loop can be stopped at its back edges. Whoever polls does so every few hundred of them, so a deadline is
//! met with a delay of some microseconds to, with huge loop bodies, milliseconds.
//!
//! | room | what it is for |
//! |---|---|
//! | `flat` | the flat form, and the check that makes it safe to execute without checks |
//! | `lower` | from the IR to the flat form |
//! | `exec` | executing waves and workgroups |
//! | `memory`, `buffers` | buffers, what programs see of them, handles and bindings |
//! | `dispatch`, `pool` | grids over threads |
//! | `resident` | kernels that stay, fed through a ring |
//! | `externals` | functions of the host that programs may call |
//! | `backend` | the driver's traits |
//!
//! Absent on purpose: opcodes and tenants (those are IR, made by the runtime), a just-in-time compiler (it will
//! stand beside this crate), device loss (memory of the process is not lost while the process lives).

mod backend;
mod buffers;
mod dispatch;
mod exec;
pub mod externals;
mod flat;
mod lower;
mod memory;
mod pool;
mod resident;

pub use backend::{CpuBackend, CpuConfig};

/// The traits this backend implements.
pub use vyre_driver as driver;
/// The programs it runs.
pub use vyre_foundation as foundation;
