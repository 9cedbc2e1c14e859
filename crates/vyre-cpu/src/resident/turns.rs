//! Which ring is served next.
//!
//! Rings are served by priority, the first one first, and none starves: a ring that had something ready while [`QUOTA`]
//! turns went to rings before it gets the next turn. So of several rings that always have something, each but the first
//! gets one turn in `QUOTA` and one for each of those, and the first gets the others. A turn is a claim of up to a wave of
//! items; an urgent item waits for what is being run when it comes, and for one turn of each ring below at most.

use vyre_driver::layout::MAX_RINGS;

/// Turns that may go to rings before one that is ready.
pub(super) const QUOTA: u32 = 8;

/// Whose turn it is, as one worker sees it.
#[derive(Default)]
pub(super) struct Turns {
    /// For each ring, turns that went to rings before it while it was ready.
    passed_over: [u32; MAX_RINGS],
}

impl Turns {
    /// The rings in the order in which to ask whether they have something: those passed over for long enough, then the
    /// others.
    pub(super) fn order(&self, rings: usize) -> impl Iterator<Item = usize> + use<> {
        let passed_over = self.passed_over;
        let is_due = move |ring: &usize| passed_over.get(*ring).is_some_and(|turns| *turns >= QUOTA);
        (0..rings).filter(is_due).chain((0..rings).filter(move |ring| !is_due(ring)))
    }

    /// Notes that a ring had its turn. `is_ready` says which of the others have something.
    pub(super) fn served(&mut self, ring: usize, is_ready: impl Fn(usize) -> bool, rings: usize) {
        for (other, turns) in self.passed_over.iter_mut().enumerate().take(rings).skip(ring) {
            *turns = if other != ring && is_ready(other) { turns.saturating_add(1) } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `turns` times; how often each ring, by what is ready at each turn.
    fn serve<const R: usize>(turns: &mut Turns, ready: &[[bool; R]]) -> Vec<Option<usize>> {
        let one = |ready: &[bool; R]| {
            let ring = turns.order(R).find(|ring| ready[*ring])?;
            turns.served(ring, |other| ready[other], R);
            Some(ring)
        };
        ready.iter().map(one).collect()
    }

    #[test]
    fn saturated_rings_have_the_shares_that_are_stated() {
        let served = serve(&mut Turns::default(), &[[true; 3]; 1000]);
        let of = |ring| served.iter().filter(|served| **served == Some(ring)).count();
        assert_eq!([of(0), of(1), of(2)], [800, 100, 100]);
        // Never longer without than stated.
        for window in served.windows(QUOTA as usize + 2) {
            assert!((0..3).all(|ring| window.contains(&Some(ring))), "{window:?}");
        }
        let served = serve(&mut Turns::default(), &[[true; 2]; 90]);
        assert_eq!(served.iter().filter(|served| **served == Some(1)).count(), 10);
    }

    #[test]
    fn an_urgent_item_waits_for_a_turn_of_each_ring_below_at_most() {
        let mut turns = Turns::default();
        // A flood below, for long.
        let served = serve(&mut turns, &[[false, true, true]; 100]);
        assert!(!served.contains(&Some(0)));
        let served = serve(&mut turns, &[[true, true, true]; 3]);
        assert!(served.contains(&Some(0)), "{served:?}");
        // Without anybody who is due it is served at once.
        let served = serve(&mut Turns::default(), &[[false, false, true], [true, false, true]]);
        assert_eq!(served, [Some(2), Some(0)]);
    }

    #[test]
    fn one_that_has_nothing_to_do_saves_up_no_turns() {
        let mut turns = Turns::default();
        serve(&mut turns, &[[true, true]; QUOTA as usize]);
        serve(&mut turns, &[[true, false]]);
        assert_eq!(serve(&mut turns, &[[true, true]; QUOTA as usize]), [Some(0); QUOTA as usize]);
    }
}
