//! The registered handlers, checked against one another.

use std::collections::HashMap;

use vyre_driver::protocol::ARG_WORDS;
use vyre_foundation::names::check_name;
use vyre_foundation::{BufferAccess, External, Granularity, MemorySpace};

use super::buffers::is_reserved_name;
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::packed;
use crate::state::MAX_HANDLERS;

/// Bytes of a handler's or a binding's name at most: longer ones are made of it.
const MAX_HANDLER_NAME: usize = 48;

/// All user handlers of a megakernel, in the order of their indices: the bits of a tenant's permissions and
/// the places of their counters.
///
/// A place belongs to an opcode for good. The handler of one that was removed stays in it, serves nothing, and
/// gives way when the opcode is added again.
#[derive(Clone, Debug, Default)]
pub struct HandlerTable {
    handlers: Vec<OpcodeHandler>,
    by_opcode: HashMap<u32, u32>,
    bindings: Vec<HandlerBinding>,
    externals: Vec<External>,
}

impl HandlerTable {
    /// Checks the handlers, and joins what they declare.
    ///
    /// # Errors
    ///
    /// A reserved or duplicate opcode, too many handlers, a name or a binding that cannot be.
    pub fn new(handlers: Vec<OpcodeHandler>) -> Result<HandlerTable, MegakernelError> {
        let mut table = HandlerTable::default();
        for handler in handlers {
            table.add(handler)?;
        }
        table.joined()
    }

    /// Puts another handler in the place of one.
    pub(crate) fn replace(&mut self, handler: OpcodeHandler) -> Result<(), MegakernelError> {
        self.remove(handler.opcode())?;
        self.add(handler)
    }

    /// Takes the handler of an opcode out of service.
    pub(crate) fn remove(&mut self, opcode: SlotOpcode) -> Result<(), MegakernelError> {
        let removed = self.by_opcode.remove(&opcode.wire());
        removed.map(drop).ok_or(MegakernelError::UnknownOpcode { opcode })
    }

    /// Adds the handler of an opcode that has none: in the place that the opcode had before, or in a new one.
    pub(crate) fn add(&mut self, handler: OpcodeHandler) -> Result<(), MegakernelError> {
        let opcode = handler.opcode();
        if !opcode.is_user() {
            return Err(MegakernelError::ReservedOpcode { opcode });
        }
        check_handler(&handler)?;
        if let Some((_, first)) = self.get(opcode) {
            let (first, second) = (first.name().to_owned(), handler.name().to_owned());
            return Err(MegakernelError::DuplicateOpcode { opcode, first, second });
        }
        let known = self.handlers.iter().position(|known| known.opcode() == opcode);
        let index = known.unwrap_or(self.handlers.len());
        if index >= MAX_HANDLERS as usize {
            return Err(MegakernelError::InvalidGeometry {
                what: "the number of user handlers",
                got: index as u64 + 1,
                expected: format!("at most {MAX_HANDLERS}"),
            });
        }
        match self.handlers.get_mut(index) {
            Some(place) => *place = handler,
            None => self.handlers.push(handler),
        }
        self.by_opcode.insert(opcode.wire(), index as u32);
        Ok(())
    }

    /// Joins what the handlers declare. Buffers that it had keep their order, and stay even if
    /// no handler names them any more: whoever runs it has them.
    pub(crate) fn joined(mut self) -> Result<HandlerTable, MegakernelError> {
        let mut bindings = Bindings::default();
        let mut externals = Vec::new();
        for binding in &self.bindings {
            bindings.add(binding)?;
        }
        for (_, handler) in self.served() {
            for binding in handler.bindings() {
                bindings.add(binding)?;
            }
            for external in handler.externals() {
                add_external(&mut externals, handler, external)?;
            }
        }
        self.bindings = bindings.list;
        self.externals = externals;
        Ok(self)
    }

    /// How many places there are.
    pub fn len(&self) -> usize {
        self.handlers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.handlers.is_empty()
    }

    /// The handlers in the order of their indices, removed ones included.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &OpcodeHandler> {
        self.handlers.iter()
    }

    /// The handlers that serve their opcodes, with their indices.
    pub fn served(&self) -> impl Iterator<Item = (u32, &OpcodeHandler)> {
        (0_u32..)
            .zip(&self.handlers)
            .filter(|(_, handler)| self.by_opcode.contains_key(&handler.opcode().wire()))
    }

    /// The handler of an opcode and its index.
    pub fn get(&self, opcode: SlotOpcode) -> Option<(u32, &OpcodeHandler)> {
        let &index = self.by_opcode.get(&opcode.wire())?;
        Some((index, self.handlers.get(index as usize)?))
    }

    /// Whether an opcode is built in or has a handler.
    pub fn knows(&self, opcode: SlotOpcode) -> bool {
        opcode.builtin().is_some() || self.by_opcode.contains_key(&opcode.wire())
    }

    /// The buffers that the handlers name, joined by name, in the order of first mention.
    pub fn bindings(&self) -> &[HandlerBinding] {
        &self.bindings
    }

    /// The external functions that the handlers declare, each once, in the order of first mention.
    pub fn externals(&self) -> &[External] {
        &self.externals
    }

    /// Opcodes whose items a whole workgroup runs, sorted.
    pub fn workgroup_opcodes(&self) -> Vec<u32> {
        let served = self.served().map(|(_, handler)| handler);
        let workgroup = served.filter(|handler| handler.granularity_of() == Granularity::Workgroup);
        let mut opcodes: Vec<u32> = workgroup.map(|handler| handler.opcode().wire()).collect();
        opcodes.sort_unstable();
        opcodes
    }

    /// Whether an item may run twice when a device was lost: it has no effect but its result, or its handler
    /// was declared replayable and touches nothing that a loss destroys.
    pub fn is_replayable(&self, opcode: u32, args: &[u32; ARG_WORDS]) -> bool {
        self.all_replayable(opcode, args, OpcodeHandler::is_replayable)
    }

    /// Whether an item may run twice once everything that it touches was put back.
    pub fn is_declared_replayable(&self, opcode: u32, args: &[u32; ARG_WORDS]) -> bool {
        self.all_replayable(opcode, args, OpcodeHandler::is_declared_replayable)
    }

    fn all_replayable(
        &self,
        opcode: u32,
        args: &[u32; ARG_WORDS],
        replayable: fn(&OpcodeHandler) -> bool,
    ) -> bool {
        let one = |opcode: SlotOpcode| match opcode.builtin() {
            Some(builtin) => matches!(builtin, BuiltinOpcode::Nop | BuiltinOpcode::DfaStep),
            None => self.get(opcode).is_some_and(|(_, handler)| replayable(handler)),
        };
        let opcode = SlotOpcode::new(opcode);
        if opcode.builtin() != Some(BuiltinOpcode::PackedSlot) {
            return one(opcode);
        }
        packed::decode(args).is_ok_and(|ops| ops.iter().all(|op| one(op.opcode())))
    }
}

fn check_handler(handler: &OpcodeHandler) -> Result<(), MegakernelError> {
    let refuse = |problem: String, remedy| {
        Err(MegakernelError::InvalidHandler { handler: handler.name().to_owned(), problem, remedy })
    };
    if let Err(reason) = check_name(handler.name()) {
        return refuse(format!("its name is refused: {reason}"), "give it an identifier for a name");
    }
    if handler.name().len() > MAX_HANDLER_NAME {
        return refuse(format!("its name has {} bytes", handler.name().len()), "use at most 48");
    }
    if handler.granularity_of() == Granularity::Lane && !handler.workgroup_buffers().is_empty() {
        return refuse(
            "it has workgroup memory but runs on one lane".to_owned(),
            "give it workgroup granularity",
        );
    }
    if let (Granularity::Lane, Some(external)) = (handler.granularity_of(), handler.externals().first()) {
        return refuse(
            format!("it declares the external function `{external}` but runs on one lane"),
            "give it workgroup granularity",
        );
    }
    Ok(())
}

fn add_external(
    known: &mut Vec<External>,
    handler: &OpcodeHandler,
    external: &External,
) -> Result<(), MegakernelError> {
    match known.iter().find(|known| known.name == external.name) {
        None => known.push(external.clone()),
        Some(known) if known == external => {}
        Some(known) => {
            return Err(MegakernelError::InvalidHandler {
                handler: handler.name().to_owned(),
                problem: format!("it declares `{external}`, and another handler `{known}`"),
                remedy: "declare one signature for each external function",
            });
        }
    }
    Ok(())
}

#[derive(Default)]
struct Bindings {
    list: Vec<HandlerBinding>,
    by_name: HashMap<String, usize>,
}

impl Bindings {
    fn add(&mut self, binding: &HandlerBinding) -> Result<(), MegakernelError> {
        let refuse = |problem: String, remedy| {
            Err(MegakernelError::InvalidBinding { binding: binding.name.clone(), problem, remedy })
        };
        let place = *self.by_name.entry(binding.name.clone()).or_insert(self.list.len());
        let Some(known) = self.list.get_mut(place) else {
            if let Err(reason) = check_name(&binding.name) {
                return refuse(format!("its name is refused: {reason}"), "use an identifier");
            }
            if binding.name.len() > MAX_HANDLER_NAME || is_reserved_name(&binding.name) {
                return refuse(
                    "its name is taken by the megakernel, or longer than 48 bytes".to_owned(),
                    "use another name",
                );
            }
            if binding.space == MemorySpace::Workgroup {
                return refuse("it is in workgroup memory".to_owned(), "declare it with `workgroup_buffer`");
            }
            self.list.push(binding.clone());
            return Ok(());
        };
        let shape = |b: &HandlerBinding| (b.element, b.space, b.backing);
        if shape(known) != shape(binding) {
            return refuse(
                format!("declared {:?} by one handler and {:?} by another", shape(known), shape(binding)),
                "make element, space and backing agree, or use two names",
            );
        }
        if known.access != binding.access {
            known.access = BufferAccess::ReadWrite;
        }
        known.min_len = known.min_len.max(binding.min_len);
        Ok(())
    }
}
