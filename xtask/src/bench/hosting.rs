//! What it costs to keep sessions: watched ones, in a worker or not, idle ones, and those whose host is killed.

use std::time::Duration;

use anyhow::Result;
use vyre_driver::wait::WaitStrategy;

use super::death;
use super::feed::{Feed, Kind};
use super::gpu::Launches;
use super::items::Job;
use super::measure::{Contestant, Turn};
use super::opponents::WorkDispatch;
use super::report::{Figure, Outcome, Row};
use super::sensors::{self, Readings};
use super::session::{Load, Ring, Watch, cpu_time_of_a_pause, numbers};
use super::statistics::{Quantiles, Spread, latencies, record};
use super::suite::{
    DEATH, HOMES, IDLE, Opening, Suite, WATCHED, feeds, not_measured, open, ring_of, take_turns,
};

/// Different jobs of others beside a session, and how often one of them runs in a turn.
const JOBS: u32 = 2;
const TURNS_OF_JOBS: usize = 50;

/// How items are fed where rates are compared.
fn in_batches(items: u32, kind: Kind) -> Feed {
    Feed { producers: 1, batch: 32, items, kind }
}

impl Suite {
    /// The same session with more and more records of it.
    pub(super) fn watched(&self, ring: &Opening<Ring>) -> Vec<Row> {
        let (items, fed) = (self.scaled(4000), self.fed_items());
        let watches = [
            (Watch::Nothing, "not watched"),
            (Watch::Latency, "latency measured"),
            (Watch::Observed, "observed, latency measured"),
            (Watch::Traced, "traced"),
            (Watch::Sampled, "all of it, of one item in 64"),
        ];
        let mut all = Vec::new();
        for (watch, name) in watches {
            let one = take_turns(format!("one item, {name}"), ring, move |ring, round| {
                ring.one_item(WaitStrategy::Spin, watch, round, items)
            });
            all.push(if watch == Watch::Nothing { one.new_heat() } else { one });
        }
        for kind in [Kind::Tracked, Kind::Detached] {
            let what = if kind == Kind::Tracked { "32 at once" } else { "32 at once without tickets" };
            for (watch, name) in watches {
                let rate = take_turns(format!("{what}, {name}"), ring, move |ring, round| {
                    ring.feed(watch, round, in_batches(fed, kind))
                });
                all.push(if watch == Watch::Nothing { rate.new_heat() } else { rate });
            }
        }
        self.contest(WATCHED, all)
    }

    /// The same session in this process and in a worker.
    pub(super) fn homes(&self) -> Vec<Row> {
        let (items, fed) = (self.scaled(4000), self.fed_items());
        let here = ring_of(&self.opened.here, Load::Nothing);
        let worker = ring_of(&self.opened.worker, Load::Nothing);
        let homes = [(&here, "in this process"), (&worker, "in a worker")];
        let mut all = Vec::new();
        for (ring, home) in homes {
            let one = take_turns(format!("one item, {home}"), ring, move |ring, round| {
                ring.one_item(WaitStrategy::Spin, Watch::Nothing, round, items)
            });
            all.push(if std::ptr::eq(ring, &here) { one.new_heat() } else { one });
        }
        for (kind, what) in [(Kind::Tracked, "32 at once"), (Kind::Detached, "32 at once without tickets")] {
            for (ring, home) in homes {
                let rate = feeds(format!("{what}, {home}"), ring, in_batches(fed, kind));
                all.push(if std::ptr::eq(ring, &here) { rate.new_heat() } else { rate });
            }
        }
        self.contest(HOMES, all)
    }

    /// A session that has nothing to do, and what it costs others.
    pub(super) fn idle(&self, ring: &Opening<Ring>, launches: &Opening<Launches<'_>>) -> Vec<Row> {
        let pause = Duration::from_millis(if self.is_quick { 100 } else { 500 });
        let (rest, items) = (Duration::from_millis(10), self.scaled(80));
        let dispatch = open(WorkDispatch::new(&self.opened.backend));
        let foreign: Opening<Vec<Job>> = if self.is_cpu() {
            Err(not_measured("a session and a dispatch share the host's threads"))
        } else {
            Ok((1..=JOBS).map(Job::filling_a_device).collect())
        };
        let mut all = vec![
            Contestant::new("no session", move |_| {
                Ok(Turn { acknowledged: 0, sample: cpu_time_of_a_pause(pause) })
            }),
            take_turns("idle session, this process", ring, move |ring, round| ring.idle(round, pause)),
            take_turns("one item after 10 ms of rest", ring, move |ring, round| {
                ring.after_a_pause(round, items, rest)
            }),
        ];
        all.extend(
            self.foreign("a dispatch of the same backend", ring, &foreign, &dispatch, |it, jobs| {
                it.turn(jobs)
            }),
        );
        all.extend(
            self.foreign("a launch by another process", ring, &foreign, launches, |it, jobs| it.work(jobs)),
        );
        let mut rows = self.contest(IDLE, all);
        rows.extend(self.long_rest(ring));
        rows
    }

    /// Somebody else's kernel that fills the device, alone and beside an idle session.
    fn foreign<'b, T>(
        &self,
        name: &str,
        ring: &'b Opening<Ring>,
        jobs: &'b Opening<Vec<Job>>,
        other: &'b Opening<T>,
        turn: impl Fn(&T, &mut dyn Iterator<Item = Job>) -> Result<Turn> + Copy + 'b,
    ) -> [Contestant<'b>; 2] {
        let names = [format!("{name}, alone"), format!("{name}, beside an idle session")];
        let (jobs, other, ring) = match (jobs, other, ring) {
            (Ok(jobs), Ok(other), Ok(ring)) => (jobs, other, ring),
            (Err(why), ..) | (_, Err(why), _) | (.., Err(why)) => {
                return names.map(|name| Contestant::without(name, why.clone()));
            }
        };
        let turn = move || turn(other, &mut jobs.iter().copied().cycle().take(TURNS_OF_JOBS));
        let [alone, beside] = names;
        [
            Contestant::new(alone, move |_| turn()).new_heat(),
            Contestant::new(beside, move |round| ring.beside(round, turn)),
        ]
    }

    /// One long rest: what the device draws meanwhile, and how long the item after it takes.
    fn long_rest(&self, ring: &Opening<Ring>) -> Vec<Row> {
        let (before, rest) = if self.is_quick { (3, 10) } else { (10, 60) };
        let row = |name: String, outcome| Row {
            backend: self.name.to_owned(),
            group: IDLE,
            name,
            curve: None,
            x: None,
            outcome,
        };
        let rested = match ring {
            Ok(ring) => open(rest_once(ring, before, rest, self.scaled(4000))),
            Err(why) => Err(why.clone()),
        };
        let names = [
            "one item, busy".to_owned(),
            format!("one item after {rest} s of rest"),
            "watts over those without a session".to_owned(),
            "over the bus to the device, over that without a session".to_owned(),
        ];
        let outcomes = match rested {
            Ok(rested) => rested.outcomes(),
            Err(why) => [(); 4].map(|()| why.clone()),
        };
        names.into_iter().zip(outcomes).map(|(name, outcome)| row(name, outcome)).collect()
    }

    /// Hosts that are killed.
    pub(super) fn death(&self) -> Vec<Row> {
        let name = self.name;
        self.contest(DEATH, vec![Contestant::new("until the kernel has left", move |_| death::turn(name))])
    }
}

/// What one long rest came to.
struct Rested {
    busy: hdrhistogram::Histogram<u64>,
    after: hdrhistogram::Histogram<u64>,
    without: Result<Readings, String>,
    with: Result<Readings, String>,
}

fn rest_once(ring: &Ring, before: u32, rest: u32, items: u32) -> Result<Rested> {
    let look = |seconds| sensors::look(seconds).map_err(|error| format!("{error:#}"));
    let without = look(before);
    let mut live = ring.start(WaitStrategy::Spin)?;
    let busy = live.latencies(0, items)?;
    let with = look(rest);
    let mut after = latencies()?;
    for n in numbers(1, 1) {
        record(&mut after, live.one(n)?);
    }
    live.finish()?;
    Ok(Rested { busy, after, without, with })
}

impl Rested {
    fn outcomes(&self) -> [Outcome; 4] {
        let ratio = self.busy.value_at_quantile(0.5) as f64 / self.after.max() as f64;
        let latency = |histogram: &hdrhistogram::Histogram<u64>, speed| Outcome::Measured {
            figure: Figure::Latency { us: Quantiles::of(histogram) },
            acknowledged: histogram.len(),
            rounds: 1,
            speed: Some(speed),
        };
        [
            latency(&self.busy, 1.0),
            latency(&self.after, ratio),
            self.over("W", |readings| readings.power),
            self.over("MB/s", |readings| readings.received),
        ]
    }

    /// How much more there was with the session.
    fn over(&self, unit: &'static str, of: impl Fn(&Readings) -> Option<Spread>) -> Outcome {
        let (with, without) = match (&self.with, &self.without) {
            (Ok(with), Ok(without)) => (of(with), of(without)),
            (Err(why), _) | (_, Err(why)) => return not_measured(why),
        };
        let (Some(with), Some(without)) = (with, without) else {
            return not_measured("the device does not tell");
        };
        let over = |value: f64| value - without.median;
        let value = Spread { p10: over(with.p10), median: over(with.median), p90: over(with.p90) };
        Outcome::Measured {
            figure: Figure::Quantity { unit, value },
            acknowledged: self.after.len(),
            rounds: 1,
            speed: None,
        }
    }
}
