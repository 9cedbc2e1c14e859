//! What the builder makes of Rust, as text.

use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Value};
use vyre_foundation::limits::MAX_NAME_LEN;
use vyre_foundation::{
    AtomicOp, BufferAccess, DataType, FunctionId, Literal, MemoryOrdering, MemoryScope, MemorySpace, RmwOp,
    ScalarType::{Bool, F32, I32, U32, U64},
    text, validate,
};

use expect_test::{Expect, expect};

/// The body of a kernel's entry, as text; the kernel is valid.
fn check(body: impl FnOnce(&mut FunctionBuilder), expected: Expect) {
    let mut p = ProgramBuilder::kernel("test");
    p.entry(body);
    check_program(
        p,
        |text| text.split_once("entry").map(|(_, entry)| format!("entry{entry}")).unwrap(),
        expected,
    );
}

fn check_program(p: ProgramBuilder, part: impl FnOnce(&str) -> String, expected: Expect) {
    let program = p.finish();
    let text = text::print(&program);
    expected.assert_eq(&part(&text));
    if let Err(errors) = validate(program) {
        panic!("{errors}\n{text}");
    }
}

#[test]
fn numbers_without_a_suffix_take_the_type_around_them() {
    check(
        |f| {
            let long = f.let_("long", 1u64);
            let signed = f.let_("signed", Literal::I32(1));
            let float = f.let_("float", 1.5);
            f.let_("a", long + 1);
            f.let_("b", 1 + long * 2);
            f.let_("c", signed.max(3) - 4);
            f.let_("d", 5);
            f.let_("e", -5);
            f.let_("f", signed.lt(-6));
            f.let_("g", long << 7);
            f.let_("h", float.lt(1.0).select(8, long));
            f.let_("i", float.lt(1.0).select(long, 9));
            f.let_("j", float * 2.0 + 0.5);
            f.let_("k", 10u32 + Value::from(11));
            let v = f.var_("v", long);
            f.assign(v, 12);
        },
        expect![[r#"
            entry {
              let long: u64 = 1u64;
              let signed: i32 = 1i32;
              let float: f32 = 1.5f32;
              let a: u64 = long + 1u64;
              let b: u64 = 1u64 + long * 2u64;
              let c: i32 = max(signed, 3i32) - 4i32;
              let d: u32 = 5u32;
              let e: i32 = -5i32;
              let f: bool = signed < -6i32;
              let g: u64 = long << 7u32;
              let h: u64 = select(float < 1.0f32, 8u64, long);
              let i: u64 = select(float < 1.0f32, long, 9u64);
              let j: f32 = float * 2.0f32 + 0.5f32;
              let k: u32 = 10u32 + 11u32;
              var v: u64 = long;
              v = 12u64;
            }
        "#]],
    );
}

#[test]
fn operators_and_methods() {
    check(
        |f| {
            let x = f.let_("x", 1u32);
            let y = f.let_("y", 2.0);
            let z = f.let_("z", true);
            f.let_("a", ((x + 1) * 2 - 3) / 4 % 5);
            f.let_("b", (x & 1 | 2 ^ x) << 3 >> x);
            f.let_("c", !x + -x);
            f.let_("d", !z & x.eq_(1) | x.ne_(2) ^ x.le(3));
            f.let_("e", x.gt(1) & x.ge(1) & x.lt(x.min(3).max(4)));
            f.let_("f", y.abs().floor().ceil().trunc().round_even().sqrt());
            f.let_("g", x.count_ones() + x.leading_zeros() + x.trailing_zeros());
            f.let_("h", y.cast(I32).bitcast(U32));
            f.let_("i", y.fma(2.0, y));
            f.let_("j", z.select(y, -y));
            let shared = x * 3;
            f.let_("k", &shared + &shared);
        },
        expect![[r#"
            entry {
              let x: u32 = 1u32;
              let y: f32 = 2.0f32;
              let z: bool = true;
              let a: u32 = ((x + 1u32) * 2u32 - 3u32) / 4u32 % 5u32;
              let b: u32 = (x & 1u32 | 2u32 ^ x) << 3u32 >> x;
              let c: u32 = !x + -x;
              let d: bool = !z & (x == 1u32) | (x != 2u32) ^ (x <= 3u32);
              let e: bool = (x > 1u32) & (x >= 1u32) & (x < max(min(x, 3u32), 4u32));
              let f: f32 = sqrt(round_even(trunc(ceil(floor(abs(y))))));
              let g: u32 = count_ones(x) + leading_zeros(x) + trailing_zeros(x);
              let h: u32 = bitcast_u32(i32(y));
              let i: f32 = fma(y, 2.0f32, y);
              let j: f32 = select(z, y, -y);
              let k: u32 = x * 3u32 + x * 3u32;
            }
        "#]],
    );
}

#[test]
fn statements() {
    let mut p = ProgramBuilder::kernel("test").workgroup_size([8, 4, 2]);
    let words = p.buffer("words", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 0);
    let bytes = p.buffer("bytes", MemorySpace::HostVisible, DataType::U64, BufferAccess::ReadWrite, 16);
    let shared = p.buffer("shared", MemorySpace::Workgroup, DataType::I32, BufferAccess::ReadWrite, 32);
    let pair = p.function("pair", [("a", U32), ("b", F32)], [F32, U32], |f, [a, b]| f.ret((b, a)));
    let one = p.function("one", [], [U64], |f, []| f.ret(1));
    p.entry(|f| {
        let results = f.call(&pair, (1, 2.0));
        let long = f.call_one(&one, ());
        f.store(words, 0, results[1]);
        f.if_(true, |f| f.block(|f| f.trap(1)));
        f.if_else(words.len().eq_(9), |_| (), |f| f.ret(()));
        f.switch(results[1], |s| {
            s.default(|f| f.barrier());
            s.case([1, 2], |_| ());
            s.default(|f| f.barrier());
        });
        f.for_("i", 0, 10, |f, i| f.for_step("i", i, 10, 2, |f, _| f.break_()));
        f.while_(false, |f| f.continue_());
        f.atomic_load(bytes, 0);
        f.atomic_store(bytes, 1, long);
        f.atomic_store(bytes, 1, 1);
        f.atomic_add(words, 0, 1);
        f.atomic_rmw(RmwOp::Min, shared, 0, -1);
        f.atomic_exchange(shared, 0, 1);
        f.atomic_compare_exchange(words, 0, 1, 2);
        f.atomic(AtomicOp::Load, words, 3, MemoryOrdering::Acquire, MemoryScope::Workgroup);
    });
    check_program(
        p,
        str::to_owned,
        expect![[r#"
            program test kernel workgroup(8, 4, 2)
            buffer words: global u32 read_write min 0
            buffer bytes: host_visible u64 read_write min 16
            buffer shared: workgroup i32 read_write len 32

            fn pair(a: u32, b: f32) -> (f32, u32) {
              return b, a;
            }

            fn one() -> u64 {
              return 1u64;
            }

            entry {
              let (pair, pair_1) = call pair(1u32, 2.0f32);
              let one = call one();
              words[0u32] = pair_1;
              if true {
                {
                  trap 1u32;
                }
              }
              if len(words) == 9u32 {
              } else {
                return;
              }
              switch pair_1 {
                case 1, 2 {
                }
                default {
                  barrier;
                  barrier;
                }
              }
              for i in 0u32..10u32 {
                for i_1 in i..10u32 step 2 {
                  break;
                }
              }
              while false {
                continue;
              }
              let loaded = atomic load system relaxed bytes[0u32];
              atomic store system relaxed bytes[1u32], one;
              atomic store system relaxed bytes[1u32], 1u64;
              let old = atomic add device relaxed words[0u32], 1u32;
              let old_1 = atomic min workgroup relaxed shared[0u32], -1i32;
              let old_2 = atomic exchange workgroup relaxed shared[0u32], 1i32;
              let old_3 = atomic compare_exchange device relaxed words[0u32], 1u32, 2u32;
              let loaded_1 = atomic load workgroup acquire words[3u32];
            }
        "#]],
    );
}

/// As a runtime does it: functions for a program that declares its own buffers.
#[test]
fn functions_built_apart() {
    let mut f = FunctionBuilder::new("halve");
    let x = f.param("x", U64);
    f.result(U64);
    f.result(Bool);
    f.ret((x >> 1, x.eq_(0)));
    let halve = f.finish();
    let handle = FunctionHandle::new(FunctionId(0), &halve);

    let mut main = FunctionBuilder::new("main");
    let word = main.param("word", U64);
    main.result(U64);
    let results = main.call(&handle, word + 1);
    assert_eq!(results.iter().map(|var| var.ty).collect::<Vec<_>>(), [U64, Bool]);
    main.ret(results[0]);

    let mut p = ProgramBuilder::item("test", vyre_foundation::Granularity::Lane);
    assert_eq!(p.add_function(halve).id(), FunctionId(0));
    p.set_entry(main.finish());
    assert!(p.validate().is_ok());
}

#[test]
fn names_of_locals_are_made_unique() {
    let names = |wanted: &[&str]| {
        let mut f = FunctionBuilder::new("f");
        for name in wanted {
            f.let_(name, 1);
        }
        f.finish().locals.into_iter().map(|local| local.name).collect::<Vec<_>>()
    };
    assert_eq!(names(&["x", "x", "x"]), ["x", "x_1", "x_2"]);
    assert_eq!(names(&["x_1", "x", "x", "x"]), ["x_1", "x", "x_2", "x_3"]);
    assert_eq!(names(&["x", "x", "x_1", "x_1"]), ["x", "x_1", "x_1_1", "x_1_2"]);
    // At full length the suffix takes the place of the last characters.
    let long = "y".repeat(MAX_NAME_LEN);
    let short = "y".repeat(MAX_NAME_LEN - 2);
    assert_eq!(names(&[&long, &long]), [long.clone(), format!("{short}_1")]);
    // Thousands of equal names cost no more than as many different ones.
    let many = vec!["x"; 16_000];
    assert_eq!(names(&many).last().map(String::as_str), Some("x_15999"));
}
