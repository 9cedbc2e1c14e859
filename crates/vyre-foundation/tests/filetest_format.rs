//! The file-test format itself: a file that does not hold is reported, with its line and what differs.

use vyre_foundation::filetest::{FileTest, RunCase, RunOutcome};

const PROGRAM: &str = "program p kernel workgroup(1, 1, 1)
buffer a: global u32 read_write min 2
buffer tile: workgroup u32 read_write len 2
buffer b: global f16 read_write min 1

entry {
  a[0u32] = 1u32;
}
";

fn load(header: &str, program: &str) -> Result<FileTest, String> {
    FileTest::parse("t.vir", format!("{header}\n{program}"))
}

#[track_caller]
fn refused(result: Result<(), String>, expected: &str) {
    match result {
        Ok(()) => panic!("holds, instead of `{expected}`"),
        Err(error) => assert!(error.contains(expected), "{error}\ninstead of {expected}"),
    }
}

/// A backend that makes of every case the same bytes and the same trap.
fn always(buffers: [&[u8]; 2], trap: Option<u32>) -> RunOutcome {
    RunOutcome { buffers: buffers.iter().map(|bytes| bytes.to_vec()).collect(), trap }
}

#[test]
fn headers() {
    for (header, expected) in [
        ("// nothing to do", "t.vir:1: no `// test verify`"),
        ("// test everything", "t.vir:1: unknown test `everything`"),
        ("// test run", "`// test run` and `// run:` come together"),
        ("// test verify\n// run: grid(1, 1, 1) -> a=[1, 0]", "`// test run` and `// run:` come together"),
    ] {
        refused(load(header, PROGRAM).map(drop), expected);
    }
    let test =
        load("// About.\n\n// test verify\n// test print\n// requires: u64", PROGRAM).expect("a header");
    assert_eq!(test.requires, ["u64"]);
    assert_eq!(test.kinds.len(), 2);
    assert_eq!(test.check_without_backend(), Ok(()));
}

#[test]
fn verify_wants_exactly_the_errors_said() {
    let check = |program: &str| load("// test verify", program).and_then(|test| test.check_without_backend());
    let program = |body: &str| PROGRAM.replace("  a[0u32] = 1u32;", body);
    assert_eq!(check(&program("  break; // error: outside of a loop")), Ok(()));
    refused(check(&program("  break;")), "t.vir:8: unexpected error: `break` is outside");
    refused(check(&program("  return; // error: outside")), "t.vir:8: no error like `outside`");
    refused(check(&program("  break; // error: loop // error: loop")), "t.vir:8: no error like `loop`");
    refused(check(&program("  break;\n  // error: outside")), "t.vir:9: no error like `outside`");
    refused(check(&program("  brake;")), "t.vir:8: unexpected error: expected a statement");
}

#[test]
fn print_wants_the_very_text() {
    let check = |program: &str| load("// test print", program).and_then(|test| test.check_without_backend());
    assert_eq!(check(PROGRAM), Ok(()));
    assert_eq!(check(&PROGRAM.replace("= 1u32;", "= 1u32; // one\n\n  // nothing")), Ok(()));
    refused(check(&PROGRAM.replace("= 1u32", "= (1u32)")), "t.vir:8: prints as\n  a[0u32] = 1u32;");
    refused(check(&PROGRAM.replace("= 1u32", "= 0x1u32")), "t.vir:8: prints as");
    refused(check(&PROGRAM.replace("}\n", "")), "expected a statement or `}`");
}

#[test]
fn run_reads_cases() {
    let run = |run: &str| {
        let mut cases: Vec<RunCase> = Vec::new();
        let test = load(&format!("// test run\n// run: {run}"), PROGRAM)?;
        test.check_run(|_, case| {
            cases.push(case.clone());
            Ok(RunOutcome { buffers: case.buffers.clone(), trap: None })
        })?;
        cases.pop().ok_or_else(|| "no case".to_owned())
    };
    let case = run("grid(1, 2, 3) a=[1, 0xff x 2, 4294967295] b=[1.5, 0x0001, -inf, nan, -0.0] ->");
    let a = [1, 0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255].to_vec();
    let b = [0x00, 0x3e, 0x01, 0x00, 0x00, 0xfc, 0x00, 0x7e, 0x00, 0x80].to_vec();
    assert_eq!(case, Ok(RunCase { grid: [1, 2, 3], buffers: vec![a, b] }));
    let case = run("grid(1, 1, 1)\n//   ->");
    assert_eq!(case, Ok(RunCase { grid: [1, 1, 1], buffers: vec![vec![0; 8], vec![0; 2]] }));
    for (text, expected) in [
        ("a=[1] ->", "t.vir:2: run, column 2: expected `grid`, found `a`"),
        ("grid(1, 1, 1) c=[1] ->", "expected a bound buffer, found `c`"),
        ("grid(1, 1, 1) tile=[1] ->", "expected a bound buffer, found `tile`"),
        ("grid(1, 1, 1) a=[1] a=[1] ->", "expected each buffer once"),
        ("grid(1, 1, 1) a=[4294967296] ->", "expected a value that is exact in u32"),
        ("grid(1, 1, 1) a=[-1] ->", "expected a value that is exact in u32"),
        ("grid(1, 1, 1) a=[nan] ->", "expected a value that is exact in u32"),
        ("grid(1, 1, 1) a=[_] ->", "`_` is for what comes out"),
        ("grid(1, 1, 1) b=[0.1] ->", "expected a value that is exact in f16, found `0.1`"),
        ("grid(1, 1, 1) b=[65520] ->", "expected a value that is exact in f16"),
        ("grid(1, 1, 1) b=[0x10000] ->", "expected a value that is exact in f16"),
        ("grid(1, 1, 1) a=[1, 2]", "expected a bound buffer, found the end of the text"),
        ("grid(1, 1, 1) -> trap(7", "expected `)`"),
    ] {
        refused(run(text).map(drop), expected);
    }
}

#[test]
fn run_compares_what_came_out() {
    let check = |expected: &str, outcome: RunOutcome| {
        let header = format!("// test run\n// run: grid(1, 1, 1) a=[7, 8] b=[1] -> {expected}");
        load(&header, PROGRAM)?.check_run(|_, _| Ok(outcome.clone()))
    };
    let (a, b) = (&[7, 0, 0, 0, 8, 0, 0, 0][..], &[0x00, 0x3c][..]);
    assert_eq!(check("a=[7, 8] b=[1]", always([a, b], None)), Ok(()));
    assert_eq!(check("", always([a, b], None)), Ok(()));
    assert_eq!(check("a=[_, 8]", always([a, b], None)), Ok(()));
    assert_eq!(check("b=[nan]", always([a, &[0x01, 0xfe]], None)), Ok(()));
    assert_eq!(check("trap(3)", always([&[9; 8], b], Some(3))), Ok(()));
    refused(check("a=[7, 9]", always([a, b], None)), "t.vir:2: a[1]: expected 9 (0x9), found 8 (0x8)");
    refused(check("", always([&[9; 8], b], None)), "a[0]: expected 7 (0x7), found 151587081");
    refused(
        check("b=[1]", always([a, &[0x00, 0xbc]], None)),
        "b[0]: expected 1.0 (0x3c00), found -1.0 (0xbc00)",
    );
    refused(
        check("b=[0.0]", always([a, &[0x00, 0x80]], None)),
        "b[0]: expected 0.0 (0x0), found -0.0 (0x8000)",
    );
    refused(check("b=[nan]", always([a, &[0x00, 0x7c]], None)), "b[0]: expected nan, found inf (0x7c00)");
    refused(
        check("b=[0x7e00]", always([a, &[0x01, 0x7e]], None)),
        "b[0]: expected NaN (0x7e00), found NaN (0x7e01)",
    );
    refused(check("a=[7]", always([a, b], None)), "`a` has 2 elements, not 1");
    refused(check("", always([&[7], b], None)), "`a` came back with 1 bytes of 8");
    refused(check("", always([a, b], Some(1))), "expected no trap, found trap(1)");
    refused(check("trap(1)", always([a, b], Some(2))), "expected trap(1), found trap(2)");
    refused(check("trap(1) a=[1, 2]", always([a, b], Some(1))), "a[0]: expected 1 (0x1), found 7");
}
