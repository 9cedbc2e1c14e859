//! The lanes of a wave's matrix tile hold what each vendor's instruction wants of them.

use std::path::Path;
use std::process::Command;

use crate::host::{compile, found, kernels_folder};

/// Compiles `wave_tile.cpp` for a matrix unit and runs it.
fn check(unit: u32) {
    let Some(compiler) = found(&["g++", "clang++", "c++"]) else {
        eprintln!("skipped: no g++, clang++ or c++");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emit");
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("wave_tile");
    compile(
        Command::new(compiler)
            .args(["-std=c++17", "-O2", "-ffp-contract=off", "-w", "-DVYRE_HOST_SUBGROUP=32"])
            .arg(format!("-DUNIT={unit}"))
            .arg(format!("-DVYRE_HOST_CHECK=\"{}\"", here.join("host.h").display()))
            .arg("-I")
            .arg(kernels_folder())
            .arg("-o")
            .args([&program, &here.join("wave_tile.cpp")]),
    );
    compile(&mut Command::new(program));
}

#[test]
fn lanes_agree_with_mma_sync() {
    check(0);
}

#[test]
fn lanes_agree_with_mfma() {
    check(1);
}

#[test]
fn lanes_agree_with_wmma() {
    check(2);
}
