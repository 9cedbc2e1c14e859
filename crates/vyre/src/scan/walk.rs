//! Which files to scan.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::source::FileError;

/// The regular files below some paths.
#[derive(Debug, Default)]
pub struct Walk {
    /// The files, sorted by the bytes of their paths, none twice because two paths lead to it.
    pub files: Vec<PathBuf>,
    /// What could not be looked at, sorted likewise.
    pub errors: Vec<(PathBuf, FileError)>,
}

/// Finds every regular file below each path, hidden ones too. Symbolic links are not followed, except that a
/// path given here may be one. A path that is neither file nor folder is an error; below a folder such
/// things are passed over.
///
/// Of paths that lead to one place, whatever their spelling, the first is walked; a path inside a folder that
/// is given as well is left to that. Two names of one file, hard links, are two files.
pub fn walk<P: AsRef<Path>>(paths: &[P]) -> Walk {
    let mut found = Walk::default();
    for root in roots(paths) {
        for entry in WalkDir::new(root).follow_links(false) {
            match entry {
                Ok(entry) if entry.depth() == 0 => add_root(&mut found, root),
                Ok(entry) if entry.file_type().is_file() => found.files.push(entry.into_path()),
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().unwrap_or(root).to_owned();
                    found.errors.push((path, FileError::Open(io_error(error))));
                }
            }
        }
    }
    found.files.sort_unstable_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    found.errors.sort_by(|(a, _), (b, _)| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    found
}

/// The paths without those that lead to, or into, another one.
fn roots<P: AsRef<Path>>(paths: &[P]) -> Vec<&Path> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut places: Vec<_> = paths.iter().map(|path| (real(path.as_ref()), path.as_ref())).collect();
    // Stable and by components: behind a folder comes all that is inside it, behind a path the same once more.
    places.sort_by(|(a, _), (b, _)| a.cmp(b));
    places.dedup_by(|(inner, _), (outer, _)| inner.starts_with(outer));
    places.into_iter().map(|(_, path)| path).collect()
}

fn add_root(found: &mut Walk, root: &Path) {
    match std::fs::metadata(root) {
        Ok(metadata) if metadata.is_file() => found.files.push(root.to_owned()),
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => found.errors.push((root.to_owned(), FileError::NotRegular)),
        Err(error) => found.errors.push((root.to_owned(), FileError::Open(error))),
    }
}

fn io_error(error: walkdir::Error) -> io::Error {
    let text = error.to_string();
    error.into_io_error().unwrap_or_else(|| io::Error::other(text))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn regular_files_in_the_order_of_their_bytes() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("a/.hidden")).expect("made");
        let odd = OsStr::from_bytes(b"a/\xFF");
        for name in [OsStr::new("a/z"), OsStr::new("a-b"), OsStr::new("a/.hidden/x"), odd] {
            fs::write(dir.path().join(name), b"").expect("written");
        }
        symlink(at("a/z"), at("link")).expect("linked");
        symlink(at("a"), at("folder-link")).expect("linked");
        symlink(at("nowhere"), at("broken")).expect("linked");

        let names = |walk: &Walk| -> Vec<Vec<u8>> {
            let strip = |p: &PathBuf| p.strip_prefix(dir.path()).map(|p| p.as_os_str().as_bytes().to_vec());
            walk.files.iter().map(|p| strip(p).expect("inside")).collect()
        };
        let all: Vec<&[u8]> = vec![b"a-b", b"a/.hidden/x", b"a/z", b"a/\xFF"];
        let walked = walk(&[dir.path()]);
        assert_eq!(names(&walked), all);
        assert!(walked.errors.is_empty());
        assert_eq!(names(&walk(&[dir.path().to_owned(), at("a"), at("a-b")])), all, "no path twice");

        let spelled = [at("a"), at("a/."), at("folder-link"), at("a-b"), at("a/../a/z"), at("link")];
        assert_eq!(names(&walk(&spelled)), all, "no file twice, by the first spelling");
        let (one, other) = (at("folder-link"), at("a"));
        assert!(walk(&[&one, &other]).files.iter().all(|path| path.starts_with(&one)), "the first spelling");
        fs::hard_link(at("a-b"), at("hard")).expect("linked");
        assert_eq!(walk(&[at("a-b"), at("hard")]).files, [at("a-b"), at("hard")], "hard links are two files");
        fs::remove_file(at("hard")).expect("removed");

        assert_eq!(walk(&[at("link")]).files, [at("link")], "a path given may be a link");
        assert_eq!(walk(&[at("folder-link")]).files.len(), 3);
        for bad in [at("broken"), at("none"), PathBuf::from("/dev/null")] {
            let walked = walk(&[&bad]);
            assert_eq!(walked.files.len(), 0);
            assert_eq!(walked.errors.len(), 1, "{}", bad.display());
        }
    }
}
