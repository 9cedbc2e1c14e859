//! The driver's traits over device, emitter and compiler.
