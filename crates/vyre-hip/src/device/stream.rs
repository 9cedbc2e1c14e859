//! A queue of operations on the device.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use super::context::{Context, Handle, STREAM_NON_BLOCKING};
use super::event::Event;
use super::host::HostMemory;
use super::memory::{DeviceMemory, check_range};
use super::release::Release;
use super::wait::poll;
use crate::api::{Api, status};
use crate::error::{DeviceError, HipError};

/// What operations under way use, by address, so that one thing used often is kept once.
pub(crate) type KeptAlive = HashMap<usize, Arc<dyn Any + Send + Sync>>;

/// How long dropping a busy stream waits for it.
const DROP_GRACE: Duration = Duration::from_secs(2);

/// Which operations the device prefers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamPriority {
    /// As the library sees fit.
    #[default]
    Normal,
    /// The highest there is. On AMD it also gives the stream a hardware queue that normal streams do not
    /// share, so that none of them waits behind a resident kernel on this one.
    High,
}

/// A queue of operations on the device, executed in order. Never ordered with the default stream, nor with
/// other streams but by an [`Event`].
#[derive(Debug)]
pub struct Stream {
    context: Arc<Context>,
    handle: Handle,
    /// Held while an operation is enqueued and while the stream is asked whether it is idle: what was kept
    /// before a look that found it idle is not needed after it.
    kept: Mutex<KeptAlive>,
}

impl Stream {
    /// A new stream.
    pub fn new(context: &Arc<Context>, priority: StreamPriority) -> Result<Stream, DeviceError> {
        let handle = context.call(|api| {
            let mut handle = std::ptr::null_mut();
            match (priority, highest(api)) {
                (StreamPriority::High, Some(highest)) => {
                    // SAFETY: a valid place for the handle.
                    unsafe { api.stream_create_with_priority(&mut handle, STREAM_NON_BLOCKING, highest) }?;
                }
                // SAFETY: a valid place for the handle.
                _ => unsafe { api.stream_create(&mut handle, STREAM_NON_BLOCKING) }?,
            }
            Ok(Handle(handle))
        })?;
        Ok(Stream { context: Arc::clone(context), handle, kept: Mutex::default() })
    }

    /// Whose it is.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Whether everything enqueued so far is done. A lost device is an error, whatever was enqueued.
    pub fn is_idle(&self) -> Result<bool, DeviceError> {
        // Taken by somebody who enqueues, or looks: not idle, as far as this look can tell. Waiting for the
        // lock would have no deadline, since enqueueing blocks behind a full queue.
        let mut kept = match self.kept.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        // SAFETY: the stream lives as long as `self`.
        let idle = self.context.call(|api| ready(unsafe { api.stream_query(self.handle.0) }))?;
        let done = if idle { std::mem::take(&mut *kept) } else { KeptAlive::new() };
        drop(kept);
        // Outside the lock: what is dropped here may take as long as freeing takes.
        drop(done);
        Ok(idle)
    }

    /// Waits until everything enqueued so far is done.
    pub fn wait(&self, timeout: Duration) -> Result<(), DeviceError> {
        poll(timeout, || format!("a stream of {}", self.context.info().name), || self.is_idle())
    }

    /// Lets what is enqueued after this wait until `event` has happened.
    pub fn wait_for(&self, event: &Arc<Event>) -> Result<(), DeviceError> {
        self.context.must_own("event", event.context())?;
        self.enqueue([keep(event)], |api, stream| {
            // SAFETY: both live, and 0 is the only flag value that both libraries define.
            unsafe { api.stream_wait_event(stream.0, event.handle().0, 0) }
        })
    }

    /// Copies `bytes` bytes from the host to the device.
    pub fn copy_to_device<H: HostMemory>(
        &self,
        to: &Arc<DeviceMemory>,
        to_offset: u64,
        from: &Arc<H>,
        from_offset: u64,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        self.context.must_own("to", to.context())?;
        self.context.must_own("from", from.context())?;
        let device = to.at("to_offset", to_offset, bytes)?;
        check_range("from_offset", from_offset, bytes, from.len())?;
        if bytes == 0 {
            return Ok(());
        }
        let host = Handle(from.host_address().as_ptr().wrapping_add(from_offset as usize).cast());
        self.enqueue([keep(to), keep(from)], |api, stream| {
            // SAFETY: both ranges are inside memory that the stream keeps until it is done.
            unsafe { api.copy_to_device_async(device.0, host.0, bytes as usize, stream.0) }
        })
    }

    /// Copies `bytes` bytes from the device to the host.
    pub fn copy_to_host<H: HostMemory>(
        &self,
        to: &Arc<H>,
        to_offset: u64,
        from: &Arc<DeviceMemory>,
        from_offset: u64,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        self.context.must_own("to", to.context())?;
        self.context.must_own("from", from.context())?;
        let device = from.at("from_offset", from_offset, bytes)?;
        check_range("to_offset", to_offset, bytes, to.len())?;
        if bytes == 0 {
            return Ok(());
        }
        let host = Handle(to.host_address().as_ptr().wrapping_add(to_offset as usize).cast());
        self.enqueue([keep(to), keep(from)], |api, stream| {
            // SAFETY: both ranges are inside memory that the stream keeps until it is done; host memory of
            // this kind is only accessed atomically.
            unsafe { api.copy_to_host_async(host.0, device.0, bytes as usize, stream.0) }
        })
    }

    /// Copies `bytes` bytes on the device. Overlapping ranges give any mixture.
    pub fn copy_on_device(
        &self,
        to: &Arc<DeviceMemory>,
        to_offset: u64,
        from: &Arc<DeviceMemory>,
        from_offset: u64,
        bytes: u64,
    ) -> Result<(), DeviceError> {
        self.context.must_own("to", to.context())?;
        self.context.must_own("from", from.context())?;
        let target = to.at("to_offset", to_offset, bytes)?;
        let source = from.at("from_offset", from_offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.enqueue([keep(to), keep(from)], |api, stream| {
            // SAFETY: both ranges are inside memory that the stream keeps until it is done.
            unsafe { api.copy_on_device_async(target.0, source.0, bytes as usize, stream.0) }
        })
    }

    /// Sets `bytes` bytes of device memory to `value`.
    pub fn fill(
        &self,
        memory: &Arc<DeviceMemory>,
        offset: u64,
        bytes: u64,
        value: u8,
    ) -> Result<(), DeviceError> {
        self.context.must_own("memory", memory.context())?;
        let address = memory.at("offset", offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.enqueue([keep(memory)], |api, stream| {
            // SAFETY: the range is inside memory that the stream keeps until it is done.
            unsafe { api.memory_fill(address.0, value, bytes as usize, stream.0) }
        })
    }

    /// Keeps `thing` alive until the stream has been seen idle after now: memory whose address is inside a
    /// kernel's arguments, for one. Hold it, launch, then call this: a look at the stream by another thread
    /// lets go of what was kept before a launch. Where no other thread looks, either order will do.
    pub fn keep_alive<T: Send + Sync + 'static>(&self, thing: &Arc<T>) {
        let (address, thing) = keep(thing);
        self.lock().insert(address, thing);
    }

    /// Enqueues an operation that uses `things`.
    pub(crate) fn enqueue<const N: usize>(
        &self,
        things: [(usize, Arc<dyn Any + Send + Sync>); N],
        operation: impl FnOnce(&Api, Handle) -> Result<(), HipError>,
    ) -> Result<(), DeviceError> {
        let mut kept = self.lock();
        kept.extend(things);
        self.context.call(|api| operation(api, self.handle))
    }

    /// What is kept alive now.
    pub(super) fn kept(&self) -> KeptAlive {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, KeptAlive> {
        // A map of owners is whole whatever panicked beside it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something to be kept alive, with the key it is kept under.
pub(crate) fn keep<T: Send + Sync + 'static>(thing: &Arc<T>) -> (usize, Arc<dyn Any + Send + Sync>) {
    (Arc::as_ptr(thing).addr(), Arc::clone(thing) as Arc<dyn Any + Send + Sync>)
}

/// A query's status as a yes or no.
pub(super) fn ready(status: Result<(), HipError>) -> Result<bool, HipError> {
    match status {
        Ok(()) => Ok(true),
        Err(error) if error.code == status::NOT_READY => Ok(false),
        Err(error) => Err(error),
    }
}

/// The highest priority that streams can have, if there is more than one.
fn highest(api: &Api) -> Option<i32> {
    let (mut least, mut greatest) = (0, 0);
    // SAFETY: valid places for both.
    unsafe { api.stream_priority_range(&mut least, &mut greatest) }.ok()?;
    (least != greatest && api.symbols().stream_create_with_priority.is_some()).then_some(greatest)
}

impl Drop for Stream {
    fn drop(&mut self) {
        let held = self.context.is_holding();
        // While a resident kernel runs this may be its stream: it is given back with the rest.
        if !held
            && self.context.lost().is_none()
            && let Err(error) = self.wait(DROP_GRACE)
            && !error.is_lost()
        {
            // The device may still write to what is kept: it is never given back.
            tracing::error!(device = self.context.info().ordinal, %error, "a busy stream was dropped; leaked");
            std::mem::forget(std::mem::take(&mut *self.lock()));
            return;
        }
        let kept = std::mem::take(&mut *self.lock());
        self.context.release(Release::Stream { handle: self.handle, kept });
    }
}
