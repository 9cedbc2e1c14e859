//! Any bytes: decoding never panics, and what is accepted has exactly one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vyre_foundation::{validate, wire};

fuzz_target!(|bytes: &[u8]| {
    let Ok(program) = wire::decode(bytes) else { return };
    let again = wire::encode(&program).expect("a decoded program is shallow enough to encode");
    assert_eq!(again, bytes, "a second spelling was accepted");
    // The validator must cope with whatever the wire form can hold.
    let _ = validate(program);
});
