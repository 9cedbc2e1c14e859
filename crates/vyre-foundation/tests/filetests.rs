//! The file tests that need no backend: what the validator says, and what the printer prints.

use std::path::Path;
use vyre_foundation::filetest::{FileTest, RunOutcome, TestKind, load_dir};

fn files() -> Vec<FileTest> {
    load_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files"))
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn verify_and_print() {
    let files = files();
    assert!(files.len() > 50, "only {} files", files.len());
    let wrong: Vec<String> = files.iter().filter_map(|file| file.check_without_backend().err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whatever runs, runs on a valid program, and its header fits it. What comes out is a backend's to test.
#[test]
fn run_headers_fit_their_programs() {
    for file in files().iter().filter(|file| file.is(TestKind::Run)) {
        let mut cases = 0;
        let nothing_done = file.check_run(|_, case| {
            cases += 1;
            Ok(RunOutcome { buffers: case.buffers.clone(), trap: None })
        });
        assert!(cases > 0, "{nothing_done:?}");
        // A file that holds for a backend that does nothing would say nothing.
        assert!(nothing_done.is_err(), "{}: holds even if nothing is run", file.path.display());
    }
}
