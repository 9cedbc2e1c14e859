//! External functions that several backends have: one signature for all of them, and what they compute.
//!
//! A call works on the buffers as bound: what lies past the end of one loads as zero and is not stored, as
//! everywhere in the IR.

use std::fmt;

use crate::ir::external::write_signature;
use crate::ir::{BufferAccess, External, ExternalBuffer};
use crate::types::DataType::{F16, F32};
use crate::types::ScalarType;

/// The signature of an external function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// Its name.
    pub name: &'static str,
    /// Types of the scalar parameters, in order.
    pub params: &'static [ScalarType],
    /// The buffers it takes, in order.
    pub buffers: &'static [ExternalBuffer],
    /// Types of the values it returns, in order.
    pub results: &'static [ScalarType],
}

impl Signature {
    /// The declaration of the function in a program.
    pub fn declare(&self) -> External {
        External {
            name: self.name.to_owned(),
            params: self.params.to_vec(),
            buffers: self.buffers.to_vec(),
            results: self.results.to_vec(),
        }
    }

    /// Whether this is what a program declares.
    pub fn is(&self, declared: &External) -> bool {
        let External { name, params, buffers, results } = declared;
        name == self.name && params == self.params && buffers == self.buffers && results == self.results
    }
}

/// As in the text form.
impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        write_signature(f, self.params, self.buffers, self.results)
    }
}

/// `m, n, k, lda, ldb, ldc: u32`, `offset_a, offset_b, offset_c: u64`, `alpha, beta: f32`.
const GEMM_PARAMS: &[ScalarType] = &{
    use ScalarType::{F32, U32, U64};
    [U32, U32, U32, U32, U32, U32, U64, U64, U64, F32, F32]
};

const READ_F16: ExternalBuffer = ExternalBuffer { element: F16, access: BufferAccess::Read };

/// `C = alpha * A * B + beta * C`, with A (m x k) and B (k x n) in `f16` and C (m x n) in `f32`.
///
/// Scalars, in order: `m, n, k, lda, ldb, ldc` (`u32`); `offset_a, offset_b, offset_c` (`u64`), the element at
/// which each matrix begins; `alpha, beta` (`f32`). Buffers: A, B, C.
///
/// * Matrices are row-major, and rows lie `ld` elements apart; an `ld` below the length of a row counts as that
///   length.
/// * The products of a dot product are summed in `f32`; backends may differ in the order. An element of C becomes
///   `fma(alpha, sum, beta * c)`, or `alpha * sum` where beta is 0: C is not read then.
/// * With alpha 0 or k 0 the sum is 0, and A and B are not read.
/// * The outcome is that of exact index arithmetic, never wrapped to 32 or 64 bits.
pub const GEMM_F16: Signature = Signature {
    name: "gemm_f16",
    params: GEMM_PARAMS,
    buffers: &[READ_F16, READ_F16, ExternalBuffer { element: F32, access: BufferAccess::ReadWrite }],
    results: &[],
};

/// [`GEMM_F16`] with C in `f16`, rounded once from `f32`.
pub const GEMM_F16_F16: Signature = Signature {
    name: "gemm_f16_f16",
    buffers: &[READ_F16, READ_F16, ExternalBuffer { element: F16, access: BufferAccess::ReadWrite }],
    ..GEMM_F16
};
