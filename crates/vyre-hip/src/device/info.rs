//! What a device is.

use std::ffi::{CStr, c_char, c_int, c_void};

use crate::HipError;
use crate::api::{Api, Attribute, Platform, status};

/// A device, by its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The library's number for it.
    pub ordinal: u32,
    /// Whose it is.
    pub platform: Platform,
    /// Its name.
    pub name: String,
    /// What code is compiled for, with the features that matter: `gfx90a:sramecc+:xnack-`, `sm_90`.
    pub arch: String,
    /// Its place on the PCI bus, where the library says.
    pub pci_bus_id: Option<String>,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Multiprocessors, or compute units.
    pub multiprocessors: u32,
    /// Lanes of a wave: 32 or 64.
    pub wave_width: u32,
    /// Invocations in a workgroup.
    pub max_workgroup_invocations: u32,
    /// Invocations of a workgroup along each axis.
    pub max_workgroup: [u32; 3],
    /// Workgroups of a grid along each axis.
    pub max_grid: [u32; 3],
    /// Bytes of shared memory a workgroup has without asking.
    pub shared_bytes: u32,
    /// Bytes of shared memory a workgroup may ask for; no less than `shared_bytes`.
    pub shared_bytes_opt_in: u32,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_bytes_multiprocessor: u32,
    /// Invocations resident on a multiprocessor.
    pub max_invocations_multiprocessor: u32,
    /// 32-bit registers of a workgroup.
    pub registers: u32,
    /// Bytes of L2 cache.
    pub l2_bytes: u32,
    /// Clock in kHz; 0 where the library does not say.
    pub clock_khz: u32,
    /// Memory clock in kHz; 0 where the library does not say.
    pub memory_clock_khz: u32,
    /// Width of the memory bus in bits; 0 where the library does not say.
    pub memory_bus_bits: u32,
    /// Whether cooperative launches work.
    pub cooperative_launch: bool,
    /// Whether the device can access mapped host memory.
    pub maps_host_memory: bool,
    /// Whether device and host share their memory.
    pub integrated: bool,
    /// Whether the system stops kernels that run for long, as on a device with a display.
    pub kernel_timeout: bool,
}

impl DeviceInfo {
    /// Asks the library about device `ordinal`. Makes no context.
    pub fn query(api: &Api, ordinal: u32) -> Result<DeviceInfo, HipError> {
        let device = device_of(api, ordinal)?;
        let must = |attribute| query_attribute(api, device, attribute);
        let may = |attribute| query_attribute(api, device, attribute).unwrap_or(0);
        let shared_bytes = must(Attribute::MaxSharedMemoryPerBlock)?;
        let mut memory_bytes = 0;
        // SAFETY: a valid place for the size, and a device of the library's.
        unsafe { api.device_total_memory(&mut memory_bytes, device) }?;
        Ok(DeviceInfo {
            ordinal,
            platform: api.platform(),
            name: text::<256>(|text, len| {
                // SAFETY: a valid buffer of that length.
                unsafe { api.device_name(text, len, device) }
            })?,
            arch: arch(api, device)?,
            pci_bus_id: text::<32>(|text, len| {
                // SAFETY: a valid buffer of that length.
                unsafe { api.device_pci_bus_id(text, len, device) }
            })
            .ok(),
            memory_bytes: memory_bytes as u64,
            multiprocessors: must(Attribute::MultiprocessorCount)?,
            wave_width: must(Attribute::WarpSize)?,
            max_workgroup_invocations: must(Attribute::MaxThreadsPerBlock)?,
            max_workgroup: [
                must(Attribute::MaxBlockDimX)?,
                must(Attribute::MaxBlockDimY)?,
                must(Attribute::MaxBlockDimZ)?,
            ],
            max_grid: [
                must(Attribute::MaxGridDimX)?,
                must(Attribute::MaxGridDimY)?,
                must(Attribute::MaxGridDimZ)?,
            ],
            shared_bytes,
            shared_bytes_opt_in: may(Attribute::MaxSharedMemoryPerBlockOptIn).max(shared_bytes),
            shared_bytes_multiprocessor: may(Attribute::MaxSharedMemoryPerMultiprocessor).max(shared_bytes),
            max_invocations_multiprocessor: must(Attribute::MaxThreadsPerMultiprocessor)?,
            registers: may(Attribute::MaxRegistersPerBlock),
            l2_bytes: may(Attribute::L2CacheSize),
            clock_khz: may(Attribute::ClockRate),
            memory_clock_khz: may(Attribute::MemoryClockRate),
            memory_bus_bits: may(Attribute::MemoryBusWidth),
            cooperative_launch: may(Attribute::CooperativeLaunch) != 0
                && api.symbols().launch_cooperative.is_some(),
            maps_host_memory: may(Attribute::CanMapHostMemory) != 0,
            integrated: may(Attribute::Integrated) != 0,
            kernel_timeout: may(Attribute::KernelExecTimeout) != 0,
        })
    }
}

/// The library's handle of the device that it counts as `ordinal`.
pub(crate) fn device_of(api: &Api, ordinal: u32) -> Result<c_int, HipError> {
    let mut device = 0;
    // SAFETY: a valid place for the handle. A number past the last device is an error of the library's.
    unsafe { api.device_get(&mut device, c_int::try_from(ordinal).unwrap_or(c_int::MAX)) }?;
    Ok(device)
}

pub(crate) fn query_attribute(api: &Api, device: c_int, attribute: Attribute) -> Result<u32, HipError> {
    let mut value = 0;
    // SAFETY: a valid place for the value, and a device of the library's.
    unsafe { api.device_attribute(&mut value, attribute.number(api.platform()), device) }?;
    Ok(u32::try_from(value).unwrap_or(0))
}

/// A string that the library writes into a buffer.
fn text<const N: usize>(
    write: impl FnOnce(*mut c_char, c_int) -> Result<(), HipError>,
) -> Result<String, HipError> {
    let mut bytes = [0_u8; N];
    write(bytes.as_mut_ptr().cast(), N as c_int)?;
    Ok(until_zero(&bytes))
}

fn until_zero(bytes: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(bytes).unwrap_or_default();
    text.to_string_lossy().into_owned()
}

fn arch(api: &Api, device: c_int) -> Result<String, HipError> {
    match api.platform() {
        Platform::Nvidia => {
            let major = query_attribute(api, device, Attribute::ComputeCapabilityMajor)?;
            let minor = query_attribute(api, device, Attribute::ComputeCapabilityMinor)?;
            Ok(format!("sm_{major}{minor}"))
        }
        Platform::Amd => gfx_name(api, device),
    }
}

/// Larger than every layout of `hipDeviceProp_t` so far: 792 bytes before ROCm 6, 1472 since.
const PROPERTIES_BYTES: usize = 8192;
/// Where `gcnArchName` begins in the layout that `hipGetDevicePropertiesR0600` writes.
const ARCH_OFFSET_R0600: usize = 1160;
/// The same in the layout that the unversioned symbol writes, in every version.
const ARCH_OFFSET: usize = 396;
const ARCH_BYTES: usize = 256;

/// HIP says the architecture in its property struct only.
fn gfx_name(api: &Api, device: c_int) -> Result<String, HipError> {
    // Eight-byte words, so that the struct is aligned.
    let mut words = [0_u64; PROPERTIES_BYTES / 8];
    let properties: *mut c_void = words.as_mut_ptr().cast();
    let (call, offset) = if api.symbols().device_properties_r0600.is_some() {
        // SAFETY: the buffer is aligned and larger than the struct.
        unsafe { api.device_properties_r0600(properties, device) }?;
        ("hipGetDevicePropertiesR0600", ARCH_OFFSET_R0600)
    } else {
        // SAFETY: as above.
        unsafe { api.device_properties(properties, device) }?;
        ("hipGetDeviceProperties", ARCH_OFFSET)
    };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = until_zero(bytes.get(offset..offset + ARCH_BYTES).unwrap_or_default());
    if name.starts_with("gfx") {
        return Ok(name);
    }
    Err(HipError {
        call,
        code: status::UNKNOWN,
        name: "unknown layout of hipDeviceProp_t".to_owned(),
        text: format!("the architecture reads `{name}`; report the version of ROCm"),
    })
}
