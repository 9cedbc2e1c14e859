//! Feeds a session for a while from four threads while it is stalled, quiesced and restarted, and checks
//! every answer: `cargo run --release -p vyre-runtime --example soak -- --seconds 60`.

#[path = "../tests/support/soak.rs"]
mod soak;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_cpu::CpuBackend;

fn main() -> Result<(), String> {
    let mut seconds = 60;
    let mut disturb = true;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--seconds", Some(value)) => seconds = value.parse().map_err(|_| "--seconds N".to_owned())?,
            ("--disturb", Some(value)) => disturb = value == "yes",
            _ => return Err("usage: soak [--seconds N] [--disturb yes|no]".to_owned()),
        }
    }
    let started = Instant::now();
    let soaked = soak::soak(Arc::new(CpuBackend::new()), Duration::from_secs(seconds), disturb)?;
    let elapsed = started.elapsed().as_secs_f64();
    println!("{} rounds of {} items of {} bytes", soaked.rounds, soak::ITEMS, soak::BYTES);
    println!("{} answers, each once and right; {:.0} a second", soaked.items, soaked.items as f64 / elapsed);
    println!("{} restarts, {} of them after standing still", soaked.restarts, soaked.quiesced);
    println!("{} submissions found no room and were repeated", soaked.refused);
    Ok(())
}
