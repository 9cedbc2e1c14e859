//! Resident kernels: compiled once, started at a ticket, fed through the regions, quiesced or reaped.
//!
//! # Contract
//!
//! A backend supplies the moving parts and nothing else: it polls the slots, claims them in ticket order,
//! parks what must wait, runs the item program, and writes completions. What an item *means* is in the item
//! program's IR, permission and quota checks included.
//!
//! The moving parts know four things about an item before they run it:
//! * a [`opcode::BATCH_FENCE`](crate::protocol::opcode::BATCH_FENCE) is parked until the tickets it names
//!   are complete, and occupies no worker meanwhile;
//! * a [`opcode::SHUTDOWN`](crate::protocol::opcode::SHUTDOWN) of tenant 0 is run after everything
//!   published before it is complete, and is the last ticket claimed;
//! * an opcode listed in [`ResidentSpec::workgroup_opcodes`] is first run by the lane program, which checks
//!   permission and quota and answers fault or requeue; after a requeue it is run by a whole workgroup;
//! * every run of an item after its first has [`flags::RESUMED`](crate::protocol::flags::RESUMED) set in its
//!   flags, and the words of the requeue for arguments.
//!
//! That is why the workgroup program has no checks of its own: whether an item is admitted depends on memory
//! that other items change, so it could not be uniform in a workgroup, as a barrier demands.
//!
//! First start, hot handler change, lease expiry and recovery are one operation:
//! [`ResidentKernel::quiesce`] or [`ResidentKernel::reap`], then [`ResidentPipeline::start`] at a ticket,
//! skipping what the start record in the h2d region marks as acknowledged.

use std::sync::Arc;
use std::time::Duration;

use vyre_foundation::{BufferDecl, Granularity, Program, ProgramKind, ScalarType, ValidatedProgram};

use crate::buffer::{BufferBinding, Generation};
use crate::error::{BackendError, Loss};
use crate::protocol::{ITEM_PARAMS, ITEM_RESULTS};
use crate::region::SessionRegions;
use crate::table;

/// What to compile for residency. All programs declare the same buffers in the same order (workgroup
/// buffers, which are not bound, apart), and have the parameters and results of an item
/// ([`crate::protocol::ITEM_PARAMS`], [`crate::protocol::ITEM_RESULTS`]).
#[derive(Clone)]
pub struct ResidentSpec {
    /// Runs one item per invocation.
    pub lane: ValidatedProgram,
    /// Runs once for each item that ended in `lane`, if there is anything to count: when its outcome is known, before
    /// or after it is acknowledged, and before the kernel has left. It takes the item's opcode, tenant, flags and
    /// ticket, the first eleven words of the outcome (zeros if the run trapped or was cut short), and its
    /// [`Status`](crate::protocol::Status); what it yields is ignored.
    pub accounting: Option<ValidatedProgram>,
    /// Runs one item per workgroup, if any handler asked for it.
    pub workgroup: Option<ValidatedProgram>,
    /// Opcodes that `workgroup` serves, sorted.
    pub workgroup_opcodes: Vec<u32>,
    /// Workgroups to keep resident; at least one.
    pub worker_groups: u32,
}

impl ResidentSpec {
    /// Refuses programs that are no items or do not fit together: what every backend checks first.
    ///
    /// # Errors
    ///
    /// [`BackendError::InvalidArgument`].
    pub fn check(&self) -> Result<(), BackendError> {
        check_item(&self.lane, Granularity::Lane)?;
        let others = [
            ("accounting", &self.accounting, Granularity::Lane),
            ("workgroup", &self.workgroup, Granularity::Workgroup),
        ];
        for (part, program, granularity) in others {
            let Some(program) = program else { continue };
            check_item(program, granularity)?;
            let bound = |program: &ValidatedProgram| -> Vec<BufferDecl> {
                table::bound(&program.program().buffers).cloned().collect()
            };
            if bound(&self.lane) != bound(program) {
                return Err(BackendError::invalid(
                    part,
                    format!("`{}` with other buffers than `{}`", name(program), name(&self.lane)),
                    "the same declarations in the same order, workgroup memory apart",
                ));
            }
        }
        if self.workgroup.is_none()
            && let Some(opcode) = self.workgroup_opcodes.first()
        {
            let expected = "a workgroup program to run it, or no workgroup opcodes";
            return Err(BackendError::invalid("workgroup_opcodes", opcode, expected));
        }
        if !self.workgroup_opcodes.is_sorted() {
            let got = format!("{:?}", self.workgroup_opcodes);
            return Err(BackendError::invalid("workgroup_opcodes", got, "a sorted list"));
        }
        if self.worker_groups == 0 {
            return Err(BackendError::invalid("worker_groups", 0, "at least one"));
        }
        Ok(())
    }
}

fn name(program: &ValidatedProgram) -> &str {
    &program.program().name
}

fn check_item(program: &ValidatedProgram, granularity: Granularity) -> Result<(), BackendError> {
    let Program { name, kind, entry, .. } = program.program();
    let params: Vec<ScalarType> =
        entry.locals.iter().take(entry.params as usize).map(|local| local.ty).collect();
    if *kind != ProgramKind::Item(granularity) {
        let expected = format!("an item of {granularity:?} granularity");
        return Err(BackendError::invalid("program", format!("`{name}`, {kind:?}"), expected));
    }
    if params != ITEM_PARAMS || entry.results != ITEM_RESULTS {
        return Err(BackendError::invalid(
            "program",
            format!("`{name}` from {params:?} to {:?}", entry.results),
            "the parameters and results of an item",
        ));
    }
    Ok(())
}

/// A megakernel compiled for residency, bound to one device generation.
pub trait ResidentPipeline: Send + Sync {
    /// The generation it was compiled in.
    fn generation(&self) -> Generation;

    /// Launches over the regions. The d2h region is fresh: the kernel writes its header and zeros nothing.
    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError>;
}

/// How to start a resident kernel.
#[derive(Clone)]
pub struct StartRequest {
    /// Who has it started, in the words of an error about what it holds: `session 3`.
    pub holder: String,
    /// The shared memory. First tickets and skip marks are in the h2d region's start records.
    pub regions: SessionRegions,
    /// One for each bound buffer of the item programs, in declaration order.
    pub bindings: Vec<ResidentBinding>,
    /// Device buffers that the kernel copies into its d2h region at every heartbeat and before it stops.
    pub mirrors: Vec<Mirror>,
    /// Longest time one execution of an item may take, if limited.
    pub item_deadline: Option<Duration>,
    /// The kernel leaves by itself, as if quiesced, when the host lease word has not changed for this long. What
    /// awaits the host after as long again ends in [`Fault::Io`](crate::Fault::Io), with
    /// [`io::TIMED_OUT`](crate::protocol::io::TIMED_OUT).
    pub lease: Duration,
}

/// What a resident kernel's buffer is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidentBinding {
    /// A buffer of the backend.
    Buffer(BufferBinding),
    /// A byte range of the h2d region: the payload arena, the tenant table.
    HostToDevice {
        /// First byte.
        byte_offset: u64,
        /// Bytes.
        byte_len: u64,
    },
}

/// A device buffer copied into the d2h region for the host to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The device buffer, in `u32` words.
    pub source: BufferBinding,
    /// Where in the d2h region, in bytes.
    pub d2h_offset: u64,
}

/// A running incarnation. Dropping it reaps it.
pub trait ResidentKernel: Send + Sync {
    /// The generation it runs in.
    fn generation(&self) -> Generation;

    /// Whether it runs, and if not, why.
    fn state(&self) -> KernelState;

    /// Stops claiming, finishes what is claimed, and leaves; fences stay unacknowledged. Items that have asked the
    /// host for something end by its answer, so the host goes on serving the IO queue meanwhile.
    /// When this returns `Ok`, the kernel is gone: nothing of it touches the regions or its buffers again.
    fn quiesce(&self, deadline: Duration) -> Result<(), BackendError>;

    /// Makes it leave at once: claimed items may stay unacknowledged. The same promise when it returns `Ok`.
    fn reap(&self, deadline: Duration) -> Result<(), BackendError>;

    /// Tells a parked consumer that something was published or answered. Cheap when nobody is parked.
    fn ring_doorbell(&self);

    /// Whether its consumers ever park. If not, nobody has to ring.
    fn parks(&self) -> bool {
        true
    }
}

/// Whether a resident kernel runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelState {
    /// Claiming items.
    Running,
    /// Stopped by a SHUTDOWN item.
    ShutDown,
    /// Quiesced, or its lease ran out and it finished what it had claimed.
    Stopped,
    /// Reaped, or its lease ran out and what it had claimed did not end in time: items that it has begun may
    /// be without a completion, so what runs them again runs them twice.
    CutShort,
    /// The device is gone.
    Lost(Loss),
}
