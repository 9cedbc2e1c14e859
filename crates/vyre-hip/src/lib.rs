//! The HIP backend: what the CPU backend runs, a GPU runs with the same results.
//!
//! AMD through HIP, and NVIDIA through the same sources and the same symbol table filled from the CUDA
//! driver. Nothing of either is needed to build this crate: libraries and compilers are found at run time.
//!
//! Rooms, in the order data flows through them:
//!
//! * `api` finds a GPU library and fills the table of its functions;
//! * `device` owns what lives on a GPU: context, streams, events, modules, buffers;
//! * `emit` turns a validated program into one HIP C++ source for both vendors;
//! * `compile` finds a compiler and turns sources into code objects, through a cache;
//! * `kernels` embeds the hand-written sources of the workspace's `kernels/` folder;
//! * `backend` joins them behind the driver's traits;
//! * `gemm` launches the matrix product of `kernels/` with checked arguments.

/// The variables that finding a library, a compiler and the cache depends on: what a process that hosts this backend
/// for another one needs of that one's environment, beside what the vendors' libraries read.
pub const ENVIRONMENT: &[&str] = &[
    "CUDA_HOME",
    "CUDA_PATH",
    "HIPCC",
    "HIP_CLANG_PATH",
    "HIP_DEVICE_LIB_PATH",
    "HIP_PATH",
    "HOME",
    "NVCC",
    "NVCC_APPEND_FLAGS",
    "NVCC_CCBIN",
    "NVCC_PREPEND_FLAGS",
    "PATH",
    "ROCM_PATH",
    "TMPDIR",
    "VYRE_CACHE_BYTES",
    "VYRE_CACHE_DIR",
    "VYRE_FENCED",
    "VYRE_HIP_LIBRARY",
    "VYRE_HIP_PLATFORM",
    "VYRE_PREBUILT_DIR",
    "XDG_CACHE_HOME",
];

pub mod api;
mod backend;
pub mod compile;
pub mod detect;
pub mod device;
pub mod emit;
mod error;
pub mod gemm;
pub mod kernels;

pub use backend::{HipBackend, OfflineBackend};
pub use detect::{DetectReport, detect};
pub use error::{DeviceError, HipError, OpenError};
