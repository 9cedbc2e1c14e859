//! A parent that is answered anything: it is an answer or it is not, and the error in it prints.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(error) = vyre_worker::fuzzing::answer(bytes) {
        assert!(!error.to_string().is_empty());
    }
});
