//! The whole way of a kernel: write it in Rust, compile it, bind a buffer, dispatch it, read the result.
//!
//! `cargo run -p vyre-cpu --example double`

use vyre_cpu::CpuBackend;
use vyre_driver::{BufferDesc, DispatchConfig, VyreBackend};
use vyre_foundation::builder::{Operand, ProgramBuilder};
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut p = ProgramBuilder::kernel("double").workgroup_size([64, 1, 1]);
    let data = p.buffer("data", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 0);
    p.entry(|f| {
        let i = f.let_("i", Builtin::GlobalId(Axis::X));
        f.if_(i.lt(data.len()), |f| f.store(data, i, data.load(i) * 2));
    });

    let backend = CpuBackend::new();
    let pipeline = backend.compile(&p.validate()?)?;
    let buffer = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 1000))?;
    let bytes: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
    backend.write_buffer(buffer, 0, &bytes)?;
    let outcome = pipeline.dispatch(&[buffer.binding()], &DispatchConfig::new([16, 1, 1]))?;

    let mut last = [0; 4];
    backend.read_buffer(buffer, 999 * 4, &mut last)?;
    println!("999 doubled is {} ({:?})", u32::from_le_bytes(last), outcome.elapsed);
    assert_eq!(u32::from_le_bytes(last), 1998);
    Ok(())
}
