//! Device and function attributes, with each vendor's number.

use std::ffi::c_uint;

use super::Platform;

macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident = $hip:ident($hip_number:literal), $cuda:literal;)*) => {
        /// A property of a device. All are asked for one by one: the vendors' property structs change their
        /// layout between versions, these numbers do not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Attribute {
            $($(#[$doc])* $name,)*
        }

        impl Attribute {
            /// The number of the platform's library.
            pub(crate) const fn number(self, platform: Platform) -> c_uint {
                match (self, platform) {
                    $(
                        (Attribute::$name, Platform::Amd) => $hip_number,
                        (Attribute::$name, Platform::Nvidia) => $cuda,
                    )*
                }
            }
        }

        #[cfg(feature = "hip-link")]
        const _: () = {
            use hip_sys::hiprt::hipDeviceAttribute_t as Theirs;
            $(assert!(Theirs::$hip as u32 == $hip_number, "hip-sys has another number");)*
        };
    };
}

attributes! {
    /// Invocations in a workgroup.
    MaxThreadsPerBlock = hipDeviceAttributeMaxThreadsPerBlock(56), 1;
    /// Invocations of a workgroup along x.
    MaxBlockDimX = hipDeviceAttributeMaxBlockDimX(26), 2;
    /// Invocations of a workgroup along y.
    MaxBlockDimY = hipDeviceAttributeMaxBlockDimY(27), 3;
    /// Invocations of a workgroup along z.
    MaxBlockDimZ = hipDeviceAttributeMaxBlockDimZ(28), 4;
    /// Workgroups of a grid along x.
    MaxGridDimX = hipDeviceAttributeMaxGridDimX(29), 5;
    /// Workgroups of a grid along y.
    MaxGridDimY = hipDeviceAttributeMaxGridDimY(30), 6;
    /// Workgroups of a grid along z.
    MaxGridDimZ = hipDeviceAttributeMaxGridDimZ(31), 7;
    /// Bytes of shared memory a workgroup has without asking.
    MaxSharedMemoryPerBlock = hipDeviceAttributeMaxSharedMemoryPerBlock(74), 8;
    /// Bytes of shared memory a workgroup may ask for.
    MaxSharedMemoryPerBlockOptIn = hipDeviceAttributeSharedMemPerBlockOptin(75), 97;
    /// Bytes of shared memory of a multiprocessor.
    MaxSharedMemoryPerMultiprocessor = hipDeviceAttributeMaxSharedMemoryPerMultiprocessor(10002), 81;
    /// 32-bit registers of a workgroup.
    MaxRegistersPerBlock = hipDeviceAttributeMaxRegistersPerBlock(71), 12;
    /// Lanes of a wave.
    WarpSize = hipDeviceAttributeWarpSize(87), 10;
    /// Multiprocessors, or compute units.
    MultiprocessorCount = hipDeviceAttributeMultiprocessorCount(63), 16;
    /// Invocations resident on a multiprocessor.
    MaxThreadsPerMultiprocessor = hipDeviceAttributeMaxThreadsPerMultiProcessor(57), 39;
    /// Clock in kHz.
    ClockRate = hipDeviceAttributeClockRate(5), 13;
    /// Memory clock in kHz.
    MemoryClockRate = hipDeviceAttributeMemoryClockRate(60), 36;
    /// Width of the memory bus in bits.
    MemoryBusWidth = hipDeviceAttributeMemoryBusWidth(59), 37;
    /// Bytes of L2 cache.
    L2CacheSize = hipDeviceAttributeL2CacheSize(19), 38;
    /// Compute capability, major.
    ComputeCapabilityMajor = hipDeviceAttributeComputeCapabilityMajor(23), 75;
    /// Compute capability, minor.
    ComputeCapabilityMinor = hipDeviceAttributeComputeCapabilityMinor(61), 76;
    /// 1 if cooperative launches work.
    CooperativeLaunch = hipDeviceAttributeCooperativeLaunch(10), 95;
    /// 1 if the device can access mapped host memory.
    CanMapHostMemory = hipDeviceAttributeCanMapHostMemory(3), 19;
    /// 1 if device and host share their memory.
    Integrated = hipDeviceAttributeIntegrated(16), 18;
    /// 1 if the system stops kernels that run for long.
    KernelExecTimeout = hipDeviceAttributeKernelExecTimeout(18), 17;
}

/// A property of a kernel. HIP's numbers are CUDA's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub(crate) enum FunctionAttribute {
    MaxThreadsPerBlock = 0,
    SharedBytes = 1,
    ConstantBytes = 2,
    LocalBytes = 3,
    Registers = 4,
    MaxDynamicSharedBytes = 8,
}

#[cfg(feature = "hip-link")]
const _: () = {
    use FunctionAttribute as Ours;
    use hip_sys::hiprt::hipFunction_attribute as Theirs;
    assert!(Ours::MaxThreadsPerBlock as u32 == Theirs::HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as u32);
    assert!(Ours::SharedBytes as u32 == Theirs::HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as u32);
    assert!(Ours::ConstantBytes as u32 == Theirs::HIP_FUNC_ATTRIBUTE_CONST_SIZE_BYTES as u32);
    assert!(Ours::LocalBytes as u32 == Theirs::HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES as u32);
    assert!(Ours::Registers as u32 == Theirs::HIP_FUNC_ATTRIBUTE_NUM_REGS as u32);
    assert!(
        Ours::MaxDynamicSharedBytes as u32 == Theirs::HIP_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as u32
    );
};
