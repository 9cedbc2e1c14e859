//! Running a batch: copy in, launch until nothing can run, copy out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vyre_driver::{
    BackendError, BufferBinding, BufferDesc, BufferHandle, CompiledPipeline, DispatchConfig,
    PersistentThreadMode, VyreBackend,
};
use vyre_foundation::{DataType, MemorySpace, ValidatedProgram};

use super::buffers::BatchBuffers;
use super::device::{ResidentBatch, destroy, stale};
use super::kernel::{self, AGAIN, MODE_WORDS, Mode};
use super::stats::DispatchStats;
use crate::error::MegakernelError;
use crate::item::HandlerTable;
use crate::megakernel::{Megakernel, Parts};
use crate::pipelines::PipelineCache;

/// Batches kept on the device for later copy-in dispatches.
const SPARE_BATCHES: usize = 4;

/// How to run a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchOptions {
    /// Give up after this long; 60 s by default.
    pub deadline: Duration,
    /// For traces and error messages.
    pub label: Option<String>,
    /// Whether the backend may, must or must not use a resident kernel for it.
    pub persistent: PersistentThreadMode,
    /// First make every completion and the IO queue empty, on the device: runs the same slots again.
    pub rearm: bool,
}

impl Default for DispatchOptions {
    fn default() -> DispatchOptions {
        DispatchOptions {
            deadline: Duration::from_secs(60),
            label: None,
            persistent: PersistentThreadMode::Auto,
            rearm: false,
        }
    }
}

/// What a dispatch runs over.
#[derive(Debug)]
pub enum BatchTarget<'b> {
    /// Bytes that are replaced by what the dispatch leaves behind, if it succeeds.
    InPlace(&'b mut BatchBuffers),
    /// Bytes that are only read, and the caller's buffers for what the dispatch leaves behind, written if it
    /// succeeds.
    Into {
        /// Read.
        input: &'b BatchBuffers,
        /// Replaced.
        output: &'b mut BatchBuffers,
    },
    /// Buffers on the device.
    Resident(&'b ResidentBatch),
}

impl<'b> From<&'b mut BatchBuffers> for BatchTarget<'b> {
    fn from(buffers: &'b mut BatchBuffers) -> BatchTarget<'b> {
        BatchTarget::InPlace(buffers)
    }
}

impl<'b> From<(&'b BatchBuffers, &'b mut BatchBuffers)> for BatchTarget<'b> {
    fn from((input, output): (&'b BatchBuffers, &'b mut BatchBuffers)) -> BatchTarget<'b> {
        BatchTarget::Into { input, output }
    }
}

impl<'b> From<&'b ResidentBatch> for BatchTarget<'b> {
    fn from(batch: &'b ResidentBatch) -> BatchTarget<'b> {
        BatchTarget::Resident(batch)
    }
}

/// The kernels of a batch as validated programs: what a rebuild compiles again.
#[derive(Clone, Debug)]
pub(crate) struct BatchPrograms {
    pub(crate) lane: ValidatedProgram,
    pub(crate) workgroup: Option<ValidatedProgram>,
}

impl BatchPrograms {
    pub(crate) fn new(
        handlers: &HandlerTable,
        workgroup_size_x: u32,
    ) -> Result<BatchPrograms, MegakernelError> {
        let (lane, workgroup) = kernel::programs(handlers, workgroup_size_x)?;
        Ok(BatchPrograms { lane, workgroup })
    }
}

/// The kernels of a batch, compiled for one device generation.
pub(crate) struct BatchPipelines {
    backend: Arc<dyn VyreBackend>,
    lane: Arc<dyn CompiledPipeline>,
    workgroup: Option<Arc<dyn CompiledPipeline>>,
    /// One buffer for each [`Mode`], so that no launch has to write it.
    modes: Vec<BufferHandle>,
    /// Batches whose buffers are used again.
    spare: Mutex<Vec<Spare>>,
}

/// A batch on the device, and host buffers to read it into: the caller's are swapped for them when all went
/// well, and untouched if not.
struct Spare {
    device: ResidentBatch,
    staging: BatchBuffers,
}

impl BatchPipelines {
    pub(crate) fn new(
        backend: &Arc<dyn VyreBackend>,
        cache: &PipelineCache,
        programs: &BatchPrograms,
    ) -> Result<BatchPipelines, BackendError> {
        let mut pipelines = BatchPipelines {
            backend: Arc::clone(backend),
            lane: cache.compile(backend, &programs.lane)?,
            workgroup: match &programs.workgroup {
                Some(program) => Some(cache.compile(backend, program)?),
                None => None,
            },
            modes: Vec::new(),
            spare: Mutex::default(),
        };
        for mode in Mode::ALL {
            let desc = BufferDesc::new("batch mode", DataType::U32, MODE_WORDS.into());
            let handle = backend.create_buffer(&desc.in_space(MemorySpace::Uniform))?;
            pipelines.modes.push(handle);
            backend.write_buffer(handle, 0, &(mode as u32).to_le_bytes())?;
        }
        Ok(pipelines)
    }

    fn mode(&self, mode: Mode) -> Result<BufferHandle, MegakernelError> {
        let handle = self.modes.get(mode as usize).copied();
        handle.ok_or(MegakernelError::InvalidGeometry {
            what: "the number of mode buffers",
            got: self.modes.len() as u64,
            expected: "3".to_owned(),
        })
    }
}

impl Drop for BatchPipelines {
    fn drop(&mut self) {
        destroy(&self.backend, self.modes.drain(..));
    }
}

impl Megakernel {
    /// Buffers for a batch: tenants as configured, everything else zero, no slot published.
    pub fn batch_buffers(&self) -> BatchBuffers {
        BatchBuffers::empty(self.layout(), self.tenants(), self.handlers(), self.slot_count())
    }

    /// Runs every slot that is published and not finished, until nothing is left that can run.
    ///
    /// Bytes of the host are copied to the device and back; a [`ResidentBatch`] stays where it is. After a
    /// device loss the recovery policy decides; a dispatch over bytes runs again from the same bytes unless
    /// handlers touch volatile buffers, a resident one does not.
    ///
    /// # Errors
    ///
    /// The buffers of the caller are as before after any of them.
    /// [`MegakernelError::Deadline`] if items are left that could run, [`MegakernelError::Stale`] for a
    /// resident batch of a lost device, [`MegakernelError::MalformedBuffer`] for buffers of another
    /// megakernel, [`MegakernelError::InvalidBinding`] if a handler's buffer is not bound, and whatever the
    /// backend answers.
    pub fn dispatch<'b>(
        &self,
        target: impl Into<BatchTarget<'b>>,
        options: &DispatchOptions,
    ) -> Result<DispatchStats, MegakernelError> {
        let started = Instant::now();
        let mut stats = match target.into() {
            BatchTarget::InPlace(buffers) => {
                let (mut spare, stats) = self.run_copied(buffers, options)?;
                std::mem::swap(buffers, &mut spare.staging);
                self.keep(spare);
                stats
            }
            BatchTarget::Into { input, output } => {
                let (mut spare, stats) = self.run_copied(input, options)?;
                std::mem::swap(output, &mut spare.staging);
                self.keep(spare);
                stats
            }
            BatchTarget::Resident(batch) => {
                let run = |parts: &Parts, generation| {
                    stale(batch, generation)?;
                    let mut stats = DispatchStats {
                        resident_rows: batch.slot_count(),
                        resident_handles: batch.handle_count(),
                        ..DispatchStats::default()
                    };
                    self.launch_all(parts, batch, options, &mut stats)?;
                    Ok(stats)
                };
                let (mut stats, recovered) = self.with_recovery(run, false)?;
                stats.recovered = recovered;
                stats
            }
        };
        stats.latency = started.elapsed();
        tracing::trace!(?stats, label = options.label, "batch dispatched");
        Ok(stats)
    }

    /// Copies a batch to the device, to be dispatched there any number of times.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] for buffers of another megakernel, and whatever the backend
    /// answers.
    pub fn upload(&self, buffers: &BatchBuffers) -> Result<ResidentBatch, MegakernelError> {
        self.check_buffers(buffers)?;
        let run = |parts: &Parts, _| {
            let mut stats = DispatchStats::default();
            let batch = self.create_batch(parts, &mut stats)?;
            batch.write(buffers, &mut stats).map_err(MegakernelError::backend("write a batch"))?;
            Ok(batch)
        };
        Ok(self.with_recovery(run, true)?.0)
    }

    /// Copies what a batch on the device holds into buffers of the host.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] for buffers of another megakernel, [`MegakernelError::Stale`],
    /// and whatever the backend answers; `into` is then a mixture.
    pub fn download(&self, batch: &ResidentBatch, into: &mut BatchBuffers) -> Result<(), MegakernelError> {
        self.check_buffers(into)?;
        stale(batch, self.generation())?;
        if !batch.fits(self.layout(), self.slot_count()) {
            return Err(other_megakernel("resident batch"));
        }
        batch.read(into, &mut DispatchStats::default()).map_err(MegakernelError::backend("read a batch"))
    }

    /// Runs a batch from bytes; what it left behind is in the staging buffers.
    fn run_copied(
        &self,
        input: &BatchBuffers,
        options: &DispatchOptions,
    ) -> Result<(Spare, DispatchStats), MegakernelError> {
        self.check_buffers(input)?;
        let run = |parts: &Parts, _| {
            let mut stats = DispatchStats::default();
            let kept = lock(&parts.batch.spare).pop();
            let mut spare = match kept {
                Some(spare) => {
                    stats.resident_handles = spare.device.handle_count();
                    spare
                }
                None => {
                    Spare { device: self.create_batch(parts, &mut stats)?, staging: self.batch_buffers() }
                }
            };
            spare.device.write(input, &mut stats).map_err(MegakernelError::backend("write a batch"))?;
            self.launch_all(parts, &spare.device, options, &mut stats)?;
            let read = spare.device.read(&mut spare.staging, &mut stats);
            read.map_err(MegakernelError::backend("read a batch"))?;
            stats.output_bytes = stats.readback_bytes;
            stats.output_buffers = 4;
            Ok((spare, stats))
        };
        let ((spare, mut stats), recovered) = self.with_recovery(run, !self.has_volatile_bindings())?;
        stats.recovered = recovered;
        Ok((spare, stats))
    }

    /// Keeps a batch's buffers for the next dispatch.
    fn keep(&self, spare: Spare) {
        let built = self.built();
        let mut kept = lock(&built.parts.batch.spare);
        if spare.device.generation() == built.generation && kept.len() < SPARE_BATCHES {
            kept.push(spare);
        }
    }

    fn create_batch(
        &self,
        parts: &Parts,
        stats: &mut DispatchStats,
    ) -> Result<ResidentBatch, MegakernelError> {
        let with_work = parts.batch.workgroup.is_some();
        ResidentBatch::create(self.backend(), self.layout(), self.slot_count(), with_work, stats)
            .map_err(MegakernelError::backend("allocate a batch"))
    }

    /// Launches until nothing can run.
    fn launch_all(
        &self,
        parts: &Parts,
        batch: &ResidentBatch,
        options: &DispatchOptions,
        stats: &mut DispatchStats,
    ) -> Result<(), MegakernelError> {
        if !batch.fits(self.layout(), self.slot_count()) {
            return Err(other_megakernel("resident batch"));
        }
        let mut launches = Launches {
            megakernel: self,
            parts,
            item: batch.system_bindings(parts.dfa_tables).into_iter().chain(parts.user_bindings()?).collect(),
            batch,
            options,
            started: Instant::now(),
            stats,
        };
        if options.rearm {
            launches.launch(&parts.batch.lane, Mode::Rearm)?;
        }
        let mut mode = Mode::First;
        loop {
            let mut again = launches.launch(&parts.batch.lane, mode)?;
            if let Some(workgroup) = &parts.batch.workgroup {
                again |= launches.launch(workgroup, mode)?;
            }
            if !again {
                return Ok(());
            }
            mode = Mode::Continue;
        }
    }

    fn check_buffers(&self, buffers: &BatchBuffers) -> Result<(), MegakernelError> {
        let fits = buffers.control.layout() == self.layout()
            && buffers.ring.slot_count() == self.slot_count() as usize;
        if fits { Ok(()) } else { Err(other_megakernel("batch buffers")) }
    }
}

/// The launches of one dispatch.
struct Launches<'d> {
    megakernel: &'d Megakernel,
    parts: &'d Parts,
    /// What every launch binds for an item.
    item: Vec<BufferBinding>,
    batch: &'d ResidentBatch,
    options: &'d DispatchOptions,
    started: Instant,
    stats: &'d mut DispatchStats,
}

impl Launches<'_> {
    /// One launch; whether the kernel asks for another.
    fn launch(&mut self, pipeline: &Arc<dyn CompiledPipeline>, mode: Mode) -> Result<bool, MegakernelError> {
        let label = || self.options.label.clone().unwrap_or_else(|| "unnamed".to_owned());
        let left = self.options.deadline.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(MegakernelError::Deadline {
                waited_for: format!("the items of batch `{}`", label()),
                after: self.options.deadline,
            });
        }
        let mut bindings = self.item.clone();
        bindings.extend(self.batch.batch_bindings(self.parts.batch.mode(mode)?));
        let config = DispatchConfig {
            grid: [self.megakernel.worker_groups(), 1, 1],
            deadline: Some(left),
            label: self.options.label.clone(),
            persistent: self.options.persistent,
        };
        self.stats.launches += 1;
        self.stats.sync_points += 1;
        let outcome = pipeline.dispatch(&bindings, &config).map_err(|error| match error {
            // What was set, not what the launches before have left of it.
            BackendError::Deadline { waited_for, .. } => {
                MegakernelError::Deadline { waited_for, after: self.options.deadline }
            }
            error => MegakernelError::backend("run a batch")(error),
        })?;
        self.stats.device_time += outcome.elapsed;
        match outcome.trap.map(|trap| trap.code) {
            None => Ok(false),
            Some(AGAIN) => Ok(true),
            Some(code) => Err(MegakernelError::MalformedBuffer {
                buffer: "answer of the batch kernel",
                got: format!("trap {code:#x}"),
                expected: format!("no trap, or {AGAIN:#x}"),
                remedy: "report it as a defect of the backend",
            }),
        }
    }
}

fn other_megakernel(buffer: &'static str) -> MegakernelError {
    MegakernelError::MalformedBuffer {
        buffer,
        got: "buffers of another layout or slot count".to_owned(),
        expected: "those of this megakernel".to_owned(),
        remedy: "make them with `Megakernel::batch_buffers`",
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is kept is whole or not there, so a poisoned lock guards nothing broken.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
