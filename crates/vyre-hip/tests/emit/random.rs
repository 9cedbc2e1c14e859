//! Random programs: the host's C++ gives what the CPU backend gives, and the vendors' compilers take them.

use std::time::Duration;

use vyre_cpu::CpuBackend;
use vyre_cpu::driver::{BufferDesc, DispatchConfig, VyreBackend};
use vyre_foundation::arbitrary::arbitrary_program;
use vyre_foundation::{DataType, MemorySpace, ProgramKind, ValidatedProgram, text, validate};
use vyre_hip::emit::GridBarriers;

use crate::compilers::{check_amd, check_nvidia};
use crate::host::{Host, element_sizes};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn bytes(&mut self, count: u32) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 8) as u8).collect()
    }
}

/// Kernels from a seed, each with a name of its own.
fn kernels(seed: u64, count: usize) -> Vec<ValidatedProgram> {
    let mut random = Random(seed);
    let mut programs = Vec::new();
    while programs.len() < count {
        let size = 20 + random.next() % 600;
        let mut program = arbitrary_program(&random.bytes(size));
        if program.kind == ProgramKind::Kernel {
            program.name = format!("random_{}", programs.len());
            programs.push(validate(program).unwrap());
        }
    }
    programs
}

/// Contents for the bound buffers.
fn contents(program: &ValidatedProgram, random: &mut Random) -> Vec<Vec<u8>> {
    let buffers = program.program().buffers.iter();
    let bound = buffers.filter(|decl| decl.space != MemorySpace::Workgroup);
    bound
        .map(|decl| {
            let len = decl.len + random.next() % 300;
            let small = random.next().is_multiple_of(2);
            let element = |_| {
                let number = match small {
                    true => u64::from(random.next() % 4),
                    false => u64::from(random.next()) << 32 | u64::from(random.next()),
                };
                number.to_le_bytes()[..decl.element.size()].to_vec()
            };
            (0..len).flat_map(element).collect()
        })
        .collect()
}

/// What the CPU backend makes of it; the trap's invocation and code.
fn on_cpu(program: &ValidatedProgram, data: &mut [Vec<u8>], grid: [u32; 3]) -> Option<(u64, u32)> {
    let backend = CpuBackend::new();
    let pipeline = backend.compile(program).unwrap();
    let decls = program.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup);
    let handles: Vec<_> = decls
        .zip(data.iter())
        .map(|(decl, bytes)| {
            let len = (bytes.len() / decl.element.size()) as u64;
            let desc = BufferDesc::new(decl.name.clone(), decl.element, len).in_space(decl.space);
            let handle = backend.create_buffer(&desc).unwrap();
            backend.write_buffer(handle, 0, bytes).unwrap();
            handle
        })
        .collect();
    let bindings: Vec<_> = handles.iter().map(|handle| handle.binding()).collect();
    let mut config = DispatchConfig::new(grid);
    config.deadline = Some(Duration::from_secs(60));
    let outcome = pipeline.dispatch(&bindings, &config).unwrap();
    for (handle, bytes) in handles.iter().zip(data.iter_mut()) {
        backend.read_buffer(*handle, 0, bytes).unwrap();
    }
    outcome.trap.map(|trap| (trap.invocation, trap.code))
}

/// The elements, NaNs alike.
fn comparable(program: &ValidatedProgram, data: &[Vec<u8>]) -> Vec<Vec<u64>> {
    let decls = program.program().buffers.iter().filter(|decl| decl.space != MemorySpace::Workgroup);
    let elements = |(decl, bytes): (&vyre_foundation::BufferDecl, &Vec<u8>)| {
        let canonical = |element: &[u8]| {
            let bits = element.iter().rev().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
            match decl.element {
                DataType::F16 if bits & 0x7fff > 0x7c00 => u64::MAX,
                DataType::BF16 if bits & 0x7fff > 0x7f80 => u64::MAX,
                DataType::F32 if bits & 0x7fff_ffff > 0x7f80_0000 => u64::MAX,
                _ => bits,
            }
        };
        bytes.chunks(decl.element.size()).map(canonical).collect()
    };
    decls.zip(data).map(elements).collect()
}

fn differential(seed: u64, count: usize, grid_barriers: GridBarriers) {
    let mut programs = kernels(seed, count);
    if grid_barriers == GridBarriers::Split {
        programs.retain(|program| program.facts().grid_barriers);
    }
    assert!(programs.len() * 4 > count, "only {} programs", programs.len());
    let Some(host) = Host::new(&programs, grid_barriers) else { return };
    let mut random = Random(seed ^ 0xffff);
    for program in &programs {
        let shown = text::print(program.program());
        for grid in [[1, 1, 1], [2, 2, 1], [3, 1, 2]] {
            let before = contents(program, &mut random);
            let (mut expected, mut found) = (before.clone(), before);
            let trap = on_cpu(program, &mut expected, grid);
            let name = &program.program().name;
            let control = host.run(name, &mut found, &element_sizes(program), grid, false);
            assert_eq!(control.trap(), trap, "{grid:?}\n{shown}");
            let (expected, found) = (comparable(program, &expected), comparable(program, &found));
            for (index, (expected, found)) in expected.iter().zip(&found).enumerate() {
                assert_eq!(expected, found, "bound buffer {index}, grid {grid:?}\n{shown}");
            }
        }
    }
}

#[test]
fn random_kernels_do_what_the_cpu_backend_does() {
    differential(1, 60, GridBarriers::Native);
}

#[test]
fn random_split_kernels_do_what_the_cpu_backend_does() {
    differential(2, 60, GridBarriers::Split);
}

#[test]
fn random_kernels_compile_for_gfx90a() {
    check_amd(&kernels(3, 40), "gfx90a");
}

#[test]
fn random_kernels_compile_for_sm_90() {
    check_nvidia(&kernels(4, 40));
}
