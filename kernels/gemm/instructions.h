// Matrix instructions that both the tiles of a launch and those of a wave use.
#ifndef VYRE_GEMM_INSTRUCTIONS_H
#define VYRE_GEMM_INSTRUCTIONS_H

#include <stdint.h>

#if defined(__CUDACC__)
// sm_80 and later. Layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16".
static __device__ __forceinline__ void multiply_16x8x16(float *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#elif !defined(VYRE_GEMM_EMULATE)
// gfx11xx, a wave of 32. Layouts: "RDNA 3" ISA document, "Wave Matrix Multiply Accumulate".
#if defined(__GFX11__)
typedef _Float16 WmmaOperand __attribute__((ext_vector_type(16)));
typedef float WmmaAccumulator __attribute__((ext_vector_type(8)));

static __device__ __forceinline__ void wmma_16x16x16(float *d, WmmaOperand a, WmmaOperand b) {
    WmmaAccumulator sum;
#pragma unroll
    for (int v = 0; v < 8; ++v) {
        sum[v] = d[v];
    }
    sum = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(a, b, sum);
#pragma unroll
    for (int v = 0; v < 8; ++v) {
        d[v] = sum[v];
    }
}
#endif
// gfx908 and later of CDNA, a wave of 64. Layouts: "CDNA 2" ISA document, dense matrix multiply register tables.
#if defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || \
    defined(__gfx942__) || defined(__gfx950__)
typedef _Float16 MfmaOperand __attribute__((ext_vector_type(4)));
typedef float MfmaSquare __attribute__((ext_vector_type(4)));

static __device__ __forceinline__ void mfma_16x16x16(float *d, MfmaOperand a, MfmaOperand b) {
    MfmaSquare sum = {d[0], d[1], d[2], d[3]};
    sum = __builtin_amdgcn_mfma_f32_16x16x16f16(a, b, sum, 0, 0, 0);
#pragma unroll
    for (int v = 0; v < 4; ++v) {
        d[v] = sum[v];
    }
}
#endif
#endif

#endif
