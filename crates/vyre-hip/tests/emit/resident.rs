//! Item programs become a resident kernel that the vendors' compilers take.

use std::sync::Arc;

use vyre_hip::emit::{self, EmittedResident, QuarterAccess};
use vyre_runtime::conformance;
use vyre_runtime::item::{HandlerTable, ItemPrograms};

use crate::compilers::{compile_for_amd, compile_for_nvidia};

/// Every built-in opcode, and the handlers of the conformance vectors, workgroup items among them.
fn emitted() -> EmittedResident {
    let handlers = HandlerTable::new(conformance::handlers()).unwrap();
    let programs = ItemPrograms::new(Arc::new(handlers), conformance::WORKGROUP_SIZE).unwrap();
    emit::resident(&programs.spec(1), QuarterAccess::Single).unwrap()
}

#[test]
fn the_conformance_handlers_compile_for_amd() {
    let emitted = emitted();
    for arch in ["gfx90a", "gfx1030"] {
        compile_for_amd(&emitted.source, arch);
    }
}

#[test]
fn the_conformance_handlers_compile_for_nvidia() {
    compile_for_nvidia(&emitted().source, "sm_90");
}
