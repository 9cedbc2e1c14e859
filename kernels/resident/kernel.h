// The resident kernel: one launch whose workgroups have roles by their index. The keeper first, then schedulers, then
// those who run items again, then those who run them by lanes, then those who run them as a whole.
//
// A program that includes this has VYRE_THREADS, a multiple of 64, and calls `vyre_resident` from its kernel.

#ifndef VYRE_RESIDENT_KERNEL_H
#define VYRE_RESIDENT_KERNEL_H

#include "groups.h"
#include "keeper.h"
#include "lanes.h"
#include "scheduler.h"

// So many invocations to a workgroup, and if `together` is not 0, registers for so many of them on a multiprocessor.
#if VYRE_CUDA
#define VYRE_BOUNDS(threads, together) __launch_bounds__(threads, together)
#else
#define VYRE_BOUNDS(threads, together) __launch_bounds__(threads)
#endif

// A program without items for workgroups.
struct VyreNoGroups {
  struct Context : VyreItemContext {};
  static const bool PRESENT = false;
  static const u32 INVOCATIONS = 0;
  template <class Bindings>
  static VYRE_METHOD void bind(Context&, const Bindings&) {}
  static VYRE_METHOD VyreOutcome run(Context&, VyreItem&) { return VyreOutcome{}; }
};

// No program that counts items.
struct VyreNoAccounting {
  struct Context : VyreItemContext {};
  static const bool PRESENT = false;
  template <class Bindings>
  static VYRE_METHOD void bind(Context&, const Bindings&) {}
  static VYRE_METHOD VyreOutcome run(Context&, VyreItem&) { return VyreOutcome{}; }
};

template <class Context>
VYRE_FUNCTION void vyre_begin_worker(Context& vyre, const VyreLive* live, u32 invocations) {
  vyre.control = nullptr;
  vyre.invocation = 0;
  vyre.local = threadIdx.x;
  vyre.invocations = invocations;
  vyre.live = live;
}

template <class Lane, class Accounting, class Group, class Bindings>
VYRE_FUNCTION void vyre_resident(const VyreResident& kernel, const Bindings& bindings) {
  __shared__ union Shared {
    VYRE_METHOD Shared() {}
    VyreLaneShared lanes;
    VyreGroupShared group;
  } shared;
  VyreLive* live = vyre_global<VyreLive>(kernel.live);
  if (threadIdx.x == 0) vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->arrived, 1u);
  u32 index = blockIdx.x;
  bool lanes = false;
  if (index == 0) {
    if (threadIdx.x < vyre_subgroup_size()) vyre_keep(kernel, live);
    return;
  }
  index -= 1;
  const u32 workers = 1 + kernel.scheduler_groups;
  const u32 waves = VYRE_THREADS / vyre_subgroup_size();
  if (index < kernel.scheduler_groups) {
    vyre_schedule(kernel, live, index * waves + threadIdx.x / vyre_subgroup_size(), kernel.scheduler_groups * waves);
  } else if (blockIdx.x - workers <= kernel.lane_groups) {
    // The first one takes what is to be run again.
    index = blockIdx.x - workers;
    lanes = index != 0;
    typename Lane::Context vyre;
    vyre_begin_worker(vyre, live, 1);
    vyre.local = 0;
    Lane::bind(vyre, bindings);
    typename Accounting::Context counting;
    vyre_begin_worker(counting, live, 1);
    counting.local = 0;
    Accounting::bind(counting, bindings);
    const u32 worker = lanes ? index - 1 : kernel.lane_groups;
    vyre_run_lanes<Lane, Accounting>(kernel, live, vyre, counting, shared.lanes, (lanes ? index - 1 : 0) % kernel.ring_count, worker, !lanes);
  } else if (Group::PRESENT) {
    index = blockIdx.x - workers - 1 - kernel.lane_groups;
    typename Group::Context vyre;
    vyre_begin_worker(vyre, live, Group::INVOCATIONS);
    Group::bind(vyre, bindings);
    vyre_run_groups<Group>(kernel, live, vyre, shared.group, kernel.lane_groups + waves + index);
  }
  vyre_barrier();
  if (threadIdx.x == 0) {
    vyre_fence_system();
    if (lanes) vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->lanes_left, 1u);
    vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->left, 1u);
  }
}

// What the kernel finds in its rings and cursors when it starts: tags of the lap before the first ticket's.
VYRE_FUNCTION void vyre_prepare(const VyreResident& kernel) {
  VyreLive* live = vyre_global<VyreLive>(kernel.live);
  const u64 self = (u64)blockIdx.x * blockDim.x + threadIdx.x, all = (u64)gridDim.x * blockDim.x;
  // Those asked for before the start are seen by whoever begins an item.
  if (self == 0) live->cancellations = (u32)(vyre_look_at_host(vyre_global<const u64>(kernel.abort)) >> 32);
  for (u32 index = 0; index < kernel.ring_count; index++) {
    const VyreRing ring = vyre_ring(kernel, index);
    if (self == 0) {
      live->tails[index].next = ring.first;
      live->closed[index].next = ~0ull;
      live->passed[index] = ring.first;
    }
    for (u64 slot = self; slot < ring.capacity; slot += all) {
      const u64 lap = (ring.first >> ring.shift) + (slot < vyre_slot(ring, ring.first) ? 1 : 0);
      for (u32 quarter = 0; quarter < 4; quarter++) {
        vyre_local_slot(ring, (u32)slot)[quarter] = VyreQuarter{{0, 0, 0}, (u32)lap << 16};
      }
      vyre_global<u64>(ring.laps)[slot] = lap;
    }
  }
}

#endif
