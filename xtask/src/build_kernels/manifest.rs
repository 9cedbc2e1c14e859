//! `manifest.json`: what was built, by what, and what is in it.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};
use vyre_hip::compile::{KernelResources, MANIFEST_VERSION, PrebuiltObject};

use super::kernel::Kernel;
use super::plan::{Plan, Skipped};

/// The whole file.
#[derive(Serialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) built: Vec<Built>,
    pub(crate) failed: Vec<Failed>,
    pub(crate) skipped: Vec<Skipped>,
}

impl Manifest {
    /// That of a folder that nothing was built into yet.
    pub(crate) fn empty() -> Self {
        Self { version: MANIFEST_VERSION, built: Vec::new(), failed: Vec::new(), skipped: Vec::new() }
    }
}

/// One code object.
#[derive(Serialize)]
pub(crate) struct Built {
    #[serde(flatten)]
    pub(crate) object: PrebuiltObject,
    /// What `--check` found; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) checked: Option<String>,
}

/// A kernel that does not compile, or does not pass the checks.
#[derive(Serialize)]
pub(crate) struct Failed {
    pub(crate) arch: String,
    pub(crate) kernel: String,
    pub(crate) why: String,
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PrebuiltObject { arch, kernel, digest, bytes, entries, .. } = &self.object;
        write!(f, "{arch} {kernel} {}, {bytes} bytes", digest.get(..12).unwrap_or(digest))?;
        for entry in entries {
            let KernelResources { entry: name, registers, spills, scalar_spills, shared_bytes, .. } = entry;
            write!(f, "\n    {name}: {registers} registers, {spills} spilled, {shared_bytes} bytes shared")?;
            if let Some(spilled @ 1..) = scalar_spills {
                write!(f, ", {spilled} scalar registers spilled")?;
            }
        }
        if let Some(checked) = &self.checked {
            write!(f, "\n    checked: {checked}")?;
        }
        Ok(())
    }
}

/// What `--dry-run --json` prints.
pub(crate) fn planned(plan: &Plan, kernels: &[Kernel]) -> Value {
    let planned: Vec<Value> = plan
        .wanted
        .iter()
        .flat_map(|(arch, toolchain)| {
            kernels.iter().map(move |kernel| {
                json!({ "arch": arch.as_str(), "kernel": kernel.name(), "compiler": toolchain.identity() })
            })
        })
        .collect();
    json!({ "version": MANIFEST_VERSION, "planned": planned, "skipped": plan.skipped })
}
