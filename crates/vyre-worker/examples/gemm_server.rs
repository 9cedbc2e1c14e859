//! Products of fp16 matrices on a GPU in another process: `cargo run -p vyre-worker --example gemm_server -- PATH`, where
//! PATH is what a GPU's compiler made of kernels/server/gemm_f16.cpp. Every element is compared: the operands are small
//! whole numbers, so that each product is exact whatever the order of its sums.

use std::error::Error;
use std::time::Instant;

use vyre_worker::server::{KernelServer, KernelSpec, RunOptions, ServerOptions};

/// m, n, k, batch.
const SHAPES: [[usize; 4]; 6] = [
    [1, 1, 1, 1],
    [64, 64, 64, 1],
    [37, 53, 71, 3],
    [1, 512, 4096, 1],
    [8, 100, 2048, 2],
    [256, 384, 512, 1],
];

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("give the path of the gemm_f16 executable")?;
    let server = KernelServer::new(ServerOptions::default())?;
    let kernel = KernelSpec::new("gemm_f16", &path);
    let options = RunOptions::default();
    for shape in SHAPES {
        let (request, expected) = problem(shape);
        let begun = Instant::now();
        let served = server.run(&kernel, &request, expected.len() * 4, options)?;
        let first = begun.elapsed();
        let again = server.run(&kernel, &request, expected.len() * 4, options)?;
        let second = begun.elapsed() - first;
        let alone = server.oneshot(&kernel, &request, expected.len() * 4, options)?;
        let third = begun.elapsed() - first - second;
        for (way, response) in [("served", &served), ("served again", &again), ("one-shot", &alone)] {
            let (values, rest) = response.as_chunks::<4>();
            let wrong = values
                .iter()
                .zip(&expected)
                .filter(|(got, want)| f32::from_le_bytes(**got) != **want)
                .count();
            if values.len() != expected.len() || !rest.is_empty() || wrong != 0 {
                return Err(format!("{shape:?} {way}: {} values, {wrong} of them wrong", values.len()).into());
            }
        }
        println!(
            "{shape:?}: {} values right; first {first:.2?}, again {second:.2?}, one-shot {third:.2?}",
            expected.len()
        );
    }
    let refused = server.run(&kernel, &[0; 10], 100, options);
    println!("a request of 10 bytes: {refused:?}");
    let mut bad = problem(SHAPES[1]).0;
    bad.pop();
    println!("one byte too few: {:?}", server.run(&kernel, &bad, 64 * 64 * 4, options).err());
    println!("{:?}", server.stats());
    Ok(())
}

/// The request, and the fp32 elements of C.
fn problem([m, n, k, batch]: [usize; 4]) -> (Vec<u8>, Vec<f32>) {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as i32 % 7 - 3
    };
    let a: Vec<i32> = (0..batch * m * k).map(|_| next()).collect();
    let b: Vec<i32> = (0..batch * k * n).map(|_| next()).collect();
    let mut request = Vec::new();
    [m, n, k, batch].iter().for_each(|&size| request.extend((size as u64).to_le_bytes()));
    [1.0f32, 0.0].iter().for_each(|scale| request.extend(scale.to_le_bytes()));
    request.extend([0; 8]);
    a.iter().chain(&b).for_each(|&value| request.extend(f16_bits(value).to_le_bytes()));
    let mut c = vec![0.0; batch * m * n];
    for (at, value) in c.iter_mut().enumerate() {
        let (problem, row, column) = (at / (m * n), at / n % m, at % n);
        let (row, b) = (&a[(problem * m + row) * k..][..k], &b[problem * k * n..]);
        *value = row.iter().enumerate().map(|(i, a)| a * b[i * n + column]).sum::<i32>() as f32;
    }
    (request, c)
}

/// A whole number from -3 to 3.
fn f16_bits(value: i32) -> u16 {
    let magnitude = [0, 0x3C00, 0x4000, 0x4200][value.unsigned_abs() as usize % 4];
    if value < 0 { magnitude | 0x8000 } else { magnitude }
}
