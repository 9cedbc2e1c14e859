//! Frames, handshake and arena against a peer that follows the protocol, and one that does not.

use std::error::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};
use vyre_driver::region::SharedRegion;
use vyre_worker::wire::handshake::{self, HELLO, HandshakeError, Hello, READY, REFUSED, Ready, Refusal};
use vyre_worker::wire::{
    ArenaView, Channel, FrameHeader, HEADER_BYTES, MAX_FDS, MAX_PAYLOAD, Malformed, TransferArena, WireError,
};

type Outcome = Result<(), Box<dyn Error>>;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

#[test]
fn frames_arrive_as_sent() -> Outcome {
    let (left, right) = Channel::pair()?;
    for payload in [vec![], vec![7], vec![0xA5; 4096], vec![1; MAX_PAYLOAD]] {
        left.send(9, u64::MAX, &payload, &[], Some(soon()))?;
        let frame = right.receive(Some(soon()))?;
        assert_eq!((frame.kind, frame.request, frame.fds.len()), (9, u64::MAX, 0));
        assert_eq!(frame.payload, payload);
    }
    Ok(())
}

#[test]
fn descriptors_arrive_closed_on_exec() -> Outcome {
    let (left, right) = Channel::pair()?;
    let region = SharedRegion::create(4096)?;
    region.copy_in(0, b"seen")?;
    left.send(1, 2, b"", &[region.fd(); MAX_FDS], None)?;
    let frame = right.receive(None)?;
    assert_eq!(frame.fds.len(), MAX_FDS);
    for fd in frame.fds {
        assert!(rustix::io::fcntl_getfd(&fd)?.contains(rustix::io::FdFlags::CLOEXEC));
        let mut seen = [0; 4];
        SharedRegion::from_fd(fd, false)?.copy_out(0, &mut seen)?;
        assert_eq!(&seen, b"seen");
    }
    Ok(())
}

#[test]
fn too_much_is_refused_before_it_is_sent() -> Outcome {
    let (left, right) = Channel::pair()?;
    let region = SharedRegion::create(1)?;
    let long = left.send(1, 0, &vec![0; MAX_PAYLOAD + 1], &[], None);
    assert!(matches!(long, Err(WireError::TooLarge { what: "bytes", .. })), "{long:?}");
    let many = left.send(1, 0, &[], &[region.fd(); MAX_FDS + 1], None);
    assert!(matches!(many, Err(WireError::TooLarge { what: "descriptors", .. })), "{many:?}");
    let nothing = right.receive(Some(Instant::now()));
    assert!(matches!(nothing, Err(WireError::TimedOut { .. })), "{nothing:?}");
    Ok(())
}

/// What a receiver makes of one raw packet; the frame after it must arrive unharmed.
fn refusal_of(packet: &[u8]) -> Result<Malformed, Box<dyn Error>> {
    let (left, right) = Channel::pair()?;
    send(left.fd(), packet, SendFlags::NOSIGNAL)?;
    left.send(2, 3, b"next", &[], None)?;
    let refused = match right.receive(Some(soon())) {
        Err(WireError::Malformed(malformed)) => malformed,
        other => return Err(format!("{other:?}").into()),
    };
    let next = right.receive(Some(soon()))?;
    assert_eq!((next.kind, next.request, next.payload.as_slice()), (2, 3, b"next".as_slice()));
    Ok(refused)
}

#[test]
fn each_field_of_a_header_is_checked() -> Outcome {
    let good = FrameHeader { kind: 1, payload: 0, fds: 0, request: 5 }.encode();
    let with = |at: usize, value: u8| {
        let mut packet = good;
        packet[at] = value;
        packet
    };
    let field = |malformed: Malformed| match malformed {
        Malformed::Field { field, .. } => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(refusal_of(&with(0, b'W'))?), "magic");
    assert_eq!(field(refusal_of(&with(3, 0))?), "magic");
    assert_eq!(field(refusal_of(&with(4, 2))?), "version");
    assert_eq!(field(refusal_of(&with(8, 1))?), "payload length");
    assert_eq!(field(refusal_of(&with(11, 0xFF))?), "payload length");
    assert_eq!(field(refusal_of(&with(12, 1))?), "descriptor count");
    for at in 24..HEADER_BYTES {
        assert_eq!(field(refusal_of(&with(at, 1))?), "reserved bytes");
    }
    let mut long = good.to_vec();
    long.push(0);
    assert_eq!(field(refusal_of(&long)?), "payload length");
    Ok(())
}

#[test]
fn short_garbage_and_oversized_packets_are_refused() -> Outcome {
    for len in 1..HEADER_BYTES {
        let good = FrameHeader { kind: 1, payload: 0, fds: 0, request: 5 }.encode();
        let refused = refusal_of(&good[..len])?;
        assert!(
            matches!(refused, Malformed::Short { what: "frame", got, .. } if got == len as u64),
            "{refused:?}"
        );
    }
    assert!(matches!(refusal_of(&[0xEE; 500])?, Malformed::Field { field: "magic", .. }));
    let oversized = refusal_of(&vec![0; HEADER_BYTES + MAX_PAYLOAD + 1])?;
    assert!(matches!(oversized, Malformed::Oversized { .. }), "{oversized:?}");
    Ok(())
}

#[test]
fn too_many_descriptors_are_refused_and_closed() -> Outcome {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};
    let (left, right) = Channel::pair()?;
    let (ours, theirs) = rustix::pipe::pipe()?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let many = [theirs.as_fd(); MAX_FDS + 4];
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    let header = FrameHeader { kind: 1, payload: 0, fds: MAX_FDS as u32, request: 0 }.encode();
    sendmsg(left.fd(), &[std::io::IoSlice::new(&header)], &mut control, SendFlags::NOSIGNAL)?;
    let refused = right.receive(Some(soon()));
    assert!(matches!(refused, Err(WireError::Malformed(Malformed::Descriptors { .. }))), "{refused:?}");
    // Every copy of the writing end is gone: the reading end is at its end.
    drop(theirs);
    assert_eq!(rustix::io::read(&ours, &mut [0; 1])?, 0);
    Ok(())
}

#[test]
fn a_closed_peer_is_closed_both_ways() -> Outcome {
    let (left, right) = Channel::pair()?;
    left.send(1, 1, b"last words", &[], None)?;
    drop(left);
    assert_eq!(right.receive(None)?.payload, b"last words");
    assert!(matches!(right.receive(None), Err(WireError::Closed)));
    assert!(matches!(right.send(1, 1, b"", &[], None), Err(WireError::Closed)));
    // A peer that left something unread resets the connection instead.
    let (left, right) = Channel::pair()?;
    right.send(1, 1, b"unread", &[], None)?;
    drop(left);
    assert!(matches!(right.receive(Some(soon())), Err(WireError::Closed)));
    Ok(())
}

#[test]
fn deadlines_near_and_far_pass() -> Outcome {
    let (_left, right) = Channel::pair()?;
    for wait in [Duration::ZERO, Duration::from_millis(3), Duration::from_millis(250)] {
        let begun = Instant::now();
        let nothing = right.receive(Some(begun + wait));
        assert!(matches!(nothing, Err(WireError::TimedOut { .. })), "{nothing:?}");
        assert!(begun.elapsed() >= wait, "{:?} of {wait:?}", begun.elapsed());
    }
    Ok(())
}

#[test]
fn a_frame_wakes_a_receiver_with_and_without_a_deadline() -> Outcome {
    for until in [None, Some(Duration::from_millis(60)), Some(Duration::from_secs(60))] {
        let (left, right) = Channel::pair()?;
        let (begun, ready) = mpsc::channel();
        let receiver = thread::spawn(move || {
            begun.send(()).ok();
            right.receive(until.map(|until| Instant::now() + until)).map(|frame| frame.kind).ok()
        });
        ready.recv()?;
        left.send(42, 0, b"", &[], None)?;
        assert_eq!(receiver.join().map_err(|_| "panic")?, Some(42));
    }
    Ok(())
}

#[test]
fn a_peer_that_does_not_read_costs_no_more_than_the_deadline() -> Outcome {
    let (left, right) = Channel::pair()?;
    let mut sent = 0;
    let refused = loop {
        match left.send(1, sent, &[0; 4096], &[], Some(Instant::now() + Duration::from_millis(20))) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, WireError::TimedOut { .. }), "{refused:?}");
    assert!(sent > 0);
    for request in 0..sent {
        assert_eq!(right.receive(Some(soon()))?.request, request);
    }
    left.send(1, sent, &[], &[], Some(soon()))?;
    Ok(())
}

#[test]
fn only_such_a_socket_is_a_channel() -> Outcome {
    let (stream, _other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    assert!(matches!(Channel::from_fd(stream), Err(WireError::NotAChannel { .. })));
    let (pipe, _other) = rustix::pipe::pipe()?;
    assert!(matches!(Channel::from_fd(pipe), Err(WireError::NotAChannel { .. })));
    // One that came non-blocking still waits.
    let (left, right) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let (left, right) = (Channel::from_fd(left)?, Channel::from_fd(right)?);
    let receiver = thread::spawn(move || right.receive(None).map(|frame| frame.kind).ok());
    left.send(7, 0, b"", &[], None)?;
    assert_eq!(receiver.join().map_err(|_| "panic")?, Some(7));
    Ok(())
}

/// What the parent makes of a worker that answers HELLO with this frame.
fn answer_to_hello(kind: u16, request: u64, payload: &[u8]) -> Result<Ready, HandshakeError> {
    let (parent, worker) = Channel::pair()?;
    let arena = TransferArena::create(4096)?;
    worker.send(kind, request, payload, &[], None)?;
    handshake::connect(&parent, &Hello::new("echo", arena.capacity(), vec![]), &[arena.fd()], soon())
}

#[test]
fn a_handshake_reaches_both_sides() -> Outcome {
    let (parent, worker) = Channel::pair()?;
    let arena = TransferArena::create(1 << 16)?;
    let hello = Hello::new("echo", arena.capacity(), vec![1, 2, 3]);
    let expected = hello.clone();
    let child = thread::spawn(move || -> Result<ArenaView, HandshakeError> {
        let (hello, fd, more) = handshake::accept(&worker, Some(soon()))?;
        assert_eq!((hello.clone(), more.len()), (expected, 0));
        handshake::ready(&worker, "here")?;
        Ok(ArenaView::attach(fd, hello.arena_bytes)?)
    });
    let ready = handshake::connect(&parent, &hello, &[arena.fd()], soon())?;
    assert_eq!(ready.text, "here");
    let view = child.join().map_err(|_| "panic")??;
    let staging = arena.allocate(5, soon())?;
    staging.copy_in(0, b"bytes")?;
    assert_eq!(view.read(staging.offset(), 5)?, b"bytes");
    view.copy_in(staging.offset(), b"other")?;
    let mut back = [0; 5];
    staging.copy_out(0, &mut back)?;
    assert_eq!(&back, b"other");
    Ok(())
}

#[test]
fn a_worker_that_does_not_answer_hello_rightly_is_refused() {
    let wrong = answer_to_hello(0x10, 0, b"");
    assert!(
        matches!(wrong, Err(HandshakeError::Wire(WireError::Malformed(Malformed::Kind { got: 0x10, .. })))),
        "{wrong:?}"
    );
    let wrong = answer_to_hello(READY, 1, &Ready { version: 1, text: String::new() }.encode());
    assert!(
        matches!(wrong, Err(HandshakeError::Wire(WireError::Malformed(Malformed::Request { got: 1, .. })))),
        "{wrong:?}"
    );
    let wrong = answer_to_hello(READY, 0, &Ready { version: 2, text: String::new() }.encode());
    assert!(matches!(wrong, Err(HandshakeError::Version { got: 2, expected: 1 })), "{wrong:?}");
    // The text is said to be 4 GiB long; it is not believed.
    let wrong = answer_to_hello(READY, 0, &[1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]);
    assert!(
        matches!(
            wrong,
            Err(HandshakeError::Wire(WireError::Malformed(Malformed::Short { expected: 4_294_967_303, .. })))
        ),
        "{wrong:?}"
    );
    let refused = answer_to_hello(REFUSED, 0, &Refusal { code: 70, text: "no\x1b[2J".into() }.encode());
    assert!(
        matches!(&refused, Err(HandshakeError::Refused(Refusal { code: 70, text })) if text == "no\u{FFFD}[2J"),
        "{refused:?}"
    );
}

#[test]
fn ready_steers_no_terminal_and_has_no_descriptors() -> Outcome {
    let payload = Ready { version: 1, text: "a\x1b[2Jb".into() }.encode();
    assert_eq!(answer_to_hello(READY, 0, &payload)?.text, "a\u{FFFD}[2Jb");
    let (parent, worker) = Channel::pair()?;
    let arena = TransferArena::create(4096)?;
    worker.send(READY, 0, &payload, &[arena.fd()], None)?;
    let wrong = handshake::connect(&parent, &Hello::new("echo", 4096, vec![]), &[arena.fd()], soon());
    assert!(
        matches!(wrong, Err(HandshakeError::Wire(WireError::Malformed(Malformed::Bound { got: 1, .. })))),
        "{wrong:?}"
    );
    Ok(())
}

#[test]
fn a_worker_that_is_silent_or_gone_is_an_error_by_the_deadline() -> Outcome {
    let arena = TransferArena::create(4096)?;
    let hello = Hello::new("echo", arena.capacity(), vec![]);
    let (parent, worker) = Channel::pair()?;
    let until = Instant::now() + Duration::from_millis(30);
    let silent = handshake::connect(&parent, &hello, &[arena.fd()], until);
    assert!(matches!(silent, Err(HandshakeError::Wire(WireError::TimedOut { .. }))), "{silent:?}");
    drop(worker);
    let gone = handshake::connect(&parent, &hello, &[arena.fd()], soon());
    assert!(matches!(gone, Err(HandshakeError::Wire(WireError::Closed))), "{gone:?}");
    Ok(())
}

#[test]
fn a_parent_of_another_version_is_told_so() -> Outcome {
    let (parent, worker) = Channel::pair()?;
    let hello = Hello { version: 9, ..Hello::new("echo", 4096, vec![]) };
    parent.send(HELLO, 0, &hello.encode(), &[], None)?;
    let refused = handshake::accept(&worker, Some(soon()));
    assert!(matches!(refused, Err(HandshakeError::Version { got: 9, expected: 1 })), "{refused:?}");
    let answer = parent.receive(Some(soon()))?;
    assert_eq!(answer.kind, REFUSED);
    assert_eq!(Refusal::decode(&answer.payload)?.code, handshake::REFUSED_VERSION);
    // No arena.
    parent.send(HELLO, 0, &Hello::new("echo", 4096, vec![]).encode(), &[], None)?;
    let refused = handshake::accept(&worker, Some(soon()));
    assert!(matches!(refused, Err(HandshakeError::Wire(WireError::Malformed(_)))), "{refused:?}");
    Ok(())
}

#[test]
fn an_empty_arena_can_be_given_away_whole() -> Outcome {
    for bytes in [1, 64, 100, 4096, 5000, 1 << 20, 1_000_003, (16 << 20) + 64, 123_456_789] {
        let arena = TransferArena::create(bytes)?;
        assert!(arena.capacity() >= bytes && arena.capacity() <= bytes + bytes / 8 + 64, "{bytes}");
        for _ in 0..3 {
            let whole = arena.allocate(arena.capacity(), Instant::now())?;
            let more = arena.allocate(1, Instant::now());
            assert!(matches!(more, Err(WireError::ArenaFull { .. })), "{bytes}: {more:?}");
            drop(whole);
        }
    }
    Ok(())
}

#[test]
fn room_is_waited_for_in_order() -> Outcome {
    let arena = TransferArena::create(4096)?;
    let held = arena.allocate(64, soon())?;
    let (sender, order) = mpsc::channel();
    let whole = thread::spawn({
        let (arena, sender) = (arena.clone(), sender.clone());
        move || {
            let range = arena.allocate(4096, soon());
            sender.send("large").ok();
            range.is_ok()
        }
    });
    // Until the large one waits, small ones are given out at once; from then on they come after it.
    while arena.allocate(64, Instant::now()).is_ok() {
        thread::yield_now();
    }
    let small = thread::spawn({
        let arena = arena.clone();
        move || {
            let range = arena.allocate(64, soon());
            sender.send("small").ok();
            range.is_ok()
        }
    });
    let early = order.recv_timeout(Duration::from_millis(50));
    assert!(early.is_err(), "{early:?} although the first range is still held");
    drop(held);
    assert_eq!(order.recv()?, "large");
    assert_eq!(order.recv()?, "small");
    assert!(whole.join().map_err(|_| "panic")? && small.join().map_err(|_| "panic")?);
    Ok(())
}

#[test]
fn who_stops_waiting_lets_the_next_in() -> Outcome {
    let arena = TransferArena::create(4096)?;
    let _held = arena.allocate(64, soon())?;
    let large = thread::spawn({
        let arena = arena.clone();
        move || arena.allocate(4096, Instant::now() + Duration::from_millis(100)).is_err()
    });
    while arena.allocate(64, Instant::now()).is_ok() {
        thread::yield_now();
    }
    assert!(arena.allocate(64, soon()).is_ok());
    assert!(large.join().map_err(|_| "panic")?);
    Ok(())
}

#[test]
fn ranges_are_checked_on_both_sides() -> Outcome {
    let arena = TransferArena::create(4096)?;
    let capacity = arena.capacity();
    assert!(matches!(arena.allocate(capacity + 1, soon()), Err(WireError::OutOfRange { .. })));
    let staging = arena.allocate(10, soon())?;
    for (offset, len) in [(0, 11), (10, 1), (11, 0), (u64::MAX, 1), (u64::MAX, 0)] {
        let refused = staging.copy_in(offset, &vec![0; len]);
        assert!(matches!(refused, Err(WireError::OutOfRange { .. })), "{offset} {len}: {refused:?}");
        let refused = staging.copy_out(offset, &mut vec![0; len]);
        assert!(matches!(refused, Err(WireError::OutOfRange { .. })), "{offset} {len}: {refused:?}");
    }
    staging.copy_in(10, &[])?;
    let view = ArenaView::attach(arena.fd().try_clone_to_owned()?, capacity)?;
    for (offset, len) in
        [(0, capacity + 1), (capacity, 1), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)]
    {
        let refused = view.read(offset, len);
        assert!(matches!(refused, Err(WireError::OutOfRange { .. })), "{offset} {len}: {refused:?}");
    }
    assert_eq!(view.read(capacity, 0)?, b"");
    let nothing = arena.allocate(0, Instant::now())?;
    assert!(nothing.is_empty());
    Ok(())
}

#[test]
fn an_arena_that_could_shrink_is_refused() -> Outcome {
    let fd: OwnedFd = rustix::fs::memfd_create(
        c"unsealed",
        rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING,
    )?;
    rustix::fs::ftruncate(&fd, 4096)?;
    let refused = ArenaView::attach(fd, 4096);
    assert!(matches!(refused, Err(WireError::Region(_))), "{refused:?}");
    let arena = TransferArena::create(4096)?;
    let refused = ArenaView::attach(arena.fd().try_clone_to_owned()?, arena.capacity() + 1);
    assert!(matches!(refused, Err(WireError::Region(_))), "{refused:?}");
    Ok(())
}
