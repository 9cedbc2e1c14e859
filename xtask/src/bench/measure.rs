//! Contests: contestants take turns, round after round, so that a noisy machine disturbs all alike.
//!
//! A turn does its work, sees every item acknowledged, and compares every result; it ends in a [`Turn`] or in
//! an error. A contestant whose turn ends in an error has no figure, however good its other turns were.

use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use hdrhistogram::Histogram;
use vyre_driver::BackendError;
use vyre_hip::compile::CompileError;
use vyre_hip::device::DeviceError;

use super::report::{Figure, Outcome, Row};
use super::statistics::{Quantiles, Spread};

/// Rounds that count, at least; one more goes before them and only warms up.
const LEAST_ROUNDS: usize = 3;
/// More rounds say nothing new.
const MOST_ROUNDS: usize = 400;

/// What one turn measured.
pub(super) enum Sample {
    /// Of each item, in nanoseconds.
    Latencies(Histogram<u64>),
    /// Of all items together.
    Elapsed(Duration),
    /// CPU time as a share of one core, in percent.
    Percent(f64),
}

/// What a turn came to: every item of it was acknowledged, and every result was right.
pub(super) struct Turn {
    /// How many items.
    pub(super) acknowledged: u64,
    pub(super) sample: Sample,
}

/// Has a turn; the argument numbers the rounds.
type Body<'b> = Box<dyn FnMut(u64) -> Result<Turn> + 'b>;

/// Somebody who takes turns.
pub(super) struct Contestant<'b> {
    name: String,
    /// Which curve of the plot, and where on it.
    point: Option<(&'static str, f64)>,
    /// Whether speeds from here on are against this one.
    begins_heat: bool,
    /// Or what its row says instead.
    body: Result<Body<'b>, Outcome>,
}

impl<'b> Contestant<'b> {
    pub(super) fn new(name: impl Into<String>, body: impl FnMut(u64) -> Result<Turn> + 'b) -> Contestant<'b> {
        Contestant { name: name.into(), point: None, begins_heat: false, body: Ok(Box::new(body)) }
    }

    /// One that cannot take part.
    pub(super) fn without(name: impl Into<String>, outcome: Outcome) -> Contestant<'b> {
        Contestant { name: name.into(), point: None, begins_heat: false, body: Err(outcome) }
    }

    /// The same as a point of a curve.
    pub(super) fn at(mut self, curve: &'static str, x: f64) -> Contestant<'b> {
        self.point = Some((curve, x));
        self
    }

    /// The same as the first of a heat: speeds of those behind it are against it, not against the group's first.
    pub(super) fn new_heat(mut self) -> Contestant<'b> {
        self.begins_heat = true;
        self
    }
}

/// What a contestant has measured so far.
#[derive(Default)]
struct Found {
    acknowledged: u64,
    all: Option<Histogram<u64>>,
    /// Of each round: nanoseconds an item (the median where single ones were measured), or percent.
    rounds: Vec<f64>,
    is_share: bool,
}

impl Found {
    fn add(&mut self, turn: Turn) {
        self.acknowledged += turn.acknowledged;
        match turn.sample {
            Sample::Latencies(histogram) => {
                self.rounds.push(histogram.value_at_quantile(0.5) as f64);
                match &mut self.all {
                    None => self.all = Some(histogram),
                    // All have one range, so nothing is out of it.
                    Some(all) => drop(all.add(histogram)),
                }
            }
            Sample::Elapsed(elapsed) => {
                self.rounds.push(elapsed.as_secs_f64() * 1e9 / turn.acknowledged.max(1) as f64);
            }
            Sample::Percent(percent) => {
                self.is_share = true;
                self.rounds.push(percent);
            }
        }
    }

    fn figure(&self) -> Option<Figure> {
        let rounds = Spread::of(&self.rounds)?;
        Some(match &self.all {
            Some(all) => Figure::Latency { us: Quantiles::of(all) },
            None if self.is_share => Figure::Quantity { unit: "% of a core", value: rounds },
            None => Figure::Rate {
                ns_per_item: rounds,
                items_per_second: Spread {
                    p10: 1e9 / rounds.p90,
                    median: 1e9 / rounds.median,
                    p90: 1e9 / rounds.p10,
                },
            },
        })
    }

    /// How many times as fast as `first`, round by round.
    fn speed(&self, first: &Found) -> Option<f64> {
        if self.is_share || first.is_share {
            return None;
        }
        let ratios: Vec<f64> =
            first.rounds.iter().zip(&self.rounds).map(|(first, mine)| first / mine).collect();
        Spread::of(&ratios).map(|spread| spread.median)
    }
}

/// Lets the contestants take turns until `budget` is used up. A speed is against the first one of the
/// heat that has a figure.
pub(super) fn contest(
    group: &'static str,
    backend: &str,
    budget: Duration,
    mut contestants: Vec<Contestant<'_>>,
) -> Vec<Row> {
    eprintln!("{backend}: {group}");
    let started = Instant::now();
    let mut found: Vec<Found> = contestants.iter().map(|_| Found::default()).collect();
    let mut failed: Vec<Option<Outcome>> = contestants.iter().map(|_| None).collect();
    for round in 0..=MOST_ROUNDS {
        if round > LEAST_ROUNDS && started.elapsed() >= budget {
            break;
        }
        for ((contestant, found), failed) in contestants.iter_mut().zip(&mut found).zip(&mut failed) {
            let Ok(body) = &mut contestant.body else { continue };
            if failed.is_some() {
                continue;
            }
            match body(round as u64) {
                Ok(turn) if round > 0 => found.add(turn),
                Ok(_) => {}
                Err(error) => *failed = Some(outcome_of(&error)),
            }
        }
    }
    let mut first: Option<&Found> = None;
    let mut rows = Vec::new();
    for (at, (contestant, failed)) in contestants.into_iter().zip(failed).enumerate() {
        let mine = found.get(at).filter(|found| failed.is_none() && !found.rounds.is_empty());
        first = if contestant.begins_heat { mine } else { first.or(mine) };
        let outcome = match (contestant.body, failed, mine.and_then(Found::figure)) {
            (Err(outcome), ..) => outcome,
            (_, Some(failed), _) => failed,
            (_, None, None) => Outcome::NotMeasured { reason: "no round was had".to_owned() },
            (_, None, Some(figure)) => Outcome::Measured {
                figure,
                acknowledged: mine.map_or(0, |mine| mine.acknowledged),
                rounds: mine.map_or(0, |mine| mine.rounds.len()),
                speed: first.and_then(|first| mine?.speed(first)),
            },
        };
        rows.push(Row {
            backend: backend.to_owned(),
            group,
            name: contestant.name,
            curve: contestant.point.map(|(curve, _)| curve),
            x: contestant.point.map(|(_, x)| x),
            outcome,
        });
    }
    rows
}

/// What a backend or a machine cannot do is no failure of it.
pub(super) fn outcome_of(error: &Error) -> Outcome {
    let cannot = |cause: &&(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(BackendError::Unsupported { .. }))
            || matches!(cause.downcast_ref(), Some(DeviceError::Unsupported { .. }))
            || cause.downcast_ref().is_some_and(CompileError::is_missing_compiler)
    };
    match error.chain().find(cannot) {
        Some(reason) => Outcome::NotMeasured { reason: reason.to_string() },
        None => Outcome::Failed { reason: format!("{error:#}") },
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn speed(row: &Row) -> Option<f64> {
        match row.outcome {
            Outcome::Measured { speed, .. } => speed,
            _ => None,
        }
    }

    fn turn(nanoseconds: u64) -> Turn {
        Turn { acknowledged: 1, sample: Sample::Elapsed(Duration::from_nanos(nanoseconds)) }
    }

    #[test]
    fn contestants_take_turns_and_the_first_round_warms_up() {
        let order = std::cell::RefCell::new(Vec::new());
        let rows = contest(
            "a group",
            "cpu",
            Duration::ZERO,
            vec![
                Contestant::new("one", |round| {
                    order.borrow_mut().push(("one", round));
                    Ok(turn(if round == 0 { 1_000_000 } else { 100 }))
                }),
                Contestant::new("two", |round| {
                    order.borrow_mut().push(("two", round));
                    Ok(turn(50))
                }),
            ],
        );
        let expected: Vec<_> = (0..4).flat_map(|round| [("one", round), ("two", round)]).collect();
        assert_eq!(*order.borrow(), expected);
        let speeds: Vec<_> = rows.iter().map(speed).collect();
        assert_eq!(speeds, [Some(1.0), Some(2.0)]);
        let counted = rows
            .iter()
            .all(|row| matches!(row.outcome, Outcome::Measured { acknowledged: 3, rounds: 3, .. }));
        assert!(counted, "the warm-up is not: {rows:?}");
    }

    #[test]
    fn a_speed_is_against_the_first_of_the_heat_that_has_a_figure() {
        let rows = contest(
            "a group",
            "cpu",
            Duration::ZERO,
            vec![
                Contestant::new("wrong", |_| bail!("wrong")),
                Contestant::new("one", |_| Ok(turn(100))),
                Contestant::new("two", |_| Ok(turn(50))),
                Contestant::new("three", |_| Ok(turn(400))).new_heat(),
                Contestant::new("four", |_| Ok(turn(100))),
            ],
        );
        let speeds: Vec<_> = rows.iter().map(speed).collect();
        assert_eq!(speeds, [None, Some(1.0), Some(2.0), Some(1.0), Some(4.0)]);
    }

    #[test]
    fn a_wrong_result_in_any_round_leaves_no_figure() {
        let rows = contest(
            "a group",
            "cpu",
            Duration::ZERO,
            vec![Contestant::new("wrong", |round| {
                if round == 2 {
                    bail!("item 7 is wrong");
                }
                Ok(turn(1))
            })],
        );
        let [row] = rows.as_slice() else { panic!("one row") };
        assert_eq!(row.outcome, Outcome::Failed { reason: "item 7 is wrong".to_owned() });
    }

    #[test]
    fn what_a_backend_cannot_do_is_not_measured() {
        let no_compiler = || CompileError::CompilerNotFound {
            platform: vyre_hip::compile::Platform::Nvidia,
            tried: Vec::new(),
        };
        let refusal = || BackendError::Unsupported { what: "sessions".to_owned(), remedy: "wait".to_owned() };
        let rows = contest(
            "a group",
            "hip",
            Duration::ZERO,
            vec![
                Contestant::new("refused", |_| Err(Error::from(refusal()).context("start a session"))),
                Contestant::new("not compiled", |_| Err(Error::from(no_compiler()).context("compile"))),
                Contestant::without("absent", Outcome::NotMeasured { reason: "no such thing".to_owned() }),
            ],
        );
        assert!(rows.iter().all(|row| matches!(row.outcome, Outcome::NotMeasured { .. })), "{rows:?}");
    }
}
