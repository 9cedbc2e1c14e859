use std::io::{Read, Seek, Write};

use super::*;

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    file
}

fn content(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().expect("a file");
    file.read_to_end(&mut bytes).expect("read");
    bytes
}

/// The buffer `out`, and no other.
struct Out(Vec<u8>);

impl BoundBytes for Out {
    fn byte_len(&mut self, binding: &str) -> Result<u64, Refusal> {
        if binding == "out" { Ok(self.0.len() as u64) } else { Err(Refusal::Errno(errno::INVAL)) }
    }

    fn store(&mut self, _: &str, at: u64, bytes: &[u8]) -> Result<(), Refusal> {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn load(&mut self, _: &str, at: u64, into: &mut [u8], out: &mut dyn FnMut(&[u8])) -> Result<(), Refusal> {
        into.copy_from_slice(&self.0[at as usize..at as usize + into.len()]);
        out(into);
        Ok(())
    }
}

fn read(tenant: u16, source: u32, offset: u64, bytes: u32) -> IoRequest {
    IoRequest { operation: operation::READ, tenant, source, destination: 0, offset, bytes }
}

fn write(tenant: u16, destination: u32, offset: u64, bytes: u32) -> IoRequest {
    IoRequest { operation: operation::WRITE, tenant, source: 0, destination, offset, bytes }
}

fn fence(tenant: u16, destination: u32) -> IoRequest {
    IoRequest { operation: operation::FENCE, ..write(tenant, destination, 0, 0) }
}

const fn ok(bytes: u32) -> IoReply {
    IoReply::Done { bytes }
}

const fn failed(errno: u32) -> IoReply {
    IoReply::Failed { errno }
}

#[test]
fn reads_are_checked_and_served() {
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let resources = IoResources::default();
    let resource = |range, binding, at| IoResource::new(file(&content), range, binding, at).expect("a range");
    resources.register(3, 7, resource(100..150_100, "out", 16));
    // Promises more than the file has.
    resources.register(3, 8, resource(199_000..300_000, "out", 0));
    resources.register(3, 9, resource(0..100, "nowhere", 0));
    resources.register(3, 10, resource(0..100, "out", 199_901));
    resources.register(3, 11, resource(0..100, "out", u64::MAX));
    let table = [
        (read(3, 7, 0, 0), ok(150_000)),
        (read(3, 7, 10, 20), ok(20)),
        (read(3, 7, 149_990, 10), ok(10)),
        (read(3, 7, 149_990, 11), failed(errno::INVAL)),
        (read(3, 7, 150_000, 0), ok(0)),
        (read(3, 7, 150_001, 0), failed(errno::INVAL)),
        (read(3, 7, u64::MAX, 2), failed(errno::INVAL)),
        (read(3, 8, 0, 0), ok(1000)),
        (read(3, 8, 500, 4000), ok(500)),
        (read(3, 9, 0, 0), failed(errno::INVAL)),
        (read(3, 10, 0, 0), failed(errno::INVAL)),
        (read(3, 11, 1, 1), failed(errno::INVAL)),
        (read(3, 1, 0, 0), failed(errno::NOENT)),
        (read(4, 7, 0, 0), failed(errno::NOENT)),
        (IoRequest { operation: 99, ..read(3, 7, 0, 0) }, failed(errno::NOSYS)),
        (IoRequest { destination: 1, ..read(3, 7, 0, 0) }, failed(errno::INVAL)),
    ];
    for (ask, expected) in table {
        let mut out = Out(vec![0; 200_000]);
        let answer = resources.serve(&ask, &mut out).expect("no device is lost");
        assert_eq!(answer, expected, "{ask:?}");
        let Out(out) = out;
        let IoReply::Done { bytes } = answer else {
            assert!(out.iter().all(|&byte| byte == 0), "{ask:?} was refused and moved bytes");
            continue;
        };
        let (range, to) = if ask.source == 7 { (100, 16) } else { (199_000, 0) };
        let (from, to) = (range + ask.offset as usize, to + ask.offset as usize);
        let bytes = bytes as usize;
        assert_eq!(out[to..to + bytes], content[from..from + bytes], "{ask:?}");
        assert!(out[to + bytes..].iter().all(|&byte| byte == 0), "{ask:?} wrote past its bytes");
    }
}

#[test]
fn writes_are_checked_and_served() {
    let data: Vec<u8> = (0..200_000_u32).map(|n| (n % 249) as u8 + 1).collect();
    let before = [0xEE; 64];
    let table = [
        (write(3, 7, 0, 0), ok(150_000)),
        (write(3, 7, 10, 20), ok(20)),
        (write(3, 7, 149_990, 10), ok(10)),
        (write(3, 7, 149_990, 11), failed(errno::INVAL)),
        (write(3, 7, 150_000, 0), ok(0)),
        (write(3, 7, 150_001, 0), failed(errno::INVAL)),
        (write(3, 7, u64::MAX, 2), failed(errno::INVAL)),
        // To be read only; a buffer that is too short, whose first chunk would fit; no such buffer.
        (write(3, 8, 0, 1), failed(errno::ACCES)),
        (write(3, 9, 0, 150_000), failed(errno::INVAL)),
        (write(3, 10, 0, 1), failed(errno::INVAL)),
        (write(3, 1, 0, 1), failed(errno::NOENT)),
        (write(4, 7, 0, 1), failed(errno::NOENT)),
        (IoRequest { source: 7, ..write(3, 7, 0, 1) }, failed(errno::INVAL)),
        // A READ's way round.
        (IoRequest { operation: operation::WRITE, ..read(3, 7, 0, 1) }, failed(errno::INVAL)),
    ];
    for (ask, expected) in table {
        let kept = file(&before);
        let resources = IoResources::default();
        let resource = |range, binding, at| {
            IoResource::new(kept.try_clone().expect("another"), range, binding, at).expect("a range")
        };
        let writable = |resource: IoResource| resource.writable().expect("opened for writing");
        resources.register(3, 7, writable(resource(100..150_100, "out", 16)));
        resources.register(3, 8, resource(100..150_100, "out", 16));
        resources.register(3, 9, writable(resource(0..150_000, "out", 100_000)));
        resources.register(3, 10, writable(resource(0..100, "nowhere", 0)));
        let mut out = Out(data.clone());
        let answer = resources.serve(&ask, &mut out).expect("no device is lost");
        assert_eq!(answer, expected, "{ask:?}");
        assert_eq!(out.0, data, "{ask:?} changed its source");
        let mut expected = before.to_vec();
        if let IoReply::Done { bytes: bytes @ 1.. } = answer {
            let offset = ask.offset as usize;
            expected.resize(100 + offset, 0);
            expected.extend_from_slice(&data[16 + offset..16 + offset + bytes as usize]);
        }
        assert!(content(&kept) == expected, "{ask:?}");
    }
}

#[test]
fn what_the_system_refuses_is_a_short_write_or_its_error_number() {
    // A disk that is full from the first byte on; a file that cannot be written at a place.
    let full = File::options().write(true).open("/dev/full").expect("a device that is always full");
    let (_reader, pipe) = std::io::pipe().expect("a pipe");
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    for (file, expected) in [(full, 28), (pipe, 29)] {
        let resources = IoResources::default();
        let resource = IoResource::new(file, 0..100, "out", 0).and_then(IoResource::writable);
        resources.register(0, 1, resource.expect("opened for writing"));
        let answer = resources.serve(&write(0, 1, 0, 0), &mut Out(vec![1; 100]));
        assert_eq!(answer.expect("no device is lost"), failed(expected));
    }
}

#[test]
fn a_fence_is_for_the_tenants_own_resources() {
    let resources = IoResources::default();
    let kept = file(&[]);
    let another = || kept.try_clone().expect("another");
    let writable = IoResource::new(another(), 0..100, "out", 0).and_then(IoResource::writable);
    resources.register(3, 0, writable.expect("opened for writing"));
    // What takes writes and cannot be put on disk shows that it was asked to be.
    let null = File::options().write(true).open("/dev/null").expect("there is one");
    let null = IoResource::new(null, 0..100, "out", 0).and_then(IoResource::writable);
    resources.register(3, 1, null.expect("opened for writing"));
    let mut out = Out(vec![5; 100]);
    let mut answer = |ask| resources.serve(&ask, &mut out).expect("no device is lost");
    // Nothing was written.
    assert_eq!(answer(fence(3, 1)), ok(0));
    assert_eq!(answer(write(3, 0, 0, 10)), ok(10));
    assert_eq!(answer(write(3, 1, 0, 10)), ok(10));
    assert_eq!(answer(fence(3, 0)), ok(0));
    assert_eq!(answer(fence(3, 2)), failed(errno::NOENT));
    assert_eq!(answer(fence(4, 0)), failed(errno::NOENT));
    assert_eq!(answer(IoRequest { source: 1, ..fence(3, 0) }), failed(errno::INVAL));
    // Of a tenant that has nothing; then of the one that has, again and again until it succeeds.
    assert_eq!(answer(fence(4, operation::ALL)), ok(0));
    assert_eq!(answer(fence(3, operation::ALL)), failed(errno::INVAL));
    assert_eq!(answer(fence(3, 1)), failed(errno::INVAL));
    assert!(resources.unregister(3, 1));
    assert_eq!(answer(fence(3, operation::ALL)), ok(0));
    assert_eq!(content(&kept), [5; 10]);
}

#[test]
fn files_that_cannot_be_written_in_place_are_not_writable() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    std::fs::write(&path, b"old").expect("written");
    let reads = File::open(&path).expect("a file");
    let appends = File::options().append(true).open(&path).expect("a file");
    for (file, part) in [(reads, "not opened for writing"), (appends, "opened for appending")] {
        let refused = IoResource::new(file, 0..3, "out", 0).and_then(IoResource::writable);
        let refused = refused.expect_err(part).to_string();
        assert!(refused.contains(part), "{refused}");
    }
}

#[test]
fn resources_can_be_replaced_and_taken_back() {
    let resources = IoResources::default();
    resources.register(0, 1, IoResource::new(file(b"old"), 0..3, "out", 0).expect("a range"));
    resources.register(0, 1, IoResource::new(file(b"newer"), 0..5, "out", 0).expect("a range"));
    let mut out = Out(vec![0; 5]);
    let answer = resources.serve(&read(0, 1, 0, 0), &mut out).expect("no device is lost");
    assert_eq!((answer, out.0.as_slice()), (ok(5), b"newer".as_slice()));
    assert!(resources.unregister(0, 1));
    assert!(!resources.unregister(0, 1));
    let answer = resources.serve(&read(0, 1, 0, 0), &mut out);
    assert_eq!(answer.expect("no device is lost"), failed(errno::NOENT));
}

#[test]
fn a_range_that_is_none_is_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    for range in [5..4, 0..u64::MAX] {
        assert!(IoResource::new(file(b""), range, "out", 0).is_err());
    }
}
