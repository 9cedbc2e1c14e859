//! Invariants 15 to 17: what may be done to which buffer.

use vyre_foundation::builder::{Buffer, FunctionBuilder};
use vyre_foundation::{
    AtomicOp, BufferAccess, DataType, Expr, Literal, MemoryOrdering, MemoryScope, MemorySpace, Program, RmwOp,
};

use super::{accept, ignore, refuse, refuse_with, with_buffer};

const READ: BufferAccess = BufferAccess::Read;
const WRITE: BufferAccess = BufferAccess::Write;
const BOTH: BufferAccess = BufferAccess::ReadWrite;

fn one() -> Expr {
    Expr::Literal(Literal::U32(1))
}

fn add() -> AtomicOp {
    AtomicOp::Rmw(RmwOp::Add, one())
}

fn compare_exchange() -> AtomicOp {
    AtomicOp::CompareExchange { expected: one(), replacement: one() }
}

fn atomic(
    space: MemorySpace,
    access: BufferAccess,
    op: AtomicOp,
    ordering: MemoryOrdering,
    scope: MemoryScope,
) -> Program {
    with_buffer(space, DataType::U32, access, |f, b| ignore(f.atomic(op, b, 0, ordering, scope)))
}

#[test]
fn i15_buffers_are_used_as_declared() {
    let load = |f: &mut FunctionBuilder, b: Buffer| ignore(f.let_("x", b.load(0)));
    let store = |f: &mut FunctionBuilder, b: Buffer| f.store(b, 0, 1);
    let with = |access, body: &dyn Fn(&mut FunctionBuilder, Buffer)| {
        with_buffer(MemorySpace::Global, DataType::U32, access, body)
    };
    accept(with(READ, &load));
    accept(with(BOTH, &load));
    accept(with(WRITE, &store));
    accept(with(BOTH, &store));
    refuse(
        with(WRITE, &load),
        &["entry main / body[0]: `b` is declared write, so it cannot be loaded from; declare it read_write"],
    );
    refuse(
        with(READ, &store),
        &["entry main / body[0]: `b` is declared read, so it cannot be stored to; declare it read_write"],
    );
    // The length of any buffer may be asked for.
    for access in [READ, WRITE, BOTH] {
        accept(with(access, &|f: &mut FunctionBuilder, b: Buffer| ignore(f.let_("n", b.len()))));
    }

    let relaxed =
        |access, op| atomic(MemorySpace::Global, access, op, MemoryOrdering::Relaxed, MemoryScope::Device);
    for (op, allowed, attempted) in [
        (AtomicOp::Load, &[READ, BOTH][..], "loaded from"),
        (AtomicOp::Store(one()), &[WRITE, BOTH][..], "stored to"),
        (add(), &[BOTH][..], "changed by a read-modify-write"),
        (compare_exchange(), &[BOTH][..], "changed by a read-modify-write"),
    ] {
        for access in [READ, WRITE, BOTH] {
            let program = relaxed(access, op.clone());
            if allowed.contains(&access) {
                accept(program);
            } else {
                refuse_with(program, &format!("so it cannot be {attempted}; declare it read_write"));
            }
        }
    }
}

#[test]
fn i16_atomics_are_where_the_hardware_has_them() {
    for element in DataType::ALL {
        let program = with_buffer(MemorySpace::Global, element, BOTH, |f, b| ignore(f.atomic_load(b, 0)));
        if [DataType::U32, DataType::I32, DataType::U64].contains(&element) {
            accept(program);
        } else {
            let expected =
                format!("there are no atomics on the {element} elements of `b`; use u32, i32 or u64");
            refuse_with(program, &expected);
        }
    }
    // The builder's own choice of scope is always right.
    for (space, rmw) in
        [(MemorySpace::Global, true), (MemorySpace::Workgroup, true), (MemorySpace::HostVisible, false)]
    {
        accept(with_buffer(space, DataType::I32, BOTH, |f, b| {
            let x = f.atomic_load(b, 0);
            f.atomic_store(b, 1, x);
        }));
        for op in [RmwOp::Add, RmwOp::Exchange] {
            let program = with_buffer(space, DataType::U64, BOTH, |f, b| ignore(f.atomic_rmw(op, b, 0, 1)));
            if rmw {
                accept(program);
            } else {
                refuse(
                    program,
                    &["entry main / body[0]: `b` is declared host-visible, so it cannot be changed by a \
                       read-modify-write; use a global buffer: a read-modify-write never crosses the bus"],
                );
            }
        }
        let program =
            with_buffer(space, DataType::U64, BOTH, |f, b| ignore(f.atomic_compare_exchange(b, 0, 1, 2)));
        if rmw {
            accept(program);
        } else {
            refuse_with(program, "cannot be changed by a read-modify-write");
        }
    }
    refuse_with(
        with_buffer(MemorySpace::Uniform, DataType::U32, READ, |f, b| ignore(f.atomic_load(b, 0))),
        "`b` is declared uniform, so it cannot be accessed atomically",
    );
}

#[test]
fn i17_orderings_and_scopes() {
    use MemoryOrdering::{AcqRel, Acquire, Relaxed, Release};
    use MemoryScope::{Device, System, Workgroup};
    for (op, name, orderings, wrong) in [
        (AtomicOp::Load, "load", &[Relaxed, Acquire][..], "a release ordering; use acquire or relaxed"),
        (
            AtomicOp::Store(one()),
            "store",
            &[Relaxed, Release][..],
            "an acquire ordering; use release or relaxed",
        ),
        (add(), "read-modify-write", &[Relaxed, Acquire, Release, AcqRel][..], ""),
        (compare_exchange(), "compare-exchange", &[Relaxed, Acquire, Release, AcqRel][..], ""),
    ] {
        for ordering in [Relaxed, Acquire, Release, AcqRel] {
            let program = atomic(MemorySpace::Global, BOTH, op.clone(), ordering, Device);
            if orderings.contains(&ordering) {
                accept(program);
            } else {
                refuse_with(program, &format!("an atomic {name} cannot have {wrong}"));
            }
        }
        let plain = matches!(op, AtomicOp::Load | AtomicOp::Store(_));
        for space in [MemorySpace::Global, MemorySpace::HostVisible, MemorySpace::Workgroup] {
            for scope in [Workgroup, Device, System] {
                let program = atomic(space, BOTH, op.clone(), Relaxed, scope);
                match (space, scope) {
                    (MemorySpace::HostVisible, _) if !plain => {
                        assert!(vyre_foundation::validate(program).is_err())
                    }
                    (MemorySpace::Workgroup, Device) => refuse_with(
                        program,
                        "`b` is declared in workgroup memory, so it cannot be ordered beyond",
                    ),
                    (MemorySpace::Workgroup, System) => {
                        assert!(vyre_foundation::validate(program).is_err());
                    }
                    (_, System) if !plain => refuse_with(
                        program,
                        &format!("an atomic {name} cannot have system scope; use device scope"),
                    ),
                    _ => drop(accept(program)),
                }
            }
        }
    }
    let with_result = |op, result: bool| {
        with_buffer(MemorySpace::Global, DataType::U32, BOTH, |f, b| {
            let result = result.then(|| f.local("r", super::U32, false).id);
            let index = one();
            f.push(vyre_foundation::Node::Atomic(vyre_foundation::Atomic {
                op,
                buffer: b.id,
                index,
                ordering: Relaxed,
                scope: Device,
                result,
            }));
        })
    };
    accept(with_result(add(), false));
    accept(with_result(add(), true));
    accept(with_result(AtomicOp::Store(one()), false));
    refuse_with(
        with_result(AtomicOp::Store(one()), true),
        "an atomic store cannot have a result; remove it, or use an exchange",
    );
}
