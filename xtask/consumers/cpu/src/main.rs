//! Uses only the CPU backend: one kernel over one buffer. Programs and traits come with it.

use vyre_cpu::{CpuBackend, driver, foundation};

use driver::{BufferDesc, DispatchConfig, VyreBackend};
use foundation::{DataType, text, validate};

const DOUBLE: &str = "\
program double kernel workgroup(64, 1, 1)
buffer data: global u32 read_write min 0
entry {
  let i: u32 = global_id.x;
  data[i] = data[i] * 2u32;
}
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let backend = CpuBackend::new();
    let pipeline = backend.compile(&validate(text::parse(DOUBLE)?)?)?;
    let data = backend.create_buffer(&BufferDesc::new("data", DataType::U32, 100))?;
    backend.write_buffer(data, 0, &21u32.to_le_bytes().repeat(100))?;
    pipeline.dispatch(&[data.binding()], &DispatchConfig::new([2, 1, 1]))?;
    let mut bytes = [0; 400];
    backend.read_buffer(data, 0, &mut bytes)?;
    assert_eq!(bytes.as_slice(), 42u32.to_le_bytes().repeat(100));
    println!("100 elements doubled on {}", backend.identity().device);
    Ok(())
}
