//! The thread that notices silence: a process that lives and does nothing tells nobody.
//!
//! It reads heartbeats, and makes no request, so nothing that a worker does can hold it up.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vyre_driver::LossCause;

use super::Shared;
use super::worker::{Worker, lock};

/// Looks within the time that is silence.
const LOOKS: u32 = 16;
/// The longest time between two looks.
const LONGEST: Duration = Duration::from_millis(100);

/// Starts the thread. It ends with its backend.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    let watched = Arc::downgrade(shared);
    let silence = shared.options.silence;
    thread::Builder::new().name("vyre-watch".to_owned()).spawn(move || watch(&watched, silence))
}

fn watch(shared: &Weak<Shared>, silence: Duration) {
    let pause = (silence / LOOKS).clamp(Duration::from_millis(1), LONGEST);
    let mut pulses = Pulses::default();
    let mut last = Instant::now();
    loop {
        thread::park_timeout(pause);
        let Some(shared) = shared.upgrade().filter(|shared| !shared.recovery.is_closed()) else { return };
        let now = Instant::now();
        // This process was stopped, or starved: then so may have been the worker, which starts afresh.
        let paused = now.duration_since(last) > silence / 2;
        last = now;
        if paused {
            pulses = Pulses::default();
        }
        let current = Arc::clone(&shared.current.load().worker);
        let spare = shared.recovery.spare();
        if spare.as_ref().is_some_and(|spare| spare.loss().is_some()) {
            shared.recovery.want_spare();
        }
        for worker in [Some(current), spare].into_iter().flatten() {
            look_at(&worker, &mut pulses, now, silence);
        }
        pulses.forget_all_but(now);
    }
}

fn look_at(worker: &Arc<Worker>, pulses: &mut Pulses, now: Instant, silence: Duration) {
    if worker.loss().is_some() {
        return;
    }
    let key = |number| (Arc::as_ptr(worker) as usize, number);
    let Some(beat) = worker.heartbeat() else { return };
    let silent = |quiet: Duration| quiet >= silence;
    let quiet = pulses.quiet_for(key(0), beat, now);
    if silent(quiet) {
        worker.condemn(LossCause::Unresponsive, format!("no sign of life from the worker for {quiet:?}"));
        return;
    }
    let kernels: Vec<_> = lock(&worker.kernels).iter().filter_map(Weak::upgrade).collect();
    for kernel in kernels {
        let Some(beat) = kernel.heartbeat() else { continue };
        let quiet = pulses.quiet_for(key(kernel.number()), beat, now);
        if silent(quiet) {
            let reason = format!("no sign of life from a resident kernel for {quiet:?}");
            worker.condemn(LossCause::Unresponsive, reason);
        }
    }
}

/// When each heartbeat changed last, as seen from here.
#[derive(Default)]
struct Pulses(HashMap<(usize, u64), Pulse>);

struct Pulse {
    beat: u64,
    changed: Instant,
    looked: Instant,
}

impl Pulses {
    /// For how long a heartbeat has been what it is.
    fn quiet_for(&mut self, key: (usize, u64), beat: u64, now: Instant) -> Duration {
        let pulse = self.0.entry(key).or_insert(Pulse { beat, changed: now, looked: now });
        if pulse.beat != beat {
            (pulse.beat, pulse.changed) = (beat, now);
        }
        pulse.looked = now;
        now.duration_since(pulse.changed)
    }

    fn forget_all_but(&mut self, looked: Instant) {
        self.0.retain(|_, pulse| pulse.looked == looked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_quiet_from_its_last_change_and_forgotten_when_not_looked_at() {
        let mut pulses = Pulses::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(pulses.quiet_for((1, 0), 5, at(0)), Duration::ZERO);
        assert_eq!(pulses.quiet_for((1, 0), 5, at(30)), Duration::from_millis(30));
        assert_eq!(pulses.quiet_for((1, 0), 6, at(40)), Duration::ZERO);
        assert_eq!(pulses.quiet_for((1, 0), 6, at(45)), Duration::from_millis(5));
        pulses.forget_all_but(at(45));
        assert_eq!(pulses.quiet_for((1, 0), 6, at(50)), Duration::from_millis(10));
        pulses.forget_all_but(at(60));
        assert_eq!(pulses.quiet_for((1, 0), 6, at(70)), Duration::ZERO);
    }
}
