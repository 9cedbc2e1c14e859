//! Matches on stdout: `path:line:column:id`, or one JSON object a line.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::Serialize;
use vyre::scan::{Match, Rules};

/// Writes matches.
pub(crate) struct Output<'r, W> {
    sink: W,
    json: bool,
    rules: &'r Rules,
    line_by_line: bool,
}

/// One line of `--json`.
#[derive(Serialize)]
struct JsonMatch<'m> {
    /// The path; bytes that are not UTF-8 are replaced.
    path: &'m str,
    /// The path's bytes, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<&'m [u8]>,
    line: u64,
    column: u64,
    id: &'m str,
    /// First byte of the match in the file, from 0.
    start: usize,
    /// The byte after its last.
    end: usize,
}

impl<'r> Output<'r, BufWriter<StdoutLock<'static>>> {
    /// To stdout; each file's matches at once if it is a terminal, else in blocks.
    pub(crate) fn to_stdout(json: bool, rules: &'r Rules) -> Self {
        let stdout = io::stdout();
        let line_by_line = stdout.is_terminal();
        Output { sink: BufWriter::with_capacity(1 << 16, stdout.lock()), json, rules, line_by_line }
    }
}

impl<W: Write> Output<'_, W> {
    /// Writes the matches of one file.
    pub(crate) fn file(&mut self, path: &Path, matches: &[Match]) -> io::Result<()> {
        let bytes = path.as_os_str().as_bytes();
        let text = path.to_string_lossy();
        let path_bytes = path.to_str().is_none().then_some(bytes);
        for found in matches {
            let Some(rule) = self.rules.as_slice().get(found.rule) else { continue };
            if self.json {
                let object = JsonMatch {
                    path: &text,
                    path_bytes,
                    line: found.line,
                    column: found.column,
                    id: &rule.id,
                    start: found.start,
                    end: found.end,
                };
                serde_json::to_writer(&mut self.sink, &object)?;
                self.sink.write_all(b"\n")?;
            } else {
                self.sink.write_all(bytes)?;
                writeln!(self.sink, ":{}:{}:{}", found.line, found.column, rule.id)?;
            }
        }
        if self.line_by_line { self.flush() } else { Ok(()) }
    }

    /// Writes out what is still held back.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn text_keeps_the_bytes_of_a_path_and_json_says_both() {
        let rules = Rules::parse(b"a:b\tx\n").expect("rules");
        let found = [Match { rule: 0, line: 3, column: 7, start: 20, end: 21 }];
        for (path, json, expected) in [
            (&b"d/f\xFF"[..], false, &b"d/f\xFF:3:7:a:b\n"[..]),
            (b"d/f", false, b"d/f:3:7:a:b\n"),
            (b"d/\"f", true, b"{\"path\":\"d/\\\"f\",\"line\":3,\"column\":7,\"id\":\"a:b\",\"start\":20,\"end\":21}\n"),
            (
                b"\xFF",
                true,
                "{\"path\":\"\u{FFFD}\",\"path_bytes\":[255],\"line\":3,\"column\":7,\"id\":\"a:b\",\"start\":20,\"end\":21}\n".as_bytes(),
            ),
        ] {
            let mut output = Output { sink: Vec::new(), json, rules: &rules, line_by_line: true };
            output.file(Path::new(OsStr::from_bytes(path)), &found).expect("written");
            assert_eq!(output.sink, expected);
        }
    }
}
