//! Batch dispatch: a kernel over a grid of workgroups.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vyre_driver::{
    BackendError, BufferBinding, CompiledPipeline, DispatchConfig, DispatchOutcome, Generation, Trap,
};

use crate::backend::{Inner, MAX_GRID};
use crate::buffers::{Bound, GENERATION, Source};
use crate::exec::{Poll, Progress, Width, Workgroup};
use crate::flat::Flat;
use crate::pool::Job;

/// A dispatch of fewer invocations is run on the calling thread, unless it turns out to take longer than
/// [`ALONE`]: waking a helper costs some microseconds.
const SMALL_DISPATCH: u64 = 2048;

/// How long a small dispatch is run on the calling thread before helpers are asked.
const ALONE: Duration = Duration::from_micros(50);

/// A compiled kernel.
pub(crate) struct Kernel {
    inner: Arc<Inner>,
    flat: Arc<Flat>,
}

impl Kernel {
    pub(crate) fn new(inner: Arc<Inner>, flat: Flat) -> Kernel {
        Kernel { inner, flat: Arc::new(flat) }
    }

    fn dispatch_with<const W: usize>(
        &self,
        bound: Bound,
        config: &DispatchConfig,
        started: Instant,
    ) -> Result<DispatchOutcome, BackendError> {
        let groups = config.grid.iter().map(|&n| u64::from(n)).product::<u64>();
        let bytes = Workgroup::<W>::bytes(&self.flat);
        let budget = self.inner.buffers.budget();
        let out_of_memory = |requested| BackendError::OutOfMemory {
            what: format!("the registers of `{}`", self.flat.name),
            requested,
            available: budget.available(),
        };
        let mut run = Run::<W> {
            flat: Arc::clone(&self.flat),
            bound,
            grid: config.grid,
            groups,
            next: AtomicU64::new(0),
            states: Vec::new(),
            suspended: AtomicU64::new(0),
            deadline: config.deadline.and_then(|deadline| started.checked_add(deadline)),
            expired: AtomicBool::new(false),
            out_of_memory: AtomicBool::new(false),
            trap: Mutex::new(None),
        };
        // Every workgroup waits at once at a grid barrier, so each needs its own state.
        let all = bytes.saturating_mul(if self.flat.grid_barriers { groups } else { 0 });
        let _charge = budget.charge(all).ok_or_else(|| out_of_memory(all))?;
        if self.flat.grid_barriers {
            for index in 0..groups {
                let state = run.state(index).ok_or_else(|| out_of_memory(all))?;
                run.states.push(Mutex::new(Some(state)));
            }
        }
        let run = Arc::new(run);
        loop {
            self.pass(&run);
            let again = run.suspended.swap(0, Relaxed) > 0;
            if !again || run.expired.load(Relaxed) {
                break;
            }
            run.next.store(0, Relaxed);
        }
        if run.out_of_memory.load(Relaxed) {
            return Err(out_of_memory(bytes));
        }
        if run.expired.load(Relaxed) {
            let label = config.label.as_deref().unwrap_or(&self.flat.name);
            let after = config.deadline.unwrap_or_default();
            return Err(BackendError::Deadline { waited_for: format!("dispatch `{label}`"), after });
        }
        let trap = *lock(&run.trap);
        Ok(DispatchOutcome { elapsed: started.elapsed(), trap })
    }

    /// Runs all workgroups once, to their end or to a grid barrier.
    fn pass<const W: usize>(&self, run: &Arc<Run<W>>) {
        let helpers = usize::try_from(run.groups - 1).unwrap_or(usize::MAX);
        let invocations = run.groups.saturating_mul(u64::from(self.flat.invocations()));
        if helpers > 0 && invocations < SMALL_DISPATCH {
            run.work_until(Instant::now().checked_add(ALONE));
            if run.next.load(Relaxed) >= run.groups {
                return;
            }
        }
        let job: Arc<dyn Job> = Arc::clone(run) as Arc<dyn Job>;
        self.inner.pool.run(&job, helpers);
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
        let started = Instant::now();
        config.check_grid(MAX_GRID)?;
        let sources: Vec<_> = bindings.iter().map(|&binding| Source::Buffer(binding)).collect();
        let bound = self.inner.buffers.bind(&self.flat.buffers, &sources)?;
        match self.inner.width.for_program(&self.flat) {
            Width::One => self.dispatch_with::<1>(bound, config, started),
            Width::Eight => self.dispatch_with::<8>(bound, config, started),
            Width::Full => self.dispatch_with::<32>(bound, config, started),
        }
    }
}

/// A dispatch in progress.
struct Run<const W: usize> {
    flat: Arc<Flat>,
    bound: Bound,
    grid: [u32; 3],
    groups: u64,
    /// The next workgroup that nobody has taken.
    next: AtomicU64,
    /// If the program has grid barriers, the state of each workgroup that has not ended.
    states: Vec<Mutex<Option<Workgroup<W>>>>,
    /// Workgroups that wait at a grid barrier.
    suspended: AtomicU64,
    deadline: Option<Instant>,
    expired: AtomicBool,
    out_of_memory: AtomicBool,
    trap: Mutex<Option<Trap>>,
}

impl<const W: usize> Run<W> {
    fn state(&self, index: u64) -> Option<Workgroup<W>> {
        let mut state = Workgroup::new(&self.flat, &self.bound.views)?;
        state.begin(self.place(index), self.grid);
        Some(state)
    }

    /// Where in the grid a workgroup is; x is fastest.
    fn place(&self, index: u64) -> [u32; 3] {
        let [x, y, _] = self.grid.map(|n| u64::from(n.max(1)));
        [(index % x) as u32, (index / x % y) as u32, (index / x / y) as u32]
    }

    /// All lanes stop once the deadline has passed.
    fn stop(&self, lanes: u32) -> u32 {
        if !self.expired.load(Relaxed) && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.expired.store(true, Relaxed);
        }
        if self.expired.load(Relaxed) { lanes } else { 0 }
    }

    /// Takes workgroups until none is left, or until a time.
    fn work_until(&self, until: Option<Instant>) {
        let stop = |lanes| self.stop(lanes);
        let mut poll = Poll::new(&stop);
        let mut scratch = None;
        while !self.expired.load(Relaxed) {
            let index = self.next.fetch_add(1, Relaxed);
            if index >= self.groups {
                break;
            }
            self.run_one(index, &mut scratch, &mut poll);
            if until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
        }
    }

    fn run_one(&self, index: u64, scratch: &mut Option<Workgroup<W>>, poll: &mut Poll<'_>) {
        let mut kept = usize::try_from(index).ok().and_then(|index| self.states.get(index)).map(lock);
        let state = match kept.as_deref_mut() {
            Some(kept) => kept,
            None => {
                if scratch.is_none() {
                    *scratch = Workgroup::new(&self.flat, &self.bound.views);
                }
                if let Some(scratch) = scratch {
                    scratch.begin(self.place(index), self.grid);
                } else {
                    self.out_of_memory.store(true, Relaxed);
                    return;
                }
                scratch
            }
        };
        // A workgroup that ended before a grid barrier has no state any more.
        let Some(workgroup) = state else { return };
        let (progress, trap) = workgroup.run(poll);
        if let Some((local, code)) = trap {
            self.report(index * u64::from(self.flat.invocations()) + u64::from(local), code);
        }
        if progress == Progress::GridBarrier {
            self.suspended.fetch_add(1, Relaxed);
        } else if let Some(mut kept) = kept {
            *kept = None;
        }
    }

    /// Keeps the trap of the first invocation.
    fn report(&self, invocation: u64, code: u32) {
        let mut first = lock(&self.trap);
        if first.is_none_or(|first| invocation < first.invocation) {
            *first = Some(Trap { code, invocation });
        }
    }
}

impl<const W: usize> Job for Run<W> {
    fn work(&self) {
        self.work_until(None);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
