//! The embedded CPU backend of Vyre: executes the IR on host threads, and is the oracle of the other backends.
