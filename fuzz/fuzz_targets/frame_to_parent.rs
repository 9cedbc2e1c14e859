//! A parent whose worker sends the input as packets. Nothing panics, no length is believed, a packet that was
//! refused hides none behind it, and whatever is accepted means the same written again.
#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use rustix::net::{SendFlags, send};
use vyre_worker::kernel::{Done, Run, Start};
use vyre_worker::wire::handshake::{self, Hello, Ready, Refusal};
use vyre_worker::wire::{Channel, FrameHeader, Malformed, TransferArena, WireError};

fuzz_target!(|packets: Vec<Vec<u8>>| {
    for bytes in &packets {
        if let Ok((header, payload)) =
            FrameHeader::decode(bytes, 1).or_else(|_| FrameHeader::decode(bytes, 0))
        {
            assert_eq!([header.encode().as_slice(), payload].concat(), *bytes);
            decode_all(payload);
        }
        decode_all(bytes);
    }
    let (parent, worker) = Channel::pair().expect("a socket pair");
    let mut sent = 0;
    for bytes in packets.iter().take(16).filter(|bytes| !bytes.is_empty()) {
        let bytes = &bytes[..bytes.len().min(2000)];
        sent += usize::from(send(worker.fd(), bytes, SendFlags::NOSIGNAL).is_ok());
    }
    let arena = TransferArena::create(64).expect("an arena");
    let hello = Hello::new("fuzz", 64, vec![]);
    // It has the first packet, whatever comes of it.
    let _ = handshake::connect(&parent, &hello, &[arena.fd()], Instant::now());
    for _ in 1..sent {
        let received = parent.receive(Some(Instant::now()));
        assert!(matches!(received, Ok(_) | Err(WireError::Malformed(_))), "{received:?}");
    }
    let nothing = parent.receive(Some(Instant::now()));
    assert!(matches!(nothing, Err(WireError::TimedOut { .. })), "{nothing:?}");
});

fn decode_all(payload: &[u8]) {
    if let Ok(hello) = Hello::decode(payload) {
        assert_eq!(hello.encode(), payload);
        let _: Result<Start, Malformed> = Start::from_hello(&hello);
    }
    if let Ok(ready) = Ready::decode(payload) {
        assert_eq!(ready.encode(), payload);
    }
    if let Ok(refusal) = Refusal::decode(payload)
        && payload.len() < 60_000
    {
        assert_eq!(refusal.encode(), payload);
    }
    if let Ok(run) = Run::decode(payload) {
        assert_eq!(run.encode(), payload);
    }
    if let Ok(done) = Done::decode(payload) {
        assert_eq!(done.encode(), payload);
    }
}
