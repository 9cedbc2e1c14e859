//! A kernel worker whose parent sends the input as packets, garbage among them. Nothing panics, nothing outside of
//! the ranges asked for is written, and every frame that is well formed is answered until one that is not.
#![no_main]

use std::sync::OnceLock;
use std::time::Instant;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rustix::net::{SendFlags, send};
use vyre_worker::kernel::{self, CLOSE, DONE, PING, PONG, RUN, Range, Response, Run, Start};
use vyre_worker::wire::handshake::{Hello, REFUSED};
use vyre_worker::wire::{Channel, FrameHeader, TransferArena};

#[derive(Arbitrary, Debug)]
enum Packet {
    Raw(Vec<u8>),
    Frame { kind: u16, request: u64, payload: Vec<u8> },
    Run { request: u64, ranges: [u16; 4], large: u8, limit: u64 },
    Ping(u64, Vec<u8>),
}

const ARENA: u64 = 64 * 1024;

fn arena() -> &'static TransferArena {
    static SHARED: OnceLock<TransferArena> = OnceLock::new();
    SHARED.get_or_init(|| TransferArena::create(ARENA).expect("an arena"))
}

fuzz_target!(|packets: Vec<Packet>| {
    let (parent, worker) = Channel::pair().expect("a socket pair");
    let arena = arena();
    let mut expected = Vec::new();
    for packet in packets.iter().take(16) {
        let (kind, request, payload) = match packet {
            Packet::Raw(bytes) => {
                let bytes = &bytes[..bytes.len().min(2000)];
                // An empty packet reads as the end of the channel.
                if bytes.is_empty() || send(parent.fd(), bytes, SendFlags::NOSIGNAL).is_err() {
                    continue;
                }
                if FrameHeader::decode(bytes, 0).is_err() {
                    break;
                }
                return;
            }
            Packet::Frame { kind, request, payload } => {
                (*kind, *request, payload[..payload.len().min(2000)].to_vec())
            }
            Packet::Run { request, ranges: [a, b, c, d], large, limit } => {
                // Most ranges are inside; some are far outside.
                let far = |at: u8, word: u16| {
                    if large & 1 << at != 0 { u64::MAX - u64::from(word) } else { word.into() }
                };
                let run = Run {
                    request: Range { offset: far(0, *a), bytes: far(1, *b) },
                    response: Range { offset: far(2, *c), bytes: far(3, *d) },
                    limit: (*limit != 0).then_some(std::time::Duration::from_nanos(*limit)),
                };
                (RUN, *request, run.encode().to_vec())
            }
            Packet::Ping(request, payload) => (PING, *request, payload[..payload.len().min(2000)].to_vec()),
        };
        if kind == CLOSE {
            break;
        }
        parent.send(kind, request, &payload, &[], Some(Instant::now())).expect("room for 16 frames");
        expected.push((kind, request, payload));
    }
    // Ends a worker that has not ended before.
    parent.send(CLOSE, 0, &[], &[], Some(Instant::now())).expect("room for 17 frames");
    let hello = Hello::new("fuzz", ARENA, vec![0; 4]);
    let _ = Start::from_hello(&hello);
    let fd = arena.fd().try_clone_to_owned().expect("a descriptor");
    let echo = |request: &[u8], response: &mut Response<'_>| response.write(request);
    let _ = kernel::serve(&worker, fd, &hello, || Ok(()), echo);
    // The worker's end stays open until its answers are read: one that is closed with something unread hides them.
    for (kind, request, payload) in expected {
        let answer = match parent.receive(Some(Instant::now())) {
            Ok(answer) => answer,
            Err(error) => panic!("{kind:#x} was not answered: {error}"),
        };
        assert_eq!(answer.request, request);
        match kind {
            PING => assert_eq!((answer.kind, answer.payload), (PONG, payload)),
            RUN => assert!(answer.kind == DONE || answer.kind == REFUSED),
            _ => assert_eq!(answer.kind, REFUSED),
        }
    }
});
