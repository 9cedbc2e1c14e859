//! `--stats`: what the scan measured, on stderr.

use serde::Serialize;
use vyre::scan::{PIECE_BYTES, ScanStats};

/// The plain search of `--compare`.
#[derive(Serialize)]
pub(crate) struct Comparison {
    /// Seconds that `regex::bytes` alone took for the same files, on every core.
    pub(crate) plain_seconds: f64,
    /// Its time divided by that of the scan, for the same bytes.
    pub(crate) ratio: f64,
    /// Files whose matches differ; none, ever.
    pub(crate) disagreements: usize,
}

#[derive(Serialize)]
struct JsonSummary<'s> {
    #[serde(flatten)]
    stats: &'s ScanStats,
    bytes_per_second: f64,
    items_per_second: f64,
    device_share: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<&'s Comparison>,
}

/// One JSON object in a line.
pub(crate) fn json(stats: &ScanStats, comparison: Option<&Comparison>) -> serde_json::Result<String> {
    serde_json::to_string(&JsonSummary {
        stats,
        bytes_per_second: stats.bytes_per_second(),
        items_per_second: stats.items_per_second(),
        device_share: stats.device_share(),
        comparison,
    })
}

/// One quantity a line.
pub(crate) fn text(stats: &ScanStats, comparison: Option<&Comparison>) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: String| text += &format!("{name:<16}{value}\n");
    row("input", format!("{} files, {} bytes", stats.files, stats.bytes));
    row(
        "time",
        format!(
            "{:.3} s, {:.1} MB/s; {:.3} s before it for tables and session",
            stats.seconds,
            stats.bytes_per_second() / 1e6,
            stats.setup_seconds
        ),
    );
    row(
        "items",
        format!(
            "{} of up to {PIECE_BYTES} bytes, {} run again, {:.0} items/s",
            stats.items,
            stats.reruns,
            stats.items_per_second()
        ),
    );
    row(
        "stepped",
        format!(
            "{} bytes, {} of warm-up, {} again",
            stats.item_bytes, stats.warm_up_bytes, stats.rerun_bytes
        ),
    );
    row("in the IR", format!("{:.2} % of bytes x rules", 100.0 * stats.device_share()));
    for table in &stats.tables {
        let whole = || "whole rules".to_owned();
        let sees = table.cut.map_or_else(whole, |cut| format!("prefixes of about {cut} bytes"));
        row(
            "table",
            format!("{} rules, {} states, {} bytes, {sees}", table.rules, table.states, table.bytes),
        );
    }
    row(
        "rules on host",
        match stats.host_rules.as_slice() {
            [] => "none".to_owned(),
            ids => format!(
                "{}: each needs a table of more than {} bytes, even cut to a short prefix",
                ids.join(" "),
                stats.host_limit
            ),
        },
    );
    if let Some(latency) = stats.latency {
        row("item latency", format!("p50 {:.0} us, p99 {:.0} us", latency.p50_us, latency.p99_us));
    }
    let ring = stats.occupancy;
    row("ring", format!("{} slots, {:.0} in use on average, {} at most", ring.slots, ring.mean, ring.most));
    row(
        "host-confirmed",
        format!(
            "{} matches; {} of {} pairs of file and rule",
            stats.matches, stats.confirmed, stats.suspects
        ),
    );
    if let Some(comparison) = comparison {
        row(
            "regex::bytes",
            format!(
                "{:.3} s for the same files; the scan is {:.2} times as fast; {}",
                comparison.plain_seconds,
                comparison.ratio,
                match comparison.disagreements {
                    0 => "the matches agree".to_owned(),
                    files => format!("the matches of {files} files DIFFER"),
                }
            ),
        );
    }
    text
}
