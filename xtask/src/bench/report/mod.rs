//! What was measured: rows, as a table, as JSON, as plots.

mod svg;
mod table;

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::machine::Machine;
use super::statistics::{Quantiles, Spread};

pub(super) use svg::plot;
pub(super) use table::table;

/// The layout of the JSON; one more whenever a reader of it would have to change.
const VERSION: u32 = 2;

/// One measurement of one backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) backend: String,
    /// What it took turns with.
    pub(super) group: &'static str,
    pub(super) name: String,
    /// The curve of the group's plot that it is a point of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) curve: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) x: Option<f64>,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// What became of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Every item was acknowledged, and every result was right.
    #[serde(rename = "right")]
    Measured {
        figure: Figure,
        /// Items acknowledged in all rounds that count.
        acknowledged: u64,
        rounds: usize,
        /// How many times as fast as the row that has 1: the median of the rounds' ratios.
        #[serde(skip_serializing_if = "Option::is_none")]
        speed: Option<f64>,
    },
    /// Something was wrong or went wrong: there is no figure.
    Failed { reason: String },
    /// This backend, or this version, cannot do it.
    NotMeasured { reason: String },
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Figure {
    /// Of single items, in microseconds, over all rounds.
    Latency { us: Quantiles },
    /// Of many items at a time, over the rounds.
    Rate { ns_per_item: Spread, items_per_second: Spread },
    /// Anything else.
    Quantity { unit: &'static str, value: Spread },
    /// From how many units of work in an item on another way is faster than the ring, if so up to the last size.
    CrossOver { from_units: Option<f64>, up_to_units: f64 },
}

impl Row {
    /// The median time of an item, in microseconds.
    pub(super) fn median_us(&self) -> Option<f64> {
        match &self.outcome {
            Outcome::Measured { figure: Figure::Latency { us }, .. } => Some(us.p50),
            Outcome::Measured { figure: Figure::Rate { ns_per_item, .. }, .. } => {
                Some(ns_per_item.median / 1e3)
            }
            _ => None,
        }
    }

    /// What the plot has at `x`: items a second, or microseconds.
    pub(super) fn height(&self) -> Option<f64> {
        match &self.outcome {
            Outcome::Measured { figure: Figure::Rate { items_per_second, .. }, .. } => {
                Some(items_per_second.median)
            }
            _ => self.median_us(),
        }
    }

    pub(super) fn is_rate(&self) -> bool {
        matches!(self.outcome, Outcome::Measured { figure: Figure::Rate { .. }, .. })
    }
}

/// All of one run.
#[derive(Serialize)]
struct Document<'r> {
    version: u32,
    machine: &'r Machine,
    rows: &'r [Row],
}

/// Writes everything to a file as JSON.
pub(super) fn write_json(path: &Path, machine: &Machine, rows: &[Row]) -> Result<()> {
    let text = serde_json::to_string_pretty(&Document { version: VERSION, machine, rows })?;
    std::fs::write(path, text + "\n")
        .with_context(|| format!("writing {}; is the folder there?", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn rate(name: &str, nanoseconds: f64, point: Option<(&'static str, f64)>) -> Row {
        let spread = |value: f64| Spread { p10: value, median: value, p90: value };
        Row {
            backend: "cpu".to_owned(),
            group: "a group",
            name: name.to_owned(),
            curve: point.map(|(curve, _)| curve),
            x: point.map(|(_, x)| x),
            outcome: Outcome::Measured {
                figure: Figure::Rate {
                    ns_per_item: spread(nanoseconds),
                    items_per_second: spread(1e9 / nanoseconds),
                },
                acknowledged: 1000,
                rounds: 3,
                speed: Some(1.0),
            },
        }
    }

    #[test]
    fn a_failed_row_has_no_number_in_any_form() {
        let mut row = rate("ring", 20.0, Some(("ring", 1.0)));
        row.outcome = Outcome::Failed { reason: "item 3 is wrong".to_owned() };
        assert_eq!(row.height(), None);
        let json = serde_json::to_value(&row).expect("plain data");
        assert_eq!(json["verdict"], "failed");
        assert!(json.get("figure").is_none());
        let text = table(std::slice::from_ref(&row));
        assert!(text.contains("FAILED: item 3 is wrong") && !text.contains("/s"), "{text}");
    }

    #[test]
    fn json_says_what_was_counted() {
        let json = serde_json::to_value(rate("ring", 20.0, None)).expect("plain data");
        assert_eq!(json["verdict"], "right");
        assert_eq!(json["acknowledged"], 1000);
        assert_eq!(json["figure"]["kind"], "rate");
        assert_eq!(json["figure"]["items_per_second"]["median"], 5e7);
    }
}
