//! A backend in a worker: every way that the device, the worker or its parent can die, and how long it takes to
//! serve again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use vyre::worker::process::ProcessError;
use vyre::worker::{IsolatedBackend, IsolatedOptions, StartError};
use vyre::{BackendChoice, OpenOptions};
use vyre_driver::{BackendError, BufferDesc, CompiledPipeline, DispatchConfig, LossCause, VyreBackend};
use vyre_foundation::builder::ProgramBuilder;
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, ValidatedProgram};
use vyre_runtime::conformance;

use super::faulty::{Fault, FaultyBackend, Start, config};
use super::programs::describe;
use super::trial::Records;
use super::{Device, parent};

/// What a worker of this program can host beside what the facade's can.
const FAULTY: &str = "faulty";
/// How long a dispatch may take that does not end, and how long after that its worker is ended.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same where the kernel or the worker stands still, so that this is all the time it takes to notice.
const SHORT_PATIENCE: Duration = Duration::from_millis(200);
/// A process that owns a device takes a while to end, and says nothing meanwhile.
const SILENCE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_millis(50);
/// How long a spare may take to be ready.
const SPARE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a crash counts: longer than a trial lasts.
const FORGIVENESS: Duration = Duration::from_secs(3600);
/// How long a worker may take to start that never says that it has: enough to open its device.
const START_DEADLINE: Duration = Duration::from_secs(1);

/// Makes this process a worker if it was started as one.
pub(crate) fn worker_main() {
    let open = |config: &[u8]| -> Result<Arc<dyn VyreBackend>, BackendError> {
        Ok(Arc::new(FaultyBackend::open(config)?))
    };
    vyre::worker::init(&vyre::worker_registry().backend(FAULTY, open));
}

/// What ends a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    Fault(Fault),
    Kill,
    Stop,
}

impl Blow {
    /// What a loss by it is taken for.
    pub(crate) const fn cause(self) -> LossCause {
        match self {
            Blow::Kill => LossCause::Killed,
            Blow::Stop | Blow::Fault(Fault::Hang) => LossCause::Unresponsive,
            Blow::Fault(_) => LossCause::Fault,
        }
    }

    /// Whether it takes a GPU.
    pub(crate) fn is_of_device(self) -> bool {
        matches!(self, Blow::Fault(fault) if fault.is_of_device())
    }
}

/// All there are, by name.
pub(crate) const BLOWS: [(&str, Blow); 14] = [
    ("illegal_address", Blow::Fault(Fault::IllegalAddress)),
    ("illegal_instruction", Blow::Fault(Fault::IllegalInstruction)),
    ("trap", Blow::Fault(Fault::Trap)),
    ("hang", Blow::Fault(Fault::Hang)),
    ("sigkill", Blow::Kill),
    ("sigstop", Blow::Stop),
    ("sigsegv", Blow::Fault(Fault::Segv)),
    ("abort", Blow::Fault(Fault::Abort)),
    ("clean_exit", Blow::Fault(Fault::CleanExit)),
    ("exit", Blow::Fault(Fault::Exit)),
    ("flooded_stderr", Blow::Fault(Fault::FloodedStderr)),
    ("garbage_frame", Blow::Fault(Fault::GarbageFrame)),
    ("short_frame", Blow::Fault(Fault::ShortFrame)),
    ("oversized_frame", Blow::Fault(Fault::OversizedFrame)),
];

/// Adds the trials of one device, each blow `repeats` times.
pub(crate) fn add(device: &Device, repeats: u32, records: &Records, trials: &mut Vec<Trial>) {
    let ordinal = device.ordinal();
    let mut add = |test: String, body: Box<dyn FnOnce() -> Result<(), String> + Send>| {
        let name = format!("{}-worker::{test}", device.name);
        trials.push(records.trial_alone(device, name, move || body().into()));
    };
    for spare in [false, true] {
        for (blow_name, blow) in BLOWS {
            if ordinal.is_none() && blow.is_of_device() {
                continue;
            }
            let kind = if spare { "warm" } else { "cold" };
            let body = move || recoveries(ordinal, blow_name, blow, spare, repeats);
            add(format!("fault::{blow_name}_{kind}"), Box::new(body));
        }
    }
    add(
        "start::missing_executable".to_owned(),
        Box::new(move || starts(ordinal, repeats, "missing executable")),
    );
    add("start::other_version".to_owned(), Box::new(move || starts(ordinal, repeats, "other version")));
    add("start::slow".to_owned(), Box::new(move || starts(ordinal, repeats, "slow")));
    let of_parent = device.clone();
    add("parent::sigkill".to_owned(), Box::new(move || parent::deaths(&of_parent, repeats)));
    // The facade opens the first GPU.
    if ordinal.is_none_or(|ordinal| ordinal == 0) {
        add("fallback".to_owned(), Box::new(move || fallback(ordinal.is_some())));
    }
    add("out_of_memory".to_owned(), Box::new(move || out_of_memory(ordinal)));
    add("session::vectors".to_owned(), Box::new(move || sessions(ordinal)));
}

fn options(ordinal: Option<u32>, start: Start) -> IsolatedOptions {
    let options = IsolatedOptions::new(FAULTY)
        .config(config(ordinal, start))
        .crash_budget(u32::MAX, Duration::from_secs(1))
        .grace(GRACE)
        .silence(SILENCE)
        .writable_regions(ordinal.is_some());
    let passed = vyre_hip::ENVIRONMENT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    passed.fold(options, |options, (name, value)| options.env(name, value))
}

/// A worker that hosts this GPU, or the CPU.
pub(crate) fn open(ordinal: Option<u32>, spare: bool) -> Result<IsolatedBackend, String> {
    IsolatedBackend::open(options(ordinal, Start::Right).spare(spare)).map_err(|error| describe(&error))
}

/// A kernel whose results tell whether the device works.
pub(super) fn probe() -> Result<ValidatedProgram, String> {
    let mut p = ProgramBuilder::kernel("probe").workgroup_size([64, 1, 1]);
    let values = p.buffer("values", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let me = f.let_("me", Builtin::GlobalId(Axis::X));
        f.store(values, me, values.load(me) * 3 + me);
    });
    p.validate().map_err(|errors| errors.to_string())
}

/// Runs the probe over fresh values, and checks each.
pub(super) fn serve(
    backend: &dyn VyreBackend,
    program: &ValidatedProgram,
    seed: u32,
) -> Result<Arc<dyn CompiledPipeline>, String> {
    let error = |error: BackendError| describe(&error);
    let pipeline = backend.compile(program).map_err(error)?;
    let values: Vec<u32> = (0..256).map(|i: u32| i.wrapping_mul(0x9e37_79b9) ^ seed).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let buffer = backend.create_buffer(&BufferDesc::new("values", DataType::U32, 256)).map_err(error)?;
    backend.write_buffer(buffer, 0, &bytes).map_err(error)?;
    let config = DispatchConfig { deadline: Some(Duration::from_secs(10)), ..DispatchConfig::new([4, 1, 1]) };
    pipeline.dispatch(&[buffer.binding()], &config).map_err(error)?;
    let mut result = vec![0xAB; bytes.len()];
    backend.read_buffer(buffer, 0, &mut result).map_err(error)?;
    backend.destroy_buffer(buffer).map_err(error)?;
    for ((i, value), word) in (0..).zip(values).zip(result.as_chunks::<4>().0) {
        let (got, expected) = (u32::from_le_bytes(*word), value.wrapping_mul(3).wrapping_add(i));
        if got != expected {
            return Err(format!("element {i} after a recovery is {got}, not {expected}"));
        }
    }
    Ok(pipeline)
}

/// Lets a blow fall until everybody has learned of it; returns what was answered.
pub(crate) fn strike(backend: &IsolatedBackend, blow: Blow) -> Result<(BackendError, Duration), String> {
    let pid = backend.worker_pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let pid = pid.ok_or("no worker to signal")?;
    let text = |errno: rustix::io::Errno| errno.to_string();
    let fault = match blow {
        Blow::Fault(fault) => fault,
        // Not run: the signal is there first.
        Blow::Kill | Blow::Stop => Fault::Exit,
    };
    let pipeline = backend.compile(&fault.program()?).map_err(|error| describe(&error))?;
    let started = Instant::now();
    match blow {
        Blow::Fault(_) => {}
        Blow::Kill => kill_process(pid, Signal::KILL).map_err(text)?,
        Blow::Stop => {
            kill_process(pid, Signal::STOP).map_err(text)?;
            // Its threads stop one after the other.
            let stopped = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(pid), stopped).map_err(text)?;
        }
    }
    let still = blow.cause() == LossCause::Unresponsive;
    let deadline = if still { SHORT_PATIENCE } else { PATIENCE };
    let config = DispatchConfig { deadline: Some(deadline), ..DispatchConfig::new([1, 1, 1]) };
    match pipeline.dispatch(&[], &config) {
        Err(error) => Ok((error, started.elapsed())),
        Ok(outcome) => Err(format!("it was survived: {outcome:?}")),
    }
}

/// Times of one kind of blow.
#[derive(Default)]
struct Times {
    detected: Vec<Duration>,
    gone: Vec<Duration>,
    ready: Vec<Duration>,
    serving: Vec<Duration>,
}

fn recoveries(ordinal: Option<u32>, name: &str, blow: Blow, spare: bool, repeats: u32) -> Result<(), String> {
    let backend = open(ordinal, spare)?;
    let program = probe()?;
    let mut kept = serve(&backend, &program, 1)?;
    let mut times = Times::default();
    for round in 0..repeats {
        if spare {
            wait_for_spare(&backend)?;
        }
        let generation = backend.generation();
        let (error, detected) = strike(&backend, blow)?;
        let struck = Instant::now();
        let Some(loss) = error.loss() else { return Err(format!("no loss: {}", describe(&error))) };
        if loss.cause != blow.cause() {
            return Err(format!("{name} was taken for {:?}: {loss}", loss.cause));
        }
        let next = backend.recover().map_err(|error| describe(&error))?;
        if next.0 != generation.0 + 1 {
            return Err(format!("generation {next} after {generation}"));
        }
        kept = serve(&backend, &program, round).map_err(|error| format!("round {round}: {error}"))?;
        times.serving.push(detected + struck.elapsed());
        let replacement = backend.last_replacement().ok_or("no record of the replacement")?;
        if replacement.from_spare != spare {
            return Err(format!("round {round}: from_spare is {}", replacement.from_spare));
        }
        times.detected.push(detected);
        times.gone.push(replacement.gone_after);
        times.ready.push(replacement.ready_after);
    }
    drop(kept);
    eprintln!(
        "{name} {}: detected {}, then gone {}, then ready {}; fault to serving {} (p50/max of {repeats})",
        if spare { "warm" } else { "cold" },
        middle(&mut times.detected),
        middle(&mut times.gone),
        middle(&mut times.ready),
        middle(&mut times.serving),
    );
    Ok(())
}

/// The middle one and the longest, in words.
pub(super) fn middle(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |time: Option<&Duration>| time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    format!("{:.1}/{:.1} ms", ms(times.get(times.len() / 2)), ms(times.last()))
}

fn wait_for_spare(backend: &IsolatedBackend) -> Result<(), String> {
    let until = Instant::now() + SPARE_DEADLINE;
    while backend.spare_pid().is_none() {
        if Instant::now() > until {
            return Err(format!("no spare within {SPARE_DEADLINE:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Workers that do not come to serve: each is a typed error, and the next worker serves.
fn starts(ordinal: Option<u32>, repeats: u32, how: &str) -> Result<(), String> {
    let mut times = Vec::new();
    for round in 0..repeats {
        let options = match how {
            "missing executable" => options(ordinal, Start::Right).program("/nonexistent/worker"),
            "other version" => options(ordinal, Start::OtherVersion),
            _ => options(ordinal, Start::Late).start_deadline(START_DEADLINE),
        };
        let started = Instant::now();
        let error = match IsolatedBackend::open(options) {
            Ok(_) => return Err(format!("round {round}: it started")),
            Err(error) => error,
        };
        times.push(started.elapsed());
        let expected = match &error {
            StartError::Process(ProcessError::ExecutableMissing { .. }) => how == "missing executable",
            StartError::Version { .. } => how == "other version",
            StartError::Slow { .. } => how == "slow",
            _ => false,
        };
        if !expected {
            return Err(format!("round {round}: {how} was taken for {}", describe(&error)));
        }
        serve(&open(ordinal, false)?, &probe()?, round)?;
    }
    eprintln!("{how}: an error after {} (p50/max of {repeats})", middle(&mut times));
    Ok(())
}

/// A backend whose worker crashes once more than it may goes on with the host's threads, and says so.
fn fallback(gpu: bool) -> Result<(), String> {
    let error = |error: BackendError| describe(&error);
    let choice = if gpu { BackendChoice::Hip } else { BackendChoice::Cpu };
    let options = OpenOptions::new(choice).crash_budget(1, FORGIVENESS).fall_back_to_cpu(true);
    let backend = options.open_worker().map_err(|error| describe(&error))?;
    let program = probe()?;
    let name = backend.identity().name.clone();
    for crashes in 1..=2 {
        serve(backend.as_ref(), &program, crashes)?;
        let pid = backend.worker_pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.ok_or("no worker")?, Signal::ABORT).map_err(|errno| errno.to_string())?;
        let struck = Instant::now();
        while backend.recover().map_err(error)?.0 == u64::from(crashes) {
            if struck.elapsed() > SPARE_DEADLINE {
                return Err(format!("crash {crashes} was not noticed"));
            }
            std::thread::yield_now();
        }
        let fell_back = backend.last_replacement().is_some_and(|replacement| replacement.fell_back);
        let now = &backend.identity().name;
        let expected = if crashes == 1 { &name } else { "cpu" };
        if fell_back != (crashes == 2) || backend.worker_pid().is_none() != fell_back || now != expected {
            return Err(format!("after crash {crashes}: fell_back is {fell_back}, the backend {now}"));
        }
    }
    serve(backend.as_ref(), &program, 3).map(drop)
}

/// What sessions must do, through a worker.
fn sessions(ordinal: Option<u32>) -> Result<(), String> {
    let backend: Arc<dyn VyreBackend> = Arc::new(open(ordinal, false)?);
    conformance::run_resident_data(&backend).map_err(|error| describe(&error))?;
    conformance::run_io(&backend).map_err(|error| describe(&error))?;
    conformance::run_sessions(&backend).map(drop).map_err(|error| describe(&error))
}

/// Too little memory is an error of one call, not a death.
fn out_of_memory(ordinal: Option<u32>) -> Result<(), String> {
    let backend = open(ordinal, false)?;
    let program = probe()?;
    let pid = backend.worker_pid();
    let len = backend.capabilities().memory_bytes / 8 * 2;
    match backend.create_buffer(&BufferDesc::new("too large", DataType::U64, len)) {
        Err(BackendError::OutOfMemory { .. } | BackendError::InvalidArgument { .. }) => {}
        Err(error) => return Err(describe(&error)),
        Ok(_) => return Err(format!("{len} elements were allocated")),
    }
    serve(&backend, &program, 7)?;
    if backend.worker_pid() == pid { Ok(()) } else { Err("the worker died of it".to_owned()) }
}
