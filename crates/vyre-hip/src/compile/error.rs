//! What goes wrong between a source and its code object.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::Platform;
use super::diagnostics::Diagnostics;
use super::discover::BY_CALLER;

/// A place where a compiler was looked for, and why it was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// What sent the search there: a variable, an option, a default.
    pub by: String,
    /// The file looked for; none where the variable is not set.
    pub path: Option<PathBuf>,
    /// Why it was not taken.
    pub why: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "{}: {}: {}", self.by, path.display(), self.why),
            None => write!(f, "{}: {}", self.by, self.why),
        }
    }
}

/// A code object that the folder of what was built elsewhere lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingObject {
    /// The name of the source.
    pub name: String,
    /// The architecture.
    pub arch: String,
    /// Where it was looked for.
    pub folder: PathBuf,
    /// What was looked for: [`CompileRequest::source_digest`](super::CompileRequest::source_digest).
    pub source_digest: String,
    /// Why what is there was not taken.
    pub why: String,
}

impl fmt::Display for MissingObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, arch, folder, source_digest, why } = self;
        write!(
            f,
            "{} has no code object of `{name}` for {arch}, source {source_digest}: {why}; build it where a compiler is: \
             by one run of `cargo xtask build-kernels --arch {arch}`, which begins the folder anew, so name all \
             architectures, programs (`--vir FILE`) and handlers (`--handler OPCODE=FILE`) that are wanted; or by a \
             program of yours on `vyre_hip::OfflineBackend`, which adds to the folder (docs/kernels.md). Or \
             install a compiler here",
            folder.display()
        )
    }
}

/// Why there is no code object.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// The text names no architecture.
    #[error("`{text}` is no GPU architecture: write e.g. gfx90a, gfx90a:xnack-, sm_89 or sm_90a (Hopper)")]
    UnknownArchitecture {
        /// The text as given.
        text: String,
    },
    /// No compiler for this platform, with every place looked at.
    #[error("no compiler for {platform} GPUs; tried:{}\n{}", list(tried), remedy_for_none(*platform, tried))]
    CompilerNotFound {
        /// Whose GPUs.
        platform: Platform,
        /// Every place looked at, in order.
        tried: Vec<Tried>,
    },
    /// Compilers were found, and none of them builds this architecture.
    #[error("no compiler found here builds {arch}:{}\n{remedy}", list(reasons))]
    UnsupportedArchitecture {
        /// The architecture asked for.
        arch: String,
        /// For each compiler asked, its path and its first error.
        reasons: Vec<Tried>,
        /// What to install.
        remedy: String,
    },
    /// What was built elsewhere lacks this code object, and no compiler here makes it.
    #[error("{missing}")]
    NotPrebuilt {
        /// What was looked for, and where.
        missing: Box<MissingObject>,
        /// Why it is not compiled instead.
        source: Box<CompileError>,
    },
    /// The compiler could not be run, or its version not be read.
    #[error("cannot run {}: {what}; check that it is an executable compiler", compiler.display())]
    Unusable {
        /// The compiler.
        compiler: PathBuf,
        /// What it was run for, and how it ended.
        what: String,
        /// The system's error, when it did not start.
        source: Option<io::Error>,
    },
    /// The compiler ran for too long, and was killed.
    #[error("{} had not ended after {deadline:?}; allow it more by `CompilerOptions::deadline`, if it was at work", compiler.display())]
    TimedOut {
        /// The compiler.
        compiler: PathBuf,
        /// How long it was given.
        deadline: Duration,
    },
    /// The compiler ran and refused the source.
    #[error("{} does not compile `{name}` for {arch} ({status}):\n{diagnostics}", compiler.display())]
    Rejected {
        /// The name of the source.
        name: String,
        /// The architecture.
        arch: String,
        /// The compiler.
        compiler: PathBuf,
        /// How the compiler ended.
        status: String,
        /// All it said, with the IR nodes its lines stem from.
        diagnostics: Box<Diagnostics>,
    },
    /// A variable of the environment has a value that means nothing.
    #[error("{name}={value} means nothing: {remedy}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What to write.
        remedy: &'static str,
    },
    /// A file that compiling needs could not be written or read.
    #[error("{what} {}", path.display())]
    File {
        /// What was attempted, and the remedy.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl CompileError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// Whether the machine lacks a compiler for what was asked, rather than the source being at fault.
    pub fn is_missing_compiler(&self) -> bool {
        matches!(
            self,
            Self::CompilerNotFound { .. } | Self::UnsupportedArchitecture { .. } | Self::NotPrebuilt { .. }
        )
    }
}

fn list(tried: &[Tried]) -> String {
    tried.iter().map(|t| format!("\n  {t}")).collect()
}

fn remedy_for_none(platform: Platform, tried: &[Tried]) -> String {
    let (install, variable) = match platform {
        Platform::Amd => ("install hipcc (Debian: hipcc; else ROCm)", "HIPCC"),
        Platform::Nvidia => ("install the CUDA toolkit's nvcc", "NVCC"),
    };
    if tried.iter().any(|tried| tried.by == BY_CALLER) {
        return format!("name one that is there, or none, and it is searched for; else {install}");
    }
    format!("{install}, or name it by {variable}")
}
