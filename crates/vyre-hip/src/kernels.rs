//! The hand-written kernel sources, embedded: a program built from this crate needs no source tree.
//!
//! A file `X.hip` of the workspace's `kernels/` folder is a kernel, a `.h` file a header of kernels and of
//! emitted sources. Benchmarks have their own in `kernels/bench`, which are not embedded.

use crate::compile::Header;

/// One file of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its path in the folder: `gemm_f16.hip`, `gemm/epilogue.h`.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl Source {
    /// blake3 of the text.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(self.text.as_bytes()).as_bytes()
    }

    /// The kernel's name: the path without `.hip`. None for a header.
    pub fn kernel_name(&self) -> Option<&'static str> {
        self.path.strip_suffix(".hip")
    }

    /// All that this file includes, at any depth.
    pub fn headers(&self) -> Vec<Header<'static>> {
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        headers_from(folder, self.text)
    }
}

macro_rules! embed {
    ($($path:literal),+ $(,)?) => {
        &[$(Source { path: $path, text: include_str!(concat!("../../../kernels/", $path)) }),+]
    };
}

/// Every file, by path.
pub const SOURCES: &[Source] = embed![
    "gemm/arguments.h",
    "gemm/block_async.h",
    "gemm/block_staged.h",
    "gemm/choice.h",
    "gemm/epilogue.h",
    "gemm/gemm_device.h",
    "gemm/instructions.h",
    "gemm/rows.h",
    "gemm/schedule.h",
    "gemm/tile_mfma.h",
    "gemm/tile_mma_sm80.h",
    "gemm/tile_plain.h",
    "gemm/tile_wgmma_sm90.h",
    "gemm/tile_wmma.h",
    "gemm/wave_tile.h",
    "gemm_f16.hip",
    "resident/access.h",
    "resident/groups.h",
    "resident/item.h",
    "resident/keeper.h",
    "resident/kernel.h",
    "resident/lanes.h",
    "resident/live.h",
    "resident/ring.h",
    "resident/scheduler.h",
    "saxpy.hip",
    "vyre_abi.h",
    "vyre_atomics.h",
    "vyre_device.h",
    "vyre_externals.h",
    "vyre_subgroups.h",
];

/// The file of this path.
pub fn find(path: &str) -> Option<&'static Source> {
    SOURCES.iter().find(|source| source.path == path)
}

/// The kernels, without their headers.
pub fn kernels() -> impl Iterator<Item = &'static Source> {
    SOURCES.iter().filter(|source| source.kernel_name().is_some())
}

/// All embedded files that a source includes, at any depth, each once, in the order of first inclusion. What
/// is not embedded is the compiler's affair.
pub fn headers_of(text: &str) -> Vec<Header<'static>> {
    headers_from("", text)
}

fn headers_from(folder: &str, text: &str) -> Vec<Header<'static>> {
    let mut headers: Vec<Header<'static>> = Vec::new();
    let mut pending: Vec<&'static Source> = included(folder, text);
    pending.reverse();
    while let Some(source) = pending.pop() {
        if headers.iter().any(|header| header.path == source.path) {
            continue;
        }
        headers.push(Header { path: source.path, text: source.text });
        let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        pending.extend(included(folder, source.text).into_iter().rev());
    }
    headers
}

/// The embedded files that `text`, a file in `folder`, includes itself: beside it first, then from the root.
fn included(folder: &str, text: &str) -> Vec<&'static Source> {
    let quoted = |line: &str| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        let (path, _) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        find(&resolve(folder, path)).or_else(|| find(path))
    };
    text.lines().filter_map(quoted).collect()
}

/// `path` as seen from `folder`, `..` resolved.
fn resolve(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn files_in(root: &Path, folder: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(root.join(folder)).expect("the folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a plain name");
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if entry.path().is_dir() {
                if path != "bench" {
                    files_in(root, &path, found);
                }
            } else if path.ends_with(".hip") || path.ends_with(".h") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_file_of_kernels_is_embedded() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
        let mut there = Vec::new();
        files_in(&root, "", &mut there);
        there.sort();
        let embedded: Vec<&str> = SOURCES.iter().map(|source| source.path).collect();
        assert_eq!(embedded, there, "list the files of kernels/ in SOURCES of src/kernels.rs, sorted");
    }

    #[test]
    fn all_quoted_includes_are_embedded() {
        for source in SOURCES {
            let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let quoted =
                source.text.lines().filter(|line| line.trim_start().starts_with("#include \"")).count();
            assert_eq!(included(folder, source.text).len(), quoted, "includes of {}", source.path);
        }
    }

    #[test]
    fn headers_come_from_any_depth_once() {
        let gemm = find("gemm_f16.hip").expect("the GEMM");
        let headers = gemm.headers();
        for deep in ["gemm/gemm_device.h", "gemm/epilogue.h", "gemm/tile_plain.h"] {
            assert_eq!(headers.iter().filter(|header| header.path == deep).count(), 1, "{deep}");
        }
        assert!(headers_of("#include <hip/hip_runtime.h>\n").is_empty());
    }

    #[test]
    fn paths_are_resolved() {
        assert_eq!(resolve("gemm", "rows.h"), "gemm/rows.h");
        assert_eq!(resolve("gemm", "../vyre_device.h"), "vyre_device.h");
        assert_eq!(resolve("", "./gemm/rows.h"), "gemm/rows.h");
    }
}
