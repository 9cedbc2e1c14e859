//! The call graph: no cycles, bounded depth, bounded size once everything is inlined.

use super::declarations::limit;
use super::error::ValidationErrorKind;
use super::report::{Report, at, shown};
use crate::ir::{FunctionId, Program};
use crate::limits::{MAX_CALL_DEPTH, MAX_INLINED_NODES};

/// What the call graph says about a program without cycles.
pub(super) struct CallGraph {
    /// Every function after those it calls; the ones that the entry reaches come first.
    pub(super) order: Vec<FunctionId>,
    /// How many of them the entry reaches.
    pub(super) reached: usize,
    pub(super) depth: u32,
    pub(super) inlined_nodes: u64,
}

/// Orders the functions. `calls` and `sizes` belong to the functions in order, and last to the entry.
/// `None` where the calls have a cycle.
pub(super) fn check(
    program: &Program,
    calls: &[Vec<FunctionId>],
    sizes: &[u64],
    report: &mut Report,
) -> Option<CallGraph> {
    let entry = program.functions.len();
    let mut search = Search { program, calls, marks: vec![Mark::New; entry + 1], order: Vec::new() };
    let mut acyclic = search.visit(entry, report);
    let reached = search.order.len().saturating_sub(1);
    for function in 0..entry {
        acyclic &= search.visit(function, report);
    }
    if !acyclic {
        return None;
    }

    // Each function comes after those it calls, so what is looked up is there.
    let mut depths = vec![0_u32; entry + 1];
    let mut inlined = sizes.to_vec();
    for &function in &search.order {
        for callee in calls.get(function).into_iter().flatten() {
            let callee = callee.0 as usize;
            let below = depths.get(callee).copied().unwrap_or(0).saturating_add(1);
            let size = inlined.get(callee).copied().unwrap_or(0);
            if let (Some(depth), Some(total)) = (depths.get_mut(function), inlined.get_mut(function)) {
                *depth = (*depth).max(below);
                *total = total.saturating_add(size);
            }
        }
    }
    let depth = depths.get(entry).copied().unwrap_or(0);
    let inlined_nodes = inlined.get(entry).copied().unwrap_or(0);
    let here = || at(&program.entry, true, &[]);
    limit("calls active at once", depth.into(), MAX_CALL_DEPTH as u64, "call less deeply", report, here);
    let remedy = "call large functions from fewer places";
    limit("nodes with all calls inlined", inlined_nodes, MAX_INLINED_NODES, remedy, report, here);
    let order = search.order.into_iter().filter(|&function| function != entry);
    let order = order.map(|function| FunctionId(function as u32)).collect();
    Some(CallGraph { order, reached, depth, inlined_nodes })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    Active,
    Done,
}

struct Search<'p> {
    program: &'p Program,
    calls: &'p [Vec<FunctionId>],
    marks: Vec<Mark>,
    order: Vec<usize>,
}

impl Search<'_> {
    /// Depth first and without recursion: a chain of calls may be as long as there are functions.
    fn visit(&mut self, root: usize, report: &mut Report) -> bool {
        let mut acyclic = true;
        let mut stack = vec![(root, 0_usize)];
        if self.mark(root, Mark::Active) != Some(Mark::New) {
            self.mark(root, Mark::Done);
            return true;
        }
        while let Some((function, next)) = stack.last_mut() {
            let callee = self.calls.get(*function).and_then(|calls| calls.get(*next));
            let Some(callee) = callee.map(|callee| callee.0 as usize) else {
                let function = *function;
                self.mark(function, Mark::Done);
                self.order.push(function);
                stack.pop();
                continue;
            };
            *next += 1;
            match self.marks.get(callee) {
                Some(Mark::New) => {
                    self.mark(callee, Mark::Active);
                    stack.push((callee, 0));
                }
                Some(Mark::Active) => {
                    acyclic = false;
                    self.cycle(callee, &stack, report);
                }
                Some(Mark::Done) | None => {}
            }
        }
        acyclic
    }

    fn mark(&mut self, function: usize, mark: Mark) -> Option<Mark> {
        self.marks.get_mut(function).map(|old| std::mem::replace(old, mark))
    }

    fn cycle(&self, first: usize, stack: &[(usize, usize)], report: &mut Report) {
        let functions = &self.program.functions;
        let Some(function) = functions.get(first).filter(|_| !report.is_full()) else { return };
        let inside = stack.iter().map(|&(function, _)| function).skip_while(|&function| function != first);
        let mut names: Vec<String> =
            inside.filter_map(|index| functions.get(index)).map(|function| shown(&function.name)).collect();
        if names.len() > NAMES_SHOWN {
            names.truncate(NAMES_SHOWN);
            names.push("...".to_owned());
        }
        names.push(shown(&function.name));
        let cycle = names.join(" calls ");
        report.add(|| at(function, false, &[]), ValidationErrorKind::Recursion { cycle });
    }
}

/// Functions of a cycle that an error names; a cycle may have thousands.
const NAMES_SHOWN: usize = 8;
