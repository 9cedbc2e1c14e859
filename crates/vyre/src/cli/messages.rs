//! Lines on stderr.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Writes `vyre: TEXT`. Where stderr is closed there is nobody left to tell.
pub(crate) fn error(text: &str) {
    drop(line(None, text));
}

/// Writes `vyre: PATH: TEXT`, the path byte for byte.
pub(crate) fn path_error(path: &Path, error: &dyn std::error::Error) {
    drop(line(Some(path.as_os_str()), &with_causes(error)));
}

/// Writes lines that are no errors.
pub(crate) fn plain(text: &str) {
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

/// An error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn line(path: Option<&OsStr>, text: &str) -> std::io::Result<()> {
    let mut whole = b"vyre: ".to_vec();
    if let Some(path) = path {
        whole.extend(path.as_bytes());
        whole.extend(b": ");
    }
    whole.extend(text.as_bytes());
    whole.push(b'\n');
    std::io::stderr().lock().write_all(&whole)
}
