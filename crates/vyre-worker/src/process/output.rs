//! What a child writes: its last lines for errors, each line for the log, its first bytes for a caller who asked.

use std::collections::VecDeque;

/// Bytes of standard error that are kept.
const TAIL: usize = 8 << 10;

/// The longest line that is logged whole; longer ones are logged in pieces of this many bytes.
const LONGEST_LINE: usize = 4 << 10;

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: VecDeque<u8>,
    is_cut: bool,
}

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        let excess = self.bytes.len().saturating_sub(TAIL);
        self.is_cut |= excess > 0;
        self.bytes.drain(..excess);
    }

    /// The last lines, the first of them whole where there is more than one.
    pub(super) fn text(&self) -> String {
        let mut bytes: Vec<u8> = self.bytes.iter().copied().collect();
        if self.is_cut
            && let Some(end) = bytes.iter().position(|&byte| byte == b'\n')
            && end + 1 < bytes.len()
        {
            bytes.drain(..=end);
        }
        printable(&bytes).trim_end().to_owned()
    }
}

/// Splits a stream into lines to log.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8], mut log: impl FnMut(&str)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LONGEST_LINE {
                self.flush(&mut log);
            }
        }
    }

    /// What came after the last line's end.
    pub(super) fn flush(&mut self, mut log: impl FnMut(&str)) {
        for chunk in self.partial.chunks(LONGEST_LINE) {
            let text = printable(chunk);
            if !text.trim_end().is_empty() {
                log(text.trim_end());
            }
        }
        self.partial.clear();
    }
}

/// The first bytes of a stream.
#[derive(Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
    limit: usize,
}

impl Head {
    pub(super) fn new(limit: usize) -> Head {
        Head { bytes: Vec::new(), limit }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room = self.limit.saturating_sub(self.bytes.len());
        self.bytes.extend(bytes.iter().take(room));
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }
}

/// The child's bytes as text that cannot steer a terminal.
fn printable(bytes: &[u8]) -> String {
    let harmless = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{FFFD}' } else { c };
    String::from_utf8_lossy(bytes).chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::{LONGEST_LINE, Lines, TAIL, Tail};

    #[test]
    fn a_tail_keeps_the_last_whole_lines() {
        let mut tail = Tail::default();
        for number in 0..10_000 {
            tail.push(format!("line {number}\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.len() <= TAIL && text.len() > TAIL - 20, "{} bytes", text.len());
        assert!(text.starts_with("line ") && text.ends_with("\nline 9999"), "{text}");
    }

    #[test]
    fn a_tail_of_one_endless_line_is_its_end() {
        let mut tail = Tail::default();
        tail.push(&[b'x'; 3 * TAIL]);
        tail.push(b"END");
        assert_eq!(tail.text().len(), TAIL);
        assert!(tail.text().ends_with("xEND"));
    }

    #[test]
    fn text_of_a_child_cannot_steer_a_terminal() {
        let mut tail = Tail::default();
        tail.push(b"a\x1b[2Jb\xFFc\r\n\td\n");
        assert_eq!(tail.text(), "a\u{FFFD}[2Jb\u{FFFD}c\u{FFFD}\n\td");
    }

    #[test]
    fn lines_are_joined_split_and_bounded() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for bytes in [&b"on"[..], b"e\ntwo\n\nth", b"ree"] {
            lines.push(bytes, |line| seen.push(line.to_owned()));
        }
        assert_eq!(seen, ["one", "two"]);
        lines.flush(|line| seen.push(line.to_owned()));
        assert_eq!(seen, ["one", "two", "three"]);

        seen.clear();
        lines.push(&[b'x'; 3 * LONGEST_LINE], |line| seen.push(line.to_owned()));
        assert_eq!(seen.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE; 3]);
    }
}
