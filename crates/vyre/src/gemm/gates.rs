//! The gates that a product must pass, each against what cannot share its faults.
//!
//! * `arguments`: matrices that are too short are refused;
//! * `exact`: sums of small integers are exact in fp32 in any order, so C is compared bit for bit;
//! * `bound`: each element against fp64, within `(0.5 sqrt(k) + 4) 2^-24 (|alpha| |A||B| + |beta| |C|)` and half a
//!   unit of C's last place (probabilistic rounding bounds: arXiv 1906.10465, 2411.18747);
//! * `norm`: the Frobenius norm of the error, to `1e-7 + 6e-9 k` of C's in fp32, to `2.5e-4` in fp16;
//! * `specials`, `subnormals`: infinities, NaN, overflow of fp16, and what is smaller than fp16's normal numbers;
//! * `repeat`: the same inputs give the same bits.
//!
//! In every run what must not be read is NaN, C is poisoned where it is not read, and canaries stand around C and
//! between its rows: all elements are looked at for those. An infinity is right where the reference overflows C's
//! type, or comes within the bound of it. Where fp64 for all rows would take too long, a sample
//! of rows is compared, the first and the last among them, and rows with infinities; the exact gate then also compares a weighted sum of
//! every row, computed in integers from A (B x) (Freivalds, 1979).

use std::collections::BTreeSet;

use serde::Serialize;
use vyre_cpu::externals::{GemmReference, gemm_f64};
use vyre_driver::BackendError;
use vyre_driver::gemm::{GemmOutput, GemmProblem};

use super::data::{GemmCase, GemmData, GemmElements, GemmOperands, Place, in_parallel, layouts, mix};
use super::device::GemmDevice;

/// Products whose fp64 reference is computed in full; beyond, rows are sampled.
const FULL: f64 = 3e8;
/// Rows that are compared at least.
const ROWS: u64 = 64;
/// Elements below which a norm says little: one of them may be near zero by chance.
const NORM_ELEMENTS: u64 = 200;
/// From here on not every integer is an fp16 number.
const F16_INTEGERS: f64 = 2048.0;

/// What a gate found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GemmGate {
    /// The gate.
    pub name: &'static str,
    /// Whether it was passed.
    pub passed: bool,
    /// What it looked at, or what was wrong.
    pub detail: String,
    /// Elements compared with their reference.
    pub elements: u64,
    /// The largest error as a share of what is allowed, where there is such a bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst: Option<f64>,
}

/// Runs all gates on a shape, in their order, and stops at none.
///
/// # Errors
///
/// What the device answers; that is no verdict.
pub fn verify(
    device: &dyn GemmDevice,
    problem: &GemmProblem,
    output: GemmOutput,
    seed: u64,
) -> Result<Vec<GemmGate>, BackendError> {
    // Exact only with factors that are.
    let exact = GemmProblem { alpha: nice(problem.alpha), beta: nice(problem.beta), ..*problem };
    let case = |problem: &GemmProblem, data| GemmCase { problem: *problem, output, data, seed, offset: 0 };
    let normal = case(problem, GemmData::Normal);
    let mut gates = vec![arguments(device, &normal)?];
    gates.extend(check(device, &case(&exact, GemmData::Integers))?);
    gates.extend(check(device, &normal)?);
    gates.extend(check(device, &case(&exact, GemmData::Specials))?);
    gates.extend(check(device, &case(&exact, GemmData::Subnormals))?);
    gates.push(repeat(device, &normal, repeats(device, problem))?);
    Ok(gates)
}

/// The factor itself, or one with which small integers stay integers.
fn nice(factor: f32) -> f32 {
    if factor.fract() == 0.0 && factor.abs() <= 4.0 { factor } else { 2_f32.copysign(factor) }
}

/// How often the same product runs: 100 times unless it is large.
fn repeats(device: &dyn GemmDevice, problem: &GemmProblem) -> u32 {
    (device.quick_operations() / problem.operations().max(1.0)).clamp(3.0, 100.0) as u32
}

/// Whether matrices that are one element too short are refused.
fn arguments(device: &dyn GemmDevice, case: &GemmCase) -> Result<GemmGate, BackendError> {
    let whole = case.operands();
    let mut accepted = Vec::new();
    for (matrix, needed) in ["A", "B", "C"].into_iter().zip(case.problem.lengths()) {
        // Without any elements there is none to take away.
        let Some(last) = needed.checked_sub(1) else { continue };
        let (mut short, len) = (whole.clone(), whole.first as usize + last as usize);
        match matrix {
            "A" => short.a.truncate(len),
            "B" => short.b.truncate(len),
            _ => short.c.truncate(len),
        }
        match device.multiply(&case.problem, &mut short) {
            Ok(()) => accepted.push(matrix),
            Err(BackendError::InvalidArgument { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let passed = accepted.is_empty();
    let detail = if passed {
        "matrices one element too short are refused".to_owned()
    } else {
        format!("one element too short, and not refused: {}", accepted.join(", "))
    };
    Ok(GemmGate { name: "arguments", passed, detail, elements: 0, worst: None })
}

/// Runs one product, and the gates that its data is for.
///
/// # Errors
///
/// What the device answers; that is no verdict.
pub fn check(device: &dyn GemmDevice, case: &GemmCase) -> Result<Vec<GemmGate>, BackendError> {
    let before = case.operands();
    let mut after = before.clone();
    device.multiply(&case.problem, &mut after)?;
    let mut gates = judge(case, &before, &after.c);
    if case.data == GemmData::Subnormals
        && device.may_flush_subnormals()
        && gates.iter().any(|gate| !gate.passed)
    {
        // A multiplies as zero then, and C with it.
        let mut flushed = before.clone();
        let normal = |value: &half::f16| value.classify() != std::num::FpCategory::Subnormal;
        flushed.a.iter_mut().filter(|value| !normal(value)).for_each(|value| *value = half::f16::ZERO);
        let others = judge(case, &flushed, &after.c);
        if others.iter().all(|gate| gate.passed) {
            gates = others;
            gates.iter_mut().for_each(|gate| gate.detail += "; flushed to zero");
        }
    }
    Ok(gates)
}

/// Compares what was computed from `before` with the reference.
pub(super) fn judge(case: &GemmCase, before: &GemmOperands, after: &GemmElements) -> Vec<GemmGate> {
    let p = &case.problem;
    let mut faults = Faults::default();
    let infinite = look_at_all(case, before, after, &mut faults);
    let mut rows = sample(p, case.seed);
    // As many more as there are: of the others the reference is not known.
    let most = rows.len();
    let sampled: BTreeSet<_> = rows.iter().copied().collect();
    rows.extend(infinite.difference(&sampled).take(most));
    let all = rows.len() as u64 == p.batch * p.m;
    let mut detail = format!("{} of {} rows", rows.len(), p.batch * p.m);
    let whole_factors = p.alpha.fract() == 0.0 && p.beta.fract() == 0.0;
    if case.data == GemmData::Integers && whole_factors && !all {
        let summed = weigh(case, before, after, &mut rows, &mut faults);
        detail += &format!(" element by element, {summed} by a weighted sum");
    }
    let compared = in_parallel(rows, |(batch, row)| compare(case, before, after, batch, row));
    let (mut elements, mut finite, mut worst, mut errors, mut references) = (0, 0, 0.0_f64, 0.0, 0.0);
    for row in compared {
        elements += row.elements;
        finite += row.finite;
        worst = worst.max(row.worst);
        errors += row.errors;
        references += row.references;
        faults.join(row.faults);
    }
    let name = match case.data {
        GemmData::Integers => "exact",
        GemmData::Normal => "bound",
        GemmData::Specials => "specials",
        GemmData::Subnormals => "subnormals",
    };
    let is_bound = case.data == GemmData::Normal;
    if let Some(first) = &faults.first {
        detail = format!("{} elements wrong; the first: {first}; looked at {detail}", faults.count);
    }
    let mut gates = vec![GemmGate {
        name,
        passed: faults.count == 0,
        detail,
        elements,
        worst: is_bound.then_some(worst),
    }];
    if is_bound {
        gates.push(norm(case, finite, errors, references));
    }
    gates
}

fn norm(case: &GemmCase, elements: u64, errors: f64, references: f64) -> GemmGate {
    let limit = match case.output {
        GemmOutput::F32 => 1e-7 + 6e-9 * case.problem.k as f64,
        GemmOutput::F16 => 2.5e-4,
    };
    let (error, allowed) = (errors.sqrt(), limit * references.sqrt());
    if elements < NORM_ELEMENTS {
        let detail = format!("not applied: {elements} elements are fewer than {NORM_ELEMENTS}");
        return GemmGate { name: "norm", passed: true, detail, elements: 0, worst: None };
    }
    let share = if error == 0.0 { 0.0 } else { error / allowed };
    let detail = format!("Frobenius error {:.3e} of at most {limit:.3e}", share * limit);
    // NaN is no pass.
    GemmGate { name: "norm", passed: error <= allowed, detail, elements, worst: Some(share) }
}

/// Whether the same inputs give the same bits.
fn repeat(device: &dyn GemmDevice, case: &GemmCase, times: u32) -> Result<GemmGate, BackendError> {
    let before = case.operands();
    let mut first = before.clone();
    device.multiply(&case.problem, &mut first)?;
    let mut differing = 0;
    for _ in 1..times {
        let mut again = before.clone();
        device.multiply(&case.problem, &mut again)?;
        differing += u32::from((0..first.c.len()).any(|at| first.c.bits(at) != again.c.bits(at)));
    }
    let detail = match differing {
        0 => format!("the same bits {times} times"),
        _ => format!("{differing} of {times} runs gave other bits than the first"),
    };
    Ok(GemmGate {
        name: "repeat",
        passed: differing == 0,
        detail,
        elements: first.c.len() as u64,
        worst: None,
    })
}

/// What is wrong.
#[derive(Debug, Default)]
struct Faults {
    count: u64,
    first: Option<String>,
}

impl Faults {
    fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(what);
    }

    fn join(&mut self, other: Faults) {
        self.count += other.count;
        self.first = self.first.take().or(other.first);
    }
}

/// Looks at every element of C and at everything around them: canaries, what was not written, and NaN where
/// there can be none. Returns the rows with infinities that only a reference can tell from wrong ones.
fn look_at_all(
    case: &GemmCase,
    before: &GemmOperands,
    after: &GemmElements,
    faults: &mut Faults,
) -> BTreeSet<(u64, u64)> {
    let mut infinite = BTreeSet::new();
    let [_, _, layout] = layouts(&case.problem, before.first);
    let poisoned = case.problem.beta == 0.0;
    let special = case.data == GemmData::Specials;
    let len = before.c.len();
    if after.len() != len {
        faults.add(|| format!("C has {} elements, not {len}", after.len()));
    }
    for at in 0..len.min(after.len()) {
        match layout.place(at as u64) {
            None if after.is_canary(at) => {}
            None => faults.add(|| format!("written outside of C, {at} elements into its buffer")),
            Some(place) if poisoned && after.is_poison(at) => {
                faults.add(|| format!("{place} was not written"))
            }
            Some(_) if special => {}
            Some(place) if after.value(at).is_nan() => faults.add(|| format!("{place} is NaN")),
            Some(place) if after.value(at).is_infinite() => {
                infinite.insert((place.batch, place.row));
            }
            Some(_) => {}
        }
    }
    infinite
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "C[{}][{}] of problem {}", self.row, self.column, self.batch)
    }
}

/// The rows to compare, as problem and row: all of them, or some, with the first and the last.
fn sample(p: &GemmProblem, seed: u64) -> Vec<(u64, u64)> {
    let (rows, each) = (p.batch * p.m, (p.n as f64 * p.k as f64).max(1.0));
    if p.is_empty() {
        return Vec::new();
    }
    let count = ((FULL / each) as u64).clamp(ROWS.min(rows), rows);
    let row = |index: u64| {
        // One of each stretch of rows.
        let (from, to) = ((index as u128 * rows as u128 / count as u128) as u64, index + 1);
        let to = (to as u128 * rows as u128 / count as u128) as u64;
        let row = match index {
            0 => 0,
            _ if index + 1 == count => rows - 1,
            _ => from + mix(seed ^ index) % (to - from).max(1),
        };
        (row / p.m, row % p.m)
    };
    (0..count).map(row).collect()
}

/// A row of C, compared.
struct Row {
    elements: u64,
    /// Those that did not rightly overflow.
    finite: u64,
    /// The largest error as a share of its bound.
    worst: f64,
    /// Sums of squares, over those.
    errors: f64,
    references: f64,
    faults: Faults,
}

fn compare(case: &GemmCase, before: &GemmOperands, after: &GemmElements, batch: u64, row: u64) -> Row {
    let p = &case.problem;
    let [a, b, c] = layouts(p, before.first);
    let (from_a, from_b, from_c) = (a.row(batch, row), b.row(batch, 0), c.row(batch, row));
    let alone = GemmProblem { m: 1, batch: 1, ..*p };
    let a = before.a.get(from_a..).unwrap_or_default();
    let b = before.b.get(from_b..).unwrap_or_default();
    let expected = match &before.c {
        GemmElements::F32(c) => gemm_f64(&alone, a, b, c.get(from_c..).unwrap_or_default()),
        GemmElements::F16(c) => gemm_f64(&alone, a, b, c.get(from_c..).unwrap_or_default()),
    };
    let (worst, errors, references) = (0.0, 0.0, 0.0);
    let mut all = Row { elements: 0, finite: 0, worst, errors, references, faults: Faults::default() };
    for (column, reference) in expected.iter().enumerate() {
        let at = from_c + column;
        let (found, value) = (after.value(at), reference.value);
        let overflows = case.data == GemmData::Normal && overflows(case, reference, found);
        all.finite += u64::from(!overflows);
        let right = if overflows {
            true
        } else if case.data == GemmData::Normal {
            let (error, bound) = ((found - value).abs(), bound(case, reference));
            all.worst = if error <= bound {
                all.worst.max(error / bound.max(f64::MIN_POSITIVE))
            } else {
                f64::INFINITY
            };
            all.errors += error * error;
            all.references += value * value;
            error <= bound
        } else {
            // The sign of a zero that was only scaled is the factor's; fp64 adds a zero to it.
            let value = if value == 0.0 && p.beta == 0.0 { f64::from(p.alpha) * 0.0 } else { value };
            if value.is_nan() { found.is_nan() } else { after.bits(at) == after.bits_of(value) }
        };
        all.elements += 1;
        if !right {
            let place = Place { batch, row, column: column as u64 };
            all.faults.add(|| format!("{place} is {found:e}, not {value:e}"));
        }
    }
    all
}

/// How far a sum may be away before it is rounded to C's type.
fn sum_bound(case: &GemmCase, reference: &GemmReference) -> f64 {
    (0.5 * (case.problem.k as f64).sqrt() + 4.0) * 2_f64.powi(-24) * reference.magnitude
}

/// Whether what was found is the infinity that C's type has for the reference, or for a sum within its bound.
fn overflows(case: &GemmCase, reference: &GemmReference, found: f64) -> bool {
    let farthest = reference.value + sum_bound(case, reference).copysign(found);
    let rounded = match case.output {
        GemmOutput::F32 => f64::from(farthest as f32),
        GemmOutput::F16 => half::f16::from_f64(farthest).to_f64(),
    };
    found.is_infinite() && rounded == found
}

/// How far an element may be away.
fn bound(case: &GemmCase, reference: &GemmReference) -> f64 {
    let sum = sum_bound(case, reference);
    match case.output {
        GemmOutput::F32 => sum,
        // Half a unit of the last place, and no finer than the subnormals.
        GemmOutput::F16 => sum + (2_f64.powi(-11) * reference.value.abs()).max(2_f64.powi(-25)),
    }
}

/// Compares a weighted sum of each row of C with that of A (B x), in integers: a row with a wrong element has
/// another. Rows with elements that fp16 need not hold exactly are added to `rows` instead, as many as are
/// there already. Returns how many rows were summed.
fn weigh(
    case: &GemmCase,
    before: &GemmOperands,
    after: &GemmElements,
    rows: &mut Vec<(u64, u64)>,
    faults: &mut Faults,
) -> u64 {
    let p = &case.problem;
    let [a, b, c] = layouts(p, before.first);
    let weight = |column: u64| i128::from(1 + mix(case.seed ^ column) % (1 << 20));
    let integer = |value: f64| value as i128;
    let half = |all: &[half::f16], at: usize| all.get(at).map_or(0, |value| integer(value.to_f64()));
    let (alpha, beta) = (integer(p.alpha.into()), integer(p.beta.into()));
    let weights: Vec<i128> = (0..p.n).map(weight).collect();
    let (mut summed, most) = (0, rows.len() * 2);
    for batch in 0..p.batch {
        let dot = |all: &[half::f16], from: usize, with: &[i128]| -> i128 {
            with.iter().enumerate().map(|(i, with)| half(all, from + i) * with).sum()
        };
        let depth = if p.reads_operands() { p.k } else { 0 };
        let weighted = in_parallel((0..depth).collect(), |k| dot(&before.b, b.row(batch, k), &weights));
        let found = in_parallel((0..p.m).collect(), |row| {
            let (first, mut old, mut new, mut whole) = (c.row(batch, row), 0, 0, true);
            for (column, weight) in weights.iter().enumerate() {
                let value = after.value(first + column);
                whole &= case.output == GemmOutput::F32 || value.abs() < F16_INTEGERS;
                // Far from an integer's range, it is another sum all the same.
                new = i128::wrapping_add(new, integer(value).wrapping_mul(*weight));
                old += if beta == 0 { 0 } else { integer(before.c.value(first + column)) * weight };
            }
            let expected = alpha * dot(&before.a, a.row(batch, row), &weighted) + beta * old;
            (row, whole, new == expected)
        });
        for (row, whole, right) in found {
            if !whole {
                // Compared element by element, if there is room.
                if rows.len() < most && !rows.contains(&(batch, row)) {
                    rows.push((batch, row));
                }
                continue;
            }
            summed += 1;
            if !right {
                faults.add(|| format!("the weighted sum of row {row} of problem {batch}"));
            }
        }
    }
    summed
}
