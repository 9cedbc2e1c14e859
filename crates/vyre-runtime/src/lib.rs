//! The Vyre megakernel: opcode handlers, descriptors, batch dispatch, persistent sessions and recovery.

pub mod descriptor;
pub mod dfa;
pub mod error;
pub mod handler;
pub mod item;
pub mod opcode;
pub mod packed;
pub mod state;
pub mod tenant;

pub use descriptor::{BatchDescriptor, Priority, Publish, SlotDescriptor, WindowClass, WindowDescriptor};
pub use dfa::{DfaTable, DfaTables};
pub use error::MegakernelError;
pub use handler::{Backing, HandlerBinding, HandlerBuilder, OpcodeHandler};
pub use item::{HandlerTable, ItemPrograms};
pub use opcode::{BuiltinOpcode, SlotOpcode};
pub use packed::PackedOpDescriptor;
pub use state::StateLayout;
pub use tenant::{TenantConfig, TenantTable, TenantWindow};
