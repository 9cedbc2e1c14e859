//! Both sides of a session over regions that somebody else writes: headers, slots, start records,
//! completions and IO words are overwritten with the input between steps. Nothing panics, nothing is read
//! outside the mappings, and a producer acknowledges no ticket twice.
#![no_main]

use std::collections::HashSet;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use vyre_driver::io_queue::{DeviceIo, HostIo, IoReply};
use vyre_driver::layout::RegionConfig;
use vyre_driver::region::{SessionRegions, SharedRegion};
use vyre_driver::ring::{Completion, ProducerOptions, RingConsumer, RingProducer, SlotImage};
use vyre_driver::view::{DeviceView, HostView};

#[derive(Arbitrary, Debug)]
enum Step {
    Submit(u32),
    Detached(u32),
    Batch(u8),
    Claim,
    Complete(u64),
    Reap,
    Take(u8),
    Forget(u8),
    Overwrite { h2d: bool, at: u16, bytes: Vec<u8> },
    Attach,
    Io(u8),
    Restart,
}

fn overwrite(region: &Arc<SharedRegion>, at: u64, bytes: &[u8]) {
    let at = at % region.len();
    let fits = bytes.len().min((region.len() - at) as usize);
    // The d2h region is writable here: the fuzzer plays a hostile device.
    let _ = region.copy_in(at, &bytes[..fits]);
}

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let capacity = 1u32 << input.int_in_range(0..=4).unwrap_or(2);
    let config = RegionConfig { arena_bytes: 256, mirror_bytes: 64, ..RegionConfig::new(capacity) };
    let Ok(regions) = SessionRegions::create(&config) else { return };
    let Ok(producer) = RingProducer::new(&regions, 0, ProducerOptions::default()) else { return };
    let mut consumer = None;
    let mut claimed = Vec::new();
    let mut tickets = Vec::new();
    let mut acknowledged = HashSet::new();
    let host_io = HostIo::new(&regions);
    let device_io = DeviceIo::new(&regions);
    while !input.is_empty() {
        let Ok(step) = Step::arbitrary(&mut input) else { return };
        match step {
            Step::Submit(opcode) => {
                if let Ok(ticket) = producer.submit(&SlotImage { opcode, ..SlotImage::default() }) {
                    tickets.push(ticket);
                }
            }
            Step::Detached(opcode) => {
                let _ = producer.submit_detached(&SlotImage { opcode, ..SlotImage::default() });
            }
            Step::Batch(n) => {
                let images = vec![SlotImage::default(); usize::from(n % 20)];
                if let Ok(batch) = producer.submit_batch(&images) {
                    tickets.extend(batch);
                }
            }
            Step::Claim => {
                if let Some(consumer) = consumer.as_ref().map(|c: &RingConsumer| c.claim()) {
                    claimed.extend(consumer.map(|item| item.ticket));
                }
            }
            Step::Complete(result) => {
                if let (Some(consumer), Some(ticket)) = (&consumer, claimed.pop()) {
                    let _ = consumer.complete(ticket, Completion::done(result));
                }
            }
            Step::Reap => {
                producer
                    .reap(|ticket, _| assert!(acknowledged.insert(ticket.position()), "acknowledged twice"));
            }
            Step::Take(n) => {
                let at = usize::from(n) % tickets.len().max(1);
                if let Some(ticket) = tickets.get_mut(at)
                    && let Ok(Some(_)) = ticket.take()
                {
                    assert!(acknowledged.insert(ticket.position()), "acknowledged twice");
                    drop(tickets.swap_remove(at));
                }
            }
            Step::Forget(n) => {
                if !tickets.is_empty() {
                    let at = usize::from(n) % tickets.len();
                    drop(tickets.swap_remove(at));
                }
            }
            Step::Overwrite { h2d, at, bytes } => {
                overwrite(if h2d { &regions.h2d } else { &regions.d2h }, u64::from(at), &bytes);
            }
            Step::Attach => {
                let (Ok(h2d), Ok(d2h)) =
                    (regions.h2d.fd().try_clone_to_owned(), regions.d2h.fd().try_clone_to_owned())
                else {
                    return;
                };
                if let Ok(attached) = SessionRegions::attach(h2d, d2h) {
                    let _ = DeviceView::new(&attached);
                    if let Ok(other) = RingConsumer::new(&attached, 0) {
                        let mut images = [SlotImage::default(); 8];
                        let _ = other.claim_batch(&mut images).count();
                    }
                }
                if let Ok(view) = HostView::new(&regions) {
                    let _ = view.check_device_header();
                    let _ = view.heartbeat();
                    let _ = view.in_flight(0);
                }
            }
            Step::Io(bytes) => {
                if let Ok(host) = &host_io
                    && let Some((number, _)) = host.next_request()
                {
                    let _ = host.reply(number, IoReply::Done { bytes: u32::from(bytes) });
                }
                if let Ok(device) = &device_io {
                    let _ = device.poll(u64::from(bytes));
                }
            }
            Step::Restart => {
                claimed.clear();
                if producer.write_start_record(&regions).is_ok() {
                    consumer = RingConsumer::new(&regions, 0).ok();
                }
            }
        }
        let counters = producer.counters();
        assert!(counters.outstanding <= u64::from(capacity));
    }
});
