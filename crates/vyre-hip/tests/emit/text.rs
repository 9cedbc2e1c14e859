//! What the emitted text looks like, and where its lines come from.

use expect_test::{expect, expect_file};
use vyre_foundation::filetest::TestKind;
use vyre_foundation::{ProgramKind, text, validate};
use vyre_hip::emit::{self, EmitError, EmitOptions, GridBarriers};

use crate::host_runs::{files, folder};

/// The `.hip` files beside the file tests.
#[test]
fn files_are_emitted_as_they_say() {
    let files = vyre_foundation::filetest::load_dir(folder()).unwrap_or_else(|error| panic!("{error}"));
    let files: Vec<_> = files.into_iter().filter(|file| file.is(TestKind::Emit)).collect();
    assert!(files.len() >= 10, "only {} files", files.len());
    let check = |program: &_| emit::kernel(program, &EmitOptions::default()).unwrap().source;
    let wrong: Vec<String> = files.iter().filter_map(|file| file.check_emit("hip", check).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_program_in_parts() {
    let file = folder().join("emit/grid_phases.vir");
    let program = validate(text::parse(&std::fs::read_to_string(file).unwrap()).unwrap()).unwrap();
    let options = EmitOptions::default().with_grid_barriers(GridBarriers::Split);
    let kernel = emit::kernel(&program, &options).unwrap();
    expect_file!["grid_phases_split.hip"].assert_eq(&kernel.source);
    assert_eq!(kernel.entries, [0, 1, 2].map(|pass| format!("kernel_grid_phases_pass{pass}")));
    assert!(!kernel.uses_grid_barrier);
    // `i`, `even` and `mine` for each invocation, and the tile.
    assert_eq!((kernel.spill.per_invocation, kernel.spill.per_workgroup), (12, 16));
}

#[test]
fn lines_name_their_statements() {
    let source = "
        program lines kernel workgroup(1, 1, 1)
        buffer data: global u32 read_write min 2
        fn twice(x: u32) -> u32 { return x * 2u32; }
        entry {
          let y = call twice(data[0u32]);
          if y > 3u32 {
            data[1u32] = 7u32;
          } else {
            trap 5u32;
          }
        }";
    let program = validate(text::parse(source).unwrap()).unwrap();
    let kernel = emit::kernel(&program, &EmitOptions::default()).unwrap();
    let mut named = String::new();
    for (number, line) in (1..).zip(kernel.source.lines()) {
        if let Some(path) = kernel.lines.path(number) {
            named.push_str(&format!("{path:28}| {}\n", line.trim()));
        }
    }
    expect![[r#"
        fn twice / body[0]          | r_0 = l_x * 2u;
        fn twice / body[0]          | return;
        entry main / body[0]        | u32 l_y;
        entry main / body[0]        | f_twice(vyre, vyre.b_data.get(0u), l_y);
        entry main / body[1]        | if (l_y > 3u) {
        entry main / body[1].then[0]| vyre.b_data.put(1u, 7u);
        entry main / body[1]        | } else {
        entry main / body[1].else[0]| vyre_trap(vyre, 5u);
        entry main / body[1].else[0]| return;
        entry main / body[1]        | }
    "#]]
    .assert_eq(&named);
}

#[test]
fn every_valid_kernel_is_emitted() {
    for (file, program) in files() {
        for form in [GridBarriers::Native, GridBarriers::Split] {
            let kernel = emit::kernel(&program, &EmitOptions::default().with_grid_barriers(form));
            let kernel = kernel.unwrap_or_else(|error| panic!("{}: {error}", file.path.display()));
            assert!(!kernel.entries.is_empty());
            assert!(kernel.entries.iter().all(|entry| kernel.source.contains(entry.as_str())));
        }
    }
}

#[test]
fn items_are_refused() {
    let source = "program one item(lane) workgroup(1, 1, 1) entry { }";
    let program = validate(text::parse(source).unwrap()).unwrap();
    let refused = emit::kernel(&program, &EmitOptions::default());
    assert!(matches!(refused, Err(EmitError::NotAKernel(ProgramKind::Item(_)))), "{refused:?}");
}

#[test]
fn unknown_external_functions_are_refused() {
    let source = "program one kernel workgroup(1, 1, 1) external gemm_f16(u32) buffers() entry { }";
    let program = validate(text::parse(source).unwrap()).unwrap();
    let refused = emit::kernel(&program, &EmitOptions::default()).unwrap_err().to_string();
    assert!(
        refused.contains("no external function `gemm_f16(u32) buffers()`; it has `gemm_f16(u32, "),
        "{refused}"
    );
}
