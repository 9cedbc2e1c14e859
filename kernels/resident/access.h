// How a resident kernel reaches memory that somebody else writes meanwhile: quarters of slots by accesses of 16
// bytes, words by relaxed ones, fences, the time.
//
// A quarter, {word, word, word, tag}, vouches for itself, so that no hop needs a fence. On NVIDIA (sm_70 and later)
// a 128-bit relaxed access is single-copy atomic. Where that is not documented, and with VYRE_FENCED, a quarter is
// moved as the host does it: two double words, the one with the tag released last and acquired first.

#ifndef VYRE_RESIDENT_ACCESS_H
#define VYRE_RESIDENT_ACCESS_H

// With the addresses of a resident kernel told apart, cicc of CUDA 13.0 does not end.
#define VYRE_GENERIC_ADDRESSES 1
#include "../vyre_device.h"

#if VYRE_CUDA && !defined(VYRE_FENCED)
#define VYRE_SINGLE_COPY 1
#endif

struct alignas(16) VyreQuarter {
  u32 words[3];
  u32 tag;
};

template <VyreScope S>
VYRE_FUNCTION VyreQuarter vyre_load_quarter(const VyreQuarter* at) {
  u64 low = 0, high = 0;
#if VYRE_SINGLE_COPY
  // Whoever loads uses all four words, stores them elsewhere for one: ptxas narrows a load to the words that are used
  // and its parts are no longer one access.
  if (S == VYRE_SYSTEM) {
    asm volatile("{ .reg .b128 q; ld.relaxed.sys.global.b128 q, [%2]; mov.b128 {%0, %1}, q; }"
                 : "=l"(low), "=l"(high)
                 : "l"(at)
                 : "memory");
  } else {
    asm volatile("{ .reg .b128 q; ld.relaxed.gpu.global.b128 q, [%2]; mov.b128 {%0, %1}, q; }"
                 : "=l"(low), "=l"(high)
                 : "l"(at)
                 : "memory");
  }
#else
  high = vyre_atomic_load<VYRE_ACQUIRE, S>((const u64*)at + 1);
  low = vyre_atomic_load<VYRE_RELAXED, S>((const u64*)at);
#endif
  return VyreQuarter{{(u32)low, (u32)(low >> 32), (u32)high}, (u32)(high >> 32)};
}

template <VyreScope S>
VYRE_FUNCTION void vyre_store_quarter(VyreQuarter* at, const VyreQuarter& quarter) {
  const u64 low = quarter.words[0] | (u64)quarter.words[1] << 32;
  const u64 high = quarter.words[2] | (u64)quarter.tag << 32;
#if VYRE_SINGLE_COPY
  if (S == VYRE_SYSTEM) {
    asm volatile("{ .reg .b128 q; mov.b128 q, {%1, %2}; st.relaxed.sys.global.b128 [%0], q; }"
                 :
                 : "l"(at), "l"(low), "l"(high)
                 : "memory");
  } else {
    asm volatile("{ .reg .b128 q; mov.b128 q, {%1, %2}; st.relaxed.gpu.global.b128 [%0], q; }"
                 :
                 : "l"(at), "l"(low), "l"(high)
                 : "memory");
  }
#else
  vyre_atomic_store<VYRE_RELAXED, S>((u64*)at, low);
  vyre_atomic_store<VYRE_RELEASE, S>((u64*)at + 1, high);
#endif
}

template <class T>
VYRE_FUNCTION T vyre_look(const T* at) {
  return vyre_atomic_load<VYRE_RELAXED, VYRE_DEVICE>(at);
}
template <class T>
VYRE_FUNCTION T vyre_look_at_host(const T* at) {
  return vyre_atomic_load<VYRE_RELAXED, VYRE_SYSTEM>(at);
}
template <class T>
VYRE_FUNCTION void vyre_tell(T* at, T value) {
  vyre_atomic_store<VYRE_RELAXED, VYRE_DEVICE>(at, value);
}
template <class T>
VYRE_FUNCTION void vyre_tell_host(T* at, T value) {
  vyre_atomic_store<VYRE_RELAXED, VYRE_SYSTEM>(at, value);
}

// Orders everything before it with everything after it, and lets later plain loads see what others have written.
VYRE_FUNCTION void vyre_fence_device() {
#if VYRE_AMD
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "agent");
#elif VYRE_CUDA
  asm volatile("fence.acq_rel.gpu;" : : : "memory");
#endif
}
VYRE_FUNCTION void vyre_fence_system() {
#if VYRE_AMD
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "");
#elif VYRE_CUDA
  asm volatile("fence.acq_rel.sys;" : : : "memory");
#endif
}

// Lets later plain loads see what others had written when the word at `witness` was. A fence would do as well, but waits for
// whatever the multiprocessor's other workgroups are storing.
VYRE_FUNCTION void vyre_acquire_all(const u32* witness) {
#if VYRE_AMD
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "");
#else
  vyre_atomic_load<VYRE_ACQUIRE, VYRE_SYSTEM>(witness);
#endif
}

VYRE_FUNCTION void vyre_rest(u32 nanoseconds) {
#if VYRE_CUDA
  asm volatile("nanosleep.u32 %0;" : : "r"(nanoseconds));
#else
  // 64 cycles each, some 30 ns.
  if (nanoseconds > 200) {
    __builtin_amdgcn_s_sleep(8);
  } else {
    __builtin_amdgcn_s_sleep(1);
  }
#endif
}

// Nanoseconds of a clock that all multiprocessors share.
VYRE_FUNCTION u64 vyre_now() {
#if VYRE_CUDA
  u64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#elif defined(__GFX11__) || defined(__GFX12__)
  return wall_clock64() * 10;
#else
  return __builtin_amdgcn_s_memrealtime() * 10;
#endif
}

// ---- A wave: all of its lanes take part in each of these --------------------------------------------------------

VYRE_FUNCTION u32 vyre_wave_lane() { return threadIdx.x % vyre_subgroup_size(); }

VYRE_FUNCTION u64 vyre_wave_ballot(bool value) {
#if VYRE_CUDA
  return __ballot_sync(0xffffffffu, value);
#else
  return __ballot(value);
#endif
}
VYRE_FUNCTION bool vyre_wave_any(bool value) { return vyre_wave_ballot(value) != 0; }
VYRE_FUNCTION bool vyre_wave_all(bool value) { return vyre_wave_ballot(!value) == 0; }

VYRE_FUNCTION u32 vyre_wave_from(u32 value, u32 lane) {
#if VYRE_CUDA
  return __shfl_sync(0xffffffffu, value, (int)lane);
#else
  return (u32)__shfl((int)value, (int)lane);
#endif
}
VYRE_FUNCTION u64 vyre_wave_from(u64 value, u32 lane) {
  const u32 low = vyre_wave_from((u32)value, lane), high = vyre_wave_from((u32)(value >> 32), lane);
  return low | (u64)high << 32;
}
VYRE_FUNCTION u64 vyre_wave_min(u64 value) {
  for (u32 half = vyre_subgroup_size() / 2; half > 0; half /= 2) {
    value = vyre_min(value, vyre_wave_from(value, vyre_wave_lane() ^ half));
  }
  return value;
}

#endif
