//! Who meets whom: the groups of measurements of one backend.

use std::cell::LazyCell;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vyre_driver::VyreBackend;
use vyre_driver::wait::WaitStrategy;

use super::Opened;
use super::feed::{Feed, Kind};
use super::gpu::{Echo, Gpu, GpuProducts, Launches};
use super::items::{ScanData, jobs};
use super::measure::{Contestant, Turn, contest, outcome_of};
use super::opponents::{self, ScanDispatch, WorkDispatch};
use super::products::ProductData;
use super::report::{Figure, Outcome, Row};
use super::session::{Load, Results, Ring, Watch, numbers};

pub(super) const LAUNCHES: &str = "launches";
pub(super) const ONE_ITEM: &str = "one item";
pub(super) const BATCHES: &str = "items by batch";
pub(super) const PRODUCERS: &str = "items by producers";
pub(super) const SCANS: &str = "scans of 1 KiB";
pub(super) const PRODUCTS: &str = "products of 64 cubed";
pub(super) const WORK: &str = "long items";
pub(super) const WATCHED: &str = "watched sessions";
pub(super) const HOMES: &str = "in a worker or not";
pub(super) const IDLE: &str = "idle";
pub(super) const DEATH: &str = "host killed";
/// All groups, in order.
pub(super) const GROUPS: [&str; 11] =
    [LAUNCHES, ONE_ITEM, BATCHES, PRODUCERS, SCANS, PRODUCTS, WORK, WATCHED, HOMES, IDLE, DEATH];

const RING: &str = "ring";
const DETACHED: &str = "no-ops without tickets";
const DISPATCH: &str = "one dispatch each";
const LAUNCH: &str = "one launch each, by hand";

/// Kernels of a graph.
const GRAPH: u32 = 1000;

/// Something that may be missing, with what its rows say then.
pub(super) type Opening<T> = Result<T, Outcome>;

/// The measurements of one backend.
pub(super) struct Suite {
    pub(super) name: &'static str,
    pub(super) opened: Opened,
    pub(super) gpu: Opening<Gpu>,
    pub(super) is_quick: bool,
    /// Groups to measure.
    groups: Vec<&'static str>,
    /// Of a group.
    budget: Duration,
    scans: Arc<ScanData>,
    products: Arc<ProductData>,
}

impl Suite {
    /// A suite of these groups, which share the time.
    pub(super) fn new(
        name: &'static str,
        opened: Opened,
        is_quick: bool,
        groups: Vec<&'static str>,
        budget: Duration,
    ) -> Suite {
        let pieces = if is_quick { 1000 } else { 10_000 };
        let gpu = match &opened.hip {
            Some(hip) => open(Gpu::new(hip)),
            None => Err(not_measured("this backend launches nothing on a GPU")),
        };
        Suite {
            name,
            opened,
            gpu,
            is_quick,
            budget: budget / u32::try_from(groups.len()).unwrap_or(u32::MAX).max(1),
            groups,
            scans: Arc::new(ScanData::new(pieces)),
            products: Arc::new(ProductData::new(pieces.into())),
        }
    }

    /// Group after group. What no group needs is not made.
    pub(super) fn run(&self) -> Vec<Row> {
        std::thread::scope(|scope| {
            // Half a minute of compiling, if the cache is empty.
            let products = scope.spawn(|| {
                self.made_for(&[PRODUCTS], || self.with_gpu(|gpu| GpuProducts::new(gpu, &self.products)))
            });
            let panicked = || Err(not_measured("the thread that compiles panicked"));
            let products = LazyCell::new(move || products.join().unwrap_or_else(|_| panicked()));
            if !self.is_quick {
                // Nothing runs beside what is measured.
                LazyCell::force(&products);
            }
            self.run_with(&products)
        })
    }

    fn run_with(&self, products: &impl Deref<Target = Opening<GpuProducts>>) -> Vec<Row> {
        let launches = self.made_for(&[LAUNCHES, SCANS, WORK, IDLE], || {
            self.with_gpu(|gpu| Launches::new(gpu, &self.scans))
        });
        let echo = self.made_for(&[ONE_ITEM], || self.with_gpu(Echo::new));
        let ring =
            self.made_for(&[ONE_ITEM, BATCHES, PRODUCERS, WORK, WATCHED, IDLE], || self.ring(Load::Nothing));
        let measure = |&group: &&'static str| match group {
            LAUNCHES => self.launches(&launches),
            ONE_ITEM => self.one_item(&ring, &echo),
            BATCHES => self.batches(&ring),
            PRODUCERS => self.producers(&ring),
            SCANS => self.scans(&launches),
            PRODUCTS => self.products(products),
            WORK => self.work(&ring, &launches),
            WATCHED => self.watched(&ring),
            HOMES => self.homes(),
            IDLE => self.idle(&ring, &launches),
            _ => self.death(),
        };
        self.groups.iter().flat_map(measure).collect()
    }

    fn made_for<T>(&self, groups: &[&str], make: impl FnOnce() -> Opening<T>) -> Opening<T> {
        if self.groups.iter().any(|group| groups.contains(group)) {
            return make();
        }
        Err(not_measured("no group that was asked for needs it"))
    }

    fn with_gpu<'g, T>(&'g self, make: impl FnOnce(&'g Gpu) -> Result<T>) -> Opening<T> {
        self.gpu.as_ref().map_err(Clone::clone).and_then(|gpu| open(make(gpu)))
    }

    fn ring(&self, load: Load) -> Opening<Ring> {
        ring_of(&self.opened.backend, load)
    }

    pub(super) fn is_cpu(&self) -> bool {
        self.name == "cpu"
    }

    /// A size of turns.
    pub(super) fn scaled(&self, items: u32) -> u32 {
        if self.is_quick { (items / 8).max(4) } else { items }
    }

    /// Items of a turn that feeds as many as it can: a GPU runs a hundred times as many.
    pub(super) fn fed_items(&self) -> u32 {
        self.scaled(if self.is_cpu() { 1 << 18 } else { 1 << 21 })
    }

    pub(super) fn contest(&self, group: &'static str, contestants: Vec<Contestant<'_>>) -> Vec<Row> {
        contest(group, self.name, self.budget, contestants)
    }

    fn launches(&self, launches: &Opening<Launches<'_>>) -> Vec<Row> {
        let (waited, enqueued) = (self.scaled(1000), self.scaled(8000));
        self.contest(
            LAUNCHES,
            vec![
                take_turns("a launch and waiting for it", launches, move |it, round| {
                    it.one_by_one(round, waited)
                }),
                take_turns("launches back to back", launches, move |it, round| {
                    it.back_to_back(round, enqueued)
                }),
                take_turns(format!("graph of {GRAPH} kernels"), launches, move |it, round| {
                    it.graph(round, GRAPH, (enqueued / GRAPH).max(1))
                }),
            ],
        )
    }

    fn one_item(&self, ring: &Opening<Ring>, echo: &Opening<Echo<'_>>) -> Vec<Row> {
        let items = self.scaled(4000);
        let mut all = vec![
            take_turns("echo kernel, by hand", echo, move |echo, round| echo.turn(round, items)),
            take_turns("ring, waiting by spinning", ring, move |ring, round| {
                ring.one_item(WaitStrategy::Spin, Watch::Nothing, round, items)
            }),
            take_turns("ring, waiting by parking", ring, move |ring, round| {
                ring.one_item(WaitStrategy::Park, Watch::Nothing, round, items)
            }),
            take_turns("ring, an item that stores to memory", ring, move |ring, round| {
                ring.one_note(round, items)
            }),
        ];
        if self.is_cpu() {
            all.push(Contestant::new("queue pair", move |round| opponents::queues_one_item(round, items)));
            all.push(Contestant::new("function call", move |round| opponents::call(round, items)));
        }
        self.contest(ONE_ITEM, all)
    }

    fn batches(&self, ring: &Opening<Ring>) -> Vec<Row> {
        let items = self.fed_items();
        let mut all = self.queues(1, items, "queue pair, one by one", 1.0);
        for batch in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
            for (kind, curve) in [(Kind::Tracked, RING), (Kind::Detached, DETACHED)] {
                let feed = Feed { producers: 1, batch, items, kind };
                all.push(feeds(format!("{curve}, {batch} at once"), ring, feed).at(curve, batch.into()));
            }
        }
        if self.is_cpu() {
            all.push(Contestant::new("function call", move |round| opponents::calls(round, items)));
        }
        self.contest(BATCHES, all)
    }

    fn producers(&self, ring: &Opening<Ring>) -> Vec<Row> {
        let items = self.fed_items();
        let mut all = Vec::new();
        for producers in [1, 2, 4, 8] {
            let x = f64::from(producers);
            let numbers = move |_| opponents::compare_and_swaps(producers, items);
            let name = |what: &str| format!("{what}, {producers} threads");
            all.push(
                Contestant::new(name("compare-and-swap loop"), numbers)
                    .at("compare-and-swap loop", x)
                    .new_heat(),
            );
            all.extend(self.queues(producers, items, &name("queue pair"), x));
            for (kind, batch, curve) in [
                (Kind::Tracked, 1, "ring, one by one"),
                (Kind::Tracked, 32, "ring, 32 at once"),
                (Kind::Detached, 1, "no-ops without tickets, one by one"),
                (Kind::Detached, 32, "no-ops without tickets, 32 at once"),
            ] {
                all.push(feeds(name(curve), ring, Feed { producers, batch, items, kind }).at(curve, x));
            }
        }
        self.contest(PRODUCERS, all)
    }

    /// The queues run on the host's threads, so they are opponents of the host's backend only.
    fn queues(&self, producers: u32, items: u32, name: &str, x: f64) -> Vec<Contestant<'static>> {
        let turn = move |round| opponents::queues(round, producers, items);
        let pair = self.is_cpu().then(|| Contestant::new(name, turn).at("queue pair", x));
        pair.into_iter().collect()
    }

    fn scans(&self, launches: &Opening<Launches<'_>>) -> Vec<Row> {
        let (ring, data) = (self.ring(Load::Scans(Arc::clone(&self.scans))), &self.scans);
        let dispatch = open(ScanDispatch::new(&self.opened.backend, data));
        let count = data.pieces();
        let mut all = vec![
            take_turns(format!("{count} launches by hand, back to back"), launches, |it, round| {
                it.scan_each(round)
            }),
            take_turns(format!("{count} dispatches"), &dispatch, ScanDispatch::each),
            take_turns(format!("ring, {count} items"), &ring, |ring, round| {
                ring.scan(Results::OnTheDevice(1), round)
            }),
            take_turns(format!("ring, {count} items from two threads"), &ring, |ring, round| {
                ring.scan(Results::OnTheDevice(2), round)
            }),
            take_turns(format!("ring, {count} items with tickets"), &ring, |ring, round| {
                ring.scan(Results::ByTicket, round)
            }),
            take_turns("one dispatch over all", &dispatch, ScanDispatch::all),
            take_turns("one launch by hand over all", launches, |it, round| it.scan_all(round)),
        ];
        if self.is_cpu() {
            let calls = move |round| opponents::scan_calls(data, round);
            all.push(Contestant::new(format!("{count} function calls, one thread"), calls));
        }
        self.contest(SCANS, all)
    }

    fn products(&self, gpu: &Opening<GpuProducts>) -> Vec<Row> {
        let (data, count) = (&self.products, self.products.count);
        let ring = self.ring(Load::Products(Arc::clone(data)));
        let mut all = vec![
            take_turns(format!("{count} launches, back to back"), gpu, GpuProducts::each),
            take_turns("graph of single launches", gpu, GpuProducts::graph),
            take_turns(format!("ring, {count} items"), &ring, |ring, round| {
                ring.products(Results::OnTheDevice(1), round)
            }),
            take_turns(format!("ring, {count} items from two threads"), &ring, |ring, round| {
                ring.products(Results::OnTheDevice(2), round)
            }),
            take_turns(format!("ring, {count} items with tickets"), &ring, |ring, round| {
                ring.products(Results::ByTicket, round)
            }),
            take_turns("the same up to the last submission", &ring, Ring::products_submitted),
            take_turns("one batched launch", gpu, GpuProducts::batched),
        ];
        if self.is_cpu() {
            let calls = move |round| data.calls(round);
            all.push(Contestant::new(format!("{count} function calls, one thread"), calls));
            all.push(Contestant::new("one batched call, all threads", move |round| data.one_call(round)));
        }
        self.contest(PRODUCTS, all)
    }

    /// One item at a time, longer and longer, and from where on a launch of its own answers sooner.
    fn work(&self, ring: &Opening<Ring>, launches: &Opening<Launches<'_>>) -> Vec<Row> {
        let dispatch = open(WorkDispatch::new(&self.opened.backend));
        let mut all = Vec::new();
        for units in [1_u32, 4, 16, 64, 256, 1024, 4096, 16_384] {
            let (x, items) = (f64::from(units), self.scaled((1 << 18) / (units + 1024)));
            let name = |what: &str| format!("{what}, {units} units");
            all.push(
                take_turns(name(RING), ring, move |ring, round| ring.work(round, items, units))
                    .at(RING, x)
                    .new_heat(),
            );
            all.push(
                take_turns(name(DISPATCH), &dispatch, move |it, round| {
                    it.turn(jobs(numbers(round, items), units))
                })
                .at(DISPATCH, x),
            );
            all.push(
                take_turns(name(LAUNCH), launches, move |it, round| {
                    it.work(jobs(numbers(round, items), units))
                })
                .at(LAUNCH, x),
            );
            if self.is_cpu() {
                let turn = move |round| opponents::work_calls(round, items, units);
                all.push(Contestant::new(name("function call"), turn).at("function call", x));
            }
        }
        let mut rows = self.contest(WORK, all);
        for (name, curve) in [("a dispatch is faster", DISPATCH), ("a launch by hand is faster", LAUNCH)] {
            rows.push(Row {
                backend: self.name.to_owned(),
                group: WORK,
                name: name.to_owned(),
                curve: None,
                x: None,
                outcome: cross_over(&rows, curve),
            });
        }
        rows
    }
}

/// A megakernel of the bench on a backend.
pub(super) fn ring_of(backend: &Arc<dyn VyreBackend>, load: Load) -> Opening<Ring> {
    if !backend.capabilities().persistent {
        return Err(not_measured("the backend keeps no kernel resident"));
    }
    open(Ring::new(backend, load))
}

/// A contestant that feeds items.
pub(super) fn feeds(name: String, ring: &Opening<Ring>, feed: Feed) -> Contestant<'_> {
    take_turns(name, ring, move |ring, round| ring.feed(Watch::Nothing, round, feed))
}

pub(super) fn not_measured(reason: &str) -> Outcome {
    Outcome::NotMeasured { reason: reason.to_owned() }
}

pub(super) fn open<T>(made: Result<T>) -> Opening<T> {
    made.map_err(|error| outcome_of(&error))
}

/// A contestant that needs something which may be missing.
pub(super) fn take_turns<'b, T>(
    name: impl Into<String>,
    opening: &'b Opening<T>,
    turn: impl Fn(&'b T, u64) -> Result<Turn> + 'b,
) -> Contestant<'b> {
    match opening {
        Ok(it) => Contestant::new(name, move |round| turn(it, round)),
        Err(outcome) => Contestant::without(name, outcome.clone()),
    }
}

/// From how many units of work on a curve is below the ring's.
fn cross_over(rows: &[Row], curve: &str) -> Outcome {
    let at = |curve: &str| -> Option<Vec<(f64, f64)>> {
        let points = rows.iter().filter(|row| row.curve == Some(curve));
        points.map(|row| row.x.zip(row.median_us())).collect()
    };
    let (Some(ring), Some(other)) = (at(RING), at(curve)) else {
        return not_measured("one of the two curves has a point missing");
    };
    let Some(&(up_to_units, _)) = ring.last() else {
        return not_measured("there are no curves");
    };
    let wins = ring.iter().zip(&other).map(|((_, ring), (_, other))| other < ring);
    let last_loss = wins.clone().enumerate().filter(|(_, wins)| !wins).map(|(at, _)| at + 1).next_back();
    let from_units = ring.get(last_loss.unwrap_or(0)).map(|&(units, _)| units);
    Outcome::Measured {
        figure: Figure::CrossOver { from_units, up_to_units },
        acknowledged: acknowledged(rows, RING) + acknowledged(rows, curve),
        rounds: 0,
        speed: None,
    }
}

fn acknowledged(rows: &[Row], curve: &str) -> u64 {
    let of = |row: &Row| match row.outcome {
        Outcome::Measured { acknowledged, .. } => acknowledged,
        _ => 0,
    };
    rows.iter().filter(|row| row.curve == Some(curve)).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::rate;
    use super::*;

    fn curve(name: &'static str, heights: [f64; 3]) -> Vec<Row> {
        let points = [1.0, 4.0, 16.0].into_iter().zip(heights);
        points.map(|(x, height)| rate(name, height, Some((name, x)))).collect()
    }

    fn from(ring: [f64; 3], launch: [f64; 3]) -> Option<f64> {
        let rows = [curve(RING, ring), curve(LAUNCH, launch)].concat();
        match cross_over(&rows, LAUNCH) {
            Outcome::Measured { figure: Figure::CrossOver { from_units, up_to_units: 16.0 }, .. } => {
                from_units
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_cross_over_is_where_a_launch_wins_for_good() {
        assert_eq!(from([1.0, 2.0, 9.0], [5.0, 5.0, 5.0]), Some(16.0));
        assert_eq!(from([1.0, 6.0, 3.0], [5.0, 5.0, 5.0]), None, "won once, by chance");
        assert_eq!(from([9.0, 9.0, 9.0], [5.0, 5.0, 5.0]), Some(1.0));
        let mut rows = [curve(RING, [1.0; 3]), curve(LAUNCH, [2.0; 3])].concat();
        if let Some(row) = rows.last_mut() {
            row.outcome = Outcome::Failed { reason: "wrong".to_owned() };
        }
        assert!(matches!(cross_over(&rows, LAUNCH), Outcome::NotMeasured { .. }));
    }
}
