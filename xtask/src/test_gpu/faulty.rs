//! A backend that can be made to fault: what a worker hosts when its death is the test.
//!
//! A program that bears the name of a fault is that fault; every other program is the wrapped backend's. Emitted
//! kernels cannot fault, so those of a device are written by hand, in `kernels/bench/faults`.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, SocketType};
use vyre::worker::host::WORKER_FD;
use vyre::worker::wire::FrameHeader;
use vyre::worker::wire::handshake::{PROTOCOL_VERSION, READY, Ready};
use vyre_cpu::CpuBackend;
use vyre_driver::{
    BackendError, BackendIdentity, BufferBinding, BufferDesc, BufferHandle, Capabilities, CompiledPipeline,
    DispatchConfig, DispatchOutcome, Generation, ResidentPipeline, ResidentSpec, VyreBackend,
};
use vyre_foundation::ValidatedProgram;
use vyre_foundation::builder::ProgramBuilder;
use vyre_hip::HipBackend;
use vyre_hip::compile::{Architecture, CompileRequest};
use vyre_hip::device::{Function, LaunchConfig, Module, Stream, StreamPriority};

const SOURCE: &str = include_str!("../../../kernels/bench/faults/faults.hip");

/// How long a kernel that hangs is waited for, where whoever waits is not ended first.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a device, or its process, can do wrong while it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    IllegalAddress,
    IllegalInstruction,
    Trap,
    Hang,
    Segv,
    Abort,
    CleanExit,
    Exit,
    FloodedStderr,
    GarbageFrame,
    ShortFrame,
    OversizedFrame,
}

impl Fault {
    const ALL: [Fault; 12] = [
        Fault::IllegalAddress,
        Fault::IllegalInstruction,
        Fault::Trap,
        Fault::Hang,
        Fault::Segv,
        Fault::Abort,
        Fault::CleanExit,
        Fault::Exit,
        Fault::FloodedStderr,
        Fault::GarbageFrame,
        Fault::ShortFrame,
        Fault::OversizedFrame,
    ];

    /// The name of the program that stands for it; of a device's fault, that of the kernel as well.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Fault::IllegalAddress => "fault_illegal_address",
            Fault::IllegalInstruction => "fault_illegal_instruction",
            Fault::Trap => "fault_trap",
            Fault::Hang => "fault_hang",
            Fault::Segv => "fault_segv",
            Fault::Abort => "fault_abort",
            Fault::CleanExit => "fault_clean_exit",
            Fault::Exit => "fault_exit",
            Fault::FloodedStderr => "fault_flooded_stderr",
            Fault::GarbageFrame => "fault_garbage_frame",
            Fault::ShortFrame => "fault_short_frame",
            Fault::OversizedFrame => "fault_oversized_frame",
        }
    }

    /// Whether it takes a GPU.
    pub(crate) const fn is_of_device(self) -> bool {
        matches!(self, Fault::IllegalAddress | Fault::IllegalInstruction | Fault::Trap | Fault::Hang)
    }

    /// A program that a [`FaultyBackend`] takes for this fault. Elsewhere it does nothing.
    pub(crate) fn program(self) -> Result<ValidatedProgram, String> {
        let mut program = ProgramBuilder::kernel(self.name()).workgroup_size([1, 1, 1]);
        program.entry(|_| {});
        program.validate().map_err(|errors| errors.to_string())
    }
}

/// How a worker comes to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Start {
    /// As it should.
    Right,
    /// Never: it has opened its device, and says nothing.
    Late,
    /// It says that it is of another version, once it has opened its device.
    OtherVersion,
}

/// The configuration of a worker: its GPU, or the CPU, and how it starts.
pub(crate) fn config(ordinal: Option<u32>, start: Start) -> [u8; 2] {
    [ordinal.and_then(|ordinal| u8::try_from(ordinal).ok()).unwrap_or(CPU), start as u8]
}

const CPU: u8 = u8::MAX;

/// See the module's documentation.
pub(crate) struct FaultyBackend {
    inner: Arc<dyn VyreBackend>,
    hip: Option<Arc<HipBackend>>,
    /// Loaded before a kernel is resident: a loader may wait until that one leaves.
    functions: OnceLock<Result<Vec<Function>, BackendError>>,
}

impl FaultyBackend {
    /// Opens what [`config`] describes, in a worker.
    pub(crate) fn open(config: &[u8]) -> Result<FaultyBackend, BackendError> {
        let [ordinal, start] = *config else {
            return Err(BackendError::invalid("config", format!("{config:?}"), "a device and a start"));
        };
        let hip = (ordinal != CPU).then(|| HipBackend::open(ordinal.into()).map(Arc::new)).transpose()?;
        let inner: Arc<dyn VyreBackend> = match &hip {
            Some(hip) => Arc::clone(hip) as Arc<dyn VyreBackend>,
            None => Arc::new(CpuBackend::new()),
        };
        if start == Start::OtherVersion as u8 {
            let ready = Ready { version: PROTOCOL_VERSION + 1, text: String::new() }.encode();
            let payload = u32::try_from(ready.len()).unwrap_or(0);
            let header = FrameHeader { kind: READY, payload, fds: 0, request: 0 }.encode();
            send(WORKER_FD, &[header.as_slice(), &ready].concat());
        }
        if start != Start::Right as u8 {
            // Until it is ended.
            loop {
                std::thread::park();
            }
        }
        Ok(FaultyBackend { inner, hip, functions: OnceLock::new() })
    }

    /// The kernels that fault.
    fn functions(&self, hip: &HipBackend) -> Result<&[Function], BackendError> {
        let load = || {
            let context = hip.context();
            let arch = Architecture::of_device(&context.info().arch)
                .map_err(|error| BackendError::invalid("device", error, "an architecture with a compiler"))?;
            let request = CompileRequest {
                name: "faults",
                source: SOURCE,
                headers: &[],
                arch: &arch,
                flags: &[],
                lines: None,
            };
            let object = hip.compiler().compile(&request).map_err(|error| BackendError::CompileFailed {
                program: "faults".to_owned(),
                log: error.to_string(),
            })?;
            let module = Module::load(context, &object.image)?;
            let of_device = Fault::ALL.into_iter().filter(|fault| fault.is_of_device());
            Ok(of_device.map(|fault| module.function(fault.name())).collect::<Result<_, _>>()?)
        };
        self.functions.get_or_init(load).as_deref().map_err(Clone::clone)
    }

    /// Has everything loaded that a resident kernel would keep from being loaded.
    fn load_before_residents(&self) -> Result<(), BackendError> {
        self.hip.as_ref().map_or(Ok(()), |hip| self.functions(hip).map(drop))
    }
}

impl VyreBackend for FaultyBackend {
    fn identity(&self) -> &BackendIdentity {
        self.inner.identity()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn generation(&self) -> Generation {
        self.inner.generation()
    }

    fn compile(&self, program: &ValidatedProgram) -> Result<Arc<dyn CompiledPipeline>, BackendError> {
        let name = program.program().name.as_str();
        let Some(fault) = Fault::ALL.into_iter().find(|fault| fault.name() == name) else {
            return self.inner.compile(program);
        };
        let generation = self.generation();
        let Some(hip) = self.hip.as_ref().filter(|_| fault.is_of_device()) else {
            return Ok(Arc::new(Misbehaving { generation, fault }));
        };
        let functions = self.functions(hip)?;
        let function = functions.iter().find(|function| function.name() == name).cloned();
        let function = function.ok_or_else(|| BackendError::invalid("program", name, "a fault's name"))?;
        let stream = Stream::new(hip.context(), StreamPriority::Normal)?;
        Ok(Arc::new(Faulting { generation, function, stream }))
    }

    fn compile_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        self.load_before_residents()?;
        self.inner.compile_resident(spec)
    }

    fn prepare_resident(&self, spec: &ResidentSpec) -> Result<Arc<dyn ResidentPipeline>, BackendError> {
        self.load_before_residents()?;
        self.inner.prepare_resident(spec)
    }

    fn create_buffer(&self, desc: &BufferDesc) -> Result<BufferHandle, BackendError> {
        self.inner.create_buffer(desc)
    }

    fn destroy_buffer(&self, buffer: BufferHandle) -> Result<(), BackendError> {
        self.inner.destroy_buffer(buffer)
    }

    fn write_buffer(&self, buffer: BufferHandle, byte_offset: u64, bytes: &[u8]) -> Result<(), BackendError> {
        self.inner.write_buffer(buffer, byte_offset, bytes)
    }

    fn read_buffer(
        &self,
        buffer: BufferHandle,
        byte_offset: u64,
        into: &mut [u8],
    ) -> Result<(), BackendError> {
        self.inner.read_buffer(buffer, byte_offset, into)
    }

    fn recover(&self) -> Result<Generation, BackendError> {
        self.inner.recover()
    }
}

/// A kernel that ends the context.
struct Faulting {
    generation: Generation,
    function: Function,
    stream: Stream,
}

impl CompiledPipeline for Faulting {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn dispatch(
        &self,
        _bindings: &[BufferBinding],
        _config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError> {
        let started = Instant::now();
        let launch = LaunchConfig { grid: [1, 1, 1], workgroup: [1, 1, 1], shared_bytes: 0 };
        // SAFETY: the argument is the one word that each of these kernels takes. What the kernel does to the
        // context is the purpose.
        unsafe { self.function.launch(&self.stream, &launch, &1u32.to_ne_bytes()) }?;
        self.stream.wait(PATIENCE)?;
        Ok(DispatchOutcome { elapsed: started.elapsed(), trap: None })
    }
}

/// What ends the process, or should make its parent end it.
struct Misbehaving {
    generation: Generation,
    fault: Fault,
}

impl CompiledPipeline for Misbehaving {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn dispatch(
        &self,
        _bindings: &[BufferBinding],
        _config: &DispatchConfig,
    ) -> Result<DispatchOutcome, BackendError> {
        let header = FrameHeader { kind: READY, payload: u32::MAX, fds: 0, request: 0 }.encode();
        match self.fault {
            Fault::Segv => {
                let nowhere = std::ptr::without_provenance_mut::<u32>(4);
                // SAFETY: it is not safe, and ends this process: that is the purpose.
                unsafe { nowhere.write_volatile(1) }
            }
            Fault::Abort => std::process::abort(),
            Fault::CleanExit => std::process::exit(0),
            Fault::Exit => std::process::exit(7),
            Fault::FloodedStderr => {
                let line = "x".repeat(1023) + "\n";
                // A parent that is gone reads nothing, and this process ends all the same.
                let _ = std::io::stderr().write_all(line.repeat(1024).as_bytes());
                std::process::exit(7)
            }
            Fault::GarbageFrame => say(&[0xAA; 100]),
            Fault::ShortFrame => say(header.get(..5).unwrap_or_default()),
            Fault::OversizedFrame => say(&header),
            Fault::IllegalAddress | Fault::IllegalInstruction | Fault::Trap | Fault::Hang => {}
        }
        // Lied, or did nothing: the answer that follows is a right one.
        Ok(DispatchOutcome { elapsed: Duration::ZERO, trap: None })
    }
}

/// Says this to the parent on every lane: only the host knows which of them is waited at.
fn say(packet: &[u8]) {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        send(number, packet);
    }
}

/// Sends a packet through this descriptor, if that is a lane's.
fn send(number: i32, packet: &[u8]) {
    // SAFETY: what is not open is refused, and nothing of it is kept.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    if rustix::net::sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET) {
        // A parent that is gone is not told.
        let _ = rustix::net::send(fd, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}
