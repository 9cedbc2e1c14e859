//! Vyre: a resident megakernel fed live through a ring; the facade crate and the vyre command.
