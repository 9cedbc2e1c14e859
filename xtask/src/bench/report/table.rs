//! The rows as text.

use std::fmt::Write as _;

use super::{Figure, Outcome, Row};

/// A table for people, group after group.
pub(in super::super) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let mut last = None;
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    for row in rows {
        let group = (row.backend.as_str(), row.group);
        if last != Some(group) {
            let _ = writeln!(text, "\n{}: {}", row.backend, row.group);
            last = Some(group);
        }
        let _ = writeln!(text, "  {:<width$}  {}", row.name, outcome(&row.outcome));
    }
    text
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed { reason } => format!("FAILED: {}", one_line(reason)),
        Outcome::NotMeasured { reason } => format!("not measured: {}", one_line(reason)),
        Outcome::Measured { figure, acknowledged, rounds, speed } => {
            let speed = speed.map_or_else(String::new, |speed| format!("{speed:.3}x"));
            let right = (*acknowledged > 0).then(|| format!("{} right", count(*acknowledged)));
            let rounds = (*rounds > 0).then(|| format!("{rounds} rounds"));
            let counted: Vec<String> = right.into_iter().chain(rounds).collect();
            format!("{:<66} {speed:>9}   {}", self::figure(figure), counted.join(", "))
        }
    }
}

fn figure(figure: &Figure) -> String {
    match figure {
        Figure::Latency { us } => format!(
            "p50 {}  p99 {}  p99.9 {}  max {}",
            microseconds(us.p50),
            quantile(us.p99),
            quantile(us.p999),
            microseconds(us.max)
        ),
        Figure::Rate { ns_per_item, items_per_second } => format!(
            "{}/s ({} to {})  {} each",
            quantity(items_per_second.median),
            quantity(items_per_second.p10),
            quantity(items_per_second.p90),
            microseconds(ns_per_item.median / 1e3)
        ),
        Figure::CrossOver { from_units: Some(units), .. } => format!("from {units} units of work on"),
        Figure::CrossOver { from_units: None, up_to_units } => {
            format!("not up to {up_to_units} units of work")
        }
        Figure::Quantity { unit, value } => {
            format!("{:.2} {unit} ({:.2} to {:.2})", value.median, value.p10, value.p90)
        }
    }
}

/// A time in the unit that suits it.
fn microseconds(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{:.0} ns", us * 1e3),
        us if us < 1e3 => format!("{us:.2} us"),
        us => format!("{:.2} ms", us / 1e3),
    }
}

/// A quantile, if there is one.
fn quantile(us: Option<f64>) -> String {
    us.map_or_else(|| "-".to_owned(), microseconds)
}

/// A count with a decimal prefix.
fn quantity(value: f64) -> String {
    match value {
        value if value < 1e3 => format!("{value:.1}"),
        value if value < 1e6 => format!("{:.1} k", value / 1e3),
        value => format!("{:.2} M", value / 1e6),
    }
}

/// A count in groups of three digits.
fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A compiler's or a library's words may be many lines; the JSON has them all.
fn one_line(reason: &str) -> &str {
    reason.lines().next().unwrap_or_default().trim_end_matches("; tried:")
}

#[cfg(test)]
mod tests {
    use super::super::tests::rate;
    use super::*;

    #[test]
    fn units_suit_the_size() {
        assert_eq!(microseconds(0.0123), "12 ns");
        assert_eq!(microseconds(2.9), "2.90 us");
        assert_eq!(microseconds(3100.0), "3.10 ms");
        assert_eq!([quantity(12.0), quantity(1234.0), quantity(2.5e7)], ["12.0", "1.2 k", "25.00 M"]);
        assert_eq!([count(7), count(1000), count(1_234_567)], ["7", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_group_is_named_once() {
        let text = table(&[rate("one", 10.0, None), rate("another", 20.0, None)]);
        assert_eq!(text.matches("cpu: a group").count(), 1);
        assert!(text.contains("100.00 M/s") && text.contains("1,000 right"), "{text}");
    }
}
