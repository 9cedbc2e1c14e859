//! The command lines that build a code object, and what comes out of them.
//!
//! Every source is compiled for exact results: no contraction of products and sums, IEEE division and square
//! root, subnormals kept. A source that wants a fused operation says `fma`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use super::diagnostics::Diagnostics;
use super::resources::{KernelResources, from_clang, from_ptxas};
use super::toolchain::{Kind, Linker, Toolchain, run};
use super::{Architecture, CompileError, CompileRequest};

const AMD: &[&str] = &[
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-gpu-flush-denormals-to-zero",
    "-fhip-fp32-correctly-rounded-divide-sqrt",
    "-Rpass-analysis=kernel-resource-usage",
    "--no-gpu-bundle-output",
];
const NVIDIA: &[&str] = &[
    "-O3",
    "-std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "-Xptxas=-v",
];

/// A code object as the compiler wrote it.
pub(crate) struct Built {
    pub(crate) image: Vec<u8>,
    pub(crate) resources: Vec<KernelResources>,
}

/// All arguments but the source and the output.
pub(crate) fn arguments(
    toolchain: &Toolchain,
    arch: &Architecture,
    flags: &[String],
    device_libs: Option<&Path>,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = match toolchain.kind {
        Kind::Hipcc => vec!["--genco".into(), format!("--offload-arch={arch}").into()],
        Kind::Clang => {
            vec!["--offload-device-only".into(), format!("--offload-arch={arch}").into()]
        }
        Kind::Nvcc => {
            let number = arch.number();
            vec!["-cubin".into(), format!("-gencode=arch=compute_{number},code=sm_{number}").into()]
        }
    };
    let named = |name: &str, path: &Path| {
        let mut argument = OsString::from(name);
        argument.push(path);
        argument
    };
    if toolchain.kind == Kind::Clang {
        arguments.extend(toolchain.rocm.as_deref().map(|rocm| named("--rocm-path=", rocm)));
        arguments.extend(device_libs.map(|dir| named("--rocm-device-lib-path=", dir)));
    }
    let common = if toolchain.kind == Kind::Nvcc { NVIDIA } else { AMD };
    arguments.extend(common.iter().map(OsString::from));
    arguments.extend(flags.iter().map(OsString::from));
    arguments.push("-I.".into());
    arguments
}

/// Compiles a request in a folder of its own. The compiler sees relative names only, so that the same source
/// gives the same bytes wherever it is compiled.
pub(crate) fn build(
    toolchain: &Toolchain,
    request: &CompileRequest<'_>,
    arguments: &[OsString],
    deadline: Duration,
) -> Result<Built, CompileError> {
    let room = tempfile::tempdir()
        .map_err(CompileError::file("cannot create a folder in (set TMPDIR)", std::env::temp_dir()))?;
    let source = source_name(request.name);
    write(&room.path().join(&source), request.source.as_bytes())?;
    for header in request.headers {
        let Some(path) = inside(room.path(), header.path) else {
            let why = std::io::Error::other("a header's path is relative and stays in its folder");
            return Err(CompileError::file("cannot write the header", header.path)(why));
        };
        write(&path, header.text.as_bytes())?;
    }
    let language = if toolchain.kind == Kind::Nvcc { "cu" } else { "hip" };
    let compile = |extra: &[&str], output: &str| {
        let mut all = arguments.to_vec();
        all.extend(extra.iter().map(OsString::from));
        all.extend(["-x", language, &source, "-o", output].map(OsString::from));
        Step { toolchain, request, source: &source, room: room.path(), deadline }.run(&toolchain.path, &all)
    };
    let said = match &toolchain.linker {
        Linker::Other(linker) => {
            let said = compile(&["-S"], "out.s")?;
            let step = Step { toolchain, request, source: &source, room: room.path(), deadline };
            let target = format!("-mcpu={}", request.arch);
            let assemble = ["--target=amdgcn-amd-amdhsa", &target, "-c", "out.s", "-o", "out.o"];
            step.run(&toolchain.path, &assemble.map(OsString::from))?;
            let link = ["-flavor", "gnu", "--no-undefined", "-shared", "out.o", "-o", "out"];
            step.run(linker, &link.map(OsString::from))?;
            said
        }
        Linker::Unseen | Linker::Own(_) | Linker::Missing => compile(&[], "out")?,
    };
    let file = room.path().join("out");
    // Some compilers end well without having written anything.
    let image = fs::read(&file).map_err(CompileError::file("the compiler did not write", &file))?;
    let resources = match toolchain.kind {
        Kind::Nvcc => from_ptxas(&said),
        Kind::Hipcc | Kind::Clang => from_clang(&said),
    };
    Ok(Built { image, resources })
}

struct Step<'a> {
    toolchain: &'a Toolchain,
    request: &'a CompileRequest<'a>,
    source: &'a str,
    room: &'a Path,
    deadline: Duration,
}

impl Step<'_> {
    /// Runs one program and returns all it said.
    fn run(&self, program: &Path, arguments: &[OsString]) -> Result<String, CompileError> {
        let output = run(program, arguments, Some(self.room), self.deadline)?;
        let said = both_streams(&output);
        if output.status.success() {
            return Ok(said);
        }
        let node_of = |line| self.request.lines.and_then(|node_of| node_of(line));
        Err(CompileError::Rejected {
            name: self.request.name.to_owned(),
            arch: self.request.arch.to_string(),
            compiler: self.toolchain.path.clone(),
            status: output.status.to_string(),
            diagnostics: Box::new(Diagnostics::read(said, self.source, &node_of)),
        })
    }
}

/// nvcc writes some errors to stdout.
fn both_streams(output: &Output) -> String {
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stdout));
    said
}

/// A file name made of the request's name, as the compiler's messages will show it.
fn source_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.') { c } else { '_' };
    let stem: String = name.chars().map(plain).collect();
    format!("{}.hip", stem.trim_start_matches('.').trim_end_matches(".hip"))
}

/// The file `path` under `room`; none for a path that leaves it.
fn inside(room: &Path, path: &str) -> Option<PathBuf> {
    use std::path::Component;
    let stays = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    (stays && !path.is_empty()).then(|| room.join(path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(CompileError::file("cannot create the folder", folder))?;
    }
    fs::write(path, bytes).map_err(CompileError::file("cannot write", path))
}

#[cfg(test)]
mod tests {
    use super::super::device_libs::bitcode_of;
    use super::super::toolchain::{ANSWER, identify, linkers_on_path};
    use super::super::{Platform, Search};
    use super::*;

    fn toolchain(kind: Kind) -> Toolchain {
        Toolchain {
            kind,
            path: "/bin/compiler".into(),
            version: "1".to_owned(),
            installed_dir: None,
            linker: Linker::Unseen,
            rocm: Some("/rocm".into()),
            digest: String::new(),
        }
    }

    #[test]
    fn each_compiler_is_told_the_whole_architecture() {
        let line = |kind, arch: &str| {
            let arch = arch.parse().expect(arch);
            let flags = ["-DX=1".to_owned()];
            let words = arguments(&toolchain(kind), &arch, &flags, Some(Path::new("/libs")));
            words.join(std::ffi::OsStr::new(" ")).into_string().expect("plain words")
        };
        let hipcc = line(Kind::Hipcc, "gfx90a:sramecc+:xnack-");
        assert!(hipcc.starts_with("--genco --offload-arch=gfx90a:sramecc+:xnack- "), "{hipcc}");
        assert!(!hipcc.contains("rocm"), "hipcc knows its own ROCm: {hipcc}");
        let clang = line(Kind::Clang, "gfx942");
        assert!(clang.contains(" --rocm-path=/rocm --rocm-device-lib-path=/libs "), "{clang}");
        let nvcc = line(Kind::Nvcc, "sm_90a");
        assert!(nvcc.starts_with("-cubin -gencode=arch=compute_90a,code=sm_90a "), "{nvcc}");
        for (line, exact) in
            [(&hipcc, "-ffp-contract=off"), (&clang, "-ffp-contract=off"), (&nvcc, "--fmad=false")]
        {
            assert!(line.contains(exact) && line.ends_with(" -DX=1 -I."), "{line}");
        }
    }

    #[test]
    fn names_stay_in_their_folder() {
        assert_eq!(source_name("gemm_f16.hip"), "gemm_f16.hip");
        assert_eq!(source_name("../a b"), "_a_b.hip");
        assert_eq!(inside(Path::new("/r"), "gemm/tile.h"), Some("/r/gemm/tile.h".into()));
        for path in ["../x", "/x", "a/../../x", ""] {
            assert_eq!(inside(Path::new("/r"), path), None, "{path}");
        }
    }
    /// Whichever lld links, the code object says the same of itself: machine, ABI, flags, resources.
    #[test]
    fn another_lld_links_what_clang_compiled() {
        let search = Search::from_environment();
        let found = search.compilers(Platform::Amd).unwrap_or_default();
        let clang = found.iter().find(|found| found.kind == Kind::Clang);
        let Some(clang) = clang.and_then(|clang| identify(clang, &search.rocm_candidates(), None).ok())
        else {
            eprintln!("skipped: no clang-17 or newer");
            return;
        };
        let (Linker::Own(_), Some(linker)) = (&clang.linker, linkers_on_path().pop()) else {
            eprintln!("skipped: clang has no lld of its own to compare with, or there is no other");
            return;
        };
        let arch: Architecture = "gfx90a:xnack-".parse().expect("an architecture");
        let request = CompileRequest {
            name: "k",
            source: "extern \"C\" __attribute__((global)) void k(int* x) { *x = 1; }\n",
            headers: &[],
            arch: &arch,
            flags: &[],
            lines: None,
        };
        let libs = clang.rocm.as_deref().and_then(bitcode_of);
        let arguments = arguments(&clang, &arch, &[], libs.as_deref());
        let by_us = Toolchain { linker: Linker::Other(linker), ..clang.clone() };
        let [own, other] =
            [clang, by_us].map(|toolchain| build(&toolchain, &request, &arguments, ANSWER).expect("builds"));
        assert_eq!(own.image.get(..24), other.image.get(..24), "identification, type, machine");
        assert_eq!(own.image.get(48..52), other.image.get(48..52), "flags: processor and features");
        assert_eq!(own.resources, other.resources);
        assert_eq!(own.resources.len(), 1);
    }
}
