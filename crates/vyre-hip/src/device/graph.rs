//! Operations recorded once and launched together.

use std::sync::Arc;

use super::context::{Context, Handle};
use super::release::Release;
use super::stream::{KeptAlive, Stream, keep};
use crate::error::DeviceError;

/// Captures are of one stream and seen by nobody else, so other threads may make whatever calls they want.
const CAPTURE_RELAXED: u32 = 2;

/// What a stream was asked to do while it was captured, ready to be launched as often as one likes.
#[derive(Debug)]
pub struct Graph {
    context: Arc<Context>,
    executable: Handle,
    /// What its operations use.
    #[allow(dead_code, reason = "dropped with the graph, and never read")]
    kept: KeptAlive,
}

impl Stream {
    /// Records what `operations` enqueue on this stream instead of having it done. Nobody else may use the stream
    /// meanwhile, and nobody may ask whether it is idle: the capture would fail.
    ///
    /// Addresses in kernel arguments are recorded as they are; what [`Stream::keep_alive`] was told in `operations` lives
    /// as long as the graph.
    ///
    /// # Errors
    ///
    /// That of `operations`, or else the library's; [`DeviceError::Unsupported`] if it has no graphs.
    pub fn capture<E: From<DeviceError>>(
        &self,
        operations: impl FnOnce() -> Result<(), E>,
    ) -> Result<Arc<Graph>, E> {
        if self.context().api().symbols().graph_launch.is_none() {
            let what = format!("graphs by {}", self.context().api().library().display());
            let remedy = "use a library of CUDA 11.4 or ROCm 5.3, or launch one by one".to_owned();
            return Err(DeviceError::Unsupported { what, remedy }.into());
        }
        // SAFETY: a live stream.
        self.enqueue([], |api, stream| unsafe { api.stream_begin_capture(stream.0, CAPTURE_RELAXED) })?;
        let recorded = operations();
        let kept = self.kept();
        let mut executable = std::ptr::null_mut();
        // Whatever went wrong: the stream is as before then.
        let made = self.enqueue([], |api, stream| {
            let mut graph = std::ptr::null_mut();
            // SAFETY: a live stream that is being captured, and a valid place for the graph.
            unsafe { api.stream_end_capture(stream.0, &mut graph) }?;
            // SAFETY: a live graph, and a valid place for what is made of it; 0 asks for nothing special.
            let made = unsafe { api.graph_instantiate(&mut executable, graph, 0) };
            // SAFETY: the graph was just made, and what is made of it does not need it.
            unsafe { api.graph_destroy(graph) }.and(made)
        });
        let context = Arc::clone(self.context());
        let graph = made.map(|()| Arc::new(Graph { context, executable: Handle(executable), kept }));
        recorded?;
        Ok(graph?)
    }

    /// Enqueues all operations of a graph, which it keeps until they are done.
    ///
    /// # Safety
    ///
    /// As for [`Function::launch`](super::Function::launch), for each launch in it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::InvalidArgument`] for a graph of another device, and the library's.
    pub unsafe fn launch_graph(&self, graph: &Arc<Graph>) -> Result<(), DeviceError> {
        self.context().must_own("graph", &graph.context)?;
        self.enqueue([keep(graph)], |api, stream| {
            // SAFETY: both live; the operations are the caller's promise.
            unsafe { api.graph_launch(graph.executable.0, stream.0) }
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.context.release(Release::Graph(self.executable));
    }
}
