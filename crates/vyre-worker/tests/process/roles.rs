//! What the children of these tests do.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Once, OnceLock};
use std::time::Duration;

use vyre_driver::LossCause;
use vyre_worker::process::{Exit, Launch, Process};

use super::{PATIENCE, role, sandbox, until};

pub(crate) fn play(role: &str, args: &[String]) -> ExitCode {
    let number = |index: usize| args.get(index).and_then(|arg| arg.parse::<usize>().ok()).unwrap_or(0);
    match role {
        "exit" => return ExitCode::from(u8::try_from(number(0)).unwrap()),
        "wait" => wait(),
        "abort" => std::process::abort(),
        "illegal-address" => {
            // SAFETY: not safe at all: the fault is what this role is for.
            unsafe { std::ptr::without_provenance_mut::<u32>(8).write_volatile(1) };
        }
        "stderr" => write_lines(number(0), Duration::from_micros(number(1) as u64)),
        "bytes" => std::io::stderr().write_all(b"first\nhalf \xFF\xFE a line").unwrap(),
        "stdout" => std::io::stdout().write_all(&[b'x'; 200_000]).unwrap(),
        "leave-grandchild" => leave_grandchild(args[0] == "session"),
        "descriptors" => list_descriptors(),
        "environment" => std::env::vars().for_each(|(name, value)| println!("{name}={value}")),
        "environment-of-a-child" => environment_of_a_child(),
        "echo" => echo(),
        "parent" => parent(),
        "spawn-and-kill" => spawn_and_kill(),
        "inheritance" => inheritance(),
        "ignore-children" => ignore_children(),
        "sandboxed" => sandbox::sandboxed(&args[0]),
        "unsandboxed" => sandbox::unsandboxed(),
        "panicking-subscriber" => panicking_subscriber(),
        "slow-subscriber" => slow_subscriber(),
        _ => return ExitCode::from(99),
    }
    ExitCode::SUCCESS
}

fn wait() -> ! {
    println!("ready");
    loop {
        std::thread::park();
    }
}

/// Lines that carry their number, at least `bytes` of them, with a pause after each KiB.
fn write_lines(bytes: usize, pause: Duration) {
    let mut stderr = std::io::stderr().lock();
    let mut written = 0;
    for number in 0.. {
        let line = format!("line {number:>58}\n");
        stderr.write_all(line.as_bytes()).unwrap();
        written += line.len();
        if written >= bytes {
            return;
        }
        if !pause.is_zero() && written % 1024 == 0 {
            std::thread::sleep(pause);
        }
    }
}

/// Starts a process that holds standard error open for ever, says which, and leaves.
#[expect(clippy::zombie_processes, reason = "to leave it behind is what this role is for")]
fn leave_grandchild(own_session: bool) {
    let mut command = Command::new("/proc/self/exe");
    command.args(["--role", "wait"]).stdout(Stdio::piped());
    if own_session {
        // SAFETY: `setsid` is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(())
            })
        };
    }
    let mut grandchild = command.spawn().unwrap();
    let mut ready = [0; 6];
    grandchild.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    eprintln!("grandchild {}", grandchild.id());
}

fn list_descriptors() {
    let listing = std::fs::read_dir("/proc/self/fd").unwrap();
    // Collected first: the listing's own descriptor is closed again when the links are read.
    let names: Vec<_> = listing.map(|entry| entry.unwrap().path()).collect();
    for name in names {
        if let Ok(target) = std::fs::read_link(&name) {
            println!("{} {}", name.file_name().unwrap().display(), target.display());
        }
    }
}

fn environment_of_a_child() {
    let child = Process::spawn(role("environment").capture_stdout(1 << 16)).unwrap();
    child.wait(PATIENCE).unwrap();
    print!("{}", String::from_utf8(child.stdout()).unwrap());
}

/// Sends back each byte that comes in on descriptor 3.
fn echo() {
    // SAFETY: the parent mapped a socket there, and nothing else in this process uses it.
    let socket = unsafe { OwnedFd::from_raw_fd(3) };
    let mut socket = std::os::unix::net::UnixStream::from(socket);
    let mut byte = [0];
    while socket.read_exact(&mut byte).is_ok() {
        socket.write_all(&byte).unwrap();
    }
}

/// Has a child, says which, and waits to be killed.
fn parent() {
    let child = Process::spawn(role("wait")).unwrap();
    println!("{}", child.pid());
    wait();
}

/// What this process has: descriptors, threads, children.
fn possessions() -> (usize, usize, String) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let mut children = String::new();
    let mut count = 0;
    for thread in threads {
        count += 1;
        children += &std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default();
    }
    (fds, count, children.trim().to_owned())
}

fn spawn_and_kill() {
    // The first use of anything may open what then stays open.
    drop(Process::spawn(role("wait")).unwrap());
    let before = possessions();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for turn in 0..50 {
                    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
                    let process = Process::spawn(role("echo").fd(3, theirs.into())).unwrap();
                    match (thread + turn) % 3 {
                        // At once, perhaps before its main.
                        0 => drop(process),
                        // At work.
                        1 => {
                            (&ours).write_all(b"?").unwrap();
                            (&ours).read_exact(&mut [0]).unwrap();
                            process.kill();
                            assert!(process.wait(PATIENCE).unwrap().by_us);
                        }
                        // By itself.
                        _ => {
                            drop(ours);
                            assert_eq!(process.wait(PATIENCE).unwrap().how, Exit::Code(0));
                        }
                    }
                    Process::spawn(Launch::new("/nonexistent/worker")).unwrap_err();
                }
            });
        }
    });
    // A joined thread is listed until the kernel has put its last things away.
    let _ = until("nothing is left", || possessions() == before);
    assert_eq!(possessions(), before, "descriptors, threads, children");
}

/// A parent that ignores, blocks and allows what its child must not inherit. Prints what the kernel says of the
/// child.
fn inheritance() {
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Core).maximum;
    let all = rustix::process::Rlimit { current: maximum, maximum };
    rustix::process::setrlimit(rustix::process::Resource::Core, all).unwrap();
    for signal in [libc::SIGINT, libc::SIGUSR1, libc::SIGHUP] {
        // SAFETY: to ignore a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // SAFETY: all zero is a valid set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is initialised.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGTERM) };
    // SAFETY: `set` is initialised.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    let files = ["status", "limits", "stat"].map(|name| format!("/proc/self/{name}"));
    let cat = files.into_iter().fold(Launch::new("/bin/cat"), Launch::arg);
    let child = Process::spawn(cat.capture_stdout(1 << 16)).unwrap();
    assert_eq!(child.wait(PATIENCE).unwrap().how, Exit::Code(0));
    print!("{}", String::from_utf8(child.stdout()).unwrap());
}

/// A parent whose children the kernel reaps by itself.
fn ignore_children() {
    // SAFETY: to ignore a signal runs no code.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    let child = Process::spawn(role("exit").arg("3")).unwrap();
    let death = child.wait(PATIENCE).unwrap();
    assert_eq!((death.how, death.loss().cause), (Exit::Unknown, LossCause::Killed));
}

/// A subscriber that fails on each event.
struct Panicking;

impl tracing::Subscriber for Panicking {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        panic!("no event is good enough");
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn panicking_subscriber() {
    tracing::subscriber::set_global_default(Panicking).unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = Process::spawn(role("wait").fd(theirs.as_raw_fd().max(3), theirs.into())).unwrap();
    drop(ours);
    child.kill();
    assert!(child.wait(PATIENCE).unwrap().by_us);
    let child = Process::spawn(role("bytes")).unwrap();
    until("its words", || child.stderr_tail().starts_with("first")).unwrap();
    assert_eq!(child.wait(PATIENCE).unwrap().how, Exit::Code(0));
}

/// A subscriber that holds the first line until the child is dead, and counts those before its death is known.
struct Slow;

static CHILD: OnceLock<Process> = OnceLock::new();
static GATE: Barrier = Barrier::new(2);
static HELD: Once = Once::new();
static EARLY: AtomicUsize = AtomicUsize::new(0);

impl tracing::Subscriber for Slow {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        HELD.call_once(|| {
            GATE.wait();
            GATE.wait();
        });
        EARLY.fetch_add(usize::from(CHILD.wait().death().is_none()), Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

fn slow_subscriber() {
    tracing::subscriber::set_global_default(Slow).unwrap();
    let child = CHILD.get_or_init(|| Process::spawn(role("stderr").arg("1000000").arg("0")).unwrap());
    GATE.wait();
    child.kill();
    let stat = format!("/proc/{}/stat", child.pid());
    until("it is a zombie", || std::fs::read_to_string(&stat).unwrap().contains(") Z ")).unwrap();
    GATE.wait();
    assert!(child.wait(PATIENCE).unwrap().by_us);
    assert_eq!(EARLY.load(Ordering::Relaxed), 1, "lines logged before the death was published");
}
