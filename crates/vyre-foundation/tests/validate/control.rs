//! Invariants 18 to 21: loops, switches, ends of functions, calls.

use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Var};
use vyre_foundation::limits::MAX_CALL_DEPTH;
use vyre_foundation::{Expr, FunctionId, Literal, Node, Program, VarId};

use super::{U32, accept, function, ignore, kernel, refuse, refuse_with, with_function};

#[test]
fn i18_break_and_continue_are_in_a_loop() {
    accept(kernel(|f, _| {
        f.while_(true, |f| {
            f.switch(1, |s| s.default(|f| f.if_(true, |f| f.break_())));
            f.for_("i", 0, 9, |f, _| f.block(|f| f.continue_()));
        });
    }));
    refuse(
        kernel(|f, _| f.if_(true, |f| f.break_())),
        &["entry main / body[0].then[0]: `break` is outside of a loop; put it into one, or return"],
    );
    // A switch is no loop.
    refuse(
        kernel(|f, _| f.switch(1, |s| s.case([1], |f| f.break_()))),
        &["entry main / body[0].cases[0].body[0]: `break` is outside of a loop; put it into one, or return"],
    );
    refuse(
        kernel(|f, _| {
            f.for_("i", 0, 9, |_, _| ());
            f.continue_();
        }),
        &["entry main / body[1]: `continue` is outside of a loop; put it into one, or return"],
    );
}

#[test]
fn i19_switches_and_steps() {
    accept(kernel(|f, _| {
        f.switch(1, |s| {
            s.case([0, 2, u32::MAX], |_| ());
            s.case([1], |_| ());
        })
    }));
    refuse(
        kernel(|f, _| {
            f.switch(1, |s| {
                s.case([1, 2], |_| ());
                s.case([], |_| ());
                s.case([3, 2, 3], |_| ());
            })
        }),
        &[
            "entry main / body[0]: case 1 lists no value; list one, or remove the case",
            "entry main / body[0]: the value 2 chooses two blocks; list it once",
            "entry main / body[0]: the value 3 chooses two blocks; list it once",
        ],
    );
    accept(kernel(|f, _| f.for_step("i", 0, 9, u32::MAX, |_, _| ())));
    refuse(
        kernel(|f, _| f.for_step("i", 0, 9, 0, |_, _| ())),
        &["entry main / body[0]: the step of a `for` is 0; make it at least 1, or use `while`"],
    );
}

#[test]
fn i20_functions_with_results_return() {
    type Body = fn(&mut FunctionBuilder, Var);
    let ends: &[Body] = &[
        |f, x| f.ret(x),
        |f, x| f.trap(x),
        |f, x| f.block(|f| f.ret(x)),
        |f, x| f.if_else(x.eq_(1), |f| f.ret(x), |f| f.trap(x)),
        |f, x| {
            f.switch(x, |s| {
                s.case([1], |f| f.ret(x));
                s.default(|f| f.ret(x));
            })
        },
        |f, x| f.switch(x, |s| s.default(|f| f.ret(x))),
        |f, _| f.while_(true, |_| ()),
        |f, x| f.while_(true, |f| f.if_(x.eq_(1), |f| f.ret(x))),
        // The break belongs to the inner loop.
        |f, x| f.while_(true, |f| f.while_(x.eq_(1), |f| f.break_())),
        // What follows a return is unreachable, and accepted.
        |f, x| {
            f.ret(x);
            f.if_(x.eq_(1), |_| ());
        },
    ];
    let goes_on: &[Body] = &[
        |_, _| (),
        |f, x| f.if_(x.eq_(1), |f| f.ret(x)),
        |f, x| f.if_else(x.eq_(1), |f| f.ret(x), |_| ()),
        |f, x| f.switch(x, |s| s.case([1], |f| f.ret(x))),
        |f, x| {
            f.switch(x, |s| {
                s.case([1], |_| ());
                s.default(|f| f.ret(x));
            })
        },
        |f, x| f.for_("i", 0, 9, |f, _| f.ret(x)),
        |f, x| f.while_(x.eq_(1), |f| f.ret(x)),
        |f, _| f.while_(true, |f| f.break_()),
        |f, x| f.while_(true, |f| f.if_else(x.eq_(1), |f| f.break_(), |f| f.ret(x))),
        |f, _| f.while_(true, |f| f.switch(1, |s| s.case([1], |f| f.block(|f| f.break_())))),
        |f, x| f.block(|f| f.if_(x.eq_(1), |f| f.ret(x))),
        |f, x| {
            f.while_(true, |f| {
                f.if_(x.eq_(1), |f| f.break_());
                f.let_("y", x);
            })
        },
    ];
    for (index, body) in ends.iter().enumerate() {
        println!("end {index}");
        accept(with_function(function([U32], &[U32], |f, [x]| body(f, x))));
    }
    for (index, body) in goes_on.iter().enumerate() {
        println!("goes on {index}");
        refuse(
            with_function(function([U32], &[U32], |f, [x]| body(f, x))),
            &[
                "fn f: the end of the function can be reached, and it has results; end every path with return or trap",
            ],
        );
    }
}

fn call(function: u32) -> Node {
    Node::Call { results: vec![], function: FunctionId(function), args: vec![] }
}

/// A kernel with functions `g0`, `g1`, ..., each of which calls these.
fn calling(callees: &[&[u32]]) -> Program {
    let mut p = ProgramBuilder::kernel("test");
    for (index, callees) in callees.iter().enumerate() {
        p.function(format!("g{index}"), [], [], |f, []| callees.iter().for_each(|&id| f.push(call(id))));
    }
    p.entry(|f| f.push(call(0)));
    p.finish()
}

#[test]
fn i21_calls_are_acyclic() {
    // A diamond, called from before its parts are declared.
    let program = accept(calling(&[&[1, 2], &[3], &[3], &[], &[3]]));
    assert_eq!(program.facts().call_order, [3, 1, 2, 0].map(FunctionId));
    assert_eq!(program.facts().call_depth, 3);
    assert_eq!(accept(calling(&[&[1, 2], &[3], &[], &[]])).facts().call_depth, 3);

    refuse(calling(&[&[0]]), &["fn g0: calls must not be recursive: g0 calls g0; use a loop"]);
    refuse(
        calling(&[&[1], &[2, 3], &[], &[1]]),
        &["fn g1: calls must not be recursive: g1 calls g3 calls g1; use a loop"],
    );
    // Also where nobody calls them.
    refuse(
        calling(&[&[], &[2], &[1]]),
        &["fn g1: calls must not be recursive: g1 calls g2 calls g1; use a loop"],
    );
    let ring: Vec<[u32; 1]> = (0..4000).map(|index| [(index + 1) % 4000]).collect();
    let ring: Vec<&[u32]> = ring.iter().map(|callees| &callees[..]).collect();
    refuse_with(
        calling(&ring),
        "g0 calls g1 calls g2 calls g3 calls g4 calls g5 calls g6 calls g7 calls ... calls g0;",
    );
}

#[test]
fn i21_depth_of_calls() {
    let chain = |length: u32| {
        let mut p = ProgramBuilder::kernel("test");
        let mut last: Option<FunctionHandle> = None;
        for index in 0..length {
            last = Some(p.function(format!("g{index}"), [], [], |f, []| {
                last.iter().for_each(|callee| ignore(f.call(callee, ())));
            }));
        }
        p.entry(|f| last.iter().for_each(|callee| ignore(f.call(callee, ()))));
        p.finish()
    };
    let program = accept(chain(MAX_CALL_DEPTH as u32));
    assert_eq!(program.facts().call_depth, MAX_CALL_DEPTH as u32);
    refuse(
        chain(MAX_CALL_DEPTH as u32 + 1),
        &["entry main: 65 calls active at once, and the limit is 64; call less deeply"],
    );
}

#[test]
fn i21_inlined_size() {
    // Each function calls the one before it several times.
    let growing = |calls: u32, levels: u32| {
        let mut p = ProgramBuilder::kernel("test");
        let mut last = p.function("f", [], [], |f, []| ignore(f.let_("x", 1)));
        for level in 1..=levels {
            last = p.function(format!("g{level}"), [], [], |f, []| {
                (0..calls).for_each(|_| ignore(f.call(&last, ())));
            });
        }
        p.entry(|f| ignore(f.call(&last, ())));
        p.finish()
    };
    let facts = accept(growing(2, 10)).facts().clone();
    // f has 2 nodes, each level doubles and adds 2 calls, the entry adds 1.
    assert_eq!(facts.inlined_nodes, 1 + 4 * 1024 - 2);
    assert_eq!(facts.nodes, 2 + 10 * 2 + 1);
    accept(growing(2, 18));
    refuse(
        growing(2, 19),
        &[
            "entry main: 2097151 nodes with all calls inlined, and the limit is 1048576; call large functions from \
           fewer places",
        ],
    );
    // More copies than a u64 counts.
    refuse_with(growing(3, MAX_CALL_DEPTH as u32 - 1), "18446744073709551615 nodes with all calls inlined");
}

#[test]
fn dead_code_is_checked() {
    refuse_with(
        kernel(|f, _| {
            f.ret(());
            f.push(Node::Assign { var: VarId(0), value: Expr::Literal(Literal::U32(0)) });
        }),
        "there is no local 0",
    );
}
