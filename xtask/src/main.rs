//! Development tasks of the Vyre workspace.
fn main() {}
