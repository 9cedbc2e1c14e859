//! Functions under construction: statements in order, blocks as closures.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use super::value::{Buffer, Value, Values, Var};
use crate::ir::{
    Atomic, AtomicOp, Expr, External, ExternalCall, ExternalId, Function, FunctionId, Local, MemoryOrdering,
    MemoryScope, MemorySpace, Node, ReduceOp, RmwOp, Subgroup, SubgroupOp, SwitchCase, VarId,
};
use crate::limits::MAX_NAME_LEN;
use crate::types::ScalarType;

/// A function as calls refer to it.
#[derive(Clone, Debug)]
pub struct FunctionHandle {
    id: FunctionId,
    name: Arc<str>,
    params: Arc<[ScalarType]>,
    results: Arc<[ScalarType]>,
}

impl FunctionHandle {
    /// The handle of `function`, which is or will be at `id` among the program's functions.
    pub fn new(id: FunctionId, function: &Function) -> FunctionHandle {
        FunctionHandle {
            id,
            name: function.name.as_str().into(),
            params: function.locals.iter().take(function.params as usize).map(|local| local.ty).collect(),
            results: function.results.as_slice().into(),
        }
    }

    /// Its place among the program's functions.
    pub fn id(&self) -> FunctionId {
        self.id
    }
}

/// An external function as calls refer to it.
#[derive(Clone, Debug)]
pub struct ExternalHandle {
    id: ExternalId,
    name: Arc<str>,
    params: Arc<[ScalarType]>,
    results: Arc<[ScalarType]>,
}

impl ExternalHandle {
    pub(super) fn new(id: ExternalId, external: &External) -> ExternalHandle {
        let External { name, params, results, .. } = external;
        let (params, results) = (params.as_slice().into(), results.as_slice().into());
        ExternalHandle { id, name: name.as_str().into(), params, results }
    }
}

/// A function under construction. Statements are added where the builder stands: a block's closure gets the
/// same builder, standing inside the block.
///
/// Names of locals are made unique with a suffix: the second `x` is `x_1`.
#[derive(Debug)]
pub struct FunctionBuilder {
    name: String,
    params: u32,
    results: Vec<ScalarType>,
    locals: Vec<Local>,
    /// Names taken, each with the suffix to try next.
    names: HashMap<String, u64>,
    block: Vec<Node>,
}

impl FunctionBuilder {
    /// A function without parameters and results.
    pub fn new(name: impl Into<String>) -> FunctionBuilder {
        FunctionBuilder {
            name: name.into(),
            params: 0,
            results: Vec::new(),
            locals: Vec::new(),
            names: HashMap::new(),
            block: Vec::new(),
        }
    }

    /// Adds a parameter. Parameters come before the first statement; a later one is no parameter but a
    /// local that nothing defines, and the validator says so.
    pub fn param(&mut self, name: &str, ty: ScalarType) -> Var {
        if self.locals.len() == self.params as usize {
            self.params += 1;
        }
        self.local(name, ty, false)
    }

    /// Adds a result.
    pub fn result(&mut self, ty: ScalarType) {
        self.results.push(ty);
    }

    /// The finished function.
    pub fn finish(self) -> Function {
        Function {
            name: self.name,
            params: self.params,
            results: self.results,
            locals: self.locals,
            body: self.block,
        }
    }

    /// Adds any statement.
    pub fn push(&mut self, node: Node) {
        self.block.push(node);
    }

    /// Adds a local that no statement defines yet: for use with [`push`](Self::push).
    pub fn local(&mut self, name: &str, ty: ScalarType, mutable: bool) -> Var {
        let name = self.unique(name);
        let id = VarId(self.locals.len() as u32);
        self.locals.push(Local { name, ty, mutable });
        Var { id, ty }
    }

    /// Defines an immutable local.
    pub fn let_(&mut self, name: &str, value: impl Into<Value>) -> Var {
        self.define(name, value.into(), false)
    }

    /// Defines a mutable local.
    pub fn var_(&mut self, name: &str, value: impl Into<Value>) -> Var {
        self.define(name, value.into(), true)
    }

    /// Changes a mutable local.
    pub fn assign(&mut self, var: Var, value: impl Into<Value>) {
        let value = value.into().fit(var.ty).into_expr();
        self.push(Node::Assign { var: var.id, value });
    }

    /// Stores one element; past the end, nothing.
    pub fn store(&mut self, buffer: Buffer, index: impl Into<Value>, value: impl Into<Value>) {
        let index = index.into().fit(ScalarType::U32).into_expr();
        let value = value.into().fit(buffer.element.scalar()).into_expr();
        self.push(Node::Store { buffer: buffer.id, index, value });
    }

    /// Runs a block if a `bool` holds.
    pub fn if_(&mut self, condition: impl Into<Value>, then: impl FnOnce(&mut Self)) {
        self.if_else(condition, then, |_| ());
    }

    /// Runs one of two blocks.
    pub fn if_else(
        &mut self,
        condition: impl Into<Value>,
        then: impl FnOnce(&mut Self),
        otherwise: impl FnOnce(&mut Self),
    ) {
        let condition = condition.into().into_expr();
        let (then, otherwise) = (self.inside(then), self.inside(otherwise));
        self.push(Node::If { condition, then, otherwise });
    }

    /// Runs the block that lists a `u32`.
    ///
    /// ```
    /// # use vyre_foundation::{ScalarType, builder::FunctionBuilder};
    /// let mut f = FunctionBuilder::new("cost");
    /// f.result(ScalarType::U32);
    /// let kind = f.param("kind", ScalarType::U32);
    /// f.switch(kind, |s| {
    ///     s.case([0, 1], |f| f.ret(10));
    ///     s.default(|f| f.ret(0));
    /// });
    /// ```
    pub fn switch(&mut self, selector: impl Into<Value>, arms: impl FnOnce(&mut SwitchBuilder<'_>)) {
        let selector = selector.into().fit(ScalarType::U32).into_expr();
        let mut switch = SwitchBuilder { function: self, cases: Vec::new(), default: Vec::new() };
        arms(&mut switch);
        let SwitchBuilder { cases, default, .. } = switch;
        self.push(Node::Switch { selector, cases, default });
    }

    /// Counts from `start` up to but not including `end` by ones; all are `u32`.
    pub fn for_(
        &mut self,
        name: &str,
        start: impl Into<Value>,
        end: impl Into<Value>,
        body: impl FnOnce(&mut Self, Var),
    ) {
        self.for_step(name, start, end, 1, body);
    }

    /// Counts from `start` up to but not including `end` by `step`; all are `u32`.
    pub fn for_step(
        &mut self,
        name: &str,
        start: impl Into<Value>,
        end: impl Into<Value>,
        step: u32,
        body: impl FnOnce(&mut Self, Var),
    ) {
        let start = start.into().fit(ScalarType::U32).into_expr();
        let end = end.into().fit(ScalarType::U32).into_expr();
        let var = self.local(name, ScalarType::U32, false);
        let body = self.inside(|f| body(f, var));
        self.push(Node::For { var: var.id, start, end, step, body });
    }

    /// Runs a block as long as a `bool` holds before it.
    pub fn while_(&mut self, condition: impl Into<Value>, body: impl FnOnce(&mut Self)) {
        let condition = condition.into().into_expr();
        let body = self.inside(body);
        self.push(Node::While { condition, body });
    }

    /// Leaves the innermost loop.
    pub fn break_(&mut self) {
        self.push(Node::Break);
    }

    /// Goes on with the next round of the innermost loop.
    pub fn continue_(&mut self) {
        self.push(Node::Continue);
    }

    /// Leaves the function with its results: `f.ret(())`, `f.ret(x)`, `f.ret((x, y + 1))`.
    pub fn ret(&mut self, values: impl Values) {
        let values = fit_each(values, &self.results);
        self.push(Node::Return(values));
    }

    /// Opens a scope.
    pub fn block(&mut self, body: impl FnOnce(&mut Self)) {
        let body = self.inside(body);
        self.push(Node::Block(body));
    }

    /// Waits for the workgroup.
    pub fn barrier(&mut self) {
        self.push(Node::WorkgroupBarrier);
    }

    /// Waits for the whole dispatch.
    pub fn grid_barrier(&mut self) {
        self.push(Node::GridBarrier);
    }

    /// Ends the invocation with a code, a `u32`.
    pub fn trap(&mut self, code: impl Into<Value>) {
        let code = code.into().fit(ScalarType::U32).into_expr();
        self.push(Node::Trap(code));
    }

    /// Calls a function; its results are new locals, named after it.
    pub fn call(&mut self, function: &FunctionHandle, args: impl Values) -> Vec<Var> {
        let args = fit_each(args, &function.params);
        let results: Vec<Var> =
            function.results.iter().map(|&ty| self.local(&function.name, ty, false)).collect();
        let ids = results.iter().map(|var| var.id).collect();
        self.push(Node::Call { results: ids, function: function.id, args });
        results
    }

    /// Calls a function of one result.
    pub fn call_one(&mut self, function: &FunctionHandle, args: impl Values) -> Var {
        let none = Var { id: VarId(u32::MAX), ty: ScalarType::U32 };
        self.call(function, args).first().copied().unwrap_or(none)
    }

    /// Any operation of a subgroup; see [`crate::semantics`].
    pub fn subgroup(&mut self, op: SubgroupOp, value: impl Into<Value>) -> Var {
        let value = value.into();
        let (name, ty) = match op {
            SubgroupOp::Ballot => ("ballot", ScalarType::U64),
            SubgroupOp::Any | SubgroupOp::All => ("vote", ScalarType::Bool),
            SubgroupOp::Reduce(_) | SubgroupOp::InclusiveScan(_) | SubgroupOp::ExclusiveScan(_) => {
                ("combined", value.ty())
            }
            _ => ("moved", value.ty()),
        };
        let var = self.local(name, ty, false);
        self.push(Node::Subgroup(Subgroup { op, value: value.into_expr(), result: var.id }));
        var
    }

    /// The values of all lanes of the subgroup combined.
    pub fn subgroup_reduce(&mut self, op: ReduceOp, value: impl Into<Value>) -> Var {
        self.subgroup(SubgroupOp::Reduce(op), value)
    }

    /// The value of the lane that each invocation chooses, a `u32`.
    pub fn subgroup_shuffle(&mut self, value: impl Into<Value>, lane: impl Into<Value>) -> Var {
        self.subgroup(SubgroupOp::Shuffle(lane.into().fit(ScalarType::U32).into_expr()), value)
    }

    /// Calls an external function, once for the workgroup; its results are new locals, named after it.
    pub fn call_external(
        &mut self,
        external: &ExternalHandle,
        args: impl Values,
        buffers: impl IntoIterator<Item = Buffer>,
    ) -> Vec<Var> {
        let args = fit_each(args, &external.params);
        let results: Vec<Var> =
            external.results.iter().map(|&ty| self.local(&external.name, ty, false)).collect();
        self.push(Node::CallExternal(ExternalCall {
            external: external.id,
            args,
            buffers: buffers.into_iter().map(|buffer| buffer.id).collect(),
            results: results.iter().map(|var| var.id).collect(),
        }));
        results
    }

    /// Any atomic access. The result is a new local, `None` for a store.
    pub fn atomic(
        &mut self,
        op: AtomicOp,
        buffer: Buffer,
        index: impl Into<Value>,
        ordering: MemoryOrdering,
        scope: MemoryScope,
    ) -> Option<Var> {
        let name = match op {
            AtomicOp::Store(_) => None,
            AtomicOp::Load => Some("loaded"),
            AtomicOp::Rmw(..) | AtomicOp::CompareExchange { .. } => Some("old"),
        };
        let var = name.map(|name| self.local(name, buffer.element.scalar(), false));
        let index = index.into().fit(ScalarType::U32).into_expr();
        let result = var.map(|var| var.id);
        self.push(Node::Atomic(Atomic { op, buffer: buffer.id, index, ordering, scope, result }));
        var
    }

    /// Loads atomically, relaxed, in the widest scope that the buffer's space allows.
    pub fn atomic_load(&mut self, buffer: Buffer, index: impl Into<Value>) -> Var {
        self.relaxed(AtomicOp::Load, buffer, index)
    }

    /// Stores atomically, relaxed, in the widest scope that the buffer's space allows.
    pub fn atomic_store(&mut self, buffer: Buffer, index: impl Into<Value>, value: impl Into<Value>) {
        let value = value.into().fit(buffer.element.scalar()).into_expr();
        let scope = widest_scope(buffer.space);
        self.atomic(AtomicOp::Store(value), buffer, index, MemoryOrdering::Relaxed, scope);
    }

    /// Writes `replacement` if the element equals `expected`, relaxed; yields the value before.
    pub fn atomic_compare_exchange(
        &mut self,
        buffer: Buffer,
        index: impl Into<Value>,
        expected: impl Into<Value>,
        replacement: impl Into<Value>,
    ) -> Var {
        let ty = buffer.element.scalar();
        let expected = expected.into().fit(ty).into_expr();
        let replacement = replacement.into().fit(ty).into_expr();
        self.relaxed(AtomicOp::CompareExchange { expected, replacement }, buffer, index)
    }

    /// Reads, combines and writes back, relaxed; yields the value before.
    pub fn atomic_rmw(
        &mut self,
        op: RmwOp,
        buffer: Buffer,
        index: impl Into<Value>,
        value: impl Into<Value>,
    ) -> Var {
        let value = value.into().fit(buffer.element.scalar()).into_expr();
        self.relaxed(AtomicOp::Rmw(op, value), buffer, index)
    }

    /// Adds atomically, relaxed; yields the value before.
    pub fn atomic_add(&mut self, buffer: Buffer, index: impl Into<Value>, value: impl Into<Value>) -> Var {
        self.atomic_rmw(RmwOp::Add, buffer, index, value)
    }

    /// Replaces atomically, relaxed; yields the value before.
    pub fn atomic_exchange(
        &mut self,
        buffer: Buffer,
        index: impl Into<Value>,
        value: impl Into<Value>,
    ) -> Var {
        self.atomic_rmw(RmwOp::Exchange, buffer, index, value)
    }

    /// Only for the operations that have a result.
    fn relaxed(&mut self, op: AtomicOp, buffer: Buffer, index: impl Into<Value>) -> Var {
        // A read-modify-write never crosses the bus, so only loads and stores take the system's scope.
        let scope = match op {
            AtomicOp::Load | AtomicOp::Store(_) => widest_scope(buffer.space),
            AtomicOp::Rmw(..) | AtomicOp::CompareExchange { .. }
                if buffer.space == MemorySpace::Workgroup =>
            {
                MemoryScope::Workgroup
            }
            AtomicOp::Rmw(..) | AtomicOp::CompareExchange { .. } => MemoryScope::Device,
        };
        let none = Var { id: VarId(u32::MAX), ty: buffer.element.scalar() };
        self.atomic(op, buffer, index, MemoryOrdering::Relaxed, scope).unwrap_or(none)
    }

    fn define(&mut self, name: &str, value: Value, mutable: bool) -> Var {
        let var = self.local(name, value.ty(), mutable);
        self.push(Node::Let { var: var.id, value: value.into_expr() });
        var
    }

    fn inside(&mut self, body: impl FnOnce(&mut Self)) -> Vec<Node> {
        let outside = mem::take(&mut self.block);
        body(self);
        mem::replace(&mut self.block, outside)
    }

    fn unique(&mut self, name: &str) -> String {
        let mut candidate = name.to_owned();
        while self.names.contains_key(&candidate) {
            let count = self.names.entry(name.to_owned()).or_insert(0);
            *count += 1;
            let suffix = format!("_{count}");
            let room = MAX_NAME_LEN.saturating_sub(suffix.len());
            let prefix = name.get(..name.floor_char_boundary(room)).unwrap_or(name);
            candidate = format!("{prefix}{suffix}");
        }
        self.names.insert(candidate.clone(), 0);
        candidate
    }
}

/// The arms of a switch under construction.
#[derive(Debug)]
pub struct SwitchBuilder<'f> {
    function: &'f mut FunctionBuilder,
    cases: Vec<SwitchCase>,
    default: Vec<Node>,
}

impl SwitchBuilder<'_> {
    /// Runs a block for any of these values.
    pub fn case(&mut self, values: impl IntoIterator<Item = u32>, body: impl FnOnce(&mut FunctionBuilder)) {
        let body = self.function.inside(body);
        self.cases.push(SwitchCase { values: values.into_iter().collect(), body });
    }

    /// Runs a block for every other value. Said twice, the blocks follow one another.
    pub fn default(&mut self, body: impl FnOnce(&mut FunctionBuilder)) {
        let body = self.function.inside(body);
        self.default.extend(body);
    }
}

fn widest_scope(space: MemorySpace) -> MemoryScope {
    match space {
        MemorySpace::Workgroup => MemoryScope::Workgroup,
        MemorySpace::HostVisible => MemoryScope::System,
        MemorySpace::Global | MemorySpace::Uniform => MemoryScope::Device,
    }
}

fn fit_each(values: impl Values, types: &[ScalarType]) -> Vec<Expr> {
    let mut types = types.iter();
    let fit = |value: Value| match types.next() {
        Some(&ty) => value.fit(ty).into_expr(),
        None => value.into_expr(),
    };
    values.into_values().into_iter().map(fit).collect()
}
