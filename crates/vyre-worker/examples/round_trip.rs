//! What a worker costs: `cargo run --release -p vyre-worker --example round_trip`.
//!
//! An empty request to an idle worker, against one byte that two processes pass back and forth over a bare
//! socketpair; 16 MiB of request and 16 MiB of response through the arena, against `memcpy` of 16 MiB, twice. All of
//! one run, in turns, so that what the machine does besides hits all of them; medians, and the tenth percentile for
//! a machine that has other work. The program is the worker
//! and the other end of the ping as well.

use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use vyre_worker::kernel::{self, Response};
use vyre_worker::server::{KernelServer, KernelSpec, RunOptions, ServerOptions};

const MIB: usize = 1 << 20;
const BULK: usize = 16 * MIB;
/// Turns, and round trips in each.
const TURNS: usize = 60;
const PINGS: usize = 500;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--server" | "--once") => kernel::main(serve),
        Some("pong") => pong(),
        _ => match measure() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}

/// The first byte of the request says what to do with the rest.
fn serve(request: &[u8], response: &mut Response<'_>) -> Result<(), kernel::Refusal> {
    match request.first() {
        None => Ok(()),
        // The kernel's own work is one copy: it reads all of the request, and writes all of the response.
        Some(0) => response.write(request),
        // The kernel does nothing: what is left is what the transport costs.
        Some(_) => response.reserve(request.len()).map(drop),
    }
}

/// Answers each byte on standard input by one on standard output, which are one socket.
fn pong() -> ExitCode {
    let (mut input, mut output) = (std::io::stdin().lock(), std::fs::File::from(stdout_fd()));
    let mut byte = [0];
    while matches!(input.read(&mut byte), Ok(1)) {
        if output.write_all(&byte).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn stdout_fd() -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd;
    std::io::stdout().as_fd().try_clone_to_owned().unwrap_or_else(|error| {
        eprintln!("no standard output: {error}");
        std::process::exit(1)
    })
}

fn measure() -> Result<(), Box<dyn Error>> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let own = std::env::current_exe()?;
    let (input, output) =
        (std::os::fd::OwnedFd::from(theirs.try_clone()?), std::os::fd::OwnedFd::from(theirs));
    let mut peer =
        Command::new(&own).arg("pong").stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn()?;

    let server = KernelServer::new(ServerOptions::default())?;
    let kernel = KernelSpec::new("round_trip", &own).arena_bytes(2 * BULK as u64 + 4096);
    let options = RunOptions::limit(Duration::from_secs(20));

    let mut copy: Vec<u8> = (0..BULK).map(|i| (i * 31 % 253) as u8).collect();
    let mut request = copy.clone();
    let (mut once, mut twice, mut response) = (vec![1; BULK], vec![1; BULK], vec![1; BULK]);
    let mut rows: [Vec<Duration>; 6] = Default::default();
    let [bare, empty, ping, memcpy, transport, echo] = &mut rows;
    for turn in 0..TURNS {
        for _ in 0..PINGS {
            bare.push(timed(|| {
                ours.write_all(&[7])?;
                Ok(ours.read_exact(&mut [0])?)
            })?);
        }
        for _ in 0..PINGS {
            empty.push(timed(|| Ok(server.run_into(&kernel, &[], &mut [], options).map(drop)?))?);
        }
        for _ in 0..PINGS {
            ping.push(timed(|| Ok(server.ping(&kernel, Duration::from_secs(20)).map(drop)?))?);
        }
        let salt = turn as u8;
        copy.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        request.copy_from_slice(&copy);
        memcpy.push(timed(|| {
            once.copy_from_slice(std::hint::black_box(&copy));
            twice.copy_from_slice(std::hint::black_box(&once));
            Ok(())
        })?);
        if twice != copy {
            return Err("memcpy moved something else".into());
        }
        request[0] = 0;
        response.fill(salt);
        echo.push(timed(|| Ok(server.run_into(&kernel, &request, &mut response, options).map(drop)?))?);
        if response != request {
            return Err("the response is not the request".into());
        }
        // The response of a kernel that does nothing is what the request before it left there.
        request[0] = 1;
        transport.push(timed(|| Ok(server.run_into(&kernel, &request, &mut twice, options).map(drop)?))?);
        if twice != response {
            return Err("the transport moved something else".into());
        }
    }
    drop(ours);
    peer.wait()?;
    let stats = server.stats();
    println!("{TURNS} turns, interleaved; one worker, started {} times\n", stats.started);
    println!(
        "| what                                                  | each way         | median and ratio  | tenth percentile  |"
    );
    println!(
        "|-------------------------------------------------------|------------------|-------------------|-------------------|"
    );
    let [bare, empty, ping, memcpy, transport, echo] = rows.map(percentiles);
    let row = |what: &str, moved: &str, times: [Duration; 2], base: [Duration; 2]| {
        let cell = |time: Duration, base: Duration| {
            format!("{:>9.2?} {:>7.2}", time, time.as_secs_f64() / base.as_secs_f64())
        };
        let cells = [0, 1].map(|i| cell(times[i], base[i]));
        println!("| {what:53} | {moved:16} | {:17} | {:17} |", cells[0], cells[1]);
    };
    row("bare socketpair ping, two processes", "1 B; 1 B", bare, bare);
    row("empty request to an idle worker", "72 B; 40 B", empty, bare);
    row("PING to an idle worker", "32 B; 32 B", ping, bare);
    row("memcpy, twice", "16 MiB", memcpy, memcpy);
    row("through the arena, the kernel does nothing, 2 copies", "16 MiB", transport, memcpy);
    row("through the arena, the kernel copies, 3 copies", "16 MiB", echo, memcpy);
    println!(
        "\nA ratio is time against the first row of its kind; 0.6 of memcpy's speed is a ratio of 1.67."
    );
    println!("Every byte of every response was compared.");
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<(), Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed())
}

/// The median, and what a tenth of all stays below.
fn percentiles(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort_unstable();
    [times.len() / 2, times.len() / 10].map(|at| times.get(at).copied().unwrap_or_default())
}
