// AMD's matrix instructions written out from the ISA documents' register tables, for a block of CUDA
// threads that act as waves: so that the tile files' lane arithmetic runs somewhere. Shows that the
// tiles agree with those tables, not that the tables are read right. Slow; for `check` only.
#pragma once

#define VYRE_GEMM_EMULATE 1
#if defined(VYRE_GEMM_EMULATE_MFMA)
#define VYRE_GEMM_WAVE_WIDTH 64
#endif

#include <cuda_fp16.h>
#include <stdint.h>

constexpr int kEmulatedThreads = 256;

#if defined(VYRE_GEMM_EMULATE_MFMA)
struct MfmaOperand {
    uint32_t low, high;
};
__device__ inline MfmaOperand mfma_operand(uint32_t low, uint32_t high) { return MfmaOperand{low, high}; }

__device__ inline float emulated_element(const MfmaOperand &operand, int k) {
    const uint32_t word = (k < 2 ? operand.low : operand.high) >> (k % 2 ? 16 : 0);
#if defined(VYRE_GEMM_EMULATE_FLUSH) // gfx90a
    if ((word & 0x7c00) == 0) {
        return 0.0f;
    }
#endif
    return __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
}

// Every wave of the block executes the same instructions, so block barriers may stand in for a
// wave's lockstep.
__device__ inline void mfma_32x32x8(float *d, MfmaOperand a, MfmaOperand b) {
    __shared__ MfmaOperand all_a[kEmulatedThreads], all_b[kEmulatedThreads];
    all_a[threadIdx.x] = a;
    all_b[threadIdx.x] = b;
    __syncthreads();
    const int wave = threadIdx.x / 64 * 64, lane = threadIdx.x % 64;
    for (int v = 0; v < 16; ++v) {
        const int row = 8 * (v / 4) + 4 * (lane / 32) + v % 4, column = lane % 32;
        for (int k = 0; k < 8; ++k) {
            d[v] = fmaf(emulated_element(all_a[wave + k / 4 * 32 + row], k % 4),
                        emulated_element(all_b[wave + k / 4 * 32 + column], k % 4), d[v]);
        }
    }
    __syncthreads();
}
#else
struct WmmaOperand {
    uint32_t words[8];
};
__device__ inline WmmaOperand wmma_operand(uint4 low, uint4 high) {
    return WmmaOperand{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ inline float emulated_element(const WmmaOperand &operand, int k) {
    const uint32_t word = operand.words[k / 2];
    return __half2float(__ushort_as_half(static_cast<unsigned short>(k % 2 ? word >> 16 : word)));
}

__device__ inline void wmma_16x16x16(float *d, const WmmaOperand &a, const WmmaOperand &b) {
    __shared__ WmmaOperand all_a[kEmulatedThreads], all_b[kEmulatedThreads];
    all_a[threadIdx.x] = a;
    all_b[threadIdx.x] = b;
    __syncthreads();
    const int wave = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    for (int v = 0; v < 8; ++v) {
        const int row = 2 * v + lane / 16, column = lane % 16;
        for (int k = 0; k < 16; ++k) {
            // Either copy of a row serves; take them in turn, so that both must be right.
            const int copy = k % 2 * 16;
            d[v] = fmaf(emulated_element(all_a[wave + copy + row], k), emulated_element(all_b[wave + copy + column], k), d[v]);
        }
    }
    __syncthreads();
}
#endif
