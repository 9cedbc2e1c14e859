//! Invariants 9 to 14: locals and types.

use vyre_foundation::builder::{FunctionBuilder, Operand, Value, Var};
use vyre_foundation::{
    BinaryOp, BufferAccess, DataType, Expr, FunctionId, Literal, MemorySpace, Node, Program, ScalarType,
    UnaryOp, VarId, semantics,
};

use super::{
    Bool, F32, I32, U32, U64, accept, function, ignore, kernel, kernel_with, refuse, refuse_with,
    with_buffer, with_function,
};

fn one() -> Expr {
    Expr::Literal(Literal::U32(1))
}

#[test]
fn i09_every_local_is_defined_once() {
    // The same name twice is two locals; in two branches a local has two definitions.
    accept(kernel(|f, _| {
        f.let_("x", 1);
        f.let_("x", 2);
    }));
    let twice = |outer: fn(VarId, VarId) -> Vec<Node>| {
        kernel(|f, _| {
            let (x, y) = (f.local("x", U32, false), f.local("y", U32, false));
            for node in outer(x.id, y.id) {
                f.push(node);
            }
        })
    };
    refuse(
        twice(|x, y| {
            let define = |var| Node::Let { var, value: one() };
            vec![define(x), define(y), define(x)]
        }),
        &["entry main / body[2]: `x` is defined a second time; define another local, or assign to this one"],
    );
    refuse(
        twice(|x, y| {
            let block = |var| Node::Block(vec![Node::Let { var, value: one() }]);
            vec![block(x), block(y), block(y)]
        }),
        &[
            "entry main / body[2].block[0]: `y` is defined a second time; define another local, or assign to this one",
        ],
    );
    refuse_with(
        twice(|x, y| {
            let count = |var, body| Node::For { var, start: one(), end: one(), step: 1, body };
            vec![count(x, vec![count(x, vec![])]), count(y, vec![])]
        }),
        "entry main / body[0].body[0]: `x` is defined a second time",
    );
    refuse(
        kernel(|f, _| ignore(f.local("x", U32, false))),
        &["entry main: nothing defines `x`; define it, make it a parameter, or remove it"],
    );
    refuse_with(
        with_function(function([U32], &[], |f, [x]| f.push(Node::Let { var: x.id, value: one() }))),
        "`x` is defined a second time",
    );
    // A parameter that comes late is none.
    refuse_with(
        with_function(function([], &[], |f, []| {
            f.let_("x", 1);
            f.param("late", U32);
        })),
        "nothing defines `late`",
    );
}

#[test]
fn i10_locals_are_used_in_their_scope() {
    accept(kernel(|f, b| {
        let x = f.let_("x", 1);
        f.block(|f| f.block(|f| f.trap(x)));
        f.for_("i", x, b.words.len(), |f, i| f.store(b.words, i, x + i));
    }));

    let escaped = |escape: fn(&mut FunctionBuilder, &mut Option<Var>)| {
        kernel(|f, _| {
            let mut var = None;
            escape(f, &mut var);
            f.trap(var.unwrap());
        })
    };
    for escape in [
        (|f, x| f.block(|f| *x = Some(f.let_("x", 1)))) as fn(&mut FunctionBuilder, &mut Option<Var>),
        |f, x| f.if_(true, |f| *x = Some(f.let_("x", 1))),
        |f, x| f.if_else(true, |_| (), |f| *x = Some(f.let_("x", 1))),
        |f, x| f.switch(1, |s| s.case([1], |f| *x = Some(f.let_("x", 1)))),
        |f, x| f.switch(1, |s| s.default(|f| *x = Some(f.let_("x", 1)))),
        |f, x| f.while_(false, |f| *x = Some(f.let_("x", 1))),
        |f, x| f.for_("x", 0, 1, |_, i| *x = Some(i)),
    ] {
        refuse(
            escaped(escape),
            &[
                "entry main / body[1]: `x` is used outside of the block that defines it; define it before the block",
            ],
        );
    }

    refuse(
        kernel(|f, _| {
            let x = f.local("x", U32, false);
            f.trap(x);
            f.push(Node::Let { var: x.id, value: one() });
        }),
        &["entry main / body[0]: `x` is used before it is defined; move the definition up"],
    );
    // A local is not in scope of its own value, nor a counter of its own bounds.
    refuse_with(
        kernel(|f, _| {
            let x = f.local("x", U32, false);
            f.push(Node::Let { var: x.id, value: Value::from(x).into_expr() });
        }),
        "`x` is used before it is defined",
    );
    refuse_with(
        kernel(|f, _| {
            let x = f.local("x", U32, false);
            let end = Value::from(x).into_expr();
            f.push(Node::For { var: x.id, start: one(), end, step: 1, body: vec![] });
        }),
        "`x` is used before it is defined",
    );
}

#[test]
fn i11_only_mutable_locals_are_assigned() {
    accept(kernel(|f, _| {
        let x = f.var_("x", 1);
        f.assign(x, x + 1);
    }));
    let refused = "is not mutable, so it cannot be assigned; declare it mutable with `var`";
    refuse_with(
        kernel(|f, _| {
            let x = f.let_("x", 1);
            f.assign(x, 2);
        }),
        refused,
    );
    refuse_with(with_function(function([U32], &[], |f, [x]| f.assign(x, 1))), refused);
    refuse_with(kernel(|f, _| f.for_("i", 0, 9, |f, i| f.assign(i, 1))), refused);
    refuse_with(
        kernel(|f, b| {
            let old = f.atomic_add(b.words, 0, 1);
            f.assign(old, 1);
        }),
        refused,
    );

    let mutable = |mut program: Program| {
        program.entry.locals.iter_mut().for_each(|local| local.mutable = true);
        program.functions.iter_mut().flat_map(|f| &mut f.locals).for_each(|local| local.mutable = true);
        program
    };
    for (program, role) in [
        (kernel(|f, _| f.for_("i", 0, 9, |_, _| ())), "`i` is a loop counter"),
        (kernel(|f, b| ignore(f.atomic_add(b.words, 0, 1))), "`old` is the result of an atomic"),
        (with_function(function([U32], &[], |_, _| ())), "`x` is a parameter"),
        (
            kernel_with(|p, _| {
                let f = p.function("f", [], [U32], |f, []| f.ret(1));
                p.entry(|g| ignore(g.call(&f, ())));
            }),
            "`f` is the result of a call",
        ),
    ] {
        accept(program.clone());
        let expected = format!("{role}, which cannot be mutable; copy it into a mutable local");
        refuse_with(mutable(program), &expected);
    }
}

/// The types on which each operation is defined, written down by hand.
#[test]
fn i12_operations_exist_on_their_types() {
    let value = |ty| match ty {
        Bool => Literal::Bool(true),
        U32 => Literal::U32(1),
        I32 => Literal::I32(1),
        U64 => Literal::U64(1),
        F32 => Literal::f32(1.0),
    };
    let integers = &[U32, I32, U64][..];
    let numbers = &[U32, I32, U64, F32][..];
    let floats = &[F32][..];
    let logical = &[Bool, U32, I32, U64][..];
    for (op, types) in [
        (UnaryOp::Neg, numbers),
        (UnaryOp::Not, logical),
        (UnaryOp::Abs, &[I32, F32][..]),
        (UnaryOp::Floor, floats),
        (UnaryOp::Ceil, floats),
        (UnaryOp::Trunc, floats),
        (UnaryOp::RoundEven, floats),
        (UnaryOp::Sqrt, floats),
        (UnaryOp::CountOnes, integers),
        (UnaryOp::LeadingZeros, integers),
        (UnaryOp::TrailingZeros, integers),
    ] {
        for ty in ScalarType::ALL {
            let operand = Box::new(Expr::Literal(value(ty)));
            let expr = Value::new(Expr::Unary { op, value: operand }, ty);
            let program = kernel(|f, _| ignore(f.let_("x", expr)));
            if types.contains(&ty) {
                accept(program);
                assert_eq!(semantics::unary_type(op, ty), Some(ty));
            } else {
                refuse_with(program, &format!("there is no {op:?} on {ty}"));
            }
        }
    }
    for (op, types) in [
        (BinaryOp::Add, numbers),
        (BinaryOp::Sub, numbers),
        (BinaryOp::Mul, numbers),
        (BinaryOp::Div, numbers),
        (BinaryOp::Rem, numbers),
        (BinaryOp::Min, numbers),
        (BinaryOp::Max, numbers),
        (BinaryOp::And, logical),
        (BinaryOp::Or, logical),
        (BinaryOp::Xor, logical),
        (BinaryOp::Shl, integers),
        (BinaryOp::Shr, integers),
        (BinaryOp::Eq, &ScalarType::ALL[..]),
        (BinaryOp::Ne, &ScalarType::ALL[..]),
        (BinaryOp::Lt, numbers),
        (BinaryOp::Le, numbers),
        (BinaryOp::Gt, numbers),
        (BinaryOp::Ge, numbers),
    ] {
        for left in ScalarType::ALL {
            for right in ScalarType::ALL {
                let fits = types.contains(&left) && right == if op.is_shift() { U32 } else { left };
                let result = if op.is_comparison() { Bool } else { left };
                let operand = |ty| Box::new(Expr::Literal(value(ty)));
                let expr = Expr::Binary { op, left: operand(left), right: operand(right) };
                let program = kernel(|f, _| ignore(f.let_("x", Value::new(expr, result))));
                if fits {
                    accept(program);
                } else {
                    let expected = format!("there is no {op:?} on {left} and {right}");
                    refuse_with(program, &expected);
                }
            }
        }
    }
    for to in ScalarType::ALL {
        for from in ScalarType::ALL {
            accept(kernel(|f, _| ignore(f.let_("x", Value::from(value(from)).cast(to)))));
            let program = kernel(|f, _| ignore(f.let_("x", Value::from(value(from)).bitcast(to))));
            let word = [U32, I32, F32];
            if word.contains(&to) && word.contains(&from) {
                accept(program);
            } else {
                refuse_with(program, &format!("there is no bitcast to {to} on {from}"));
            }
        }
    }
    refuse(
        kernel(|f, _| ignore(f.let_("x", Value::from(true).select(1u32, 2.0)))),
        &[
            "entry main / body[0]: the second value of select must be u32, and is f32; cast it, or change the type",
        ],
    );
    refuse_with(
        kernel(|f, _| ignore(f.let_("x", Value::from(1u32).select(1u32, 2u32)))),
        "the condition of select must be bool",
    );
    accept(kernel(|f, _| ignore(f.let_("x", Value::from(1.0).fma(2.0, 3.0)))));
    refuse_with(
        kernel(|f, _| ignore(f.let_("x", Value::from(1.0).fma(2.0, 3u32)))),
        "an operand of fma must be f32, and is u32",
    );
}

#[test]
fn i13_places_have_types() {
    let wrong = Value::from(true);
    let bool_local = |f: &mut FunctionBuilder| f.local("t", Bool, false).id;
    let cases: Vec<(Program, &str)> = vec![
        (kernel(|f, _| f.if_(1u32, |_| ())), "the condition must be bool, and is u32"),
        (kernel(|f, _| f.while_(1.0, |_| ())), "the condition must be bool, and is f32"),
        (kernel(|f, _| f.switch(&wrong, |_| ())), "the selector must be u32, and is bool"),
        (kernel(|f, _| f.switch(-1, |_| ())), "the selector must be u32, and is i32"),
        (kernel(|f, _| f.for_("i", 1u64, 2, |_, _| ())), "the start must be u32, and is u64"),
        (kernel(|f, _| f.for_("i", 1, 2u64, |_, _| ())), "the end must be u32, and is u64"),
        (kernel(|f, _| f.trap(&wrong)), "the trap code must be u32, and is bool"),
        (kernel(|f, b| f.trap(b.words.load(1u64))), "the index must be u32, and is u64"),
        (kernel(|f, b| f.store(b.words, 1.0, 1)), "the index must be u32, and is f32"),
        (kernel(|f, b| f.store(b.words, 1, 1.0)), "the value stored must be u32, and is f32"),
        (kernel(|f, b| ignore(f.atomic_add(b.words, 1u64, 1))), "the index must be u32, and is u64"),
        (
            kernel(|f, b| ignore(f.atomic_add(b.words, 1, 1u64))),
            "the operand of the atomic must be u32, and is u64",
        ),
        (
            kernel(|f, b| ignore(f.atomic_compare_exchange(b.words, 1, 1u64, 1))),
            "the operand of the atomic must be u32, and is u64",
        ),
        (
            kernel(|f, b| ignore(f.atomic_compare_exchange(b.words, 1, 1, 1u64))),
            "the operand of the atomic must be u32, and is u64",
        ),
        (
            kernel(|f, _| {
                let var = bool_local(f);
                f.push(Node::Let { var, value: one() });
            }),
            "the value must be bool, and is u32",
        ),
        (
            kernel(|f, _| {
                let x = f.var_("x", 1.0);
                f.assign(x, 1u32);
            }),
            "the value must be f32, and is u32",
        ),
        (
            kernel(|f, _| {
                let var = bool_local(f);
                f.push(Node::For { var, start: one(), end: one(), step: 1, body: vec![] });
            }),
            "the counter must be bool, and is u32",
        ),
    ];
    for (program, expected) in cases {
        refuse_with(program, expected);
    }
    // Every element type with the one scalar that fits it.
    for element in DataType::ALL {
        for ty in ScalarType::ALL {
            let program = with_buffer(MemorySpace::Global, element, BufferAccess::ReadWrite, |f, b| {
                let loaded = f.let_("loaded", b.load(0));
                f.store(b, 1, loaded);
                f.store(b, 2, loaded.cast(ty));
            });
            if ty == element.scalar() {
                accept(program);
            } else {
                refuse_with(program, &format!("the value stored must be {}, and is {ty}", element.scalar()));
            }
        }
    }
}

#[test]
fn i14_returns_and_calls_fit() {
    let returning =
        |values: fn(&mut FunctionBuilder, [Var; 2])| with_function(function([U32, F32], &[U32, F32], values));
    accept(returning(|f, [x, y]| f.ret((x, y))));
    accept(returning(|f, [x, y]| f.ret((x + 1, y * 2.0))));
    refuse(
        returning(|f, [x, y]| f.ret((y, x))),
        &[
            "fn f / body[0]: result 0 must be u32, and is f32; cast it, or change the type",
            "fn f / body[0]: result 1 must be f32, and is u32; cast it, or change the type",
        ],
    );
    refuse(
        returning(|f, [x, _]| f.ret(x)),
        &["fn f / body[0]: results: 1 given, 2 needed; give one value for each"],
    );
    refuse_with(kernel(|f, _| f.ret(1)), "results: 1 given, 0 needed");

    let calling = |body: fn(&mut FunctionBuilder)| {
        let mut program = with_function(function([U32, F32], &[U32, F32], |f, [x, y]| f.ret((x, y))));
        let mut main = FunctionBuilder::new("main");
        body(&mut main);
        program.entry = main.finish();
        program
    };
    fn call(results: Vec<VarId>, args: [Literal; 2]) -> Node {
        Node::Call { results, function: FunctionId(0), args: args.map(Expr::Literal).to_vec() }
    }
    const ARGS: [Literal; 2] = [Literal::U32(1), Literal::F32(0)];
    let program = calling(|f| {
        let (a, b) = (f.local("a", U32, false), f.local("b", F32, false));
        f.push(call(vec![a.id, b.id], ARGS));
    });
    assert_eq!(accept(program).facts().call_order, [FunctionId(0)]);
    refuse_with(
        calling(|f| {
            let (a, b) = (f.local("a", U32, false), f.local("b", F32, false));
            f.push(Node::Call { results: vec![a.id, b.id], function: FunctionId(0), args: vec![one()] });
        }),
        "arguments: 1 given, 2 needed",
    );
    // A local of the function called is no parameter.
    refuse_with(
        kernel_with(|p, _| {
            let g = p.function("g", [], [], |f, []| ignore(f.let_("x", 1.0)));
            p.entry(|f| ignore(f.call(&g, 1)));
        }),
        "arguments: 1 given, 0 needed",
    );
    refuse_with(
        calling(|f| {
            let (a, b) = (f.local("a", U32, false), f.local("b", F32, false));
            f.push(call(vec![a.id, b.id], [Literal::U32(1), Literal::U32(1)]));
        }),
        "argument 1 must be f32, and is u32",
    );
    refuse_with(calling(|f| f.push(call(vec![], ARGS))), "locals for the results of `f`: 0 given, 2 needed");
    refuse_with(
        calling(|f| {
            let (a, b) = (f.local("a", U32, false), f.local("b", U64, false));
            f.push(call(vec![a.id, b.id], ARGS));
        }),
        "the result of the call must be u64, and is f32",
    );
}
