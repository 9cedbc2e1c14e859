//! Compiled kernels, kept by what was compiled, for whom, and in which generation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vyre_driver::{BackendError, BackendIdentity, CompiledPipeline, Generation, VyreBackend};
use vyre_foundation::{Digest, ValidatedProgram};

/// Pipelines that megakernels share: those with the same handlers on one backend compile once. The
/// owner decides how long it lives; there is none for the whole process.
#[derive(Default)]
pub struct PipelineCache {
    entries: Mutex<HashMap<Key, Entry>>,
}

struct Entry {
    /// A pipeline knows the buffers of the backend that compiled it, and of no other with the same identity.
    backend: Weak<dyn VyreBackend>,
    pipeline: Arc<dyn CompiledPipeline>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    program: Digest,
    backend: BackendIdentity,
    generation: Generation,
}

impl PipelineCache {
    /// An empty cache.
    pub fn new() -> PipelineCache {
        PipelineCache::default()
    }

    /// How many pipelines it holds.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// The pipeline of a program, compiled unless it is there. Those of older generations of the backend
    /// are let go.
    pub(crate) fn compile(
        &self,
        backend: &Arc<dyn VyreBackend>,
        program: &ValidatedProgram,
    ) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        let generation = backend.generation();
        let key = Key { program: program.digest(), backend: backend.identity().clone(), generation };
        let weak = Arc::downgrade(backend);
        if let Some(found) = self.entries().get(&key)
            && found.backend.ptr_eq(&weak)
        {
            return Ok(Arc::clone(&found.pipeline));
        }
        // Not under the lock: compiling takes long, and two that compile the same do no harm.
        let pipeline = backend.compile(program)?;
        let mut entries = self.entries();
        entries.retain(|other, _| other.backend != key.backend || other.generation >= generation);
        entries.insert(key, Entry { backend: weak, pipeline: Arc::clone(&pipeline) });
        Ok(pipeline)
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        // A change is one insertion or removal, so a poisoned map is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PipelineCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipelineCache").field("pipelines", &self.len()).finish()
    }
}
