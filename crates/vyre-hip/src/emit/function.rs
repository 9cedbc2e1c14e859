//! Statements.

use vyre_foundation::ir::{ExternalCall, ReduceOp, Subgroup, SubgroupOp};
use vyre_foundation::semantics::scan_start;
use vyre_foundation::validate::Step;
use vyre_foundation::{
    Atomic, AtomicOp, BufferId, Expr, Function, FunctionId, Literal, MemoryOrdering, MemoryScope,
    MemorySpace, Node, ProgramKind, RmwOp, ScalarType, SwitchCase, ValidatedProgram, VarId,
};

use super::analysis::{Analysis, LoopForm, loaded};
use super::expression::{Expressions, NOTHING, local_name};
use super::externals;
use super::source::Source;

/// Writes the statements of a function.
pub(super) struct Body<'p, 's> {
    pub(super) program: &'p ValidatedProgram,
    pub(super) analysis: &'s Analysis,
    pub(super) out: &'s mut Source,
    expressions: Expressions<'p>,
    function: &'p Function,
    /// Whether the function is the program's entry.
    entry: bool,
    /// Whether the program is one of items, whose outcomes are results.
    item: bool,
    /// What ends the invocation here.
    leave: Vec<String>,
    /// What stands before a return in the entry.
    before_return: Option<String>,
    path: Vec<Step>,
    around: Vec<Around>,
    /// Loops so far.
    loops: u32,
    /// Grid barriers so far.
    grid_barriers: u32,
}

/// What a `break` of C++ would leave.
enum Around {
    Loop {
        number: u32,
        /// The local whose chunks must stop as well.
        chunks: Option<String>,
        /// Whether something jumps behind it.
        label: bool,
    },
    Switch,
}

impl<'p, 's> Body<'p, 's> {
    /// A function that the entry reaches.
    pub(super) fn function(
        program: &'p ValidatedProgram,
        analysis: &'s Analysis,
        out: &'s mut Source,
        id: FunctionId,
        function: &'p Function,
    ) {
        Body::callable(program, analysis, out, function, Some(id), &format!("f_{}", function.name));
    }

    /// The entry of an item program, as a function.
    pub(super) fn item(
        program: &'p ValidatedProgram,
        analysis: &'s Analysis,
        out: &'s mut Source,
        name: &str,
    ) {
        Body::callable(program, analysis, out, &program.program().entry, None, name);
    }

    /// A function that is called; the entry if it has no id.
    fn callable(
        program: &'p ValidatedProgram,
        analysis: &'s Analysis,
        out: &'s mut Source,
        function: &'p Function,
        id: Option<FunctionId>,
        name: &str,
    ) {
        let leaves = id.map_or_else(|| analysis.leaves_within(&function.body), |id| analysis.leaves(id));
        let params = (0..function.params).map(|index| {
            let ty = function.locals.get(index as usize).map_or("u32", |local| local.ty.name());
            format!(", const {ty} {}", local_name(function, index))
        });
        let results = function.results.iter().enumerate().map(|(index, ty)| format!(", {ty}& r_{index}"));
        let rest: String = params.chain(results).collect();
        let returns = if leaves { "bool" } else { "void" };
        out.unmark();
        if leaves {
            out.line("// True if it ended the invocation.");
        }
        out.open(format_args!("VYRE_FUNCTION {returns} {name}(Context& vyre{rest}) {{"));
        let leave = vec!["return true;".to_owned()];
        let mut body = Body::new(program, analysis, out, function, id.is_none(), leave);
        body.acquire();
        if leaves {
            body.before_return = Some("return false;".to_owned());
        }
        body.block(&function.body, Step::Body);
        if leaves && !matches!(function.body.last(), Some(Node::Return(_))) {
            out.line("return false;");
        }
        out.unmark();
        out.close("}");
        out.gap();
    }

    /// Statements of the entry; `leave` is what ends the invocation.
    pub(super) fn entry(
        program: &'p ValidatedProgram,
        analysis: &'s Analysis,
        out: &'s mut Source,
        leave: Vec<String>,
    ) -> Body<'p, 's> {
        Body::new(program, analysis, out, &program.program().entry, true, leave)
    }

    fn new(
        program: &'p ValidatedProgram,
        analysis: &'s Analysis,
        out: &'s mut Source,
        function: &'p Function,
        entry: bool,
        leave: Vec<String>,
    ) -> Body<'p, 's> {
        Body {
            program,
            analysis,
            out,
            expressions: Expressions::new(program.program(), function),
            function,
            entry,
            item: program.program().kind != ProgramKind::Kernel,
            leave,
            before_return: None,
            path: Vec::new(),
            around: Vec::new(),
            loops: 0,
            grid_barriers: 0,
        }
    }

    fn block(&mut self, nodes: &'p [Node], step: impl Fn(usize) -> Step) {
        for (index, node) in nodes.iter().enumerate() {
            self.statement(node, step(index));
        }
    }

    /// One statement and what is in it.
    pub(super) fn statement(&mut self, node: &'p Node, step: Step) {
        self.path.push(step);
        self.mark();
        self.node(node);
        self.path.pop();
    }

    fn mark(&mut self) {
        self.out.mark(self.entry, self.function, &self.path);
    }

    /// Before the plain loads of an item: what others have stored may be in no cache of this multiprocessor.
    fn acquire(&mut self) {
        if !self.item {
            return;
        }
        let loaded = loaded(&self.function.body).into_iter().map(BufferId);
        for buffer in loaded.filter(|&buffer| self.is_shared_with_others(buffer)).collect::<Vec<_>>() {
            let line = format!("vyre_acquire(vyre, {});", self.expressions.buffer(buffer));
            self.out.line(line);
        }
    }

    /// After an item's store: its completion waits until others see it.
    fn stored(&mut self, buffer: BufferId) {
        let space = self.expressions.decl(buffer).map(|decl| decl.space);
        let memory = match space {
            Some(MemorySpace::HostVisible) => "HOST",
            Some(MemorySpace::Workgroup) | None => return,
            Some(_) => "DEVICE",
        };
        if self.item {
            self.out.line(format_args!("vyre.stored |= VYRE_STORED_{memory};"));
        }
    }

    fn is_shared_with_others(&self, buffer: BufferId) -> bool {
        self.expressions.decl(buffer).is_some_and(|decl| decl.space != MemorySpace::Workgroup)
    }

    fn text(&self, expr: &Expr) -> String {
        self.expressions.text(expr)
    }

    fn node(&mut self, node: &'p Node) {
        match node {
            Node::Let { var, value } => {
                let line = format!("{} = {};", self.declared(*var), self.text(value));
                self.out.line(line);
                let scope = self.expressions.scope();
                self.expressions.bounds.define(&scope, *var, value);
            }
            Node::Assign { var, value } => {
                let line = format!("{} = {};", self.expressions.local(var.0), self.text(value));
                self.out.line(line);
            }
            Node::Store { buffer, index, value } => {
                let access = self.expressions.access(*buffer, index, "store", "put");
                let (name, index) = (self.expressions.buffer(*buffer), self.text(index));
                let line = format!("{name}.{access}({index}, {});", self.text(value));
                self.out.line(line);
                self.stored(*buffer);
            }
            Node::Atomic(atomic) => self.atomic(atomic),
            Node::If { condition, then, otherwise } => self.branch(condition, then, otherwise),
            Node::Switch { selector, cases, default } => self.switch(selector, cases, default),
            Node::For { var, start, end, step, body } => self.count(*var, start, end, *step, body),
            Node::While { condition, body } => self.repeat(condition, body),
            Node::Break => self.leave_loop(),
            Node::Continue => self.out.line("continue;"),
            Node::Return(values) => self.give(values),
            Node::Block(body) => {
                self.out.open("{");
                self.block(body, Step::Block);
                self.out.close("}");
            }
            Node::WorkgroupBarrier => self.out.line(self.barrier()),
            Node::GridBarrier => {
                self.grid_barriers += 1;
                self.out.line(format_args!("vyre_grid_barrier(vyre, {}u);", self.grid_barriers));
                self.leave_if("vyre.left");
            }
            Node::Subgroup(subgroup) => self.subgroup(subgroup),
            Node::Trap(code) => {
                let line = format!("vyre_trap(vyre, {});", self.text(code));
                self.out.line(line);
                self.leave();
            }
            Node::Call { results, function, args } => self.call(results, *function, args),
            Node::CallExternal(call) => self.call_external(call),
        }
    }

    /// Type and name of a local where it is defined.
    fn declared(&self, var: VarId) -> String {
        let (constant, ty) = match self.function.locals.get(var.0 as usize) {
            Some(local) => (if local.mutable { "" } else { "const " }, local.ty.name()),
            None => ("", "u32"),
        };
        format!("{constant}{ty} {}", self.expressions.local(var.0))
    }

    /// Ends the invocation.
    fn leave(&mut self) {
        for line in &self.leave {
            self.out.line(line);
        }
    }

    fn leave_if(&mut self, condition: &str) {
        match self.leave.as_slice() {
            [line] => self.out.line(format_args!("if ({condition}) {line}")),
            _ => {
                self.out.open(format_args!("if ({condition}) {{"));
                self.leave();
                self.out.close("}");
            }
        }
    }

    /// Those of items let go of who was cut short.
    fn barrier(&self) -> &'static str {
        if self.item { "vyre_item_barrier();" } else { "vyre_barrier();" }
    }

    fn give(&mut self, values: &[Expr]) {
        if self.entry && !self.item {
            return self.leave();
        }
        for (index, value) in values.iter().enumerate() {
            let line = format!("r_{index} = {};", self.text(value));
            self.out.line(line);
        }
        self.out.line(self.before_return.as_deref().unwrap_or("return;"));
    }

    fn call(&mut self, results: &[VarId], function: FunctionId, args: &[Expr]) {
        let name = self.program.program().functions.get(function.0 as usize).map(|function| &function.name);
        let mut text = format!("f_{}(vyre", name.map_or("", String::as_str));
        for arg in args {
            text.push_str(", ");
            text.push_str(&self.text(arg));
        }
        for &var in results {
            let declared = self.declared(var);
            self.out.line(format_args!("{};", declared.trim_start_matches("const ")));
            text.push_str(", ");
            text.push_str(&self.expressions.local(var.0));
        }
        text.push(')');
        if self.analysis.leaves(function) {
            self.leave_if(&text);
        } else {
            self.out.line(format_args!("{text};"));
        }
    }

    /// Every invocation takes part; none of the functions there are has results.
    fn call_external(&mut self, call: &ExternalCall) {
        let declared = self.program.program().externals.get(call.external.0 as usize);
        let function = declared.and_then(|declared| externals::function(&declared.name));
        let mut text = format!("{}(vyre", function.unwrap_or(NOTHING));
        let args = call.args.iter().map(|arg| self.text(arg));
        for arg in args.chain(call.buffers.iter().map(|&buffer| self.expressions.buffer(buffer))) {
            text.push_str(", ");
            text.push_str(&arg);
        }
        if self.item {
            // One acquires for all: the barrier passes it on.
            self.out.line("if (vyre.local == 0u) vyre_acquire(vyre);");
        }
        for &buffer in &call.buffers {
            self.stored(buffer);
        }
        self.out.line(self.barrier());
        self.out.line(format_args!("{text});"));
        self.leave_if("vyre.left");
        self.out.line(self.barrier());
    }

    fn atomic(&mut self, atomic: &Atomic) {
        let (operation, operands) = match &atomic.op {
            AtomicOp::Load => ("load", [None, None]),
            AtomicOp::Store(value) => ("store", [Some(value), None]),
            AtomicOp::Rmw(op, value) => (rmw_name(*op), [Some(value), None]),
            AtomicOp::CompareExchange { expected, replacement } => {
                ("compare_exchange", [Some(expected), Some(replacement)])
            }
        };
        let (ordering, scope) = (ordering_name(atomic.ordering), scope_name(atomic.scope));
        let (buffer, index) = (self.expressions.buffer(atomic.buffer), self.text(&atomic.index));
        let mut text = format!("vyre_atomic_{operation}<{ordering}, {scope}>({buffer}, {index}");
        for operand in operands.into_iter().flatten() {
            text.push_str(", ");
            text.push_str(&self.text(operand));
        }
        let defined = atomic.result.map_or_else(String::new, |var| format!("{} = ", self.declared(var)));
        self.out.line(format_args!("{defined}{text});"));
        // Read-modify-writes are carried out where all look for them, before anything is made of their results.
        let releases = matches!(atomic.ordering, MemoryOrdering::Release | MemoryOrdering::AcqRel);
        if matches!(atomic.op, AtomicOp::Store(_)) || releases {
            self.stored(atomic.buffer);
        }
    }

    fn subgroup(&mut self, subgroup: &Subgroup) {
        let combined = |op: &ReduceOp| combination_name(*op);
        let name = match &subgroup.op {
            SubgroupOp::BroadcastFirst => "vyre_broadcast_first".to_owned(),
            SubgroupOp::Broadcast(_) => "vyre_broadcast".to_owned(),
            SubgroupOp::Shuffle(_) => "vyre_shuffle".to_owned(),
            SubgroupOp::ShuffleXor(_) => "vyre_shuffle_xor".to_owned(),
            SubgroupOp::Reduce(op) => format!("vyre_reduce<{}>", combined(op)),
            SubgroupOp::InclusiveScan(op) => format!("vyre_inclusive_scan<{}>", combined(op)),
            SubgroupOp::ExclusiveScan(op) => format!("vyre_exclusive_scan<{}>", combined(op)),
            SubgroupOp::Ballot => "vyre_ballot".to_owned(),
            SubgroupOp::Any => "vyre_any".to_owned(),
            SubgroupOp::All => "vyre_all".to_owned(),
        };
        let ty = self.expressions.ty(&subgroup.value);
        let value = self.text(&subgroup.value);
        // An operator on `bool` yields an `int` in C++.
        let value = if ty == ScalarType::Bool { format!("bool({value})") } else { value };
        let mut text = format!("{} = {name}(vyre, {value}", self.declared(subgroup.result));
        if let Some(operand) = subgroup.op.operand() {
            text.push_str(", ");
            text.push_str(&self.text(operand));
        }
        if let SubgroupOp::ExclusiveScan(op) = &subgroup.op
            && let Some(start) = scan_start(*op, ty)
        {
            text.push_str(", ");
            text.push_str(&self.text(&Expr::Literal(start)));
        }
        self.out.line(format_args!("{text});"));
    }

    fn branch(&mut self, condition: &'p Expr, then: &'p [Node], otherwise: &'p [Node]) {
        let head = format!("if ({}) {{", self.text(condition));
        self.out.open(head);
        let scope = self.expressions.scope();
        let mark = self.expressions.bounds.mark();
        self.expressions.bounds.assume(&scope, condition);
        self.block(then, Step::Then);
        self.expressions.bounds.forget(&mark);
        if !otherwise.is_empty() {
            self.mark();
            self.out.reopen("} else {");
            self.block(otherwise, Step::Otherwise);
        }
        self.mark();
        self.out.close("}");
    }

    fn switch(&mut self, selector: &'p Expr, cases: &'p [SwitchCase], default: &'p [Node]) {
        let head = format!("switch ({}) {{", self.text(selector));
        self.out.open(head);
        self.around.push(Around::Switch);
        for (number, case) in cases.iter().enumerate() {
            let values: Vec<String> = case.values.iter().map(|value| format!("case {value}u:")).collect();
            self.out.open(format_args!("{} {{", values.join(" ")));
            self.block(&case.body, |index| Step::Case(number, index));
            self.mark();
            self.out.line("break;");
            self.out.close("}");
        }
        if !default.is_empty() {
            self.out.open("default: {");
            self.block(default, Step::Default);
            self.mark();
            self.out.line("break;");
            self.out.close("}");
        }
        self.around.pop();
        self.mark();
        self.out.close("}");
    }

    fn count(&mut self, var: VarId, start: &'p Expr, end: &'p Expr, step: u32, body: &'p [Node]) {
        let form = self.analysis.form(start, end, step, body);
        let (name, from, to) = (self.expressions.local(var.0), self.text(start), self.text(end));
        let user = name.trim_start_matches("l_");
        let (bound, chunks) = (format!("e_{user}"), format!("c_{user}"));
        match form {
            LoopForm::Plain => {
                let next = match step {
                    1 => format!("{name} = {name} + 1u"),
                    _ => format!("{name} = vyre_step({name}, {to}, {step}u)"),
                };
                self.out.open(format_args!("for (u32 {name} = {from}; {name} < {to}; {next}) {{"));
            }
            LoopForm::Chunked => {
                self.out.open(format_args!(
                    "for (VyreChunks {chunks} = vyre_chunks({from}, {to}, {step}u); vyre_chunk(vyre, {chunks}, {step}u);) {{"
                ));
                let rounds = format!("n_{user}");
                self.out.open(format_args!(
                    "for (u32 {name} = {chunks}.from, {rounds} = {chunks}.rounds; {rounds} != 0u;"
                ));
                self.out.line(format_args!("   {name} = {name} + {step}u, {rounds} = {rounds} - 1u) {{"));
            }
            LoopForm::Polled => {
                self.out.open(format_args!("for (u32 {name} = {from}, {bound} = {to}; {name} < {bound};"));
                self.out.line(format_args!("   {name} = vyre_next(vyre, {name}, {bound}, {step}u)) {{"));
            }
        }
        let scope = self.expressions.scope();
        let mark = self.expressions.bounds.mark();
        self.expressions.bounds.count(&scope, var, end);
        self.loop_body(body, (form == LoopForm::Chunked).then_some(chunks));
        self.expressions.bounds.forget(&mark);
        if form == LoopForm::Chunked {
            self.out.close("}");
        }
        self.behind_loop(form != LoopForm::Plain);
    }

    fn repeat(&mut self, condition: &'p Expr, body: &'p [Node]) {
        let condition = match condition {
            Expr::Literal(Literal::Bool(true)) => String::new(),
            _ => {
                let mut text = String::from(" && (");
                text.push_str(&self.text(condition));
                text.push(')');
                text
            }
        };
        self.out.open(format_args!("for (; !vyre.left{condition}; vyre_round(vyre)) {{"));
        self.loop_body(body, None);
        self.behind_loop(true);
    }

    fn loop_body(&mut self, body: &'p [Node], chunks: Option<String>) {
        self.loops += 1;
        self.around.push(Around::Loop { number: self.loops, chunks, label: false });
        self.block(body, Step::Body);
        self.mark();
        self.out.close("}");
    }

    fn behind_loop(&mut self, polled: bool) {
        if let Some(Around::Loop { number, label: true, .. }) = self.around.pop() {
            self.out.line(format_args!("behind_{number}:;"));
        }
        if polled {
            self.leave_if("vyre.left");
        }
    }

    fn leave_loop(&mut self) {
        let in_switch = matches!(self.around.last(), Some(Around::Switch));
        let inner = self.around.iter_mut().rev().find_map(|around| match around {
            Around::Loop { number, chunks, label } => Some((number, chunks, label)),
            Around::Switch => None,
        });
        match inner {
            Some((number, _, label)) if in_switch => {
                *label = true;
                self.out.line(format_args!("goto behind_{number};"));
            }
            Some((_, Some(chunks), _)) => {
                self.out.line(format_args!("{chunks}.left = 0u;"));
                self.out.line("break;");
            }
            _ => self.out.line("break;"),
        }
    }
}

fn rmw_name(op: RmwOp) -> &'static str {
    match op {
        RmwOp::Add => "add",
        RmwOp::Sub => "sub",
        RmwOp::And => "and",
        RmwOp::Or => "or",
        RmwOp::Xor => "xor",
        RmwOp::Min => "min",
        RmwOp::Max => "max",
        RmwOp::Exchange => "exchange",
    }
}

fn combination_name(op: ReduceOp) -> &'static str {
    match op {
        ReduceOp::Add => "VyreAdd",
        ReduceOp::Min => "VyreMin",
        ReduceOp::Max => "VyreMax",
        ReduceOp::And => "VyreAnd",
        ReduceOp::Or => "VyreOr",
        ReduceOp::Xor => "VyreXor",
    }
}

fn ordering_name(ordering: MemoryOrdering) -> &'static str {
    match ordering {
        MemoryOrdering::Relaxed => "VYRE_RELAXED",
        MemoryOrdering::Acquire => "VYRE_ACQUIRE",
        MemoryOrdering::Release => "VYRE_RELEASE",
        MemoryOrdering::AcqRel => "VYRE_ACQ_REL",
    }
}

fn scope_name(scope: MemoryScope) -> &'static str {
    match scope {
        MemoryScope::Workgroup => "VYRE_WORKGROUP",
        MemoryScope::Device => "VYRE_DEVICE",
        MemoryScope::System => "VYRE_SYSTEM",
    }
}
