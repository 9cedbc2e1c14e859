//! What the parent asks and the host answers: plain data, encoded with postcard.
//!
//! A call is one frame each way on a lane. What does not fit a frame goes by the transfer arena: a long request
//! is left there for the host to copy, a long answer is fetched in pieces. Numbers are the host's names for
//! what it holds; the parent never sees a handle of the hosted backend.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vyre_driver::{
    BackendIdentity, BufferDesc, Capabilities, DispatchConfig, DispatchOutcome, KernelState,
    PersistentThreadMode, Trap,
};
use vyre_foundation::{DataType, MemorySpace};

use super::failure::Failure;

/// Version of the messages on this page and of the status page.
pub(crate) const HOST_VERSION: u32 = 2;

/// Bytes of a request or an answer at most.
pub(crate) const MAX_MESSAGE: u64 = 64 << 20;

/// What a frame holds.
pub(crate) mod kind {
    /// A [`Request`](super::Request).
    pub(crate) const CALL: u16 = 0x40;
    /// A [`Place`](super::Place) where a request lies in the arena.
    pub(crate) const LONG_CALL: u16 = 0x41;
    /// A [`Piece`](super::Piece) of the last long answer, to be copied into the arena.
    pub(crate) const FETCH: u16 = 0x42;
    /// An [`Answer`](super::Answer).
    pub(crate) const ANSWER: u16 = 0x50;
    /// A `u64`: how long the answer is, which waits to be fetched.
    pub(crate) const LONG_ANSWER: u16 = 0x51;
    /// Nothing: the piece is in the arena.
    pub(crate) const FETCHED: u16 = 0x52;
}

/// Bytes in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// Bytes of a long answer from `from` on, and where to copy them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) from: u64,
    pub(crate) to: Place,
}

/// What the parent asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Who are you? With the status page.
    Attach,
    /// Serve another lane. With its socket.
    Lane,
    Compile {
        program: Vec<u8>,
    },
    CompileResident {
        lane: Vec<u8>,
        accounting: Option<Vec<u8>>,
        workgroup: Option<Vec<u8>>,
        workgroup_opcodes: Vec<u32>,
        worker_groups: u32,
        /// Whether it is to take the place of a kernel that is resident.
        beside: bool,
    },
    CreateBuffer {
        label: String,
        element: u8,
        len: u64,
        space: u8,
    },
    DestroyBuffer {
        buffer: u64,
    },
    /// Copies from the arena into a buffer.
    Write {
        buffer: u64,
        byte_offset: u64,
        from: Place,
    },
    /// Copies from a buffer into the arena.
    Read {
        buffer: u64,
        byte_offset: u64,
        to: Place,
    },
    /// One row is a plain dispatch.
    Dispatch {
        pipeline: u64,
        rows: Vec<Vec<Range>>,
        grid: [u32; 3],
        deadline: Option<Duration>,
        label: Option<String>,
        persistent: u8,
    },
    /// With the h2d region's descriptor, read-only, and the d2h region's.
    Start {
        pipeline: u64,
        holder: String,
        bindings: Vec<Bound>,
        mirrors: Vec<(Range, u64)>,
        item_deadline: Option<Duration>,
        lease: Duration,
    },
    Quiesce {
        kernel: u64,
        deadline: Duration,
    },
    Reap {
        kernel: u64,
        deadline: Duration,
    },
    /// What the status page has no room for.
    State {
        kernel: u64,
    },
    ReleasePipeline {
        pipeline: u64,
    },
    ReleaseKernel {
        kernel: u64,
    },
}

/// A range of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) buffer: u64,
    pub(crate) byte_offset: u64,
    pub(crate) byte_len: u64,
}

/// What a resident kernel's buffer is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Bound {
    Buffer(Range),
    HostToDevice { byte_offset: u64, byte_len: u64 },
}

/// What the host says.
pub(crate) type Answer = Result<Reply, Failure>;

/// What came of a request.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) enum Reply {
    Done,
    /// The number of what was made.
    Made(u64),
    Attached(Box<Description>),
    Dispatched(Vec<Outcome>),
    /// A resident kernel, and its place on the status page.
    Started {
        kernel: u64,
        slot: u32,
    },
    Stands(State),
}

/// Identity and capabilities.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(PartialEq))]
pub(crate) struct Description {
    version: u32,
    name: String,
    device: String,
    build: String,
    max_workgroup_invocations: u32,
    max_workgroup_bytes: u64,
    max_grid: [u32; 3],
    max_buffer_bytes: u64,
    memory_bytes: u64,
    subgroup_width: u32,
    subgroup_operations: bool,
    resident_workgroups: u32,
    grid_barriers: bool,
    persistent: bool,
    storage: Vec<u8>,
}

impl Description {
    pub(crate) fn new(identity: &BackendIdentity, capabilities: &Capabilities) -> Description {
        let BackendIdentity { name, device, build } = identity.clone();
        let has = capabilities.clone();
        Description {
            version: HOST_VERSION,
            name,
            device,
            build,
            max_workgroup_invocations: has.max_workgroup_invocations,
            max_workgroup_bytes: has.max_workgroup_bytes,
            max_grid: has.max_grid,
            max_buffer_bytes: has.max_buffer_bytes,
            memory_bytes: has.memory_bytes,
            subgroup_width: has.subgroup_width,
            subgroup_operations: has.subgroup_operations,
            resident_workgroups: has.resident_workgroups,
            grid_barriers: has.grid_barriers,
            persistent: has.persistent,
            storage: has.storage.iter().map(|element| element_code(*element)).collect(),
        }
    }

    /// What it describes, or what is wrong with it.
    pub(crate) fn read(self) -> Result<(BackendIdentity, Capabilities), String> {
        if self.version != HOST_VERSION {
            return Err(format!("version {} of the host's messages, not {HOST_VERSION}", self.version));
        }
        let storage: Option<Vec<DataType>> = self.storage.iter().map(|code| element(*code)).collect();
        let storage = storage.ok_or_else(|| format!("storage types {:?}", self.storage))?;
        let identity = BackendIdentity { name: self.name, device: self.device, build: self.build };
        let capabilities = Capabilities {
            max_workgroup_invocations: self.max_workgroup_invocations,
            max_workgroup_bytes: self.max_workgroup_bytes,
            max_grid: self.max_grid,
            max_buffer_bytes: self.max_buffer_bytes,
            memory_bytes: self.memory_bytes,
            subgroup_width: self.subgroup_width,
            subgroup_operations: self.subgroup_operations,
            resident_workgroups: self.resident_workgroups,
            grid_barriers: self.grid_barriers,
            persistent: self.persistent,
            storage,
        };
        Ok((identity, capabilities))
    }
}

/// A [`DispatchOutcome`]: elapsed time, and code and invocation of a trap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    elapsed: Duration,
    trap: Option<(u32, u64)>,
}

impl From<DispatchOutcome> for Outcome {
    fn from(outcome: DispatchOutcome) -> Outcome {
        let trap = outcome.trap.map(|trap| (trap.code, trap.invocation));
        Outcome { elapsed: outcome.elapsed, trap }
    }
}

impl From<Outcome> for DispatchOutcome {
    fn from(outcome: Outcome) -> DispatchOutcome {
        let trap = outcome.trap.map(|(code, invocation)| Trap { code, invocation });
        DispatchOutcome { elapsed: outcome.elapsed, trap }
    }
}

/// A [`KernelState`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Running,
    ShutDown,
    Stopped,
    CutShort,
    Lost { cause: super::failure::Cause, reason: String },
}

impl From<KernelState> for State {
    fn from(state: KernelState) -> State {
        match state {
            KernelState::Running => State::Running,
            KernelState::ShutDown => State::ShutDown,
            KernelState::Stopped => State::Stopped,
            KernelState::CutShort => State::CutShort,
            KernelState::Lost(loss) => State::Lost { cause: loss.cause.into(), reason: loss.reason },
        }
    }
}

impl From<State> for KernelState {
    fn from(state: State) -> KernelState {
        match state {
            State::Running => KernelState::Running,
            State::ShutDown => KernelState::ShutDown,
            State::Stopped => KernelState::Stopped,
            State::CutShort => KernelState::CutShort,
            State::Lost { cause, reason } => {
                KernelState::Lost(vyre_driver::Loss { cause: cause.into(), reason })
            }
        }
    }
}

const SPACES: [MemorySpace; 4] =
    [MemorySpace::Global, MemorySpace::HostVisible, MemorySpace::Workgroup, MemorySpace::Uniform];
const MODES: [PersistentThreadMode; 3] =
    [PersistentThreadMode::Auto, PersistentThreadMode::Force, PersistentThreadMode::Disable];

fn code<T: PartialEq>(all: &[T], one: &T) -> u8 {
    all.iter().position(|other| other == one).and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

fn element_code(element: DataType) -> u8 {
    code(&DataType::ALL, &element)
}

fn element(code: u8) -> Option<DataType> {
    DataType::ALL.get(usize::from(code)).copied()
}

impl Request {
    pub(crate) fn create(desc: &BufferDesc) -> Request {
        Request::CreateBuffer {
            label: desc.label.clone(),
            element: element_code(desc.element),
            len: desc.len,
            space: code(&SPACES, &desc.space),
        }
    }

    pub(crate) fn dispatch(pipeline: u64, rows: Vec<Vec<Range>>, config: &DispatchConfig) -> Request {
        Request::Dispatch {
            pipeline,
            rows,
            grid: config.grid,
            deadline: config.deadline,
            label: config.label.clone(),
            persistent: code(&MODES, &config.persistent),
        }
    }

    /// What the host is asked, for errors.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Request::Attach => "to describe its backend",
            Request::Lane => "to serve another lane",
            Request::Compile { .. } => "to compile a program",
            Request::CompileResident { .. } => "to compile item programs",
            Request::CreateBuffer { .. } => "to create a buffer",
            Request::DestroyBuffer { .. } => "to destroy a buffer",
            Request::Write { .. } => "to write a buffer",
            Request::Read { .. } => "to read a buffer",
            Request::Dispatch { .. } => "to finish a dispatch",
            Request::Start { .. } => "to start a resident kernel",
            Request::Quiesce { .. } => "to quiesce a resident kernel",
            Request::Reap { .. } => "to reap a resident kernel",
            Request::State { .. } => "to say how a resident kernel stands",
            Request::ReleasePipeline { .. } | Request::ReleaseKernel { .. } => "to let go",
        }
    }
}

/// The description of a buffer, unless it uses a code that nothing has.
pub(crate) fn buffer_desc(label: String, element_code: u8, len: u64, space: u8) -> Option<BufferDesc> {
    let space = *SPACES.get(usize::from(space))?;
    Some(BufferDesc::new(label, element(element_code)?, len).in_space(space))
}

/// The configuration of a dispatch, unless it uses a code that nothing has.
pub(crate) fn dispatch_config(
    grid: [u32; 3],
    deadline: Option<Duration>,
    label: Option<String>,
    persistent: u8,
) -> Option<DispatchConfig> {
    let persistent = *MODES.get(usize::from(persistent))?;
    Some(DispatchConfig { grid, deadline, label, persistent })
}

/// The bytes of a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_allocvec(message)
}

/// The message that bytes are, all of them.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    match postcard::take_from_bytes(bytes)? {
        (message, []) => Ok(message),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_message_are_refused_whatever_they_are() {
        let range = Range { buffer: 1, byte_offset: 2, byte_len: 3 };
        let request = Request::dispatch(5, vec![vec![range; 3]; 2], &DispatchConfig::new([1, 2, 3]));
        let bytes = encode(&request).expect("encodes");
        assert_eq!(decode::<Request>(&bytes).expect("decodes"), request);
        for end in 0..bytes.len() {
            assert!(decode::<Request>(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert!(decode::<Request>(&[bytes.as_slice(), &[0]].concat()).is_err());
        // A count of rows that no frame holds is refused before anything is made of it.
        assert!(decode::<Request>(&[7, 5, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).is_err());
    }

    #[test]
    fn codes_that_nothing_has_are_refused() {
        assert!(
            buffer_desc(String::new(), 8, 1, 0).is_none() && buffer_desc(String::new(), 0, 1, 4).is_none()
        );
        assert!(dispatch_config([1; 3], None, None, 3).is_none());
        for (index, space) in SPACES.into_iter().enumerate() {
            let desc = buffer_desc("b".to_owned(), 2, 1, index as u8).expect("known");
            assert_eq!((desc.space, desc.element), (space, DataType::U32));
        }
    }
}
