//! Compiling a program, and running it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use vyre_driver::table;
use vyre_driver::{
    BackendError, BufferBinding, CompiledPipeline, DispatchConfig, DispatchOutcome, Generation, Trap,
};
use vyre_foundation::{ProgramKind, ValidatedProgram};

use super::lane::Lane;
use super::watchdog::Watch;
use super::{GENERATION, Inner, compile_failed};
use crate::DeviceError;
use crate::compile::{CodeObject, EmittedSource};
use crate::device::{DeviceMemory, Event, Function, LaunchConfig, Module};
use crate::emit::abi::{self, Arguments};
use crate::emit::{self, Bindings, EmitError, EmitOptions, EmittedKernel, GridBarriers};

/// How long a dispatch that was aborted may take to end: the kernel looks at the abort word every half a
/// millisecond, so what has not ended by then does not look.
const ABORT_DEADLINE: Duration = Duration::from_secs(10);

/// Rows that are enqueued before one is waited for.
const ROWS_UNDER_WAY: usize = 16;

/// A row that was enqueued.
struct UnderWay {
    lane: Lane,
    /// Aborts it at its deadline, if it has one.
    watch: Option<Watch>,
}

/// A compiled kernel.
pub(super) struct Kernel {
    inner: Arc<Inner>,
    program: ValidatedProgram,
    /// In one launch. None for a program with grid barriers on a device that cannot launch cooperatively.
    whole: Option<Loaded>,
    /// Split at grid barriers, made when a grid is first seen that cannot be resident as a whole.
    split: OnceLock<Result<Loaded, BackendError>>,
}

/// Functions ready to be launched one after the other.
struct Loaded {
    emitted: EmittedKernel,
    functions: Vec<Function>,
}

impl Kernel {
    pub(super) fn compile(inner: &Arc<Inner>, program: &ValidatedProgram) -> Result<Kernel, BackendError> {
        must_be_kernel(program)?;
        let native = Loaded::new(inner, program, GridBarriers::Native)?;
        let cooperates = inner.context.info().cooperative_launch;
        let whole = Some(native).filter(|native| cooperates || !native.emitted.uses_grid_barrier);
        Ok(Kernel { inner: Arc::clone(inner), program: program.clone(), whole, split: OnceLock::new() })
    }

    /// The functions for a grid of so many workgroups.
    fn loaded_for(&self, workgroups: u64) -> Result<&Loaded, BackendError> {
        if let Some(whole) = &self.whole
            && (!whole.emitted.uses_grid_barrier || workgroups <= self.resident(whole)?)
        {
            return Ok(whole);
        }
        let split = self.split.get_or_init(|| Loaded::new(&self.inner, &self.program, GridBarriers::Split));
        split.as_ref().map_err(Clone::clone)
    }

    /// Workgroups that the device can have resident at once.
    fn resident(&self, loaded: &Loaded) -> Result<u64, BackendError> {
        let invocations = loaded.emitted.workgroup_size.iter().product();
        let multiprocessors = u64::from(self.inner.context.info().multiprocessors);
        let mut least = u64::MAX;
        for function in &loaded.functions {
            let each = u64::from(function.resident_workgroups(invocations, 0)?);
            least = least.min(each.saturating_mul(multiprocessors));
        }
        Ok(least)
    }

    /// Checks everything, and enqueues one run on a lane.
    fn enqueue(
        &self,
        lane: Lane,
        bindings: &[BufferBinding],
        config: &DispatchConfig,
        until: Option<Instant>,
    ) -> Result<UnderWay, BackendError> {
        let decls = &self.program.program().buffers;
        table::check_count(decls, bindings.len())?;
        let mut addresses = Vec::with_capacity(bindings.len());
        for (decl, binding) in table::bound(decls).zip(bindings) {
            let memory = self.inner.buffers.bind(decl, binding)?;
            table::check_elements(decl, binding.byte_offset, binding.byte_len)?;
            // Indices are 32 bits: what lies behind them cannot be reached.
            let len = (binding.byte_len / decl.element.size() as u64).min(u32::MAX.into());
            // There is something to be loaded even from an empty buffer.
            let data = if len == 0 { lane.control() } else { memory.address() + binding.byte_offset };
            addresses.push(abi::Binding { data, len });
            memory.keep_for(lane.stream());
        }
        let workgroups: u64 = config.grid.iter().map(|&n| u64::from(n)).product();
        let loaded = self.loaded_for(workgroups)?;
        let emitted = &loaded.emitted;
        let invocations: u64 = emitted.workgroup_size.iter().map(|&n| u64::from(n)).product();
        let (spill, name) = (emitted.spill, &self.program.program().name);
        let spill_memory = |what: &str, each: u64, count: u64| {
            let bytes = each.saturating_mul(count);
            let memory = DeviceMemory::new(&self.inner.context, &format!("the {what} of `{name}`"), bytes)?;
            lane.stream().keep_alive(&memory);
            Ok::<_, DeviceError>(memory)
        };
        let locals = spill_memory(
            "invocations' locals",
            spill.per_invocation,
            workgroups.saturating_mul(invocations),
        )?;
        let shared = spill_memory("workgroup memory", spill.per_workgroup, workgroups)?;
        let arguments = Arguments {
            control: lane.control(),
            invocation_spill: locals.address(),
            workgroup_spill: shared.address(),
        };
        let bytes = match emitted.bindings {
            Bindings::Inline(_) => abi::inline_argument(&arguments, &addresses),
            Bindings::Table(_) => {
                let table: Vec<u8> = addresses.iter().flat_map(abi::Binding::to_bytes).collect();
                let memory =
                    DeviceMemory::new(&self.inner.context, "a table of bindings", table.len() as u64)?;
                memory.write(0, &table)?;
                lane.stream().keep_alive(&memory);
                abi::table_argument(&arguments, memory.address())
            }
        };
        lane.begin()?;
        // Before the launch: no later call of the library is sure to return while the kernel runs.
        let watch = until.map(|until| self.inner.watchdog.watch(until, lane.aborter())).transpose();
        let watch = watch.map_err(|error| BackendError::Driver {
            call: "start the watchdog's thread",
            code: error.raw_os_error().unwrap_or(0).into(),
            text: error.to_string(),
        })?;
        let launch = LaunchConfig { grid: config.grid, workgroup: emitted.workgroup_size, shared_bytes: 0 };
        for function in &loaded.functions {
            if emitted.uses_grid_barrier {
                // SAFETY: the argument is what the emitter says that the kernel takes, and the stream keeps
                // every memory in it.
                unsafe { function.launch_cooperative(lane.stream(), &launch, &[&bytes]) }?;
            } else {
                // SAFETY: as above.
                unsafe { function.launch(lane.stream(), &launch, &bytes) }?;
            }
        }
        lane.fetch()?;
        Ok(UnderWay { lane, watch })
    }

    /// Enqueues rows, each behind the one before it, on lanes of their own.
    fn enqueue_rows(
        &self,
        rows: &[&[BufferBinding]],
        config: &DispatchConfig,
        until: Option<Instant>,
    ) -> Result<Vec<UnderWay>, BackendError> {
        let mut under_way: Vec<UnderWay> = Vec::with_capacity(rows.len());
        for row in rows {
            let lane = self.inner.lanes.take()?;
            if let Some(before) = under_way.last() {
                let done = Event::without_timing(&self.inner.context)?;
                done.record(before.lane.stream())?;
                lane.stream().wait_for(&done)?;
            }
            under_way.push(self.enqueue(lane, row, config, until)?);
        }
        Ok(under_way)
    }

    fn check_grid(&self, config: &DispatchConfig) -> Result<(), BackendError> {
        config.check_grid(self.inner.context.info().max_grid)?;
        let workgroup_size = self.program.program().workgroup_size;
        let axes = config.grid.iter().chain(&workgroup_size);
        let invocations = axes.fold(1_u64, |all, &n| all.saturating_mul(n.into()));
        if invocations > abi::MAX_INVOCATIONS {
            let got = format!("{:?} of {workgroup_size:?} invocations", config.grid);
            return Err(BackendError::invalid("grid", got, "at most 2^48 invocations in all"));
        }
        Ok(())
    }

    /// Waits for a run, which the watchdog aborts at its deadline, and reads how it ended.
    fn finish(
        &self,
        row: UnderWay,
        config: &DispatchConfig,
        until: Option<Instant>,
    ) -> Result<Option<Trap>, BackendError> {
        let UnderWay { lane, watch } = row;
        let left = until.map_or(Duration::MAX, |until| {
            until.saturating_duration_since(Instant::now()).saturating_add(ABORT_DEADLINE)
        });
        let label = || config.label.as_deref().unwrap_or(&self.program.program().name).to_owned();
        lane.stream().wait(left).map_err(|error| match error {
            DeviceError::Deadline { .. } => {
                let waited_for = format!("dispatch `{}`, which was aborted, to end", label());
                BackendError::Deadline { waited_for, after: ABORT_DEADLINE }
            }
            error => error.into(),
        })?;
        // Before the lane is another dispatch's.
        drop(watch);
        let control = lane.fetched()?;
        self.inner.lanes.give_back(lane);
        if control.aborted != 0 {
            let after = config.deadline.unwrap_or_default();
            return Err(BackendError::Deadline { waited_for: format!("dispatch `{}`", label()), after });
        }
        Ok(control.trap().map(|(invocation, code)| Trap { code, invocation }))
    }
}

impl CompiledPipeline for Kernel {
    fn generation(&self) -> Generation {
        GENERATION
    }

    fn dispatch(
        &self,
        bindings: &[BufferBinding],
        config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError> {
        let mut outcomes = self.dispatch_rows(&[bindings], config)?;
        // There is one for each row.
        outcomes.pop().ok_or_else(|| BackendError::invalid("bindings", "no row", "one"))
    }

    fn dispatch_rows(
        &self,
        rows: &[&[BufferBinding]],
        config: &DispatchConfig,
    ) -> Result<Vec<DispatchOutcome>, BackendError> {
        let started = Instant::now();
        self.check_grid(config)?;
        // None past the end of time.
        let until = config.deadline.and_then(|deadline| started.checked_add(deadline));
        let mut outcomes = Vec::with_capacity(rows.len());
        for rows in rows.chunks(ROWS_UNDER_WAY) {
            let mut under_way = self.enqueue_rows(rows, config, until)?.into_iter();
            while let Some(row) = under_way.next() {
                match self.finish(row, config, until) {
                    Ok(trap) => outcomes.push(DispatchOutcome { elapsed: started.elapsed(), trap }),
                    Err(error) => {
                        // The rows behind it would run on; their lanes are waited for as they are dropped.
                        under_way.for_each(|row| row.lane.aborter()());
                        return Err(error);
                    }
                }
            }
        }
        Ok(outcomes)
    }
}

impl Loaded {
    fn new(
        inner: &Inner,
        program: &ValidatedProgram,
        grid_barriers: GridBarriers,
    ) -> Result<Loaded, BackendError> {
        let emitted = emitted(program, grid_barriers)?;
        let name = &program.program().name;
        let source = EmittedSource { name, source: &emitted.source, lines: &emitted.lines };
        let module = load(inner, &source)?;
        let functions: Result<_, DeviceError> =
            emitted.entries.iter().map(|entry| module.function(entry)).collect();
        let functions = functions?;
        Ok(Loaded { emitted, functions })
    }
}

/// Compiles an emitted source, or finds it in the cache, and loads it.
pub(super) fn load(inner: &Inner, source: &EmittedSource<'_>) -> Result<Arc<Module>, BackendError> {
    source.request(&inner.arch, |request| {
        let failed = |error| compile_failed(source.name, error);
        let compile = || inner.compiler.compile(request).map_err(failed);
        let load = |object: &CodeObject| Module::load(&inner.context, &object.image);
        let object = compile()?;
        match load(&object) {
            // What the cache had may be whole and yet not what this device takes.
            Err(error) if error.is_image_refused() && inner.compiler.refuse(&object) => {
                Ok(load(&compile()?)?)
            }
            loaded => Ok(loaded?),
        }
    })
}

/// Refuses item programs.
pub(super) fn must_be_kernel(program: &ValidatedProgram) -> Result<(), BackendError> {
    if program.program().kind == ProgramKind::Kernel {
        return Ok(());
    }
    Err(BackendError::invalid(
        "program",
        format!("the item program `{}`", program.program().name),
        "a kernel; items run in a megakernel",
    ))
}

/// Emits one form of a kernel.
pub(super) fn emitted(
    program: &ValidatedProgram,
    grid_barriers: GridBarriers,
) -> Result<EmittedKernel, BackendError> {
    emit::kernel(program, &EmitOptions::default().with_grid_barriers(grid_barriers))
        .map_err(|error| refused(program, &error))
}

/// The emitter does not take a program.
pub(super) fn refused(program: &ValidatedProgram, error: &EmitError) -> BackendError {
    BackendError::CompileFailed { program: program.program().name.clone(), log: error.to_string() }
}
