//! Items that read and write files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use vyre_driver::VyreBackend;
use vyre_driver::protocol::{Fault, Status, io};
use vyre_foundation::builder::Operand;
use vyre_foundation::{Axis, Builtin, DataType, Granularity};

use super::{Check, HUNDRED, Nonconformance, builder};
use crate::batch::{BatchCompletion, DispatchOptions};
use crate::descriptor::SlotDescriptor;
use crate::error::MegakernelError;
use crate::handler::{HandlerBinding, HandlerBuilder, OpcodeHandler};
use crate::io_service::{IoResource, IoResources};
use crate::megakernel::{Megakernel, MegakernelBuilder};
use crate::session::{PersistentSession, SessionOptions, Ticket};

type Outcome = Result<(), Nonconformance>;
type Backend = Arc<dyn VyreBackend>;

/// Handler: stores block `a0` of the buffer, each word `a1`, counts itself, and writes the block to resource [`OWN`].
const WRITE_BLOCK: u32 = 0x60;
/// The same by a workgroup, after one turn in the queue.
const WRITE_BLOCK_BY_GROUP: u32 = 0x61;
/// Handler: writes `a2` bytes of resource `a0` from `a1` on.
const WRITE: u32 = 0x62;
/// Handler: the same, read.
const READ: u32 = 0x63;
/// Handler: fences resource `a0`, or completes with `a1` unless that is 0.
const FENCE: u32 = 0x64;

/// Words of a block.
const BLOCK: u32 = 16;
/// Bytes of a block.
const BLOCK_BYTES: u32 = BLOCK * 4;
/// Blocks of the buffer.
const BLOCKS: u32 = 256;
/// Bytes of the buffer.
const BYTES: u32 = BLOCKS * BLOCK_BYTES;

/// Tenant 0 may write it.
const OWN: u32 = 7;
/// The same, to be read only.
const READ_ONLY: u32 = 8;
/// The same, and its buffer ends before its range does.
const LONG: u32 = 9;
/// Tenant [`HUNDRED`]'s.
const OF_ANOTHER: u32 = 10;
/// Nobody's.
const MISSING: u32 = 11;

/// The range of the file begins here: nothing is written before it.
const START: u32 = 100;

/// The longest that one wait may take.
const WAIT: Duration = Duration::from_secs(60);

/// Writes files by items, live and in batches, reads them another way, and has what may not be written refused.
///
/// # Errors
///
/// The first difference.
pub fn run_io(backend: &Backend) -> Outcome {
    live(backend)?;
    in_batches(backend)
}

fn handlers() -> [OpcodeHandler; 5] {
    let blocks = || HandlerBinding::read_write("blocks", DataType::U32);
    let runs = || HandlerBinding::read_write("runs", DataType::U32).min_len(1);
    let write = |h: &mut HandlerBuilder<'_>| h.io_write(OWN, h.arg(0) * BLOCK_BYTES, BLOCK_BYTES);
    [
        OpcodeHandler::new(WRITE_BLOCK, "write_block", move |h| {
            let (blocks, runs) = (h.buffer("blocks"), h.buffer("runs"));
            h.atomic_add(runs, 0, 1);
            h.for_("at", 0, BLOCK, |h, at| h.store(blocks, h.arg(0) * BLOCK + at, h.arg(1)));
            write(h);
        })
        .binding(blocks())
        .binding(runs()),
        OpcodeHandler::new(WRITE_BLOCK_BY_GROUP, "write_block_by_group", move |h| {
            let (blocks, runs) = (h.buffer("blocks"), h.buffer("runs"));
            let id = h.let_("id", Builtin::LocalId(Axis::X));
            h.if_(h.arg(2).eq_(0), |h| {
                h.if_(id.eq_(0), |h| {
                    h.atomic_add(runs, 0, 1);
                });
                h.requeue([h.arg(0), h.arg(1), 1_u32.into()]);
            });
            h.if_(id.lt(BLOCK), |h| h.store(blocks, h.arg(0) * BLOCK + id, h.arg(1)));
            write(h);
        })
        .binding(blocks())
        .binding(runs())
        .granularity(Granularity::Workgroup),
        OpcodeHandler::new(WRITE, "write", |h| h.io_write(h.arg(0), h.arg(1), h.arg(2))).binding(blocks()),
        OpcodeHandler::new(READ, "read", |h| h.io_read(h.arg(0), h.arg(1), h.arg(2))).binding(blocks()),
        OpcodeHandler::new(FENCE, "fence", |h| {
            h.if_(h.arg(1).ne_(0), |h| h.complete(h.arg(1)));
            h.io_fence(h.arg(0));
        }),
    ]
}

fn megakernel(backend: &Backend) -> Result<MegakernelBuilder, MegakernelError> {
    Ok(builder(Arc::clone(backend))?.handlers(handlers()))
}

/// What block `block` holds: the word that all of its words are.
const fn value(block: u32) -> u32 {
    0x5EED_0001_u32.wrapping_mul(block + 1)
}

fn write_block(block: u32) -> SlotDescriptor {
    let opcode = if block.is_multiple_of(3) { WRITE_BLOCK_BY_GROUP } else { WRITE_BLOCK };
    SlotDescriptor::new(opcode).args([block, value(block)])
}

/// All blocks, in an order that is none.
fn shuffled() -> impl Iterator<Item = u32> {
    (0..BLOCKS).map(|n| n * 77 % BLOCKS)
}

/// What the file holds when all is written: [`START`] bytes that are nobody's, then the blocks.
fn expected() -> Vec<u8> {
    let words = (0..BLOCKS).flat_map(|block| std::iter::repeat_n(value(block), BLOCK as usize));
    vec![0; START as usize].into_iter().chain(words.flat_map(u32::to_le_bytes)).collect()
}

/// A file that is in no folder.
struct Scratch {
    at: Check,
    file: File,
}

impl Scratch {
    fn new(name: &'static str) -> Result<Scratch, Nonconformance> {
        let at = Check(name);
        let made = rustix::fs::memfd_create("vyre-conformance", MemfdFlags::CLOEXEC);
        let file = at.file(made.map_err(std::io::Error::from))?.into();
        Ok(Scratch { file, at })
    }

    fn resource(&self, range: std::ops::Range<u32>) -> Result<IoResource, Nonconformance> {
        let file = self.at.file(self.file.try_clone())?;
        self.at.ok(IoResource::new(file, range.start.into()..range.end.into(), "blocks", 0))
    }

    /// Every resource, by tenant and id.
    fn resources(&self) -> Result<[(u16, u32, IoResource); 4], Nonconformance> {
        let whole = || self.resource(START..START + BYTES);
        let writable = |resource: IoResource| self.at.ok(resource.writable());
        Ok([
            (0, OWN, writable(whole()?)?),
            (0, READ_ONLY, whole()?),
            (0, LONG, writable(self.resource(START..START + 2 * BYTES)?)?),
            (HUNDRED, OF_ANOTHER, writable(whole()?)?),
        ])
    }

    /// What is in the file, by the system's own word.
    fn content(&self) -> Result<Vec<u8>, Nonconformance> {
        let mut bytes = vec![0; self.at.file(self.file.metadata())?.len() as usize];
        self.at.file(self.file.read_exact_at(&mut bytes, 0))?;
        Ok(bytes)
    }

    fn expect(&self, what: &str, expected: &[u8]) -> Outcome {
        let content = self.content()?;
        self.at.same(&format!("the length of the file, {what}"), content.len(), expected.len())?;
        let differs = content.iter().zip(expected).position(|(got, expected)| got != expected);
        self.at.same(&format!("the first wrong byte of the file, {what}"), differs, None)
    }
}

/// What is refused, before anything is moved: an item, its tenant, and the error number.
fn refused() -> [(SlotDescriptor, u16, u64); 9] {
    let item = |opcode, args: [u32; 3]| SlotDescriptor::new(opcode).args(args);
    [
        (item(WRITE, [MISSING, 0, 4]), 0, 2),
        (item(WRITE, [OF_ANOTHER, 0, 4]), 0, 2),
        (item(WRITE, [OWN, 0, 4]), HUNDRED, 2),
        (item(WRITE, [READ_ONLY, 0, 4]), 0, 13),
        (item(WRITE, [OWN, BYTES - 4, 8]), 0, 22),
        (item(WRITE, [OWN, BYTES + 4, 0]), 0, 22),
        // A first part of it would fit.
        (item(WRITE, [LONG, BYTES - 4, 8]), 0, 22),
        (item(FENCE, [MISSING, 0, 0]), 0, 2),
        (item(FENCE, [OWN, 0, 0]), HUNDRED, 2),
    ]
}

fn live(backend: &Backend) -> Outcome {
    let scratch = Scratch::new("files, live")?;
    let at = &scratch.at;
    let options = SessionOptions::new()
        .slots(512)
        .io_entries(16)
        .bind_zeroed("blocks", (BLOCKS * BLOCK).into())
        .bind_zeroed("runs", 1);
    let session = at.ok(megakernel(backend).and_then(|builder| builder.build()?.start_with(options)))?;
    for (tenant, id, resource) in scratch.resources()? {
        at.ok(session.register_resource(tenant, id, resource))?;
    }
    for (item, tenant, errno) in refused() {
        let ticket = at.ok(session.submit(item.clone().tenant(tenant)))?;
        expect_fault(at, &session, &ticket, &item, errno)?;
    }
    scratch.expect("before anything is written", &[])?;
    let tickets: Vec<Ticket> =
        shuffled().map(|block| at.ok(session.submit(write_block(block)))).collect::<Result<_, _>>()?;
    // What has asked ends by its answer, what has not runs in the next kernel: nothing runs twice.
    at.ok(session.restart(WAIT))?;
    for ticket in tickets {
        at.same("bytes written", at.ok(session.wait(ticket, WAIT))?.result(), BLOCK_BYTES.into())?;
    }
    for id in [OWN, io::ALL] {
        let fence = at.ok(session.submit(SlotDescriptor::new(FENCE).args([id])))?;
        at.same("what a fence completes with", at.ok(session.wait(fence, WAIT))?.result(), 0)?;
    }
    scratch.expect("when all is written", &expected())?;
    let mut runs = [0; 4];
    at.ok(session.download("runs", 0, &mut runs))?;
    at.same("runs of the items that write", u32::from_le_bytes(runs), BLOCKS)?;

    // And back, from where the system wrote.
    at.file(scratch.file.write_all_at(b"vyre", (START + 8).into()))?;
    let read = at.ok(session.submit(SlotDescriptor::new(READ).args([READ_ONLY, 4, 12])))?;
    at.same("bytes read", at.ok(session.wait(read, WAIT))?.result(), 12)?;
    let mut bytes = [0; 16];
    at.ok(session.download("blocks", 0, &mut bytes))?;
    let word = value(0).to_le_bytes();
    at.same("what was read", bytes.to_vec(), [word, word, *b"vyre", word].concat())?;
    at.ok(session.stop())
}

fn expect_fault(
    at: &Check,
    session: &PersistentSession,
    ticket: &Ticket,
    item: &SlotDescriptor,
    errno: u64,
) -> Outcome {
    at.ok(session.drain(WAIT))?;
    let got = at.ok(session.take(ticket))?.map(|done| (done.as_fault(), done.result()));
    at.same(&format!("{item:?}"), got, Some((Some(Fault::Io), errno)))
}

fn in_batches(backend: &Backend) -> Outcome {
    let scratch = Scratch::new("files, in batches")?;
    let at = &scratch.at;
    let built = megakernel(backend).and_then(|builder| {
        builder.bind_zeroed("blocks", (BLOCKS * BLOCK).into()).bind_zeroed("runs", 1).build()
    });
    let megakernel: Megakernel = at.ok(built)?;
    let resources = IoResources::default();
    for (tenant, id, resource) in scratch.resources()? {
        resources.register(tenant, id, resource);
    }
    let options = DispatchOptions::default();
    let mut batch = megakernel.batch_buffers();
    for (slot, (item, tenant, _)) in refused().into_iter().enumerate() {
        at.ok(batch.ring.publish(slot, &item.tenant(tenant)))?;
    }
    at.ok(megakernel.dispatch(&mut batch, &options))?;
    at.ok(megakernel.serve_io(&resources, &mut batch.io_queue))?;
    at.ok(megakernel.dispatch(&mut batch, &options))?;
    for (slot, (item, _, errno)) in refused().into_iter().enumerate() {
        let fault = BatchCompletion { status: Status::Fault, code: Fault::Io.code(), result: errno };
        at.same(&format!("{item:?}"), at.ok(batch.ring.completion(slot))?, fault)?;
    }
    scratch.expect("before anything is written", &[])?;

    // Those that might have asked need no place once they have not.
    let mut batch = megakernel.batch_buffers();
    for slot in 0..200 {
        at.ok(batch.ring.publish(slot, &SlotDescriptor::new(FENCE).args([OWN, 9])))?;
    }
    at.ok(megakernel.dispatch(&mut batch, &options))?;
    for slot in 0..200 {
        let done = BatchCompletion { status: Status::Done, code: 0, result: 9 };
        at.same(&format!("slot {slot}, which does not ask"), at.ok(batch.ring.completion(slot))?, done)?;
    }

    // More than the queue has room for: those without a place run later, and once.
    let mut batch = megakernel.batch_buffers();
    for (slot, block) in shuffled().enumerate() {
        at.ok(batch.ring.publish(slot, &write_block(block)))?;
    }
    let mut served = 0;
    for _ in 0..=BLOCKS.div_ceil(crate::batch::IO_ENTRIES as u32) {
        at.ok(megakernel.dispatch(&mut batch, &options))?;
        served += at.ok(megakernel.serve_io(&resources, &mut batch.io_queue))?;
    }
    at.same("requests served", served, BLOCKS as usize)?;
    for slot in 0..BLOCKS as usize {
        let done = BatchCompletion { status: Status::Done, code: 0, result: BLOCK_BYTES.into() };
        at.same(&format!("slot {slot}"), at.ok(batch.ring.completion(slot))?, done)?;
    }
    scratch.expect("when all is written", &expected())?;
    let mut runs = [0; 4];
    if let Some(bound) = megakernel.buffer("runs") {
        let read = megakernel.backend().read_buffer(bound.buffer, bound.byte_offset, &mut runs);
        at.ok(read.map_err(MegakernelError::backend("read the count of runs")))?;
    }
    at.same("runs of the items that write", u32::from_le_bytes(runs), BLOCKS)
}
