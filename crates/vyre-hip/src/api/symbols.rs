//! The functions used, as one table: our name and signature, HIP's symbol, the CUDA driver's symbol.
//!
//! Signatures are HIP's. A CUDA driver function stands in a row when a call of it looks the same to the
//! machine (a `CUdeviceptr` is as wide as a pointer, enums are ints, contexts and streams are opaque
//! pointers); where the two vendors differ, each has a row of its own and the code above chooses. `required`
//! rows exist in every library this crate accepts, `optional` ones may be missing and then fail when called.
//! Status codes come back as the library gave them; [`super::status`] has the translation.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::Platform;

/// A status code: `hipError_t` or `CUresult`.
pub type Status = c_int;
/// A stream, event, module, function or context of the library.
pub type RawHandle = *mut c_void;

/// Hands the whole table to a macro.
macro_rules! symbol_table {
    ($callback:ident) => {
        $callback! {
            status {
                required init(flags: c_uint) = hipInit, cuInit;
                required driver_version(version: *mut c_int) = hipDriverGetVersion, cuDriverGetVersion;
                optional runtime_version(version: *mut c_int) = hipRuntimeGetVersion, none;

                required device_count(count: *mut c_int) = hipGetDeviceCount, cuDeviceGetCount;
                required device_get(device: *mut c_int, ordinal: c_int) = hipDeviceGet, cuDeviceGet;
                required device_name(name: *mut c_char, len: c_int, device: c_int) = hipDeviceGetName, cuDeviceGetName;
                required device_attribute(value: *mut c_int, attribute: c_uint, device: c_int) = hipDeviceGetAttribute, cuDeviceGetAttribute;
                required device_total_memory(bytes: *mut usize, device: c_int) = hipDeviceTotalMem, cuDeviceTotalMem_v2;
                optional device_pci_bus_id(id: *mut c_char, len: c_int, device: c_int) = hipDeviceGetPCIBusId, cuDeviceGetPCIBusId;
                optional device_properties_r0600(properties: *mut c_void, device: c_int) = hipGetDevicePropertiesR0600, none;
                optional device_properties(properties: *mut c_void, device: c_int) = hipGetDeviceProperties, none;

                optional device_set(device: c_int) = hipSetDevice, none;
                optional context_retain(context: *mut RawHandle, device: c_int) = none, cuDevicePrimaryCtxRetain;
                optional context_release(device: c_int) = none, cuDevicePrimaryCtxRelease_v2;
                optional context_set_current(context: RawHandle) = none, cuCtxSetCurrent;

                required memory_info(free: *mut usize, total: *mut usize) = hipMemGetInfo, cuMemGetInfo_v2;
                required memory_allocate(address: *mut *mut c_void, bytes: usize) = hipMalloc, cuMemAlloc_v2;
                required memory_free(address: *mut c_void) = hipFree, cuMemFree_v2;
                required memory_fill(address: *mut c_void, value: u8, bytes: usize, stream: RawHandle) = hipMemsetD8Async, cuMemsetD8Async;

                required host_allocate(address: *mut *mut c_void, bytes: usize, flags: c_uint) = hipHostMalloc, cuMemHostAlloc;
                required host_free(address: *mut c_void) = hipHostFree, cuMemFreeHost;
                required host_register(address: *mut c_void, bytes: usize, flags: c_uint) = hipHostRegister, cuMemHostRegister_v2;
                required host_unregister(address: *mut c_void) = hipHostUnregister, cuMemHostUnregister;
                required host_device_pointer(device: *mut *mut c_void, host: *mut c_void, flags: c_uint) = hipHostGetDevicePointer, cuMemHostGetDevicePointer_v2;

                required copy_to_device(to: *mut c_void, from: *mut c_void, bytes: usize) = hipMemcpyHtoD, cuMemcpyHtoD_v2;
                required copy_to_host(to: *mut c_void, from: *mut c_void, bytes: usize) = hipMemcpyDtoH, cuMemcpyDtoH_v2;
                required copy_to_device_async(to: *mut c_void, from: *mut c_void, bytes: usize, stream: RawHandle) = hipMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2;
                required copy_to_host_async(to: *mut c_void, from: *mut c_void, bytes: usize, stream: RawHandle) = hipMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2;
                required copy_on_device_async(to: *mut c_void, from: *mut c_void, bytes: usize, stream: RawHandle) = hipMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2;

                required stream_create(stream: *mut RawHandle, flags: c_uint) = hipStreamCreateWithFlags, cuStreamCreate;
                optional stream_create_with_priority(stream: *mut RawHandle, flags: c_uint, priority: c_int) = hipStreamCreateWithPriority, cuStreamCreateWithPriority;
                optional stream_priority_range(least: *mut c_int, greatest: *mut c_int) = hipDeviceGetStreamPriorityRange, cuCtxGetStreamPriorityRange;
                required stream_destroy(stream: RawHandle) = hipStreamDestroy, cuStreamDestroy_v2;
                required stream_query(stream: RawHandle) = hipStreamQuery, cuStreamQuery;
                required stream_wait_event(stream: RawHandle, event: RawHandle, flags: c_uint) = hipStreamWaitEvent, cuStreamWaitEvent;

                optional stream_begin_capture(stream: RawHandle, mode: c_uint) = hipStreamBeginCapture, cuStreamBeginCapture_v2;
                optional stream_end_capture(stream: RawHandle, graph: *mut RawHandle) = hipStreamEndCapture, cuStreamEndCapture;
                optional graph_instantiate(executable: *mut RawHandle, graph: RawHandle, flags: u64) = hipGraphInstantiateWithFlags, cuGraphInstantiateWithFlags;
                optional graph_launch(executable: RawHandle, stream: RawHandle) = hipGraphLaunch, cuGraphLaunch;
                optional graph_executable_destroy(executable: RawHandle) = hipGraphExecDestroy, cuGraphExecDestroy;
                optional graph_destroy(graph: RawHandle) = hipGraphDestroy, cuGraphDestroy;

                required event_create(event: *mut RawHandle, flags: c_uint) = hipEventCreateWithFlags, cuEventCreate;
                required event_destroy(event: RawHandle) = hipEventDestroy, cuEventDestroy_v2;
                required event_record(event: RawHandle, stream: RawHandle) = hipEventRecord, cuEventRecord;
                required event_query(event: RawHandle) = hipEventQuery, cuEventQuery;
                required event_elapsed(milliseconds: *mut f32, start: RawHandle, end: RawHandle) = hipEventElapsedTime, cuEventElapsedTime;

                required module_load(module: *mut RawHandle, image: *const c_void) = hipModuleLoadData, cuModuleLoadData;
                required module_unload(module: RawHandle) = hipModuleUnload, cuModuleUnload;
                required module_function(function: *mut RawHandle, module: RawHandle, name: *const c_char) = hipModuleGetFunction, cuModuleGetFunction;
                optional module_global(address: *mut *mut c_void, bytes: *mut usize, module: RawHandle, name: *const c_char) = hipModuleGetGlobal, cuModuleGetGlobal_v2;

                required function_attribute(value: *mut c_int, attribute: c_uint, function: RawHandle) = hipFuncGetAttribute, cuFuncGetAttribute;
                optional function_set_attribute(function: RawHandle, attribute: c_uint, value: c_int) = none, cuFuncSetAttribute;
                optional function_load(function: RawHandle) = none, cuFuncLoad;
                required occupancy(blocks: *mut c_int, function: RawHandle, block_size: c_int, shared_bytes: usize) = hipModuleOccupancyMaxActiveBlocksPerMultiprocessor, cuOccupancyMaxActiveBlocksPerMultiprocessor;
                required launch(function: RawHandle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: RawHandle, parameters: *mut *mut c_void, extra: *mut *mut c_void) = hipModuleLaunchKernel, cuLaunchKernel;
                optional launch_cooperative(function: RawHandle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: RawHandle, parameters: *mut *mut c_void) = hipModuleLaunchCooperativeKernel, cuLaunchCooperativeKernel;

                optional error_name_into(status: Status, text: *mut *const c_char) = none, cuGetErrorName;
                optional error_text_into(status: Status, text: *mut *const c_char) = none, cuGetErrorString;
            }
            text {
                error_name(status: Status) = hipGetErrorName;
                error_text(status: Status) = hipGetErrorString;
            }
        }
    };
}
#[cfg(feature = "hip-link")]
pub(crate) use symbol_table;

/// The library's name for a row, if it has one.
macro_rules! symbol_name {
    (none) => {
        None
    };
    ($name:ident) => {
        Some(stringify!($name))
    };
}

macro_rules! field_type {
    (required, $function:ty) => { $function };
    (optional, $function:ty) => { Option<$function> };
}

macro_rules! field_value {
    (required, $platform:expr, $hip:ident, $cuda:ident, $found:expr) => {
        match ($found, $platform) {
            (Some(function), _) => function,
            (None, Platform::Amd) => return Err(stringify!($hip)),
            (None, Platform::Nvidia) => return Err(stringify!($cuda)),
        }
    };
    (optional, $platform:expr, $hip:ident, $cuda:ident, $found:expr) => {
        $found
    };
}

macro_rules! field_function {
    (required, $field:expr) => {
        Some($field)
    };
    (optional, $field:expr) => {
        $field
    };
}

macro_rules! define_symbols {
    (
        status { $($need:ident $field:ident($($argument:ident: $type:ty),*) = $hip:ident, $cuda:ident;)* }
        text { $($text:ident($code:ident: $code_type:ty) = $text_hip:ident;)* }
    ) => {
        /// The functions of one library. Plain data: a test fills it with functions of its own.
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "the fields are named after the symbols in the table")]
        pub struct Symbols {
            $(pub $field: field_type!($need, unsafe extern "C" fn($($argument: $type),*) -> Status),)*
            $(pub $text: Option<unsafe extern "C" fn($code: $code_type) -> *const c_char>,)*
        }

        impl Symbols {
            /// The names that every library of `platform` must have.
            pub fn required(platform: Platform) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(
                    let name: Option<&'static str> = match platform {
                        Platform::Amd => symbol_name!($hip),
                        Platform::Nvidia => symbol_name!($cuda),
                    };
                    names.extend(name.filter(|_| stringify!($need) == "required"));
                )*
                names
            }

            /// Fills the table from `lookup`, or names the required symbol that it does not have.
            ///
            /// # Safety
            ///
            /// What `lookup` returns is null-free and is the address of the vendor's function of that name,
            /// callable for as long as the table is used.
            pub(crate) unsafe fn load(
                platform: Platform,
                lookup: &dyn Fn(&str) -> Option<*mut c_void>,
            ) -> Result<Symbols, &'static str> {
                let find = |hip: Option<&'static str>, cuda: Option<&'static str>| match platform {
                    Platform::Amd => hip.and_then(lookup),
                    Platform::Nvidia => cuda.and_then(lookup),
                };
                $(
                    let found = find(symbol_name!($hip), symbol_name!($cuda)).map(|address| {
                        // SAFETY: by this function's contract the address is that of the named function,
                        // whose signature is the row's.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument: $type),*) -> Status,
                            >(address)
                        }
                    });
                    let $field = field_value!($need, platform, $hip, $cuda, found);
                )*
                $(
                    let $text = find(Some(stringify!($text_hip)), None).map(|address| {
                        // SAFETY: as above.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($code: $code_type) -> *const c_char,
                            >(address)
                        }
                    });
                )*
                Ok(Symbols { $($field,)* $($text,)* })
            }
        }

        /// The calls themselves. Each checks the status; none makes the device current.
        impl super::Api {
            $(
                /// # Safety
                ///
                /// Pointers and handles are as the vendor's function wants them, and live.
                #[allow(clippy::too_many_arguments, dead_code, reason = "the signatures are the vendors'")]
                pub(crate) unsafe fn $field(&self, $($argument: $type),*) -> Result<(), crate::HipError> {
                    let (hip, cuda): (Option<&'static str>, Option<&'static str>) =
                        (symbol_name!($hip), symbol_name!($cuda));
                    let call = match self.platform() {
                        Platform::Amd => hip.or(cuda),
                        Platform::Nvidia => cuda.or(hip),
                    }
                    .unwrap_or(stringify!($field));
                    let Some(function) = field_function!($need, self.symbols().$field) else {
                        return Err(crate::HipError::missing(call));
                    };
                    // SAFETY: the table holds the vendor's function; its contract is the caller's.
                    let status = unsafe { function($($argument),*) };
                    self.check(call, status)
                }
            )*
        }
    };
}

symbol_table!(define_symbols);
