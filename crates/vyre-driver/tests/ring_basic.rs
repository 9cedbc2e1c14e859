//! The ring's everyday path, one thread at a time.
#![cfg(not(loom))]

use std::time::Duration;

use vyre_driver::Fault;
use vyre_driver::ring::{Completion, PersistentRing, PersistentWorkItem, RingError, SlotImage};
use vyre_driver::wait::WaitStrategy;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn image(seed: u32) -> SlotImage {
    SlotImage {
        opcode: 0x7001_0008 ^ seed << 8,
        tenant: seed as u16,
        flags: (seed % 8) as u16,
        args: std::array::from_fn(|word| seed.wrapping_mul(31).wrapping_add(word as u32)),
    }
}

#[test]
fn an_item_comes_back_with_its_result_at_every_capacity() -> Outcome {
    for capacity in [1, 2, 4, 64] {
        let ring = PersistentRing::new(capacity)?;
        assert_eq!(ring.capacity(), capacity);
        for seed in 0..3 * capacity + 1 {
            let mut ticket = ring.submit(&image(seed))?;
            assert_eq!(ticket.position(), u64::from(seed));
            assert_eq!(ring.poll(&ticket)?, None);
            let claimed = ring.claim().ok_or("published, yet not claimable")?;
            assert_eq!((claimed.image, claimed.ticket.position()), (image(seed), ticket.position()));
            assert!(ring.claim().is_none());
            ring.complete(claimed.ticket, Completion::done(u64::from(seed) << 33))?;
            assert_eq!(ring.poll(&ticket)?, Some(Completion::done(u64::from(seed) << 33)));
            assert_eq!(ring.take(&mut ticket)?, Some(Completion::done(u64::from(seed) << 33)));
            assert!(matches!(ring.take(&mut ticket), Err(RingError::AlreadyTaken { .. })));
        }
    }
    Ok(())
}

#[test]
fn a_full_ring_names_the_oldest_untaken_ticket() -> Outcome {
    let ring = PersistentRing::new(4)?;
    let mut tickets: Vec<_> = ring.submit_batch(&[image(1), image(2), image(3)])?.collect();
    assert!(matches!(
        ring.submit_batch(&[image(4), image(5)]),
        Err(RingError::WouldBlock { oldest_untaken: 0 })
    ));
    assert!(matches!(
        ring.submit_batch(&[image(0); 5]),
        Err(RingError::BatchTooLarge { len: 5, capacity: 4 })
    ));
    assert_eq!(ring.submit_batch(&[])?.len(), 0);
    let mut images = [SlotImage::default(); 8];
    let claims = ring.consumer().claim_batch(&mut images);
    assert_eq!((claims.len(), &images[..3]), (3, &[image(1), image(2), image(3)][..]));
    for claim in claims {
        ring.complete(claim, Completion::done(0))?;
    }
    assert!(ring.take(&mut tickets[0])?.is_some());
    tickets.extend(ring.submit_batch(&[image(4), image(5)])?);
    assert!(matches!(ring.submit(&image(6)), Err(RingError::WouldBlock { oldest_untaken: 1 })));
    assert_eq!(ring.counters().outstanding, 4);
    Ok(())
}

#[test]
fn work_items_keep_their_correlation_on_this_side() -> Outcome {
    let ring = PersistentRing::new(2)?;
    let item = PersistentWorkItem { input_offset: 5, input_len: 6, rule_set_id: 7, correlation: 8 };
    let mut ticket = ring.submit_work(item)?;
    let claimed = ring.claim().ok_or("published, yet not claimable")?;
    assert_eq!(PersistentWorkItem::from_image(&claimed.image), Some(item));
    ring.complete(claimed.ticket, Completion::done(1))?;
    assert_eq!(ticket.wait(WaitStrategy::Park, Duration::from_secs(10))?, (8, Completion::done(1)));
    Ok(())
}

#[test]
fn a_consumer_steps_over_what_was_acknowledged_without_it() -> Outcome {
    let ring = PersistentRing::new(2)?;
    let mut tickets: Vec<_> = ring.submit_batch(&[image(0), image(1)])?.collect();
    // The host ends the first item, takes it, and uses its slot again before the consumer came to it.
    assert!(ring.producer().fail(0, Fault::Abandoned)?);
    assert!(!ring.producer().fail(0, Fault::Abandoned)?);
    assert_eq!(ring.take(&mut tickets[0])?, Some(Completion::fault(Fault::Abandoned)));
    assert!(!ring.producer().fail(0, Fault::Abandoned)?);
    let _third = ring.submit(&image(2))?;
    let order: Vec<_> = std::iter::from_fn(|| ring.claim()).map(|claimed| claimed.image).collect();
    assert_eq!(order, [image(1), image(2)]);
    assert_eq!((ring.consumer().tail(), ring.consumer().claimed()), (3, 3));
    Ok(())
}

#[test]
fn a_claim_stops_where_the_caller_says() -> Outcome {
    let ring = PersistentRing::new(8)?;
    let tickets = ring.submit_batch(&[image(0), image(8), image(1), image(2)])?;
    let mut images = [SlotImage::default(); 8];
    // Flags are the seed modulo eight.
    let claims = ring.consumer().claim_while(&mut images, |image| image.flags == 0);
    assert_eq!((claims.first(), claims.len()), (0, 2));
    assert_eq!(ring.consumer().claim_while(&mut images, |image| image.flags == 0).len(), 0);
    assert_eq!(ring.consumer().claim_batch(&mut images[..1]).len(), 1);
    assert_eq!(ring.consumer().claim_batch(&mut images[..0]).len(), 0);
    assert_eq!((ring.consumer().claim_batch(&mut images).first(), images[0]), (3, image(2)));
    drop(tickets);
    Ok(())
}

#[test]
fn tickets_know_their_ring_and_can_be_named_and_adopted() -> Outcome {
    let (ring, other) = (PersistentRing::new(2)?, PersistentRing::new(2)?);
    let mut ticket = ring.submit(&image(1))?;
    assert!(matches!(other.poll(&ticket), Err(RingError::Foreign { what: "ticket" })));
    assert!(matches!(other.take(&mut ticket), Err(RingError::Foreign { what: "ticket" })));
    let wait = other.wait(&mut ticket, WaitStrategy::Spin, Duration::ZERO);
    assert!(matches!(wait, Err(RingError::Foreign { what: "ticket" })));
    let claimed = ring.claim().ok_or("published, yet not claimable")?;
    assert!(matches!(
        other.complete(claimed.ticket, Completion::done(1)),
        Err(RingError::Foreign { what: "claimed ticket" })
    ));
    let name = ticket.into_raw();
    let ticket = ring.producer().adopt(name)?;
    assert_eq!(ticket.position(), name.position());
    drop(ticket);
    assert!(matches!(ring.producer().take_raw(name), Ok(None) | Err(RingError::AlreadyTaken { .. })));
    assert!(matches!(ring.producer().forget_raw(name), Err(RingError::AlreadyTaken { .. })));
    Ok(())
}

/// Halves are shared between threads; tickets travel between them.
#[test]
fn halves_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<vyre_driver::ring::RingProducer>();
    check::<vyre_driver::ring::RingConsumer>();
    check::<PersistentRing>();
    check::<vyre_driver::ring::Ticket<'static>>();
    check::<vyre_driver::ring::ClaimedTicket>();
    check::<vyre_driver::region::SessionRegions>();
    check::<vyre_driver::arena::ArenaRange>();
}
