//! One launch for many small pieces of work: a histogram of words, counted by items of a batch.
//!
//! `cargo run -p vyre-runtime --example batch`

use std::sync::Arc;

use vyre_cpu::CpuBackend;
use vyre_foundation::DataType;
use vyre_foundation::builder::Operand;
use vyre_runtime::{
    BuiltinOpcode, DispatchOptions, HandlerBinding, Megakernel, OpcodeHandler, PackedOpDescriptor,
    SlotDescriptor, WindowDescriptor,
};

/// Adds 1 to the bin that the third argument names; the first two say what window the item is of.
const COUNT: u32 = 0x40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = OpcodeHandler::new(COUNT, "count", |h| {
        let bins = h.buffer("bins");
        h.if_(h.arg(2).ge(bins.len()), |h| h.fault(1));
        let before = h.atomic_add(bins, h.arg(2), 1);
        h.complete(before + 1);
    })
    .binding(HandlerBinding::read_write("bins", DataType::U32));

    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new()))
        .slots(256)
        .workgroup_size(64)
        .handler(count)
        .bind_zeroed("bins", 16)
        .build()?;

    // A window of items, a packed slot, and a fence behind them all.
    let text = "the quick brown fox jumps over the lazy dog and the dog does not mind";
    let mut window = WindowDescriptor::new(COUNT, 1);
    for word in text.split(' ') {
        window = window.required([word.len() as u32]);
    }
    let mut batch = megakernel.batch_buffers();
    let mut used = batch.ring.publish(0, &window)?;
    let store_then_add = SlotDescriptor::packed(&[
        PackedOpDescriptor::new(1).args([40, 0]),
        PackedOpDescriptor::new(2).args([2, 0]),
    ])?;
    used += batch.ring.publish(used, &store_then_add)?;
    used += batch.ring.publish(used, &SlotDescriptor::new(BuiltinOpcode::BatchFence).args([0, 7]))?;

    let stats = megakernel.dispatch(&mut batch, &DispatchOptions::default())?;

    let bins = megakernel.buffer("bins").ok_or("bins are bound")?;
    let mut bytes = [0; 16 * 4];
    megakernel.backend().read_buffer(bins.buffer, 0, &mut bytes)?;
    for (length, bin) in bytes.chunks(4).enumerate().filter(|(_, bin)| bin[0] != 0) {
        println!("{:>2} words of {length} letters", bin[0]);
    }
    println!("{used} items in {} launches, {:?}", stats.launches, stats.latency);
    println!("the fence says {:?}", batch.ring.completion(used - 1)?);
    println!("state begins with {:?}", batch.control.state(0)?.first());
    Ok(())
}
