//! The compilers of the vendors take what is emitted.

use std::process::Command;

use vyre_foundation::ValidatedProgram;
use vyre_hip::emit::{self, EmitOptions, GridBarriers};

use crate::host::{compile, found, kernels_folder};
use crate::host_runs::files;

/// Programs in one source, those with grid barriers in both forms.
fn source(programs: &[ValidatedProgram]) -> String {
    let emit = |program: &ValidatedProgram, form| {
        emit::kernel(program, &EmitOptions::default().with_grid_barriers(form)).unwrap().source
    };
    let mut source = String::new();
    for program in programs {
        source.push_str(&emit(program, GridBarriers::Native));
        if program.facts().grid_barriers {
            let split = emit(program, GridBarriers::Split);
            let name = format!("program_{}", program.program().name);
            source.push_str(&split.replace(&name, &format!("split_{name}")));
        }
    }
    source
}

/// A compiler by its variable, or where it usually is; says so where there is none.
fn compiler(variable: &str, candidates: &[&str]) -> Option<String> {
    let set = std::env::var(variable).ok();
    let candidates: Vec<&str> = set.as_deref().into_iter().chain(candidates.iter().copied()).collect();
    let compiler = found(&candidates);
    if compiler.is_none() {
        eprintln!("skipped: none of {candidates:?} is there; set {variable}");
    }
    compiler
}

fn build(compiler: String, flags: &[&str], source: &str, extension: &str) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("kernels").with_extension(extension);
    std::fs::write(&input, source).unwrap();
    compile(
        Command::new(compiler)
            .args(flags)
            .arg("-I")
            .arg(kernels_folder())
            .arg("-o")
            .args([&folder.path().join("kernels.out"), &input]),
    );
}

pub(crate) fn check_amd(programs: &[ValidatedProgram], arch: &str) {
    compile_for_amd(&source(programs), arch);
}

pub(crate) fn compile_for_amd(source: &str, arch: &str) {
    let Some(hipcc) = compiler("HIPCC", &["hipcc", "/opt/rocm/bin/hipcc"]) else { return };
    let arch = format!("--offload-arch={arch}");
    let flags =
        [&["--cuda-device-only", "-c", "-O1", "-Werror=uninitialized", &arch], emit::AMD_FLAGS].concat();
    build(hipcc, &flags, source, "hip");
}

pub(crate) fn check_nvidia(programs: &[ValidatedProgram]) {
    compile_for_nvidia(&source(programs), "sm_90");
}

pub(crate) fn compile_for_nvidia(source: &str, arch: &str) {
    let Some(nvcc) = compiler("NVCC", &["nvcc", "/usr/local/cuda/bin/nvcc"]) else { return };
    let arch = format!("-arch={arch}");
    let flags = [&["-cubin", arch.as_str()], emit::NVIDIA_FLAGS].concat();
    build(nvcc, &flags, source, "cu");
}

fn file_programs() -> Vec<ValidatedProgram> {
    let programs: Vec<_> = files().into_iter().map(|(_, program)| program).collect();
    assert!(programs.len() > 80, "only {} programs", programs.len());
    programs
}

#[test]
fn files_compile_for_gfx90a() {
    check_amd(&file_programs(), "gfx90a");
}

#[test]
fn files_compile_for_gfx1030() {
    check_amd(&file_programs(), "gfx1030");
}

#[test]
fn files_compile_for_sm_90() {
    check_nvidia(&file_programs());
}
