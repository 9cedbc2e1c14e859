//! Who a compiler is. Asked once per process, and remembered across processes: `hipcc --version` takes longer
//! than a warm start may.
//!
//! The memory is a small file per compiler, good for as long as the compiler's own files (and the headers and
//! bitcode beside it) keep their sizes and times.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::CompileError;
use super::discover::Found;
use super::hash::{Fields, hex};
use super::store::replace_file;

/// How long a compiler may take to answer a question that is no compilation.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);

/// The command line that a compiler understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// AMD's wrapper of clang, which knows where its ROCm is.
    Hipcc,
    /// clang by itself, for architectures that the installed hipcc does not know.
    Clang,
    /// NVIDIA's compiler.
    Nvcc,
}

impl Kind {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Hipcc => "hipcc",
            Self::Clang => "clang",
            Self::Nvcc => "nvcc",
        }
    }
}

/// A compiler that has said who it is.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// Its command line.
    pub kind: Kind,
    /// Its file, as found: some compilers go by the name of the link that they are called through.
    pub path: PathBuf,
    /// All it printed when asked for its version.
    pub version: String,
    /// The directory of the compiler's own programs, where it said so (clang's `InstalledDir`).
    pub installed_dir: Option<PathBuf>,
    pub(crate) linker: Linker,
    /// The root of HIP's headers and bitcode, given to a clang that is not part of a ROCm.
    pub(crate) rocm: Option<PathBuf>,
    /// Digest of path, version and the files' stamps: what cache keys contain.
    pub(crate) digest: String,
}

/// Who compiled a code object, here or elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompilerIdentity {
    /// Its file, as found.
    pub path: PathBuf,
    /// The line of its version that has a number in it.
    pub version: String,
    /// Digest of its path, its whole version text and the stamps of its files, in hexadecimal.
    pub digest: String,
}

impl Toolchain {
    /// Who this is, in short.
    pub fn identity(&self) -> CompilerIdentity {
        let (path, version) = (self.path.clone(), self.version_line().to_owned());
        CompilerIdentity { path, version, digest: self.digest.clone() }
    }

    /// The line of the version that has a number in it: clang's and hipcc's first, nvcc's fourth.
    pub fn version_line(&self) -> &str {
        let says = |line: &&str| line.contains("version") || line.contains("release");
        self.version.lines().find(says).or_else(|| self.version.lines().next()).unwrap_or_default().trim()
    }

    /// The version of clang that this is or wraps: 15.
    pub fn clang_version(&self) -> Option<u32> {
        clang_version(&self.version)
    }

    /// The programs that belong to this compiler are in these directories, its own first.
    pub fn program_dirs(&self) -> Vec<PathBuf> {
        let beside = self.path.parent().map(Path::to_path_buf);
        // A ROCm keeps clang's tools apart from hipcc.
        let in_rocm = beside.as_ref().and_then(|bin| bin.parent()).map(|root| root.join("llvm/bin"));
        beside.into_iter().chain(self.installed_dir.clone()).chain(in_rocm).collect()
    }
}

/// What links AMD code objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Linker {
    /// The compiler's own affair.
    Unseen,
    /// The lld of clang's own version, which clang runs by itself.
    Own(PathBuf),
    /// An lld of another version. Clang's command line for it is not understood by older ones, so it is run
    /// by us.
    Other(PathBuf),
    /// None found; clang will say so.
    Missing,
}

/// What is remembered of a compiler, in memory and in `toolchains/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: String,
    installed_dir: Option<PathBuf>,
    linker: Linker,
    /// The files that must be unchanged for the rest to hold.
    witnesses: Vec<Witness>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Witness {
    path: PathBuf,
    /// Size, modification time in seconds and nanoseconds, inode; none where the file is not there.
    stamp: Option<(u64, i64, i64, u64)>,
}

impl Witness {
    fn of(path: PathBuf) -> Self {
        let stamp = fs::metadata(&path).ok().map(|m| (m.len(), m.mtime(), m.mtime_nsec(), m.ino()));
        Self { path, stamp }
    }
}

/// One lock per compiler, so that threads that ask at once wait for one answer.
type Known = Mutex<HashMap<PathBuf, Arc<Mutex<Option<Record>>>>>;

/// Asks `found` who it is, or remembers: from this process, or from a record under `records`.
pub(crate) fn identify(
    found: &Found,
    rocm_candidates: &[PathBuf],
    records: Option<&Path>,
) -> Result<Toolchain, CompileError> {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let path = found.path.clone();
    let resolved =
        path.canonicalize().map_err(CompileError::file("cannot resolve the compiler's path", &path))?;
    let rocm = (found.kind == Kind::Clang).then(|| rocm_of(&resolved, rocm_candidates)).flatten();
    let cell = {
        let mut known = KNOWN.get_or_init(Known::default).lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(path.clone()).or_default())
    };
    let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
    let record = match cell.as_ref() {
        Some(record) => record.clone(),
        None => {
            let record = match recall(&path, records) {
                Some(record) => record,
                None => {
                    let record = ask(found.kind, &path, &resolved, rocm.as_deref())?;
                    remember(&path, records, &record);
                    record
                }
            };
            cell.insert(record).clone()
        }
    };
    drop(cell);
    let mut fields = Fields::new("compiler");
    fields.add(resolved.as_os_str().as_encoded_bytes()).add(record.version.as_bytes());
    for witness in &record.witnesses {
        fields.add(format!("{witness:?}").as_bytes());
    }
    let digest = hex(&fields.finish());
    let Record { version, installed_dir, linker, .. } = record;
    Ok(Toolchain { kind: found.kind, path, version, installed_dir, linker, rocm, digest })
}

/// The root that a lone clang needs: the first with HIP's runtime header.
fn rocm_of(clang: &Path, candidates: &[PathBuf]) -> Option<PathBuf> {
    // ROCm's own clang is in ROOT/llvm/bin or ROOT/lib/llvm/bin.
    let own = clang.ancestors().skip(3).take(2).map(Path::to_path_buf);
    own.chain(candidates.iter().cloned()).find(|root| root.join("include/hip/hip_runtime.h").is_file())
}

fn ask(kind: Kind, named: &Path, resolved: &Path, rocm: Option<&Path>) -> Result<Record, CompileError> {
    let output = run(named, [OsStr::new("--version")], None, ANSWER)?;
    // hipcc prints a traceback of its device enumerator on stderr where there is no GPU: not a part of it.
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || version.is_empty() {
        let said = String::from_utf8_lossy(&output.stderr);
        let what = format!("`--version` ended with {} and said: {}", output.status, said.trim());
        return Err(CompileError::Unusable { compiler: named.to_path_buf(), what, source: None });
    }
    let installed_dir = version
        .lines()
        .find_map(|line| line.trim().strip_prefix("InstalledDir:"))
        .map(|dir| PathBuf::from(dir.trim()));
    let linker = if kind == Kind::Clang { linker_of(named)? } else { Linker::Unseen };
    let mut files = vec![resolved.to_path_buf()];
    if let Some(dir) = &installed_dir {
        files.push(dir.join("clang"));
        files.extend(clang_version(&version).map(|number| dir.join(format!("clang-{number}"))));
    }
    match kind {
        Kind::Nvcc => files.extend(resolved.parent().map(|bin| bin.join("ptxas"))),
        Kind::Hipcc | Kind::Clang => {
            let own = resolved.ancestors().nth(2);
            files.extend(rocm.or(own).map(|root| root.join("include/hip/hip_version.h")));
            files.extend(rocm.or(own).and_then(super::device_libs::bitcode_of));
        }
    }
    let witnesses = files.into_iter().map(Witness::of).collect();
    Ok(Record { version, installed_dir, linker, witnesses })
}

fn clang_version(version: &str) -> Option<u32> {
    let (_, after) = version.split_once("clang version ")?;
    after.split('.').next()?.parse().ok()
}

/// The lld to link with: clang's own, or any other.
fn linker_of(clang: &Path) -> Result<Linker, CompileError> {
    // Answers with a path, or with the bare name where there is none.
    let output = run(clang, [OsStr::new("--print-prog-name=lld")], None, ANSWER)?;
    let own = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if own.is_absolute() {
        return Ok(Linker::Own(own));
    }
    Ok(linkers_on_path().into_iter().next().map_or(Linker::Missing, Linker::Other))
}

/// The llds that PATH has under a versioned name, newest first.
pub(crate) fn linkers_on_path() -> Vec<PathBuf> {
    let dirs: Vec<PathBuf> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let names = (14..=30).rev().map(|version| format!("lld-{version}"));
    names.flat_map(|name| dirs.iter().map(move |dir| dir.join(&name))).filter(|path| path.is_file()).collect()
}

/// Runs a compiler to its end, its messages untranslated. One that has not ended by `deadline` is killed; what
/// it started itself may live on, but nobody waits for it.
pub(crate) fn run(
    program: &Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    directory: Option<&Path>,
    deadline: Duration,
) -> Result<Output, CompileError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("LC_ALL", "C");
    // Without this hipcc looks at the machine, and takes a CUDA toolkit beside it for its compiler.
    command.env("HIP_PLATFORM", "amd");
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let unusable = |what: &str| {
        let (compiler, what) = (program.to_path_buf(), what.to_owned());
        move |source| CompileError::Unusable { compiler, what, source: Some(source) }
    };
    let mut child = command.spawn().map_err(unusable("it does not start"))?;
    let (stdout, stderr) = (read_apart(child.stdout.take()), read_apart(child.stderr.take()));
    let until = Instant::now() + deadline;
    let left = || until.saturating_duration_since(Instant::now());
    // Both ends close when the process has ended, and whatever it started.
    let (Ok(stdout), Ok(stderr)) = (stdout.recv_timeout(left()), stderr.recv_timeout(left())) else {
        // It may have ended this moment; either way it is reaped.
        let _ = child.kill();
        let _ = child.wait();
        return Err(CompileError::TimedOut { compiler: program.to_path_buf(), deadline });
    };
    let status = child.wait().map_err(unusable("it cannot be waited for"))?;
    Ok(Output { status, stdout, stderr })
}

/// Reads a pipe to its end on a thread of its own: a compiler that fills one pipe waits while the other is read.
fn read_apart(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is told.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        // Nobody listens after the deadline.
        let _ = tell.send(bytes);
    });
    told
}

fn record_file(records: &Path, compiler: &Path) -> PathBuf {
    let mut fields = Fields::new("record");
    fields.add(compiler.as_os_str().as_encoded_bytes());
    records.join(format!("{}.json", hex(&fields.finish())))
}

fn recall(compiler: &Path, records: Option<&Path>) -> Option<Record> {
    let text = fs::read(record_file(records?, compiler)).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    let holds = record.witnesses.iter().all(|witness| *witness == Witness::of(witness.path.clone()));
    // One that was missing may have come, and one that was there may have gone.
    let linker_holds = match &record.linker {
        Linker::Unseen => true,
        Linker::Own(linker) | Linker::Other(linker) => linker.is_file(),
        Linker::Missing => false,
    };
    (holds && linker_holds && !record.witnesses.is_empty()).then_some(record)
}

fn remember(compiler: &Path, records: Option<&Path>, record: &Record) {
    let (Some(records), Ok(text)) = (records, serde_json::to_vec(record)) else { return };
    // Only time is lost without it: the next process asks again.
    if let Err(error) = replace_file(&record_file(records, compiler), &text) {
        tracing::debug!(%error, "the compiler's identity is not remembered");
    }
}

/// The variables that change what a compiler does, with their values: a part of every cache key.
pub(crate) fn variables_that_matter() -> Vec<(&'static str, OsString)> {
    const NAMES: [&str; 10] = [
        "CCC_OVERRIDE_OPTIONS",
        "CPATH",
        "CPLUS_INCLUDE_PATH",
        "DEVICE_LIB_PATH",
        "HIPCC_COMPILE_FLAGS_APPEND",
        "HIPCC_LINK_FLAGS_APPEND",
        "HIP_CLANG_PATH",
        "HIP_DEVICE_LIB_PATH",
        "NVCC_APPEND_FLAGS",
        "NVCC_PREPEND_FLAGS",
    ];
    NAMES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))).collect()
}
