//! Launches that cannot work, each with its own error.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use vyre_worker::process::{Launch, Process, ProcessError};

use super::{Named, Outcome};

pub(crate) fn trials() -> Vec<Named> {
    vec![
        ("a_missing_executable_is_named", missing),
        ("a_file_that_cannot_run_is_told_apart", not_executable),
        ("a_launch_that_makes_no_sense_is_refused", invalid),
    ]
}

fn refusal(launch: Launch) -> ProcessError {
    Process::spawn(launch).unwrap_err()
}

fn missing() -> Outcome {
    for path in ["/nonexistent/worker", "no-such-worker-anywhere", ""] {
        let error = refusal(Launch::new(path));
        assert!(matches!(&error, ProcessError::ExecutableMissing { program } if program.as_os_str() == path));
        assert!(error.to_string().contains(path) && !error.is_retryable(), "{error}");
    }
    Ok(())
}

fn not_executable() -> Outcome {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &[u8], mode: u32| {
        let path = folder.path().join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        file.write_all(text)?;
        Ok::<_, std::io::Error>(path)
    };
    let plain = file("plain", b"#!/bin/true\n", 0o644)?;
    let directory = folder.path().join("directory");
    std::fs::create_dir(&directory)?;
    // Made executable once they are closed: a file that a forked child of another test still holds open for
    // writing cannot run, which is one more error, and not meant here.
    let loaderless = file("loaderless", b"#!/nonexistent/interpreter\n", 0o644)?;
    let garbage = file("garbage", b"\0\0\0\0", 0o644)?;
    for path in [&loaderless, &garbage] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    for (path, remedy) in [
        (plain, "chmod"),
        (directory, "directory"),
        (loaderless, "interpreter"),
        (garbage, "binary for this machine"),
    ] {
        let error = refusal(Launch::new(&path));
        assert!(
            matches!(&error, ProcessError::NotExecutable { program, .. } if *program == path),
            "{error:?}"
        );
        assert!(error.to_string().contains(remedy), "{error}");
    }
    Ok(())
}

fn invalid() -> Outcome {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let base = || Launch::new("/bin/true").label("odd");
    for (launch, value) in [
        (base().fd(2, null()), "2 "),
        (base().fd(-1, null()), "-1 "),
        (base().fd(5, null()).fd(5, null()), "5 "),
        (base().arg("a\0b"), "\"a\\0b\""),
        (base().env("A=B", "c"), "\"A=B\""),
        (base().env("", "c"), "\"\""),
        (base().env("A", "b\0"), "\"A=b\\0\""),
    ] {
        let error = refusal(launch);
        assert!(matches!(error, ProcessError::InvalidLaunch { .. }), "{error:?}");
        assert!(error.to_string().contains(value) && error.to_string().contains("odd"), "{error}");
    }
    // Beyond the limit on descriptors: only the kernel knows.
    let error = refusal(base().fd(1 << 30, null()));
    assert!(matches!(error, ProcessError::Refused { .. }), "{error:?}");
    Ok(())
}
