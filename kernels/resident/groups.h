// Workers that run an item with a whole workgroup, once a lane has admitted it.
//
// An item that is cut short ends in some invocations earlier than in others, which may wait at a barrier. So barriers
// of items vote, and whoever is done with an item keeps voting until all are.

#ifndef VYRE_RESIDENT_GROUPS_H
#define VYRE_RESIDENT_GROUPS_H

#include "ring.h"

struct VyreGroupShared {
  VyreItem item;
  u64 trap;      // `local id << 32 | code` of the least that trapped, or all ones
  u32 ring;
  u32 left;      // other than zero if it was cut short
  u32 stored;    // other than zero if it stored to memory that others may read
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

// Waits for an item; false to leave.
VYRE_FUNCTION bool vyre_await_group_item(const VyreResident& kernel, VyreLive* live, VyreGroupShared& shared,
                                         u64 place) {
  VyreEntry entry;
  for (u32 looks = 1; !vyre_pull(kernel.groups, kernel.queue_shift, place, entry); looks++) {
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
  VyreItem item;
  vyre_read_record(vyre_ring(kernel, entry.ring), entry.slot, item);
  shared.item = item;
  shared.ring = entry.ring;
  shared.trap = ~0ull;
  shared.left = 0;
  shared.stored = 0;
  shared.finished = 0;
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
  if (shared.stored != 0) vyre_fence_system();
  const VyreRing& ring = vyre_ring(kernel, shared.ring);
  const u32 slot = vyre_slot(ring, item.ticket);
  if (outcome.status == VYRE_REQUEUE || outcome.status == VYRE_WAIT_IO) {
    item.flags |= VYRE_RESUMED;
    vyre_write_record(ring, item);
    if (outcome.status == VYRE_REQUEUE) {
      vyre_push(&live->groups, kernel.groups, kernel.queue_shift, VyreEntry{VYRE_KIND_PLAIN, shared.ring, slot});
    } else {
      vyre_push(&live->parked, kernel.parked, kernel.queue_shift, VyreEntry{VYRE_KIND_IO, shared.ring, slot});
    }
  } else {
    vyre_complete(ring, item.ticket, outcome, false);
  }
}

template <class Group>
VYRE_FUNCTION void vyre_run_groups(const VyreResident& kernel, VyreLive* live, typename Group::Context& vyre,
                                   VyreGroupShared& shared, u32 worker) {
  for (;;) {
    if (threadIdx.x == 0) {
      const u64 place = vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->groups.head, (u64)1);
      shared.go = vyre_await_group_item(kernel, live, shared, place);
      if (shared.go != 0) vyre_say_busy(kernel, worker, shared.ring, shared.item.ticket, 1);
    }
    vyre_barrier();
    if (shared.go == 0) break;
    VyreItem item = shared.item;
    vyre_begin_item(vyre, kernel.item_deadline);
    VyreOutcome outcome = {VYRE_EMPTY, 0, 0};
    if (threadIdx.x < Group::INVOCATIONS) outcome = Group::run(vyre, item);
    if (vyre.left) vyre_atomic_or<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.left, 1u);
    if (vyre.stored) vyre_atomic_or<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.stored, 1u);
    if (vyre.trapped) {
      vyre_atomic_min<VYRE_RELAXED, VYRE_WORKGROUP>(&shared.trap, (u64)threadIdx.x << 32 | vyre.trap);
    }
    vyre_item_end(shared);
    if (threadIdx.x == 0) {
      vyre_end_group_item(kernel, live, vyre, shared, item, outcome);
      vyre_finish(&live->groups);
    }
    vyre_barrier();
  }
  if (threadIdx.x == 0) vyre_say_busy(kernel, worker, 0, 0, 0);
}

#endif
