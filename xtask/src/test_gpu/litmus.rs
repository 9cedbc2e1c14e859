//! Litmus tests of the resident kernel's memory ordering: what is published arrives whole, what an item stored is
//! there for whoever has seen its completion, and tags of laps may wrap round. Every word changes with every item,
//! so that a stale one is a wrong answer.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use libtest_mimic::Trial;
use vyre_driver::VyreBackend;
use vyre_driver::wait::WaitStrategy;
use vyre_foundation::DataType;
use vyre_foundation::builder::{Operand, Value};
use vyre_hip::HipBackend;
use vyre_hip::compile::{Architecture, EmittedSource, Platform};
use vyre_hip::emit::{self, QuarterAccess};
use vyre_runtime::item::{HandlerTable, ItemPrograms};
use vyre_runtime::session::{SessionOptions, Tickets};
use vyre_runtime::{
    BatchDescriptor, HandlerBinding, Megakernel, MegakernelError, OpcodeHandler, PersistentSession,
    SlotDescriptor, conformance,
};

use super::Device;
use super::programs::describe;
use super::trial::{Records, Verdict};

type Backend = Arc<dyn VyreBackend>;
type Body = Box<dyn Fn(&Backend) -> Result<(), String> + Send>;

/// Compares its arguments with what its first one says they are.
const CHECK: u32 = 0x60;
/// Stores a message.
const WRITE: u32 = 0x61;
/// Compares a message.
const READ: u32 = 0x62;

/// Words of an item's arguments.
const ARGS: usize = 12;
/// Words of a message, a line of the device's, and messages that there is room for.
const MESSAGE: u32 = 32;
const MESSAGES: u32 = 512;

/// Laps that a tag tells apart.
const LAPS: u64 = 1 << 16;

/// The longest that one wait may take.
const WAIT: Duration = Duration::from_secs(30);

/// Adds the trials of one device. A GPU gets as many items as the bar asks for, the interpreter a share.
pub(crate) fn add(device: &Device, records: &Records, trials: &mut Vec<Trial>) {
    let share = if device.hip.is_some() { 1 } else { 50 };
    let mut add = |name: &str, body: Body| {
        let backend = Arc::clone(&device.backend);
        let name = format!("{}::litmus::{name}", device.name);
        trials.push(records.trial_alone(device, name, move || {
            if !backend.capabilities().persistent {
                return Verdict::Unsupported("the backend keeps no kernel resident".to_owned());
            }
            body(&backend).into()
        }));
    };
    add("publish", Box::new(move |backend| publish(backend, 1 << 12, 10_000_000 / share)));
    // A ring that is never more than half full, and one that always is.
    add("publish_in_a_small_ring", Box::new(move |backend| publish(backend, 64, 2_000_000 / share)));
    add("completion", Box::new(move |backend| completion(backend, 2000 / share)));
    add("wrap", Box::new(|backend| publish(backend, 2, 2 * (LAPS + 1000))));
    if let Some(hip) = device.hip.clone() {
        let name = format!("{}::litmus::single_accesses", device.name);
        trials.push(records.trial(name, move || single_accesses(&hip).unwrap_or_else(Verdict::Failed)));
    }
}

/// Quarters of slots are moved by single accesses of 16 bytes, and not what a compiler narrowed them to: looked up in
/// the machine code.
fn single_accesses(hip: &HipBackend) -> Result<Verdict, String> {
    let arch = Architecture::of_device(&hip.context().info().arch).map_err(|error| describe(&error))?;
    if arch.platform() == Platform::Amd {
        return Ok(Verdict::Unsupported(
            "quarters are moved as two double words, in order, on AMD".to_owned(),
        ));
    }
    if QuarterAccess::from_environment() == QuarterAccess::Fenced {
        return Ok(Verdict::Unsupported("VYRE_FENCED asks for two accesses".to_owned()));
    }
    let handlers = HandlerTable::new(conformance::handlers()).map_err(failed)?;
    let programs = ItemPrograms::new(Arc::new(handlers), conformance::WORKGROUP_SIZE).map_err(failed)?;
    let emitted =
        emit::resident(&programs.spec(1), QuarterAccess::Single).map_err(|error| describe(&error))?;
    let source = EmittedSource { name: "items", source: &emitted.source, lines: &emitted.lines };
    let object = source.request(&arch, |request| hip.compiler().compile(request));
    let object = object.map_err(|error| describe(&error))?;
    let file = std::env::temp_dir().join(format!("vyre-litmus-{}.cubin", std::process::id()));
    std::fs::write(&file, &object.image).map_err(|error| format!("write {}: {error}", file.display()))?;
    let dirs =
        hip.compiler().toolchain_for(&arch).map(|toolchain| toolchain.program_dirs()).unwrap_or_default();
    let beside = dirs.iter().map(|dir| dir.join("cuobjdump")).find(|path| path.is_file());
    let output = Command::new(beside.unwrap_or_else(|| "cuobjdump".into())).arg("-sass").arg(&file).output();
    // A file in the temporary folder; nothing depends on it.
    let _ = std::fs::remove_file(&file);
    let output = match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => return Ok(Verdict::Unsupported(format!("cuobjdump does not run: {error}"))),
    };
    let count = |access: &str| output.lines().filter(|line| line.contains(access)).count();
    // The host's slots; a lane's four quarters of the device's ring, and a wave's one on the way there; a completion.
    for (access, least) in [
        ("LDG.E.128.STRONG.SYS", 1),
        ("LDG.E.128.STRONG.GPU", 4),
        ("STG.E.128.STRONG.GPU", 1),
        ("STG.E.128.STRONG.SYS", 1),
    ] {
        if count(access) < least {
            let found = count(access);
            return Err(format!("{found} of {least} times {access}: a compiler took the accesses apart"));
        }
    }
    Ok(Verdict::Passed)
}

fn failed(error: MegakernelError) -> String {
    describe(&error)
}

/// A word of an item or of a message: another one for every seed, as the factor is odd.
fn word(seed: u32, index: u32) -> u32 {
    (seed ^ index.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b)
}

fn word_of(seed: impl Into<Value>, index: impl Into<Value>) -> Value {
    (seed.into() ^ (index.into() * 0x9e37_79b9_u32)) * 0x85eb_ca6b_u32
}

fn item(seed: u32) -> SlotDescriptor {
    let mut args = [seed; ARGS];
    (1..).zip(args.iter_mut().skip(1)).for_each(|(index, arg)| *arg = word(seed, index));
    SlotDescriptor::new(CHECK).args(args)
}

fn session(backend: &Backend, slots: u32) -> Result<PersistentSession, String> {
    let check = OpcodeHandler::new(CHECK, "check", |h| {
        let seed = h.let_("seed", h.arg(0));
        let wrong = h.var_("wrong", 0_u32);
        for index in 1..ARGS {
            let same = h.arg(index).eq_(word_of(seed, index as u32));
            h.assign(wrong, same.select(wrong, wrong | 1 << index));
        }
        h.complete(wrong.eq_(0).select(seed, !seed));
    });
    let mail = || HandlerBinding::read_write("mail", DataType::U32).min_len(MESSAGE * MESSAGES);
    let write = OpcodeHandler::new(WRITE, "write", |h| {
        let mail = h.buffer("mail");
        let seed = h.let_("seed", h.arg(0));
        let from = h.let_("from", h.arg(1) * MESSAGE);
        h.for_("index", 0, MESSAGE, |h, index| h.store(mail, from + index, word_of(seed, index)));
        h.complete(seed);
    })
    .binding(mail());
    let read = OpcodeHandler::new(READ, "read", |h| {
        let mail = h.buffer("mail");
        let seed = h.let_("seed", h.arg(0));
        let from = h.let_("from", h.arg(1) * MESSAGE);
        let wrong = h.var_("wrong", 0_u32);
        h.for_("index", 0, MESSAGE, |h, index| {
            let same = mail.load(from + index).eq_(word_of(seed, index));
            h.assign(wrong, wrong + same.select(0_u32, 1_u32));
        });
        h.complete(wrong.eq_(0).select(seed, !seed));
    })
    .binding(mail());
    let megakernel = Megakernel::builder(Arc::clone(backend)).handlers([check, write, read]);
    let options = SessionOptions::new().slots(slots).wait_strategy(WaitStrategy::Yield);
    megakernel.build().and_then(|megakernel| megakernel.start_with(options)).map_err(failed)
}

/// Takes the answers of items in order; each must be its seed.
fn expect(session: &PersistentSession, tickets: Tickets, seeds: &[u32]) -> Result<(), String> {
    for (ticket, &seed) in tickets.zip(seeds) {
        let position = ticket.position();
        let answer = session.wait(ticket, WAIT).map_err(failed)?.result();
        if answer != u64::from(seed) {
            return Err(format!("ticket {position}: {answer:#x} for seed {seed:#x}, so it met a stale word"));
        }
    }
    Ok(())
}

/// Publishes items in batches of up to 32, as many as half the ring holds before their answers are asked for.
fn publish(backend: &Backend, slots: u32, items: u64) -> Result<(), String> {
    let session = session(backend, slots)?;
    let most = (slots / 2).clamp(1, 32);
    let mut random = Rng::with_seed(items);
    let mut waiting: VecDeque<(Tickets, Vec<u32>)> = VecDeque::new();
    let (mut published, mut outstanding) = (0_u64, 0_u32);
    while published < items {
        let seeds: Vec<u32> = (0..random.u32(1..=most)).map(|_| random.u32(..)).collect();
        let len = seeds.len() as u32;
        while outstanding + len > (slots / 2).max(len) {
            let Some((tickets, seeds)) = waiting.pop_front() else { break };
            outstanding -= seeds.len() as u32;
            expect(&session, tickets, &seeds)?;
        }
        let batch: BatchDescriptor = seeds.iter().map(|&seed| item(seed)).collect();
        waiting.push_back((session.submit_batch(&batch).map_err(failed)?, seeds));
        published += u64::from(len);
        outstanding += len;
    }
    waiting.into_iter().try_for_each(|(tickets, seeds)| expect(&session, tickets, &seeds))?;
    session.stop().map_err(failed)
}

/// Items store messages; once they are acknowledged, others, on other multiprocessors, compare them.
fn completion(backend: &Backend, rounds: u64) -> Result<(), String> {
    let session = session(backend, 1 << 12)?;
    let mut random = Rng::with_seed(rounds);
    let mut places: Vec<u32> = (0..MESSAGES).collect();
    for _ in 0..rounds {
        let mut messages: Vec<(u32, u32)> = places.iter().map(|&place| (random.u32(..), place)).collect();
        for opcode in [WRITE, READ] {
            let items = messages.iter().map(|&(seed, place)| SlotDescriptor::new(opcode).args([seed, place]));
            let batch: BatchDescriptor = items.collect();
            let seeds: Vec<u32> = messages.iter().map(|&(seed, _)| seed).collect();
            expect(&session, session.submit_batch(&batch).map_err(failed)?, &seeds)?;
            random.shuffle(&mut messages);
        }
        random.shuffle(&mut places);
    }
    session.stop().map_err(failed)
}
