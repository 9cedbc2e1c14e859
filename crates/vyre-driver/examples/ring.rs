//! A ring between two threads: items out, results back.
//!
//! `cargo run -p vyre-driver --example ring`

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use vyre_driver::ring::{Completion, PersistentRing, PersistentWorkItem, RingError};
use vyre_driver::wait::WaitStrategy;

/// What the consumer does with a piece of input: here, count its vowels.
fn serve(input: &[u8], item: PersistentWorkItem) -> u64 {
    let from = item.input_offset as usize;
    let piece = input.get(from..from + item.input_len as usize).unwrap_or_default();
    piece.iter().filter(|byte| b"aeiou".contains(byte)).count() as u64
}

fn main() -> Result<(), RingError> {
    let input = b"one ring to feed them all, and in the shared memory bind them";
    let ring = PersistentRing::new(8)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let consumer = scope.spawn(|| -> Result<(), RingError> {
            while !stop.load(Ordering::Acquire) {
                while let Some(claimed) = ring.claim() {
                    let item = PersistentWorkItem::from_image(&claimed.image).unwrap_or_default();
                    ring.complete(claimed.ticket, Completion::done(serve(input, item)))?;
                }
                ring.wake_waiters();
                ring.park_consumer(Duration::from_millis(1));
            }
            Ok(())
        });

        let produced = (0..6).try_for_each(|piece| {
            let item = PersistentWorkItem {
                input_offset: piece * 10,
                input_len: 10,
                rule_set_id: 0,
                correlation: 1000 + piece,
            };
            let mut ticket = ring.submit_work(item)?;
            ring.wake_consumers();
            let (correlation, done) = ticket.wait(WaitStrategy::Park, Duration::from_secs(5))?;
            println!("item {correlation}: {} vowels", done.result());
            Ok(())
        });
        stop.store(true, Ordering::Release);
        consumer.join().unwrap_or(Ok(()))?;
        produced
    })
}
