//! What statuses become.

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::region::SharedRegion;
use vyre_driver::{BackendError, Generation};
use vyre_hip::api::{Api, Platform, status};
use vyre_hip::device::{
    Context, DeviceError, DeviceMemory, Event, Module, PinnedMemory, RegisteredMemory, Stream, StreamPriority,
};
use vyre_hip::{DetectReport, HipError};

use crate::fake::{self, api, context, fail_always, fail_once};

const BOTH: [Platform; 2] = [Platform::Amd, Platform::Nvidia];

#[test]
fn a_failed_call_says_which_and_keeps_the_librarys_words() {
    for (platform, call, words) in [
        (Platform::Amd, "hipStreamCreateWithFlags", "the library's words"),
        (Platform::Nvidia, "cuStreamCreate", "the driver's words"),
    ] {
        let context = context(platform);
        fail_once("stream", status::INVALID_VALUE);
        let error = Stream::new(&context, StreamPriority::Normal).unwrap_err();
        let DeviceError::Hip(error) = error else { panic!("{error}") };
        let wanted = HipError { call, code: 1, name: words.to_owned(), text: words.to_owned() };
        assert_eq!(error, wanted);
        let backend = BackendError::from(error);
        assert!(matches!(backend, BackendError::Driver { call: c, code: 1, .. } if c == call), "{backend}");
        Stream::new(&context, StreamPriority::Normal).unwrap();
    }
}

#[test]
fn no_memory_says_how_much_was_wanted_and_is_left() {
    let context = context(Platform::Amd);
    fail_once("memory_allocate", status::OUT_OF_MEMORY);
    let error = DeviceMemory::new(&context, "weights", 4096).unwrap_err();
    let BackendError::OutOfMemory { what, requested, available } = BackendError::from(error) else {
        panic!("not told apart");
    };
    assert_eq!((what.as_str(), requested, available), ("weights", 4096, 1 << 20));
    assert_eq!(context.memory_use().unwrap().in_use, 0);
    let memory = DeviceMemory::new(&context, "weights", 4096).unwrap();
    drop(memory);
    let used = context.memory_use().unwrap();
    assert_eq!((used.in_use, used.peak), (0, 4096));
}

#[test]
fn a_fault_loses_the_device_for_good_and_stops_all_calls() {
    for platform in BOTH {
        let context = context(platform);
        let stream = Stream::new(&context, StreamPriority::Normal).unwrap();
        let memory = DeviceMemory::new(&context, "memory", 64).unwrap();
        stream.fill(&memory, 0, 64, 0).unwrap();
        // CUDA's own number for a misaligned address; an illegal address on HIP.
        let fault = if platform == Platform::Nvidia { 716 } else { 700 };
        fail_once("stream_query", fault);
        let error = stream.wait(Duration::from_secs(1)).unwrap_err();
        assert!(error.is_lost(), "{error}");
        let first = context.lost().unwrap().clone();
        assert_eq!(first.code, if platform == Platform::Nvidia { 719 } else { 700 });

        let before = fake::all_calls().len();
        let later = memory.write(0, &[1; 4]).unwrap_err();
        assert!(matches!(&later, DeviceError::Lost(error) if *error == first), "{later}");
        assert!(DeviceMemory::new(&context, "more", 64).unwrap_err().is_lost());
        assert!(BackendError::from(later).is_device_loss());
        drop((stream, memory));
        assert_eq!(fake::all_calls().len(), before, "a lost device was called");
    }
}

#[test]
fn words_do_not_lose_a_device() {
    let context = context(Platform::Amd);
    fail_once("event", status::UNKNOWN);
    // The fake's words could say "device lost" as well: the code decides.
    assert!(!Event::new(&context).unwrap_err().is_lost());
    assert!(context.lost().is_none());
}

#[test]
fn a_wait_ends_at_its_deadline_and_names_what_it_waited_for() {
    let context = context(Platform::Amd);
    let stream = Stream::new(&context, StreamPriority::Normal).unwrap();
    let event = Event::new(&context).unwrap();
    fail_always("stream_query", status::NOT_READY);
    fail_always("event_query", status::NOT_READY);
    let timeout = Duration::from_millis(3);
    for (error, what) in [
        (stream.wait(timeout).unwrap_err(), "a stream of Fake"),
        (event.wait(timeout).unwrap_err(), "an event of Fake"),
    ] {
        let DeviceError::Deadline { waited_for, after } = error else { panic!("{error}") };
        assert_eq!((waited_for.as_str(), after), (what, timeout));
    }
    fail_always("stream_query", status::SUCCESS);
    stream.wait(Duration::ZERO).unwrap();
}

#[test]
fn refused_images_are_told_apart() {
    let context = context(Platform::Amd);
    let image = [b"__CLANG_OFFLOAD_BUNDLE__".as_slice(), &[0; 64]].concat();
    fail_once("module", status::NO_BINARY_FOR_GPU);
    let error = Module::load(&context, &image).unwrap_err();
    assert!(
        matches!(&error, DeviceError::NoCodeObject { arch, .. } if arch == "gfx90a:sramecc+:xnack-"),
        "{error}"
    );
    for code in [status::INVALID_IMAGE, status::INVALID_KERNEL_FILE, status::INVALID_SOURCE] {
        fail_once("module", code);
        let error = Module::load(&context, &image).unwrap_err();
        assert!(matches!(error, DeviceError::InvalidImage { bytes: 88, .. }), "{error}");
        assert!(error.is_image_refused());
    }
    fail_once("module", status::OUT_OF_MEMORY);
    assert!(!Module::load(&context, &image).unwrap_err().is_image_refused());
}

#[test]
fn a_truncated_image_never_reaches_the_loader() {
    let context = context(Platform::Amd);
    // A header alone, whose section header table (offset 0x28) is one entry of 64 bytes at 64.
    let mut elf = vec![0_u8; 128];
    elf[..4].copy_from_slice(b"\x7fELF");
    elf[0x28] = 64;
    elf[0x3a] = 64;
    elf[0x3c] = 1;
    // One entry: 16 bytes at 64, for a target with a name of 4 bytes.
    let numbers = [1_u64, 64, 16, 4].map(u64::to_le_bytes).concat();
    let bundle = [b"__CLANG_OFFLOAD_BUNDLE__".as_slice(), &numbers, b"gfx9", &[0; 20]].concat();
    for image in [&elf, &bundle] {
        for len in 0..image.len() {
            let error = Module::load(&context, &image[..len]).unwrap_err();
            assert!(
                matches!(error, DeviceError::InvalidImage { bytes, .. } if bytes == len),
                "{len}: {error}"
            );
        }
    }
    assert_eq!(fake::calls("module"), 0);
    Module::load(&context, &elf).unwrap();
    Module::load(&context, &bundle).unwrap();
}

#[test]
fn an_image_with_impossible_numbers_is_refused() {
    let context = context(Platform::Amd);
    let magics: [&[u8]; 2] = [b"\x7fELF", b"__CLANG_OFFLOAD_BUNDLE__"];
    for magic in magics {
        let image = [magic, &[0xff; 256]].concat();
        let error = Module::load(&context, &image).unwrap_err();
        assert!(error.is_image_refused(), "{error}");
    }
}

#[test]
fn a_missing_kernel_is_an_argument_error() {
    let context = context(Platform::Amd);
    let module = Module::load(&context, b".version 7.0\0").unwrap();
    fail_once("module_function", status::NOT_FOUND);
    let error = module.function("nobody").unwrap_err();
    assert!(matches!(&error, DeviceError::InvalidArgument { got, .. } if got == "`nobody`"), "{error}");
    assert!(matches!(module.function("no\0body"), Err(DeviceError::InvalidArgument { .. })));
}

#[test]
fn half_made_host_memory_is_given_back() {
    let context = context(Platform::Amd);
    let region = Arc::new(SharedRegion::create(4096).unwrap());
    fail_once("host_device_pointer", status::INVALID_VALUE);
    PinnedMemory::new(&context, "pinned", 64).unwrap_err();
    fail_once("host_device_pointer", status::INVALID_VALUE);
    RegisteredMemory::new(&context, &region).unwrap_err();
    assert_eq!((fake::calls("host_free"), fake::calls("host_unregister")), (1, 1));
    assert_eq!(fake::live(), 0);
}

#[test]
fn a_function_that_the_library_lacks_is_an_error_by_name() {
    let context = context(Platform::Amd);
    let module = Module::load(&context, b".version 7.0\0").unwrap();
    let DeviceError::Hip(error) = module.global("counter").unwrap_err() else {
        panic!("not an error of HIP")
    };
    assert_eq!((error.call, error.code), ("hipModuleGetGlobal", status::NOT_SUPPORTED));
}

#[test]
fn a_library_that_does_not_initialise_is_an_error() {
    for function in ["init", "device_count"] {
        fail_once(function, status::INSUFFICIENT_DRIVER);
        // SAFETY: the functions are there for ever.
        let error = unsafe { Api::from_symbols(Platform::Nvidia, fake::symbols(Platform::Nvidia)) };
        assert_eq!(error.unwrap_err().code, status::INSUFFICIENT_DRIVER, "{function}");
    }
}

#[test]
fn the_architecture_comes_from_whichever_layout_the_library_has() {
    for (r0600, arch) in [(true, "gfx90a:sramecc+:xnack-"), (false, "gfx906")] {
        let mut symbols = fake::symbols(Platform::Amd);
        if !r0600 {
            symbols.device_properties_r0600 = None;
        }
        // SAFETY: the functions are there for ever.
        let api = unsafe { Api::from_symbols(Platform::Amd, symbols) }.unwrap();
        assert_eq!(Context::open(&api, 0, Generation(1)).unwrap().info().arch, arch);
    }
    assert_eq!(context(Platform::Nvidia).info().arch, "sm_90");

    // The one layout in the other's place: refused, not read as whatever is there.
    let mut symbols = fake::symbols(Platform::Amd);
    symbols.device_properties_r0600 = symbols.device_properties;
    // SAFETY: the functions are there for ever.
    let api = unsafe { Api::from_symbols(Platform::Amd, symbols) }.unwrap();
    let error = Context::open(&api, 0, Generation(1)).unwrap_err();
    assert!(matches!(&error, DeviceError::Hip(error) if error.name.contains("hipDeviceProp_t")), "{error}");
}

#[test]
fn the_report_shows_devices_and_those_that_fail() {
    let api = api(Platform::Nvidia);
    fail_once("context_retain", 46);
    let report = DetectReport::of(&api);
    assert_eq!((report.devices().len(), report.unusable().len()), (1, 1));
    assert_eq!(report.library().unwrap().driver.as_deref(), Some("13.0"));
    let text = report.to_string();
    for wanted in
        ["device 0: cannot be used: cuDevicePrimaryCtxRetain", "device 1: Fake (sm_90)", "64 KiB on"]
    {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    assert_eq!(fake::live(), 0, "a context stayed retained");
}

#[test]
fn there_is_no_device_past_the_last() {
    let error = Context::open(&api(Platform::Amd), 2, Generation(1)).unwrap_err();
    assert!(matches!(error, DeviceError::InvalidArgument { argument: "ordinal", .. }), "{error}");
}
