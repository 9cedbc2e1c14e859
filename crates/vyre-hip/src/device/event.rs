//! A point in a stream.

use std::ffi::c_uint;
use std::sync::Arc;
use std::time::Duration;

use super::context::{Context, Handle};
use super::release::Release;
use super::stream::{Stream, keep, ready};
use super::wait::poll;
use crate::error::DeviceError;

const DISABLE_TIMING: c_uint = 2;

/// A point in a stream: it has happened once everything enqueued before it is done.
#[derive(Debug)]
pub struct Event {
    context: Arc<Context>,
    handle: Handle,
}

impl Event {
    /// An event that measures time.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Event>, DeviceError> {
        Event::with_flags(context, 0)
    }

    /// An event that only orders streams, which is cheaper.
    pub fn without_timing(context: &Arc<Context>) -> Result<Arc<Event>, DeviceError> {
        Event::with_flags(context, DISABLE_TIMING)
    }

    fn with_flags(context: &Arc<Context>, flags: c_uint) -> Result<Arc<Event>, DeviceError> {
        let handle = context.call(|api| {
            let mut handle = std::ptr::null_mut();
            // SAFETY: a valid place for the handle.
            unsafe { api.event_create(&mut handle, flags) }?;
            Ok(Handle(handle))
        })?;
        Ok(Arc::new(Event { context: Arc::clone(context), handle }))
    }

    /// Whose it is.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    /// Makes it the point that `stream` has reached by now. Replaces what it was before.
    pub fn record(self: &Arc<Self>, stream: &Stream) -> Result<(), DeviceError> {
        self.context.must_own("stream", stream.context())?;
        stream.enqueue([keep(self)], |api, stream| {
            // SAFETY: both live.
            unsafe { api.event_record(self.handle.0, stream.0) }
        })
    }

    /// Makes it the point that the default stream has reached by now: copies of plain slices go there.
    pub(crate) fn record_on_default(&self) -> Result<(), DeviceError> {
        // SAFETY: the event lives, and null is the default stream of both libraries.
        self.context.call(|api| unsafe { api.event_record(self.handle.0, std::ptr::null_mut()) })
    }

    /// Whether it has happened. One never recorded has.
    pub fn has_happened(&self) -> Result<bool, DeviceError> {
        // SAFETY: the event lives as long as `self`.
        self.context.call(|api| ready(unsafe { api.event_query(self.handle.0) }))
    }

    /// Waits until it has happened.
    pub fn wait(&self, timeout: Duration) -> Result<(), DeviceError> {
        poll(timeout, || format!("an event of {}", self.context.info().name), || self.has_happened())
    }

    /// The time between two events that have happened, both with timing. Resolution is about 1 us.
    pub fn elapsed_since(&self, start: &Event) -> Result<Duration, DeviceError> {
        self.context.must_own("start", &start.context)?;
        let milliseconds = self.context.call(|api| {
            let mut milliseconds = 0_f32;
            // SAFETY: a valid place for the time, and both events live.
            unsafe { api.event_elapsed(&mut milliseconds, start.handle.0, self.handle.0) }?;
            Ok(milliseconds)
        })?;
        Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.context.release(Release::Event(self.handle));
    }
}
