//! Medians and quantiles.

use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(60);

/// Latencies in nanoseconds, to three digits.
pub(super) fn latencies() -> Result<Histogram<u64>> {
    Histogram::new_with_max(LONGEST.as_nanos() as u64, 3).context("a histogram of up to a minute")
}

/// Counts one latency.
pub(super) fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(latency.as_nanos() as u64);
}

/// Quantiles of single latencies, in microseconds. Those that too few latencies lie beyond are none: they would
/// be the maximum by another name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Quantiles {
    pub(super) min: f64,
    pub(super) p50: f64,
    pub(super) p99: Option<f64>,
    pub(super) p999: Option<f64>,
    pub(super) max: f64,
}

impl Quantiles {
    /// Of a histogram of nanoseconds.
    pub(super) fn of(histogram: &Histogram<u64>) -> Quantiles {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Quantiles {
            min: histogram.min() as f64 / 1e3,
            p50: at(0.5),
            p99: (histogram.len() >= 1000).then(|| at(0.99)),
            p999: (histogram.len() >= 10_000).then(|| at(0.999)),
            max: histogram.max() as f64 / 1e3,
        }
    }
}

/// Where the rounds of one measurement lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    /// A tenth of the rounds are below.
    pub(super) p10: f64,
    pub(super) median: f64,
    /// A tenth of the rounds are above.
    pub(super) p90: f64,
}

impl Spread {
    /// Of the rounds, in any order; `None` without any.
    pub(super) fn of(rounds: &[f64]) -> Option<Spread> {
        let mut sorted = rounds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let at = |share: f64| sorted.get((share * last as f64).round() as usize).copied();
        Some(Spread { p10: at(0.1)?, median: at(0.5)?, p90: at(0.9)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_takes_the_rounds_by_rank() {
        let rounds: Vec<f64> = (0..=20).rev().map(f64::from).collect();
        assert_eq!(Spread::of(&rounds), Some(Spread { p10: 2.0, median: 10.0, p90: 18.0 }));
        assert_eq!(Spread::of(&[3.0]), Some(Spread { p10: 3.0, median: 3.0, p90: 3.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn quantiles_are_microseconds() {
        let mut histogram = latencies().expect("in range");
        (1..=1000).for_each(|n| record(&mut histogram, Duration::from_micros(n)));
        let quantiles = Quantiles::of(&histogram);
        for (got, expected) in
            [(quantiles.min, 1.0), (quantiles.p50, 500.0), (quantiles.p99.expect("enough"), 990.0)]
        {
            assert!((got / expected - 1.0).abs() < 2e-3, "{got} for {expected}");
        }
        assert_eq!(quantiles.p999, None, "one latency is beyond it");
    }
}
