//! Programs made to hurt the validator: deep, large, wrong everywhere.

use std::thread;

use vyre_foundation::builder::{FunctionBuilder, Operand, ProgramBuilder};
use vyre_foundation::limits::MAX_REPORTED_ERRORS;
use vyre_foundation::{BinaryOp, Expr, Literal, Node, Program, SwitchCase, UnaryOp, text, validate, wire};

use super::{U32, accept, ignore, kernel, refuse_with};

fn with_entry(body: Vec<Node>) -> Program {
    let mut program = ProgramBuilder::kernel("test").finish();
    program.entry.body = body;
    program
}

/// Far deeper than any stack: dropped, cloned, printed and refused without recursion.
#[test]
fn depth_does_not_overflow_the_stack() {
    const DEPTH: usize = 200_000;
    let bit = || Expr::Literal(Literal::Bool(true));
    let boxed = |expr| Box::new(expr);
    let exprs: [&(dyn Fn(Expr) -> Expr + Sync); 3] = [
        &|inner| Expr::Unary { op: UnaryOp::Not, value: boxed(inner) },
        &|inner| Expr::Binary { op: BinaryOp::And, left: boxed(bit()), right: boxed(inner) },
        &|inner| Expr::Select { condition: boxed(inner), if_true: boxed(bit()), if_false: boxed(bit()) },
    ];
    let nodes: [&(dyn Fn(Vec<Node>) -> Node + Sync); 4] = [
        &Node::Block,
        &|otherwise| Node::If { condition: bit(), then: vec![Node::Break], otherwise },
        &|body| Node::While { condition: bit(), body },
        &|body| Node::Switch {
            selector: bit(),
            cases: vec![SwitchCase { values: vec![1], body }],
            default: vec![Node::Break],
        },
    ];
    let check = |body: Vec<Node>| {
        let program = with_entry(body);
        let copy = program.clone();
        assert_eq!(text::print(&copy), text::print(&program));
        assert_eq!(wire::encode(&copy), Err(wire::WireError::TooDeep));
        refuse_with(program, "enclose one another");
    };
    thread::scope(|scope| {
        let small_stack = thread::Builder::new().stack_size(256 * 1024);
        let run = small_stack.spawn_scoped(scope, || {
            for enclose in exprs {
                check(vec![Node::Trap((0..DEPTH).fold(bit(), |expr, _| enclose(expr)))]);
            }
            for enclose in nodes {
                check((0..DEPTH).fold(vec![], |body, _| vec![enclose(body)]));
            }
        });
        run.unwrap().join().unwrap();
    });
}

#[test]
fn errors_are_collected_and_bounded() {
    let wrong = |count: usize| with_entry(vec![Node::Break; count]);
    let few = validate(wrong(3)).unwrap_err();
    assert_eq!((few.errors().len(), few.unreported()), (3, 0));
    let many = validate(wrong(1000)).unwrap_err();
    assert_eq!(many.errors().len(), MAX_REPORTED_ERRORS);
    assert_eq!(many.unreported(), 1000 - MAX_REPORTED_ERRORS as u64);
    assert!(many.to_string().ends_with("and 936 more than the 64 reported"));

    // Also those of the uniformity analysis, which explains each at a price.
    let barriers = validate(kernel(|f, b| {
        let x = f.let_("x", b.words.load(0));
        f.if_(x.eq_(0), |f| (0..10_000).for_each(|_| f.barrier()));
    }));
    assert_eq!(barriers.unwrap_err().unreported(), 10_000 - MAX_REPORTED_ERRORS as u64);
}

/// Names are shown before they are known to be good.
#[test]
fn names_in_messages_are_bounded() {
    let mut program = with_entry(vec![Node::Break]);
    program.entry.name = "\n".repeat(1 << 20);
    assert!(validate(program).unwrap_err().to_string().len() < 2000);
}

/// What a megakernel looks like: hundreds of handlers behind one switch, each with locals, loops and calls.
#[test]
fn a_large_program() {
    let mut p = ProgramBuilder::kernel("test").workgroup_size([64, 1, 1]);
    let mix = p.function("mix", [("a", U32), ("b", U32)], [U32], |f, [a, b]| f.ret((a ^ b) * 31));
    let handlers: Vec<_> = (0..300)
        .map(|index| {
            p.function(format!("handler_{index}"), [("x", U32)], [U32], |f, [x]| {
                let sum = f.var_("sum", x);
                f.for_("i", 0, x, |f, i| {
                    (0..20_u32).for_each(|k| {
                        let mixed = f.call_one(&mix, (sum, i + k));
                        f.if_(mixed.lt(k), |f| f.assign(sum, mixed));
                    });
                });
                f.ret(sum);
            })
        })
        .collect();
    p.entry(|f| {
        let x = f.let_("x", 1u32);
        f.switch(x, |s| {
            for (index, handler) in handlers.iter().enumerate() {
                s.case([index as u32], |f: &mut FunctionBuilder| ignore(f.call(handler, x)));
            }
        });
    });
    let program = accept(p.finish());
    assert_eq!(program.facts().call_order.len(), 301);
}

/// The worst for an analysis that iterates: loops in loops over a chain of locals, and functions that depend
/// on all of their parameters in turn.
#[test]
fn the_largest_programs() {
    accept(kernel(|f, _| {
        let chain: Vec<_> = (0..8000).map(|_| f.var_("x", 0)).collect();
        fn nest(f: &mut FunctionBuilder, depth: u32, chain: &[vyre_foundation::builder::Var]) {
            if depth == 0 {
                chain.windows(2).for_each(|pair| f.assign(pair[0], pair[1]));
            } else {
                f.while_(chain[0].eq_(depth), |f| nest(f, depth - 1, chain));
            }
        }
        nest(f, 100, &chain);
    }));

    let mut p = ProgramBuilder::kernel("test");
    let params: [(&str, _); 64] = [("x", U32); 64];
    let mut last = p.function("f", params, [U32; 64], |f, x| f.ret(x));
    for level in 0..60 {
        last = p.function(format!("g{level}"), params, [U32; 64], |f, x| {
            let mut turned = x;
            turned.rotate_left(1);
            let results = f.call(&last, turned);
            f.ret(results);
        });
    }
    p.entry(|f| ignore(f.call(&last, [1; 64])));
    accept(p.finish());
}
