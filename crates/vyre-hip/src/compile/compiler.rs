//! The front of the room: picks a compiler for an architecture, and compiles through the cache.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::command::{arguments, build};
use super::error::MissingObject;
use super::hash::{Fields, hex};
use super::prebuilt::{self, Prebuilt, PrebuiltObject};
use super::store::{About, Entry, Loaded, Store, VERSION, replace_file};
use super::toolchain::{ANSWER, Kind, Toolchain, identify, variables_that_matter};
use super::{
    Architecture, CacheCounters, CodeObject, CompileError, CompileEvent, CompileRequest, CompilerOptions,
    Outcome, Platform, Tried, device_libs,
};

/// Compiles sources to code objects. Threads may share it; processes share what it leaves in the cache.
pub struct Compiler {
    options: CompilerOptions,
    store: Option<Store>,
    prebuilt: Option<Prebuilt>,
    /// Compilers by architecture, as chosen.
    chosen: Mutex<HashMap<Architecture, Arc<Toolchain>>>,
    /// Keys of what a loader refused and is to be compiled again.
    refused: Mutex<HashSet<String>>,
    /// Where device bitcode goes without a cache.
    room: OnceLock<tempfile::TempDir>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    heals: AtomicU64,
    evictions: AtomicU64,
    uncached: AtomicU64,
    prebuilt: AtomicU64,
}

impl Counts {
    fn of(&self, outcome: Outcome) -> &AtomicU64 {
        match outcome {
            Outcome::Hit => &self.hits,
            Outcome::Miss => &self.misses,
            Outcome::Heal => &self.heals,
            Outcome::Uncached => &self.uncached,
            Outcome::Prebuilt => &self.prebuilt,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Compiler {
    /// A compiler with these options. Nothing is looked for or written yet.
    pub fn new(options: CompilerOptions) -> Self {
        let objects = options.cache_dir.as_ref().map(|dir| dir.join("objects"));
        Self {
            store: objects.map(|dir| Store::new(dir, options.cache_bytes)),
            prebuilt: options.search.prebuilt.clone().map(Prebuilt::new),
            options,
            chosen: Mutex::default(),
            refused: Mutex::default(),
            room: OnceLock::new(),
            counts: Counts::default(),
        }
    }

    /// The code object of a source: one built elsewhere, or else from the cache or from a compiler.
    ///
    /// # Errors
    /// No compiler, none that knows the architecture, a source that is refused, or a file system that does
    /// not take the compiler's own files; `NotPrebuilt` where there is no compiler and a folder of what was built
    /// elsewhere that lacks this. A cache that cannot be used is a warning, not an error.
    pub fn compile(&self, request: &CompileRequest<'_>) -> Result<CodeObject, CompileError> {
        let Some(prebuilt) = &self.prebuilt else { return self.compile_here(request) };
        let source_digest = request.source_digest();
        let why = match self.find(prebuilt, &source_digest, request.arch) {
            Ok(object) => return Ok(object),
            Err(why) => why,
        };
        self.compile_here(request).map_err(|error| {
            if !error.is_missing_compiler() {
                return error;
            }
            let missing = MissingObject {
                name: request.name.to_owned(),
                arch: request.arch.to_string(),
                folder: prebuilt.folder.clone(),
                source_digest,
                why,
            };
            CompileError::NotPrebuilt { missing: Box::new(missing), source: Box::new(error) }
        })
    }

    /// Compiles an emitted source, and adds the code object to a folder of what is built for elsewhere.
    pub(crate) fn compile_into(
        &self,
        folder: &Path,
        request: &CompileRequest<'_>,
    ) -> Result<(), CompileError> {
        let object = self.compile(request)?;
        prebuilt::add(folder, &PrebuiltObject::of_emitted(request, &object), &object.image)
    }

    fn find(
        &self,
        prebuilt: &Prebuilt,
        source_digest: &str,
        arch: &Architecture,
    ) -> Result<CodeObject, String> {
        let key = format!("{source_digest} for {arch}");
        if locked(&self.refused).contains(&key) {
            return Err("the loader refused it".to_owned());
        }
        let (object, image) = prebuilt.find(source_digest, arch).inspect_err(|why| {
            tracing::debug!(%arch, source_digest, why, "not built elsewhere");
        })?;
        self.counts.of(Outcome::Prebuilt).fetch_add(1, Relaxed);
        Ok(CodeObject {
            digest: *blake3::hash(&image).as_bytes(),
            image,
            resources: object.entries,
            compiler: object.compiler,
            arguments: object.flags,
            outcome: Outcome::Prebuilt,
            path: Some(prebuilt.folder.join(object.file)),
            key,
        })
    }

    /// The code object of a source, from the cache or from a compiler.
    fn compile_here(&self, request: &CompileRequest<'_>) -> Result<CodeObject, CompileError> {
        let toolchain = self.toolchain_for(request.arch)?;
        let arguments = self.arguments(&toolchain, request.arch, request.flags)?;
        let key = key_of(&toolchain, request, &arguments);
        let answer = |entry: Entry, outcome: Outcome| {
            // A statistic: nothing is ordered by it.
            self.counts.of(outcome).fetch_add(1, Relaxed);
            let kept = self.store.as_ref().filter(|_| outcome != Outcome::Uncached);
            CodeObject {
                digest: *blake3::hash(&entry.image).as_bytes(),
                image: entry.image,
                resources: entry.about.resources,
                compiler: toolchain.identity(),
                arguments: arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
                outcome,
                path: kept.map(|store| store.entry(&key)),
                key: key.clone(),
            }
        };
        let Some(store) = &self.store else {
            return Ok(answer(self.build(&toolchain, request, &arguments)?, Outcome::Uncached));
        };
        if let Loaded::Entry(entry) = store.load(&key) {
            return Ok(answer(entry, Outcome::Hit));
        }
        let lock = store.lock(&key);
        if let Err(error) = &lock {
            tracing::warn!(%error, cache = ?self.options.cache_dir,
                "the cache cannot be written, compiling without it; set VYRE_CACHE_DIR");
        }
        // Another thread or process may have compiled it while this one waited.
        let outcome = match store.load(&key) {
            Loaded::Entry(entry) => return Ok(answer(entry, Outcome::Hit)),
            Loaded::Corrupt(why) => {
                tracing::warn!(%key, why, "a damaged entry of the cache is compiled again");
                Outcome::Heal
            }
            Loaded::Absent if locked(&self.refused).contains(&key) => Outcome::Heal,
            Loaded::Absent => Outcome::Miss,
        };
        let entry = self.build(&toolchain, request, &arguments)?;
        if lock.is_err() {
            return Ok(answer(entry, Outcome::Uncached));
        }
        match store.store(&key, &entry) {
            Ok(evicted) => {
                self.counts.evictions.fetch_add(evicted, Relaxed);
                Ok(answer(entry, outcome))
            }
            Err(error) => {
                tracing::warn!(%error, %key, "a code object is not cached; is the disk full?");
                Ok(answer(entry, Outcome::Uncached))
            }
        }
    }

    /// Tells that a loader refused this code object. True when it came from the cache, or from elsewhere, and is
    /// worth compiling again: an entry of the cache is gone then, and the next `compile` of the same request heals
    /// it. False when the compiler itself has just written it, or when it was refused before: the fault is
    /// elsewhere.
    pub fn refuse(&self, object: &CodeObject) -> bool {
        let was_kept = matches!(object.outcome, Outcome::Hit | Outcome::Prebuilt);
        if !was_kept || !locked(&self.refused).insert(object.key.clone()) {
            return false;
        }
        if let (Some(store), Outcome::Hit) = (&self.store, object.outcome) {
            store.remove(&object.key);
        }
        true
    }

    /// What the cache has done for this compiler so far.
    pub fn counters(&self) -> CacheCounters {
        let Counts { hits, misses, heals, evictions, uncached, prebuilt } = &self.counts;
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        CacheCounters {
            hits: read(hits),
            misses: read(misses),
            heals: read(heals),
            evictions: read(evictions),
            uncached: read(uncached),
            prebuilt: read(prebuilt),
        }
    }

    /// The folder of the cache; none where there is no cache.
    pub fn cache_dir(&self) -> Option<&Path> {
        self.options.cache_dir.as_deref()
    }

    /// The compilers found for a platform, preferred first, each with its version.
    ///
    /// # Errors
    /// `CompilerNotFound` with every place tried, or `Unusable` when none says its version.
    pub fn toolchains(&self, platform: Platform) -> Result<Vec<Toolchain>, CompileError> {
        let search = &self.options.search;
        let records = self.options.cache_dir.as_ref().map(|dir| dir.join("toolchains"));
        let rocm_candidates = search.rocm_candidates();
        let mut usable = Vec::new();
        let mut first_error = None;
        for found in search.compilers(platform)? {
            match identify(&found, &rocm_candidates, records.as_deref()) {
                Ok(toolchain) => usable.push(toolchain),
                Err(error) => {
                    tracing::debug!(%error, "a compiler is passed over");
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if usable.is_empty() => Err(error),
            _ => Ok(usable),
        }
    }

    /// The compiler for an architecture: the first that builds an empty kernel for it. The answer is
    /// remembered, across processes too for as long as the compilers stay as they are.
    ///
    /// # Errors
    /// As `toolchains`, and `UnsupportedArchitecture` with what each compiler said and what to install.
    pub fn toolchain_for(&self, arch: &Architecture) -> Result<Arc<Toolchain>, CompileError> {
        if let Some(toolchain) = locked(&self.chosen).get(arch) {
            return Ok(Arc::clone(toolchain));
        }
        let toolchains = self.toolchains(arch.platform())?;
        let mut fields = Fields::new("choice");
        fields.add(arch.as_str().as_bytes());
        toolchains.iter().for_each(|toolchain| {
            fields.add(toolchain.digest.as_bytes());
        });
        let choice = hex(&fields.finish());
        let file = self.options.cache_dir.as_ref().map(|dir| dir.join("choices").join(choice));
        let remembered = file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        let known = remembered.and_then(|digest| toolchains.iter().find(|t| t.digest == digest).cloned());
        let toolchain = match known {
            Some(toolchain) => toolchain,
            None => {
                let toolchain = self.first_that_builds(arch, toolchains)?;
                if let Some(Err(error)) = file.map(|file| replace_file(&file, toolchain.digest.as_bytes())) {
                    tracing::debug!(%error, "the choice of a compiler is not remembered");
                }
                toolchain
            }
        };
        let toolchain = Arc::new(toolchain);
        locked(&self.chosen).insert(arch.clone(), Arc::clone(&toolchain));
        Ok(toolchain)
    }

    fn first_that_builds(
        &self,
        arch: &Architecture,
        toolchains: Vec<Toolchain>,
    ) -> Result<Toolchain, CompileError> {
        // The attribute is what `__global__` stands for, in headers that differ by vendor.
        let probe = CompileRequest {
            name: "probe",
            source: "extern \"C\" __attribute__((global)) void probe() {}\n",
            headers: &[],
            arch,
            flags: &[],
            lines: None,
        };
        let mut reasons = Vec::new();
        for toolchain in toolchains {
            let built = self
                .arguments(&toolchain, arch, &[])
                .and_then(|arguments| build(&toolchain, &probe, &arguments, ANSWER));
            let why = match built {
                Ok(_) => return Ok(toolchain),
                Err(CompileError::Rejected { diagnostics, .. }) => diagnostics.first_error().to_owned(),
                Err(error) => error.to_string(),
            };
            let by = toolchain.version_line().to_owned();
            reasons.push(Tried { by, path: Some(toolchain.path), why });
        }
        let remedy = match arch.platform() {
            Platform::Amd => format!(
                "install a ROCm that knows {arch}, or clang and lld beside the installed HIP \
                 (Debian: clang-19, lld-19)"
            ),
            Platform::Nvidia => {
                format!("install a CUDA toolkit that knows {arch}, and name its compiler by NVCC")
            }
        };
        Err(CompileError::UnsupportedArchitecture { arch: arch.to_string(), reasons, remedy })
    }

    fn arguments(
        &self,
        toolchain: &Toolchain,
        arch: &Architecture,
        flags: &[String],
    ) -> Result<Vec<OsString>, CompileError> {
        let libs = match toolchain.kind {
            Kind::Clang => self.device_libs(toolchain, arch)?,
            Kind::Hipcc | Kind::Nvcc => None,
        };
        Ok(arguments(toolchain, arch, flags, libs.as_deref()))
    }

    fn device_libs(
        &self,
        toolchain: &Toolchain,
        arch: &Architecture,
    ) -> Result<Option<PathBuf>, CompileError> {
        if let Some(dir) = &self.options.cache_dir {
            match device_libs::directory_for(toolchain, arch, &dir.join("device-libs")) {
                Err(error @ CompileError::File { .. }) => {
                    tracing::debug!(%error, "device bitcode goes to a temporary folder");
                }
                answer => return answer,
            }
        }
        let room = match self.room.get() {
            Some(room) => room,
            None => {
                let room = tempfile::tempdir().map_err(CompileError::file(
                    "cannot create a folder in (set TMPDIR)",
                    std::env::temp_dir(),
                ))?;
                // Another thread may have been faster; its folder serves, and this one goes.
                self.room.get_or_init(|| room)
            }
        };
        device_libs::directory_for(toolchain, arch, room.path())
    }

    fn build(
        &self,
        toolchain: &Toolchain,
        request: &CompileRequest<'_>,
        arguments: &[OsString],
    ) -> Result<Entry, CompileError> {
        let tell = |event| self.options.observer.iter().for_each(|observer| observer(&event));
        let (name, arch) = (request.name, request.arch);
        tell(CompileEvent::Started { name, arch, compiler: &toolchain.path });
        let start = Instant::now();
        let built = build(toolchain, request, arguments, self.options.deadline);
        let elapsed = start.elapsed();
        tracing::debug!(name, %arch, ?elapsed, ok = built.is_ok(), "compiled");
        tell(CompileEvent::Finished { name, arch, elapsed });
        let built = built?;
        Ok(Entry { about: About { resources: built.resources }, image: built.image })
    }
}

/// The key of a request: all that the code object depends on.
fn key_of(toolchain: &Toolchain, request: &CompileRequest<'_>, arguments: &[OsString]) -> String {
    let mut fields = Fields::new("code object");
    fields.add(&VERSION.to_le_bytes()).add(toolchain.digest.as_bytes());
    fields.add(request.arch.as_str().as_bytes());
    fields.add(request.name.as_bytes()).add(blake3::hash(request.source.as_bytes()).as_bytes());
    fields.add(&request.headers.len().to_le_bytes());
    for header in request.headers {
        fields.add(header.path.as_bytes()).add(blake3::hash(header.text.as_bytes()).as_bytes());
    }
    for argument in arguments {
        fields.add(argument.as_encoded_bytes());
    }
    for (name, value) in variables_that_matter() {
        fields.add(name.as_bytes()).add(value.as_encoded_bytes());
    }
    hex(&fields.finish())
}
