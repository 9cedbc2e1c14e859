//! Times kernels emitted from IR against the same ones written by hand, and the bootstrap of a megakernel.
//!
//! ```text
//! cargo run --release -p vyre-hip --example emitted
//! ```
//!
//! Both kernels of a pair run over the same buffers, back to back between device events, in turns; the figures
//! are medians. Each result is compared with the host's before anything is printed; the exit status is 1 if one
//! differs, 2 without a device.

mod programs;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vyre_driver::VyreBackend;
use vyre_foundation::ValidatedProgram;
use vyre_hip::HipBackend;
use vyre_hip::api::Api;
use vyre_hip::compile::{Architecture, CompileRequest, Compiler, CompilerOptions, EmittedSource};
use vyre_hip::device::{DeviceMemory, Event, Function, LaunchConfig, Module, Stream, StreamPriority};
use vyre_hip::emit::abi::{Arguments, Binding, Control, inline_argument};
use vyre_hip::emit::{EmitOptions, kernel};
use vyre_runtime::Megakernel;

const OPPONENTS: &str = include_str!("../../../../kernels/bench/emitted/opponents.hip");
const TIMEOUT: Duration = Duration::from_secs(60);
/// Launches between two events, and how often the two kernels take turns.
const LAUNCHES: u32 = 20;
const TURNS: usize = 15;
const INVOCATIONS: u32 = 256;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let api = match Api::open() {
        Ok(api) => api,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    match run(&api) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(api: &Arc<Api>) -> Fallible {
    let backend = HipBackend::open_with(api, 0, CompilerOptions::from_environment()?)?;
    let bench = Bench::new(&backend)?;
    println!("{}, {} launches a turn, {TURNS} turns, medians", backend.identity().device, LAUNCHES);
    println!("{:<8} {:>12} {:>12} {:>7}   {:>10}", "kernel", "emitted us", "by hand us", "ratio", "emitted");
    saxpy(&bench)?;
    reduce(&bench)?;
    scan(&bench)?;
    bootstrap(api)
}

/// What pairs of kernels have in common.
struct Bench<'b> {
    backend: &'b HipBackend,
    compiler: Compiler,
    arch: Architecture,
    stream: Stream,
    control: Arc<DeviceMemory>,
    by_hand: Arc<Module>,
}

/// A kernel, ready to be launched.
struct Ready {
    function: Function,
    launch: LaunchConfig,
    argument: Vec<u8>,
}

impl Bench<'_> {
    fn new(backend: &HipBackend) -> Fallible<Bench<'_>> {
        let context = backend.context();
        let arch = Architecture::of_device(&context.info().arch)?;
        let compiler = Compiler::new(CompilerOptions::from_environment()?);
        let request = CompileRequest {
            name: "opponents",
            source: OPPONENTS,
            headers: &[],
            arch: &arch,
            flags: &[],
            lines: None,
        };
        let by_hand = Module::load(context, &compiler.compile(&request)?.image)?;
        let control = DeviceMemory::new(context, "a control block", size_of::<Control>() as u64)?;
        control.write(0, &Control::NEW.to_bytes())?;
        let stream = Stream::new(context, StreamPriority::Normal)?;
        Ok(Bench { backend, compiler, arch, stream, control, by_hand })
    }

    fn memory(&self, bytes: &[u8]) -> Fallible<Arc<DeviceMemory>> {
        let memory = DeviceMemory::new(self.backend.context(), "bench data", bytes.len() as u64)?;
        memory.write(0, bytes)?;
        Ok(memory)
    }

    fn emitted(
        &self,
        program: &ValidatedProgram,
        grid: u32,
        buffers: &[(&Arc<DeviceMemory>, u64)],
    ) -> Fallible<Ready> {
        let emitted = kernel(program, &EmitOptions::default())?;
        let name = &program.program().name;
        let source = EmittedSource { name, source: &emitted.source, lines: &emitted.lines };
        let object = source.request(&self.arch, |request| self.compiler.compile(request))?;
        let module = Module::load(self.backend.context(), &object.image)?;
        let entry = emitted.entries.first().ok_or("no entry")?;
        let bindings: Vec<Binding> = buffers
            .iter()
            .map(|(memory, element)| Binding { data: memory.address(), len: memory.len() / element })
            .collect();
        let arguments = Arguments { control: self.control.address(), ..Arguments::default() };
        Ok(Ready {
            function: module.function(entry)?,
            launch: LaunchConfig { grid: [grid, 1, 1], workgroup: emitted.workgroup_size, shared_bytes: 0 },
            argument: inline_argument(&arguments, &bindings),
        })
    }

    fn by_hand(&self, name: &str, grid: u32, argument: Vec<u8>) -> Fallible<Ready> {
        Ok(Ready {
            function: self.by_hand.function(name)?,
            launch: LaunchConfig { grid: [grid, 1, 1], workgroup: [INVOCATIONS, 1, 1], shared_bytes: 0 },
            argument,
        })
    }

    fn launch(&self, ready: &Ready) -> Fallible {
        // SAFETY: the argument is what the kernel takes, and every buffer in it outlives the bench's waits.
        unsafe { ready.function.launch(&self.stream, &ready.launch, &ready.argument) }?;
        Ok(())
    }

    fn once(&self, ready: &Ready) -> Fallible {
        self.launch(ready)?;
        Ok(self.stream.wait(TIMEOUT)?)
    }

    fn turn(&self, ready: &Ready) -> Fallible<f64> {
        let context = self.backend.context();
        let (start, end) = (Event::new(context)?, Event::new(context)?);
        start.record(&self.stream)?;
        for _ in 0..LAUNCHES {
            self.launch(ready)?;
        }
        end.record(&self.stream)?;
        end.wait(TIMEOUT)?;
        Ok(end.elapsed_since(&start)?.as_secs_f64() * 1e6 / f64::from(LAUNCHES))
    }

    /// Prints a row of the table. Both kernels were run, and their results are right.
    fn compare(&self, name: &str, emitted: &Ready, by_hand: &Ready, bytes: f64) -> Fallible {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            ours.push(self.turn(emitted)?);
            theirs.push(self.turn(by_hand)?);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        let rate = bytes / ours / 1e3;
        println!("{name:<8} {ours:>12.1} {theirs:>12.1} {:>6.2}x   {rate:>6.0} GB/s", theirs / ours);
        Ok(())
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ *seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words_in(memory: &DeviceMemory) -> Fallible<Vec<u32>> {
    let mut bytes = vec![0; memory.len() as usize];
    memory.read(0, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

fn expect(kernel: &str, found: &[u32], expected: &[u32]) -> Fallible {
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None if found.len() == expected.len() => Ok(()),
        at => Err(format!("{kernel} is wrong, first at {at:?}").into()),
    }
}

/// A kernel's argument: addresses and a count.
fn argument(addresses: &[&Arc<DeviceMemory>], count: Option<u32>) -> Vec<u8> {
    let mut bytes: Vec<u8> = addresses.iter().flat_map(|memory| memory.address().to_le_bytes()).collect();
    bytes.extend(count.into_iter().flat_map(u32::to_le_bytes));
    bytes
}

fn saxpy(bench: &Bench<'_>) -> Fallible {
    const N: u32 = 64 << 20;
    let mut seed = 1;
    // Multiples of 1/1024 below 1: sums and products are exact, however often y is updated.
    let mut number = || f32::from((random(&mut seed) % 1024) as u16) / 1024.0;
    let (x, y): (Vec<f32>, Vec<f32>) = (0..N).map(|_| (number(), number())).unzip();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let a = 0.5_f32;
    let expected: Vec<u32> = x.iter().zip(&y).map(|(x, y)| a.mul_add(*x, *y).to_bits()).collect();
    let device_a = bench.memory(&a.to_le_bytes())?;
    let device_x = bench.memory(&bytes_of(&bits(&x)))?;
    let device_y = bench.memory(&bytes_of(&bits(&y)))?;
    let grid = N / INVOCATIONS;
    let emitted =
        bench.emitted(&programs::saxpy()?, grid, &[(&device_a, 4), (&device_x, 4), (&device_y, 4)])?;
    let by_hand = bench.by_hand("hand_saxpy", grid, argument(&[&device_a, &device_x, &device_y], Some(N)))?;
    for (name, ready) in [("emitted saxpy", &emitted), ("saxpy by hand", &by_hand)] {
        device_y.write(0, &bytes_of(&bits(&y)))?;
        bench.once(ready)?;
        expect(name, &words_in(&device_y)?, &expected)?;
    }
    bench.compare("saxpy", &emitted, &by_hand, 12.0 * f64::from(N))
}

fn reduce(bench: &Bench<'_>) -> Fallible {
    const N: u32 = 128 << 20;
    let mut seed = 2;
    let x: Vec<u32> = (0..N).map(|_| random(&mut seed) as u32).collect();
    let expected = x.iter().fold(0_u32, |sum, &x| sum.wrapping_add(x));
    let (device_x, total) = (bench.memory(&bytes_of(&x))?, bench.memory(&[0; 4])?);
    let grid = N / programs::CHUNK;
    let emitted = bench.emitted(&programs::reduce()?, grid, &[(&device_x, 4), (&total, 4)])?;
    let by_hand = bench.by_hand("hand_reduce", grid, argument(&[&device_x, &total], None))?;
    for (name, ready) in [("emitted reduce", &emitted), ("reduce by hand", &by_hand)] {
        total.write(0, &[0; 4])?;
        bench.once(ready)?;
        expect(name, &words_in(&total)?, &[expected])?;
    }
    bench.compare("reduce", &emitted, &by_hand, 4.0 * f64::from(N))
}

fn scan(bench: &Bench<'_>) -> Fallible {
    const PIECES: u32 = 256 << 10;
    const STATES: u64 = 64;
    let mut seed = 3;
    let table: Vec<u32> = (0..STATES * 256).map(|_| (random(&mut seed) % STATES) as u32).collect();
    let words = PIECES as usize * programs::PIECE as usize / 8;
    let input: Vec<u8> = (0..words).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
    let step =
        |state: u32, &byte: &u8| table.get(state as usize * 256 + usize::from(byte)).copied().unwrap_or(0);
    let expected: Vec<u32> =
        input.chunks(programs::PIECE as usize).map(|piece| piece.iter().fold(0, step)).collect();
    let (device_table, device_input) = (bench.memory(&bytes_of(&table))?, bench.memory(&input)?);
    let states = bench.memory(&vec![0xa5; PIECES as usize * 4])?;
    let grid = PIECES / INVOCATIONS;
    let buffers = [(&device_table, 4), (&device_input, 1), (&states, 4)];
    let emitted = bench.emitted(&programs::scan()?, grid, &buffers)?;
    let by_hand =
        bench.by_hand("hand_scan", grid, argument(&[&device_table, &device_input, &states], None))?;
    for (name, ready) in [("emitted scan", &emitted), ("scan by hand", &by_hand)] {
        states.write(0, &vec![0xa5; PIECES as usize * 4])?;
        bench.once(ready)?;
        expect(name, &words_in(&states)?, &expected)?;
    }
    bench.compare("scan", &emitted, &by_hand, input.len() as f64)
}

/// How long a megakernel with all built-in opcodes takes to be ready, with an empty cache and with a full one.
fn bootstrap(api: &Arc<Api>) -> Fallible {
    let folder = tempfile::tempdir()?;
    for cache in ["empty", "full"] {
        let mut options = CompilerOptions::from_environment()?;
        options.cache_dir = Some(folder.path().to_owned());
        let backend: Arc<dyn VyreBackend> = Arc::new(HipBackend::open_with(api, 0, options)?);
        let started = Instant::now();
        let _megakernel = Megakernel::bootstrap(backend)?;
        println!("bootstrap of a megakernel, cache {cache}: {:.0} ms", started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}
