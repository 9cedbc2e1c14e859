//! The emitter: its text, that compilers take it, and, on the host, that it means what the IR means.

mod compilers;
mod host;
mod host_runs;
mod operations;
mod products;
mod random;
mod resident;
mod text;
mod wave_tile;
