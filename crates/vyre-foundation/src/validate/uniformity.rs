//! Uniformity: whether every invocation that a barrier waits for takes the same way to it.
//!
//! Each function is walked once and becomes a graph. Its nodes are the locals and the *controls*: a control
//! stands for the decision which invocations are at some point of the body. An edge says that what is at
//! its source can make its target differ between invocations. Values spread along the edges until nothing
//! changes; since locals have one node for all their assignments, loops need no repetition, and the whole
//! is linear.
//!
//! * A condition or selector feeds the control of its blocks.
//! * Behind a statement that contains a return, a trap, or a break or continue of the loop around it, the
//!   control is fed by the control of that statement.
//! * A loop's control is fed by every break, return and trap in its body: they decide who takes part in
//!   the next round. Behind the loop, only returns and traps count; behind an `if`, all of them.
//! * An assignment feeds its local from the value and from the control.
//!
//! A function is summed up by what its results and its traps depend on, and whether, and under which of
//! its parameters, it reaches a barrier. Callers use the summary; calls are acyclic.

use super::error::ValidationErrorKind;
use super::report::{Report, Step, at, local_name, shown};
use super::spread::{Cause, Extent, Graph, Place, Spread};
use crate::depth::operands;
use crate::ir::{
    Atomic, AtomicOp, Axis, Builtin, Expr, ExternalCall, ExternalId, Function, FunctionId, Granularity,
    MemorySpace, Node, Program, ProgramKind, SubgroupOp, VarId,
};

/// Checks every function; `order` has each after those it calls. The program is otherwise valid.
/// Yields for each function whether it reaches a workgroup barrier, the entry last.
pub(super) fn check(program: &Program, order: &[FunctionId], report: &mut Report) -> Vec<bool> {
    let mut summaries = vec![Summary::default(); program.functions.len()];
    for &id in order {
        let Some(function) = program.functions.get(id.0 as usize) else { continue };
        let params = |index: usize| Spread::of_param(index);
        let summary = Walk::new(program, function, false, &summaries, params).finish(report);
        if let Some(slot) = summaries.get_mut(id.0 as usize) {
            *slot = summary;
        }
    }
    let extent = match program.kind {
        ProgramKind::Item(Granularity::Workgroup) => Extent::Workgroup,
        ProgramKind::Kernel | ProgramKind::Item(Granularity::Lane) => Extent::Invocation,
    };
    let entry = Walk::new(program, &program.entry, true, &summaries, |_| extent.into()).finish(report);
    summaries.iter().chain([&entry]).map(|summary| summary.meeting.is_some()).collect()
}

/// What callers need to know about a function.
#[derive(Clone, Debug, Default)]
struct Summary {
    results: Vec<Spread>,
    /// Who traps, if anybody does.
    traps: Option<Spread>,
    /// Whether a barrier or the like is reached.
    meeting: Option<Meeting>,
}

/// Where all invocations of a workgroup come together.
#[derive(Clone, Copy, Debug)]
struct Meeting {
    /// What they come to.
    what: &'static str,
    /// The parameters that decide it.
    params: u64,
}

/// A place that must be reached by all or none.
struct Requirement {
    control: Place,
    extent: Extent,
    path: Vec<Step>,
    what: Barrier,
}

#[derive(Clone, Copy)]
enum Barrier {
    Grid,
    Workgroup,
    Subgroup,
    /// The lane of a broadcast.
    Lane,
    External(ExternalId),
    ExternalArgument(ExternalId, usize),
    Call(FunctionId),
    Argument(FunctionId, usize),
}

/// A loop around the statement at hand.
struct Loop {
    head: Place,
    /// Fed by the controls of the returns and traps inside, once there are any.
    exits: Option<Place>,
}

struct Walk<'p> {
    program: &'p Program,
    function: &'p Function,
    entry: bool,
    summaries: &'p [Summary],
    graph: Graph,
    path: Vec<Step>,
    loops: Vec<Loop>,
    results: Vec<Place>,
    traps: Option<Place>,
    requirements: Vec<Requirement>,
}

impl<'p> Walk<'p> {
    fn new(
        program: &'p Program,
        function: &'p Function,
        entry: bool,
        summaries: &'p [Summary],
        param: impl Fn(usize) -> Spread,
    ) -> Walk<'p> {
        // The first places are the locals, so that a local's id is its place.
        let mut graph = Graph::default();
        for index in 0..function.locals.len() {
            let place = graph.place();
            if index < function.params as usize {
                graph.source(place, param(index), Cause::Parameter);
            }
        }
        let results = function.results.iter().map(|_| graph.place()).collect();
        Walk {
            program,
            function,
            entry,
            summaries,
            graph,
            path: Vec::new(),
            loops: Vec::new(),
            results,
            traps: None,
            requirements: Vec::new(),
        }
    }

    fn finish(mut self, report: &mut Report) -> Summary {
        let start = self.graph.place();
        self.block(&self.function.body, Step::Body, start);
        let spreads = self.graph.spread();
        let of = |place: Place| spreads.get(place.0).copied().unwrap_or_default();
        let mut meeting: Option<Meeting> = None;
        for requirement in &self.requirements {
            let spread = of(requirement.control);
            if spread.extent > requirement.extent && report.is_full() {
                report.add_unseen();
            } else if spread.extent > requirement.extent {
                let kind = self.non_uniform(requirement, &spreads);
                report.add(|| at(self.function, self.entry, &requirement.path), kind);
            }
            if let Some(what) = self.meeting(requirement.what) {
                meeting.get_or_insert(Meeting { what, params: 0 }).params |= spread.params;
            }
        }
        Summary {
            results: self.results.iter().map(|&place| of(place)).collect(),
            traps: self.traps.map(of),
            meeting,
        }
    }

    /// What a caller would name. A grid barrier is in the entry, which nobody calls.
    fn meeting(&self, what: Barrier) -> Option<&'static str> {
        match what {
            Barrier::Grid => None,
            Barrier::Workgroup => Some("workgroup barrier"),
            Barrier::Subgroup | Barrier::Lane => Some("subgroup operation"),
            Barrier::External(_) | Barrier::ExternalArgument(..) => Some("call of an external function"),
            Barrier::Call(id) | Barrier::Argument(id, _) => {
                self.summaries.get(id.0 as usize)?.meeting.map(|meeting| meeting.what)
            }
        }
    }

    /// Walks a block that begins under a control; yields the control at its end.
    fn block(&mut self, nodes: &'p [Node], step: impl Fn(usize) -> Step, start: Place) -> Place {
        let mut control = start;
        for (index, node) in nodes.iter().enumerate() {
            self.path.push(step(index));
            control = self.node(node, control);
            self.path.pop();
        }
        control
    }

    /// Walks a statement; yields the control behind it.
    fn node(&mut self, node: &'p Node, control: Place) -> Place {
        match node {
            Node::Let { var, value } => self.feed(value, local(*var)),
            Node::Assign { var, value } => {
                self.feed(value, local(*var));
                self.graph.edge(control, local(*var));
            }
            Node::Atomic(Atomic { op: AtomicOp::Store(_), .. }) | Node::Store { .. } => {}
            Node::Atomic(Atomic { result, .. }) => {
                if let Some(var) = result {
                    self.graph.source(local(*var), Extent::Invocation.into(), Cause::Atomic);
                }
            }
            Node::Subgroup(subgroup) => {
                self.require(control, Extent::Workgroup, Barrier::Subgroup);
                if let SubgroupOp::Broadcast(lane) = &subgroup.op {
                    self.require_same(lane, Barrier::Lane);
                }
                self.graph.source(local(subgroup.result), Extent::Invocation.into(), Cause::Subgroup);
            }
            Node::If { condition, then, otherwise } => {
                let inside = self.under(control, &[condition]);
                let ends =
                    [self.block(then, Step::Then, inside), self.block(otherwise, Step::Otherwise, inside)];
                return self.join(control, inside, &ends);
            }
            Node::Switch { selector, cases, default } => {
                let inside = self.under(control, &[selector]);
                let mut ends = Vec::with_capacity(cases.len() + 1);
                for (index, case) in cases.iter().enumerate() {
                    ends.push(self.block(&case.body, |node| Step::Case(index, node), inside));
                }
                ends.push(self.block(default, Step::Default, inside));
                return self.join(control, inside, &ends);
            }
            // The counter differs where its start does, and is seen only where that decides who is there.
            Node::For { start, end, body, .. } => {
                let head = self.under(control, &[start, end]);
                return self.repeat(control, head, body);
            }
            Node::While { condition, body } => {
                let head = self.under(control, &[condition]);
                return self.repeat(control, head, body);
            }
            Node::Break => {
                if let Some(around) = self.loops.last() {
                    self.graph.edge(control, around.head);
                }
                return self.under(control, &[]);
            }
            Node::Continue => return self.under(control, &[]),
            Node::Return(values) => {
                let results = self.results.clone();
                for (value, result) in values.iter().zip(results) {
                    self.feed(value, result);
                    self.graph.edge(control, result);
                }
                return self.exit(control);
            }
            Node::Block(body) => return self.block(body, Step::Block, control),
            Node::WorkgroupBarrier => self.require(control, Extent::Workgroup, Barrier::Workgroup),
            Node::GridBarrier => self.require(control, Extent::Grid, Barrier::Grid),
            Node::Trap(_) => {
                self.trap(control);
                return self.exit(control);
            }
            Node::Call { results, function, args } => return self.call(results, *function, args, control),
            Node::CallExternal(call) => self.call_external(call, control),
        }
        control
    }

    fn call(&mut self, results: &'p [VarId], id: FunctionId, args: &'p [Expr], control: Place) -> Place {
        let summaries = self.summaries;
        let Some(callee) = summaries.get(id.0 as usize) else { return control };
        for (index, (&var, spread)) in results.iter().zip(&callee.results).enumerate() {
            self.instantiate(*spread, args, local(var), Cause::Result(id, index));
        }
        if let Some(Meeting { params, .. }) = callee.meeting {
            self.require(control, Extent::Workgroup, Barrier::Call(id));
            for (index, arg) in args.iter().enumerate() {
                if Spread::of_param(index).params & params != 0 {
                    let value = self.under(control, &[arg]);
                    self.require(value, Extent::Workgroup, Barrier::Argument(id, index));
                }
            }
        }
        let Some(spread) = callee.traps else { return control };
        let trapped = self.under(control, &[]);
        self.instantiate(spread, args, trapped, Cause::Trap(id));
        self.trap(trapped);
        self.exit(trapped)
    }

    fn call_external(&mut self, call: &'p ExternalCall, control: Place) {
        let id = call.external;
        self.require(control, Extent::Workgroup, Barrier::External(id));
        for (index, arg) in call.args.iter().enumerate() {
            self.require_same(arg, Barrier::ExternalArgument(id, index));
        }
        for &result in &call.results {
            self.graph.source(local(result), Extent::Workgroup.into(), Cause::External(id));
        }
    }

    /// Feeds `target` with what a callee's spread means for these arguments.
    fn instantiate(&mut self, spread: Spread, args: &'p [Expr], target: Place, cause: Cause) {
        self.graph.source(target, spread.extent.into(), cause);
        for (index, arg) in args.iter().enumerate() {
            if Spread::of_param(index).params & spread.params != 0 {
                self.feed(arg, target);
            }
        }
    }

    /// A loop whose body begins under the control `head`.
    fn repeat(&mut self, control: Place, head: Place, body: &'p [Node]) -> Place {
        self.loops.push(Loop { head, exits: None });
        self.block(body, Step::Body, head);
        match self.loops.pop().and_then(|inner| inner.exits) {
            Some(exits) => {
                let behind = self.under(control, &[]);
                self.graph.edge(exits, behind);
                self.leave_loop(exits);
                behind
            }
            None => control,
        }
    }

    /// A return or trap under a control; yields the control of whoever is left.
    fn exit(&mut self, control: Place) -> Place {
        self.leave_loop(control);
        self.under(control, &[])
    }

    /// Tells the innermost loop, if there is one, that the function may be left under a control.
    fn leave_loop(&mut self, control: Place) {
        let Some(around) = self.loops.last_mut() else { return };
        let exits = *around.exits.get_or_insert_with(|| self.graph.place());
        self.graph.edge(control, exits);
        self.graph.edge(control, around.head);
    }

    fn trap(&mut self, control: Place) {
        let traps = *self.traps.get_or_insert_with(|| self.graph.place());
        self.graph.edge(control, traps);
    }

    /// The control behind blocks that began under `inside`: the one before them, unless one of the blocks
    /// was left from its middle.
    fn join(&mut self, control: Place, inside: Place, ends: &[Place]) -> Place {
        if ends.iter().all(|&end| end == inside) {
            return control;
        }
        let behind = self.under(control, &[]);
        for &end in ends.iter().filter(|&&end| end != inside) {
            self.graph.edge(end, behind);
        }
        behind
    }

    /// A new control, fed by another one and by values.
    fn under(&mut self, control: Place, values: &[&'p Expr]) -> Place {
        let place = self.graph.place();
        self.graph.edge(control, place);
        for value in values {
            self.feed(value, place);
        }
        place
    }

    /// Feeds `target` with a value.
    fn feed(&mut self, value: &'p Expr, target: Place) {
        match value {
            Expr::Var(var) => self.graph.edge(local(*var), target),
            Expr::Builtin(builtin) => {
                let extent = match builtin {
                    Builtin::NumWorkgroups(_) | Builtin::WorkgroupSize(_) | Builtin::SubgroupSize => {
                        Extent::Grid
                    }
                    Builtin::WorkgroupId(_) => Extent::Workgroup,
                    Builtin::GlobalId(_)
                    | Builtin::LocalId(_)
                    | Builtin::SubgroupLane
                    | Builtin::SubgroupId => Extent::Invocation,
                };
                self.graph.source(target, extent.into(), Cause::Builtin(*builtin));
            }
            Expr::Load { buffer, .. } => {
                let space = self.program.buffers.get(buffer.0 as usize).map(|buffer| buffer.space);
                if space != Some(MemorySpace::Uniform) {
                    self.graph.source(target, Extent::Invocation.into(), Cause::Load(*buffer));
                }
            }
            _ => {}
        }
        operands(value).for_each(|operand| self.feed(operand, target));
    }

    fn require(&mut self, control: Place, extent: Extent, what: Barrier) {
        self.requirements.push(Requirement { control, extent, path: self.path.clone(), what });
    }

    /// Says that the workgroup must agree on a value.
    fn require_same(&mut self, value: &'p Expr, what: Barrier) {
        let place = self.graph.place();
        self.feed(value, place);
        self.require(place, Extent::Workgroup, what);
    }

    fn non_uniform(&self, requirement: &Requirement, spreads: &[Spread]) -> ValidationErrorKind {
        let name = |id: FunctionId| {
            let function = self.program.functions.get(id.0 as usize);
            function.map_or_else(|| format!("#{}", id.0), |function| shown(&function.name))
        };
        let external = |id: ExternalId| {
            let external = self.program.externals.get(id.0 as usize);
            external.map_or_else(|| format!("#{}", id.0), |external| shown(&external.name))
        };
        let what = self.meeting(requirement.what).unwrap_or_default();
        let barrier = match requirement.what {
            Barrier::Grid => "a grid barrier".to_owned(),
            Barrier::Workgroup => "a workgroup barrier".to_owned(),
            Barrier::Subgroup => "a subgroup operation".to_owned(),
            Barrier::Lane => "the lane of a subgroup broadcast".to_owned(),
            Barrier::External(id) => format!("the call of the external function `{}`", external(id)),
            Barrier::ExternalArgument(id, index) => {
                format!("argument {index} of the external function `{}`", external(id))
            }
            Barrier::Call(id) => format!("the {what} in `{}`", name(id)),
            Barrier::Argument(id, index) => {
                format!("the {what} in `{}`, which argument {index} decides,", name(id))
            }
        };
        let (who, remedy) = match requirement.extent {
            Extent::Grid => (
                "every invocation of the dispatch",
                "make every return and trap before it depend on nothing but uniform buffers and sizes",
            ),
            _ => (
                "every invocation of the workgroup",
                "move it out of the conditional code, or decide by values that the workgroup shares",
            ),
        };
        let (cause, through) = self.graph.cause(requirement.control, requirement.extent, spreads);
        let mut text = match cause {
            Some(Cause::Builtin(builtin)) => builtin_name(builtin),
            Some(Cause::Load(buffer)) => {
                let buffer = self.program.buffers.get(buffer.0 as usize);
                format!("a load from `{}`", buffer.map_or_else(String::new, |buffer| shown(&buffer.name)))
            }
            Some(Cause::Atomic) => "the result of an atomic".to_owned(),
            Some(Cause::External(id)) => format!("a result of the external function `{}`", external(id)),
            Some(Cause::Subgroup) => "the result of a subgroup operation".to_owned(),
            Some(Cause::Result(id, index)) => format!("result {index} of `{}`", name(id)),
            Some(Cause::Trap(id)) => format!("a trap inside `{}`", name(id)),
            Some(Cause::Parameter) => "a parameter".to_owned(),
            None => "the invocation".to_owned(),
        };
        let locals = through.iter().filter(|place| place.0 < self.function.locals.len());
        for (index, place) in locals.enumerate() {
            text.push_str(if index == 0 { " through " } else { ", " });
            text.push_str(&format!("`{}`", local_name(self.function, place.0 as u32)));
        }
        let of_value = match requirement.what {
            Barrier::Lane => Some("use shuffle, which takes a lane from each invocation"),
            Barrier::ExternalArgument(..) => {
                Some("give a value that the workgroup shares, or pass it in a buffer")
            }
            _ => None,
        };
        if let Some(remedy) = of_value {
            return ValidationErrorKind::NonUniformValue { what: barrier, cause: text, remedy };
        }
        ValidationErrorKind::NonUniform { barrier, who, cause: text, remedy }
    }
}

fn local(var: VarId) -> Place {
    Place(var.0 as usize)
}

fn builtin_name(builtin: Builtin) -> String {
    let (name, axis) = match builtin {
        Builtin::GlobalId(axis) => ("the global id", axis),
        Builtin::WorkgroupId(axis) => ("the workgroup id", axis),
        Builtin::LocalId(axis) => ("the local id", axis),
        Builtin::NumWorkgroups(axis) => ("the number of workgroups", axis),
        Builtin::WorkgroupSize(axis) => ("the workgroup size", axis),
        Builtin::SubgroupSize => return "the subgroup size".to_owned(),
        Builtin::SubgroupLane => return "the subgroup lane".to_owned(),
        Builtin::SubgroupId => return "the subgroup id".to_owned(),
    };
    let axis = match axis {
        Axis::X => 'x',
        Axis::Y => 'y',
        Axis::Z => 'z',
    };
    format!("{name} along {axis}")
}
