//! Uses only the IR: builds a program, validates it, and takes it through both of its outer forms.

use vyre_foundation::builder::{Operand, ProgramBuilder};
use vyre_foundation::{Axis, BufferAccess, Builtin, DataType, MemorySpace, text, wire};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut p = ProgramBuilder::kernel("double").workgroup_size([64, 1, 1]);
    let data = p.buffer("data", MemorySpace::Global, DataType::U32, BufferAccess::ReadWrite, 0);
    p.entry(|f| {
        let i = f.let_("i", Builtin::GlobalId(Axis::X));
        f.if_(i.lt(data.len()), |f| f.store(data, i, data.load(i) * 2));
    });
    let program = p.validate()?;
    let printed = text::print(program.program());
    assert_eq!(&text::parse(&printed)?, program.program());
    assert_eq!(&wire::decode(&wire::encode(program.program())?)?, program.program());
    println!("{printed}");
    Ok(())
}
