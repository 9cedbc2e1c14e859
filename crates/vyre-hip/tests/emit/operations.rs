//! Every operation on every type, over values at the edges, against `vyre_foundation::semantics`.

use std::fmt::Write as _;

use vyre_foundation::builder::ProgramBuilder;
use vyre_foundation::semantics::{
    binary, binary_type, bitcast, bitcast_type, cast, fma, narrow, unary, unary_type, widen,
};
use vyre_foundation::{
    Axis, BinaryOp, BufferAccess, BufferDecl, BufferId, Builtin, DataType, Expr, Literal, Local, MemorySpace,
    Node, ScalarType, UnaryOp, ValidatedProgram, VarId, text, validate,
};
use vyre_hip::emit::GridBarriers;

use crate::host::Host;

const UNARY: [UnaryOp; 11] = [
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
];

const BINARY: [BinaryOp; 18] = [
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
];

/// Values at which something changes, and some between.
fn edges(ty: ScalarType) -> Vec<Literal> {
    let words = [
        0_u32,
        1,
        2,
        3,
        7,
        8,
        23,
        24,
        31,
        32,
        33,
        63,
        64,
        65,
        255,
        1000,
        65535,
        65536,
        0xff_ffff,
        0x100_0000,
        0x100_0001,
        0x7fff_fffe,
        0x7fff_ffff,
        0x8000_0000,
        0x8000_0001,
        0xaaaa_aaaa,
        0xffff_ff7f,
        0xffff_ff80,
        0xffff_ff81,
        0xffff_fffe,
        0xffff_ffff,
    ];
    match ty {
        ScalarType::Bool => vec![Literal::Bool(false), Literal::Bool(true)],
        ScalarType::U32 => words.map(Literal::U32).to_vec(),
        ScalarType::I32 => words.map(|word| Literal::I32(word as i32)).to_vec(),
        ScalarType::U64 => {
            let wide = words.iter().flat_map(|&word| {
                let word = u64::from(word);
                [word, word << 32, word << 20, u64::MAX - word, (word << 32) | 1, (word << 40) + (1 << 39)]
            });
            wide.map(Literal::U64).collect()
        }
        ScalarType::F32 => floats(),
    }
}

fn floats() -> Vec<Literal> {
    let values = [
        0.0_f32,
        0.25,
        0.5,
        0.75,
        1.0,
        1.5,
        2.0,
        2.5,
        3.0,
        3.5,
        4.0,
        7.9,
        0.1,
        1.0e10,
        3.3e-20,
        8388607.5,
        8388608.0,
        8388609.0,
        16777216.0,
        16777217.0,
        2147483500.0,
        2147483600.0,
        2147483648.0,
        4294967000.0,
        4294967296.0,
        9.223372e18,
        1.8446743e19,
        1.8446744e19,
        1.0e38,
        f32::MAX,
        f32::INFINITY,
        f32::MIN_POSITIVE,
        f32::EPSILON,
        f32::NAN,
    ];
    let mut bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    // Subnormals, NaNs with payloads, the neighbours of one, and numbers without a plan.
    bits.extend([1, 2, 0x7f_ffff, 0x0080_0001, 0x7f80_0001, 0x7fc1_2345, 0x3f7f_ffff, 0x3f80_0001]);
    let mut seed = 0x1234_5678_u32;
    bits.extend((0..30).map(|_| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed ^ seed >> 15
    }));
    let negative: Vec<u32> = bits.iter().map(|bits| bits ^ 0x8000_0000).collect();
    bits.extend(negative);
    bits.into_iter().map(Literal::F32).collect()
}

fn bits(value: Literal) -> u64 {
    match value {
        Literal::Bool(value) => u64::from(value),
        Literal::U32(value) | Literal::F32(value) => u64::from(value),
        Literal::I32(value) => u64::from(value as u32),
        Literal::U64(value) => value,
    }
}

fn var(index: u32) -> Expr {
    Expr::Var(VarId(index))
}

fn boxed(index: u32) -> Box<Expr> {
    Box::new(var(index))
}

type Meaning = Box<dyn Fn(&[Literal]) -> Literal>;

/// Expressions over the same operands, and what they mean. The locals 1, 2 and 3 are the operands.
struct Group {
    name: String,
    operands: Vec<ScalarType>,
    expressions: Vec<(String, Expr, Meaning)>,
}

impl Group {
    fn new(name: String, operands: Vec<ScalarType>) -> Group {
        Group { name, operands, expressions: Vec::new() }
    }

    fn add(&mut self, expr: Expr, meaning: impl Fn(&[Literal]) -> Literal + 'static) {
        self.expressions.push((format!("{expr:?}"), expr, Box::new(meaning)));
    }

    fn program(&self) -> ValidatedProgram {
        let mut buffers = Vec::new();
        let mut locals = vec![("i", ScalarType::U32)];
        let global = |name: &str, element, access| BufferDecl {
            name: name.to_owned(),
            space: MemorySpace::Global,
            element,
            access,
            len: 0,
        };
        let mut body = vec![Node::Let { var: VarId(0), value: Expr::Builtin(Builtin::GlobalId(Axis::X)) }];
        for (index, (&ty, name)) in (0..).zip(self.operands.iter().zip(["x", "y", "z"])) {
            let element = match ty {
                ScalarType::Bool | ScalarType::U32 => DataType::U32,
                ScalarType::I32 => DataType::I32,
                ScalarType::U64 => DataType::U64,
                ScalarType::F32 => DataType::F32,
            };
            buffers.push(global(&format!("of_{name}"), element, BufferAccess::Read));
            let loaded = Expr::Load { buffer: BufferId(index), index: boxed(0) };
            let value = if ty == ScalarType::Bool {
                Expr::Cast { to: ScalarType::Bool, value: Box::new(loaded) }
            } else {
                loaded
            };
            locals.push((name, ty));
            body.push(Node::Let { var: VarId(index + 1), value });
        }
        let output = BufferId(buffers.len() as u32);
        buffers.push(global("results", DataType::U64, BufferAccess::Write));
        let zeros: Vec<Literal> =
            self.operands.iter().map(|&ty| vyre_foundation::semantics::zero(ty)).collect();
        for (index, (_, expr, meaning)) in (0..).zip(&self.expressions) {
            let place = Expr::Binary {
                op: BinaryOp::Add,
                left: Box::new(Expr::Binary {
                    op: BinaryOp::Mul,
                    left: boxed(0),
                    right: Box::new(Expr::Literal(Literal::U32(self.expressions.len() as u32))),
                }),
                right: Box::new(Expr::Literal(Literal::U32(index))),
            };
            // As bits, so that nothing else is computed on the way.
            let value = match meaning(&zeros).ty() {
                ScalarType::F32 | ScalarType::I32 => {
                    Expr::Bitcast { to: ScalarType::U32, value: Box::new(expr.clone()) }
                }
                _ => expr.clone(),
            };
            let value = Expr::Cast { to: ScalarType::U64, value: Box::new(value) };
            body.push(Node::Store { buffer: output, index: place, value });
        }
        let locals = locals
            .into_iter()
            .map(|(name, ty)| Local { name: name.to_owned(), ty, mutable: false })
            .collect();
        let mut program = ProgramBuilder::kernel(self.name.clone()).workgroup_size([1, 1, 1]).finish();
        program.buffers = buffers;
        program.entry.locals = locals;
        program.entry.body = body;
        validate(program).unwrap_or_else(|errors| panic!("{}: {errors}", self.name))
    }

    /// Every combination of edge values.
    fn inputs(&self) -> Vec<Vec<Literal>> {
        let mut inputs = vec![Vec::new()];
        for &ty in &self.operands {
            let mut values = edges(ty);
            if self.operands.len() > 2 {
                values = values.into_iter().step_by(3).collect();
            }
            let with = |input: &Vec<Literal>| {
                let input = input.clone();
                values.clone().into_iter().map(move |value| [input.clone(), vec![value]].concat())
            };
            inputs = inputs.iter().flat_map(with).collect();
        }
        inputs
    }

    fn check(&self, host: &Host) -> String {
        let inputs = self.inputs();
        let size = |ty| if ty == ScalarType::U64 { 8 } else { 4 };
        let mut sizes: Vec<usize> = self.operands.iter().map(|&ty| size(ty)).collect();
        let column = |(index, size): (usize, &usize)| {
            inputs.iter().flat_map(|input| bits(input[index]).to_le_bytes()[..*size].to_vec()).collect()
        };
        let mut data: Vec<Vec<u8>> = sizes.iter().enumerate().map(column).collect();
        data.push(vec![0; inputs.len() * self.expressions.len() * 8]);
        sizes.push(8);
        host.run(&self.name, &mut data, &sizes, [inputs.len() as u32, 1, 1], false);
        let (found, _) = data.last().unwrap().as_chunks::<8>();
        let mut wrong = String::new();
        let results = found.chunks(self.expressions.len());
        assert_eq!(results.len(), inputs.len());
        for (input, results) in inputs.iter().zip(results) {
            for ((name, expr, meaning), found) in self.expressions.iter().zip(results) {
                let (found, expected) = (u64::from_le_bytes(*found), meaning(input));
                // Only moves keep the bits of a NaN.
                let moves = matches!(
                    expr,
                    Expr::Unary { op: UnaryOp::Neg | UnaryOp::Abs, .. }
                        | Expr::Bitcast { .. }
                        | Expr::Literal(_)
                );
                let nan = |value: u64| f32::from_bits(value as u32).is_nan();
                let alike = expected.ty() == ScalarType::F32 && !moves && nan(found) && nan(bits(expected));
                if found != bits(expected) && !alike && wrong.lines().count() < 40 {
                    writeln!(wrong, "{name} of {input:x?}: {found:#x}, not {expected:x?}").unwrap();
                }
            }
        }
        wrong
    }
}

fn unary_group(ty: ScalarType) -> Group {
    let mut group = Group::new(format!("unary_{ty}"), vec![ty]);
    for op in UNARY.into_iter().filter(|&op| unary_type(op, ty).is_some()) {
        group.add(Expr::Unary { op, value: boxed(1) }, move |x| unary(op, x[0]).unwrap());
    }
    for to in ScalarType::ALL {
        group.add(Expr::Cast { to, value: boxed(1) }, move |x| cast(to, x[0]));
        if bitcast_type(to, ty).is_some() {
            group.add(Expr::Bitcast { to, value: boxed(1) }, move |x| bitcast(to, x[0]).unwrap());
        }
    }
    // Literals are written in their own ways, alone and to the right of an operator.
    for literal in edges(ty) {
        group.add(Expr::Literal(literal), move |_| literal);
        for op in [BinaryOp::Div, BinaryOp::Rem] {
            with_literal(&mut group, op, ty, literal);
        }
    }
    for literal in edges(ScalarType::U32) {
        for op in [BinaryOp::Shl, BinaryOp::Shr] {
            with_literal(&mut group, op, ty, literal);
        }
    }
    group
}

fn with_literal(group: &mut Group, op: BinaryOp, ty: ScalarType, right: Literal) {
    if binary_type(op, ty, right.ty()).is_some() {
        let expr = Expr::Binary { op, left: boxed(1), right: Box::new(Expr::Literal(right)) };
        group.add(expr, move |x| binary(op, x[0], right).unwrap());
    }
}

fn binary_group(left: ScalarType, right: ScalarType, name: &str) -> Group {
    let mut group = Group::new(format!("{name}_{left}"), vec![left, right]);
    for op in BINARY.into_iter().filter(|&op| binary_type(op, left, right).is_some()) {
        group.add(Expr::Binary { op, left: boxed(1), right: boxed(2) }, move |x| {
            binary(op, x[0], x[1]).unwrap()
        });
    }
    group
}

#[test]
fn operations_mean_what_the_semantics_say() {
    let mut groups: Vec<Group> = ScalarType::ALL.into_iter().map(unary_group).collect();
    groups.extend(ScalarType::ALL.into_iter().map(|ty| binary_group(ty, ty, "binary")));
    let shifted = [ScalarType::I32, ScalarType::U64];
    groups.extend(shifted.into_iter().map(|ty| binary_group(ty, ScalarType::U32, "shift")));
    let mut fused = Group::new("fused".to_owned(), vec![ScalarType::F32; 3]);
    fused.add(Expr::Fma { a: boxed(1), b: boxed(2), c: boxed(3) }, |x| fma(x[0], x[1], x[2]).unwrap());
    groups.push(fused);

    let programs: Vec<_> = groups.iter().map(Group::program).collect();
    let Some(host) = Host::new(&programs, GridBarriers::Native) else { return };
    let wrong: String = groups.iter().map(|group| group.check(&host)).collect();
    assert!(wrong.is_empty(), "{wrong}");
}

const CONVERSIONS: [&str; 4] = [
    "program widen_f16 kernel workgroup(1, 1, 1) buffer a: global f16 read min 0 buffer b: global f32 write min 0",
    "program widen_bf16 kernel workgroup(1, 1, 1) buffer a: global bf16 read min 0 buffer b: global f32 write min 0",
    "program narrow_f16 kernel workgroup(1, 1, 1) buffer a: global f32 read min 0 buffer b: global f16 write min 0",
    "program narrow_bf16 kernel workgroup(1, 1, 1) buffer a: global f32 read min 0 buffer b: global bf16 write min 0",
];

/// All 16-bit floats, and of 32 bits those beside and between them.
#[test]
fn elements_are_widened_and_narrowed_as_the_semantics_say() {
    let parse = |head: &&str| {
        let source = format!("{head}\nentry {{ b[global_id.x] = a[global_id.x]; }}");
        validate(text::parse(&source).unwrap()).unwrap()
    };
    let programs: Vec<_> = CONVERSIONS.iter().map(parse).collect();
    let Some(host) = Host::new(&programs, GridBarriers::Native) else { return };
    for (program, element) in programs.iter().zip([DataType::F16, DataType::BF16].repeat(2)) {
        let name = &program.program().name;
        let halves = (0..=u16::MAX).map(|half| (half, bits(widen(element, u64::from(half))) as u32));
        let (input, expected, size): (Vec<u8>, Vec<Literal>, usize) = if name.starts_with("widen") {
            let input = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            (input, halves.map(|(_, wide)| Literal::F32(wide)).collect(), 2)
        } else {
            // Above and below a number, and the point half way to the next one, with its neighbours.
            let step = if element == DataType::F16 { 1 << 12 } else { 1 << 15 };
            let wide: Vec<u32> = halves
                .flat_map(|(_, wide)| {
                    [
                        wide,
                        wide ^ 1,
                        wide.wrapping_add(step - 1),
                        wide.wrapping_add(step),
                        wide.wrapping_add(step + 1),
                    ]
                })
                .collect();
            let narrowed =
                wide.iter().map(|&wide| Literal::U64(narrow(element, Literal::F32(wide)).unwrap()));
            (wide.iter().flat_map(|wide| wide.to_le_bytes()).collect(), narrowed.collect(), 4)
        };
        let other = 6 - size;
        let mut data = vec![input, vec![0; expected.len() * other]];
        host.run(name, &mut data, &[size, other], [expected.len() as u32, 1, 1], false);
        let is_nan = |bits: u64| match (other, element) {
            (4, _) => f32::from_bits(bits as u32).is_nan(),
            (_, DataType::F16) => bits & 0x7fff > 0x7c00,
            _ => bits & 0x7fff > 0x7f80,
        };
        for (index, (found, expected)) in data[1].chunks(other).zip(&expected).enumerate() {
            let found = found.iter().rev().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            let alike = is_nan(found) && is_nan(bits(*expected));
            assert!(alike || found == bits(*expected), "{name}[{index}]: {found:#x}, not {expected:x?}");
        }
    }
}
