//! One process for one request: nothing is shared with any other.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::fs::{MemfdFlags, memfd_create};

use super::error::KernelError;
use super::options::RunOptions;
use super::spec::KernelSpec;
use super::worker::{CallError, Worker};
use super::{fits, zeroed};
use crate::kernel::{CONFIG_VARIABLE, DEVICE_VARIABLE, KERNEL_VARIABLE, exit};
use crate::process::{Death, Exit, Process};
use crate::wire::WireError;

/// How much of a one-shot's standard output an error shows.
const STDOUT: usize = 16 * 1024;

/// Runs an executable as `EXECUTABLE --once REQUEST RESPONSE`; the response, of `room` bytes at most.
pub(super) fn run(
    spec: &KernelSpec,
    request: &[u8],
    room: usize,
    options: RunOptions,
) -> Result<Vec<u8>, KernelError> {
    let begun = Instant::now();
    if spec.is_reexec() {
        return in_worker(spec, request, room, begun, options);
    }
    let kernel = || spec.kernel().to_owned();
    let resources = |call| {
        move |source| KernelError::Resources { kernel: kernel(), source: WireError::Os { call, source } }
    };
    let start = spec.start();
    let asked = file(request).map_err(resources("memfd"))?;
    let config = file(&start.config).map_err(resources("memfd"))?;
    let mut answer = file(&[]).map_err(resources("memfd"))?;
    let theirs: OwnedFd = answer.try_clone().map_err(resources("dup"))?.into();
    let launch = spec.launch();
    let launch =
        ["--once", "/proc/self/fd/3", "/proc/self/fd/4"].into_iter().fold(launch, |l, arg| l.arg(arg));
    let launch = launch
        .env(KERNEL_VARIABLE, &start.kernel)
        .env(DEVICE_VARIABLE, start.device.to_string())
        .env(CONFIG_VARIABLE, "/proc/self/fd/5")
        .fd(3, asked.into())
        .fd(4, theirs)
        .fd(5, config.into())
        .capture_stdout(STDOUT);
    let process = Process::spawn(launch)
        .map_err(|source| KernelError::Spawn { kernel: kernel(), source: Box::new(source) })?;
    let left = options.limit.saturating_sub(begun.elapsed());
    let Some(death) = process.wait(left) else {
        process.kill();
        return Err(KernelError::Deadline {
            kernel: kernel(),
            waited_for: "a one-shot process to end",
            waited: begun.elapsed(),
            stderr: process.stderr_tail(),
        });
    };
    let failed = |meaning: &'static str, Death { how, stderr, .. }: Death| {
        let stdout = String::from_utf8_lossy(&process.stdout()).into_owned();
        KernelError::OneShot { kernel: kernel(), exit: how, meaning, stderr, stdout }
    };
    if death.how != Exit::Code(exit::DONE.into()) {
        return Err(failed(meaning(death.how), death));
    }
    // Its length is the child's doing: it is compared before anything is read.
    let bytes = answer.metadata().map_err(resources("fstat"))?.len();
    let Some(bytes) = usize::try_from(bytes).ok().filter(|&bytes| bytes <= room) else {
        return Err(failed("its response is larger than the room given", death));
    };
    answer.seek(SeekFrom::Start(0)).map_err(resources("lseek"))?;
    let mut response = zeroed(spec, bytes)?;
    answer.read_exact(&mut response).map_err(resources("read"))?;
    Ok(response)
}

/// This process's own executable has no such command line: it gets a worker of its own instead.
fn in_worker(
    spec: &KernelSpec,
    request: &[u8],
    room: usize,
    begun: Instant,
    options: RunOptions,
) -> Result<Vec<u8>, KernelError> {
    fits(spec, request, room)?;
    let mut response = zeroed(spec, room)?;
    let until = super::options::until(begun, options.limit);
    let mut worker = Worker::start(0, spec, options.limit, |_| ())?;
    match worker.call(request, &mut response, begun, until) {
        Ok(bytes) => {
            response.truncate(bytes);
            Ok(response)
        }
        Err(CallError::Kept(error) | CallError::Unsent(error) | CallError::Lost(error)) => Err(error),
    }
}

/// A file of these bytes that is nowhere.
fn file(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(c"vyre-oneshot", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn meaning(how: Exit) -> &'static str {
    let Exit::Code(code) = how else { return "it was ended from outside, or by a fault of its own" };
    match u8::try_from(code) {
        Ok(exit::USAGE) => "it does not know --once: it is no kernel executable, or its arguments are wrong",
        Ok(exit::REFUSED) => "it refused the request",
        Ok(exit::FILE) => "it could not read the request or write the response",
        _ => "a code of its own",
    }
}
