//! What a kernel takes of a compute unit, read from the compiler's remarks, so that no GPU is needed.

use serde::{Deserialize, Serialize};

/// Registers, spills and memory of one kernel, as its compiler stated them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelResources {
    /// The kernel's name in the code object.
    pub entry: String,
    /// Vector registers a lane (AMD), registers a thread (NVIDIA).
    pub registers: u32,
    /// Scalar registers a wave; AMD only.
    pub scalar_registers: Option<u32>,
    /// Accumulation registers a lane; AMD with MFMA only.
    pub accumulation_registers: Option<u32>,
    /// What went to memory for want of registers: vector registers (AMD), bytes stored and loaded (NVIDIA).
    pub spills: u32,
    /// Scalar registers kept in lanes of vector registers, or in memory where `scratch_bytes` is not zero; AMD
    /// only.
    pub scalar_spills: Option<u32>,
    /// Private memory a lane: scratch (AMD), stack frame (NVIDIA), in bytes.
    pub scratch_bytes: u32,
    /// LDS (AMD), static shared memory (NVIDIA) a workgroup, in bytes.
    pub shared_bytes: u32,
}

/// Reads clang's `-Rpass-analysis=kernel-resource-usage` remarks.
pub(crate) fn from_clang(text: &str) -> Vec<KernelResources> {
    let mut kernels = Vec::new();
    for line in text.lines() {
        let Some((_, remark)) = line.split_once("remark: ") else { continue };
        let Some((remark, _)) = remark.split_once(" [-Rpass") else { continue };
        let Some((label, value)) = remark.trim().rsplit_once(": ") else { continue };
        if label == "Function Name" {
            kernels.push(KernelResources { entry: value.to_owned(), ..KernelResources::default() });
            continue;
        }
        let (Some(kernel), Ok(value)) = (kernels.last_mut(), value.parse::<u32>()) else { continue };
        match label.split(" [").next().unwrap_or(label) {
            "VGPRs" => kernel.registers = value,
            "SGPRs" | "TotalSGPRs" => kernel.scalar_registers = Some(value),
            "AGPRs" => kernel.accumulation_registers = Some(value),
            "ScratchSize" => kernel.scratch_bytes = value,
            "VGPRs Spill" => kernel.spills = value,
            "SGPRs Spill" => kernel.scalar_spills = Some(value),
            "LDS Size" => kernel.shared_bytes = value,
            _ => {}
        }
    }
    kernels
}

/// Reads what `-Xptxas -v` says.
pub(crate) fn from_ptxas(text: &str) -> Vec<KernelResources> {
    let mut kernels: Vec<KernelResources> = Vec::new();
    // Functions that are not inlined have properties of their own. Their spills cost the kernel all the same.
    let mut in_entry = false;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let entry = rest.split('\'').next().unwrap_or(rest).to_owned();
            kernels.push(KernelResources { entry, ..KernelResources::default() });
        }
        if let Some((_, function)) = line.split_once("Function properties for ") {
            in_entry = kernels.last().is_some_and(|kernel| kernel.entry == function.trim());
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains(" spill stores") {
            for part in line.split(',') {
                let value = leading_number(part);
                if part.contains("stack frame") && in_entry {
                    kernel.scratch_bytes = value;
                } else if part.contains("spill") {
                    kernel.spills = kernel.spills.saturating_add(value);
                }
            }
        }
        if let Some((_, used)) = line.split_once(": Used ") {
            for part in used.split(',') {
                if part.contains("registers") {
                    kernel.registers = leading_number(part);
                } else if part.contains("bytes smem") {
                    kernel.shared_bytes = leading_number(part);
                }
            }
        }
    }
    kernels
}

fn leading_number(text: &str) -> u32 {
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clang-15's and clang-19's wordings, shortened: the latter has a source line and a flag without number.
    const CLANG: &str = "\
k.hip:5:1: remark: Function Name: saxpy [-Rpass-analysis=kernel-resource-usage]
extern \"C\" __global__ void saxpy(float a)
^
k.hip:5:1: remark:     SGPRs: 15 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     VGPRs: 6 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     AGPRs: 0 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     ScratchSize [bytes/lane]: 16 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     Dynamic Stack: False [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     Occupancy [waves/SIMD]: 8 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     SGPRs Spill: 1 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     VGPRs Spill: 2 [-Rpass-analysis=kernel-resource-usage]
k.hip:5:1: remark:     LDS Size [bytes/block]: 1024 [-Rpass-analysis=kernel-resource-usage]
k.hip:8:1: remark: Function Name: fill [-Rpass-analysis=kernel-resource-usage]
    8 | extern \"C\" __global__ void fill(float* y)
k.hip:8:1: remark:     TotalSGPRs: 8 [-Rpass-analysis=kernel-resource-usage]
k.hip:8:1: remark:     VGPRs: 2 [-Rpass-analysis=kernel-resource-usage]
";

    const PTXAS: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'fill' for 'sm_90'
ptxas info    : Function properties for fill
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compile time = 8.205 ms
ptxas info    : Compiling entry function 'saxpy' for 'sm_90'
ptxas info    : Function properties for saxpy
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 11 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Function properties for called
    64 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
";

    #[test]
    fn clang_remarks_are_read() {
        let saxpy = KernelResources {
            entry: "saxpy".to_owned(),
            registers: 6,
            scalar_registers: Some(15),
            accumulation_registers: Some(0),
            spills: 2,
            scalar_spills: Some(1),
            scratch_bytes: 16,
            shared_bytes: 1024,
        };
        let fill = KernelResources {
            entry: "fill".to_owned(),
            registers: 2,
            scalar_registers: Some(8),
            ..KernelResources::default()
        };
        assert_eq!(from_clang(CLANG), [saxpy, fill]);
    }

    #[test]
    fn ptxas_lines_are_read() {
        let fill = KernelResources { entry: "fill".to_owned(), registers: 10, ..KernelResources::default() };
        let saxpy = KernelResources {
            entry: "saxpy".to_owned(),
            registers: 11,
            spills: 28,
            scratch_bytes: 24,
            shared_bytes: 1024,
            ..KernelResources::default()
        };
        assert_eq!(from_ptxas(PTXAS), [fill, saxpy]);
    }

    #[test]
    fn other_text_has_no_kernels() {
        assert!(from_clang("warning: nothing\n: Used 3 registers").is_empty());
        assert!(from_ptxas("warning: nothing\n: Used 3 registers").is_empty());
    }
}
