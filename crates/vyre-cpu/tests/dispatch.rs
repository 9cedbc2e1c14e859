//! Dispatching kernels: grids, barriers, traps, deadlines, and everything that is refused.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Data, all_settings, backend, run};
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{
    BackendError, BufferBinding, BufferDesc, BufferHandle, CompiledPipeline, DispatchConfig, Generation,
    Trap, VyreBackend,
};
use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Value, Var};
use vyre_foundation::limits::{MAX_CALL_DEPTH, MAX_NESTING};
use vyre_foundation::{
    Axis, BufferAccess, Builtin, DataType, Granularity, MemorySpace, ScalarType, ValidatedProgram,
};

const RW: BufferAccess = BufferAccess::ReadWrite;

fn global_x() -> Value {
    Builtin::GlobalId(Axis::X).into()
}

/// A kernel over one global u32 buffer.
fn kernel(
    size: [u32; 3],
    body: impl FnOnce(&mut FunctionBuilder, vyre_foundation::builder::Buffer),
) -> ValidatedProgram {
    let mut p = ProgramBuilder::kernel("test").workgroup_size(size);
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, RW, 0);
    p.entry(|f| body(f, out));
    p.validate().unwrap_or_else(|errors| panic!("{errors}"))
}

/// Runs in every setting over zeros and compares.
fn check(program: &ValidatedProgram, grid: [u32; 3], expected: &[u32]) {
    for (setting, backend) in all_settings() {
        let mut data = [Data::u32s(&vec![0; expected.len()])];
        let outcome = run(&backend, program, &mut data, grid).unwrap();
        assert_eq!(outcome.trap, None, "{setting}");
        assert_eq!(data[0].to_u32s(), expected, "{setting}");
    }
}

#[test]
fn invocations_know_where_they_are() {
    let (size, grid) = ([3, 2, 5], [4, 3, 2]);
    let program = kernel(size, |f, out| {
        let axes = [Axis::X, Axis::Y, Axis::Z];
        let global = axes.map(|axis| Value::from(Builtin::GlobalId(axis)));
        let whole = axes.map(|axis| {
            Value::from(Builtin::NumWorkgroups(axis)) * Value::from(Builtin::WorkgroupSize(axis))
        });
        let [gx, gy, gz] = global;
        let [wx, wy, _] = whole;
        let at = f.let_("at", gx + (gy + gz * wy) * wx);
        let [lx, ly, lz] = axes.map(|axis| Value::from(Builtin::LocalId(axis)));
        let [kx, ky, kz] = axes.map(|axis| Value::from(Builtin::WorkgroupId(axis)));
        let digits = [kx, ky, kz, lx, ly, lz];
        f.store(out, at, digits.into_iter().reduce(|word, digit| word * 10 + digit).unwrap());
    });
    let (dx, dy, dz) = (grid[0] * size[0], grid[1] * size[1], grid[2] * size[2]);
    let mut expected = Vec::new();
    for z in 0..dz {
        for y in 0..dy {
            for x in 0..dx {
                let digits = [x / 3, y / 2, z / 5, x % 3, y % 2, z % 5];
                expected.push(digits.into_iter().fold(0, |word, digit| word * 10 + digit));
            }
        }
    }
    check(&program, grid, &expected);
}

#[test]
fn workgroup_barriers_order_shared_memory() {
    // Reverses the numbers of a workgroup through its memory, twice, so that a missing barrier shows.
    let mut p = ProgramBuilder::kernel("reverse").workgroup_size([100, 1, 1]);
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, RW, 0);
    let shared = p.buffer("shared", MemorySpace::Workgroup, DataType::U32, RW, 100);
    p.entry(|f| {
        let me = f.let_("me", Builtin::LocalId(Axis::X));
        let mine = f.var_("mine", global_x());
        f.for_("round", 0, 3, |f, round| {
            f.store(shared, me, mine + round);
            f.barrier();
            f.assign(mine, shared.load(Value::from(99) - me));
            f.barrier();
        });
        f.store(out, global_x(), mine);
    });
    let program = p.validate().unwrap();
    let expected: Vec<u32> = (0..700).map(|id| id / 100 * 100 + (99 - id % 100) + 3).collect();
    check(&program, [7, 1, 1], &expected);
}

#[test]
fn workgroup_memory_starts_as_zeros() {
    let mut p = ProgramBuilder::kernel("fresh").workgroup_size([8, 1, 1]);
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, RW, 0);
    let shared = p.buffer("shared", MemorySpace::Workgroup, DataType::U8, RW, 9);
    p.entry(|f| {
        let me = f.let_("me", Builtin::LocalId(Axis::X));
        f.store(out, global_x(), shared.load(me) + shared.load(8));
        f.store(shared, me, 7_u32);
        f.store(shared, 8, 9_u32);
    });
    // Within a wave a load comes before the store of the next statement, and here one wave is enough.
    let program = p.validate().unwrap();
    let backend = CpuBackend::with_config(CpuConfig::default().threads(1));
    let mut data = [Data::u32s(&[5; 80])];
    run(&backend, &program, &mut data, [10, 1, 1]).unwrap();
    assert_eq!(data[0].to_u32s(), [0; 80]);
}

#[test]
fn grid_barriers_order_all_workgroups() {
    // Each round, everybody adds what its neighbour held in the round before.
    let mut p = ProgramBuilder::kernel("rounds").workgroup_size([40, 1, 1]);
    let even = p.buffer("even", MemorySpace::Global, DataType::U32, RW, 0);
    let odd = p.buffer("odd", MemorySpace::Global, DataType::U32, RW, 0);
    p.entry(|f| {
        let me = f.let_("me", global_x());
        let next = f.let_("next", (me + 1) % even.len());
        let mine = f.var_("mine", me);
        f.store(even, me, mine);
        for round in 0..3 {
            let (from, to) = if round % 2 == 0 { (even, odd) } else { (odd, even) };
            f.grid_barrier();
            f.assign(mine, mine + from.load(next));
            f.store(to, me, mine);
        }
    });
    let program = p.validate().unwrap();
    let n = 400_u32;
    let mut values: Vec<u32> = (0..n).collect();
    for _ in 0..3 {
        values = (0..n as usize).map(|i| values[i] + values[(i + 1) % n as usize]).collect();
    }
    for (setting, backend) in all_settings() {
        let zeros = Data::u32s(&vec![0; n as usize]);
        let mut data = [zeros.clone(), zeros];
        run(&backend, &program, &mut data, [10, 1, 1]).unwrap();
        assert_eq!(data[1].to_u32s(), values, "{setting}");
    }
    // All workgroups wait at once, which takes memory: it is refused, not attempted.
    let small = CpuBackend::with_config(CpuConfig::default().memory_bytes(8192));
    let zeros = Data::u32s(&[0; 400]);
    match run(&small, &program, &mut [zeros.clone(), zeros], [10, 1, 1]) {
        Err(BackendError::OutOfMemory { requested, available, .. }) => assert!(requested > available),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lanes_diverge_and_meet_again() {
    let collatz = |mut n: u32| {
        let mut steps = 0;
        while n != 1 {
            n = if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    };
    let program = kernel([64, 1, 1], |f, out| {
        let n = f.var_("n", global_x() + 1);
        let steps = f.var_("steps", 0_u32);
        f.while_(true, |f| {
            f.if_(n.eq_(1), |f| f.break_());
            f.assign(steps, steps + 1);
            f.if_((n % 2).eq_(0), |f| {
                f.assign(n, n / 2);
                f.continue_();
            });
            f.assign(n, n * 3 + 1);
        });
        f.store(out, global_x(), steps);
    });
    let expected: Vec<u32> = (1..=320).map(collatz).collect();
    check(&program, [5, 1, 1], &expected);
}

#[test]
fn functions_return_from_loops_in_some_lanes() {
    // The least divisor above 1, by a return out of two loops.
    let mut p = ProgramBuilder::kernel("divisors").workgroup_size([33, 1, 1]);
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, RW, 0);
    let divisor = p.function("divisor", [("n", ScalarType::U32)], [ScalarType::U32], |f, [n]| {
        f.for_("high", 0, 100, |f, high| {
            f.for_("low", 0, 10, |f, low| {
                let d = f.let_("d", high * 10 + low + 2);
                f.if_((n % d).eq_(0), |f| f.ret(d));
            });
        });
        f.ret(0);
    });
    let twice = p.function("twice", [("n", ScalarType::U32)], [ScalarType::U32], |f, [n]| {
        let first = f.call_one(&divisor, n);
        f.if_(first.eq_(n), |f| f.ret(first));
        let second = f.call_one(&divisor, n / first);
        f.ret(first * 1000 + second);
    });
    p.entry(|f| {
        let me = f.let_("me", global_x());
        let result = f.call_one(&twice, me + 2);
        f.store(out, me, result);
    });
    let program = p.validate().unwrap();
    let least = |n: u32| (2..).find(|d| n.is_multiple_of(*d)).unwrap();
    let expected: Vec<u32> =
        (2..200).map(|n| if least(n) == n { n } else { least(n) * 1000 + least(n / least(n)) }).collect();
    check(&program, [6, 1, 1], &expected);
}

#[test]
fn switches_run_the_right_case_however_many_there_are() {
    let values = |case: u32| [case * 7 + 1, u32::MAX - case * 3];
    let program = kernel([32, 1, 1], |f, out| {
        let me = f.let_("me", global_x());
        let selector = f.let_("selector", (me % 3).eq_(2).select(me / 3 * 5 % 1800, out.load(me)));
        let found = f.var_("found", 0_u32);
        f.switch(selector, |s| {
            for case in 0..256 {
                s.case(values(case), |f| f.assign(found, case + 1));
            }
            s.default(|f| f.assign(found, 9999_u32));
        });
        f.store(out, me, found);
    });
    let input: Vec<u32> = (0..640).map(|i| values(i % 256)[i as usize % 2]).collect();
    let expected: Vec<u32> = (0..640_u32)
        .map(|me| {
            let selector = if me % 3 == 2 { me / 3 * 5 % 1800 } else { input[me as usize] };
            (0..256).find(|&case| values(case).contains(&selector)).map_or(9999, |case| case + 1)
        })
        .collect();
    for (setting, backend) in all_settings() {
        let mut data = [Data::u32s(&input)];
        run(&backend, &program, &mut data, [20, 1, 1]).unwrap();
        assert_eq!(data[0].to_u32s(), expected, "{setting}");
    }
}

#[test]
fn counters_that_pass_the_end_of_u32_end_their_loop() {
    let program = kernel([4, 1, 1], |f, out| {
        let me = f.let_("me", global_x());
        let rounds = f.var_("rounds", 0_u32);
        f.for_step("i", me * 0x4000_0000, u32::MAX, 0x3000_0000, |f, _| f.assign(rounds, rounds + 1));
        f.store(out, me, rounds);
    });
    check(&program, [1, 1, 1], &[6, 4, 3, 2]);
}

#[test]
fn atomics_of_all_threads_add_up() {
    let program = kernel([64, 1, 1], |f, out| {
        let me = f.let_("me", global_x());
        f.atomic_add(out, me % 7, 1);
        f.atomic_rmw(vyre_foundation::RmwOp::Max, out, 7, me);
        f.atomic_add(out, 1000, 1);
    });
    let mut expected = [0; 8];
    (0..64_000_usize).for_each(|id| expected[id % 7] += 1);
    expected[7] = 63_999;
    check(&program, [1000, 1, 1], &expected);
}

#[test]
fn the_first_trap_is_that_of_the_least_invocation() {
    let program = kernel([50, 1, 1], |f, out| {
        let me = f.let_("me", global_x());
        f.if_((me % 97).eq_(90), |f| f.trap(me + 5));
        f.store(out, me, 1_u32);
    });
    for (setting, backend) in all_settings() {
        let mut data = [Data::u32s(&[0; 10_000])];
        let outcome = run(&backend, &program, &mut data, [200, 1, 1]).unwrap();
        assert_eq!(outcome.trap, Some(Trap { code: 95, invocation: 90 }), "{setting}");
        let expected: Vec<u32> = (0..10_000).map(|id| u32::from(id % 97 != 90)).collect();
        assert_eq!(data[0].to_u32s(), expected, "{setting}: the others go on");
    }
}

#[test]
fn deadlines_stop_endless_loops() {
    let endless: [ValidatedProgram; 2] = [
        kernel([64, 1, 1], |f, out| {
            f.while_(out.load(0).eq_(0), |f| {
                f.for_("i", 0, 10, |f, i| f.store(out, 1, i));
            });
        }),
        kernel([2, 1, 1], |f, _| {
            f.for_("i", 0, u32::MAX, |f, _| {
                f.for_("j", 0, u32::MAX, |_, _| {});
            });
            f.grid_barrier();
        }),
    ];
    for program in &endless {
        for (setting, backend) in all_settings() {
            let pipeline = backend.compile(program).unwrap();
            let buffer = backend.create_buffer(&BufferDesc::new("out", DataType::U32, 2)).unwrap();
            let mut config = DispatchConfig::new([4, 1, 1]);
            config.deadline = Some(Duration::from_millis(3));
            config.label = Some("endless".to_owned());
            match pipeline.dispatch(&[buffer.binding()], &config) {
                Err(BackendError::Deadline { waited_for, after }) => {
                    assert!(waited_for.contains("endless"), "{setting}: {waited_for}");
                    assert_eq!(Some(after), config.deadline);
                }
                other => panic!("{setting}: {other:?}"),
            }
        }
    }
}

#[test]
fn programs_as_deep_as_they_may_be_compile_and_run() {
    // Nested as far as validation allows, in functions that call each other as deep as it allows.
    let mut p = ProgramBuilder::kernel("deep").workgroup_size([32, 1, 1]);
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, RW, 0);
    let mut callee = None;
    for depth in 0..MAX_CALL_DEPTH {
        callee =
            Some(p.function(format!("f_{depth}"), [("n", ScalarType::U32)], [ScalarType::U32], |f, [n]| {
                fn nest(
                    f: &mut FunctionBuilder,
                    n: Var,
                    sum: Var,
                    callee: Option<&FunctionHandle>,
                    left: usize,
                ) {
                    match left {
                        0 => match callee {
                            Some(callee) => {
                                let below = f.call_one(callee, n);
                                f.assign(sum, below + 1);
                            }
                            None => f.assign(sum, n),
                        },
                        _ => f.if_(n.ne_(1000), |f| nest(f, n, sum, callee, left - 1)),
                    }
                }
                let sum = f.var_("sum", 0_u32);
                nest(f, n, sum, callee.as_ref(), MAX_NESTING - 3);
                f.ret(sum);
            }));
    }
    p.entry(|f| {
        let deep = (0..MAX_NESTING as u32 - 10).fold(global_x(), |sum, _| sum + 1);
        let me = f.let_("me", global_x());
        let argument = f.let_("argument", deep);
        if let Some(callee) = &callee {
            let result = f.call_one(callee, argument);
            f.store(out, me, result);
        }
    });
    let program = p.validate().unwrap_or_else(|errors| panic!("{errors}"));
    let more = (MAX_NESTING - 10 + MAX_CALL_DEPTH - 1) as u32;
    let expected: Vec<u32> = (0..64).map(|me| me + more).collect();
    check(&program, [2, 1, 1], &expected);
}

#[test]
fn a_program_with_too_many_constants_is_refused() {
    let program = kernel([1, 1, 1], |f, out| (0..40_000_u32).for_each(|i| f.store(out, 0, i * 3 + 1)));
    match backend(1).compile(&program) {
        Err(BackendError::CompileFailed { program, log }) => {
            assert_eq!(program, "test");
            assert!(log.contains("word registers"), "{log}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("compiled"),
    }
}

#[test]
fn dispatches_run_side_by_side() {
    let program = kernel([16, 1, 1], |f, out| {
        let me = f.let_("me", global_x());
        f.store(out, me, me * me);
    });
    let backend = backend(3);
    let pipeline = backend.compile(&program).unwrap();
    let expected: Vec<u32> = (0..4800_u32).map(|me| me * me).collect();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let desc = BufferDesc::new("out", DataType::U32, 4800);
                    let buffer = backend.create_buffer(&desc).unwrap();
                    pipeline.dispatch(&[buffer.binding()], &DispatchConfig::new([300, 1, 1])).unwrap();
                    let mut data = Data::u32s(&vec![0; 4800]);
                    backend.read_buffer(buffer, 0, &mut data.bytes).unwrap();
                    assert_eq!(data.to_u32s(), expected);
                    backend.destroy_buffer(buffer).unwrap();
                }
            });
        }
    });
}

/// A buffer and a pipeline that wants at least 4 elements of u32 to write, for refusals.
fn refusing() -> (CpuBackend, Arc<dyn CompiledPipeline>, BufferHandle) {
    let backend = CpuBackend::with_config(CpuConfig::default().threads(1).memory_bytes(1000));
    let mut p = ProgramBuilder::kernel("refusing");
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, RW, 4);
    p.buffer("shared", MemorySpace::Workgroup, DataType::U32, RW, 4);
    p.entry(|f| f.store(out, 3, 7_u32));
    let pipeline = backend.compile(&p.validate().unwrap()).unwrap();
    let buffer = backend.create_buffer(&BufferDesc::new("bytes", DataType::U8, 40)).unwrap();
    (backend, pipeline, buffer)
}

#[test]
fn ranges_of_buffers_are_bound_exactly() {
    let (backend, pipeline, buffer) = refusing();
    let binding = BufferBinding { buffer, byte_offset: 8, byte_len: 16 };
    pipeline.dispatch(&[binding], &DispatchConfig::new([1, 1, 1])).unwrap();
    let mut bytes = [0; 40];
    backend.read_buffer(buffer, 0, &mut bytes).unwrap();
    let mut expected = [0; 40];
    expected[20] = 7;
    assert_eq!(bytes, expected);
    backend.write_buffer(buffer, 39, &[1]).unwrap();
    let mut last = [0];
    backend.read_buffer(buffer, 39, &mut last).unwrap();
    assert_eq!(last, [1]);
}

fn argument<T: std::fmt::Debug>(result: Result<T, BackendError>) -> &'static str {
    match result {
        Err(BackendError::InvalidArgument { argument, got, expected }) => {
            assert!(!got.is_empty() && !expected.is_empty());
            argument
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_arguments_are_refused_and_nothing_is_done() {
    let (backend, pipeline, buffer) = refusing();
    let one = DispatchConfig::new([1, 1, 1]);
    let bind = |byte_offset, byte_len| {
        let binding = BufferBinding { buffer, byte_offset, byte_len };
        argument(pipeline.dispatch(&[binding], &one))
    };
    assert_eq!(bind(0, 12), "bindings", "too short");
    assert_eq!(bind(2, 16), "bindings", "not aligned");
    assert_eq!(bind(0, 18), "bindings", "not whole elements");
    assert_eq!(bind(0, 44), "range");
    assert_eq!(bind(u64::MAX, 16), "range");
    assert_eq!(argument(pipeline.dispatch(&[], &one)), "bindings");
    assert_eq!(argument(pipeline.dispatch(&[buffer.binding(); 2], &one)), "bindings");
    for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [u32::MAX, 1, 1], [1, u32::MAX, 1]] {
        assert_eq!(argument(pipeline.dispatch(&[buffer.binding()], &DispatchConfig::new(grid))), "grid");
    }
    assert_eq!(argument(backend.write_buffer(buffer, 33, &[0; 8])), "range");
    assert_eq!(argument(backend.read_buffer(buffer, u64::MAX, &mut [0; 8])), "range");
    let workgroup = BufferDesc::new("x", DataType::U8, 4).in_space(MemorySpace::Workgroup);
    assert_eq!(argument(backend.create_buffer(&workgroup)), "space");
    let renamed = BufferHandle { len: 39, ..buffer };
    assert_eq!(argument(backend.write_buffer(renamed, 0, &[1])), "buffer");

    let uniform = BufferDesc::new("u", DataType::U32, 4).in_space(MemorySpace::Uniform);
    let uniform = backend.create_buffer(&uniform).unwrap();
    assert_eq!(argument(pipeline.dispatch(&[uniform.binding()], &one)), "bindings", "written");
    let visible = BufferDesc::new("h", DataType::U32, 4).in_space(MemorySpace::HostVisible);
    let visible = backend.create_buffer(&visible).unwrap();
    assert_eq!(argument(pipeline.dispatch(&[visible.binding()], &one)), "bindings", "global, and changed");

    let mut p = ProgramBuilder::item("one_item", Granularity::Lane);
    p.entry(|_| {});
    let item = p.validate().unwrap();
    assert_eq!(backend.compile(&item).err().map(|error| argument::<()>(Err(error))), Some("program"));

    let mut bytes = [1; 40];
    backend.read_buffer(buffer, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 40]);
}

#[test]
fn stale_handles_are_refused() {
    let (backend, pipeline, buffer) = refusing();
    let stale = |handle: BufferHandle| {
        let results = [
            backend.write_buffer(handle, 0, &[1]),
            backend.read_buffer(handle, 0, &mut [1]),
            pipeline.dispatch(&[handle.binding()], &DispatchConfig::new([1, 1, 1])).map(drop),
            backend.destroy_buffer(handle),
        ];
        for result in results {
            assert!(
                matches!(result, Err(BackendError::StaleHandle { id, generation, .. })
                    if id == handle.id && generation == handle.generation),
                "{result:?}"
            );
        }
    };
    stale(BufferHandle { generation: Generation(0), ..buffer });
    stale(BufferHandle { id: u64::MAX, ..buffer });
    let (other, _, foreign) = refusing();
    stale(foreign);
    drop(other);
    backend.destroy_buffer(buffer).unwrap();
    stale(buffer);
    assert_eq!(backend.recover().unwrap(), backend.generation());
    stale(buffer);
}

#[test]
fn memory_is_counted_and_given_back() {
    let (backend, _, buffer) = refusing();
    let desc = |len| BufferDesc::new("more", DataType::U32, len);
    let all = backend.create_buffer(&desc(240)).unwrap();
    match backend.create_buffer(&desc(1)) {
        Err(error @ BackendError::OutOfMemory { requested: 4, available: 0, .. }) => {
            assert!(error.is_retryable());
        }
        other => panic!("{other:?}"),
    }
    backend.destroy_buffer(all).unwrap();
    backend.destroy_buffer(buffer).unwrap();
    assert!(backend.create_buffer(&desc(250)).is_ok());
    for huge in [251, u64::MAX / 4, u64::MAX] {
        assert!(matches!(backend.create_buffer(&desc(huge)), Err(BackendError::OutOfMemory { .. })));
    }
}
