//! What one dispatch needs beside its kernel: a stream, a control block, and a word that aborts it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::DeviceError;
use crate::device::{Context, DeviceMemory, HostMemory as _, PinnedMemory, Stream, StreamPriority};
use crate::emit::abi::Control;

/// How many lanes wait for the next dispatch at most.
const KEPT: usize = 16;

/// Where the words are in the pinned memory of a lane: the control block on its way there and back, and the
/// word that aborts, each on a cache line of its own.
const CONTROL_IN: u64 = 0;
const CONTROL_OUT: u64 = 64;
const ABORT: u64 = 128;
const PINNED_BYTES: u64 = 192;
const CONTROL_BYTES: u64 = size_of::<Control>() as u64;

/// Lanes that no dispatch uses.
pub(super) struct Lanes {
    context: Arc<Context>,
    idle: Mutex<Vec<Lane>>,
}

/// Used by one dispatch at a time.
pub(super) struct Lane {
    stream: Stream,
    control: Arc<DeviceMemory>,
    pinned: Arc<PinnedMemory>,
}

impl Lanes {
    pub(super) fn new(context: &Arc<Context>) -> Lanes {
        Lanes { context: Arc::clone(context), idle: Mutex::default() }
    }

    /// An idle lane, or a new one.
    pub(super) fn take(&self) -> Result<Lane, DeviceError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| Lane::new(&self.context), Ok)
    }

    /// Keeps a lane whose stream was seen idle.
    pub(super) fn give_back(&self, lane: Lane) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(lane);
        }
    }
}

impl Lane {
    fn new(context: &Arc<Context>) -> Result<Lane, DeviceError> {
        Ok(Lane {
            stream: Stream::new(context, StreamPriority::Normal)?,
            control: DeviceMemory::new(context, "a control block", CONTROL_BYTES)?,
            pinned: PinnedMemory::new(context, "a control block", PINNED_BYTES)?,
        })
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The device's address of the control block.
    pub(super) fn control(&self) -> u64 {
        self.control.address()
    }

    /// Enqueues a new control block.
    pub(super) fn begin(&self) -> Result<(), DeviceError> {
        // Nothing of this lane runs, so nobody reads it. The launch orders the store before the kernel.
        self.pinned.word(ABORT)?.store(0, Ordering::Relaxed);
        let control = Control { abort: self.pinned.device_address() + ABORT, ..Control::NEW };
        self.pinned.copy_in(CONTROL_IN, &control.to_bytes())?;
        self.stream.copy_to_device(&self.control, 0, &self.pinned, CONTROL_IN, CONTROL_BYTES)
    }

    /// Enqueues fetching the control block.
    pub(super) fn fetch(&self) -> Result<(), DeviceError> {
        self.stream.copy_to_host(&self.pinned, CONTROL_OUT, &self.control, 0, CONTROL_BYTES)
    }

    /// The control block that was fetched.
    pub(super) fn fetched(&self) -> Result<Control, DeviceError> {
        let mut bytes = [0; CONTROL_BYTES as usize];
        self.pinned.copy_out(CONTROL_OUT, &mut bytes)?;
        Ok(Control::from_bytes(&bytes))
    }

    /// What has the lane's kernel end at its next back edges. It makes no call of the library.
    pub(super) fn aborter(&self) -> impl FnOnce() + Send + 'static {
        let pinned = Arc::clone(&self.pinned);
        move || {
            if let Ok(word) = pinned.word(ABORT) {
                // Relaxed: the kernel looks for the word alone, and again and again.
                word.store(1, Ordering::Relaxed);
            }
        }
    }
}
