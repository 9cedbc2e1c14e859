//! The payload arena and the IO queue.
#![cfg(not(loom))]

use proptest::prelude::*;
use vyre_driver::Fault;
use vyre_driver::arena::{ARENA_ALIGN, Arena, ArenaRange};
use vyre_driver::io_queue::{DeviceIo, HostIo, IoReply, IoRequest};
use vyre_driver::layout::RegionConfig;
use vyre_driver::protocol::io;
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{Completion, ProducerOptions, RingConsumer, RingError, RingProducer, SlotImage};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn regions() -> Result<SessionRegions, RingError> {
    SessionRegions::create(&RegionConfig { arena_bytes: 4096, io_entries: 4, ..RegionConfig::new(4) })
}

#[test]
fn a_range_is_written_by_copying_and_read_through_another_mapping() -> Outcome {
    let regions = regions()?;
    let arena = Arena::new(&regions)?;
    let mut range = arena.alloc(100)?;
    assert_eq!((range.len(), range.region_offset() % ARENA_ALIGN), (100, 0));
    range.write(10, b"payload")?;
    let mut back = [0; 7];
    regions.h2d.read_only()?.copy_out(range.region_offset() + 10, &mut back)?;
    assert_eq!(&back, b"payload");
    assert!(matches!(range.write(94, b"payload"), Err(RingError::OutOfRange { len: 100, .. })));
    assert!(matches!(range.write(u64::MAX, b"payload"), Err(RingError::OutOfRange { .. })));
    Ok(())
}

#[test]
fn a_full_arena_would_block_and_an_impossible_range_never_fits() -> Outcome {
    let arena = Arena::new(&regions()?)?;
    let all = arena.alloc(4096)?;
    assert!(matches!(arena.alloc(1), Err(RingError::ArenaFull { requested: 1 })));
    assert_eq!(arena.free_bytes(), 0);
    drop(all);
    assert_eq!(arena.free_bytes(), 4096);
    assert!(matches!(arena.alloc(4097), Err(RingError::RangeTooLarge { requested: 4097, capacity: 4096 })));
    assert!(arena.alloc(0)?.is_empty());
    let empty = SessionRegions::create(&RegionConfig::new(1))?;
    assert!(matches!(Arena::new(&empty)?.alloc(1), Err(RingError::RangeTooLarge { .. })));
    Ok(())
}

#[test]
fn a_range_is_freed_with_its_items_slot() -> Outcome {
    let regions = regions()?;
    let arena = Arena::new(&regions)?;
    let options = ProducerOptions { arena: Some(arena.clone()), ..ProducerOptions::default() };
    let producer = RingProducer::new(&regions, 0, options)?;
    let consumer = RingConsumer::new(&regions, 0)?;
    let image = SlotImage::new(8, [0; 12]);
    let serve = || -> Outcome {
        let claimed = consumer.claim().ok_or("nothing to claim")?;
        Ok(consumer.complete(claimed.ticket, Completion::done(0))?)
    };
    let used = || arena.capacity() - arena.free_bytes();

    // Taken.
    let mut payloads = [Some(arena.alloc(64)?), None];
    let mut tickets: Vec<_> = producer.submit_with(&[image; 2], &mut payloads)?.collect();
    assert!(payloads.iter().all(Option::is_none));
    serve()?;
    assert_eq!(used(), 64);
    assert!(tickets[0].take()?.is_some());
    assert_eq!(used(), 0);
    serve()?;
    assert!(tickets[1].take()?.is_some());
    // Forgotten before it is finished, and after.
    for early in [true, false] {
        let mut tickets = producer.submit_with(&[image], &mut [Some(arena.alloc(64)?)])?;
        if early {
            drop(tickets.next());
            assert_eq!(used(), 64);
            serve()?;
            producer.counters();
        } else {
            serve()?;
            drop(tickets);
        }
        assert_eq!(used(), 0);
    }
    // Detached, reaped, failed.
    producer.submit_detached_with(&[image], &mut [Some(arena.alloc(64)?)])?;
    serve()?;
    assert_eq!(producer.counters().detached_done, 3);
    assert_eq!(used(), 0);
    producer.submit_with(&[image], &mut [Some(arena.alloc(64)?)])?.for_each(|ticket| _ = ticket.into_raw());
    serve()?;
    assert_eq!(producer.reap(|_, _| assert_eq!(used(), 0)), 1);
    let mut ticket = producer.submit_with(&[image], &mut [Some(arena.alloc(64)?)])?.next().ok_or("one")?;
    producer.fail(ticket.position(), Fault::Abandoned)?;
    assert_eq!(used(), 64);
    assert_eq!(ticket.take()?.and_then(|completion| completion.as_fault()), Some(Fault::Abandoned));
    assert_eq!(used(), 0);
    Ok(())
}

#[test]
fn a_refused_submission_leaves_its_ranges_to_the_caller() -> Outcome {
    let (regions, elsewhere) = (regions()?, regions()?);
    let (arena, other) = (Arena::new(&regions)?, Arena::new(&elsewhere)?);
    let options = ProducerOptions { arena: Some(arena.clone()), ..ProducerOptions::default() };
    let producer = RingProducer::new(&regions, 0, options)?;
    let image = SlotImage::new(8, [0; 12]);
    let mut foreign = [Some(other.alloc(16)?)];
    assert!(matches!(
        producer.submit_with(&[image], &mut foreign),
        Err(RingError::Foreign { what: "arena range" })
    ));
    assert!(foreign[0].is_some());
    assert!(matches!(
        producer.submit_with(&[image; 2], &mut foreign),
        Err(RingError::PayloadCount { payloads: 1, items: 2 })
    ));
    let fill: Vec<_> = producer.submit_batch(&[image; 4])?.collect();
    let mut own = [Some(arena.alloc(16)?)];
    assert!(matches!(producer.submit_with(&[image], &mut own), Err(RingError::WouldBlock { .. })));
    assert!(own[0].is_some());
    drop(fill);
    Ok(())
}

proptest! {
    #[test]
    fn live_ranges_never_overlap(sizes in prop::collection::vec((0..700u64, any::<prop::sample::Index>()), 1..200)) {
        let arena = Arena::new(&regions().map_err(|e| TestCaseError::fail(e.to_string()))?)
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        let mut live: Vec<ArenaRange> = Vec::new();
        for (size, which) in sizes {
            match arena.alloc(size) {
                Ok(range) => {
                    let (from, to) = (range.offset(), range.offset() + size.max(1));
                    prop_assert!(from.is_multiple_of(ARENA_ALIGN) && to <= arena.capacity());
                    for other in &live {
                        prop_assert!(to <= other.offset() || other.offset() + other.len().max(1) <= from);
                    }
                    live.push(range);
                }
                Err(RingError::ArenaFull { .. }) => {
                    prop_assert!(!live.is_empty());
                    live.swap_remove(which.index(live.len()));
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        live.clear();
        prop_assert_eq!(arena.free_bytes(), arena.capacity());
    }
}

fn request(n: u32) -> IoRequest {
    IoRequest {
        operation: io::READ,
        tenant: n as u16,
        source: n,
        destination: n + 1,
        offset: u64::from(n) << 20,
        bytes: n,
    }
}

#[test]
fn requests_and_replies_keep_their_laps_apart() -> Outcome {
    let regions = regions()?;
    let (host, device) = (HostIo::new(&regions)?, DeviceIo::new(&regions)?);
    assert!(host.next_request().is_none());
    // Enough for the sixteen lap bits to run over: four entries, 2^18 requests a turn.
    for n in 0..4 * 65536 + 40_u64 {
        let number = device.post(&request(n as u32)).ok_or("the entry is free")?;
        assert_eq!(number, n);
        assert_eq!(device.poll(number)?, None);
        let served = host.next_request().ok_or("posted")?;
        assert_eq!(served, (n, request(n as u32)));
        let reply = if n % 3 == 0 { IoReply::Failed { errno: 5 } } else { IoReply::Done { bytes: n as u32 } };
        host.reply(n, reply)?;
        assert_eq!(device.poll(number)?, Some(reply));
        assert!(matches!(device.poll(number), Err(RingError::AlreadyTaken { .. })));
    }
    Ok(())
}

#[test]
fn an_entry_is_not_used_again_before_its_reply() -> Outcome {
    let regions = regions()?;
    let (host, device) = (HostIo::new(&regions)?, DeviceIo::new(&regions)?);
    for n in 0..4 {
        assert_eq!(device.post(&request(n)), Some(u64::from(n)));
    }
    assert_eq!(device.post(&request(4)), None);
    let numbers: Vec<_> = std::iter::from_fn(|| host.next_request()).map(|(number, _)| number).collect();
    assert_eq!(numbers, [0, 1, 2, 3]);
    // Answered out of order; the next entry in turn is still number 0's.
    host.reply(2, IoReply::Done { bytes: 1 })?;
    assert_eq!(device.poll(2)?, Some(IoReply::Done { bytes: 1 }));
    assert_eq!(device.post(&request(4)), None);
    host.reply(0, IoReply::Done { bytes: 0 })?;
    assert_eq!(device.post(&request(4)), None);
    assert_eq!(device.poll(0)?, Some(IoReply::Done { bytes: 0 }));
    assert_eq!(device.post(&request(4)), Some(4));
    assert!(matches!(host.reply(0, IoReply::Done { bytes: 9 }), Err(RingError::AlreadyTaken { .. })));
    assert!(matches!(host.reply(9, IoReply::Done { bytes: 9 }), Err(RingError::NotIssued { .. })));
    assert!(matches!(device.poll(9), Err(RingError::NotIssued { .. })));

    // A new incarnation begins with number 0 again, and the old replies mean nothing to it.
    let next = regions.fresh_d2h()?;
    let (host, device) = (HostIo::new(&next)?, DeviceIo::new(&next)?);
    assert_eq!(device.post(&request(7)), Some(0));
    assert_eq!(device.poll(0)?, None);
    assert_eq!(host.next_request(), Some((0, request(7))));
    Ok(())
}
