//! The text form: printing and parsing undo one another, and errors point at their place.

mod any_program;

use any_program::{any_named_program, any_program};
use proptest::prelude::*;
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::text::{parse, print};
use vyre_foundation::{Expr, Literal, Node, UnaryOp, limits, validate, wire};

/// `body` as the entry of a kernel with a buffer, a parameterless function and one with two results.
fn program(body: &str) -> String {
    format!(
        "program p kernel workgroup(1, 1, 1)\nbuffer data: global u32 read_write min 1\n\
         fn none() {{}}\nfn two(a: u32, b: u32) -> (u32, f32) {{ return a, 1.0f32; }}\nentry {{\n{body}\n}}\n"
    )
}

#[track_caller]
fn expression(text: &str) -> Expr {
    let text = program(&format!("let a: u32 = 0u32; let b: u32 = 1u32; let c: u32 = 2u32; trap {text};"));
    let parsed = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(parse(&print(&parsed)).as_ref(), Ok(&parsed));
    match parsed.entry.body.last() {
        Some(Node::Trap(value)) => value.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn precedence_and_association() {
    for (text, explicit) in [
        ("a + b * c", "a + (b * c)"),
        ("a - b - c", "(a - b) - c"),
        ("a << b + c", "a << (b + c)"),
        ("a & b << c", "a & (b << c)"),
        ("a ^ b & c", "a ^ (b & c)"),
        ("a | b ^ c", "a | (b ^ c)"),
        ("a | b == c", "(a | b) == c"),
        ("-a * b", "(-a) * b"),
        ("!a & b", "(!a) & b"),
        ("-a + -b", "(-a) + (-b)"),
        ("a - -b", "a - (-b)"),
        ("a % b / c", "(a % b) / c"),
        ("--a", "-(-a)"),
        ("(a < b) == (b < c)", "((a < b)) == (b < c)"),
    ] {
        assert_eq!(expression(text), expression(explicit), "{text}");
    }
    for (text, other) in [("a - (b - c)", "a - b - c"), ("-(1i32)", "-1i32"), ("-(inf)", "-inf")] {
        assert_ne!(expression(text), expression(other), "{text}");
    }
}

#[test]
fn literals() {
    for (text, literal) in [
        ("0u32", Literal::U32(0)),
        ("4294967295u32", Literal::U32(u32::MAX)),
        ("0xFFffFFffu32", Literal::U32(u32::MAX)),
        ("-2147483648i32", Literal::I32(i32::MIN)),
        ("-0x80000000i32", Literal::I32(i32::MIN)),
        ("18446744073709551615u64", Literal::U64(u64::MAX)),
        ("true", Literal::Bool(true)),
        ("1f32", Literal::F32(0x3f80_0000)),
        ("-0.0f32", Literal::F32(0x8000_0000)),
        ("1e-45f32", Literal::F32(1)),
        ("1.1754944e-38f32", Literal::F32(0x0080_0000)),
        ("3.4028235e38f32", Literal::F32(0x7f7f_ffff)),
        ("0.1f32", Literal::F32(0x3dcc_cccd)),
        ("inf", Literal::F32(0x7f80_0000)),
        ("-inf", Literal::F32(0xff80_0000)),
        ("nan(0x7fc00001)", Literal::F32(0x7fc0_0001)),
        ("nan(0xffffffff)", Literal::F32(0xffff_ffff)),
    ] {
        assert_eq!(expression(text), Expr::Literal(literal), "{text}");
    }
    assert_eq!(
        expression("-nan(0x7fc00001)"),
        Expr::Unary { op: UnaryOp::Neg, value: Box::new(Expr::Literal(Literal::F32(0x7fc0_0001))) }
    );
}

#[test]
fn each_error_points_at_its_place() {
    let long = format!("let {}: u32 = 1u32;", "x".repeat(65));
    for (body, expected) in [
        ("let x = 1u32;", "6:5: expected a name with its type, such as `x: u32`, found `x`"),
        ("let x: u8 = 1u32;", "6:8: expected a type, `bool`, `u32`, `i32`, `u64` or `f32`, found `u8`"),
        ("let x: u32;", "6:11: expected `:` and a type, or `=`, found `;`"),
        ("let let: u32 = 1u32;", "6:5: `let` cannot be a name: it is a reserved word"),
        (long.as_str(), "cannot be a name: it has 65 bytes"),
        ("trap x;", "6:6: there is no local called `x` defined above"),
        ("let x: u32 = x;", "6:14: there is no local called `x` defined above"),
        ("x = 1u32;", "6:1: there is no local called `x`"),
        ("b[0u32] = 1u32;", "6:1: there is no buffer called `b`; declare it with `buffer`"),
        ("call f();", "6:6: there is no function called `f`"),
        ("let x: u32 = 1u32;\n let x: u32 = 1u32;", "7:6: the local `x` is already defined on line 6"),
        ("trap 1;", "6:6: expected a literal with its type, such as `7u32` or `1.5f32`, found `1`"),
        ("trap 1.f32;", "6:6: expected a literal with its type, such as `7u32` or `1.5f32`, found `1`"),
        ("trap 1u8;", "6:6: `1u8` is no literal: its type is not"),
        ("trap 4294967296u32;", "6:6: `4294967296u32` is no literal: it is outside the range"),
        ("trap -1u32;", "6:7: `1u32` is no literal: it is outside the range"),
        ("trap 2147483648i32;", "6:6: `2147483648i32` is no literal: it is outside the range"),
        ("trap 99999999999999999999u64;", "is no literal: it is above 18446744073709551615"),
        ("trap 0xu32;", "6:6: `0xu32` is no literal: an integer is decimal digits"),
        ("trap 1.5u32;", "6:6: `1.5u32` is no literal: an integer is decimal digits"),
        ("trap 1e39f32;", "is no literal: it is beyond the greatest float; infinity is `inf`"),
        ("trap nan(1);", "6:10: `1` is no literal: these are not the bits of a NaN"),
        ("trap 1u32 < 2u32 < 3u32;", "6:18: expected parentheses around one of two comparisons, found `<`"),
        ("trap (1u32;", "6:11: expected `)`, found `;`"),
        ("trap ;", "6:6: expected an expression, found `;`"),
        ("trap min(1u32);", "6:14: expected `,`, found `)`"),
        ("trap min(1u32, 2u32, 3u32);", "6:20: expected `)`, found `,`"),
        ("trap none();", "6:6: expected an operation (a function of the program is called by a statement"),
        ("trap global_id.w;", "6:16: expected an axis, `x`, `y` or `z`, found `w`"),
        ("trap thread_id.x;", "6:6: expected `global_id`"),
        ("trap 1u32 trap 2u32;", "6:11: expected `;`, found `trap`"),
        ("atomic nand device relaxed data[0u32];", "6:8: expected an atomic operation, found `nand`"),
        ("atomic add world relaxed data[0u32];", "6:12: expected a scope"),
        ("atomic add device strong data[0u32];", "6:19: expected an ordering"),
        ("atomic add device relaxed data[0u32];", "6:37: expected `,`, found `;`"),
        ("let (a, b, c) = call two(1u32, 2u32);", "6:12: expected a name with its type"),
        ("let (a, b) = 1u32;", "6:14: expected `call` or `call_external`, found `1u32`"),
        ("switch 1u32 { default {} case 1 {} }", "6:26: expected `case`, `default` or `}`, in this order"),
        ("switch 1u32 { case 1u32 {} }", "6:20: expected a case, a number without a type, found `1u32`"),
        ("for i of 0u32..1u32 {}", "6:7: expected `in`, found `of`"),
        ("5u32;", "6:1: expected a statement or `}`, found `5u32`"),
        ("trap 1u32; locals(a: u32);", "6:12: expected a statement or `}`, found `locals`"),
        ("trap 1u32; é", "6:12: no token begins with 'é'"),
        ("trap 1u32; @", "6:12: no token begins with '@'"),
        ("/* a */", "6:1: expected a statement or `}`, found `/`"),
        ("if true { trap 1u32;", "7:2: expected a statement or `}`, found the end of the text"),
        ("} fn late() {", "6:3: expected the end of the text: the entry comes last, found `fn`"),
    ] {
        let text = program(body);
        match parse(&text) {
            Ok(_) => panic!("{body}: accepted"),
            Err(error) => assert!(error.to_string().contains(expected), "{body}: {error}"),
        }
    }
    for (text, expected) in [
        ("", "1:1: expected `program`, found the end of the text"),
        ("// only a comment", "1:1: expected `program`, found the end of the text"),
        ("program p gpu", "1:11: expected `kernel` or `item`, found `gpu`"),
        ("program p item(wave)", "1:16: expected a granularity, `lane` or `workgroup`, found `wave`"),
        ("program p kernel workgroup(1, 1)", "1:32: expected `,`, found `)`"),
        (
            "program p kernel workgroup(4294967296, 1, 1)",
            "1:28: `4294967296` is no literal: it is above 4294967295",
        ),
        (
            "program p kernel workgroup(1, 1, 1)",
            "1:36: expected `buffer`, `external`, `fn` or `entry`, in this order",
        ),
        (
            "program p kernel workgroup(1, 1, 1)\nbuffer b: global u32 read min 1\nbuffer b: global u32 read min 1",
            "3:8: the buffer `b` is already defined on line 2; rename one",
        ),
        (
            "program p kernel workgroup(1, 1, 1) buffer b: workgroup u32 read min 1",
            "1:66: expected `len`, found `min`",
        ),
        ("program p kernel workgroup(1, 1, 1) fn f(x: u32, x: u32) {} entry {}", "1:50: the local `x`"),
        ("program p kernel workgroup(1, 1, 1) fn f {} entry {}", "1:42: expected `(`, found `{`"),
        ("program p kernel workgroup(1, 1, 1) fn f() {} fn f() {} entry {}", "1:50: the function `f`"),
    ] {
        match parse(text) {
            Ok(_) => panic!("{text}: accepted"),
            Err(error) => assert!(error.to_string().contains(expected), "{text}: {error}"),
        }
    }
}

#[test]
fn a_function_may_call_a_later_one() {
    let text = "program p kernel workgroup(1, 1, 1)\n\nfn a() {\n  call b();\n}\n\nfn b() {\n}\n\nentry {\n  call a();\n}\n";
    assert_eq!(print(&parse(text).expect("a program")), text);
}

/// What the definitions do not say is said by a list, so that ill-formed programs round trip too.
#[test]
fn locals_are_listed_where_needed() {
    let text = program("locals(var x: u32, never: f32);\nfor x in 0u32..1u32 {\n}\nlet x = x;");
    let parsed = parse(&text).expect("a program");
    assert_eq!(parsed.entry.locals.len(), 2);
    assert_eq!(parse(&print(&parsed)), Ok(parsed));
    let text = program("locals(x: u32);\nlet x: u32 = 1u32;");
    let error = parse(&text).expect_err("the type is said twice");
    assert!(error.to_string().contains("7:5: expected `let` and a name alone"), "{error}");
}

/// Text that is as deep as it can be, on the stack that a thread gets by default.
#[test]
fn depth_is_limited() {
    let at_limit = wire::MAX_DEPTH as usize;
    let around = |open: &str, inner: &str, close: &str, times: usize| {
        program(&format!("{}{inner}{}", open.repeat(times), close.repeat(times)))
    };
    let chain = |times: usize| program(&format!("trap 1u32{};", " + 1u32".repeat(times)));
    for (text, accepted) in [
        (around("{", "", "}", at_limit), true),
        (around("{", "", "}", at_limit + 1), false),
        (around("if true {", "", "} else {}", at_limit - 1), true),
        (around("if true {", "", "} else {}", at_limit), false),
        (program(&format!("{}if true {{}}", "if true {} else ".repeat(at_limit - 2))), true),
        (program(&format!("{}if true {{}}", "if true {} else ".repeat(at_limit))), false),
        (chain(at_limit - 2), true),
        (chain(at_limit - 1), false),
        (program(&format!("trap {}1u32;", "!".repeat(at_limit - 2))), true),
        (program(&format!("trap {}1u32;", "!".repeat(at_limit - 1))), false),
        (program(&format!("trap {}1u32{};", "!(".repeat(at_limit - 2), ")".repeat(at_limit - 2))), true),
        (program(&format!("trap {}1u32{};", "-(".repeat(100_000), ")".repeat(100_000))), false),
        // Parentheses are no part of a program, so they are not counted.
        (program(&format!("trap {}1u32{};", "(".repeat(100_000), ")".repeat(100_000))), true),
        (program(&"{".repeat(100_000)), false),
        (program(&format!("trap {}1u32{};", "data[".repeat(100_000), "]".repeat(100_000))), false),
        (program(&format!("trap {}1u32{};", "u32(".repeat(100_000), ")".repeat(100_000))), false),
    ] {
        match parse(&text) {
            Ok(parsed) => {
                assert!(accepted, "{}", &text[..300]);
                assert!(wire::encode(&parsed).is_ok());
                assert_eq!(parse(&print(&parsed)), Ok(parsed));
            }
            Err(error) => {
                assert!(
                    !accepted && error.to_string().contains("nested too deeply"),
                    "{error}: {}",
                    &text[..300]
                );
            }
        }
    }
}

/// The deepest program that is valid has both other forms.
#[test]
fn validity_implies_a_text_and_an_encoding() {
    // The function's body and the literal are two levels.
    let (blocks, operators) = (limits::MAX_NESTING / 2, limits::MAX_NESTING / 2 - 2);
    let body = format!("{}trap {}1u32;{}", "{".repeat(blocks), "!".repeat(operators), "}".repeat(blocks));
    let deepest = parse(&program(&body)).expect("a program");
    assert_eq!(validate(deepest.clone()).map(drop), Ok(()));
    assert_eq!(parse(&print(&deepest)).as_ref(), Ok(&deepest));
    assert_eq!(wire::encode(&deepest).and_then(|bytes| wire::decode(&bytes)), Ok(deepest));
    for deeper in [body.replacen('!', "!!", 1), format!("{{{body}}}")] {
        assert!(validate(parse(&program(&deeper)).expect("a program")).is_err());
    }
}

/// Far deeper than a text or an encoding can be.
#[test]
fn printing_what_is_too_deep_ends() {
    let one = Expr::Literal(Literal::Bool(true));
    let block: fn(Vec<Node>, &Expr) -> Node = |body, _| Node::Block(body);
    let chain: fn(Vec<Node>, &Expr) -> Node =
        |otherwise, one| Node::If { condition: one.clone(), then: vec![], otherwise };
    for enclose in [block, chain] {
        let mut program = parse(&program("")).expect("a program");
        for _ in 0..100_000 {
            program.entry.body = vec![enclose(program.entry.body, &one)];
        }
        assert!(print(&program).contains("?too_deep"));
        assert_eq!(wire::encode(&program), Err(wire::WireError::TooDeep));
    }
}

/// The first program of the reference is one, and prints as it stands there.
#[test]
fn the_reference_is_right() {
    let reference = include_str!("../../../docs/vir.md");
    let (_, from_program) =
        reference.split_once("```vir\n// Adds one to every element.\n").expect("the example");
    let (example, _) = from_program.split_once("```").expect("its end");
    assert_eq!(print(&parse(example).expect("a program")), example);
    for word in vyre_foundation::names::RESERVED_WORDS {
        assert!(reference.contains(word), "docs/vir.md does not mention `{word}`");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn named_programs_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let program = any_named_program(&bytes);
        let text = print(&program);
        match parse(&text) {
            Ok(parsed) => {
                prop_assert_eq!(print(&parsed), text);
                prop_assert_eq!(parsed, program);
            }
            Err(error) => prop_assert!(false, "{}\n{}", error, text),
        }
    }

    /// Valid programs round trip through both forms.
    #[test]
    fn valid_programs_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let program = arbitrary_program(&bytes);
        prop_assert!(validate(program.clone()).is_ok());
        prop_assert_eq!(parse(&print(&program)), Ok(program.clone()));
        prop_assert_eq!(wire::encode(&program).and_then(|bytes| wire::decode(&bytes)), Ok(program));
    }

    /// What has no text is printed as no text: never as another program's.
    #[test]
    fn other_programs_never_read_as_something_else(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let program = any_program(&bytes);
        if let Ok(parsed) = parse(&print(&program)) {
            prop_assert_eq!(parsed, program);
        }
    }

    /// Any text at all is refused or parsed; what is parsed prints as a fixed point.
    #[test]
    fn damaged_text_does_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        edits in prop::collection::vec((any::<prop::sample::Index>(), "[ -~\n]{0,3}", 0..6usize), 1..4),
    ) {
        let mut text = print(&any_named_program(&bytes));
        for (at, new, cut) in edits {
            let at = at.index(text.len());
            text.replace_range(at..(at + cut).min(text.len()), &new);
        }
        if let Ok(parsed) = parse(&text) {
            let printed = print(&parsed);
            prop_assert_eq!(parse(&printed), Ok(parsed), "{}", printed);
        }
    }
}
