//! Resident kernels: item programs over the skeleton of `kernels/resident`, launched once.
//!
//! | file | what it is for |
//! |---|---|
//! | here | compiling, choosing the grid, launching: everything that can be refused is refused here |
//! | `memory` | what a kernel uses, laid out in one allocation, and the argument that says where it is |
//! | `kernel` | the handle of one that runs |
//!
//! Nothing here blocks behind the kernel: it has a stream of its own, its functions are loaded before the launch, and
//! what is dropped while it lives is given back afterwards.

mod kernel;
mod memory;

use std::sync::{Arc, Mutex, PoisonError, Weak};

use vyre_driver::region::SharedRegion;
use vyre_driver::view::DeviceView;
use vyre_driver::{
    BackendError, Generation, ResidentBinding, ResidentKernel, ResidentPipeline, ResidentSpec, StartRequest,
};

use super::kernel::{load, refused};
use super::{GENERATION, Inner, compile_failed};
use crate::compile::{CodeObject, EmittedSource};
use crate::device::{
    Context, Function, LaunchConfig, Module, PinnedMemory, RegisteredMemory, Stream, StreamPriority,
};
use crate::emit::{self, EmittedResident, QuarterAccess};
use kernel::{Kernel, PINNED_BYTES, Parts};
use memory::{Memory, Shape, mapped};

/// Waves that read the host's slots: more of them read more items a second, and keep the bus busier.
const SCHEDULER_WAVES: u32 = 32;

/// Of the workgroups that run items, one in so many runs them by lanes if there are workgroup handlers.
const LANE_SHARE: u32 = 8;

const _: () = assert!(SCHEDULER_WAVES as usize >= vyre_driver::layout::MAX_RINGS);

/// The share of what can be resident that is left to other kernels: one in so many.
const LEFT_FREE: u32 = 8;

/// Laps that a worker's claims may be ahead of what is published: a tag tells up to 2^15.
const LAPS_AHEAD: u64 = 1 << 14;

/// A megakernel compiled for residency.
pub(super) struct Pipeline {
    inner: Arc<Inner>,
    spec: ResidentSpec,
    emitted: EmittedResident,
    kernel: Function,
    prepare: Function,
    shape: Grid,
    /// The last h2d region that one of its kernels was started with. See [`Registered`].
    h2d: Mutex<Option<Arc<RegisteredMemory>>>,
}

/// Workgroups by what they do.
#[derive(Clone, Copy, Debug)]
struct Grid {
    schedulers: u32,
    lanes: u32,
    groups: u32,
}

impl Grid {
    /// The keeper, and the workgroup for items to be run again, among them.
    const fn all(self) -> u32 {
        2 + self.schedulers + self.lanes + self.groups
    }

    /// Refuses more rings than workgroups to serve them: each is dealt to one ring, and an item of a ring without any
    /// would never begin. There are never fewer scheduler waves than rings.
    fn check_rings(self, rings: usize) -> Result<(), BackendError> {
        if rings <= self.lanes as usize {
            return Ok(());
        }
        let groups = if self.groups == 0 { rings } else { rings.saturating_sub(1) * LANE_SHARE as usize + 1 };
        Err(BackendError::Unsupported {
            what: format!("{rings} rings served by {} workgroups that run items by lanes", self.lanes),
            remedy: format!("ask for at least {groups} workgroups, for fewer rings, or use smaller handlers"),
        })
    }
}

impl Pipeline {
    pub(super) fn compile(inner: &Arc<Inner>, spec: &ResidentSpec) -> Result<Pipeline, BackendError> {
        let emitted = emitted(spec)?;
        let name = &spec.lane.program().name;
        let source = EmittedSource { name, source: &emitted.source, lines: &emitted.lines };
        let module = load(inner, &source)?;
        Pipeline::of(inner, spec, emitted, &module)
    }

    fn of(
        inner: &Arc<Inner>,
        spec: &ResidentSpec,
        emitted: EmittedResident,
        module: &Arc<Module>,
    ) -> Result<Pipeline, BackendError> {
        let kernel = module.function(&emitted.kernel)?;
        let prepare = module.function(&emitted.prepare)?;
        let shape = grid(inner, spec, &emitted, &kernel)?;
        Ok(Pipeline {
            inner: Arc::clone(inner),
            spec: spec.clone(),
            emitted,
            kernel,
            prepare,
            shape,
            h2d: Mutex::default(),
        })
    }

    /// The h2d region as the device sees it, kept for the next start.
    fn registered(&self, region: &SharedRegion) -> Result<Arc<RegisteredMemory>, BackendError> {
        let registered = self.inner.registered.get(&self.inner.context, region)?;
        *self.h2d.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&registered));
        Ok(registered)
    }
}

/// The h2d regions that pipelines hold registered. Registering pins every page, so it is done once for a session: the
/// pipeline that a change of handlers replaces lives until the kernel of the next one runs, and hands it on.
#[derive(Default)]
pub(super) struct Registered {
    held: Mutex<Vec<Weak<RegisteredMemory>>>,
}

impl Registered {
    fn get(
        &self,
        context: &Arc<Context>,
        region: &SharedRegion,
    ) -> Result<Arc<RegisteredMemory>, BackendError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|memory| memory.strong_count() > 0);
        // A worker gets a region by another descriptor with each start.
        for memory in held.iter().filter_map(Weak::upgrade) {
            if memory.region().is_same_memory(region).map_err(memory::refused)? {
                return Ok(memory);
            }
        }
        let memory = RegisteredMemory::new(context, &mapped(region)?)?;
        held.push(Arc::downgrade(&memory));
        Ok(memory)
    }
}

/// A megakernel compiled while another one is resident. It is loaded when it is first started: a loader may wait for
/// kernels that run, and for this one they would not end.
pub(super) struct Prepared {
    inner: Arc<Inner>,
    spec: ResidentSpec,
    emitted: EmittedResident,
    object: CodeObject,
    loaded: Mutex<Option<Arc<Pipeline>>>,
}

impl Prepared {
    pub(super) fn compile(inner: &Arc<Inner>, spec: &ResidentSpec) -> Result<Prepared, BackendError> {
        let emitted = emitted(spec)?;
        let name = &spec.lane.program().name;
        let source = EmittedSource { name, source: &emitted.source, lines: &emitted.lines };
        let object = source.request(&inner.arch, |request| inner.compiler.compile(request));
        let object = object.map_err(|error| compile_failed(name, error))?;
        let (inner, spec, loaded) = (Arc::clone(inner), spec.clone(), Mutex::default());
        Ok(Prepared { inner, spec, emitted, object, loaded })
    }

    fn pipeline(&self) -> Result<Arc<Pipeline>, BackendError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = &*loaded {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = match Module::load(&self.inner.context, &self.object.image) {
            // Out of the cache, perhaps: this way asks a compiler, too.
            Err(error) if error.is_image_refused() => Pipeline::compile(&self.inner, &self.spec)?,
            module => Pipeline::of(&self.inner, &self.spec, self.emitted.clone(), &module?)?,
        };
        Ok(Arc::clone(loaded.insert(Arc::new(pipeline))))
    }
}

impl ResidentPipeline for Prepared {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        self.pipeline()?.start(request)
    }
}

/// Checks and emits the programs.
pub(super) fn emitted(spec: &ResidentSpec) -> Result<EmittedResident, BackendError> {
    spec.check()?;
    emit::resident(spec, QuarterAccess::from_environment()).map_err(|error| refused(&spec.lane, &error))
}

/// How many workgroups do what.
fn grid(
    inner: &Inner,
    spec: &ResidentSpec,
    emitted: &EmittedResident,
    kernel: &Function,
) -> Result<Grid, BackendError> {
    let info = inner.context.info();
    let each = kernel.resident_workgroups(emitted.threads, 0)?;
    let all = each.saturating_mul(info.multiprocessors);
    let usable = all - all / LEFT_FREE;
    let schedulers = SCHEDULER_WAVES.div_ceil(emitted.threads / info.wave_width.max(1));
    let least = 2 + schedulers + 1 + u32::from(spec.workgroup.is_some());
    if usable < least {
        return Err(BackendError::Unsupported {
            what: format!(
                "a resident kernel of {} registers an invocation: {all} workgroups fit the device, {least} are needed",
                kernel.attributes().registers
            ),
            remedy: "use fewer or smaller handlers".to_owned(),
        });
    }
    let workers = spec.worker_groups.min(usable - 2 - schedulers).max(1);
    let (lanes, groups) = match spec.workgroup {
        None => (workers, 0),
        // Items come through the lanes, and stay longer in the workgroups.
        Some(_) => {
            let lanes = workers.div_ceil(LANE_SHARE);
            (lanes, (workers - workers / LANE_SHARE).min(usable - least + 1).max(1))
        }
    };
    Ok(Grid { schedulers, lanes, groups })
}

impl ResidentPipeline for Pipeline {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        let (context, regions) = (&self.inner.context, &request.regions);
        self.shape.check_rings(regions.layout.rings().len())?;
        let h2d = self.registered(&regions.h2d)?;
        // Each incarnation has a mapping of its own: the host may have given back the memory behind the last one,
        // and its registration may still wait to be given back.
        let d2h = RegisteredMemory::new(context, &mapped(&regions.d2h)?)?;
        let pinned = PinnedMemory::new(context, "the words of a resident kernel", PINNED_BYTES)?;
        let rings = regions.layout.rings();
        let least = rings.iter().map(|ring| u64::from(ring.capacity)).min().unwrap_or(1);
        let ahead = (least * LAPS_AHEAD / u64::from(self.shape.lanes.max(1))).clamp(1, 256) as u32;
        let shape = Shape {
            scheduler_groups: self.shape.schedulers,
            lane_groups: self.shape.lanes,
            claim: self.emitted.threads.min(ahead),
            inline: matches!(self.emitted.bindings, emit::Bindings::Inline(_)),
        };
        let memory = Memory::new(&self.inner, &self.spec, &request, &shape, &h2d, &d2h, &pinned)?;
        let holder = Arc::from(request.holder.as_str());
        for binding in &request.bindings {
            if let ResidentBinding::Buffer(binding) = binding {
                self.inner.buffers.hold(binding.buffer, &holder)?;
            }
        }
        // It writes the header, and comes last of what can fail for reasons of the caller's.
        DeviceView::new(regions).map_err(memory::refused)?;
        let stream = Stream::new(context, StreamPriority::High)?;
        let hold = context.hold_releases();
        let grid = self.shape.all();
        let launch = |grid| LaunchConfig {
            grid: [grid, 1, 1],
            workgroup: [self.emitted.threads, 1, 1],
            shared_bytes: 0,
        };
        // SAFETY: the argument is what the emitter says that the kernels take, and the handle below keeps every
        // memory in it until the stream was seen idle.
        unsafe { self.prepare.launch(&stream, &launch(grid), &memory.argument) }?;
        // SAFETY: as above.
        unsafe { self.kernel.launch(&stream, &launch(grid), &memory.argument) }?;
        let kernel = Kernel::new(Parts { stream, memory, h2d, d2h, pinned, holder, hold });
        kernel.wait_until_resident(grid)?;
        Ok(Arc::new(kernel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ring_has_a_workgroup_or_the_start_says_how_many_are_needed() {
        let (plain, mixed) =
            (Grid { schedulers: 4, lanes: 2, groups: 0 }, Grid { schedulers: 4, lanes: 2, groups: 14 });
        for grid in [plain, mixed] {
            assert!(grid.check_rings(1).is_ok() && grid.check_rings(2).is_ok());
        }
        for (grid, least) in [(plain, "at least 3 "), (mixed, "at least 17 ")] {
            let Err(BackendError::Unsupported { remedy, .. }) = grid.check_rings(3) else {
                panic!("3 rings")
            };
            assert!(remedy.contains(least), "{remedy}");
        }
    }
}
