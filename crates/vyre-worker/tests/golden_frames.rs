//! The frames of docs/worker-protocol.md, byte by byte: from Rust, and from the C++ header where there is a C++
//! compiler (`$CXX`, else `c++`). Set VYRE_CI_REQUIRE_TOOLS, and a missing compiler is an error.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use vyre_worker::kernel::{CLOSE, DONE, Done, PING, PONG, RUN, Range, Run, Start};
use vyre_worker::process::Exit;
use vyre_worker::server::{KernelError, KernelServer, KernelSpec, RunOptions, ServerOptions};
use vyre_worker::wire::FrameHeader;
use vyre_worker::wire::handshake::{HELLO, Hello, READY, REFUSED, Ready, Refusal};

type Outcome = Result<(), Box<dyn Error>>;

const GOLDEN: &str = include_str!("golden_frames.txt");

fn packet(kind: u16, request: u64, fds: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { kind, payload: payload.len() as u32, fds, request }.encode();
    [header.as_slice(), payload].concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn frames_are_written_and_read_as_documented() -> Outcome {
    let request = 0x0102_0304_0506_0708;
    let hello = Hello::new("gemm_f16", 0x100_0000, [&2u32.to_le_bytes()[..], b"own"].concat());
    let ready = Ready { version: 1, text: "here".into() };
    let refused = Refusal { code: 64, text: "no".into() };
    let run = Run {
        request: Range { offset: 64, bytes: 5 },
        response: Range { offset: 128, bytes: 4096 },
        limit: Some(Duration::from_millis(1500)),
    };
    let done = Done { bytes: 4096 };
    let frames = [
        ("HELLO", packet(HELLO, 0, 1, &hello.encode())),
        ("READY", packet(READY, 0, 0, &ready.encode())),
        ("REFUSED", packet(REFUSED, 3, 0, &refused.encode())),
        ("RUN", packet(RUN, request, 0, &run.encode())),
        ("DONE", packet(DONE, request, 0, &done.encode())),
        ("PING", packet(PING, 4, 0, &[])),
        ("PONG", packet(PONG, 4, 0, &[])),
        ("CLOSE", packet(CLOSE, 0, 0, &[])),
    ];
    let written: String = frames.iter().map(|(name, bytes)| format!("{name} {}\n", hex(bytes))).collect();
    assert_eq!(written, GOLDEN);
    for (name, bytes) in &frames {
        let fds = usize::from(*name == "HELLO");
        let (header, payload) = FrameHeader::decode(bytes, fds)?;
        assert_eq!(packet(header.kind, header.request, header.fds, payload), *bytes);
        match *name {
            "HELLO" => {
                assert_eq!(Hello::decode(payload)?, hello);
                let start = Start { kernel: "gemm_f16".into(), device: 2, config: b"own".to_vec() };
                assert_eq!(Start::from_hello(&hello)?, start);
            }
            "READY" => assert_eq!(Ready::decode(payload)?, ready),
            "REFUSED" => assert_eq!(Refusal::decode(payload)?, refused),
            "RUN" => assert_eq!(Run::decode(payload)?, run),
            "DONE" => assert_eq!(Done::decode(payload)?, done),
            _ => assert!(payload.is_empty()),
        }
    }
    Ok(())
}

#[test]
fn the_protocol_page_shows_these_frames() -> Outcome {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/worker-protocol.md");
    let page = std::fs::read_to_string(page)?;
    for line in GOLDEN.lines() {
        assert!(page.contains(line), "docs/worker-protocol.md lacks `{line}`");
    }
    Ok(())
}

/// Compiles a program of tests/cpp; none where there is no compiler.
fn compile(name: &str, folder: &Path) -> Result<Option<PathBuf>, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = folder.join(name);
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root.join("../../kernels"))
        .arg(root.join("tests/cpp").join(name).with_extension("cpp"))
        .arg("-o")
        .arg(&program)
        .output();
    match output {
        Err(error) if std::env::var_os("VYRE_CI_REQUIRE_TOOLS").is_none() => {
            eprintln!("left out: {compiler} does not start ({error})");
            Ok(None)
        }
        Err(error) => Err(format!("{compiler}: {error}").into()),
        Ok(output) if output.status.success() => Ok(Some(program)),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into()),
    }
}

#[test]
fn the_cpp_header_reads_and_writes_the_same() -> Outcome {
    let folder = tempfile::tempdir()?;
    let Some(program) = compile("golden", folder.path())? else { return Ok(()) };
    let mut child = Command::new(program).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no pipe")?.write_all(GOLDEN.as_bytes())?;
    let output = child.wait_with_output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_cpp_kernel_serves() -> Outcome {
    let folder = tempfile::tempdir()?;
    let Some(program) = compile("echo", folder.path())? else { return Ok(()) };
    let server = KernelServer::new(ServerOptions::default())?;
    let options = RunOptions::default();
    let kernel = KernelSpec::new("echo", &program).config("own");
    for bytes in [0, 1, 100, 1 << 20] {
        let request = vec![0x5A; bytes];
        assert_eq!(server.run(&kernel, &request, bytes, options)?, request);
    }
    assert_eq!(server.run(&kernel, b"start", 100, options)?, b"echoown");
    let refused = server.run(&kernel, b"refuse", 100, options);
    assert!(
        matches!(&refused, Err(KernelError::Refused { source, .. }) if *source == Refusal { code: 64, text: "as asked".into() }),
        "{refused:?}"
    );
    let refused = server.run(&kernel, b"too long", 7, options);
    assert!(matches!(&refused, Err(KernelError::Refused { source, .. }) if source.code == 5), "{refused:?}");
    server.ping(&kernel, Duration::from_secs(20))?;
    assert_eq!(server.stats().started, 1);
    let died = server.run(&kernel, b"abort", 100, options);
    assert!(
        matches!(&died, Err(KernelError::Died { death, .. }) if death.stderr.contains("last words")),
        "{died:?}"
    );
    let refused = server.run(&kernel.clone().device(9), b"", 100, options);
    assert!(format!("{refused:?}").contains("no such device"), "{refused:?}");

    assert_eq!(server.oneshot(&kernel, b"start", 100, options)?, b"echoown");
    assert_eq!(server.oneshot(&kernel, b"", 100, options)?, b"");
    let refused = server.oneshot(&kernel, b"refuse", 100, options);
    assert!(
        matches!(&refused, Err(KernelError::OneShot { exit: Exit::Code(3), stderr, .. }) if stderr.contains("as asked")),
        "{refused:?}"
    );
    assert!(server.close(Duration::from_secs(10)));
    let usage = Command::new(&program).output()?;
    assert_eq!(usage.status.code(), Some(2));
    let no_parent = Command::new(&program).arg("--server").output()?;
    assert_eq!(no_parent.status.code(), Some(5));
    let no_file =
        Command::new(&program).args(["--once", "/nowhere/request", "/nowhere/response"]).output()?;
    assert_eq!(no_file.status.code(), Some(4));
    Ok(())
}
