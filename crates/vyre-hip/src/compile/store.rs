//! Code objects on disk, shared by every process of a user.
//!
//! An entry is one file, named by its key and written beside it, then renamed: a reader sees all of it or
//! none. What is in it is checked against a digest on every load, so a torn or damaged file is found out. The
//! time of modification is the time of last use; the least recently used go when the sizes exceed the bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::resources::KernelResources;

/// Changes whenever entries or keys change their meaning; older entries are then never found.
pub(crate) const VERSION: u32 = 2;

const MAGIC: &[u8; 8] = b"VYRECODE";
const HEADER: usize = 8 + 4 + 4 + 32;
const EXTENSION: &str = "code";
const TEMPORARY: &str = ".new-";

/// What a temporary file of a process that died is left for, lest it belong to a slow one.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) about: About,
    pub(crate) image: Vec<u8>,
}

/// The part of an entry that is not the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) resources: Vec<KernelResources>,
}

/// What loading found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    Entry(Entry),
    Absent,
    /// The file is there and not what was written, for this reason.
    Corrupt(&'static str),
}

/// A folder of entries.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// Bytes of entries to keep at most, the newest entry excepted.
    bound: u64,
}

/// Held while a key is being compiled. The system lets go of it when the process dies.
pub(crate) struct KeyLock {
    file: File,
    path: PathBuf,
}

impl Store {
    pub(crate) fn new(folder: PathBuf, bound: u64) -> Self {
        Self { folder, bound }
    }

    pub(crate) fn load(&self, key: &str) -> Loaded {
        let path = self.entry(key);
        let Ok(bytes) = fs::read(&path) else { return Loaded::Absent };
        match decode(&bytes) {
            Ok(entry) => {
                // Where this fails, the entry only looks older than it is.
                let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                Loaded::Entry(entry)
            }
            Err(why) => Loaded::Corrupt(why),
        }
    }

    /// Waits until no other thread or process compiles `key`.
    pub(crate) fn lock(&self, key: &str) -> io::Result<KeyLock> {
        fs::create_dir_all(&self.folder)?;
        let path = self.folder.join(format!("{key}.lock"));
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            let lock = KeyLock { file, path: path.clone() };
            // Who held it may have removed the file, and a third party may hold its successor.
            if lock.is_current() {
                return Ok(lock);
            }
        }
    }

    /// Writes an entry, then makes room. Returns how many entries had to go.
    pub(crate) fn store(&self, key: &str, entry: &Entry) -> io::Result<u64> {
        replace_file(&self.entry(key), &encode(entry)?)?;
        self.evict(key)
    }

    pub(crate) fn remove(&self, key: &str) {
        // Gone already is as good.
        let _ = fs::remove_file(self.entry(key));
    }

    pub(crate) fn entry(&self, key: &str) -> PathBuf {
        self.folder.join(key).with_extension(EXTENSION)
    }

    fn evict(&self, newest: &str) -> io::Result<u64> {
        let now = SystemTime::now();
        let mut entries = Vec::new();
        let mut total = 0u64;
        for file in fs::read_dir(&self.folder)? {
            let path = file?.path();
            // Another process may evict at the same time.
            let Ok(metadata) = path.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                total = total.saturating_add(metadata.len());
                entries.push((used, metadata.len(), path));
            } else if name.starts_with(TEMPORARY) && now.duration_since(used).is_ok_and(|age| age > ABANDONED)
            {
                let _ = fs::remove_file(&path);
            }
        }
        entries.sort();
        let mut evicted = 0;
        for (_, bytes, path) in entries {
            if total <= self.bound {
                break;
            }
            if path.file_stem().is_some_and(|stem| stem == newest) {
                continue;
            }
            if fs::remove_file(&path).is_ok() {
                evicted += 1;
            }
            total = total.saturating_sub(bytes);
            remove_unheld(&path.with_extension("lock"));
        }
        Ok(evicted)
    }
}

/// Removes a lock file that nobody holds, while holding it: see `Store::lock`.
fn remove_unheld(path: &Path) {
    let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
    if file.try_lock().is_ok() {
        let lock = KeyLock { file, path: path.to_path_buf() };
        if lock.is_current() {
            let _ = fs::remove_file(path);
        }
    }
}

impl KeyLock {
    fn is_current(&self) -> bool {
        let inode = |metadata: io::Result<fs::Metadata>| metadata.ok().map(|m| (m.dev(), m.ino()));
        let held = inode(self.file.metadata());
        held.is_some() && held == inode(fs::metadata(&self.path))
    }
}

/// Writes a file so that others see the old one or the new one, and never a part.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(bytes)?;
    // Written times come from a coarser clock than the times of use that they are compared with.
    file.as_file().set_modified(SystemTime::now())?;
    file.persist(path)?;
    Ok(())
}

fn encode(entry: &Entry) -> io::Result<Vec<u8>> {
    let about = serde_json::to_vec(&entry.about)?;
    let about_bytes = u32::try_from(about.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut body = about;
    body.extend_from_slice(&entry.image);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&about_bytes);
    bytes.extend_from_slice(digest_of(about_bytes, &body).as_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn digest_of(about_bytes: [u8; 4], body: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&about_bytes).update(body);
    hasher.finalize()
}

fn decode(bytes: &[u8]) -> Result<Entry, &'static str> {
    let (header, body) = bytes.split_at_checked(HEADER).ok_or("shorter than its header")?;
    let (magic, rest) = header.split_at_checked(8).ok_or("shorter than its header")?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or("shorter than its header")?;
    let (about_bytes, digest) = rest.split_first_chunk::<4>().ok_or("shorter than its header")?;
    if magic != MAGIC || u32::from_le_bytes(*version) != VERSION {
        return Err("not an entry of this version");
    }
    if digest_of(*about_bytes, body).as_bytes().as_slice() != digest {
        return Err("its digest differs");
    }
    let about_len = usize::try_from(u32::from_le_bytes(*about_bytes)).map_err(|_| "too large")?;
    let (about, image) = body.split_at_checked(about_len).ok_or("its lengths disagree")?;
    let about = serde_json::from_slice(about).map_err(|_| "its description is not readable")?;
    Ok(Entry { about, image: image.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    fn entry(image: &[u8]) -> Entry {
        let kernel = KernelResources { entry: "k".to_owned(), registers: 7, ..KernelResources::default() };
        Entry { about: About { resources: vec![kernel] }, image: image.to_vec() }
    }

    #[test]
    fn every_damage_is_found() {
        let bytes = encode(&entry(b"image")).expect("encodes");
        assert_eq!(decode(&bytes), Ok(entry(b"image")));
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at} changed");
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert!(decode(&longer).is_err(), "one byte more");
    }

    #[test]
    fn the_least_recently_used_entries_go() {
        let folder = tempfile::tempdir().expect("folder");
        let size = encode(&entry(&[0; 1000])).expect("encodes").len() as u64;
        let store = Store::new(folder.path().join("objects"), 3 * size);
        for key in ["a", "b", "c"] {
            assert_eq!(store.store(key, &entry(&[0; 1000])).expect("stores"), 0);
        }
        drop(store.lock("b").expect("locks"));
        assert!(matches!(store.load("a"), Loaded::Entry(_)), "uses a, so b is the oldest");
        assert_eq!(store.store("d", &entry(&[0; 1000])).expect("stores"), 1);
        assert_eq!(store.load("b"), Loaded::Absent);
        assert!(!folder.path().join("objects/b.lock").exists(), "its lock goes with it");
        for key in ["a", "c", "d"] {
            assert!(matches!(store.load(key), Loaded::Entry(_)), "{key} stays");
        }
        assert_eq!(store.store("big", &entry(&[0; 9000])).expect("stores"), 3);
        assert!(matches!(store.load("big"), Loaded::Entry(_)), "the newest stays whatever its size");
    }

    #[test]
    fn one_holds_a_key_even_when_its_file_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::new(folder.path().to_path_buf(), u64::MAX);
        let held = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lock = store.lock("k").expect("locks");
                        assert!(!held.swap(true, Relaxed), "two hold the key");
                        remove_unheld(&lock.path);
                        assert!(lock.path.exists(), "a held lock is not removed");
                        std::thread::yield_now();
                        held.store(false, Relaxed);
                        // As evicting does: while holding it, and as the last act.
                        fs::remove_file(&lock.path).expect("removes");
                    }
                });
            }
        });
    }

    #[test]
    fn abandoned_files_are_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::new(folder.path().to_path_buf(), u64::MAX);
        let (old, young) = (folder.path().join(".new-old"), folder.path().join(".new-young"));
        for path in [&old, &young] {
            fs::write(path, "part").expect("writes");
        }
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        File::options().write(true).open(&old).and_then(|f| f.set_modified(long_ago)).expect("sets the time");
        store.store("k", &entry(b"")).expect("stores");
        assert!(!old.exists() && young.exists());
    }
}
