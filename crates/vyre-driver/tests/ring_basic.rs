//! The ring's everyday path, one thread at a time.
#![cfg(not(loom))]

use std::time::Duration;

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
