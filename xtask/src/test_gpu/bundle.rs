//! A folder that runs the suite on a machine that has a GPU and its compiler, and no Rust.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// The folder of the file tests in a bundle.
pub(super) const FILES: &str = "files";

/// What is started in a bundle, and what that is for. Code objects go to the bundle, not to the user's cache.
const SCRIPTS: [(&str, &str, &str); 2] = [
    ("run.sh", "Runs the conformance suite of Vyre on this machine's GPUs.", "test-gpu"),
    ("bench.sh", "Measures Vyre on this machine's first GPU.", "bench --backend hip"),
];

fn script(purpose: &str, command: &str) -> String {
    format!(
        r#"#!/usr/bin/env bash
# {purpose} Arguments go to `xtask {command}`.
set -euo pipefail
cd "$(dirname "$0")"
export VYRE_CACHE_DIR="${{VYRE_CACHE_DIR:-$PWD/cache}}"
exec ./xtask {command} "$@"
"#
    )
}

/// Builds in release and writes the folder.
pub(super) fn write(folder: &Path) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let shell = Shell::new()?;
    shell.change_dir(&workspace);
    cmd!(shell, "cargo build --release --locked -p xtask -p vyre --bins").run()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    fs::create_dir_all(folder.join(FILES)).with_context(|| format!("making {}", folder.display()))?;
    for program in ["xtask", "vyre"] {
        let from = target.join("release").join(program);
        fs::copy(&from, folder.join(program)).with_context(|| format!("copying {}", from.display()))?;
    }
    copy_files(&workspace.join("crates/vyre-foundation/tests/files"), &folder.join(FILES))?;
    for (name, purpose, command) in SCRIPTS {
        let path = folder.join(name);
        fs::write(&path, script(purpose, command))?;
        make_executable(&path)?;
    }
    let [(run, ..), (bench, ..)] = SCRIPTS;
    eprintln!("wrote {}; copy it to the machine and start {run} or {bench} there", folder.display());
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_files(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
