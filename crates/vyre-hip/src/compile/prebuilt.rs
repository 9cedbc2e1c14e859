//! Code objects built elsewhere, for a machine without a compiler: the folder that `cargo xtask build-kernels`
//! writes, and that [`OfflineBackend`](crate::OfflineBackend) adds to.
//!
//! One is found by what it was made from (source, headers and flags) and by its architecture. Who compiled it does
//! not count, for there is nobody here to ask.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::hash::hex;
use super::resources::KernelResources;
use super::{Architecture, CodeObject, CompileError, CompileRequest, CompilerIdentity, Platform};

/// The file that lists a folder's code objects.
pub const MANIFEST: &str = "manifest.json";

/// Changes whenever a field of the manifest changes its meaning.
pub const MANIFEST_VERSION: u32 = 2;

/// Digits of the source's digest in the name of an emitted kernel's file: programs may have the same name.
const DIGITS: usize = 16;

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
    /// The row of an emitted kernel, whose file has the beginning of its source's digest in its name.
    pub fn of_emitted(request: &CompileRequest<'_>, object: &CodeObject) -> Self {
        let digest = request.source_digest();
        Self::new(request, object, &format!("{}-{}", request.name, digest.get(..DIGITS).unwrap_or(&digest)))
    }

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
    /// code runs with any. What is damaged is passed over. The error says why there is none.
    pub(crate) fn find(
        &self,
        source_digest: &str,
        arch: &Architecture,
    ) -> Result<(PrebuiltObject, Vec<u8>), String> {
        let objects = self.objects.get_or_init(|| read(&self.folder)).as_ref().map_err(Clone::clone)?;
        let of_source = || objects.iter().filter(|object| object.source_digest == source_digest);
        let exact = of_source().filter(|object| object.arch == arch.as_str());
        let plain =
            of_source().filter(|object| object.arch == arch.processor() && object.arch != arch.as_str());
        let mut unusable = Vec::new();
        for object in exact.chain(plain) {
            match self.image(object) {
                Ok(image) => return Ok((object.clone(), image)),
                Err(why) => {
                    tracing::warn!(%arch, why, "a code object built elsewhere is passed over");
                    unusable.push(why);
                }
            }
        }
        if !unusable.is_empty() {
            return Err(unusable.join("; "));
        }
        let archs: Vec<&str> = of_source().map(|object| &*object.arch).collect();
        Err(match archs.as_slice() {
            [] => format!("its {MANIFEST} lists {} others", objects.len()),
            archs => format!("its {MANIFEST} has this source for {} only", archs.join(", ")),
        })
    }

    /// The file of a row, if it is what the row says.
    fn image(&self, object: &PrebuiltObject) -> Result<Vec<u8>, String> {
        let path = self.folder.join(&object.file);
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let damaged = |why: String| format!("{} is damaged: {why}", path.display());
        let file = path.canonicalize().map_err(failed)?;
        if !file.starts_with(self.folder.canonicalize().map_err(failed)?) {
            return Err(format!(
                "{} is a link to {}, outside of the folder: copy it in",
                path.display(),
                file.display()
            ));
        }
        // Before it is opened: a pipe would wait for its writer.
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(damaged("it is no regular file".to_owned()));
        }
        if about.len() != object.bytes {
            return Err(damaged(format!("it has {} bytes, not {}", about.len(), object.bytes)));
        }
        let image = fs::read(&file).map_err(failed)?;
        let digest = hex(blake3::hash(&image).as_bytes());
        if digest != object.digest {
            return Err(damaged(format!("its digest is {digest}, not {}", object.digest)));
        }
        Ok(image)
    }
}

/// Adds a code object to a folder and to its manifest, or replaces it there. What else the manifest has stays.
/// Threads and processes may add to one folder at the same time.
pub(crate) fn add(folder: &Path, object: &PrebuiltObject, image: &[u8]) -> Result<(), CompileError> {
    let (path, manifest_path) = (folder.join(&object.file), folder.join(MANIFEST));
    let in_folder = path.parent().unwrap_or(folder);
    fs::create_dir_all(in_folder)
        .map_err(CompileError::file("cannot create (name a folder that can be written)", in_folder))?;
    let lock = || CompileError::file("cannot lock the folder", folder);
    // Held to the end of the function.
    let held = File::open(folder).map_err(lock())?;
    held.lock().map_err(lock())?;
    let unreadable = CompileError::file(
        "cannot add to the manifest; build into another folder, or remove this file:",
        &manifest_path,
    );
    let mut manifest = match fs::read(&manifest_path) {
        Ok(text) => checked(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(empty()),
        Err(error) => Err(error.to_string()),
    }
    .map_err(|why| unreadable(io::Error::other(why)))?;
    fs::write(&path, image).map_err(CompileError::file("cannot write", &path))?;
    if let Some(built) = manifest.get_mut("built").and_then(Value::as_array_mut) {
        let is = |row: &Value, name: &str, value: &str| row.get(name).and_then(Value::as_str) == Some(value);
        built.retain(|row| {
            !(is(row, "source_digest", &object.source_digest) && is(row, "arch", &object.arch))
        });
        built.push(json!(object));
    }
    // Beside it and renamed: who reads meanwhile sees the old one or the new one.
    let new = manifest_path.with_extension("new");
    fs::write(&new, format!("{manifest:#}\n")).map_err(CompileError::file("cannot write", &new))?;
    fs::rename(&new, &manifest_path).map_err(CompileError::file("cannot replace", &manifest_path))
}

fn empty() -> Value {
    json!({ "version": MANIFEST_VERSION, "built": [], "failed": [], "skipped": [] })
}

fn read(folder: &Path) -> Result<Vec<PrebuiltObject>, String> {
    let path = folder.join(MANIFEST);
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let text = fs::read(&path).map_err(|error| wrong(&error))?;
    let manifest = checked(&text).map_err(|why| wrong(&why))?;
    let Manifest { built } = serde_json::from_value(manifest).map_err(|error| wrong(&error))?;
    match built.iter().find(|object| !is_inside(&object.file)) {
        None => Ok(built),
        Some(PrebuiltObject { file, .. }) => Err(wrong(&format!(
            "it names the file {}, which may lie outside of the folder; a path in it is relative and has no `..`",
            file.display()
        ))),
    }
}

/// Whether a path leads nowhere but into the folder that it is relative to.
fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// A manifest of this version, and a list in it of what was built.
fn checked(text: &[u8]) -> Result<Value, String> {
    // The version first: fields of another one may be others.
    let manifest: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    match manifest.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(MANIFEST_VERSION) => {}
        Some(version) => return Err(format!("version {version}, and {MANIFEST_VERSION} is understood")),
        None => return Err("it has no version".to_owned()),
    }
    match manifest.get("built") {
        Some(Value::Array(_)) => Ok(manifest),
        _ => Err("it has no list `built`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_is_added_at_the_same_time_is_all_there() {
        const THREADS: usize = 4;
        const EACH: usize = 25;
        let folder = tempfile::tempdir().expect("a folder");
        let add_some = |thread: usize| {
            for n in 0..EACH {
                let object = PrebuiltObject {
                    arch: "gfx90a".to_owned(),
                    platform: "amd".to_owned(),
                    kernel: "k".to_owned(),
                    source_digest: format!("{thread} {n}"),
                    file: format!("gfx90a/{thread}-{n}.co").into(),
                    bytes: 1,
                    digest: hex(blake3::hash(b"x").as_bytes()),
                    entries: Vec::new(),
                    compiler: CompilerIdentity {
                        path: "hipcc".into(),
                        version: "1".to_owned(),
                        digest: String::new(),
                    },
                    flags: Vec::new(),
                };
                add(folder.path(), &object, b"x").expect("adds");
            }
        };
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let add_some = &add_some;
                scope.spawn(move || add_some(thread));
            }
        });
        let prebuilt = Prebuilt::new(folder.path().to_path_buf());
        let arch = "gfx90a".parse().expect("an architecture");
        for (thread, n) in (0..THREADS).flat_map(|thread| (0..EACH).map(move |n| (thread, n))) {
            let found = prebuilt.find(&format!("{thread} {n}"), &arch);
            assert_eq!(found.map(|(_, image)| image), Ok(b"x".to_vec()), "{n} of thread {thread}");
        }
    }
}
