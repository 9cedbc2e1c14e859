//! The main function of a kernel executable.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use super::response::Response;
use super::serve::{Start, serve};
use crate::wire::handshake::{self, HandshakeError, Refusal};
use crate::wire::{Channel, WireError};

/// How a kernel executable leaves. Other codes, and signals, are its own doing.
pub mod exit {
    /// One-shot: the response is written. Server: the parent asked for the end, or is gone.
    pub const DONE: u8 = 0;
    /// The command line is none of the two.
    pub const USAGE: u8 = 2;
    /// One-shot: the request was refused; standard error says why.
    pub const REFUSED: u8 = 3;
    /// One-shot: the request cannot be read, or the response not written.
    pub const FILE: u8 = 4;
    /// Server: the parent does not speak the protocol, or is of another version.
    pub const PROTOCOL: u8 = 5;
}

/// The descriptor of the channel in a worker.
const CHANNEL_FD: i32 = 3;

/// One-shot: the kernel's type, for an executable that has several.
pub(crate) const KERNEL_VARIABLE: &str = "VYRE_KERNEL";
/// One-shot: which device; 0 if unset.
pub(crate) const DEVICE_VARIABLE: &str = "VYRE_DEVICE";
/// One-shot: a file with the caller's own bytes.
pub(crate) const CONFIG_VARIABLE: &str = "VYRE_CONFIG";

/// Runs a kernel that needs nothing to begin: see [`main_with`].
pub fn main<H>(handler: H) -> ExitCode
where
    H: FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
{
    main_with(|_| Ok(handler))
}

/// Runs a kernel executable, as its command line says. `open` is called once, and its refusal is the worker's: a
/// device that is not there, a kernel type that is not known.
pub fn main_with<H>(open: impl FnOnce(&Start) -> Result<H, Refusal>) -> ExitCode
where
    H: FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
{
    let mut args = env::args_os();
    let name = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    let words: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap_or_default()).collect();
    let code = match (words.as_slice(), args.as_slice()) {
        (["--server"], _) => server(open),
        (["--once", ..], [_, request, response]) => once(open, Path::new(request), Path::new(response)),
        _ => {
            eprintln!("usage: {0} --server | --once REQUEST RESPONSE", Path::new(&name).display());
            exit::USAGE
        }
    };
    ExitCode::from(code)
}

fn server<H>(open: impl FnOnce(&Start) -> Result<H, Refusal>) -> u8
where
    H: FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
{
    match try_server(open) {
        Ok(()) => exit::DONE,
        Err(error) => {
            eprintln!("{}; `--server` is for a parent that left its channel at descriptor 3", chain(&error));
            exit::PROTOCOL
        }
    }
}

fn try_server<H>(open: impl FnOnce(&Start) -> Result<H, Refusal>) -> Result<(), HandshakeError>
where
    H: FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
{
    if fs::symlink_metadata(format!("/proc/self/fd/{CHANNEL_FD}")).is_err() {
        return Err(WireError::NotAChannel { got: "not open".into() }.into());
    }
    // SAFETY: open, and owned by nobody else: it is the parent's to give, and this is the first thing that main
    // does.
    let channel = Channel::from_fd(unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) })?;
    let (hello, arena, _) = match handshake::accept(&channel, None) {
        Err(HandshakeError::Wire(WireError::Closed)) => return Ok(()),
        accepted => accepted?,
    };
    let start = Start::from_hello(&hello)?;
    let handler = match open(&start) {
        Ok(handler) => handler,
        Err(Refusal { code, text }) => return Ok(handshake::refuse(&channel, code, &text)?),
    };
    let text = format!("{} in process {}", start.kernel, std::process::id());
    Ok(serve(&channel, arena, &hello, || handshake::ready(&channel, &text), handler)?)
}

fn once<H>(open: impl FnOnce(&Start) -> Result<H, Refusal>, request: &Path, response: &Path) -> u8
where
    H: FnMut(&[u8], &mut Response<'_>) -> Result<(), Refusal>,
{
    let bytes = match fs::read(request) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("cannot read the request {}: {error}", request.display());
            return exit::FILE;
        }
    };
    let mut own = Response::growing();
    let config = match env::var_os(CONFIG_VARIABLE).map(fs::read).transpose() {
        Ok(config) => config.unwrap_or_default(),
        Err(error) => {
            eprintln!("cannot read the file that {CONFIG_VARIABLE} names: {error}");
            return exit::FILE;
        }
    };
    let device = env::var(DEVICE_VARIABLE).unwrap_or_else(|_| "0".into());
    let Ok(device) = device.parse() else {
        eprintln!("{DEVICE_VARIABLE} is {device:?}; a number is expected");
        return exit::USAGE;
    };
    let start = Start { kernel: env::var(KERNEL_VARIABLE).unwrap_or_default(), device, config };
    let answered = open(&start).and_then(|mut handler| handler(&bytes, &mut own));
    if let Err(refusal) = answered {
        eprintln!("{refusal}");
        return exit::REFUSED;
    }
    if let Err(error) = fs::write(response, own.bytes()) {
        eprintln!("cannot write the response {}: {error}", response.display());
        return exit::FILE;
    }
    exit::DONE
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
