//! The executor's loop, and control flow.

use vyre_driver::protocol::TRAP_DEADLINE;

use super::alu::lanes_where;
use super::wave::{Bank, Registers, Wave};
use super::{MAX_WIDTH, Poll};
use crate::flat::{Code, Flat, Inst};
use crate::memory::View;

/// Where a wave runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Env<'e> {
    /// One view for each declared buffer of the program, made for its element type.
    pub(crate) views: &'e [View],
    /// The workgroup's place in the grid.
    pub(crate) workgroup: [u32; 3],
    /// Workgroups in the grid.
    pub(crate) grid: [u32; 3],
    /// Linear local id of the wave's first lane.
    pub(crate) first: u32,
}

/// Why a wave stopped executing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All its lanes have ended.
    Ended,
    /// It waits for the others of its workgroup.
    WorkgroupBarrier,
    /// It waits for the others of the dispatch.
    GridBarrier,
    /// It waits for the others of its workgroup, and then for a call of an external function.
    External(u32),
}

/// Executes a wave from where it is until it ends or suspends itself. Lanes that are told to stop trap with
/// [`TRAP_DEADLINE`] at the back edge where they were asked; the others go on.
pub(crate) fn run<const W: usize>(wave: &mut Wave<W>, env: &Env<'_>, poll: &mut Poll<'_>) -> Exit {
    if env.views.len() < wave.flat.buffers.len() {
        // Without its buffers it cannot begin. The rooms above bind all of them.
        return Exit::Ended;
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features.
        return unsafe { run_avx2(wave, env, poll) };
    }
    execute(wave, env, poll)
}

/// The same code for processors with wider registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<const W: usize>(wave: &mut Wave<W>, env: &Env<'_>, poll: &mut Poll<'_>) -> Exit {
    execute(wave, env, poll)
}

#[inline(always)]
fn first_lane(lanes: u32) -> usize {
    lanes.trailing_zeros() as usize
}

#[inline(always)]
fn execute<const W: usize>(wave: &mut Wave<W>, env: &Env<'_>, poll: &mut Poll<'_>) -> Exit {
    let flat = std::sync::Arc::clone(&wave.flat);
    let code = flat.code.as_slice();
    let registers = wave.registers();
    let (mut at, mut active, mut alive) = (wave.at as usize, wave.active, wave.alive);
    let exit = loop {
        // SAFETY: verification says that the program starts, jumps, and falls through only to instructions
        // that exist.
        let inst = unsafe { code.get_unchecked(at) };
        at += 1;
        match inst.code {
            Code::Jump => at = inst.t as usize,
            Code::JumpIfNone => {
                if active == 0 {
                    at = inst.t as usize;
                }
            }
            Code::If => {
                let kept = active & registers.mask(inst.a);
                if kept == 0 {
                    at = inst.t as usize;
                } else {
                    registers.set_mask(inst.d, active);
                    active = kept;
                }
            }
            Code::IfElse => {
                let kept = active & registers.mask(inst.a);
                registers.set_mask(inst.d, active);
                registers.set_mask(inst.b, active & !kept);
                if kept == 0 {
                    at = inst.t as usize;
                } else {
                    active = kept;
                }
            }
            Code::Else => {
                active = registers.mask(inst.b);
                if active == 0 {
                    at = inst.t as usize;
                }
            }
            Code::EndIf => active = registers.mask(inst.a) & alive,
            Code::Restore => {
                active = registers.mask(inst.a) & registers.mask(inst.b) & alive;
                if active == 0 {
                    at = inst.t as usize;
                }
            }
            Code::Enter => {
                registers.set_mask(inst.d, active);
                registers.set_mask(inst.b, active);
            }
            Code::SaveExec => registers.set_mask(inst.d, active),
            Code::ClearM => registers.set_mask(inst.d, registers.mask(inst.d) & !active),
            Code::EndLanes => {
                alive &= !active;
                active = 0;
            }
            Code::WhileTest => {
                active &= registers.mask(inst.a);
                registers.set_mask(inst.b, active);
                if active == 0 {
                    at = inst.t as usize;
                }
            }
            Code::LoopBack => {
                active = registers.mask(inst.b) & alive;
                if active != 0 {
                    let stopped = poll.stopped(active) & active;
                    if stopped != 0 {
                        trap(wave.trap_state(), stopped, &[TRAP_DEADLINE; W]);
                        alive &= !stopped;
                        active &= !stopped;
                    }
                    if active != 0 {
                        at = inst.t as usize;
                    }
                }
            }
            Code::ForTest => {
                let (counter, end): (&[u32; W], &[u32; W]) = (registers.row(inst.a), registers.row(inst.b));
                active &= lanes_where::<W>(|lane| counter[lane] < end[lane]);
                registers.set_mask(inst.c, active);
                if active == 0 {
                    at = inst.t as usize;
                }
            }
            Code::ForNext => {
                active = registers.mask(inst.c) & alive & advance(&registers, inst);
                registers.set_mask(inst.c, active);
                if active != 0 {
                    let stopped = poll.stopped(active) & active;
                    if stopped != 0 {
                        trap(wave.trap_state(), stopped, &[TRAP_DEADLINE; W]);
                        alive &= !stopped;
                        active &= !stopped;
                    }
                    if active != 0 {
                        at = inst.t as usize;
                    }
                }
            }
            Code::Switch => {
                registers.set_mask(inst.b, active);
                resolve(&registers, &flat, inst, active);
                (at, active) = next_case(&registers, &flat, inst, inst.d);
            }
            Code::SwitchNext => (at, active) = next_case(&registers, &flat, inst, inst.a),
            Code::Call => {
                registers.set_mask(inst.d, at as u32);
                at = inst.t as usize;
            }
            Code::Ret => {
                active = registers.mask(inst.a) & alive;
                at = registers.mask(inst.b) as usize;
            }
            Code::Trap => {
                trap(wave.trap_state(), active, registers.row(inst.a));
                alive &= !active;
                active = 0;
            }
            Code::WorkgroupBarrier => break Exit::WorkgroupBarrier,
            Code::GridBarrier => break Exit::GridBarrier,
            Code::External => break Exit::External(inst.t),
            Code::End => break Exit::Ended,

            Code::LocalId
            | Code::GlobalId
            | Code::WorkgroupId
            | Code::NumWorkgroups
            | Code::SubgroupLane
            | Code::SubgroupId => {
                place(&registers, &flat, inst, env);
            }
            Code::BufferLen => {
                let d: &mut [u32; W] = registers.row_mut(inst.d);
                d.fill(env.views.get(usize::from(inst.c)).map_or(0, View::len));
            }

            Code::LoadU8
            | Code::LoadU16
            | Code::LoadW
            | Code::LoadL
            | Code::LoadF16
            | Code::LoadBF16
            | Code::StoreU8
            | Code::StoreU16
            | Code::StoreW
            | Code::StoreL
            | Code::StoreF16
            | Code::StoreBF16
            | Code::AtomicLoadW
            | Code::AtomicLoadL
            | Code::AtomicStoreW
            | Code::AtomicStoreL
            | Code::RmwW
            | Code::RmwL
            | Code::CompareExchangeW
            | Code::CompareExchangeL => registers.access(inst, active, env.views),

            Code::ShuffleW
            | Code::ShuffleL
            | Code::ShuffleM
            | Code::CombineW
            | Code::CombineL
            | Code::Ballot
            | Code::Any
            | Code::All => registers.communicate(inst, active),

            _ => registers.compute(inst, active),
        }
    };
    (wave.at, wave.active, wave.alive) = (at as u32, active, alive);
    exit
}

/// Notes that lanes trap, and with which codes.
#[cold]
fn trap<const W: usize>((trapped, codes): (&mut u32, &mut [u32; W]), lanes: u32, with: &[u32; W]) {
    for lane in 0..W {
        if lanes >> lane & 1 != 0 {
            codes[lane] = with[lane];
        }
    }
    *trapped |= lanes;
}

/// Adds the step to a loop's counter; yields the lanes where the loop goes on.
#[inline(always)]
fn advance<const W: usize>(registers: &Registers<W>, inst: &Inst) -> u32 {
    let counter: &mut [u32; W] = registers.row_mut(inst.d);
    let (step, end): (&[u32; W], &[u32; W]) = (registers.row(inst.a), registers.row(inst.b));
    for lane in 0..W {
        counter[lane] = counter[lane].wrapping_add(step[lane]);
    }
    // A counter that wrapped is below the step.
    lanes_where::<W>(|lane| (counter[lane] < end[lane]) & (counter[lane] >= step[lane]))
}

/// Finds the target of each active lane, once for each distinct value.
#[inline(always)]
fn resolve<const W: usize>(registers: &Registers<W>, flat: &Flat, inst: &Inst, active: u32) {
    let Some(table) = flat.tables.get(inst.t as usize) else { return };
    let (selector, targets): (&[u32; W], &mut [u32; W]) = (registers.row(inst.a), registers.row_mut(inst.d));
    let mut rest = active;
    while rest != 0 {
        let value = selector[first_lane(rest) % W];
        let target = table.target(value);
        let same = lanes_where::<W>(|lane| selector[lane] == value) & rest;
        for (lane, slot) in targets.iter_mut().enumerate() {
            *slot = if same & 1 << lane != 0 { target } else { *slot };
        }
        rest &= !same;
    }
}

/// Takes the lanes of the next target out of those still to do; yields the target and the lanes.
#[inline(always)]
fn next_case<const W: usize>(
    registers: &Registers<W>,
    flat: &Flat,
    inst: &Inst,
    targets: u16,
) -> (usize, u32) {
    let rest = registers.mask(inst.b);
    if rest == 0 {
        return (flat.tables.get(inst.t as usize).map_or(0, |table| table.end as usize), 0);
    }
    let targets: &[u32; W] = registers.row(targets);
    let target = targets[first_lane(rest) % W];
    let same = lanes_where::<W>(|lane| targets[lane] == target) & rest;
    registers.set_mask(inst.b, rest & !same);
    (target as usize, same)
}

/// Where in the grid each lane is, along one axis.
#[inline(always)]
fn place<const W: usize>(registers: &Registers<W>, flat: &Flat, inst: &Inst, env: &Env<'_>) {
    let d: &mut [u32; W] = registers.row_mut(inst.d);
    let axis = usize::from(inst.c) % 3;
    let size = flat.workgroup_size;
    let below: u32 = size.iter().take(axis).product();
    for (lane, value) in (0_u32..).zip(d.iter_mut()) {
        let local = (env.first + lane) / below.max(1) % size[axis].max(1);
        *value = match inst.code {
            Code::LocalId => local,
            Code::GlobalId => env.workgroup[axis].wrapping_mul(size[axis]).wrapping_add(local),
            Code::WorkgroupId => env.workgroup[axis],
            Code::SubgroupLane => lane,
            Code::SubgroupId => env.first / MAX_WIDTH,
            _ => env.grid[axis],
        };
    }
}
