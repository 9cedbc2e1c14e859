//! The scanner's device: tables on it, the bytes of a batch in a payload, items run over them.
//!
//! Where the backend keeps a kernel resident, items go through a session's ring (`live`); where it does not,
//! a batch is one dispatch (`batches`). Above this room nobody knows which.

mod batches;
mod live;

use std::sync::Arc;
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_runtime::session::Payload as SessionPayload;
use vyre_runtime::{DfaTables, SlotDescriptor};

use super::ScanOptions;
use super::automaton::State;
use super::chain::{Outcome, PIECE_BYTES};
use super::error::ScanError;
use super::handler::SCAN_OPCODE;
use super::plan::Plan;
use super::producer::{LEAD_BYTES, SEGMENT_ALIGN};
use super::stats::{Latency, Occupancy};

use batches::{Batches, Staged};
use live::Live;

/// Batches that a producer has at a time: one on the device, one being filled.
pub(super) const BATCHES: usize = 2;

/// How long a batch may take. An item takes microseconds; who waits longer than this has lost its device.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);

/// What an item steps over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// First byte in the payload, warm-up included.
    pub(super) offset: u32,
    pub(super) warm_up: u32,
    pub(super) len: u32,
    /// The table.
    pub(super) group: u32,
    pub(super) entry: State,
}

impl Item {
    /// The item as a slot, of a payload that begins at `payload`.
    fn slot(&self, payload: u32) -> SlotDescriptor {
        let args = [payload + self.offset, self.warm_up, self.len, self.group, self.entry.into()];
        SlotDescriptor::new(SCAN_OPCODE).args(args)
    }

    fn steps(&self) -> u32 {
        self.warm_up + self.len
    }
}

/// The places of items, those of one length side by side: those that run together wait for the longest.
fn in_order_of_length(items: &[Item]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(items.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(items.get(at as usize).map(Item::steps)));
    order
}

/// Bytes of payload for so many items.
const fn payload_bytes(items: usize) -> usize {
    items * (PIECE_BYTES + SEGMENT_ALIGN) + LEAD_BYTES + PIECE_BYTES
}

fn too_large(plan: &Plan, options: &ScanOptions) -> ScanError {
    ScanError::TooLarge { tables: plan.groups().len(), producers: options.producers }
}

/// The words of all tables, as bytes.
fn table_words(plan: &Plan) -> Result<Vec<u8>, ScanError> {
    let tables: Vec<_> = plan.groups().iter().map(|group| group.automaton.table()).collect();
    let tables = DfaTables::new(&tables).map_err(ScanError::megakernel("encode the tables"))?;
    Ok(tables.words().iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// Room for the bytes of a batch.
pub(super) enum Payload {
    /// In a session's arena.
    Live(SessionPayload, Arc<Live>),
    /// On the host, until its batch is dispatched.
    Staged(Staged, Arc<Batches>),
}

impl Payload {
    pub(super) fn len(&self) -> usize {
        match self {
            Payload::Live(payload, _) => payload.len() as usize,
            Payload::Staged(payload, _) => payload.len(),
        }
    }

    pub(super) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), ScanError> {
        match self {
            Payload::Live(payload, _) => {
                payload.write(at, bytes).map_err(ScanError::megakernel("write a payload"))
            }
            Payload::Staged(payload, _) => {
                payload.write(at, bytes);
                Ok(())
            }
        }
    }

    /// Runs items over the payload, or has them run; it must stay as it is until they have been waited for.
    /// `None` if there is no room: slots are reused in the order of their tickets, so one batch that nobody
    /// has taken the results of holds back everybody else's, however few there are.
    pub(super) fn submit(&self, items: &[Item]) -> Result<Option<Submitted>, ScanError> {
        match self {
            Payload::Live(payload, live) => {
                let submitted = live.submit(payload, items)?;
                Ok(submitted.map(|submitted| Submitted::Live(submitted, Arc::clone(live))))
            }
            Payload::Staged(payload, batches) => batches.run(payload, items).map(Submitted::Done).map(Some),
        }
    }
}

/// Items on the device.
pub(super) enum Submitted {
    /// In a ring.
    Live(live::Submitted, Arc<Live>),
    /// Dispatched, and done.
    Done(Vec<Outcome>),
}

impl Submitted {
    /// Waits for the items and takes their outcomes, in the order in which the items were given.
    pub(super) fn wait(self) -> Result<Vec<Outcome>, ScanError> {
        match self {
            Submitted::Live(submitted, live) => live.wait(submitted),
            Submitted::Done(outcomes) => Ok(outcomes),
        }
    }
}

/// What runs the items of one scan, with room for everything that its producers can have there.
pub(super) enum Device {
    Live(Arc<Live>),
    Batches(Arc<Batches>),
}

impl Device {
    pub(super) fn start(
        backend: Arc<dyn VyreBackend>,
        plan: &Plan,
        options: &ScanOptions,
    ) -> Result<Device, ScanError> {
        if backend.capabilities().persistent {
            Live::start(backend, plan, options).map(|live| Device::Live(Arc::new(live)))
        } else {
            Batches::start(backend, plan, options).map(|batches| Device::Batches(Arc::new(batches)))
        }
    }

    /// Items of a batch at most; [`BATCHES`] of them fit for each producer.
    pub(super) fn batch_items(&self) -> usize {
        match self {
            Device::Live(live) => live.batch_items(),
            Device::Batches(batches) => batches.batch_items(),
        }
    }

    /// Room for the bytes of a batch.
    pub(super) fn payload(&self) -> Result<Payload, ScanError> {
        match self {
            Device::Live(live) => Ok(Payload::Live(live.payload()?, Arc::clone(live))),
            Device::Batches(batches) => Ok(Payload::Staged(batches.payload()?, Arc::clone(batches))),
        }
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        match self {
            Device::Live(live) => live.occupancy(),
            Device::Batches(batches) => batches.occupancy(),
        }
    }

    pub(super) fn latency(&self) -> Option<Latency> {
        match self {
            Device::Live(live) => live.latency(),
            Device::Batches(_) => None,
        }
    }

    /// Losses that it recovered from.
    pub(super) fn recoveries(&self) -> u64 {
        match self {
            Device::Live(live) => live.recoveries(),
            Device::Batches(_) => 0,
        }
    }

    /// What was observed of the last one.
    pub(super) fn last_loss(&self) -> Option<String> {
        match self {
            Device::Live(live) => live.last_loss(),
            Device::Batches(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use vyre_cpu::CpuBackend;
    use vyre_runtime::MegakernelError;

    use super::*;
    use crate::scan::Rules;

    const RULES: &[u8] = b"a\tab+c\nb\t(?s-u)BEGIN.*END\nc\t(?-u:\\b)[0-9]{3,}x\nd\t(?m)^$\n";

    /// A device of either kind.
    fn devices(rules: &[u8]) -> ([Device; 2], Plan) {
        let plan = Plan::new(&Rules::parse(rules).expect("rules"));
        let options = ScanOptions::default();
        let live = Live::start(Arc::new(CpuBackend::new()), &plan, &options).expect("a session");
        let batches = Batches::start(Arc::new(CpuBackend::new()), &plan, &options).expect("a megakernel");
        ([Device::Live(Arc::new(live)), Device::Batches(Arc::new(batches))], plan)
    }

    #[test]
    fn items_compute_what_the_automaton_does() {
        // Two tables, so that the table's number counts.
        let mut rules = RULES.to_vec();
        (0..40).for_each(|n| rules.extend(format!("n{n}\tx{n}y\n").into_bytes()));
        let (devices, plan) = devices(&rules);
        assert!(plan.groups().len() > 1);
        let text: Vec<u8> = b"abbc BEGIN 123x\n\nx7y END ac 12x abc\xFF x39y".repeat(40);
        let mut items = Vec::new();
        for (group, planned) in plan.groups().iter().enumerate() {
            for (begin, warm_up, len) in
                [(0, 0, 0), (0, 0, 1), (0, 0, 1024), (3, 64, 1000), (7, 5, 0), (9, 1, 77)]
            {
                for entry in [planned.automaton.start(None), planned.automaton.start(Some(b'x')), 1] {
                    items.push(Item { offset: 12 + begin, warm_up, len, group: group as u32, entry });
                }
            }
        }
        for device in devices {
            // Not the first payload, and not at its beginning.
            let _first = device.payload().expect("a payload");
            let mut payload = device.payload().expect("another");
            payload.write(12, &text).expect("written");
            let submitted = payload.submit(&items).expect("submitted").expect("room");
            let outcomes = submitted.wait().expect("done");
            assert_eq!(outcomes.len(), items.len());
            for (item, outcome) in items.iter().zip(outcomes) {
                let automaton = &plan.groups()[item.group as usize].automaton;
                let begin = item.offset as usize - 12;
                let border = begin + item.warm_up as usize;
                let (state, _) = automaton.run(item.entry, &text[begin..border]);
                let (exit, accepted) = automaton.run(state, &text[border..border + item.len as usize]);
                assert_eq!(outcome, Outcome { exit, border: state, accepted }, "{item:?}");
            }
            assert_eq!(device.occupancy().most, items.len() as u64);
        }
    }

    #[test]
    fn a_table_that_does_not_exist_is_a_fault() {
        let (devices, _) = devices(RULES);
        for device in devices {
            let payload = device.payload().expect("a payload");
            let item = Item { offset: 0, warm_up: 0, len: 8, group: 1, entry: 0 };
            let done = payload.submit(&[item]).and_then(|submitted| submitted.expect("room").wait());
            let error = done.expect_err("a fault");
            let ScanError::Megakernel { source: MegakernelError::Faulted { code, .. }, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(code, vyre_driver::Fault::Trap(crate::scan::NO_TABLE).code());
        }
    }

    #[test]
    fn a_full_ring_is_not_an_error() {
        let ([device, _], _) = devices(RULES);
        let payload = device.payload().expect("a payload");
        let items = vec![Item { offset: 0, warm_up: 0, len: 8, group: 0, entry: 0 }; device.batch_items()];
        let mut held = Vec::new();
        while let Some(submitted) = payload.submit(&items).expect("submitted") {
            held.push(submitted);
        }
        assert_eq!(device.occupancy().most, device.occupancy().slots);
        held.remove(0).wait().expect("done");
        assert!(payload.submit(&items).expect("submitted").is_some());
    }
}
