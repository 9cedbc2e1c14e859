//! What it costs to turn descriptors into the bytes of a batch ring, against copying as many bytes.
//!
//! `cargo bench -p vyre-runtime --bench descriptors` runs criterion over each, then measures window and copy
//! in turns and prints their ratio, which is what the bars are about: at most 3 for a window of 64 slots,
//! and at most 5 ns for a single descriptor.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use vyre_cpu::CpuBackend;
use vyre_runtime::{Megakernel, RingBuffer, SlotDescriptor, WindowDescriptor};

const SLOTS: usize = 64;
const BYTES: usize = SLOTS * 64;
const ROUNDS: usize = 2000;
const CALLS: u32 = 64; // as many as slots, so that the three are divided alike

fn window() -> WindowDescriptor {
    let mut window = WindowDescriptor::new(0x40, 7).tenant(3);
    for slot in 0..SLOTS as u32 {
        window = window.required([slot, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }
    window
}

/// The ring's bytes made free again, as cheaply as a caller can: it is timed apart and taken off.
fn free(ring: &mut RingBuffer) {
    for slot in 0..SLOTS {
        ring.clear(slot);
    }
}

fn main() {
    let megakernel = Megakernel::bootstrap(Arc::new(CpuBackend::new())).expect("the CPU backend builds it");
    let empty = megakernel.batch_buffers().ring;
    let window = window();
    let mut criterion = Criterion::default().configure_from_args();
    let mut ring = empty.clone();
    criterion.bench_function("one descriptor, made and encoded", |bencher| {
        let mut arg = 0_u32;
        bencher.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let calls = left.min(SLOTS as u64);
                free(&mut ring);
                let started = Instant::now();
                for slot in 0..calls as usize {
                    arg = arg.wrapping_add(1);
                    let descriptor = SlotDescriptor::new(0x40).tenant(3).args(black_box([arg, 1, 2, 3]));
                    black_box(ring.publish(black_box(slot), &descriptor)).expect("the slot is free");
                }
                spent += started.elapsed();
                left -= calls;
            }
            spent
        });
    });
    drop(criterion);

    let (mut windows, mut copies, mut singles) = (Vec::new(), Vec::new(), Vec::new());
    let mut rings: Vec<RingBuffer> = (0..CALLS).map(|_| empty.clone()).collect();
    let (source, mut targets) = (vec![1_u8; BYTES], vec![vec![0_u8; BYTES]; CALLS as usize]);
    for _ in 0..ROUNDS {
        rings.iter_mut().for_each(free);
        let started = Instant::now();
        for ring in &mut rings {
            black_box(ring.publish(0, black_box(&window))).expect("the ring is free");
        }
        windows.push(started.elapsed());
        for target in &mut targets {
            target.fill(0);
        }
        let started = Instant::now();
        for target in &mut targets {
            black_box(target.as_mut_slice()).copy_from_slice(black_box(&source));
        }
        copies.push(started.elapsed());
        free(&mut ring);
        let started = Instant::now();
        for slot in 0..SLOTS {
            let descriptor = SlotDescriptor::new(0x40).tenant(3).args(black_box([slot as u32, 1, 2, 3]));
            black_box(ring.publish(black_box(slot), &descriptor)).expect("the slot is free");
        }
        singles.push(started.elapsed());
    }
    // The median of what was measured in turns: other load on the machine meets all three alike.
    let median = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as f64 / f64::from(CALLS)
    };
    let (window, copy, single) = (median(windows), median(copies), median(singles));
    println!("one descriptor {single:.2} ns");
    println!(
        "window of {SLOTS} slots {window:.1} ns, copy of {BYTES} bytes {copy:.1} ns, ratio {:.2}",
        window / copy
    );
}
