//! Opens a backend, keeps a megakernel resident, feeds it live.

use std::time::Duration;

use vyre::BackendChoice;
use vyre::runtime::{Megakernel, OpcodeHandler, SlotDescriptor};

const ADD_ONE: u32 = 0x40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // First of all: the process that owns a GPU is this program, run again.
    vyre::worker_main();
    let backend = vyre::open(BackendChoice::Auto)?;
    let megakernel = Megakernel::builder(backend)
        .slots(4096)
        .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()?;
    let session = megakernel.start()?;
    let ticket = session.submit(SlotDescriptor::new(ADD_ONE).args([7]))?;
    let done = session.wait(ticket, Duration::from_secs(1))?;
    assert_eq!(done.result(), 8);
    session.stop()?;
    println!("7 + 1 = {}", done.result());
    Ok(())
}
