//! Reading the debug log that PRINTF items write.
//!
//! The log is a table of words on the device: a cursor that counts the records begun, then room for 64
//! records. A record that finds it full is counted as lost, and the 64 stay readable. The words of a record
//! are written after its place was reserved, so a record of an item that is not acknowledged yet may be
//! read half-written; one of an acknowledged item never is.

use crate::state::debug_log as layout;

/// One record: what a PRINTF item said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugRecord {
    /// The item's first argument, by convention the number of a format.
    pub format: u32,
    /// The item's second and third argument.
    pub args: [u32; 2],
    /// The low word of the item's ticket.
    pub ticket: u32,
}

/// The records read, and how many there was no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebugLog {
    /// In the order in which they were begun.
    pub records: Vec<DebugRecord>,
    /// Records that found the log full.
    pub lost: u64,
}

impl DebugLog {
    /// Reads a log's words. Whatever they are, it yields at most as many records as they have room for;
    /// `lost` is the count that the device keeps beside them.
    pub fn decode(words: &[u32], lost: u64) -> DebugLog {
        let begun = words.get(layout::CURSOR as usize).copied().unwrap_or(0).min(layout::CAPACITY);
        let records = words.get(layout::RECORDS as usize..).unwrap_or_default();
        let records = records.chunks_exact(layout::RECORD_WORDS as usize).take(begun as usize);
        let records = records.filter_map(|record| match *record {
            [format, first, second, ticket] => Some(DebugRecord { format, args: [first, second], ticket }),
            _ => None,
        });
        DebugLog { records: records.collect(), lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_words_decode_to_what_they_have_room_for() {
        let mut full: Vec<u32> = (0..layout::WORDS).collect();
        for (cursor, expected) in [(0, 0), (1, 1), (63, 63), (64, 64), (65, 64), (70, 64), (u32::MAX, 64)] {
            full[0] = cursor;
            let log = DebugLog::decode(&full, 6);
            assert_eq!((log.records.len(), log.lost), (expected, 6));
            if let Some(last) = log.records.last() {
                let first = 1 + 4 * (expected as u32 - 1);
                let args = [first + 1, first + 2];
                assert_eq!(*last, DebugRecord { format: first, args, ticket: first + 3 });
            }
        }
        for (words, expected) in
            [(&[][..], 0), (&[9][..], 0), (&[9, 1, 2, 3][..], 0), (&[9, 1, 2, 3, 4, 5][..], 1)]
        {
            assert_eq!(DebugLog::decode(words, 0).records.len(), expected);
        }
    }
}
