//! The statements of one function: scopes, mutability, control flow, calls.

use std::collections::HashSet;

use super::error::ValidationErrorKind;
use super::report::{Report, Step, at, local_name, shown};
use crate::ir::{
    Expr, ExternalCall, Function, FunctionId, Granularity, Node, Program, ProgramKind, SwitchCase, VarId,
};
use crate::types::{Literal, ScalarType};

/// What is noted of a function on the way.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// The functions it calls, once for every call.
    pub(super) calls: Vec<FunctionId>,
    /// Whether it has subgroup operations, or asks about subgroups.
    pub(super) subgroups: bool,
}

/// Checks the body of a function; yields what it uses.
pub(super) fn check(program: &Program, function: &Function, entry: bool, report: &mut Report) -> Uses {
    let mut locals = vec![Scope::Undefined; function.locals.len()];
    locals.iter_mut().take(function.params as usize).for_each(|local| *local = Scope::Visible);
    let mut checker = Checker {
        program,
        function,
        entry,
        report,
        path: Vec::new(),
        locals,
        visible: Vec::new(),
        loops: 0,
        uses: Uses::default(),
    };
    let end = checker.block(&function.body, Step::Body);
    if end.reached && !function.results.is_empty() {
        checker.fail(ValidationErrorKind::MissingReturn);
    }
    checker.all_defined();
    checker.uses
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Undefined,
    Visible,
    Left,
}

/// How control leaves a statement or a block.
#[derive(Clone, Copy)]
struct End {
    /// Whether the next statement may be reached.
    reached: bool,
    /// Whether the innermost loop may be left from inside.
    breaks: bool,
}

impl End {
    const NEXT: End = End { reached: true, breaks: false };
    const AWAY: End = End { reached: false, breaks: false };

    fn or(self, other: End) -> End {
        End { reached: self.reached || other.reached, breaks: self.breaks || other.breaks }
    }
}

pub(super) struct Checker<'p, 'r> {
    pub(super) program: &'p Program,
    function: &'p Function,
    entry: bool,
    report: &'r mut Report,
    path: Vec<Step>,
    locals: Vec<Scope>,
    /// Locals in scope, parameters left out, the innermost block's last.
    visible: Vec<VarId>,
    loops: usize,
    pub(super) uses: Uses,
}

impl<'p> Checker<'p, '_> {
    pub(super) fn fail(&mut self, kind: ValidationErrorKind) {
        let (function, entry, path) = (self.function, self.entry, &self.path);
        self.report.add(|| at(function, entry, path), kind);
    }

    fn all_defined(&mut self) {
        let never = |(local, &scope): (_, &Scope)| (scope == Scope::Undefined).then_some(local);
        let missing: Vec<usize> = self.locals.iter().enumerate().filter_map(never).collect();
        for local in missing {
            let local = local_name(self.function, local as u32);
            self.fail(ValidationErrorKind::NeverDefined { local });
        }
    }

    /// Checks a block; its locals are out of scope afterwards.
    fn block(&mut self, nodes: &'p [Node], step: impl Fn(usize) -> Step) -> End {
        let outer = self.visible.len();
        let mut end = End::NEXT;
        for (index, node) in nodes.iter().enumerate() {
            self.path.push(step(index));
            let next = self.node(node);
            self.path.pop();
            end = End { reached: end.reached && next.reached, breaks: end.breaks || next.breaks };
        }
        self.leave(outer);
        end
    }

    fn node(&mut self, node: &'p Node) -> End {
        match node {
            Node::Let { var, value } => {
                let found = self.expr(value);
                let expected = self.define(*var, None);
                self.same_type("the value", expected, found);
            }
            Node::Assign { var, value } => {
                let found = self.expr(value);
                let expected = self.local(*var);
                if self.function.locals.get(var.0 as usize).is_some_and(|local| !local.mutable) {
                    let local = local_name(self.function, var.0);
                    self.fail(ValidationErrorKind::NotMutable { local });
                }
                self.same_type("the value", expected, found);
            }
            Node::Store { buffer, index, value } => self.store(*buffer, index, value),
            Node::Atomic(atomic) => {
                let found = self.atomic(atomic);
                if let Some(result) = atomic.result {
                    let expected = self.define(result, Some("the result of an atomic"));
                    self.same_type("the element", expected, found);
                }
            }
            Node::Subgroup(subgroup) => {
                self.not_in_lane_items("a subgroup operation");
                let found = self.subgroup(subgroup);
                let expected = self.define(subgroup.result, Some("the result of a subgroup operation"));
                self.same_type("the value of the subgroup operation", expected, found);
            }
            Node::If { condition, then, otherwise } => {
                self.expect("the condition", condition, ScalarType::Bool);
                let then = self.block(then, Step::Then);
                return then.or(self.block(otherwise, Step::Otherwise));
            }
            Node::Switch { selector, cases, default } => return self.switch(selector, cases, default),
            Node::For { var, start, end, step, body } => {
                self.expect("the start", start, ScalarType::U32);
                self.expect("the end", end, ScalarType::U32);
                if *step == 0 {
                    self.fail(ValidationErrorKind::ZeroStep);
                }
                let outer = self.visible.len();
                let expected = self.define(*var, Some("a loop counter"));
                self.same_type("the counter", expected, Some(ScalarType::U32));
                self.body(body);
                self.leave(outer);
            }
            Node::While { condition, body } => {
                self.expect("the condition", condition, ScalarType::Bool);
                let forever = matches!(condition, Expr::Literal(Literal::Bool(true)));
                let end = self.body(body);
                return if forever && !end.breaks { End::AWAY } else { End::NEXT };
            }
            Node::Break => {
                self.inside_loop("break");
                return End { reached: false, breaks: true };
            }
            Node::Continue => {
                self.inside_loop("continue");
                return End::AWAY;
            }
            Node::Return(values) => {
                let results = &self.function.results;
                self.values("result", values, results.len(), results.iter().copied());
                return End::AWAY;
            }
            Node::Block(body) => return self.block(body, Step::Block),
            Node::WorkgroupBarrier => self.not_in_lane_items("a workgroup barrier"),
            Node::GridBarrier => self.grid_barrier(),
            Node::Trap(code) => {
                self.expect("the trap code", code, ScalarType::U32);
                return End::AWAY;
            }
            Node::Call { results, function, args } => self.call(results, *function, args),
            Node::CallExternal(call) => self.call_external(call),
        }
        End::NEXT
    }

    fn switch(&mut self, selector: &'p Expr, cases: &'p [SwitchCase], default: &'p [Node]) -> End {
        self.expect("the selector", selector, ScalarType::U32);
        let mut values = HashSet::new();
        let mut end = End::AWAY;
        for (index, case) in cases.iter().enumerate() {
            if case.values.is_empty() {
                self.fail(ValidationErrorKind::EmptyCase { case: index });
            }
            for &value in &case.values {
                if !values.insert(value) {
                    self.fail(ValidationErrorKind::DuplicateCase { value });
                }
            }
            end = end.or(self.block(&case.body, |node| Step::Case(index, node)));
        }
        end.or(self.block(default, Step::Default))
    }

    /// The body of a loop.
    fn body(&mut self, nodes: &'p [Node]) -> End {
        self.loops += 1;
        let end = self.block(nodes, Step::Body);
        self.loops -= 1;
        end
    }

    fn inside_loop(&mut self, statement: &'static str) {
        if self.loops == 0 {
            self.fail(ValidationErrorKind::OutsideLoop { statement });
        }
    }

    fn not_in_lane_items(&mut self, what: &'static str) {
        if self.program.kind == ProgramKind::Item(Granularity::Lane) {
            self.fail(ValidationErrorKind::NotHere {
                what,
                place: "in an item of lane granularity",
                remedy: "make the program an item of workgroup granularity",
            });
        }
    }

    fn grid_barrier(&mut self) {
        let (place, remedy) = if self.program.kind != ProgramKind::Kernel {
            ("in an item program", "dispatch a kernel")
        } else if !self.entry || self.path.len() != 1 {
            ("inside a block or a function", "move it to the top level of the entry")
        } else {
            return;
        };
        self.fail(ValidationErrorKind::NotHere { what: "a grid barrier", place, remedy });
    }

    fn call(&mut self, results: &[VarId], id: FunctionId, args: &'p [Expr]) {
        let program = self.program;
        let Some(callee) = program.functions.get(id.0 as usize) else {
            let count = program.functions.len();
            self.fail(ValidationErrorKind::NoSuch { what: "function", id: id.0, count });
            return self.call_of_nothing(results, args);
        };
        self.uses.calls.push(id);
        let params = callee.locals.iter().map(|local| local.ty);
        self.values("argument", args, callee.params as usize, params);
        self.results(results, &callee.name, &callee.results);
    }

    fn call_external(&mut self, call: &'p ExternalCall) {
        self.not_in_lane_items("a call of an external function");
        let externals = &self.program.externals;
        let Some(external) = externals.get(call.external.0 as usize) else {
            let (id, count) = (call.external.0, externals.len());
            self.fail(ValidationErrorKind::NoSuch { what: "external function", id, count });
            return self.call_of_nothing(&call.results, &call.args);
        };
        self.values("argument", &call.args, external.params.len(), external.params.iter().copied());
        self.external_buffers(external, &call.buffers);
        self.results(&call.results, &external.name, &external.results);
    }

    /// Goes through a call of a function that does not exist.
    fn call_of_nothing(&mut self, results: &[VarId], args: &'p [Expr]) {
        for arg in args {
            self.expr(arg);
        }
        for &result in results {
            self.define(result, Some("the result of a call"));
        }
    }

    /// Defines the results of a call.
    fn results(&mut self, results: &[VarId], callee: &str, types: &[ScalarType]) {
        if results.len() != types.len() {
            self.fail(ValidationErrorKind::Count {
                what: format!("locals for the results of `{}`", shown(callee)),
                expected: types.len(),
                found: results.len(),
            });
        }
        let mut types = types.iter();
        for &result in results {
            let expected = self.define(result, Some("the result of a call"));
            self.same_type("the result of the call", expected, types.next().copied());
        }
    }

    /// Checks values in order against `expected` of the types.
    fn values(
        &mut self,
        what: &'static str,
        values: &'p [Expr],
        expected: usize,
        types: impl Iterator<Item = ScalarType>,
    ) {
        if values.len() != expected {
            let (what, found) = (format!("{what}s"), values.len());
            self.fail(ValidationErrorKind::Count { what, expected, found });
        }
        let mut types = types.take(expected);
        for (index, value) in values.iter().enumerate() {
            let found = self.expr(value);
            if let (Some(expected), Some(found)) = (types.next(), found)
                && expected != found
            {
                let what = format!("{what} {index}");
                self.fail(ValidationErrorKind::Type { what, expected, found });
            }
        }
    }

    /// Brings a local into scope; yields its type. `role` is what only an immutable local can be.
    fn define(&mut self, var: VarId, role: Option<&'static str>) -> Option<ScalarType> {
        let index = var.0 as usize;
        let (Some(local), Some(scope)) = (self.function.locals.get(index), self.locals.get_mut(index)) else {
            self.no_such_local(var);
            return None;
        };
        let first = *scope == Scope::Undefined;
        if first {
            *scope = Scope::Visible;
            self.visible.push(var);
        } else {
            self.fail(ValidationErrorKind::DefinedTwice { local: shown(&local.name) });
        }
        if let (Some(role), true) = (role, local.mutable) {
            self.fail(ValidationErrorKind::MustBeImmutable { local: shown(&local.name), role });
        }
        Some(local.ty)
    }

    /// Takes the locals defined since `visible` had this length out of scope.
    fn leave(&mut self, outer: usize) {
        for var in self.visible.drain(outer..) {
            if let Some(scope) = self.locals.get_mut(var.0 as usize) {
                *scope = Scope::Left;
            }
        }
    }

    /// The type of a local that is used.
    pub(super) fn local(&mut self, var: VarId) -> Option<ScalarType> {
        let index = var.0 as usize;
        let (Some(local), Some(&scope)) = (self.function.locals.get(index), self.locals.get(index)) else {
            self.no_such_local(var);
            return None;
        };
        let (problem, remedy) = match scope {
            Scope::Visible => return Some(local.ty),
            Scope::Undefined => ("before it is defined", "move the definition up"),
            Scope::Left => ("outside of the block that defines it", "define it before the block"),
        };
        self.fail(ValidationErrorKind::Scope { local: shown(&local.name), problem, remedy });
        Some(local.ty)
    }

    fn no_such_local(&mut self, var: VarId) {
        let count = self.function.locals.len();
        self.fail(ValidationErrorKind::NoSuch { what: "local", id: var.0, count });
    }
}
