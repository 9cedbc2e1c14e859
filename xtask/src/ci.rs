//! `cargo xtask ci`: the steps a change must pass, each runnable by itself.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::dependencies;

/// One step. The order here is the order of a full run: cheap checks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// `cargo fmt --check`.
    Fmt,
    /// Which crate may depend on which.
    Dependencies,
    /// Clippy over every target, warnings denied.
    Clippy,
    /// `cargo doc`, warnings denied.
    Doc,
    /// `cargo test --workspace`, the README's test command.
    Test,
    /// The ring under loom.
    Loom,
    /// The examples, each run to its end.
    Examples,
    /// One crate outside the workspace per layer.
    Consumers,
    /// The workspace type-checked for aarch64.
    Aarch64,
    /// The kernels compiled for AMD's architectures and disassembled, and the kernel server in C++ compiled. Needs
    /// hipcc and a recent clang.
    Kernels,
    /// The backend linked to libamdhip64, down to the answer that there is no device. Needs ROCm.
    HipLink,
    /// The conformance suite, on whatever this machine has.
    Suite,
}

/// Every feature but `hip-link`, which needs ROCm to build and has its own step.
const FEATURES: &str = "vyre-foundation/arbitrary,vyre-foundation/filetest,vyre-runtime/conformance,\
                        vyre-runtime/fault-injection";

/// What CI builds kernels for: the first three by Debian's hipcc, the others by clang.
const ARCHITECTURES: &str = "gfx906,gfx90a,gfx1030,gfx942,gfx1100,gfx1101";

/// With this variable set, a step whose tools are missing fails instead of being left out.
const REQUIRE_TOOLS: &str = "VYRE_CI_REQUIRE_TOOLS";

/// Runs the given steps, or all of them.
pub(crate) fn run(steps: &[Step]) -> Result<()> {
    let shell = Shell::new()?;
    let root = workspace_root()?;
    shell.change_dir(&root);
    let steps = if steps.is_empty() { Step::value_variants() } else { steps };
    let mut times = Vec::new();
    for &step in steps {
        eprintln!("--- {step:?}");
        let start = Instant::now();
        run_step(&shell, step).with_context(|| format!("step {step:?}"))?;
        times.push((step, start.elapsed()));
    }
    eprintln!("--- all steps passed");
    for (step, time) in times {
        eprintln!("{:>8.1} s  {step:?}", time.as_secs_f64());
    }
    Ok(())
}

fn run_step(shell: &Shell, step: Step) -> Result<()> {
    match step {
        Step::Fmt => cmd!(shell, "cargo fmt --all --check").run()?,
        Step::Dependencies => dependencies::check(shell)?,
        Step::Clippy => {
            cmd!(
                shell,
                "cargo clippy --quiet --workspace --all-targets --features {FEATURES} -- -D warnings"
            )
            .run()?;
        }
        Step::Doc => {
            let _flags = shell.push_env("RUSTDOCFLAGS", "-D warnings");
            cmd!(shell, "cargo doc --quiet --workspace --no-deps --features {FEATURES}").run()?;
        }
        Step::Test => cmd!(shell, "cargo test --workspace").run()?,
        Step::Loom => {
            let _flags = shell.push_env("RUSTFLAGS", "--cfg loom");
            // A directory of its own, so that the flag does not rebuild the workspace twice per run.
            let _target = shell.push_env("CARGO_TARGET_DIR", "target/loom");
            cmd!(shell, "cargo test --quiet --package vyre-driver --release --lib models").run()?;
        }
        Step::Examples => run_examples(shell)?,
        Step::Consumers => check_consumers(shell)?,
        Step::Aarch64 => check_aarch64(shell)?,
        Step::Kernels => {
            if has_tool(shell, "hipcc")? {
                cmd!(shell, "cargo xtask build-kernels --arch {ARCHITECTURES} --check").run()?;
                cmd!(
                    shell,
                    "hipcc -c -O1 -std=c++17 -ffp-contract=off --offload-arch=gfx90a -Wall -Werror
                     kernels/server/gemm_f16.cpp -o /dev/null"
                )
                .run()?;
            }
        }
        Step::HipLink => {
            // The development files of ROCm come with its compiler.
            if has_tool(shell, "hipcc")? {
                let features = ["--features", "hip-link"];
                cmd!(
                    shell,
                    "cargo clippy --quiet --package vyre-hip --all-targets {features...} -- -D warnings"
                )
                .run()?;
                cmd!(shell, "cargo test --quiet --package vyre-hip {features...}").run()?;
            }
        }
        Step::Suite => cmd!(shell, "cargo xtask test-gpu --allow-no-device").run()?,
    }
    Ok(())
}

/// Whether a step's tool is on the path. Where it is not, the step is left out, and says so.
fn has_tool(shell: &Shell, tool: &str) -> Result<bool> {
    if cmd!(shell, "{tool} --version").quiet().ignore_stdout().ignore_stderr().run().is_ok() {
        return Ok(true);
    }
    if std::env::var_os(REQUIRE_TOOLS).is_some() {
        bail!("{tool} is not on the path, and {REQUIRE_TOOLS} is set");
    }
    eprintln!("left out: {tool} is not on the path");
    Ok(false)
}

/// The example of each layer; the long-running ones (benchmarks, soak) are not among them, nor those that end
/// in an error without a GPU.
const EXAMPLES: &[(&str, &str)] = &[
    ("vyre-foundation", "histogram"),
    ("vyre-driver", "ring"),
    ("vyre-cpu", "double"),
    ("vyre-runtime", "session"),
    ("vyre", "quick_start"),
];

fn run_examples(shell: &Shell) -> Result<()> {
    for (package, example) in EXAMPLES {
        cmd!(shell, "cargo run --quiet --package {package} --example {example}").run()?;
    }
    Ok(())
}

/// Builds and runs each consumer by itself, so that the features of one cannot help another.
fn check_consumers(shell: &Shell) -> Result<()> {
    let _dir = shell.push_dir("xtask/consumers");
    let _target = shell.push_env("CARGO_TARGET_DIR", "../../target/consumers");
    for layer in ["foundation", "driver", "cpu", "runtime", "facade"] {
        let package = format!("consumer-{layer}");
        cmd!(shell, "cargo run --quiet --package {package}").run()?;
    }
    Ok(())
}

/// Needs only the standard library of the target, which rustup may or may not reach.
fn check_aarch64(shell: &Shell) -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let installed = cmd!(shell, "rustup target list --installed").quiet().read().unwrap_or_default();
    if !installed.contains(TARGET) && cmd!(shell, "rustup target add {TARGET}").run().is_err() {
        eprintln!("not checked: rustup could not add {TARGET} on this machine");
        return Ok(());
    }
    cmd!(shell, "cargo check --quiet --workspace --target {TARGET}").run()?;
    Ok(())
}

fn workspace_root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    match manifest.parent() {
        Some(root) if root.join("Cargo.toml").exists() => Ok(root.to_path_buf()),
        _ => bail!("no workspace above {}: run `cargo xtask` inside the checkout", manifest.display()),
    }
}
