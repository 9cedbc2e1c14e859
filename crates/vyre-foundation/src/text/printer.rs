//! Programs into text: one statement a line, no more parentheses than needed.

use super::statement::vote_type;
use super::words::{Level, Words, bitcast_word, builtin_words};
use crate::ir::external::write_signature;
use crate::ir::{
    Atomic, AtomicOp, BinaryOp, BufferDecl, BufferId, Expr, ExternalCall, Function, FunctionId, Local,
    MemorySpace, Node, Program, ProgramKind, Subgroup, SubgroupOp, UnaryOp, VarId,
};
use crate::names::check_name;
use crate::types::{Literal, ScalarType};
use crate::wire::MAX_DEPTH;

/// The whole text of a program.
pub(super) fn print(program: &Program) -> String {
    let kind = match program.kind {
        ProgramKind::Kernel => "kernel".to_owned(),
        ProgramKind::Item(granularity) => format!("item({})", granularity.word()),
    };
    let [x, y, z] = program.workgroup_size;
    let mut text = format!("program {} {kind} workgroup({x}, {y}, {z})\n", name(&program.name));
    for buffer in &program.buffers {
        text.push_str(&declaration(buffer));
    }
    for external in &program.externals {
        text.push_str(&format!("external {}", name(&external.name)));
        // Writing to a string does not fail.
        let _ = write_signature(&mut text, &external.params, &external.buffers, &external.results);
        text.push('\n');
    }
    for function in &program.functions {
        text.push_str("\nfn ");
        text.push_str(&name(&function.name));
        text.push_str(&FunctionPrinter::print(program, function));
    }
    text.push_str("\nentry");
    if program.entry.name != super::ENTRY_NAME {
        text.push(' ');
        text.push_str(&name(&program.entry.name));
    }
    text.push_str(&FunctionPrinter::print(program, &program.entry));
    text
}

fn declaration(buffer: &BufferDecl) -> String {
    let BufferDecl { name: of, space, element, access, len } = buffer;
    let bound = if *space == MemorySpace::Workgroup { "len" } else { "min" };
    format!("buffer {}: {} {element} {} {bound} {len}\n", name(of), space.word(), access.word())
}

/// A name, quoted if the parser would not take it for one: what is no program must not read like one.
fn name(name: &str) -> String {
    if check_name(name).is_ok() { name.to_owned() } else { format!("{name:?}") }
}

/// A local in a list of parameters or locals.
fn declared(local: &Local) -> String {
    format!("{}{}: {}", if local.mutable { "var " } else { "" }, name(&local.name), local.ty)
}

fn list<T>(items: impl IntoIterator<Item = T>, text: impl FnMut(T) -> String) -> String {
    items.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

fn literal(value: Literal) -> String {
    match value {
        Literal::Bool(v) => v.to_string(),
        Literal::U32(v) => format!("{v}u32"),
        Literal::I32(v) => format!("{v}i32"),
        Literal::U64(v) => format!("{v}u64"),
        Literal::F32(bits) => match f32::from_bits(bits) {
            v if v.is_nan() => format!("nan({bits:#010x})"),
            f32::INFINITY => "inf".to_owned(),
            f32::NEG_INFINITY => "-inf".to_owned(),
            // The shortest decimal that reads back as the same float.
            v => format!("{v:?}f32"),
        },
    }
}

struct FunctionPrinter<'p> {
    program: &'p Program,
    function: &'p Function,
    text: String,
    indent: usize,
    depth: u32,
    /// Whether the locals stand in a list before the body.
    listed: bool,
    /// The local that the next definition defines, if definitions alone are to tell the parser all locals.
    next: u32,
    /// Whether they did so far.
    in_order: bool,
}

impl<'p> FunctionPrinter<'p> {
    /// Signature and body. The list of locals is only printed where the definitions do not say the same.
    fn print(program: &'p Program, function: &'p Function) -> String {
        let unlisted = FunctionPrinter::printed(program, function, false);
        if unlisted.in_order && unlisted.next as usize == function.locals.len() {
            return unlisted.text;
        }
        FunctionPrinter::printed(program, function, true).text
    }

    fn printed(program: &'p Program, function: &'p Function, listed: bool) -> Self {
        let mut p = FunctionPrinter {
            program,
            function,
            text: String::new(),
            indent: 0,
            depth: 0,
            listed,
            next: function.params,
            in_order: true,
        };
        p.signature();
        p.text.push_str(" {\n");
        p.indent = 1;
        if listed {
            let after_params = function.locals.iter().skip(function.params as usize);
            let locals = list(after_params, declared);
            p.line(&format!("locals({locals});"));
        }
        for node in &function.body {
            p.node(node);
        }
        p.text.push_str("}\n");
        p
    }

    fn signature(&mut self) {
        let Function { params, results, locals, .. } = self.function;
        let entry = std::ptr::eq(self.function, &self.program.entry);
        if *params > 0 || !results.is_empty() || !entry {
            let mut params_text = list(locals.iter().take(*params as usize), declared);
            if *params as usize > locals.len() {
                params_text.push_str("?params");
            }
            self.text.push_str(&format!("({params_text})"));
        }
        match results.as_slice() {
            [] => {}
            [one] => self.text.push_str(&format!(" -> {one}")),
            several => self.text.push_str(&format!(" -> ({})", list(several, ScalarType::to_string))),
        }
    }

    fn line(&mut self, text: &str) {
        for _ in 0..self.indent {
            self.text.push_str("  ");
        }
        self.text.push_str(text);
        self.text.push('\n');
    }

    /// Runs `print` one level deeper, or gives what the parser refuses where no program can be so deep.
    fn deeper<T>(&mut self, too_deep: T, print: impl FnOnce(&mut Self) -> T) -> T {
        if self.depth >= MAX_DEPTH {
            return too_deep;
        }
        self.depth += 1;
        let printed = print(self);
        self.depth -= 1;
        printed
    }

    fn block(&mut self, head: &str, body: &[Node]) {
        self.line(&format!("{head}{{"));
        self.body(body);
        self.line("}");
    }

    fn body(&mut self, body: &[Node]) {
        self.indent += 1;
        for node in body {
            self.node(node);
        }
        self.indent -= 1;
    }

    fn node(&mut self, node: &Node) {
        let deep_enough = self.deeper(false, |p| {
            p.statement(node);
            true
        });
        if !deep_enough {
            self.line("?too_deep");
        }
    }

    fn statement(&mut self, node: &Node) {
        match node {
            Node::Let { var, value } => {
                let value = self.expr(value);
                let head = self.definition(*var, None);
                self.line(&format!("{head} = {value};"));
            }
            Node::Assign { var, value } => {
                let (var, value) = (self.local(*var), self.expr(value));
                self.line(&format!("{var} = {value};"));
            }
            Node::Store { buffer, index, value } => {
                let text = format!("{} = {};", self.element(*buffer, index), self.expr(value));
                self.line(&text);
            }
            Node::Atomic(atomic) => self.atomic(atomic),
            Node::Subgroup(subgroup) => self.subgroup(subgroup),
            Node::If { .. } => self.if_chain("", node),
            Node::Switch { selector, cases, default } => {
                let selector = self.expr(selector);
                self.line(&format!("switch {selector} {{"));
                self.indent += 1;
                for case in cases {
                    let values = list(&case.values, u32::to_string);
                    self.block(
                        &format!("case {values}{}", if values.is_empty() { "" } else { " " }),
                        &case.body,
                    );
                }
                if !default.is_empty() {
                    self.block("default ", default);
                }
                self.indent -= 1;
                self.line("}");
            }
            Node::For { var, start, end, step, body } => {
                let range = format!("{}..{}", self.expr(start), self.expr(end));
                let var = self.binding(*var, Some(ScalarType::U32));
                let step = if *step == 1 { String::new() } else { format!(" step {step}") };
                self.block(&format!("for {var} in {range}{step} "), body);
            }
            Node::While { condition, body } => {
                let condition = self.expr(condition);
                self.block(&format!("while {condition} "), body);
            }
            Node::Break => self.line("break;"),
            Node::Continue => self.line("continue;"),
            Node::Return(values) if values.is_empty() => self.line("return;"),
            Node::Return(values) => {
                let values = list(values, |value| self.expr(value));
                self.line(&format!("return {values};"));
            }
            Node::Block(body) => self.block("", body),
            Node::WorkgroupBarrier => self.line("barrier;"),
            Node::GridBarrier => self.line("grid_barrier;"),
            Node::Trap(code) => {
                let code = self.expr(code);
                self.line(&format!("trap {code};"));
            }
            Node::Call { results, function, args } => self.call(results, *function, args),
            Node::CallExternal(call) => self.call_external(call),
        }
    }

    /// An `if` whose `else` holds nothing but another `if` goes on in the same line.
    fn if_chain(&mut self, before: &str, node: &Node) {
        let Node::If { condition, then, otherwise } = node else { return };
        let condition = self.expr(condition);
        self.line(&format!("{before}if {condition} {{"));
        self.body(then);
        match otherwise.as_slice() {
            [] => self.line("}"),
            [inner @ Node::If { .. }] if self.depth < MAX_DEPTH => {
                self.depth += 1;
                self.if_chain("} else ", inner);
                self.depth -= 1;
            }
            otherwise => {
                self.block("} else ", otherwise);
            }
        }
    }

    fn atomic(&mut self, atomic: &Atomic) {
        let Atomic { op, buffer, index, ordering, scope, result } = atomic;
        let element = self.element(*buffer, index);
        let (verb, operands) = match op {
            AtomicOp::Load => ("load", String::new()),
            AtomicOp::Store(value) => ("store", format!(", {}", self.expr(value))),
            AtomicOp::Rmw(op, value) => (op.word(), format!(", {}", self.expr(value))),
            AtomicOp::CompareExchange { expected, replacement } => {
                ("compare_exchange", format!(", {}, {}", self.expr(expected), self.expr(replacement)))
            }
        };
        let ty = self.program.buffers.get(buffer.0 as usize).map(|buffer| buffer.element.scalar());
        let head = match result {
            Some(var) => format!("let {} = ", self.binding(*var, ty)),
            None => String::new(),
        };
        let (scope, ordering) = (scope.word(), ordering.word());
        self.line(&format!("{head}atomic {verb} {scope} {ordering} {element}{operands};"));
    }

    fn subgroup(&mut self, subgroup: &Subgroup) {
        let Subgroup { op, value, result } = subgroup;
        let verb = match op {
            SubgroupOp::BroadcastFirst => "broadcast_first".to_owned(),
            SubgroupOp::Broadcast(_) => "broadcast".to_owned(),
            SubgroupOp::Shuffle(_) => "shuffle".to_owned(),
            SubgroupOp::ShuffleXor(_) => "shuffle_xor".to_owned(),
            SubgroupOp::Reduce(op) => format!("reduce {}", op.word()),
            SubgroupOp::InclusiveScan(op) => format!("inclusive_scan {}", op.word()),
            SubgroupOp::ExclusiveScan(op) => format!("exclusive_scan {}", op.word()),
            SubgroupOp::Ballot => "ballot".to_owned(),
            SubgroupOp::Any => "any".to_owned(),
            SubgroupOp::All => "all".to_owned(),
        };
        let value = self.expr(value);
        let operand = op.operand().map_or(String::new(), |operand| format!(", {}", self.expr(operand)));
        let result = self.binding(*result, vote_type(op));
        self.line(&format!("let {result} = subgroup {verb} {value}{operand};"));
    }

    fn call(&mut self, results: &[VarId], function: FunctionId, args: &[Expr]) {
        let args = list(args, |arg| self.expr(arg));
        let callee = self.program.functions.get(function.0 as usize);
        let types = callee.map(|function| function.results.as_slice()).unwrap_or_default();
        let callee = callee.map_or_else(|| format!("?fn{}", function.0), |function| name(&function.name));
        let head = self.results(results, types);
        self.line(&format!("{head}call {callee}({args});"));
    }

    fn call_external(&mut self, call: &ExternalCall) {
        let args = list(&call.args, |arg| self.expr(arg));
        let buffers = list(&call.buffers, |buffer| self.buffer(*buffer));
        let callee = self.program.externals.get(call.external.0 as usize);
        let types = callee.map(|external| external.results.as_slice()).unwrap_or_default();
        let unknown = || format!("?external{}", call.external.0);
        let callee = callee.map_or_else(unknown, |external| name(&external.name));
        let head = self.results(&call.results, types);
        self.line(&format!("{head}call_external {callee}({args}) buffers({buffers});"));
    }

    /// What stands before a call that defines locals.
    fn results(&mut self, results: &[VarId], types: &[ScalarType]) -> String {
        let types = types.iter().copied().map(Some).chain(std::iter::repeat(None));
        let bindings = list(results.iter().zip(types), |(var, ty)| self.binding(*var, ty));
        match results.len() {
            0 => String::new(),
            1 => format!("let {bindings} = "),
            _ => format!("let ({bindings}) = "),
        }
    }

    /// `let x: u32` or `var x: u32`.
    fn definition(&mut self, var: VarId, implied: Option<ScalarType>) -> String {
        let mutable = self.function.locals.get(var.0 as usize).is_some_and(|local| local.mutable);
        let keyword = if mutable && !self.listed { "var" } else { "let" };
        self.define(var);
        format!("{keyword} {}", self.typed(var, implied))
    }

    /// A local that cannot be mutable, at its definition.
    fn binding(&mut self, var: VarId, implied: Option<ScalarType>) -> String {
        self.in_order &= self.function.locals.get(var.0 as usize).is_some_and(|local| !local.mutable);
        self.define(var);
        self.typed(var, implied)
    }

    fn define(&mut self, var: VarId) {
        self.in_order &= var.0 == self.next;
        self.next = self.next.saturating_add(1);
    }

    /// The name with its type, unless that is implied or listed.
    fn typed(&self, var: VarId, implied: Option<ScalarType>) -> String {
        match self.function.locals.get(var.0 as usize) {
            Some(local) if !self.listed && implied != Some(local.ty) => {
                format!("{}: {}", name(&local.name), local.ty)
            }
            Some(local) => name(&local.name),
            None => format!("?local{}", var.0),
        }
    }

    fn local(&mut self, var: VarId) -> String {
        self.in_order &= var.0 < self.next;
        self.function
            .locals
            .get(var.0 as usize)
            .map_or_else(|| format!("?local{}", var.0), |local| name(&local.name))
    }

    fn buffer(&self, id: BufferId) -> String {
        self.program
            .buffers
            .get(id.0 as usize)
            .map_or_else(|| format!("?buffer{}", id.0), |buffer| name(&buffer.name))
    }

    fn element(&mut self, buffer: BufferId, index: &Expr) -> String {
        format!("{}[{}]", self.buffer(buffer), self.expr(index))
    }

    fn expr(&mut self, expr: &Expr) -> String {
        self.operand(expr, Level::Comparison)
    }

    /// The text of an expression where nothing looser than `level` may stand bare.
    fn operand(&mut self, expr: &Expr, level: Level) -> String {
        let (text, own) = self.deeper(("?too_deep".to_owned(), Level::Primary), |p| p.expression(expr));
        if own < level { format!("({text})") } else { text }
    }

    fn expression(&mut self, expr: &Expr) -> (String, Level) {
        let text = match expr {
            Expr::Literal(value) => literal(*value),
            Expr::Var(var) => self.local(*var),
            Expr::Load { buffer, index } => self.element(*buffer, index),
            Expr::BufferLen(buffer) => format!("len({})", self.buffer(*buffer)),
            Expr::Builtin(builtin) => {
                let (first, second) = builtin_words(*builtin);
                format!("{first}.{second}")
            }
            Expr::Unary { op: op @ (UnaryOp::Neg | UnaryOp::Not), value } => {
                // `-1i32` is a literal; the negation of one is `-(1i32)`.
                let operand = match **value {
                    Expr::Literal(value) if *op == UnaryOp::Neg => format!("({})", literal(value)),
                    _ => self.operand(value, Level::Prefix),
                };
                return (format!("{}{operand}", op.word()), Level::Prefix);
            }
            Expr::Unary { op, value } => self.function(op.word(), &[value]),
            Expr::Binary { op, left, right } => return self.binary(*op, left, right),
            Expr::Select { condition, if_true, if_false } => {
                self.function("select", &[condition, if_true, if_false])
            }
            Expr::Cast { to, value } => self.function(to.word(), &[value]),
            Expr::Bitcast { to, value } => self.function(bitcast_word(*to), &[value]),
            Expr::Fma { a, b, c } => self.function("fma", &[a, b, c]),
        };
        (text, Level::Primary)
    }

    fn binary(&mut self, op: BinaryOp, left: &Expr, right: &Expr) -> (String, Level) {
        match Level::of(op) {
            Some(level) => {
                let left = self.operand(left, level.left());
                let right = self.operand(right, level.tighter());
                (format!("{left} {} {right}", op.word()), level)
            }
            None => (self.function(op.word(), &[left, right]), Level::Primary),
        }
    }

    fn function(&mut self, word: &str, args: &[&Expr]) -> String {
        format!("{word}({})", list(args, |arg| self.expr(arg)))
    }
}
