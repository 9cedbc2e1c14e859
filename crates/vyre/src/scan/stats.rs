//! What a scan measures about itself. Every number is counted where the thing happens.

use std::time::Duration;

use serde::Serialize;

use super::device::{Device, Item};
use super::plan::{Plan, table_limit};
use super::rules::Rules;

/// What a scan measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ScanStats {
    /// Files scanned; those with errors count as far as they were opened.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Matches found.
    pub matches: u64,
    /// Seconds from the first file to the last report.
    pub seconds: f64,
    /// Seconds it took to build the tables and to start the session, before that.
    pub setup_seconds: f64,
    /// Items stepped, reruns not counted.
    pub items: u64,
    /// Items stepped again because their entry state was another one.
    pub reruns: u64,
    /// Bytes stepped by items, reruns and warm-ups not counted: each byte once for each table.
    pub item_bytes: u64,
    /// Bytes stepped as warm-up.
    pub warm_up_bytes: u64,
    /// Bytes stepped by reruns.
    pub rerun_bytes: u64,
    /// Bytes times rules that tables stepped over.
    pub byte_rules_device: u64,
    /// Bytes times rules that only the host searched.
    pub byte_rules_host: u64,
    /// Pairs of a file and a rule that a table saw.
    pub suspects: u64,
    /// Those of them with a match.
    pub confirmed: u64,
    /// The tables.
    pub tables: Vec<TableStats>,
    /// Ids of the rules that no table can hold, and that the host ran.
    pub host_rules: Vec<String>,
    /// Bytes of a dense table past which a rule by itself, even cut to a short prefix, is run on the host.
    pub host_limit: usize,
    /// Use of the ring.
    pub occupancy: Occupancy,
    /// Latency of items, if it was measured, over all scans of the session.
    pub latency: Option<Latency>,
    /// Device losses that the session recovered from, over all its scans.
    pub recoveries: u64,
    /// What was observed of the last one.
    pub last_loss: Option<String>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TableStats {
    /// Rules in it.
    pub rules: usize,
    /// Its states.
    pub states: usize,
    /// Its size on the device.
    pub bytes: usize,
    /// Bytes of each rule's prefix that it sees, if not the whole rules.
    pub cut: Option<usize>,
}

/// How full the ring was, seen right after each submission, over all scans of the session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Occupancy {
    /// Slots of the ring.
    pub slots: u64,
    /// Slots in use, the mean of what was seen.
    pub mean: f64,
    /// Slots in use, the most that was seen.
    pub most: u64,
}

/// From submission to the moment the acknowledgement was seen, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// Items measured.
    pub items: u64,
    /// Half are no longer than this.
    pub p50_us: f64,
    /// 99 % are no longer than this.
    pub p99_us: f64,
}

impl ScanStats {
    pub(super) fn new(
        counts: &Counts,
        elapsed: Duration,
        setup: Duration,
        rules: &Rules,
        plan: &Plan,
        device: &Device,
    ) -> ScanStats {
        let table = |group: &super::plan::Group| TableStats {
            rules: group.rules.len(),
            states: group.automaton.states(),
            bytes: group.automaton.table_bytes(),
            cut: group.cut,
        };
        let id = |&rule: &usize| rules.as_slice().get(rule).map(|rule| rule.id.clone());
        ScanStats {
            files: counts.files,
            bytes: counts.bytes,
            matches: counts.matches,
            seconds: elapsed.as_secs_f64(),
            setup_seconds: setup.as_secs_f64(),
            items: counts.items,
            reruns: counts.reruns,
            item_bytes: counts.item_bytes,
            warm_up_bytes: counts.warm_up_bytes,
            rerun_bytes: counts.rerun_bytes,
            byte_rules_device: counts.byte_rules_device,
            byte_rules_host: counts.byte_rules_host,
            suspects: counts.suspects,
            confirmed: counts.confirmed,
            tables: plan.groups().iter().map(table).collect(),
            host_rules: plan.host().iter().filter_map(id).collect(),
            host_limit: table_limit(1),
            occupancy: device.occupancy(),
            latency: device.latency(),
            recoveries: device.recoveries(),
            last_loss: device.last_loss(),
        }
    }

    /// Input bytes a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Items a second, reruns included.
    pub fn items_per_second(&self) -> f64 {
        (self.items + self.reruns) as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// The part of bytes times rules that was stepped on the device, from 0 to 1.
    pub fn device_share(&self) -> f64 {
        let all = self.byte_rules_device + self.byte_rules_host;
        if all == 0 { 1.0 } else { self.byte_rules_device as f64 / all as f64 }
    }
}

/// What one producer counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) bytes: u64,
    items: u64,
    item_bytes: u64,
    warm_up_bytes: u64,
    reruns: u64,
    rerun_bytes: u64,
    byte_rules_device: u64,
    byte_rules_host: u64,
    suspects: u64,
    confirmed: u64,
    matches: u64,
}

impl Counts {
    pub(super) fn submitted(&mut self, items: &[Item]) {
        self.items += items.len() as u64;
        for item in items {
            self.item_bytes += u64::from(item.len);
            self.warm_up_bytes += u64::from(item.warm_up);
        }
    }

    pub(super) fn resubmitted(&mut self, items: &[Item]) {
        self.reruns += items.len() as u64;
        self.rerun_bytes += items.iter().map(|item| u64::from(item.len)).sum::<u64>();
    }

    /// A file of so many bytes was stepped by every table and is searched by the rules of the host.
    pub(super) fn stepped(&mut self, bytes: u64, plan: &Plan) {
        let on_device: usize = plan.groups().iter().map(|group| group.rules.len()).sum();
        self.byte_rules_device += bytes * on_device as u64;
        self.byte_rules_host += bytes * plan.host().len() as u64;
    }

    /// These rules, those of the host among them, were looked for in a file, and those were found.
    pub(super) fn confirmed(&mut self, plan: &Plan, suspects: &[usize], found: impl Iterator<Item = usize>) {
        self.suspects += suspects.len().saturating_sub(plan.host().len()) as u64;
        self.confirmed += found.filter(|rule| plan.host().binary_search(rule).is_err()).count() as u64;
    }

    /// So many matches were reported.
    pub(super) fn matches(&mut self, matches: usize) {
        self.matches += matches as u64;
    }

    pub(super) fn add(&mut self, other: &Counts) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.items += other.items;
        self.item_bytes += other.item_bytes;
        self.warm_up_bytes += other.warm_up_bytes;
        self.reruns += other.reruns;
        self.rerun_bytes += other.rerun_bytes;
        self.byte_rules_device += other.byte_rules_device;
        self.byte_rules_host += other.byte_rules_host;
        self.suspects += other.suspects;
        self.confirmed += other.confirmed;
        self.matches += other.matches;
    }
}
