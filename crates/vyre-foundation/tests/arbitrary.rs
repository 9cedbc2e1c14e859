//! The generator of valid programs; the validator on programs that are nearly valid, or nothing of the kind.

mod any_program;

use any_program::any_program;
use proptest::prelude::*;
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::{Program, validate, wire};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..most)
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn arbitrary_programs_are_valid(bytes in bytes(800)) {
        if let Err(errors) = validate(arbitrary_program(&bytes)) {
            prop_assert!(false, "{errors}");
        }
    }

    #[test]
    fn the_validator_survives_any_program(bytes in bytes(800)) {
        if let Err(errors) = validate(any_program(&bytes)) {
            prop_assert!(!errors.errors().is_empty());
            prop_assert!(!errors.to_string().is_empty());
        }
    }

    /// One byte of a valid program's encoding changed: mostly one thing wrong, deep inside.
    #[test]
    fn the_validator_survives_near_misses(
        bytes in bytes(400),
        place: prop::sample::Index,
        byte: u8,
    ) {
        let mut encoding = wire::encode(&arbitrary_program(&bytes)).unwrap();
        *place.get_mut(&mut encoding) = byte;
        if let Ok(program) = wire::decode(&encoding)
            && let Err(errors) = validate(program)
        {
            prop_assert!(!errors.to_string().is_empty());
        }
    }
}

proptest! {
    #![proptest_config(config(30))]

    #[test]
    fn many_bytes_make_no_endless_program(bytes in bytes(100_000)) {
        let program = validate(arbitrary_program(&bytes)).unwrap();
        prop_assert!(program.facts().nodes < 100_000);
    }
}

#[test]
fn no_bytes_make_the_least_program() {
    let program = arbitrary_program(&[]);
    assert_eq!((program.buffers.len(), program.functions.len()), (0, 0));
    // The slot of the invocation, and nothing else.
    assert_eq!(program.entry.body.len(), 1);
}

/// Whether the words of the debug form that name each kind of thing all occur in some program.
#[test]
fn every_kind_of_node_is_made() {
    let words = "Kernel Item(Lane) Item(Workgroup) Global HostVisible Workgroup Uniform Read Write ReadWrite U8 U16 \
                 U32 I32 U64 F16 BF16 F32 Bool Let Assign Store Atomic If Switch For While Break Continue Return Block \
                 WorkgroupBarrier GridBarrier Trap Call Load Rmw CompareExchange Add Sub And Or Xor Min Max Exchange \
                 Relaxed Acquire Release AcqRel Device System Literal Var BufferLen Builtin Unary Binary Select Cast \
                 Bitcast Fma GlobalId WorkgroupId LocalId NumWorkgroups WorkgroupSize Neg Not Abs Floor Ceil Trunc \
                 RoundEven Sqrt CountOnes LeadingZeros TrailingZeros Mul Div Rem Shl Shr Eq Ne Lt Le Gt Ge X Y Z";
    let mut missing: Vec<&str> = words.split_whitespace().collect();
    let mut state = 1_u64;
    for _ in 0..2000 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| random(&mut state)).take(500).collect();
        let program: Program = arbitrary_program(&bytes);
        let text = format!("{program:?}");
        let has = |word: &&str| {
            text.match_indices(*word).any(|(at, _)| {
                let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                !letter(text[..at].chars().next_back()) && !letter(text[at + word.len()..].chars().next())
            })
        };
        missing.retain(|word| !has(word));
        if missing.is_empty() {
            return;
        }
    }
    panic!("never made: {missing:?}");
}

/// A byte of a linear congruential generator.
fn random(state: &mut u64) -> u8 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 56) as u8
}
