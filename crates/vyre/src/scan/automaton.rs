//! One group of rules as one table: a dense multi-pattern DFA, renumbered for the megakernel.
//!
//! The DFA is unanchored and reports every pattern (not only the leftmost), so "the state after this byte
//! accepts expression r" holds somewhere in a file exactly if the regex r has a match there. As in every
//! DFA of `regex-automata`, acceptance is seen one byte late, or at the end of the input.
//!
//! States are numbered in the order of a breadth-first walk, so that the common ones share cache lines, with
//! all accepting states last, so that "accepts something" is one comparison.

use std::collections::HashMap;

use regex_automata::dfa::{Automaton as _, StartKind, dense};
use regex_automata::nfa::thompson::{self, WhichCaptures};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::hir::Hir;
use vyre_runtime::DfaTable;

/// Rules in one table at most: one bit of a `u32` each.
pub const MAX_GROUP_RULES: usize = 32;

/// States in one table at most, so that a state fits 16 bits.
pub const MAX_STATES: usize = 65_535;

/// The NFA and the working memory of one determinisation may take so many times the table's limit.
const WORKING_MEMORY: usize = 8;

/// A state of an [`Automaton`].
pub type State = u16;

/// A multi-pattern DFA in the numbering of the megakernel.
#[derive(Clone, Debug)]
pub struct Automaton {
    classes: [u8; 256],
    stride_log2: u32,
    next: Vec<State>,
    first_accepting: u32,
    accept_masks: Vec<u32>,
    end_masks: Vec<u32>,
    starts: Vec<State>,
}

impl Automaton {
    /// Builds the table of a group; bit `i` of a mask is expression `i`. `None` if the dense table would take
    /// more than `limit` bytes, or is past the limits of this module.
    pub(super) fn build(expressions: &[Hir], limit: usize) -> Option<Automaton> {
        if expressions.is_empty() || expressions.len() > MAX_GROUP_RULES {
            return None;
        }
        let nfa = thompson::Compiler::new()
            .configure(
                thompson::Config::new()
                    .utf8(false)
                    .which_captures(WhichCaptures::None)
                    .nfa_size_limit(Some(WORKING_MEMORY * limit)),
            )
            .build_many_from_hir(expressions)
            .ok()?;
        let dfa = dense::Builder::new()
            .configure(
                dense::Config::new()
                    .match_kind(MatchKind::All)
                    .start_kind(StartKind::Unanchored)
                    .accelerate(false)
                    .dfa_size_limit(Some(limit))
                    .determinize_size_limit(Some(WORKING_MEMORY * limit)),
            )
            .build_from_nfa(&nfa)
            .ok()?;
        renumber(&dfa)
    }

    /// The state before a piece of input, given the byte before it, for a search that begins there.
    pub fn start(&self, byte_before: Option<u8>) -> State {
        let slot = byte_before.map_or(256, usize::from);
        self.starts.get(slot).copied().unwrap_or_default()
    }

    /// The rules that match because the input ends in this state.
    pub fn end_mask(&self, state: State) -> u32 {
        self.end_masks.get(usize::from(state)).copied().unwrap_or_default()
    }

    /// The rules that a state accepts.
    pub fn accept_mask(&self, state: State) -> u32 {
        let accepting = u32::from(state).checked_sub(self.first_accepting);
        accepting.and_then(|at| self.accept_masks.get(at as usize)).copied().unwrap_or_default()
    }

    /// One step: what the megakernel computes, in plain Rust.
    pub fn step(&self, state: State, byte: u8) -> State {
        let class = usize::from(self.classes[usize::from(byte)]);
        self.next.get((usize::from(state) << self.stride_log2) + class).copied().unwrap_or_default()
    }

    /// Steps over all of `bytes`: the last state, and the rules accepted on the way.
    pub fn run(&self, entry: State, bytes: &[u8]) -> (State, u32) {
        bytes.iter().fold((entry, 0), |(state, mask), &byte| {
            let state = self.step(state, byte);
            (state, mask | self.accept_mask(state))
        })
    }

    /// The table as the megakernel takes it.
    pub(super) fn table(&self) -> DfaTable {
        let classes = usize::from(self.classes.iter().copied().max().unwrap_or(0)) + 1;
        let rows = self.next.chunks(1 << self.stride_log2);
        DfaTable {
            start: self.start(None).into(),
            classes: self.classes.map(u16::from),
            class_count: classes as u32,
            transitions: rows.flat_map(|row| row.iter().take(classes)).map(|&state| state.into()).collect(),
            accepts: self.accept_masks.clone(),
        }
    }

    /// How many states there are.
    pub fn states(&self) -> usize {
        self.end_masks.len()
    }

    /// Bytes of the table as stepped by the megakernel.
    pub fn table_bytes(&self) -> usize {
        4 * (256 + self.next.len() + self.accept_masks.len())
    }
}

/// Copies the reachable part of a dense DFA into the megakernel's numbering.
fn renumber(dfa: &dense::DFA<Vec<u32>>) -> Option<Automaton> {
    let mut classes = [0; 256];
    let mut representatives = Vec::new();
    for byte in 0..=u8::MAX {
        let class = dfa.byte_classes().get(byte);
        if usize::from(class) >= representatives.len() {
            representatives.push(byte);
        }
        classes[usize::from(byte)] = class;
    }
    let stride = representatives.len().next_power_of_two();

    // Breadth-first from the start states.
    let mut found = HashMap::new();
    let mut order: Vec<StateID> = Vec::new();
    let mut visit = |order: &mut Vec<StateID>, id: StateID| {
        let next = order.len();
        *found.entry(id).or_insert_with(|| {
            order.push(id);
            next
        })
    };
    let mut starts = Vec::with_capacity(257);
    for byte_before in (0..=u8::MAX).map(Some).chain([None]) {
        let config = start::Config::new().anchored(Anchored::No).look_behind(byte_before);
        starts.push(visit(&mut order, dfa.start_state(&config).ok()?));
    }
    let mut edges: Vec<usize> = Vec::new();
    let mut done = 0;
    while let Some(&id) = order.get(done) {
        if order.len() > MAX_STATES || dfa.is_quit_state(id) {
            return None;
        }
        edges.extend(representatives.iter().map(|&byte| visit(&mut order, dfa.next_state(id, byte))));
        done += 1;
    }

    // Accepting states last, the order otherwise kept.
    let (accepting, plain): (Vec<usize>, Vec<usize>) =
        (0..order.len()).partition(|&at| order.get(at).is_some_and(|&id| dfa.is_match_state(id)));
    let first_accepting = u32::try_from(plain.len()).ok()?;
    let mut number: Vec<State> = vec![0; order.len()];
    let sorted: Vec<usize> = plain.into_iter().chain(accepting).collect();
    for (new, &old) in sorted.iter().enumerate() {
        *number.get_mut(old)? = State::try_from(new).ok()?;
    }

    let mut automaton = Automaton {
        classes,
        stride_log2: stride.trailing_zeros(),
        next: vec![0; stride * order.len()],
        first_accepting,
        accept_masks: Vec::new(),
        end_masks: Vec::with_capacity(order.len()),
        starts: starts.into_iter().map(|at| number.get(at).copied()).collect::<Option<_>>()?,
    };
    for (new, &old) in sorted.iter().enumerate() {
        let id = *order.get(old)?;
        let row = edges.get(old * representatives.len()..(old + 1) * representatives.len())?;
        for (class, &target) in row.iter().enumerate() {
            *automaton.next.get_mut(new * stride + class)? = *number.get(target)?;
        }
        if dfa.is_match_state(id) {
            automaton.accept_masks.push(pattern_mask(dfa, id));
        }
        automaton.end_masks.push(pattern_mask(dfa, dfa.next_eoi_state(id)));
    }
    Some(automaton)
}

fn pattern_mask(dfa: &dense::DFA<Vec<u32>>, id: StateID) -> u32 {
    if !dfa.is_match_state(id) {
        return 0;
    }
    (0..dfa.match_len(id))
        .fold(0, |mask, at| mask | 1u32.checked_shl(dfa.match_pattern(id, at).as_u32()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use regex::bytes::Regex;
    use regex_automata::util::syntax;

    use super::*;

    const PATTERNS: [&str; 13] = [
        "",
        r"(?Rm)^a$",
        "ab",
        "(?i)AB?c",
        "^a",
        "c$",
        "(?m)^b",
        "(?m)a$",
        r"(?-u:\b)a",
        r"b(?-u:\b)",
        r"(?s-u)a.*b.*c",
        r"\Aa+\z",
        "é|[^é]a",
    ];

    fn build(patterns: &[&str]) -> Automaton {
        let config = syntax::Config::new().utf8(false);
        let hirs: Vec<_> =
            patterns.iter().map(|p| syntax::parse_with(p, &config).expect("a pattern")).collect();
        Automaton::build(&hirs, 1 << 20).expect("small enough")
    }

    static AUTOMATON: LazyLock<(Automaton, Vec<Regex>)> = LazyLock::new(|| {
        (build(&PATTERNS), PATTERNS.iter().map(|p| Regex::new(p).expect("a pattern")).collect())
    });

    proptest! {
        #[test]
        fn accepts_what_the_regexes_match(
            input in proptest::collection::vec(prop_oneof![
                Just(b'a'), Just(b'b'), Just(b'c'), Just(b'A'), Just(b'\n'), Just(b'\r'), Just(0xC3), Just(0xA9), any::<u8>(),
            ], 0..20),
        ) {
            let (automaton, regexes) = &*AUTOMATON;
            let (state, accepted) = automaton.run(automaton.start(None), &input);
            let accepted = accepted | automaton.end_mask(state);
            for (bit, regex) in regexes.iter().enumerate() {
                prop_assert_eq!(accepted >> bit & 1 != 0, regex.is_match(&input), "{} on {:?}", regex, input);
            }
        }
    }

    #[test]
    fn limits_are_kept() {
        let config = syntax::Config::new().utf8(false);
        let a = syntax::parse_with("a", &config).expect("a pattern");
        assert!(Automaton::build(&[], 1 << 20).is_none());
        assert!(Automaton::build(&vec![a.clone(); MAX_GROUP_RULES], 1 << 20).is_some());
        assert!(Automaton::build(&vec![a.clone(); MAX_GROUP_RULES + 1], 1 << 20).is_none());
        assert!(Automaton::build(&[a], 64).is_none());
    }
}
