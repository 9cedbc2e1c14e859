//! Opcode handlers: what an opcode computes, written once in IR.
//!
//! A handler sees the item's words, named buffers, and nothing else. Its body is a closure that writes
//! statements; it runs whenever a megakernel is assembled, once for each program the handler goes into, and
//! must write the same statements each time. It ends with [`complete`](HandlerBuilder::complete),
//! [`fault`](HandlerBuilder::fault) or [`requeue`](HandlerBuilder::requeue), or by asking the host for IO
//! ([`io_read`](HandlerBuilder::io_read), [`io_write`](HandlerBuilder::io_write),
//! [`io_fence`](HandlerBuilder::io_fence)); falling off the end completes with 0. A `trap(n)` anywhere in it is the same as `fault(n)`. A grid barrier is refused.
//!
//! Workgroup handlers are run by all invocations of a workgroup, with the same arguments; the outcome is
//! what invocation 0 answered. Their workgroup buffers hold whatever an earlier item left in them. They may
//! call external functions that the backend brings along
//! ([`vyre_foundation::externals`]), once for the workgroup; a backend without one of them
//! refuses the megakernel by the function's name.

mod builder;
mod program;

use std::fmt;
use std::sync::Arc;

use vyre_foundation::{BufferAccess, DataType, External, Granularity, Local, MemorySpace, Node};

pub use builder::{HandlerBuilder, HandlerSwitch};

use crate::opcode::SlotOpcode;

/// What happens to a buffer when its device is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// Made again from the host's copy.
    HostBacked,
    /// Gone; what touched it is not run again by itself.
    Volatile,
}

/// A buffer that a handler names. Handlers that name the same buffer share it: element, space and backing
/// must agree, access and length add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerBinding {
    /// The name, an identifier.
    pub name: String,
    /// What its elements are.
    pub element: DataType,
    /// What handlers do with it.
    pub access: BufferAccess,
    /// Where it lives; not workgroup memory.
    pub space: MemorySpace,
    /// Elements at least.
    pub min_len: u32,
    /// What a device loss does to it.
    pub backing: Backing,
}

impl HandlerBinding {
    /// A buffer that handlers only read, made again from the host's copy after a loss.
    pub fn read(name: impl Into<String>, element: DataType) -> HandlerBinding {
        HandlerBinding {
            name: name.into(),
            element,
            access: BufferAccess::Read,
            space: MemorySpace::Global,
            min_len: 0,
            backing: Backing::HostBacked,
        }
    }

    /// A buffer that handlers read and write, gone after a loss.
    pub fn read_write(name: impl Into<String>, element: DataType) -> HandlerBinding {
        HandlerBinding {
            access: BufferAccess::ReadWrite,
            backing: Backing::Volatile,
            ..HandlerBinding::read(name, element)
        }
    }

    /// The same with at least so many elements.
    #[must_use]
    pub fn min_len(mut self, elements: u32) -> HandlerBinding {
        self.min_len = elements;
        self
    }

    /// The same in another space.
    #[must_use]
    pub fn in_space(mut self, space: MemorySpace) -> HandlerBinding {
        self.space = space;
        self
    }

    /// The same with another answer to a device loss.
    #[must_use]
    pub fn backing(mut self, backing: Backing) -> HandlerBinding {
        self.backing = backing;
        self
    }
}

/// Workgroup memory of one handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkgroupBuffer {
    pub(crate) name: String,
    pub(crate) element: DataType,
    pub(crate) len: u32,
}

type Body = Arc<dyn Fn(&mut HandlerBuilder<'_>) + Send + Sync>;

/// What an opcode computes.
///
/// ```
/// use vyre_foundation::{DataType, builder::Operand};
/// use vyre_runtime::{HandlerBinding, OpcodeHandler};
///
/// // Counts the item's first argument in a histogram; refuses what has no bin.
/// let count = OpcodeHandler::new(0x40, "count", |h| {
///     let bins = h.buffer("bins");
///     let bin = h.arg(0);
///     h.if_(bin.ge(bins.len()), |h| h.fault(1));
///     let old = h.atomic_add(bins, h.arg(0), 1);
///     h.complete(old + 1);
/// })
/// .binding(HandlerBinding::read_write("bins", DataType::U32));
/// ```
#[derive(Clone)]
pub struct OpcodeHandler {
    opcode: SlotOpcode,
    name: String,
    granularity: Granularity,
    replayable: bool,
    bindings: Vec<HandlerBinding>,
    workgroup_buffers: Vec<WorkgroupBuffer>,
    externals: Vec<External>,
    body: Body,
}

impl OpcodeHandler {
    /// A handler of lane granularity, not replayable, without bindings. The name is an identifier.
    pub fn new(
        opcode: impl Into<SlotOpcode>,
        name: impl Into<String>,
        body: impl Fn(&mut HandlerBuilder<'_>) + Send + Sync + 'static,
    ) -> OpcodeHandler {
        OpcodeHandler {
            opcode: opcode.into(),
            name: name.into(),
            granularity: Granularity::Lane,
            replayable: false,
            bindings: Vec::new(),
            workgroup_buffers: Vec::new(),
            externals: Vec::new(),
            body: Arc::new(body),
        }
    }

    /// A handler from finished statements. Locals 0 to 15 are the item's words in the order of
    /// [`ITEM_PARAMS`](vyre_driver::protocol::ITEM_PARAMS); `locals` follow. Statements return what
    /// [`ITEM_RESULTS`](vyre_driver::protocol::ITEM_RESULTS) says, or only the first three of it. Buffers 0
    /// to 5 are those of [`SYSTEM_BUFFERS`](crate::item::SYSTEM_BUFFERS), the bindings of all handlers
    /// follow in the order of first mention.
    pub fn from_nodes(
        opcode: impl Into<SlotOpcode>,
        name: impl Into<String>,
        locals: Vec<Local>,
        nodes: Vec<Node>,
    ) -> OpcodeHandler {
        OpcodeHandler::new(opcode, name, move |h| {
            for local in &locals {
                h.local(&local.name, local.ty, local.mutable);
            }
            for node in &nodes {
                h.push(node.clone());
            }
        })
    }

    /// How much of the machine one item occupies.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> OpcodeHandler {
        self.granularity = granularity;
        self
    }

    /// Whether an item may run twice when a device was lost. It also takes that every binding is
    /// [`Backing::HostBacked`].
    #[must_use]
    pub fn replayable(mut self, replayable: bool) -> OpcodeHandler {
        self.replayable = replayable;
        self
    }

    /// Declares a buffer that the body may name.
    #[must_use]
    pub fn binding(mut self, binding: HandlerBinding) -> OpcodeHandler {
        self.bindings.push(binding);
        self
    }

    /// Declares workgroup memory of this handler alone, under a name of its own; for workgroup handlers.
    #[must_use]
    pub fn workgroup_buffer(mut self, name: impl Into<String>, element: DataType, len: u32) -> OpcodeHandler {
        self.workgroup_buffers.push(WorkgroupBuffer { name: name.into(), element, len });
        self
    }

    /// Declares an external function that the body may call by its name; for workgroup handlers. Handlers
    /// that declare the same name share it, so the signatures must agree.
    #[must_use]
    pub fn external(mut self, external: External) -> OpcodeHandler {
        self.externals.push(external);
        self
    }

    /// Its opcode.
    pub fn opcode(&self) -> SlotOpcode {
        self.opcode
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much of the machine one of its items occupies.
    pub fn granularity_of(&self) -> Granularity {
        self.granularity
    }

    /// Whether one of its items may run twice: declared so, and touching nothing a loss destroys.
    pub fn is_replayable(&self) -> bool {
        self.replayable && self.bindings.iter().all(|binding| binding.backing == Backing::HostBacked)
    }

    /// Whether it was declared replayable, whatever it touches.
    pub fn is_declared_replayable(&self) -> bool {
        self.replayable
    }

    /// The buffers it names.
    pub fn bindings(&self) -> &[HandlerBinding] {
        &self.bindings
    }

    /// The external functions it declares.
    pub fn externals(&self) -> &[External] {
        &self.externals
    }

    pub(crate) fn workgroup_buffers(&self) -> &[WorkgroupBuffer] {
        &self.workgroup_buffers
    }

    pub(crate) fn write_body(&self, h: &mut HandlerBuilder<'_>) {
        (self.body)(h);
    }
}

impl fmt::Debug for OpcodeHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpcodeHandler")
            .field("opcode", &self.opcode)
            .field("name", &self.name)
            .field("granularity", &self.granularity)
            .field("replayable", &self.replayable)
            .field("bindings", &self.bindings)
            .finish_non_exhaustive()
    }
}
