//! Writing a handler's body.

use vyre_driver::protocol::{ARG_WORDS, io};
use vyre_driver::{Fault, Status};
use vyre_foundation::builder::{Buffer, FunctionBuilder, Operand, SwitchBuilder, Value, Values, Var};
use vyre_foundation::{AtomicOp, MemoryOrdering, MemoryScope, Node, RmwOp, ScalarType};

use crate::item::ItemScope;

/// A handler's body under construction: the statements of a [`FunctionBuilder`], and the item. Blocks hand
/// their closure another `HandlerBuilder`, so an item can be completed from any depth.
pub struct HandlerBuilder<'f> {
    function: &'f mut FunctionBuilder,
    item: &'f ItemScope,
}

impl<'f> HandlerBuilder<'f> {
    pub(crate) fn new(function: &'f mut FunctionBuilder, item: &'f ItemScope) -> HandlerBuilder<'f> {
        HandlerBuilder { function, item }
    }

    /// Argument word `index`, a `u32`. There are twelve; naming another fails the build.
    pub fn arg(&self, index: usize) -> Value {
        match self.item.args.get(index) {
            Some(&arg) => arg.into(),
            None => {
                self.item.complain(format!("there is no argument {index}; they are 0 to {}", ARG_WORDS - 1));
                Value::from(0_u32)
            }
        }
    }

    /// The item's opcode, a `u32`.
    pub fn opcode(&self) -> Var {
        self.item.opcode
    }

    /// The item's tenant, a `u32`.
    pub fn tenant(&self) -> Var {
        self.item.tenant
    }

    /// The item's flags, a `u32`: its priority, and [`RESUMED`](vyre_driver::protocol::flags::RESUMED) once it
    /// was requeued.
    pub fn flags(&self) -> Var {
        self.item.flags
    }

    /// The item's ticket, a `u64`; in a batch, its slot.
    pub fn ticket(&self) -> Var {
        self.item.ticket
    }

    /// A buffer that this handler declared. Naming another fails the build.
    pub fn buffer(&self, name: &str) -> Buffer {
        self.item.buffer(name)
    }

    /// Calls an external function that this handler declared, once for the workgroup, with scalars and buffers
    /// in the order of its signature; its results are new locals. Calling another fails the build.
    ///
    /// Every invocation has to get here, with the same scalars.
    pub fn call_external(
        &mut self,
        name: &str,
        args: impl Values,
        buffers: impl IntoIterator<Item = Buffer>,
    ) -> Vec<Var> {
        match self.item.external(name) {
            Some(external) => self.function.call_external(external, args, buffers),
            None => Vec::new(),
        }
    }

    /// Ends the item with a result. Integers and truth values are widened to 64 bits, an `i32` keeping its
    /// sign; an `f32` leaves its bits.
    pub fn complete(&mut self, result: impl Into<Value>) {
        let result = result.into();
        let result = match result.ty() {
            ScalarType::U64 => result,
            ScalarType::F32 => result.bitcast(ScalarType::U32).cast(ScalarType::U64),
            _ => result.cast(ScalarType::U64),
        };
        self.outcome(Status::Done, 0_u32, result);
    }

    /// Ends the item in [`Fault::Trap`] with a code, a `u32` of which 31 bits are kept.
    pub fn fault(&mut self, code: impl Into<Value>) {
        let trap = Fault::Trap(0).code();
        let code = (code.into() & (trap - 1)) | trap;
        self.outcome(Status::Fault, code, 0_u64);
    }

    /// Ends the item in a fault of the protocol.
    pub fn fault_as(&mut self, fault: Fault) {
        self.outcome(Status::Fault, fault.code(), 0_u64);
    }

    /// Has the item run again later with other arguments, at most twelve; those not given are 0.
    pub fn requeue(&mut self, args: impl Values) {
        self.outcome_with(Status::Requeue, args);
    }

    /// Asks the host to read a resource of the item's tenant into the buffer that mirrors it
    /// ([`IoResource`](crate::IoResource)): so many bytes from a byte of its range on, 0 for all from there on. The
    /// answer ends the item: with the bytes read, fewer at the end of the file, or in [`Fault::Io`] with the system's
    /// error number for its result. `offset` is a `u64`, the others are `u32`; for handlers that are not packed.
    pub fn io_read(&mut self, resource: impl Into<Value>, offset: impl Into<Value>, bytes: impl Into<Value>) {
        self.ask(io::READ, [resource.into(), 0_u32.into()], offset.into(), bytes.into());
    }

    /// Asks the host to write from the buffer that mirrors a resource to its file, as [`io_read`](Self::io_read) the
    /// other way. Everything that the item has stored is in it. What other items store there is too, if they ended
    /// before this one began. Answered when the system has taken the bytes; [`io_fence`](Self::io_fence) waits for
    /// the disk.
    ///
    /// An item that asked is not run again by itself when its device is lost, as it may have written; its handler may
    /// be [`replayable`](crate::OpcodeHandler::replayable) if writing twice is as good as once.
    pub fn io_write(
        &mut self,
        resource: impl Into<Value>,
        offset: impl Into<Value>,
        bytes: impl Into<Value>,
    ) {
        self.ask(io::WRITE, [0_u32.into(), resource.into()], offset.into(), bytes.into());
    }

    /// Asks the host to have on disk what requests before this one have written to a resource of the item's tenant,
    /// or to all of them for [`io::ALL`]: `fdatasync` of each that was written to. The answer ends the item, with 0
    /// or in [`Fault::Io`]. Items are unordered: submit it when the items that write are answered.
    pub fn io_fence(&mut self, resource: impl Into<Value>) {
        self.ask(io::FENCE, [0_u32.into(), resource.into()], 0_u64.into(), 0_u32.into());
    }

    fn ask(&mut self, operation: u32, [source, destination]: [Value; 2], offset: Value, bytes: Value) {
        let (low, high) = (offset.clone().cast(ScalarType::U32), offset.cast(ScalarType::U64) >> 32);
        let words = [operation.into(), source, destination, low, high.cast(ScalarType::U32), bytes];
        self.outcome_with(Status::WaitIo, words);
    }

    /// Ends this run with a status and up to twelve words of outcome.
    pub(crate) fn outcome_with(&mut self, status: Status, words: impl Values) {
        let mut words = words.into_values();
        if words.len() > ARG_WORDS {
            self.item.complain(format!("{} words of outcome, and the limit is {ARG_WORDS}", words.len()));
        }
        words.resize(ARG_WORDS, Value::from(0_u32));
        let mut values = vec![Value::from(status as u32), 0_u32.into(), 0_u64.into()];
        values.extend(words);
        self.function.ret(values);
    }

    fn outcome(&mut self, status: Status, code: impl Into<Value>, result: impl Into<Value>) {
        let values: [Value; 3] = [Value::from(status as u32), code.into(), result.into()];
        self.function.ret(values);
    }

    /// Runs a block if a `bool` holds.
    pub fn if_(&mut self, condition: impl Into<Value>, then: impl FnOnce(&mut HandlerBuilder<'_>)) {
        let item = self.item;
        self.function.if_(condition, |function| then(&mut HandlerBuilder { function, item }));
    }

    /// Runs one of two blocks.
    pub fn if_else(
        &mut self,
        condition: impl Into<Value>,
        then: impl FnOnce(&mut HandlerBuilder<'_>),
        otherwise: impl FnOnce(&mut HandlerBuilder<'_>),
    ) {
        let item = self.item;
        self.function.if_else(
            condition,
            |function| then(&mut HandlerBuilder { function, item }),
            |function| otherwise(&mut HandlerBuilder { function, item }),
        );
    }

    /// Runs the block that lists a `u32`.
    pub fn switch(&mut self, selector: impl Into<Value>, arms: impl FnOnce(&mut HandlerSwitch<'_, '_>)) {
        let item = self.item;
        self.function.switch(selector, |switch| arms(&mut HandlerSwitch { switch, item }));
    }

    /// Counts from `start` up to but not including `end`; all are `u32`.
    pub fn for_(
        &mut self,
        name: &str,
        start: impl Into<Value>,
        end: impl Into<Value>,
        body: impl FnOnce(&mut HandlerBuilder<'_>, Var),
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
        body: impl FnOnce(&mut HandlerBuilder<'_>, Var),
    ) {
        let item = self.item;
        self.function.for_step(name, start, end, step, |function, counter| {
            body(&mut HandlerBuilder { function, item }, counter);
        });
    }

    /// Runs a block as long as a `bool` holds before it.
    pub fn while_(&mut self, condition: impl Into<Value>, body: impl FnOnce(&mut HandlerBuilder<'_>)) {
        let item = self.item;
        self.function.while_(condition, |function| body(&mut HandlerBuilder { function, item }));
    }

    /// Opens a scope.
    pub fn block(&mut self, body: impl FnOnce(&mut HandlerBuilder<'_>)) {
        let item = self.item;
        self.function.block(|function| body(&mut HandlerBuilder { function, item }));
    }

    /// Defines an immutable local.
    pub fn let_(&mut self, name: &str, value: impl Into<Value>) -> Var {
        self.function.let_(name, value)
    }

    /// Defines a mutable local.
    pub fn var_(&mut self, name: &str, value: impl Into<Value>) -> Var {
        self.function.var_(name, value)
    }

    /// Adds a local that no statement defines yet: for use with [`push`](Self::push).
    pub fn local(&mut self, name: &str, ty: ScalarType, mutable: bool) -> Var {
        self.function.local(name, ty, mutable)
    }

    /// Adds any statement.
    pub fn push(&mut self, node: Node) {
        self.function.push(node);
    }

    /// Changes a mutable local.
    pub fn assign(&mut self, var: Var, value: impl Into<Value>) {
        self.function.assign(var, value);
    }

    /// Stores one element; past the end, nothing.
    pub fn store(&mut self, buffer: Buffer, index: impl Into<Value>, value: impl Into<Value>) {
        self.function.store(buffer, index, value);
    }

    /// Leaves the innermost loop.
    pub fn break_(&mut self) {
        self.function.break_();
    }

    /// Goes on with the next round of the innermost loop.
    pub fn continue_(&mut self) {
        self.function.continue_();
    }

    /// Waits for the workgroup.
    pub fn barrier(&mut self) {
        self.function.barrier();
    }

    /// The same as [`fault`](Self::fault).
    pub fn trap(&mut self, code: impl Into<Value>) {
        self.function.trap(code);
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
        self.function.atomic(op, buffer, index, ordering, scope)
    }

    /// Loads atomically, relaxed.
    pub fn atomic_load(&mut self, buffer: Buffer, index: impl Into<Value>) -> Var {
        self.function.atomic_load(buffer, index)
    }

    /// Stores atomically, relaxed.
    pub fn atomic_store(&mut self, buffer: Buffer, index: impl Into<Value>, value: impl Into<Value>) {
        self.function.atomic_store(buffer, index, value);
    }

    /// Writes `replacement` if the element equals `expected`, relaxed; yields the value before.
    pub fn atomic_compare_exchange(
        &mut self,
        buffer: Buffer,
        index: impl Into<Value>,
        expected: impl Into<Value>,
        replacement: impl Into<Value>,
    ) -> Var {
        self.function.atomic_compare_exchange(buffer, index, expected, replacement)
    }

    /// Reads, combines and writes back, relaxed; yields the value before.
    pub fn atomic_rmw(
        &mut self,
        op: RmwOp,
        buffer: Buffer,
        index: impl Into<Value>,
        value: impl Into<Value>,
    ) -> Var {
        self.function.atomic_rmw(op, buffer, index, value)
    }

    /// Adds atomically, relaxed; yields the value before.
    pub fn atomic_add(&mut self, buffer: Buffer, index: impl Into<Value>, value: impl Into<Value>) -> Var {
        self.function.atomic_add(buffer, index, value)
    }

    /// Replaces atomically, relaxed; yields the value before.
    pub fn atomic_exchange(
        &mut self,
        buffer: Buffer,
        index: impl Into<Value>,
        value: impl Into<Value>,
    ) -> Var {
        self.function.atomic_exchange(buffer, index, value)
    }
}

/// The arms of a switch in a handler's body.
pub struct HandlerSwitch<'s, 'f> {
    switch: &'s mut SwitchBuilder<'f>,
    item: &'s ItemScope,
}

impl HandlerSwitch<'_, '_> {
    /// Runs a block for any of these values.
    pub fn case(
        &mut self,
        values: impl IntoIterator<Item = u32>,
        body: impl FnOnce(&mut HandlerBuilder<'_>),
    ) {
        let item = self.item;
        self.switch.case(values, |function| body(&mut HandlerBuilder { function, item }));
    }

    /// Runs a block for every other value.
    pub fn default(&mut self, body: impl FnOnce(&mut HandlerBuilder<'_>)) {
        let item = self.item;
        self.switch.default(|function| body(&mut HandlerBuilder { function, item }));
    }
}
