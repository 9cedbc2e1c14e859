//! Invariants 1 to 8, and 22 to 25: what is declared, and what the kind of program excludes.

use vyre_foundation::builder::{FunctionBuilder, Operand, ProgramBuilder, Value};
use vyre_foundation::limits::{
    MAX_ARITY, MAX_BUFFERS, MAX_FUNCTIONS, MAX_LOCALS, MAX_NAME_LEN, MAX_NESTING, MAX_NODES,
};
use vyre_foundation::{
    Axis, BufferAccess, BufferId, Builtin, DataType, Expr, External, ExternalBuffer, ExternalCall,
    ExternalId, FunctionId, Granularity, MemorySpace, Node, Program, VarId,
};

use super::{
    F32, U32, accept, function, ignore, item, kernel, kernel_with, refuse, refuse_with, with_buffer,
    with_function,
};

fn empty() -> Program {
    ProgramBuilder::kernel("test").finish()
}

#[test]
fn i01_names_are_identifiers() {
    accept(kernel(|f, _| {
        f.let_("a_Z9", 1);
        f.let_(&"x".repeat(MAX_NAME_LEN), 1);
    }));
    refuse(
        Program { name: "two words".into(), ..empty() },
        &["program: the program name \"two words\" is refused: it is not an identifier; use ASCII letters, \
           digits and `_`, and no digit first"],
    );
    let mut program = kernel(|_, _| ());
    program.buffers[0].name = String::new();
    refuse(program, &["buffer : the buffer name \"\" is refused: it is empty; give it at least one letter"]);
    refuse(
        with_function(FunctionBuilder::new("while").finish()),
        &[
            "fn while: the function name \"while\" is refused: it is a reserved word of the text form; add `_` to it",
        ],
    );
    let long = "x".repeat(MAX_NAME_LEN + 1);
    refuse_with(kernel(|f, _| ignore(f.let_(&long, 1))), "it has 65 bytes; shorten it to 64");
    refuse_with(kernel(|f, _| ignore(f.let_("new\nline", 1))), r"the local name");
}

#[test]
fn i02_names_are_unique() {
    // One name may serve a buffer, a function and a local.
    let mut program = kernel_with(|p, _| {
        p.function("same", [], [], |f, _| ignore(f.let_("same", 1)));
        p.entry(|f| ignore(f.let_("same", 1)));
    });
    program.buffers[0].name = "same".into();
    accept(program);

    let mut program = kernel(|_, _| ());
    program.buffers[1].name = "words".into();
    refuse(program, &["buffer words: there are two buffers called `words`; rename one"]);
    refuse(
        with_function(FunctionBuilder::new("main").finish()),
        &["entry main: there are two functions called `main`; rename one"],
    );
    let mut program = kernel(|f, _| {
        f.let_("a", 1);
        f.let_("b", 1);
    });
    program.entry.locals[1].name = "a".into();
    refuse(program, &["entry main: there are two locals called `a`; rename one"]);
}

#[test]
fn external_functions_are_declared_as_others_are() {
    let external =
        |name: &str| External { name: name.into(), params: vec![], buffers: vec![], results: vec![] };
    let with = |externals| Program { externals, ..empty() };
    accept(with((0..64).map(|i| external(&format!("e{i}"))).collect()));
    refuse(
        with((0..65).map(|i| external(&format!("e{i}"))).collect()),
        &["program: 65 external functions, and the limit is 64; declare those that are called"],
    );
    refuse(
        with(vec![external("main"), external("main"), external("if")]),
        &[
            "external main: there are two external functions called `main`; rename one",
            "external if: the external function name \"if\" is refused: it is a reserved word of the text form; add \
             `_` to it",
        ],
    );
    let buffer = ExternalBuffer { element: DataType::U8, access: BufferAccess::Read };
    refuse(
        with(vec![External { params: vec![U32; 65], buffers: vec![buffer; 65], ..external("e") }]),
        &[
            "external e: 65 parameters, and the limit is 64; pass them through a buffer",
            "external e: 65 buffers of an external function, and the limit is 64; pass them through a buffer",
        ],
    );
    let call = |id| {
        let mut f = FunctionBuilder::new("f");
        f.push(Node::CallExternal(ExternalCall {
            external: ExternalId(id),
            args: vec![],
            buffers: vec![],
            results: vec![],
        }));
        Program { externals: vec![external("e")], ..with_function(f.finish()) }
    };
    accept(call(0));
    refuse_with(call(1), "there is no external function 1; use one of 0 to 0, or declare it");
}

#[test]
fn i03_nesting() {
    let blocks = |depth: usize| kernel(|f, _| nest(f, depth));
    fn nest(f: &mut FunctionBuilder, depth: usize) {
        if depth > 0 {
            f.block(|f| nest(f, depth - 1));
        }
    }
    accept(blocks(MAX_NESTING));
    refuse(
        blocks(MAX_NESTING + 1),
        &[
            "entry main / body[0]: 129 statements and expressions enclose one another, and the limit is 128; bind \
           parts of the expression to locals, or move blocks into functions",
        ],
    );

    // The statement and the literal count as well.
    let sum = |terms: usize| {
        kernel(|f, _| ignore(f.let_("sum", (1..terms).fold(Value::from(1), |sum, _| sum + 1))))
    };
    accept(sum(MAX_NESTING - 1));
    refuse_with(sum(MAX_NESTING), "129 statements and expressions enclose one another");
}

#[test]
fn i03_nodes() {
    // Two nodes a statement.
    let lines = |count: u64| {
        kernel(|f, b| {
            let x = f.var_("x", 0);
            for _ in 1..count {
                f.assign(x, b.words.len());
            }
        })
    };
    let program = accept(lines(MAX_NODES / 2));
    assert_eq!(program.facts().nodes, MAX_NODES);
    assert_eq!(program.facts().inlined_nodes, MAX_NODES);
    refuse(
        lines(MAX_NODES / 2 + 1),
        &["program: 262145 statements and expressions, and the limit is 262144; split the program"],
    );

    // The values of a switch are nodes.
    let cases = |count: u32| kernel(|f, _| f.switch(0, |s| s.case(0..count, |_| ())));
    assert_eq!(accept(cases(100)).facts().nodes, 102);
    refuse_with(cases(MAX_NODES as u32), "262145 statements and expressions");
}

#[test]
fn i04_counts() {
    let buffers = |count: usize| {
        let mut p = ProgramBuilder::kernel("test");
        for index in 0..count {
            p.buffer(format!("b{index}"), MemorySpace::Global, DataType::U32, BufferAccess::Read, 0);
        }
        p.finish()
    };
    accept(buffers(MAX_BUFFERS));
    refuse(buffers(MAX_BUFFERS + 1), &["program: 513 buffers, and the limit is 512; join some of them"]);

    let functions = |count: usize| {
        let mut p = ProgramBuilder::kernel("test");
        for index in 0..count {
            p.function(format!("g{index}"), [], [], |_, []| ());
        }
        p.finish()
    };
    accept(functions(MAX_FUNCTIONS));
    refuse_with(functions(MAX_FUNCTIONS + 1), "4097 functions, and the limit is 4096");

    accept(with_function(function([U32; MAX_ARITY], &[U32; MAX_ARITY], |f, params| f.ret(params.to_vec()))));
    refuse(
        with_function(function([U32; MAX_ARITY + 1], &[], |_, _| ())),
        &["fn f: 65 parameters, and the limit is 64; pass them through a buffer"],
    );
    refuse_with(
        with_function(function([U32], &[U32; MAX_ARITY + 1], |f, [x]| f.ret([x; MAX_ARITY + 1]))),
        "65 results, and the limit is 64",
    );

    let locals = |count: usize| kernel(|f, _| (0..count).for_each(|_| ignore(f.let_("x", 1))));
    accept(locals(MAX_LOCALS));
    refuse_with(locals(MAX_LOCALS + 1), "16385 locals, and the limit is 16384");
}

#[test]
fn i05_workgroup_size() {
    let sized = |workgroup_size| Program { workgroup_size, ..empty() };
    accept(sized([1024, 1, 1]));
    accept(sized([4, 4, 64]));
    refuse(
        sized([0, 1, 0]),
        &[
            "program: the workgroup size along x is 0; it must be at least 1",
            "program: the workgroup size along z is 0; it must be at least 1",
        ],
    );
    refuse(
        sized([1025, 1, 1]),
        &["program: 1025 invocations in a workgroup, and the limit is 1024; make the workgroup smaller"],
    );
    refuse_with(sized([u32::MAX; 3]), "18446744073709551615 invocations");
}

#[test]
fn i06_uniform_buffers_are_read_only() {
    let declared = |access| with_buffer(MemorySpace::Uniform, DataType::F16, access, |_, _| ());
    accept(declared(BufferAccess::Read));
    for access in [BufferAccess::Write, BufferAccess::ReadWrite] {
        refuse(
            declared(access),
            &["buffer b: a uniform buffer is read only; declare it read, or move it to global memory"],
        );
    }
}

#[test]
fn i07_workgroup_buffers() {
    let declared = |access, len, element| {
        let mut program = with_buffer(MemorySpace::Workgroup, element, access, |_, _| ());
        program.buffers[0].len = len;
        program
    };
    let facts = accept(declared(BufferAccess::ReadWrite, 48 * 1024 / 8, DataType::U64)).facts().clone();
    assert_eq!(facts.workgroup_bytes, 48 * 1024);
    refuse(
        declared(BufferAccess::ReadWrite, 48 * 1024 / 2 + 1, DataType::BF16),
        &[
            "program: 49154 bytes of workgroup memory, and the limit is 49152; make the workgroup buffers smaller",
        ],
    );
    let mut both = declared(BufferAccess::ReadWrite, 24 * 1024, DataType::U8);
    both.buffers.push(both.buffers[0].clone());
    both.buffers[1].name = "c".into();
    assert_eq!(accept(both.clone()).facts().workgroup_bytes, 48 * 1024);
    both.buffers[0].len += 1;
    refuse_with(both, "49153 bytes of workgroup memory");
    refuse_with(declared(BufferAccess::ReadWrite, 0, DataType::U8), "a workgroup buffer has no elements");
    for access in [BufferAccess::Read, BufferAccess::Write] {
        refuse_with(declared(access, 1, DataType::U8), "a workgroup buffer must be read and written");
    }
}

#[test]
fn i08_ids_are_in_range() {
    let node = |node| kernel(|f, _| f.push(node));
    let one = || Expr::Literal(vyre_foundation::Literal::U32(1));
    refuse(
        node(Node::Assign { var: VarId(7), value: one() }),
        &["entry main / body[0]: there is no local 7; none is declared, so declare it first"],
    );
    refuse(
        node(Node::Let { var: VarId(u32::MAX), value: one() }),
        &["entry main / body[0]: there is no local 4294967295; none is declared, so declare it first"],
    );
    refuse(
        node(Node::Store { buffer: BufferId(3), index: one(), value: one() }),
        &["entry main / body[0]: there is no buffer 3; use one of 0 to 2, or declare it"],
    );
    refuse(
        node(Node::Trap(Expr::BufferLen(BufferId(9)))),
        &["entry main / body[0]: there is no buffer 9; use one of 0 to 2, or declare it"],
    );
    refuse(
        node(Node::Call { results: vec![], function: FunctionId(0), args: vec![] }),
        &["entry main / body[0]: there is no function 0; none is declared, so declare it first"],
    );
    let mut program = with_function(function([U32], &[], |_, _| ()));
    program.functions[0].params = 2;
    refuse(program, &["fn f: 2 parameters are counted, and there are 1 locals; parameters are locals too"]);
}

#[test]
fn i22_a_kernel_takes_and_returns_nothing() {
    let mut p = ProgramBuilder::kernel("test");
    p.item_entry([("x", U32)], [U32], |f, [x]| f.ret(x));
    refuse(
        p.finish(),
        &[
            "entry main: the entry of a kernel has 1 parameters and 1 results, and must have none; read and write \
           buffers",
        ],
    );
    let mut p = ProgramBuilder::kernel("test");
    p.item_entry([], [U32], |f, []| f.ret(1));
    refuse_with(p.finish(), "has 0 parameters and 1 results");
    let mut p = ProgramBuilder::item("test", Granularity::Lane);
    p.item_entry([("x", F32), ("y", F32)], [F32, U32], |f, [x, y]| f.ret((x.fma(y, 1.0), 1)));
    accept(p.finish());
}

#[test]
fn i23_grid_barriers_are_at_the_top_of_a_kernel() {
    assert!(accept(kernel(|f, _| f.grid_barrier())).facts().grid_barriers);
    assert!(!accept(kernel(|f, _| f.barrier())).facts().grid_barriers);
    assert!(!accept(kernel(|f, _| f.grid_barrier())).facts().workgroup_barriers);
    refuse(
        kernel(|f, _| f.block(|f| f.grid_barrier())),
        &[
            "entry main / body[0].block[0]: a grid barrier cannot be used inside a block or a function; move it to \
           the top level of the entry",
        ],
    );
    refuse_with(with_function(function([], &[], |f, []| f.grid_barrier())), "inside a block or a function");
    for granularity in [Granularity::Lane, Granularity::Workgroup] {
        refuse_with(
            item(granularity, |f| f.grid_barrier()),
            "a grid barrier cannot be used in an item program",
        );
    }
}

#[test]
fn i24_i25_items_have_no_place_in_a_grid() {
    let lane = |body: fn(&mut FunctionBuilder)| item(Granularity::Lane, body);
    let workgroup = |body: fn(&mut FunctionBuilder)| item(Granularity::Workgroup, body);
    accept(lane(|f| ignore(f.let_("x", 1))));
    accept(workgroup(|f| f.barrier()));
    refuse(
        lane(|f| f.barrier()),
        &[
            "entry main / body[0]: a workgroup barrier cannot be used in an item of lane granularity; make the \
           program an item of workgroup granularity",
        ],
    );

    let axis = Axis::Y;
    for (builtin, name, in_workgroup) in [
        (Builtin::GlobalId(axis), "a global id", false),
        (Builtin::WorkgroupId(axis), "a workgroup id", false),
        (Builtin::NumWorkgroups(axis), "the number of workgroups", false),
        (Builtin::LocalId(axis), "a local id", true),
        (Builtin::WorkgroupSize(axis), "the workgroup size", true),
    ] {
        accept(kernel(|f, _| ignore(f.let_("id", builtin))));
        let used = |granularity| item(granularity, |f| ignore(f.let_("id", builtin)));
        refuse_with(
            used(Granularity::Lane),
            &format!("{name} cannot be used in an item of lane granularity"),
        );
        if in_workgroup {
            accept(used(Granularity::Workgroup));
        } else {
            let expected = format!("{name} cannot be used in an item of workgroup granularity");
            refuse_with(used(Granularity::Workgroup), &expected);
        }
    }

    let shared = |granularity| {
        let mut p = ProgramBuilder::item("test", granularity);
        p.buffer("s", MemorySpace::Workgroup, DataType::U32, BufferAccess::ReadWrite, 1);
        p.finish()
    };
    accept(shared(Granularity::Workgroup));
    refuse_with(shared(Granularity::Lane), "an item of lane granularity has no workgroup memory");

    // A function counts as much as the entry.
    let mut p = ProgramBuilder::item("test", Granularity::Lane);
    p.add_function(function([], &[], |f, []| f.barrier()));
    refuse_with(p.finish(), "fn f / body[0]: a workgroup barrier");
}
