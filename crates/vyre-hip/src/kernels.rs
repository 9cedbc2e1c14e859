//! The hand-written kernel sources, embedded.
