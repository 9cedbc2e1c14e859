//! Who keeps what alive, and when it is given back.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use vyre_driver::Generation;
use vyre_driver::region::SharedRegion;
use vyre_hip::api::{Platform, status};
use vyre_hip::device::{
    Context, DeviceError, DeviceMemory, Event, HostMemory, Module, PinnedMemory, RegisteredMemory, Stream,
    StreamPriority,
};

use crate::fake::{self, context, fail_always, fail_once};

const BOTH: [Platform; 2] = [Platform::Amd, Platform::Nvidia];

/// One of everything.
fn everything(context: &Arc<Context>) -> impl Sized + use<> {
    let region = Arc::new(SharedRegion::create(4096).unwrap());
    let module = Module::load(context, b".version 7.0\0").unwrap();
    (
        DeviceMemory::new(context, "device", 64).unwrap(),
        PinnedMemory::new(context, "pinned", 64).unwrap(),
        RegisteredMemory::new(context, &region).unwrap(),
        module.function("kernel").unwrap(),
        Event::new(context).unwrap(),
        Stream::new(context, StreamPriority::High).unwrap(),
    )
}

#[test]
fn everything_is_given_back_once_whatever_goes_first() {
    for platform in BOTH {
        let context = context(platform);
        let things = everything(&context);
        assert!(fake::live() >= 6);
        drop(context);
        drop(things);
        assert_eq!(fake::live(), 0);
    }
}

#[derive(Clone, Default)]
struct Warnings(Arc<(AtomicUsize, Mutex<String>)>);

impl Subscriber for Warnings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Visit for Warnings {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.1.lock().unwrap().push_str(&format!("{field}={value:?} "));
    }
}

#[test]
fn drop_records_what_failed_and_does_not_panic() {
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || {
        let context = context(Platform::Nvidia);
        let things = everything(&context);
        let giving_back = [
            "memory_free",
            "host_free",
            "host_unregister",
            "module_unload",
            "event_destroy",
            "stream_destroy",
        ];
        for function in giving_back.into_iter().chain(["context_release"]) {
            fail_always(function, status::INVALID_VALUE);
        }
        drop(things);
        drop(context);
        assert_eq!(warnings.0.0.load(Ordering::Relaxed), giving_back.len() + 1);
    });
    let recorded = warnings.0.1.lock().unwrap();
    assert!(recorded.contains("cuMemFree_v2 failed with the driver's words (1)"), "{recorded}");
}

#[test]
fn a_stream_keeps_what_it_uses_until_it_is_seen_idle() {
    let context = context(Platform::Amd);
    let stream = Stream::new(&context, StreamPriority::Normal).unwrap();
    let memory = DeviceMemory::new(&context, "device", 64).unwrap();
    let pinned = PinnedMemory::new(&context, "pinned", 64).unwrap();
    stream.copy_to_device(&memory, 0, &pinned, 0, 64).unwrap();
    drop((memory, pinned));
    fail_once("stream_query", status::NOT_READY);
    assert!(!stream.is_idle().unwrap());
    assert_eq!(fake::calls("memory_free") + fake::calls("host_free"), 0);
    assert!(stream.is_idle().unwrap());
    assert_eq!((fake::calls("memory_free"), fake::calls("host_free")), (1, 1));
}

#[test]
fn what_is_used_often_is_kept_once() {
    let context = context(Platform::Amd);
    let stream = Stream::new(&context, StreamPriority::Normal).unwrap();
    let memory = DeviceMemory::new(&context, "device", 64).unwrap();
    for _ in 0..1000 {
        stream.fill(&memory, 0, 64, 0).unwrap();
    }
    assert_eq!(Arc::strong_count(&memory), 2);
}

#[test]
fn while_releases_are_held_nothing_is_freed() {
    let context = context(Platform::Amd);
    let outer = context.hold_releases();
    let inner = context.hold_releases();
    let things = everything(&context);
    let busy = Stream::new(&context, StreamPriority::Normal).unwrap();
    let memory = DeviceMemory::new(&context, "device", 64).unwrap();
    busy.fill(&memory, 0, 64, 0).unwrap();
    fail_always("stream_query", status::NOT_READY);
    // Destroying an event waits for nothing.
    let live = fake::live() - 1;
    drop(things);
    drop(memory);
    drop(busy);
    drop(inner);
    assert_eq!(fake::live(), live, "something was freed under a hold");
    // Six things less the event, and the busy stream with the memory it keeps.
    assert_eq!(context.releases_waiting(), 6);
    drop(outer);
    assert_eq!((fake::live(), context.releases_waiting()), (0, 0));
}

#[test]
fn a_stream_dropped_while_busy_leaks_what_the_device_may_still_use() {
    let context = context(Platform::Amd);
    let stream = Stream::new(&context, StreamPriority::Normal).unwrap();
    let memory = DeviceMemory::new(&context, "device", 64).unwrap();
    stream.fill(&memory, 0, 64, 0).unwrap();
    drop(memory);
    fail_always("stream_query", status::NOT_READY);
    drop(stream);
    assert_eq!(fake::calls("memory_free") + fake::calls("stream_destroy"), 0);
}

#[test]
fn each_call_makes_its_context_current() {
    for (platform, current) in [(Platform::Amd, "device_set"), (Platform::Nvidia, "context_set_current")] {
        let context = context(platform);
        let start = fake::all_calls().len();
        drop(everything(&context));
        let calls = fake::all_calls().split_off(start);
        // A kernel is found and asked about in one go.
        let alone =
            ["memory_allocate", "host_register", "event", "stream_query", "memory_free", "stream_destroy"];
        for function in alone {
            let at = calls.iter().position(|call| *call == function).unwrap();
            assert_eq!(calls.get(at - 1), Some(&current), "{platform}: before {function}");
        }
    }
}

#[test]
fn copies_move_bytes_and_stay_in_range() {
    let context = context(Platform::Amd);
    let stream = Stream::new(&context, StreamPriority::Normal).unwrap();
    let memory = DeviceMemory::new(&context, "device", 64).unwrap();
    let other = DeviceMemory::new(&context, "device", 64).unwrap();
    let pinned = PinnedMemory::new(&context, "pinned", 64).unwrap();
    let mut zeros = [1; 64];
    pinned.copy_out(0, &mut zeros).unwrap();
    assert_eq!(zeros, [0; 64], "pinned memory does not start as zeros");

    let pattern: Vec<u8> = (1..=29).collect();
    pinned.copy_in(3, &pattern).unwrap();
    stream.copy_to_device(&memory, 7, &pinned, 3, 29).unwrap();
    stream.copy_on_device(&other, 30, &memory, 7, 29).unwrap();
    let mut seen = [0; 29];
    other.read(30, &mut seen).unwrap();
    assert_eq!(seen.as_slice(), pattern);
    stream.fill(&other, 31, 2, 0xff).unwrap();
    stream.copy_to_host(&pinned, 0, &other, 30, 4).unwrap();
    let word = pinned.word(0).unwrap().load(Ordering::Relaxed);
    assert_eq!(word, u32::from_ne_bytes([1, 0xff, 0xff, 4]));
    memory.write(60, &[9; 4]).unwrap();

    let copies = fake::calls("copy_async");
    let refused = [
        memory.write(61, &[0; 4]),
        memory.read(u64::MAX, &mut [0]),
        stream.fill(&memory, 64, 1, 0),
        stream.copy_to_device(&memory, 0, &pinned, 1, 64),
        stream.copy_to_host(&pinned, 65, &memory, 0, 0),
        stream.copy_on_device(&memory, 1, &other, 0, 64),
        pinned.copy_in(63, &[0; 2]),
        pinned.copy_out(64, &mut [0]),
        pinned.word(62).map(drop),
        pinned.word(2).map(drop),
    ];
    for (i, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(DeviceError::InvalidArgument { .. })), "{i}: {result:?}");
    }
    assert_eq!(fake::calls("copy_async"), copies);
}

#[test]
fn a_write_returns_when_the_bytes_have_arrived() {
    let context = context(Platform::Amd);
    let memory = DeviceMemory::new(&context, "device", 64).unwrap();
    fail_once("event_query", status::NOT_READY);
    memory.write(0, &[1; 64]).unwrap();
    let calls = fake::all_calls();
    let at = |name| calls.iter().position(|call| *call == name).unwrap();
    assert!(at("copy_to_device") < at("event_record") && at("event_record") < at("event_query"));
    assert_eq!(fake::calls("event_query"), 2);
}

#[test]
fn nothing_of_another_context_is_accepted() {
    let (ours, theirs) = (context(Platform::Amd), context(Platform::Amd));
    let stream = Stream::new(&ours, StreamPriority::Normal).unwrap();
    let memory = DeviceMemory::new(&theirs, "device", 64).unwrap();
    let event = Event::new(&theirs).unwrap();
    for result in [stream.fill(&memory, 0, 64, 0), stream.wait_for(&event), event.record(&stream)] {
        assert!(matches!(result, Err(DeviceError::InvalidArgument { .. })), "{result:?}");
    }
}

#[test]
fn a_region_is_registered_where_it_is_mapped_and_must_be_writable() {
    let context = context(Platform::Amd);
    let region = Arc::new(SharedRegion::create(4096).unwrap());
    let registered = RegisteredMemory::new(&context, &region).unwrap();
    assert_eq!(registered.host_address().addr().get() as u64, registered.device_address());
    assert_eq!(registered.len(), 4096);
    let read_only = Arc::new(region.read_only().unwrap());
    let error = RegisteredMemory::new(&context, &read_only).unwrap_err();
    assert!(matches!(error, DeviceError::InvalidArgument { argument: "region", .. }), "{error}");
    // Registered twice: the library's own refusal.
    assert!(
        matches!(RegisteredMemory::new(&context, &region), Err(DeviceError::Hip(error)) if error.code == 712)
    );
}

#[test]
fn no_bytes_need_no_memory() {
    let context = context(Platform::Nvidia);
    let empty = DeviceMemory::new(&context, "empty", 0).unwrap();
    assert_eq!((empty.address(), fake::calls("memory_allocate")), (0, 0));
    empty.write(0, &[]).unwrap();
    drop(empty);
    assert_eq!(fake::calls("memory_free"), 0);
    assert_eq!(context.generation(), Generation(1));
    assert!(PinnedMemory::new(&context, "empty", 0).is_err());
}

#[test]
fn events_measure() {
    let context = context(Platform::Amd);
    let (start, end) = (Event::new(&context).unwrap(), Event::new(&context).unwrap());
    assert_eq!(end.elapsed_since(&start).unwrap(), Duration::from_micros(1500));
}
