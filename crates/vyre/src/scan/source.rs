//! Reading a file that somebody else may be writing to.
//!
//! Files are read, never mapped: a mapped file that shrinks kills the process that touches it. Length and
//! time of modification are compared before and after, so a file that changed is reported as such and not
//! scanned half old and half new. Files that the kernel makes up, as in /proc and /sys, say of themselves that
//! they have no bytes, or some number: of them, what can be read is scanned.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat};
use thiserror::Error;

use super::producer::KEEP_BYTES;

/// Why a file was not scanned.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// It could not be opened, or its directory not be read.
    #[error("cannot open")]
    Open(#[source] io::Error),
    /// It could not be read to its end.
    #[error("cannot read")]
    Read(#[source] io::Error),
    /// It is something else by now, or always was: a pipe, a device, a socket.
    #[error("not a regular file; name files and folders")]
    NotRegular,
    /// It changed while it was scanned.
    #[error("changed while it was scanned ({0}); scan it again")]
    Changed(&'static str),
    /// It says of itself that it has no bytes, and has more than are kept of such a file.
    #[error("has no length, and more than {0} bytes; copy it to a file and scan that")]
    Endless(u64),
    /// There is not enough memory for it, and positions of matches are found in whole files only.
    #[error(
        "{0} bytes do not fit into memory, as finding matches in them takes; split it, or allow more memory"
    )]
    TooLarge(u64),
}

/// A file open for scanning.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    stat: Stat,
    len: u64,
    read: u64,
}

impl Source {
    /// Opens a regular file. Nothing blocks, should it have become a pipe.
    pub(super) fn open(path: &Path) -> Result<Source, FileError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| FileError::Open(e.into()))?;
        let stat = fstat(&file).map_err(|e| FileError::Open(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NotRegular);
        }
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Source { file: file.into(), stat, len, read: 0 })
    }

    /// Bytes in the file: when it was opened, or as many as could be read once it was read whole.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads all of a file into an empty buffer, and looks whether it changed meanwhile. Its length is then
    /// that of what was read.
    pub(super) fn read_whole(&mut self, into: &mut Vec<u8>) -> Result<(), FileError> {
        let most = if self.len == 0 { KEEP_BYTES } else { self.len };
        let room = usize::try_from(self.len).map_err(|_| FileError::TooLarge(self.len))?;
        into.try_reserve_exact(room).map_err(|_| FileError::TooLarge(self.len))?;
        let got = (&mut self.file).take(most).read_to_end(into).map_err(FileError::Read)? as u64;
        let endless = self.len == 0 && got == most;
        (self.len, self.read) = (got, got);
        self.check()?;
        if endless { Err(FileError::Endless(most)) } else { Ok(()) }
    }

    /// Appends the next `bytes` bytes, or what is left if that is less.
    pub(super) fn read(&mut self, bytes: usize, into: &mut Vec<u8>) -> Result<usize, FileError> {
        let left = self.len().saturating_sub(self.read).min(bytes as u64);
        into.try_reserve(bytes.min(left as usize)).map_err(|_| FileError::TooLarge(self.len()))?;
        let got = (&mut self.file).take(left).read_to_end(into).map_err(FileError::Read)?;
        if (got as u64) < left {
            return Err(FileError::Changed("it shrank"));
        }
        self.read += left;
        Ok(got)
    }

    /// Begins again at the first byte.
    pub(super) fn rewind(&mut self) -> Result<(), FileError> {
        self.read = 0;
        self.file.seek(SeekFrom::Start(0)).map(drop).map_err(FileError::Read)
    }

    /// Whether it is still the file that was opened.
    pub(super) fn check(&self) -> Result<(), FileError> {
        let now = fstat(self.file.as_fd()).map_err(|e| FileError::Read(e.into()))?;
        let (before, was) = (&self.stat, "its time of modification differs");
        if now.st_size < before.st_size {
            Err(FileError::Changed("it shrank"))
        } else if now.st_size > before.st_size {
            Err(FileError::Changed("it grew"))
        } else if (now.st_mtime, now.st_mtime_nsec) != (before.st_mtime, before.st_mtime_nsec) {
            Err(FileError::Changed(was))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;

    fn read_all(source: &mut Source) -> Result<Vec<u8>, FileError> {
        let mut bytes = Vec::new();
        while source.read(3, &mut bytes)? > 0 {}
        source.check()?;
        Ok(bytes)
    }

    #[test]
    fn a_quiet_file_is_read_and_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("f");
        for content in [&b""[..], b"1", b"123", b"1234567"] {
            fs::write(&path, content).expect("written");
            let mut source = Source::open(&path).expect("opened");
            assert_eq!(read_all(&mut source).expect("read"), content);
            source.rewind().expect("rewound");
            assert_eq!(read_all(&mut source).expect("read again"), content);
            let (mut source, mut whole) = (Source::open(&path).expect("opened"), Vec::new());
            source.read_whole(&mut whole).expect("read as a whole");
            assert_eq!((whole.as_slice(), source.len()), (content, content.len() as u64));
        }
    }

    #[test]
    fn of_a_file_that_lies_about_its_length_what_can_be_read_is_read() {
        for path in ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"] {
            let (Ok(expected), Ok(mut source)) = (fs::read(path), Source::open(Path::new(path))) else {
                continue;
            };
            let mut bytes = Vec::new();
            source.read_whole(&mut bytes).expect(path);
            assert_ne!(fs::metadata(path).expect("there").len(), source.len(), "{path} does not lie");
            // Numbers in it differ from one moment to the next, but never the first line.
            let line = |bytes: &[u8]| bytes.split(|&byte| byte == b'\n').next().map(<[u8]>::to_vec);
            assert_eq!((line(&bytes), bytes.len() as u64), (line(&expected), source.len()));
        }
    }

    #[test]
    fn a_change_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("f");
        type Change = fn(&Path);
        let changes: [(Change, &str); 4] = [
            (|p| File::options().write(true).open(p).and_then(|f| f.set_len(4)).expect("cut"), "it shrank"),
            (
                |p| File::options().append(true).open(p).and_then(|mut f| f.write_all(b"x")).expect("longer"),
                "it grew",
            ),
            (|p| fs::write(p, b"").expect("emptied"), "it shrank"),
            (
                |p| {
                    let file = File::options().write(true).open(p).expect("opened");
                    file.set_modified(std::time::UNIX_EPOCH).expect("touched");
                },
                "its time of modification differs",
            ),
        ];
        for (change, expected) in changes {
            fs::write(&path, b"0123456789").expect("written");
            let mut source = Source::open(&path).expect("opened");
            let mut bytes = Vec::new();
            source.read(6, &mut bytes).expect("a part");
            change(&path);
            let error = read_all(&mut source).expect_err(expected);
            assert!(matches!(error, FileError::Changed(why) if why == expected), "{error}");

            fs::write(&path, b"0123456789").expect("written");
            let mut source = Source::open(&path).expect("opened");
            change(&path);
            let error = source.read_whole(&mut Vec::new()).expect_err(expected);
            assert!(matches!(error, FileError::Changed(why) if why == expected), "{error}");
        }
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(matches!(Source::open(dir.path()), Err(FileError::NotRegular)));
        assert!(matches!(Source::open(Path::new("/dev/null")), Err(FileError::NotRegular)));
        assert!(matches!(Source::open(&dir.path().join("none")), Err(FileError::Open(_))));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .expect("made");
        assert!(matches!(Source::open(&pipe), Err(FileError::NotRegular)));
    }
}
