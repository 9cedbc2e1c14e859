//! Uses only the driver's ring: one thread submits, another claims and completes.

use std::thread;
use std::time::Duration;

use vyre_driver::ring::{Completion, PersistentRing, SlotImage};
use vyre_driver::wait::WaitStrategy;

const ITEMS: u32 = 1000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ring = PersistentRing::new(64)?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut left = ITEMS;
            while left > 0 {
                let Some(item) = ring.claim() else {
                    ring.park_consumer(Duration::from_micros(100));
                    continue;
                };
                let sum: u32 = item.image.args.iter().sum();
                ring.complete(item.ticket, Completion::done(u64::from(sum))).expect("claimed from this ring");
                left -= 1;
            }
        });
        for n in 0..ITEMS {
            let mut ticket = ring.submit(&SlotImage { opcode: 8, args: [n; 12], ..SlotImage::default() })?;
            let completion = ring.wait(&mut ticket, WaitStrategy::Park, Duration::from_secs(5))?;
            assert_eq!(completion.result(), u64::from(12 * n));
        }
        println!("{ITEMS} items acknowledged");
        Ok(())
    })
}
