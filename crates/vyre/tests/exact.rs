//! The scanner's matches against those of a plain loop over the rules.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{SHIPPED_PLANTS, agree, generate, scanner};
use vyre::scan::walk;

const SHIPPED: &str = include_str!("../../../rules/default.tsv");

/// Rules few enough that their table sees all of them, and that a table finds hard.
const HARD: &str = "\
# Remembers for ever, for a line, for a while.
block\tBEGIN[\\s\\S]*?END
to-end-of-line\t(?m)a.*$
run\t(?-u:\\b)b{70,}
# Anchors.
start\t\\A[a-f0-9]+
end\t[a-f]+\\z
line-start\t(?m)^[a-f]{3}
line-end\t(?m)[0-9]{3}$
text-start\t^.
text-end\t.$
# Empty matches.
empty\t(?:)
empty-or-more\tq*
nothing-else\t\\A\\z
# Words, with and without Unicode.
ascii-word\t(?-u:\\b)abc(?-u:\\b)
unicode-word\t\\babc\\b
not-a-word\t\\Babc\\B
# Case.
caseless\t(?i)straße|ſtop|FixMe
ascii-caseless\t(?i-u)fixme
# Bytes.
not-utf8\t(?-u)[\\x80-\\xFF]\\xFF
greek\t\\p{Greek}+
";

const HARD_PLANTS: [&[u8]; 9] = [
    b"BEGIN",
    b"END",
    b" abc ",
    "éabcé".as_bytes(),
    b"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "STRASSE straSSe Straße ſTOP fixme".as_bytes(),
    b"qqq",
    "αβγ".as_bytes(),
    b"\x80\xFF",
];

fn check(rules: &str, plants: &[&[u8]], files: usize, seed: u64) -> vyre::scan::ScanStats {
    let folder = tempfile::tempdir().expect("a folder");
    let files = generate(folder.path(), files, seed, plants);
    let (stats, matches) = agree(&scanner(rules), rules, &files);
    assert!(matches > 0);
    assert_eq!(stats.matches, matches as u64);
    assert_eq!(stats.files, files.len() as u64);
    stats
}

#[test]
fn shipped_rules_on_binary_files() {
    let stats = check(SHIPPED, &SHIPPED_PLANTS, 100, 1);
    assert_eq!(stats.host_rules, [""; 0]);
    assert!(stats.items > 500 && stats.device_share() == 1.0);
    assert_eq!(stats.latency.map(|latency| latency.items), Some(stats.items + stats.reruns));
    assert!(stats.occupancy.most > 0 && stats.occupancy.most <= stats.occupancy.slots);
}

#[test]
fn every_shipped_rule_finds_its_plant() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("plants");
    // The first line may be the only one that a rule looks at.
    let mut text = b"#!/bin/sh\n".to_vec();
    SHIPPED_PLANTS.iter().for_each(|plant| text.extend([plant, &b"\n"[..]].concat()));
    std::fs::write(&path, text).expect("written");
    let scanner = scanner(SHIPPED);
    let mut ids = Vec::new();
    scanner
        .scan(&[path], |report| {
            ids.extend(common::found(scanner.rules(), &report).into_iter().map(|found| found.2));
            ControlFlow::Continue(())
        })
        .expect("the scan ends");
    for rule in scanner.rules().as_slice() {
        assert!(ids.contains(&rule.id), "{} finds nothing", rule.id);
    }
    assert!(scanner.rules().len() >= 20);
}

#[test]
fn hard_rules_on_binary_files() {
    // All in one table of prefixes, and each in a table of its own.
    check(HARD, &HARD_PLANTS, 60, 2);
    let mut reruns = 0;
    for rule in HARD.lines().filter(|line| !line.starts_with('#')) {
        let folder = tempfile::tempdir().expect("a folder");
        let files = generate(folder.path(), 20, 3, &HARD_PLANTS);
        reruns += agree(&scanner(rule), rule, &files).0.reruns;
    }
    assert!(reruns > 0, "no guess was ever wrong: nothing was tested");
}

#[test]
fn a_match_may_span_many_pieces() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = "block\tBEGIN[\\s\\S]*?END\n";
    let mut files = Vec::new();
    for (name, content) in [
        ("open", [b"xBEGIN".to_vec(), vec![b'x'; 100 * 1024]].concat()),
        ("spanning", [b"xBEGIN".to_vec(), vec![b'x'; 100 * 1024], b"END".to_vec()].concat()),
        ("twice", [b"BEGIN".to_vec(), vec![b'\n'; 300 * 1024], b"ENDBEGINEND".to_vec()].concat()),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        files.push(path);
    }
    let (stats, matches) = agree(&scanner(rules), rules, &files);
    assert_eq!(matches, 3);
    // Runs that double in length: far fewer than the pieces.
    assert!(stats.reruns > 0 && stats.reruns < stats.items / 4, "{} of {}", stats.reruns, stats.items);
}

#[test]
fn rules_past_one_table_and_rules_for_the_host() {
    let mut rules: String = (0..70).map(|n| format!("number-{n}\t(?-u:\\b){n}[a-f]{{2}}\n")).collect();
    // Its states are sets of places in a run of a and b: far too many, and no prefix of eight bytes helps.
    rules += "too-large\tk(?:[ab]{0,40}a[ab]{14}c)?z\n";
    let folder = tempfile::tempdir().expect("a folder");
    let files = generate(folder.path(), 20, 4, &[b" 17ab ", b"kabaabababababababbcz", b"kz", b"69ff"]);
    let (stats, matches) = agree(&scanner(&rules), &rules, &files);
    assert!(matches > 0);
    assert_eq!(stats.host_rules, ["too-large"]);
    assert!(stats.tables.len() >= 3, "{:?}", stats.tables);
    assert_eq!(stats.device_share(), 70.0 / 71.0);

    let alone = "too-large\tk(?:[ab]{0,40}a[ab]{14}c)?z\n";
    let (stats, matches) = agree(&scanner(alone), alone, &files);
    assert!(matches > 0 && stats.items == 0 && stats.device_share() == 0.0);
}

#[test]
fn a_file_longer_than_what_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = "block\tBEGIN[\\s\\S]*?END\nword\t(?-u:\\b)needle(?-u:\\b)\nend\tx\\z\n";
    let len = vyre::scan::KEEP_BYTES as usize + 5 * vyre::scan::PIECE_BYTES + 17;
    let (long, plain) = (folder.path().join("long"), folder.path().join("plain"));
    let mut bytes = vec![b'\n'; len];
    std::fs::write(&plain, &bytes).expect("written");
    bytes[len - 1] = b'x';
    for (at, plant) in [(100_000, &b"BEGIN"[..]), (len - 900, b"END"), (7_000_000, b"needle")] {
        bytes[at..at + plant.len()].copy_from_slice(plant);
    }
    std::fs::write(&long, bytes).expect("written");
    let (stats, matches) = agree(&scanner(rules), rules, &[long, plain]);
    assert_eq!((matches, stats.bytes), (3, 2 * len as u64));
}

#[test]
fn a_slow_file_holds_nobody_up() {
    // While one producer reports two million matches, the others go round the ring; slots that it has not
    // given back would stop them.
    let folder = tempfile::tempdir().expect("a folder");
    let rules = "x\tx\n";
    let slow: Vec<u8> = vec![b'x'; 2 << 20];
    let mut files = Vec::new();
    for index in 0..24 {
        let path = folder.path().join(format!("{index:02}"));
        std::fs::write(&path, if index % 8 == 1 { slow.clone() } else { vec![b' '; 1 << 20] })
            .expect("written");
        files.push(path);
    }
    let scanner = scanner(rules);
    let (mut matches, mut in_file) = (Vec::new(), 0);
    let each = |report: vyre::scan::FileReport| {
        in_file += report.outcome.expect("readable").len();
        if report.complete {
            matches.push(std::mem::take(&mut in_file));
        }
        ControlFlow::Continue(())
    };
    scanner.scan(&files, each).expect("the scan ends");
    let expected: Vec<_> = (0..24).map(|index| if index % 8 == 1 { 2 << 20 } else { 0 }).collect();
    assert_eq!(matches, expected);
}

#[test]
fn many_matches_come_in_parts_and_in_order() {
    // Far more matches than may wait: in long files, in short ones behind a slow reader, in empty ones.
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Vec::new();
    for index in 0..400 {
        let path = folder.path().join(format!("{index:03}"));
        let bytes = [300_000, 0, 1_000, 900, 1_024, 1_025][index % 6];
        std::fs::write(&path, vec![b'x'; if index < 12 { bytes } else { bytes.min(1_100) }])
            .expect("written");
        files.push(path);
    }
    let rules = "x\tx\nempty\t(?-u:x*)\nend\t\\z\n";
    let (stats, matches) = agree(&scanner(rules), rules, &files);
    assert_eq!(stats.matches, matches as u64);
    assert!(matches > 2 * 300_000);

    let mut open: Option<PathBuf> = None;
    let mut most = 0;
    let each = |report: vyre::scan::FileReport| {
        let matches = report.outcome.expect("readable").len();
        most = most.max(matches);
        assert!(open.as_ref().is_none_or(|path| *path == report.path), "parts of two files are mixed");
        assert!(report.complete || matches == vyre::scan::PART_MATCHES);
        open = (!report.complete).then_some(report.path);
        ControlFlow::Continue(())
    };
    scanner(rules).scan(&files, each).expect("the scan ends");
    assert_eq!((open, most), (None, vyre::scan::PART_MATCHES));
}

#[test]
fn a_reader_who_leaves_between_two_parts_ends_the_scan() {
    let folder = tempfile::tempdir().expect("a folder");
    let paths: Vec<_> = (0..8).map(|index| folder.path().join(index.to_string())).collect();
    paths.iter().for_each(|path| std::fs::write(path, vec![b'x'; 1 << 20]).expect("written"));
    let scanner = scanner("x\tx\n");
    let mut reports = 0;
    let each = |_| {
        reports += 1;
        if reports == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    scanner.scan(&paths, each).expect("the scan ends");
    assert_eq!(reports, 3);
}

#[test]
fn this_repository() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths: Vec<PathBuf> =
        ["crates", "docs", "rules", "xtask"].iter().map(|sub| root.join(sub)).collect();
    paths.push(root.join("Cargo.toml"));
    let files = walk(&paths).files;
    assert!(files.len() > 50);
    let (_, matches) = agree(&scanner(SHIPPED), SHIPPED, &files);
    assert!(matches > 50);
}

#[test]
fn two_scans_report_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = generate(folder.path(), 60, 5, &SHIPPED_PLANTS);
    let scanner = scanner(SHIPPED);
    let run = || {
        let mut all = Vec::new();
        let each = |report: vyre::scan::FileReport| {
            all.push((report.path.clone(), report.bytes, report.outcome.ok(), report.complete));
            ControlFlow::Continue(())
        };
        let stats = scanner.scan(&files, each).expect("the scan ends");
        (all, stats.items, stats.reruns, stats.matches)
    };
    assert_eq!(run(), run());
}

#[test]
fn breaking_off_ends_the_scan() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = generate(folder.path(), 200, 6, &SHIPPED_PLANTS);
    let scanner = scanner(SHIPPED);
    let mut reports = 0;
    let each = |_| {
        reports += 1;
        if reports == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    scanner.scan(&files, each).expect("the scan ends");
    assert_eq!(reports, 3);
    // And the scanner is as good as before.
    agree(&scanner, SHIPPED, &files);
}
