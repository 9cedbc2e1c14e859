//! The kernel server against kernels that serve, and ones that die, are silent, or leave the protocol. The test
//! program is the kernel executable as well: `--server` and `--once` are handled before any test runs.

mod kernels;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use vyre_worker::process::Exit;
use vyre_worker::server::{KernelError, KernelServer, KernelSpec, RunOptions, ServerOptions};
use vyre_worker::wire::{Malformed, WireError};

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> std::process::ExitCode {
    if let Some(code) = kernels::serve_if_asked() {
        return code;
    }
    let trial = |name: &str, body: fn() -> Outcome| {
        Trial::test(name, move || body().map_err(|error| libtest_mimic::Failed::from(error.to_string())))
    };
    let trials = vec![
        trial("bytes_go_in_and_come_out", bytes_go_in_and_come_out),
        trial("a_program_that_cannot_be_a_worker_starts_none", a_program_that_cannot_be_a_worker_starts_none),
        trial("one_worker_is_used_again", one_worker_is_used_again),
        trial("a_refused_request_leaves_the_worker_alive", a_refused_request_leaves_the_worker_alive),
        trial("a_response_larger_than_its_room_is_refused", a_response_larger_than_its_room_is_refused),
        trial("a_megabyte_of_stderr_wedges_nothing", a_megabyte_of_stderr_wedges_nothing),
        trial("a_worker_that_died_idle_is_replaced_silently", a_worker_that_died_idle_is_replaced_silently),
        trial("a_worker_that_dies_with_a_request_is_an_error", a_worker_that_dies_with_a_request_is_an_error),
        trial("an_idempotent_request_is_tried_twice", an_idempotent_request_is_tried_twice),
        trial("workers_that_leave_the_protocol_are_killed", workers_that_leave_the_protocol_are_killed),
        trial("an_answer_too_many_is_not_the_next_answer", an_answer_too_many_is_not_the_next_answer),
        trial(
            "processes_that_never_become_workers_are_errors",
            processes_that_never_become_workers_are_errors,
        ),
        trial("a_slow_start_is_waited_for", a_slow_start_is_waited_for),
        trial("a_silent_worker_is_killed_at_the_deadline", a_silent_worker_is_killed_at_the_deadline),
        trial("a_busy_worker_delays_nobody_else", a_busy_worker_delays_nobody_else),
        trial("callers_of_one_kernel_are_served_in_order", callers_of_one_kernel_are_served_in_order),
        trial("the_number_of_processes_is_bounded", the_number_of_processes_is_bounded),
        trial("more_workers_serve_one_kernel_if_asked", more_workers_serve_one_kernel_if_asked),
        trial("idle_workers_expire", idle_workers_expire),
        trial("a_rebuilt_executable_gets_a_new_worker", a_rebuilt_executable_gets_a_new_worker),
        trial("starts_back_off_after_failures", starts_back_off_after_failures),
        trial("a_one_shot_answers_and_says_how_it_failed", a_one_shot_answers_and_says_how_it_failed),
        trial("closing_leaves_nothing_behind", closing_leaves_nothing_behind),
        trial("closing_ends_workers_that_are_starting", closing_ends_workers_that_are_starting),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn spec(kernel: &str) -> KernelSpec {
    KernelSpec::new(kernel, "/proc/self/exe").arena_bytes(1 << 20)
}

/// A worker that speaks the protocol by hand, and wrongly.
fn raw(behaviour: &str) -> KernelSpec {
    spec("raw").arg(format!("raw-{behaviour}"))
}

fn server(change: impl FnOnce(&mut ServerOptions)) -> Result<KernelServer, KernelError> {
    let mut options = ServerOptions::default();
    change(&mut options);
    KernelServer::new(options)
}

fn run(server: &KernelServer, spec: &KernelSpec, request: &[u8]) -> Result<Vec<u8>, KernelError> {
    server.run(spec, request, 4096, RunOptions::default())
}

fn pid_of(server: &KernelServer, spec: &KernelSpec) -> Result<u32, Box<dyn Error>> {
    Ok(String::from_utf8(run(server, spec, b"pid")?)?.parse()?)
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for what another process or thread does by itself.
fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Outcome {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        if Instant::now() > until {
            return Err(format!("never: {what}").into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn kill(pid: u32) -> Outcome {
    let pid = rustix::process::Pid::from_raw(pid as i32).ok_or("no process id")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

fn bytes_go_in_and_come_out() -> Outcome {
    let server = server(|_| ())?;
    let kernel = spec("not").arena_bytes(32 << 20);
    for bytes in [0usize, 1, 63, 64, 65, 100_000, 15 << 20] {
        let request: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
        let response = server.run(&kernel, &request, bytes, RunOptions::default())?;
        assert_eq!(response.len(), bytes);
        assert!(request.iter().zip(&response).all(|(sent, got)| !sent == *got), "{bytes}");
    }
    let large = server.run(&kernel, &[0; 100], 32 << 20, RunOptions::default());
    assert!(matches!(large, Err(KernelError::TooLarge { .. })), "{large:?}");
    for room in [usize::MAX, 1 << 40] {
        let large = server.run(&kernel, &[], room, RunOptions::default());
        assert!(matches!(large, Err(KernelError::TooLarge { .. })), "{large:?}");
        let once = server.oneshot(&kernel, b"abc", room, RunOptions::default())?;
        assert_eq!(once, [!b'a', !b'b', !b'c']);
    }
    assert_eq!(server.stats().started, 1);
    Ok(())
}

fn a_program_that_cannot_be_a_worker_starts_none() -> Outcome {
    let (server, kernel) = (server(|_| ())?, KernelSpec::reexec("not"));
    let pooled = run(&server, &kernel, b"");
    assert!(matches!(pooled, Err(KernelError::NotInitialised { .. })), "{pooled:?}");
    let once = server.oneshot(&kernel, b"", 0, RunOptions::default());
    assert!(matches!(once, Err(KernelError::NotInitialised { .. })), "{once:?}");
    Ok(())
}

fn one_worker_is_used_again() -> Outcome {
    let server = server(|_| ())?;
    let (echo, other) = (spec("kernel"), spec("kernel").device(1));
    let pid = pid_of(&server, &echo)?;
    assert_eq!(pid_of(&server, &echo.clone())?, pid);
    assert_ne!(pid_of(&server, &other)?, pid, "another device, another worker");
    assert_ne!(pid_of(&server, &spec("kernel2"))?, pid, "another type, another worker");
    assert!(server.ping(&echo, Duration::from_secs(10))? < Duration::from_secs(10));
    assert_eq!((server.stats().started, server.stats().idle), (3, 3));
    assert_eq!(run(&server, &other, b"device")?, b"1");
    assert_eq!(run(&server, &spec("kernel").config("own bytes"), b"config")?, b"own bytes");
    Ok(())
}

fn a_refused_request_leaves_the_worker_alive() -> Outcome {
    let server = server(|_| ())?;
    let pid = pid_of(&server, &spec("kernel"))?;
    let refused = run(&server, &spec("kernel"), b"refuse");
    assert!(
        matches!(&refused, Err(KernelError::Refused { source, .. }) if source.code == 64 && source.text == "as asked"),
        "{refused:?}"
    );
    assert_eq!(pid_of(&server, &spec("kernel"))?, pid);
    Ok(())
}

fn a_response_larger_than_its_room_is_refused() -> Outcome {
    let server = server(|_| ())?;
    let refused = server.run(&spec("not"), &[1; 100], 99, RunOptions::default());
    assert!(matches!(&refused, Err(KernelError::Refused { source, .. }) if source.code == 5), "{refused:?}");
    assert_eq!(server.run(&spec("not"), &[1; 100], 100, RunOptions::default())?.len(), 100);
    assert_eq!(server.stats().started, 1);
    Ok(())
}

fn a_megabyte_of_stderr_wedges_nothing() -> Outcome {
    let server = server(|_| ())?;
    for _ in 0..3 {
        assert_eq!(run(&server, &spec("kernel"), b"stderr")?, b"stderr");
    }
    assert_eq!(server.stats().started, 1);
    Ok(())
}

fn a_worker_that_died_idle_is_replaced_silently() -> Outcome {
    let server = server(|_| ())?;
    for round in 1..=3 {
        let pid = pid_of(&server, &spec("kernel"))?;
        kill(pid)?;
        eventually("dead", || !exists(pid))?;
        assert_ne!(pid_of(&server, &spec("kernel"))?, pid);
        assert_eq!(server.stats().replaced, round);
    }
    assert_eq!(server.stats().lost, 0);
    // One that leaves by itself right after it was ready never has the request either.
    let refused =
        server.run(&raw("leave-after-ready"), b"", 0, RunOptions::limit(Duration::from_millis(500)));
    assert!(
        matches!(
            &refused,
            Err(KernelError::BackingOff { .. } | KernelError::Deadline { .. } | KernelError::Died { .. })
        ),
        "{refused:?}"
    );
    Ok(())
}

fn a_worker_that_dies_with_a_request_is_an_error() -> Outcome {
    let server = server(|_| ())?;
    for (request, how) in
        [("abort", Exit::Signal(6)), ("exit", Exit::Code(7)), ("segfault", Exit::Signal(11))]
    {
        let died = run(&server, &spec("kernel"), request.as_bytes());
        let Err(KernelError::Died { death, .. }) = &died else { return Err(format!("{died:?}").into()) };
        assert_eq!(death.how, how);
        assert!(death.stderr.contains("last words"), "{death:?}");
        assert_eq!(run(&server, &spec("kernel"), b"again")?, b"again");
    }
    assert_eq!(server.stats().lost, 3);
    Ok(())
}

fn an_idempotent_request_is_tried_twice() -> Outcome {
    let server = server(|_| ())?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("tried");
    let request = format!("die-once {}", file.display());
    let options = RunOptions { idempotent: true, ..RunOptions::default() };
    assert_eq!(server.run(&spec("kernel"), request.as_bytes(), 100, options)?, b"second time");
    std::fs::remove_file(&file)?;
    let died = run(&server, &spec("kernel"), request.as_bytes());
    assert!(matches!(died, Err(KernelError::Died { .. })), "{died:?}");
    let died = server.run(&spec("kernel"), b"abort", 0, options);
    assert!(matches!(died, Err(KernelError::Died { .. })), "tried for ever? {died:?}");
    assert_eq!((server.stats().retried, server.stats().lost), (2, 4));
    Ok(())
}

fn workers_that_leave_the_protocol_are_killed() -> Outcome {
    let server = server(|_| ())?;
    for behaviour in [
        "garbage",
        "short",
        "long-length",
        "wrong-magic",
        "wrong-version",
        "oversized",
        "other-id",
        "kind",
        "fds",
        "too-long",
        "short-done",
    ] {
        let died = run(&server, &raw(behaviour), b"request");
        let Err(KernelError::Protocol { source, .. }) = &died else {
            return Err(format!("{behaviour}: {died:?}").into());
        };
        let right = match behaviour {
            "short" | "short-done" => matches!(source, WireError::Malformed(Malformed::Short { .. })),
            "oversized" => matches!(source, WireError::Malformed(Malformed::Oversized { .. })),
            "other-id" => matches!(source, WireError::Malformed(Malformed::Request { got: 77, .. })),
            "kind" => matches!(source, WireError::Malformed(Malformed::Kind { got: 0x7777, .. })),
            "fds" | "too-long" => matches!(source, WireError::Malformed(Malformed::Bound { .. })),
            _ => matches!(source, WireError::Malformed(Malformed::Field { .. })),
        };
        assert!(right, "{behaviour}: {source:?}");
    }
    assert_eq!(server.stats().idle, 0);
    eventually("all of them reaped", || server.stats().processes == 0)?;
    for (behaviour, how) in [("die-at-run", Exit::Code(9)), ("kill-at-run", Exit::Signal(9))] {
        let died = run(&server, &raw(behaviour), b"request");
        assert!(matches!(&died, Err(KernelError::Died { death, .. }) if death.how == how), "{died:?}");
    }
    // The channel is given up, the process stays: it is ended.
    let gone = run(&server, &raw("hang-up-at-run"), b"request");
    assert!(matches!(&gone, Err(KernelError::Protocol { source: WireError::Closed, .. })), "{gone:?}");
    eventually("reaped", || server.stats().processes == 0)
}

fn an_answer_too_many_is_not_the_next_answer() -> Outcome {
    let server = server(|_| ())?;
    assert_eq!(run(&server, &raw("twice"), b"first")?, b"first");
    let second = run(&server, &raw("twice"), b"second");
    assert!(matches!(&second, Err(KernelError::Protocol { .. })), "{second:?}");
    assert_eq!(run(&server, &raw("twice"), b"third")?, b"third");
    assert_eq!(server.stats().started, 2);
    Ok(())
}

fn processes_that_never_become_workers_are_errors() -> Outcome {
    let server = server(|options| options.start = Duration::from_millis(300))?;
    let missing = run(&server, &KernelSpec::new("missing", "/nowhere/kernel"), b"");
    assert!(matches!(missing, Err(KernelError::Executable { .. })), "{missing:?}");
    let not_started = |spec: &KernelSpec| match run(&server, spec, b"") {
        Err(KernelError::NotStarted { source, .. }) => Ok(source),
        other => Err(format!("{other:?}")),
    };
    let folder = tempfile::tempdir()?;
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "no program")?;
    let error = not_started(&KernelSpec::new("plain", &plain))?;
    assert!(matches!(&*error, KernelError::Spawn { .. }), "{error:?}");
    let handshake = |behaviour| match &*not_started(&raw(behaviour))? {
        KernelError::Handshake { source, stderr, .. } => {
            Ok::<_, String>((format!("{source:?}"), stderr.clone()))
        }
        other => Err(format!("{behaviour}: {other:?}")),
    };
    assert!(handshake("silent")?.0.contains("TimedOut"));
    assert!(handshake("hello-garbage")?.0.contains("magic"));
    assert!(handshake("hello-version")?.0.contains("Version { got: 2, expected: 1 }"));
    assert!(handshake("hello-kind")?.0.contains("Kind"));
    let (error, _) = handshake("refuse-start")?;
    assert!(error.contains("no such device"), "{error}");
    let ended = |spec: &KernelSpec| match &*not_started(spec)? {
        error @ KernelError::EndedEarly { death, .. } => Ok::<_, String>((death.how, error.to_string())),
        other => Err(format!("{other:?}")),
    };
    let (_, text) = ended(&raw("die-at-start"))?;
    assert!(text.contains("last words"), "{text}");
    ended(&raw("die-at-hello"))?;
    let (how, text) = ended(&KernelSpec::new("true", "/bin/true"))?;
    assert!(
        how == Exit::Code(0) && text.contains("kernel::main") && !text.contains("ServerOptions"),
        "{text}"
    );
    eventually("nothing left", || server.stats().processes == 0)
}

fn a_slow_start_is_waited_for() -> Outcome {
    let server = server(|_| ())?;
    // A caller that does not wait so long does not stop it.
    let early = server.run(&raw("slow-start"), b"", 0, RunOptions::limit(Duration::from_millis(20)));
    assert!(matches!(&early, Err(KernelError::Deadline { waited_for: "a worker", .. })), "{early:?}");
    assert_eq!(run(&server, &raw("slow-start"), b"late")?, b"late");
    assert_eq!(server.stats().started, 1);
    Ok(())
}

fn a_silent_worker_is_killed_at_the_deadline() -> Outcome {
    let server = server(|_| ())?;
    let pid = pid_of(&server, &spec("kernel"))?;
    let limit = Duration::from_millis(250);
    let begun = Instant::now();
    let silent = server.run(&spec("kernel"), b"for-ever", 0, RunOptions::limit(limit));
    assert!(
        matches!(&silent, Err(KernelError::Deadline { waited_for: "the worker's answer", .. })),
        "{silent:?}"
    );
    assert!(begun.elapsed() >= limit);
    eventually("killed and reaped", || !exists(pid) && server.stats().processes == 0)?;
    assert_eq!(run(&server, &spec("kernel"), b"next")?, b"next");
    // A limit that is over before anything is sent harms no worker.
    let late = server.run(&spec("kernel"), b"", 0, RunOptions::limit(Duration::ZERO));
    assert!(matches!(&late, Err(KernelError::Deadline { .. })), "{late:?}");
    assert_eq!(server.stats().lost, 1);
    Ok(())
}

/// A request that its worker holds until the file appears.
struct Held {
    release: PathBuf,
    done: Arc<AtomicBool>,
    caller: thread::JoinHandle<Result<Vec<u8>, KernelError>>,
    _folder: tempfile::TempDir,
}

impl Held {
    /// Returns once the worker has the request.
    fn start(server: &Arc<KernelServer>, spec: &KernelSpec) -> Result<Held, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let (taken, release) = (folder.path().join("taken"), folder.path().join("release"));
        let request = format!("hold {}", folder.path().display());
        let done = Arc::new(AtomicBool::new(false));
        let caller = thread::spawn({
            let (server, spec, done) = (Arc::clone(server), spec.clone(), Arc::clone(&done));
            move || {
                let answer = run(&server, &spec, request.as_bytes());
                done.store(true, Ordering::Release);
                answer
            }
        });
        eventually("the request is held", || taken.exists())?;
        Ok(Held { release, done, caller, _folder: folder })
    }

    fn release(self) -> Outcome {
        assert!(!self.done.load(Ordering::Acquire), "it was to be held all the time");
        std::fs::write(&self.release, "")?;
        assert_eq!(self.caller.join().map_err(|_| "panic")??, b"held");
        Ok(())
    }
}

fn a_busy_worker_delays_nobody_else() -> Outcome {
    let server = Arc::new(server(|options| {
        options.idle = Duration::from_millis(50);
        options.processes = 2;
    })?);
    let held = Held::start(&server, &spec("kernel"))?;
    // Everything else happens while it is held: starting, running, pinging, dying, evicting, expiring.
    let other = spec("other");
    let pid = pid_of(&server, &other)?;
    server.ping(&other, Duration::from_secs(10))?;
    assert!(matches!(run(&server, &other, b"abort"), Err(KernelError::Died { .. })));
    assert_eq!(run(&server, &other, b"x")?, b"x");
    assert_eq!(run(&server, &spec("third"), b"y")?, b"y");
    assert!(matches!(run(&server, &raw("die-at-start"), b""), Err(KernelError::NotStarted { .. })));
    eventually("idle ones expire", || server.stats().processes == 1)?;
    assert!(!exists(pid));
    // Its own next caller waits, and only by its own deadline.
    let waits = server.run(&spec("kernel"), b"", 0, RunOptions::limit(Duration::from_millis(20)));
    assert!(matches!(&waits, Err(KernelError::Deadline { waited_for: "a worker", .. })), "{waits:?}");
    held.release()
}

fn callers_of_one_kernel_are_served_in_order() -> Outcome {
    let server = Arc::new(server(|_| ())?);
    let held = Held::start(&server, &spec("kernel"))?;
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let mut callers = Vec::new();
    for number in 0..8 {
        let (own, request) = (Arc::clone(&server), format!("log {number} {}", log.display()));
        callers.push(thread::spawn(move || run(&own, &spec("kernel"), request.as_bytes()).is_ok()));
        eventually("in the queue", || server.stats().waiting == number + 1)?;
    }
    held.release()?;
    for caller in callers {
        assert!(caller.join().map_err(|_| "panic")?);
    }
    assert_eq!(std::fs::read_to_string(&log)?, "01234567");
    assert_eq!(server.stats().started, 1);
    Ok(())
}

fn the_number_of_processes_is_bounded() -> Outcome {
    let server = Arc::new(server(|options| options.processes = 2)?);
    let held = Held::start(&server, &spec("a"))?;
    for round in 0..6 {
        let kernel = spec(&format!("kernel {round}"));
        assert_eq!(run(&server, &kernel, b"x")?, b"x");
        assert!(server.stats().processes <= 2);
    }
    assert_eq!(server.stats().evicted, 5);
    held.release()?;
    // A kernel that always has callers does not keep another one out.
    let stop = Arc::new(AtomicBool::new(false));
    let greedy: Vec<_> = ["a", "a", "a", "b", "b", "b"]
        .map(|name| {
            let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    run(&server, &spec(name), b"again").map_err(|error| error.to_string())?;
                }
                Ok::<_, String>(())
            })
        })
        .into();
    for round in 0..4 {
        assert_eq!(run(&server, &spec(&format!("late {round}")), b"me too")?, b"me too");
        assert!(server.stats().processes <= 2);
    }
    stop.store(true, Ordering::Relaxed);
    for caller in greedy {
        caller.join().map_err(|_| "panic")??;
    }
    Ok(())
}

fn more_workers_serve_one_kernel_if_asked() -> Outcome {
    let server = Arc::new(server(|options| options.workers_per_kernel = 3)?);
    let held: Vec<Held> = (0..3).map(|_| Held::start(&server, &spec("kernel"))).collect::<Result<_, _>>()?;
    assert_eq!(server.stats().started, 3);
    let waits = server.run(&spec("kernel"), b"", 0, RunOptions::limit(Duration::from_millis(20)));
    assert!(matches!(&waits, Err(KernelError::Deadline { .. })), "{waits:?}");
    held.into_iter().try_for_each(Held::release)
}

fn idle_workers_expire() -> Outcome {
    let server = server(|options| options.idle = Duration::from_millis(30))?;
    let pid = pid_of(&server, &spec("kernel"))?;
    eventually("expired", || server.stats().processes == 0)?;
    assert!(!exists(pid));
    assert_eq!((server.stats().expired, server.stats().lost), (1, 0));
    assert_ne!(pid_of(&server, &spec("kernel"))?, pid);
    Ok(())
}

fn a_rebuilt_executable_gets_a_new_worker() -> Outcome {
    let server = server(|_| ())?;
    let folder = tempfile::tempdir()?;
    let (path, next) = (folder.path().join("kernel"), folder.path().join("next"));
    let own = std::env::current_exe()?;
    // By a process of its own: a file that this one has open for writing is in its children for a moment, and cannot
    // be run then.
    let copy = |to: &Path| {
        let copied = std::process::Command::new("cp").args([own.as_path(), to]).status();
        copied.map(|status| assert!(status.success()))
    };
    copy(&path)?;
    let kernel = KernelSpec::new("kernel", &path);
    let pid = pid_of(&server, &kernel)?;
    assert_eq!(pid_of(&server, &kernel)?, pid);
    copy(&next)?;
    std::fs::rename(&next, &path)?;
    assert_ne!(pid_of(&server, &kernel)?, pid);
    eventually("the old one is gone", || !exists(pid) && server.stats().processes == 1)
}

fn starts_back_off_after_failures() -> Outcome {
    let server = server(|options| {
        options.backoff = Duration::from_secs(1000);
        options.backoff_limit = Duration::from_secs(5000);
    })?;
    let dies = raw("die-at-start");
    for _ in 0..2 {
        assert!(matches!(run(&server, &dies, b""), Err(KernelError::NotStarted { .. })));
    }
    for _ in 0..3 {
        let refused = run(&server, &dies, b"");
        let Err(KernelError::BackingOff { failures: 2, wait, last, .. }) = &refused else {
            return Err(format!("{refused:?}").into());
        };
        assert!(*wait > Duration::from_secs(900) && *wait <= Duration::from_secs(1000), "{wait:?}");
        assert!(last.contains("last words"), "{last}");
    }
    assert_eq!(server.stats().not_started, 2);
    // A success forgets it: deaths that are not in a row cost no wait.
    for _ in 0..4 {
        assert!(run(&server, &spec("kernel"), b"abort").is_err());
        assert_eq!(run(&server, &spec("kernel"), b"x")?, b"x");
    }
    Ok(())
}

fn a_one_shot_answers_and_says_how_it_failed() -> Outcome {
    let server = server(|_| ())?;
    let options = RunOptions::limit(Duration::from_secs(20));
    let kernel = spec("kernel").device(3).config("own bytes");
    assert_eq!(server.oneshot(&kernel, b"", 10, options)?, b"");
    assert_eq!(server.oneshot(&kernel, b"echo", 10, options)?, b"echo");
    assert_eq!(server.oneshot(&kernel, b"device", 10, options)?, b"3");
    assert_eq!(server.oneshot(&kernel, b"config", 10, options)?, b"own bytes");
    let failure = |request: &[u8]| match server.oneshot(&kernel, request, 10, options) {
        Err(KernelError::OneShot { exit, meaning, stderr, stdout, .. }) => {
            Ok((exit, meaning, stderr, stdout))
        }
        other => Err(format!("{other:?}")),
    };
    let (exit, meaning, stderr, _) = failure(b"refuse")?;
    assert_eq!((exit, meaning), (Exit::Code(3), "it refused the request"));
    assert!(stderr.contains("as asked"), "{stderr}");
    let (exit, _, stderr, stdout) = failure(b"exit")?;
    assert_eq!(exit, Exit::Code(7));
    assert!(stderr.contains("last words") && stdout.contains("on stdout"), "{stderr} {stdout}");
    assert_eq!(failure(b"abort")?.0, Exit::Signal(6));
    assert_eq!(failure(b"more than ten bytes")?.1, "its response is larger than the room given");
    let late = server.oneshot(&kernel, b"for-ever", 0, RunOptions::limit(Duration::from_millis(100)));
    assert!(matches!(late, Err(KernelError::Deadline { .. })), "{late:?}");
    assert_eq!(server.stats().processes, 0);
    Ok(())
}

fn closing_leaves_nothing_behind() -> Outcome {
    let first = server(|_| ())?;
    let pid = pid_of(&first, &spec("kernel"))?;
    assert!(first.close(Duration::from_secs(10)));
    assert!(!exists(pid));
    assert!(matches!(run(&first, &spec("kernel"), b""), Err(KernelError::Closed)));
    // Dropped instead: also one that ignores the question, and one that is still starting.
    let second = server(|_| ())?;
    let pids = [pid_of(&second, &spec("kernel"))?, pid_of(&second, &spec("other"))?];
    let early = second.run(&raw("silent"), b"", 0, RunOptions::limit(Duration::from_millis(10)));
    assert!(early.is_err());
    assert_eq!(second.stats().processes, 3);
    drop(second);
    assert!(pids.iter().all(|&pid| !exists(pid)));
    // Closed while a worker is busy: it is killed when the limit is over, and its caller has an error.
    let third = Arc::new(server(|_| ())?);
    let held = Held::start(&third, &spec("kernel"))?;
    assert!(third.close(Duration::from_millis(50)));
    let answer = held.caller.join().map_err(|_| "panic")?;
    assert!(matches!(&answer, Err(KernelError::Died { death, .. }) if death.by_us), "{answer:?}");
    assert_eq!(third.stats().processes, 0);
    Ok(())
}

fn closing_ends_workers_that_are_starting() -> Outcome {
    const NEVER: Duration = Duration::from_secs(3600);
    let folder = tempfile::tempdir()?;
    let started = folder.path().join("started");
    let kernel = raw(&format!("silent-after:{}", started.display()));
    let server = Arc::new(server(|options| options.start = NEVER)?);
    let (runner, closer) = (Arc::clone(&server), Arc::clone(&server));
    let caller = thread::spawn(move || runner.run(&kernel, b"", 4096, RunOptions::limit(NEVER)).map(drop));
    eventually("a process", || started.exists())?;
    let (said, closed) = std::sync::mpsc::channel();
    thread::spawn(move || said.send(closer.close(NEVER)));
    assert!(closed.recv_timeout(Duration::from_secs(20))?, "a process is left");
    assert!(matches!(caller.join().map_err(|_| "it panicked")?, Err(KernelError::Closed)));
    Ok(())
}
