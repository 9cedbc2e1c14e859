//! A megakernel that is built where a compiler is, and runs where none is.
//!
//! ```text
//! cargo run -p vyre-hip --example prebuilt -- sm_90a FOLDER              # builds it; no GPU is needed
//! VYRE_PREBUILT_DIR=FOLDER cargo run -p vyre-hip --example prebuilt      # runs it; no compiler is needed
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_driver::VyreBackend;
use vyre_foundation::DataType;
use vyre_foundation::builder::Operand as _;
use vyre_hip::compile::CompilerOptions;
use vyre_hip::{HipBackend, OfflineBackend};
use vyre_runtime::{
    DispatchOptions, HandlerBinding, Megakernel, MegakernelError, OpcodeHandler, SlotDescriptor,
};

const COUNT: u32 = 0x40;
const ITEMS: u32 = 256;

/// The same on both machines: what is built is found by what it was made from.
fn megakernel(backend: Arc<dyn VyreBackend>) -> Result<Megakernel, MegakernelError> {
    let count = OpcodeHandler::new(COUNT, "count", |h| {
        let bins = h.buffer("bins");
        let before = h.atomic_add(bins, h.arg(0) % 4, 1);
        h.if_(before.ge(ITEMS), |h| h.fault(1));
        h.complete(h.arg(0) * 3 + 1);
    });
    let bins = HandlerBinding::read_write("bins", DataType::U32).min_len(4);
    Megakernel::builder(backend).handler(count.binding(bins)).build()
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [arch, folder] => build(arch, folder),
        [] => run(),
        _ => Err("give an architecture and a folder to build into, or nothing to run".into()),
    }
}

fn build(arch: &str, folder: &str) -> Result<(), Box<dyn Error>> {
    let options = CompilerOptions::from_environment()?;
    let offline = Arc::new(OfflineBackend::into_folder(arch.parse()?, options, folder));
    let megakernel = megakernel(offline.clone())?;
    offline.compile_resident(&megakernel.programs().spec(1))?;
    println!("built for {arch} in {folder}");
    Ok(())
}

fn run() -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let backend = Arc::new(HipBackend::open(0)?);
    let megakernel = megakernel(backend.clone())?;
    let slot = |n| SlotDescriptor::new(COUNT).args([n]);
    let mut right = [0; 2];

    let mut batch = megakernel.batch_buffers();
    for n in 0..ITEMS {
        batch.ring.publish(n as usize, &slot(n))?;
    }
    megakernel.dispatch(&mut batch, &DispatchOptions::default())?;
    for n in 0..ITEMS {
        right[0] += u32::from(batch.ring.completion(n as usize)?.result == u64::from(n * 3 + 1));
    }

    let session = megakernel.start()?;
    for n in 0..ITEMS {
        let ticket = session.submit(slot(n))?;
        right[1] += u32::from(session.wait(ticket, Duration::from_secs(5))?.result() == u64::from(n * 3 + 1));
    }
    session.stop()?;
    println!("{}: {right:?} of {ITEMS} right, in a batch and in a session", backend.identity().device);
    println!("{:.0} ms in all; {:?}", started.elapsed().as_secs_f64() * 1e3, backend.compiler().counters());
    if right == [ITEMS; 2] { Ok(()) } else { Err("a wrong answer".into()) }
}
