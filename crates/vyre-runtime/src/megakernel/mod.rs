//! The megakernel: handlers, tenants and tables on a backend, ready to run batches and sessions.

mod builder;
mod geometry;

use std::sync::Arc;

use vyre_driver::{BackendError, BufferBinding, BufferHandle, Generation, VyreBackend};
use vyre_foundation::Digest;

pub use builder::MegakernelBuilder;
pub use geometry::worker_groups_for_geometry;

use crate::batch::{BatchPipelines, BatchPrograms, destroy};
use crate::descriptor::Publish;
use crate::dfa::DfaTables;
use crate::error::MegakernelError;
use crate::handler::{Backing, HandlerBuilder, OpcodeHandler};
use crate::item::{HandlerTable, ItemPrograms};
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::packed;
use crate::pipelines::PipelineCache;
use crate::recovery::{Asked, Built, MegakernelRecoveryPolicy, Recoverable};
use crate::state::StateLayout;
use crate::tenant::TenantTable;
use builder::Source;
use geometry::Geometry;

/// Slots of a megakernel that was not told otherwise.
pub const DEFAULT_SLOTS: u32 = 256;
/// Invocations of a workgroup, unless told otherwise.
pub const DEFAULT_WORKGROUP_SIZE: u32 = 256;
/// The opcode whose items the payload of [`Megakernel::bootstrap_jit`] runs.
pub const FUSED_OPCODE: SlotOpcode = SlotOpcode::new(vyre_driver::protocol::opcode::USER_FIRST);

/// Which pipeline runs batches: another one after a rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PipelineId {
    /// The program.
    pub program: Digest,
    /// The device generation that it was compiled for.
    pub generation: Generation,
}

/// Handlers, tenants and tables on a backend. Batches are dispatched on it, sessions started from it, from
/// any thread.
pub struct Megakernel {
    geometry: Geometry,
    layout: StateLayout,
    programs: Arc<ItemPrograms>,
    tenants: Arc<TenantTable>,
    dfa: Arc<DfaTables>,
    recovery: MegakernelRecoveryPolicy,
    blueprint: Blueprint,
    parts: Recoverable<Parts>,
}

/// What the parts are made from, and made again from after a loss.
struct Blueprint {
    backend: Arc<dyn VyreBackend>,
    cache: Arc<PipelineCache>,
    batch: BatchPrograms,
    dfa: Arc<DfaTables>,
    bindings: Vec<Source>,
}

/// What belongs to one device generation.
pub(crate) struct Parts {
    backend: Arc<dyn VyreBackend>,
    pub(crate) batch: BatchPipelines,
    pub(crate) dfa_tables: BufferHandle,
    /// One for each binding of the handlers, in order.
    user: Vec<UserBuffer>,
}

/// A buffer bound to the handlers' binding of this name.
struct UserBuffer {
    name: String,
    /// Absent if nobody bound it.
    binding: Option<BufferBinding>,
    /// Whether it was made here.
    owned: bool,
}

impl Parts {
    /// The buffer bound to a name, if there is one.
    pub(crate) fn user_binding(&self, name: &str) -> Option<BufferBinding> {
        self.user.iter().find(|user| user.name == name).and_then(|user| user.binding)
    }

    /// The bound buffers, in order.
    pub(crate) fn user_bindings(&self) -> Result<Vec<BufferBinding>, MegakernelError> {
        let binding = |user: &UserBuffer| {
            user.binding.ok_or_else(|| MegakernelError::InvalidBinding {
                binding: user.name.clone(),
                problem: "nothing is bound to it".to_owned(),
                remedy: "bind a buffer when building the megakernel",
            })
        };
        self.user.iter().map(binding).collect()
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let owned = self.user.iter().filter(|user| user.owned).filter_map(|user| user.binding);
        destroy(&self.backend, owned.map(|binding| binding.buffer).chain([self.dfa_tables]));
    }
}

impl Blueprint {
    fn build(&self) -> Result<Parts, BackendError> {
        let words = self.dfa.words();
        let desc =
            vyre_driver::BufferDesc::new("dfa tables", vyre_foundation::DataType::U32, words.len() as u64);
        let batch = BatchPipelines::new(&self.backend, &self.cache, &self.batch)?;
        let dfa_tables = self.backend.create_buffer(&desc)?;
        let backend = Arc::clone(&self.backend);
        // From here on, what was made is given back when a later step fails.
        let mut parts = Parts { backend, batch, dfa_tables, user: Vec::new() };
        self.backend.write_buffer(dfa_tables, 0, &crate::batch::to_bytes(words))?;
        for source in &self.bindings {
            source.make(self.backend.as_ref(), &mut parts.user)?;
        }
        Ok(parts)
    }
}

impl Megakernel {
    /// A megakernel of 256 slots and workgroups of 256, with the built-in opcodes.
    ///
    /// # Errors
    ///
    /// Whatever the backend answers.
    pub fn bootstrap(backend: Arc<dyn VyreBackend>) -> Result<Megakernel, MegakernelError> {
        Megakernel::builder(backend).build()
    }

    /// The same with handlers of the user.
    ///
    /// # Errors
    ///
    /// As [`MegakernelBuilder::build`].
    pub fn bootstrap_with_opcodes(
        backend: Arc<dyn VyreBackend>,
        handlers: impl IntoIterator<Item = OpcodeHandler>,
    ) -> Result<Megakernel, MegakernelError> {
        Megakernel::builder(backend).handlers(handlers).build()
    }

    /// A megakernel of another geometry, with the built-in opcodes.
    ///
    /// # Errors
    ///
    /// As [`MegakernelBuilder::build`].
    pub fn bootstrap_sharded(
        backend: Arc<dyn VyreBackend>,
        slots: u32,
        workgroup_size_x: u32,
    ) -> Result<Megakernel, MegakernelError> {
        Megakernel::builder(backend).slots(slots).workgroup_size(workgroup_size_x).build()
    }

    /// A megakernel that runs `payload` for every item of [`FUSED_OPCODE`], compiled into one kernel with
    /// the built-in opcodes: for work that is all of one kind. The payload is a handler's body of lane
    /// granularity without bindings; finished IR goes in with [`HandlerBuilder::push`].
    ///
    /// # Errors
    ///
    /// As [`MegakernelBuilder::build`].
    pub fn bootstrap_jit(
        backend: Arc<dyn VyreBackend>,
        payload: impl Fn(&mut HandlerBuilder<'_>) + Send + Sync + 'static,
    ) -> Result<Megakernel, MegakernelError> {
        Megakernel::builder(backend).handler(OpcodeHandler::new(FUSED_OPCODE, "fused", payload)).build()
    }

    /// A megakernel with everything to be said about it.
    pub fn builder(backend: Arc<dyn VyreBackend>) -> MegakernelBuilder {
        MegakernelBuilder::new(backend)
    }

    /// Which pipeline runs batches.
    pub fn pipeline_id(&self) -> PipelineId {
        PipelineId { program: self.blueprint.batch.lane.digest(), generation: self.generation() }
    }

    /// Slots of a batch, and of a session that is not told otherwise.
    pub fn slot_count(&self) -> u32 {
        self.geometry.slots
    }

    /// Invocations of a workgroup.
    pub fn workgroup_size_x(&self) -> u32 {
        self.geometry.workgroup_size_x
    }

    /// Workgroups of a batch's launch.
    pub fn worker_groups(&self) -> u32 {
        self.geometry.worker_groups
    }

    /// Where it runs.
    pub fn backend(&self) -> &Arc<dyn VyreBackend> {
        &self.blueprint.backend
    }

    /// The device generation that its pipelines and buffers belong to.
    pub fn generation(&self) -> Generation {
        self.built().generation
    }

    /// What items mean.
    pub fn programs(&self) -> &Arc<ItemPrograms> {
        &self.programs
    }

    /// The users' handlers.
    pub fn handlers(&self) -> &HandlerTable {
        self.programs.handlers()
    }

    /// For whom it runs.
    pub fn tenants(&self) -> &Arc<TenantTable> {
        &self.tenants
    }

    /// The DFA tables.
    pub fn dfa_tables(&self) -> &Arc<DfaTables> {
        &self.dfa
    }

    /// The sizes of the device's tables.
    pub fn layout(&self) -> StateLayout {
        self.layout
    }

    /// What it does about a device loss.
    pub fn recovery_policy(&self) -> MegakernelRecoveryPolicy {
        self.recovery
    }

    /// The buffer that batches bind to a name of the handlers, if there is one. Another one after a
    /// rebuild.
    pub fn buffer(&self, name: &str) -> Option<BufferBinding> {
        self.built().parts.user_binding(name)
    }

    /// Recovers the backend after a device loss, and makes pipelines and buffers again. Without a loss, or
    /// when somebody else has done it, it changes nothing.
    ///
    /// # Errors
    ///
    /// What the backend answered; pipelines and buffers are then the old ones.
    pub fn recover_after_device_loss(&self) -> Result<Generation, MegakernelError> {
        let lost = self.generation();
        let rebuilt = self.parts.rebuild(lost, Asked::ByHand, |_| self.blueprint.build());
        let built = rebuilt.map_err(MegakernelError::backend("recover after a device loss"))?;
        Ok(built.generation)
    }

    /// Checks on the host what the device will check: that handlers have the opcodes, that the tenants exist
    /// and are permitted to use them, and that packed slots can run. Quotas apart, what passes here is
    /// executed.
    ///
    /// # Errors
    ///
    /// The first thing that the device would refuse.
    pub fn check<P: Publish + ?Sized>(&self, descriptor: &P) -> Result<(), MegakernelError> {
        for image in descriptor.encoded()?.iter() {
            let opcode = SlotOpcode::new(image.opcode);
            self.check_opcode(image.tenant, opcode)?;
            if opcode.builtin() == Some(BuiltinOpcode::PackedSlot) {
                for op in packed::decode(&image.args)? {
                    if !self.programs.is_packable(op.opcode()) {
                        return Err(MegakernelError::MalformedDescriptor {
                            what: "packed slot",
                            problem: "an operation has no handler that can be packed",
                            remedy: "use handlers of lane granularity that never requeue",
                        });
                    }
                    self.check_opcode(image.tenant, op.opcode())?;
                }
            }
        }
        Ok(())
    }

    fn check_opcode(&self, tenant: u16, opcode: SlotOpcode) -> Result<(), MegakernelError> {
        let config = self.tenants.get(tenant)?;
        if !self.handlers().knows(opcode) {
            return Err(MegakernelError::UnknownOpcode { opcode });
        }
        if config.permits(opcode) {
            Ok(())
        } else {
            Err(MegakernelError::PermissionDenied { tenant, opcode })
        }
    }

    pub(crate) fn built(&self) -> Arc<Built<Parts>> {
        self.parts.current()
    }

    /// Whether a device loss destroys something that handlers use.
    pub(crate) fn has_volatile_bindings(&self) -> bool {
        self.handlers().bindings().iter().any(|binding| binding.backing == Backing::Volatile)
    }

    /// Runs something with the parts of the current generation; after a loss, as the policy says. The flag
    /// tells whether it ran again.
    pub(crate) fn with_recovery<R>(
        &self,
        mut run: impl FnMut(&Parts, Generation) -> Result<R, MegakernelError>,
        replayable: bool,
    ) -> Result<(R, bool), MegakernelError> {
        self.parts.run_with_recovery(
            self.recovery,
            |built| run(&built.parts, built.generation),
            || replayable,
            |_| self.blueprint.build(),
        )
    }
}

impl std::fmt::Debug for Megakernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Megakernel")
            .field("backend", self.blueprint.backend.identity())
            .field("geometry", &self.geometry)
            .field("handlers", &self.handlers().len())
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Megakernel>();
    shared_by_threads::<crate::batch::ResidentBatch>();
};
