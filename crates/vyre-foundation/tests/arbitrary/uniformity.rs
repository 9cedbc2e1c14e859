//! Whether the uniformity analysis is sound: programs that it accepts are run one invocation at a time, with
//! loads that differ as much as they can, and all invocations must pass the same barriers in the same order.
//!
//! The programs are those of the generator, with barriers and early exits put in at random places; most are
//! refused, and the test counts that enough are not.

use super::machine::{GROUPS, LANES, Random, run};
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::{
    Axis, BinaryOp, Builtin, Expr, Function, Literal, Node, Program, ScalarType, text, validate,
};

const PROGRAMS: u32 = 12_000;

#[test]
fn accepted_programs_pass_the_same_barriers() {
    let mut random = Random(1);
    let (mut accepted, mut passed, mut grids) = (0, 0, 0);
    for _ in 0..PROGRAMS {
        let bytes: Vec<u8> = (0..random.below(700)).map(|_| random.next() as u8).collect();
        let mut program = arbitrary_program(&bytes);
        disturb_function(&mut program.entry, &mut random);
        program.functions.iter_mut().for_each(|function| disturb_function(function, &mut random));
        if let Ok(program) = validate(program) {
            let (barriers, grid_barriers) = check(program.program(), random.next());
            accepted += 1;
            passed += u32::from(barriers);
            grids += u32::from(grid_barriers);
        }
    }
    println!("{accepted} accepted, {passed} pass barriers, {grids} pass grid barriers");
    assert!(passed > 300 && grids > 100, "too few: {accepted}, {passed}, {grids}");
}

/// Runs invocations of a few workgroups; yields whether they passed workgroup and grid barriers.
fn check(program: &Program, seed: u64) -> (bool, bool) {
    let lanes = program.workgroup_size.iter().product::<u32>().min(LANES);
    let mut any = false;
    let mut grid = None;
    for group in 0..GROUPS {
        let mut workgroup = None;
        for lane in 0..lanes {
            let journal = run(program, seed, group, lane);
            any |= !journal.barriers.is_empty();
            let expected = workgroup.get_or_insert_with(|| journal.barriers.clone());
            assert_eq!(*expected, journal.barriers, "invocation {lane} of\n{}", text::print(program));
            let expected = grid.get_or_insert_with(|| journal.grid_barriers.clone());
            assert_eq!(*expected, journal.grid_barriers, "invocation {lane} of\n{}", text::print(program));
        }
    }
    (any, grid.is_some_and(|grid| !grid.is_empty()))
}

/// Puts barriers and early exits into a function.
fn disturb_function(function: &mut Function, random: &mut Random) {
    let results: Vec<ScalarType> = function.results.clone();
    let likely = [0, 2, 6, 20][random.below(4) as usize];
    disturb(&mut function.body, &results, false, likely, random);
}

fn disturb(nodes: &mut Vec<Node>, results: &[ScalarType], in_loop: bool, likely: u64, random: &mut Random) {
    for node in nodes.iter_mut() {
        match node {
            Node::If { then, otherwise, .. } => {
                disturb(then, results, in_loop, likely, random);
                disturb(otherwise, results, in_loop, likely, random);
            }
            Node::Switch { cases, default, .. } => {
                cases.iter_mut().for_each(|case| disturb(&mut case.body, results, in_loop, likely, random));
                disturb(default, results, in_loop, likely, random);
            }
            Node::For { body, .. } | Node::While { body, .. } => {
                disturb(body, results, true, likely, random);
            }
            Node::Block(body) => disturb(body, results, in_loop, likely, random),
            _ => {}
        }
    }
    for at in (0..=nodes.len()).rev() {
        if random.below(100) >= likely {
            continue;
        }
        // The head of a `while true` counts the rounds: nothing may come before it.
        if in_loop && at < 2 {
            continue;
        }
        let node = match random.below(3) {
            0 => Node::WorkgroupBarrier,
            1 => exit(results, in_loop, random),
            _ => Node::If {
                condition: condition(random),
                then: vec![if random.below(2) == 0 {
                    Node::WorkgroupBarrier
                } else {
                    exit(results, in_loop, random)
                }],
                otherwise: vec![],
            },
        };
        let node = match node {
            // Alone it would end the block.
            Node::WorkgroupBarrier | Node::If { .. } => node,
            exit => Node::If { condition: condition(random), then: vec![exit], otherwise: vec![] },
        };
        nodes.insert(at, node);
    }
}

fn exit(results: &[ScalarType], in_loop: bool, random: &mut Random) -> Node {
    match random.below(4) {
        0 if in_loop => Node::Break,
        1 if in_loop => Node::Continue,
        2 => Node::Trap(Expr::Literal(Literal::U32(7))),
        _ => Node::Return(results.iter().map(|&ty| Expr::Literal(random.literal(ty))).collect()),
    }
}

fn condition(random: &mut Random) -> Expr {
    let builtin = [
        Builtin::LocalId(Axis::X),
        Builtin::WorkgroupId(Axis::X),
        Builtin::WorkgroupId(Axis::X),
        Builtin::NumWorkgroups(Axis::X),
        Builtin::WorkgroupSize(Axis::X),
    ][random.below(5) as usize];
    Expr::Binary {
        op: [BinaryOp::Eq, BinaryOp::Ne, BinaryOp::Gt][random.below(3) as usize],
        left: Box::new(Expr::Builtin(builtin)),
        right: Box::new(Expr::Literal(Literal::U32(random.below(4) as u32))),
    }
}
