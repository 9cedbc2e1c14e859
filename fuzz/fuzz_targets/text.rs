//! Any text: parsing never panics, and printing what was parsed is a fixed point that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vyre_foundation::{text, wire};

fuzz_target!(|source: &str| {
    let Ok(program) = text::parse(source) else { return };
    let printed = text::print(&program);
    let again = text::parse(&printed).expect("what the printer wrote parses");
    assert_eq!(again, program, "printing changed the program");
    let bytes = wire::encode(&program).expect("the parser makes nothing that the wire form cannot hold");
    assert_eq!(wire::decode(&bytes).as_ref(), Ok(&program));
});
