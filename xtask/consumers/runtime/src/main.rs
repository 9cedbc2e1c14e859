//! Uses only the runtime: handlers, descriptors and programs need no backend, and what runs them takes any.

use std::sync::Arc;
use std::time::Duration;

use vyre_runtime::driver::VyreBackend;
use vyre_runtime::foundation::text;
use vyre_runtime::{
    BatchDescriptor, HandlerTable, ItemPrograms, Megakernel, MegakernelError, OpcodeHandler, SlotDescriptor,
};

const ADD_ONE: u32 = 0x40;

fn add_one() -> OpcodeHandler {
    OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1))
}

/// What a library above the runtime would offer: the backend is its user's choice.
pub fn run_on(backend: Arc<dyn VyreBackend>, number: u32) -> Result<u64, MegakernelError> {
    let session = Megakernel::builder(backend).handler(add_one()).build()?.start()?;
    let ticket = session.submit(SlotDescriptor::new(ADD_ONE).args([number]))?;
    let result = session.wait(ticket, Duration::from_secs(1))?.result();
    session.stop()?;
    Ok(result)
}

fn main() -> Result<(), MegakernelError> {
    let mut batch = BatchDescriptor::new();
    for number in 0..4 {
        batch.push(SlotDescriptor::new(ADD_ONE).args([number]));
    }
    let programs = ItemPrograms::new(Arc::new(HandlerTable::new(vec![add_one()])?), 64)?;
    let lines = text::print(programs.lane().program()).lines().count();
    println!("{} items described; the item program has {lines} lines", batch.len());
    Ok(())
}
