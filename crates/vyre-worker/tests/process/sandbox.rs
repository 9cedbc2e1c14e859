//! What a worker in the strict sandbox can do, and cannot.

use std::ffi::c_void;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::LossCause;
use vyre_driver::region::SharedRegion;
use vyre_runtime::{Megakernel, OpcodeHandler, SlotDescriptor};
use vyre_worker::process::Exit;
use vyre_worker::sandbox::{Sandbox, enter};
use vyre_worker::wire::Channel;

use super::{Named, Outcome, PATIENCE, end_of, role};

pub(crate) fn trials() -> Vec<Named> {
    vec![
        ("a_sandboxed_backend_works", works),
        ("a_refused_call_ends_the_worker_and_is_named", refusals),
        ("a_panic_in_the_sandbox_is_still_a_panic", panics),
        ("without_a_sandbox_files_can_be_opened", no_sandbox),
    ]
}

fn works() -> Outcome {
    for what in ["work", "work-in-a-crowd"] {
        let death = end_of(role("sandboxed").arg(what))?;
        assert_eq!(death.how, Exit::Code(0), "{what}: {death}");
    }
    Ok(())
}

fn refusals() -> Outcome {
    for (what, call) in [
        ("open", "openat"),
        ("open-in-an-old-thread", "openat"),
        ("open-in-a-new-thread", "openat"),
        ("execute", "execve"),
        ("socket", "socket"),
        ("fork", "clone"),
        ("executable-memory", "mmap"),
        ("make-executable", "mprotect"),
        ("signal-a-process", "kill"),
        ("signal-a-thread", "tgkill"),
        ("take-the-handler", "rt_sigaction"),
        ("ioctl", "ioctl"),
    ] {
        let death = end_of(role("sandboxed").arg(what))?;
        assert_eq!(death.how, Exit::Signal(libc::SIGSYS), "{what}: {death}");
        assert!(death.stderr.contains("the sandbox refused system call "), "{what}: {death}");
        assert!(death.stderr.ends_with(&format!(" {call}")), "{what}: {death}");
        assert_eq!(death.loss().cause, LossCause::Fault);
    }
    Ok(())
}

fn panics() -> Outcome {
    let death = end_of(role("sandboxed").arg("panic"))?;
    assert_eq!(death.how, Exit::Code(101), "{death}");
    assert!(death.stderr.contains("for the test"), "{death}");
    Ok(())
}

fn no_sandbox() -> Outcome {
    let death = end_of(role("unsandboxed"))?;
    assert_eq!(death.how, Exit::Code(0), "{death}");
    Ok(())
}

/// In the child: what a worker without a sandbox may do.
pub(crate) fn unsandboxed() {
    enter(Sandbox::None).unwrap();
    open();
}

fn open() {
    drop(std::fs::File::open("/proc/version").unwrap());
}

/// In the child: opens a backend, enters the sandbox, does `what`.
pub(crate) fn sandboxed(what: &str) {
    let backend = CpuBackend::with_config(CpuConfig::default().threads(3));
    let (go, wait) = std::sync::mpsc::channel();
    let old = std::thread::spawn(move || {
        if wait.recv().is_ok() {
            open();
        }
    });
    let lane = Channel::pair().unwrap();
    let (another, _) = Channel::pair().unwrap();
    let crowd = (what == "work-in-a-crowd").then(crowd);
    enter(Sandbox::Strict).unwrap();
    match what {
        "work-in-a-crowd" => crowd.unwrap()(),
        "work" => {
            drop(go);
            old.join().unwrap();
            work(backend, lane, another);
        }
        "open" => open(),
        "open-in-an-old-thread" => {
            go.send(()).unwrap();
            let _ = old.join();
        }
        "open-in-a-new-thread" => {
            let _ = std::thread::spawn(open).join();
        }
        "execute" => {
            drop(std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/bin/true")))
        }
        "socket" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "fork" => {
            // SAFETY: refused; were it not, the child would end with this process.
            unsafe { libc::fork() };
        }
        "executable-memory" => drop(map(libc::PROT_READ | libc::PROT_EXEC)),
        "make-executable" => {
            let page = map(libc::PROT_READ | libc::PROT_WRITE);
            // SAFETY: the page was mapped just now, and nothing lies in it.
            unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) };
        }
        "signal-a-process" => {
            // SAFETY: signal 0 only asks whether it could be sent.
            unsafe { libc::kill(1, 0) };
        }
        "signal-a-thread" => {
            // SAFETY: signal 0 only asks whether it could be sent.
            unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) };
        }
        "take-the-handler" => {
            // SAFETY: to ignore a signal runs no code.
            unsafe { libc::signal(libc::SIGSYS, libc::SIG_IGN) };
        }
        "ioctl" => {
            // SAFETY: asks for the size of a terminal, into no memory at all.
            unsafe { libc::ioctl(0, libc::TIOCGWINSZ, std::ptr::null_mut::<c_void>()) };
        }
        "panic" => panic!("for the test"),
        _ => std::process::exit(99),
    }
}

fn map(prot: i32) -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0) }
}

/// More threads than glibc has heaps for, all of which allocate now; the call has them grow and shrink theirs.
fn crowd() -> impl FnOnce() {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let there = Arc::new(Barrier::new(8 * processors + 9));
    let threads: Vec<_> = (0..8 * processors + 8)
        .map(|_| {
            let there = Arc::clone(&there);
            std::thread::spawn(move || {
                let kept = std::hint::black_box(vec![1_u8; 1000]);
                there.wait();
                there.wait();
                grow_and_shrink();
                drop(kept);
            })
        })
        .collect();
    there.wait();
    move || {
        there.wait();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let late: Vec<_> = (0..20).map(|_| std::thread::spawn(grow_and_shrink)).collect();
        late.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn grow_and_shrink() {
    drop(std::hint::black_box(vec![vec![1_u8; 100_000]; 100]));
}

/// What a worker does all day: sessions and batches, memory, threads, frames with descriptors, deadlines.
fn work(backend: CpuBackend, (ours, theirs): (Channel, Channel), another: Channel) {
    let megakernel = Megakernel::builder(std::sync::Arc::new(backend))
        .slots(256)
        .handler(OpcodeHandler::new(0x40, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build()
        .unwrap();
    for _ in 0..3 {
        let session = megakernel.start().unwrap();
        for number in 0..1000 {
            let ticket = session.submit(SlotDescriptor::new(0x40).args([number])).unwrap();
            assert_eq!(session.wait(ticket, PATIENCE).unwrap().result(), u64::from(number) + 1);
        }
        session.stop().unwrap();
    }

    let region = SharedRegion::create(1 << 20).unwrap();
    let sender = std::thread::Builder::new().name("lane".to_owned()).spawn(move || {
        theirs.send(7, 1, b"?", &[region.fd(), another.fd()], None).unwrap();
        theirs
    });
    let frame = ours.receive(Some(std::time::Instant::now() + PATIENCE)).unwrap();
    let [region, lane] = <[_; 2]>::try_from(frame.fds.into_vec()).unwrap();
    SharedRegion::from_fd(region, true).unwrap().copy_in(0, &[1; 100]).unwrap();
    drop(Channel::from_fd(lane).unwrap());
    let late = ours.receive(Some(std::time::Instant::now() + Duration::from_millis(5)));
    late.unwrap_err();
    drop(sender.unwrap().join().unwrap());

    // Heaps that become smaller again, and more of them than glibc gives out without counting processors.
    (0..20)
        .map(|_| std::thread::spawn(grow_and_shrink))
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|t| t.join().unwrap());

    let blocks: Vec<Vec<u8>> = (1..200).map(|block| vec![1; block * 10_000]).collect();
    let threads: Vec<_> = blocks.into_iter().map(|block| std::thread::spawn(move || block.len())).collect();
    threads.into_iter().for_each(|thread| assert!(thread.join().unwrap() > 0));
}
