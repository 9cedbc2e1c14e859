//! Splitting an entry at its grid barriers, and what each part hands to the later ones.

use std::collections::BTreeSet;

use vyre_foundation::{BufferDecl, Function, Node, ScalarType};

use super::SpillSizes;
use super::analysis::{assigned, defined, used};

/// One part of an entry, between two grid barriers.
#[derive(Debug)]
pub(super) struct Pass<'p> {
    /// The index of the first statement in the entry's body.
    pub(super) first: usize,
    pub(super) nodes: &'p [Node],
    /// Locals of earlier parts that this one needs.
    pub(super) loads: Vec<Column>,
    /// Locals that later parts need and that this one defined or changed.
    pub(super) stores: Vec<Column>,
}

/// A local in the spill memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    /// The local.
    pub(super) var: u32,
    /// Bytes before it for each invocation.
    pub(super) offset: u64,
}

/// Bytes of a local in the spill memory; a `bool` takes a `u32`.
const fn bytes(ty: ScalarType) -> u64 {
    if matches!(ty, ScalarType::U64) { 8 } else { 4 }
}

/// The parts of an entry, and the bytes that each invocation keeps between them.
pub(super) fn split(entry: &Function) -> (Vec<Pass<'_>>, u64) {
    let mut parts = Vec::new();
    let mut first = 0;
    for nodes in entry.body.split(|node| *node == Node::GridBarrier) {
        parts.push((first, nodes));
        first += nodes.len() + 1;
    }
    // Only what stands at the top level is visible behind a barrier.
    let defines: Vec<BTreeSet<u32>> =
        parts.iter().map(|(_, nodes)| nodes.iter().flat_map(defined).map(|var| var.0).collect()).collect();
    let uses: Vec<BTreeSet<u32>> = parts.iter().map(|(_, nodes)| used(nodes)).collect();
    let before = |at: usize| defines.iter().take(at).flatten().copied().collect::<BTreeSet<u32>>();
    let after = |at: usize| uses.iter().skip(at + 1).flatten().copied().collect::<BTreeSet<u32>>();

    let mut kept: Vec<u32> = (0..parts.len())
        .flat_map(|at| defines.get(at).map(|defines| defines & &after(at)))
        .flatten()
        .collect();
    let size = |var: u32| entry.locals.get(var as usize).map_or(4, |local| bytes(local.ty));
    // Wide ones first, so that all are aligned.
    kept.sort_by_key(|&var| (std::cmp::Reverse(size(var)), var));
    let mut columns = Vec::new();
    let mut offset = 0;
    for var in kept {
        columns.push(Column { var, offset });
        offset += size(var);
    }

    let passes = parts.iter().enumerate().map(|(at, &(first, nodes))| {
        let (before, after, assigned) = (before(at), after(at), assigned(nodes));
        let here = |sets: &[BTreeSet<u32>], var: u32| sets.get(at).is_some_and(|set| set.contains(&var));
        let of = |wanted: &dyn Fn(u32) -> bool| {
            columns.iter().copied().filter(|column| wanted(column.var)).collect::<Vec<_>>()
        };
        Pass {
            first,
            nodes,
            loads: of(&|var| before.contains(&var) && here(&uses, var)),
            stores: of(&|var| after.contains(&var) && (here(&defines, var) || assigned.contains(&var))),
        }
    });
    (passes.collect(), offset)
}

/// What an entry with these workgroup buffers keeps between parts.
pub(super) fn sizes<'p>(per_invocation: u64, shared: impl Iterator<Item = &'p BufferDecl>) -> SpillSizes {
    let bytes: u64 = shared.map(|decl| u64::from(decl.len) * decl.element.size() as u64).sum();
    SpillSizes { per_invocation, per_workgroup: bytes.next_multiple_of(8) }
}
