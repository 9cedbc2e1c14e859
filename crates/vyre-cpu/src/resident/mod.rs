//! Resident kernels: worker threads that are fed through a ring, live, until they are told to stop.
//!
//! | file | what it is for |
//! |---|---|
//! | here | compiling and starting: everything that can be refused is refused here |
//! | `kernel` | the handle, the phases of a kernel's life, the pulse |
//! | `ring` | one ring: claiming by kind, and which tickets are complete |
//! | `runner` | running item programs on waves, and what came out |
//! | `turns` | which ring is served next |
//! | `worker` | a worker's loop |
//! | `parking` | what waits without a worker: fences, IO, items to run again, shutdown |
//!
//! Absent on purpose: what an opcode means, tenants, quotas. That is the item program.

mod kernel;
mod parking;
mod ring;
mod runner;
mod turns;
mod worker;

use std::sync::Arc;

use vyre_driver::io_queue::DeviceIo;
use vyre_driver::ring::RingError;
use vyre_driver::view::DeviceView;
use vyre_driver::wait::{Notifier, Waiter};
use vyre_driver::{
    BackendError, Generation, ResidentBinding, ResidentKernel, ResidentPipeline, ResidentSpec, StartRequest,
};

use vyre_foundation::ValidatedProgram;

use crate::backend::{Inner, compile};
use crate::buffers::{GENERATION, Source};
use crate::flat::Flat;
use kernel::{Control, Kernel, Mirrors, Shared};
use parking::Parking;
use ring::Ring;
use runner::Programs;

/// A megakernel compiled for residency.
pub(crate) struct Pipeline {
    inner: Arc<Inner>,
    lane: Arc<Flat>,
    accounting: Option<Arc<Flat>>,
    workgroup: Option<Arc<Flat>>,
    workgroup_opcodes: Vec<u32>,
    worker_groups: u32,
}

impl Pipeline {
    /// Checks that the programs fit together, and compiles them.
    pub(crate) fn compile(inner: Arc<Inner>, spec: &ResidentSpec) -> Result<Pipeline, BackendError> {
        spec.check()?;
        let compiled = |program: &Option<ValidatedProgram>| -> Result<_, BackendError> {
            program.as_ref().map(|program| compile(&inner, program).map(Arc::new)).transpose()
        };
        Ok(Pipeline {
            lane: Arc::new(compile(&inner, &spec.lane)?),
            accounting: compiled(&spec.accounting)?,
            workgroup: compiled(&spec.workgroup)?,
            inner,
            workgroup_opcodes: spec.workgroup_opcodes.clone(),
            worker_groups: spec.worker_groups,
        })
    }
}

impl ResidentPipeline for Pipeline {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn start(&self, request: StartRequest) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        let regions = &request.regions;
        let sources: Vec<Source<'_>> = request
            .bindings
            .iter()
            .map(|binding| match *binding {
                ResidentBinding::Buffer(binding) => Source::Buffer(binding),
                ResidentBinding::HostToDevice { byte_offset, byte_len } => {
                    Source::Region { region: &regions.h2d, offset: byte_offset, bytes: byte_len }
                }
            })
            .collect();
        let lane_buffers = self.inner.buffers.bind(&self.lane.buffers, &sources)?;
        let bound = |flat: &Option<Arc<Flat>>| -> Result<_, BackendError> {
            let Some(flat) = flat else { return Ok(None) };
            Ok(Some((Arc::clone(flat), self.inner.buffers.bind(&flat.buffers, &sources)?)))
        };
        let (accounting, workgroup) = (bound(&self.accounting)?, bound(&self.workgroup)?);
        let mirrors = Mirrors::new(&self.inner.buffers, regions, &request.mirrors)?;
        let holder = Arc::from(request.holder);
        for binding in &request.bindings {
            if let ResidentBinding::Buffer(binding) = binding {
                self.inner.buffers.hold(binding.buffer, &holder)?;
            }
        }
        // Writing the d2h header comes last of what can fail for reasons of the caller's.
        let view = DeviceView::new(regions).map_err(refused)?;
        let rings = (0_u32..).zip(regions.layout.rings());
        let rings = rings.map(|(index, layout)| Ring::new(regions, index, layout)).collect::<Result<_, _>>();
        let workers = (self.inner.threads as u64)
            .min(u64::from(self.worker_groups))
            .min(u64::from(regions.layout.config().workers));
        let shared = Arc::new(Shared {
            programs: Programs {
                lane: Arc::clone(&self.lane),
                lane_buffers,
                accounting,
                workgroup,
                workgroup_opcodes: self.workgroup_opcodes.clone(),
                item_deadline: request.item_deadline,
                width: self.inner.width,
            },
            rings: rings.map_err(refused)?,
            completed: Notifier::completion(regions).map_err(refused)?,
            idle: Waiter::doorbell(regions).map_err(refused)?,
            io: DeviceIo::new(regions).map_err(refused)?,
            view,
            control: Control::new(holder),
            parking: Parking::new(regions.layout.rings().len()),
            mirrors,
            lease: request.lease,
        });
        // A device that cannot write h2d cannot ring its own bell; its workers look often enough.
        let doorbell = Notifier::doorbell(regions).ok();
        Kernel::launch(shared, doorbell, workers as u32)
    }
}

/// Regions that this backend cannot use.
fn refused(error: RingError) -> BackendError {
    BackendError::invalid("regions", error, "the two regions of a session, d2h fresh and writable")
}

#[cfg(test)]
mod tests {
    use vyre_driver::VyreBackend as _;
    use vyre_foundation::{text, validate};

    use super::*;
    use crate::CpuBackend;

    const ITEM: &str = "\
program p item(lane) workgroup(1, 1, 1)
entry(o: u32, t: u32, f: u32, n: u64, a: u32, b: u32, c: u32, d: u32, e: u32, g: u32, h: u32, i: u32, j: u32, k: u32,
  l: u32, m: u32) -> (u32, u32, u64, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32) {
  return 3u32, 0u32, 0u64, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32, 0u32;
}
";

    #[test]
    fn programs_that_do_not_fit_together_are_refused() {
        let program = |text: &str| validate(text::parse(text).expect("text")).expect("valid");
        let (lane, workgroup) = (program(ITEM), program(&ITEM.replace("lane", "workgroup")));
        let good = ResidentSpec {
            lane: lane.clone(),
            accounting: None,
            workgroup: Some(workgroup.clone()),
            workgroup_opcodes: vec![8, 9],
            worker_groups: 1,
        };
        let compile = |spec: ResidentSpec| CpuBackend::new().compile_resident(&spec).map(drop);
        compile(good.clone()).expect("compiles");
        let kernel = program("program p kernel workgroup(1, 1, 1)\nentry {\n}\n");
        for bad in [
            ResidentSpec { lane: kernel, ..good.clone() },
            ResidentSpec { lane: workgroup.clone(), ..good.clone() },
            ResidentSpec { workgroup: Some(lane), ..good.clone() },
            ResidentSpec { accounting: Some(workgroup), ..good.clone() },
            ResidentSpec { workgroup: None, ..good.clone() },
            ResidentSpec { workgroup_opcodes: vec![9, 8], ..good.clone() },
            ResidentSpec { worker_groups: 0, ..good },
        ] {
            assert!(matches!(compile(bad), Err(BackendError::InvalidArgument { .. })));
        }
    }
}
