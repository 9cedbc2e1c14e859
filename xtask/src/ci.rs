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
}

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
            cmd!(shell, "cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings")
                .run()?;
        }
        Step::Doc => {
            let _flags = shell.push_env("RUSTDOCFLAGS", "-D warnings");
            cmd!(shell, "cargo doc --quiet --workspace --no-deps --all-features").run()?;
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
    }
    Ok(())
}

/// The example of each layer; the long-running ones (benchmarks, soak) are not among them.
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
