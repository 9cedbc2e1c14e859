//! The wire form: round trips of any program at all, one spelling each, and hostile bytes.

mod any_program;

use any_program::any_program;
use proptest::prelude::*;
use vyre_foundation::wire::{self, WireError};
use vyre_foundation::{
    BinaryOp, BufferAccess, BufferDecl, DataType, Expr, Function, Granularity, Literal, MemorySpace, Node,
    Program, ProgramKind, UnaryOp, VarId,
};

fn function(name: &str, body: Vec<Node>) -> Function {
    Function { name: name.into(), params: 0, results: vec![], locals: vec![], body }
}

fn program(body: Vec<Node>) -> Program {
    Program {
        name: "p".into(),
        kind: ProgramKind::Kernel,
        workgroup_size: [64, 1, 1],
        buffers: vec![],
        externals: vec![],
        functions: vec![],
        entry: function("entry", body),
    }
}

fn trap(value: Literal) -> Program {
    program(vec![Node::Trap(Expr::Literal(value))])
}

/// Blocks inside blocks, `depth` in all.
fn nest(depth: u32) -> Program {
    program((1..depth).fold(vec![Node::Block(vec![])], |body, _| vec![Node::Block(body)]))
}

#[test]
fn the_encoding_is_pinned() {
    let mut p = program(vec![Node::Store {
        buffer: vyre_foundation::BufferId(0),
        index: Expr::Literal(Literal::U32(7)),
        value: Expr::Binary {
            op: BinaryOp::Sub,
            left: Box::new(Expr::Var(VarId(1))),
            right: Box::new(Expr::Literal(Literal::f32(-0.0))),
        },
    }]);
    p.buffers.push(BufferDecl {
        name: "b".into(),
        space: MemorySpace::HostVisible,
        element: DataType::BF16,
        access: BufferAccess::ReadWrite,
        len: 3,
    });
    let expected: &[&[u8]] = &[
        b"VYIR\x01\0",
        b"\x01\0\0\0p\0",                               // name, kernel
        b"\x40\0\0\0\x01\0\0\0\x01\0\0\0",              // workgroup size
        b"\x01\0\0\0\x01\0\0\0b\x01\x06\x02\x03\0\0\0", // buffers
        b"\0\0\0\0",                                    // functions
        b"\0\x05\0\0\0entry\0\0\0\0\0\0\0\0\0\0\0\0",   // form, name, params, results, locals
        b"\x01\0\0\0\x02\0\0\0\0",                      // one node: store to buffer 0
        b"\x00\x01\x07\0\0\0",                          // literal 7u32
        b"\x06\x01\x01\x01\0\0\0\x00\x04\0\0\0\x80",    // subtract, var 1, literal -0.0
    ];
    let bytes = wire::encode(&p).expect("shallow");
    assert_eq!(bytes, expected.concat());
    assert_eq!(wire::decode(&bytes), Ok(p.clone()));
    let hash = blake3::hash(&bytes);
    assert_eq!(wire::digest(&p).expect("shallow").to_string(), hash.to_hex().to_string());
}

/// One program with every tag in it, and the three kinds of program. A failure means that stored programs and
/// digests no longer are what they were: it needs a new version, not a new number here.
#[test]
fn tags_are_pinned() {
    let text = include_str!("files/print/every_tag.vir");
    let every_tag = vyre_foundation::text::parse(text).expect("a program");
    let text = include_str!("files/print/subgroup_tags.vir");
    let subgroup_tags = vyre_foundation::text::parse(text).expect("a program");
    let text = include_str!("files/print/external_tags.vir");
    let external_tags = vyre_foundation::text::parse(text).expect("a program");
    let kinds = [ProgramKind::Item(Granularity::Lane), ProgramKind::Item(Granularity::Workgroup)]
        .map(|kind| Program { kind, ..program(vec![]) });
    for (program, digest) in [
        (&every_tag, "04f592202bc85145d0400d20c9408a88cc38d1573617665a9f6e0f647a2bd196"),
        (&subgroup_tags, "1809b26aae8e0bce4946ec2c45232cded29b3c909c82e5efb64e5601886895c7"),
        (&external_tags, "ecb8b8c6351aa31bde2439393b27abc918c4ada5a1ac706b1fd395a407ee0c34"),
        (&kinds[0], "2e423f874af2a72d4d653afecb9465a8ddeb4ddd2ba8324629aea51606bc41af"),
        (&kinds[1], "615d45e3a6bafa4ae1dbea625c98f3692a769b10bb008b906c90ff7bd862080f"),
    ] {
        assert_eq!(wire::digest(program).expect("shallow").to_string(), digest);
    }
}

#[test]
fn floats_keep_their_bits() {
    let all = [0x8000_0000, 1, 0x807f_ffff, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001, 0xffff_ffff];
    let digests: std::collections::BTreeSet<_> = all
        .iter()
        .map(|&bits| {
            let p = trap(Literal::F32(bits));
            assert_eq!(wire::encode(&p).and_then(|bytes| wire::decode(&bytes)), Ok(p.clone()));
            wire::digest(&p).expect("shallow")
        })
        .collect();
    assert_eq!(digests.len(), all.len());
}

#[test]
fn depth_is_limited_both_ways() {
    let deepest = wire::encode(&nest(wire::MAX_DEPTH)).expect("at the limit");
    assert_eq!(wire::decode(&deepest), Ok(nest(wire::MAX_DEPTH)));
    assert_eq!(wire::encode(&nest(wire::MAX_DEPTH + 1)), Err(WireError::TooDeep));

    let value = (0..wire::MAX_DEPTH)
        .fold(Expr::Var(VarId(0)), |value, _| Expr::Unary { op: UnaryOp::Not, value: Box::new(value) });
    assert_eq!(wire::encode(&program(vec![Node::Trap(value)])), Err(WireError::TooDeep));

    // A body of one block each time: what `encode` of a deeper program would have been.
    let flat = wire::encode(&program(vec![])).expect("flat");
    let prefix = &flat[..flat.len() - 4];
    let mut hostile = prefix.to_vec();
    for _ in 0..100_000 {
        hostile.extend_from_slice(&[1, 0, 0, 0, 0x0b]);
    }
    assert_eq!(wire::decode(&hostile), Err(WireError::TooDeep));
}

#[test]
fn each_refusal_says_where() {
    let good = wire::encode(&trap(Literal::Bool(true))).expect("shallow");
    let (end, tail) = (good.len(), |cut: usize, tail: &[u8]| [&good[..good.len() - cut], tail].concat());
    let table: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "not \"VYIR\""),
        ("magic", b"VYIS".to_vec(), "[56, 59, 49, 53]"),
        ("no version", b"VYIR".to_vec(), "u16 at offset 4 needs 2 bytes, but 0 remain"),
        ("version", b"VYIR\x02\0".to_vec(), "wire version 2, but this build reads version 1"),
        ("truth value", tail(1, &[2]), &format!("0x02 at offset {} is no truth value", end - 1)),
        ("literal", tail(2, &[9]), &format!("0x09 at offset {} is no literal", end - 2)),
        ("subgroup", tail(3, &[0x40]), &format!("0x40 at offset {} is no expression", end - 3)),
        ("node", tail(4, &[0x42]), &format!("0x42 at offset {} is no node", end - 4)),
        ("count", tail(8, &[255; 4]), "needs 4294967295 bytes, but 0 remain"),
        ("trailing", tail(0, &[0, 0]), &format!("2 bytes follow the program, which ends at offset {end}")),
        ("name length", b"VYIR\x01\0\xff\xff\xff\xff".to_vec(), "needs 4294967295 bytes, but 0 remain"),
        ("name", b"VYIR\x01\0\x02\0\0\0\xc3\x28".to_vec(), "name at offset 10 is not UTF-8"),
        ("external function", [&good[..32], &[1; 32]].concat(), "0x01 at offset 32 is no function"),
    ];
    for (what, bytes, expected) in table {
        match wire::decode(bytes) {
            Ok(program) => panic!("{what}: accepted as {program:?}"),
            Err(error) => assert!(error.to_string().contains(expected), "{what}: {error}"),
        }
    }
}

#[test]
fn every_prefix_is_refused() {
    let bytes = wire::encode(&any_program(&[7; 600])).expect("bounded");
    assert!(bytes.len() > 100);
    for len in 0..bytes.len() {
        assert!(wire::decode(&bytes[..len]).is_err(), "prefix of {len} bytes accepted");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_program_round_trips(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let program = any_program(&bytes);
        let encoded = wire::encode(&program).expect("any_program is bounded");
        prop_assert_eq!(&program.clone(), &program);
        prop_assert_eq!(wire::decode(&encoded), Ok(program));
    }

    /// A mutation is refused, or is the one encoding of some other program.
    #[test]
    fn mutations_are_refused_or_canonical(
        bytes in prop::collection::vec(any::<u8>(), 0..800),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..4),
    ) {
        let mut encoded = wire::encode(&any_program(&bytes)).expect("any_program is bounded");
        for (at, byte, how) in edits {
            let at = at.index(encoded.len());
            match how {
                0 => encoded[at] = byte,
                1 => encoded[at] ^= 1 << (byte % 8),
                2 => encoded.truncate(at.max(1)),
                _ => encoded.insert(at, byte),
            }
        }
        if let Ok(program) = wire::decode(&encoded) {
            prop_assert_eq!(wire::encode(&program), Ok(encoded));
        }
    }
}
