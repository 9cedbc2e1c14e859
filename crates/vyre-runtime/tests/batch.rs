//! Batches and their megakernel from the outside: buffers, descriptors, refusals, and what a dispatch says.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use vyre_cpu::CpuBackend;
use vyre_driver::io_queue::IoReply;
use vyre_driver::ring::SlotImage;
use vyre_driver::{Fault, PersistentThreadMode, Status};
use vyre_foundation::builder::Operand;
use vyre_foundation::{BufferAccess, DataType, Granularity, MemorySpace};
use vyre_runtime::packed::decode;
use vyre_runtime::{
    Backing, BatchBuffers, BatchDescriptor, BuiltinOpcode, DispatchOptions, HandlerBinding, IoQueueBuffer,
    Megakernel, MegakernelError, OpcodeHandler, PackedOpDescriptor, PipelineCache, Priority, Publish,
    RingBuffer, SlotDescriptor, TenantConfig, WindowClass, WindowDescriptor,
};

const ADD_ONE: u32 = 0x40;
const REQUEUE_FOR_EVER: u32 = 0x41;
const COUNT: u32 = 0x42;

fn cpu() -> Arc<CpuBackend> {
    Arc::new(CpuBackend::new())
}

fn add_one() -> OpcodeHandler {
    OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1))
}

fn small() -> Megakernel {
    let for_ever = OpcodeHandler::new(REQUEUE_FOR_EVER, "for_ever", |h| h.requeue([h.arg(0) + 1]));
    let built = Megakernel::builder(cpu())
        .slots(16)
        .workgroup_size(8)
        .tenant(0, TenantConfig::all().window(4, 16))
        .tenant(1, TenantConfig::permitting([BuiltinOpcode::Nop]).window(1, 1))
        .handler(add_one())
        .handler(for_ever)
        .build();
    built.expect("a small megakernel")
}

#[test]
fn descriptors_keep_their_rules() {
    type Make = fn() -> Result<Vec<SlotImage>, MegakernelError>;
    let cases: [(&str, Make, &str); 8] = [
        ("13 arguments", || SlotDescriptor::new(0).args([0; 13]).images(), "TooManyArgs"),
        ("a reserved opcode", || SlotDescriptor::new(0xFFF0).images(), "ReservedOpcode"),
        ("an empty batch", || BatchDescriptor::new().images(), "Ok(0)"),
        (
            "one bad slot of two",
            || BatchDescriptor::new().slot(SlotDescriptor::new(0)).slot(SlotDescriptor::new(0xFFFF)).images(),
            "ReservedOpcode",
        ),
        ("11 words of payload", || WindowDescriptor::new(9, 1).required([0; 11]).images(), "TooManyArgs"),
        (
            "required after lookahead",
            || WindowDescriptor::new(9, 1).lookahead([1]).required([2]).images(),
            "MalformedDescriptor",
        ),
        ("an empty window", || WindowDescriptor::new(9, 1).images(), "Ok(0)"),
        (
            "a window of a reserved opcode",
            || WindowDescriptor::new(0x8000_0002, 1).images(),
            "ReservedOpcode",
        ),
    ];
    for (what, make, expected) in cases {
        let got = match make() {
            Ok(images) => format!("Ok({})", images.len()),
            Err(error) => format!("{error:?}"),
        };
        assert!(got.starts_with(expected), "{what}: {got}");
    }
}

#[test]
fn a_window_is_the_same_in_every_sink() {
    let window = WindowDescriptor::new(0x1_2345, 77)
        .required([1, 2, 3])
        .lookahead([4; 10])
        .lookahead([])
        .tenant(9)
        .priority(Priority::High);
    assert_eq!((window.slot_count(), window.required_count(), window.window_id()), (3, 1, 77));
    let images = window.images().expect("well formed");
    let expected = |class: WindowClass, payload: &[u32]| {
        let mut args = [0; 12];
        args[..2].copy_from_slice(&[77, class as u32]);
        args[2..2 + payload.len()].copy_from_slice(payload);
        SlotImage { opcode: 0x1_2345, tenant: 9, flags: Priority::High as u16, args }
    };
    let wanted = [
        expected(WindowClass::Required, &[1, 2, 3]),
        expected(WindowClass::Lookahead, &[4; 10]),
        expected(WindowClass::Lookahead, &[]),
    ];
    assert_eq!(images, wanted);
    let mut ring = small().batch_buffers().ring;
    assert_eq!(ring.publish(13, &window).expect("room"), 3);
    assert_eq!((13..16).filter_map(|slot| ring.slot(slot)).collect::<Vec<_>>(), wanted);
    assert_eq!(window.try_into_batch().expect("well formed").images().expect("well formed"), wanted);
}

#[test]
fn publication_is_all_or_nothing() {
    let mut ring = small().batch_buffers().ring;
    let nop = SlotDescriptor::new(BuiltinOpcode::Nop);
    ring.publish(9, &nop).expect("free");
    let before = ring.clone();
    let of = |count: usize| (0..count).map(|_| nop.clone()).collect::<BatchDescriptor>();
    let mut bad = of(3);
    bad.push(SlotDescriptor::new(0xFFFF));
    for (start, batch, expected) in [
        (0, of(17), "BatchTooLarge { got: 17, limit: 16 }"),
        (10, of(7), "BatchTooLarge { got: 7, limit: 6 }"),
        (16, of(1), "BatchTooLarge { got: 1, limit: 0 }"),
        (usize::MAX, of(1), "BatchTooLarge { got: 1, limit: 0 }"),
        (6, of(5), "SlotOccupied { slot: 9 }"),
        (0, bad, "ReservedOpcode"),
    ] {
        let refused = ring.publish(start, &batch).expect_err("refused");
        assert!(format!("{refused:?}").starts_with(expected), "{refused:?}");
        assert_eq!(ring, before);
    }
    assert_eq!(ring.publish(16, &of(0)).expect("nothing to do"), 0);
    ring.clear(9);
    assert_eq!(ring.publish(0, &of(16)).expect("all free"), 16);
}

#[test]
fn the_host_refuses_what_the_device_would() {
    let megakernel = small();
    let packed = |ops: &[PackedOpDescriptor]| SlotDescriptor::packed(ops).expect("fits");
    for (descriptor, expected) in [
        (SlotDescriptor::new(ADD_ONE), "Ok"),
        (SlotDescriptor::new(ADD_ONE).tenant(1), "Err(PermissionDenied { tenant: 1"),
        (SlotDescriptor::new(ADD_ONE).tenant(2), "Err(UnknownTenant { tenant: 2"),
        (SlotDescriptor::new(0x99), "Err(UnknownOpcode"),
        (packed(&[PackedOpDescriptor::new(ADD_ONE as u8)]), "Ok"),
        (packed(&[PackedOpDescriptor::new(0x99)]), "Err(MalformedDescriptor"),
        (packed(&[PackedOpDescriptor::new(REQUEUE_FOR_EVER as u8)]), "Err(MalformedDescriptor"),
        (packed(&[PackedOpDescriptor::new(0)]).tenant(1), "Err(PermissionDenied { tenant: 1"),
    ] {
        let got = format!("{:?}", megakernel.check(&descriptor));
        assert!(got.starts_with(expected), "{descriptor:?}: {got}");
    }
}

#[test]
fn handlers_that_cannot_be_are_refused_by_name() {
    let nothing = |opcode: u32, name: &str| OpcodeHandler::new(opcode, name, |_| ());
    let binding = |binding: HandlerBinding| nothing(9, "bound").binding(binding);
    let data = || HandlerBinding::read("data", DataType::U32);
    let cases: Vec<(&str, Vec<OpcodeHandler>, &str)> = vec![
        ("a reserved opcode", vec![nothing(7, "fence")], "ReservedOpcode"),
        ("two of one opcode", vec![nothing(8, "a"), nothing(8, "b")], "DuplicateOpcode"),
        ("257 handlers", (0..257).map(|n| nothing(8 + n, "many")).collect(), "InvalidGeometry"),
        ("no name", vec![nothing(8, "")], "InvalidHandler"),
        ("a name that is none", vec![nothing(8, "a b")], "InvalidHandler"),
        ("a long name", vec![nothing(8, &"a".repeat(49))], "InvalidHandler"),
        (
            "workgroup memory of a lane",
            vec![nothing(8, "a").workgroup_buffer("m", DataType::U32, 1)],
            "InvalidHandler",
        ),
        (
            "a thirteenth argument",
            vec![OpcodeHandler::new(8, "a", |h| h.complete(h.arg(12)))],
            "InvalidHandler",
        ),
        (
            "an undeclared buffer",
            vec![OpcodeHandler::new(8, "a", |h| h.complete(h.buffer("data").load(0)))],
            "InvalidHandler",
        ),
        (
            "a grid barrier",
            vec![OpcodeHandler::new(8, "a", |h| {
                h.if_(h.arg(0).eq_(0), |h| h.push(vyre_foundation::Node::GridBarrier));
            })],
            "InvalidHandler",
        ),
        (
            "13 words to requeue",
            vec![OpcodeHandler::new(8, "a", |h| h.requeue([0_u32; 13]))],
            "InvalidHandler",
        ),
        ("a barrier in a lane", vec![OpcodeHandler::new(8, "a", |h| h.barrier())], "Validation"),
        (
            "a barrier for some",
            vec![
                OpcodeHandler::new(8, "a", |h| {
                    let id = vyre_foundation::Builtin::LocalId(vyre_foundation::Axis::X);
                    h.if_(vyre_foundation::builder::Value::from(id).eq_(0), |h| h.barrier());
                })
                .granularity(Granularity::Workgroup),
            ],
            "Validation",
        ),
        (
            "a type error",
            vec![OpcodeHandler::new(8, "a", |h| h.complete(h.ticket() + h.arg(0)))],
            "Validation",
        ),
        (
            "a system buffer's name",
            vec![binding(HandlerBinding::read("tenants", DataType::U32))],
            "InvalidBinding",
        ),
        (
            "a batch buffer's name",
            vec![binding(HandlerBinding::read("batch_io", DataType::U32))],
            "InvalidBinding",
        ),
        (
            "a binding in workgroup memory",
            vec![binding(data().in_space(MemorySpace::Workgroup))],
            "InvalidBinding",
        ),
        (
            "two element types",
            vec![binding(data()), nothing(10, "other").binding(HandlerBinding::read("data", DataType::U8))],
            "InvalidBinding",
        ),
        (
            "two backings",
            vec![binding(data()), nothing(10, "other").binding(data().backing(Backing::Volatile))],
            "InvalidBinding",
        ),
    ];
    for (what, handlers, expected) in cases {
        let refused = Megakernel::bootstrap_with_opcodes(cpu(), handlers).expect_err(what);
        assert!(format!("{refused:?}").starts_with(expected), "{what}: {refused:?}");
    }
}

#[test]
fn what_else_a_builder_refuses() {
    let builder = || Megakernel::builder(cpu()).handler(add_one());
    let reads = OpcodeHandler::new(COUNT, "reads", |h| h.complete(h.buffer("data").load(0)))
        .binding(HandlerBinding::read("data", DataType::U32).min_len(2));
    for (what, builder, expected) in [
        ("no slots", builder().slots(0), "InvalidGeometry"),
        ("slots that are no multiple", builder().slots(255), "InvalidGeometry"),
        ("an empty workgroup", builder().workgroup_size(0), "InvalidGeometry"),
        ("too many slots", builder().slots(1 << 25), "InvalidGeometry"),
        ("a workgroup past the backend's", builder().slots(4096).workgroup_size(4096), "InvalidGeometry"),
        ("tenant 4096", builder().tenant(4096, TenantConfig::all()), "InvalidGeometry"),
        (
            "a permission without a handler",
            builder().tenant(1, TenantConfig::permitting([0x99])),
            "UnknownOpcode",
        ),
        (
            "windows without end",
            builder().tenant(1, TenantConfig::all().window(u32::MAX, u32::MAX)),
            "InvalidGeometry",
        ),
        ("a binding nobody names", builder().bind_zeroed("nobody", 1), "InvalidBinding"),
        (
            "half an element",
            builder().handler(reads.clone()).bind_bytes("data", vec![0; 9]),
            "InvalidBinding",
        ),
        ("too few elements", builder().handler(reads).bind_zeroed("data", 1), "InvalidBinding"),
    ] {
        let refused = builder.build().expect_err(what);
        assert!(format!("{refused:?}").starts_with(expected), "{what}: {refused:?}");
    }
}

#[test]
fn bindings_are_shared_and_bound() {
    let bins = || HandlerBinding::read_write("bins", DataType::U32);
    let count = OpcodeHandler::new(COUNT, "count", |h| {
        let old = h.atomic_add(h.buffer("bins"), h.arg(0), 1);
        h.complete(old);
    })
    .binding(bins());
    let read = OpcodeHandler::new(0x43, "read_bin", |h| h.complete(h.buffer("bins").load(h.arg(0))))
        .binding(HandlerBinding { access: BufferAccess::Read, ..bins() });
    let build = || Megakernel::builder(cpu()).handler(read.clone()).handler(count.clone());
    let megakernel = build().bind_bytes("bins", [5, 0, 0, 0, 9, 0, 0, 0]).build().expect("bound");
    let mut batch = megakernel.batch_buffers();
    for (slot, opcode, arg) in [(0, COUNT, 1), (1, 0x43, 0), (2, COUNT, 7)] {
        batch.ring.publish(slot, &SlotDescriptor::new(opcode).args([arg])).expect("free");
    }
    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
    // Past the end, an atomic does nothing and yields zero.
    for (slot, expected) in [(0, 9), (1, 5), (2, 0)] {
        assert_eq!(batch.ring.completion(slot).expect("well formed").result, expected);
    }
    let bound = megakernel.buffer("bins").expect("bound");
    let mut bytes = [0; 8];
    megakernel.backend().read_buffer(bound.buffer, 0, &mut bytes).expect("readable");
    assert_eq!(bytes, [5, 0, 0, 0, 10, 0, 0, 0]);

    let unbound = build().build().expect("a session may bind it");
    let refused = unbound.dispatch(&mut unbound.batch_buffers(), &DispatchOptions::default());
    assert!(matches!(refused, Err(MegakernelError::InvalidBinding { .. })), "{refused:?}");
}

#[test]
fn statistics_are_what_happened() {
    let megakernel = small();
    let mut batch = megakernel.batch_buffers();
    batch.ring.publish(0, &SlotDescriptor::new(ADD_ONE).args([1])).expect("free");
    let bytes: usize = [
        batch.control.as_bytes(),
        batch.ring.as_bytes(),
        batch.debug_log.as_bytes(),
        batch.io_queue.as_bytes(),
    ]
    .iter()
    .map(|part| part.len())
    .sum();
    let input = batch.clone();
    let first = megakernel.dispatch((&input, &mut batch), &DispatchOptions::default()).expect("runs");
    // The limit of the slots that run is written apart.
    assert_eq!(first.input_bytes, bytes as u64 + 4);
    assert_eq!((first.output_bytes, first.readback_bytes), (bytes as u64, bytes as u64));
    assert_eq!(first.moved_bytes, first.input_bytes + first.readback_bytes);
    assert_eq!((first.output_buffers, first.resident_rows, first.resident_handles), (4, 0, 0));
    assert_eq!((first.allocation_events, first.launches, first.sync_points), (5, 1, 1));
    assert!(first.allocation_bytes >= bytes as u64 && first.latency >= first.device_time);
    assert!(!first.recovered);
    assert_eq!(input.ring.completion(0).expect("well formed").status, Status::Empty);
    assert_eq!(batch.ring.completion(0).expect("well formed").result, 2);

    let second = megakernel.dispatch((&input, &mut batch), &DispatchOptions::default()).expect("runs");
    assert_eq!((second.allocation_events, second.allocation_bytes, second.resident_handles), (0, 0, 5));
}

#[test]
fn a_batch_that_never_ends_meets_its_deadline() {
    let megakernel = small();
    let mut batch = megakernel.batch_buffers();
    batch.ring.publish(0, &SlotDescriptor::new(REQUEUE_FOR_EVER)).expect("free");
    let before = batch.clone();
    let options = DispatchOptions {
        deadline: Duration::from_millis(20),
        label: Some("endless".to_owned()),
        ..DispatchOptions::default()
    };
    let refused = megakernel.dispatch(&mut batch, &options);
    assert!(matches!(refused, Err(MegakernelError::Deadline { .. })), "{refused:?}");
    assert_eq!(batch, before);
}

#[test]
fn threads_share_a_megakernel() {
    let megakernel = small();
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let megakernel = &megakernel;
            scope.spawn(move || {
                let mut batch = megakernel.batch_buffers();
                for round in 0..50 {
                    batch.ring = megakernel.batch_buffers().ring;
                    for slot in 0..16 {
                        let item = SlotDescriptor::new(ADD_ONE).args([thread * 1000 + round * 16 + slot]);
                        batch.ring.publish(slot as usize, &item).expect("free");
                    }
                    megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
                    for slot in 0..16 {
                        let completion = batch.ring.completion(slot as usize).expect("well formed");
                        assert_eq!(completion.result, u64::from(thread * 1000 + round * 16 + slot + 1));
                    }
                }
                assert_eq!(batch.control.done_count(), 50 * 16);
            });
        }
    });
}

#[test]
fn buffers_of_another_megakernel_are_refused() {
    let (ours, other) = (small(), Megakernel::bootstrap(cpu()).expect("the default"));
    let mut buffers = other.batch_buffers();
    let refused = ours.dispatch(&mut buffers, &DispatchOptions::default());
    assert!(matches!(refused, Err(MegakernelError::MalformedBuffer { .. })), "{refused:?}");
    let resident = other.upload(&buffers).expect("its own");
    let refused = ours.dispatch(&resident, &DispatchOptions::default());
    assert!(matches!(refused, Err(MegakernelError::MalformedBuffer { .. })), "{refused:?}");
    let mut own = ours.batch_buffers();
    let refused = ours.download(&resident, &mut own);
    assert!(matches!(refused, Err(MegakernelError::MalformedBuffer { .. })), "{refused:?}");
}

#[test]
fn geometry_and_identity() {
    let cache = Arc::new(PipelineCache::new());
    let backend = cpu();
    let build = |slots| {
        let builder = Megakernel::builder(Arc::clone(&backend) as _).pipeline_cache(Arc::clone(&cache));
        builder.slots(slots).handler(add_one()).build().expect("built")
    };
    let (one, two) = (build(768), build(256));
    assert_eq!((one.slot_count(), one.workgroup_size_x(), one.worker_groups()), (768, 256, 3));
    assert_eq!(one.pipeline_id(), two.pipeline_id());
    assert_eq!(cache.len(), 1);
    // Another backend of the same identity has other buffers.
    let other = Megakernel::builder(cpu()).pipeline_cache(Arc::clone(&cache)).handler(add_one());
    let other = other.build().expect("built");
    for megakernel in [&other, &two] {
        let mut batch = megakernel.batch_buffers();
        batch.ring.publish(0, &SlotDescriptor::new(ADD_ONE).args([1])).expect("free");
        megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
        assert_eq!(batch.ring.completion(0).expect("well formed").result, 2);
    }
    let jit = Megakernel::bootstrap_jit(backend, |h| h.complete(h.arg(0) * h.arg(1))).expect("built");
    assert_ne!(jit.pipeline_id().program, one.pipeline_id().program);
    let mut batch = jit.batch_buffers();
    let fused = SlotDescriptor::new(vyre_runtime::megakernel::FUSED_OPCODE).args([6, 7]);
    batch.ring.publish(255, &fused).expect("free");
    jit.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
    assert_eq!(batch.ring.completion(255).expect("well formed").result, 42);
    let sharded = Megakernel::bootstrap_sharded(cpu(), 96, 32).expect("built");
    assert_eq!(sharded.worker_groups(), 3);
}

#[test]
fn force_is_passed_on_to_the_backend() {
    let megakernel = small();
    for persistent in [PersistentThreadMode::Auto, PersistentThreadMode::Force, PersistentThreadMode::Disable]
    {
        let options = DispatchOptions { persistent, ..DispatchOptions::default() };
        megakernel.dispatch(&mut megakernel.batch_buffers(), &options).expect("the CPU can");
    }
}

#[test]
fn malformed_bytes_are_refused_with_a_remedy() {
    let megakernel = small();
    let parts = || {
        let BatchBuffers { control, ring, debug_log, io_queue } = megakernel.batch_buffers();
        [control.into_bytes(), ring.into_bytes(), debug_log.into_bytes(), io_queue.into_bytes()]
    };
    let decode = |[control, ring, log, io]: [Vec<u8>; 4]| {
        BatchBuffers::from_bytes(megakernel.layout(), 16, control, ring, log, Some(io))
    };
    assert_eq!(decode(parts()).expect("its own bytes"), megakernel.batch_buffers());
    for part in 0..4 {
        for change in
            [|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1), |bytes: &mut Vec<u8>| bytes.push(0)]
        {
            let mut bytes = parts();
            change(&mut bytes[part]);
            let refused = decode(bytes);
            assert!(matches!(refused, Err(MegakernelError::MalformedBuffer { .. })), "{part}: {refused:?}");
        }
    }
    // Each word of the header that is fixed, and a window past the end.
    let window_of_tenant_1 = megakernel.layout().tenants_offset() as usize + 16 + 10;
    for word in (0..6).chain([window_of_tenant_1]) {
        let mut bytes = parts();
        bytes[0][word * 4 + 1] ^= 0x80;
        let refused = decode(bytes);
        assert!(matches!(refused, Err(MegakernelError::MalformedBuffer { .. })), "{word}: {refused:?}");
    }
    let mut bytes = parts();
    bytes[1][16 * 64 + 12..16 * 64 + 16].copy_from_slice(&0x0001_0005_u32.to_le_bytes());
    assert!(matches!(decode(bytes), Err(MegakernelError::MalformedBuffer { .. })));
    let [control, ring, log, _] = parts();
    let without = BatchBuffers::from_bytes(megakernel.layout(), 16, control, ring, log, None);
    assert_eq!(without.expect("an IO queue is made").io_queue, IoQueueBuffer::default());
}

fn any_image() -> impl Strategy<Value = SlotImage> {
    (any::<u32>(), any::<u16>(), 0_u16..8, any::<[u32; 12]>())
        .prop_map(|(opcode, tenant, flags, args)| SlotImage { opcode, tenant, flags, args })
}

/// Operations that can neither fault nor requeue, and some that cannot be packed.
fn any_packed_words() -> impl Strategy<Value = [u32; 12]> {
    let opcode = prop_oneof![
        4 => Just(BuiltinOpcode::Nop.wire()),
        4 => Just(ADD_ONE),
        1 => prop_oneof![Just(7), Just(REQUEUE_FOR_EVER), Just(0x99)],
    ];
    let op = (opcode, prop_oneof![8 => 0_u32..4, 1 => 0_u32..14]);
    let ops = prop::collection::vec(op, 23);
    (
        ops,
        prop_oneof![8 => 0_u32..5, 1 => 0_u32..25],
        prop_oneof![8 => 0_u32..10, 1 => any::<u8>().prop_map(u32::from)],
        any::<bool>(),
    )
        .prop_map(|(mut ops, count, total, sorted)| {
            if sorted {
                ops.sort_by_key(|&(_, begin)| begin);
            }
            let mut words = [0; 12];
            words[0] = count | total << 8;
            for (at, (opcode, begin)) in (1..).zip(ops.into_iter().take(count as usize)) {
                if let Some(word) = words.get_mut(at / 2) {
                    *word |= (opcode | begin << 8) << (at % 2 * 16);
                }
            }
            words
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_ring_gives_back_what_was_published(images in prop::collection::vec((any_image(), 0_usize..16), 0..16)) {
        let mut ring = RingBuffer::from_bytes(16, vec![0; 16 * 80]).expect("zeros");
        let mut expected = [None; 16];
        for (image, slot) in images {
            let published = ring.publish(slot, &image);
            prop_assert_eq!(published.is_ok(), expected[slot].is_none());
            expected[slot].get_or_insert(image);
        }
        let again = RingBuffer::from_bytes(16, ring.into_bytes()).expect("its own bytes");
        for (slot, expected) in expected.into_iter().enumerate() {
            prop_assert_eq!(again.slot(slot), expected);
        }
    }

    #[test]
    fn views_of_any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 16 * 80), io in prop::collection::vec(any::<u8>(), 3072)) {
        if let Ok(ring) = RingBuffer::from_bytes(16, bytes) {
            (0..20).for_each(|slot| { let _ = (ring.slot(slot), ring.completion(slot)); });
        }
        let mut io = IoQueueBuffer::from_bytes(io).expect("the length is right");
        for place in io.requests().map(|(place, _)| place).collect::<Vec<_>>() {
            let reply = IoReply::Done { bytes: 1 };
            prop_assert!(io.reply(place, reply).is_ok());
            prop_assert!(io.reply(place, reply).is_err());
        }
        let past_the_end = io.reply(64, IoReply::Failed { errno: 1 });
        prop_assert!(past_the_end.is_err());
    }

    #[test]
    fn host_and_device_agree_on_what_is_packed_right(slots in prop::collection::vec(any_packed_words(), 16)) {
        thread_local!(static MEGAKERNEL: Megakernel = small());
        MEGAKERNEL.with(|megakernel| {
            let mut batch = megakernel.batch_buffers();
            for (slot, words) in slots.iter().enumerate() {
                let image = SlotImage::new(BuiltinOpcode::PackedSlot.wire(), *words);
                batch.ring.publish(slot, &image).expect("free");
            }
            megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
            for (slot, words) in slots.iter().enumerate() {
                let image = SlotImage::new(BuiltinOpcode::PackedSlot.wire(), *words);
                let completion = batch.ring.completion(slot).expect("well formed");
                match megakernel.check(&image) {
                    Ok(()) => {
                        let last = decode(words).expect("checked").pop().expect("not empty");
                        let arg = last.arg_words().first().copied().unwrap_or(0);
                        let is_add = last.opcode().wire() == ADD_ONE;
                        let result = if is_add { u64::from(arg.wrapping_add(1)) } else { 0 };
                        assert_eq!((completion.status, completion.result), (Status::Done, result), "{words:x?}");
                    }
                    Err(_) => assert_eq!(completion.as_fault(), Some(Fault::BadPacking), "{words:x?}"),
                }
            }
        });
    }
}
