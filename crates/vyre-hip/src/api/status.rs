//! Status codes: the few that decide anything, and the CUDA driver's in HIP's numbers.
//!
//! HIP took its numbers from CUDA, so most codes mean the same on both; the rest is listed here.

use super::{Platform, Status};

/// The call succeeded.
pub const SUCCESS: Status = 0;
/// An argument is out of range.
pub const INVALID_VALUE: Status = 1;
/// Not enough memory.
pub const OUT_OF_MEMORY: Status = 2;
/// The library could not be initialised, or not yet.
pub const NOT_INITIALIZED: Status = 3;
/// The library is being unloaded.
pub const DEINITIALIZED: Status = 4;
/// The kernel driver is too old for the library, or not the one it belongs to.
pub const INSUFFICIENT_DRIVER: Status = 35;
/// An earlier launch failed.
pub const PRIOR_LAUNCH_FAILURE: Status = 53;
/// There is no device.
pub const NO_DEVICE: Status = 100;
/// There is no device of that number.
pub const INVALID_DEVICE: Status = 101;
/// The code object is not one.
pub const INVALID_IMAGE: Status = 200;
/// The code object is for other devices.
pub const NO_BINARY_FOR_GPU: Status = 209;
/// Memory of the device is damaged.
pub const ECC_NOT_CORRECTABLE: Status = 214;
/// The code object's contents are refused.
pub const INVALID_KERNEL_FILE: Status = 218;
/// The source handed to the loader is refused.
pub const INVALID_SOURCE: Status = 300;
/// No such name.
pub const NOT_FOUND: Status = 500;
/// What was asked about has not happened yet. Not an error.
pub const NOT_READY: Status = 600;
/// A kernel accessed memory it may not.
pub const ILLEGAL_ADDRESS: Status = 700;
/// A kernel needs more registers, memory or threads than there are.
pub const LAUNCH_OUT_OF_RESOURCES: Status = 701;
/// A kernel ran for longer than the system allows.
pub const LAUNCH_TIMEOUT: Status = 702;
/// The context was destroyed under its users.
pub const CONTEXT_IS_DESTROYED: Status = 709;
/// A kernel's assertion failed.
pub const ASSERT: Status = 710;
/// A kernel faulted.
pub const LAUNCH_FAILURE: Status = 719;
/// More workgroups than can be resident at once.
pub const COOPERATIVE_LAUNCH_TOO_LARGE: Status = 720;
/// The library or device does not have this.
pub const NOT_SUPPORTED: Status = 801;
/// Anything else.
pub const UNKNOWN: Status = 999;

/// Whether every later call of the process on this device will fail too.
pub const fn is_sticky(code: Status) -> bool {
    matches!(
        code,
        DEINITIALIZED
            | PRIOR_LAUNCH_FAILURE
            | ECC_NOT_CORRECTABLE
            | ILLEGAL_ADDRESS
            | LAUNCH_TIMEOUT
            | CONTEXT_IS_DESTROYED
            | ASSERT
            | LAUNCH_FAILURE
    )
}

/// A library's status in HIP's numbers.
pub(crate) const fn translate(platform: Platform, code: Status) -> Status {
    match platform {
        Platform::Amd => code,
        Platform::Nvidia => from_cuda(code),
    }
}

const fn from_cuda(code: Status) -> Status {
    match code {
        // CUDA_ERROR_STUB_LIBRARY, _CALL_REQUIRES_NEWER_DRIVER, _SYSTEM_DRIVER_MISMATCH,
        // _COMPAT_NOT_SUPPORTED_ON_DEVICE.
        34 | 36 | 803 | 804 => INSUFFICIENT_DRIVER,
        // CUDA_ERROR_DEVICE_UNAVAILABLE, _DEVICE_NOT_LICENSED: there, but not for us.
        46 | 102 => INVALID_DEVICE,
        // CUDA_ERROR_NVLINK_UNCORRECTABLE.
        220 => ECC_NOT_CORRECTABLE,
        // CUDA_ERROR_JIT_COMPILER_NOT_FOUND, _UNSUPPORTED_PTX_VERSION, _JIT_COMPILATION_DISABLED: there is
        // PTX where this device's own code was wanted.
        221..=223 => NO_BINARY_FOR_GPU,
        // CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY, _UNSUPPORTED_DEVSIDE_SYNC.
        224 | 225 => NOT_SUPPORTED,
        // CUDA_ERROR_HARDWARE_STACK_ERROR, _ILLEGAL_INSTRUCTION, _MISALIGNED_ADDRESS,
        // _INVALID_ADDRESS_SPACE, _INVALID_PC; then _CONTAINED, _TENSOR_MEMORY_LEAK, _EXTERNAL_DEVICE.
        714..=718 | 226 | 721 | 911 => LAUNCH_FAILURE,
        // CUDA_ERROR_SYSTEM_NOT_READY, _MPS_CONNECTION_FAILED, _MPS_SERVER_NOT_READY and its two limits.
        802 | 805 | 807..=809 => NOT_INITIALIZED,
        // CUDA_ERROR_MPS_RPC_FAILURE, _MPS_CLIENT_TERMINATED.
        806 | 810 => CONTEXT_IS_DESTROYED,
        // CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING, _TOO_MANY_PEERS, _NOT_PERMITTED, _CDP_*: HIP has none.
        703 | 711 | 800 | 811 | 812 => UNKNOWN,
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_faults_are_launch_failures_and_sticky() {
        for fault in [700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 214, 220, 226, 721, 806, 810, 911] {
            let code = translate(Platform::Nvidia, fault);
            assert!(is_sticky(code), "CUDA {fault} became {code}");
        }
    }

    #[test]
    fn failures_that_leave_the_device_usable_are_not_sticky() {
        for code in [0, 1, 2, 35, 100, 101, 200, 209, 218, 300, 500, 600, 701, 720, 801, 999] {
            assert!(!is_sticky(translate(Platform::Nvidia, code)), "{code}");
            assert!(!is_sticky(translate(Platform::Amd, code)), "{code}");
        }
    }

    #[test]
    fn hip_codes_pass_unchanged() {
        for code in 0..2000 {
            assert_eq!(translate(Platform::Amd, code), code);
        }
    }
}
