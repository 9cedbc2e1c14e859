//! What becomes of a backend whose worker dies again and again, falls silent, or cannot be started.

mod hosting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hosting::{DOUBLE, ENDLESS, WAIT, doubles, kill, options, program, signal};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};
use vyre_cpu::CpuBackend;
use vyre_driver::{BackendError, BufferDesc, DispatchConfig, Generation, LossCause, VyreBackend};
use vyre_foundation::DataType;
use vyre_runtime::{
    Megakernel, MegakernelRecoveryPolicy, OpcodeHandler, PackedOpDescriptor, PersistentSession,
    SessionOptions, SlotDescriptor,
};
use vyre_worker::{IsolatedBackend, IsolatedOptions};

fn open(options: IsolatedOptions) -> IsolatedBackend {
    IsolatedBackend::open(options).expect("a worker")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < WAIT, "{what}");
        std::thread::yield_now();
    }
}

/// The loss that a call answers with.
fn loss(backend: &IsolatedBackend) -> vyre_driver::Loss {
    let lost = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8));
    lost.expect_err("lost").loss().expect("a loss").clone()
}

fn until_lost(backend: &IsolatedBackend) {
    until("not lost", || backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).is_err());
}

/// Twice: the first one only takes the standard library's handler of stack overflows away.
fn segv(pid: u32) {
    signal(pid, Signal::SEGV);
    std::thread::sleep(Duration::from_millis(20));
    signal(pid, Signal::SEGV);
}

fn crash(backend: &IsolatedBackend) {
    segv(backend.worker_pid().expect("a process"));
    until_lost(backend);
    let loss = loss(backend);
    assert!(loss.cause == LossCause::Fault && loss.reason.contains("SIGSEGV"), "{loss:?}");
}

fn crashes_past_the_budget_are_final_and_kills_do_not_count() {
    let backend = open(options().crash_budget(2, Duration::from_secs(3600)));
    let mut generation = 1;
    for _ in 0..2 {
        for _ in 0..3 {
            kill(&backend);
            until_lost(&backend);
            generation += 1;
            assert_eq!(backend.recover().expect("recovered"), Generation(generation));
        }
        crash(&backend);
        generation += 1;
        assert_eq!(backend.recover().expect("recovered"), Generation(generation));
        doubles(&backend, 10);
    }
    crash(&backend);
    for _ in 0..3 {
        let error = backend.recover().expect_err("spent");
        let loss = error.loss().expect("a loss");
        assert!(loss.cause == LossCause::GivenUp && loss.reason.contains("SIGSEGV"), "{loss:?}");
        assert!(!error.is_retryable());
    }
    assert_eq!(loss(&backend).cause, LossCause::GivenUp);
    assert_eq!(backend.generation(), Generation(generation));
}

fn crashes_are_forgiven_with_time() {
    let backend = open(options().crash_budget(0, Duration::ZERO));
    for generation in 2..5 {
        crash(&backend);
        assert_eq!(backend.recover().expect("recovered"), Generation(generation));
    }
}

fn the_fallback_takes_over_only_when_the_budget_is_spent() {
    let fallback = Arc::new(CpuBackend::new());
    let backend = open(options().crash_budget(0, WAIT).fallback(fallback));
    kill(&backend);
    until_lost(&backend);
    backend.recover().expect("recovered");
    assert!(backend.worker_pid().is_some());
    let stale = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect("a buffer");
    crash(&backend);
    assert_eq!(backend.recover().expect("the fallback"), Generation(3));
    assert_eq!(backend.worker_pid(), None);
    let refused = backend.read_buffer(stale, 0, &mut [0; 4]);
    assert!(matches!(refused, Err(BackendError::StaleHandle { .. })), "{refused:?}");
    doubles(&backend, 1000);
    let backend: Arc<dyn VyreBackend> = Arc::new(backend);
    vyre_runtime::conformance::run_sessions(&backend).expect("conforms");
}

fn a_stopped_worker_is_unresponsive_and_replaced() {
    let backend = open(options().silence(Duration::from_millis(700)));
    let pipeline = backend.compile(&program(ENDLESS)).expect("compiled");
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect("a buffer");
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| pipeline.dispatch(&[data.binding()], &DispatchConfig::new([1, 1, 1])));
        signal(backend.worker_pid().expect("a process"), Signal::STOP);
        let lost = caller.join().expect("no panic").expect_err("silent");
        let loss = lost.loss().unwrap_or_else(|| panic!("{lost:?}"));
        assert!(loss.cause == LossCause::Unresponsive && loss.reason.contains("no sign of life"), "{loss:?}");
    });
    backend.recover().expect("recovered");
    doubles(&backend, 10);
}

fn a_long_dispatch_is_no_silence_but_one_past_deadline_and_grace_is() {
    let options = options().silence(Duration::from_millis(700)).grace(Duration::from_millis(200));
    let backend = open(options);
    let pipeline = backend.compile(&program(ENDLESS)).expect("compiled");
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect("a buffer");
    let mut config = DispatchConfig::new([1, 1, 1]);
    config.deadline = Some(Duration::from_millis(1500));
    let late = pipeline.dispatch(&[data.binding()], &config);
    assert!(matches!(late, Err(BackendError::Deadline { .. })), "{late:?}");
    signal(backend.worker_pid().expect("a process"), Signal::STOP);
    until_lost(&backend);
    assert_eq!(loss(&backend).cause, LossCause::Unresponsive);
    backend.recover().expect("recovered");
}

fn a_dispatch_that_needs_a_lane_of_a_stopped_worker_meets_its_own_deadline() {
    let backend = open(options().silence(Duration::from_secs(5)).grace(Duration::from_millis(100)));
    let pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 64)).expect("a buffer");
    let mut config = DispatchConfig::new([1, 1, 1]);
    config.deadline = Some(Duration::from_millis(200));
    let asking = AtomicU32::new(0);
    signal(backend.worker_pid().expect("a process"), Signal::STOP);
    std::thread::scope(|scope| {
        // They have a minute, and take all lanes that there are.
        for _ in 0..4 {
            scope.spawn(|| {
                asking.fetch_add(1, Ordering::SeqCst);
                drop(backend.create_buffer(&BufferDesc::new("other", DataType::U32, 8)));
            });
        }
        until("nobody asks", || asking.load(Ordering::SeqCst) == 4);
        (0..1000).for_each(|_| std::thread::yield_now());
        let lost = pipeline.dispatch(&[data.binding()], &config).expect_err("stopped");
        let loss = lost.loss().unwrap_or_else(|| panic!("{lost:?}"));
        assert!(loss.cause == LossCause::Unresponsive && loss.reason.contains("did not answer"), "{loss:?}");
    });
}

fn a_spare_has_compiled_everything_before_it_is_needed() {
    let backend = open(options().spare(true).silence(WAIT).compile_deadline(Duration::from_secs(5)));
    let mut pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    for generation in 2..6 {
        until("no spare", || backend.spare_pid().is_some());
        let spare = backend.spare_pid().expect("a spare");
        assert_ne!(backend.worker_pid(), Some(spare));
        kill(&backend);
        until_lost(&backend);
        assert_eq!(backend.recover().expect("recovered"), Generation(generation));
        assert_eq!(backend.worker_pid(), Some(spare));
        let replacement = backend.last_replacement().expect("it was replaced");
        assert!(replacement.from_spare && replacement.generation == Generation(generation));
        assert_eq!(replacement.loss.cause, LossCause::Killed);
        // It cannot compile now, and need not.
        signal(spare, Signal::STOP);
        pipeline = backend.compile(&program(DOUBLE)).expect("compiled long ago");
        signal(spare, Signal::CONT);
        doubles(&backend, 100);
    }
    drop(pipeline);
    // A spare that is killed is no loss, and is not taken.
    until("no spare", || backend.spare_pid().is_some());
    signal(backend.spare_pid().expect("a spare"), Signal::KILL);
    doubles(&backend, 100);
    kill(&backend);
    until_lost(&backend);
    backend.recover().expect("recovered, whichever it was");
    doubles(&backend, 100);
}

fn a_stopped_spare_is_not_waited_for() {
    let backend = open(options().spare(true).silence(Duration::from_millis(700)).call_deadline(2 * WAIT));
    until("no spare", || backend.spare_pid().is_some());
    let spare = backend.spare_pid().expect("a spare");
    signal(spare, Signal::STOP);
    kill(&backend);
    until_lost(&backend);
    assert_eq!(backend.recover().expect("recovered"), Generation(2));
    let replacement = backend.last_replacement().expect("it was replaced");
    assert!(!replacement.from_spare && replacement.ready_after < WAIT, "{replacement:?}");
    until("the spare lives", || !std::path::Path::new(&format!("/proc/{spare}")).exists());
    doubles(&backend, 10);
}

fn a_spare_that_dies_is_replaced_soon() {
    let backend = open(options().spare(true));
    let started = Instant::now();
    let mut pipelines = Vec::new();
    for round in 0..12 {
        until("no spare", || backend.spare_pid().is_some());
        // Asked to compile something, so that it did not die at once, which would be waited for longer.
        let source = DOUBLE.replace("2u32", &format!("{round}u32"));
        pipelines.push(backend.compile(&program(&source)).expect("compiled"));
        until("no spare", || backend.spare_pid().is_some());
        signal(backend.spare_pid().expect("a spare"), Signal::KILL);
        until("not noticed", || backend.spare_pid().is_none());
    }
    // Replaced when it is looked at every five seconds, they would take twice as long.
    assert!(started.elapsed() < WAIT, "{:?}", started.elapsed());
}

fn a_spare_ends_when_it_would_never_be_taken() {
    let given_up = options().spare(true).crash_budget(0, WAIT);
    let fallback = given_up.clone().fallback(Arc::new(CpuBackend::new()));
    for (options, goes_on) in [(given_up, false), (fallback, true)] {
        let backend = open(options);
        until("no spare", || backend.spare_pid().is_some());
        let spare = backend.spare_pid().expect("a spare");
        crash(&backend);
        assert_eq!(backend.recover().is_ok(), goes_on);
        until("the spare lives", || !std::path::Path::new(&format!("/proc/{spare}")).exists());
        for round in 0..20 {
            // Each has the spare's thread look whether there is something to do.
            let source = DOUBLE.replace("2u32", &format!("{round}u32"));
            assert_eq!(backend.compile(&program(&source)).is_ok(), goes_on);
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(backend.spare_pid(), None);
        }
    }
}

fn a_kernel_that_does_not_leave_is_ended_with_its_worker() {
    let backend = Arc::new(open(options().crash_budget(100, WAIT)));
    let stubborn = IsolatedBackend::open(IsolatedOptions::new("stubborn")).expect("a worker");
    let stubborn = Arc::new(stubborn);
    for backend in [backend, stubborn] {
        let megakernel = Megakernel::builder(Arc::clone(&backend) as Arc<dyn VyreBackend>)
            .handler(OpcodeHandler::new(0x40, "endless", |h| {
                h.while_(true, |h| {
                    h.let_("x", h.arg(0));
                });
                h.complete(0_u32);
            }))
            .build()
            .expect("a megakernel");
        let options = SessionOptions::new().slots(64).stop_deadline(Duration::from_millis(100));
        let session = megakernel.start_with(options).expect("a session");
        let ticket = session.submit(SlotDescriptor::new(0x40)).expect("submitted");
        assert!(session.stop().is_err());
        let answered = session.wait(&ticket, WAIT);
        assert!(answered.is_err(), "{answered:?}");
        drop(session);
        if backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).is_err() {
            let loss = loss(&backend);
            assert!(loss.cause == LossCause::Unresponsive && loss.reason.contains("reaped"), "{loss:?}");
            backend.recover().expect("recovered");
            assert_eq!(backend.identity().name, "stubborn");
        } else {
            assert_eq!(backend.identity().name, "cpu");
        }
        doubles(backend.as_ref(), 100);
    }
}

fn session(backend: Arc<dyn VyreBackend>) -> PersistentSession {
    let megakernel = Megakernel::builder(backend)
        .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)).replayable(true))
        .handler(OpcodeHandler::new(0x41, "traps", |h| h.trap(1)))
        .build()
        .expect("a megakernel");
    megakernel.start_with(SessionOptions::new().slots(64)).expect("a session")
}

fn a_session_goes_on_in_the_next_worker() {
    let backend = Arc::new(open(options().crash_budget(100, WAIT).silence(Duration::from_millis(700))));
    let session = session(Arc::clone(&backend) as _);
    let signals = [Signal::KILL, Signal::ILL, Signal::ABORT, Signal::STOP, Signal::TERM];
    for (round, by) in (0_u64..).zip(signals) {
        let tickets: Vec<_> = (0..50)
            .map(|n| (n, session.submit(SlotDescriptor::new(0x40).args([n])).expect("submitted")))
            .collect();
        signal(backend.worker_pid().expect("a process"), by);
        for (number, ticket) in tickets {
            let done = session.wait(&ticket, WAIT).unwrap_or_else(|error| panic!("{by:?}: {error:?}"));
            assert_eq!(done.result(), u64::from(number) + 1);
        }
        until("not recovered", || session.telemetry().recoveries > round);
    }
    session.stop().expect("stopped");
}

fn a_session_goes_on_in_the_fallback_and_says_so() {
    let options =
        IsolatedOptions::new("stubborn").crash_budget(1, WAIT).fallback(Arc::new(CpuBackend::new()));
    let backend = Arc::new(open(options));
    let session = session(Arc::clone(&backend) as _);
    for (losses, on) in [(1, "stubborn"), (2, "cpu")] {
        segv(backend.worker_pid().expect("a process"));
        until("not recovered", || session.last_recovery().is_some_and(|report| report.number == losses));
        let report = session.last_recovery().expect("a report");
        assert_eq!(report.rebuilt_on.as_ref().map(|backend| backend.name.as_str()), Some(on), "{report:?}");
        assert_eq!(backend.identity().name, on);
        let replacement = backend.last_replacement().expect("it was replaced");
        assert_eq!(replacement.fell_back, on == "cpu");
        let ticket = session.submit(SlotDescriptor::new(0x40).args([7])).expect("submitted");
        assert_eq!(session.wait(&ticket, WAIT).expect("an answer").result(), 8);
    }
}

fn what_ended_an_item_is_in_its_error() {
    let backend = Arc::new(open(options().crash_budget(0, WAIT)));
    let megakernel = Megakernel::builder(Arc::clone(&backend) as Arc<dyn VyreBackend>)
        .handler(OpcodeHandler::new(0x40, "endless", |h| {
            h.while_(true, |h| {
                h.let_("x", h.arg(0));
            });
            h.complete(0_u32);
        }))
        .build()
        .expect("a megakernel");
    let options = SessionOptions::new().slots(64).stop_deadline(Duration::from_millis(100));
    let session = megakernel.start_with(options).expect("a session");
    let lost = session.submit(SlotDescriptor::new(0x40)).expect("submitted");
    let pid = backend.worker_pid().expect("a process");
    kill(&backend);
    let text = session.wait(&lost, WAIT).expect_err("lost").to_string();
    let named = text.contains("SIGKILL") && text.contains(&pid.to_string()) && !text.contains("packed");
    assert!(named, "{text}");
    until("not recovered", || session.last_recovery().is_some_and(|report| report.is_recovered()));

    let given_up = session.submit(SlotDescriptor::new(0x40)).expect("submitted");
    segv(backend.worker_pid().expect("a process"));
    let text = session.wait(&given_up, WAIT).expect_err("lost").to_string();
    assert!(text.contains("SIGSEGV") && !text.contains("packed"), "{text}");
    until("recovered", || session.last_recovery().is_some_and(|report| report.number == 2));
    let closed = session.submit(SlotDescriptor::new(0x40)).expect_err("given up").to_string();
    assert!(closed.contains("for good") && !closed.contains("recover it"), "{closed}");

    let backend: Arc<dyn VyreBackend> = Arc::new(CpuBackend::new());
    let session = self::session(backend);
    let packed = [7, 8].map(|arg| PackedOpDescriptor::new(0x41).args([arg]));
    let packed = SlotDescriptor::packed(&packed).expect("fits");
    let ticket = session.submit(packed).expect("submitted");
    let text = session.wait(&ticket, WAIT).expect_err("traps").to_string();
    assert!(text.contains("operation 0 of a packed slot"), "{text}");
}

fn a_kernel_says_without_being_asked_that_its_worker_is_gone() {
    let backend = Arc::new(open(options()));
    let session = session(Arc::clone(&backend) as _);
    assert_eq!(session.telemetry().recoveries, 0);
    kill(&backend);
    until("not recovered", || session.telemetry().recoveries == 1);
}

fn dropping_the_backend_ends_its_processes() {
    let backend = open(options().spare(true));
    until("no spare", || backend.spare_pid().is_some());
    let pids = [backend.worker_pid(), backend.spare_pid()].map(|pid| pid.expect("a process"));
    let pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    drop(backend);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid} is left");
    }
    let lost = pipeline.dispatch(&[], &DispatchConfig::new([1, 1, 1])).expect_err("closed");
    assert!(lost.is_device_loss(), "{lost:?}");
}

fn dropping_the_backend_waits_for_no_compilation() {
    const NEVER: Duration = Duration::from_secs(3600);
    let backend = open(options().spare(true).silence(NEVER).compile_deadline(NEVER));
    let spare = || backend.spare_pid();
    until("no spare", || spare().is_some());
    let stopped = spare().expect("a spare");
    signal(stopped, Signal::STOP);
    let _pipeline = backend.compile(&program(DOUBLE)).expect("compiled");
    assert_eq!(spare(), None);
    // Its thread asks for the same now, or soon.
    std::thread::sleep(Duration::from_millis(100));
    drop(backend);
    assert!(!std::path::Path::new(&format!("/proc/{stopped}")).exists(), "{stopped} is left");
}

/// Runs a test in a process of its own, because it changes what the whole process may do.
fn alone(name: &str, test: impl FnOnce()) {
    const ALONE: &str = "VYRE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let itself = std::env::current_exe().expect("a path");
    let ran = std::process::Command::new(itself).args(["--exact", name]).env(ALONE, "1").output();
    let ran = ran.expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// No descriptor can be opened while it runs.
fn without_descriptors<R>(run: impl FnOnce() -> R) -> R {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limits }).expect("a lower limit");
    let ran = run();
    setrlimit(Resource::Nofile, limits).expect("the limit as it was");
    ran
}

fn want_of_descriptors_is_no_fault_of_the_worker() {
    alone("want_of_descriptors_is_no_fault_of_the_worker", || {
        let backend = open(options().crash_budget(0, WAIT));
        let pid = backend.worker_pid();
        let pipeline = backend.compile(&program(ENDLESS)).expect("compiled");
        let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 8)).expect("a buffer");
        let mut config = DispatchConfig::new([1, 1, 1]);
        config.deadline = Some(Duration::from_millis(300));
        without_descriptors(|| {
            std::thread::scope(|scope| {
                // There is one lane, and no socket for another: each waits for its turn.
                let callers: Vec<_> =
                    (0..3).map(|_| scope.spawn(|| pipeline.dispatch(&[data.binding()], &config))).collect();
                for caller in callers {
                    let late = caller.join().expect("no panic");
                    assert!(matches!(late, Err(BackendError::Deadline { .. })), "{late:?}");
                }
            });
            doubles(&backend, 10);
        });
        assert_eq!(backend.worker_pid(), pid);
        kill(&backend);
        until_lost(&backend);
        without_descriptors(|| {
            for _ in 0..3 {
                let error = backend.recover().expect_err("nothing to start a worker with");
                let BackendError::Driver { code, text, .. } = &error else { panic!("{error:?}") };
                assert!(*code != 0 && !text.is_empty(), "{error}");
            }
        });
        assert_eq!(backend.recover().expect("recovered"), Generation(2));
        doubles(&backend, 10);
    });
}

fn a_worker_without_descriptors_says_so() {
    let backend = open(options());
    let pid = backend.worker_pid().and_then(|pid| Pid::from_raw(pid as i32));
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum: Some(3) }).expect("a lower limit");
    let session = Megakernel::builder(Arc::new(backend))
        .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)))
        .recovery(MegakernelRecoveryPolicy::Off)
        .build()
        .expect("a megakernel")
        .start_with(SessionOptions::new().slots(64));
    let error = session.map(drop).expect_err("no descriptors for its regions");
    let reason = &error.loss().unwrap_or_else(|| panic!("{error:?}")).reason;
    assert!(reason.contains("code 71") && reason.contains("ulimit -n"), "{reason}");
}

fn main() {
    hosting::run(tests![
        want_of_descriptors_is_no_fault_of_the_worker,
        dropping_the_backend_waits_for_no_compilation,
        crashes_past_the_budget_are_final_and_kills_do_not_count,
        crashes_are_forgiven_with_time,
        the_fallback_takes_over_only_when_the_budget_is_spent,
        a_stopped_worker_is_unresponsive_and_replaced,
        a_long_dispatch_is_no_silence_but_one_past_deadline_and_grace_is,
        a_dispatch_that_needs_a_lane_of_a_stopped_worker_meets_its_own_deadline,
        a_spare_has_compiled_everything_before_it_is_needed,
        a_stopped_spare_is_not_waited_for,
        a_spare_that_dies_is_replaced_soon,
        a_spare_ends_when_it_would_never_be_taken,
        a_kernel_that_does_not_leave_is_ended_with_its_worker,
        a_session_goes_on_in_the_next_worker,
        a_session_goes_on_in_the_fallback_and_says_so,
        what_ended_an_item_is_in_its_error,
        a_worker_without_descriptors_says_so,
        a_kernel_says_without_being_asked_that_its_worker_is_gone,
        dropping_the_backend_ends_its_processes,
    ]);
}
