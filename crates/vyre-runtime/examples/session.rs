//! A session in twenty lines: a handler written in IR, launched once, fed live.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use vyre_cpu::CpuBackend;
use vyre_runtime::{Megakernel, MegakernelError, OpcodeHandler, SlotDescriptor};

const ADD_ONE: u32 = 0x40;

fn main() -> Result<(), MegakernelError> {
    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new()))
        .slots(1024)
        .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()?;

    let session = megakernel.start()?;
    let ticket = session.submit(SlotDescriptor::new(ADD_ONE).args([7]))?;
    let done = session.wait(ticket, Duration::from_secs(1))?;
    println!("7 + 1 = {}", done.result());

    // From any thread; every clone is the same session.
    std::thread::scope(|scope| {
        let submit = |thread: u32| {
            let session = session.clone();
            move || -> Result<(), MegakernelError> {
                let mut n = 0;
                while n < 1000 {
                    match session.submit(SlotDescriptor::new(ADD_ONE).args([thread * 1000 + n])) {
                        Ok(ticket) => session.wait(ticket, Duration::from_secs(1))?,
                        // A whole ring ahead of a thread that has not taken its answer yet.
                        Err(MegakernelError::RingFull { .. }) => {
                            std::thread::yield_now();
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    n += 1;
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..4).map(|thread| scope.spawn(submit(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    session.stop()?;
    let telemetry = session.telemetry();
    println!("{} items submitted, {} done", telemetry.submitted, telemetry.done);
    Ok(())
}
