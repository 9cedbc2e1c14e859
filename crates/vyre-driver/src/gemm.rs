//! The fp16 matrix product that every backend has: what is asked for, and the checks before it runs.

use thiserror::Error;

use crate::error::BackendError;

/// A batch of products `C = alpha * A * B + beta * C`. Everything counts elements.
///
/// Matrices are row-major; A and B are fp16, sums fp32, C is as [`GemmOutput`] says. A row begins `ld` elements
/// behind the one before, problem i of the batch `i * stride` elements behind the first. What lies between the
/// rows is neither read nor written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmProblem {
    /// Rows of A and C.
    pub m: u64,
    /// Columns of B and C.
    pub n: u64,
    /// Columns of A, rows of B.
    pub k: u64,
    /// From one row of A to the next.
    pub lda: u64,
    /// From one row of B to the next.
    pub ldb: u64,
    /// From one row of C to the next.
    pub ldc: u64,
    /// How many problems there are.
    pub batch: u64,
    /// From one A to the next.
    pub stride_a: u64,
    /// From one B to the next.
    pub stride_b: u64,
    /// From one C to the next.
    pub stride_c: u64,
    /// Factor of the product. With 0, A and B are not read.
    pub alpha: f32,
    /// Factor of C. With 0, C is not read.
    pub beta: f32,
}

/// What C holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GemmOutput {
    /// `f32`.
    #[default]
    F32,
    /// `f16`, rounded once from fp32.
    F16,
}

impl GemmOutput {
    /// Bytes of an element.
    pub const fn size(self) -> u64 {
        match self {
            GemmOutput::F32 => 4,
            GemmOutput::F16 => 2,
        }
    }

    /// `f32` or `f16`.
    pub const fn name(self) -> &'static str {
        match self {
            GemmOutput::F32 => "f32",
            GemmOutput::F16 => "f16",
        }
    }
}

/// Why a problem is not computed. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GemmError {
    /// A matrix is shorter than its shape.
    #[error(
        "{matrix} has {len} elements and {shape} need {needed}; pass a longer one, or a smaller shape, leading dimension or stride"
    )]
    Length {
        /// `A`, `B` or `C`.
        matrix: &'static str,
        /// Elements there are.
        len: u64,
        /// Elements there must be.
        needed: u128,
        /// Rows, columns, leading dimension, batch and stride.
        shape: String,
    },
    /// Rows of a matrix overlap.
    #[error(
        "the leading dimension of {matrix} is {got}, and its rows have {columns} elements; pass at least {columns}"
    )]
    LeadingDimension {
        /// `A`, `B` or `C`.
        matrix: &'static str,
        /// What was given.
        got: u64,
        /// Elements of a row.
        columns: u64,
    },
    /// Two problems of the batch write the same elements.
    #[error("the C of {batch} problems overlap: {shape}; pass a stride of at least {needed}")]
    Overlap {
        /// How many problems.
        batch: u64,
        /// Rows, columns, leading dimension, batch and stride.
        shape: String,
        /// The least stride that keeps whole matrices apart.
        needed: u128,
    },
    /// A size in bytes, or a count of operations, leaves 63 bits.
    #[error("{what} leaves 63 bits: m {m}, n {n}, k {k}, batch {batch}; split the problem")]
    Overflow {
        /// What does.
        what: &'static str,
        /// Rows of C.
        m: u64,
        /// Columns of C.
        n: u64,
        /// Products in a sum.
        k: u64,
        /// Problems.
        batch: u64,
    },
}

impl From<GemmError> for BackendError {
    fn from(error: GemmError) -> BackendError {
        BackendError::invalid("problem", error, "a problem that fits its matrices")
    }
}

/// The place of a matrix and of those of the other problems.
struct Extent {
    matrix: &'static str,
    rows: u64,
    columns: u64,
    ld: u64,
    batch: u64,
    stride: u64,
}

impl Extent {
    fn is_empty(&self) -> bool {
        self.rows == 0 || self.columns == 0 || self.batch == 0
    }

    /// Elements from the first to behind the last of one problem.
    fn one(&self) -> u128 {
        u128::from(self.rows.saturating_sub(1)) * u128::from(self.ld) + u128::from(self.columns)
    }

    /// Elements from the first to behind the last of all problems.
    fn all(&self) -> u128 {
        if self.is_empty() {
            return 0;
        }
        (u128::from(self.batch - 1) * u128::from(self.stride)).saturating_add(self.one())
    }

    fn shape(&self) -> String {
        let Extent { matrix, rows, columns, ld, batch, stride } = self;
        let one = format!("{matrix} of {rows} x {columns} with leading dimension {ld}");
        if *batch == 1 { one } else { format!("{batch} {one} and stride {stride}") }
    }
}

impl GemmProblem {
    /// One product of dense matrices, with alpha 1 and beta 0.
    pub fn dense(m: u64, n: u64, k: u64) -> GemmProblem {
        GemmProblem {
            m,
            n,
            k,
            lda: k,
            ldb: n,
            ldc: n,
            batch: 1,
            stride_a: m.saturating_mul(k),
            stride_b: k.saturating_mul(n),
            stride_c: m.saturating_mul(n),
            alpha: 1.0,
            beta: 0.0,
        }
    }

    /// Whether no element of C is written.
    pub fn is_empty(&self) -> bool {
        self.m == 0 || self.n == 0 || self.batch == 0
    }

    /// Whether A and B are read.
    pub fn reads_operands(&self) -> bool {
        self.alpha != 0.0 && self.k != 0 && !self.is_empty()
    }

    /// Elements that A, B and C must have at least: those that are neither read nor written do not count.
    pub fn lengths(&self) -> [u128; 3] {
        let [a, b, c] = self.extents();
        let operand = |extent: Extent| if self.reads_operands() { extent.all() } else { 0 };
        [operand(a), operand(b), c.all()]
    }

    /// Checks the problem against the elements that its matrices have: first lengths, then leading dimensions,
    /// then overflow. A size of zero is no error: C is then scaled, or has no elements.
    ///
    /// # Errors
    ///
    /// The first check that fails, with the shape and what to change.
    pub fn check(&self, len_a: u64, len_b: u64, len_c: u64) -> Result<(), GemmError> {
        for ((extent, needed), len) in self.extents().iter().zip(self.lengths()).zip([len_a, len_b, len_c]) {
            if needed > len.into() {
                let (matrix, shape) = (extent.matrix, extent.shape());
                return Err(GemmError::Length { matrix, len, needed, shape });
            }
        }
        if self.is_empty() {
            return Ok(());
        }
        for extent in self.extents() {
            if extent.ld < extent.columns {
                let Extent { matrix, ld: got, columns, .. } = extent;
                return Err(GemmError::LeadingDimension { matrix, got, columns });
            }
        }
        let [_, _, c] = self.extents();
        // Apart as wholes, or interleaved row by row.
        let apart = u128::from(c.stride) >= c.one();
        let interleaved = c.stride >= c.columns
            && u128::from(c.ld) >= u128::from(c.batch - 1) * u128::from(c.stride) + u128::from(c.columns);
        if c.batch > 1 && !apart && !interleaved {
            return Err(GemmError::Overlap { batch: c.batch, shape: c.shape(), needed: c.one() });
        }
        let GemmProblem { m, n, k, batch, .. } = *self;
        let overflow = |what| Err(GemmError::Overflow { what, m, n, k, batch });
        let most = u128::from(u64::MAX >> 1);
        if self.extents().iter().any(|extent| extent.all().saturating_mul(4) > most) {
            return overflow("the size of a matrix in bytes");
        }
        // Kernels count tiles of up to 256 elements, 64 for each tile.
        let [rows, columns] =
            [(m, 128), (n, 256)].map(|(size, tile)| u128::from(size).next_multiple_of(tile));
        if rows.saturating_mul(columns).saturating_mul(batch.into()).saturating_mul(64) > most {
            return overflow("the count of outputs");
        }
        Ok(())
    }

    /// Multiplications and additions of the products: `2 m n k` for each problem.
    pub fn operations(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64 * self.batch as f64
    }

    /// Bytes that must be moved at least: each element of A and B once if they are read, each of C written, and
    /// read unless beta is 0.
    pub fn bytes(&self, output: GemmOutput) -> f64 {
        let [m, n, k, batch] = [self.m, self.n, self.k, self.batch].map(|size| size as f64);
        let operands = if self.reads_operands() { 2.0 * k * (m + n) } else { 0.0 };
        let times = if self.beta == 0.0 { 1.0 } else { 2.0 };
        batch * (operands + times * m * n * output.size() as f64)
    }

    fn extents(&self) -> [Extent; 3] {
        let GemmProblem { m, n, k, lda, ldb, ldc, batch, stride_a, stride_b, stride_c, .. } = *self;
        [
            Extent { matrix: "A", rows: m, columns: k, ld: lda, batch, stride: stride_a },
            Extent { matrix: "B", rows: k, columns: n, ld: ldb, batch, stride: stride_b },
            Extent { matrix: "C", rows: m, columns: n, ld: ldc, batch, stride: stride_c },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_accepted() {
        let p = GemmProblem { lda: 7, ldb: 5, ldc: 4, ..GemmProblem::dense(2, 4, 3) };
        assert_eq!(p.lengths(), [7 + 3, 2 * 5 + 4, 4 + 4]);
        assert_eq!(p.check(10, 14, 8), Ok(()));
        for (a, b, c, matrix) in [(9, 0, 0, "A"), (10, 13, 0, "B"), (10, 14, 7, "C")] {
            let refused = p.check(a, b, c).expect_err("too short");
            assert!(refused.to_string().starts_with(&format!("{matrix} has ")), "{refused}");
        }
    }

    #[test]
    fn zero_sizes_are_no_errors() {
        assert_eq!(GemmProblem::dense(0, 4, 3).check(0, 0, 0), Ok(()));
        assert_eq!(GemmProblem::dense(2, 4, 0).check(0, 0, 8), Ok(()));
        assert!(GemmProblem::dense(2, 4, 0).check(0, 0, 7).is_err());
        assert_eq!(GemmProblem { alpha: 0.0, ..GemmProblem::dense(2, 4, 3) }.check(0, 0, 8), Ok(()));
        assert_eq!(GemmProblem { batch: 0, ..GemmProblem::dense(2, 4, 3) }.check(0, 0, 0), Ok(()));
    }

    #[test]
    fn errors_come_in_order() {
        let narrow = GemmProblem { ldb: 3, ..GemmProblem::dense(2, 4, 3) };
        assert!(matches!(narrow.check(0, 9, 8), Err(GemmError::Length { matrix: "A", .. })));
        let refused = narrow.check(6, 12, 8);
        assert_eq!(refused, Err(GemmError::LeadingDimension { matrix: "B", got: 3, columns: 4 }));
        let overlapping = GemmProblem { batch: 3, stride_c: 7, ..GemmProblem::dense(2, 4, 3) };
        let refused = overlapping.check(99, 99, 99).expect_err("overlaps");
        assert!(refused.to_string().contains("a stride of at least 8"), "{refused}");
        let interleaved = GemmProblem { ldc: 12, stride_c: 4, ..overlapping };
        assert_eq!(interleaved.check(99, 99, 99), Ok(()));
        let huge = GemmProblem { alpha: 0.0, lda: u64::MAX, ..GemmProblem::dense(2, 1, 1 << 40) };
        let overflow =
            GemmError::Overflow { what: "the size of a matrix in bytes", m: 2, n: 1, k: 1 << 40, batch: 1 };
        assert_eq!(huge.check(0, 0, 2), Err(overflow));
    }

    #[test]
    fn no_sizes_overflow_the_checks() {
        let p = GemmProblem {
            lda: u64::MAX,
            ldb: u64::MAX,
            ldc: u64::MAX,
            batch: u64::MAX,
            stride_a: u64::MAX,
            stride_b: u64::MAX,
            stride_c: u64::MAX,
            ..GemmProblem::dense(u64::MAX, u64::MAX, u64::MAX)
        };
        assert!(matches!(p.check(u64::MAX, u64::MAX, u64::MAX), Err(GemmError::Length { .. })));
    }
}
