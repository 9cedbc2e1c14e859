//! A GPU library made of Rust functions: counts what it is asked, fails on demand, copies for real.
//!
//! Its state belongs to the thread, so each test has a device of its own.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use vyre_driver::Generation;
use vyre_hip::api::{Api, Platform, RawHandle, Status, Symbols};
use vyre_hip::device::Context;

#[derive(Default)]
struct State {
    calls: Vec<&'static str>,
    failures: HashMap<&'static str, VecDeque<Status>>,
    always: HashMap<&'static str, Status>,
    live: HashMap<(&'static str, usize), Vec<u64>>,
    handles: HashSet<(&'static str, usize)>,
    next: usize,
    launches: Vec<Launch>,
    dynamic_shared_bytes: usize,
}

/// What a launch was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) arguments: Vec<u8>,
    /// The word that ended the list of extra arguments.
    pub(crate) end: usize,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

fn state<T>(with: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(with)
}

/// Lets the next call of `function` answer `status`.
pub(crate) fn fail_once(function: &'static str, status: Status) {
    state(|s| s.failures.entry(function).or_default().push_back(status));
}

/// Lets every call of `function` answer `status`; 0 undoes it.
pub(crate) fn fail_always(function: &'static str, status: Status) {
    state(|s| s.always.insert(function, status));
}

/// How often `function` was called.
pub(crate) fn calls(function: &str) -> usize {
    state(|s| s.calls.iter().filter(|name| **name == function).count())
}

/// Every call so far.
pub(crate) fn all_calls() -> Vec<&'static str> {
    state(|s| s.calls.clone())
}

/// What was allocated, registered, created or retained, and not given back.
pub(crate) fn live() -> usize {
    state(|s| s.live.len() + s.handles.len())
}

/// The launches so far.
pub(crate) fn launches() -> Vec<Launch> {
    state(|s| s.launches.clone())
}

/// The most dynamic shared memory that was asked for last.
pub(crate) fn dynamic_shared_bytes() -> usize {
    state(|s| s.dynamic_shared_bytes)
}

fn enter(function: &'static str) -> Status {
    state(|s| {
        s.calls.push(function);
        let once = s.failures.get_mut(function).and_then(VecDeque::pop_front);
        once.or(s.always.get(function).copied()).unwrap_or(0)
    })
}

/// Runs `body` unless the call is to fail.
fn call(function: &'static str, body: impl FnOnce(&mut State) -> Status) -> Status {
    match enter(function) {
        0 => state(body),
        status => status,
    }
}

fn put<T>(place: *mut T, value: T) -> Status {
    // SAFETY: the device layer passes valid places.
    unsafe { place.write(value) };
    0
}

fn create(kind: &'static str, place: *mut RawHandle) -> Status {
    call(kind, |s| {
        s.next += 16;
        s.handles.insert((kind, s.next));
        put(place, std::ptr::without_provenance_mut(s.next))
    })
}

fn destroy(function: &'static str, kind: &'static str, handle: RawHandle) -> Status {
    call(function, |s| if s.handles.remove(&(kind, handle.addr())) { 0 } else { 400 })
}

fn allocate(kind: &'static str, place: *mut *mut c_void, bytes: usize) -> Status {
    call(kind, |s| {
        let mut memory = vec![u64::MAX; bytes.div_ceil(8)];
        let address = memory.as_mut_ptr().cast::<c_void>();
        s.live.insert((kind, address.addr()), memory);
        put(place, address)
    })
}

fn free(function: &'static str, kind: &'static str, address: *mut c_void) -> Status {
    call(function, |s| if s.live.remove(&(kind, address.addr())).is_some() { 0 } else { 1 })
}

fn copy(function: &'static str, to: *mut c_void, from: *mut c_void, bytes: usize) -> Status {
    call(function, |_| {
        // SAFETY: "device" memory is host memory here; the device layer checked both ranges.
        unsafe { to.cast::<u8>().copy_from(from.cast(), bytes) };
        0
    })
}

fn fill(function: &'static str, to: *mut c_void, value: u8, bytes: usize) -> Status {
    call(function, |_| {
        // SAFETY: as above.
        unsafe { to.cast::<u8>().write_bytes(value, bytes) };
        0
    })
}

fn text(place: *mut c_char, text: &CStr) -> Status {
    // SAFETY: the buffer holds the text, which is short.
    unsafe { place.copy_from(text.as_ptr(), text.count_bytes() + 1) };
    0
}

extern "C" fn init(_: c_uint) -> Status {
    enter("init")
}
extern "C" fn version(place: *mut c_int) -> Status {
    call("version", |_| put(place, 13_000))
}
extern "C" fn device_count(place: *mut c_int) -> Status {
    call("device_count", |_| put(place, 2))
}
extern "C" fn device_get(place: *mut c_int, ordinal: c_int) -> Status {
    call("device_get", |_| put(place, ordinal))
}
extern "C" fn device_name(place: *mut c_char, _: c_int, _: c_int) -> Status {
    call("device_name", |_| text(place, c"Fake"))
}
/// Shared memory: 48 KiB, 64 KiB on request (by either vendor's numbers). AMD's waves: 64 lanes. Otherwise 1024 of
/// everything.
extern "C" fn device_attribute(place: *mut c_int, attribute: c_uint, _: c_int) -> Status {
    let value = match attribute {
        8 | 74 => 48 << 10,
        75 | 97 => 64 << 10,
        87 => 64,
        _ => 1024,
    };
    call("device_attribute", |_| put(place, value))
}
extern "C" fn compute_capability(place: *mut c_int, attribute: c_uint, device: c_int) -> Status {
    match attribute {
        75 => put(place, 9),
        76 => put(place, 0),
        _ => device_attribute(place, attribute, device),
    }
}
extern "C" fn device_total_memory(place: *mut usize, _: c_int) -> Status {
    call("device_total_memory", |_| put(place, 1 << 30))
}
extern "C" fn properties_r0600(place: *mut c_void, _: c_int) -> Status {
    call("properties_r0600", |_| text(place.cast::<c_char>().wrapping_add(1160), c"gfx90a:sramecc+:xnack-"))
}
extern "C" fn properties(place: *mut c_void, _: c_int) -> Status {
    call("properties", |_| text(place.cast::<c_char>().wrapping_add(396), c"gfx906"))
}
extern "C" fn device_set(_: c_int) -> Status {
    enter("device_set")
}
extern "C" fn context_retain(place: *mut RawHandle, device: c_int) -> Status {
    call("context_retain", |s| {
        s.handles.insert(("context", device as usize));
        put(place, std::ptr::without_provenance_mut(0x1000))
    })
}
extern "C" fn context_release(device: c_int) -> Status {
    destroy("context_release", "context", std::ptr::without_provenance_mut(device as usize))
}
extern "C" fn context_set_current(_: RawHandle) -> Status {
    enter("context_set_current")
}
extern "C" fn memory_info(free: *mut usize, total: *mut usize) -> Status {
    call("memory_info", |_| put(free, 1 << 20) + put(total, 1 << 30))
}
extern "C" fn memory_allocate(place: *mut *mut c_void, bytes: usize) -> Status {
    allocate("memory_allocate", place, bytes)
}
extern "C" fn memory_free(address: *mut c_void) -> Status {
    free("memory_free", "memory_allocate", address)
}
extern "C" fn memory_fill(to: *mut c_void, value: u8, bytes: usize, _: RawHandle) -> Status {
    fill("memory_fill", to, value, bytes)
}
extern "C" fn host_allocate(place: *mut *mut c_void, bytes: usize, _: c_uint) -> Status {
    allocate("host_allocate", place, bytes)
}
extern "C" fn host_free(address: *mut c_void) -> Status {
    free("host_free", "host_allocate", address)
}
extern "C" fn host_register(address: *mut c_void, _: usize, _: c_uint) -> Status {
    call("host_register", |s| if s.handles.insert(("registered", address.addr())) { 0 } else { 712 })
}
extern "C" fn host_unregister(address: *mut c_void) -> Status {
    destroy("host_unregister", "registered", address)
}
extern "C" fn host_device_pointer(place: *mut *mut c_void, host: *mut c_void, _: c_uint) -> Status {
    call("host_device_pointer", |_| put(place, host))
}
extern "C" fn copy_to_device(to: *mut c_void, from: *mut c_void, bytes: usize) -> Status {
    copy("copy_to_device", to, from, bytes)
}
extern "C" fn copy_to_host(to: *mut c_void, from: *mut c_void, bytes: usize) -> Status {
    copy("copy_to_host", to, from, bytes)
}
extern "C" fn copy_async(to: *mut c_void, from: *mut c_void, bytes: usize, _: RawHandle) -> Status {
    copy("copy_async", to, from, bytes)
}
extern "C" fn stream_create(place: *mut RawHandle, _: c_uint) -> Status {
    create("stream", place)
}
extern "C" fn stream_destroy(stream: RawHandle) -> Status {
    destroy("stream_destroy", "stream", stream)
}
extern "C" fn stream_query(_: RawHandle) -> Status {
    enter("stream_query")
}
extern "C" fn stream_wait_event(_: RawHandle, _: RawHandle, _: c_uint) -> Status {
    enter("stream_wait_event")
}
extern "C" fn begin_capture(_: RawHandle, _: c_uint) -> Status {
    enter("begin_capture")
}
extern "C" fn end_capture(_: RawHandle, place: *mut RawHandle) -> Status {
    create("graph", place)
}
extern "C" fn graph_instantiate(place: *mut RawHandle, _: RawHandle, _: u64) -> Status {
    create("graph_instantiate", place)
}
extern "C" fn graph_launch(_: RawHandle, _: RawHandle) -> Status {
    enter("graph_launch")
}
extern "C" fn graph_executable_destroy(executable: RawHandle) -> Status {
    destroy("graph_executable_destroy", "graph_instantiate", executable)
}
extern "C" fn graph_destroy(graph: RawHandle) -> Status {
    destroy("graph_destroy", "graph", graph)
}
extern "C" fn event_create(place: *mut RawHandle, _: c_uint) -> Status {
    create("event", place)
}
extern "C" fn event_destroy(event: RawHandle) -> Status {
    destroy("event_destroy", "event", event)
}
extern "C" fn event_record(_: RawHandle, _: RawHandle) -> Status {
    enter("event_record")
}
extern "C" fn event_query(_: RawHandle) -> Status {
    enter("event_query")
}
extern "C" fn event_elapsed(place: *mut f32, _: RawHandle, _: RawHandle) -> Status {
    call("event_elapsed", |_| put(place, 1.5))
}
extern "C" fn module_load(place: *mut RawHandle, _: *const c_void) -> Status {
    create("module", place)
}
extern "C" fn module_unload(module: RawHandle) -> Status {
    destroy("module_unload", "module", module)
}
extern "C" fn module_function(place: *mut RawHandle, _: RawHandle, _: *const c_char) -> Status {
    call("module_function", |_| put(place, std::ptr::without_provenance_mut(0x2000)))
}
/// A kernel of at most 256 invocations and 1 KiB of shared memory; otherwise 8 of everything.
extern "C" fn function_attribute(place: *mut c_int, attribute: c_uint, _: RawHandle) -> Status {
    let value = match attribute {
        0 => 256,
        1 => 1024,
        _ => 8,
    };
    call("function_attribute", |_| put(place, value))
}
extern "C" fn function_set_attribute(_: RawHandle, attribute: c_uint, value: c_int) -> Status {
    assert_eq!(attribute, 8);
    call("function_set_attribute", |s| {
        s.dynamic_shared_bytes = value as usize;
        0
    })
}
extern "C" fn occupancy(place: *mut c_int, _: RawHandle, _: c_int, _: usize) -> Status {
    call("occupancy", |_| put(place, 4))
}
#[allow(clippy::too_many_arguments)]
extern "C" fn launch(
    _: RawHandle,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    _: RawHandle,
    _: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Status {
    call("launch", |s| {
        // SAFETY: a launch with arguments passes five words: pointer, buffer, size, its address, end.
        let words = unsafe { std::slice::from_raw_parts(extra, 5) };
        assert_eq!((words[0].addr(), words[2].addr()), (1, 2));
        // SAFETY: as the fourth word says.
        let bytes = unsafe { words[3].cast::<usize>().read() };
        // SAFETY: as the second and the fourth word say.
        let arguments = unsafe { std::slice::from_raw_parts(words[1].cast::<u8>(), bytes) }.to_vec();
        let (grid, block, end) = ([gx, gy, gz], [bx, by, bz], words[4].addr());
        s.launches.push(Launch { grid, block, shared, arguments, end });
        0
    })
}
extern "C" fn hip_words(_: Status) -> *const c_char {
    c"the library's words".as_ptr()
}
extern "C" fn cuda_words(_: Status, place: *mut *const c_char) -> Status {
    put(place, c"the driver's words".as_ptr())
}

/// The table of the fake library.
pub(crate) fn symbols(platform: Platform) -> Symbols {
    let (amd, nvidia) = (platform == Platform::Amd, platform == Platform::Nvidia);
    Symbols {
        init,
        driver_version: version,
        runtime_version: None,
        device_count,
        device_get,
        device_name,
        device_attribute: if nvidia { compute_capability } else { device_attribute },
        device_total_memory,
        device_pci_bus_id: None,
        device_properties_r0600: amd.then_some(properties_r0600),
        device_properties: amd.then_some(properties),
        device_set: amd.then_some(device_set),
        context_retain: nvidia.then_some(context_retain),
        context_release: nvidia.then_some(context_release),
        context_set_current: nvidia.then_some(context_set_current),
        memory_info,
        memory_allocate,
        memory_free,
        memory_fill,
        host_allocate,
        host_free,
        host_register,
        host_unregister,
        host_device_pointer,
        copy_to_device,
        copy_to_host,
        copy_to_device_async: copy_async,
        copy_to_host_async: copy_async,
        copy_on_device_async: copy_async,
        stream_create,
        stream_create_with_priority: None,
        stream_priority_range: None,
        stream_destroy,
        stream_query,
        stream_wait_event,
        stream_begin_capture: amd.then_some(begin_capture),
        stream_end_capture: amd.then_some(end_capture),
        graph_instantiate: amd.then_some(graph_instantiate),
        graph_launch: amd.then_some(graph_launch),
        graph_executable_destroy: amd.then_some(graph_executable_destroy),
        graph_destroy: amd.then_some(graph_destroy),
        event_create,
        event_destroy,
        event_record,
        event_query,
        event_elapsed,
        module_load,
        module_unload,
        module_function,
        module_global: None,
        function_attribute,
        function_set_attribute: nvidia.then_some(function_set_attribute),
        function_load: None,
        occupancy,
        launch,
        launch_cooperative: None,
        error_name_into: nvidia.then_some(cuda_words),
        error_text_into: nvidia.then_some(cuda_words),
        error_name: amd.then_some(hip_words),
        error_text: amd.then_some(hip_words),
    }
}

/// The fake library, open.
pub(crate) fn api(platform: Platform) -> Arc<Api> {
    // SAFETY: the functions do what the device layer relies on, and are there for ever.
    unsafe { Api::from_symbols(platform, symbols(platform)) }.unwrap()
}

/// A context on its first device.
pub(crate) fn context(platform: Platform) -> Arc<Context> {
    Context::open(&api(platform), 0, Generation(1)).unwrap()
}
