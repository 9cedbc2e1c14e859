//! A machine with a compiler, which is a shell script, and one without.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use vyre_hip::compile::{CompilerOptions, Search};

/// "Compiles" to what the loader takes for PTX.
const COMPILER: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1"; exit 0; fi
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then printf '.version 7.0\0' > "$2"; fi
    shift
done
"#;

/// Installs a compiler in a folder, and finds it.
pub(crate) fn compiler_in(folder: &Path) -> Search {
    let program = folder.join("hipcc");
    fs::write(&program, COMPILER).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    // Another test's child may still hold the file open for writing, and such a file does not run.
    while Command::new(&program).arg("--version").output().is_err() {}
    let mut search = Search::default();
    search.hipcc = Some(program);
    search
}

/// No cache. An empty search finds no compiler.
pub(crate) fn options(search: Search) -> CompilerOptions {
    CompilerOptions {
        search,
        cache_dir: None,
        cache_bytes: 0,
        deadline: CompilerOptions::DEADLINE,
        observer: None,
    }
}
