//! Whole programs, compiled as C++ and run on the host.

use std::path::{Path, PathBuf};

use vyre_foundation::filetest::{FileTest, RunOutcome, TestKind, load_dir};
use vyre_foundation::{ProgramKind, ValidatedProgram, text, validate};
use vyre_hip::emit::GridBarriers;

use crate::host::{Host, element_sizes, renamed};

/// Where the file tests are.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vyre-foundation/tests/files")
}

/// The file tests that are kernels, with programs of distinct names.
pub(crate) fn files() -> Vec<(FileTest, ValidatedProgram)> {
    let files = load_dir(folder()).unwrap_or_else(|error| panic!("{error}"));
    let kernel = |file: FileTest| {
        let program = validate(text::parse(&file.text).ok()?).ok()?;
        // One file declares functions that nobody has, to see them printed.
        let odd = file.path.ends_with("print/external_tags.vir");
        (program.program().kind == ProgramKind::Kernel && !odd).then_some((file, program))
    };
    let kernels = files.into_iter().filter_map(kernel).enumerate();
    kernels
        .map(|(index, (file, program))| {
            let name = format!("{}_{index}", program.program().name);
            (file, renamed(&program, name))
        })
        .collect()
}

fn run_files(grid_barriers: GridBarriers, only: impl Fn(&ValidatedProgram) -> bool, at_least: usize) {
    let files: Vec<_> =
        files().into_iter().filter(|(file, program)| file.is(TestKind::Run) && only(program)).collect();
    assert!(files.len() >= at_least, "only {} files", files.len());
    let programs: Vec<_> = files.iter().map(|(_, program)| program.clone()).collect();
    let Some(host) = Host::new(&programs, grid_barriers) else { return };
    let mut wrong = Vec::new();
    for (file, renamed) in &files {
        let result = file.check_run(|program, case| {
            let mut buffers = case.buffers.clone();
            let name = &renamed.program().name;
            let control = host.run(name, &mut buffers, &element_sizes(program), case.grid, false);
            Ok(RunOutcome { buffers, trap: control.trap().map(|(_, code)| code) })
        });
        wrong.extend(result.err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_run_as_they_say() {
    run_files(GridBarriers::Native, |_| true, 80);
}

#[test]
fn split_grid_barriers_run_as_they_say() {
    run_files(GridBarriers::Split, |program| program.facts().grid_barriers, 3);
}

fn host(source: &str) -> Option<(Host, String)> {
    host_with(source, GridBarriers::Native)
}

fn host_with(source: &str, grid_barriers: GridBarriers) -> Option<(Host, String)> {
    let program = validate(text::parse(source).unwrap()).unwrap_or_else(|errors| panic!("{errors}"));
    let name = program.program().name.clone();
    Some((Host::new(&[program], grid_barriers)?, name))
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Longer than a chunk, and left from its middle; in steps that end beyond `u32::MAX`.
#[test]
fn long_loops_run_to_their_ends() {
    let source = "
        program long kernel workgroup(1, 1, 1)
        buffer bounds: global u32 read min 3
        buffer out: global u32 write min 4
        entry {
          var rounds: u32 = 0u32;
          for i in bounds[0u32]..bounds[1u32] step 3 {
            rounds = rounds + 1u32;
          }
          out[0u32] = rounds;
          var sum: u32 = 0u32;
          for j in 0u32..bounds[1u32] {
            if j == bounds[2u32] {
              break;
            }
            if (j & 1u32) == 1u32 {
              continue;
            }
            sum = sum + j;
          }
          out[1u32] = sum;
          var nested: u32 = 0u32;
          for k in 0u32..70u32 {
            for l in 0u32..bounds[2u32] {
              nested = nested + 1u32;
            }
          }
          out[2u32] = nested;
          var last: u32 = 0u32;
          for m in 4294900000u32..4294967295u32 step 60000 {
            last = m;
          }
          out[3u32] = last;
        }";
    let Some((host, name)) = host(source) else { return };
    let mut data = vec![words(&[2, 10_000, 5001]), words(&[0; 4])];
    let control = host.run(&name, &mut data, &[4, 4], [1, 1, 1], false);
    assert_eq!(control.trap(), None);
    let evens: u32 = (0..5001).filter(|j| j % 2 == 0).sum();
    assert_eq!(data[1], words(&[9998_u32.div_ceil(3), evens, 70 * 5001, 4_294_960_000]));
}

/// A dispatch that would never end does, and what stands behind the loop is not done. Those that wait at
/// a barrier for the one that was cut short go on.
#[test]
fn an_abort_ends_endless_loops() {
    let source = "
        program endless kernel workgroup(4, 1, 1)
        buffer out: global u32 read_write min 8
        fn spin(on: u32) {
          while out[on] == 0u32 {
            for i in 0u32..4294967295u32 {
              for j in 0u32..4294967295u32 {
                out[7u32] = j;
              }
            }
          }
          out[4u32] = 1u32;
        }
        entry {
          let i: u32 = local_id.x;
          if i == 2u32 {
            call spin(5u32);
            out[6u32] = 1u32;
          }
          barrier;
          out[i] = i + 1u32;
        }";
    let Some((host, name)) = host(source) else { return };
    let mut data = vec![words(&[0; 8])];
    let control = host.run(&name, &mut data, &[4], [1, 1, 1], true);
    assert_eq!((control.trap(), control.aborted), (None, 1));
    let found: Vec<u32> = data[0].as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    assert_eq!(found[..7], [1, 2, 0, 4, 0, 0, 0]);
}

/// A workgroup that never comes to the grid barrier does not keep the others there.
#[test]
fn an_abort_ends_the_wait_at_a_grid_barrier() {
    let source = "
        program waits kernel workgroup(2, 1, 1)
        buffer out: global u32 read_write min 2
        entry {
          if workgroup_id.x == 1u32 {
            while out[0u32] == 0u32 {
            }
          }
          grid_barrier;
          out[1u32] = 7u32;
        }";
    let Some((host, name)) = host(source) else { return };
    let mut data = vec![words(&[0; 2])];
    let control = host.run(&name, &mut data, &[4], [3, 1, 1], true);
    assert_eq!((control.trap(), control.aborted), (None, 1));
    assert_eq!(data[0], words(&[0, 0]));
}

/// More buffers than an argument by value may have.
#[test]
fn many_bindings_go_through_a_table() {
    let mut source = String::from("program many kernel workgroup(1, 1, 1)\n");
    for index in 0..300 {
        source.push_str(&format!("buffer of_{index}: global u32 read_write min 1\n"));
    }
    source.push_str("entry { of_0[0u32] = of_299[0u32] + of_1[0u32]; }");
    let Some((host, name)) = host(&source) else { return };
    let mut data: Vec<_> = (0..300).map(|index| words(&[index])).collect();
    host.run(&name, &mut data, &[4; 300], [1, 1, 1], false);
    assert_eq!(data[0], words(&[300]));
}

/// What a condition says about an index is forgotten behind its block, and does not hold in the other one.
#[test]
fn facts_end_with_their_blocks() {
    let source = "
        program facts kernel workgroup(8, 1, 1)
        buffer any: global u32 read_write min 0
        buffer two: global u32 read_write min 2
        entry {
          let i: u32 = global_id.x;
          if i < len(any) {
            any[i] = 1u32;
          } else {
            any[i] = 2u32;
          }
          any[i] = any[i] + 4u32;
          if i < 2u32 {
            two[i] = 1u32;
          } else {
            two[i] = 2u32;
          }
          two[i] = two[i] + 4u32;
        }";
    let Some((host, name)) = host(source) else { return };
    let mut data = vec![words(&[0; 3]), words(&[0; 2])];
    host.run(&name, &mut data, &[4, 4], [1, 1, 1], false);
    assert_eq!(data, [words(&[5; 3]), words(&[5; 2])]);
}

/// Whatever ends a program before a grid barrier ends it in all its parts.
#[test]
fn later_parts_of_a_program_that_ended_do_nothing() {
    let source = "
        program ends kernel workgroup(2, 1, 1)
        buffer how: uniform u32 read min 1
        buffer out: global u32 read_write min 4
        fn leave() {
          trap 9u32;
        }
        entry {
          let i: u32 = global_id.x;
          out[i] = 1u32;
          grid_barrier;
          switch how[0u32] {
            case 0 {
              return;
            }
            case 1 {
              call leave();
            }
          }
          out[i] = 2u32;
          grid_barrier;
          out[i] = 3u32;
        }";
    for form in [GridBarriers::Native, GridBarriers::Split] {
        let Some((host, name)) = host_with(source, form) else { return };
        for (how, trap, last) in [(0, None, 1), (1, Some((0, 9)), 1), (2, None, 3)] {
            let mut data = vec![words(&[how]), words(&[0; 4])];
            let control = host.run(&name, &mut data, &[4, 4], [2, 1, 1], false);
            assert_eq!((control.trap(), &data[1]), (trap, &words(&[last; 4])), "{form:?}, {how}");
        }
    }
}
