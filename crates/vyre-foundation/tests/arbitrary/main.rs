//! The generator of valid programs, and what it is good for: the validator on programs that are nearly valid,
//! and the uniformity analysis against the run of programs.

#[path = "../any_program/mod.rs"]
mod any_program;
mod machine;
mod uniformity;

use std::collections::HashMap;

use any_program::any_program;
use machine::{Access, GROUPS, Kind, LANES, run};
use proptest::prelude::*;
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::{MemorySpace, Program, text, validate, wire};

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
    #![proptest_config(config(1000))]

    #[test]
    fn arbitrary_programs_have_no_races(bytes in bytes(800), seed: u64) {
        check_races(&arbitrary_program(&bytes), seed);
    }
}

/// No two invocations may touch an element, unless both only read it, or count in it by one operation, or
/// a barrier lies in between.
fn check_races(program: &Program, seed: u64) {
    let lanes = program.workgroup_size.iter().product::<u32>().min(LANES);
    type Touched = HashMap<(u32, u32), Vec<(u32, u32, Access)>>;
    let mut touched = Touched::new();
    for (group, lane) in (0..GROUPS).flat_map(|group| (0..lanes).map(move |lane| (group, lane))) {
        for access in run(program, seed, group, lane).accesses {
            let accesses = touched.entry((access.buffer, access.index)).or_default();
            let same = |&(g, l, other): &(u32, u32, Access)| {
                (g, l, other.kind, other.phase, other.grid_phase)
                    == (group, lane, access.kind, access.phase, access.grid_phase)
            };
            if !accesses.iter().any(same) {
                accesses.push((group, lane, access));
            }
        }
    }
    for accesses in touched.values() {
        for (index, &(group, lane, a)) in accesses.iter().enumerate() {
            for &(other_group, other_lane, b) in &accesses[..index] {
                let space = program.buffers[a.buffer as usize].space;
                let apart = space == MemorySpace::Workgroup && group != other_group;
                let ordered = a.grid_phase != b.grid_phase || group == other_group && a.phase != b.phase;
                let harmless = a.kind == b.kind && matches!(a.kind, Kind::Load | Kind::Count(_));
                let one = (group, lane) == (other_group, other_lane);
                assert!(
                    one || apart || ordered || harmless,
                    "{a:?} races with {b:?} in\n{}",
                    text::print(program)
                );
            }
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
                 RoundEven Sqrt CountOnes LeadingZeros TrailingZeros Mul Div Rem Shl Shr Eq Ne Lt Le Gt Ge X Y Z \
                 BroadcastFirst Broadcast Shuffle ShuffleXor Reduce InclusiveScan ExclusiveScan Ballot Any All \
                 SubgroupSize SubgroupLane SubgroupId";
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
