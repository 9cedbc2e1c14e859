//! Where compilers are looked for, in which order, and why each place was not taken.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::toolchain::Kind;
use super::{CompileError, Platform, Tried};

/// clang builds HIP by itself; below this version it crashes on gfx11's matrix instructions.
const OLDEST_CLANG: u32 = 17;
const NEWEST_CLANG: u32 = 30;

/// Who named a compiler that is in [`Search::hipcc`] or [`Search::nvcc`], for messages.
pub(super) const BY_CALLER: &str = "named by the caller";

/// The places to look at. The environment is read once, here, so that a search can be tested without it.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// The AMD compiler that the caller named (hipcc or a clang); nothing else is tried.
    pub hipcc: Option<PathBuf>,
    /// The NVIDIA compiler that the caller named; nothing else is tried.
    pub nvcc: Option<PathBuf>,
    /// The folder of code objects built elsewhere, which need no compiler.
    pub prebuilt: Option<PathBuf>,
    pub(crate) hipcc_variable: Option<PathBuf>,
    pub(crate) nvcc_variable: Option<PathBuf>,
    /// A name for messages and a ROCm's root, in order.
    pub(crate) rocm_roots: Vec<(String, Option<PathBuf>)>,
    /// A name for messages and a CUDA toolkit's root, in order.
    pub(crate) cuda_roots: Vec<(String, Option<PathBuf>)>,
    pub(crate) path: Vec<PathBuf>,
}

/// A compiler that exists, not yet asked who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

impl Search {
    /// The places that the environment and the two vendors' defaults name.
    pub fn from_environment() -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let root = |name: &str| (name.to_owned(), variable(name).map(PathBuf::from));
        let default = |path: &str| ("default".to_owned(), Some(PathBuf::from(path)));
        Self {
            hipcc: None,
            nvcc: None,
            prebuilt: variable("VYRE_PREBUILT_DIR").map(PathBuf::from),
            hipcc_variable: variable("HIPCC").map(PathBuf::from),
            nvcc_variable: variable("NVCC").map(PathBuf::from),
            rocm_roots: vec![root("HIP_PATH"), root("ROCM_PATH"), default("/opt/rocm")],
            cuda_roots: vec![root("CUDA_HOME"), root("CUDA_PATH"), default("/usr/local/cuda")],
            path: std::env::split_paths(&variable("PATH").unwrap_or_else(OsString::new)).collect(),
        }
    }

    /// The compilers of a platform, preferred first.
    ///
    /// # Errors
    /// `CompilerNotFound` with every place looked at. A compiler that was named, by the caller or by `HIPCC`
    /// or `NVCC`, and is not there is such an error too: another one would be a surprise.
    pub(crate) fn compilers(&self, platform: Platform) -> Result<Vec<Found>, CompileError> {
        let mut walk = Walk::default();
        let explicit = match platform {
            Platform::Amd => &self.hipcc,
            Platform::Nvidia => &self.nvcc,
        };
        if let Some(path) = explicit {
            walk.take(BY_CALLER, path, kind_of(path, platform));
            return walk.finish(platform);
        }
        let (variable, name, roots, kind) = match platform {
            Platform::Amd => (&self.hipcc_variable, "HIPCC", &self.rocm_roots, Kind::Hipcc),
            Platform::Nvidia => (&self.nvcc_variable, "NVCC", &self.cuda_roots, Kind::Nvcc),
        };
        match variable {
            Some(path) => {
                if !walk.take(name, path, kind_of(path, platform)) {
                    return walk.finish(platform);
                }
            }
            None => {
                walk.unset(name);
                self.look_for(kind, roots, &mut walk);
            }
        }
        if platform == Platform::Amd {
            self.look_for_clang(&mut walk);
        }
        walk.finish(platform)
    }

    fn look_for(&self, kind: Kind, roots: &[(String, Option<PathBuf>)], walk: &mut Walk) {
        let program = kind.program();
        for (name, root) in roots {
            let found = match root {
                Some(root) => walk.take(name, &root.join("bin").join(program), kind),
                None => walk.unset(name),
            };
            if found {
                return;
            }
        }
        if !self.path.iter().any(|dir| walk.take_if_there("PATH", &dir.join(program), kind)) {
            walk.absent_from_path(program);
        }
    }

    fn look_for_clang(&self, walk: &mut Walk) {
        for version in (OLDEST_CLANG..=NEWEST_CLANG).rev() {
            let program = format!("clang-{version}");
            if self.path.iter().any(|dir| walk.take_if_there("PATH", &dir.join(&program), Kind::Clang)) {
                return;
            }
        }
        walk.absent_from_path(&format!("clang-{OLDEST_CLANG} or newer"));
    }

    /// Roots that may hold HIP's headers and device bitcode, for a clang that brings neither.
    pub(crate) fn rocm_candidates(&self) -> Vec<PathBuf> {
        let usr = PathBuf::from("/usr");
        self.rocm_roots.iter().filter_map(|(_, root)| root.clone()).chain([usr]).collect()
    }
}

/// What a named compiler is, by its file name; hipcc is the default, since wrappers of it have any name.
fn kind_of(path: &Path, platform: Platform) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match platform {
        Platform::Nvidia => Kind::Nvcc,
        Platform::Amd if name.starts_with("clang") || name.starts_with("amdclang") => Kind::Clang,
        Platform::Amd => Kind::Hipcc,
    }
}

#[derive(Default)]
struct Walk {
    found: Vec<Found>,
    tried: Vec<Tried>,
}

impl Walk {
    /// Takes a file that runs, or says why not. True where it was taken.
    fn take(&mut self, by: &str, path: &Path, kind: Kind) -> bool {
        let why = match path.metadata() {
            Ok(file) if !file.is_file() => "not a file".to_owned(),
            Ok(file) if file.permissions().mode() & 0o111 == 0 => "not executable".to_owned(),
            Ok(_) => {
                self.found.push(Found { kind, path: path.to_path_buf() });
                return true;
            }
            Err(error) => error.to_string(),
        };
        self.tried.push(Tried { by: by.to_owned(), path: Some(path.to_path_buf()), why });
        false
    }

    /// As `take`, but a missing file is not worth a line: directories of PATH miss most programs.
    fn take_if_there(&mut self, by: &str, path: &Path, kind: Kind) -> bool {
        path.exists() && self.take(by, path, kind)
    }

    fn unset(&mut self, name: &str) -> bool {
        self.tried.push(Tried { by: name.to_owned(), path: None, why: "not set".to_owned() });
        false
    }

    fn absent_from_path(&mut self, program: &str) {
        let why = format!("no {program} in its directories");
        self.tried.push(Tried { by: "PATH".to_owned(), path: None, why });
    }

    fn finish(self, platform: Platform) -> Result<Vec<Found>, CompileError> {
        if self.found.is_empty() {
            return Err(CompileError::CompilerNotFound { platform, tried: self.tried });
        }
        Ok(self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn program(path: &Path) -> PathBuf {
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        fs::write(path, "#!/bin/sh\n").expect("program");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
        path.to_path_buf()
    }

    fn root(name: &str, path: &Path) -> (String, Option<PathBuf>) {
        (name.to_owned(), Some(path.to_path_buf()))
    }

    #[test]
    fn places_are_tried_in_order() {
        let dir = tempfile::tempdir().expect("folder");
        let at = |path: &str| dir.path().join(path);
        let mut search = Search {
            rocm_roots: vec![("HIP_PATH".to_owned(), None), root("ROCM_PATH", &at("rocm"))],
            path: vec![at("empty"), at("path")],
            ..Search::default()
        };
        let first = |search: &Search| search.compilers(Platform::Amd).expect("found").remove(0).path;

        let clang = program(&at("path/clang-19"));
        assert_eq!(first(&search), clang, "clang serves where there is no hipcc");
        program(&at("path/clang-16"));
        assert_eq!(first(&search), clang, "clang-16 is too old");
        let on_path = program(&at("path/hipcc"));
        assert_eq!(first(&search), on_path, "hipcc goes before clang");
        let rocm = program(&at("rocm/bin/hipcc"));
        assert_eq!(first(&search), rocm, "a ROCm goes before PATH");
        search.hipcc_variable = Some(program(&at("variable")));
        assert_eq!(first(&search), at("variable"));
        let kinds: Vec<Kind> =
            search.compilers(Platform::Amd).expect("found").into_iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [Kind::Hipcc, Kind::Clang], "HIPCC leaves clang as the alternative");
        search.hipcc = Some(program(&at("other/clang-20")));
        let only = search.compilers(Platform::Amd).expect("found");
        assert_eq!(only, [Found { kind: Kind::Clang, path: at("other/clang-20") }]);
    }

    #[test]
    fn every_place_tried_is_listed() {
        let dir = tempfile::tempdir().expect("folder");
        let plain = dir.path().join("bin/nvcc");
        fs::create_dir_all(plain.parent().expect("a folder")).expect("folder");
        fs::write(&plain, "no program").expect("file");
        let search = Search {
            cuda_roots: vec![("CUDA_HOME".to_owned(), None), root("default", Path::new("/nowhere"))],
            path: vec![dir.path().join("bin")],
            ..Search::default()
        };
        let Err(CompileError::CompilerNotFound { tried, .. }) = search.compilers(Platform::Nvidia) else {
            panic!("there is no nvcc");
        };
        let lines: Vec<String> = tried.iter().map(Tried::to_string).collect();
        assert_eq!(
            lines,
            [
                "NVCC: not set".to_owned(),
                "CUDA_HOME: not set".to_owned(),
                "default: /nowhere/bin/nvcc: No such file or directory (os error 2)".to_owned(),
                format!("PATH: {}: not executable", plain.display()),
                "PATH: no nvcc in its directories".to_owned(),
            ]
        );
    }

    #[test]
    fn a_named_compiler_that_is_missing_is_not_replaced() {
        let dir = tempfile::tempdir().expect("folder");
        program(&dir.path().join("hipcc"));
        program(&dir.path().join("clang-19"));
        let path = vec![dir.path().to_path_buf()];
        let missing = Some(PathBuf::from("/nowhere/hipcc"));
        let by_variable = Search { hipcc_variable: missing.clone(), path: path.clone(), ..Search::default() };
        let by_caller = Search { hipcc: missing, path, ..Search::default() };
        // The variable is not looked at where the caller names one.
        for (search, has_variable) in [(by_variable, true), (by_caller, false)] {
            let error = search.compilers(Platform::Amd).expect_err("it is missing").to_string();
            assert!(error.contains("/nowhere/hipcc") && error.contains("install hipcc"), "{error}");
            assert_eq!(error.contains("name it by HIPCC"), has_variable, "{error}");
        }
    }
}
