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
    bytes: Vec<u8>,
    /// Bytes of these that were taken.
    taken: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes that are not taken yet.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// The next line that is not empty; `is_end`: nothing follows, so that the last needs no line end.
    pub(super) fn take(&mut self, is_end: bool) -> Option<String> {
        loop {
            let rest = self.bytes.get(self.taken..).unwrap_or_default();
            let window = rest.get(..LONGEST_LINE).unwrap_or(rest);
            let end = window.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let is_whole = end.is_some() || window.len() == LONGEST_LINE || (is_end && !window.is_empty());
            if !is_whole {
                self.bytes.drain(..self.taken);
                self.taken = 0;
                return None;
            }
            let line = window.get(..end.unwrap_or(window.len())).unwrap_or_default();
            self.taken += line.len();
            let text = printable(line);
            if !text.trim_end().is_empty() {
                return Some(text.trim_end().to_owned());
            }
        }
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
pub(crate) fn printable(bytes: &[u8]) -> String {
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
        for bytes in [&b"on"[..], b"e\ntwo\n\nth", b"ree"] {
            lines.push(bytes);
        }
        assert_eq!(all(&mut lines, false), ["one", "two"]);
        assert_eq!(all(&mut lines, true), ["three"]);

        lines.push(&[b'x'; 3 * LONGEST_LINE]);
        let pieces = all(&mut lines, false);
        assert_eq!(pieces.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE; 3]);
        assert_eq!(lines.len(), 0);
    }

    fn all(lines: &mut Lines, is_end: bool) -> Vec<String> {
        std::iter::from_fn(|| lines.take(is_end)).collect()
    }
}
