//! The dependency direction of docs/architecture.md, held against the manifests.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use xshell::{Shell, cmd};

/// Each crate with the crates of the workspace it may depend on. Tests may reach further: development
/// dependencies are not part of the layering.
const ALLOWED: &[(&str, &[&str])] = &[
    ("vyre-foundation", &[]),
    ("vyre-driver", &["vyre-foundation"]),
    ("vyre-cpu", &["vyre-foundation", "vyre-driver"]),
    ("vyre-hip", &["vyre-foundation", "vyre-driver"]),
    ("vyre-runtime", &["vyre-foundation", "vyre-driver"]),
    ("vyre-worker", &["vyre-foundation", "vyre-driver"]),
    ("vyre", &["vyre-foundation", "vyre-driver", "vyre-cpu", "vyre-hip", "vyre-worker", "vyre-runtime"]),
    (
        "xtask",
        &["vyre-foundation", "vyre-driver", "vyre-cpu", "vyre-hip", "vyre-worker", "vyre-runtime", "vyre"],
    ),
];

/// Libraries that must not be needed to build anything: GPU libraries are found at run time. A feature that
/// is off by default may link one; what is held against this list is what the default features resolve to.
const FORBIDDEN_LINKS: &[&str] = &["amdhip64", "cuda", "cudart", "hsa-runtime64"];

/// Fails on an arrow that the drawing does not have, on a crate that the table does not name, and on a
/// package that links a GPU library.
pub(crate) fn check(shell: &Shell) -> Result<()> {
    // Without feature flags: packages that only a feature outside the default ones wants are not listed.
    let text = cmd!(shell, "cargo metadata --format-version 1 --locked").quiet().read()?;
    let metadata: Value = serde_json::from_str(&text).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut problems = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        if let Some(links) = package["links"].as_str()
            && FORBIDDEN_LINKS.contains(&links)
        {
            problems
                .push(format!("{name} links {links}: nothing may need a GPU library to build by default"));
        }
        let in_workspace = package["source"].is_null();
        if !in_workspace {
            continue;
        }
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| *known == name) else {
            problems.push(format!("{name} is not in the table of allowed dependencies"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let is_ours = dependency["path"].is_string();
            let is_dev = dependency["kind"].as_str() == Some("dev");
            if is_ours && !is_dev && !allowed.contains(&target) {
                problems.push(format!("{name} may not depend on {target}"));
            }
        }
    }
    if problems.is_empty() {
        eprintln!("dependency directions hold for {} packages of the workspace", ALLOWED.len());
        return Ok(());
    }
    bail!("{}", problems.join("\n"))
}
