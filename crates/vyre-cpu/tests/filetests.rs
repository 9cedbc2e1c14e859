//! The `.vir` files of vyre-foundation, whose expected values are written by hand: this crate's own truth.

mod common;

use std::path::Path;

use common::{Data, all_settings, run};
use vyre_foundation::MemorySpace;
use vyre_foundation::filetest::{RunOutcome, TestKind, load_dir};

#[test]
fn files_run_as_they_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vyre-foundation/tests/files");
    let files = load_dir(folder).unwrap_or_else(|error| panic!("{error}"));
    let files: Vec<_> = files.into_iter().filter(|file| file.is(TestKind::Run)).collect();
    assert!(files.len() > 40, "only {} files to run", files.len());
    let mut wrong = Vec::new();
    for (setting, backend) in all_settings() {
        for file in &files {
            let result = file.check_run(|program, case| {
                let decls = program.program().buffers.iter();
                let bound = decls.filter(|decl| decl.space != MemorySpace::Workgroup);
                let mut data: Vec<Data> = bound
                    .zip(&case.buffers)
                    .map(|(decl, bytes)| Data { element: decl.element, bytes: bytes.clone() })
                    .collect();
                let outcome =
                    run(&backend, program, &mut data, case.grid).map_err(|error| error.to_string())?;
                Ok(RunOutcome {
                    buffers: data.into_iter().map(|data| data.bytes).collect(),
                    trap: outcome.trap.map(|trap| trap.code),
                })
            });
            wrong.extend(result.err().map(|error| format!("with {setting}: {error}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
