//! What lives on a GPU: context, streams, events, modules, buffers.
