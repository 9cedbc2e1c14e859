//! The CPU backend against identities checked by hand: the input grows a pair of expressions that are equal
//! for every operand, and any data to evaluate them on, in divergent control flow. Both sides of a pair are
//! made of different operations, so a wrong one shows.
#![no_main]

use std::sync::OnceLock;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use vyre_cpu::{CpuBackend, CpuConfig};
use vyre_driver::{BufferDesc, DispatchConfig, VyreBackend};
use vyre_foundation::builder::{Buffer, FunctionBuilder, Operand, ProgramBuilder, Value};
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, ScalarType};

const LANES: u32 = 80;
const MAX_DEPTH: u32 = 5;

type Pair = (Value, Value);

/// Two spellings of one `u32`.
fn pair(u: &mut Unstructured<'_>, f: &mut FunctionBuilder, data: Buffer, lane: &Value, depth: u32) -> Pair {
    use ScalarType::{F32, I32, U32, U64};
    let choice = if depth == 0 { u.int_in_range(0..=1) } else { u.int_in_range(0..=24) };
    let mut next = |f: &mut FunctionBuilder| pair(u, f, data, lane, depth.saturating_sub(1));
    match choice.unwrap_or(0) {
        0 => {
            let word = f.let_("word", data.load(lane.clone()));
            (word.into(), Value::from(word))
        }
        1 => (lane.clone(), (lane.clone() + 7u32) - 7u32),
        2 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            (a + c, d + b)
        }
        3 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            (a - c, b + (!d + 1u32))
        }
        4 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            (a * c, (b.cast(U64) * d.cast(U64)).cast(U32))
        }
        5 => {
            // The remainder of a division by zero is the dividend, so this holds for every divisor.
            let ((a, b), (c, _)) = (next(f), next(f));
            let (x, y) = (f.let_("x", a), f.let_("y", c));
            (b, (x / y) * y + x % y)
        }
        6 => {
            let ((a, b), (c, _)) = (next(f), next(f));
            let (x, y) = (f.let_("x", a.bitcast(I32)), f.let_("y", c.bitcast(I32)));
            (b, ((x / y) * y + x % y).bitcast(U32))
        }
        7 => {
            let ((a, b), (c, _)) = (next(f), next(f));
            let shift = f.let_("shift", c & 31u32);
            (a << shift, b * (Value::from(1u32) << shift))
        }
        8 => {
            let ((a, b), (c, _)) = (next(f), next(f));
            let shift = f.let_("shift", c & 31u32);
            (a >> shift, b / (Value::from(1u32) << shift))
        }
        9 => {
            let ((a, b), (c, _)) = (next(f), next(f));
            let past = f.let_("past", c | 32u32);
            (a.clone() - a, b << past)
        }
        10 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            (a & c, !(!b | !d))
        }
        11 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            let (x, y) = (f.let_("x", b), f.let_("y", d));
            (a ^ c, (x | y) - (x & y))
        }
        12 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            let (x, y) = (f.let_("x", b), f.let_("y", d));
            (a.min(c), x.lt(y).select(x, y))
        }
        13 => {
            // The greater of two is the sum without the lesser.
            let ((a, b), (c, d)) = (next(f), next(f));
            let (x, y) = (f.let_("x", b), f.let_("y", d));
            (a.max(c), x + y - x.min(y))
        }
        14 => {
            let (a, b) = next(f);
            (-a, !b + 1u32)
        }
        15 => {
            let (a, b) = next(f);
            (a.clone().count_ones() + (!a).count_ones(), b.clone() - b + 32u32)
        }
        16 => {
            // A bit pattern survives any chain of bitcasts, NaN payloads included.
            let (a, b) = next(f);
            (a, b.bitcast(F32).bitcast(I32).bitcast(U32))
        }
        17 => {
            // 24 bits are exact in an f32, and its conversions truncate.
            let (a, b) = next(f);
            ((a >> 8u32).cast(F32).cast(U32), b >> 8u32)
        }
        18 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            let (x, y) = (f.let_("x", a), f.let_("y", c));
            let out = f.var_("out", 0u32);
            f.if_else(x.lt(y), |f| f.assign(out, y), |f| f.assign(out, x));
            (out.into(), b.max(d))
        }
        19 => {
            // A product by repeated addition, the count different in every lane.
            let ((a, b), (c, d)) = (next(f), next(f));
            let (x, n) = (f.let_("x", a), f.let_("n", c & 15u32));
            let sum = f.var_("sum", 0u32);
            f.for_("round", 0u32, n, |f, _| f.assign(sum, sum + x));
            (sum.into(), b * (d & 15u32))
        }
        20 => {
            // Counting bits by clearing the lowest, with a way out by break.
            let (a, b) = next(f);
            let (rest, count) = (f.var_("rest", a), f.var_("count", 0u32));
            f.while_(true, |f| {
                f.if_(rest.eq_(0u32), |f| f.break_());
                f.assign(rest, rest & (rest - 1u32));
                f.assign(count, count + 1u32);
            });
            (count.into(), b.count_ones())
        }
        21 => {
            let (a, b) = next(f);
            let x = f.let_("x", a);
            let out = f.var_("out", 3u32);
            f.switch(x & 3u32, |s| {
                s.case([0], |f| f.assign(out, 0u32));
                s.case([1], |f| f.assign(out, 1u32));
                s.case([2], |f| f.assign(out, 2u32));
                s.default(|_| {});
            });
            (out.into(), b % 4u32)
        }
        22 => {
            // Leading zeros, from the position of the highest bit by comparison.
            let (a, b) = next(f);
            let x = f.let_("x", b);
            let zeros = f.var_("zeros", 32u32);
            f.for_("bit", 0u32, 32u32, |f, bit| {
                f.if_((x >> bit).ne_(0u32), |f| f.assign(zeros, Value::from(31u32) - bit));
            });
            (a.leading_zeros(), zeros.into())
        }
        23 => {
            let ((a, b), (c, d)) = (next(f), next(f));
            // Signed order is unsigned order with the sign bit flipped.
            let flip = 0x8000_0000u32;
            (a.bitcast(I32).le(c.bitcast(I32)).cast(U32), (b ^ flip).le(d ^ flip).cast(U32))
        }
        _ => {
            let ((a, b), (c, d)) = (next(f), next(f));
            // The high half of a 64-bit shift and or.
            let wide = (a.cast(U64) << 32u32) | c.cast(U64);
            ((wide.clone() >> 32u32).cast(U32) ^ wide.cast(U32), b ^ d)
        }
    }
}

fn backends() -> &'static [CpuBackend; 2] {
    static BACKENDS: OnceLock<[CpuBackend; 2]> = OnceLock::new();
    BACKENDS
        .get_or_init(|| [1, 2].map(|threads| CpuBackend::with_config(CpuConfig::default().threads(threads))))
}

fuzz_target!(|input: &[u8]| {
    let mut u = Unstructured::new(input);
    let workgroup = 1 << u.int_in_range(0u32..=6).unwrap_or(6);
    let words: Vec<u32> = (0..LANES).map(|_| u.arbitrary().unwrap_or(0)).collect();
    let mut p = ProgramBuilder::kernel("identities").workgroup_size([workgroup, 1, 1]);
    let data = p.buffer("data", MemorySpace::Global, DataType::U32, BufferAccess::Read, LANES);
    let out = p.buffer("out", MemorySpace::Global, DataType::U32, BufferAccess::Write, 2 * LANES);
    p.entry(|f| {
        let i = f.let_("i", Builtin::GlobalId(Axis::X));
        f.if_(i.lt(LANES), |f| {
            let (left, right) = pair(&mut u, f, data, &i.into(), MAX_DEPTH);
            let (left, right) = (f.let_("left", left), f.let_("right", right));
            f.store(out, i * 2u32, left);
            f.store(out, i * 2u32 + 1u32, right);
        });
    });
    // Copies of copied expressions may pass the node limit; everything else must be valid.
    let program = match p.validate() {
        Ok(program) => program,
        Err(errors) if errors.to_string().contains("nodes") || errors.to_string().contains("nest") => return,
        Err(errors) => panic!("{errors}"),
    };
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for backend in backends() {
        let source =
            backend.create_buffer(&BufferDesc::new("data", DataType::U32, LANES.into())).expect("small");
        let target = backend
            .create_buffer(&BufferDesc::new("out", DataType::U32, 2 * u64::from(LANES)))
            .expect("small");
        backend.write_buffer(source, 0, &bytes).expect("in range");
        let pipeline = backend.compile(&program).expect("a valid program compiles");
        let grid = LANES.div_ceil(workgroup);
        pipeline
            .dispatch(&[source.binding(), target.binding()], &DispatchConfig::new([grid, 1, 1]))
            .expect("the dispatch is valid");
        let mut results = vec![0xAA; 8 * LANES as usize];
        backend.read_buffer(target, 0, &mut results).expect("in range");
        for (lane, pair) in results.as_chunks::<8>().0.iter().enumerate() {
            assert_eq!(
                pair[..4],
                pair[4..],
                "lane {lane} of {}",
                vyre_foundation::text::print(program.program())
            );
        }
        backend.destroy_buffer(source).expect("ours");
        backend.destroy_buffer(target).expect("ours");
    }
});
