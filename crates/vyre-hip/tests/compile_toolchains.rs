//! The compilers of this machine, each skipped aloud where it is not there: every kernel of `kernels/` for the
//! architectures that it builds.

use vyre_hip::compile::{
    Architecture, CompileError, CompileRequest, Compiler, CompilerOptions, Kind, Platform, Search,
};
use vyre_hip::kernels;

fn compiler(cache: &tempfile::TempDir) -> Compiler {
    Compiler::new(CompilerOptions {
        search: Search::from_environment(),
        cache_dir: Some(cache.path().to_path_buf()),
        cache_bytes: CompilerOptions::CACHE_BYTES,
        deadline: CompilerOptions::DEADLINE,
        observer: None,
    })
}

/// Whether the machine has this kind of compiler; says so where not.
fn have(compiler: &Compiler, platform: Platform, kind: Kind) -> bool {
    let there = match compiler.toolchains(platform) {
        Ok(toolchains) => toolchains.iter().any(|toolchain| toolchain.kind == kind),
        Err(error) => {
            eprintln!("{error}");
            false
        }
    };
    if !there {
        eprintln!("skipped: no {kind:?}");
    }
    there
}

fn builds_saxpy(compiler: &Compiler, arch: &str) {
    let source = kernels::find("saxpy.hip").expect("embedded");
    let arch: Architecture = arch.parse().expect("an architecture");
    let headers = source.headers();
    let request = CompileRequest {
        name: "saxpy",
        source: source.text,
        headers: &headers,
        arch: &arch,
        flags: &[],
        lines: None,
    };
    let object = compiler.compile(&request).unwrap_or_else(|error| panic!("{error}"));
    assert!(object.image.starts_with(b"\x7fELF"), "an ELF file that module loaders take as it is");
    let [saxpy] = object.resources.as_slice() else { panic!("one kernel: {:?}", object.resources) };
    assert_eq!((saxpy.entry.as_str(), saxpy.spills, saxpy.shared_bytes), ("saxpy", 0, 0));
    assert!(saxpy.registers > 0);
    assert_eq!(saxpy.scalar_registers.is_some(), arch.platform() == Platform::Amd);
}

#[test]
fn hipcc_builds() {
    let cache = tempfile::tempdir().expect("a folder");
    let compiler = compiler(&cache);
    if have(&compiler, Platform::Amd, Kind::Hipcc) {
        ["gfx906", "gfx90a", "gfx1030"].into_iter().for_each(|arch| builds_saxpy(&compiler, arch));
    }
}

#[test]
fn clang_builds_what_hipcc_does_not_know() {
    let cache = tempfile::tempdir().expect("a folder");
    let compiler = compiler(&cache);
    if have(&compiler, Platform::Amd, Kind::Clang) {
        ["gfx942", "gfx1100", "gfx1101"].into_iter().for_each(|arch| builds_saxpy(&compiler, arch));
    }
}

#[test]
fn nvcc_builds() {
    let cache = tempfile::tempdir().expect("a folder");
    let compiler = compiler(&cache);
    if have(&compiler, Platform::Nvidia, Kind::Nvcc) {
        ["sm_80", "sm_90", "sm_90a"].into_iter().for_each(|arch| builds_saxpy(&compiler, arch));
    }
}

#[test]
fn the_same_source_gives_the_same_bytes() {
    let caches = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [first, second] = caches.each_ref().map(compiler);
    if !have(&first, Platform::Amd, Kind::Hipcc) {
        return;
    }
    let source = kernels::find("saxpy.hip").expect("embedded");
    let arch: Architecture = "gfx90a".parse().expect("an architecture");
    let request = CompileRequest {
        name: "saxpy",
        source: source.text,
        headers: &[],
        arch: &arch,
        flags: &[],
        lines: None,
    };
    let [first, second] =
        [first, second].map(|compiler| compiler.compile(&request).expect("compiles").digest);
    assert_eq!(first, second);
}

#[test]
fn a_compilers_words_come_with_the_ir_nodes() {
    let cache = tempfile::tempdir().expect("a folder");
    let compiler = compiler(&cache);
    let node = |line: u32| (line == 2).then(|| "f/body[0]".to_owned());
    for (platform, kind, arch) in
        [(Platform::Amd, Kind::Hipcc, "gfx90a"), (Platform::Nvidia, Kind::Nvcc, "sm_90")]
    {
        if !have(&compiler, platform, kind) {
            continue;
        }
        let arch: Architecture = arch.parse().expect("an architecture");
        let request = CompileRequest {
            name: "bad",
            source: "extern \"C\" __attribute__((global)) void k() {\n  undeclared = 1;\n}\n",
            headers: &[],
            arch: &arch,
            flags: &[],
            lines: Some(&node),
        };
        let Err(CompileError::Rejected { diagnostics, .. }) = compiler.compile(&request) else {
            panic!("{kind:?} takes it");
        };
        let [site] = diagnostics.sites.as_slice() else { panic!("one error: {diagnostics}") };
        assert_eq!((site.line, site.node.as_deref()), (2, Some("f/body[0]")), "{diagnostics}");
        assert!(site.message.contains("undeclared"), "{diagnostics}");
    }
}
