//! Programs of any shape, valid or not, made from bytes: each choice takes the next one, and past the end
//! every choice is the first. So shrinking the bytes shrinks the program.

use vyre_foundation::{
    Atomic, AtomicOp, Axis, BinaryOp, BufferAccess, BufferDecl, BufferId, Builtin, DataType, Expr, External,
    ExternalBuffer, ExternalCall, ExternalId, Function, FunctionId, Granularity, Literal, Local,
    MemoryOrdering, MemoryScope, MemorySpace, Node, Program, ProgramKind, ReduceOp, RmwOp, ScalarType,
    Subgroup, SubgroupOp, SwitchCase, UnaryOp, VarId,
};

/// The program that `bytes` choose: names of any characters, ids that point anywhere.
pub(crate) fn any_program(bytes: &[u8]) -> Program {
    Choices { bytes, of: None }.program()
}

/// The same, but names are names, unique among their kind, and ids point at something.
#[allow(dead_code, reason = "not every test needs both")]
pub(crate) fn any_named_program(bytes: &[u8]) -> Program {
    let (&counts, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let (buffers, functions) = (u32::from(counts % 4) + 1, u32::from(counts / 4 % 4) + 1);
    Choices { bytes, of: Some(Counts { buffers, functions, locals: 1 }) }.program()
}

struct Choices<'a> {
    bytes: &'a [u8],
    /// How many there are to name and to point at, if names and ids are to mean something.
    of: Option<Counts>,
}

#[derive(Clone, Copy)]
struct Counts {
    buffers: u32,
    functions: u32,
    locals: u32,
}

/// External functions, if names and ids are to mean something.
const EXTERNALS: u32 = 2;

/// Deep enough to nest everything in everything, far below the limit of the wire form.
const DEPTH: u32 = 6;

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        first
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()]
    }

    fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let len = self.byte() % 5;
        (0..len).map(|_| element(self)).collect()
    }

    fn u32(&mut self) -> u32 {
        match self.byte() {
            small @ 0..200 => u32::from(small % 8),
            _ => u32::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    fn program(&mut self) -> Program {
        Program {
            name: self.name("p", 0),
            kind: self.pick(&[
                ProgramKind::Kernel,
                ProgramKind::Item(Granularity::Lane),
                ProgramKind::Item(Granularity::Workgroup),
            ]),
            workgroup_size: [self.u32(), self.u32(), self.u32()],
            buffers: self.several(self.of.map(|of| of.buffers), |c, index| BufferDecl {
                name: c.name("b", index),
                space: c.pick(&[
                    MemorySpace::Global,
                    MemorySpace::HostVisible,
                    MemorySpace::Workgroup,
                    MemorySpace::Uniform,
                ]),
                element: c.pick(&DataType::ALL),
                access: c.pick(&BufferAccess::ALL),
                len: c.u32(),
            }),
            externals: self.several(self.of.map(|_| EXTERNALS), |c, index| External {
                name: c.name("e", index),
                params: c.list(Self::scalar),
                buffers: c.list(|c| ExternalBuffer {
                    element: c.pick(&DataType::ALL),
                    access: c.pick(&BufferAccess::ALL),
                }),
                results: c.list(Self::scalar),
            }),
            functions: self.several(self.of.map(|of| of.functions), |c, index| c.function("f", index)),
            entry: self.function("entry_", 0),
        }
    }

    /// A list of a given length, or of any.
    fn several<T>(&mut self, len: Option<u32>, mut element: impl FnMut(&mut Self, u32) -> T) -> Vec<T> {
        let len = len.unwrap_or_else(|| u32::from(self.byte() % 5));
        (0..len).map(|index| element(self, index)).collect()
    }

    fn id(&mut self, count: impl Fn(Counts) -> u32) -> u32 {
        match self.of {
            Some(of) => u32::from(self.byte()) % count(of),
            None => self.u32(),
        }
    }

    fn buffer(&mut self) -> BufferId {
        BufferId(self.id(|of| of.buffers))
    }

    fn var(&mut self) -> VarId {
        VarId(self.id(|of| of.locals))
    }

    fn name(&mut self, kind: &str, index: u32) -> String {
        if self.of.is_some() {
            return format!("{kind}{index}");
        }
        self.list(|c| c.pick(&['a', 'b', '_', '0', ' ', '"', '\0', '\n', 'é', '\u{10ffff}'])).iter().collect()
    }

    fn scalar(&mut self) -> ScalarType {
        self.pick(&ScalarType::ALL)
    }

    fn function(&mut self, kind: &str, index: u32) -> Function {
        let name = self.name(kind, index);
        let locals = self.of.is_some().then(|| u32::from(self.byte() % 8) + 1);
        if let (Some(of), Some(locals)) = (&mut self.of, locals) {
            of.locals = locals;
        }
        let params = self.id(|of| of.locals + 1);
        Function {
            name,
            params,
            results: self.list(Self::scalar),
            locals: self.several(locals, |c, index| Local {
                name: c.name("v", index),
                ty: c.scalar(),
                mutable: c.byte() % 4 == 3,
            }),
            body: self.body(0),
        }
    }

    fn body(&mut self, depth: u32) -> Vec<Node> {
        self.list(|c| c.node(depth))
    }

    fn node(&mut self, depth: u32) -> Node {
        let var = self.var();
        let buffer = self.buffer();
        // Leaves come first, so that deep nodes are cut to one of them.
        let choice = self.byte() % if depth < DEPTH { 18 } else { 13 };
        let inner = depth + 1;
        match choice {
            0 => Node::Break,
            1 => Node::Continue,
            2 => Node::WorkgroupBarrier,
            3 => Node::GridBarrier,
            4 => Node::Let { var, value: self.expr(inner) },
            5 => Node::Assign { var, value: self.expr(inner) },
            6 => Node::Store { buffer, index: self.expr(inner), value: self.expr(inner) },
            7 => Node::Atomic(self.atomic(buffer, inner)),
            8 => Node::Return(self.list(|c| c.expr(inner))),
            9 => Node::Trap(self.expr(inner)),
            10 => Node::Call {
                results: self.list(|c| c.var()),
                function: FunctionId(self.id(|of| of.functions)),
                args: self.list(|c| c.expr(inner)),
            },
            11 => {
                Node::Subgroup(Subgroup { op: self.subgroup_op(inner), value: self.expr(inner), result: var })
            }
            12 => Node::CallExternal(ExternalCall {
                external: ExternalId(self.id(|_| EXTERNALS)),
                args: self.list(|c| c.expr(inner)),
                buffers: self.list(Self::buffer),
                results: self.list(|c| c.var()),
            }),
            13 => {
                Node::If { condition: self.expr(inner), then: self.body(inner), otherwise: self.body(inner) }
            }
            14 => Node::Switch {
                selector: self.expr(inner),
                cases: self.list(|c| SwitchCase { values: c.list(Self::u32), body: c.body(inner) }),
                default: self.body(inner),
            },
            15 => Node::For {
                var,
                start: self.expr(inner),
                end: self.expr(inner),
                step: self.u32(),
                body: self.body(inner),
            },
            16 => Node::While { condition: self.expr(inner), body: self.body(inner) },
            _ => Node::Block(self.body(inner)),
        }
    }

    fn atomic(&mut self, buffer: BufferId, depth: u32) -> Atomic {
        Atomic {
            op: match self.byte() % 4 {
                0 => AtomicOp::Load,
                1 => AtomicOp::Store(self.expr(depth)),
                2 => {
                    let op = self.pick(&[
                        RmwOp::Add,
                        RmwOp::Sub,
                        RmwOp::And,
                        RmwOp::Or,
                        RmwOp::Xor,
                        RmwOp::Min,
                        RmwOp::Max,
                        RmwOp::Exchange,
                    ]);
                    AtomicOp::Rmw(op, self.expr(depth))
                }
                _ => AtomicOp::CompareExchange { expected: self.expr(depth), replacement: self.expr(depth) },
            },
            buffer,
            index: self.expr(depth),
            ordering: self.pick(&[
                MemoryOrdering::Relaxed,
                MemoryOrdering::Acquire,
                MemoryOrdering::Release,
                MemoryOrdering::AcqRel,
            ]),
            scope: self.pick(&[MemoryScope::Workgroup, MemoryScope::Device, MemoryScope::System]),
            result: (self.byte() % 2 == 1).then(|| self.var()),
        }
    }

    fn subgroup_op(&mut self, depth: u32) -> SubgroupOp {
        let op = self.pick(&[
            ReduceOp::Add,
            ReduceOp::Min,
            ReduceOp::Max,
            ReduceOp::And,
            ReduceOp::Or,
            ReduceOp::Xor,
        ]);
        match self.byte() % 10 {
            0 => SubgroupOp::BroadcastFirst,
            1 => SubgroupOp::Broadcast(self.expr(depth)),
            2 => SubgroupOp::Shuffle(self.expr(depth)),
            3 => SubgroupOp::ShuffleXor(self.expr(depth)),
            4 => SubgroupOp::Reduce(op),
            5 => SubgroupOp::InclusiveScan(op),
            6 => SubgroupOp::ExclusiveScan(op),
            7 => SubgroupOp::Ballot,
            8 => SubgroupOp::Any,
            _ => SubgroupOp::All,
        }
    }

    fn literal(&mut self) -> Literal {
        match self.byte() % 5 {
            0 => Literal::U32(self.u32()),
            1 => Literal::Bool(self.byte() % 2 == 1),
            2 => Literal::I32(self.u32() as i32),
            3 => Literal::U64(self.u64()),
            _ => Literal::F32(match self.byte() % 3 {
                0 => self.u32(),
                1 => {
                    self.pick(&[0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0x7f80_0001, 0x0080_0000])
                }
                _ => (self.u32() as f32).to_bits(),
            }),
        }
    }

    fn expr(&mut self, depth: u32) -> Expr {
        let choice = self.byte() % if depth < DEPTH { 11 } else { 4 };
        let mut inner = || Box::new(self.expr(depth + 1));
        match choice {
            0 => Expr::Literal(self.literal()),
            1 => Expr::Var(self.var()),
            2 => Expr::BufferLen(self.buffer()),
            3 => {
                let axis = self.pick(&[Axis::X, Axis::Y, Axis::Z]);
                Expr::Builtin(match self.byte() % 8 {
                    0 => Builtin::GlobalId(axis),
                    1 => Builtin::WorkgroupId(axis),
                    2 => Builtin::LocalId(axis),
                    3 => Builtin::NumWorkgroups(axis),
                    4 => Builtin::WorkgroupSize(axis),
                    5 => Builtin::SubgroupSize,
                    6 => Builtin::SubgroupLane,
                    _ => Builtin::SubgroupId,
                })
            }
            4 => Expr::Load { index: inner(), buffer: self.buffer() },
            5 => Expr::Unary {
                value: inner(),
                op: self.pick(&[
                    UnaryOp::Neg,
                    UnaryOp::Not,
                    UnaryOp::Abs,
                    UnaryOp::Floor,
                    UnaryOp::Ceil,
                    UnaryOp::Trunc,
                    UnaryOp::RoundEven,
                    UnaryOp::Sqrt,
                    UnaryOp::CountOnes,
                    UnaryOp::LeadingZeros,
                    UnaryOp::TrailingZeros,
                ]),
            },
            6 => Expr::Binary {
                left: inner(),
                right: inner(),
                op: self.pick(&[
                    BinaryOp::Add,
                    BinaryOp::Sub,
                    BinaryOp::Mul,
                    BinaryOp::Div,
                    BinaryOp::Rem,
                    BinaryOp::Min,
                    BinaryOp::Max,
                    BinaryOp::And,
                    BinaryOp::Or,
                    BinaryOp::Xor,
                    BinaryOp::Shl,
                    BinaryOp::Shr,
                    BinaryOp::Eq,
                    BinaryOp::Ne,
                    BinaryOp::Lt,
                    BinaryOp::Le,
                    BinaryOp::Gt,
                    BinaryOp::Ge,
                ]),
            },
            7 => Expr::Select { condition: inner(), if_true: inner(), if_false: inner() },
            8 => Expr::Cast { value: inner(), to: self.scalar() },
            9 => Expr::Bitcast { value: inner(), to: self.scalar() },
            _ => Expr::Fma { a: inner(), b: inner(), c: inner() },
        }
    }
}
