//! `cargo xtask build-kernels`: every kernel of `kernels/` for every architecture wanted, as code objects and
//! a manifest of what is in them.

mod check;
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
use vyre_hip::compile::{Architecture, CompileRequest, Compiler, CompilerOptions, Platform, Search};
use vyre_hip::kernels::{self, Source};

use manifest::{Built, Failed, Manifest};
use plan::Plan;

/// What the process ends with; `--help` lists the same.
pub(crate) const EXIT_STATUSES: &str = "\
Exit status:
  0  all kernels were built, and passed where --check was given
  1  a kernel does not compile or does not pass, or a file cannot be written
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
    /// Architectures, e.g. gfx90a,gfx1100,sm_90. Without it: those of the devices present, else all that the
    /// compilers found build.
    #[arg(long, value_delimiter = ',', value_name = "ARCH")]
    arch: Vec<Architecture>,
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
    /// Disassemble: the matrix instructions that a kernel is written for must be there, spills must not.
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

/// Builds what `options` ask for. Errors are the machine's; what is wrong with kernels is in the exit status
/// and on stderr.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut search = Search::from_environment();
    search.hipcc = options.hipcc.clone().or(search.hipcc);
    search.nvcc = options.nvcc.clone().or(search.nvcc);
    let compiler = Compiler::new(CompilerOptions { search, ..CompilerOptions::from_environment()? });
    let only = options.platform.map(Platform::from);
    let wants = |arch: &Architecture| only.is_none_or(|platform| platform == arch.platform());
    if let Some(other) = options.arch.iter().find(|arch| !wants(arch)) {
        eprintln!("error: --arch {other} is not an architecture of --platform: drop one of the two");
        return Ok(ExitCode::from(WRONG_USAGE));
    }
    let plan = match Plan::make(&compiler, &options.arch, wants) {
        Ok(plan) => plan,
        Err(error) if error.is_missing_compiler() => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(MISSING_COMPILER));
        }
        Err(error) => return Err(error.into()),
    };
    for skipped in &plan.skipped {
        eprintln!("skipped {}: {}", skipped.arch, skipped.why);
    }
    if plan.wanted.is_empty() {
        eprintln!("error: nothing can be built here: install one of the compilers looked for");
        return Ok(ExitCode::from(MISSING_COMPILER));
    }
    if options.dry_run {
        print_plan(&plan, options.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let manifest = build_all(&compiler, plan, options)?;
    fs::create_dir_all(&options.out).with_context(|| format!("creating {}", options.out.display()))?;
    let file = options.out.join("manifest.json");
    let json = serde_json::to_string_pretty(&manifest)? + "\n";
    fs::write(&file, &json).with_context(|| format!("writing {}", file.display()))?;
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

fn print_plan(plan: &Plan, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&manifest::planned(plan))?);
        return Ok(());
    }
    for (arch, toolchain) in &plan.wanted {
        for source in kernels::kernels() {
            println!("{arch} {} with {}", source.path, toolchain.path.display());
        }
    }
    Ok(())
}

/// Builds every kernel for every architecture of the plan, as many at once as the machine has processors.
fn build_all(compiler: &Compiler, plan: Plan, options: &Options) -> Result<Manifest> {
    let jobs: Vec<(&Architecture, &'static Source)> = plan
        .wanted
        .iter()
        .flat_map(|(arch, _)| kernels::kernels().map(move |source| (arch, source)))
        .collect();
    let results = in_parallel(
        &jobs,
        |(arch, source)| format!("{} for {arch}", source.path),
        |(arch, source)| build(compiler, arch, source, options),
    );
    let (mut built, mut failed) = (Vec::new(), Vec::new());
    for ((arch, source), result) in jobs.iter().zip(results) {
        match result {
            Ok(done) => built.push(done),
            Err(error) => failed.push(Failed {
                arch: arch.to_string(),
                kernel: source.path.to_owned(),
                why: format!("{error:#}"),
            }),
        }
    }
    Ok(Manifest { version: manifest::VERSION, built, failed, skipped: plan.skipped })
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
fn build(compiler: &Compiler, arch: &Architecture, source: &Source, options: &Options) -> Result<Built> {
    let headers = source.headers();
    let name = source.kernel_name().unwrap_or(source.path);
    let request =
        CompileRequest { name, source: source.text, headers: &headers, arch, flags: &[], lines: None };
    let object = compiler.compile(&request)?;
    let extension = match arch.platform() {
        Platform::Amd => "co",
        Platform::Nvidia => "cubin",
    };
    let relative = Path::new(&arch.file_name()).join(format!("{name}.{extension}"));
    let file = options.out.join(&relative);
    let folder = file.parent().unwrap_or(&options.out);
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    fs::write(&file, &object.image).with_context(|| format!("writing {}", file.display()))?;
    let checked = if options.check { Some(check::check(name, arch, &object, &file)?) } else { None };
    Ok(Built::new(name, arch, &relative, &object, checked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_keep_the_order_of_their_items() {
        let items: Vec<u32> = (0..100).collect();
        let doubled = in_parallel(&items, u32::to_string, |item| item * 2);
        assert_eq!(doubled, items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(in_parallel(&[] as &[u32], u32::to_string, |item| *item).is_empty());
    }
}
