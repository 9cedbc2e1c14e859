//! Compares the scanner with a plain loop over the rules, file by file: on generated binary files with
//! matches planted across the borders of items, on this repository, on the crate sources in the cargo
//! registry folder, and on whatever paths are given.
//!
//! ```text
//! cargo run --release -p vyre --example scan_oracle -- [PATH...]
//! ```
//!
//! Panics at the first difference. The loop is slow and single-threaded: the figures of interest are those of
//! `vyre scan --compare`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::{SHIPPED_PLANTS, agree, generate, scanner};
use vyre::scan::walk;

const SHIPPED: &str = include_str!("../../../rules/default.tsv");

/// Generated files.
const FILES: usize = 1000;

fn main() -> std::io::Result<()> {
    let scanner = scanner(SHIPPED);
    println!("{} rules, {} tables", scanner.rules().len(), scanner.plan().groups().len());
    let check = |what: &str, files: &[PathBuf]| {
        let (stats, matches) = agree(&scanner, SHIPPED, files);
        println!(
            "{what}: agree on {matches} matches in {} files, {} bytes; {} items, {} run again, {:.2} % in the IR",
            stats.files,
            stats.bytes,
            stats.items,
            stats.reruns,
            100.0 * stats.device_share(),
        );
    };

    let folder = tempfile::tempdir()?;
    check("generated", &generate(folder.path(), FILES, 20_261_121, &SHIPPED_PLANTS));

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let tracked =
        ["crates", "docs", "fuzz", "kernels", "rules", "xtask", "Cargo.lock", "Cargo.toml", "LICENSE"];
    let tracked: Vec<_> = tracked.iter().map(|name| root.join(name)).filter(|path| path.exists()).collect();
    check("this repository", &walk(&tracked).files);

    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    match home.map(|home| home.join("registry/src")) {
        Some(sources) if sources.exists() => check("cargo registry", &walk(&[sources]).files),
        _ => println!("cargo registry: no such folder here"),
    }
    for path in std::env::args_os().skip(1) {
        let path = PathBuf::from(path);
        check(&path.display().to_string(), &walk(&[path]).files);
    }
    Ok(())
}
