//! Bodies of handlers as functions of a program.

use std::cell::RefCell;

use vyre_driver::protocol::{ARG_WORDS, ITEM_PARAMS, ITEM_RESULTS};
use vyre_driver::{Fault, Status};
use vyre_foundation::builder::{Buffer, ExternalHandle, FunctionBuilder, Var};
use vyre_foundation::{BinaryOp, DataType, Expr, Function, Literal, MemorySpace, Node, ScalarType};

use super::buffers::ItemBuffers;
use crate::error::MegakernelError;
use crate::handler::{HandlerBuilder, OpcodeHandler};

/// Results of a function that only completes or faults: status, code, result.
pub(super) const SHORT_RESULTS: usize = 3;

/// Names of an item's parameters, in the order of [`ITEM_PARAMS`].
pub(super) const PARAM_NAMES: [&str; 4 + ARG_WORDS] = [
    "opcode", "tenant", "flags", "ticket", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "a10",
    "a11",
];

/// Buffers and external functions, by the names that a handler gave them.
#[derive(Default)]
pub(super) struct Names {
    buffers: Vec<(String, Buffer)>,
    externals: Vec<(String, ExternalHandle)>,
}

/// What a handler's body can name.
pub(crate) struct ItemScope {
    pub(crate) opcode: Var,
    pub(crate) tenant: Var,
    pub(crate) flags: Var,
    pub(crate) ticket: Var,
    pub(crate) args: [Var; ARG_WORDS],
    names: Names,
    complaint: RefCell<Option<String>>,
}

impl ItemScope {
    /// Adds the item's parameters to a function.
    pub(super) fn params(function: &mut FunctionBuilder) -> ItemScope {
        let mut names = PARAM_NAMES.into_iter().zip(ITEM_PARAMS);
        let mut param = || {
            let (name, ty) = names.next().unwrap_or(("none", ScalarType::U32));
            function.param(name, ty)
        };
        ItemScope {
            opcode: param(),
            tenant: param(),
            flags: param(),
            ticket: param(),
            args: std::array::from_fn(|_| param()),
            names: Names::default(),
            complaint: RefCell::default(),
        }
    }

    /// Every parameter, in order.
    pub(super) fn all(&self) -> Vec<Var> {
        let mut all = vec![self.opcode, self.tenant, self.flags, self.ticket];
        all.extend(self.args);
        all
    }

    /// A buffer by the name the handler gave it.
    pub(crate) fn buffer(&self, name: &str) -> Buffer {
        if let Some(&(_, buffer)) = self.names.buffers.iter().find(|(known, _)| known == name) {
            return buffer;
        }
        self.complain(format!("its body names the buffer `{name}`, which it does not declare"));
        let id = vyre_foundation::BufferId(u32::MAX);
        Buffer { id, element: DataType::U32, space: MemorySpace::Global }
    }

    /// An external function by name.
    pub(crate) fn external(&self, name: &str) -> Option<&ExternalHandle> {
        let found = self.names.externals.iter().find(|(known, _)| known == name);
        if found.is_none() {
            self.complain(format!(
                "its body calls the external function `{name}`, which it does not declare"
            ));
        }
        found.map(|(_, external)| external)
    }

    /// Notes a mistake; the first is reported.
    pub(crate) fn complain(&self, problem: String) {
        self.complaint.borrow_mut().get_or_insert(problem);
    }
}

/// A handler's function, whether its items always end in one run, and whether they may ask the host for IO.
pub(super) struct HandlerFunction {
    pub(super) function: Function,
    pub(super) ends_at_once: bool,
    pub(super) asks: bool,
}

/// Statements of a handler that is short: a few dozen instructions, of which a second copy costs next to nothing.
const SHORT_STATEMENTS: usize = 24;

impl HandlerFunction {
    /// Whether its items end at once, after few statements and no loop.
    pub(super) fn is_short(&mut self) -> bool {
        let (mut statements, mut loops) = (0, false);
        each_node(&mut self.function.body, &mut |node| {
            statements += 1;
            loops |= matches!(node, Node::For { .. } | Node::While { .. });
        });
        self.ends_at_once && !loops && statements <= SHORT_STATEMENTS
    }
}

/// Builds the function of a registered handler. `own` is its workgroup memory, `externals` are the functions
/// that the program declares.
pub(super) fn handler_function(
    handler: &OpcodeHandler,
    buffers: &ItemBuffers,
    own: Vec<(String, Buffer)>,
    externals: &[(String, ExternalHandle)],
) -> Result<HandlerFunction, MegakernelError> {
    let name = format!("{}_{:x}", handler.name(), handler.opcode().wire());
    let bound = |name: &String| Some((name.clone(), buffers.binding(name)?));
    let bound = handler.bindings().iter().filter_map(|binding| bound(&binding.name));
    let declared = |name: &String| handler.externals().iter().any(|external| external.name == *name);
    let externals = externals.iter().filter(|(name, _)| declared(name)).cloned().collect();
    let names = Names { buffers: bound.chain(own).collect(), externals };
    item_function(name, names, |h| handler.write_body(h)).map_err(|problem| MegakernelError::InvalidHandler {
        handler: handler.name().to_owned(),
        problem,
        remedy: "correct the handler's body",
    })
}

/// Builds a function from an item's words to its outcome; fails with what is wrong with the body.
pub(super) fn item_function(
    name: String,
    names: Names,
    body: impl FnOnce(&mut HandlerBuilder<'_>),
) -> Result<HandlerFunction, String> {
    let mut function = FunctionBuilder::new(name);
    let mut scope = ItemScope::params(&mut function);
    scope.names = names;
    for ty in ITEM_RESULTS {
        function.result(ty);
    }
    body(&mut HandlerBuilder::new(&mut function, &scope));
    if let Some(problem) = scope.complaint.into_inner() {
        return Err(problem);
    }
    let mut function = function.finish();
    let Ends { at_once: ends_at_once, asking: asks } = normalize(&mut function.body)?;
    let arity = if ends_at_once { SHORT_RESULTS } else { ITEM_RESULTS.len() };
    function.results.truncate(arity);
    each_node(&mut function.body, &mut |node| {
        if let Node::Return(values) = node
            && (values.len() == SHORT_RESULTS || values.len() == ITEM_RESULTS.len())
        {
            values.resize(arity, Expr::Literal(Literal::U32(0)));
        }
    });
    Ok(HandlerFunction { function, ends_at_once, asks })
}

/// How the returns of a body end its runs.
struct Ends {
    /// Every one is known to end the item.
    at_once: bool,
    /// One asks the host for IO, or may.
    asking: bool,
}

/// Makes every way out of a body a return: traps become faults, and the end completes with 0.
fn normalize(body: &mut Vec<Node>) -> Result<Ends, String> {
    let mut grid_barrier = false;
    let mut ends = Ends { at_once: true, asking: false };
    each_node(body, &mut |node| match node {
        Node::GridBarrier => grid_barrier = true,
        Node::Trap(code) => {
            let code = std::mem::replace(code, Expr::Literal(Literal::U32(0)));
            *node = Node::Return(vec![
                Expr::Literal(Literal::U32(Status::Fault as u32)),
                trap_code(code),
                Expr::Literal(Literal::U64(0)),
            ]);
        }
        Node::Return(values) => {
            let status = literal_status(values.first());
            ends.at_once &= matches!(status, Some(Status::Done | Status::Fault));
            ends.asking |= !matches!(status, Some(Status::Done | Status::Fault | Status::Requeue));
        }
        _ => {}
    });
    if grid_barrier {
        return Err("its body has a grid barrier, which would wait for items that may never run".to_owned());
    }
    if !matches!(body.last(), Some(Node::Return(_))) {
        body.push(Node::Return(vec![
            Expr::Literal(Literal::U32(Status::Done as u32)),
            Expr::Literal(Literal::U32(0)),
            Expr::Literal(Literal::U64(0)),
        ]));
    }
    Ok(ends)
}

fn trap_code(code: Expr) -> Expr {
    let bit = Fault::Trap(0).code();
    let binary = |op, left, right| Expr::Binary {
        op,
        left: Box::new(left),
        right: Box::new(Expr::Literal(Literal::U32(right))),
    };
    binary(BinaryOp::Or, binary(BinaryOp::And, code, bit - 1), bit)
}

/// Visits every statement, outer ones first, without recursion: bodies arrive before any limit on their
/// nesting was checked.
fn each_node(body: &mut Vec<Node>, visit: &mut impl FnMut(&mut Node)) {
    let mut pending = vec![body];
    while let Some(block) = pending.pop() {
        for node in block.iter_mut() {
            visit(node);
            match node {
                Node::If { then, otherwise, .. } => pending.extend([then, otherwise]),
                Node::Switch { cases, default, .. } => {
                    pending.extend(cases.iter_mut().map(|case| &mut case.body));
                    pending.push(default);
                }
                Node::For { body, .. } | Node::While { body, .. } | Node::Block(body) => pending.push(body),
                _ => {}
            }
        }
    }
}

/// The status that a return answers, if it is a constant.
fn literal_status(expr: Option<&Expr>) -> Option<Status> {
    match expr {
        Some(&Expr::Literal(Literal::U32(word))) => Status::from_word(u16::try_from(word).ok()?),
        _ => None,
    }
}
