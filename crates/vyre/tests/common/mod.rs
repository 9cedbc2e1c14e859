//! Files to scan, and what a plain loop over the rules finds in them.
//!
//! The loop shares no code with the scanner: not the rules parser, not the counting of lines.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use regex::bytes::Regex;
use vyre::scan::{FileReport, PIECE_BYTES, Rules, ScanOptions, ScanStats, Scanner};

/// A match: line, column, id, first byte, the byte after the last.
pub(crate) type Found = (u64, u64, String, usize, usize);

/// A small generator of numbers, the same on every machine.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// What every rule of a rules file finds by itself, sorted.
pub(crate) struct Oracle(Vec<(String, Regex)>);

impl Oracle {
    pub(crate) fn new(rules: &str) -> Oracle {
        let rule = |line: &str| {
            let tab = line.find('\t').expect("a tab");
            (line[..tab].to_owned(), Regex::new(&line[tab + 1..]).expect("a regex"))
        };
        Oracle(rules.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(rule).collect())
    }

    pub(crate) fn matches(&self, bytes: &[u8]) -> Vec<Found> {
        let mut line_starts = vec![0];
        line_starts.extend((0..bytes.len()).filter(|&at| bytes[at] == b'\n').map(|at| at + 1));
        let mut found = Vec::new();
        for (id, regex) in &self.0 {
            for one in regex.find_iter(bytes) {
                let line = line_starts.partition_point(|&start| start <= one.start());
                let column = one.start() - line_starts[line - 1] + 1;
                found.push((line as u64, column as u64, id.clone(), one.start(), one.end()));
            }
        }
        found.sort();
        found
    }
}

/// A report in the words of the oracle.
pub(crate) fn found(rules: &Rules, report: &FileReport) -> Vec<Found> {
    let matches = report.outcome.as_ref().unwrap_or_else(|e| panic!("{}: {e}", report.path.display()));
    let id = |rule: usize| rules.as_slice()[rule].id.clone();
    matches.iter().map(|m| (m.line, m.column, id(m.rule), m.start, m.end)).collect()
}

/// Starts a scanner on the CPU backend.
pub(crate) fn scanner(rules: &str) -> Scanner {
    let backend = vyre::open(vyre::BackendChoice::Cpu).expect("a backend");
    let rules = Rules::parse(rules.as_bytes()).expect("rules");
    Scanner::new(backend, rules, ScanOptions { latency: true, ..ScanOptions::default() }).expect("a scanner")
}

/// Scans files and compares what is reported about each with the oracle. Returns what was measured, and how
/// many matches there were.
pub(crate) fn agree(scanner: &Scanner, rules: &str, files: &[PathBuf]) -> (ScanStats, usize) {
    let (oracle, mut reported, mut total, mut parts) = (Oracle::new(rules), 0, 0, Vec::new());
    let stats = scanner
        .scan(files, |report| {
            assert_eq!(report.path, files[reported], "reports come in the order of the files");
            parts.extend(found(scanner.rules(), &report));
            if !report.complete {
                return ControlFlow::Continue(());
            }
            reported += 1;
            let bytes = std::fs::read(&report.path).expect("readable");
            let (expected, found) = (oracle.matches(&bytes), std::mem::take(&mut parts));
            let differs = expected.iter().zip(&found).find(|(a, b)| a != b);
            assert!(expected == found, "{}: {differs:?}", report.path.display());
            total += found.len();
            ControlFlow::Continue(())
        })
        .expect("the scan ends");
    assert_eq!(reported, files.len());
    (stats, total)
}

/// Writes `count` binary files with plants across the borders of items, and returns their paths in order.
pub(crate) fn generate(folder: &Path, count: usize, seed: u64, plants: &[&[u8]]) -> Vec<PathBuf> {
    let mut rng = Rng(seed);
    let mut files = Vec::new();
    for index in 0..count {
        let path = folder.join(format!("{index:05}.bin"));
        std::fs::write(&path, file(&mut rng, index, plants)).expect("written");
        files.push(path);
    }
    files
}

/// Lengths around which an item may begin or end, then any length.
fn file(rng: &mut Rng, index: usize, plants: &[&[u8]]) -> Vec<u8> {
    const LENGTHS: [usize; 14] = [
        0,
        1,
        2,
        63,
        64,
        65,
        PIECE_BYTES - 1,
        PIECE_BYTES,
        PIECE_BYTES + 1,
        2 * PIECE_BYTES,
        4 * PIECE_BYTES,
        4 * PIECE_BYTES + 3,
        9 * PIECE_BYTES - 1,
        100 * 1024,
    ];
    let len =
        LENGTHS.get(index).copied().unwrap_or_else(|| 1 << rng.below(16)) + rng.below(2) * rng.below(200);
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        match rng.below(4) {
            // Random bytes, mostly not UTF-8.
            0 => (0..rng.below(300)).for_each(|_| bytes.push(rng.next() as u8)),
            // Words and lines.
            1 | 2 => {
                (0..rng.below(300)).for_each(|_| bytes.push(b"abcdef0123456789 .:/-_AE\n"[rng.below(25)]))
            }
            // One byte many times.
            _ => bytes.resize(bytes.len() + rng.below(400), b"a0 \n\xFF"[rng.below(5)]),
        }
    }
    bytes.truncate(len);
    // Plants across the borders of items, and anywhere.
    for border in (0..=bytes.len() / PIECE_BYTES).map(|piece| piece * PIECE_BYTES) {
        let plant = plants[rng.below(plants.len())];
        let at = if rng.below(4) == 0 {
            border + rng.below(PIECE_BYTES)
        } else {
            border.saturating_sub(rng.below(plant.len() + 2))
        };
        if rng.below(3) > 0 && at + plant.len() <= bytes.len() {
            bytes[at..at + plant.len()].copy_from_slice(plant);
        }
    }
    bytes
}

/// Something that each of the shipped rules finds.
pub(crate) const SHIPPED_PLANTS: [&[u8]; 29] = [
    b" AKIAIOSFODNN7EXAMPLE ",
    b"aws_secret_access_key = \"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\"",
    b" ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    b" glpat-0123456789abcdefghij",
    b" AIzaSyA0123456789abcdefghijklmnopqrstuv",
    b" xoxb-0123456789-abcdef",
    b"hooks.slack.com/services/T00/B00/XXXX",
    b" sk_live_0123456789abcdefghijklmn",
    b" npm_0123456789abcdefghijklmnopqrstuvwxyz",
    b" eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-DEF_123",
    b"-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    b"PassWord = 'correct-horse'",
    b"postgres://user:hunter2@host/db",
    b" https://example.org/a?b=c#d ",
    b"<someone.else+tag@mail.example.org>",
    b" 192.168.254.1 ",
    b" 00:1b:44:11:3A:b7 ",
    b" 123e4567-e89b-12d3-a456-426614174000 ",
    b" d41d8cd98f00b204e9800998ecf8427e ",
    b" da39a3ee5e6b4b0d3255bfef95601890afd80709 ",
    b" e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 ",
    b"// FixMe: later",
    b" unsafe { ",
    b"dbg!(x)",
    b"\n<<<<<<< HEAD",
    "\u{202E}".as_bytes(),
    b"#!/bin/sh",
    "Copyright © 2026".as_bytes(),
];
