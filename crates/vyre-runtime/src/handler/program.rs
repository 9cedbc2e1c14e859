//! Handlers from finished item programs, such as those of `.vir` files.

use vyre_driver::protocol::{ITEM_PARAMS, ITEM_RESULTS};
use vyre_foundation::{
    Atomic, AtomicOp, BufferAccess, BufferId, Expr, MemorySpace, Node, Program, ProgramKind, ScalarType,
    Subgroup, SubgroupOp, ValidatedProgram,
};

use super::{Backing, HandlerBinding, OpcodeHandler};
use crate::error::MegakernelError;
use crate::opcode::SlotOpcode;

impl OpcodeHandler {
    /// A handler from an item program, for example that of a `.vir` file. Its name and granularity are the program's.
    ///
    /// Its entry has the parameters of [`ITEM_PARAMS`] and the results of [`ITEM_RESULTS`], or only the first three
    /// of them. Buffers that it only reads are host-backed, the others volatile, as [`HandlerBinding::read`] and
    /// [`HandlerBinding::read_write`] make them. The size of a workgroup is the megakernel's.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidHandler`] for a kernel, for another entry, and for a program with functions of its
    /// own or external ones.
    pub fn from_program(
        opcode: impl Into<SlotOpcode>,
        program: &ValidatedProgram,
    ) -> Result<OpcodeHandler, MegakernelError> {
        let Program { name, kind, buffers, externals, functions, entry, .. } = program.program();
        let refuse = |problem: String, remedy| {
            Err(MegakernelError::InvalidHandler { handler: name.clone(), problem, remedy })
        };
        let &ProgramKind::Item(granularity) = kind else {
            return refuse(
                "its program is a kernel".to_owned(),
                "declare it as `item(lane)` or `item(workgroup)`",
            );
        };
        if let Some(function) = functions.first() {
            let problem = format!("its program has the function `{}`", function.name);
            return refuse(problem, "write its statements into the entry");
        }
        if let Some(external) = externals.first() {
            let problem = format!("its program declares the external function `{external}`");
            return refuse(problem, "write the handler in Rust, with `OpcodeHandler::external`");
        }
        let (params, own) = entry.locals.split_at(ITEM_PARAMS.len().min(entry.locals.len()));
        let types: Vec<ScalarType> = params.iter().map(|param| param.ty).collect();
        let results = entry.results.as_slice();
        let is_item = entry.params as usize == ITEM_PARAMS.len() && types == ITEM_PARAMS;
        if !is_item || ![&ITEM_RESULTS, &ITEM_RESULTS[..3]].contains(&results) {
            let problem = format!("its entry has {} parameters and yields {results:?}", entry.params);
            return refuse(
                problem,
                "take opcode, tenant and flags (u32), ticket (u64) and twelve u32; yield u32, u32, u64",
            );
        }
        let (own, nodes) = (own.to_vec(), entry.body.clone());
        let names: Vec<String> = buffers.iter().map(|buffer| buffer.name.clone()).collect();
        let mut handler = OpcodeHandler::new(opcode, name, move |h| {
            let buffers: Vec<BufferId> = names.iter().map(|name| h.buffer(name).id).collect();
            for local in &own {
                h.local(&local.name, local.ty, local.mutable);
            }
            let mut nodes = nodes.clone();
            rename(&mut nodes, &buffers);
            nodes.into_iter().for_each(|node| h.push(node));
        })
        .granularity(granularity);
        for buffer in buffers {
            handler = match buffer.space {
                MemorySpace::Workgroup => handler.workgroup_buffer(&buffer.name, buffer.element, buffer.len),
                space => handler.binding(HandlerBinding {
                    name: buffer.name.clone(),
                    element: buffer.element,
                    access: buffer.access,
                    space,
                    min_len: buffer.len,
                    backing: match buffer.access {
                        BufferAccess::Read => Backing::HostBacked,
                        BufferAccess::Write | BufferAccess::ReadWrite => Backing::Volatile,
                    },
                }),
            };
        }
        Ok(handler)
    }
}

/// Gives each buffer the number at its place in `buffers`.
fn rename(nodes: &mut Vec<Node>, buffers: &[BufferId]) {
    let new = |id: &mut BufferId| {
        if let Some(&buffer) = buffers.get(id.0 as usize) {
            *id = buffer;
        }
    };
    let mut blocks = vec![nodes];
    let mut pending: Vec<&mut Expr> = Vec::new();
    while let Some(block) = blocks.pop() {
        for node in block {
            match node {
                Node::Let { value, .. } | Node::Assign { value, .. } | Node::Trap(value) => {
                    pending.push(value)
                }
                Node::Store { buffer, index, value } => {
                    new(buffer);
                    pending.extend([index, value]);
                }
                Node::Atomic(Atomic { op, buffer, index, .. }) => {
                    new(buffer);
                    pending.push(index);
                    match op {
                        AtomicOp::Load => {}
                        AtomicOp::Store(value) | AtomicOp::Rmw(_, value) => pending.push(value),
                        AtomicOp::CompareExchange { expected, replacement } => {
                            pending.extend([expected, replacement]);
                        }
                    }
                }
                Node::Subgroup(Subgroup { op, value, .. }) => {
                    pending.push(value);
                    match op {
                        SubgroupOp::Broadcast(lane)
                        | SubgroupOp::Shuffle(lane)
                        | SubgroupOp::ShuffleXor(lane) => pending.push(lane),
                        SubgroupOp::BroadcastFirst
                        | SubgroupOp::Reduce(_)
                        | SubgroupOp::InclusiveScan(_)
                        | SubgroupOp::ExclusiveScan(_)
                        | SubgroupOp::Ballot
                        | SubgroupOp::Any
                        | SubgroupOp::All => {}
                    }
                }
                Node::If { condition, then, otherwise } => {
                    pending.push(condition);
                    blocks.extend([then, otherwise]);
                }
                Node::Switch { selector, cases, default } => {
                    pending.push(selector);
                    blocks.extend(cases.iter_mut().map(|case| &mut case.body));
                    blocks.push(default);
                }
                Node::For { start, end, body, .. } => {
                    pending.extend([start, end]);
                    blocks.push(body);
                }
                Node::While { condition, body } => {
                    pending.push(condition);
                    blocks.push(body);
                }
                Node::Block(body) => blocks.push(body),
                Node::Return(values) | Node::Call { args: values, .. } => pending.extend(values),
                Node::CallExternal(call) => {
                    call.buffers.iter_mut().for_each(new);
                    pending.extend(&mut call.args);
                }
                Node::Break | Node::Continue | Node::WorkgroupBarrier | Node::GridBarrier => {}
            }
        }
        while let Some(expr) = pending.pop() {
            match expr {
                Expr::Load { buffer, index } => {
                    new(buffer);
                    pending.push(index);
                }
                Expr::BufferLen(buffer) => new(buffer),
                Expr::Unary { value, .. } | Expr::Cast { value, .. } | Expr::Bitcast { value, .. } => {
                    pending.push(value);
                }
                Expr::Binary { left, right, .. } => pending.extend([&mut **left, &mut **right]),
                Expr::Select { condition: a, if_true: b, if_false: c } | Expr::Fma { a, b, c } => {
                    pending.extend([&mut **a, &mut **b, &mut **c]);
                }
                Expr::Literal(_) | Expr::Var(_) | Expr::Builtin(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vyre_cpu::CpuBackend;
    use vyre_foundation::{DataType, text, validate};

    use super::*;
    use crate::{DispatchOptions, Megakernel, SlotDescriptor};

    const PARAMS: &str = "opcode: u32, tenant: u32, flags: u32, ticket: u64, a0: u32, a1: u32, a2: u32, a3: u32, \
        a4: u32, a5: u32, a6: u32, a7: u32, a8: u32, a9: u32, a10: u32, a11: u32";

    fn handler(opcode: u32, text: &str) -> Result<OpcodeHandler, MegakernelError> {
        let text = text.replace("PARAMS", PARAMS);
        OpcodeHandler::from_program(opcode, &validate(text::parse(&text).expect("text")).expect("valid"))
    }

    #[test]
    fn every_mention_of_a_buffer_is_renamed() {
        let files = concat!(env!("CARGO_MANIFEST_DIR"), "/../vyre-foundation/tests/files/print/");
        for (name, mentions) in [("every_tag.vir", 20), ("subgroup_tags.vir", 2), ("external_tags.vir", 2)] {
            let text = std::fs::read_to_string(format!("{files}{name}")).expect("a file test");
            let (head, buffers) = text.split_once("\nbuffer ").expect("buffers");
            let moved = format!("{head}\nbuffer dummy: global u32 read min 0\nbuffer {buffers}");
            let mut body = text::parse(&text).expect("text").entry.body;
            let expected = text::parse(&moved).expect("text").entry.body;
            assert!(body != expected, "{name}");
            rename(&mut body, &(1..=mentions).map(BufferId).collect::<Vec<_>>());
            assert!(body == expected, "{name}");
        }
    }

    #[test]
    fn programs_are_handlers_beside_others() {
        let count = "program count item(lane) workgroup(1, 1, 1)\nbuffer weights: global u32 read min 2\n\
            buffer bins: global u32 read_write min 4\nentry(PARAMS) -> (u32, u32, u64) {\n\
            let old = atomic add device relaxed bins[a0], weights[a1];\n\
            if a0 >= len(bins) {\n trap 5u32;\n }\n return 3u32, 0u32, u64(old);\n}\n";
        let first = OpcodeHandler::new(0x40, "first", |h| {
            let other = h.buffer("other");
            h.complete(other.load(h.arg(0)));
        })
        .binding(HandlerBinding::read("other", DataType::U32).min_len(1));
        let count = handler(0x41, count).expect("a handler");
        assert!(!count.is_replayable() && count.name() == "count");
        let megakernel = Megakernel::builder(Arc::new(CpuBackend::new()))
            .handlers([first, count])
            .bind_bytes("other", 7_u32.to_le_bytes())
            .bind_bytes("weights", [10, 0, 0, 0, 20, 0, 0, 0])
            .build()
            .expect("a megakernel");
        let mut batch = megakernel.batch_buffers();
        for (slot, (opcode, a0, a1)) in [(0x40, 0, 0), (0x41, 2, 1), (0x41, 9, 1)].into_iter().enumerate() {
            batch.ring.publish(slot, &SlotDescriptor::new(opcode).args([a0, a1])).expect("publishes");
        }
        megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
        let done = |slot| batch.ring.completion(slot).expect("a completion");
        assert_eq!([done(0).result, done(1).result], [7, 0]);
        assert_eq!(done(2).as_fault(), Some(vyre_driver::Fault::Trap(5)));
        batch.ring.publish(3, &SlotDescriptor::new(0x41).args([2, 0])).expect("publishes");
        megakernel.dispatch(&mut batch, &DispatchOptions::default()).expect("runs");
        assert_eq!(batch.ring.completion(3).expect("a completion").result, 20);
    }

    #[test]
    fn what_is_no_handler_is_refused() {
        let refused = |text: &str, part: &str| {
            let error = handler(0x40, text).expect_err(part).to_string();
            assert!(error.contains(part), "no {part} in: {error}");
        };
        refused("program p kernel workgroup(1, 1, 1)\nentry {\n}\n", "`p`: its program is a kernel");
        let item = "program p item(lane) workgroup(1, 1, 1)\n";
        refused(&format!("{item}entry(a: u32) -> u32 {{\n return a;\n}}\n"), "1 parameters");
        refused(&format!("{item}entry(PARAMS) -> u32 {{\n return a0;\n}}\n"), "yields [U32]");
        let body = "entry(PARAMS) -> (u32, u32, u64) {\n return 3u32, 0u32, 0u64;\n}\n";
        refused(&format!("{item}fn f() {{\n}}\n{body}"), "the function `f`");
        let item = "program p item(workgroup) workgroup(1, 1, 1)\nexternal e(u32) buffers() -> u32\n";
        refused(&format!("{item}{body}"), "the external function `e");
    }
}
