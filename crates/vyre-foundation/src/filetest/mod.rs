//! File tests: small `.vir` files whose comments say what must hold of them, so that every backend runs the
//! same ones. Behind the feature `filetest`; `docs/vir.md` describes the format.
//!
//! ```text
//! // What the file is about.
//! // test verify          errors are exactly those of `// error: TEXT` comments, each on its line
//! // test print           parsing and printing gives the file back, but for comments and empty lines
//! // test run             every `run:` below gives what it says
//! // test emit hip        a backend's text for it is in the file beside it whose name ends in `.hip`
//! // requires: feature    a backend without it leaves the file out
//! // run: grid(1, 1, 1) data=[1, 2] -> data=[2, 3]
//! ```
//!
//! Verify and print need no backend. What is emitted, a backend checks with [`FileTest::check_emit`]. For run, a backend gives [`FileTest::check_run`] a closure that runs one
//! [`RunCase`]; reading the case, and comparing what came out, is done here.
//!
//! Expected values are written by hand, never recorded: a file that is made by a backend tests nothing.

mod run;

pub use run::{RunCase, RunOutcome};

use crate::text;
use crate::validate::{ValidatedProgram, validate};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One `.vir` file and what its header says.
#[derive(Clone, Debug)]
pub struct FileTest {
    /// Where it is.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
    /// What to do with it; at least one thing.
    pub kinds: Vec<TestKind>,
    /// The languages whose text for it is pinned.
    pub emits: Vec<String>,
    /// What a backend must have to run it.
    pub requires: Vec<String>,
    /// The `run:` comments and their lines.
    runs: Vec<(u32, String)>,
}

/// What is done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TestKind {
    /// The validator says what the comments say, nothing if there are none.
    Verify,
    /// Printing undoes parsing.
    Print,
    /// The program computes what the comments say.
    Run,
    /// A backend writes it in another language as the file beside it has it.
    Emit,
}

/// All `.vir` files in a folder and the folders in it, in order of their paths.
///
/// # Errors
///
/// What cannot be read, and the first file whose header cannot be understood.
pub fn load_dir(folder: impl AsRef<Path>) -> Result<Vec<FileTest>, String> {
    let mut paths = Vec::new();
    collect(folder.as_ref(), &mut paths)?;
    paths.sort();
    paths.into_iter().map(FileTest::load).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<(), String> {
    let unreadable = |error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "vir") {
            paths.push(path);
        }
    }
    Ok(())
}

impl FileTest {
    /// Reads a file and its header.
    ///
    /// # Errors
    ///
    /// As [`FileTest::parse`], and if the file cannot be read.
    pub fn load(path: impl Into<PathBuf>) -> Result<FileTest, String> {
        let path = path.into();
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        FileTest::parse(path, text)
    }

    /// Reads the header of a text: the comments before the program.
    ///
    /// # Errors
    ///
    /// If it says nothing to do, or an unknown thing.
    pub fn parse(path: impl Into<PathBuf>, text: impl Into<String>) -> Result<FileTest, String> {
        let (path, text) = (path.into(), text.into());
        let mut test = FileTest {
            path,
            text: String::new(),
            kinds: vec![],
            emits: vec![],
            requires: vec![],
            runs: vec![],
        };
        for (line, content) in (1..).zip(text.lines()) {
            let Some(comment) = content.trim_start().strip_prefix("//") else {
                if content.trim().is_empty() {
                    continue;
                }
                break;
            };
            test.header(line, comment)?;
        }
        if test.kinds.is_empty() {
            return Err(test.error(1, "no `// test verify`, `// test print` or `// test run` in the header"));
        }
        if test.kinds.contains(&TestKind::Run) == test.runs.is_empty() {
            return Err(test.error(1, "`// test run` and `// run:` come together"));
        }
        Ok(FileTest { text, ..test })
    }

    fn header(&mut self, line: u32, comment: &str) -> Result<(), String> {
        if let Some(kind) = comment.strip_prefix(" test ") {
            let kind = match kind.trim() {
                emit if emit.starts_with("emit ") => {
                    self.emits.push(emit.trim_start_matches("emit ").trim().to_owned());
                    TestKind::Emit
                }
                "verify" => TestKind::Verify,
                "print" => TestKind::Print,
                "run" => TestKind::Run,
                other => return Err(self.error(line, &format!("unknown test `{other}`"))),
            };
            self.kinds.push(kind);
        } else if let Some(feature) = comment.strip_prefix(" requires:") {
            self.requires.push(feature.trim().to_owned());
        } else if let Some(run) = comment.strip_prefix(" run:") {
            self.runs.push((line, run.to_owned()));
        } else if let (Some(more), Some((_, run))) = (comment.strip_prefix("   "), self.runs.last_mut()) {
            run.push(' ');
            run.push_str(more);
        }
        Ok(())
    }

    /// Whether the header asks for this.
    pub fn is(&self, kind: TestKind) -> bool {
        self.kinds.contains(&kind)
    }

    /// Everything that needs no backend: verify and print, where the header asks for them.
    ///
    /// # Errors
    ///
    /// What does not hold, beginning with the file and the line.
    pub fn check_without_backend(&self) -> Result<(), String> {
        if self.is(TestKind::Verify) {
            self.check_verify()?;
        }
        if self.is(TestKind::Print) {
            self.check_print()?;
        }
        Ok(())
    }

    fn check_verify(&self) -> Result<(), String> {
        let mut found: Vec<(u32, String)> = match text::parse_with_source_map(&self.text) {
            Err(error) => vec![(error.line, error.problem.to_string())],
            Ok((program, map)) => match validate(program.clone()) {
                Ok(_) => Vec::new(),
                Err(errors) => errors
                    .errors()
                    .iter()
                    .map(|error| (map.line(&program, &error.location), error.kind.to_string()))
                    .collect(),
            },
        };
        let mut wrong = String::new();
        for (line, content) in (1..).zip(self.text.lines()) {
            for expected in content.split("// error:").skip(1).map(str::trim) {
                let fits = |(at, text): &(u32, String)| *at == line && text.contains(expected);
                match found.iter().position(fits) {
                    Some(index) => drop(found.remove(index)),
                    None => wrong.push_str(&self.error(line, &format!("no error like `{expected}`\n"))),
                }
            }
        }
        for (line, text) in found {
            wrong.push_str(&self.error(line, &format!("unexpected error: {text}\n")));
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    fn check_print(&self) -> Result<(), String> {
        let program = text::parse(&self.text).map_err(|error| self.error(error.line, &error.to_string()))?;
        let printed = text::print(&program);
        let own = (1..).zip(self.text.lines()).map(|(number, line)| (number, without_comment(line)));
        let mut own = own.filter(|(_, line)| !line.is_empty());
        let mut printed = printed.lines().filter(|line| !line.is_empty());
        loop {
            match (own.next(), printed.next()) {
                (None, None) => return Ok(()),
                (Some((_, line)), Some(printed)) if line == printed => {}
                (line, printed) => {
                    let printed = printed.unwrap_or("nothing");
                    let (number, _) = line.unwrap_or((0, ""));
                    return Err(self.error(number, &format!("prints as\n{printed}")));
                }
            }
        }
    }

    /// Runs every case of the file and compares. `run` is what a backend adds: it gets a case whose buffers
    /// are in the order of the program's, workgroup buffers left out.
    ///
    /// # Errors
    ///
    /// What `run` says, a header that does not fit the program, or the elements that differ.
    pub fn check_run(
        &self,
        mut run: impl FnMut(&ValidatedProgram, &RunCase) -> Result<RunOutcome, String>,
    ) -> Result<(), String> {
        let program = text::parse(&self.text).map_err(|error| self.error(error.line, &error.to_string()))?;
        let program = validate(program).map_err(|errors| self.error(1, &errors.to_string()))?;
        let mut wrong = String::new();
        for (line, header) in &self.runs {
            let (case, expected) =
                run::parse(header, program.program()).map_err(|problem| self.error(*line, &problem))?;
            let outcome = run(&program, &case).map_err(|problem| self.error(*line, &problem))?;
            if let Err(difference) = expected.compare(program.program(), &case, &outcome) {
                // Writing to a string does not fail.
                let _ = writeln!(wrong, "{}", self.error(*line, &difference));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Compares what a backend writes for the program with the file beside this one, whose extension is the
    /// `language`; with the environment variable `UPDATE_EXPECT`, writes that file instead. Does nothing where
    /// the header does not ask for the language.
    ///
    /// # Errors
    ///
    /// A program that is not valid, a file that cannot be read or written, or the first line that differs.
    pub fn check_emit(
        &self,
        language: &str,
        emit: impl FnOnce(&ValidatedProgram) -> String,
    ) -> Result<(), String> {
        if !self.emits.iter().any(|asked| asked == language) {
            return Ok(());
        }
        let program = text::parse(&self.text).map_err(|error| self.error(error.line, &error.to_string()))?;
        let program = validate(program).map_err(|errors| self.error(1, &errors.to_string()))?;
        let found = emit(&program);
        let path = self.path.with_extension(language);
        let inaccessible = |error| format!("{}: {error}", path.display());
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            return std::fs::write(&path, found).map_err(inaccessible);
        }
        let expected = std::fs::read_to_string(&path).map_err(inaccessible)?;
        let differs = |(_, (expected, found)): &(usize, (&str, &str))| expected != found;
        let lines = expected.lines().chain([""]).zip(found.lines().chain([""]));
        match (1..).zip(lines).find(differs) {
            Some((line, (expected, found))) => Err(format!(
                "{}:{line}: expected\n{expected}\nfound\n{found}\nSet UPDATE_EXPECT=1 to accept.",
                path.display()
            )),
            None if expected != found => {
                Err(format!("{}: one text goes on where the other ends", path.display()))
            }
            None => Ok(()),
        }
    }

    fn error(&self, line: u32, problem: &str) -> String {
        format!("{}:{line}: {problem}", self.path.display())
    }
}

fn without_comment(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code).trim_end()
}
