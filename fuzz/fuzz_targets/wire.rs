//! Any bytes, bytes behind a right header, and damaged encodings of valid programs: decoding never panics,
//! what is accepted has exactly one encoding, and the validator copes with whatever the wire form can hold.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::{text, validate, wire};

fn check(bytes: &[u8]) {
    let Ok(program) = wire::decode(bytes) else { return };
    let again = wire::encode(&program).expect("a decoded program is shallow enough to encode");
    assert_eq!(again, bytes, "a second spelling was accepted");
    let _ = text::print(&program);
    let _ = validate(program);
}

fuzz_target!(|input: &[u8]| {
    match input {
        [0, bytes @ ..] => check(bytes),
        // Random bytes seldom begin with the magic.
        [1, bytes @ ..] => check(&[&wire::MAGIC, &wire::VERSION.to_le_bytes()[..], bytes].concat()),
        // Each triple of the damage is a place and a value.
        [length, rest @ ..] => {
            let (damage, seed) = rest.split_at(rest.len().min(usize::from(*length % 16) * 3));
            let program = arbitrary_program(seed);
            let mut bytes = wire::encode(&program).expect("a valid program encodes");
            assert_eq!(wire::decode(&bytes).as_ref(), Ok(&program));
            for [low, high, value] in damage.as_chunks::<3>().0 {
                let at = usize::from(u16::from_le_bytes([*low, *high])) % bytes.len();
                bytes[at] = *value;
            }
            check(&bytes);
        }
        [] => check(&[]),
    }
});
