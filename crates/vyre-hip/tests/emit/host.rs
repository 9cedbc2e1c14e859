//! Emitted kernels, compiled as ordinary C++ and run here.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::Library;
use vyre_foundation::{MemorySpace, ValidatedProgram, validate};
use vyre_hip::emit::abi::{self, Arguments, Binding, Control};
use vyre_hip::emit::{self, Bindings, EmitOptions, EmittedKernel, GridBarriers};

/// The first of these programs that runs, if any does.
pub(crate) fn found(candidates: &[&str]) -> Option<String> {
    let runs = |name: &&&str| {
        let tried = Command::new(name).arg("--version").output();
        tried.is_ok_and(|output| output.status.success())
    };
    candidates.iter().find(runs).map(|name| (*name).to_owned())
}

pub(crate) fn kernels_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels")
}

/// The same program under another name, so that several fit in one source.
pub(crate) fn renamed(program: &ValidatedProgram, name: String) -> ValidatedProgram {
    let mut program = program.program().clone();
    program.name = name;
    validate(program).unwrap()
}

/// Runs a compiler; panics with all it said where it fails.
pub(crate) fn compile(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
}

/// Kernels in a library.
pub(crate) struct Host {
    library: Library,
    kernels: HashMap<String, EmittedKernel>,
}

/// Bytes behind every buffer.
const GUARD: [u8; 64] = [0xa5; 64];

type Run = unsafe extern "C" fn(*const u8, *const u32);

impl Host {
    /// Compiles programs, whose names differ; `None`, and a line that says so, without a compiler.
    pub(crate) fn new(programs: &[ValidatedProgram], grid_barriers: GridBarriers) -> Option<Host> {
        let Some(compiler) = found(&["g++", "clang++", "c++"]) else {
            eprintln!("skipped: no g++, clang++ or c++");
            return None;
        };
        let options = EmitOptions::default().with_grid_barriers(grid_barriers);
        let mut source = String::new();
        let mut kernels = HashMap::new();
        for program in programs {
            let kernel = emit::kernel(program, &options).unwrap();
            source.push_str(&kernel.source);
            let name = &program.program().name;
            let [x, y, z] = kernel.workgroup_size;
            let waits = program.facts().subgroup_operations
                || program.facts().grid_barriers
                || program.facts().workgroup_barriers
                || kernel.shared_bytes > 0;
            for entry in &kernel.entries {
                writeln!(
                    source,
                    "extern \"C\" void run_{entry}(const void* arguments, const u32* grid) {{\n  \
                     host_run(grid, {{{x}, {y}, {z}}}, {waits}, {}, [=] {{\n    \
                     program_{name}::{entry}(*(const program_{name}::Arguments*)arguments);\n  }});\n}}",
                    kernel.uses_grid_barrier,
                )
                .unwrap();
            }
            kernels.insert(name.clone(), kernel);
        }
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        std::fs::write(&input, source).unwrap();
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emit/host.h");
        compile(
            Command::new(compiler)
                .args(["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-w"])
                .arg(format!("-DVYRE_HOST_CHECK=\"{}\"", shim.display()))
                .arg("-I")
                .arg(kernels_folder())
                .arg("-o")
                .args([&output, &input]),
        );
        // SAFETY: what runs when it is loaded is what a C++ library of ours runs: nothing.
        let library = unsafe { Library::new(&output) }.unwrap();
        Some(Host { library, kernels })
    }

    /// Runs a program over whole buffers, in place.
    pub(crate) fn run(
        &self,
        name: &str,
        data: &mut [Vec<u8>],
        sizes: &[usize],
        grid: [u32; 3],
        abort: bool,
    ) -> Control {
        let kernel = &self.kernels[name];
        // Double words, so that everything is aligned, and behind them what nobody may touch.
        let guarded = |bytes: &Vec<u8>| double_words(&[bytes.as_slice(), &GUARD].concat());
        let mut memory: Vec<Vec<u64>> = data.iter().map(guarded).collect();
        let bindings: Vec<Binding> = memory
            .iter_mut()
            .zip(data.iter().zip(sizes))
            .map(|(memory, (bytes, size))| Binding {
                data: memory.as_mut_ptr() as u64,
                len: (bytes.len() / size) as u64,
            })
            .collect();
        let abort_word = u32::from(abort);
        let mut control = Control { abort: &raw const abort_word as u64, ..Control::NEW };
        let groups = grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let invocations = groups * kernel.workgroup_size.iter().map(|&n| u64::from(n)).product::<u64>();
        // What is there before must not matter.
        let mut spill = vec![u64::MAX; (kernel.spill.per_invocation * invocations).div_ceil(8) as usize];
        let mut shared = vec![u64::MAX; (kernel.spill.per_workgroup * groups / 8) as usize];
        let arguments = Arguments {
            control: &raw mut control as u64,
            invocation_spill: spill.as_mut_ptr() as u64,
            workgroup_spill: shared.as_mut_ptr() as u64,
        };
        let argument = match kernel.bindings {
            Bindings::Inline(_) => abi::inline_argument(&arguments, &bindings),
            Bindings::Table(_) => abi::table_argument(&arguments, bindings.as_ptr() as u64),
        };
        let argument = double_words(&argument);
        for entry in &kernel.entries {
            // SAFETY: the symbol is the function written for this entry in `new`.
            let run = unsafe { self.library.get::<Run>(format!("run_{entry}")) }.unwrap();
            // SAFETY: the argument is what the kernel's ABI asks for, and what it points to lives until after
            // the call; workgroup threads have ended by then.
            unsafe { run(argument.as_ptr().cast(), grid.as_ptr()) };
        }
        for (bytes, memory) in data.iter_mut().zip(&memory) {
            let after: Vec<u8> = memory.iter().flat_map(|word| word.to_le_bytes()).collect();
            let len = bytes.len();
            assert!(after[len..].starts_with(&GUARD), "{name} stored past the end");
            bytes.copy_from_slice(&after[..len]);
        }
        control
    }
}

fn double_words(bytes: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    bytes.chunks(8).map(word).collect()
}

/// Bytes of an element of each bound buffer.
pub(crate) fn element_sizes(program: &ValidatedProgram) -> Vec<usize> {
    let buffers = program.program().buffers.iter();
    buffers.filter(|decl| decl.space != MemorySpace::Workgroup).map(|decl| decl.element.size()).collect()
}
