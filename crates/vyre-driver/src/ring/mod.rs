//! The persistent work-item ring.
//!
//! [`RingProducer`] submits items and takes their completions; [`RingConsumer`] claims items and completes
//! them. Between them lie the slots, which only the producer writes, and the completions, which only
//! consumers write, in two shared regions; the cursors and the state of each slot are private to the side
//! that needs them. [`PersistentRing`] is both halves over regions of its own.
//!
//! Items are *unordered*: they are claimed in ticket order, executed and completed in any. A store and a
//! load of one word in two items need a wait, or a fence item, in between.
//!
//! docs/protocol.md has the words, docs/memory-ordering.md the argument why they are enough.

mod cancel;
mod consumer;
mod error;
mod image;
mod memory;
#[cfg(all(test, loom))]
mod models;
mod persistent;
mod producer;
mod recovery;
mod ticket;
mod tracking;
mod word;
mod work_item;

pub use cancel::Cancellations;
pub use consumer::{Claimed, ClaimedTicket, Claims, RingConsumer};
pub use error::RingError;
pub use image::{Completion, SlotImage};
pub use memory::{Cells, LoadWord, MappedCells, Memory, Shared, StoreWord};
pub use persistent::PersistentRing;
pub use producer::{DetachedHandler, ProducerOptions, RingCounters, RingProducer};
pub use ticket::{RawTicket, Ticket, Tickets};
pub use work_item::{PersistentWorkItem, WorkTicket};
