//! External functions: which ones there are, and what they are called in `kernels/vyre_externals.h`.

use vyre_foundation::Program;
use vyre_foundation::externals::{GEMM_F16, GEMM_F16_F16, Signature};

use super::EmitError;

/// Each with its name in C++, where overloading tells the element types apart.
const FUNCTIONS: &[(Signature, &str)] = &[(GEMM_F16, "vyre_gemm"), (GEMM_F16_F16, "vyre_gemm")];

/// Refuses what this backend does not have.
pub(super) fn check(program: &Program) -> Result<(), EmitError> {
    let known = |declared| FUNCTIONS.iter().any(|(signature, _)| signature.is(declared));
    match program.externals.iter().find(|declared| !known(declared)) {
        Some(unknown) => Err(EmitError::NoExternal { declared: unknown.to_string() }),
        None => Ok(()),
    }
}

/// The function that a declared one is in C++.
pub(super) fn function(name: &str) -> Option<&'static str> {
    FUNCTIONS.iter().find(|(signature, _)| signature.name == name).map(|(_, function)| *function)
}

/// All signatures, for messages.
pub(super) fn known() -> String {
    let shown: Vec<String> = FUNCTIONS.iter().map(|(signature, _)| format!("`{signature}`")).collect();
    shown.join(" and ")
}
