//! Pieces of a file, and how their results are joined to what one run over the whole file would say.
//!
//! The pieces of a file are stepped at the same time, so each but the first has to guess the state it begins
//! in. It does so by a *warm-up*: it starts a little before its border in the state of a search that begins
//! there, and reports the state it was in at the border. Most rules forget what lies so far back, so the
//! guess is mostly right. A [`Chain`] walks along the pieces with the true state; where a guess was wrong it
//! asks for another run from the true state. As true states follow only from true states, the outcome is
//! exact whatever the rules are.
//!
//! A rule that remembers for ever makes every guess behind its first match wrong. So the runs asked for
//! double in length as long as the guesses keep being wrong.

use super::automaton::{Automaton, State};

/// Bytes of a piece: what one item steps, apart from its warm-up.
pub const PIECE_BYTES: usize = 1024;

/// Bytes of a warm-up at most.
pub const WARM_UP_BYTES: usize = 64;

/// Pieces that are run again as one item at most.
const MAX_RERUN: usize = 32;

/// What one item steps over, in bytes of a segment: the part of a file that is on the device at a time, led
/// by up to [`WARM_UP_BYTES`] bytes of what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it begins, warm-up not counted.
    pub(super) start: usize,
    /// Bytes, warm-up not counted.
    pub(super) len: usize,
    /// Bytes of warm-up before it.
    pub(super) warm_up: usize,
}

/// How many pieces a segment with so many bytes behind its lead has.
pub(super) fn count(len: usize) -> usize {
    len.div_ceil(PIECE_BYTES)
}

/// Piece `index` of a segment of `lead + len` bytes.
pub(super) fn piece(lead: usize, len: usize, index: usize) -> Piece {
    let start = lead + index * PIECE_BYTES;
    Piece {
        start,
        len: (lead + len).saturating_sub(start).min(PIECE_BYTES),
        warm_up: start.min(WARM_UP_BYTES),
    }
}

/// What an item reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The state after the last byte.
    pub(super) exit: State,
    /// The state at the border, after the warm-up.
    pub(super) border: State,
    /// The rules accepted behind the border.
    pub(super) accepted: u32,
}

impl Outcome {
    /// From an item's result.
    pub(super) fn from_result(result: u64) -> Outcome {
        Outcome { exit: result as State, border: (result >> 16) as State, accepted: (result >> 32) as u32 }
    }
}

/// A run over pieces `first..first + pieces` from `entry` is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rerun {
    pub(super) first: usize,
    pub(super) pieces: usize,
    pub(super) entry: State,
}

/// The true state of one group's automaton along one file.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    state: State,
    accepted: u32,
    /// Once all of these are accepted, nothing more can be learned.
    all: u32,
    /// Pieces that the next rerun takes.
    width: usize,
}

impl Chain {
    /// At the start of a file, for a group of `rules` rules.
    pub(super) fn new(automaton: &Automaton, rules: usize) -> Chain {
        let all = u32::MAX.checked_shr(u32::BITS - (rules as u32).min(u32::BITS)).unwrap_or(0);
        Chain { state: automaton.start(None), accepted: 0, all, width: 1 }
    }

    /// Walks along the outcomes of a segment's pieces from `next` on, until one of them needs another run or
    /// all are used up.
    pub(super) fn advance(&mut self, outcomes: &[Outcome], next: &mut usize) -> Option<Rerun> {
        while let Some(outcome) = outcomes.get(*next) {
            if self.accepted == self.all {
                *next = outcomes.len();
                return None;
            }
            if outcome.border != self.state {
                let pieces = self.width.min(outcomes.len() - *next);
                self.width = (2 * self.width).min(MAX_RERUN);
                return Some(Rerun { first: *next, pieces, entry: self.state });
            }
            self.width = 1;
            self.follow(outcome);
            *next += 1;
        }
        None
    }

    /// Takes the outcome of the rerun that was asked for last.
    pub(super) fn rerun(&mut self, rerun: Rerun, outcome: &Outcome, next: &mut usize) {
        self.follow(outcome);
        *next = rerun.first + rerun.pieces;
    }

    /// The rules accepted in the file, which ends here.
    pub(super) fn finish(&self, automaton: &Automaton) -> u32 {
        self.accepted | automaton.end_mask(self.state)
    }

    fn follow(&mut self, outcome: &Outcome) {
        self.state = outcome.exit;
        self.accepted |= outcome.accepted;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use regex_automata::util::syntax;

    use super::*;

    /// Some that forget at once, some that remember for long, one that remembers for ever.
    const PATTERNS: [&str; 5] = ["ab", r"(?m)^a+b", r"(?s-u)BEGIN.*END", r"(?-u:\b)b{100}", "xa{200}x"];

    fn outcome(automaton: &Automaton, entry: State, bytes: &[u8], warm_up: usize) -> Outcome {
        let (border, _) = automaton.run(entry, &bytes[..warm_up]);
        let (exit, accepted) = automaton.run(border, &bytes[warm_up..]);
        Outcome { exit, border, accepted }
    }

    /// What pieces and reruns make of a file that is cut into segments of so many pieces.
    fn by_pieces(automaton: &Automaton, file: &[u8], segment_pieces: usize) -> (u32, usize) {
        let (mut chain, mut reruns) = (Chain::new(automaton, PATTERNS.len()), 0);
        let mut begin = 0;
        while begin < file.len() {
            let end = file.len().min(begin + segment_pieces * PIECE_BYTES);
            let lead = begin.min(WARM_UP_BYTES + 4);
            let segment = &file[begin - lead..end];
            let outcomes: Vec<_> = (0..count(end - begin))
                .map(|index| {
                    let piece = piece(lead, end - begin, index);
                    let first = piece.start - piece.warm_up;
                    let before = first.checked_sub(1).map(|at| segment[at]);
                    let bytes = &segment[first..piece.start + piece.len];
                    outcome(automaton, automaton.start(before), bytes, piece.warm_up)
                })
                .collect();
            let mut next = 0;
            while let Some(rerun) = chain.advance(&outcomes, &mut next) {
                let first = piece(lead, end - begin, rerun.first);
                let last = piece(lead, end - begin, rerun.first + rerun.pieces - 1);
                let bytes = &segment[first.start..last.start + last.len];
                chain.rerun(rerun, &outcome(automaton, rerun.entry, bytes, 0), &mut next);
                reruns += 1;
            }
            begin = end;
        }
        (chain.finish(automaton), reruns)
    }

    static AUTOMATON: LazyLock<Automaton> = LazyLock::new(|| {
        let config = syntax::Config::new().utf8(false);
        let hirs: Vec<_> =
            PATTERNS.iter().map(|p| syntax::parse_with(p, &config).expect("a pattern")).collect();
        Automaton::build(&hirs, 1 << 22).expect("small enough")
    });

    #[test]
    fn pieces_cover_every_byte_once() {
        for (lead, len) in [(0, 1), (0, 1023), (0, 1024), (0, 1025), (68, 1), (68, 5000)] {
            let mut at = lead;
            for index in 0..count(len) {
                let piece = piece(lead, len, index);
                assert_eq!(piece.start, at);
                assert!(
                    (1..=PIECE_BYTES).contains(&piece.len) && piece.warm_up <= piece.start.min(WARM_UP_BYTES)
                );
                at += piece.len;
            }
            assert_eq!(at, lead + len);
        }
    }

    #[test]
    fn a_rule_that_remembers_is_found_with_few_reruns() {
        let automaton = &AUTOMATON;
        let mut file = b"BEGIN".to_vec();
        file.resize(100 * 1024, b'x');
        assert_eq!(by_pieces(automaton, &file, usize::MAX / PIECE_BYTES).0, 0);
        file.extend(b"END");
        let (accepted, reruns) = by_pieces(automaton, &file, usize::MAX / PIECE_BYTES);
        assert_eq!(accepted, 1 << 2);
        assert!((1..12).contains(&reruns), "{reruns} reruns for 101 pieces");
        assert_eq!(by_pieces(automaton, &file, 7).0, 1 << 2);
    }

    proptest! {
        #[test]
        fn pieces_and_reruns_equal_one_run(
            parts in proptest::collection::vec(
                (prop_oneof![Just("a"), Just("b"), Just("ab"), Just("\n"), Just("x"), Just("BEGIN"), Just("END")], 1..1500_usize),
                0..8,
            ),
            segment_pieces in 1..4_usize,
        ) {
            let automaton = &AUTOMATON;
            let file: Vec<u8> = parts.iter().flat_map(|(part, times)| part.repeat(*times).into_bytes()).collect();
            let (state, accepted) = automaton.run(automaton.start(None), &file);
            let expected = accepted | automaton.end_mask(state);
            prop_assert_eq!(by_pieces(automaton, &file, segment_pieces).0, expected);
        }
    }
}
