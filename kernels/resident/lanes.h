// Workers that run an item in each lane. A workgroup claims tickets in a row before they are published and polls
// their places in the device's ring; a wave runs what has come, together, while its other lanes go on waiting.

#ifndef VYRE_RESIDENT_LANES_H
#define VYRE_RESIDENT_LANES_H

#include "ring.h"

// Runs of an item in a row before others are let go first.
#define VYRE_RUNS 8u


struct VyreLaneShared {
  VyreQuarter staged[4][VYRE_THREADS];  // the item of each lane
  u64 base;
  u32 leaving;
};

struct VyreLaneState {
  enum { IDLE, WAITING, READY } state;
  u64 ticket;
  u32 ring;
  u32 runs;
  bool resumed, released;
};

// What lies where in the four quarters of a slot.
VYRE_FUNCTION void vyre_unstage(const VyreLaneShared& shared, const VyreLaneState& lane, VyreItem& item) {
  u32 headers[4];
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const VyreQuarter quarter = shared.staged[i][threadIdx.x];
    for (u32 word = 0; word < 3; word++) item.words[i * 3 + word] = quarter.words[word];
    headers[i] = quarter.tag & 0xffff;
  }
  item.opcode = headers[0] | headers[1] << 16;
  item.tenant = headers[2];
  item.flags = (headers[3] & VYRE_PRIORITY) | (lane.resumed ? VYRE_RESUMED : 0);
  item.ticket = lane.ticket;
}

VYRE_FUNCTION void vyre_stage(VyreLaneShared& shared, const VyreItem& item) {
  const u32 headers[4] = {item.opcode & 0xffff, item.opcode >> 16, item.tenant, item.flags & VYRE_PRIORITY};
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    shared.staged[i][threadIdx.x] =
        VyreQuarter{{item.words[i * 3], item.words[i * 3 + 1], item.words[i * 3 + 2]}, headers[i]};
  }
}

// Looks for the item of a ticket that is waited for.
VYRE_FUNCTION void vyre_poll(const VyreRing& ring, VyreLaneShared& shared, VyreLaneState& lane) {
  const u32 lap_tag = vyre_lap_tag(ring, lane.ticket);
  const VyreQuarter* slot = vyre_local_slot(ring, vyre_slot(ring, lane.ticket));
  // All at once: one wait. Lanes that look in vain are few.
  const VyreQuarter first = vyre_load_quarter<VYRE_DEVICE>(slot);
  const VyreQuarter second = vyre_load_quarter<VYRE_DEVICE>(slot + 1);
  const VyreQuarter third = vyre_load_quarter<VYRE_DEVICE>(slot + 2);
  const VyreQuarter last = vyre_load_quarter<VYRE_DEVICE>(slot + 3);
  u32 ahead = vyre_ahead(last.tag, lap_tag);
  if (ahead == 0) {
    // All words are used: see `vyre_load_quarter`.
    shared.staged[0][threadIdx.x] = first;
    shared.staged[1][threadIdx.x] = second;
    shared.staged[2][threadIdx.x] = third;
    shared.staged[3][threadIdx.x] = last;
    const u32 tags[3] = {first.tag, second.tag, third.tag};
    bool whole = true;
#pragma unroll
    for (u32 i = 0; i < 3; i++) {
      const u32 other = vyre_ahead(tags[i], lap_tag);
      whole = whole && other == 0;
      if (other != 0 && other < VYRE_BEHIND) ahead = other;
    }
    if (ahead == 0 && whole) lane.state = VyreLaneState::READY;
  }
  // Of a later lap: acknowledged without us.
  if (ahead != 0 && ahead < VYRE_BEHIND) lane.state = VyreLaneState::IDLE;
}

// Puts an item that a lane has into a queue.
VYRE_FUNCTION void vyre_pass_on(const VyreResident& kernel, const VyreRing& ring, VyreCursors* cursors, u64 entries,
                                u32 kind, const VyreLaneState& lane, const VyreItem& item) {
  vyre_write_record(ring, item);
  vyre_push(cursors, entries, kernel.queue_shift, VyreEntry{kind, lane.ring, vyre_slot(ring, item.ticket)});
}

// Runs what a lane has, and does with it what its outcome says.
template <class Lane, class Accounting>
VYRE_FUNCTION void vyre_run_lane(const VyreResident& kernel, VyreLive* live, const VyreRing& ring,
                                 typename Lane::Context& vyre, typename Accounting::Context& counting,
                                 VyreLaneShared& shared, VyreLaneState& lane, bool resuming, bool cancellations) {
  VyreItem item;
  vyre_unstage(shared, lane, item);
  const bool shutdown = item.opcode == VYRE_SHUTDOWN && item.tenant == 0;
  if (!lane.released && !lane.resumed && (shutdown || item.opcode == VYRE_BATCH_FENCE)) {
    if (shutdown) vyre_atomic_min<VYRE_RELAXED, VYRE_DEVICE>(&live->closed[lane.ring].next, item.ticket);
    vyre_pass_on(kernel, ring, &live->parked, kernel.parked, shutdown ? VYRE_KIND_SHUTDOWN : VYRE_KIND_FENCE, lane, item);
    lane.state = VyreLaneState::IDLE;
    return;
  }
  if (cancellations && !lane.resumed && !shutdown && vyre_is_cancelled(ring, item.ticket)) {
    vyre_complete(ring, item.ticket, VyreOutcome{VYRE_FAULT, VYRE_FAULT_ABANDONED, 0}, 0);
    lane.state = VyreLaneState::IDLE;
    return;
  }
  vyre_begin_item(vyre, kernel.item_deadline);
  VyreOutcome outcome = Lane::run(vyre, item);
  vyre_judge(vyre, item, outcome);
  lane.state = VyreLaneState::IDLE;
  // What was cut short to leave is not at fault: it stays unacknowledged.
  if (vyre.left && vyre_look(&live->phase) == VYRE_ABORTING) return;
  if (outcome.status == VYRE_REQUEUE) {
    item.flags |= VYRE_RESUMED;
    if (vyre_is_for_group(kernel, item.opcode)) {
      if (vyre.stored != 0) vyre_fence_device();
      vyre_push_group(kernel, live, lane.ring, item);
    } else if (resuming || ++lane.runs >= VYRE_RUNS) {
      vyre_pass_on(kernel, ring, &live->ready, kernel.ready, VYRE_KIND_PLAIN, lane, item);
    } else {
      vyre_stage(shared, item);
      lane.resumed = true;
      lane.state = VyreLaneState::READY;
    }
  } else if (outcome.status == VYRE_WAIT_IO) {
    vyre_pass_on(kernel, ring, &live->parked, kernel.parked, VYRE_KIND_IO, lane, item);
  } else {
    vyre_complete(ring, item.ticket, outcome, vyre.stored);
    // Afterwards: an atomic that is under way would hold back the completion.
    if (Accounting::PRESENT) {
      item.words[11] = outcome.status;
      vyre_begin_item(counting, 0);
      Accounting::run(counting, item);
    }
    if (shutdown && lane.released) {
      vyre_tell(&live->shut_down, 1u);
      vyre_fence_device();
      vyre_atomic_max<VYRE_RELAXED, VYRE_DEVICE>(&live->phase, (u32)VYRE_SHUT_DOWN);
    }
  }
}

// Takes items that are to be run again, a wave at a time.
VYRE_FUNCTION void vyre_take_ready(const VyreResident& kernel, VyreLive* live, VyreRing& ring,
                                   VyreLaneShared& shared, VyreLaneState& lane, u32 worker) {
  const u32 self = vyre_wave_lane();
  u64 head = 0;
  u32 count = 0;
  if (self == 0) {
    head = vyre_look(&live->ready.head);
    const u64 there = vyre_look(&live->ready.tail) - head;
    count = there < vyre_subgroup_size() ? (u32)there : vyre_subgroup_size();
    if (count != 0 && vyre_atomic_compare_exchange<VYRE_RELAXED, VYRE_DEVICE>(&live->ready.head, head, head + count) != head) {
      count = 0;
    }
  }
  head = vyre_wave_from(head, 0);
  count = vyre_wave_from(count, 0);
  if (count == 0) return;
  if (self < count) {
    VyreEntry entry;
    // Whoever took the place writes the entry next.
    while (!vyre_pull(kernel.ready, kernel.queue_shift, head + self, entry)) vyre_rest(20);
    VyreItem item;
    ring = vyre_ring(kernel, entry.ring);
    vyre_read_record(ring, entry.slot, item);
    vyre_stage(shared, item);
    lane.state = VyreLaneState::READY;
    lane.ticket = item.ticket;
    lane.ring = entry.ring;
    lane.released = entry.kind == VYRE_KIND_RELEASED;
    lane.resumed = !lane.released;
  }
  const u64 least = vyre_wave_min(self < count ? lane.ticket : ~0ull);
  const u64 most = ~vyre_wave_min(self < count ? ~lane.ticket : ~0ull);
  const u64 range = vyre_min(most - least + 1, (u64)256);
  if (self == 0) vyre_say_busy(kernel, worker, lane.ring, least, (u32)range);
}

// `workers`: the first of the workgroup's in-flight words; one for the workgroup, or one for each wave that resumes.
template <class Lane, class Accounting>
VYRE_FUNCTION void vyre_run_lanes(const VyreResident& kernel, VyreLive* live, typename Lane::Context& vyre,
                                  typename Accounting::Context& counting, VyreLaneShared& shared, u32 ring_index, u32 worker, bool resuming) {
  VyreRing ring = vyre_ring(kernel, ring_index);
  VyreLaneState lane = {VyreLaneState::IDLE, 0, ring_index, 0, false, false};
  if (resuming) worker += threadIdx.x / vyre_subgroup_size();
  if (threadIdx.x == 0) shared.leaving = 0;
  bool leaving = false;
  // Whether any was ever asked for: until then nobody looks at the host's words. Asked now and then.
  bool cancellations = vyre_look(&live->cancellations) != 0;
  u64 closed = ~0ull;
  for (;;) {
    if (!resuming) {
      vyre_barrier();
      if (shared.leaving != 0) break;
      if (threadIdx.x == 0) {
        shared.base = vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->tails[ring_index].next, (u64)kernel.claim);
        // Before anything of it is published, so that nobody waits for it.
        vyre_say_busy(kernel, worker, ring_index, shared.base, kernel.claim);
      }
      vyre_barrier();
      cancellations = vyre_look(&live->cancellations) != 0;
      lane.ticket = shared.base + threadIdx.x;
      lane.runs = 0;
      lane.resumed = false;
      const bool claimed = threadIdx.x < kernel.claim && !vyre_is_marked(ring, lane.ticket);
      lane.state = claimed ? VyreLaneState::WAITING : VyreLaneState::IDLE;
    }
    bool coming = true;
    u32 gathered = 0;
    for (u32 looks = 1;; looks++) {
      if (resuming && vyre_wave_all(lane.state == VyreLaneState::IDLE)) {
        vyre_take_ready(kernel, live, ring, shared, lane, worker);
      }
      const u64 waiting = vyre_wave_ballot(lane.state == VyreLaneState::WAITING);
      const bool all = coming || looks % VYRE_LOOKS_AT_ALL == 0 || vyre_trailing_zeros(waiting) == vyre_wave_lane();
      if (all && lane.state == VyreLaneState::WAITING) vyre_poll(ring, shared, lane);
      // Nothing begins behind a shutdown that was seen.
      const bool fresh = !lane.resumed && !lane.released;
      if (lane.state == VyreLaneState::READY && fresh && lane.ticket > closed) lane.state = VyreLaneState::IDLE;
      const bool ready = lane.state == VyreLaneState::READY;
      // A wave that runs items keeps its other lanes waiting. So when several have come together, it runs them once a
      // look brings no more; one by itself runs at once.
      const u32 have = (u32)vyre_count_ones(vyre_wave_ballot(ready));
      const bool gathering = have > 1 && have > gathered && vyre_wave_any(lane.state == VyreLaneState::WAITING);
      gathered = gathering ? have : 0;
      if (ready && !gathering) {
        vyre_run_lane<Lane, Accounting>(kernel, live, ring, vyre, counting, shared, lane, resuming, cancellations);
        if (resuming) vyre_finish(&live->ready, 1);
      }
      if (!resuming && vyre_wave_all(lane.state == VyreLaneState::IDLE)) break;
      if (looks % 16 == 0) {
        const u32 phase = vyre_wave_from(vyre_look(&live->phase), 0);
        closed = vyre_look(&live->closed[lane.ring].next);
        cancellations = vyre_look(&live->cancellations) != 0;
        if (phase == VYRE_ABORTING || (phase != VYRE_RUNNING && lane.state == VyreLaneState::WAITING)) {
          lane.state = VyreLaneState::IDLE;
        }
        leaving = phase != VYRE_RUNNING;
        if (resuming && leaving && vyre_wave_all(lane.state == VyreLaneState::IDLE)) {
          const bool done = phase == VYRE_ABORTING || (vyre_look(&live->lanes_left) == kernel.lane_groups &&
                                                       vyre_is_drained(&live->ready));
          if (vyre_wave_any(done)) break;
        }
      }
      coming = vyre_wave_any(ready);
      if (!coming) vyre_rest(20);
    }
    if (resuming) break;
    if (leaving) shared.leaving = 1;
  }
  if (threadIdx.x == 0 || (resuming && vyre_wave_lane() == 0)) vyre_say_busy(kernel, worker, 0, 0, 0);
}

#endif
