//! The CPU backend in a worker: it does what it does in process, and its death costs what the contract says.

mod hosting;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hosting::{DOUBLE, ENDLESS, WAIT, doubles, kill, open, options, program, short_life};
use rustix::process::Signal;
use vyre_driver::{BackendError, BufferDesc, DispatchConfig, Generation, LossCause, VyreBackend};
use vyre_foundation::DataType;
use vyre_runtime::{Megakernel, OpcodeHandler, SlotDescriptor, conformance};
use vyre_worker::server::{KernelServer, KernelSpec, RunOptions, ServerOptions};
use vyre_worker::{IsolatedBackend, IsolatedOptions, StartError};

fn a_dispatch_moves_bytes_through_an_arena_smaller_than_they_are() {
    let backend = open();
    assert_eq!(backend.identity().name, "cpu");
    assert!(backend.capabilities().persistent);
    for words in [1, 64, 1000, 1 << 20] {
        doubles(&backend, words);
    }
}

fn errors_cross_the_socket_as_what_they_are_and_the_worker_lives() {
    let backend = open();
    let pid = backend.worker_pid();
    let large = BufferDesc::new("large", DataType::U32, 1 << 30);
    match backend.create_buffer(&large) {
        Err(BackendError::OutOfMemory { requested, available, .. }) => {
            assert_eq!((requested, available), (4 << 30, 64 << 20));
        }
        other => panic!("{other:?}"),
    }
    let pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect("a buffer");
    let refused = pipeline.dispatch(&[data.binding()], &DispatchConfig::new([0, 1, 1]));
    assert!(matches!(refused, Err(BackendError::InvalidArgument { argument: "grid", .. })), "{refused:?}");
    let refused = pipeline.dispatch(&[], &DispatchConfig::new([1, 1, 1]));
    assert!(
        matches!(refused, Err(BackendError::InvalidArgument { argument: "bindings", .. })),
        "{refused:?}"
    );
    let endless = backend.compile(&program(ENDLESS)).expect("compiled");
    let mut config = DispatchConfig::new([1, 1, 1]);
    config.deadline = Some(Duration::from_millis(20));
    let late = endless.dispatch(&[data.binding()], &config);
    assert!(matches!(late, Err(BackendError::Deadline { .. })), "{late:?}");
    doubles(&backend, 100);
    assert_eq!(backend.worker_pid(), pid);
}

fn rows_are_dispatched_by_one_request_however_many_they_are() {
    let backend = open();
    let pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 64)).expect("a buffer");
    backend.write_buffer(data, 0, &1_u32.to_le_bytes().repeat(64)).expect("written");
    let row = [data.binding()];
    // Neither the request nor the answer fits a frame.
    let rows = vec![row.as_slice(); 20_000];
    let outcomes = pipeline.dispatch_rows(&rows, &DispatchConfig::new([1, 1, 1])).expect("dispatched");
    assert_eq!(outcomes.len(), rows.len());
    assert!(pipeline.dispatch_rows(&[], &DispatchConfig::new([1, 1, 1])).expect("nothing").is_empty());
    let rows = [row.as_slice(); 3];
    backend.write_buffer(data, 0, &1_u32.to_le_bytes().repeat(64)).expect("written");
    pipeline.dispatch_rows(&rows, &DispatchConfig::new([1, 1, 1])).expect("dispatched");
    let mut word = [0; 4];
    backend.read_buffer(data, 4, &mut word).expect("read");
    assert_eq!(u32::from_le_bytes(word), 8);
}

fn a_session_runs_in_the_worker() {
    let backend: Arc<dyn VyreBackend> = Arc::new(open());
    let megakernel = Megakernel::builder(backend)
        .slots(256)
        .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()
        .expect("a megakernel");
    let session = megakernel.start().expect("a session");
    for number in 0..10_000 {
        let ticket = session.submit(SlotDescriptor::new(0x40).args([number])).expect("submitted");
        let done = session.wait(&ticket, WAIT).expect("done");
        assert_eq!(done.result(), u64::from(number) + 1);
    }
    session.stop().expect("stopped");
}

fn what_is_expected_of_every_backend() {
    let backend: Arc<dyn VyreBackend> = Arc::new(open());
    conformance::run_batches(&backend).unwrap_or_else(|difference| panic!("{difference}: {difference:?}"));
    conformance::run_resident_data(&backend).unwrap_or_else(|difference| panic!("{difference:?}"));
    conformance::run_io(&backend).unwrap_or_else(|difference| panic!("{difference}: {difference:?}"));
    let vectors = conformance::run_sessions(&backend).unwrap_or_else(|difference| panic!("{difference:?}"));
    assert_eq!(vectors, conformance::VECTORS.len());
}

fn handlers_change_under_producers() {
    let backend: Arc<dyn VyreBackend> = Arc::new(open());
    let changes = conformance::run_changes(&backend, 30, Duration::from_millis(10));
    assert_eq!(changes.unwrap_or_else(|difference| panic!("{difference:?}")).len(), 30);
}

fn a_killed_worker_is_a_loss_for_every_caller_until_it_is_recovered() {
    let backend = open();
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect("a buffer");
    let pipeline = backend.compile(&program(ENDLESS)).expect("compiled");
    let config = DispatchConfig::new([1, 1, 1]);
    std::thread::scope(|scope| {
        let waiting: Vec<_> =
            (0..4).map(|_| scope.spawn(|| pipeline.dispatch(&[data.binding()], &config))).collect();
        while backend.read_buffer(data, 0, &mut [0; 4]).is_err() {}
        kill(&backend);
        for caller in waiting {
            let lost = caller.join().expect("no panic").expect_err("killed");
            let loss = lost.loss().unwrap_or_else(|| panic!("{lost:?}"));
            assert_eq!(loss.cause, LossCause::Killed, "{loss}");
            assert!(loss.reason.contains("SIGKILL"), "{loss}");
        }
    });
    let lost = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect_err("lost");
    assert!(lost.is_device_loss());
    let recovered: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| backend.recover())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic").expect("recovered")).collect()
    });
    assert_eq!(recovered, [Generation(2); 8]);
    assert_eq!(pipeline.generation(), Generation(1));
    for stale in [
        backend.read_buffer(data, 0, &mut [0; 4]).expect_err("stale"),
        pipeline.dispatch(&[data.binding()], &config).expect_err("stale"),
    ] {
        assert!(matches!(stale, BackendError::StaleHandle { .. }), "{stale:?}");
    }
    doubles(&backend, 100);
}

fn a_worker_that_cannot_start_says_why() {
    let why = |options: IsolatedOptions| {
        let error = IsolatedBackend::open(options).err().expect("nothing to host");
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        (format!("{error}: {cause}"), error)
    };
    let (text, error) = why(IsolatedOptions::new("gpu"));
    assert!(matches!(error, StartError::Refused(_)) && text.contains("cpu, none, panics"), "{text}");
    let (text, error) = why(IsolatedOptions::new("none"));
    assert!(matches!(error, StartError::Refused(_)) && text.contains("unsupported: this"), "{text}");
    let (text, error) = why(IsolatedOptions::new("panics"));
    assert!(matches!(error, StartError::Died(_)) && text.contains("the very words"), "{text}");
    let (text, error) = why(options().program("/nowhere/at/all"));
    assert!(matches!(error, StartError::Process(_)) && text.contains("/nowhere/at/all"), "{text}");
    let (text, error) = why(options().program("/bin/false"));
    assert!(matches!(error, StartError::Died(_)) && text.contains("vyre_worker::init"), "{text}");
    let started = Instant::now();
    let slow = options().program("/usr/bin/yes").start_deadline(Duration::from_millis(300));
    let (text, error) = why(slow);
    assert!(matches!(error, StartError::Slow { .. }) && text.contains("start_deadline"), "{text}");
    assert!(started.elapsed() < WAIT);
}

fn a_worker_that_is_killed_while_it_starts_is_started_again() {
    let starts = |by, times| {
        let folder = tempfile::tempdir().expect("a folder");
        let options = IsolatedOptions::new("short-lived").config(short_life(by, times, folder.path()));
        let cause = match IsolatedBackend::open(options) {
            Ok(backend) => {
                doubles(&backend, 10);
                None
            }
            Err(StartError::Died(loss)) => Some(loss.cause),
            Err(other) => panic!("{other:?}"),
        };
        (cause, std::fs::read_dir(folder.path()).expect("a folder").count())
    };
    assert_eq!(starts(Signal::KILL, 2), (None, 3));
    assert_eq!(starts(Signal::KILL, 9), (Some(LossCause::Killed), 3));
    // What it does itself it would do again.
    assert_eq!(starts(Signal::ABORT, 9), (Some(LossCause::Fault), 1));
}

fn a_registered_kernel_is_served_by_this_executable() {
    let server = KernelServer::new(ServerOptions::default()).expect("a server");
    let mut response = [0; 8];
    let reverse = KernelSpec::reexec("reverse");
    let bytes = server.run_into(&reverse, b"abc", &mut response, RunOptions::default()).expect("served");
    assert_eq!(&response[..bytes], b"cba");
    let unknown = server.run_into(&KernelSpec::reexec("none"), b"", &mut response, RunOptions::default());
    assert!(format!("{unknown:?}").contains("kernels reverse"), "{unknown:?}");
}

fn main() {
    hosting::run(tests![
        a_dispatch_moves_bytes_through_an_arena_smaller_than_they_are,
        errors_cross_the_socket_as_what_they_are_and_the_worker_lives,
        rows_are_dispatched_by_one_request_however_many_they_are,
        a_session_runs_in_the_worker,
        what_is_expected_of_every_backend,
        handlers_change_under_producers,
        a_worker_that_is_killed_while_it_starts_is_started_again,
        a_killed_worker_is_a_loss_for_every_caller_until_it_is_recovered,
        a_worker_that_cannot_start_says_why,
        a_registered_kernel_is_served_by_this_executable,
    ]);
}
