//! DFA tables in device memory: the builder on the host, and the IR that steps them.
//!
//! All tables of a megakernel share one buffer of `u32` words, bound as `dfa_tables`:
//!
//! ```text
//! word 0             tables
//! word 1 + t         first word of the header of table t
//! header, 8 words    start row, states, log2 stride, first row, first accepting row,
//!                    first class word, first accept word, classes
//! classes            256 words: the class of each byte
//! rows               one for each state, 2^stride words: for each class, the row of the next state
//! accepts            one word for each accepting state
//! ```
//!
//! Inside, a state is its *row*: the place of its first transition in the buffer. So one byte costs two
//! loads and two additions, and as accepting states come last, one comparison tells acceptance. Outside, in
//! opcode DFA_STEP, a state is its number. What an accept word means is the user's: a set of patterns, or
//! an index into a list of them.

use crate::error::MegakernelError;

/// Words of a table's header.
const HEADER_WORDS: u32 = 8;
/// Words of a class map.
const CLASS_WORDS: u32 = 256;
/// Classes at most: one for each byte and one for the end of input.
const MAX_CLASSES: u32 = 257;

/// One DFA over bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DfaTable {
    /// The state it starts in.
    pub start: u32,
    /// The class of each byte.
    pub classes: [u16; 256],
    /// How many classes there are; those that no byte has are for the user, say for the end of input.
    pub class_count: u32,
    /// For each state, for each class, the next state.
    pub transitions: Vec<u32>,
    /// What each accepting state accepts; these are the last states.
    pub accepts: Vec<u32>,
}

impl DfaTable {
    /// How many states there are.
    pub fn states(&self) -> u32 {
        self.transitions.len().checked_div(self.class_count as usize).unwrap_or(0) as u32
    }

    fn stride_log2(&self) -> u32 {
        self.class_count.next_power_of_two().trailing_zeros()
    }

    fn words(&self) -> u64 {
        u64::from(HEADER_WORDS + CLASS_WORDS)
            + (u64::from(self.states()) << self.stride_log2())
            + self.accepts.len() as u64
    }

    fn check(&self) -> Result<(), String> {
        let (states, classes) = (self.states(), self.class_count);
        if classes == 0 || classes > MAX_CLASSES {
            return Err(format!("it has {classes} classes; 1 to {MAX_CLASSES} are possible"));
        }
        if states == 0 || self.transitions.len() as u64 != u64::from(states) * u64::from(classes) {
            return Err(format!(
                "it has {} transitions; give one for each of {classes} classes for each state",
                self.transitions.len()
            ));
        }
        if let Some((byte, class)) = (0..).zip(self.classes).find(|&(_, class)| u32::from(class) >= classes) {
            let byte: u32 = byte;
            return Err(format!("byte {byte} has class {class}, and there are {classes}"));
        }
        if let Some(target) = self.transitions.iter().find(|&&target| target >= states) {
            return Err(format!("a transition leads to state {target}, and there are {states}"));
        }
        if self.start >= states {
            return Err(format!("it starts in state {}, and there are {states}", self.start));
        }
        if self.accepts.len() as u64 > u64::from(states) {
            return Err(format!("{} of its {states} states accept", self.accepts.len()));
        }
        Ok(())
    }

    /// Appends the table, whose first word will be at `at`.
    fn encode(&self, at: u32, words: &mut Vec<u32>) {
        let stride_log2 = self.stride_log2();
        let stride = 1_usize << stride_log2;
        let class_words = at + HEADER_WORDS;
        let first_row = class_words + CLASS_WORDS;
        let row = |state: u32| first_row + (state << stride_log2);
        let accepting = self.states() - self.accepts.len() as u32;
        words.extend([
            row(self.start),
            self.states(),
            stride_log2,
            first_row,
            row(accepting),
            class_words,
            row(self.states()),
            self.class_count,
        ]);
        words.extend(self.classes.map(u32::from));
        for transitions in self.transitions.chunks_exact(self.class_count as usize) {
            let end = words.len() + stride;
            words.extend(transitions.iter().map(|&state| row(state)));
            words.resize(end, first_row);
        }
        words.extend(&self.accepts);
    }
}

/// Several tables, numbered from 0, in the words of their buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DfaTables {
    words: Vec<u32>,
}

impl Default for DfaTables {
    /// No tables.
    fn default() -> DfaTables {
        DfaTables { words: vec![0; 4] }
    }
}

impl DfaTables {
    /// Encodes tables; a table's id is its place.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidDfaTable`] for a table that is not well formed, or if all of them take 2^30
    /// words or more.
    pub fn new(tables: &[DfaTable]) -> Result<DfaTables, MegakernelError> {
        let mut words = vec![tables.len() as u32];
        let mut at = 1 + tables.len() as u64;
        for (id, table) in (0..).zip(tables) {
            let refuse = |problem| MegakernelError::InvalidDfaTable { table: id, problem };
            table.check().map_err(refuse)?;
            words.push(at as u32);
            at += table.words();
            if at >= 1 << 30 {
                return Err(refuse(format!("with it the tables take {at} words; 2^30 are too many")));
            }
        }
        for table in tables {
            let at = words.len() as u32;
            table.encode(at, &mut words);
        }
        words.resize(words.len().next_multiple_of(4), 0);
        Ok(DfaTables { words })
    }

    /// How many tables there are.
    pub fn count(&self) -> u32 {
        self.words.first().copied().unwrap_or(0)
    }

    /// The words of the buffer.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// One step on the host, as DFA_STEP makes it: the next state and what it accepts. `None` where the
    /// device would answer [`Fault::Bounds`](vyre_driver::Fault::Bounds).
    pub fn step(&self, table: u32, state: u32, byte: u8) -> Option<(u32, u32)> {
        if table >= self.count() {
            return None;
        }
        let word = |at: u32| self.words.get(at as usize).copied();
        let header = word(1 + table)?;
        let [states, stride_log2, first_row, first_accepting, class_words, accept_words] = [
            word(header + 1)?,
            word(header + 2)?,
            word(header + 3)?,
            word(header + 4)?,
            word(header + 5)?,
            word(header + 6)?,
        ];
        if state >= states {
            return None;
        }
        let next = word(first_row + (state << stride_log2) + word(class_words + u32::from(byte))?)?;
        let accepted = match next.checked_sub(first_accepting) {
            Some(past) => word(accept_words + (past >> stride_log2))?,
            None => 0,
        };
        Some(((next - first_row) >> stride_log2, accepted))
    }
}

/// IR that reads the tables.
pub mod ir {
    use vyre_foundation::builder::{Buffer, Operand, Value, Var};

    use crate::handler::HandlerBuilder;

    /// How many tables there are, a `u32`.
    pub fn table_count(tables: Buffer) -> Value {
        tables.load(0)
    }

    /// A table's header in locals.
    #[derive(Clone, Copy, Debug)]
    pub struct Table {
        tables: Buffer,
        /// The row it starts in.
        pub start: Var,
        /// How many states there are.
        pub states: Var,
        stride_log2: Var,
        first_row: Var,
        /// The row from which on states accept.
        pub first_accepting: Var,
        class_words: Var,
        accept_words: Var,
    }

    impl Table {
        /// Reads the header of table `id`, which must be below [`table_count`]: the locals of another are
        /// of no use, and do no harm.
        pub fn load(h: &mut HandlerBuilder<'_>, tables: Buffer, id: impl Into<Value>) -> Table {
            let header = h.let_("table", tables.load(id.into() + 1));
            let mut word = |name, word: u32| h.let_(name, tables.load(header + word));
            Table {
                tables,
                start: word("start_row", 0),
                states: word("dfa_states", 1),
                stride_log2: word("stride_log2", 2),
                first_row: word("first_row", 3),
                first_accepting: word("first_accepting", 4),
                class_words: word("class_words", 5),
                accept_words: word("accept_words", 6),
            }
        }

        /// The row after `row` over `byte`, a `u32` below 256. Bind it with `let_` or `assign`.
        pub fn step(&self, row: impl Into<Value>, byte: impl Into<Value>) -> Value {
            self.tables.load(row.into() + self.tables.load(self.class_words + byte))
        }

        /// Whether a row belongs to an accepting state, a `bool`.
        pub fn is_accepting(&self, row: impl Into<Value>) -> Value {
            row.into().ge(self.first_accepting)
        }

        /// The accept word of a row, 0 where it does not accept.
        pub fn accepted(&self, row: Var) -> Value {
            let word =
                self.tables.load(self.accept_words + ((row - self.first_accepting) >> self.stride_log2));
            self.is_accepting(row).select(word, 0)
        }

        /// The row of a state's number.
        pub fn row_of(&self, state: impl Into<Value>) -> Value {
            self.first_row + (state.into() << self.stride_log2)
        }

        /// The number of a row's state.
        pub fn state_of(&self, row: impl Into<Value>) -> Value {
            (row.into() - self.first_row) >> self.stride_log2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accepts, with word 9, after an `a` followed by a `b`.
    fn ab() -> DfaTable {
        let mut classes = [0; 256];
        classes[usize::from(b'a')] = 1;
        classes[usize::from(b'b')] = 2;
        DfaTable {
            start: 0,
            classes,
            class_count: 3,
            transitions: vec![0, 1, 0, 0, 1, 2, 0, 1, 0],
            accepts: vec![9],
        }
    }

    #[test]
    fn steps_by_number_through_both_tables() {
        let tables = DfaTables::new(&[ab(), ab()]).expect("well formed");
        for table in [0, 1] {
            for (state, byte, expected) in [
                (0, b'x', Some((0, 0))),
                (0, b'a', Some((1, 0))),
                (1, b'a', Some((1, 0))),
                (1, b'b', Some((2, 9))),
                (2, b'b', Some((0, 0))),
                (3, b'b', None),
            ] {
                assert_eq!(tables.step(table, state, byte), expected, "{table} {state} {byte}");
            }
        }
        assert_eq!(tables.step(2, 0, 0), None);
        assert_eq!(DfaTables::default().step(0, 0, 0), None);
    }

    #[test]
    fn malformed_tables_are_refused() {
        type Break = fn(&mut DfaTable);
        let cases: [(&str, Break); 7] = [
            ("no classes", |t| t.class_count = 0),
            ("too many classes", |t| t.class_count = 258),
            ("a class out of range", |t| t.classes[7] = 3),
            ("a row too short", |t| t.transitions.truncate(8)),
            ("no states", |t| t.transitions.clear()),
            ("a target out of range", |t| t.transitions[4] = 3),
            ("a start out of range", |t| t.start = 3),
        ];
        for (what, break_it) in cases {
            let mut table = ab();
            break_it(&mut table);
            let refused = DfaTables::new(&[ab(), table]);
            assert!(matches!(refused, Err(MegakernelError::InvalidDfaTable { table: 1, .. })), "{what}");
        }
    }
}
