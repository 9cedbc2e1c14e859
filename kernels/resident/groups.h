// Workers that run an item with a whole workgroup, once a lane has admitted it.
//
// An item that is cut short ends in some invocations earlier than in others, which may wait at a barrier. So barriers
// of items vote, and whoever is done with an item keeps voting until all are.

#ifndef VYRE_RESIDENT_GROUPS_H
#define VYRE_RESIDENT_GROUPS_H

#include "ring.h"

struct VyreGroupShared {
  VyreQuarter staged[5];  // the item
  u64 trap;      // `local id << 32 | code` of the least that trapped, or all ones
  u32 left;      // other than zero if it was cut short
  u32 stored;    // as in its contexts
  u32 go;
  u32 finished;  // waves, where barriers count these
};

VYRE_FUNCTION void vyre_item_barrier() {
#if VYRE_CUDA
  __syncthreads_count(0);
#else
  vyre_barrier();
  vyre_barrier();
#endif
}

// Whether no invocation of the item has been cut short. Whoever has votes as those do that an item does not need.
VYRE_FUNCTION bool vyre_all_came(const VyreItemContext& vyre) {
#if VYRE_CUDA
  return __syncthreads_count(0) == (int)(blockDim.x - vyre.invocations);
#else
  return true;
#endif
}

// Waits until every invocation is done with the item.
VYRE_FUNCTION void vyre_item_end(VyreGroupShared& shared) {
#if VYRE_CUDA
  while (__syncthreads_count(1) != (int)blockDim.x) {
  }
#else
  const u32 waves = (blockDim.x + vyre_subgroup_size() - 1) / vyre_subgroup_size();
  if (vyre_wave_lane() == 0) vyre_atomic_add<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.finished, 1u);
  for (bool all = false; !all;) {
    vyre_barrier();
    all = vyre_atomic_load<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.finished) == waves;
    vyre_barrier();
  }
#endif
}

// Waits for the item at a place; false to leave. `ended`: items that this workgroup has not said to be done with.
VYRE_FUNCTION bool vyre_await_group_item(const VyreResident& kernel, VyreLive* live, VyreGroupShared& shared, u64 place,
                                         u64& ended) {
  for (u32 looks = 1; !vyre_pull_group(kernel, place, shared.staged); looks++) {
    if (ended != 0) vyre_finish(&live->groups, ended);
    ended = 0;
    if (looks % 16 == 0) {
      const u32 phase = vyre_look(&live->phase);
      if (phase == VYRE_ABORTING) return false;
      if (phase != VYRE_RUNNING && vyre_look(&live->lanes_left) == kernel.lane_groups &&
          vyre_is_drained(&live->groups)) {
        return false;
      }
    }
    vyre_rest(looks > 4096 ? 500 : 40);
  }
  shared.trap = ~0ull;
  shared.left = 0;
  shared.stored = 0;
  shared.finished = 0;
  // For all, who meet it at a barrier: what the host and earlier items wrote is seen.
  vyre_acquire_all(&vyre_group_entry(kernel, place)->quarters[4].tag);
  return true;
}

// One invocation does with the item what its outcome says.
VYRE_FUNCTION void vyre_end_group_item(const VyreResident& kernel, VyreLive* live, VyreItemContext& vyre,
                                       const VyreGroupShared& shared, VyreItem& item, VyreOutcome outcome) {
  vyre.left = shared.left != 0;
  vyre.trapped = shared.trap != ~0ull;
  vyre.trap = (u32)shared.trap;
  vyre_judge(vyre, item, outcome);
  if (vyre.left && vyre_look(&live->phase) == VYRE_ABORTING) return;
  // One fence for what all stored: they have met at a barrier since.
  vyre_fence_stores(shared.stored);
  const u32 index = shared.staged[4].words[2];
  const VyreRing& ring = vyre_ring(kernel, index);
  item.flags |= VYRE_RESUMED;
  if (outcome.status == VYRE_REQUEUE) {
    vyre_push_group(kernel, live, index, item);
  } else if (outcome.status == VYRE_WAIT_IO) {
    vyre_write_record(ring, item);
    vyre_push(&live->parked, kernel.parked, kernel.queue_shift, VyreEntry{VYRE_KIND_IO, index, vyre_slot(ring, item.ticket)});
  } else {
    vyre_complete(ring, item.ticket, outcome, 0);
  }
}

template <class Group>
VYRE_FUNCTION void vyre_run_groups(const VyreResident& kernel, VyreLive* live, typename Group::Context& vyre,
                                   VyreGroupShared& shared, u32 worker) {
  u64 place = 0, ended = 0;
  if (threadIdx.x == 0) place = vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->groups.head, (u64)1);
  for (;;) {
    VyreItem item;
    if (threadIdx.x == 0) {
      shared.go = vyre_await_group_item(kernel, live, shared, place, ended);
      vyre_unstage_group(shared.staged, item);
      if (shared.go != 0) vyre_say_busy(kernel, worker, shared.staged[4].words[2], item.ticket, 1);
    }
    vyre_barrier();
    if (shared.go == 0) break;
    vyre_unstage_group(shared.staged, item);
    vyre_begin_item(vyre, kernel.item_deadline);
    vyre.acquired = true;
    VyreOutcome outcome = {VYRE_EMPTY, 0, 0};
    if (threadIdx.x < Group::INVOCATIONS) outcome = Group::run(vyre, item);
    if (vyre.left) vyre_atomic_or<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.left, 1u);
    if (vyre.stored != 0) vyre_atomic_or<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.stored, vyre.stored);
    if (vyre.trapped) {
      vyre_atomic_min<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.trap, (u64)threadIdx.x << 32 | vyre.trap);
    }
    vyre_item_end(shared);
    if (threadIdx.x == 0) {
      // Under way while the item is acknowledged, which takes about as long.
      place = vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->groups.head, (u64)1);
      vyre_end_group_item(kernel, live, vyre, shared, item, outcome);
      ended++;
    }
    vyre_barrier();
  }
  if (threadIdx.x == 0) vyre_say_busy(kernel, worker, 0, 0, 0);
}

#endif
