//! How a launch reaches the library, and which never do.

use vyre_hip::api::Platform;
use vyre_hip::device::{DeviceError, Function, LaunchConfig, Module, Stream, StreamPriority};

use crate::fake::{self, Launch, context};

fn kernel(platform: Platform) -> (Stream, Function) {
    let context = context(platform);
    let module = Module::load(&context, b".version 7.0\0").unwrap();
    (Stream::new(&context, StreamPriority::Normal).unwrap(), module.function("kernel").unwrap())
}

fn launch(stream: &Stream, function: &Function, config: LaunchConfig) -> Result<(), DeviceError> {
    // SAFETY: the fake library only copies the arguments.
    unsafe { function.launch(stream, &config, &[1, 2, 3]) }
}

const SMALL: LaunchConfig = LaunchConfig { grid: [2, 3, 4], workgroup: [8, 4, 2], shared_bytes: 512 };

#[test]
fn arguments_are_one_packed_buffer_ended_as_the_vendor_wants() {
    for (platform, end) in [(Platform::Amd, 3), (Platform::Nvidia, 0)] {
        let (stream, function) = kernel(platform);
        launch(&stream, &function, SMALL).unwrap();
        let wanted = Launch { grid: [2, 3, 4], block: [8, 4, 2], shared: 512, arguments: vec![1, 2, 3], end };
        assert_eq!(fake::launches().last(), Some(&wanted));
    }
}

#[test]
fn the_stream_keeps_the_module_of_a_launch() {
    let (stream, function) = kernel(Platform::Amd);
    launch(&stream, &function, SMALL).unwrap();
    drop(function);
    assert_eq!(fake::calls("module_unload"), 0);
    assert!(stream.is_idle().unwrap());
    assert_eq!(fake::calls("module_unload"), 1);
}

#[test]
fn a_shape_that_cannot_be_is_refused_before_the_launch() {
    let (stream, function) = kernel(Platform::Amd);
    let refused = [
        LaunchConfig { workgroup: [0, 1, 1], ..SMALL },
        // The kernel has at most 256 invocations.
        LaunchConfig { workgroup: [257, 1, 1], ..SMALL },
        LaunchConfig { workgroup: [u32::MAX; 3], ..SMALL },
        LaunchConfig { grid: [1025, 1, 1], ..SMALL },
        // With the KiB that the kernel declares, more than 64 KiB.
        LaunchConfig { shared_bytes: (63 << 10) + 1, ..SMALL },
        LaunchConfig { shared_bytes: u32::MAX, ..SMALL },
    ];
    for config in refused {
        let result = launch(&stream, &function, config);
        assert!(matches!(result, Err(DeviceError::InvalidArgument { .. })), "{config:?}: {result:?}");
    }
    launch(&stream, &function, LaunchConfig { grid: [0, 1, 1], ..SMALL }).unwrap();
    assert_eq!(fake::calls("launch"), 0);
}

#[test]
fn all_shared_memory_is_asked_for_once_where_it_must_be() {
    for (platform, asked) in [(Platform::Amd, 0), (Platform::Nvidia, 1)] {
        let (stream, function) = kernel(platform);
        for shared_bytes in [47 << 10, 63 << 10] {
            launch(&stream, &function, LaunchConfig { shared_bytes, ..SMALL }).unwrap();
        }
        assert_eq!(fake::calls("function_set_attribute"), asked, "{platform}");
        // What it declares itself is not there to be asked for.
        assert_eq!(fake::dynamic_shared_bytes(), asked * (63 << 10));
    }
}

#[test]
fn without_cooperative_launches_the_remedy_is_named() {
    let (stream, function) = kernel(Platform::Amd);
    // SAFETY: refused before any parameter is looked at.
    let error = unsafe { function.launch_cooperative(&stream, &SMALL, &[&[0; 8]]) }.unwrap_err();
    assert!(matches!(&error, DeviceError::Unsupported { what, .. } if what.contains("Fake")), "{error}");
}

#[test]
fn a_kernel_tells_what_it_uses() {
    let (_stream, function) = kernel(Platform::Amd);
    let uses = function.attributes();
    assert_eq!((uses.max_workgroup_invocations, uses.shared_bytes, uses.registers), (256, 1024, 8));
    assert_eq!(function.resident_workgroups(256, 0).unwrap(), 4);
    assert!(function.resident_workgroups(u32::MAX, 0).is_err());
}

#[test]
fn a_graph_keeps_what_was_recorded_and_gives_all_back() {
    let (stream, function) = kernel(Platform::Amd);
    let graph = stream.capture(|| launch(&stream, &function, SMALL)).unwrap();
    drop(function);
    // The stream lets go of what it keeps; the graph does not.
    assert!(stream.is_idle().unwrap());
    assert_eq!(fake::calls("module_unload"), 0);
    // SAFETY: the fake library launches nothing.
    unsafe { stream.launch_graph(&graph) }.unwrap();
    drop(graph);
    assert_eq!(
        (fake::calls("graph_destroy"), fake::calls("graph_executable_destroy")),
        (1, 0),
        "it is under way"
    );
    assert!(stream.is_idle().unwrap());
    assert_eq!((fake::calls("graph_executable_destroy"), fake::calls("module_unload")), (1, 1));
}

#[test]
fn a_capture_that_fails_leaves_nothing_behind() {
    let (stream, function) = kernel(Platform::Amd);
    let live = fake::live();
    let refused = LaunchConfig { workgroup: [0, 1, 1], ..SMALL };
    let error = stream.capture(|| launch(&stream, &function, refused)).unwrap_err();
    assert!(matches!(error, DeviceError::InvalidArgument { .. }), "{error}");
    for call in ["graph", "graph_instantiate"] {
        fake::fail_once(call, 1);
        assert!(matches!(stream.capture(|| launch(&stream, &function, SMALL)), Err(DeviceError::Hip(_))));
    }
    assert_eq!((fake::calls("begin_capture"), fake::calls("graph")), (3, 3), "every capture was ended");
    assert_eq!(fake::live(), live);
}

#[test]
fn without_graphs_the_remedy_is_named() {
    let (stream, function) = kernel(Platform::Nvidia);
    let error = stream.capture(|| launch(&stream, &function, SMALL)).unwrap_err();
    assert!(matches!(&error, DeviceError::Unsupported { remedy, .. } if remedy.contains("CUDA")), "{error}");
    assert_eq!(fake::calls("launch"), 0);
}
