//! The kernels that tests/server.rs runs, in its own executable: good ones, and ones that break the protocol.

use std::io::{Write, stderr, stdout};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{ExitCode, abort, exit};
use std::time::Duration;
use std::{env, fs, process, thread};

use rustix::net::{SendFlags, send};
use vyre_worker::kernel::{self, DONE, Done, RUN, Refusal, Response, Run, Start};
use vyre_worker::wire::handshake::{self, READY, Ready};
use vyre_worker::wire::{ArenaView, Channel, FrameHeader, HEADER_BYTES, MAX_PAYLOAD};

/// Serves if this process was started as a kernel.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let args: Vec<String> = env::args().collect();
    if let Some(behaviour) = args.iter().find_map(|arg| arg.strip_prefix("raw-")) {
        raw(behaviour);
        return Some(ExitCode::SUCCESS);
    }
    let kernel = ["--server", "--once"].contains(&args.get(1)?.as_str());
    kernel.then(|| {
        kernel::main_with(|start: &Start| {
            let start = start.clone();
            Ok(move |request: &[u8], response: &mut Response<'_>| answer(&start, request, response))
        })
    })
}

fn answer(start: &Start, request: &[u8], response: &mut Response<'_>) -> Result<(), Refusal> {
    if start.kernel == "not" {
        let room = response.reserve(request.len())?;
        room.iter_mut().zip(request).for_each(|(to, from)| *to = !from);
        return Ok(());
    }
    let text = String::from_utf8_lossy(request);
    let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
    match word {
        "pid" => response.write(process::id().to_string().as_bytes()),
        "device" => response.write(start.device.to_string().as_bytes()),
        "config" => response.write(&start.config),
        "refuse" => Err(Refusal { code: kernel::REFUSED_USER, text: "as asked".into() }),
        "stderr" => {
            let line = "x".repeat(1023) + "\n";
            (0..1024).for_each(|_| stderr().write_all(line.as_bytes()).unwrap_or_default());
            response.write(request)
        }
        "abort" | "exit" | "segfault" => {
            eprintln!("last words");
            print!("on stdout");
            stdout().flush().unwrap_or_default();
            die(word)
        }
        "die-once" if !Path::new(rest).exists() => {
            fs::write(rest, "").unwrap_or_default();
            abort()
        }
        "die-once" => response.write(b"second time"),
        "hold" => {
            fs::write(Path::new(rest).join("taken"), "").unwrap_or_default();
            while !Path::new(rest).join("release").exists() {
                thread::sleep(Duration::from_millis(1));
            }
            response.write(b"held")
        }
        "log" => {
            let (number, path) = rest.split_once(' ').unwrap_or_default();
            let file = fs::OpenOptions::new().append(true).create(true).open(path);
            file.and_then(|mut file| file.write_all(number.as_bytes())).unwrap_or_default();
            Ok(())
        }
        "for-ever" => loop {
            thread::park();
        },
        _ => response.write(request),
    }
}

fn die(how: &str) -> ! {
    match how {
        "exit" => exit(7),
        "segfault" => {
            let nowhere = std::ptr::without_provenance_mut::<u8>(8);
            // SAFETY: it is not safe, and ends this process: that is what was asked for.
            unsafe { nowhere.write_volatile(1) };
            unreachable!("page 0 is mapped")
        }
        _ => abort(),
    }
}

fn signal(signal: rustix::process::Signal) -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    loop {
        thread::park();
    }
}

/// Follows the protocol by hand, but for one thing. An error ends it, which is seen at the other side.
fn raw(behaviour: &str) {
    let _ = try_raw(behaviour);
}

fn try_raw(behaviour: &str) -> Result<(), Box<dyn std::error::Error>> {
    // SAFETY: the server has put the channel there, and nobody else has taken it.
    let channel = Channel::from_fd(unsafe { OwnedFd::from_raw_fd(3) })?;
    match behaviour {
        "die-at-start" => {
            eprintln!("last words");
            exit(9)
        }
        "silent" => loop {
            thread::park();
        },
        started if let Some(path) = started.strip_prefix("silent-after:") => {
            fs::write(path, "")?;
            loop {
                thread::park();
            }
        }
        "slow-start" => thread::sleep(Duration::from_millis(400)),
        _ => {}
    }
    let (hello, arena, _) = handshake::accept(&channel, None)?;
    let view = ArenaView::attach(arena, hello.arena_bytes)?;
    match behaviour {
        "die-at-hello" => exit(9),
        "hello-garbage" => send(channel.fd(), &[0xEE; 64], SendFlags::NOSIGNAL).map(drop)?,
        "hello-kind" => channel.send(DONE, 0, &[], &[], None)?,
        "hello-version" => {
            channel.send(READY, 0, &Ready { version: 2, text: String::new() }.encode(), &[], None)?;
        }
        "refuse-start" => {
            return Ok(handshake::refuse(&channel, handshake::REFUSED_START, "no such device")?);
        }
        _ => handshake::ready(&channel, "raw")?,
    }
    if behaviour == "leave-after-ready" {
        return Ok(());
    }
    let mut channel = Some(channel);
    while let Some(open) = &channel {
        let frame = open.receive(None)?;
        if frame.kind != RUN {
            return Ok(());
        }
        let run = Run::decode(&frame.payload)?;
        let id = frame.request;
        let request = view.read(run.request.offset, run.request.bytes)?;
        view.copy_in(run.response.offset, &request)?;
        let done = Done { bytes: run.request.bytes }.encode();
        let mut header = FrameHeader { kind: DONE, payload: 8, fds: 0, request: id };
        let mut packet = |change: &mut dyn FnMut(&mut FrameHeader, &mut Vec<u8>)| {
            let mut bytes = Vec::new();
            change(&mut header, &mut bytes);
            let packet = [header.encode().as_slice(), &done, &bytes].concat();
            send(open.fd(), &packet, SendFlags::NOSIGNAL).map(drop)
        };
        match behaviour {
            "garbage" => send(open.fd(), &[0xEE; 100], SendFlags::NOSIGNAL).map(drop)?,
            "short" => send(open.fd(), &header.encode()[..9], SendFlags::NOSIGNAL).map(drop)?,
            "long-length" => packet(&mut |header, _| header.payload = u32::MAX)?,
            "oversized" => {
                send(open.fd(), &vec![0; HEADER_BYTES + MAX_PAYLOAD + 1], SendFlags::NOSIGNAL).map(drop)?
            }
            "wrong-magic" | "wrong-version" => {
                let mut bytes = header.encode();
                bytes[if behaviour == "wrong-magic" { 0 } else { 4 }] ^= 0x40;
                send(open.fd(), &[bytes.as_slice(), &done].concat(), SendFlags::NOSIGNAL).map(drop)?;
            }
            "other-id" => open.send(DONE, 77, &done, &[], None)?,
            "kind" => open.send(0x7777, id, &done, &[], None)?,
            "fds" => open.send(DONE, id, &done, &[open.fd().as_fd()], None)?,
            "too-long" => open.send(DONE, id, &(4u64 << 30).to_le_bytes(), &[], None)?,
            "short-done" => open.send(DONE, id, &done[..7], &[], None)?,
            "die-at-run" => exit(9),
            "kill-at-run" => signal(rustix::process::Signal::KILL),
            "hang-up-at-run" => {
                channel = None;
                continue;
            }
            "twice" => {
                open.send(DONE, id, &done, &[], None)?;
                open.send(DONE, id, &done, &[], None)?;
            }
            _ => open.send(DONE, id, &done, &[], None)?,
        }
    }
    loop {
        thread::park();
    }
}
