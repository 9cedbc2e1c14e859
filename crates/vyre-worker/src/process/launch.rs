//! What to start, and what it is given.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ProcessError;
use super::fork::Image;

/// Variables that a child gets from this process: which devices to use, how the vendors' libraries are tuned and
/// found, the locale. A name that ends in `*` stands for all that begin so.
const INHERITED: &[&str] = &[
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "CUDA_VISIBLE_DEVICES",
    "HSA_*",
    "GPU_*",
    "LD_LIBRARY_PATH",
    "LANG",
    "LANGUAGE",
    "LC_*",
];

const SELF: &str = "/proc/self/exe";

/// The lowest descriptor that may be mapped: those below are the standard ones.
const FIRST_FREE_FD: RawFd = 3;

/// A child to start. Its environment is empty but for [`Launch::env`] and a short list of variables that concern
/// devices and locale; of this process's descriptors it gets those of [`Launch::fd`].
#[derive(Debug)]
pub struct Launch {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    fds: Vec<(RawFd, OwnedFd)>,
    label: Option<String>,
    stdout_limit: Option<usize>,
}

impl Launch {
    /// The executable at `program`: a path, as PATH is not searched. It becomes the first argument as well.
    pub fn new(program: impl Into<PathBuf>) -> Launch {
        let program = program.into();
        let args = vec![program.clone().into_os_string()];
        Launch { program, args, env: Vec::new(), fds: Vec::new(), label: None, stdout_limit: None }
    }

    /// This process's own executable, the very file that runs even where another has been put in its place since.
    /// It is listed under this process's name.
    pub fn reexec() -> Launch {
        let name = std::env::args_os().next().unwrap_or_else(|| OsString::from("vyre-worker"));
        let mut launch = Launch::new(SELF);
        launch.args = vec![name];
        launch
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Launch {
        self.args.push(arg.into());
        self
    }

    /// A variable of the child's environment; it wins over an inherited one, and the last of a name wins.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Launch {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Descriptor `fd` of this process as descriptor `target`, at least 3, of the child.
    pub fn fd(mut self, target: RawFd, fd: OwnedFd) -> Launch {
        self.fds.push((target, fd));
        self
    }

    /// What to call it in errors and in the log; the executable's file name if nothing is said.
    pub fn label(mut self, label: impl Into<String>) -> Launch {
        self.label = Some(label.into());
        self
    }

    /// Keeps the first `limit` bytes of its standard output for [`Process::stdout`](super::Process::stdout); what
    /// comes after is read and dropped. Without this, standard output goes where standard error goes.
    pub fn capture_stdout(mut self, limit: usize) -> Launch {
        self.stdout_limit = Some(limit);
        self
    }

    /// Everything a fork needs, checked, as the kernel wants it.
    pub(super) fn prepare(self) -> Result<Image, ProcessError> {
        let label = self.label.unwrap_or_else(|| default_label(&self.program, &self.args));
        check_targets(&label, &self.fds)?;
        let c_string = |argument: &'static str, text: &OsStr| {
            CString::new(text.as_bytes()).map_err(|_| ProcessError::InvalidLaunch {
                label: label.clone(),
                argument,
                got: format!("{text:?}"),
                expected: "a string without a zero byte",
            })
        };
        let program = c_string("the program", self.program.as_os_str())?;
        let args = self.args.iter().map(|arg| c_string("an argument", arg)).collect::<Result<_, _>>()?;
        let env = environment(&label, self.env)?;
        let env = env.iter().map(|entry| c_string("a variable", entry)).collect::<Result<_, _>>()?;
        Ok(Image {
            label: Arc::from(label),
            path: self.program,
            program,
            args,
            env,
            fds: self.fds,
            stdout_limit: self.stdout_limit,
        })
    }
}

fn default_label(program: &Path, args: &[OsString]) -> String {
    let named = if program == Path::new(SELF) { args.first().map_or(program, Path::new) } else { program };
    named.file_name().unwrap_or(named.as_os_str()).to_string_lossy().into_owned()
}

fn check_targets(label: &str, fds: &[(RawFd, OwnedFd)]) -> Result<(), ProcessError> {
    for (index, (target, fd)) in fds.iter().enumerate() {
        let twice = fds.iter().take(index).any(|(other, _)| other == target);
        if *target < FIRST_FREE_FD || *target == RawFd::MAX || twice {
            return Err(ProcessError::InvalidLaunch {
                label: label.to_owned(),
                argument: "a mapped descriptor's target",
                got: format!("{target} (for descriptor {})", fd.as_raw_fd()),
                expected: "3 or more, and each once",
            });
        }
    }
    Ok(())
}

/// The entries `name=value` of the child's environment.
fn environment(label: &str, own: Vec<(OsString, OsString)>) -> Result<Vec<OsString>, ProcessError> {
    let mut variables: Vec<_> = std::env::vars_os().filter(|(name, _)| is_inherited(name)).collect();
    for (name, value) in own {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(ProcessError::InvalidLaunch {
                label: label.to_owned(),
                argument: "a variable's name",
                got: format!("{name:?}"),
                expected: "a name, and no `=` in it",
            });
        }
        variables.retain(|(other, _)| *other != name);
        variables.push((name, value));
    }
    let entry = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    Ok(variables.into_iter().map(entry).collect())
}

fn is_inherited(name: &OsStr) -> bool {
    let name = name.as_bytes();
    INHERITED.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix.as_bytes()),
        None => name == pattern.as_bytes(),
    })
}
