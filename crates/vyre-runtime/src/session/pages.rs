//! The d2h regions that a session has had, and which of them is next.
//!
//! The ring keeps every one of them mapped, because a thread may be looking at one, so they are used again. What an
//! incarnation stores must never be taken for the next one's: a region is used again only when nothing that was given
//! it can be writing to it.

use vyre_driver::region::SessionRegions;

use super::shared::ring_error;
use crate::error::MegakernelError;

/// The regions beside the current one.
#[derive(Default)]
pub(super) struct Pages {
    /// Kernels had them that left by themselves.
    left: Vec<SessionRegions>,
    /// A lost device had them, and may be writing to them still.
    lost: Vec<SessionRegions>,
    /// No device that there is has had them.
    unknown: Vec<SessionRegions>,
}

impl Pages {
    /// Turns from one region to the next, without a trace of earlier incarnations.
    pub(super) fn turn(
        &mut self,
        current: &mut SessionRegions,
        left_by_itself: bool,
    ) -> Result<(), MegakernelError> {
        // A device that is being lost may write to any that it was ever given.
        let known = if left_by_itself { self.left.pop() } else { None };
        let next = match known.or_else(|| self.unknown.pop()) {
            Some(regions) => {
                let zeros = vec![0; usize::try_from(regions.d2h.len()).unwrap_or(0)];
                regions.d2h.copy_in(0, &zeros).map_err(ring_error("clear the d2h region"))?;
                regions
            }
            None => current.fresh_d2h().map_err(ring_error("make a d2h region"))?,
        };
        let old = std::mem::replace(current, next);
        if left_by_itself { &mut self.left } else { &mut self.lost }.push(old);
        Ok(())
    }

    /// The lost device is gone, and another one in its place.
    pub(super) fn device_is_gone(&mut self) {
        self.unknown.append(&mut self.lost);
    }
}

#[cfg(test)]
mod tests {
    use vyre_driver::layout::RegionConfig;

    use super::*;

    /// A session's regions, and all that its kernels have been given.
    struct Regions {
        current: SessionRegions,
        pages: Pages,
        given: Vec<SessionRegions>,
    }

    impl Regions {
        fn new() -> Regions {
            let current = SessionRegions::create(&RegionConfig::new(64)).expect("regions");
            Regions { given: vec![current.clone()], current, pages: Pages::default() }
        }

        /// Turns, and says whether the next region was one of the last `known` that were given.
        fn turn(&mut self, left_by_itself: bool, known: usize) -> bool {
            self.current.d2h.copy_in(0, &[7; 100]).expect("inside");
            self.pages.turn(&mut self.current, left_by_itself).expect("turned");
            let mut bytes = [1; 100];
            self.current.d2h.copy_out(0, &mut bytes).expect("inside");
            assert_eq!(bytes, [0; 100], "a trace of an earlier incarnation");
            let last = &self.given[self.given.len() - known.min(self.given.len())..];
            let is_known =
                last.iter().any(|given| given.d2h.is_same_memory(&self.current.d2h).expect("known"));
            self.given.push(self.current.clone());
            is_known
        }

        fn distinct(&self) -> usize {
            let mut distinct: Vec<&SessionRegions> = Vec::new();
            for regions in &self.given {
                if !distinct.iter().any(|known| known.d2h.is_same_memory(&regions.d2h).expect("known")) {
                    distinct.push(regions);
                }
            }
            distinct.len()
        }
    }

    #[test]
    fn restarts_and_losses_without_end_need_three_regions() {
        let mut regions = Regions::new();
        for round in 0..100 {
            // Restarts, as many as it takes for every order of the regions.
            for _ in 0..round % 4 {
                regions.turn(true, 1);
            }
            regions.turn(false, 1);
            regions.pages.device_is_gone();
        }
        assert!(regions.distinct() <= 3, "{} regions", regions.distinct());
    }

    #[test]
    fn no_region_of_a_device_that_may_still_write_is_used_again() {
        let mut regions = Regions::new();
        // How many turns ago the device began: its first region is the current one.
        let mut given = 1;
        for round in 0..60 {
            let losses = [0, 0, 1, 0, 2, 0][round % 6];
            if losses == 0 {
                regions.turn(true, 1);
                given += 1;
                continue;
            }
            for loss in 0..losses {
                assert!(!regions.turn(false, given + loss), "round {round}");
            }
            regions.pages.device_is_gone();
            given = 1;
        }
    }
}
