// The seam between the two vendors' compilers, as narrow as the GEMM allows: fp16 values travel as
// 16-bit words, and only what is named here differs between nvcc and hipcc.
#ifndef VYRE_GEMM_DEVICE_H
#define VYRE_GEMM_DEVICE_H

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#else
#include <hip/hip_runtime.h>
#endif

#define VYRE_INLINE __device__ __forceinline__

// Lanes that execute one matrix instruction together. The host pass of either compiler gets 32;
// nothing it compiles runs.
#if defined(VYRE_GEMM_WAVE_WIDTH) // the bench's emulation of AMD's matrix units
constexpr int kWaveWidth = VYRE_GEMM_WAVE_WIDTH;
#elif defined(__GFX9__)
constexpr int kWaveWidth = 64;
#else
constexpr int kWaveWidth = 32;
#endif

// hipcc learns the LDS size from a static array. CUDA limits those to 48 KiB: there the launch gives
// the size (vyre_gemm_dynamic_shared).
#if defined(__CUDACC__)
#define VYRE_SHARED_BYTES(name, bytes) extern __shared__ __align__(128) unsigned char name[]
#else
#define VYRE_SHARED_BYTES(name, bytes) __shared__ __attribute__((aligned(128))) unsigned char name[bytes]
#endif

// Whether sums over partial tiles load ahead: AMD's compiler spills scalar registers over it.
#if defined(__CUDACC__)
constexpr bool kPartialsAhead = true;
#else
constexpr bool kPartialsAhead = false;
#endif

VYRE_INLINE float half_bits_to_float(uint32_t bits) {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
#else
    return static_cast<float>(__builtin_bit_cast(_Float16, static_cast<unsigned short>(bits)));
#endif
}

// Round to nearest even; beyond 65519 is infinity; NaN stays NaN.
VYRE_INLINE uint32_t float_to_half_bits(float value) {
#if defined(__CUDACC__)
    return __half_as_ushort(__float2half_rn(value));
#else
    return __builtin_bit_cast(unsigned short, static_cast<_Float16>(value));
#endif
}

// The value of the lane whose index differs in the bits of `mask` (below 32, so that a wave of 64
// exchanges within its halves).
VYRE_INLINE float exchange_lane(float value, int mask) {
#if defined(__CUDACC__)
    return __shfl_xor_sync(0xffffffffu, value, mask);
#else
    return __shfl_xor(value, mask);
#endif
}

// The same value, of which AMD's compiler knows nothing: what an unrolled loop computes from it stays
// inside its iteration, where all addresses and lane masks would otherwise be kept from before the
// loop, more than there are registers.
VYRE_INLINE uint32_t hide(uint32_t value) {
#if !defined(__CUDACC__) && defined(__HIP_DEVICE_COMPILE__)
    asm volatile("" : "+v"(value));
#endif
    return value;
}

// 32-bit division wherever it is enough: a 64-bit one costs a small problem as much as its tile.
VYRE_INLINE uint64_t divide(uint64_t a, uint64_t b) {
    if (((a | b) >> 32) == 0) {
        return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    }
    return a / b;
}

VYRE_INLINE uint64_t ceil_divide(uint64_t a, uint64_t b) { return divide(a + b - 1, b); }

VYRE_INLINE uint32_t least(uint64_t a, uint32_t b) { return a < b ? static_cast<uint32_t>(a) : b; }

// How many of `width` elements that start at `first` lie below `limit`.
VYRE_INLINE uint32_t elements_inside(uint32_t limit, uint32_t first, uint32_t width) {
    if (limit <= first) {
        return 0;
    }
    return limit - first < width ? limit - first : width;
}

#endif
