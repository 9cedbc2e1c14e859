//! What a built kernel must and must not contain: the instructions that it is written for, and no spills.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use vyre_hip::compile::{Architecture, CodeObject, KernelResources, Platform, Toolchain};

/// A kernel, the beginning of an architecture's name, and what its disassembly contains there.
///
/// A compiler that does not take the fast path falls back without a word: only the instructions show it.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("gemm_f16", "gfx90a", "v_mfma_f32_"),
    ("gemm_f16", "gfx942", "v_mfma_f32_"),
    ("gemm_f16", "gfx11", "v_wmma_f32_"),
    ("gemm_f16", "sm_8", "HMMA"),
    ("gemm_f16", "sm_9", "HMMA"),
    ("gemm_f16", "sm_90a", "HGMMA"),
];

/// Checks the code object in `file`, and says what was found.
pub(crate) fn check(
    kernel: &str,
    arch: &Architecture,
    object: &CodeObject,
    toolchain: &Toolchain,
    file: &Path,
) -> Result<String> {
    if object.resources.is_empty() {
        bail!("{} did not say what the kernel uses: its spills are unknown", toolchain.path.display());
    }
    let spilling: Vec<String> = object.resources.iter().filter_map(spills).collect();
    if !spilling.is_empty() {
        bail!("{}: give its tile fewer registers", spilling.join("; "));
    }
    let expected: Vec<&str> = expected(kernel, arch).collect();
    if expected.is_empty() {
        return Ok("no spills".to_owned());
    }
    let Some(disassembler) = disassembler(toolchain, arch.platform()) else {
        if arch.platform() == Platform::Nvidia {
            return Ok(format!("no spills; {} not looked for: there is no nvdisasm", expected.join(", ")));
        }
        bail!("there is no llvm-objdump to disassemble with: install the llvm tools of the compiler");
    };
    let text = disassemble(&disassembler, arch, file)?;
    let mut found = Vec::new();
    for instruction in expected {
        match text.lines().filter(|line| line.contains(instruction)).count() {
            0 => bail!("no {instruction} in the disassembly: {kernel} is not the kernel it is written to be"),
            count => found.push(format!("{count} {instruction}")),
        }
    }
    Ok(format!("no spills, {}", found.join(", ")))
}

/// Scalar registers that are kept in lanes of vector registers cost no memory, and pass.
fn spills(kernel: &KernelResources) -> Option<String> {
    let KernelResources { entry, registers, spills, scalar_spills, scratch_bytes, .. } = kernel;
    let scalar_to_memory = *scratch_bytes > 0 && scalar_spills.is_some_and(|spills| spills > 0);
    (*spills > 0 || scalar_to_memory).then(|| {
        let scalar = scalar_spills.unwrap_or(0);
        format!(
            "`{entry}` spills {spills}, and {scalar} scalar registers (it has {registers} registers and \
             {scratch_bytes} bytes of scratch)"
        )
    })
}

fn expected<'a>(kernel: &'a str, arch: &'a Architecture) -> impl Iterator<Item = &'static str> + 'a {
    let applies = move |(name, begin): (&str, &str)| name == kernel && arch.processor().starts_with(begin);
    EXPECTED.iter().filter(move |(name, begin, _)| applies((name, begin))).map(|(_, _, text)| *text)
}

/// The disassembler that belongs to the compiler: an older one does not know the newer instructions.
fn disassembler(toolchain: &Toolchain, platform: Platform) -> Option<PathBuf> {
    let names = match platform {
        Platform::Nvidia => vec!["nvdisasm".to_owned()],
        Platform::Amd => {
            let numbered = toolchain.clang_version().map(|version| format!("llvm-objdump-{version}"));
            numbered.into_iter().chain(["llvm-objdump".to_owned()]).collect()
        }
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> =
        toolchain.program_dirs().into_iter().chain(std::env::split_paths(&path)).collect();
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|path| path.is_file())
}

fn disassemble(disassembler: &Path, arch: &Architecture, file: &Path) -> Result<String> {
    let mut command = Command::new(disassembler);
    if arch.platform() == Platform::Amd {
        command.arg("-d").arg(format!("--mcpu={}", arch.processor()));
    }
    let output = command.arg(file).output().with_context(|| format!("running {}", disassembler.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} does not read {}: {}", disassembler.display(), file.display(), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spills_to_memory_are_told() {
        let clean = KernelResources { entry: "k".to_owned(), scratch_bytes: 8, ..Default::default() };
        let to_lanes = KernelResources { scalar_spills: Some(6), scratch_bytes: 0, ..clean.clone() };
        let to_memory = KernelResources { scalar_spills: Some(6), ..clean.clone() };
        let vector = KernelResources { spills: 1, scratch_bytes: 0, ..clean.clone() };
        let told = [&clean, &to_lanes, &to_memory, &vector].map(|kernel| spills(kernel).is_some());
        assert_eq!(told, [false, false, true, true]);
    }

    #[test]
    fn the_gemm_is_held_to_the_matrix_instructions() {
        let of = |kernel: &str, arch: &str| {
            let arch: Architecture = arch.parse().expect(arch);
            expected(kernel, &arch).collect::<Vec<_>>()
        };
        assert_eq!(of("gemm_f16", "gfx90a:xnack-"), ["v_mfma_f32_"]);
        assert_eq!(of("gemm_f16", "gfx1101"), ["v_wmma_f32_"]);
        assert_eq!(of("gemm_f16", "sm_90"), ["HMMA"]);
        assert_eq!(of("gemm_f16", "sm_90a"), ["HMMA", "HGMMA"]);
        assert!(of("gemm_f16", "gfx906").is_empty(), "the plain tile");
        assert!(of("saxpy", "gfx90a").is_empty());
    }
}
