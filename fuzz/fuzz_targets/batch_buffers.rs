//! A batch over buffers that somebody else wrote: each of the four decodes to an error or to a view that
//! does not panic, a dispatch over them returns within its deadline, and a slot that was empty stays so.
#![no_main]

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::Status;
use vyre_foundation::builder::Operand;
use vyre_runtime::{
    BatchBuffers, ControlBuffer, DebugLogBuffer, DispatchOptions, IoQueueBuffer, Megakernel, MegakernelError,
    OpcodeHandler, RingBuffer, TenantConfig,
};

const SLOTS: u32 = 16;

fn megakernel() -> &'static Megakernel {
    static MEGAKERNEL: OnceLock<Megakernel> = OnceLock::new();
    MEGAKERNEL.get_or_init(|| {
        let backend = Arc::new(CpuBackend::with_config(CpuConfig::default().threads(1)));
        Megakernel::builder(backend)
            .slots(SLOTS)
            .workgroup_size(SLOTS)
            .tenant(0, TenantConfig::all().window(4, 16))
            .tenant(1, TenantConfig::all().window(4, 16))
            .handler(OpcodeHandler::new(8, "add_one", |h| h.complete(h.arg(0) + 1)))
            .handler(OpcodeHandler::new(9, "count_down", |h| {
                let left = h.let_("left", h.arg(0) & 3u32);
                h.if_else(
                    left.eq_(0u32),
                    |h| h.complete(7u32),
                    |h| {
                        let rest = vec![left - 1u32; 12];
                        h.requeue(rest);
                    },
                );
            }))
            .build()
            .expect("the megakernel is valid")
    })
}

/// The bytes as they would be, with some of them changed by the input; or any bytes at all.
fn bend(u: &mut Unstructured<'_>, mut bytes: Vec<u8>) -> Vec<u8> {
    if u.ratio(1, 64).unwrap_or(false) {
        return u.arbitrary().unwrap_or_default();
    }
    for _ in 0..u.int_in_range(0..=24).unwrap_or(0) {
        let at = u.int_in_range(0..=(bytes.len() / 4).saturating_sub(1)).unwrap_or(0);
        let word: u32 = u.arbitrary().unwrap_or(0);
        if let Some(target) = bytes.get_mut(at * 4..at * 4 + 4) {
            target.copy_from_slice(&word.to_le_bytes());
        }
    }
    bytes
}

/// Slots whose tags are right, with words from the input: what random bytes would never make.
fn publish(u: &mut Unstructured<'_>, ring: Vec<u8>) -> Vec<u8> {
    const OPCODES: [u32; 16] =
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xFFFD, 0xFFFE, 0x8000_0001, 0xFFFF_FFFF, 0x7777, 0x8000_0000];
    let mut ring = ring;
    for slot in ring[..SLOTS as usize * 64].as_chunks_mut::<64>().0 {
        if u.ratio(1, 4).unwrap_or(true) {
            continue;
        }
        let opcode = *u.choose(&OPCODES).unwrap_or(&0);
        let tenant: u32 = u.int_in_range(0..=2).unwrap_or(0);
        let headers = [opcode & 0xFFFF, opcode >> 16, tenant, 0];
        for (quarter, header) in slot.as_chunks_mut::<16>().0.iter_mut().zip(headers) {
            for word in quarter[..12].as_chunks_mut::<4>().0 {
                let small = u.ratio(3, 4).unwrap_or(true);
                let value: u32 =
                    if small { u.int_in_range(0..=20).unwrap_or(0) } else { u.arbitrary().unwrap_or(0) };
                *word = value.to_le_bytes();
            }
            quarter[12..].copy_from_slice(&(1 << 16 | header).to_le_bytes());
        }
    }
    ring
}

fuzz_target!(|input: &[u8]| {
    let mut u = Unstructured::new(input);
    let megakernel = megakernel();
    let good = megakernel.batch_buffers();
    let ring = publish(&mut u, good.ring.into_bytes());
    let control = bend(&mut u, good.control.into_bytes());
    let ring = bend(&mut u, ring);
    let log = bend(&mut u, good.debug_log.into_bytes());
    let io = bend(&mut u, good.io_queue.into_bytes());
    let _ = ControlBuffer::from_bytes(megakernel.layout(), SLOTS, control.clone());
    let _ = DebugLogBuffer::from_bytes(log.clone());
    if let Ok(queue) = IoQueueBuffer::from_bytes(io.clone()) {
        queue.requests().for_each(drop);
    }
    let empty: Vec<bool> = match RingBuffer::from_bytes(SLOTS, ring.clone()) {
        Ok(view) => (0..SLOTS as usize).map(|slot| view.slot(slot).is_none()).collect(),
        Err(_) => Vec::new(),
    };
    let Ok(mut buffers) = BatchBuffers::from_bytes(megakernel.layout(), SLOTS, control, ring, log, Some(io))
    else {
        return;
    };
    let before = buffers.clone();
    let options = DispatchOptions { deadline: Duration::from_secs(2), ..DispatchOptions::default() };
    match megakernel.dispatch(&mut buffers, &options) {
        Ok(_) => {
            let _ = buffers.debug_log();
            for (slot, empty) in empty.into_iter().enumerate() {
                let was = before.ring.completion(slot);
                let is = buffers.ring.completion(slot);
                if empty && was.as_ref().is_ok_and(|was| was.status == Status::Empty) {
                    assert!(
                        is.is_ok_and(|is| is.status == Status::Empty),
                        "slot {slot} held nothing and completed"
                    );
                }
            }
        }
        Err(MegakernelError::Deadline { .. }) => panic!("the dispatch did not return in time"),
        Err(_) => assert_eq!(buffers, before, "a refused dispatch changed its buffers"),
    }
});
