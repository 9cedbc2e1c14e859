//! `execute_item`: from an item's words to its outcome.

use vyre_driver::protocol::{ITEM_RESULTS, flags};
use vyre_driver::{Fault, Status};
use vyre_foundation::ScalarType::{Bool, U32};
use vyre_foundation::builder::{FunctionBuilder, FunctionHandle, Operand, ProgramBuilder, Value, Var};
use vyre_foundation::{Axis, Builtin, External, Granularity};

use super::body::{ItemScope, Names, handler_function, item_function};
use super::buffers::{ItemBuffers, declare_workgroup};
use super::builtins;
use super::handlers::HandlerTable;
use super::packing::Packing;
use crate::error::MegakernelError;
use crate::opcode::BuiltinOpcode;
use crate::state::{BUILTIN_COUNTERS, StateLayout, header, tenant_row, usage_row};

/// What charging answers if there is no quota left.
const REFUSED: u32 = 0;

/// What a look-up adds to a handler's place: it may stand in a packed slot.
pub(super) const PACKABLE: u32 = 1 << 16;
/// What a look-up adds to a handler's place: a whole workgroup runs it.
const WORKGROUP: u32 = 1 << 17;
/// What a look-up answers for an opcode without a handler: neither flag is set.
const NO_HANDLER: u32 = 0xFFFF;

/// Who counts an item that ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    /// [`ItemFunctions::execute`] itself.
    Here,
    /// [`accounting`], which may run when the item was acknowledged, so that counting is not on an item's path. The
    /// first two words of an outcome that is final say what there is to count: one more than the place of the
    /// handler that ran, or 0, and a [`Charge`].
    Afterwards,
}

impl From<Charge> for Value {
    fn from(charge: Charge) -> Value {
        (charge as u32).into()
    }
}

/// What is left to do about the tenant's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Charge {
    /// The run trapped or was cut short, and did not say.
    Unsaid = 0,
    /// Nothing: the item was charged, refused, or admitted in an earlier run.
    Settled = 1,
    /// One unit, of a quota without limit.
    Due = 2,
    /// Nothing, and nobody to count it for.
    NoTenant = 3,
}

/// The function from an opcode to the place of its handler (built-ins first, then users'), with flags.
pub(super) struct Lookup {
    pub(super) function: FunctionHandle,
}

/// What callers of the item functions need.
pub(crate) struct ItemFunctions {
    /// From [`ITEM_PARAMS`] to [`ITEM_RESULTS`].
    pub(crate) execute: FunctionHandle,
    /// `(tenant, status)`: counts an item that ended.
    pub(crate) count: FunctionHandle,
    /// Opcodes that may stand in a packed slot, sorted.
    pub(crate) packable: Vec<u32>,
    /// Opcodes whose items may ask the host for IO, those of workgroup granularity apart.
    pub(crate) asking: Vec<u32>,
}

/// What callers of the function for items of workgroup granularity need.
pub(crate) struct WorkgroupFunctions {
    /// From [`ITEM_PARAMS`] to [`ITEM_RESULTS`], the same in every invocation that matters.
    pub(crate) execute: FunctionHandle,
    /// Opcodes whose items may ask the host for IO.
    pub(crate) asking: Vec<u32>,
}

/// A handler as the lane program knows it.
struct Target {
    place: u32,
    opcode: u32,
    flags: u32,
    /// Absent for a workgroup handler.
    function: Option<FunctionHandle>,
    /// Whether it stands in [`shortcut`], too.
    short: bool,
}

/// Adds the functions of lane granularity.
pub(crate) fn item_functions(
    program: &mut ProgramBuilder,
    buffers: &ItemBuffers,
    handlers: &HandlerTable,
    counting: Counting,
) -> Result<ItemFunctions, MegakernelError> {
    let mut targets = Vec::with_capacity(handlers.len() + BuiltinOpcode::ALL.len());
    let mut asking = Vec::new();
    for builtin in BuiltinOpcode::ALL {
        let name = format!("builtin_{}", builtin.name().to_lowercase());
        let built = item_function(name, Names::default(), |h| builtins::write(builtin, h, buffers));
        let mut built = built.map_err(|problem| MegakernelError::InvalidHandler {
            handler: builtin.name().to_owned(),
            problem,
            remedy: "report it as a defect of the megakernel",
        })?;
        asking.extend(built.asks.then_some(builtin.wire()));
        targets.push(Target {
            place: builtin.index(),
            opcode: builtin.wire(),
            flags: if builtin.is_packable() { PACKABLE } else { 0 },
            // It is what takes others apart.
            short: builtin != BuiltinOpcode::PackedSlot && built.is_short(),
            function: Some(program.add_function(built.function)),
        });
    }
    for (index, handler) in handlers.served() {
        let (place, opcode) = (BUILTIN_COUNTERS + index, handler.opcode().wire());
        targets.push(match handler.granularity_of() {
            Granularity::Workgroup => {
                Target { place, opcode, flags: WORKGROUP, function: None, short: false }
            }
            Granularity::Lane => {
                let mut built = handler_function(handler, buffers, Vec::new(), &[])?;
                let flags = if built.ends_at_once { PACKABLE } else { 0 };
                asking.extend(built.asks.then_some(opcode));
                let short = built.is_short();
                let function = Some(program.add_function(built.function));
                Target { place, opcode, flags, function, short }
            }
        });
    }
    let lookup = Lookup { function: program.add_function(lookup(&targets)) };
    let permitted = program.add_function(permitted(buffers));
    let charge = program.add_function(charge(buffers));
    let count = program.add_function(count(buffers));
    let run = program.add_function(run(&targets));
    let packing = Packing::add(program, &lookup, &permitted);
    let parts = Parts { lookup, permitted, charge, count, run, packing };
    let execute = program.add_function(execute(&parts, &targets, buffers, counting));
    let packable = targets.iter().filter(|target| target.flags & PACKABLE != 0 && target.opcode < 256);
    let mut packable: Vec<u32> = packable.map(|target| target.opcode).collect();
    packable.sort_unstable();
    Ok(ItemFunctions { execute, count: parts.count, packable, asking })
}

/// Adds the function that runs an admitted item of workgroup granularity.
pub(crate) fn workgroup_functions(
    program: &mut ProgramBuilder,
    buffers: &ItemBuffers,
    handlers: &HandlerTable,
) -> Result<WorkgroupFunctions, MegakernelError> {
    let mut asking = Vec::new();
    let external = |external: &External| (external.name.clone(), program.external(external.clone()));
    let externals: Vec<_> = handlers.externals().iter().map(external).collect();
    let mut targets = Vec::new();
    for (index, handler) in handlers.served() {
        if handler.granularity_of() == Granularity::Workgroup {
            let own = declare_workgroup(program, index, handler);
            let built = handler_function(handler, buffers, own, &externals)?;
            asking.extend(built.asks.then_some(handler.opcode().wire()));
            let function = program.add_function(built.function);
            targets.push((BUILTIN_COUNTERS + index, handler.opcode().wire(), function));
        }
    }
    let count = program.add_function(count(buffers));
    let finish = program.add_function({
        let mut f = FunctionBuilder::new("count_once");
        let [place, tenant, status] = ["place", "tenant", "status"].map(|name| f.param(name, U32));
        f.if_(Value::from(Builtin::LocalId(Axis::X)).eq_(0), |f| {
            f.atomic_add(buffers.counters, place + StateLayout::counter(0), 1);
            f.call(&count, (tenant, status));
        });
        f.finish()
    });
    let mut f = FunctionBuilder::new("execute_workgroup");
    let item = ItemScope::params(&mut f);
    for ty in ITEM_RESULTS {
        f.result(ty);
    }
    f.switch(item.opcode, |arms| {
        for (place, opcode, function) in &targets {
            arms.case([*opcode], |f| {
                let outcome = f.call(function, item.all());
                if let Some(&status) = outcome.first() {
                    f.call(&finish, (*place, item.tenant, status));
                }
                f.ret(widened(outcome));
            });
        }
    });
    f.ret(fault(Fault::UnknownOpcode.code(), Charge::Settled));
    Ok(WorkgroupFunctions { execute: program.add_function(f.finish()), asking })
}

struct Parts {
    lookup: Lookup,
    permitted: FunctionHandle,
    charge: FunctionHandle,
    count: FunctionHandle,
    run: FunctionHandle,
    packing: Packing,
}

fn lookup(targets: &[Target]) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("lookup");
    let opcode = f.param("opcode", U32);
    f.result(U32);
    f.switch(opcode, |arms| {
        for target in targets {
            arms.case([target.opcode], |f| f.ret(target.place | target.flags));
        }
    });
    f.ret(NO_HANDLER);
    f.finish()
}

/// `(row, place)`: whether the tenant's row permits the handler at a place.
fn permitted(buffers: &ItemBuffers) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("permitted");
    let (row, place) = (f.param("row", U32), f.param("place", U32));
    f.result(Bool);
    let builtin = f.let_("builtin", place.lt(BUILTIN_COUNTERS));
    let user = f.let_("user", place - BUILTIN_COUNTERS);
    let word = builtin.select(tenant_row::BUILTINS, (user >> 5) + tenant_row::PERMISSIONS);
    let bit = builtin.select(place, user & 31);
    f.ret(((buffers.tenants.load(row + word) >> bit) & 1).ne_(0));
    f.finish()
}

fn quota_limit(f: &mut FunctionBuilder, buffers: &ItemBuffers, tenant: Var) -> Var {
    f.atomic_load(buffers.tenants, tenant * tenant_row::WORDS + tenant_row::QUOTA)
}

fn used_word(tenant: Var) -> Value {
    tenant * usage_row::WORDS + usage_row::USED
}

/// `(tenant, limit)`: takes one unit of the quota, or tells that there is none; of a quota without limit it leaves that to
/// the caller. An attempt refused leaves no trace.
fn charge(buffers: &ItemBuffers) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("charge");
    let (tenant, limit) = (f.param("tenant", U32), f.param("limit", U32));
    f.result(U32);
    f.if_(limit.eq_(tenant_row::UNLIMITED), |f| f.ret(Charge::Due as u32));
    let used = f.let_("used_word", used_word(tenant));
    // Tried again only because another item was admitted meanwhile.
    let first = f.atomic_load(buffers.usage, used);
    let seen = f.var_("seen", first);
    f.while_(seen.lt(limit), |f| {
        let before = f.atomic_compare_exchange(buffers.usage, used, seen, seen + 1);
        f.if_(before.eq_(seen), |f| f.ret(Charge::Settled as u32));
        f.assign(seen, before);
    });
    f.ret(REFUSED);
    f.finish()
}

/// `(tenant, status)`: counts an item that ended; one that will run again is not counted yet.
fn count(buffers: &ItemBuffers) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("count");
    let (tenant, status) = (f.param("tenant", U32), f.param("status", U32));
    let row = f.let_("usage_row", tenant * usage_row::WORDS);
    for (ended, total, own) in [
        (Status::Done, header::DONE_COUNT, usage_row::DONE),
        (Status::Fault, header::FAULT_COUNT, usage_row::FAULTED),
    ] {
        f.if_(status.eq_(ended as u32), |f| {
            f.atomic_add(buffers.counters, total, 1);
            f.atomic_add(buffers.usage, row + own, 1);
        });
    }
    f.finish()
}

/// `(place, item)`: runs the handler at a place.
fn run(targets: &[Target]) -> vyre_foundation::Function {
    let mut f = FunctionBuilder::new("run_handler");
    let place = f.param("place", U32);
    let item = ItemScope::params(&mut f);
    for ty in ITEM_RESULTS {
        f.result(ty);
    }
    f.switch(place, |arms| {
        for target in targets {
            if let Some(function) = &target.function {
                arms.case([target.place], |f| {
                    let outcome = f.call(function, item.all());
                    f.ret(widened(outcome));
                });
            }
        }
    });
    f.ret(fault(Fault::UnknownOpcode.code(), Charge::Settled));
    f.finish()
}

/// Runs an item at once if its handler is short, and nothing is to be said about it but that its tenant may: no quota, no
/// earlier run. All others go on behind this.
///
/// On a device a jump to code that has not run for a while costs as much as fifty operations, and an item that comes alone
/// pays for each. This way has two: to the handler, and to the end.
fn shortcut(f: &mut FunctionBuilder, item: &ItemScope, row: Var, targets: &[Target], buffers: &ItemBuffers) {
    // Loaded side by side, before anything depends on one. A row that nobody configured permits nothing.
    let mut word = |name, at: u32| f.let_(name, buffers.tenants.load(row + at));
    let builtins = word("builtins", tenant_row::BUILTINS);
    let first_users = word("first_users", tenant_row::PERMISSIONS);
    // Limits only rise, so the greatest is not about to change.
    let limit = word("limit_seen", tenant_row::QUOTA);
    let free = limit.eq_(tenant_row::UNLIMITED) & (item.flags & flags::RESUMED).eq_(0);
    f.if_(free, |f| {
        f.switch(item.opcode, |arms| {
            for target in targets {
                let user = target.place.wrapping_sub(BUILTIN_COUNTERS);
                let (permissions, bit) = if target.place < BUILTIN_COUNTERS {
                    (builtins, target.place)
                } else {
                    (first_users, user)
                };
                if bit >= u32::BITS || (target.function.is_some() && !target.short) {
                    continue;
                }
                arms.case([target.opcode], |f| {
                    f.if_((permissions & (1_u32 << bit)).ne_(0), |f| {
                        if let Some(function) = &target.function {
                            let mut values: Vec<Value> =
                                f.call(function, item.all()).into_iter().map(Value::from).collect();
                            values.extend([(target.place + 1).into(), Charge::Due.into()]);
                            f.ret(widened(values));
                        } else {
                            f.atomic_add(buffers.usage, used_word(item.tenant), 1);
                            f.ret(passed_on(item));
                        }
                    });
                });
            }
        });
    });
}

/// What an admitted item of a workgroup handler comes to in a lane.
fn passed_on(item: &ItemScope) -> Vec<Value> {
    let mut values: Vec<Value> = vec![(Status::Requeue as u32).into(), 0_u32.into(), 0_u64.into()];
    values.extend(item.args.map(Value::from));
    values
}

fn execute(
    parts: &Parts,
    targets: &[Target],
    buffers: &ItemBuffers,
    counting: Counting,
) -> vyre_foundation::Function {
    let here = counting == Counting::Here;
    let mut f = FunctionBuilder::new("execute_item");
    let item = ItemScope::params(&mut f);
    for ty in ITEM_RESULTS {
        f.result(ty);
    }
    let tenants = buffers.tenants;
    let row = f.let_("row", item.tenant * tenant_row::WORDS);
    if counting == Counting::Afterwards {
        shortcut(&mut f, &item, row, targets, buffers);
    }
    // All that admits an ordinary item, side by side: on a device each of these loads takes as long as ten operations,
    // and so does each branch. Past the table, a load yields zero; the 16 bits of an id in a slot cannot make a row
    // wrap round.
    let found = f.call_one(&parts.lookup.function, item.opcode);
    let known = (tenants.load(row + tenant_row::FLAGS) & tenant_row::CONFIGURED).ne_(0);
    let known = f.let_("known", known);
    let limit = quota_limit(&mut f, buffers, item.tenant);
    let allowed = f.call_one(&parts.permitted, (row, found & 0xFFFF));
    let fresh = f.let_("fresh", (item.flags & flags::RESUMED).eq_(0));
    let packed = f.let_("packed", item.opcode.eq_(BuiltinOpcode::PackedSlot.wire()));
    let lane = found.ne_(NO_HANDLER) & (found & WORKGROUP).eq_(0);
    let ordinary = known & lane & !packed & fresh & allowed & limit.eq_(tenant_row::UNLIMITED);

    let charge = f.var_("charge", Charge::Due as u32);
    let settle = |f: &mut FunctionBuilder| {
        f.if_(charge.eq_(Charge::Due as u32), |f| {
            f.atomic_add(buffers.usage, used_word(item.tenant), 1);
        });
    };
    f.if_(!ordinary, |f| {
        f.if_(!known, |f| {
            if here {
                f.atomic_add(buffers.counters, header::FAULT_COUNT, 1);
            }
            f.ret(fault(Fault::UnknownTenant.code(), Charge::NoTenant));
        });
        let code = f.var_("code", 0_u32);
        f.assign(charge, Charge::Settled as u32);
        f.if_else(
            found.eq_(NO_HANDLER),
            |f| f.assign(code, Fault::UnknownOpcode.code()),
            |f| {
                f.if_(fresh, |f| {
                    f.if_else(
                        allowed,
                        |f| {
                            let charged = f.call_one(&parts.charge, (item.tenant, limit));
                            f.if_else(
                                charged.eq_(REFUSED),
                                |f| f.assign(code, Fault::Quota.code()),
                                |f| f.assign(charge, charged),
                            );
                        },
                        |f| f.assign(code, Fault::Permission.code()),
                    );
                });
            },
        );
        f.if_(packed & code.eq_(0), |f| {
            let mut values = vec![row];
            values.extend(item.args);
            let checked = f.call_one(&parts.packing.check, values);
            f.assign(code, checked);
        });
        f.if_(code.ne_(0), |f| {
            if here {
                settle(f);
                f.call(&parts.count, (item.tenant, Status::Fault as u32));
            }
            f.ret(fault(code, charge));
        });
        f.if_((found & WORKGROUP).ne_(0), |f| {
            settle(f);
            f.ret(passed_on(&item));
        });
    });
    if here {
        settle(&mut f);
    }

    // One operation, or those of a packed slot: the handlers are called from one place.
    let opcode = f.var_("inner", item.opcode);
    let place = f.var_("place", found & 0xFFFF);
    let args = item.args.map(|arg| f.var_("arg", arg));
    let operations = f.let_("operations", packed.select(item.args[0] & 0xFF, 1));
    let operation = f.var_("operation", 0_u32);
    let count_run = |f: &mut FunctionBuilder| {
        f.atomic_add(buffers.counters, place + StateLayout::counter(0), 1);
    };
    f.while_(true, |f| {
        f.if_(packed, |f| {
            let mut values = vec![operation];
            values.extend(item.args);
            let unpacked = f.call(&parts.packing.unpack, values);
            let inner = unpacked.first().copied().unwrap_or(opcode);
            f.assign(opcode, inner);
            for (arg, &word) in args.iter().zip(unpacked.iter().skip(1)) {
                f.assign(*arg, word);
            }
            let found = f.call_one(&parts.lookup.function, inner);
            f.assign(place, found & 0xFFFF);
            if !here {
                count_run(f);
            }
        });
        if here {
            count_run(f);
        }
        let mut values = vec![place, opcode, item.tenant, item.flags, item.ticket];
        values.extend(args);
        let outcome = f.call(&parts.run, values);
        if let [status, code, result, words @ ..] = outcome.as_slice() {
            let stopped = status.ne_(Status::Done as u32) | (operation + 1).ge(operations);
            f.if_(stopped, |f| {
                let at = packed & status.eq_(Status::Fault as u32);
                let code = at.select(operation, *code);
                let mut values: Vec<Value> = vec![Value::from(*status), code, Value::from(*result)];
                if here {
                    f.call(&parts.count, (item.tenant, *status));
                } else {
                    let is_final = status.eq_(Status::Done as u32) | status.eq_(Status::Fault as u32);
                    f.if_(is_final, |f| {
                        let mut values = values.clone();
                        values.extend([packed.select(0_u32, place + 1), charge.into()]);
                        values.resize(ITEM_RESULTS.len(), 0_u32.into());
                        f.ret(values);
                    });
                    // Its words are the next run's arguments.
                    f.if_(!packed, count_run);
                    settle(f);
                }
                values.extend(words.iter().map(|&word| Value::from(word)));
                f.ret(values);
            });
        }
        f.assign(operation, operation + 1);
    });
    f.finish()
}

/// The function that counts what [`Counting::Afterwards`] left: from [`ITEM_PARAMS`] to [`ITEM_RESULTS`], as
/// [`vyre_driver::ResidentSpec::accounting`] has it.
pub(crate) fn accounting(program: &mut ProgramBuilder, buffers: &ItemBuffers) -> FunctionHandle {
    let count = program.add_function(count(buffers));
    let mut f = FunctionBuilder::new("account");
    let item = ItemScope::params(&mut f);
    for ty in ITEM_RESULTS {
        f.result(ty);
    }
    let nothing = || fault(0_u32, 0_u32);
    let [place, charge, .., status] = item.args;
    f.if_(place.ne_(0), |f| {
        f.atomic_add(buffers.counters, place - 1 + StateLayout::counter(0), 1);
    });
    f.if_(charge.eq_(Charge::NoTenant as u32), |f| {
        f.atomic_add(buffers.counters, header::FAULT_COUNT, 1);
        f.ret(nothing());
    });
    let due = f.var_("due", charge.eq_(Charge::Due as u32));
    let fresh = (item.flags & flags::RESUMED).eq_(0);
    f.if_(charge.eq_(Charge::Unsaid as u32) & fresh, |f| {
        let limit = quota_limit(f, buffers, item.tenant);
        f.assign(due, limit.eq_(tenant_row::UNLIMITED));
    });
    f.if_(due, |f| {
        f.atomic_add(buffers.usage, used_word(item.tenant), 1);
    });
    f.call(&count, (item.tenant, status));
    f.ret(nothing());
    program.add_function(f.finish())
}

/// The results of an item that faulted.
fn fault(code: impl Into<Value>, charge: impl Into<Value>) -> Vec<Value> {
    let mut values: Vec<Value> = vec![(Status::Fault as u32).into(), code.into(), 0_u64.into()];
    values.extend([0_u32.into(), charge.into()]);
    values.resize(ITEM_RESULTS.len(), 0_u32.into());
    values
}

/// A handler's outcome, zeros for the words it does not have.
fn widened(outcome: impl IntoIterator<Item = impl Into<Value>>) -> Vec<Value> {
    let mut values: Vec<Value> = outcome.into_iter().map(Into::into).collect();
    values.resize(ITEM_RESULTS.len(), 0_u32.into());
    values
}
