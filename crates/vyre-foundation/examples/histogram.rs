//! Builds a kernel that counts bytes by value, validates it, and prints it as text, with its digest.
//!
//! Every workgroup counts in its own memory first, so that the counters which all share are touched 256
//! times for a workgroup, not once for every byte.

use vyre_foundation::builder::{Operand, ProgramBuilder, Value};
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, text};

const WORKGROUP: u32 = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut p = ProgramBuilder::kernel("histogram").workgroup_size([WORKGROUP, 1, 1]);
    let bytes = p.buffer("bytes", MemorySpace::Global, DataType::U8, BufferAccess::Read, 0);
    let counts = p.buffer("counts", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 256);
    let local = p.buffer("local", MemorySpace::Workgroup, DataType::U32, BufferAccess::ReadWrite, 256);
    p.entry(|f| {
        let lane = f.let_("lane", Builtin::LocalId(Axis::X));
        let stride = f.let_("stride", Value::from(Builtin::NumWorkgroups(Axis::X)) * WORKGROUP);
        let at = f.var_("at", Builtin::GlobalId(Axis::X));
        f.while_(at.lt(bytes.len()), |f| {
            f.atomic_add(local, bytes.load(at), 1);
            // The last index is near the end of the numbers, where the sum would wrap and begin again.
            f.if_((bytes.len() - at).le(stride), |f| f.break_());
            f.assign(at, at + stride);
        });
        f.barrier();
        let count = f.let_("count", local.load(lane));
        f.if_(count.ne_(0), |f| {
            f.atomic_add(counts, lane, count);
        });
    });

    // A mistake, say a barrier inside the loop, would come back as an error that names the place and why.
    let program = p.validate()?;
    print!("{}", text::print(program.program()));
    println!("# {} nodes, digest {}", program.facts().nodes, program.digest());
    Ok(())
}
