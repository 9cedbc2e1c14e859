//! The command: what it prints, and what it exits with.

use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A folder with a rules file `r` and a folder `d` of files.
struct Fixture(TempDir);

impl Fixture {
    fn new(rules: &[u8], files: &[(&[u8], &[u8])]) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("d")).expect("made");
        fs::write(folder.path().join("r"), rules).expect("written");
        for (name, content) in files {
            let path = folder.path().join("d").join(OsStr::from_bytes(name));
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, content).expect("written");
        }
        Fixture(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vyre"));
        command.args(arguments).current_dir(self.path());
        // The same on machines with and without a GPU.
        command.env("VYRE_HIP_LIBRARY", "/no/such/library.so");
        command
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (status.code(), text(stdout), text(stderr))
    }

    fn scan(&self) -> (Option<i32>, String, String) {
        self.run(&["scan", "--rules", "r", "d"])
    }
}

#[test]
fn matches_are_sorted_and_hidden_files_are_searched() {
    let files: [(&[u8], &[u8]); 4] =
        [(b"b", b"xx\n x"), (b"a/c", b"yx"), (b"a-b", b"\n\ny"), (b".hidden/.h", b"x")];
    let fixture = Fixture::new(b"r1\tx\nr2\ty\nr0\t[xy]\n", &files);
    symlink("../r", fixture.path().join("d/link")).expect("linked");
    let expected = "\
d/.hidden/.h:1:1:r0
d/.hidden/.h:1:1:r1
d/a-b:3:1:r0
d/a-b:3:1:r2
d/a/c:1:1:r0
d/a/c:1:1:r2
d/a/c:1:2:r0
d/a/c:1:2:r1
d/b:1:1:r0
d/b:1:1:r1
d/b:1:2:r0
d/b:1:2:r1
d/b:2:2:r0
d/b:2:2:r1
";
    assert_eq!(fixture.scan(), (Some(0), expected.to_owned(), String::new()));
    // The same files twice are one; another order of paths changes nothing.
    let twice = fixture.run(&["scan", "--rules", "r", "--backend", "cpu", "d/b", "d/a", "d"]);
    assert_eq!(twice, (Some(0), expected.to_owned(), String::new()));
}

#[test]
fn no_match_is_status_one() {
    for files in [&[][..], &[(&b"f"[..], &b""[..])], &[(b"f", b"nothing")]] {
        assert_eq!(Fixture::new(b"r\tx\n", files).scan(), (Some(1), String::new(), String::new()));
    }
}

#[test]
fn json_has_byte_offsets() {
    let fixture = Fixture::new("r\té+\n".as_bytes(), &[(b"f", "\n éé".as_bytes())]);
    let (status, stdout, _) = fixture.run(&["scan", "--rules", "r", "--json", "d"]);
    assert_eq!(status, Some(0));
    let object: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    let expected =
        serde_json::json!({ "path": "d/f", "line": 2, "column": 2, "id": "r", "start": 2, "end": 6 });
    assert_eq!(object, expected);
}

#[test]
fn a_path_that_is_not_utf8_is_printed_byte_for_byte() {
    let fixture = Fixture::new(b"r\tx\n", &[(b"f\xFF\xFE", b"x")]);
    let output = fixture.command(&["scan", "--rules", "r", "d"]).output().expect("runs");
    assert_eq!(output.stdout, b"d/f\xFF\xFE:1:1:r\n");
    let output = fixture.command(&["scan", "--rules", "r", "--json", "d"]).output().expect("runs");
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(object["path_bytes"], serde_json::json!(b"d/f\xFF\xFE"));
}

#[test]
fn bad_rules_are_named_by_line() {
    let fixture = Fixture::new(b"# c\nok\tx\nbad\nbad2\t(\nok\ty\n", &[(b"f", b"x")]);
    let (status, stdout, stderr) = fixture.scan();
    assert_eq!((status, stdout.as_str()), (Some(2), ""));
    for expected in
        ["r: line 3: no tab", "r: line 4: rule \"bad2\" is not a valid regex", "r: line 5: id \"ok\""]
    {
        assert!(stderr.contains(expected), "{expected} is not in {stderr}");
    }
    let (status, _, stderr) = fixture.run(&["scan", "--rules", "none", "d"]);
    assert_eq!(status, Some(2));
    assert!(stderr.starts_with("vyre: none: cannot read the rules: "), "{stderr}");
}

#[test]
fn what_cannot_be_read_is_an_error_and_the_rest_is_scanned() {
    let fixture = Fixture::new(b"r\tx\n", &[(b"f", b"x"), (b"g", b"x")]);
    let scanned = "d/f:1:1:r\nd/g:1:1:r\n";
    let (status, stdout, stderr) = fixture.run(&["scan", "--rules", "r", "none", "d", "/dev/null"]);
    assert_eq!((status, stdout.as_str()), (Some(2), scanned));
    assert!(stderr.contains("vyre: none: cannot open: No such file"), "{stderr}");
    assert!(stderr.contains("vyre: /dev/null: not a regular file"), "{stderr}");

    let locked = fixture.path().join("d/f");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).expect("locked");
    if fs::File::open(&locked).is_ok() {
        // The superuser reads everything; there is nothing to see.
        return;
    }
    let (status, stdout, stderr) = fixture.scan();
    assert_eq!((status, stdout.as_str()), (Some(2), "d/g:1:1:r\n"));
    assert!(stderr.contains("vyre: d/f: cannot open: Permission denied"), "{stderr}");
}

#[test]
fn a_file_whose_length_lies_is_scanned() {
    // What the kernel makes up has no length and yet bytes.
    let fixture = Fixture::new(b"r\t\\AName:\tvyre\n", &[]);
    let scanned = fixture.run(&["scan", "--rules", "r", "/proc/self/status"]);
    assert_eq!(scanned, (Some(0), "/proc/self/status:1:1:r\n".to_owned(), String::new()));
}

#[test]
fn two_spellings_of_one_path_are_one() {
    let fixture = Fixture::new(b"r\tx\n", &[(b"f", b"x")]);
    symlink("d", fixture.path().join("link")).expect("linked");
    for paths in [["d", "./d", "link"], ["d", "d/../d", "./d/f"], ["d/f", "d", "link/f"]] {
        let [one, two, three] = paths;
        let scanned = fixture.run(&["scan", "--rules", "r", one, two, three]);
        assert_eq!(scanned, (Some(0), "d/f:1:1:r\n".to_owned(), String::new()), "{paths:?}");
    }
}

#[test]
fn help_says_what_is_written_and_how_it_ends() {
    let (status, stdout, _) = Fixture::new(b"", &[]).run(&["scan", "--help"]);
    assert_eq!(status, Some(0));
    for expected in
        ["Exit status:", "path:line:column:id", "path_bytes", "Search files for many patterns at once"]
    {
        assert!(stdout.contains(expected), "{expected} is not in {stdout}");
    }
}

#[test]
fn files_that_change_all_the_time_are_errors_or_scanned_but_no_crash() {
    let fixture = Fixture::new(b"r\tx\n", &[]);
    let files: Vec<_> = (0..4).map(|n| fixture.path().join(format!("d/{n}"))).collect();
    files.iter().for_each(|path| fs::write(path, vec![b'x'; 3 << 20]).expect("written"));
    let mut child = fixture
        .command(&["scan", "--rules", "r", "d"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut length = 0;
    let status = loop {
        if let Some(status) = child.try_wait().expect("known") {
            break status;
        }
        length = (length + 1_234_567) % (3 << 20);
        for path in &files {
            fs::File::options().write(true).open(path).and_then(|f| f.set_len(length)).expect("cut");
        }
    };
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("read");
    assert!(matches!(status.code(), Some(0..=2)), "{status}: {stderr}");
    assert!(stderr.lines().all(|line| line.contains("changed while it was scanned")), "{stderr}");
    assert_eq!(status.code() == Some(2), !stderr.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let content = b"x\n".repeat(200_000);
    let files: [(&[u8], &[u8]); 3] = [(b"a", &content), (b"b", &content), (b"c", &content)];
    let fixture = Fixture::new(b"r\tx\n", &files);
    let mut child = fixture
        .command(&["scan", "--rules", "r", "d"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut first = [0; 8];
    child.stdout.take().expect("piped").read_exact(&mut first).expect("a line");
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn a_full_disk_is_an_error() {
    let fixture = Fixture::new(b"r\tx\n", &[(b"f", b"x")]);
    let full = fs::File::options().write(true).open("/dev/full").expect("opened");
    let output = fixture.command(&["scan", "--rules", "r", "d"]).stdout(full).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.starts_with("vyre: cannot write the matches: "), "{stderr}");
}

#[test]
fn stats_go_to_stderr() {
    let fixture = Fixture::new(b"r\tx\n", &[(b"f", b"x"), (b"g", b"")]);
    let (status, stdout, stderr) = fixture.run(&["scan", "--rules", "r", "--stats", "d"]);
    assert_eq!((status, stdout.as_str()), (Some(0), "d/f:1:1:r\n"));
    for expected in
        ["2 files, 1 bytes", "100.00 % of bytes x rules", "p99", "slots", "1 matches", "rules on host   none"]
    {
        assert!(stderr.contains(expected), "{expected} is not in {stderr}");
    }
    let (_, _, stderr) = fixture.run(&["scan", "--rules", "r", "--compare", "--json", "d"]);
    let object: serde_json::Value = serde_json::from_str(&stderr).expect("JSON");
    assert_eq!((&object["items"], &object["matches"]), (&1.into(), &1.into()));
    assert_eq!(object["comparison"]["disagreements"], 0);
    assert!(object["comparison"]["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0));
}

#[test]
fn stats_say_why_a_rule_is_run_on_the_host() {
    let fixture = Fixture::new(b"big\tk(?:[ab]{0,40}a[ab]{14}c)?z\n", &[(b"f", b"kz")]);
    let (status, _, stderr) = fixture.run(&["scan", "--rules", "r", "--stats", "d"]);
    let expected = "rules on host   big: each needs a table of more than 524288 bytes";
    assert!(status == Some(0) && stderr.contains(expected), "{stderr}");
}

#[test]
fn wrong_arguments_are_status_two() {
    let fixture = Fixture::new(b"r\tx\n", &[]);
    for arguments in [
        &["scan"][..],
        &["scan", "--rules", "r"],
        &["scan", "--rules", "r", "--backend", "abacus", "d"],
        &["scan", "--rules", "r", "--producers", "0", "d"],
        &["scan", "--rules", "r", "--producers", "65", "d"],
        &["no-such-command"],
    ] {
        let (status, stdout, stderr) = fixture.run(arguments);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!stderr.is_empty());
    }
}

#[test]
fn info_lists_backends_and_reasons() {
    let fixture = Fixture::new(b"", &[]);
    let (status, stdout, stderr) = fixture.run(&["info"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("cpu: available\n"), "{stdout}");
    assert!(stdout.contains("hip: not available: "), "{stdout}");
    assert!(stdout.contains("/no/such/library.so: not loaded"), "{stdout}");
    let (status, stdout, _) = fixture.run(&["info", "--json"]);
    assert_eq!(status, Some(0));
    let object: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(object["backends"][0]["name"], "cpu");
    assert_eq!(object["backends"][0]["available"], true);
    assert_eq!(object["backends"][0]["devices"][0]["persistent"], true);
    let reason = object["backends"][1]["reason"].as_str().expect("a reason");
    assert!(reason.contains("/no/such/library.so"), "{reason}");
}

#[test]
fn gemm_verifies_measures_and_reports() {
    let fixture = Fixture::new(b"", &[]);
    let size = ["gemm", "--m", "33", "--n", "20", "--k", "70"];
    let with = |more: &[&str]| fixture.run(&[&size[..], more].concat());
    let (status, stdout, stderr) = with(&["--backend", "cpu", "--repeat", "3", "--markdown", "report.md"]);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(stdout.starts_with("# GEMM 33 x 20 x 70: right\n"), "{stdout}");
    let report = fixture.path().join("report.md");
    assert_eq!(fs::read_to_string(&report).expect("written"), stdout);
    // A longer one from before is replaced whole.
    fs::write(&report, stdout.repeat(2)).expect("writes");
    let (_, stdout, _) = with(&["--backend", "cpu", "--repeat", "1", "--markdown", "report.md"]);
    assert_eq!(fs::read_to_string(&report).expect("written"), stdout);

    let more = ["--batch", "2", "--alpha", "-0.5", "--beta", "2", "--out", "f16", "--seed", "7", "--json"];
    let (status, stdout, stderr) = with(&[&more[..], &["--repeat", "3"]].concat());
    assert!(status == Some(0) && stderr.contains("there is no GPU"), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (&report["passed"], &report["batch"], &report["alpha"]),
        (&true.into(), &2.into(), &(-0.5).into())
    );
    assert_eq!(report["types"][2], "f16");
    let gates: Vec<_> = report["gates"].as_array().expect("gates").iter().map(|gate| &gate["name"]).collect();
    assert_eq!(gates, ["arguments", "exact", "bound", "norm", "specials", "subnormals", "repeat"]);
    assert!(report["tflops"].as_f64().expect("timed") > 0.0);

    // Infinite where C's type overflows is right.
    for overflowing in [&["--alpha", "1e5", "--out", "f16"][..], &["--alpha", "3e38"]] {
        let (status, stdout, _) = with(&[overflowing, &["--backend", "cpu", "--repeat", "1"]].concat());
        assert_eq!(status, Some(0), "{stdout}");
    }
}

#[test]
fn gemm_takes_leading_dimensions_and_strides() {
    let fixture = Fixture::new(b"", &[]);
    let shape =
        ["gemm", "--backend", "cpu", "--m", "5", "--n", "6", "--k", "7", "--batch", "3", "--repeat", "1"];
    let padded = ["--lda", "9", "--ldb", "8", "--ldc", "30", "--stride-a", "0", "--stride-c", "10", "--json"];
    let (status, stdout, stderr) = fixture.run(&[&shape[..], &padded].concat());
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(report["leading_dimensions"], serde_json::json!([9, 8, 30]));
    assert_eq!(report["strides"], serde_json::json!([0, 56, 10]));

    // What is wrong with the problem is said before there is no device.
    let four = ["gemm", "--m", "4", "--n", "4", "--k", "4", "--backend", "hip"];
    for (arguments, expected) in [
        (&["--ldb", "3", "--ldc", "2305843009213693952"][..], "--ldb 3 is less than N = 4; pass at least 4"),
        (&["--lda", "3"], "--lda 3 is less than K = 4; pass at least 4"),
        (&["--batch", "2", "--stride-c", "15"], "a stride of at least 16"),
        (&["--ldc", "2305843009213693952"], "leaves 63 bits"),
        (&["--lda", "1125899906842624"], "out of memory"),
        (&["--lda", "4"], "/no/such/library.so"),
    ] {
        let (status, stdout, stderr) = fixture.run(&[&four[..], arguments].concat());
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn gemm_errors_are_status_two() {
    let fixture = Fixture::new(b"", &[]);
    for (arguments, expected) in [
        (&["gemm", "--m", "4", "--n", "4"][..], "--k"),
        (&["gemm", "--m", "4", "--n", "4", "--k", "4", "--backend", "hip"], "/no/such/library.so"),
        (&["gemm", "--m", "2147483648", "--n", "4294967296", "--k", "1"], "split the problem"),
        (&["gemm", "--m", "4194304", "--n", "4194304", "--k", "1"], "out of memory"),
        (&["gemm", "--m", "4", "--n", "4", "--k", "-4"], "-4"),
        // Before there is no device.
        (
            &["gemm", "--m", "4", "--n", "4", "--k", "4", "--backend", "hip", "--markdown", "/no/such/x"],
            "--markdown /no/such/x: ",
        ),
        (&["gemm", "--m", "4", "--n", "4", "--k", "4", "--alpha", "1e39"], "'1e39' for '--alpha"),
        (&["gemm", "--m", "4", "--n", "4", "--k", "4", "--beta", "nan"], "'nan' for '--beta"),
    ] {
        let (status, stdout, stderr) = fixture.run(arguments);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

/// The only child of a process, once it has another one than `before`.
fn next_worker(parent: u32, before: Option<u32>) -> u32 {
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).expect("it runs");
        let children =
            threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
        let child = children
            .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>());
        match child.last() {
            Some(child) if Some(child) != before => return child,
            _ => std::thread::yield_now(),
        }
    }
    panic!("no worker after {before:?}");
}

#[test]
fn a_scan_goes_on_when_its_worker_is_killed_and_says_so_in_one_line() {
    // One producer runs ahead of the output by less than 800 files; a tenth of all is read before each kill.
    let content = b"x.y.xx\n".repeat(60);
    let names: Vec<String> = (0..3000).map(|n| format!("{n:04}")).collect();
    let files: Vec<(&[u8], &[u8])> = names.iter().map(|name| (name.as_bytes(), content.as_slice())).collect();
    let fixture = Fixture::new(b"r1\tx+\nr2\ty\n", &files);
    let (_, expected, _) = fixture.scan();
    let mut scan = fixture.command(&["scan", "--isolated", "--producers", "1", "--rules", "r", "d"]);
    let mut scan = scan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut stdout = scan.stdout.take().expect("piped");
    let mut got = Vec::new();
    // Whoever writes to a full pipe waits: the scan is in the middle whenever a worker is killed.
    let mut worker = None;
    for _ in 0..4 {
        let mut piece = vec![0; expected.len() / 10];
        stdout.read_exact(&mut piece).expect("more");
        got.extend(piece);
        let next = next_worker(scan.id(), worker);
        let pid = rustix::process::Pid::from_raw(next as i32).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        worker = Some(next);
    }
    stdout.read_to_end(&mut got).expect("the rest");
    let output = scan.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(got == expected.as_bytes(), "{} bytes instead of {}", got.len(), expected.len());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().count() == 1 && said.contains("signal 9"), "{said}");
}
