//! Invariants 26 and 27: who reaches a barrier.

use vyre_foundation::builder::{FunctionBuilder, Operand, ProgramBuilder, Value};
use vyre_foundation::{Axis, Builtin, Granularity, Program, ReduceOp};

use super::{Buffers, U32, accept, ignore, kernel, kernel_with, refuse, refuse_with};

fn lane() -> Value {
    Builtin::LocalId(Axis::X).into()
}

fn first() -> Value {
    lane().eq_(0)
}

fn group() -> Value {
    Builtin::WorkgroupId(Axis::X).into()
}

type Body = fn(&mut FunctionBuilder, Buffers);

/// Each body, followed by a barrier.
#[track_caller]
fn all_reach(bodies: &[Body]) {
    for (index, body) in bodies.iter().enumerate() {
        println!("{index}");
        accept(kernel(|f, b| {
            body(f, b);
            f.barrier();
        }));
    }
}

#[track_caller]
fn some_reach(cause: &str, bodies: &[Body]) {
    for (index, body) in bodies.iter().enumerate() {
        println!("{index}");
        refuse_with(kernel(body), &format!("whether it is depends on {cause};"));
    }
}

#[test]
fn i26_barriers_are_reached_by_all() {
    all_reach(&[
        |_, _| (),
        |f, _| f.if_(first(), |f| ignore(f.let_("x", 1))),
        |f, _| f.if_(group().eq_(0), |f| f.barrier()),
        |f, b| f.if_(b.params.load(group()).eq_(0), |f| f.barrier()),
        |f, b| f.for_("i", 0, b.words.len(), |f, i| f.if_(i.eq_(3), |f| f.barrier())),
        |f, _| {
            let x = f.var_("x", 0);
            f.while_(x.lt(Builtin::NumWorkgroups(Axis::X)), |f| {
                f.barrier();
                f.assign(x, x + Builtin::WorkgroupSize(Axis::Z));
            });
        },
        // Everybody leaves the loop in the end.
        |f, _| f.for_("i", 0, lane(), |f, _| ignore(f.let_("x", 1))),
        |f, _| f.while_(true, |f| f.if_(first(), |f| f.break_())),
        |f, _| {
            f.for_("i", 0, 9, |f, _| {
                f.barrier();
                f.if_(first(), |f| f.continue_());
            })
        },
        // The return is after the barrier, or in the other branch.
        |f, _| f.if_else(group().eq_(0), |f| f.if_(group().eq_(1), |f| f.ret(())), |f| f.barrier()),
        |f, _| f.if_(group().eq_(0), |f| f.ret(())),
        |f, b| f.if_(b.params.load(0).eq_(0), |f| f.trap(7)),
        // What lanes differ in is not what the barrier depends on.
        |f, b| {
            let x = f.var_("x", 0);
            let y = f.var_("y", 0);
            f.if_(first(), |f| f.assign(x, 1));
            f.store(b.words, 0, x);
            f.assign(y, 2);
            f.while_(y.gt(0), |f| {
                f.barrier();
                f.assign(y, y - 1);
            });
        },
    ]);
}

#[test]
fn i26_conditions_that_differ() {
    some_reach(
        "the local id along x",
        &[
            |f, _| f.if_(first(), |f| f.barrier()),
            |f, _| f.if_else(first(), |_| (), |f| f.barrier()),
            |f, _| f.if_(first(), |f| f.block(|f| f.if_(true, |f| f.barrier()))),
            |f, _| f.switch(lane(), |s| s.case([1], |f| f.barrier())),
            |f, _| f.switch(lane(), |s| s.default(|f| f.barrier())),
            |f, _| f.for_("i", lane(), 9, |f, _| f.barrier()),
            |f, _| f.for_("i", 0, lane(), |f, _| f.barrier()),
            |f, _| f.while_(first(), |f| f.barrier()),
            |f, _| f.if_(group().eq_(0) & !first(), |f| f.barrier()),
            |f, b| f.if_(b.params.load(lane()).eq_(0), |f| f.barrier()),
            |f, _| f.if_(Value::from(true).select(lane(), 1).cast(super::Bool), |f| f.barrier()),
        ],
    );
    some_reach(
        "the global id along z",
        &[|f, _| {
            f.if_(Value::from(Builtin::GlobalId(Axis::Z)).eq_(1), |f| f.barrier());
        }],
    );
    some_reach("a load from `words`", &[|f, b| f.if_(b.words.load(0).eq_(0), |f| f.barrier())]);
    some_reach("a load from `shared`", &[|f, b| f.if_(b.shared.load(0).eq_(0), |f| f.barrier())]);
    some_reach(
        "the result of an atomic through `old`",
        &[|f, b| {
            let old = f.atomic_add(b.words, 0, 1);
            f.if_(old.eq_(0), |f| f.barrier());
        }],
    );
    refuse(
        kernel(|f, _| f.if_(first(), |f| f.barrier())),
        &[
            "entry main / body[0].then[0]: a workgroup barrier must be reached by every invocation of the workgroup \
           or by none, and whether it is depends on the local id along x; move it out of the conditional code, or \
           decide by values that the workgroup shares",
        ],
    );
}

#[test]
fn i26_locals_that_differ() {
    some_reach(
        "the local id along x through `x`",
        &[
            |f, _| {
                let x = f.let_("x", lane() + 1);
                f.if_(x.eq_(0), |f| f.barrier());
            },
            // Assigned where only some lanes go.
            |f, _| {
                let x = f.var_("x", 0);
                f.if_(first(), |f| f.assign(x, 1));
                f.if_(x.eq_(0), |f| f.barrier());
            },
            // Assigned behind a break that only some lanes take.
            |f, _| {
                let x = f.var_("x", 0);
                f.while_(true, |f| {
                    f.assign(x, x + 1);
                    f.if_(lane().lt(x), |f| f.break_());
                });
                f.if_(x.eq_(0), |f| f.barrier());
            },
            |f, _| {
                let x = f.var_("x", 0);
                f.for_("i", 0, 9, |f, _| {
                    f.if_(first(), |f| f.continue_());
                    f.assign(x, x + 1);
                });
                f.if_(x.eq_(0), |f| f.barrier());
            },
        ],
    );
    // A difference travels backwards through a loop, one local a round.
    some_reach(
        "the local id along x through `c`, `b`, `a`",
        &[|f, _| {
            let a = f.var_("a", 0);
            let b = f.var_("b", 0);
            let c = f.var_("c", 0);
            f.for_("i", 0, 9, |f, _| {
                f.if_(a.eq_(1), |f| f.barrier());
                f.assign(a, b);
                f.assign(b, c);
                f.assign(c, lane());
            });
        }],
    );
}

#[test]
fn i26_leaving_early() {
    some_reach(
        "the local id along x",
        &[
            |f, _| {
                f.if_(first(), |f| f.ret(()));
                f.barrier();
            },
            |f, _| {
                f.if_else(first(), |_| (), |f| f.block(|f| f.trap(1)));
                f.barrier();
            },
            |f, _| {
                f.for_("i", 0, 9, |f, _| f.while_(true, |f| f.if_(first(), |f| f.ret(()))));
                f.barrier();
            },
            |f, _| {
                f.for_("i", 0, 9, |f, _| {
                    f.if_(first(), |f| f.break_());
                    f.barrier();
                })
            },
            // The next round is without those who left in this one.
            |f, _| {
                f.for_("i", 0, 9, |f, _| {
                    f.barrier();
                    f.if_(first(), |f| f.break_());
                })
            },
            |f, _| {
                f.for_("i", 0, 9, |f, _| {
                    f.barrier();
                    f.switch(lane(), |s| s.case([1], |f| f.ret(())));
                })
            },
            |f, _| {
                f.for_("i", 0, 9, |f, _| {
                    f.if_(first(), |f| f.continue_());
                    f.barrier();
                })
            },
            |f, _| {
                f.for_("i", 0, 9, |f, _| {
                    f.barrier();
                    f.for_("j", 0, 9, |f, _| f.if_(first(), |f| f.trap(1)));
                })
            },
        ],
    );
}

#[test]
fn i26_calls() {
    // A barrier in a function is one where it is called, from any depth.
    type Caller = fn(&mut FunctionBuilder, &dyn Fn(&mut FunctionBuilder));
    let called = |body: Caller| {
        kernel_with(|p, _| {
            let inner = p.function("inner", [], [], |f, []| f.barrier());
            let outer = p.function("outer", [], [], |f, []| ignore(f.call(&inner, ())));
            p.entry(|f| body(f, &|f| ignore(f.call(&outer, ()))));
        })
    };
    let facts = accept(called(|f, call| f.if_(group().eq_(0), call))).facts().clone();
    assert!(facts.workgroup_barriers && !facts.subgroup_operations);
    assert_eq!(facts.barriers_in, [true, true]);
    refuse_with(
        called(|f, call| f.if_(first(), call)),
        "entry main / body[0].then[0]: the workgroup barrier in `outer` must be reached",
    );

    // Parameters decide: in one function whether there is a barrier, in the other how far one goes.
    let decided = |by: fn() -> Value| {
        kernel_with(|p, _| {
            let inner = p.function("inner", [("unused", U32), ("n", U32)], [], |f, [_, n]| {
                f.for_("i", 0, n, |f, _| f.barrier());
            });
            let outer = p.function("outer", [("n", U32), ("unused", U32)], [], |f, [n, _]| {
                f.call(&inner, (lane(), n + 1));
            });
            p.entry(|f| ignore(f.call(&outer, (by(), lane()))));
        })
    };
    accept(decided(group));
    refuse_with(
        decided(lane),
        "entry main / body[0]: the workgroup barrier in `outer`, which argument 0 decides, must be reached by \
         every invocation of the workgroup or by none, and whether it is depends on the local id along x;",
    );

    // A function whose own control is wrong is refused even if nobody calls it.
    refuse_with(
        kernel_with(|p, _| ignore(p.function("f", [], [], |f, []| f.if_(first(), |f| f.barrier())))),
        "fn f / body[0].then[0]: a workgroup barrier",
    );
    // Who returned from a function is back.
    accept(kernel_with(|p, _| {
        let g = p.function("g", [("x", U32)], [], |f, [x]| f.if_(x.eq_(0), |f| f.ret(())));
        p.entry(|f| {
            f.call(&g, lane());
            f.barrier();
        });
    }));
}

#[test]
fn i26_results_of_calls() {
    let deciding = |arg: fn() -> Value, which: usize| {
        kernel_with(move |p, _| {
            // The first result is its argument, the second only chosen by it, the third neither.
            let g = p.function("g", [("x", U32)], [U32, U32, U32], |f, [x]| {
                f.if_(x.eq_(0), |f| f.ret((x, 1, 3)));
                f.ret((x, 2, 3));
            });
            p.entry(|f| {
                let results = f.call(&g, arg());
                f.if_(results[which].eq_(0), |f| f.barrier());
            });
        })
    };
    for which in 0..3 {
        accept(deciding(group, which));
        // The analysis does not compare what different returns yield, so the third is refused too.
        refuse_with(deciding(lane, which), "depends on the local id along x through `g");
    }
    refuse_with(
        kernel_with(|p, b| {
            let g = p.function("g", [], [U32], |f, []| f.ret(b.words.load(0)));
            p.entry(|f| {
                let x = f.call_one(&g, ());
                f.if_(x.eq_(0), |f| f.barrier());
            });
        }),
        "depends on result 0 of `g` through `g`;",
    );
}

#[test]
fn i26_traps_in_calls() {
    let trapping = |arg: fn() -> Value, condition: fn() -> Value| {
        kernel_with(move |p, _| {
            let inner = p.function("inner", [("x", U32)], [], |f, [x]| f.if_(x.eq_(0), |f| f.trap(1)));
            let outer = p.function("outer", [("x", U32)], [], |f, [x]| ignore(f.call(&inner, x)));
            p.entry(|f| {
                f.if_(condition(), |f| ignore(f.call(&outer, arg())));
                f.barrier();
            });
        })
    };
    accept(trapping(group, || group().eq_(0)));
    refuse_with(trapping(lane, || group().eq_(0)), "depends on the local id along x;");
    refuse_with(trapping(group, first), "depends on the local id along x;");
    refuse_with(
        kernel_with(|p, b| {
            let g = p.function("g", [], [], |f, []| f.if_(b.words.load(0).eq_(0), |f| f.trap(1)));
            p.entry(|f| {
                f.for_("i", 0, 9, |f, _| {
                    f.barrier();
                    f.call(&g, ());
                });
            });
        }),
        "entry main / body[0].body[0]: a workgroup barrier must be reached by every invocation of the workgroup or \
         by none, and whether it is depends on a trap inside `g`;",
    );
}

#[test]
fn i26_items() {
    let item = |body: fn(&mut FunctionBuilder, vyre_foundation::builder::Var)| -> Program {
        let mut p = ProgramBuilder::item("test", Granularity::Workgroup).workgroup_size([64, 1, 1]);
        p.item_entry([("word", U32)], [U32], |f, [word]| {
            body(f, word);
            f.ret(word);
        });
        p.finish()
    };
    accept(item(|f, word| f.if_(word.eq_(0), |f| f.barrier())));
    refuse_with(
        item(|f, word| f.if_((word + lane()).eq_(0), |f| f.barrier())),
        "depends on the local id along x;",
    );
}

#[test]
fn i27_grid_barriers_are_reached_by_the_whole_grid() {
    all_reach(&[|f, b| {
        f.if_(b.params.load(b.words.len()).eq_(0), |f| f.ret(()));
        f.for_("i", 0, lane(), |f, _| ignore(f.let_("x", 1)));
        f.grid_barrier();
        f.if_(group().eq_(0), |f| f.ret(()));
    }]);
    refuse(
        kernel(|f, _| {
            let x = f.let_("x", group() * 2);
            f.if_(x.eq_(0), |f| f.ret(()));
            f.barrier();
            f.grid_barrier();
        }),
        &[
            "entry main / body[3]: a grid barrier must be reached by every invocation of the dispatch or by none, \
           and whether it is depends on the workgroup id along x through `x`; make every return and trap before it \
           depend on nothing but uniform buffers and sizes",
        ],
    );
    refuse_with(
        kernel(|f, _| {
            f.if_(first(), |f| f.trap(1));
            f.grid_barrier();
        }),
        "a grid barrier must be reached by every invocation of the dispatch",
    );
}

#[test]
fn subgroup_operations_are_noted_wherever_they_are() {
    let asks = kernel(|f, _| ignore(f.let_("lane", Builtin::SubgroupLane)));
    let program = accept(asks);
    let facts = program.facts();
    assert!(facts.subgroup_operations && !facts.workgroup_barriers);
    let uncalled = kernel_with(|p, _| {
        p.function("sum", [("x", U32)], [U32], |f, [x]| {
            let sum = f.subgroup_reduce(ReduceOp::Add, x);
            let next = f.subgroup_shuffle(sum, Value::from(Builtin::SubgroupLane) + 1);
            f.ret(next);
        });
    });
    let program = accept(uncalled);
    let facts = program.facts();
    assert!(facts.subgroup_operations && !facts.workgroup_barriers);
    assert_eq!(facts.barriers_in, [true]);
}
