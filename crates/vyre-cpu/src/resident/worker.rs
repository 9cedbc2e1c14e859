//! A worker's loop: claim, run, complete; look after what is parked; sleep when there is nothing.

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::protocol::{Fault, flags};
use vyre_driver::ring::{ClaimedTicket, Completion, SlotImage};
use vyre_driver::view::InFlight;
use vyre_driver::wait::RECHECK;

use super::kernel::{Phase, Shared};
use super::parking::Held;
use super::ring::{Head, Kind, Ring};
use super::runner::{BATCH, Outcome, Runner, was_stopped};
use super::turns::Turns;

/// How often an idle worker looks again before it lets other threads run, and then before it sleeps.
const SPINS: u32 = 64;
const YIELDS: u32 = 16;

/// How often all workers sleep on the doorbell, which means a look every 100 us, before all but the first
/// nap instead. The first one rouses the others when there is work again.
const WATCHES: u32 = 100;

/// The longest a worker sleeps.
const NAP: Duration = Duration::from_millis(1);

/// What a turn of the loop achieved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Something was completed or claimed.
    Progress,
    /// Items were run that want to be run again, and nothing else.
    Requeued,
    /// Nothing could be done.
    Idle,
}

pub(super) struct Worker {
    number: u32,
    shared: Arc<Shared>,
    runner: Runner,
    images: [SlotImage; BATCH],
    items: Vec<(u64, SlotImage)>,
    held: Vec<Held>,
    outcomes: Vec<Outcome>,
    /// Whose turn it is to be claimed from, and to be run again.
    claims: Turns,
    runs: Turns,
    /// A shutdown holds back its ring.
    held_back: bool,
}

impl Worker {
    pub(super) fn new(number: u32, shared: Arc<Shared>) -> Worker {
        Worker {
            number,
            shared,
            runner: Runner::default(),
            images: [SlotImage::default(); BATCH],
            items: Vec::with_capacity(BATCH),
            held: Vec::with_capacity(BATCH),
            outcomes: Vec::with_capacity(BATCH),
            claims: Turns::default(),
            runs: Turns::default(),
            held_back: false,
        }
    }

    /// Works until the kernel leaves.
    pub(super) fn run(mut self) {
        let mut idle = 0_u32;
        loop {
            let phase = self.shared.control.phase();
            if phase == Phase::Aborting {
                return;
            }
            let mut turn = Turn::Idle;
            if phase == Phase::Running {
                turn = self.claim_and_run();
            }
            match self.run_ready() {
                Turn::Progress => turn = Turn::Progress,
                Turn::Requeued if turn == Turn::Idle => turn = Turn::Requeued,
                _ => {}
            }
            // What asked the host for something has run: it ends by the answer, or would run twice.
            if phase <= Phase::Quiescing && self.tend() {
                turn = Turn::Progress;
            }
            match turn {
                Turn::Progress => {
                    if idle > SPINS {
                        self.shared.control.rouse();
                    }
                    idle = 0;
                }
                // Whoever runs again and again waits for something that others do: let them.
                Turn::Requeued => {
                    idle = 0;
                    std::thread::yield_now();
                }
                Turn::Idle if phase == Phase::Quiescing && self.shared.parking.awaits_host() => {
                    self.shared.control.nap(RECHECK);
                }
                Turn::Idle if phase != Phase::Running => return,
                Turn::Idle => {
                    idle = idle.saturating_add(1);
                    self.rest(idle);
                }
            }
        }
    }

    fn rest(&self, idle: u32) {
        if idle <= SPINS {
            std::hint::spin_loop();
        } else if idle <= SPINS + YIELDS {
            std::thread::yield_now();
        } else {
            let shared = &self.shared;
            if idle > SPINS + YIELDS + 1 {
                // Not before the first nap: items that come one by one would pay for a copy each.
                shared.mirrors.copy_if_stale(&shared.view);
            }
            if idle > SPINS + YIELDS + WATCHES && self.number > 0 {
                shared.control.nap(NAP);
                return;
            }
            shared.idle.park(NAP, || {
                let claimable = !self.held_back && shared.rings.iter().any(Ring::is_ready);
                claimable || shared.parking.has_ready() || shared.control.phase() != Phase::Running
            });
        }
    }

    /// Claims from the ring whose turn it is of those that have something.
    fn claim_and_run(&mut self) -> Turn {
        let shared = Arc::clone(&self.shared);
        self.held_back = false;
        let count = shared.rings.len();
        let is_ready = |ring: usize| shared.rings.get(ring).is_some_and(Ring::is_ready);
        for index in self.claims.order(count) {
            let Some(ring) = shared.rings.get(index) else { continue };
            match ring.claim(&mut self.images) {
                Head::Plain(claims) => {
                    self.claims.served(index, is_ready, count);
                    let images = self.images.iter().copied();
                    self.held.extend(claims.zip(images).map(|(ticket, image)| Held {
                        ring: index,
                        ticket,
                        image,
                        by_workgroup: false,
                    }));
                    return self.run_held();
                }
                Head::Fence(claims) => {
                    self.claims.served(index, is_ready, count);
                    for (ticket, image) in claims.zip(self.images) {
                        let held = Held { ring: index, ticket, image, by_workgroup: false };
                        shared.parking.park_fence(&shared.rings, held);
                    }
                    return Turn::Progress;
                }
                Head::Shutdown => {
                    self.held_back = true;
                    if self.shut_down(index) {
                        return Turn::Progress;
                    }
                }
                Head::Empty => {}
            }
        }
        Turn::Idle
    }

    /// Runs the shutdown at the head of a ring if everything before it is complete.
    fn shut_down(&mut self, index: usize) -> bool {
        let shared = Arc::clone(&self.shared);
        // One worker at a time: the check and the claim are one step.
        let Ok(_only) = shared.control.shutting_down.try_lock() else { return false };
        let others = shared.rings.iter().enumerate().filter(|(other, _)| *other != index);
        let mut everything = shared.rings.get(index).into_iter().chain(others.map(|(_, ring)| ring));
        let empty = |ring: &Ring| ring.index as usize == index || !ring.is_ready();
        if !everything.all(|ring| empty(ring) && ring.is_drained()) {
            return false;
        }
        let Some(claims) = shared.rings.get(index).and_then(|ring| ring.claim_shutdown(&mut self.images))
        else {
            return false;
        };
        for (ticket, image) in claims.zip(self.images) {
            self.held.push(Held { ring: index, ticket, image, by_workgroup: false });
        }
        self.run_held();
        shared.control.advance(Phase::ShutDown);
        true
    }

    fn run_ready(&mut self) -> Turn {
        self.shared.parking.take_ready(BATCH, &mut self.runs, &mut self.held);
        if self.held.is_empty() { Turn::Idle } else { self.run_held() }
    }

    /// Runs the items held and does with each what its outcome says.
    fn run_held(&mut self) -> Turn {
        let shared = Arc::clone(&self.shared);
        let Some(ring) = self.held.first().and_then(|first| shared.rings.get(first.ring)) else {
            return Turn::Idle;
        };
        let abandoned = ring.cancellations.any() && self.abandon_cancelled(&shared, ring);
        let (Some(first), Some(last)) = (self.held.first(), self.held.last()) else {
            return Turn::Progress;
        };
        let by_workgroup = first.by_workgroup;
        let first = first.ticket.position();
        let count = last.ticket.position().wrapping_sub(first).wrapping_add(1) as u32;
        let busy = InFlight { ring: ring.index, first, count };
        self.say(Some(busy));
        shared.mirrors.begin_change();
        self.items.clear();
        self.items.extend(self.held.iter().map(|held| (held.ticket.position(), held.image)));
        let stop = || shared.control.phase() == Phase::Aborting || shared.view.is_aborted().unwrap_or(false);
        self.outcomes.clear();
        if by_workgroup {
            for item in &self.items {
                self.outcomes.push(self.runner.run_workgroup(&shared.programs, item, &stop));
            }
        } else {
            self.runner.run_lanes(&shared.programs, &self.items, &stop, &mut self.outcomes);
        }
        shared.mirrors.end_change();
        let mut turn = if abandoned { Turn::Progress } else { Turn::Requeued };
        let aborting = shared.control.phase() == Phase::Aborting;
        for (held, outcome) in self.held.drain(..).zip(self.outcomes.drain(..)) {
            // What was cut short to leave is not at fault: it stays unacknowledged.
            if aborting && was_stopped(&outcome) {
                continue;
            }
            match outcome {
                Outcome::Ended(completion) => {
                    complete(&shared, held.ring, held.ticket, completion);
                    turn = Turn::Progress;
                }
                Outcome::Again(args) => {
                    let mut held = held;
                    held.image.args = args;
                    held.image.flags |= flags::RESUMED as u16;
                    held.by_workgroup = shared.programs.is_for_workgroup(held.image.opcode);
                    shared.parking.push_ready(held);
                }
                Outcome::WaitsFor(request) => {
                    shared.parking.park_io(request, held);
                    turn = Turn::Progress;
                }
            }
        }
        if turn == Turn::Progress {
            shared.completed.notify();
        }
        self.say(None);
        turn
    }

    /// Ends the items held that have not begun and that the host would rather not see begun; says whether there were any.
    #[cold]
    fn abandon_cancelled(&mut self, shared: &Shared, ring: &Ring) -> bool {
        let is_cancelled = |held: &mut Held| {
            let has_begun = u32::from(held.image.flags) & flags::RESUMED != 0;
            let stops = Kind::of(&held.image) == Kind::Shutdown;
            !has_begun && !stops && ring.cancellations.is_asked(held.ticket.position())
        };
        let mut any = false;
        for held in self.held.extract_if(.., is_cancelled) {
            complete(shared, held.ring, held.ticket, Completion::fault(Fault::Abandoned));
            any = true;
        }
        if any {
            shared.completed.notify();
        }
        any
    }

    /// Looks after what is parked; says whether something moved.
    fn tend(&self) -> bool {
        let shared = &self.shared;
        let complete = |held: Held, completion| complete(shared, held.ring, held.ticket, completion);
        let moved = shared.parking.tend(&shared.rings, &shared.io, complete);
        if moved {
            // The host may have something to take, or a request to serve.
            shared.completed.notify();
        }
        moved
    }

    fn say(&self, busy: Option<InFlight>) {
        if let Err(error) = self.shared.view.set_in_flight(self.number, busy) {
            tracing::error!(%error, worker = self.number, "no in-flight word");
        }
    }
}

pub(super) fn complete(shared: &Shared, ring: usize, ticket: ClaimedTicket, completion: Completion) {
    let position = ticket.position();
    let consumer = shared.rings.get(ring).map(|ring| &ring.consumer);
    if let Some(Err(error)) = consumer.map(|consumer| consumer.complete(ticket, completion)) {
        tracing::error!(%error, position, "an item could not be completed");
    }
}
