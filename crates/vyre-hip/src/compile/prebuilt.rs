//! Code objects built elsewhere, for a machine without a compiler: the folder that `cargo xtask build-kernels`
//! writes.
//!
//! One is found by what it was made from (source, headers and flags) and by its architecture. Who compiled it does
//! not count, for there is nobody here to ask.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::hash::hex;
use super::resources::KernelResources;
use super::{Architecture, CodeObject, CompileRequest, CompilerIdentity, Platform};

/// The file that lists a folder's code objects.
pub const MANIFEST: &str = "manifest.json";

/// Changes whenever a field of the manifest changes its meaning.
pub const MANIFEST_VERSION: u32 = 2;

/// One code object of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrebuiltObject {
    /// The architecture it was compiled for.
    pub arch: String,
    /// Whose GPUs.
    pub platform: String,
    /// The kernel's or the program's name.
    pub kernel: String,
    /// [`CompileRequest::source_digest`].
    pub source_digest: String,
    /// Relative to the manifest.
    pub file: PathBuf,
    /// The file's size.
    pub bytes: u64,
    /// blake3 of the file, in hexadecimal.
    pub digest: String,
    /// Registers, spills, scratch and shared (LDS) bytes of each entry.
    pub entries: Vec<KernelResources>,
    /// Who compiled it.
    pub compiler: CompilerIdentity,
    /// The arguments it was compiled with, source and output excepted.
    pub flags: Vec<String>,
}

impl PrebuiltObject {
    /// The row of a code object that is kept in `folder/ARCH/STEM.co`, or `.cubin` on NVIDIA.
    pub fn new(request: &CompileRequest<'_>, object: &CodeObject, stem: &str) -> Self {
        let (arch, platform) = (request.arch, request.arch.platform());
        let extension = if platform == Platform::Amd { "co" } else { "cubin" };
        Self {
            arch: arch.to_string(),
            platform: platform.to_string(),
            kernel: request.name.to_owned(),
            source_digest: request.source_digest(),
            file: Path::new(&arch.file_name()).join(format!("{stem}.{extension}")),
            bytes: object.image.len() as u64,
            digest: object.digest_text(),
            entries: object.resources.clone(),
            compiler: object.compiler.clone(),
            flags: object.arguments.clone(),
        }
    }
}

/// As much of a manifest as finding needs.
#[derive(Deserialize)]
struct Manifest {
    built: Vec<PrebuiltObject>,
}

/// A folder of code objects with its manifest, which is read once.
pub(crate) struct Prebuilt {
    pub(crate) folder: PathBuf,
    objects: OnceLock<Result<Vec<PrebuiltObject>, String>>,
}

impl Prebuilt {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, objects: OnceLock::new() }
    }

    /// The code object of a source for an architecture, or for the same processor whatever its features: such
    /// code runs with any. The error says why there is none.
    pub(crate) fn find(
        &self,
        source_digest: &str,
        arch: &Architecture,
    ) -> Result<(PrebuiltObject, Vec<u8>), String> {
        let objects = self.objects.get_or_init(|| read(&self.folder)).as_ref().map_err(Clone::clone)?;
        let of_source = |object: &&PrebuiltObject| object.source_digest == source_digest;
        let built_for = |name: &str| objects.iter().filter(of_source).find(|object| object.arch == name);
        let Some(object) = built_for(arch.as_str()).or_else(|| built_for(arch.processor())) else {
            let archs: Vec<&str> = objects.iter().filter(of_source).map(|object| &*object.arch).collect();
            return Err(match archs.as_slice() {
                [] => format!("its {MANIFEST} lists {} others", objects.len()),
                archs => format!("its {MANIFEST} has this source for {} only", archs.join(", ")),
            });
        };
        let path = self.folder.join(&object.file);
        let image = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let digest = hex(blake3::hash(&image).as_bytes());
        if digest != object.digest {
            return Err(format!(
                "{} is damaged: its digest is {digest}, not {}",
                path.display(),
                object.digest
            ));
        }
        Ok((object.clone(), image))
    }
}

fn read(folder: &Path) -> Result<Vec<PrebuiltObject>, String> {
    let path = folder.join(MANIFEST);
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let text = fs::read(&path).map_err(|error| wrong(&error))?;
    // The version first: fields of another one may be others.
    let manifest: serde_json::Value = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    match manifest.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(MANIFEST_VERSION) => {}
        Some(version) => {
            return Err(wrong(&format!("version {version}, and {MANIFEST_VERSION} is understood")));
        }
        None => return Err(wrong(&"it has no version")),
    }
    let manifest: Manifest = serde_json::from_value(manifest).map_err(|error| wrong(&error))?;
    Ok(manifest.built)
}
