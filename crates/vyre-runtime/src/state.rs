//! Where things are in the device's tables: counters, tenants, usage, windows and debug log.
//!
//! One layout serves both ways to run: a session gives each table a buffer of its own, a batch keeps all
//! but the log in its control buffer, one after the other. Everything is `u32` words. What the words mean
//! to an item is in [`crate::item`].

use vyre_driver::protocol::ARG_WORDS;

use crate::error::MegakernelError;

/// Words of the `counters` table before the counts per handler.
pub mod header {
    /// [`MAGIC_VALUE`].
    pub const MAGIC: u32 = 0;
    /// [`VERSION_VALUE`].
    pub const VERSION: u32 = 1;
    /// Slots of the batch ring; 0 in a session.
    pub const SLOTS: u32 = 2;
    /// Rows of the tenant table.
    pub const TENANTS: u32 = 3;
    /// Places for user handlers.
    pub const HANDLERS: u32 = 4;
    /// Words of all windows together.
    pub const WINDOW_WORDS: u32 = 5;
    /// Slots of the batch ring that run: up to and with the first SHUTDOWN of tenant 0.
    pub const LIMIT: u32 = 6;
    /// Fences completed.
    pub const EPOCH: u32 = 7;
    /// Items that ended DONE.
    pub const DONE_COUNT: u32 = 8;
    /// Items that ended in FAULT.
    pub const FAULT_COUNT: u32 = 9;
    /// PRINTF records that found the debug log full.
    pub const LOG_LOST: u32 = 10;
    /// Words of the header; those not named are zero.
    pub const WORDS: u32 = 16;
    /// "VYRC", little endian.
    pub const MAGIC_VALUE: u32 = u32::from_le_bytes(*b"VYRC");
    /// The version of the tables' layout.
    pub const VERSION_VALUE: u32 = 1;
}

/// Words of one row of the `tenants` table.
pub mod tenant_row {
    /// First of eight words: bit `n` permits the user handler with index `n`.
    pub const PERMISSIONS: u32 = 0;
    /// Words of [`PERMISSIONS`].
    pub const PERMISSION_WORDS: u32 = 8;
    /// Bit `n` permits the built-in opcode with index `n`.
    pub const BUILTINS: u32 = 8;
    /// Items admitted before quota refuses; [`UNLIMITED`] for no limit.
    pub const QUOTA: u32 = 9;
    /// First word of the tenant's window in the `windows` table.
    pub const WINDOW: u32 = 10;
    /// Observable words, at the start of the window.
    pub const OBSERVABLE: u32 = 11;
    /// State words, after the observables.
    pub const STATE: u32 = 12;
    /// [`CONFIGURED`], or zero for an id nobody configured.
    pub const FLAGS: u32 = 13;
    /// Words of a row; those not named are zero.
    pub const WORDS: u32 = 16;
    /// No limit.
    pub const UNLIMITED: u32 = u32::MAX;
    /// The tenant exists.
    pub const CONFIGURED: u32 = 1;
}

/// Words of one row of the `usage` table.
pub mod usage_row {
    /// Items admitted: what the quota is compared with. Wraps for a tenant without quota.
    pub const USED: u32 = 0;
    /// Items that ended DONE.
    pub const DONE: u32 = 1;
    /// Items that ended in FAULT after the tenant was found.
    pub const FAULTED: u32 = 2;
    /// Words of a row; those not named are zero.
    pub const WORDS: u32 = 4;
}

/// The debug log: a cursor, then records of four words.
pub mod debug_log {
    /// The word that counts records begun; at 64 and above the log is full.
    pub const CURSOR: u32 = 0;
    /// First record.
    pub const RECORDS: u32 = 1;
    /// Records.
    pub const CAPACITY: u32 = 64;
    /// Words of a record: format id, two arguments, the low word of the ticket.
    pub const RECORD_WORDS: u32 = 4;
    /// Words in all.
    pub const WORDS: u32 = RECORDS + CAPACITY * RECORD_WORDS;
}

/// Tenants at most; ids run from 0.
pub const MAX_TENANTS: u32 = 4096;
/// User handlers at most: the permission bits of a tenant.
pub const MAX_HANDLERS: u32 = tenant_row::PERMISSION_WORDS * 32;
/// Counters kept for built-in opcodes; user handlers' follow.
pub const BUILTIN_COUNTERS: u32 = 16;
/// Words of all windows together at most.
pub const MAX_WINDOW_WORDS: u32 = 1 << 28;

const _: () = assert!(ARG_WORDS == 12);

/// The sizes of the tables, and their places in a batch's control buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateLayout {
    tenants: u32,
    handlers: u32,
    window_words: u32,
}

impl StateLayout {
    /// The layout for `tenants` rows, `handlers` user handlers and `window_words` words of windows.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidGeometry`] past [`MAX_TENANTS`], [`MAX_HANDLERS`] or [`MAX_WINDOW_WORDS`],
    /// and without any tenant.
    pub fn new(tenants: u32, handlers: u32, window_words: u64) -> Result<StateLayout, MegakernelError> {
        let refuse = |what, got, expected: &str| {
            Err(MegakernelError::InvalidGeometry { what, got, expected: expected.to_owned() })
        };
        if tenants == 0 || tenants > MAX_TENANTS {
            return refuse("the number of tenants", tenants.into(), "1 to 4096");
        }
        if handlers > MAX_HANDLERS {
            return refuse("the number of user handlers", handlers.into(), "at most 256");
        }
        match u32::try_from(window_words) {
            Ok(words) if words <= MAX_WINDOW_WORDS => {
                Ok(StateLayout { tenants, handlers, window_words: words })
            }
            _ => refuse("the size of all windows in words", window_words, "at most 2^28"),
        }
    }

    /// The same with places for more user handlers, as many as there can be at most.
    #[must_use]
    pub fn with_reserve(self, handlers: u32) -> StateLayout {
        StateLayout { handlers: self.handlers.saturating_add(handlers).min(MAX_HANDLERS), ..self }
    }

    /// Rows of the tenant table and of the usage table.
    pub const fn tenants(self) -> u32 {
        self.tenants
    }

    /// Places for user handlers.
    pub const fn handlers(self) -> u32 {
        self.handlers
    }

    /// Words of the `counters` table: the header, then a count for every handler.
    pub const fn counters_words(self) -> u32 {
        (header::WORDS + BUILTIN_COUNTERS + self.handlers).next_multiple_of(4)
    }

    /// The counter of a built-in opcode or, past [`BUILTIN_COUNTERS`], of a user handler.
    pub const fn counter(index: u32) -> u32 {
        header::WORDS + index
    }

    /// Words of the `tenants` table.
    pub const fn tenants_words(self) -> u32 {
        self.tenants * tenant_row::WORDS
    }

    /// Words of the `usage` table.
    pub const fn usage_words(self) -> u32 {
        self.tenants * usage_row::WORDS
    }

    /// Words of the `windows` table: as configured, rounded up to whole quarters.
    pub const fn windows_words(self) -> u32 {
        let words = self.window_words.next_multiple_of(4);
        if words == 0 { 4 } else { words }
    }

    /// First word of the tenant table in a control buffer; the counters are at word 0.
    pub const fn tenants_offset(self) -> u32 {
        self.counters_words()
    }

    /// First word of the usage table in a control buffer.
    pub const fn usage_offset(self) -> u32 {
        self.tenants_offset() + self.tenants_words()
    }

    /// First word of the windows in a control buffer.
    pub const fn windows_offset(self) -> u32 {
        self.usage_offset() + self.usage_words()
    }

    /// Words of a control buffer.
    pub const fn control_words(self) -> u32 {
        self.windows_offset() + self.windows_words()
    }

    /// The header's first words, for a ring of `slots` slots (0 in a session).
    pub const fn header(self, slots: u32) -> [u32; header::WORDS as usize] {
        let mut words = [0; header::WORDS as usize];
        words[header::MAGIC as usize] = header::MAGIC_VALUE;
        words[header::VERSION as usize] = header::VERSION_VALUE;
        words[header::SLOTS as usize] = slots;
        words[header::TENANTS as usize] = self.tenants;
        words[header::HANDLERS as usize] = self.handlers;
        words[header::WINDOW_WORDS as usize] = self.window_words;
        words[header::LIMIT as usize] = slots;
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_follow_one_another_at_whole_quarters() {
        for (tenants, handlers, windows) in [(1, 0, 0), (1, 1, 1), (4096, 256, 1 << 20), (3, 5, 7)] {
            let layout = StateLayout::new(tenants, handlers, windows).expect("within the limits");
            assert_eq!(layout.tenants_offset(), layout.counters_words());
            assert_eq!(layout.usage_offset(), layout.tenants_offset() + tenants * 16);
            assert_eq!(layout.windows_offset(), layout.usage_offset() + tenants * 4);
            assert_eq!(layout.control_words(), layout.windows_offset() + layout.windows_words());
            assert!(u64::from(layout.windows_words()) >= windows);
            for offset in [layout.tenants_offset(), layout.usage_offset(), layout.windows_offset()] {
                assert_eq!(offset % 4, 0, "{layout:?}");
            }
            assert!(StateLayout::counter(BUILTIN_COUNTERS + handlers) <= layout.counters_words());
        }
    }

    #[test]
    fn sizes_past_the_limits_are_refused() {
        for (tenants, handlers, windows) in
            [(0, 0, 0), (4097, 0, 0), (1, 257, 0), (1, 0, (1 << 28) + 1), (1, 0, u64::MAX)]
        {
            let refused = StateLayout::new(tenants, handlers, windows);
            assert!(matches!(refused, Err(MegakernelError::InvalidGeometry { .. })), "{refused:?}");
        }
    }
}
