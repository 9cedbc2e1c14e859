//! Tenants: what each may use, how often, and which words are its own.
//!
//! Everything here is checked again on the device, for every item, against the encoded table. It is fixed
//! when a megakernel is built; only a quota's limit can be raised later. Isolation is between items: host
//! threads of one process trust each other.

use std::collections::BTreeSet;

use crate::error::MegakernelError;
use crate::item::HandlerTable;
use crate::opcode::{BuiltinOpcode, SlotOpcode};
use crate::state::{MAX_TENANTS, tenant_row};

/// Words of observables of a tenant that nobody configured otherwise.
pub const DEFAULT_OBSERVABLE_WORDS: u32 = 16;
/// Words of state of a tenant that nobody configured otherwise.
pub const DEFAULT_STATE_WORDS: u32 = 1024;

/// What one tenant may do.
///
/// ```
/// use vyre_runtime::{BuiltinOpcode, TenantConfig};
///
/// let tenant = TenantConfig::permitting([BuiltinOpcode::StoreU32, BuiltinOpcode::LoadU32])
///     .quota(1000)
///     .window(4, 64);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantConfig {
    /// `None` for every opcode there is.
    permitted: Option<BTreeSet<SlotOpcode>>,
    quota: Option<u32>,
    observable_words: u32,
    state_words: u32,
}

impl TenantConfig {
    /// A tenant that may use every opcode.
    pub fn all() -> TenantConfig {
        TenantConfig {
            permitted: None,
            quota: None,
            observable_words: DEFAULT_OBSERVABLE_WORDS,
            state_words: DEFAULT_STATE_WORDS,
        }
    }

    /// A tenant that may use only these opcodes. A packed slot needs `PACKED_SLOT` and each opcode in it.
    pub fn permitting<O: Into<SlotOpcode>>(opcodes: impl IntoIterator<Item = O>) -> TenantConfig {
        let permitted = opcodes.into_iter().map(Into::into).collect();
        TenantConfig { permitted: Some(permitted), ..TenantConfig::all() }
    }

    /// Lets at most `items` items run until the limit is raised. `u32::MAX` is no limit, as without a quota.
    #[must_use]
    pub fn quota(mut self, items: u32) -> TenantConfig {
        self.quota = Some(items);
        self
    }

    /// The size of its window: words it shows to the host, words of state.
    #[must_use]
    pub fn window(mut self, observable_words: u32, state_words: u32) -> TenantConfig {
        self.observable_words = observable_words;
        self.state_words = state_words;
        self
    }

    /// Words of its window that it shows to the host.
    pub fn observable_words(&self) -> u32 {
        self.observable_words
    }

    /// Words of its state.
    pub fn state_words(&self) -> u32 {
        self.state_words
    }

    /// Its limit at the start.
    pub fn quota_limit(&self) -> Option<u32> {
        self.quota
    }

    /// The opcodes it may use, if they are limited; nothing otherwise.
    pub(crate) fn permitted(&self) -> impl Iterator<Item = SlotOpcode> {
        self.permitted.iter().flatten().copied()
    }

    /// Whether it may use an opcode.
    pub fn permits(&self, opcode: SlotOpcode) -> bool {
        self.permitted.as_ref().is_none_or(|permitted| permitted.contains(&opcode))
    }
}

/// Where a tenant's words are in the `windows` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TenantWindow {
    /// First word: observables, then state.
    pub offset: u32,
    /// Words of observables.
    pub observable_words: u32,
    /// Words of state.
    pub state_words: u32,
}

/// All tenants of a megakernel, by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantTable {
    rows: Vec<Option<TenantConfig>>,
}

impl Default for TenantTable {
    /// Tenant 0, which may use every opcode.
    fn default() -> TenantTable {
        TenantTable { rows: vec![Some(TenantConfig::all())] }
    }
}

impl TenantTable {
    /// Adds a tenant, or replaces the one of this id.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::InvalidGeometry`] for an id past the last possible one, 4095.
    pub fn insert(&mut self, id: u16, config: TenantConfig) -> Result<(), MegakernelError> {
        if u32::from(id) >= MAX_TENANTS {
            return Err(MegakernelError::InvalidGeometry {
                what: "a tenant's id",
                got: id.into(),
                expected: format!("less than {MAX_TENANTS}"),
            });
        }
        let place = usize::from(id);
        if self.rows.len() <= place {
            self.rows.resize(place + 1, None);
        }
        if let Some(row) = self.rows.get_mut(place) {
            *row = Some(config);
        }
        Ok(())
    }

    /// The configuration of a tenant.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`].
    pub fn get(&self, id: u16) -> Result<&TenantConfig, MegakernelError> {
        let row = self.rows.get(usize::from(id)).and_then(Option::as_ref);
        row.ok_or(MegakernelError::UnknownTenant { tenant: id.into() })
    }

    /// Rows of the table: one more than the highest id.
    pub fn row_count(&self) -> u32 {
        self.rows.len() as u32
    }

    /// The tenants with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &TenantConfig)> {
        self.rows.iter().enumerate().filter_map(|(id, row)| Some((id as u16, row.as_ref()?)))
    }

    /// Where a tenant's words are.
    ///
    /// # Errors
    ///
    /// [`MegakernelError::UnknownTenant`].
    pub fn window(&self, id: u16) -> Result<TenantWindow, MegakernelError> {
        self.get(id)?;
        let window = self.windows().find(|(tenant, _)| *tenant == id).map(|(_, window)| window);
        window.ok_or(MegakernelError::UnknownTenant { tenant: id.into() })
    }

    /// Words of all windows together.
    pub(crate) fn window_words(&self) -> u64 {
        let words = |(_, tenant): (u16, &TenantConfig)| {
            u64::from(tenant.observable_words) + u64::from(tenant.state_words)
        };
        self.iter().map(words).sum()
    }

    /// The rows as the device reads them. Sizes were checked when the layout was made.
    pub(crate) fn encode(&self, handlers: &HandlerTable) -> Vec<u32> {
        let mut words = vec![0; self.rows.len() * tenant_row::WORDS as usize];
        let mut rows = words.chunks_exact_mut(tenant_row::WORDS as usize);
        let mut windows = self.windows();
        for tenant in &self.rows {
            let Some(row) = rows.next() else { break };
            let Some(tenant) = tenant else { continue };
            let Some((_, window)) = windows.next() else { break };
            let mut set = |word: u32, value: u32| {
                if let Some(place) = row.get_mut(word as usize) {
                    *place |= value;
                }
            };
            for (index, handler) in (0..).zip(handlers.iter()) {
                let permitted = u32::from(tenant.permits(handler.opcode()));
                set(tenant_row::PERMISSIONS + index / 32, permitted << (index % 32));
            }
            for builtin in BuiltinOpcode::ALL {
                let permitted = u32::from(tenant.permits(builtin.into()));
                set(tenant_row::BUILTINS, permitted << builtin.index());
            }
            set(tenant_row::QUOTA, tenant.quota.unwrap_or(tenant_row::UNLIMITED));
            set(tenant_row::WINDOW, window.offset);
            set(tenant_row::OBSERVABLE, window.observable_words);
            set(tenant_row::STATE, window.state_words);
            set(tenant_row::FLAGS, tenant_row::CONFIGURED);
        }
        words
    }

    fn windows(&self) -> impl Iterator<Item = (u16, TenantWindow)> {
        let mut offset = 0_u32;
        self.iter().map(move |(id, tenant)| {
            let (observable_words, state_words) = (tenant.observable_words, tenant.state_words);
            let window = TenantWindow { offset, observable_words, state_words };
            offset = offset.saturating_add(observable_words).saturating_add(state_words);
            (id, window)
        })
    }
}
