// Subgroup operations of the IR: a subgroup is a warp of NVIDIA, a wave of AMD. All lanes of a workgroup take part;
// those that the last subgroup lacks are absent, and nobody reads from them.
//
// Part of vyre_device.h, which includes it.

#ifndef VYRE_SUBGROUPS_H
#define VYRE_SUBGROUPS_H

VYRE_FUNCTION u32 vyre_subgroup_size() {
#if VYRE_CUDA
  return 32;
#elif VYRE_HOST
  return VYRE_HOST_SUBGROUP;
#elif __has_builtin(__builtin_amdgcn_wavefrontsize)
  return __builtin_amdgcn_wavefrontsize();
#else
  return __AMDGCN_WAVEFRONT_SIZE;
#endif
}

VYRE_FUNCTION u32 vyre_subgroup_lane(const VyreContext& vyre) { return vyre.local % vyre_subgroup_size(); }
VYRE_FUNCTION u32 vyre_subgroup_id(const VyreContext& vyre) { return vyre.local / vyre_subgroup_size(); }

// Lanes of the invocation's subgroup that are present.
VYRE_FUNCTION u32 vyre_lanes(const VyreContext& vyre) {
  const u32 size = vyre_subgroup_size();
  return vyre_min(vyre.invocations - vyre_subgroup_id(vyre) * size, size);
}

#if VYRE_CUDA
VYRE_FUNCTION u32 vyre_lane_mask(const VyreContext& vyre) { return 0xffffffffu >> (32 - vyre_lanes(vyre)); }
#endif

// What `lane`, which is present, has for a value.
VYRE_FUNCTION u32 vyre_from_lane(const VyreContext& vyre, u32 value, u32 lane) {
#if VYRE_CUDA
  return __shfl_sync(vyre_lane_mask(vyre), value, (int)lane);
#elif VYRE_AMD
  return (u32)__builtin_amdgcn_ds_bpermute((int)(lane * 4), (int)value);
#else
  return vyre_host_from_lane(vyre.local, vyre_subgroup_id(vyre) * VYRE_HOST_SUBGROUP + lane, value);
#endif
}
VYRE_FUNCTION i32 vyre_from_lane(const VyreContext& vyre, i32 value, u32 lane) {
  return (i32)vyre_from_lane(vyre, (u32)value, lane);
}
VYRE_FUNCTION bool vyre_from_lane(const VyreContext& vyre, bool value, u32 lane) {
  return vyre_from_lane(vyre, (u32)value, lane) != 0;
}
VYRE_FUNCTION f32 vyre_from_lane(const VyreContext& vyre, f32 value, u32 lane) {
  return vyre_f32(vyre_from_lane(vyre, vyre_bits(value), lane));
}
VYRE_FUNCTION u64 vyre_from_lane(const VyreContext& vyre, u64 value, u32 lane) {
  const u32 low = vyre_from_lane(vyre, (u32)value, lane);
  const u32 high = vyre_from_lane(vyre, (u32)(value >> 32), lane);
  return (u64)high << 32 | low;
}

// Zero where the lane is absent or no lane.
template <class T>
VYRE_FUNCTION T vyre_shuffle(const VyreContext& vyre, T value, u32 lane) {
  const bool present = lane < vyre_lanes(vyre);
  const T found = vyre_from_lane(vyre, value, present ? lane : 0);
  return present ? found : T(0);
}

template <class T>
VYRE_FUNCTION T vyre_broadcast(const VyreContext& vyre, T value, u32 lane) {
  return vyre_shuffle(vyre, value, lane);
}

template <class T>
VYRE_FUNCTION T vyre_broadcast_first(const VyreContext& vyre, T value) {
  return vyre_from_lane(vyre, value, 0);
}

template <class T>
VYRE_FUNCTION T vyre_shuffle_xor(const VyreContext& vyre, T value, u32 mask) {
  return vyre_shuffle(vyre, value, vyre_subgroup_lane(vyre) ^ mask);
}

// Bit i is what lane i says, zero where it is absent.
VYRE_FUNCTION u64 vyre_ballot(const VyreContext& vyre, bool value) {
#if VYRE_CUDA
  return __ballot_sync(vyre_lane_mask(vyre), value);
#elif VYRE_AMD
  return __ballot(value);
#else
  u64 ballot = 0;
  for (u32 lane = 0; lane < vyre_lanes(vyre); lane++) ballot |= (u64)vyre_from_lane(vyre, value, lane) << lane;
  return ballot;
#endif
}
VYRE_FUNCTION bool vyre_any(const VyreContext& vyre, bool value) { return vyre_ballot(vyre, value) != 0; }
VYRE_FUNCTION bool vyre_all(const VyreContext& vyre, bool value) { return vyre_ballot(vyre, !value) == 0; }

#define VYRE_COMBINATION(name, result)                                        \
  struct name {                                                               \
    template <class T>                                                        \
    static VYRE_METHOD T of(T a, T b) { return result; }                      \
  };
VYRE_COMBINATION(VyreAdd, vyre_add(a, b))
VYRE_COMBINATION(VyreMin, vyre_min(a, b))
VYRE_COMBINATION(VyreMax, vyre_max(a, b))
VYRE_COMBINATION(VyreAnd, a& b)
VYRE_COMBINATION(VyreOr, a | b)
VYRE_COMBINATION(VyreXor, a ^ b)

// Neighbours first, then neighbouring pairs, and so on, the lower lanes to the left: a sum of floats is the same
// everywhere. The first lane of a block stands for it.
template <class Combination, class T>
VYRE_FUNCTION T vyre_reduce(const VyreContext& vyre, T value) {
  const u32 lane = vyre_subgroup_lane(vyre), lanes = vyre_lanes(vyre);
  for (u32 half = 1; half < vyre_subgroup_size(); half *= 2) {
    const u32 partner = (lane ^ half) & ~(half - 1);
    const bool present = partner < lanes;
    const T other = vyre_from_lane(vyre, value, present ? partner : lane);
    if (present) value = partner > lane ? Combination::of(value, other) : Combination::of(other, value);
  }
  return value;
}

// Hillis and Steele (CACM 29, 1986).
template <class Combination, class T>
VYRE_FUNCTION T vyre_inclusive_scan(const VyreContext& vyre, T value) {
  const u32 lane = vyre_subgroup_lane(vyre);
  for (u32 distance = 1; distance < vyre_subgroup_size(); distance *= 2) {
    const T below = vyre_from_lane(vyre, value, lane >= distance ? lane - distance : lane);
    if (lane >= distance) value = Combination::of(below, value);
  }
  return value;
}

// `start` is what lane 0 gets.
template <class Combination, class T>
VYRE_FUNCTION T vyre_exclusive_scan(const VyreContext& vyre, T value, T start) {
  const u32 lane = vyre_subgroup_lane(vyre);
  const T sum = vyre_inclusive_scan<Combination>(vyre, value);
  const T below = vyre_from_lane(vyre, sum, lane > 0 ? lane - 1 : 0);
  return lane > 0 ? below : start;
}

#endif
