//! How long a session pauses when its handlers change: 200 changes under four producers.
//!
//! `cargo run --release -p vyre-runtime --example hot_change -- [changes] [milliseconds in between] [threads]`

use std::sync::Arc;
use std::time::Duration;

use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_runtime::HandlerChange;
use vyre_runtime::conformance::run_changes;
use vyre_runtime::driver::VyreBackend;

/// A part of what a change took.
type Part = fn(&HandlerChange) -> Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = |default| arguments.next().map_or(Ok(default), |argument| argument.parse::<u32>());
    let (changes, every) = (argument(200)?, Duration::from_millis(argument(10)?.into()));
    let config = match argument(0)? {
        0 => CpuConfig::default(),
        threads => CpuConfig::default().threads(threads as usize),
    };
    let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::with_config(config));

    // Every answer is checked against the handlers of its time, and every item counted.
    let made = run_changes(&backend, changes, every)?;
    println!("{} changes, every answer right, nothing lost", made.len());
    println!("{:<34} {:>10} {:>10} {:>10}", "", "p50", "p99", "max");
    let rows: [(&str, Part); 3] = [
        ("pause: no kernel claims items", |change| change.pause),
        ("  of it until the old one has left", |change| change.left_in),
        ("before it, beside the old kernel", |change| change.prepared_in),
    ];
    for (name, of) in rows {
        let mut times: Vec<Duration> = made.iter().map(of).collect();
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() - 1) * percent / 100).copied().unwrap_or_default();
        println!("{name:<34} {:>10.1?} {:>10.1?} {:>10.1?}", at(50), at(99), at(100));
    }
    Ok(())
}
