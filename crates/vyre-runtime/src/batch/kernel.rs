//! The kernels of a batch, in IR.
//!
//! The lane kernel goes through the slots; an item of workgroup granularity it admits and writes into a work
//! list, with which the workgroup kernel is launched next. That one reads the list as uniform memory, so
//! its control flow is uniform and its handlers may have barriers.
//!
//! Every slot belongs to one invocation, which alone writes its completion. Fences read the completions of
//! others: a tag is stored with release after everything the item did, and loaded with acquire.

use vyre_driver::protocol::{ARG_WORDS, flags, io, opcode};
use vyre_driver::{Fault, Status};
use vyre_foundation::ScalarType::{Bool, U32, U64};
use vyre_foundation::builder::{
    Buffer, FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Value, Var,
};
use vyre_foundation::{
    AtomicOp, Axis, BufferAccess, Builtin, DataType, MemoryOrdering, MemoryScope, MemorySpace,
    ValidatedProgram,
};

use super::io::{IO_ENTRIES, IO_WORDS, REPLIES, REPLY_WORDS, REQUEST_WORDS};
use super::ring::LAP;
use crate::error::MegakernelError;
use crate::item::{BATCH_PREFIX, Counting, HandlerTable, declare, item_functions, workgroup_functions};
use crate::state::header;

/// How a kernel that must be launched again ends.
pub(super) const AGAIN: u32 = 0x100;

/// Words of the `mode` buffer.
pub(super) const MODE_WORDS: u32 = 4;
/// Words kept for the new arguments of each item to be run again.
pub(super) const RESUME_WORDS: u32 = ARG_WORDS as u32;
/// Words of an entry of the work list: whether there is an item, opcode, tenant and place in the IO queue, flags,
/// arguments.
pub(super) const WORK_WORDS: u32 = 4 + ARG_WORDS as u32;

/// What a launch is for: the word in the `mode` buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Mode {
    /// The first pass of a dispatch: replies of the host are taken, and every state left by an earlier
    /// dispatch is looked at anew.
    First = 0,
    /// A later pass.
    Continue = 1,
    /// Makes every completion and the IO queue empty.
    Rearm = 2,
}

impl Mode {
    pub(super) const ALL: [Mode; 3] = [Mode::First, Mode::Continue, Mode::Rearm];
}

/// In a completion in WAIT_IO, where the place of the request would be: there was no place.
const NO_PLACE: u32 = u32::MAX;
/// The same: the item is a fence behind one that waits.
const BEHIND: u32 = u32::MAX - 1;
/// What a search for a place finds when all are taken, and one of those who took them may not need it.
const SOON: u32 = u32::MAX - 1;

/// What a fence finds when it looks back.
const FREE: u32 = 0;
const NOT_YET: u32 = 1;
const BLOCKED: u32 = 2;

/// The buffers beside those of an item, in the order in which they are bound.
struct BatchOnly {
    slots: Buffer,
    completions: Buffer,
    io: Buffer,
    mode: Buffer,
    resume: Buffer,
    work: Option<Buffer>,
}

/// The kernels for a set of handlers; the second if one of them has workgroup granularity. Both bind the
/// same buffers: those of an item, then slots, completions, IO queue, mode, resume, and with the second
/// kernel the work list.
pub(super) fn programs(
    handlers: &HandlerTable,
    workgroup_size_x: u32,
) -> Result<(ValidatedProgram, Option<ValidatedProgram>), MegakernelError> {
    let workgroup_opcodes = handlers.workgroup_opcodes();
    let with_work = !workgroup_opcodes.is_empty();
    let (mut workgroup, mut asking) = (None, Vec::new());
    if with_work {
        let (program, asked_by) = workgroup_program(handlers, workgroup_size_x)?;
        (workgroup, asking) = (Some(program), asked_by);
    }
    let mut program = ProgramBuilder::kernel("batch").workgroup_size([workgroup_size_x, 1, 1]);
    let item = declare(&mut program, MemorySpace::Global, handlers.bindings());
    let work = with_work.then_some((MemorySpace::Global, BufferAccess::Write));
    let batch = BatchOnly::declare(&mut program, work);
    let functions = item_functions(&mut program, &item, handlers, Counting::Here)?;
    let finish = program.add_function(finish(&batch));
    let published = program.add_function(published(&batch));
    let look_back = program.add_function(look_back(&batch, &published));
    let reply = program.add_function(take_reply(&batch, &finish, &functions.count));
    let reserve = program.add_function(reserve(&batch));
    let post = program.add_function(post(&batch));
    let calls = Calls { published, look_back, reply, reserve, post, finish, execute: functions.execute };
    asking.extend(functions.asking);
    let run_slot = program.add_function(run_slot(&batch, &calls, &workgroup_opcodes, &asking));
    program.entry(|f| lane_entry(f, &batch, item.counters, &run_slot));
    let lane =
        program.validate().map_err(|source| MegakernelError::Validation { program: "batch", source })?;
    Ok((lane, workgroup))
}

/// The kernel of the items that whole workgroups run, and the opcodes among them that may ask the host for IO.
fn workgroup_program(
    handlers: &HandlerTable,
    workgroup_size_x: u32,
) -> Result<(ValidatedProgram, Vec<u32>), MegakernelError> {
    let mut program = ProgramBuilder::kernel("batch_workgroups").workgroup_size([workgroup_size_x, 1, 1]);
    let item = declare(&mut program, MemorySpace::Global, handlers.bindings());
    let batch = BatchOnly::declare(&mut program, Some((MemorySpace::Uniform, BufferAccess::Read)));
    let functions = workgroup_functions(&mut program, &item, handlers)?;
    let finish = program.add_function(finish(&batch));
    let post = program.add_function(post(&batch));
    let calls = WorkgroupCalls { execute: functions.execute, finish, post };
    program.entry(|f| workgroup_entry(f, &batch, &calls));
    let workgroup = program
        .validate()
        .map_err(|source| MegakernelError::Validation { program: "batch workgroup", source })?;
    Ok((workgroup, functions.asking))
}

impl BatchOnly {
    fn declare(program: &mut ProgramBuilder, work: Option<(MemorySpace, BufferAccess)>) -> BatchOnly {
        let mut buffer = |name: &str, space, access, len| {
            program.buffer(format!("{BATCH_PREFIX}{name}"), space, DataType::U32, access, len)
        };
        let (global, both) = (MemorySpace::Global, BufferAccess::ReadWrite);
        BatchOnly {
            slots: buffer("slots", global, BufferAccess::Read, 16),
            completions: buffer("completions", global, both, 4),
            io: buffer("io", global, both, IO_WORDS as u32),
            mode: buffer("mode", MemorySpace::Uniform, BufferAccess::Read, MODE_WORDS),
            resume: buffer("resume", global, both, RESUME_WORDS),
            work: work.map(|(space, access)| buffer("work", space, access, WORK_WORDS)),
        }
    }

    fn mode_is(&self, mode: Mode) -> Value {
        self.mode.load(0).eq_(mode as u32)
    }
}

struct Calls {
    published: FunctionHandle,
    look_back: FunctionHandle,
    reply: FunctionHandle,
    reserve: FunctionHandle,
    post: FunctionHandle,
    finish: FunctionHandle,
    execute: FunctionHandle,
}

struct WorkgroupCalls {
    execute: FunctionHandle,
    finish: FunctionHandle,
    post: FunctionHandle,
}

fn load_acquire(f: &mut FunctionBuilder, buffer: Buffer, index: Value) -> Var {
    let loaded = f.atomic(AtomicOp::Load, buffer, index, MemoryOrdering::Acquire, MemoryScope::Device);
    // Only a store has no result.
    loaded.unwrap_or_else(|| f.let_("none", 0_u32))
}

fn store_release(f: &mut FunctionBuilder, buffer: Buffer, index: Value, value: Value) {
    let op = AtomicOp::Store(value.into_expr());
    f.atomic(op, buffer, index, MemoryOrdering::Release, MemoryScope::Device);
}

/// `(slot, status, code, result)`: writes a completion.
fn finish(batch: &BatchOnly) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("finish");
    let [slot, status, code] = ["slot", "status", "code"].map(|name| f.param(name, U32));
    let result = f.param("result", U64);
    let at = f.let_("at", slot * 4);
    f.store(batch.completions, at, result.cast(U32));
    f.store(batch.completions, at + 1, (result >> 32).cast(U32));
    f.store(batch.completions, at + 2, code);
    store_release(&mut f, batch.completions, at + 3, status | LAP);
    f.finish()
}

/// `(slot)`: whether every quarter is of this lap.
fn published(batch: &BatchOnly) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("published");
    let slot = f.param("slot", U32);
    f.result(Bool);
    let tags = f.let_("first_tag", slot * 16 + 3);
    let differs = |quarter: u32| batch.slots.load(tags + 4 * quarter) ^ LAP;
    let any = differs(0) | differs(1) | differs(2) | differs(3);
    f.ret((any >> 16).eq_(0));
    f.finish()
}

/// `(slot, span)`: whether the `span` items before a slot are finished, and if not, whether waiting for
/// another pass helps. What waits for the host may still change in the first pass, and only there.
fn look_back(batch: &BatchOnly, published: &FunctionHandle) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("look_back");
    let (slot, span) = (f.param("slot", U32), f.param("span", U32));
    f.result(U32);
    let found = f.var_("found", FREE);
    f.for_("before", slot - span, slot, |f, before| {
        let there = f.call_one(published, before);
        f.if_(there, |f| {
            let tag = load_acquire(f, batch.completions, before * 4 + 3);
            let status = f.let_("status", tag & 0xFFFF);
            let waits = status.eq_(Status::WaitIo as u32) & !batch.mode_is(Mode::First);
            f.if_(waits, |f| f.assign(found, BLOCKED));
            let runs = status.eq_(Status::Empty as u32)
                | status.eq_(Status::Requeue as u32)
                | status.eq_(Status::WaitIo as u32) & batch.mode_is(Mode::First);
            f.if_(runs, |f| f.ret(NOT_YET));
        });
    });
    f.ret(found);
    f.finish()
}

/// `(slot, tenant, place)`: completes an item whose request is answered, and frees the place.
fn take_reply(
    batch: &BatchOnly,
    finish: &FunctionHandle,
    count: &FunctionHandle,
) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("take_reply");
    let [slot, tenant, place] = ["slot", "tenant", "at_place"].map(|name| f.param(name, U32));
    let reply = f.let_("reply", place * REPLY_WORDS as u32 + REPLIES as u32);
    let tag = f.atomic_load(batch.io, reply + 3);
    f.if_((tag >> 16).ne_(LAP >> 16), |f| f.ret(()));
    let bytes = f.let_("bytes", batch.io.load(reply).cast(U64));
    let errno = f.let_("errno", batch.io.load(reply + 1).cast(U64));
    let ok = f.let_("ok", (tag & 0xFFFF).eq_(io::OK));
    let status = f.let_("status", ok.select(Status::Done as u32, Status::Fault as u32));
    f.call(finish, (slot, status, ok.select(0, Fault::Io.code()), ok.select(bytes, errno)));
    f.call(count, (tenant, status));
    // The reply first, and the request: a place that is free has neither.
    f.atomic_store(batch.io, reply + 3, 0_u32);
    f.atomic_store(batch.io, place * REQUEST_WORDS as u32 + 7, 0_u32);
    release(&mut f, batch, place);
    f.finish()
}

/// Frees a place.
fn release(f: &mut FunctionBuilder, batch: &BatchOnly, place: Var) {
    store_release(f, batch.io, place * REQUEST_WORDS as u32 + 3, 0_u32.into());
}

/// `(tenant)`: takes a place in the IO queue, which the host does not see before there is a request in it. The place, or
/// [`NO_PLACE`], or [`SOON`].
///
/// An item that may ask takes one before it runs: if there were none afterwards, it would have to run again, and what
/// it did with it.
fn reserve(batch: &BatchOnly) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("reserve");
    let tenant = f.param("tenant", U32);
    f.result(U32);
    let none = f.var_("none", NO_PLACE);
    f.for_("place", 0, IO_ENTRIES as u32, |f, place| {
        let at = f.let_("at", place * REQUEST_WORDS as u32);
        let op = AtomicOp::CompareExchange {
            expected: Value::from(0_u32).into_expr(),
            replacement: (tenant | LAP).into_expr(),
        };
        let taken = f.atomic(op, batch.io, at + 3, MemoryOrdering::Acquire, MemoryScope::Device);
        let taken = taken.unwrap_or(tenant);
        f.if_(taken.eq_(0), |f| f.ret(place));
        let asked = f.atomic_load(batch.io, at + 7);
        f.if_(asked.ne_(LAP), |f| f.assign(none, SOON));
    });
    f.ret(none);
    f.finish()
}

/// `(place, w0..w5)`: puts a request into a place taken before.
fn post(batch: &BatchOnly) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("post");
    let place = f.param("at_place", U32);
    let words = ["operation", "source", "destination", "low", "high", "bytes"].map(|name| f.param(name, U32));
    let at = f.let_("at", place * REQUEST_WORDS as u32);
    for (field, word) in [0_u32, 1, 2, 4, 5, 6].into_iter().zip(words) {
        f.store(batch.io, at + field, word);
    }
    f.atomic_store(batch.io, at + 7, LAP);
    f.finish()
}

/// Does with the place of an item what its outcome says: puts the request in, or gives it back unless the item runs
/// again. Then it is kept in the completion.
fn settle(
    f: &mut FunctionBuilder,
    batch: &BatchOnly,
    post: &FunctionHandle,
    place: Var,
    status: Var,
    words: &[Var],
) {
    f.if_(place.lt(IO_ENTRIES as u32), |f| {
        f.if_else(
            status.eq_(Status::WaitIo as u32),
            |f| {
                let mut values = vec![place];
                values.extend(words.iter().take(6));
                f.call(post, values);
            },
            |f| f.if_(status.ne_(Status::Requeue as u32), |f| release(f, batch, place)),
        );
    });
}

/// `(slot)`: runs the item in a slot, if there is one that can run; whether another pass is needed.
fn run_slot(
    batch: &BatchOnly,
    calls: &Calls,
    workgroup_opcodes: &[u32],
    asking: &[u32],
) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("run_slot");
    let slot = f.param("slot", U32);
    f.result(Bool);
    let base = f.let_("base", slot * 16);
    let completion = f.let_("completion", slot * 4);
    if let Some(work) = batch.work {
        f.store(work, slot * WORK_WORDS, 0_u32);
    }
    let there = f.call_one(&calls.published, slot);
    f.if_(!there, |f| f.ret(false));
    let state = f.atomic_load(batch.completions, completion + 3);
    let status = f.let_("status", (state >> 16).eq_(LAP >> 16).select(state & 0xFFFF, 0));
    let ended = status.eq_(Status::Done as u32) | status.eq_(Status::Fault as u32);
    f.if_(ended, |f| f.ret(false));

    let [low, high, tenant, flag_bits] =
        [0_u32, 1, 2, 3].map(|quarter| f.let_("header", batch.slots.load(base + (4 * quarter + 3)) & 0xFFFF));
    let opcode = f.let_("opcode", low | (high << 16));
    let flags = f.var_("flags", flag_bits & flags::PRIORITY_MASK);
    let args: [Var; ARG_WORDS] = std::array::from_fn(|arg| {
        let word = (arg / 3 * 4 + arg % 3) as u32;
        f.var_("arg", batch.slots.load(base + word))
    });
    f.if_(status.eq_(Status::Requeue as u32), |f| {
        f.assign(flags, flags | flags::RESUMED);
        let resume = f.let_("resume", slot * RESUME_WORDS);
        for (word, arg) in (0_u32..).zip(args) {
            f.assign(arg, batch.resume.load(resume + word));
        }
    });

    let waits = f.let_("waits", status.eq_(Status::WaitIo as u32));
    let shutdown = opcode.eq_(opcode::SHUTDOWN) & tenant.eq_(0);
    f.if_else(
        opcode.eq_(opcode::BATCH_FENCE) | shutdown,
        |f| {
            let asked = opcode.eq_(opcode::BATCH_FENCE) & args[0].ne_(0);
            let span = asked.select(args[0].min(slot), slot);
            let found = f.call_one(&calls.look_back, (slot, span));
            f.if_(found.eq_(NOT_YET), |f| {
                f.if_(waits, |f| f.atomic_store(batch.completions, completion + 3, 0_u32));
                f.ret(true);
            });
            f.if_(found.eq_(BLOCKED), |f| {
                f.call(&calls.finish, (slot, Status::WaitIo as u32, 0_u32, u64::from(BEHIND)));
                f.ret(false);
            });
        },
        |f| {
            f.if_(waits, |f| {
                // Replies come between dispatches, so only the first pass of one finds any.
                f.if_(!batch.mode_is(Mode::First), |f| f.ret(false));
                let place = f.let_("waiting_at", batch.completions.load(completion));
                f.if_(place.lt(IO_ENTRIES as u32), |f| {
                    f.call(&calls.reply, (slot, tenant, place));
                    f.ret(false);
                });
                // Without a place it has not run yet.
            });
        },
    );
    let place = f.var_("place", NO_PLACE);
    f.switch(opcode, |arms| {
        arms.case(asking.iter().copied(), |f| {
            f.if_else(
                status.eq_(Status::Requeue as u32),
                |f| f.assign(place, batch.completions.load(completion)),
                |f| {
                    let taken = f.call_one(&calls.reserve, tenant);
                    f.assign(place, taken);
                    f.if_(place.eq_(SOON), |f| {
                        f.atomic_store(batch.completions, completion + 3, 0_u32);
                        f.ret(true);
                    });
                    f.if_(place.eq_(NO_PLACE), |f| {
                        f.call(&calls.finish, (slot, Status::WaitIo as u32, 0_u32, u64::from(NO_PLACE)));
                        f.ret(false);
                    });
                },
            );
        });
    });

    let mut values: Vec<Value> = vec![opcode.into(), tenant.into(), flags.into(), slot.cast(U64)];
    values.extend(args.map(Value::from));
    let outcome = f.call(&calls.execute, values);
    if let [ended, code, result, words @ ..] = outcome.as_slice() {
        f.if_(ended.eq_(Status::Requeue as u32), |f| {
            if let Some(work) = batch.work {
                f.switch(opcode, |arms| {
                    arms.case(workgroup_opcodes.iter().copied(), |f| {
                        let at = f.let_("work_entry", slot * WORK_WORDS);
                        f.store(work, at, 1_u32);
                        f.store(work, at + 1, opcode);
                        f.store(work, at + 2, tenant | (place << 16));
                        f.store(work, at + 3, flags | flags::RESUMED);
                        for (word, &value) in (4_u32..).zip(words) {
                            f.store(work, at + word, value);
                        }
                        f.ret(false);
                    });
                });
            }
            requeue(f, batch, slot, words);
            f.call(&calls.finish, (slot, Status::Requeue as u32, 0_u32, place.cast(U64)));
            f.ret(true);
        });
        settle(&mut f, batch, &calls.post, place, *ended, words);
        end(&mut f, &calls.finish, slot, place, [*ended, *code, *result]);
    }
    f.ret(false);
    f.finish()
}

/// Keeps the arguments of an item to be run again.
fn requeue(f: &mut FunctionBuilder, batch: &BatchOnly, slot: Var, words: &[Var]) {
    let resume = f.let_("resume", slot * RESUME_WORDS);
    for (word, &value) in (0_u32..).zip(words) {
        f.store(batch.resume, resume + word, value);
    }
}

/// Completes an item that ended, or has it wait for its place; an outcome that makes no sense is a fault.
fn end(
    f: &mut FunctionBuilder,
    finish: &FunctionHandle,
    slot: Var,
    place: Var,
    [status, code, result]: [Var; 3],
) {
    let asks = f.let_("asks", status.eq_(Status::WaitIo as u32) & place.lt(IO_ENTRIES as u32));
    let ended = status.eq_(Status::Done as u32) | status.eq_(Status::Fault as u32);
    let known = f.let_("known", ended | asks);
    let result = asks.select(place.cast(U64), result);
    let status = known.select(status, Status::Fault as u32);
    let code = known.select(code, Fault::Malformed.code());
    f.call(finish, (slot, status, code, result));
}

fn lane_entry(f: &mut FunctionBuilder, batch: &BatchOnly, counters: Buffer, run_slot: &FunctionHandle) {
    let first = f.let_("first", Builtin::GlobalId(Axis::X));
    let groups: Value = Builtin::NumWorkgroups(Axis::X).into();
    let stride = f.let_("stride", groups * Value::from(Builtin::WorkgroupSize(Axis::X)));
    let slots = f.let_("slots", batch.completions.len() / 4);
    f.if_(batch.mode_is(Mode::Rearm), |f| {
        let word = f.var_("word", first);
        f.while_(word.lt(batch.completions.len()), |f| {
            f.store(batch.completions, word, 0_u32);
            f.assign(word, word + stride);
        });
        f.assign(word, first);
        f.while_(word.lt(batch.io.len()), |f| {
            f.store(batch.io, word, 0_u32);
            f.assign(word, word + stride);
        });
        f.ret(());
    });
    let limit = f.let_("limit", counters.load(header::LIMIT).min(slots));
    let slot = f.var_("slot", first);
    let again = f.var_("again", false);
    f.while_(slot.lt(limit), |f| {
        let more = f.call_one(run_slot, slot);
        f.assign(again, again | more);
        f.assign(slot, slot + stride);
    });
    if let Some(work) = batch.work {
        f.while_(slot.lt(slots), |f| {
            f.store(work, slot * WORK_WORDS, 0_u32);
            f.assign(slot, slot + stride);
        });
    }
    f.if_(again, |f| f.trap(AGAIN));
}

fn workgroup_entry(f: &mut FunctionBuilder, batch: &BatchOnly, calls: &WorkgroupCalls) {
    let finish = &calls.finish;
    let Some(work) = batch.work else { return };
    let again = f.var_("again", false);
    let slot = f.var_("slot", Builtin::WorkgroupId(Axis::X));
    f.while_(slot.lt(work.len() / WORK_WORDS), |f| {
        let at = f.let_("work_entry", slot * WORK_WORDS);
        f.if_(work.load(at).eq_(1), |f| {
            let tenant = f.let_("tenant_and_place", work.load(at + 2));
            let place = f.let_("place", tenant >> 16);
            let mut values = vec![work.load(at + 1), tenant & 0xFFFF, work.load(at + 3), slot.cast(U64)];
            values.extend((4..WORK_WORDS).map(|word| work.load(at + word)));
            let outcome = f.call(&calls.execute, values);
            if let [ended, code, result, words @ ..] = outcome.as_slice() {
                f.if_(Value::from(Builtin::LocalId(Axis::X)).eq_(0), |f| {
                    f.if_else(
                        ended.eq_(Status::Requeue as u32),
                        |f| {
                            requeue(f, batch, slot, words);
                            f.call(finish, (slot, *ended, 0_u32, place.cast(U64)));
                            f.assign(again, true);
                        },
                        |f| {
                            settle(f, batch, &calls.post, place, *ended, words);
                            end(f, finish, slot, place, [*ended, *code, *result]);
                        },
                    );
                });
            }
            // The next item may use workgroup memory that a slower invocation still reads.
            f.barrier();
        });
        f.assign(slot, slot + Value::from(Builtin::NumWorkgroups(Axis::X)));
    });
    f.if_(again, |f| f.trap(AGAIN));
}
