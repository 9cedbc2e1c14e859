//! The control buffer of a batch: counters, tenants, usage, windows.

use super::{set_word, to_bytes, word};
use crate::error::MegakernelError;
use crate::item::HandlerTable;
use crate::opcode::SlotOpcode;
use crate::state::{BUILTIN_COUNTERS, StateLayout, header, tenant_row, usage_row};
use crate::tenant::{TenantTable, TenantWindow};

/// What one tenant has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TenantUsage {
    /// Items admitted.
    pub used: u32,
    /// Items that ended DONE.
    pub done: u32,
    /// Items that ended in FAULT.
    pub faulted: u32,
}

/// The bytes of a batch's control buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlBuffer {
    layout: StateLayout,
    pub(super) bytes: Vec<u8>,
}

impl ControlBuffer {
    /// Zero counters, usage and windows, and the tenants as configured.
    pub(crate) fn new(
        layout: StateLayout,
        tenants: &TenantTable,
        handlers: &HandlerTable,
        slots: u32,
    ) -> ControlBuffer {
        let mut words = layout.header(slots).to_vec();
        words.resize(layout.counters_words() as usize, 0);
        words.extend(tenants.encode(handlers));
        words.resize(layout.control_words() as usize, 0);
        ControlBuffer { layout, bytes: to_bytes(&words) }
    }

    /// Takes bytes for a megakernel of this layout and slot count.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::MalformedBuffer`] unless their number and the header are right and every tenant's
    /// window lies within the windows.
    pub fn from_bytes(
        layout: StateLayout,
        slots: u32,
        bytes: Vec<u8>,
    ) -> Result<ControlBuffer, MegakernelError> {
        let malformed = |buffer, got: String, expected: String| {
            let remedy = "start from `Megakernel::batch_buffers`, or from what a dispatch returned";
            Err(MegakernelError::MalformedBuffer { buffer, got, expected, remedy })
        };
        let expected = layout.control_words() as usize * 4;
        if bytes.len() != expected {
            return malformed(
                "control buffer",
                format!("{} bytes", bytes.len()),
                format!("{expected} bytes"),
            );
        }
        let fixed = layout.header(slots);
        for (place, expected) in fixed.iter().enumerate().take(header::LIMIT as usize) {
            let got = word(&bytes, place);
            if got != *expected {
                return malformed(
                    "header of the control buffer",
                    format!("{got:#x} in word {place}"),
                    format!("{expected:#x}"),
                );
            }
        }
        let control = ControlBuffer { layout, bytes };
        for tenant in 0..layout.tenants() {
            let row = |field| u64::from(control.tenant_word(tenant, field));
            let end = row(tenant_row::WINDOW) + row(tenant_row::OBSERVABLE) + row(tenant_row::STATE);
            if end > u64::from(layout.windows_words()) {
                return malformed(
                    "tenant table of the control buffer",
                    format!("a window of tenant {tenant} that ends at word {end}"),
                    format!("at most {}", layout.windows_words()),
                );
            }
        }
        Ok(control)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the bytes out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Fences completed.
    pub fn epoch(&self) -> u32 {
        self.header(header::EPOCH)
    }

    /// Items that ended DONE.
    pub fn done_count(&self) -> u32 {
        self.header(header::DONE_COUNT)
    }

    /// Items that ended in FAULT.
    pub fn fault_count(&self) -> u32 {
        self.header(header::FAULT_COUNT)
    }

    /// PRINTF records that found the debug log full.
    pub fn log_lost(&self) -> u32 {
        self.header(header::LOG_LOST)
    }

    /// How often an opcode was run, packed operations and repetitions included. `handlers` are the
    /// megakernel's.
    pub fn run_count(&self, handlers: &HandlerTable, opcode: impl Into<SlotOpcode>) -> Option<u32> {
        let opcode = opcode.into();
        let place = match opcode.builtin() {
            Some(builtin) => builtin.index(),
            None => BUILTIN_COUNTERS + handlers.get(opcode)?.0,
        };
        Some(word(&self.bytes, StateLayout::counter(place) as usize))
    }

    /// What a tenant has used.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`].
    pub fn usage(&self, tenant: u16) -> Result<TenantUsage, MegakernelError> {
        self.check(tenant)?;
        let row = self.layout.usage_offset() + u32::from(tenant) * usage_row::WORDS;
        let [used, done, faulted] = [usage_row::USED, usage_row::DONE, usage_row::FAULTED]
            .map(|field| word(&self.bytes, (row + field) as usize));
        Ok(TenantUsage { used, done, faulted })
    }

    /// Raises a tenant's limit. A limit is never lowered.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`], and [`MegakernelError::QuotaExceeded`] for a limit lower than
    /// the one in force.
    pub fn raise_quota(&mut self, tenant: u16, limit: u32) -> Result<(), MegakernelError> {
        self.check(tenant)?;
        let in_force = self.tenant_word(tenant.into(), tenant_row::QUOTA);
        if limit < in_force {
            return Err(MegakernelError::QuotaExceeded { tenant, limit: in_force });
        }
        let at = self.layout.tenants_offset() + u32::from(tenant) * tenant_row::WORDS + tenant_row::QUOTA;
        set_word(&mut self.bytes, at as usize, limit);
        Ok(())
    }

    /// The words that a tenant shows to the host.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`].
    pub fn observables(&self, tenant: u16) -> Result<Vec<u32>, MegakernelError> {
        let window = self.window(tenant)?;
        Ok(self.words(window.offset, window.observable_words))
    }

    /// A tenant's state.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`].
    pub fn state(&self, tenant: u16) -> Result<Vec<u32>, MegakernelError> {
        let window = self.window(tenant)?;
        Ok(self.words(window.offset + window.observable_words, window.state_words))
    }

    /// Sets words of a tenant's state, from word `first` on.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`], and [`MegakernelError::MalformedBuffer`] for words past the end.
    pub fn set_state(&mut self, tenant: u16, first: u32, words: &[u32]) -> Result<(), MegakernelError> {
        let window = self.window(tenant)?;
        let end = u64::from(first) + words.len() as u64;
        if end > u64::from(window.state_words) {
            return Err(MegakernelError::MalformedBuffer {
                buffer: "state of a tenant",
                got: format!("words {first}..{end}"),
                expected: format!("words below {}", window.state_words),
                remedy: "configure a larger window",
            });
        }
        let at = self.layout.windows_offset() + window.offset + window.observable_words + first;
        for (at, &value) in (at..).zip(words) {
            set_word(&mut self.bytes, at as usize, value);
        }
        Ok(())
    }

    pub(super) fn layout(&self) -> StateLayout {
        self.layout
    }

    fn window(&self, tenant: u16) -> Result<TenantWindow, MegakernelError> {
        self.check(tenant)?;
        let field = |field| self.tenant_word(tenant.into(), field);
        Ok(TenantWindow {
            offset: field(tenant_row::WINDOW),
            observable_words: field(tenant_row::OBSERVABLE),
            state_words: field(tenant_row::STATE),
        })
    }

    fn check(&self, tenant: u16) -> Result<(), MegakernelError> {
        let known = u32::from(tenant) < self.layout.tenants()
            && self.tenant_word(tenant.into(), tenant_row::FLAGS) & tenant_row::CONFIGURED != 0;
        if known { Ok(()) } else { Err(MegakernelError::UnknownTenant { tenant: tenant.into() }) }
    }

    fn header(&self, place: u32) -> u32 {
        word(&self.bytes, place as usize)
    }

    fn tenant_word(&self, tenant: u32, field: u32) -> u32 {
        let at = self.layout.tenants_offset() + tenant * tenant_row::WORDS + field;
        word(&self.bytes, at as usize)
    }

    fn words(&self, first: u32, count: u32) -> Vec<u32> {
        let first = (self.layout.windows_offset() + first) as usize;
        (first..first + count as usize).map(|at| word(&self.bytes, at)).collect()
    }
}
