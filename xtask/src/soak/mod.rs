//! `cargo xtask soak`: a session in a worker under everything at once, for as long as one likes.
//!
//! Four producers submit items of all kinds and check every answer, while handlers are changed, buffers uploaded, and
//! the worker is lost in every way that `test-gpu` knows. Whatever is wrong, lost, answered twice or not at all ends in
//! status 1, and so does memory that grows. `load` is a producer, `ledger` what may be answered, `disturb` what goes on
//! around them, `held` what is measured of memory.

mod disturb;
mod handlers;
mod held;
mod ledger;
mod load;
mod products;
mod report;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum, value_parser};
use vyre::worker::IsolatedBackend;
use vyre_driver::{Fault, VyreBackend};
use vyre_hip::HipBackend;
use vyre_runtime::conformance::{GEMM_BINDINGS, gemm_handler};
use vyre_runtime::io_service::IoResource;
use vyre_runtime::{Megakernel, PersistentSession, SessionOptions, TenantConfig};

use self::disturb::{Striker, change, until, upload};
use self::handlers::{LOADED, LOADED_BYTES, SCRATCH, SCRATCH_WORDS, TABLE, table};
use self::held::Held;
use self::ledger::Ledger;
use self::load::{LIMITED, PRODUCERS, Producer, QUOTA, RESOURCE};
use self::products::{ELEMENTS, Products};
use self::report::{Report, Told};
use crate::test_gpu::isolated::{self, BLOWS, Blow};

/// Slots of each ring.
const SLOTS: u32 = 1024;
/// Rings, by priority.
const RINGS: u32 = 3;
/// Where in this program's file items read: code has few zeros.
const FILE_OFFSET: u64 = 1 << 20;
/// Between two looks at what is held.
const SAMPLES: Duration = Duration::from_secs(10);

/// Where the worker computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Where {
    Cpu,
    /// The first GPU.
    Hip,
}

/// How to soak.
#[derive(Args)]
pub(crate) struct Options {
    /// What the worker hosts.
    #[arg(long, value_enum, default_value = "cpu")]
    backend: Where,
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 8.0)]
    minutes: f64,
    /// Seconds between two losses of the worker, of one kind after the other.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    fault_every: f64,
    /// Seconds between two changes of handlers.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    change_every: f64,
    /// Instead of all this, lose the worker so often in each way, one loss as soon as the last is over.
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    faults: Option<u32>,
    /// Only the losses whose names contain this.
    #[arg(long, value_name = "FILTER", default_value = "")]
    only: String,
    /// Keep a warm spare worker.
    #[arg(long)]
    spare: bool,
    /// Write all that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Soaks. The exit status is 0 if nothing was wrong.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let ordinal = (options.backend == Where::Hip).then_some(0);
    let blows: Vec<(&'static str, Blow)> = BLOWS
        .into_iter()
        .filter(|(name, blow)| name.contains(&options.only) && (ordinal.is_some() || !blow.is_of_device()))
        .collect();
    if blows.is_empty() {
        anyhow::bail!("no loss on this backend has a name that contains `{}`", options.only);
    }
    let backend = Arc::new(isolated::open(ordinal, options.spare).map_err(|error| anyhow!(error))?);
    let device = ordinal.map(HipBackend::open).transpose().context("looking at the device's memory")?;
    let ledger = Arc::new(Ledger::default());
    let (products, file) = (Products::new(), File::open(std::env::current_exe()?)?);
    let mut content = vec![0; LOADED_BYTES as usize];
    file.read_exact_at(&mut content, FILE_OFFSET).context("reading this program")?;
    let session = start(&backend, &ledger, &products)?;
    let resource = IoResource::new(file, FILE_OFFSET..FILE_OFFSET + u64::from(LOADED_BYTES), LOADED, 0)?;
    session.register_resource(0, RESOURCE, resource)?;

    let around = Around { session: &session, backend: &backend, ledger: &ledger, device: device.as_ref() };
    let told = std::thread::scope(|scope| {
        let (session, ledger, content, products) = (&session, &*ledger, content.as_slice(), &products);
        for number in 0..PRODUCERS {
            let producer = Producer::new(session, ledger, products, content, number);
            scope.spawn(move || ended(ledger, producer.run()));
        }
        around.run(options, &blows)
    });
    let report = Report::new(told, &session, &ledger);
    println!("{report}");
    if let Some(path) = &options.json {
        report.write(path)?;
    }
    Ok(if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a thread has to tell. One that fails ends the others.
fn ended<T>(ledger: &Ledger, outcome: Result<T>) -> Option<T> {
    let failed = outcome.inspect_err(|error| {
        ledger.problem(format_args!("{error:#}"));
        ledger.finish();
    });
    failed.ok()
}

/// All that is not a producer.
struct Around<'a> {
    session: &'a PersistentSession,
    backend: &'a IsolatedBackend,
    ledger: &'a Ledger,
    device: Option<&'a HipBackend>,
}

impl Around<'_> {
    /// Disturbs the producers until it is over, and ends them.
    fn run(&self, options: &Options, blows: &[(&'static str, Blow)]) -> Told {
        let &Around { session, backend, ledger, device } = self;
        let (calm, started) = (Mutex::new(()), Instant::now());
        let striker = Striker { session, backend, ledger, calm: &calm };
        let minutes = Duration::from_secs_f64(options.minutes * 60.0);
        std::thread::scope(|scope| {
            let samples = scope.spawn(|| ended(ledger, samples(started, backend, ledger, device, &calm)));
            let mut changes = None;
            let mut uploads = None;
            let losses = match options.faults {
                Some(times) => {
                    let each = blows.iter().flat_map(|blow| std::iter::repeat_n(blow, times as usize));
                    ended(ledger, each.map(|&(kind, blow)| striker.strike(kind, blow)).collect())
                }
                None => {
                    let every = Duration::from_secs_f64(options.change_every);
                    changes = Some(scope.spawn(move || ended(ledger, change(session, ledger, every))));
                    uploads = Some(scope.spawn(move || ended(ledger, upload(session, ledger))));
                    let every = Duration::from_secs_f64(options.fault_every);
                    ended(ledger, striker.rotate(blows, every, started + minutes))
                }
            };
            ledger.finish();
            Told {
                seconds: started.elapsed().as_secs_f64(),
                changes: told(changes).unwrap_or_default(),
                uploads: told(uploads).unwrap_or_default(),
                losses: losses.unwrap_or_default(),
                samples: told(Some(samples)).unwrap_or_default(),
            }
        })
    }
}

/// What a thread that ended well has told.
fn told<T>(thread: Option<ScopedJoinHandle<'_, Option<T>>>) -> Option<T> {
    thread?.join().ok().flatten()
}

/// Looks again and again at what is held, while nothing is being recovered.
fn samples(
    started: Instant,
    backend: &IsolatedBackend,
    ledger: &Ledger,
    device: Option<&HipBackend>,
    calm: &Mutex<()>,
) -> Result<Vec<Held>> {
    let mut samples = Vec::new();
    while until(ledger, started + SAMPLES * (samples.len() as u32 + 1)) {
        let _calm = calm.lock();
        samples.push(Held::now(started.elapsed(), backend.worker_pid(), device)?);
    }
    Ok(samples)
}

fn start(
    backend: &Arc<IsolatedBackend>,
    ledger: &Arc<Ledger>,
    products: &Products,
) -> Result<PersistentSession> {
    let [a, b, c] = GEMM_BINDINGS;
    let megakernel = Megakernel::builder(Arc::clone(backend) as Arc<dyn VyreBackend>)
        .workgroup_size(64)
        .handlers(handlers::handlers())
        .handler(gemm_handler())
        .tenant(0, TenantConfig::all())
        .tenant(LIMITED, TenantConfig::all().quota(QUOTA))
        .build()?;
    let told = Arc::clone(ledger);
    let scratch = u64::from(PRODUCERS * SCRATCH_WORDS);
    let options = SessionOptions::new()
        .slots(SLOTS)
        .priority_rings(RINGS)
        .bind_bytes(TABLE, table(0))
        .bind_zeroed(LOADED, LOADED_BYTES.into())
        .bind_zeroed(SCRATCH, scratch)
        .bind_bytes(a, products.a.clone())
        .bind_bytes(b, products.b.clone())
        .bind_zeroed(c, u64::from(PRODUCERS * ELEMENTS))
        .on_detached_fault(move |position, completion| match completion.as_fault() {
            // A lookahead item that was cancelled.
            Some(Fault::Abandoned) => {}
            Some(Fault::DeviceLost) if told.losses.begun() > 0 => {
                told.detached_faults.fetch_add(1, Ordering::Relaxed);
            }
            fault => told.problem(format_args!("detached item {position} ended in {fault:?}")),
        })
        // What is lost is not missed: items that are to find it ask whether there was a loss.
        .restore(move |restore| restore.upload(SCRATCH, 0, &vec![0; scratch as usize * 4]));
    Ok(megakernel.start_with(options)?)
}
