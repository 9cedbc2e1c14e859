//! What a table sees of a rule: an expression that matches somewhere in every input in which the rule matches.
//!
//! A table only decides which rules are confirmed on which files, with the real regex. So it may see less than
//! the whole rule, as long as it never misses one. That keeps tables small, and makes expressible what a
//! byte-at-a-time DFA cannot do:
//!
//! * *Unicode word boundaries* (`\b` without `(?-u)`) are taken as always true.
//! * *Repetitions at either end* shrink to their least count: `a+b*` is found exactly where `a` is.
//! * *A cut*: only a prefix of the rule is kept, of about so many bytes. Counted repetitions and loops that
//!   may run at the same time multiply the states of a table; a prefix has few of them. Digits of numbers
//!   count a quarter: a short run of them is found everywhere, and a long one costs little, because
//!   hardly anything else goes on inside it.
//!
//! The first two lose nothing but word boundaries. How far to cut is the choice of the
//! [planner](super::plan).

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// What a byte of a prefix weighs, and what a digit does.
const BYTE: usize = 4;
const DIGIT: usize = 1;

/// Repetitions that may go on longer than this are worth ending a prefix at.
const LONG_LOOP: u32 = 16;

/// The expression for a table, cut to a prefix of about `cut` bytes (the whole rule for `None`).
pub(super) fn necessary(hir: &Hir, cut: Option<usize>) -> Hir {
    let hir = without_unicode_words(hir);
    let hir = match cut {
        Some(bytes) => Cut { need: BYTE * bytes, have: 0 }.prefix(hir),
        None => hir,
    };
    shorten(shorten(hir, End::Tail), End::Head)
}

/// The same expression with every Unicode word assertion taken as true, and without captures.
fn without_unicode_words(hir: &Hir) -> Hir {
    match hir.kind() {
        HirKind::Look(
            Look::WordUnicode
            | Look::WordUnicodeNegate
            | Look::WordStartUnicode
            | Look::WordEndUnicode
            | Look::WordStartHalfUnicode
            | Look::WordEndHalfUnicode,
        ) => Hir::empty(),
        HirKind::Empty | HirKind::Literal(_) | HirKind::Class(_) | HirKind::Look(_) => hir.clone(),
        HirKind::Repetition(repetition) => {
            Hir::repetition(repetition.with(without_unicode_words(&repetition.sub)))
        }
        HirKind::Capture(capture) => without_unicode_words(&capture.sub),
        HirKind::Concat(parts) => Hir::concat(parts.iter().map(without_unicode_words).collect()),
        HirKind::Alternation(parts) => Hir::alternation(parts.iter().map(without_unicode_words).collect()),
    }
}

/// The least weight of what an expression matches.
fn weight(hir: &Hir) -> usize {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => BYTE * literal.0.len(),
        HirKind::Class(class) => class_weight(class),
        HirKind::Repetition(repetition) => weight(&repetition.sub).saturating_mul(repetition.min as usize),
        HirKind::Capture(capture) => weight(&capture.sub),
        HirKind::Concat(parts) => parts.iter().map(weight).fold(0, usize::saturating_add),
        HirKind::Alternation(parts) => parts.iter().map(weight).min().unwrap_or(0),
    }
}

/// Decimal and hexadecimal digits are told by how many they are: more than a letter in both cases or a few
/// alternatives, fewer than the letters.
fn class_weight(class: &Class) -> usize {
    let bytes: usize = match class {
        Class::Unicode(class) => class.ranges().iter().map(|range| range.len()).sum(),
        Class::Bytes(class) => class.ranges().iter().map(|range| range.len()).sum(),
    };
    if (8..=24).contains(&bytes) { DIGIT } else { BYTE * class.minimum_len().unwrap_or(0) }
}

/// How much of a prefix there is so far, by weight. Once `have` reaches `need`, nothing more is added.
#[derive(Clone, Copy)]
struct Cut {
    need: usize,
    have: usize,
}

impl Cut {
    fn prefix(&mut self, hir: Hir) -> Hir {
        if self.have >= self.need {
            return Hir::empty();
        }
        let least = weight(&hir);
        let short = self.have.saturating_add(least) < self.need;
        match hir.into_kind() {
            HirKind::Concat(parts) => Hir::concat(parts.into_iter().map(|part| self.prefix(part)).collect()),
            HirKind::Repetition(mut repetition) => {
                let endless = repetition.max.is_none_or(|max| max > LONG_LOOP);
                if short && !(endless && 2 * self.have.saturating_add(least) >= self.need) {
                    self.have = self.have.saturating_add(least);
                    return Hir::repetition(repetition);
                }
                // Enough with the least count, or with fewer rounds than that.
                let each = weight(&repetition.sub).max(1);
                let rounds = (self.need - self.have).div_ceil(each);
                repetition.min = repetition.min.min(u32::try_from(rounds).unwrap_or(u32::MAX));
                repetition.max = Some(repetition.min);
                self.have = self.need;
                Hir::repetition(repetition)
            }
            // Nothing may follow a branch that was cut, so branches are cut only where each is long enough.
            HirKind::Alternation(parts) if !short => {
                let branches = parts.into_iter().map(|part| (*self).clone().prefix(part)).collect();
                self.have = self.need;
                Hir::alternation(branches)
            }
            HirKind::Literal(literal) => {
                let bytes = (self.need - self.have).div_ceil(BYTE);
                let bytes = literal.0.get(..bytes).unwrap_or(&literal.0);
                self.have += BYTE * bytes.len();
                Hir::literal(bytes)
            }
            kind => {
                self.have = self.have.saturating_add(least);
                whole(kind)
            }
        }
    }
}

#[derive(Clone, Copy)]
enum End {
    Head,
    Tail,
}

/// Shrinks the repetitions at one end to their least count.
fn shorten(hir: Hir, end: End) -> Hir {
    match hir.into_kind() {
        HirKind::Repetition(mut repetition) => match repetition.min {
            0 => Hir::empty(),
            1 => shorten(*repetition.sub, end),
            least => {
                repetition.max = Some(least);
                Hir::repetition(repetition)
            }
        },
        HirKind::Concat(mut parts) => {
            // A part that shrinks to nothing leaves the next one at the end.
            loop {
                let at = match end {
                    End::Head => 0,
                    End::Tail => parts.len().saturating_sub(1),
                };
                if parts.is_empty() {
                    return Hir::empty();
                }
                let part = shorten(parts.remove(at), end);
                if !matches!(part.kind(), HirKind::Empty) {
                    parts.insert(at, part);
                    return Hir::concat(parts);
                }
            }
        }
        HirKind::Alternation(parts) => {
            Hir::alternation(parts.into_iter().map(|part| shorten(part, end)).collect())
        }
        kind => whole(kind),
    }
}

/// An expression from its kind.
fn whole(kind: HirKind) -> Hir {
    match kind {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(literal) => Hir::literal(literal.0),
        HirKind::Class(class) => Hir::class(class),
        HirKind::Look(look) => Hir::look(look),
        HirKind::Repetition(repetition) => Hir::repetition(repetition),
        HirKind::Capture(capture) => Hir::capture(capture),
        HirKind::Concat(parts) => Hir::concat(parts),
        HirKind::Alternation(parts) => Hir::alternation(parts),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex_automata::meta;
    use regex_automata::util::syntax;

    use super::*;

    fn parse(pattern: &str) -> Hir {
        syntax::parse_with(pattern, &syntax::Config::new().utf8(false)).expect(pattern)
    }

    fn regex(hir: &Hir) -> meta::Regex {
        meta::Builder::new()
            .configure(meta::Config::new().utf8_empty(false))
            .build_from_hir(hir)
            .expect("an expression")
    }

    /// Over a small alphabet, so that random inputs match. The first have no Unicode word boundaries.
    const PATTERNS: [&str; 18] = [
        "",
        "a*",
        "a+b*",
        "(?:ab)+c",
        "abcabc",
        "a{3,5}b{2,}",
        "(?:a|bc){2,}",
        "(?:aab|b)c",
        "(?:aabb|bcbc)a+c",
        "a.*?b[ac]+c",
        "^ab|c$",
        "(?m)^a+$",
        r"(?-u:\b)ab+(?-u:\b)",
        r"(?-u:\B)a",
        r"a(?:b(?:c(?:a|b)*)?)?c",
        r"\bab\b",
        r"(?:\b|a)+c",
        r"\b{start}a+\B",
    ];
    const WITHOUT_UNICODE_WORDS: usize = 15;

    #[test]
    fn what_is_kept() {
        for (pattern, cut, expected) in [
            ("a+b*", None, "a"),
            ("x*ab+", None, "ab"),
            (r"\ba\b", None, "a"),
            (r"^a+", None, "^a"),
            ("(?:a+|b+)", None, "a|b"),
            ("abcdefgh", Some(4), "abcd"),
            ("ab[0-9A-Z]{35}", Some(8), "ab[0-9A-Z]{6}"),
            ("ab[0-9]{35}", Some(8), "ab[0-9]{24}"),
            ("(?-u)[0-9a-fA-F]{31}", Some(8), "(?-u)[0-9a-fA-F]{31}"),
            ("ab(?:cd){9}e", Some(8), "ab(?:cd){3}"),
            ("abcd+efghij", Some(8), "abcd"),
            ("ab+cdefghij", Some(8), "ab+cdefgh"),
            ("ab(?:cdefgh|ijklmnop)q", Some(4), "ab(?:cd|ij)"),
            ("ab(?:c|defgh)ijkl", Some(4), "ab(?:c|defgh)i"),
        ] {
            let expected = parse(expected);
            assert_eq!(necessary(&parse(pattern), cut), expected, "{pattern} {cut:?}");
        }
    }

    proptest! {
        #[test]
        fn no_match_is_missed(input in "[abc \n\u{e9}]{0,24}", pattern in 0..PATTERNS.len(), cut in 0_usize..10) {
            let hir = parse(PATTERNS[pattern]);
            let matches = regex(&hir).is_match(&input);
            let seen = regex(&necessary(&hir, Some(cut))).is_match(&input);
            prop_assert!(seen || !matches, "{} cut at {cut} misses {input:?}", PATTERNS[pattern]);
            if pattern < WITHOUT_UNICODE_WORDS {
                let seen = regex(&necessary(&hir, None)).is_match(&input);
                prop_assert_eq!(seen, matches, "{} on {:?}", PATTERNS[pattern], input);
            }
        }
    }
}
