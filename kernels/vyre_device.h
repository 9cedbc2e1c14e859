// What emitted kernels are made of: the IR's operations as small inline functions, the same for both vendors.
//
// The meaning is that of `vyre_foundation::semantics`, for every operand: nothing here is undefined, flushed,
// contracted or approximate. Operations that C++ defines in the same way are emitted as plain operators and have
// no function here: unsigned arithmetic, comparisons, bitwise operators, conversions among integers and from
// integers to `f32`.
//
// Compiled by hipcc or clang (AMD), nvcc (NVIDIA), and, with VYRE_HOST_CHECK naming a header that stands in for
// the GPU, by any C++ compiler, which is how the arithmetic is tested on machines without a GPU.
//
// To be compiled without fast math and without contraction; `vyre_hip::emit` lists the flags.

#ifndef VYRE_DEVICE_H
#define VYRE_DEVICE_H

#if defined(VYRE_HOST_CHECK)
#define VYRE_HOST 1
#include VYRE_HOST_CHECK
#elif defined(__CUDACC__)
#define VYRE_CUDA 1
#include <cuda_runtime.h>
#else
#define VYRE_AMD 1
#include <hip/hip_runtime.h>
#endif

#include "vyre_abi.h"

#if defined(__clang__)
#pragma clang fp contract(off)
#endif

#if VYRE_HOST
#define VYRE_METHOD inline
#else
#define VYRE_METHOD __device__ __forceinline__
#endif
#define VYRE_FUNCTION static VYRE_METHOD

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef float f32;

// ---- Bits ----------------------------------------------------------------------------------------------------

VYRE_FUNCTION u32 vyre_bits(f32 v) {
#if VYRE_CUDA
  return __float_as_uint(v);
#else
  return __builtin_bit_cast(u32, v);
#endif
}

VYRE_FUNCTION f32 vyre_f32(u32 bits) {
#if VYRE_CUDA
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(f32, bits);
#endif
}

VYRE_FUNCTION u32 vyre_bitcast_u32(u32 v) { return v; }
VYRE_FUNCTION u32 vyre_bitcast_u32(i32 v) { return (u32)v; }
VYRE_FUNCTION u32 vyre_bitcast_u32(f32 v) { return vyre_bits(v); }
VYRE_FUNCTION i32 vyre_bitcast_i32(u32 v) { return (i32)v; }
VYRE_FUNCTION i32 vyre_bitcast_i32(i32 v) { return v; }
VYRE_FUNCTION i32 vyre_bitcast_i32(f32 v) { return (i32)vyre_bits(v); }
VYRE_FUNCTION f32 vyre_bitcast_f32(u32 v) { return vyre_f32(v); }
VYRE_FUNCTION f32 vyre_bitcast_f32(i32 v) { return vyre_f32((u32)v); }
VYRE_FUNCTION f32 vyre_bitcast_f32(f32 v) { return v; }

// ---- Integers ------------------------------------------------------------------------------------------------

// Signed overflow is undefined in C++ and wraps here.
VYRE_FUNCTION u32 vyre_add(u32 a, u32 b) { return a + b; }
VYRE_FUNCTION u64 vyre_add(u64 a, u64 b) { return a + b; }
VYRE_FUNCTION i32 vyre_add(i32 a, i32 b) { return (i32)((u32)a + (u32)b); }
VYRE_FUNCTION i32 vyre_sub(i32 a, i32 b) { return (i32)((u32)a - (u32)b); }
VYRE_FUNCTION i32 vyre_mul(i32 a, i32 b) { return (i32)((u32)a * (u32)b); }
VYRE_FUNCTION u32 vyre_neg(u32 v) { return 0u - v; }
VYRE_FUNCTION i32 vyre_neg(i32 v) { return (i32)(0u - (u32)v); }
VYRE_FUNCTION u64 vyre_neg(u64 v) { return 0ull - v; }
VYRE_FUNCTION i32 vyre_abs(i32 v) { return v < 0 ? vyre_neg(v) : v; }

// By zero: a quotient of zero, and the dividend as remainder.
VYRE_FUNCTION u32 vyre_div(u32 a, u32 b) { return b == 0 ? 0 : a / b; }
VYRE_FUNCTION u64 vyre_div(u64 a, u64 b) { return b == 0 ? 0 : a / b; }
VYRE_FUNCTION u32 vyre_rem(u32 a, u32 b) { return b == 0 ? a : a % b; }
VYRE_FUNCTION u64 vyre_rem(u64 a, u64 b) { return b == 0 ? a : a % b; }
// The least number divided by -1 is itself.
VYRE_FUNCTION i32 vyre_div(i32 a, i32 b) { return b == 0 ? 0 : b == -1 ? vyre_neg(a) : a / b; }
VYRE_FUNCTION i32 vyre_rem(i32 a, i32 b) { return b == 0 ? a : b == -1 ? 0 : a % b; }

VYRE_FUNCTION u32 vyre_min(u32 a, u32 b) { return a < b ? a : b; }
VYRE_FUNCTION i32 vyre_min(i32 a, i32 b) { return a < b ? a : b; }
VYRE_FUNCTION u64 vyre_min(u64 a, u64 b) { return a < b ? a : b; }
VYRE_FUNCTION u32 vyre_max(u32 a, u32 b) { return a > b ? a : b; }
VYRE_FUNCTION i32 vyre_max(i32 a, i32 b) { return a > b ? a : b; }
VYRE_FUNCTION u64 vyre_max(u64 a, u64 b) { return a > b ? a : b; }

// Past the width: zero, or the sign in every bit.
VYRE_FUNCTION u32 vyre_shl(u32 v, u32 by) { return by < 32 ? v << by : 0; }
VYRE_FUNCTION i32 vyre_shl(i32 v, u32 by) { return by < 32 ? (i32)((u32)v << by) : 0; }
VYRE_FUNCTION u64 vyre_shl(u64 v, u32 by) { return by < 64 ? v << by : 0; }
VYRE_FUNCTION u32 vyre_shr(u32 v, u32 by) { return by < 32 ? v >> by : 0; }
VYRE_FUNCTION i32 vyre_shr(i32 v, u32 by) { return v >> (by < 32 ? by : 31); }
VYRE_FUNCTION u64 vyre_shr(u64 v, u32 by) { return by < 64 ? v >> by : 0; }

#if VYRE_CUDA
VYRE_FUNCTION u32 vyre_count_ones(u32 v) { return (u32)__popc(v); }
VYRE_FUNCTION u64 vyre_count_ones(u64 v) { return (u64)__popcll(v); }
VYRE_FUNCTION u32 vyre_leading_zeros(u32 v) { return (u32)__clz((int)v); }
VYRE_FUNCTION u64 vyre_leading_zeros(u64 v) { return (u64)__clzll((long long)v); }
VYRE_FUNCTION u32 vyre_trailing_zeros(u32 v) { return v == 0 ? 32 : (u32)__ffs((int)v) - 1; }
VYRE_FUNCTION u64 vyre_trailing_zeros(u64 v) { return v == 0 ? 64 : (u64)__ffsll((long long)v) - 1; }
#else
VYRE_FUNCTION u32 vyre_count_ones(u32 v) { return (u32)__builtin_popcount(v); }
VYRE_FUNCTION u64 vyre_count_ones(u64 v) { return (u64)__builtin_popcountll(v); }
VYRE_FUNCTION u32 vyre_leading_zeros(u32 v) { return v == 0 ? 32 : (u32)__builtin_clz(v); }
VYRE_FUNCTION u64 vyre_leading_zeros(u64 v) { return v == 0 ? 64 : (u64)__builtin_clzll(v); }
VYRE_FUNCTION u32 vyre_trailing_zeros(u32 v) { return v == 0 ? 32 : (u32)__builtin_ctz(v); }
VYRE_FUNCTION u64 vyre_trailing_zeros(u64 v) { return v == 0 ? 64 : (u64)__builtin_ctzll(v); }
#endif
VYRE_FUNCTION i32 vyre_count_ones(i32 v) { return (i32)vyre_count_ones((u32)v); }
VYRE_FUNCTION i32 vyre_leading_zeros(i32 v) { return (i32)vyre_leading_zeros((u32)v); }
VYRE_FUNCTION i32 vyre_trailing_zeros(i32 v) { return (i32)vyre_trailing_zeros((u32)v); }

// ---- f32 -----------------------------------------------------------------------------------------------------

#if VYRE_CUDA
// The intrinsics are never contracted, whatever the flags.
VYRE_FUNCTION f32 vyre_add(f32 a, f32 b) { return __fadd_rn(a, b); }
VYRE_FUNCTION f32 vyre_sub(f32 a, f32 b) { return __fsub_rn(a, b); }
VYRE_FUNCTION f32 vyre_mul(f32 a, f32 b) { return __fmul_rn(a, b); }
VYRE_FUNCTION f32 vyre_div(f32 a, f32 b) { return __fdiv_rn(a, b); }
VYRE_FUNCTION f32 vyre_sqrt(f32 v) { return __fsqrt_rn(v); }
VYRE_FUNCTION f32 vyre_fma(f32 a, f32 b, f32 c) { return __fmaf_rn(a, b, c); }
#else
VYRE_FUNCTION f32 vyre_add(f32 a, f32 b) { return a + b; }
VYRE_FUNCTION f32 vyre_sub(f32 a, f32 b) { return a - b; }
VYRE_FUNCTION f32 vyre_mul(f32 a, f32 b) { return a * b; }
VYRE_FUNCTION f32 vyre_div(f32 a, f32 b) { return a / b; }
VYRE_FUNCTION f32 vyre_sqrt(f32 v) { return sqrtf(v); }
VYRE_FUNCTION f32 vyre_fma(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
#endif
VYRE_FUNCTION f32 vyre_rem(f32 a, f32 b) { return fmodf(a, b); }
VYRE_FUNCTION f32 vyre_floor(f32 v) { return floorf(v); }
VYRE_FUNCTION f32 vyre_ceil(f32 v) { return ceilf(v); }
VYRE_FUNCTION f32 vyre_trunc(f32 v) { return truncf(v); }
VYRE_FUNCTION f32 vyre_round_even(f32 v) { return rintf(v); }

// Bit operations, so that a NaN keeps its bits but for the sign.
VYRE_FUNCTION f32 vyre_neg(f32 v) { return vyre_f32(vyre_bits(v) ^ 0x80000000u); }
VYRE_FUNCTION f32 vyre_abs(f32 v) { return vyre_f32(vyre_bits(v) & 0x7fffffffu); }

// A NaN loses to a number, and -0 is below +0.
VYRE_FUNCTION f32 vyre_min(f32 a, f32 b) {
  const bool first = b != b || a < b || (a == b && (vyre_bits(a) >> 31) != 0);
  return a != a ? b : first ? a : b;
}
VYRE_FUNCTION f32 vyre_max(f32 a, f32 b) {
  const bool first = b != b || a > b || (a == b && (vyre_bits(a) >> 31) == 0);
  return a != a ? b : first ? a : b;
}

// Towards zero, saturating, and zero for a NaN.
VYRE_FUNCTION u32 vyre_to_u32(f32 v) { return v >= 4294967296.0f ? 0xffffffffu : v > 0.0f ? (u32)v : 0; }
VYRE_FUNCTION u64 vyre_to_u64(f32 v) {
  return v >= 18446744073709551616.0f ? 0xffffffffffffffffull : v > 0.0f ? (u64)v : 0;
}
VYRE_FUNCTION i32 vyre_to_i32(f32 v) {
  if (v >= 2147483648.0f) return 0x7fffffff;
  if (v <= -2147483648.0f) return -0x7fffffff - 1;
  return v != v ? 0 : (i32)v;
}

// ---- Elements: how a value lies in memory --------------------------------------------------------------------

struct vyre_f16 {
  u16 bits;
};
struct vyre_bf16 {
  u16 bits;
};

VYRE_FUNCTION f32 vyre_widen_f16(u16 bits) {
#if VYRE_CUDA
  f32 wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
  return wide;
#elif VYRE_AMD
  return (f32)__builtin_bit_cast(_Float16, bits);
#else
  const u32 sign = (u32)(bits & 0x8000u) << 16;
  const u32 magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return vyre_f32(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return vyre_f32(sign | ((magnitude << 13) + (112u << 23)));
  const f32 subnormal = (f32)magnitude * 5.9604644775390625e-8f;  // 2^-24
  return vyre_f32(sign | vyre_bits(subnormal));
#endif
}

VYRE_FUNCTION u16 vyre_narrow_f16(f32 v) {
#if VYRE_CUDA
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
#elif VYRE_AMD
  return __builtin_bit_cast(u16, (_Float16)v);
#else
  const u32 wide = vyre_bits(v), sign = wide >> 16 & 0x8000u, magnitude = wide & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (u16)(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return (u16)(sign | 0x7c00u);  // 65520 and above
  if (magnitude >= 0x38800000u) {                               // 2^-14 and above: a normal number
    const u32 rebiased = magnitude - (112u << 23);
    return (u16)(sign | (rebiased + 0xfffu + (rebiased >> 13 & 1)) >> 13);
  }
  // Adding 0.5 leaves the number in units of 2^-24 in the low bits, rounded.
  const f32 aligned = vyre_f32(magnitude) + 0.5f;
  return (u16)(sign | (vyre_bits(aligned) - 0x3f000000u));
#endif
}

VYRE_FUNCTION u16 vyre_narrow_bf16(f32 v) {
  const u32 wide = vyre_bits(v);
  if (v != v) return (u16)(wide >> 16 | 0x40u);
  return (u16)((wide + 0x7fffu + (wide >> 16 & 1)) >> 16);
}

VYRE_FUNCTION u32 vyre_widen(u8 v) { return v; }
VYRE_FUNCTION u32 vyre_widen(u16 v) { return v; }
VYRE_FUNCTION u32 vyre_widen(u32 v) { return v; }
VYRE_FUNCTION i32 vyre_widen(i32 v) { return v; }
VYRE_FUNCTION u64 vyre_widen(u64 v) { return v; }
VYRE_FUNCTION f32 vyre_widen(f32 v) { return v; }
VYRE_FUNCTION f32 vyre_widen(vyre_f16 v) { return vyre_widen_f16(v.bits); }
VYRE_FUNCTION f32 vyre_widen(vyre_bf16 v) { return vyre_f32((u32)v.bits << 16); }

VYRE_FUNCTION void vyre_narrow(u8& to, u32 v) { to = (u8)v; }
VYRE_FUNCTION void vyre_narrow(u16& to, u32 v) { to = (u16)v; }
VYRE_FUNCTION void vyre_narrow(u32& to, u32 v) { to = v; }
VYRE_FUNCTION void vyre_narrow(i32& to, i32 v) { to = v; }
VYRE_FUNCTION void vyre_narrow(u64& to, u64 v) { to = v; }
VYRE_FUNCTION void vyre_narrow(f32& to, f32 v) { to = v; }
VYRE_FUNCTION void vyre_narrow(vyre_f16& to, f32 v) { to.bits = vyre_narrow_f16(v); }
VYRE_FUNCTION void vyre_narrow(vyre_bf16& to, f32 v) { to.bits = vyre_narrow_bf16(v); }

// ---- Buffers -------------------------------------------------------------------------------------------------

// A buffer as bound, or in workgroup memory. `len` counts elements.
template <class Element>
struct VyreBuffer {
  Element* data;
  u32 len;

  typedef decltype(vyre_widen(Element())) Value;

  // Whatever the index: zero past the end, and nothing stored there. Element 0 can always be loaded, so that no
  // load stands behind a branch: compilers issue those of a loop's later rounds early (a DFA scan is 1.1 times as
  // fast for it).
  VYRE_METHOD Value load(u32 index) const {
    const bool inside = index < len;
    const Value value = vyre_widen(data[inside ? index : 0]);
    return inside ? value : Value(0);
  }
  VYRE_METHOD void store(u32 index, Value value) const {
    if (index < len) vyre_narrow(data[index], value);
  }

  // Where the index is known to be in range.
  VYRE_METHOD Value get(u32 index) const { return vyre_widen(data[index]); }
  VYRE_METHOD void put(u32 index, Value value) const { vyre_narrow(data[index], value); }
};

// An address in global memory. Compilers do not see that by themselves where an address was a number, and
// would ask at every access which memory it is in.
template <class T>
VYRE_FUNCTION T* vyre_global(u64 address) {
#if VYRE_CUDA && !VYRE_GENERIC_ADDRESSES
  return (T*)__cvta_global_to_generic((size_t)address);
#elif VYRE_AMD
  return (T*)(__attribute__((address_space(1))) T*)address;
#else
  return (T*)address;
#endif
}

template <class Element>
VYRE_FUNCTION VyreBuffer<Element> vyre_bind(const VyreBinding& binding) {
  return VyreBuffer<Element>{vyre_global<Element>(binding.data), (u32)binding.len};
}

template <class Element>
VYRE_FUNCTION VyreBuffer<Element> vyre_share(Element* data, u32 len) {
  return VyreBuffer<Element>{data, len};
}

#include "vyre_atomics.h"

// ---- An invocation -------------------------------------------------------------------------------------------

// Rounds of loops between two looks at the clock, and time between two looks at the abort word. It may lie in
// the host's memory, where a look costs a microsecond and all waves look: so they look seldom.
#define VYRE_ROUNDS 1024u
#if VYRE_CUDA
#define VYRE_TICKS 1000000u  // cycles
#elif VYRE_AMD
#define VYRE_TICKS 50000u  // of the 100 MHz clock
#else
#define VYRE_TICKS 1u
#endif

// What an invocation carries along. Emitted programs add their buffers.
struct VyreContext {
  VyreControl* control;
  u64 invocation;   // linear id in the grid
  u32 local;        // linear id in the workgroup
  u32 invocations;  // of a workgroup
  u32 rounds;       // until the next look at the clock, never 0
  u32 looked;       // the clock at the last look at the abort word, 0 before the first
  bool left;        // cut short by the abort word: everybody returns
};

// Functions, because HIP's own are of types that convert to integers, of which several would do.
#define VYRE_PLACE(axis)                                                            \
  VYRE_FUNCTION u32 vyre_local_id_##axis() { return threadIdx.axis; }               \
  VYRE_FUNCTION u32 vyre_workgroup_id_##axis() { return blockIdx.axis; }            \
  VYRE_FUNCTION u32 vyre_num_workgroups_##axis() { return gridDim.axis; }           \
  VYRE_FUNCTION u32 vyre_global_id_##axis(u32 size) {                               \
    const u32 workgroup = blockIdx.axis, local = threadIdx.axis;                    \
    return size == 1 ? workgroup : workgroup * size + local;                        \
  }
VYRE_PLACE(x)
VYRE_PLACE(y)
VYRE_PLACE(z)

VYRE_FUNCTION u64 vyre_workgroups() { return (u64)vyre_num_workgroups_x() * vyre_num_workgroups_y() * vyre_num_workgroups_z(); }

VYRE_FUNCTION u32 vyre_clock() {
#if VYRE_CUDA
  return (u32)clock();
#elif VYRE_HOST
  return vyre_host_clock();
#elif __has_builtin(__builtin_readsteadycounter)
  return (u32)__builtin_readsteadycounter();
#elif defined(__GFX11__)
  // Of 20 bits and faster: with it the abort word is looked at more often.
  return (u32)__builtin_readcyclecounter();
#else
  return (u32)__builtin_amdgcn_s_memrealtime();
#endif
}

VYRE_FUNCTION u64 vyre_linear_workgroup() {
  const u64 rows = vyre_workgroup_id_y() + (u64)vyre_num_workgroups_y() * vyre_workgroup_id_z();
  return vyre_workgroup_id_x() + vyre_num_workgroups_x() * rows;
}

VYRE_FUNCTION void vyre_begin(VyreContext& vyre, const VyreArguments& arguments, u32 local, u32 invocations) {
  vyre.control = vyre_global<VyreControl>(arguments.control);
  vyre.invocation = vyre_linear_workgroup() * invocations + local;
  vyre.local = local;
  vyre.invocations = invocations;
  vyre.rounds = VYRE_ROUNDS;
  vyre.looked = 0;
  vyre.left = false;
}

// Ends an invocation that was cut short, so that no barrier waits for it. NVIDIA's barriers count threads: the
// thread exits. AMD's count waves, and lanes that returned are masked until their wave ends: returning is enough.
VYRE_FUNCTION void vyre_leave(VyreContext& vyre) {
  vyre.left = true;
#if VYRE_CUDA
  asm volatile("exit;");
#endif
}

// Whether the host has said to stop; asked at most every VYRE_TICKS.
VYRE_FUNCTION bool vyre_aborted(VyreContext& vyre) {
  const u32 now = vyre_clock() | 1;
  vyre.rounds = VYRE_ROUNDS;
  if (vyre.looked == 0) {
    vyre.looked = now;
    return false;
  }
  if (now - vyre.looked < VYRE_TICKS) return false;
  vyre.looked = now;
  const u64 abort = vyre.control->abort;
  if (abort == 0 || vyre_atomic_load<VYRE_RELAXED, VYRE_SYSTEM>(vyre_global<const u32>(abort)) == 0) return false;
  vyre_atomic_store<VYRE_RELAXED, VYRE_DEVICE>(&vyre.control->aborted, 1u);
  return true;
}

// The end of a round of a loop. What it means to be aborted and to leave is the context's affair.
template <class Context>
VYRE_FUNCTION void vyre_round(Context& vyre) {
  if (--vyre.rounds == 0 && vyre_aborted(vyre)) vyre_leave(vyre);
}

// The next value of a counter below `end`, or `end`; never wraps.
VYRE_FUNCTION u32 vyre_step(u32 counter, u32 end, u32 step) { return end - counter > step ? counter + step : end; }

// The same as the end of a round.
template <class Context>
VYRE_FUNCTION u32 vyre_next(Context& vyre, u32 counter, u32 end, u32 step) {
  vyre_round(vyre);
  return vyre.left ? end : vyre_step(counter, end, step);
}

// A loop without loops inside runs in chunks with nothing but its body in between, so that the compiler may
// unroll it and start its loads early.
struct VyreChunks {
  u32 from;    // the counter where the chunk begins
  u32 rounds;  // of the chunk
  u32 left;    // rounds behind it
};

VYRE_FUNCTION VyreChunks vyre_chunks(u32 start, u32 end, u32 step) {
  return VyreChunks{start, 0, start < end ? (end - start - 1) / step + 1 : 0};
}

template <class Context>
VYRE_FUNCTION bool vyre_chunk(Context& vyre, VyreChunks& chunks, u32 step) {
  if (chunks.left == 0) return false;
  if (chunks.rounds != 0 && vyre.rounds == 1) {
    vyre_round(vyre);
    if (vyre.left) return false;
  }
  chunks.from += chunks.rounds * step;
  chunks.rounds = vyre_min(chunks.left, vyre.rounds);
  chunks.left -= chunks.rounds;
  vyre.rounds = vyre_max(vyre.rounds - chunks.rounds, 1u);
  return true;
}

// The trap of the least invocation wins. Each half of the code travels below the id of its invocation, so both
// words end with the same invocation's, whatever the order, without a lock.
VYRE_FUNCTION void vyre_trap(const VyreContext& vyre, u32 code) {
  const u64 id = vyre.invocation << 16;
  vyre_atomic_min<VYRE_RELAXED, VYRE_DEVICE>(&vyre.control->trap_high, id | code >> 16);
  vyre_atomic_min<VYRE_RELAXED, VYRE_DEVICE>(&vyre.control->trap_low, id | (code & 0xffffu));
}

VYRE_FUNCTION void vyre_barrier() {
#if VYRE_AMD
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
#else
  __syncthreads();
#endif
}

// The `barrier`th grid barrier of a dispatch, counted from 1. Every workgroup is resident: the launch was a
// cooperative one. One invocation of each workgroup arrives and waits; the others wait for it, and see by the
// count whether it was cut short.
VYRE_FUNCTION void vyre_grid_barrier(VyreContext& vyre, u32 barrier) {
  const u32 all = (u32)vyre_workgroups() * barrier;
  u32* arrived = &vyre.control->grid_arrived;
  vyre_barrier();
  if (vyre.local == 0) {
    vyre_atomic_add<VYRE_ACQ_REL, VYRE_DEVICE>(arrived, 1u);
    while (vyre_atomic_load<VYRE_ACQUIRE, VYRE_DEVICE>(arrived) < all) {
      if (--vyre.rounds == 0 && vyre_aborted(vyre)) break;
#if VYRE_CUDA
      __nanosleep(64);
#elif VYRE_AMD
      __builtin_amdgcn_s_sleep(2);
#else
      vyre_host_yield();
#endif
    }
  }
  vyre_barrier();
  if (vyre_atomic_load<VYRE_ACQUIRE, VYRE_DEVICE>(arrived) < all) vyre_leave(vyre);
}

// Workgroup memory is zero when a workgroup starts.
template <class Element>
VYRE_FUNCTION void vyre_clear(const VyreContext& vyre, const VyreBuffer<Element>& shared) {
  for (u32 i = vyre.local; i < shared.len; i += vyre.invocations) shared.data[i] = Element();
}

// ---- Grid barriers by several launches: what survives from one to the next --------------------------------------

// Locals lie in columns, one for each local, with the invocations one after the other.
template <class T>
VYRE_FUNCTION T* vyre_spilled(const VyreContext& vyre, const VyreArguments& arguments, u64 offset) {
  const u64 column = vyre_workgroups() * vyre.invocations * offset;
  return vyre_global<T>(arguments.invocation_spill + column) + vyre.invocation;
}

template <class Element>
VYRE_FUNCTION Element* vyre_spilled_shared(const VyreArguments& arguments, u64 bytes, u64 offset) {
  return vyre_global<Element>(arguments.workgroup_spill + vyre_linear_workgroup() * bytes + offset);
}

template <class Element>
VYRE_FUNCTION void vyre_spill(const VyreContext& vyre, const VyreBuffer<Element>& shared, Element* to) {
  for (u32 i = vyre.local; i < shared.len; i += vyre.invocations) to[i] = shared.data[i];
}

template <class Element>
VYRE_FUNCTION void vyre_restore(const VyreContext& vyre, const VyreBuffer<Element>& shared, const Element* from) {
  for (u32 i = vyre.local; i < shared.len; i += vyre.invocations) shared.data[i] = from[i];
}

// Whether the program ended before this pass: a grid barrier is reached by all invocations or by none, unless the
// dispatch was aborted.
VYRE_FUNCTION bool vyre_ended(const VyreContext& vyre, u32 pass) {
  const u32 ended = vyre_atomic_load<VYRE_RELAXED, VYRE_DEVICE>(&vyre.control->ended);
  const u32 aborted = vyre_atomic_load<VYRE_RELAXED, VYRE_DEVICE>(&vyre.control->aborted);
  return aborted != 0 || (ended != 0 && ended <= pass);
}

// Says that the program ended in this pass.
VYRE_FUNCTION void vyre_end(const VyreContext& vyre, u32 pass) {
  vyre_atomic_store<VYRE_RELAXED, VYRE_DEVICE>(&vyre.control->ended, pass + 1);
}

#include "vyre_subgroups.h"

#endif
