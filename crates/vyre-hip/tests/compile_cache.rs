//! The code object cache, through a compiler that is a shell script: it counts its runs, and fails when told.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use vyre_hip::compile::{
    Architecture, CacheCounters, CodeObject, CompileError, CompileEvent, CompileRequest, Compiler,
    CompilerOptions, Header, Observer, Outcome, Search,
};

/// Knows gfx90a and gfx1030. Its code object is its arguments and the source. It takes a while, so that others
/// come while it works.
const SCRIPT: &str = r#"#!/bin/sh
log="$(dirname "$0")/log"
if [ "$1" = --nothing ]; then
    exit 0
fi
if [ "$1" = --version ]; then
    echo version >> "$log"
    echo "fake compiler version $(cat "$(dirname "$0")/version")"
    echo "a traceback" >&2
    exit 0
fi
arguments="$*"
while [ $# -gt 0 ]; do
    case "$1" in
        -o) output="$2" ;;
        *.hip) source="$1" ;;
        --offload-arch=gfx90a*|--offload-arch=gfx1030) known=1 ;;
    esac
    shift
done
echo "compile $source" >> "$log"
if [ -z "$known" ]; then
    echo "fake: error: invalid target ID" >&2
    exit 1
fi
if grep -q HANG "$source"; then
    # Not a child of the shell: killing the compiler must end it.
    exec sleep 1000000
fi
if grep -q FAIL "$source"; then
    echo "$source:2:1: error: told to fail" >&2
    echo "1 error" >&2
    exit 3
fi
sleep 0.1
echo "$source:1:1: remark: Function Name: k [-Rpass-analysis=kernel-resource-usage]" >&2
echo "$source:1:1: remark:     VGPRs: 42 [-Rpass-analysis=kernel-resource-usage]" >&2
{ echo "$arguments"; cat "$source"; } > "$output"
"#;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { folder: tempfile::tempdir().expect("a folder") };
        bench.install("1");
        bench
    }

    /// Installs this version of the compiler.
    fn install(&self, version: &str) {
        let program = self.at("hipcc");
        fs::write(self.at("version"), version).expect("writes");
        fs::write(&program, format!("{SCRIPT}# {version}\n")).expect("writes");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("permissions");
        // A process that another test was just starting may still hold the file open for writing, and such
        // a file does not run.
        while let Err(error) = Command::new(&program).arg("--nothing").status() {
            assert_eq!(error.kind(), ErrorKind::ExecutableFileBusy, "{error}");
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn compiler(&self) -> Compiler {
        compiler_in(self.folder.path(), CompilerOptions::CACHE_BYTES)
    }

    /// How often the script ran with this word, probes apart.
    fn runs(&self, what: &str) -> usize {
        let log = fs::read_to_string(self.at("log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(what) && !line.contains("probe")).count()
    }

    /// The entries of the cache.
    fn entries(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.at("cache/objects")) else { return Vec::new() };
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "code")).collect()
    }
}

fn compiler_in(folder: &Path, cache_bytes: u64) -> Compiler {
    Compiler::new(CompilerOptions { cache_bytes, ..options(folder) })
}

fn options(folder: &Path) -> CompilerOptions {
    let mut search = Search::default();
    search.hipcc = Some(folder.join("hipcc"));
    CompilerOptions {
        search,
        cache_dir: Some(folder.join("cache")),
        cache_bytes: CompilerOptions::CACHE_BYTES,
        deadline: CompilerOptions::DEADLINE,
        observer: None,
    }
}

fn arch(name: &str) -> Architecture {
    name.parse().expect(name)
}

fn try_compile(compiler: &Compiler, source: &str, arch_name: &str) -> Result<CodeObject, CompileError> {
    let arch = arch(arch_name);
    compiler.compile(&CompileRequest {
        name: "k",
        source,
        headers: &[],
        arch: &arch,
        flags: &[],
        lines: None,
    })
}

fn compile(compiler: &Compiler, source: &str) -> CodeObject {
    try_compile(compiler, source, "gfx90a").expect("compiles")
}

#[test]
fn a_second_compile_is_a_hit_with_the_same_answer() {
    let bench = Bench::new();
    let first = compile(&bench.compiler(), "one");
    let compiler = bench.compiler();
    let second = compile(&compiler, "one");
    assert_eq!((first.outcome, second.outcome), (Outcome::Miss, Outcome::Hit));
    assert_eq!((&first.image, first.digest), (&second.image, second.digest));
    assert_eq!(second.resources[0].registers, 42);
    assert_eq!(first.resources, second.resources);
    assert_eq!(bench.runs("compile"), 1);
    assert_eq!(compiler.counters(), CacheCounters { hits: 1, ..CacheCounters::default() });
}

#[test]
fn a_hundred_compiles_ask_for_the_version_once() {
    let bench = Bench::new();
    for round in 0..10 {
        let compiler = bench.compiler();
        for source in 0..10 {
            compile(&compiler, &format!("{source}"));
        }
        assert_eq!(bench.runs("version"), 1, "round {round}");
    }
    assert_eq!(bench.runs("compile"), 10);
    let without_cache = CompilerOptions { cache_dir: None, ..options(bench.folder.path()) };
    assert_eq!(compile(&Compiler::new(without_cache), "one").outcome, Outcome::Uncached);
    assert_eq!(bench.runs("version"), 1, "this process remembers by itself");
    let probes = fs::read_to_string(bench.at("log")).expect("the log").matches("probe").count();
    assert_eq!(probes, 2, "the choice of a compiler is remembered in the cache only");
}

#[test]
fn all_that_matters_is_in_the_key() {
    let bench = Bench::new();
    let compiler = bench.compiler();
    let flags = ["-DX".to_owned()];
    let header = |text| [Header { path: "h/a.h", text }];
    let (old, new) = (header("old"), header("new"));
    let (plain, featured, other) = (arch("gfx90a"), arch("gfx90a:xnack-"), arch("gfx1030"));
    let base =
        CompileRequest { name: "k", source: "one", headers: &[], arch: &plain, flags: &[], lines: None };
    let requests = [
        base,
        CompileRequest { source: "two", ..base },
        CompileRequest { headers: &old, ..base },
        CompileRequest { headers: &new, ..base },
        CompileRequest { flags: &flags, ..base },
        CompileRequest { arch: &featured, ..base },
        CompileRequest { arch: &other, ..base },
    ];
    for request in &requests {
        assert_eq!(compiler.compile(request).expect("compiles").outcome, Outcome::Miss, "{request:?}");
    }
    for request in &requests {
        assert_eq!(compiler.compile(request).expect("compiles").outcome, Outcome::Hit, "{request:?}");
    }
}

/// The child's role of the test below: this process knows no compiler yet.
fn outcome_in_another_process(bench: &Bench) -> String {
    run_in_child("another_compiler_is_another_key", bench.folder.path(), Stdio::piped())
}

#[test]
fn another_compiler_is_another_key() {
    if let Some(folder) = child_folder() {
        let compiler = compiler_in(&folder, CompilerOptions::CACHE_BYTES);
        fs::write(folder.join("outcome"), format!("{:?}", compile(&compiler, "one").outcome))
            .expect("writes");
        return;
    }
    let bench = Bench::new();
    assert_eq!(outcome_in_another_process(&bench), "Miss");
    assert_eq!(outcome_in_another_process(&bench), "Hit");
    assert_eq!(bench.runs("version"), 1, "its version is remembered across processes");
    bench.install("2");
    assert_eq!(outcome_in_another_process(&bench), "Miss");
    assert_eq!(bench.runs("version"), 2);
}

#[test]
fn damaged_entries_are_healed() {
    let bench = Bench::new();
    let compiler = bench.compiler();
    let good = compile(&compiler, "one");
    let entry = bench.entries().remove(0);
    let whole = fs::read(&entry).expect("reads");
    let mut flipped = whole.clone();
    *flipped.last_mut().expect("a byte") ^= 1;
    for (round, damaged) in [&whole[..whole.len() / 2], &[], &flipped].into_iter().enumerate() {
        fs::write(&entry, damaged).expect("writes");
        let healed = compile(&compiler, "one");
        assert_eq!((healed.outcome, &healed.image), (Outcome::Heal, &good.image), "round {round}");
        assert_eq!(compile(&compiler, "one").outcome, Outcome::Hit, "round {round}");
    }
    assert_eq!(compiler.counters(), CacheCounters { misses: 1, heals: 3, hits: 3, ..Default::default() });
}

#[test]
fn an_entry_refused_by_a_loader_is_healed_once() {
    let bench = Bench::new();
    let compiler = bench.compiler();
    let fresh = compile(&compiler, "one");
    assert!(!compiler.refuse(&fresh), "the compiler has just made it: again would be the same");
    let cached = compile(&compiler, "one");
    assert!(compiler.refuse(&cached));
    assert_eq!(compile(&compiler, "one").outcome, Outcome::Heal);
    let cached = compile(&compiler, "one");
    assert_eq!(cached.outcome, Outcome::Hit);
    assert!(!compiler.refuse(&cached), "refused twice: the fault is elsewhere");
    assert_eq!(bench.runs("compile"), 2);
}

#[test]
fn threads_that_want_one_key_compile_it_once() {
    let bench = Bench::new();
    let start = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let compiler = bench.compiler();
                start.wait();
                compile(&compiler, "one");
            });
        }
    });
    assert_eq!((bench.runs("compile"), bench.runs("version")), (1, 1));
}

#[test]
fn processes_that_want_one_key_compile_it_once() {
    if let Some(folder) = child_folder() {
        compile(&compiler_in(&folder, CompilerOptions::CACHE_BYTES), "one");
        return;
    }
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                run_in_child(
                    "processes_that_want_one_key_compile_it_once",
                    bench.folder.path(),
                    Stdio::null(),
                )
            });
        }
    });
    assert_eq!(bench.runs("compile"), 1);
    assert_eq!(bench.entries().len(), 1);
}

const CHILD: &str = "VYRE_TEST_CHILD_FOLDER";

fn child_folder() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// Runs one test of this file as a process of its own, in the child's role.
fn run_in_child(test: &str, folder: &Path, stdout: Stdio) -> String {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--exact", test]).env(CHILD, folder).stdout(stdout);
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    fs::read_to_string(folder.join("outcome")).unwrap_or_default()
}

#[test]
fn the_size_bound_is_kept() {
    let bench = Bench::new();
    let one_entry = {
        compile(&bench.compiler(), "0000");
        fs::metadata(bench.entries().remove(0)).expect("an entry").len()
    };
    let compiler = compiler_in(bench.folder.path(), 3 * one_entry);
    for source in ["0001", "0002"] {
        compile(&compiler, source);
    }
    assert_eq!(compile(&compiler, "0000").outcome, Outcome::Hit, "used, so 0001 is the oldest");
    compile(&compiler, "0003");
    assert_eq!((bench.entries().len(), compiler.counters().evictions), (3, 1));
    assert_eq!(compile(&compiler, "0000").outcome, Outcome::Hit);
    assert_eq!(compile(&compiler, "0001").outcome, Outcome::Miss);
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let bench = Bench::new();
    // A file where the folder should be: no user can write there, root neither.
    OpenOptions::new().create(true).truncate(true).write(true).open(bench.at("cache")).expect("a file");
    let compiler = bench.compiler();
    for _ in 0..2 {
        assert_eq!(compile(&compiler, "one").outcome, Outcome::Uncached);
    }
    assert_eq!(compiler.counters(), CacheCounters { uncached: 2, ..CacheCounters::default() });
}

#[test]
fn errors_come_whole_with_their_nodes() {
    let bench = Bench::new();
    let compiler = bench.compiler();
    let gfx90a = arch("gfx90a");
    let lines = |line: u32| (line == 2).then(|| "execute_item/body[7]".to_owned());
    let request = CompileRequest {
        name: "bad",
        source: "FAIL",
        headers: &[],
        arch: &gfx90a,
        flags: &[],
        lines: Some(&lines),
    };
    for _ in 0..2 {
        let error = compiler.compile(&request).expect_err("it fails");
        let text = error.to_string();
        assert!(text.contains("bad.hip:2:1: error: told to fail\n1 error\n"), "{text}");
        assert!(text.contains("line 2 stems from execute_item/body[7]: told to fail"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(!error.is_missing_compiler());
    }
    assert_eq!(bench.runs("compile bad"), 2, "failures are not cached");
    assert!(bench.entries().is_empty());
}

#[test]
fn an_unknown_architecture_says_what_to_install() {
    let bench = Bench::new();
    let error = try_compile(&bench.compiler(), "one", "gfx942").expect_err("unknown");
    let text = error.to_string();
    assert!(error.is_missing_compiler());
    for part in ["gfx942", "invalid target ID", "fake compiler version 1", "clang-19"] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
}

#[test]
fn headers_stay_in_their_folder() {
    let bench = Bench::new();
    let gfx90a = arch("gfx90a");
    let headers = [Header { path: "../outside.h", text: "" }];
    let request = CompileRequest {
        name: "k",
        source: "one",
        headers: &headers,
        arch: &gfx90a,
        flags: &[],
        lines: None,
    };
    let error = bench.compiler().compile(&request).expect_err("refused").to_string();
    assert!(error.contains("../outside.h"), "{error}");
}

#[test]
fn a_compiler_that_hangs_is_given_up() {
    let bench = Bench::new();
    compile(&bench.compiler(), "one");
    let hasty = CompilerOptions { deadline: Duration::from_millis(100), ..options(bench.folder.path()) };
    let error = try_compile(&Compiler::new(hasty), "HANG", "gfx90a").expect_err("it hangs");
    assert!(matches!(error, CompileError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("100ms"), "{error}");
    // The key is free again.
    let error = try_compile(&bench.compiler(), "FAIL", "gfx90a").expect_err("it fails");
    assert!(matches!(error, CompileError::Rejected { .. }), "{error}");
}

#[test]
fn work_is_told_as_it_happens() {
    let bench = Bench::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&told);
    let observer: Observer = Arc::new(move |event: &CompileEvent<'_>| {
        let word = match event {
            CompileEvent::Started { name, arch, .. } => format!("started {name} {arch}"),
            CompileEvent::Finished { name, arch, .. } => format!("finished {name} {arch}"),
        };
        events.lock().expect("no panic").push(word);
    });
    let compiler =
        Compiler::new(CompilerOptions { observer: Some(observer), ..options(bench.folder.path()) });
    compile(&compiler, "one");
    compile(&compiler, "one");
    let told = told.lock().expect("no panic");
    assert_eq!(told.as_slice(), ["started k gfx90a", "finished k gfx90a"], "a hit is no work");
}
