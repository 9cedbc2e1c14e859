//! Finds a compiler and turns sources into code objects, through a cache.
//!
//! * `discover`, `toolchain`: which compilers there are, and who they are;
//! * `command`, `device_libs`, `resources`, `diagnostics`: running one, and reading what it says;
//! * `store`: code objects on disk, for every process of a user;
//! * `prebuilt`: code objects from a machine that has a compiler, for one that has none;
//! * [`Compiler`]: all of these behind one function.
//!
//! Absent on purpose: knowledge of particular kernels, and anything that needs a GPU. The compilers' own
//! headers are not in a cache key one by one: the compiler's version and the stamps of its files stand for
//! them.

mod arch;
mod command;
mod compiler;
mod device_libs;
mod diagnostics;
mod discover;
mod error;
mod hash;
mod prebuilt;
mod resources;
mod store;
mod toolchain;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::emit::{self, LineMap};
use crate::kernels;

pub use crate::api::Platform;
pub use arch::Architecture;
pub use compiler::Compiler;
pub use diagnostics::{Diagnostics, Site};
pub use discover::Search;
pub use error::{CompileError, MissingObject, Tried};
pub use prebuilt::{MANIFEST, MANIFEST_VERSION, PrebuiltObject};
pub use resources::KernelResources;
pub use toolchain::{CompilerIdentity, Kind, Toolchain};

/// Names the IR node that a line of the source was emitted for.
pub type LineNames<'a> = &'a dyn Fn(u32) -> Option<String>;

/// A file that a source includes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its path as sources write it between quotes, relative.
    pub path: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// What to compile.
#[derive(Clone, Copy)]
pub struct CompileRequest<'a> {
    /// A name for messages.
    pub name: &'a str,
    /// The HIP C++ text.
    pub source: &'a str,
    /// All that the source includes, at any depth, the vendors' own headers excepted.
    pub headers: &'a [Header<'a>],
    /// The architecture, features included.
    pub arch: &'a Architecture,
    /// Arguments to add; the later ones win over the defaults.
    pub flags: &'a [String],
    /// Names the IR nodes of lines, for errors.
    pub lines: Option<LineNames<'a>>,
}

impl CompileRequest<'_> {
    /// blake3 of all that the code object is made from, in hexadecimal: source, headers and flags. Compiler and
    /// architecture are not in it.
    pub fn source_digest(&self) -> String {
        let mut fields = hash::Fields::new("source");
        fields.add(self.source.as_bytes()).add(&self.headers.len().to_le_bytes());
        for header in self.headers {
            fields.add(header.path.as_bytes()).add(header.text.as_bytes());
        }
        for flag in self.flags {
            fields.add(flag.as_bytes());
        }
        hash::hex(&fields.finish())
    }
}

impl fmt::Debug for CompileRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, arch, flags, .. } = self;
        write!(f, "CompileRequest {{ name: {name:?}, arch: {arch}, flags: {flags:?}, .. }}")
    }
}

/// A source as the emitter wrote it, or one over the same headers.
#[derive(Clone, Copy, Debug)]
pub struct EmittedSource<'a> {
    /// The program's name.
    pub name: &'a str,
    /// The HIP C++ text.
    pub source: &'a str,
    /// The statement that a line stems from.
    pub lines: &'a LineMap,
}

impl EmittedSource<'_> {
    /// Lends what a compiler is asked for it: the one way to ask, so that what was built elsewhere is found.
    pub fn request<R>(&self, arch: &Architecture, with: impl FnOnce(&CompileRequest<'_>) -> R) -> R {
        with(&CompileRequest {
            name: self.name,
            source: self.source,
            headers: &kernels::headers_of(self.source),
            arch,
            flags: &emit::flags(arch.platform()),
            lines: Some(&|line| self.lines.path(line).map(str::to_owned)),
        })
    }
}

/// Where a code object came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The cache.
    Hit,
    /// The compiler; the cache has it now.
    Miss,
    /// The compiler, because the cache's entry was damaged or refused by a loader; the cache has it now.
    Heal,
    /// The compiler; there is no cache, or it cannot be written.
    Uncached,
    /// The folder of what was built elsewhere.
    Prebuilt,
}

/// What a compiler made of a source.
#[derive(Clone, Debug)]
pub struct CodeObject {
    /// An ELF file for one architecture: an AMD code object or a cubin.
    pub image: Vec<u8>,
    /// blake3 of the image.
    pub digest: [u8; 32],
    /// What each kernel in it uses; empty where the compiler did not say.
    pub resources: Vec<KernelResources>,
    /// Who compiled it.
    pub compiler: CompilerIdentity,
    /// The arguments it was compiled with, source and output excepted.
    pub arguments: Vec<String>,
    /// Where it came from.
    pub outcome: Outcome,
    /// The file that keeps it: an entry of the cache, or a code object built elsewhere.
    pub path: Option<PathBuf>,
    /// Its name in the cache, or among what a loader refused.
    key: String,
}

impl CodeObject {
    /// The digest in hexadecimal.
    pub fn digest_text(&self) -> String {
        hash::hex(&self.digest)
    }
}

/// What a cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Code objects read from it.
    pub hits: u64,
    /// Code objects that it did not have.
    pub misses: u64,
    /// Entries compiled again because they were damaged or refused.
    pub heals: u64,
    /// Entries removed to keep the size bound.
    pub evictions: u64,
    /// Code objects compiled without a cache.
    pub uncached: u64,
    /// Code objects that were built elsewhere.
    pub prebuilt: u64,
}

/// A compiler's work, as it happens: for progress.
#[derive(Clone, Copy, Debug)]
pub enum CompileEvent<'a> {
    /// A compiler starts; the cache had nothing.
    Started {
        /// The request's name.
        name: &'a str,
        /// Its architecture.
        arch: &'a Architecture,
        /// The compiler's file.
        compiler: &'a Path,
    },
    /// The compiler has ended, well or not.
    Finished {
        /// The request's name.
        name: &'a str,
        /// Its architecture.
        arch: &'a Architecture,
        /// How long it took.
        elapsed: Duration,
    },
}

/// Is told of a compiler's work, on the thread that waits for it.
pub type Observer = Arc<dyn Fn(&CompileEvent<'_>) + Send + Sync>;

/// How to find compilers and where to keep what they make.
#[derive(Clone)]
pub struct CompilerOptions {
    /// Where to look for compilers.
    pub search: Search,
    /// The cache's folder; none compiles every time.
    pub cache_dir: Option<PathBuf>,
    /// Bytes of code objects to keep at most.
    pub cache_bytes: u64,
    /// How long one run of a compiler may take.
    pub deadline: Duration,
    /// Is told of each run of a compiler.
    pub observer: Option<Observer>,
}

impl CompilerOptions {
    /// Bytes that the cache keeps at most unless told otherwise: 1 GiB.
    pub const CACHE_BYTES: u64 = 1 << 30;

    /// How long a compiler may take unless told otherwise: ten minutes.
    pub const DEADLINE: Duration = Duration::from_secs(600);

    /// What the environment says: compilers as in [`Search`], the cache in `VYRE_CACHE_DIR` or the user's
    /// cache directory's `vyre`, there in `hip`, of at most `VYRE_CACHE_BYTES` bytes.
    ///
    /// # Errors
    /// `Setting` for a `VYRE_CACHE_BYTES` that is no number.
    pub fn from_environment() -> Result<Self, CompileError> {
        const BYTES: &str = "VYRE_CACHE_BYTES";
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache_bytes = match variable(BYTES) {
            None => Self::CACHE_BYTES,
            Some(value) => parse_bytes(BYTES, &value.to_string_lossy())?,
        };
        let user_dir = || {
            use etcetera::BaseStrategy;
            match etcetera::choose_base_strategy() {
                Ok(strategy) => Some(strategy.cache_dir().join("vyre")),
                Err(error) => {
                    tracing::warn!(%error, "no cache: there is no home directory; set VYRE_CACHE_DIR");
                    None
                }
            }
        };
        let root = variable("VYRE_CACHE_DIR").map(PathBuf::from).or_else(user_dir);
        Ok(Self {
            search: Search::from_environment(),
            cache_dir: root.map(|root| root.join("hip")),
            cache_bytes,
            deadline: Self::DEADLINE,
            observer: None,
        })
    }
}

fn parse_bytes(name: &'static str, value: &str) -> Result<u64, CompileError> {
    let remedy = "write a number of bytes, e.g. 1073741824";
    value.parse().map_err(|_| CompileError::Setting { name, value: value.to_owned(), remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_bound_is_a_number() {
        assert_eq!(parse_bytes("VYRE_CACHE_BYTES", "4096").expect("a number"), 4096);
        let refused = parse_bytes("VYRE_CACHE_BYTES", "1G").expect_err("no number").to_string();
        assert!(refused.contains("VYRE_CACHE_BYTES=1G"), "{refused}");
    }
}
