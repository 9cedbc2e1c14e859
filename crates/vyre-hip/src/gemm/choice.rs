//! Which kernel of `gemm_f16.hip` to launch for a shape: what `kernels/gemm/choice.h` says, in Rust.

use crate::api::Platform;
use crate::compile::Architecture;

/// A kernel, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    /// Of C in a block.
    pub(super) rows: u32,
    pub(super) columns: u32,
    threads: u32,
    staged_threads: u32,
    async_shared: u32,
    alone: u64,
    shared: u64,
    once: u64,
}

const fn entry(name: &'static str, tile: [u32; 2], threads: [u32; 2], shared: u32, costs: [u64; 3]) -> Entry {
    let ([rows, columns], [threads, staged_threads], [alone, cost_shared, once]) = (tile, threads, costs);
    Entry {
        name,
        rows,
        columns,
        threads,
        staged_threads,
        async_shared: shared,
        alone,
        shared: cost_shared,
        once,
    }
}

/// In the order of the header.
pub(super) const ENTRIES: [Entry; 8] = [
    entry("vyre_gemm_f16_128x256", [128, 256], [256, 256], 196_608, [150, 135, 40_000]),
    entry("vyre_gemm_f16_128x128", [128, 128], [128, 256], 65_536, [165, 116, 35_000]),
    entry("vyre_gemm_f16_64x128", [64, 128], [256, 256], 98_304, [115, 92, 25_000]),
    entry("vyre_gemm_f16_64x64", [64, 64], [128, 128], 65_536, [65, 37, 15_000]),
    entry("vyre_gemm_f16_32x64", [32, 64], [256, 128], 49_152, [48, 33, 10_000]),
    entry("vyre_gemm_f16_rows1", [1, 64], [256, 256], 0, [0, 0, 0]),
    entry("vyre_gemm_f16_rows4", [4, 64], [256, 256], 0, [0, 0, 0]),
    entry("vyre_gemm_f16_rows8", [8, 64], [256, 256], 0, [0, 0, 0]),
];

/// The tiles, and behind them the kernels for few rows.
const TILES: usize = 5;
const ROWS1: usize = 5;
const ROWS4: usize = 6;
const ROWS8: usize = 7;

/// How a kernel's loop brings its operands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loop {
    /// NVIDIA, sm_80 and later.
    Async,
    /// Older NVIDIA.
    StagedCuda,
    /// AMD: its shared memory is static.
    StagedHip,
}

impl Loop {
    pub(super) fn of(arch: &Architecture) -> Loop {
        let digits = arch.number().trim_end_matches(|c: char| !c.is_ascii_digit());
        match (arch.platform(), digits.parse::<u32>()) {
            (Platform::Amd, _) => Loop::StagedHip,
            (Platform::Nvidia, Ok(number)) if number < 80 => Loop::StagedCuda,
            (Platform::Nvidia, _) => Loop::Async,
        }
    }
}

impl Entry {
    pub(super) fn threads(&self, with: Loop) -> u32 {
        if with == Loop::Async { self.threads } else { self.staged_threads }
    }

    /// Bytes of shared memory to ask for at the launch.
    pub(super) fn dynamic_shared(&self, with: Loop) -> u32 {
        match with {
            Loop::StagedHip => 0,
            _ if self.async_shared == 0 => 0,
            Loop::Async => self.async_shared,
            Loop::StagedCuda => (self.rows + self.columns) * 160,
        }
    }

    pub(super) fn tiles(&self, [m, n, batch]: [u64; 3]) -> u64 {
        let [rows, columns] = [m.div_ceil(self.rows.into()), n.div_ceil(self.columns.into())];
        rows.wrapping_mul(columns).wrapping_mul(batch)
    }
}

/// What to launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// A place in [`ENTRIES`].
    pub(super) index: usize,
    pub(super) entry: Entry,
    pub(super) split_k: u32,
    pub(super) tile_group: u32,
    /// Blocks; zero where there is nothing to write.
    pub(super) grid: u32,
}

impl Choice {
    /// fp32 words of workspace: partial sums, if k is split.
    pub(super) fn workspace_floats(&self, sizes: [u64; 3]) -> u64 {
        let kept = (u64::from(self.entry.rows) * u64::from(self.entry.columns)).max(256);
        if self.split_k > 1 { self.entry.tiles(sizes) * u64::from(self.split_k) * kept } else { 0 }
    }

    /// 32-bit counters, if k is split: one for each tile.
    pub(super) fn counters(&self, sizes: [u64; 3]) -> u64 {
        if self.split_k > 1 { self.entry.tiles(sizes) } else { 0 }
    }
}

/// The device as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Multiprocessors or compute units.
    pub(super) units: u32,
    pub(super) with: Loop,
    /// Bytes of shared memory that a block can have: tiles that need more are left out.
    pub(super) shared_bytes: u32,
}

/// Time in the table's unit, from the blocks on the busiest multiprocessor. Sizes for which it wraps fit no
/// device.
fn time(tile: &Entry, tiles: u64, k: u64, split: u64, units: u64) -> u64 {
    let blocks = tiles.wrapping_mul(split).div_ceil(units);
    let each = blocks.wrapping_mul(tile.shared).max(tile.alone);
    let kept = u64::from(tile.rows) * u64::from(tile.columns) * 3 / 5;
    let meeting = if split > 1 { 20_000 + split * kept } else { 0 };
    each.wrapping_mul(k.div_ceil(split)).wrapping_add(blocks.wrapping_mul(tile.once)).wrapping_add(meeting)
}

pub(super) fn choose(sizes: [u64; 3], k: u64, target: &Target) -> Choice {
    let [m, ..] = sizes;
    let units = u64::from(target.units.max(1));
    let (index, split) = if m <= 8 {
        let index = match m {
            0..=1 => ROWS1,
            2..=4 => ROWS4,
            _ => ROWS8,
        };
        let tiles = ENTRIES[index].tiles(sizes);
        let mut split = 1;
        while tiles != 0 && tiles.wrapping_mul(split * 2) <= 4 * units && split * 1024 <= k {
            split *= 2;
        }
        (index, split)
    } else {
        // AMD's kernels have no 128x256.
        let first = usize::from(target.with == Loop::StagedHip);
        let mut best = (u64::MAX, TILES - 1, 1);
        for (index, tile) in ENTRIES.iter().enumerate().take(TILES).skip(first) {
            if tile.dynamic_shared(target.with) > target.shared_bytes {
                continue;
            }
            let tiles = tile.tiles(sizes);
            for split in [1, 2, 4, 8, 16, 32, 64] {
                if split > 1 && (tiles.wrapping_mul(split) > units || split * 256 > k) {
                    break;
                }
                let time = time(tile, tiles, k, split, units);
                if time < best.0 {
                    best = (time, index, split);
                }
            }
        }
        (best.1, best.2)
    };
    let entry = ENTRIES[index];
    // Blocks walk what is left over.
    let grid = entry.tiles(sizes).wrapping_mul(split).min(0x10_0000);
    Choice { index, entry, split_k: split as u32, tile_group: 8, grid: grid as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use std::fmt::Write as _;
    use std::process::Command;

    const LOOPS: [Loop; 3] = [Loop::Async, Loop::StagedCuda, Loop::StagedHip];
    const SIZES: [u64; 17] = [0, 1, 2, 4, 5, 8, 9, 16, 33, 64, 65, 127, 512, 1000, 4097, 8192, 1 << 20];
    const DEPTHS: [u64; 8] = [0, 1, 64, 512, 1023, 1024, 4096, 70_000];
    const UNITS: [u32; 4] = [1, 60, 132, 304];

    /// Prints the table and the choices that the header makes.
    const PROGRAM: &str = r#"
#include <stdio.h>
#include "choice.h"
int main(void) {
    for (int i = 0; i < VYRE_GEMM_ENTRY_COUNT; ++i) {
        const VyreGemmEntry *e = &VYRE_GEMM_ENTRIES[i];
        printf("%s %u %u", e->name, e->rows, e->columns);
        for (int loop = 0; loop < 3; ++loop)
            printf(" %u %u", loop == VYRE_GEMM_LOOP_ASYNC ? e->threads : e->staged_threads,
                   vyre_gemm_dynamic_shared(e, loop));
        printf("\n");
    }
    unsigned long long m, n, k, batch; unsigned units; int loop;
    while (scanf("%llu %llu %llu %llu %u %d", &m, &n, &k, &batch, &units, &loop) == 6) {
        VyreGemmChoice c = vyre_gemm_choose(m, n, k, batch, units, loop);
        printf("%llu %llu %llu %llu %u %d: %u %u %u %u %llu\n", m, n, k, batch, units, loop, c.entry, c.split_k,
               c.tile_group, c.grid, (unsigned long long)vyre_gemm_workspace_floats(&c, m, n, batch));
    }
    return 0;
}
"#;

    fn mirrored() -> (String, String) {
        let mut text = String::new();
        for entry in ENTRIES {
            write!(text, "{} {} {}", entry.name, entry.rows, entry.columns).expect("written");
            for with in LOOPS {
                write!(text, " {} {}", entry.threads(with), entry.dynamic_shared(with)).expect("written");
            }
            text += "\n";
        }
        let mut questions = String::new();
        for (m, n) in SIZES.iter().flat_map(|&m| SIZES.iter().map(move |&n| (m, n))) {
            for (&k, &units) in DEPTHS.iter().flat_map(|k| UNITS.iter().map(move |units| (k, units))) {
                for (number, with) in LOOPS.into_iter().enumerate() {
                    let batch = if (m + n) % 3 == 0 { 5 } else { 1 };
                    let sizes = [m, n, batch];
                    let c = choose(sizes, k, &Target { units, with, shared_bytes: u32::MAX });
                    let question = format!("{m} {n} {k} {batch} {units} {number}");
                    let floats = c.workspace_floats(sizes);
                    writeln!(
                        text,
                        "{question}: {} {} {} {} {floats}",
                        c.index, c.split_k, c.tile_group, c.grid
                    )
                    .expect("written");
                    questions += &format!("{question}\n");
                }
            }
        }
        (text, questions)
    }

    /// The header is the original: a C program that includes it prints what this file says.
    #[test]
    fn the_header_says_the_same() {
        let Some(compiler) = ["cc", "gcc", "clang", "clang-19"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()))
        else {
            eprintln!("skipped: no C compiler");
            return;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let header = kernels::find("gemm/choice.h").expect("the header");
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("choice.h"), header.text).expect("written");
        std::fs::write(file("main.c"), PROGRAM).expect("written");
        let (expected, questions) = mirrored();
        std::fs::write(file("questions"), questions).expect("written");
        let built = Command::new(compiler)
            .args(["-O1", "-o", "main", "main.c"])
            .current_dir(folder.path())
            .output()
            .expect("runs");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let questions = std::fs::File::open(file("questions")).expect("opens");
        let said = Command::new(file("main")).stdin(questions).output().expect("runs");
        let said = String::from_utf8(said.stdout).expect("text");
        for (said, expected) in said.lines().zip(expected.lines()) {
            assert_eq!(said, expected, "choice.h and choice.rs differ");
        }
        assert_eq!(said.lines().count(), expected.lines().count());
    }

    /// Where there is no C compiler, at least the table is the header's.
    #[test]
    fn the_table_is_the_headers() {
        let header = kernels::find("gemm/choice.h").expect("the header").text;
        let rows: Vec<&str> = header.lines().filter(|line| line.trim_start().starts_with("{\"")).collect();
        assert_eq!(rows.len(), ENTRIES.len(), "kernels of choice.h");
        for (row, e) in rows.into_iter().zip(ENTRIES) {
            let row = row.trim().trim_start_matches('{').trim_end_matches("},");
            let cells: Vec<&str> = row.split(", ").collect();
            let numbers = [e.rows.into(), e.columns.into(), e.threads.into(), e.staged_threads.into()];
            let head: Vec<String> =
                [format!("\"{}\"", e.name)].into_iter().chain(numbers.map(|n: u64| n.to_string())).collect();
            assert_eq!(cells.get(..5), Some(&head.iter().map(String::as_str).collect::<Vec<_>>()[..]));
            let costs = [e.alone, e.shared, e.once].map(|cost| cost.to_string());
            assert_eq!(cells.get(6..), Some(&costs.each_ref().map(String::as_str)[..]));
        }
    }

    #[test]
    fn tiles_that_do_not_fit_are_left_out() {
        let target = |shared_bytes| Target { units: 132, with: Loop::Async, shared_bytes };
        let large = [8192, 8192, 1];
        assert_eq!(choose(large, 8192, &target(232_448)).entry.name, "vyre_gemm_f16_128x256");
        assert_eq!(choose(large, 8192, &target(101_376)).entry.name, "vyre_gemm_f16_128x128");
        assert_eq!(choose(large, 8192, &target(49_152)).entry.name, "vyre_gemm_f16_32x64");
    }

    #[test]
    fn architectures_have_their_loops() {
        for (arch, expected) in [
            ("sm_75", Loop::StagedCuda),
            ("sm_80", Loop::Async),
            ("sm_90a", Loop::Async),
            ("sm_120", Loop::Async),
            ("gfx90a:xnack-", Loop::StagedHip),
        ] {
            assert_eq!(Loop::of(&arch.parse().expect(arch)), expected, "{arch}");
        }
    }
}
