//! The scanner's device: tables on it, the bytes of a batch in a session's arena, items through its ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vyre_driver::VyreBackend;
use vyre_runtime::session::{Payload, SessionOptions, Tickets};
use vyre_runtime::{
    BatchDescriptor, DfaTables, Megakernel, MegakernelError, PersistentSession, SessionTrace, SlotDescriptor,
};

use super::ScanOptions;
use super::automaton::State;
use super::chain::{Outcome, PIECE_BYTES};
use super::error::ScanError;
use super::handler::{SCAN_OPCODE, TABLES_BINDING, scan_handler};
use super::plan::Plan;
use super::producer::{LEAD_BYTES, SEGMENT_ALIGN};
use super::stats::{Latency, Occupancy};

/// Batches that a producer has at a time: one on the device, one being filled.
pub(super) const BATCHES: usize = 2;

/// How long a batch may take. An item takes microseconds; who waits longer than this has lost its device.
pub(super) const DEADLINE: Duration = Duration::from_secs(120);

/// Items that a producer submits at once, at least: enough to keep a wide device busy.
const BATCH_ITEMS: usize = 256;

/// Slots for each item that can be there: how far the others may get ahead of the slowest producer.
const SLACK: usize = 2;

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

/// The words of all tables, as bytes.
fn table_words(plan: &Plan) -> Result<Vec<u8>, ScanError> {
    let tables: Vec<_> = plan.groups().iter().map(|group| group.automaton.table()).collect();
    let tables = DfaTables::new(&tables).map_err(ScanError::megakernel("encode the tables"))?;
    Ok(tables.words().iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// Items on the device.
pub(super) struct Submitted {
    tickets: Tickets,
    /// The place among the items of each ticket.
    order: Vec<u32>,
}

/// A session, with room for everything that the producers of one scan can have in it.
pub(super) struct Device {
    session: PersistentSession,
    /// Items of a batch at most.
    batch_items: usize,
    /// Bytes of a batch's payload.
    payload_bytes: u32,
    /// Slots in use now, and after each submission: their sum, how often, and the most.
    in_use: AtomicU64,
    sum: AtomicU64,
    looks: AtomicU64,
    most: AtomicU64,
}

impl Device {
    pub(super) fn start(
        backend: Arc<dyn VyreBackend>,
        plan: &Plan,
        options: &ScanOptions,
    ) -> Result<Device, ScanError> {
        if !backend.capabilities().persistent {
            return Err(ScanError::NotPersistent { backend: backend.identity().name.clone() });
        }
        // A batch takes a piece for every table at least.
        let batch_items = BATCH_ITEMS.max(plan.groups().len());
        let batches = options.producers * BATCHES;
        let payload_bytes = payload_bytes(batch_items);
        // Allocators waste a little; a third more is plenty.
        let arena = (batches * payload_bytes * 4 / 3).next_multiple_of(16);
        let slots = (SLACK * batches * batch_items).next_power_of_two();
        let too_large = |_| ScanError::TooLarge { tables: plan.groups().len(), producers: options.producers };
        let words = table_words(plan)?;
        let megakernel = Megakernel::builder(backend)
            .handler(scan_handler())
            .build()
            .map_err(ScanError::megakernel("build the megakernel"))?;
        let mut session = SessionOptions::new()
            .slots(u32::try_from(slots).map_err(too_large)?)
            .arena_bytes(u32::try_from(arena).map_err(too_large)?)
            .bind_bytes(TABLES_BINDING, words);
        if options.latency {
            session = session.measure_latency();
        }
        if options.observe {
            session = session.observe("scan");
        }
        if let Some(items) = options.trace {
            session = session.trace(items);
        }
        let session = megakernel.start_with(session).map_err(ScanError::megakernel("start a session"))?;
        Ok(Device {
            session,
            batch_items,
            payload_bytes: u32::try_from(payload_bytes).map_err(too_large)?,
            in_use: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            most: AtomicU64::new(0),
        })
    }

    /// Items of a batch at most; [`BATCHES`] of them fit for each producer.
    pub(super) fn batch_items(&self) -> usize {
        self.batch_items
    }

    /// Room for the bytes of a batch.
    pub(super) fn payload(&self) -> Result<Payload, ScanError> {
        self.session.payload(self.payload_bytes).map_err(ScanError::megakernel("allocate a payload"))
    }

    /// Publishes items. The payload must stay as it is until they have been waited for. `None` if the ring is
    /// full: slots are reused in the order of their tickets, so one batch that nobody has taken the results
    /// of holds back everybody else's, however few there are.
    pub(super) fn submit(&self, payload: &Payload, items: &[Item]) -> Result<Option<Submitted>, ScanError> {
        let order = in_order_of_length(items);
        let in_order = order.iter().filter_map(|&at| items.get(at as usize));
        let batch: BatchDescriptor = in_order.map(|item| item.slot(payload.offset())).collect();
        let tickets = match self.session.submit_batch(&batch) {
            Err(MegakernelError::RingFull { .. }) => return Ok(None),
            submitted => submitted.map_err(ScanError::megakernel("submit a batch"))?,
        };
        let now = self.in_use.fetch_add(items.len() as u64, Ordering::Relaxed) + items.len() as u64;
        self.sum.fetch_add(now, Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.most.fetch_max(now, Ordering::Relaxed);
        Ok(Some(Submitted { tickets, order }))
    }

    /// Waits for items and takes their outcomes, in the order in which the items were given.
    pub(super) fn wait(&self, submitted: Submitted) -> Result<Vec<Outcome>, ScanError> {
        let Submitted { tickets, order } = submitted;
        let mut outcomes = vec![Outcome::default(); order.len()];
        let items = order.len() as u64;
        for (ticket, at) in tickets.zip(order) {
            let completion =
                self.session.wait(ticket, DEADLINE).map_err(ScanError::megakernel("wait for an item"))?;
            if let Some(outcome) = outcomes.get_mut(at as usize) {
                *outcome = Outcome::from_result(completion.result());
            }
        }
        self.in_use.fetch_sub(items, Ordering::Relaxed);
        Ok(outcomes)
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let looks = self.looks.load(Ordering::Relaxed).max(1);
        Occupancy {
            slots: self.session.capacity().into(),
            mean: self.sum.load(Ordering::Relaxed) as f64 / looks as f64,
            most: self.most.load(Ordering::Relaxed),
        }
    }

    pub(super) fn trace(&self) -> Option<SessionTrace> {
        self.session.trace()
    }

    /// Losses that it recovered from.
    pub(super) fn recoveries(&self) -> u64 {
        self.session.telemetry().recoveries
    }

    /// What was observed of the last one.
    pub(super) fn last_loss(&self) -> Option<String> {
        self.session.last_recovery().map(|report| report.reason)
    }

    pub(super) fn latency(&self) -> Option<Latency> {
        let latency = self.session.telemetry().latency?;
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        Some(Latency { items: latency.items, p50_us: micros(latency.p50), p99_us: micros(latency.p99) })
    }
}

#[cfg(test)]
mod tests {
    use vyre_cpu::CpuBackend;
    use vyre_driver::{
        BackendError, BackendIdentity, BufferDesc, BufferHandle, Capabilities, CompiledPipeline, Generation,
        ResidentPipeline, ResidentSpec,
    };
    use vyre_foundation::ValidatedProgram;

    use super::*;
    use crate::scan::Rules;

    const RULES: &[u8] = b"a\tab+c\nb\t(?s-u)BEGIN.*END\nc\t(?-u:\\b)[0-9]{3,}x\nd\t(?m)^$\n";

    fn device(rules: &[u8]) -> (Device, Plan) {
        let plan = Plan::new(&Rules::parse(rules).expect("rules"));
        let device = Device::start(Arc::new(CpuBackend::new()), &plan, &ScanOptions::default());
        (device.expect("a session"), plan)
    }

    #[test]
    fn items_compute_what_the_automaton_does() {
        // Two tables, so that the table's number counts.
        let mut rules = RULES.to_vec();
        (0..40).for_each(|n| rules.extend(format!("n{n}\tx{n}y\n").into_bytes()));
        let (device, plan) = device(&rules);
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
        // Not the first payload, and not at its beginning.
        let _first = device.payload().expect("a payload");
        let mut payload = device.payload().expect("another");
        payload.write(12, &text).expect("written");
        let submitted = device.submit(&payload, &items).expect("submitted").expect("room");
        let outcomes = device.wait(submitted).expect("done");
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

    #[test]
    fn a_table_that_does_not_exist_is_a_fault() {
        let (device, _) = device(RULES);
        let payload = device.payload().expect("a payload");
        let item = Item { offset: 0, warm_up: 0, len: 8, group: 1, entry: 0 };
        let submitted = device.submit(&payload, &[item]).expect("submitted").expect("room");
        let error = device.wait(submitted).expect_err("a fault");
        let ScanError::Megakernel { source: MegakernelError::Faulted { code, .. }, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(code, vyre_driver::Fault::Trap(crate::scan::NO_TABLE).code());
    }

    /// The CPU's, which says that it keeps no kernel resident.
    struct Transient(CpuBackend, Capabilities);

    impl VyreBackend for Transient {
        fn identity(&self) -> &BackendIdentity {
            self.0.identity()
        }
        fn capabilities(&self) -> &Capabilities {
            &self.1
        }
        fn generation(&self) -> Generation {
            self.0.generation()
        }
        fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
            self.0.compile(program)
        }
        fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
            self.0.compile_resident(spec)
        }
        fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
            self.0.create_buffer(desc)
        }
        fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
            self.0.destroy_buffer(buffer)
        }
        fn write_buffer(&self, buffer: BufferHandle, at: u64, bytes: &[u8]) -> Result<(), BackendError> {
            self.0.write_buffer(buffer, at, bytes)
        }
        fn read_buffer(&self, buffer: BufferHandle, at: u64, into: &mut [u8]) -> Result<(), BackendError> {
            self.0.read_buffer(buffer, at, into)
        }
        fn recover(&self) -> Result<Generation, BackendError> {
            self.0.recover()
        }
    }

    #[test]
    fn a_backend_that_keeps_no_kernel_is_refused_by_name() {
        let cpu = CpuBackend::new();
        let capabilities = Capabilities { persistent: false, ..cpu.capabilities().clone() };
        let plan = Plan::new(&Rules::parse(RULES).expect("rules"));
        let backend = Arc::new(Transient(cpu, capabilities));
        let error = Device::start(backend, &plan, &ScanOptions::default()).err().expect("refused");
        assert!(error.to_string().starts_with("backend `cpu` keeps no kernel resident"), "{error}");
    }

    #[test]
    fn a_full_ring_is_not_an_error() {
        let (device, _) = device(RULES);
        let payload = device.payload().expect("a payload");
        let items = vec![Item { offset: 0, warm_up: 0, len: 8, group: 0, entry: 0 }; device.batch_items()];
        let mut held = Vec::new();
        while let Some(submitted) = device.submit(&payload, &items).expect("submitted") {
            held.push(submitted);
        }
        assert_eq!(device.occupancy().most, device.occupancy().slots);
        device.wait(held.remove(0)).expect("done");
        assert!(device.submit(&payload, &items).expect("submitted").is_some());
    }
}
