//! A compiler's words, whole, and the IR nodes that they are about.

use std::fmt;

/// One error of a compiler about the source itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The line of the source, from 1.
    pub line: u32,
    /// The compiler's message, one line.
    pub message: String,
    /// The path of the IR node that the line was emitted for, where known.
    pub node: Option<String>,
}

/// All that a compiler said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    /// Its output, whole.
    pub text: String,
    /// The errors about lines of the source, in order.
    pub sites: Vec<Site>,
}

impl Diagnostics {
    /// Reads the errors about `file` out of `text`, naming IR nodes by `node_of`.
    pub(crate) fn read(text: String, file: &str, node_of: &dyn Fn(u32) -> Option<String>) -> Self {
        let sites = text
            .lines()
            .filter_map(|line| error_line(line, file))
            .map(|(line, message)| Site { line, message: message.to_owned(), node: node_of(line) })
            .collect();
        Self { text, sites }
    }

    /// The first line that says "error", for one-line reports; else the first line.
    pub fn first_error(&self) -> &str {
        let is_error = |line: &&str| line.contains("error:") || line.contains("fatal");
        let found = self.text.lines().find(is_error).or_else(|| self.text.lines().next());
        found.unwrap_or("it said nothing").trim()
    }
}

/// `file:12:3: error: message` of clang, or `file(12): error: message` of nvcc.
fn error_line<'a>(line: &'a str, file: &str) -> Option<(u32, &'a str)> {
    let rest = line.strip_prefix(file)?;
    let number = rest.strip_prefix(':').or_else(|| rest.strip_prefix('('))?;
    let digits = number.len() - number.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let line_number = number.get(..digits)?.parse().ok()?;
    let (_, message) = rest.split_once("error: ")?;
    Some((line_number, message))
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.trim_end())?;
        for Site { line, message, node } in &self.sites {
            if let Some(node) = node {
                write!(f, "\nline {line} stems from {node}: {message}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLANG: &str = "In file included from k.hip:1:\nvyre.h:7:1: error: odd header\n\
        k.hip:2:33: error: use of undeclared identifier 'bad'\nextern \"C\" void p(){ bad; }\n   ^\n\
        k.hip:9:1: warning: slow\n1 error generated when compiling for gfx90a.\n";
    const NVCC: &str =
        "k.hip(1): error: identifier \"bad\" is undefined\n  p(){ bad; }\n\n1 error detected.\n";

    #[test]
    fn lines_are_named_by_their_nodes() {
        let node_of = |line| (line == 2).then(|| "item/body[3]".to_owned());
        let read = Diagnostics::read(CLANG.to_owned(), "k.hip", &node_of);
        let site = Site {
            line: 2,
            message: "use of undeclared identifier 'bad'".to_owned(),
            node: Some("item/body[3]".to_owned()),
        };
        assert_eq!(read.sites, [site]);
        let shown = read.to_string();
        assert!(shown.starts_with(CLANG.trim_end()), "the compiler's words come whole: {shown}");
        assert!(shown.ends_with("line 2 stems from item/body[3]: use of undeclared identifier 'bad'"));
        assert_eq!(read.first_error(), "vyre.h:7:1: error: odd header");
    }

    #[test]
    fn nvcc_writes_lines_in_brackets() {
        let read = Diagnostics::read(NVCC.to_owned(), "k.hip", &|_| None);
        assert_eq!(read.sites.len(), 1);
        assert_eq!((read.sites[0].line, read.sites[0].node.as_deref()), (1, None));
        assert_eq!(read.to_string(), NVCC.trim_end());
    }
}
