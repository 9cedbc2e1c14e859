//! A small item program and a session around it, for the tests of the resident kernel.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::time::Duration;

use vyre_cpu::CpuBackend;
use vyre_driver::layout::RegionConfig;
use vyre_driver::protocol::{ARG_WORDS, Fault, Status, flags, io, opcode};
use vyre_driver::region::SessionRegions;
use vyre_driver::ring::{Completion, ProducerOptions, RawTicket, RingProducer, SlotImage};
use vyre_driver::view::HostView;
use vyre_driver::wait::WaitStrategy;
use vyre_driver::{
    BackendError, BufferDesc, BufferHandle, Mirror, ResidentBinding, ResidentKernel, ResidentPipeline,
    ResidentSpec, StartRequest, VyreBackend,
};
use vyre_foundation::builder::{FunctionBuilder, Operand, ProgramBuilder, Value, Var};
use vyre_foundation::externals::Signature;
use vyre_foundation::{
    Axis, BufferAccess, Builtin, DataType, Granularity, MemorySpace, ReduceOp, ScalarType, ValidatedProgram,
};

/// `a0 + 1`.
pub const ADD_ONE: u32 = 16;
/// Never ends.
pub const SPIN: u32 = 17;
/// `trap(a0)`.
pub const TRAP: u32 = 18;
/// Runs again until `a1` has counted up to `a0`; the result is how often it ran.
pub const COUNT_UP: u32 = 19;
/// Ends with status `a0`.
pub const BAD_STATUS: u32 = 20;
/// Reads `a2` bytes of source `a0` into destination `a1`.
pub const READ: u32 = 21;
/// Sums `0..a0` with a workgroup.
pub const SUM: u32 = 22;
/// `state[a0] += 1`; the old value.
pub const BUMP: u32 = 23;
/// Runs again for ever.
pub const FOR_EVER: u32 = 24;
/// `a0` rounds of a hash of `a1`.
pub const HASH: u32 = 25;
/// The first word of the payload at `a0`.
pub const PAYLOAD: u32 = 26;

/// What [`HASH`] computes.
pub fn hash(rounds: u32, seed: u32) -> u64 {
    (0..rounds).fold(u64::from(seed), |h, i| (h ^ u64::from(i)).wrapping_mul(0x0100_0000_01B3) ^ h >> 29)
}

struct Params {
    opcode: Var,
    flags: Var,
    ticket: Var,
    args: Vec<Var>,
}

fn params(f: &mut FunctionBuilder) -> Params {
    let opcode = f.param("op", ScalarType::U32);
    let _tenant = f.param("tenant", ScalarType::U32);
    let flags = f.param("flags", ScalarType::U32);
    let ticket = f.param("ticket", ScalarType::U64);
    let args = (0..ARG_WORDS).map(|i| f.param(&format!("a{i}"), ScalarType::U32)).collect();
    f.result(ScalarType::U32);
    f.result(ScalarType::U32);
    f.result(ScalarType::U64);
    (0..ARG_WORDS).for_each(|_| f.result(ScalarType::U32));
    Params { opcode, flags, ticket, args }
}

fn end(f: &mut FunctionBuilder, status: impl Into<Value>, result: impl Into<Value>, words: &[Value]) {
    let mut values = vec![status.into(), Value::from(0_u32), result.into()];
    values.extend(words.iter().cloned());
    values.resize(3 + ARG_WORDS, Value::from(0_u32));
    f.ret(values);
}

fn done(f: &mut FunctionBuilder, result: impl Into<Value>) {
    end(f, Status::Done as u32, result, &[]);
}

/// Both item programs.
pub fn programs() -> (ValidatedProgram, ValidatedProgram) {
    let mut p = ProgramBuilder::item("lane", Granularity::Lane);
    let state = p.buffer("state", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 16);
    let payload = p.buffer("payload", MemorySpace::HostVisible, DataType::U32, BufferAccess::Read, 0);
    p.entry(|f| {
        let Params { opcode: op, flags: bits, ticket, args } = params(f);
        let (a0, a1, a2) = (args[0], args[1], args[2]);
        f.switch(op, |s| {
            s.case([ADD_ONE], |f| done(f, (a0 + 1).cast(ScalarType::U64)));
            s.case([SPIN], |f| f.while_(true, |_| {}));
            s.case([TRAP], |f| f.trap(a0));
            s.case([COUNT_UP], |f| {
                let resumed = f.let_("resumed", (bits & flags::RESUMED).ne_(0));
                f.if_(resumed.ne_(a1.ne_(0)), |f| f.trap(98));
                f.if_(a1.ge(a0), |f| done(f, a1.cast(ScalarType::U64)));
                end(f, Status::Requeue as u32, 0_u64, &[a0.into(), a1 + 1]);
            });
            s.case([BAD_STATUS], |f| end(f, a0, 0_u64, &[]));
            s.case([READ], |f| {
                let words =
                    [Value::from(io::READ), a0.into(), a1.into(), 0_u32.into(), 0_u32.into(), a2.into()];
                end(f, Status::WaitIo as u32, 0_u64, &words);
            });
            s.case([SUM], |f| {
                f.if_((bits & flags::RESUMED).ne_(0), |f| f.trap(99));
                end(f, Status::Requeue as u32, 0_u64, &[a0.into()]);
            });
            s.case([BUMP], |f| {
                let old = f.atomic_add(state, a0, 1);
                done(f, old.cast(ScalarType::U64));
            });
            s.case([FOR_EVER], |f| end(f, Status::Requeue as u32, 0_u64, &[a0 + 1]));
            s.case([HASH], |f| {
                let h = f.var_("h", a1.cast(ScalarType::U64));
                f.for_("i", 0, a0, |f, i| {
                    let mixed = (h ^ i.cast(ScalarType::U64)) * 0x0100_0000_01B3_u64;
                    f.assign(h, mixed ^ (h >> 29));
                });
                done(f, h);
            });
            s.case([PAYLOAD], |f| done(f, payload.load(a0).cast(ScalarType::U64)));
            // A fence tells how many items had bumped word 0 before it.
            s.case([opcode::BATCH_FENCE], |f| done(f, state.load(0).cast(ScalarType::U64)));
            s.case([opcode::SHUTDOWN], |f| done(f, ticket));
        });
        let unknown = [Value::from(Status::Fault as u32), Fault::UnknownOpcode.code().into(), 0_u64.into()];
        let rest = std::iter::repeat_n(Value::from(0_u32), ARG_WORDS);
        f.ret(unknown.into_iter().chain(rest).collect::<Vec<_>>());
    });
    let lane = p.validate().unwrap_or_else(|errors| panic!("{errors}"));

    let mut p = ProgramBuilder::item("workgroup", Granularity::Workgroup).workgroup_size([64, 1, 1]);
    p.buffer("state", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 16);
    p.buffer("payload", MemorySpace::HostVisible, DataType::U32, BufferAccess::Read, 0);
    let sum = p.buffer("sum", MemorySpace::Workgroup, DataType::U32, BufferAccess::ReadWrite, 1);
    p.entry(|f| {
        let Params { args, .. } = params(f);
        let a0 = args[0];
        let me = f.let_("me", Builtin::LocalId(Axis::X));
        f.for_step("i", me, a0, 64, |f, i| {
            f.atomic_add(sum, 0, i);
        });
        f.barrier();
        done(f, sum.load(0).cast(ScalarType::U64));
    });
    let workgroup = p.validate().unwrap_or_else(|errors| panic!("{errors}"));
    (lane, workgroup)
}

/// Another program for workgroups: the sum of the lanes of the first subgroup, and of what an external function
/// makes of `a0`.
pub fn workgroup_of_subgroups(external: &Signature) -> ValidatedProgram {
    let mut p = ProgramBuilder::item("subgroups", Granularity::Workgroup).workgroup_size([40, 1, 1]);
    p.buffer("state", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 16);
    p.buffer("payload", MemorySpace::HostVisible, DataType::U32, BufferAccess::Read, 0);
    let external = p.external(external.declare());
    p.entry(|f| {
        let Params { args, .. } = params(f);
        let sum = f.subgroup_reduce(ReduceOp::Add, Builtin::LocalId(Axis::X));
        let made = f.call_external(&external, args[0], [])[0];
        done(f, (sum + made).cast(ScalarType::U64));
    });
    p.validate().unwrap_or_else(|errors| panic!("{errors}"))
}

/// Regions, a producer and the means to start kernels over them.
pub struct Session {
    pub backend: CpuBackend,
    pub regions: SessionRegions,
    pub producer: RingProducer,
    pub host: HostView,
    pub pipeline: Arc<dyn ResidentPipeline>,
    pub state: BufferHandle,
    pub item_deadline: Option<Duration>,
    pub lease: Duration,
}

pub const ARENA_BYTES: u64 = 4096;
pub const STATE_WORDS: u64 = 64;

impl Session {
    pub fn new(backend: CpuBackend, capacity: u32, first_ticket: u64) -> Session {
        let config = RegionConfig {
            workers: 8,
            arena_bytes: ARENA_BYTES,
            mirror_bytes: STATE_WORDS * 4,
            io_entries: 4,
            ..RegionConfig::new(capacity)
        };
        let regions = SessionRegions::create(&config).expect("regions");
        let options = ProducerOptions { first_ticket, ..ProducerOptions::default() };
        let producer = RingProducer::new(&regions, 0, options).expect("producer");
        let (lane, workgroup) = programs();
        let spec = ResidentSpec {
            lane,
            accounting: None,
            workgroup: Some(workgroup),
            workgroup_opcodes: vec![SUM],
            worker_groups: 8,
        };
        let pipeline = backend.compile_resident(&spec).expect("compiles");
        let state =
            backend.create_buffer(&BufferDesc::new("state", DataType::U32, STATE_WORDS)).expect("state");
        Session {
            host: HostView::new(&regions).expect("host view"),
            backend,
            regions,
            producer,
            pipeline,
            state,
            item_deadline: None,
            lease: Duration::from_secs(3600),
        }
    }

    pub fn request(&self) -> StartRequest {
        StartRequest {
            holder: "a test".to_owned(),
            regions: self.regions.clone(),
            bindings: vec![
                ResidentBinding::Buffer(self.state.binding()),
                ResidentBinding::HostToDevice {
                    byte_offset: self.regions.layout.arena().offset,
                    byte_len: ARENA_BYTES,
                },
            ],
            mirrors: vec![Mirror {
                source: self.state.binding(),
                d2h_offset: self.regions.layout.mirror().offset,
            }],
            item_deadline: self.item_deadline,
            lease: self.lease,
        }
    }

    /// Starts where the producer says, over the present d2h region.
    pub fn start(&self) -> Result<Arc<dyn ResidentKernel>, BackendError> {
        self.producer.write_start_record(&self.regions).expect("start record");
        self.pipeline.start(self.request())
    }

    /// Starts again over a fresh d2h region; the old kernel is gone.
    pub fn restart(&mut self) -> Arc<dyn ResidentKernel> {
        self.regions = self.regions.fresh_d2h().expect("d2h");
        self.producer.rebind_d2h(&self.regions).expect("rebind");
        self.host = HostView::new(&self.regions).expect("host view");
        self.start().expect("starts again")
    }

    pub fn submit(&self, opcode: u32, args: &[u32]) -> RawTicket {
        let ticket = self.producer.submit(&image(opcode, args)).expect("room");
        ticket.into_raw()
    }

    pub fn wait(&self, ticket: RawTicket) -> Completion {
        let waited = self.producer.wait_raw(ticket, WaitStrategy::Park, Duration::from_secs(20));
        waited.unwrap_or_else(|error| panic!("ticket {}: {error}", ticket.position()))
    }

    pub fn result(&self, ticket: RawTicket) -> u64 {
        let completion = self.wait(ticket);
        assert!(completion.is_done(), "{completion:?}");
        completion.result()
    }
}

pub fn image(opcode: u32, args: &[u32]) -> SlotImage {
    let mut words = [0; ARG_WORDS];
    words[..args.len()].copy_from_slice(args);
    SlotImage::new(opcode, words)
}
