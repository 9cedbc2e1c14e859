//! What an item means: one IR function, `execute_item`, made once from the built-in opcodes and the
//! registered handlers, and used by sessions and by batches alike.
//!
//! It takes the item's words ([`ITEM_PARAMS`](vyre_driver::protocol::ITEM_PARAMS)), returns its outcome
//! ([`ITEM_RESULTS`](vyre_driver::protocol::ITEM_RESULTS)), and does in this order: find the tenant, find
//! the handler, check permission, charge the quota, check a packed slot as a whole, run, count. Handlers
//! are functions of the program, each called at one place.
//!
//! **Workgroup handlers.** A barrier needs uniform control flow, and nothing that other items change is
//! uniform; so permission and quota are decided by the lane program, which answers REQUEUE for an admitted
//! item, and the workgroup program only runs handlers. The consumer knows the rule (see
//! [`vyre_driver::resident`]); in a batch, the lane kernel writes a work list that the workgroup kernel
//! reads as uniform memory.
//!
//! Absent on purpose: claiming, parking, completing. That is the consumer's.

mod body;
mod buffers;
mod builtins;
mod execute;
mod handlers;
mod packing;
mod programs;

pub use buffers::{FIRST_USER_BUFFER, SYSTEM_BUFFERS};
pub use handlers::HandlerTable;
pub use programs::ItemPrograms;

pub(crate) use body::ItemScope;
pub(crate) use buffers::{BATCH_PREFIX, declare};
pub(crate) use execute::{Counting, accounting, item_functions, workgroup_functions};
