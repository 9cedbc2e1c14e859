//! The item programs of a session.

use std::sync::Arc;

use vyre_driver::ResidentSpec;
use vyre_driver::protocol::ITEM_RESULTS;
use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, ProgramBuilder};
use vyre_foundation::{Granularity, MemorySpace, ValidatedProgram};

use super::body::ItemScope;
use super::{Counting, HandlerTable, accounting, declare, item_functions, workgroup_functions};
use crate::error::MegakernelError;
use crate::opcode::SlotOpcode;

/// The validated programs that give items their meaning, and the handlers they were made from. All declare
/// [`SYSTEM_BUFFERS`](super::SYSTEM_BUFFERS), then [`HandlerTable::bindings`].
#[derive(Clone, Debug)]
pub struct ItemPrograms {
    lane: ValidatedProgram,
    accounting: ValidatedProgram,
    workgroup: Option<ValidatedProgram>,
    workgroup_opcodes: Vec<u32>,
    packable: Vec<u32>,
    handlers: Arc<HandlerTable>,
}

impl ItemPrograms {
    /// Builds and validates the programs. `workgroup_size_x` is how many invocations run an item of
    /// workgroup granularity.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidHandler`], [`MegakernelError::Validation`].
    pub fn new(handlers: Arc<HandlerTable>, workgroup_size_x: u32) -> Result<ItemPrograms, MegakernelError> {
        let size = [workgroup_size_x, 1, 1];
        let mut program = ProgramBuilder::item("items", Granularity::Lane).workgroup_size(size);
        let buffers = declare(&mut program, MemorySpace::HostVisible, handlers.bindings());
        let functions = item_functions(&mut program, &buffers, &handlers, Counting::Afterwards)?;
        set_entry(&mut program, &functions.execute);
        let lane = program
            .validate()
            .map_err(|source| MegakernelError::Validation { program: "lane item", source })?;

        let mut program = ProgramBuilder::item("accounting", Granularity::Lane).workgroup_size(size);
        let buffers = declare(&mut program, MemorySpace::HostVisible, handlers.bindings());
        let account = accounting(&mut program, &buffers);
        set_entry(&mut program, &account);
        let accounting = program
            .validate()
            .map_err(|source| MegakernelError::Validation { program: "accounting", source })?;

        let workgroup_opcodes = handlers.workgroup_opcodes();
        let mut workgroup = None;
        if !workgroup_opcodes.is_empty() {
            let mut program =
                ProgramBuilder::item("workgroup_items", Granularity::Workgroup).workgroup_size(size);
            let buffers = declare(&mut program, MemorySpace::HostVisible, handlers.bindings());
            let functions = workgroup_functions(&mut program, &buffers, &handlers)?;
            set_entry(&mut program, &functions.execute);
            let validated = program.validate();
            workgroup = Some(
                validated
                    .map_err(|source| MegakernelError::Validation { program: "workgroup item", source })?,
            );
        }
        let packable = functions.packable;
        Ok(ItemPrograms { lane, accounting, workgroup, workgroup_opcodes, packable, handlers })
    }

    /// The program run once per item.
    pub fn lane(&self) -> &ValidatedProgram {
        &self.lane
    }

    /// The program that counts an item of lane granularity when it has ended.
    pub fn accounting(&self) -> &ValidatedProgram {
        &self.accounting
    }

    /// The program run by a workgroup for each item that the lane program admitted to it.
    pub fn workgroup(&self) -> Option<&ValidatedProgram> {
        self.workgroup.as_ref()
    }

    /// Opcodes that the workgroup program serves, sorted.
    pub fn workgroup_opcodes(&self) -> &[u32] {
        &self.workgroup_opcodes
    }

    /// Whether an opcode may stand in a packed slot.
    pub fn is_packable(&self, opcode: impl Into<SlotOpcode>) -> bool {
        self.packable.binary_search(&opcode.into().wire()).is_ok()
    }

    /// The handlers.
    pub fn handlers(&self) -> &Arc<HandlerTable> {
        &self.handlers
    }

    /// What a backend compiles for a session.
    pub fn spec(&self, worker_groups: u32) -> ResidentSpec {
        ResidentSpec {
            lane: self.lane.clone(),
            accounting: Some(self.accounting.clone()),
            workgroup: self.workgroup.clone(),
            workgroup_opcodes: self.workgroup_opcodes.clone(),
            worker_groups,
        }
    }
}

/// The entry of an item program: hands the item's words on, and the outcome back.
fn set_entry(program: &mut ProgramBuilder, execute: &FunctionHandle) {
    let mut entry = FunctionBuilder::new("main");
    let item = ItemScope::params(&mut entry);
    for ty in ITEM_RESULTS {
        entry.result(ty);
    }
    let outcome = entry.call(execute, item.all());
    entry.ret(outcome);
    program.set_entry(entry.finish());
}

#[cfg(test)]
mod tests {
    use vyre_foundation::DataType;
    use vyre_foundation::builder::Operand;

    use super::*;
    use crate::handler::OpcodeHandler;

    fn programs(handlers: Vec<OpcodeHandler>) -> Result<ItemPrograms, MegakernelError> {
        ItemPrograms::new(Arc::new(HandlerTable::new(handlers)?), 64)
    }

    fn size(handlers: u32) -> u64 {
        let handler = |n| OpcodeHandler::new(8 + n, "echo", |h| h.complete(h.arg(0) + 1));
        let programs = programs((0..handlers).map(handler).collect()).expect("valid");
        programs.lane().facts().nodes
    }

    #[test]
    fn programs_grow_linearly_with_handlers() {
        // Those whose permissions are in the first word stand twice.
        let (none, some, all) = (size(32), size(144), size(256));
        assert_eq!(all - some, some - none);
        assert!(all - none < 224 * 60, "{} nodes for each handler", (all - none) / 224);
    }

    #[test]
    fn a_workgroup_handler_may_wait_for_its_workgroup() {
        let sum = OpcodeHandler::new(8, "sum", |h| {
            let shared = h.buffer("shared");
            h.atomic_add(shared, 0, 1);
            h.barrier();
            h.if_(h.arg(0).eq_(1), |h| {
                h.barrier();
                h.complete(shared.load(0));
            });
            h.barrier();
            h.requeue([1]);
        })
        .workgroup_buffer("shared", DataType::U32, 1)
        .granularity(Granularity::Workgroup);
        let programs = programs(vec![sum]).expect("valid");
        assert_eq!(programs.workgroup_opcodes(), [8]);
        assert!(programs.workgroup().is_some_and(|program| program.facts().workgroup_barriers));
        let names = |program: &ValidatedProgram| {
            let bound = program.program().buffers.iter().filter(|b| b.space != MemorySpace::Workgroup);
            bound.map(|b| b.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(Some(names(programs.lane())), programs.workgroup().map(names));
    }
}
