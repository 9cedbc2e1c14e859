//! `vyre top`: sessions of this process and of others, living and dead.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vyre::cpu::CpuBackend;
use vyre::runtime::observe;
use vyre::{Megakernel, OpcodeHandler, PersistentSession, SessionOptions, SlotDescriptor};

/// Longer than anything may take.
const WAIT: Duration = Duration::from_secs(60);
const ADD_ONE: u32 = 0x40;

fn vyre(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vyre"));
    command.args(arguments).env("VYRE_HIP_LIBRARY", "/no/such/library.so").env_remove(observe::VARIABLE);
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

/// `vyre top --once --json` over this user's own folder, for this process.
fn mine(name: &str) -> Option<Value> {
    let pid = std::process::id().to_string();
    let (status, stdout, _) = run(&mut vyre(&["top", "--once", "--json", "--pid", &pid]));
    let mut top: Value = serde_json::from_str(&stdout).expect("JSON");
    let Value::Array(sessions) = top["sessions"].take() else { panic!("no array in {stdout}") };
    assert_eq!(status, Some(i32::from(sessions.is_empty())));
    sessions.into_iter().find(|session| session["name"] == name)
}

fn session(options: SessionOptions) -> PersistentSession {
    let megakernel = Megakernel::builder(Arc::new(CpuBackend::new()))
        .handler(OpcodeHandler::new(ADD_ONE, "add_one", |h| h.complete(h.arg(0) + 1)))
        .build();
    megakernel.expect("a megakernel").start_with(options).expect("a session")
}

#[test]
fn once_counts_exactly_the_items_that_were_done() {
    let session = session(SessionOptions::new().observe("counted").measure_latency());
    for n in 0..1234 {
        session.submit_detached(SlotDescriptor::new(ADD_ONE).args([n])).expect("submitted");
        if n % 100 == 0 {
            session.drain(WAIT).expect("drained");
        }
    }
    session.drain(WAIT).expect("drained");
    let began = Instant::now();
    // The device's counters are as old as its heartbeat, and the snapshot is a little older.
    let seen = loop {
        let seen = mine("counted").expect("published");
        let counted = seen["done"].as_u64() >= Some(1234) && seen["acknowledged"].as_u64() >= Some(1234);
        // There are none if the second snapshot is late.
        if counted && !seen["rates"].is_null() {
            break seen;
        }
        assert!(began.elapsed() < WAIT, "{seen}");
    };
    for (field, expected) in [("done", 1234), ("acknowledged", 1234), ("submitted", 1234), ("faulted", 0)] {
        assert_eq!(seen[field], expected, "{field}");
    }
    assert_eq!(
        (&seen["backend"], &seen["state"], &seen["worker_pid"]),
        (&"cpu".into(), &"runs".into(), &Value::Null)
    );
    assert!(seen["rates"]["seconds"].as_f64() > Some(0.0), "{seen}");
    session.stop().expect("stopped");
    assert!(mine("counted").is_none());
}

/// A folder for its owner alone, as `XDG_RUNTIME_DIR` is.
fn runtime_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).expect("private");
    folder
}

fn top(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    run(vyre(&["top", "--once"]).args(arguments).env("XDG_RUNTIME_DIR", folder))
}

/// A search that is in the middle of it for as long as nobody reads what it finds.
fn stuck_scan(folder: &Path, options: &[&str], variable: &str) -> Child {
    fs::write(folder.join("rules"), "r\tx\n").expect("written");
    fs::write(folder.join("content"), "x\n".repeat(1 << 20)).expect("written");
    let mut scan = vyre(&["scan", "--rules", "rules", "content"]);
    scan.args(options).current_dir(folder).env("XDG_RUNTIME_DIR", folder).env(observe::VARIABLE, variable);
    let mut scan = scan.stdout(Stdio::piped()).spawn().expect("runs");
    // Its first match is there, so its session is.
    scan.stdout.as_mut().expect("piped").read_exact(&mut [0; 8]).expect("a match");
    scan
}

#[test]
fn a_killed_process_leaves_a_file_that_nobody_sees() {
    for (options, variable, name) in
        [(&["--observe"][..], "", "scan"), (&[], "1", "vyre"), (&["--observe", "--isolated"], "0", "scan")]
    {
        let folder = runtime_folder();
        let mut scan = stuck_scan(folder.path(), options, variable);
        let published = || fs::read_dir(folder.path().join("vyre")).expect("a folder").count();
        let began = Instant::now();
        // The first snapshot is from before the first item.
        let seen = loop {
            let (status, stdout, stderr) = top(folder.path(), &["--json"]);
            assert_eq!((status, stderr.as_str()), (Some(0), ""));
            let seen: Value = serde_json::from_str(&stdout).expect("JSON");
            let [seen] = &seen["sessions"].as_array().expect("sessions")[..] else { panic!("{seen}") };
            assert_eq!((&seen["name"], &seen["pid"]), (&name.into(), &scan.id().into()));
            if seen["done"].as_u64() > Some(0) {
                break seen.clone();
            }
            assert!(began.elapsed() < WAIT, "{seen}");
        };
        let worker = seen["worker_pid"].as_u64();
        let isolated = options.contains(&"--isolated");
        assert_eq!(worker.is_some(), isolated);
        if let Some(worker) = worker {
            let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("it lives");
            assert!(status.contains(&format!("PPid:\t{}\n", scan.id())), "{status}");
        }
        let (status, stdout, _) = top(folder.path(), &["--pid", &scan.id().to_string()]);
        assert!(status == Some(0) && stdout.contains(" scan "), "{stdout}");

        scan.kill().expect("killed");
        // Not buried yet, and dead all the same.
        let began = Instant::now();
        loop {
            let stat = fs::read_to_string(format!("/proc/{}/stat", scan.id())).expect("not buried");
            if stat.contains(") Z ") {
                break;
            }
            assert!(began.elapsed() < WAIT, "{stat}");
        }
        assert!(published() >= 1);
        let (status, stdout, stderr) = top(folder.path(), &["--json"]);
        assert_eq!((status, stdout.as_str()), (Some(1), "{\"sessions\":[]}\n"));
        assert!(
            stderr.starts_with("vyre: no observed session in ") && stderr.lines().count() == 1,
            "{stderr}"
        );
        assert_eq!(published(), 0);
        scan.wait().expect("ended");
    }
}

#[test]
fn a_search_that_ends_is_not_seen_any_more_and_one_that_did_not_ask_never_was() {
    let folder = runtime_folder();
    for (options, seen) in [(&["--observe"][..], true), (&[], false)] {
        let mut scan = stuck_scan(folder.path(), options, "0");
        assert_eq!(top(folder.path(), &[]).0, Some(i32::from(!seen)));
        let mut rest = Vec::new();
        scan.stdout.take().expect("piped").read_to_end(&mut rest).expect("read");
        assert!(scan.wait().expect("ended").success());
        assert_eq!(top(folder.path(), &[]).0, Some(1));
    }
    assert_eq!(fs::read_dir(folder.path().join("vyre")).expect("a folder").count(), 0);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = runtime_folder();
    let other = session(SessionOptions::new().observe("other"));
    let none = "1";
    let (status, _, stderr) = run(&mut vyre(&["top", "--once", "--pid", none]));
    assert_eq!(status, Some(1));
    assert!(stderr.contains("process 1 has no observed session; those that have: "), "{stderr}");
    drop(other);

    for (arguments, expected) in [
        (&["top"][..], "no terminal; use --once"),
        (&["top", "--json"], "--once"),
        (&["top", "--interval", "0"], "expected 0.1 to 3600 seconds"),
        (&["top", "--once", "--pid", "me"], "'me' for '--pid"),
    ] {
        let (status, stdout, stderr) = run(vyre(arguments).env("XDG_RUNTIME_DIR", folder.path()));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains(expected), "{stderr}");
    }

    // A session's file that is none, and one of another form; then a folder that others may write to.
    let path = folder.path().join("vyre");
    fs::DirBuilder::new().mode(0o700).create(&path).expect("made");
    let stat = fs::read_to_string("/proc/self/stat").expect("this process");
    let started = stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace().nth(19).expect("a time");
    let file = path.join(format!("{}-{started}-1.json", std::process::id()));
    for (content, expected) in
        [("{", "it is not a session's snapshot"), ("{\"version\":9}", "its form is number 9")]
    {
        fs::write(&file, content).expect("written");
        let (status, _, stderr) = top(folder.path(), &[]);
        assert!(status == Some(1) && stderr.contains(expected), "{stderr}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("opened");
    let (status, _, stderr) = top(folder.path(), &[]);
    assert!(status == Some(2) && stderr.contains("others than its owner may use it; remove it"), "{stderr}");
    fs::write(folder.path().join("rules"), "r\tx\n").expect("written");
    let mut scan = vyre(&["scan", "--observe", "--rules", "rules", "."]);
    let (status, _, stderr) = run(scan.current_dir(folder.path()).env("XDG_RUNTIME_DIR", folder.path()));
    assert!(status == Some(2) && stderr.contains("others than its owner may use it"), "{stderr}");
}

#[test]
fn a_scan_writes_a_trace_with_each_item_once() {
    let folder = runtime_folder();
    fs::write(folder.path().join("rules"), "r\tx+\n").expect("written");
    fs::write(folder.path().join("content"), "x y\n".repeat(10_000)).expect("written");
    let arguments = ["scan", "--rules", "rules", "--stats", "--json", "--trace", "t.json", "content"];
    let (status, _, stats) = run(vyre(&arguments).current_dir(folder.path()));
    assert_eq!(status, Some(0), "{stats}");
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    let items = stats["items"].as_u64().expect("a count") + stats["reruns"].as_u64().expect("a count");
    let trace = fs::read(folder.path().join("t.json")).expect("written");
    let trace: Value = serde_json::from_slice(&trace).expect("JSON");
    let tickets = |ph: &str| {
        let events = trace["traceEvents"].as_array().expect("events").iter();
        let of_kind = events.filter(|event| event["ph"] == ph && event["name"] == "scan");
        of_kind.map(|event| event["id"].as_u64().expect("a ticket")).collect::<Vec<_>>()
    };
    assert!(items > 39);
    assert!(tickets("b").into_iter().eq(0..items) && tickets("e").into_iter().eq(0..items));

    let lost = ["scan", "--rules", "rules", "--trace", "no/such/t.json", "content"];
    let (status, stdout, stderr) = run(vyre(&lost).current_dir(folder.path()));
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("--trace no/such/t.json: cannot be written; name a file that can"), "{stderr}");
}
