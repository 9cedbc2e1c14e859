//! The Vyre megakernel: opcode handlers, descriptors, batch dispatch, persistent sessions and recovery.
