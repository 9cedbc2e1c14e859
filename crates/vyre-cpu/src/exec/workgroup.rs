//! A workgroup: its waves, one after the other, and what they share.

use std::iter;
use std::sync::Arc;

use vyre_foundation::semantics::zero;
use vyre_foundation::{Literal, MemorySpace, ProgramKind, ScalarType};

use super::{Env, Exit, Poll, Wave, run};
use crate::externals::ExternalView;
use crate::flat::{Flat, Place};
use crate::memory::{Keep, Memory, View};

/// How far a workgroup got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All its invocations have ended.
    Ended,
    /// It waits for the other workgroups.
    GridBarrier,
    /// It was told to stop.
    Stopped,
}

/// The state of one workgroup at a time. A kernel that never suspends needs the registers of one wave only.
pub(crate) struct Workgroup<const W: usize> {
    flat: Arc<Flat>,
    waves: Vec<Wave<W>>,
    /// Whether there is a wave for all invocations.
    whole: bool,
    /// Whether each wave has ended, once begun.
    ended: Vec<bool>,
    views: Vec<View>,
    /// Memory behind the views of workgroup buffers.
    memory: Option<Arc<Memory>>,
    workgroup: [u32; 3],
    grid: [u32; 3],
}

/// The trap of the first invocation of a workgroup that trapped, by its linear local id.
pub(crate) type LocalTrap = Option<(u32, u32)>;

impl<const W: usize> Workgroup<W> {
    /// State for workgroups of this program over these views, one for each declared buffer; those of
    /// workgroup buffers are replaced. `None` if there is no memory.
    pub(crate) fn new(flat: &Arc<Flat>, views: &[View]) -> Option<Workgroup<W>> {
        let whole = Self::needs_all_waves(flat);
        let waves = if whole { Self::waves_of(flat) } else { 1 };
        let mut views = views.to_vec();
        let (memory, layout) = workgroup_memory(flat)?;
        if let Some(memory) = &memory {
            let keep = Keep::Memory(Arc::clone(memory));
            for (buffer, offset) in layout {
                let decl = flat.buffers.get(buffer)?;
                let size = decl.element.size() as u64;
                *views.get_mut(buffer)? = View::new(&keep, offset, u64::from(decl.len) * size, size)?;
            }
        }
        Some(Workgroup {
            flat: Arc::clone(flat),
            waves: (0..waves).map(|_| Wave::new(Arc::clone(flat))).collect(),
            whole,
            ended: vec![false; waves],
            views,
            memory,
            workgroup: [0; 3],
            grid: [0; 3],
        })
    }

    /// Bytes that the state of one workgroup takes.
    pub(crate) fn bytes(flat: &Flat) -> u64 {
        let waves = if Self::needs_all_waves(flat) { Self::waves_of(flat) } else { 1 };
        waves as u64 * Wave::<W>::bytes(flat) + workgroup_bytes(flat)
    }

    /// Waves that wait for each other keep their registers meanwhile, and an item's first wave keeps its
    /// results until the others have ended.
    fn needs_all_waves(flat: &Flat) -> bool {
        flat.suspends || flat.kind != ProgramKind::Kernel
    }

    fn waves_of(flat: &Flat) -> usize {
        (flat.invocations() as usize).div_ceil(W)
    }

    /// Gives a register the same value in all invocations. Once begun, and before it is run.
    pub(crate) fn set(&mut self, place: Place, value: u64) {
        self.waves.iter_mut().for_each(|wave| wave.set_lanes(place, iter::repeat(value)));
    }

    /// A register of the first invocation.
    pub(crate) fn get(&self, place: Place) -> u64 {
        self.waves.first().map_or(0, |wave| wave.get(place, 0))
    }

    /// Gets ready to run a workgroup from the start.
    pub(crate) fn begin(&mut self, workgroup: [u32; 3], grid: [u32; 3]) {
        (self.workgroup, self.grid) = (workgroup, grid);
        if let Some(memory) = &self.memory {
            memory.clear();
        }
        self.ended.fill(false);
        if self.whole {
            for (index, wave) in self.waves.iter_mut().enumerate() {
                wave.begin(lanes_of::<W>(&self.flat, index));
            }
        }
    }

    /// Runs until all invocations have ended, or wait for other workgroups.
    pub(crate) fn run(&mut self, poll: &mut Poll<'_>) -> (Progress, LocalTrap) {
        if self.whole { self.run_suspending(poll) } else { self.run_through(poll) }
    }

    fn run_through(&mut self, poll: &mut Poll<'_>) -> (Progress, LocalTrap) {
        let mut trap = None;
        let Some(wave) = self.waves.first_mut() else { return (Progress::Ended, None) };
        for index in 0..Self::waves_of(&self.flat) {
            if index > 0 && poll.stopped(u32::MAX) != 0 {
                return (Progress::Stopped, trap);
            }
            wave.begin(lanes_of::<W>(&self.flat, index));
            let first = (index * W) as u32;
            let env = Env { views: &self.views, workgroup: self.workgroup, grid: self.grid, first };
            run(wave, &env, poll);
            trap = trap.or_else(|| wave.first_trap().map(|(lane, code)| (first + lane, code)));
        }
        (Progress::Ended, trap)
    }

    fn run_suspending(&mut self, poll: &mut Poll<'_>) -> (Progress, LocalTrap) {
        let progress = loop {
            let mut waiting = false;
            let mut at_grid_barrier = false;
            let mut external = None;
            for (index, (wave, ended)) in self.waves.iter_mut().zip(&mut self.ended).enumerate() {
                if *ended {
                    continue;
                }
                let first = (index * W) as u32;
                let env = Env { views: &self.views, workgroup: self.workgroup, grid: self.grid, first };
                match run(wave, &env, poll) {
                    Exit::Ended => *ended = true,
                    Exit::WorkgroupBarrier => waiting = true,
                    Exit::GridBarrier => at_grid_barrier = true,
                    Exit::External(call) => {
                        waiting = true;
                        external = Some(call);
                    }
                }
            }
            // Barriers are uniform in a valid program, so waves never wait at different ones.
            if at_grid_barrier {
                break Progress::GridBarrier;
            } else if !waiting {
                break Progress::Ended;
            } else if poll.stopped(u32::MAX) != 0 {
                break Progress::Stopped;
            }
            if let Some(call) = external {
                self.call(call);
            }
        };
        (progress, first_trap(&self.waves))
    }
}

impl<const W: usize> Workgroup<W> {
    /// Calls an external function for which all waves wait. Those whose lanes were ended by a deadline have
    /// nothing to say about the arguments.
    fn call(&mut self, call: u32) {
        let flat = Arc::clone(&self.flat);
        let Some(call) = flat.calls.get(call as usize) else { return };
        let Some(external) = flat.externals.get(call.external) else { return };
        let present = |(wave, ended): (&Wave<W>, &bool)| {
            wave.first_active().filter(|_| !ended).map(|lane| {
                let arg = |&(place, ty)| literal(ty, wave.get(place, lane));
                call.args.iter().map(arg).collect::<Vec<_>>()
            })
        };
        let Some(args) = self.waves.iter().zip(&self.ended).find_map(present) else { return };
        let buffers: Vec<ExternalView<'_>> = call
            .buffers
            .iter()
            .zip(external.signature().buffers)
            .filter_map(|(&index, declared)| {
                Some(ExternalView::new(self.views.get(index)?, flat.buffers.get(index)?, declared.access))
            })
            .collect();
        let mut results = external.call(&args, &buffers).into_iter();
        for &(place, ty) in &call.results {
            let value = results.next().filter(|value| value.ty() == ty).unwrap_or(zero(ty));
            self.waves.iter_mut().for_each(|wave| wave.set_lanes(place, iter::repeat(bits(value))));
        }
    }
}

fn literal(ty: ScalarType, bits: u64) -> Literal {
    match ty {
        ScalarType::Bool => Literal::Bool(bits & 1 != 0),
        ScalarType::U32 => Literal::U32(bits as u32),
        ScalarType::I32 => Literal::I32(bits as i32),
        ScalarType::U64 => Literal::U64(bits),
        ScalarType::F32 => Literal::F32(bits as u32),
    }
}

fn bits(value: Literal) -> u64 {
    match value {
        Literal::Bool(v) => u64::from(v),
        Literal::U32(v) | Literal::F32(v) => u64::from(v),
        Literal::I32(v) => u64::from(v as u32),
        Literal::U64(v) => v,
    }
}

/// The trap of the first invocation that trapped among consecutive waves.
fn first_trap<const W: usize>(waves: &[Wave<W>]) -> LocalTrap {
    (0_u32..)
        .zip(waves)
        .find_map(|(index, wave)| wave.first_trap().map(|(lane, code)| (index * W as u32 + lane, code)))
}

fn lanes_of<const W: usize>(flat: &Flat, wave: usize) -> u32 {
    let first = (wave * W) as u32;
    flat.invocations().saturating_sub(first).min(W as u32)
}

/// Allocates the workgroup buffers of a program; yields each with its offset.
#[expect(clippy::type_complexity, reason = "used once, right above")]
fn workgroup_memory(flat: &Flat) -> Option<(Option<Arc<Memory>>, Vec<(usize, u64)>)> {
    let mut end = 0;
    let mut layout = Vec::new();
    for (index, decl) in flat.buffers.iter().enumerate() {
        if decl.space == MemorySpace::Workgroup {
            layout.push((index, end));
            end += (u64::from(decl.len) * decl.element.size() as u64).next_multiple_of(8);
        }
    }
    if layout.is_empty() {
        return Some((None, layout));
    }
    Some((Some(Arc::new(Memory::zeroed(end, None)?)), layout))
}

fn workgroup_bytes(flat: &Flat) -> u64 {
    let buffers = flat.buffers.iter().filter(|decl| decl.space == MemorySpace::Workgroup);
    buffers.map(|decl| (u64::from(decl.len) * decl.element.size() as u64).next_multiple_of(8)).sum()
}
