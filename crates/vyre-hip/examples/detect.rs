//! Prints what GPUs there are; exercises the device layer on request.
//!
//! ```text
//! cargo run -p vyre-hip --example detect -- [--exercise] [--module FILE] [--kernel NAME]
//! ```
//!
//! `--exercise` copies patterns through every kind of memory, launches a kernel where the driver can compile
//! one, and compares; `--module` loads a code object; `--kernel` shows what one of its kernels uses. The exit
//! status is 0 if all of it worked, 1 if something did not, 2 without a device.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vyre_driver::Generation;
use vyre_driver::region::SharedRegion;
use vyre_hip::api::{Api, Platform};
use vyre_hip::device::{
    Context, DeviceMemory, Event, HostMemory, LaunchConfig, Module, PinnedMemory, RegisteredMemory, Stream,
    StreamPriority,
};

const BYTES: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);
const KERNELS: &str = concat!(include_str!("detect.ptx"), "\0");

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[derive(Default)]
struct Arguments {
    exercise: bool,
    module: Option<String>,
    kernel: Option<String>,
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}; usage: detect [--exercise] [--module FILE] [--kernel NAME]");
            return ExitCode::from(1);
        }
    };
    let report = vyre_hip::detect();
    print!("{report}");
    if report.devices().is_empty() {
        return ExitCode::from(2);
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            ExitCode::from(1)
        }
    }
}

fn arguments() -> Outcome<Arguments> {
    let mut arguments = Arguments::default();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--exercise" => arguments.exercise = true,
            "--module" => arguments.module = Some(given.next().ok_or("--module wants a file")?),
            "--kernel" => arguments.kernel = Some(given.next().ok_or("--kernel wants a name")?),
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Outcome {
    if !arguments.exercise && arguments.module.is_none() {
        return Ok(());
    }
    let api = timed("open the library", Api::open)?;
    for ordinal in 0..api.devices() {
        println!("device {ordinal}:");
        let context = timed("open a context", || Context::open(&api, ordinal, Generation(1)))?;
        if arguments.exercise {
            exercise(&context)?;
        }
        if let Some(file) = &arguments.module {
            module(&context, file, arguments.kernel.as_deref())?;
        }
    }
    Ok(())
}

fn exercise(context: &Arc<Context>) -> Outcome {
    let stream = Stream::new(context, StreamPriority::Normal)?;
    let urgent = Stream::new(context, StreamPriority::High)?;
    let one = timed("allocate device memory", || DeviceMemory::new(context, "one", BYTES))?;
    let two = DeviceMemory::new(context, "two", BYTES)?;
    let pinned = timed("allocate pinned memory", || PinnedMemory::new(context, "pinned", BYTES))?;
    let region = Arc::new(SharedRegion::create(BYTES)?);
    let registered = timed("register a region", || RegisteredMemory::new(context, &region))?;
    println!("  pinned memory: host {:p}, device {:#x}", pinned.host_address(), pinned.device_address());
    println!(
        "  region:        host {:p}, device {:#x}",
        registered.host_address(),
        registered.device_address()
    );

    let pattern: Vec<u8> = (0..BYTES).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    let mut seen = vec![0; BYTES as usize];

    pinned.copy_in(0, &pattern)?;
    copy("pinned memory to device", context, &stream, || stream.copy_to_device(&one, 0, &pinned, 0, BYTES))?;
    copy("device to device", context, &stream, || stream.copy_on_device(&two, 0, &one, 0, BYTES))?;
    copy("device to region", context, &stream, || stream.copy_to_host(&registered, 0, &two, 0, BYTES))?;
    region.copy_out(0, &mut seen)?;
    compare("through the region", &seen, &pattern)?;

    copy("fill", context, &stream, || stream.fill(&one, 0, BYTES, 0xa5))?;
    timed("copy device to a slice", || one.read(0, &mut seen))?;
    compare("filled", &seen, &vec![0xa5; BYTES as usize])?;
    timed("copy a slice to device", || one.write(0, &pattern))?;

    // Between two streams only the event orders the copies.
    let written = Event::without_timing(context)?;
    stream.copy_on_device(&two, 0, &one, 0, BYTES)?;
    written.record(&stream)?;
    urgent.wait_for(&written)?;
    urgent.copy_to_host(&pinned, 0, &two, 0, BYTES)?;
    urgent.wait(TIMEOUT)?;
    pinned.copy_out(0, &mut seen)?;
    compare("across two streams", &seen, &pattern)?;

    // At odd offsets, so that nothing is aligned.
    stream.copy_to_device(&one, 3, &pinned, 5, 1001)?;
    stream.wait(TIMEOUT)?;
    let mut odd = vec![0; 1001];
    one.read(3, &mut odd)?;
    compare("at odd offsets", &odd, pattern.get(5..1006).unwrap_or_default())?;

    if context.info().platform == Platform::Nvidia {
        let module = timed("compile and load PTX", || Module::load(context, KERNELS.as_bytes()))?;
        launch(context, &stream, &module)?;
        reside(context, &stream, &urgent, &module)?;
    } else {
        println!("  no kernel launched: the driver compiles none; use --module");
    }
    refusals(context)?;

    let memory = context.memory_use()?;
    println!("  memory: {} MiB in use here, peak {} MiB", memory.in_use >> 20, memory.peak >> 20);
    drop((one, two));
    let after = context.memory_use()?.in_use;
    if after != 0 {
        return Err(format!("{after} bytes still counted after everything was dropped").into());
    }
    Ok(())
}

/// Launches a kernel in both ways and checks what it wrote.
fn launch(context: &Arc<Context>, stream: &Stream, module: &Arc<Module>) -> Outcome {
    const COUNT: u32 = 1 << 20;
    const LAUNCHES: u32 = 1000;
    let add = module.function("add")?;
    let resident = add.resident_workgroups(256, 0)?;
    println!("  kernel add: {:?}, {resident} workgroups of 256 resident", add.attributes());
    let data = DeviceMemory::new(context, "data", u64::from(COUNT) * 4)?;
    stream.fill(&data, 0, data.len(), 0)?;

    let mut packed = data.address().to_ne_bytes().to_vec();
    packed.extend(COUNT.to_ne_bytes());
    packed.extend(1_u32.to_ne_bytes());
    let all = LaunchConfig { grid: [COUNT / 256, 1, 1], workgroup: [256, 1, 1], shared_bytes: 0 };
    // SAFETY: the buffer has the kernel's three parameters, and the data outlives the wait below.
    unsafe { add.launch(stream, &all, &packed) }?;

    let parts = [&packed[..8], &packed[8..12], &packed[12..]];
    // More shared memory than a workgroup has without asking.
    let shared_bytes = context.info().shared_bytes_opt_in.min(64 << 10);
    let groups = add.resident_workgroups(256, shared_bytes)? * context.info().multiprocessors;
    let some = LaunchConfig { grid: [groups.min(COUNT / 256), 1, 1], workgroup: [256, 1, 1], shared_bytes };
    // SAFETY: as above, one by one.
    unsafe { add.launch_cooperative(stream, &some, &parts) }?;
    stream.wait(TIMEOUT)?;

    let mut bytes = vec![0; COUNT as usize * 4];
    data.read(0, &mut bytes)?;
    let twice = some.grid[0] as usize * 256;
    let right = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .enumerate()
        .all(|(i, word)| u32::from_ne_bytes(*word) == if i < twice { 2 } else { 1 });
    if !right {
        return Err("the kernel wrote something else than it should".into());
    }
    println!("  launched and launched cooperatively: right");

    let tiny = LaunchConfig { grid: [1, 1, 1], workgroup: [32, 1, 1], shared_bytes: 0 };
    let start = Instant::now();
    for _ in 0..LAUNCHES {
        // SAFETY: as above.
        unsafe { add.launch(stream, &tiny, &packed) }?;
    }
    stream.wait(TIMEOUT)?;
    let back_to_back = start.elapsed() / LAUNCHES;
    let mut alone: Vec<Duration> = Vec::new();
    for _ in 0..LAUNCHES {
        let start = Instant::now();
        // SAFETY: as above.
        unsafe { add.launch(stream, &tiny, &packed) }?;
        stream.wait(TIMEOUT)?;
        alone.push(start.elapsed());
    }
    alone.sort_unstable();
    let median = alone.get(alone.len() / 2).copied().unwrap_or_default();
    println!("  launch: {back_to_back:?} back to back, {median:?} to launch and wait (median)");
    Ok(())
}

/// Uses everything while a kernel is resident, and checks that nothing waited for it.
fn reside(context: &Arc<Context>, stream: &Stream, urgent: &Stream, module: &Arc<Module>) -> Outcome {
    const COUNT: u32 = 1 << 16;
    let (stay, add) = (module.function("stay")?, module.function("add")?);
    let pinned = PinnedMemory::new(context, "flag and data", u64::from(COUNT) * 4)?;
    let one = LaunchConfig { grid: [1, 1, 1], workgroup: [1, 1, 1], shared_bytes: 0 };
    let hold = context.hold_releases();
    // SAFETY: the buffer has the kernel's one parameter, whose memory outlives the wait below.
    unsafe { stay.launch(urgent, &one, &pinned.device_address().to_ne_bytes()) }?;

    let data = timed("allocate beside a resident kernel", || {
        DeviceMemory::new(context, "data", u64::from(COUNT) * 4)
    })?;
    let words: Vec<u8> = (0..COUNT).flat_map(u32::to_ne_bytes).collect();
    timed("copy a slice beside it", || data.write(0, &words))?;
    let mut packed = data.address().to_ne_bytes().to_vec();
    packed.extend(COUNT.to_ne_bytes());
    packed.extend(5_u32.to_ne_bytes());
    let all = LaunchConfig { grid: [COUNT / 256, 1, 1], workgroup: [256, 1, 1], shared_bytes: 0 };
    timed("launch beside it and wait", || {
        // SAFETY: the buffer has the kernel's three parameters, and the data outlives the wait.
        unsafe { add.launch(stream, &all, &packed) }?;
        stream.wait(TIMEOUT)
    })?;
    let mut seen = vec![0; words.len()];
    timed("copy to a slice beside it", || data.read(0, &mut seen))?;
    let region = Arc::new(SharedRegion::create(4096)?);
    let registered = timed("register beside it", || RegisteredMemory::new(context, &region))?;
    timed("drop all that beside it", || {
        drop((data, registered));
        Event::new(context).map(drop)
    })?;
    if urgent.is_idle()? {
        return Err("something waited for the resident kernel".into());
    }
    println!("  {} releases held back", context.releases_waiting());

    pinned.word(0)?.store(1, Ordering::Release);
    timed("tell it to go and wait", || urgent.wait(TIMEOUT))?;
    drop(hold);
    if context.releases_waiting() != 0 {
        return Err("something is still held back".into());
    }
    let wanted: Vec<u8> = (0..COUNT).flat_map(|i| (i + 5).to_ne_bytes()).collect();
    compare("beside a resident kernel", &seen, &wanted)
}

/// What must be refused, and must leave the device usable.
fn refusals(context: &Arc<Context>) -> Outcome {
    let too_much = context.info().memory_bytes.saturating_mul(2);
    match DeviceMemory::new(context, "more than there is", too_much) {
        Err(error) => println!("  refused: {error}"),
        Ok(_) => return Err("twice the device's memory was allocated".into()),
    }
    match Module::load(context, b"\x7fELF, or rather not") {
        Err(error) if error.is_image_refused() => println!("  refused: {error}"),
        Err(error) => return Err(error.into()),
        Ok(_) => return Err("something that is no code object was loaded".into()),
    }
    if context.info().platform == Platform::Nvidia {
        let damaged = KERNELS.replace("mad.lo.u32", "mad.no.u32");
        match Module::load(context, damaged.as_bytes()) {
            Err(error) if error.is_image_refused() => println!("  refused: {error}"),
            Err(error) => return Err(error.into()),
            Ok(_) => return Err("damaged PTX was loaded".into()),
        }
    }
    if let Some(lost) = context.lost() {
        return Err(format!("a refusal lost the device: {lost}").into());
    }
    Ok(())
}

fn module(context: &Arc<Context>, file: &str, kernel: Option<&str>) -> Outcome {
    let image = std::fs::read(file)?;
    let module = timed(&format!("load {file}"), || Module::load(context, &image))?;
    if let Some(kernel) = kernel {
        let function = module.function(kernel)?;
        let threads = function.attributes().max_workgroup_invocations.min(256);
        let resident = function.resident_workgroups(threads, 0)?;
        println!("  {kernel}: {:?}, {resident} workgroups of {threads} resident", function.attributes());
    }
    Ok(())
}

fn timed<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let done = work()?;
    println!("  {what}: {:?}", start.elapsed());
    Ok(done)
}

/// Times one operation of [`BYTES`] on the device, by events, after one to warm up.
fn copy<E: Error + 'static>(
    what: &str,
    context: &Arc<Context>,
    stream: &Stream,
    mut enqueue: impl FnMut() -> Result<(), E>,
) -> Outcome {
    let (start, end) = (Event::new(context)?, Event::new(context)?);
    enqueue()?;
    start.record(stream)?;
    enqueue()?;
    end.record(stream)?;
    end.wait(TIMEOUT)?;
    stream.wait(TIMEOUT)?;
    let time = end.elapsed_since(&start)?;
    println!("  {what}: {time:?}, {:.1} GB/s", BYTES as f64 / time.as_secs_f64() / 1e9);
    Ok(())
}

fn compare(what: &str, seen: &[u8], wanted: &[u8]) -> Outcome {
    if seen.len() != wanted.len() {
        return Err(format!("{what}: {} bytes instead of {}", seen.len(), wanted.len()).into());
    }
    match seen.iter().zip(wanted).position(|(seen, wanted)| seen != wanted) {
        None => {
            println!("  {what}: {} bytes equal", seen.len());
            Ok(())
        }
        Some(at) => Err(format!("{what}: byte {at} differs").into()),
    }
}
