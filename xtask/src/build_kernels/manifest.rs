//! `manifest.json`: what was built, by what, and what is in it.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use vyre_hip::compile::{Architecture, CodeObject, KernelResources};
use vyre_hip::kernels;

use super::plan::{Plan, Skipped};

/// Changes whenever a field changes its meaning.
pub(crate) const VERSION: u32 = 1;

/// The whole file.
#[derive(Serialize)]
pub(crate) struct Manifest {
    pub(crate) version: u32,
    pub(crate) built: Vec<Built>,
    pub(crate) failed: Vec<Failed>,
    pub(crate) skipped: Vec<Skipped>,
}

/// One code object.
#[derive(Serialize)]
pub(crate) struct Built {
    arch: String,
    platform: String,
    kernel: String,
    /// Relative to the manifest.
    file: String,
    bytes: usize,
    /// blake3 of the file.
    digest: String,
    /// Registers, spills, scratch and shared (LDS) bytes of each entry.
    entries: Vec<KernelResources>,
    compiler: Compiler,
    flags: Vec<String>,
    /// What `--check` found; absent without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    checked: Option<String>,
}

#[derive(Serialize)]
struct Compiler {
    path: String,
    version: String,
}

/// A kernel that does not compile, or does not pass the checks.
#[derive(Serialize)]
pub(crate) struct Failed {
    pub(crate) arch: String,
    pub(crate) kernel: String,
    pub(crate) why: String,
}

impl Built {
    pub(crate) fn new(
        kernel: &str,
        arch: &Architecture,
        file: &Path,
        object: &CodeObject,
        checked: Option<String>,
    ) -> Self {
        Self {
            arch: arch.to_string(),
            platform: arch.platform().to_string(),
            kernel: kernel.to_owned(),
            file: file.display().to_string(),
            bytes: object.image.len(),
            digest: object.digest_text(),
            entries: object.resources.clone(),
            compiler: Compiler {
                path: object.compiler.path.display().to_string(),
                version: object.compiler.version_line().to_owned(),
            },
            flags: object.arguments.clone(),
            checked,
        }
    }
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = self.digest.get(..12).unwrap_or(&self.digest);
        write!(f, "{} {} {digest}, {} bytes", self.arch, self.kernel, self.bytes)?;
        for entry in &self.entries {
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
pub(crate) fn planned(plan: &Plan) -> Value {
    let planned: Vec<Value> = plan
        .wanted
        .iter()
        .flat_map(|(arch, toolchain)| {
            kernels::kernels().map(move |source| {
                json!({
                    "arch": arch.as_str(),
                    "kernel": source.kernel_name(),
                    "compiler": { "path": toolchain.path, "version": toolchain.version_line() },
                })
            })
        })
        .collect();
    json!({ "version": VERSION, "planned": planned, "skipped": plan.skipped })
}
