//! What was built elsewhere runs where there is no compiler, and what is missing is named.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use vyre_driver::{BackendError, BufferDesc, CompiledPipeline, DispatchConfig, VyreBackend};
use vyre_foundation::{DataType, Granularity, ValidatedProgram, text, validate};
use vyre_hip::api::Platform;
use vyre_hip::compile::{
    CompileError, CompileRequest, Compiler, EmittedSource, MANIFEST, MANIFEST_VERSION, Outcome,
    PrebuiltObject, Search,
};
use vyre_hip::emit::{self, EmitOptions, EmittedKernel, GridBarriers};
use vyre_hip::gemm::Gemm;
use vyre_hip::kernels;
use vyre_hip::{HipBackend, OfflineBackend};
use vyre_runtime::{Megakernel, MegakernelError, OpcodeHandler};

use crate::compilers::{compiler_in, options};
use crate::fake::{self, api};

/// What a loader answers that takes no such code.
const NO_BINARY_FOR_GPU: i32 = 209;

/// The fake device is a `gfx90a:sramecc+:xnack-`.
const ARCH: &str = "gfx90a";

fn program(name: &str) -> ValidatedProgram {
    let barriers = format!(
        "program {name} kernel workgroup(1, 1, 1)\nbuffer x: global u32 read_write min 1\n\
         entry {{\n  x[0u32] = 1u32;\n  grid_barrier;\n  x[0u32] = 2u32;\n}}\n"
    );
    validate(text::parse(&barriers).unwrap()).unwrap()
}

fn source<'a>(name: &'a str, emitted: &'a EmittedKernel) -> EmittedSource<'a> {
    EmittedSource { name, source: &emitted.source, lines: &emitted.lines }
}

/// A folder of what a machine with a compiler built: a program in both forms, and the matrix product.
struct Folder {
    folder: tempfile::TempDir,
    built: Vec<PrebuiltObject>,
}

impl Folder {
    fn new(arch: &str) -> Folder {
        let mut folder = Folder { folder: tempfile::tempdir().unwrap(), built: Vec::new() };
        let elsewhere = tempfile::tempdir().unwrap();
        let compiler = Compiler::new(options(compiler_in(elsewhere.path())));
        let arch = arch.parse().unwrap();
        for (form, stem) in [(GridBarriers::Native, "native"), (GridBarriers::Split, "split")] {
            let emitted =
                emit::kernel(&program("twice"), &EmitOptions::default().with_grid_barriers(form)).unwrap();
            source("twice", &emitted).request(&arch, |request| folder.add(&compiler, request, stem));
        }
        let source = kernels::find("gemm_f16.hip").unwrap();
        let request = CompileRequest {
            name: "gemm_f16",
            source: source.text,
            headers: &source.headers(),
            arch: &arch,
            flags: &[],
            lines: None,
        };
        folder.add(&compiler, &request, "gemm_f16");
        folder.write_manifest(MANIFEST_VERSION);
        folder
    }

    fn add(&mut self, compiler: &Compiler, request: &CompileRequest<'_>, stem: &str) {
        let code = compiler.compile(request).unwrap();
        let object = PrebuiltObject::new(request, &code, stem);
        let file = self.at(&object.file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, &code.image).unwrap();
        self.built.push(object);
    }

    fn write_manifest(&self, version: u32) {
        let manifest = json!({ "version": version, "built": self.built, "failed": [], "skipped": [] });
        fs::write(self.at(MANIFEST), manifest.to_string()).unwrap();
    }

    fn at(&self, file: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(file)
    }

    /// A device of a machine that has this folder, and perhaps a compiler.
    fn backend(&self, mut search: Search) -> HipBackend {
        search.prebuilt = Some(self.folder.path().to_path_buf());
        HipBackend::open_with(&api(Platform::Amd), 0, options(search)).unwrap()
    }

    /// Why a machine without a compiler cannot compile this.
    fn refusal(&self, program: &ValidatedProgram) -> String {
        refusal(&self.backend(Search::default()), program)
    }
}

fn refusal(backend: &HipBackend, program: &ValidatedProgram) -> String {
    match backend.compile(program).map(|_: Arc<dyn CompiledPipeline>| ()) {
        Err(BackendError::Unsupported { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_without_a_compiler_runs_what_was_built_elsewhere() {
    let folder = Folder::new(ARCH);
    let backend = folder.backend(Search::default());
    backend.compile(&program("twice")).unwrap();
    let gemm = Gemm::new(&backend).unwrap();
    let [native, _, product] = folder.built.as_slice() else { panic!("three: {:?}", folder.built) };
    assert_eq!(gemm.object().outcome, Outcome::Prebuilt);
    assert_eq!(gemm.object().path.as_deref(), Some(&*folder.at(&product.file)));
    assert_eq!(gemm.object().compiler, native.compiler);
    assert_eq!(gemm.source_digest(), product.source_digest);
    assert_eq!(backend.compiler().counters().prebuilt, 2);
}

#[test]
fn features_must_fit_where_a_code_object_has_them() {
    assert!(
        Folder::new("gfx90a:sramecc+:xnack-").backend(Search::default()).compile(&program("twice")).is_ok()
    );
    let other = Folder::new("gfx90a:sramecc+:xnack+");
    let why = other.refusal(&program("twice"));
    assert!(why.contains("for gfx90a:sramecc+:xnack+ only"), "{why}");
}

#[test]
fn what_is_missing_is_named() {
    let folder = Folder::new(ARCH);
    let other = program("other");
    let emitted = emit::kernel(&other, &EmitOptions::default()).unwrap();
    let arch = ARCH.parse().unwrap();
    let digest = source("other", &emitted).request(&arch, |request| request.source_digest());
    let why = folder.refusal(&other);
    for part in [&*folder.folder.path().to_string_lossy(), &*digest, "`other`", "lists 3 others", "--vir"] {
        assert!(why.contains(part), "no {part} in: {why}");
    }
    let mut search = Search::default();
    search.prebuilt = Some(folder.at("nowhere"));
    let compiler = Compiler::new(options(search));
    let error = source("other", &emitted).request(&arch, |request| compiler.compile(request));
    match error {
        Err(CompileError::NotPrebuilt { missing, source }) => {
            assert!(missing.why.contains("nowhere/manifest.json: No such file"), "{missing}");
            assert!(matches!(*source, CompileError::CompilerNotFound { .. }), "{source}");
            assert_eq!(missing.source_digest, digest);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_damaged_is_not_believed() {
    let folder = Folder::new(ARCH);
    let native = folder.at(&folder.built[0].file);
    fs::write(&native, ".version 8.0\0").unwrap();
    let why = folder.refusal(&program("twice"));
    assert!(why.contains("native.co is damaged"), "{why}");
    fs::remove_file(&native).unwrap();
    let why = folder.refusal(&program("twice"));
    assert!(why.contains("native.co: No such file"), "{why}");
    folder.write_manifest(MANIFEST_VERSION + 1);
    let why = folder.refusal(&program("twice"));
    assert!(why.contains(&format!("version {}", MANIFEST_VERSION + 1)), "{why}");
    fs::write(folder.at(MANIFEST), "{\"version\":").unwrap();
    assert!(folder.refusal(&program("twice")).contains("manifest.json: EOF"));
    // With a compiler, all that is no loss.
    let elsewhere = tempfile::tempdir().unwrap();
    folder.backend(compiler_in(elsewhere.path())).compile(&program("twice")).unwrap();
}

#[test]
fn a_damaged_file_hides_no_good_one() {
    let exact = Folder::new("gfx90a:sramecc+:xnack-");
    let mut folder = Folder::new(ARCH);
    for object in exact.built.iter().rev() {
        let file = folder.at(&object.file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "damaged").unwrap();
        folder.built.insert(0, object.clone());
    }
    folder.write_manifest(MANIFEST_VERSION);
    folder.backend(Search::default()).compile(&program("twice")).unwrap();
    // Nor does one whose row is there twice.
    let mut folder = Folder::new(ARCH);
    let mut wrong = folder.built[0].clone();
    wrong.digest = "0".repeat(64);
    folder.built.insert(0, wrong);
    folder.write_manifest(MANIFEST_VERSION);
    folder.backend(Search::default()).compile(&program("twice")).unwrap();
}

#[test]
fn only_a_regular_file_of_the_listed_size_is_read() {
    let folder = Folder::new(ARCH);
    let native = folder.at(&folder.built[0].file);
    let image = fs::read(&native).unwrap();
    // Sparse: whoever reads it whole needs as much memory.
    fs::File::options().write(true).open(&native).unwrap().set_len(1 << 40).unwrap();
    let why = folder.refusal(&program("twice"));
    assert!(why.contains(&format!("it has {} bytes, not {}", 1_u64 << 40, image.len())), "{why}");
    fs::remove_file(&native).unwrap();
    assert!(Command::new("mkfifo").arg(&native).status().unwrap().success());
    let why = folder.refusal(&program("twice"));
    assert!(why.contains("native.co is damaged: it is no regular file"), "{why}");
    fs::remove_file(&native).unwrap();
    // A link is followed within the folder, and not out of it.
    fs::write(folder.at("kept.co"), &image).unwrap();
    symlink("../kept.co", &native).unwrap();
    folder.backend(Search::default()).compile(&program("twice")).unwrap();
    fs::remove_file(&native).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let kept = outside.path().join("kept.co");
    fs::write(&kept, &image).unwrap();
    symlink(&kept, &native).unwrap();
    let why = folder.refusal(&program("twice"));
    assert!(why.contains(&format!("a link to {}, outside", kept.display())), "{why}");
}

#[test]
fn what_a_loader_refuses_is_compiled_where_there_is_a_compiler() {
    let folder = Folder::new(ARCH);
    fake::fail_once("module", NO_BINARY_FOR_GPU);
    let why = folder.refusal(&program("twice"));
    assert!(why.contains("the loader refused it"), "{why}");
    let elsewhere = tempfile::tempdir().unwrap();
    let backend = folder.backend(compiler_in(elsewhere.path()));
    fake::fail_once("module", NO_BINARY_FOR_GPU);
    backend.compile(&program("twice")).unwrap();
    let counters = backend.compiler().counters();
    assert_eq!((counters.prebuilt, counters.uncached), (1, 1));
}

/// A megakernel with handlers of either granularity: a batch kernel for each, and one kernel for sessions.
fn megakernel(backend: Arc<dyn VyreBackend>, added: u32) -> Result<Megakernel, MegakernelError> {
    let add = OpcodeHandler::new(0x40, "add", move |h| h.complete(h.arg(0) + added));
    let whole = OpcodeHandler::new(0x41, "whole", |h| h.barrier()).granularity(Granularity::Workgroup);
    Megakernel::builder(backend).handlers([add, whole]).build()
}

/// Builds a megakernel for `arch` into a folder.
fn prebuild(folder: &Path, arch: &str) -> Arc<OfflineBackend> {
    let elsewhere = tempfile::tempdir().unwrap();
    let options = options(compiler_in(elsewhere.path()));
    let offline = Arc::new(OfflineBackend::into_folder(arch.parse().unwrap(), options, folder));
    let megakernel = megakernel(offline.clone(), 1).unwrap();
    offline.compile_resident(&megakernel.programs().spec(1)).map(drop).unwrap();
    offline
}

#[test]
fn a_megakernel_built_elsewhere_needs_no_compiler() {
    let folder = Folder::new(ARCH);
    prebuild(folder.folder.path(), ARCH);
    let backend = Arc::new(folder.backend(Search::default()));
    let megakernel = megakernel(backend.clone(), 1).unwrap();
    // As many workgroups as the device would have resident: they are no part of the source.
    let spec = megakernel.programs().spec(backend.capabilities().resident_workgroups);
    backend.compile_resident(&spec).map(drop).unwrap();
    assert_eq!(backend.compiler().counters().prebuilt, 3);
    // To take the place of a kernel that runs: not loaded beside it.
    let loaded = fake::calls("module");
    backend.prepare_resident(&spec).map(drop).unwrap();
    assert_eq!((backend.compiler().counters().prebuilt, fake::calls("module")), (4, loaded));
    // What was there stays.
    backend.compile(&program("twice")).unwrap();
    let other = self::megakernel(backend, 2).unwrap_err();
    let why = std::error::Error::source(&other).unwrap().to_string();
    assert!(why.contains("no code object of `batch`") && why.contains("OfflineBackend"), "{why}");
}

#[test]
fn building_again_replaces_and_leaves_the_rest_of_a_manifest() {
    let folder = Folder::new(ARCH);
    let manifest = || -> Value { serde_json::from_slice(&fs::read(folder.at(MANIFEST)).unwrap()).unwrap() };
    let mut marked = manifest();
    marked["built"][0]["checked"] = json!("no spills");
    marked["skipped"] = json!([{ "arch": "gfx1", "why": "none" }]);
    fs::write(folder.at(MANIFEST), marked.to_string()).unwrap();
    prebuild(folder.folder.path(), ARCH);
    prebuild(folder.folder.path(), ARCH);
    prebuild(folder.folder.path(), "gfx1030");
    let found = manifest();
    let rows = found["built"].as_array().unwrap();
    assert_eq!(rows.len(), folder.built.len() + 3 + 3);
    assert_eq!(rows[..folder.built.len()], marked["built"].as_array().unwrap()[..]);
    assert_eq!(found["skipped"], marked["skipped"]);
}

#[test]
fn a_manifest_of_another_version_is_not_added_to() {
    let folder = Folder::new(ARCH);
    folder.write_manifest(MANIFEST_VERSION + 1);
    let before = fs::read(folder.at(MANIFEST)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let options = options(compiler_in(elsewhere.path()));
    let offline = OfflineBackend::into_folder(ARCH.parse().unwrap(), options, folder.folder.path());
    let error = offline.compile(&program("twice")).map(drop).unwrap_err().to_string();
    for part in ["manifest.json", "another folder", &format!("version {}", MANIFEST_VERSION + 1)] {
        assert!(error.contains(part), "no {part} in: {error}");
    }
    assert_eq!(fs::read(folder.at(MANIFEST)).unwrap(), before);
}

#[test]
fn a_manifest_names_nothing_outside_of_its_folder() {
    for file in ["/etc/hostname", "../native.co", "gfx90a/../../native.co"] {
        let mut folder = Folder::new(ARCH);
        folder.built[2].file = PathBuf::from(file);
        folder.write_manifest(MANIFEST_VERSION);
        let why = folder.refusal(&program("twice"));
        assert!(why.contains(&format!("names the file {file},")), "{why}");
    }
}

#[test]
fn what_only_compiles_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let offline = prebuild(folder.path(), ARCH);
    let refused = |error: BackendError| match error {
        BackendError::Unsupported { what, remedy } => {
            assert!(remedy.contains("VYRE_PREBUILT_DIR"), "{remedy}");
            what
        }
        other => panic!("{other:?}"),
    };
    let buffer = offline.create_buffer(&BufferDesc::new("x", DataType::U32, 4)).unwrap();
    offline.write_buffer(buffer, 12, &[0; 4]).unwrap();
    assert!(offline.write_buffer(buffer, 13, &[0; 4]).is_err(), "past its end");
    assert!(refused(offline.read_buffer(buffer, 0, &mut [0; 4]).unwrap_err()).contains("buffer"));
    let elsewhere = tempfile::tempdir().unwrap();
    let options = options(compiler_in(elsewhere.path()));
    let other = OfflineBackend::into_folder(ARCH.parse().unwrap(), options, folder.path());
    let pipeline = other.compile(&program("twice")).unwrap();
    let ran = pipeline.dispatch(&[buffer.binding()], &DispatchConfig::new([1, 1, 1]));
    assert!(refused(ran.unwrap_err()).contains("`twice`"));
    match megakernel(Arc::new(other), 1).unwrap().start().map(drop) {
        Err(MegakernelError::Backend { source, .. }) => assert!(refused(source).contains("`items`")),
        other => panic!("{other:?}"),
    }
}
