//! Running flat programs, a wave of up to `W` lanes at a time.
//!
//! A wave executes one instruction for all its lanes before the next. Registers are arrays over the lanes, so
//! an instruction is a short loop that the compiler turns into vector code, and its dispatch is paid once for
//! all lanes. Lanes that took another way are masked: pure instructions compute them anyway and nobody looks,
//! stores and atomics skip them.
//!
//! What follows for programs: the lanes of one wave make no progress independently of each other. A lane that
//! spins until another lane of its wave acts spins until its deadline, as it would on many GPUs.
//!
//! The one room with `unsafe` on registers. It is sound because a [`Flat`](crate::flat::Flat) is verified
//! before a wave is made for it, and a wave keeps its `Flat`.

mod alu;
mod memory;
mod run;
mod subgroup;
mod wave;
mod workgroup;

pub(crate) use run::{Env, Exit, run};
pub(crate) use wave::Wave;
pub(crate) use workgroup::{Progress, Workgroup};

use crate::flat::Flat;

/// How many back edges and wave starts pass, on average, between two looks at the clock and the abort flag.
const POLL_INTERVAL: u32 = 256;

/// Asks, now and then, whether to stop.
pub(crate) struct Poll<'s> {
    countdown: u32,
    /// State of the generator that varies the interval.
    seed: u32,
    /// Given the lanes that are about to go on, says which of them stop.
    stop: &'s dyn Fn(u32) -> u32,
}

impl<'s> Poll<'s> {
    pub(crate) fn new(stop: &'s dyn Fn(u32) -> u32) -> Poll<'s> {
        Poll { countdown: POLL_INTERVAL, seed: 0x9e37_79b9, stop }
    }

    /// Which of these lanes stop; looks only every [`POLL_INTERVAL`]th time or so.
    #[inline(always)]
    pub(crate) fn stopped(&mut self, lanes: u32) -> u32 {
        self.countdown -= 1;
        if self.countdown == 0 { self.look(lanes) } else { 0 }
    }

    #[cold]
    fn look(&mut self, lanes: u32) -> u32 {
        let stopped = (self.stop)(lanes);
        // Xorshift (Marsaglia 2003). A steady interval could fall in step with lanes that take turns, and
        // whoever counts the time of each lane would always meet the same one.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 17;
        self.seed ^= self.seed << 5;
        // After a stop every further question is answered at once.
        self.countdown = if stopped == 0 { POLL_INTERVAL / 2 + self.seed % POLL_INTERVAL } else { 1 };
        stopped
    }
}

/// The widest wave, and the size of a subgroup.
pub(crate) const MAX_WIDTH: u32 = 32;

/// How many lanes a wave has: the executor exists for each of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Width {
    /// One lane: no vectors, least latency.
    One,
    /// Eight.
    Eight,
    /// [`MAX_WIDTH`].
    Full,
}

impl Width {
    /// The widest of at most so many lanes.
    pub(crate) const fn within(lanes: u32) -> Width {
        match lanes {
            0..8 => Width::One,
            8..MAX_WIDTH => Width::Eight,
            _ => Width::Full,
        }
    }

    /// The narrowest that holds so many invocations, or this one.
    pub(crate) fn for_invocations(self, invocations: u32) -> Width {
        let enough = match invocations {
            0..=1 => Width::One,
            2..=8 => Width::Eight,
            _ => Width::Full,
        };
        enough.min(self)
    }

    /// The width for a program: a subgroup is a wave of full width, however few lanes are present.
    pub(crate) fn for_program(self, flat: &Flat) -> Width {
        if flat.subgroups { Width::Full } else { self.for_invocations(flat.invocations()) }
    }

    pub(crate) const fn lanes(self) -> u32 {
        match self {
            Width::One => 1,
            Width::Eight => 8,
            Width::Full => MAX_WIDTH,
        }
    }
}
