//! `cargo xtask build-kernels`: every kernel of `kernels/`, megakernels, and programs of `.vir` files, for every
//! architecture wanted, as code objects and a manifest of what is in them.

mod check;
mod kernel;
mod manifest;
mod plan;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use vyre_hip::compile::{
    Architecture, CompileRequest, Compiler, CompilerOptions, MANIFEST, MANIFEST_VERSION, Platform, Search,
};

use kernel::{HandlerFile, Handlers, Kernel};
use manifest::{Built, Failed, Manifest};
use plan::Plan;

/// What the process ends with; `--help` lists the same.
pub(crate) const EXIT_STATUSES: &str = "\
Exit status:
  0  all kernels were built, and passed where --check was given
  1  a kernel does not compile or does not pass, or a file cannot be read or written
  2  the command line is wrong
  3  there is no compiler, or none that builds an architecture named by --arch; what to install is said";

/// What clap ends with, too.
const WRONG_USAGE: u8 = 2;

/// The machine lacks something, the kernels are not at fault.
const MISSING_COMPILER: u8 = 3;

/// The command line of `build-kernels`.
#[derive(Args)]
#[command(after_help = EXIT_STATUSES)]
pub(crate) struct Options {
    /// Architectures, e.g. gfx90a,gfx1100,sm_90a (a Hopper looks for sm_90a, not for sm_90). Without it: those of the
    /// devices present, else all that the compilers found build.
    #[arg(long, value_delimiter = ',', value_name = "ARCH")]
    arch: Vec<Architecture>,
    /// Programs in text form, to be built as well: a machine without a compiler then runs them, with
    /// VYRE_PREBUILT_DIR naming a copy of the folder.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    vir: Vec<PathBuf>,
    /// Handlers of one megakernel, in this order: opcodes, and item programs in text form. Its batch kernels and the
    /// kernel of its sessions are built as well.
    #[arg(long, num_args = 1.., value_name = "OPCODE=FILE")]
    handler: Vec<HandlerFile>,
    /// Invocations of a workgroup of that megakernel, where its program sets them.
    #[arg(long, value_name = "INVOCATIONS", requires = "handler")]
    workgroup_size: Option<u32>,
    /// Only this vendor's architectures.
    #[arg(long)]
    platform: Option<Vendor>,
    /// The AMD compiler: hipcc or a clang. Without it: HIPCC, HIP_PATH, ROCM_PATH, /opt/rocm, PATH, then
    /// clang-17 or newer on PATH.
    #[arg(long, value_name = "PATH")]
    hipcc: Option<PathBuf>,
    /// The NVIDIA compiler. Without it: NVCC, CUDA_HOME, CUDA_PATH, /usr/local/cuda, PATH.
    #[arg(long, value_name = "PATH")]
    nvcc: Option<PathBuf>,
    /// Where code objects and manifest.json go.
    #[arg(long, value_name = "DIR", default_value = "target/kernels")]
    out: PathBuf,
    /// Print the manifest to stdout.
    #[arg(long)]
    json: bool,
    /// Say what would be built, by which compiler, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Disassemble the kernels written by hand: the matrix instructions that one is written for must be there, spills
    /// must not.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Vendor {
    Amd,
    Nvidia,
}

impl From<Vendor> for Platform {
    fn from(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Amd => Self::Amd,
            Vendor::Nvidia => Self::Nvidia,
        }
    }
}

impl Options {
    fn kernels(&self) -> Result<Vec<Kernel>> {
        Kernel::all(&self.vir, &Handlers { files: &self.handler, workgroup_size: self.workgroup_size })
    }
}

/// Builds what `options` ask for. Errors are the machine's; what is wrong with kernels is in the exit status
/// and on stderr.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut search = Search::from_environment();
    search.hipcc = options.hipcc.clone().or(search.hipcc);
    search.nvcc = options.nvcc.clone().or(search.nvcc);
    // What was built before is what is to be built.
    search.prebuilt = None;
    let compiler = Compiler::new(CompilerOptions { search, ..CompilerOptions::from_environment()? });
    let only = options.platform.map(Platform::from);
    let wants = |arch: &Architecture| only.is_none_or(|platform| platform == arch.platform());
    if let Some(other) = options.arch.iter().find(|arch| !wants(arch)) {
        eprintln!("error: --arch {other} is not an architecture of --platform: drop one of the two");
        return Ok(ExitCode::from(WRONG_USAGE));
    }
    let kernels = match options.kernels() {
        Ok(kernels) => kernels,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let plan = Plan::make(&compiler, &options.arch, wants)?;
    let label = if plan.lacks_compiler { "error:" } else { "skipped" };
    for skipped in &plan.skipped {
        eprintln!("{label} {}: {}", skipped.arch, skipped.why);
    }
    if options.dry_run {
        print_plan(&plan, &kernels, options.json)?;
    }
    if plan.wanted.is_empty() {
        eprintln!("error: nothing can be built here: install one of the compilers looked for");
    }
    if plan.lacks_compiler || plan.wanted.is_empty() {
        return Ok(ExitCode::from(MISSING_COMPILER));
    }
    if options.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    // First, so that a folder that cannot be written costs no build, and one of an interrupted build lists nothing
    // that was overwritten.
    write_manifest(&Manifest::empty(), &options.out)?;
    let manifest = build_all(&compiler, plan, &kernels, options);
    let json = write_manifest(&manifest, &options.out)?;
    if options.json {
        print!("{json}");
    } else {
        manifest.built.iter().for_each(|built| println!("{built}"));
    }
    for failed in &manifest.failed {
        eprintln!("error: {}, {}: {}", failed.kernel, failed.arch, failed.why);
    }
    eprintln!(
        "{} code objects in {}, {} failed; {}",
        manifest.built.len(),
        options.out.display(),
        manifest.failed.len(),
        CacheLine(&compiler)
    );
    Ok(if manifest.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_manifest(manifest: &Manifest, out: &Path) -> Result<String> {
    fs::create_dir_all(out)
        .with_context(|| format!("creating {}: name a folder by --out that can be written", out.display()))?;
    let (file, json) = (out.join(MANIFEST), serde_json::to_string_pretty(manifest)? + "\n");
    fs::write(&file, &json)
        .with_context(|| format!("writing {}: name a folder by --out that can be written", file.display()))?;
    Ok(json)
}

struct CacheLine<'a>(&'a Compiler);

impl fmt::Display for CacheLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counters = self.0.counters();
        match self.0.cache_dir() {
            Some(dir) => write!(
                f,
                "cache {}: {} hits, {} misses, {} healed, {} not kept",
                dir.display(),
                counters.hits,
                counters.misses,
                counters.heals,
                counters.uncached
            ),
            None => f.write_str("no cache"),
        }
    }
}

fn print_plan(plan: &Plan, kernels: &[Kernel], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&manifest::planned(plan, kernels))?);
        return Ok(());
    }
    for (arch, toolchain) in &plan.wanted {
        for kernel in kernels {
            println!("{arch} {}: {} with {}", kernel.origin(), kernel.name(), toolchain.path.display());
        }
    }
    Ok(())
}

/// Builds every kernel for every architecture of the plan, as many at once as the machine has processors.
fn build_all(compiler: &Compiler, plan: Plan, kernels: &[Kernel], options: &Options) -> Manifest {
    let jobs: Vec<(&Architecture, &Kernel)> =
        plan.wanted.iter().flat_map(|(arch, _)| kernels.iter().map(move |kernel| (arch, kernel))).collect();
    let results = in_parallel(
        &jobs,
        |(arch, kernel)| format!("{}: {} for {arch}", kernel.origin(), kernel.name()),
        |(arch, kernel)| kernel.request(arch, |request| build(compiler, kernel, request, options)),
    );
    let (mut built, mut failed) = (Vec::new(), Vec::new());
    for ((arch, kernel), result) in jobs.iter().zip(results) {
        match result {
            Ok(done) => built.push(done),
            Err(error) => failed.push(Failed {
                arch: arch.to_string(),
                kernel: format!("{}: {}", kernel.origin(), kernel.name()),
                why: format!("{error:#}"),
            }),
        }
    }
    Manifest { version: MANIFEST_VERSION, built, failed, skipped: plan.skipped }
}

/// The answers of `work` for each of `items`, in their order, with a progress bar that names the items.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    name: impl Fn(&T) -> String + Sync,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
    let bar = ProgressBar::new(items.len() as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let mut answers: Vec<(usize, R)> = thread::scope(|scope| {
        let worker = || {
            let mut mine = Vec::new();
            loop {
                // Each index goes to one worker; nothing else is ordered by it.
                let index = next.fetch_add(1, Relaxed);
                let Some(item) = items.get(index) else { return mine };
                bar.set_message(name(item));
                mine.push((index, work(item)));
                bar.inc(1);
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(answers) => answers,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().flat_map(join).collect()
    });
    bar.finish_and_clear();
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Builds one kernel for one architecture, and checks it where asked.
fn build(
    compiler: &Compiler,
    kernel: &Kernel,
    request: &CompileRequest<'_>,
    options: &Options,
) -> Result<Built> {
    let code = compiler.compile(request)?;
    let object = kernel.row(request, &code);
    let file = options.out.join(&object.file);
    let folder = file.parent().unwrap_or(&options.out);
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::write(&file, &code.image).with_context(|| format!("writing {}", file.display()))?;
    let mut checked = None;
    if options.check
        && let Kernel::ByHand(_) = kernel
    {
        let toolchain = compiler.toolchain_for(request.arch)?;
        checked = Some(check::check(kernel.name(), request.arch, &code, &toolchain, &file)?);
    }
    Ok(Built { object, checked })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;
    use std::sync::Arc;

    use clap::Parser;
    use vyre::scan::{Rules, ScanOptions, Scanner};
    use vyre_hip::OfflineBackend;
    use vyre_hip::compile::Outcome;

    use super::*;

    #[derive(Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }

    /// Builds for any architecture. Its code objects are the sources.
    const COMPILER: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "fake version 1"; exit 0; fi
while [ $# -gt 0 ]; do
    case "$1" in -o) output="$2" ;; *.hip) source="$1" ;; esac
    shift
done
cat "$source" > "$output"
"#;

    const ADD_ONE: &str = "\
program add_one item(lane) workgroup(1, 1, 1)
entry(opcode: u32, tenant: u32, flags: u32, ticket: u64, a0: u32, a1: u32, a2: u32, a3: u32, a4: u32, a5: u32, a6: u32,
  a7: u32, a8: u32, a9: u32, a10: u32, a11: u32) -> (u32, u32, u64) {
  return 3u32, 0u32, u64(a0 + 1u32);
}
";

    fn kernels(programs: &[PathBuf]) -> Result<Vec<Kernel>> {
        Kernel::all(programs, &Handlers { files: &[], workgroup_size: None })
    }

    fn fake_compiler(room: &Path) -> PathBuf {
        let hipcc = room.join("hipcc");
        fs::write(&hipcc, COMPILER).expect("writes");
        fs::set_permissions(&hipcc, fs::Permissions::from_mode(0o755)).expect("permissions");
        // A process that another test was just starting may still hold the file open for writing.
        while Command::new(&hipcc).arg("--version").output().is_err() {}
        hipcc
    }

    fn compiler(search: Search) -> Compiler {
        let deadline = CompilerOptions::DEADLINE;
        Compiler::new(CompilerOptions { search, cache_dir: None, cache_bytes: 0, deadline, observer: None })
    }

    /// Everything that a build lists is found by a machine that has the folder and no compiler.
    #[test]
    fn what_is_built_needs_no_compiler_any_more() {
        let room = tempfile::tempdir().expect("a folder");
        let (hipcc, out) = (fake_compiler(room.path()), room.path().join("out"));
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/vyre-foundation/tests/files/emit");
        let program = |name: &str| files.join(name).into_os_string().into_string().expect("a plain path");
        let (barriers, plain) = (program("grid_phases.vir"), program("saxpy.vir"));
        let handler = room.path().join("add_one.vir");
        fs::write(&handler, ADD_ONE).expect("writes");
        let handler = format!("0x40={}", handler.display());
        let out_text = out.to_str().expect("a plain path");
        let line = [
            "",
            "--arch",
            "gfx90a,gfx1030",
            "--vir",
            &barriers,
            &plain,
            &barriers,
            "--handler",
            &handler,
            "--workgroup-size",
            "512",
            "--out",
            out_text,
        ];
        let options = CommandLine::parse_from(line).options;
        let mut search = Search::default();
        search.hipcc = Some(hipcc);
        let builder = compiler(search);
        let kernels = options.kernels().expect("programs");
        let plan = Plan::make(&builder, &options.arch, |_| true).expect("a plan");
        let manifest = build_all(&builder, plan, &kernels, &options);
        // By hand, three megakernels of two kernels, grid_phases in two forms, saxpy.
        assert_eq!((manifest.built.len(), manifest.failed.len()), (2 * (2 + 6 + 2 + 1), 0));
        write_manifest(&manifest, &options.out).expect("writes");

        let mut search = Search::default();
        search.prebuilt = Some(out);
        let bare = compiler(search);
        for arch in &options.arch {
            for kernel in &kernels {
                let object = kernel.request(arch, |request| bare.compile(request)).expect("is there");
                assert_eq!(object.outcome, Outcome::Prebuilt);
                assert_eq!(object.image, kernel.source().as_bytes(), "{} for {arch}", kernel.name());
            }
        }
        assert!(
            kernels.iter().any(|kernel| kernel.source().contains("f_add_one_40(")),
            "the handler's function"
        );
    }

    /// Whatever `vyre scan` compiles is among what is built.
    #[test]
    fn the_scanner_finds_its_kernels() {
        let kernels = kernels(&[]).expect("kernels");
        let built: Vec<String> = kernels.iter().map(|kernel| kernel.source().to_owned()).collect();
        let missing = Arc::new(AtomicUsize::new(0));
        let (count, found) = (Arc::clone(&missing), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&found);
        let backend = OfflineBackend::new(&"gfx90a".parse().expect("an architecture"), move |source| {
            let counter = if built.iter().any(|built| built == source.source) { &counted } else { &count };
            counter.fetch_add(1, Relaxed);
            Ok(())
        });
        let rules = Rules::parse(b"a\tab+c\n").expect("rules");
        let refused =
            Scanner::new(Arc::new(backend), rules, ScanOptions::default()).err().expect("does not run");
        assert_eq!((missing.load(Relaxed), found.load(Relaxed)), (0, 2), "{refused}");
    }

    #[test]
    fn an_architecture_without_a_compiler_hides_no_other() {
        let room = tempfile::tempdir().expect("a folder");
        let hipcc = fake_compiler(room.path());
        let mut search = Search::default();
        search.hipcc = Some(hipcc);
        let named = ["gfx90a", "sm_80", "sm_90"].map(|arch| arch.parse().expect("an architecture"));
        let plan = Plan::make(&compiler(search), &named, |_| true).expect("a plan");
        assert!(plan.lacks_compiler);
        let planned = manifest::planned(&plan, &kernels(&[]).expect("kernels"));
        let archs = |list: &str| -> Vec<String> {
            let list = planned[list].as_array().expect("a list");
            let mut archs: Vec<_> =
                list.iter().map(|entry| entry["arch"].as_str().expect("text").to_owned()).collect();
            archs.dedup();
            archs
        };
        assert_eq!(
            (archs("planned"), archs("skipped")),
            (vec!["gfx90a".to_owned()], vec!["sm_80".to_owned(), "sm_90".to_owned()])
        );
        assert!(plan.skipped.iter().all(|skipped| skipped.why.contains("nvcc")), "{:?}", plan.skipped);
    }

    #[test]
    fn a_program_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "program p kernel\n").expect("writes");
        for path in [file.path(), Path::new("/no/such/file.vir")] {
            let error = kernels(&[path.to_owned()]).err().expect("no program").to_string();
            assert_eq!(error, path.display().to_string());
            let files = [format!("64={}", path.display()).parse().expect("a handler")];
            let error = Kernel::all(&[], &Handlers { files: &files, workgroup_size: None });
            assert_eq!(error.err().expect("no handler").to_string(), path.display().to_string());
        }
        let endless = kernels(&["/dev/zero".into()]).err().expect("too long");
        assert!(format!("{endless:#}").contains("more than the 16777216 bytes"), "{endless:#}");
        let files = ["1=add_one.vir".parse().expect("a handler")];
        let reserved = Kernel::all(&[], &Handlers { files: &files, workgroup_size: None }).err();
        assert_eq!(reserved.expect("a built-in opcode").to_string(), "--handler 0x1=add_one.vir");
        for text in ["add_one.vir", "x=add_one.vir", "0xg=add_one.vir"] {
            assert!(text.parse::<HandlerFile>().is_err(), "{text}");
        }
    }

    #[test]
    fn answers_keep_the_order_of_their_items() {
        let items: Vec<u32> = (0..100).collect();
        let doubled = in_parallel(&items, u32::to_string, |item| item * 2);
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(in_parallel(&[] as &[u32], u32::to_string, |item| *item).is_empty());
    }
}
