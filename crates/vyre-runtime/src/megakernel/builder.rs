//! Saying what a megakernel is made of.

use std::collections::BTreeMap;
use std::sync::Arc;

use vyre_driver::{BackendError, BufferBinding, BufferDesc, VyreBackend};

use super::geometry::Geometry;
use super::{Blueprint, DEFAULT_SLOTS, DEFAULT_WORKGROUP_SIZE, Megakernel, UserBuffer};
use crate::batch::BatchPrograms;
use crate::dfa::DfaTables;
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, OpcodeHandler};
use crate::item::{HandlerTable, ItemPrograms};
use crate::pipelines::PipelineCache;
use crate::recovery::{MegakernelRecoveryPolicy, Recoverable};
use crate::state::StateLayout;
use crate::tenant::{TenantConfig, TenantTable};

/// Says what a megakernel is made of; [`build`](Self::build) checks and makes it.
pub struct MegakernelBuilder {
    backend: Arc<dyn VyreBackend>,
    slots: u32,
    workgroup_size_x: u32,
    handlers: Vec<OpcodeHandler>,
    tenants: Vec<(u16, TenantConfig)>,
    dfa: DfaTables,
    bound: BTreeMap<String, Bound>,
    recovery: MegakernelRecoveryPolicy,
    cache: Option<Arc<PipelineCache>>,
}

/// What a name is bound to.
enum Bound {
    Bytes(Vec<u8>),
    Zeroed(u64),
    Buffer(BufferBinding),
}

/// Where the buffer of a binding comes from, in every generation.
pub(super) struct Source {
    declared: HandlerBinding,
    from: Option<Content>,
}

enum Content {
    /// A buffer made for it, of so many elements, filled with bytes if there are any.
    Made { elements: u64, bytes: Vec<u8> },
    /// A buffer of the user.
    Given(BufferBinding),
}

impl MegakernelBuilder {
    pub(super) fn new(backend: Arc<dyn VyreBackend>) -> MegakernelBuilder {
        MegakernelBuilder {
            backend,
            slots: DEFAULT_SLOTS,
            workgroup_size_x: DEFAULT_WORKGROUP_SIZE,
            handlers: Vec::new(),
            tenants: Vec::new(),
            dfa: DfaTables::default(),
            bound: BTreeMap::new(),
            recovery: MegakernelRecoveryPolicy::default(),
            cache: None,
        }
    }

    /// Slots of a batch: a multiple of the workgroup size. A session's ring has as many unless told
    /// otherwise, and takes powers of two only.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> MegakernelBuilder {
        self.slots = slots;
        self
    }

    /// Invocations of a workgroup.
    #[must_use]
    pub fn workgroup_size(mut self, invocations: u32) -> MegakernelBuilder {
        self.workgroup_size_x = invocations;
        self
    }

    /// Adds a handler.
    #[must_use]
    pub fn handler(mut self, handler: OpcodeHandler) -> MegakernelBuilder {
        self.handlers.push(handler);
        self
    }

    /// Adds handlers.
    #[must_use]
    pub fn handlers(mut self, handlers: impl IntoIterator<Item = OpcodeHandler>) -> MegakernelBuilder {
        self.handlers.extend(handlers);
        self
    }

    /// Adds a tenant, or replaces tenant 0, which is there from the start and may use everything.
    #[must_use]
    pub fn tenant(mut self, id: u16, config: TenantConfig) -> MegakernelBuilder {
        self.tenants.push((id, config));
        self
    }

    /// The tables of DFA_STEP, and of handlers that read them.
    #[must_use]
    pub fn dfa_tables(mut self, tables: DfaTables) -> MegakernelBuilder {
        self.dfa = tables;
        self
    }

    /// Binds a named buffer of the handlers to a new buffer with this content. If the handlers declare it
    /// host-backed, it is made again with this content after a device loss.
    #[must_use]
    pub fn bind_bytes(mut self, name: impl Into<String>, content: impl Into<Vec<u8>>) -> MegakernelBuilder {
        self.bound.insert(name.into(), Bound::Bytes(content.into()));
        self
    }

    /// Binds a named buffer of the handlers to a new buffer of `elements` zeros.
    #[must_use]
    pub fn bind_zeroed(mut self, name: impl Into<String>, elements: u64) -> MegakernelBuilder {
        self.bound.insert(name.into(), Bound::Zeroed(elements));
        self
    }

    /// Binds a named buffer of the handlers to a buffer that the caller made and keeps. It does not survive
    /// a device loss, and neither does the megakernel then: build another one.
    #[must_use]
    pub fn bind(mut self, name: impl Into<String>, buffer: BufferBinding) -> MegakernelBuilder {
        self.bound.insert(name.into(), Bound::Buffer(buffer));
        self
    }

    /// What to do about a device loss.
    #[must_use]
    pub fn recovery(mut self, policy: MegakernelRecoveryPolicy) -> MegakernelBuilder {
        self.recovery = policy;
        self
    }

    /// Shares compiled pipelines with other megakernels.
    #[must_use]
    pub fn pipeline_cache(mut self, cache: Arc<PipelineCache>) -> MegakernelBuilder {
        self.cache = Some(cache);
        self
    }

    /// Checks everything, builds and compiles the programs, and makes the buffers.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidGeometry`], [`MegakernelError::ReservedOpcode`],
    /// [`MegakernelError::DuplicateOpcode`], [`MegakernelError::InvalidHandler`],
    /// [`MegakernelError::InvalidBinding`], [`MegakernelError::UnknownTenant`],
    /// [`MegakernelError::UnknownOpcode`] for a permission without a handler,
    /// [`MegakernelError::Validation`], and whatever the backend answers.
    pub fn build(mut self) -> Result<Megakernel, MegakernelError> {
        let geometry = Geometry::new(self.slots, self.workgroup_size_x, self.backend.as_ref())?;
        let handlers = Arc::new(HandlerTable::new(self.handlers)?);
        let mut tenants = TenantTable::default();
        for (id, config) in self.tenants {
            if let Some(opcode) = config.permitted().find(|&opcode| !handlers.knows(opcode)) {
                return Err(MegakernelError::UnknownOpcode { opcode });
            }
            tenants.insert(id, config)?;
        }
        let layout = StateLayout::new(tenants.row_count(), handlers.len() as u32, tenants.window_words())?;
        let mut bindings = Vec::with_capacity(handlers.bindings().len());
        for declared in handlers.bindings() {
            bindings.push(Source::new(declared, self.bound.remove(&declared.name))?);
        }
        if let Some(name) = self.bound.into_keys().next() {
            return Err(MegakernelError::InvalidBinding {
                binding: name,
                problem: "no handler names it".to_owned(),
                remedy: "bind the names that the handlers declare",
            });
        }
        let programs = Arc::new(ItemPrograms::new(Arc::clone(&handlers), self.workgroup_size_x)?);
        let dfa = Arc::new(self.dfa);
        let blueprint = Blueprint {
            backend: Arc::clone(&self.backend),
            cache: self.cache.unwrap_or_default(),
            batch: BatchPrograms::new(&handlers, self.workgroup_size_x)?,
            dfa: Arc::clone(&dfa),
            bindings,
        };
        let parts = Recoverable::new(self.backend, self.recovery, |_| blueprint.build())
            .map_err(MegakernelError::backend("compile the megakernel and make its buffers"))?;
        let (tenants, recovery) = (Arc::new(tenants), self.recovery);
        Ok(Megakernel { geometry, layout, programs, tenants, dfa, recovery, blueprint, parts })
    }
}

impl Source {
    fn new(declared: &HandlerBinding, bound: Option<Bound>) -> Result<Source, MegakernelError> {
        let refuse = |problem: String, remedy| {
            Err(MegakernelError::InvalidBinding { binding: declared.name.clone(), problem, remedy })
        };
        let size = declared.element.size() as u64;
        let least = u64::from(declared.min_len);
        let (elements, from) = match bound {
            None if least == 0 => return Ok(Source { declared: declared.clone(), from: None }),
            None => (least, Content::Made { elements: least, bytes: Vec::new() }),
            Some(Bound::Zeroed(elements)) => (elements, Content::Made { elements, bytes: Vec::new() }),
            Some(Bound::Bytes(bytes)) => {
                let len = bytes.len() as u64;
                if !len.is_multiple_of(size) {
                    return refuse(
                        format!("{len} bytes are no whole number of {} elements", declared.element),
                        "bind whole elements",
                    );
                }
                (len / size, Content::Made { elements: len / size, bytes })
            }
            Some(Bound::Buffer(binding)) => (binding.byte_len / size, Content::Given(binding)),
        };
        if elements < least {
            return refuse(
                format!("{elements} elements are bound to it, {least} declared"),
                "bind at least the declared length",
            );
        }
        Ok(Source { declared: declared.clone(), from: Some(from) })
    }

    /// Makes the buffer for the current generation and adds it to those made before.
    pub(super) fn make(
        &self,
        backend: &dyn VyreBackend,
        into: &mut Vec<UserBuffer>,
    ) -> Result<(), BackendError> {
        let name = self.declared.name.clone();
        match &self.from {
            None => into.push(UserBuffer { name, binding: None, owned: false }),
            Some(Content::Given(binding)) => {
                let (id, generation) = (binding.buffer.id, binding.buffer.generation);
                let current = backend.generation();
                if generation != current {
                    return Err(BackendError::StaleHandle { id, generation, current });
                }
                into.push(UserBuffer { name, binding: Some(*binding), owned: false });
            }
            Some(Content::Made { elements, bytes }) => {
                let desc = BufferDesc::new(&name, self.declared.element, *elements);
                let handle = backend.create_buffer(&desc.in_space(self.declared.space))?;
                into.push(UserBuffer { name, binding: Some(handle.binding()), owned: true });
                // After a loss as well; nobody relies on what a volatile buffer holds then.
                if !bytes.is_empty() {
                    backend.write_buffer(handle, 0, bytes)?;
                }
            }
        }
        Ok(())
    }
}
