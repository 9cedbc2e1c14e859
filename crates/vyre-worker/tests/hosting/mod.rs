//! What the tests of isolated backends share: what their executable can host, programs, and a main.

#![allow(dead_code, unreachable_pub, reason = "each test uses what it needs")]

mod stubborn;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal, kill_process};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{BackendError, BufferDesc, DispatchConfig, VyreBackend};
use vyre_foundation::{DataType, ValidatedProgram, text, validate};
use vyre_worker::sandbox::Sandbox;
use vyre_worker::{IsolatedBackend, IsolatedOptions, Registry};

pub const WAIT: Duration = Duration::from_secs(30);

/// `data[i] = data[i] * 2`.
pub const DOUBLE: &str = "\
program double kernel workgroup(64, 1, 1)
buffer data: global u32 read_write min 0
entry {
  let i: u32 = global_id.x;
  data[i] = data[i] * 2u32;
}
";

/// Counts to a number that is never reached.
pub const ENDLESS: &str = "\
program endless kernel workgroup(1, 1, 1)
buffer data: global u32 read_write min 0
entry {
  while true {
    data[0u32] = data[0u32] + 1u32;
  }
}
";

pub fn registry() -> Registry {
    Registry::new()
        .backend("cpu", |config| {
            let threads = usize::from(config.first().copied().unwrap_or(2));
            Ok(Arc::new(CpuBackend::with_config(
                CpuConfig::default().threads(threads).memory_bytes(64 << 20),
            )))
        })
        .backend("stubborn", |_| Ok(Arc::new(stubborn::Stubborn::new(CpuBackend::new()))))
        .backend("none", |_| Err(BackendError::Unsupported { what: "this".into(), remedy: "that".into() }))
        .backend("panics", |_| panic!("the very words"))
        .backend("short-lived", short_lived)
        .kernel("reverse", |request, response| {
            let room = response.reserve(request.len())?;
            room.iter_mut().zip(request.iter().rev()).for_each(|(to, from)| *to = *from);
            Ok(())
        })
}

/// The configuration of a backend that is ended by a signal as it is opened, the first few times.
pub fn short_life(by: Signal, times: u8, counted_in: &Path) -> Vec<u8> {
    [&[by.as_raw() as u8, times], counted_in.as_os_str().as_bytes()].concat()
}

fn short_lived(config: &[u8]) -> Result<Arc<dyn VyreBackend>, BackendError> {
    let [by, times, folder @ ..] = config else { panic!("{config:?}") };
    let folder = Path::new(OsStr::from_bytes(folder));
    let before = std::fs::read_dir(folder).expect("a folder").count();
    std::fs::write(folder.join(before.to_string()), b"").expect("counted");
    if before < usize::from(*times) {
        signal(std::process::id(), Signal::from_named_raw((*by).into()).expect("a signal"));
        std::thread::sleep(WAIT);
    }
    Ok(Arc::new(CpuBackend::new()))
}

pub fn options() -> IsolatedOptions {
    IsolatedOptions::new("cpu").arena_bytes(1 << 20).sandbox(Sandbox::Strict)
}

pub fn open() -> IsolatedBackend {
    IsolatedBackend::open(options()).expect("a worker")
}

pub fn program(source: &str) -> ValidatedProgram {
    validate(text::parse(source).expect("parses")).expect("valid")
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    // It may have died by itself.
    let _ = kill_process(pid, signal);
}

pub fn kill(backend: &IsolatedBackend) {
    signal(backend.worker_pid().expect("a process"), Signal::KILL);
}

pub fn doubles(backend: &dyn VyreBackend, words: u32) {
    let data =
        backend.create_buffer(&BufferDesc::new("data", DataType::U32, words.into())).expect("a buffer");
    let bytes: Vec<u8> = (0..words).flat_map(u32::to_le_bytes).collect();
    backend.write_buffer(data, 0, &bytes).expect("written");
    let pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    let config = DispatchConfig::new([words.div_ceil(64), 1, 1]);
    let outcome = pipeline.dispatch(&[data.binding()], &config).expect("dispatched");
    assert_eq!(outcome.trap, None);
    let mut doubled = vec![0; bytes.len()];
    backend.read_buffer(data, 0, &mut doubled).expect("read");
    let expected: Vec<u8> = (0..words).flat_map(|word| (word * 2).to_le_bytes()).collect();
    assert!(doubled == expected, "{words} words");
    backend.destroy_buffer(data).expect("destroyed");
    assert!(matches!(backend.read_buffer(data, 0, &mut doubled), Err(BackendError::StaleHandle { .. })));
}

/// Runs tests whose executable is its own worker.
pub fn run(tests: &[(&'static str, fn())]) {
    vyre_worker::init(&registry());
    let trials = tests.iter().map(|&(name, test)| {
        Trial::test(name, move || std::panic::catch_unwind(test).map_err(|_| Failed::from("see above")))
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Functions by their names.
#[macro_export]
macro_rules! tests {
    ($($test:ident),* $(,)?) => { &[$((stringify!($test), $test as fn())),*] };
}
