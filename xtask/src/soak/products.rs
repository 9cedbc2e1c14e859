//! Products of 64x64 matrices among the items: exact, as whole numbers in any order add up.

use vyre_driver::gemm::GemmProblem;
use vyre_runtime::SlotDescriptor;
use vyre_runtime::conformance::gemm_item;

/// Rows and columns of each matrix.
const SIZE: u32 = 64;
/// Elements of each matrix.
pub(super) const ELEMENTS: u32 = SIZE * SIZE;

/// The operands, and their product.
pub(super) struct Products {
    pub(super) a: Vec<u8>,
    pub(super) b: Vec<u8>,
    product: Vec<f32>,
}

impl Products {
    pub(super) fn new() -> Products {
        let value = |row: u32, column: u32, seed: u32| (row * 7 + column * 5 + row * column * seed) % 3;
        let matrix =
            |seed: u32| -> Vec<u32> { (0..ELEMENTS).map(|at| value(at / SIZE, at % SIZE, seed)).collect() };
        let (a, b) = (matrix(1), matrix(2));
        // 0, 1 and 2 in fp16.
        let bytes = |matrix: &[u32]| {
            let bits = |value: &u32| if *value == 0 { 0 } else { 0x3800 + (*value as u16) * 0x400 };
            matrix.iter().flat_map(|value| bits(value).to_le_bytes()).collect()
        };
        let element = |at: u32| {
            let (row, column) = ((at / SIZE) as usize, (at % SIZE) as usize);
            let columns = b.iter().skip(column).step_by(SIZE as usize);
            let rows = a.iter().skip(row * SIZE as usize).take(SIZE as usize);
            rows.zip(columns).map(|(a, b)| a * b).sum::<u32>() as f32
        };
        let product = (0..ELEMENTS).map(element).collect();
        Products { a: bytes(&a), b: bytes(&b), product }
    }

    /// An item that writes `factor` times the product into this producer's part of C.
    pub(super) fn item(producer: u32, factor: u32) -> SlotDescriptor {
        let size = u64::from(SIZE);
        let problem = GemmProblem { alpha: factor as f32, ..GemmProblem::dense(size, size, size) };
        gemm_item(&problem, [0, 0, producer * ELEMENTS])
    }

    /// What is wrong with the bytes that such an item has left.
    pub(super) fn check(&self, factor: u32, found: &[u8]) -> Result<(), String> {
        let found = found.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
        for (at, (found, product)) in found.zip(&self.product).enumerate() {
            let expected = product * factor as f32;
            if found.to_bits() != expected.to_bits() {
                return Err(format!("element {at} of a product is {found}, not {expected}"));
            }
        }
        Ok(())
    }
}
