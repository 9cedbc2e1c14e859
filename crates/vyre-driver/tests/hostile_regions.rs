//! The other side may be mad: headers that lie, completions that nobody could have written, noise.
#![cfg(not(loom))]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vyre_driver::io_queue::{DeviceIo, HostIo, IoReply, IoRequest};
use vyre_driver::layout::{FIRST_TICKET_END, HEADER_BYTES, HeaderField, RegionConfig, RegionLayout};
use vyre_driver::protocol::io;
use vyre_driver::region::{SessionRegions, SharedRegion};
use vyre_driver::ring::{
    Completion, ProducerOptions, RingConsumer, RingError, RingProducer, SlotImage, Ticket,
};
use vyre_driver::view::{DeviceView, HostView, InFlight};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn config() -> RegionConfig {
    RegionConfig {
        rings: vec![4, 1],
        tenant_bytes: 100,
        arena_bytes: 4096,
        io_entries: 2,
        workers: 3,
        mirror_bytes: 64,
    }
}

/// The region with one field changed.
fn corrupt(region: &SharedRegion, field: &HeaderField, value: u64) -> Outcome {
    let bytes = value.to_le_bytes();
    region.copy_in(field.offset, &bytes[..field.width as usize])?;
    Ok(())
}

#[test]
fn every_header_field_is_checked() -> Outcome {
    let regions = SessionRegions::create(&config())?;
    DeviceView::new(&regions)?;
    let layout = &regions.layout;
    assert_eq!(RegionLayout::read_h2d_header(&regions.h2d)?, **layout);
    layout.check_d2h_header(&regions.d2h)?;
    let tables = [(layout.h2d_fields(), &regions.h2d), (layout.d2h_fields(), &regions.d2h)];
    for (which, (fields, region)) in tables.into_iter().enumerate() {
        let check = || match which {
            0 => RegionLayout::read_h2d_header(region).map(|_| ()),
            _ => layout.check_d2h_header(region),
        };
        for field in &fields {
            let wrong = [0, 1, 3, field.value ^ 1, field.value << 1, field.value + 64, u64::MAX];
            for value in wrong {
                let value = if field.width == 4 { value & 0xFFFF_FFFF } else { value };
                if value != field.value {
                    corrupt(region, field, value)?;
                    assert!(check().is_err(), "{} = {value:#x} was believed", field.name);
                }
            }
            corrupt(region, field, field.value)?;
            check()?;
        }
        for offset in 0..HEADER_BYTES {
            if !fields.iter().any(|field| (field.offset..field.offset + field.width).contains(&offset)) {
                region.copy_in(offset, &[1])?;
                assert!(check().is_err(), "byte {offset} was not looked at");
                region.copy_in(offset, &[0])?;
            }
        }
        check()?;
    }
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_laid_out_is_refused_by_field() {
    type Change = fn(&mut RegionConfig);
    let cases: &[(&str, Change)] = &[
        ("rings", |c| c.rings.clear()),
        ("rings", |c| c.rings = vec![1; 9]),
        ("ring capacity", |c| c.rings[0] = 0),
        ("ring capacity", |c| c.rings[0] = 3),
        ("ring capacity", |c| c.rings[1] = 1 << 25),
        ("workers", |c| c.workers = 0),
        ("workers", |c| c.workers = u32::MAX),
        ("io entries", |c| c.io_entries = 0),
        ("io entries", |c| c.io_entries = 48),
        ("tenant table bytes", |c| c.tenant_bytes = u64::MAX),
        ("mirror bytes", |c| c.mirror_bytes = u64::MAX),
        ("arena bytes", |c| c.arena_bytes = 17),
        ("arena bytes", |c| c.arena_bytes = u64::MAX),
    ];
    for (name, change) in cases {
        let mut config = config();
        change(&mut config);
        match RegionLayout::new(&config) {
            Err(RingError::Config { field, .. }) => assert_eq!(field, *name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn mappings_of_one_region_are_known_by_its_memory() -> Outcome {
    let (one, another) = (SharedRegion::create(4096)?, SharedRegion::create(4096)?);
    let again = SharedRegion::from_fd(one.fd().try_clone_to_owned()?, true)?;
    assert!(one.is_same_memory(&again)? && again.is_same_memory(&one)?);
    drop(one);
    assert!(again.is_same_memory(&again)? && !again.is_same_memory(&another)?);
    Ok(())
}

#[test]
fn regions_that_are_no_regions_are_refused() -> Outcome {
    let path = std::env::temp_dir().join(format!("vyre-not-a-memfd-{}", std::process::id()));
    std::fs::write(&path, [0; 4096])?;
    let file = OwnedFd::from(File::open(&path)?);
    std::fs::remove_file(&path)?;
    assert!(matches!(SharedRegion::from_fd(file, false), Err(RingError::Os { .. } | RingError::Unsealed)));

    let fd = rustix::fs::memfd_create(c"unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, 4096)?;
    assert!(matches!(SharedRegion::from_fd(fd, true), Err(RingError::Unsealed)));

    let regions = SessionRegions::create(&config())?;
    let short = SharedRegion::create(4096)?;
    regions.layout.write_h2d_header(&short)?;
    assert!(matches!(RegionLayout::read_h2d_header(&short), Err(RingError::RegionSize { .. })));
    let attached =
        SessionRegions::attach(regions.h2d.fd().try_clone_to_owned()?, short.fd().try_clone_to_owned()?);
    assert!(matches!(attached, Err(RingError::RegionSize { .. })));
    let tiny = SharedRegion::create(16)?;
    assert!(matches!(RegionLayout::read_h2d_header(&tiny), Err(RingError::OutOfRegion { .. })));
    assert!(SharedRegion::create(0).is_err());
    Ok(())
}

#[test]
fn a_read_only_mapping_takes_no_store() -> Outcome {
    let regions = SessionRegions::create(&config())?.for_host()?;
    let d2h = &regions.d2h;
    assert!(!d2h.is_writable());
    assert!(matches!(d2h.atomic_u32(0), Err(RingError::ReadOnly)));
    assert!(matches!(d2h.atomic_u64(0), Err(RingError::ReadOnly)));
    assert!(matches!(d2h.copy_in(0, &[1]), Err(RingError::ReadOnly)));
    assert!(matches!(RingConsumer::new(&regions, 0), Err(RingError::ReadOnly)));
    assert!(matches!(DeviceIo::new(&regions), Err(RingError::ReadOnly)));
    // Its memory can be given back all the same.
    regions.d2h.discard()?;
    // The host's halves need no more.
    RingProducer::new(&regions, 0, ProducerOptions::default())?;
    HostIo::new(&regions)?;
    assert_eq!(HostView::new(&regions)?.heartbeat()?, 0);
    Ok(())
}

#[test]
fn accesses_outside_or_askew_are_refused() -> Outcome {
    let region = SharedRegion::create(4096)?;
    for offset in [4096, 4095, 4093, 2, u64::MAX, u64::MAX - 3] {
        assert!(region.atomic_u32(offset).is_err(), "{offset}");
        assert!(region.word_u64(offset).is_err(), "{offset}");
    }
    assert!(region.copy_in(4090, &[0; 7]).is_err());
    assert!(region.copy_out(u64::MAX, &mut [0; 7]).is_err());
    let bytes: Vec<u8> = (0..100).collect();
    for offset in 0..16 {
        region.copy_in(offset, &bytes)?;
        let mut back = [0; 100];
        region.copy_out(offset, &mut back)?;
        assert_eq!(bytes, back);
    }
    let other = region.read_only()?;
    region.discard()?;
    let mut back = [1; 100];
    other.copy_out(0, &mut back)?;
    assert_eq!(back, [0; 100]);
    region.copy_in(0, &bytes)?;
    other.copy_out(0, &mut back)?;
    assert_eq!(bytes, back);
    Ok(())
}

fn image(n: u32) -> SlotImage {
    SlotImage::new(n, [n; 12])
}

/// What a completion's tag does to the item waiting for it.
#[derive(Debug, PartialEq)]
enum Verdict {
    Believed,
    Ignored,
    Refused,
}

#[test]
fn a_completion_is_believed_only_with_the_right_lap_and_a_final_status() -> Outcome {
    // The item under test is in lap 3 of its slot.
    let table = [
        (0, 0, Verdict::Ignored),
        (1, 3, Verdict::Ignored),
        (2, 3, Verdict::Ignored),
        (2, 9, Verdict::Ignored),
        (3, 3, Verdict::Believed),
        (3, 7, Verdict::Believed),
        (3, 0, Verdict::Refused),
        (3, 1, Verdict::Refused),
        (3, 4, Verdict::Refused),
        (3, 6, Verdict::Refused),
        (3, 0xFFFF, Verdict::Refused),
        (4, 3, Verdict::Refused),
        (0x7FFF, 3, Verdict::Refused),
        (0xFFFF, 3, Verdict::Ignored),
    ];
    for (lap, status, verdict) in table {
        let regions = SessionRegions::create(&RegionConfig::new(2))?;
        let producer =
            RingProducer::new(&regions, 0, ProducerOptions { first_ticket: 4, ..Default::default() })?;
        let ticket = producer.submit(&image(1))?;
        let at = regions.layout.ring(0)?.completions.offset;
        let word = |tag: u32| u64::from(tag) << 32 | 77;
        regions.d2h.atomic_u64(at)?.store(0x1234_5678_9ABC, Ordering::Relaxed);
        regions.d2h.atomic_u64(at + 8)?.store(word(lap << 16 | status), Ordering::Release);
        let got = match ticket.poll() {
            Ok(Some(completion)) => {
                assert_eq!((completion.code(), completion.result()), (77, 0x1234_5678_9ABC));
                Verdict::Believed
            }
            Ok(None) => Verdict::Ignored,
            Err(RingError::Violation { ring: 0, ticket: 4, tag, lap: 3 }) => {
                assert_eq!(tag, lap << 16 | status);
                Verdict::Refused
            }
            Err(error) => return Err(error.into()),
        };
        assert_eq!(got, verdict, "lap {lap} status {status}");
        let refused = u64::from(got == Verdict::Refused);
        assert_eq!(producer.counters().violations, refused);
        // Whatever it was, the item can still end.
        let ended = producer.fail(4, vyre_driver::Fault::DeviceLost)?;
        assert!(ended || got == Verdict::Believed);
    }
    Ok(())
}

#[test]
fn tickets_of_another_ring_or_of_no_ring_are_refused() -> Outcome {
    let regions = SessionRegions::create(&config())?;
    let producer = RingProducer::new(&regions, 0, ProducerOptions::default())?;
    let other = RingProducer::new(&regions, 1, ProducerOptions::default())?;
    let ticket = producer.submit(&image(1))?;
    assert!(matches!(other.take_raw(ticket.raw()), Err(RingError::Foreign { what: "ticket" })));
    assert!(matches!(other.poll_raw(ticket.raw()), Err(RingError::Foreign { .. })));
    assert!(matches!(other.forget_raw(ticket.raw()), Err(RingError::Foreign { .. })));
    assert!(matches!(other.adopt(ticket.raw()), Err(RingError::Foreign { .. })));
    assert!(matches!(producer.fail(1, vyre_driver::Fault::Quota), Err(RingError::NotIssued { ticket: 1 })));
    assert!(matches!(producer.fail(1 << 40, vyre_driver::Fault::Quota), Err(RingError::NotIssued { .. })));
    assert!(matches!(
        RingProducer::new(&regions, 2, ProducerOptions::default()),
        Err(RingError::NoSuchRing { .. })
    ));

    // Both rings at once: tickets, slots and completions do not mix.
    let (first, second) = (RingConsumer::new(&regions, 0)?, RingConsumer::new(&regions, 1)?);
    let there = other.submit(&image(2))?;
    let claimed = second.claim().ok_or("published, yet not claimable")?;
    assert_eq!(claimed.image, image(2));
    assert!(matches!(
        first.complete(claimed.ticket, Completion::done(0)),
        Err(RingError::Foreign { what: "claimed ticket" })
    ));
    let claimed = first.claim().ok_or("published, yet not claimable")?;
    first.complete(claimed.ticket, Completion::done(5))?;
    assert_eq!((ticket.poll()?, there.poll()?), (Some(Completion::done(5)), None));
    Ok(())
}

#[test]
fn reserved_flags_never_reach_a_slot() -> Outcome {
    let regions = SessionRegions::create(&RegionConfig::new(2))?;
    let producer = RingProducer::new(&regions, 0, ProducerOptions::default())?;
    let consumer = RingConsumer::new(&regions, 0)?;
    for bit in 3..16 {
        let bad = SlotImage { flags: 1 << bit, ..image(1) };
        assert!(matches!(producer.submit(&bad), Err(RingError::ReservedFlags { .. })));
        assert!(matches!(producer.submit_batch(&[image(0), bad]), Err(RingError::ReservedFlags { .. })));
    }
    assert_eq!(producer.counters().published, 0);
    producer.submit_detached(&SlotImage { flags: 7, ..image(1) })?;
    // A producer that does not check: the consumer takes the priority bits and nothing else.
    let hi = regions.layout.ring(0)?.slots.offset + 56;
    regions.h2d.atomic_u64(hi)?.fetch_or(0xFFF8 << 32, Ordering::Relaxed);
    assert_eq!(consumer.claim().map(|claimed| claimed.image.flags), Some(7));
    Ok(())
}

#[test]
fn views_carry_what_they_say_and_check_their_ranges() -> Outcome {
    let regions = SessionRegions::create(&config())?;
    let host = HostView::new(&regions.for_host()?)?;
    assert!(host.check_device_header().is_err());
    let device = DeviceView::new(&regions)?;
    host.check_device_header()?;
    host.renew_lease()?;
    host.set_abort(true)?;
    assert_eq!((device.lease()?, device.is_aborted()?), (1, true));
    host.set_abort(false)?;
    assert!(!device.is_aborted()?);
    device.beat()?;
    assert_eq!(host.heartbeat()?, 1);
    let busy = InFlight { ring: 1, first: (1 << 52) + 5, count: 256 };
    device.set_in_flight(2, Some(busy))?;
    assert_eq!((host.in_flight(2)?, host.in_flight(1)?), (Some(busy), None));
    device.set_in_flight(2, None)?;
    assert_eq!(host.in_flight(2)?, None);
    assert!(matches!(host.in_flight(3), Err(RingError::NoSuchWorker { worker: 3, workers: 3 })));
    device.write_mirror(60, &[1, 2, 3, 4])?;
    let mut back = [0; 4];
    host.read_mirror(60, &mut back)?;
    assert_eq!(back, [1, 2, 3, 4]);
    assert!(matches!(host.read_mirror(61, &mut back), Err(RingError::OutOfRange { .. })));
    assert!(matches!(device.write_mirror(u64::MAX, &[1]), Err(RingError::OutOfRange { .. })));
    host.write_tenants(96, &[9; 4])?;
    assert!(matches!(host.write_tenants(97, &[9; 4]), Err(RingError::OutOfRange { .. })));
    Ok(())
}

fn fill(region: &SharedRegion, from: u64, noise: &[u64]) -> Outcome {
    for (offset, word) in (from..region.len()).step_by(8).zip(noise.iter().cycle()) {
        region.atomic_u64(offset)?.store(*word, Ordering::Relaxed);
    }
    Ok(())
}

proptest! {
    #[test]
    fn noise_in_d2h_never_panics_and_never_ends_an_item_twice(noise in prop::collection::vec(any::<u64>(), 1..40)) {
        let outcome = (|| -> Outcome {
            let regions = SessionRegions::create(&config())?;
            let producer = RingProducer::new(&regions, 0, ProducerOptions::default())?;
            let io = HostIo::new(&regions)?;
            let mut tickets: Vec<Ticket> = producer.submit_batch(&[image(1); 4])?.collect();
            fill(&regions.d2h, 0, &noise)?;
            let mut ended = 0;
            for ticket in &mut tickets {
                ended += u64::from(matches!(ticket.take(), Ok(Some(_))));
            }
            assert_eq!(producer.counters().completed, ended);
            drop(tickets);
            let counters = producer.counters();
            assert_eq!(counters.published, counters.completed + counters.outstanding);
            assert!(regions.layout.check_d2h_header(&regions.d2h).is_err());
            let host = HostView::new(&regions)?;
            for worker in 0..3 {
                host.in_flight(worker)?;
            }
            while let Some((number, _)) = io.next_request() {
                io.reply(number, IoReply::Failed { errno: 22 })?;
            }
            Ok(())
        })();
        prop_assert!(outcome.is_ok(), "{outcome:?}");
    }

    #[test]
    fn noise_in_h2d_never_panics(noise in prop::collection::vec(any::<u64>(), 1..40), header in any::<bool>()) {
        let outcome = (|| -> Outcome {
            let regions = SessionRegions::create(&config())?;
            fill(&regions.h2d, if header { 0 } else { HEADER_BYTES }, &noise)?;
            assert_eq!(RegionLayout::read_h2d_header(&regions.h2d).is_err(), header);
            let start = regions.h2d.atomic_u64(regions.layout.ring(0)?.start_record.offset)?;
            if start.load(Ordering::Relaxed) >= FIRST_TICKET_END {
                let refused = RingConsumer::new(&regions, 0);
                assert!(matches!(refused, Err(RingError::Config { field: "first ticket", .. })));
                start.fetch_and(FIRST_TICKET_END - 1, Ordering::Relaxed);
            }
            let consumer = RingConsumer::new(&regions, 0)?;
            let mut images = [SlotImage::default(); 8];
            for _ in 0..100 {
                consumer.is_ready();
                for claim in consumer.claim_batch(&mut images) {
                    consumer.complete(claim, Completion::done(1))?;
                }
            }
            let io = DeviceIo::new(&regions)?;
            let request = IoRequest { operation: io::READ, tenant: 1, source: 2, destination: 3, offset: 4, bytes: 5 };
            for _ in 0..4 {
                if let Some(number) = io.post(&request) {
                    io.poll(number)?;
                }
            }
            Ok(())
        })();
        prop_assert!(outcome.is_ok(), "{outcome:?}");
    }
}
