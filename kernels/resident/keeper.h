// The keeper: one wave that looks after everything that is no item's. It shows that the kernel is resident, beats,
// copies mirrors, watches the host's words, and looks after what is parked: fences, IO, shutdowns.

#ifndef VYRE_RESIDENT_KEEPER_H
#define VYRE_RESIDENT_KEEPER_H

#include "ring.h"

#define VYRE_BEAT 1000000ull     // nanoseconds between two beats
#define VYRE_GATHER 2000000000ull // nanoseconds that the workgroups may take to become resident

// What the host finds in `status`.
enum { VYRE_STARTING = 0, VYRE_RESIDENT = 1, VYRE_NOT_RESIDENT = 2 };

struct VyreKeeper {
  u64 lease, lease_seen, beat_at, beats;
  u64 next_request;   // number of the next IO request
  u64 parked_head;    // the next entry to take
  u32 fences;         // parked, shutdowns among them
  u32 posting, posted; // requests that wait for a place, and for an answer
  u64 posting_head;   // of the requests that wait for a place
  bool gave_up;       // on the host's answers
};

// A parked fence or shutdown.
struct VyreFence {
  u32 kind, ring;
  u64 ticket;
  u64 next;  // tickets before it that it waits for are complete
  u64 all;   // other than zero if it waits for all before it
};

static_assert(sizeof(VyreFence) == 32, "VyreFence");

VYRE_FUNCTION void vyre_advance(VyreLive* live, u32 phase) {
  vyre_atomic_max<VYRE_RELAXED, VYRE_DEVICE>(&live->phase, phase);
}

// Moves `next` over complete tickets, a wave at a time; says whether it arrived at `end`.
VYRE_FUNCTION bool vyre_pass_complete(const VyreRing& ring, u64& next, u64 end) {
  while (next < end) {
    const u64 ticket = next + vyre_wave_lane();
    const u64 open = vyre_wave_ballot(ticket >= end || !vyre_is_complete(ring, ticket));
    const u32 count = open == 0 ? vyre_subgroup_size() : (u32)vyre_trailing_zeros(open);
    next += count;
    if (count < vyre_subgroup_size()) break;
  }
  return next >= end;
}

// Copies what has changed into the host's region. The last one says that the others are there.
VYRE_FUNCTION void vyre_mirror(const VyreResident& kernel) {
  const VyreMirror* mirrors = vyre_global<const VyreMirror>(kernel.mirrors);
  for (u32 i = 0; i < kernel.mirror_count; i++) {
    const VyreMirror mirror = mirrors[i];
    vyre_fence_system();
    for (u64 word = vyre_wave_lane(); word < mirror.words; word += vyre_subgroup_size()) {
      const u32 now = vyre_look(vyre_global<const u32>(mirror.source) + word);
      u32* shadow = vyre_global<u32>(mirror.shadow) + word;
      if (*shadow == now) continue;
      *shadow = now;
      vyre_tell_host(vyre_global<u32>(mirror.target) + word, now);
    }
  }
}

VYRE_FUNCTION void vyre_beat(const VyreResident& kernel, VyreKeeper& keeper) {
  vyre_mirror(kernel);
  vyre_fence_system();
  keeper.beats++;
  if (vyre_wave_lane() == 0) vyre_tell_host(vyre_global<u64>(kernel.heartbeat), keeper.beats);
}

VYRE_FUNCTION void vyre_watch_lease(const VyreResident& kernel, VyreLive* live, VyreKeeper& keeper, u64 now) {
  const u64 lease = vyre_look_at_host(vyre_global<const u64>(kernel.lease));
  if (vyre_wave_any(lease != keeper.lease)) {
    keeper.lease = vyre_wave_from(lease, 0);
    keeper.lease_seen = now;
  } else if (now - keeper.lease_seen >= kernel.lease_limit) {
    // Once to finish what is claimed; if that takes as long again, without answers of the host; then at once.
    const bool running = vyre_wave_from(vyre_look(&live->phase), 0) == VYRE_RUNNING;
    const bool give_up = !running && !keeper.gave_up && keeper.posting + keeper.posted != 0;
    if (give_up) {
      keeper.gave_up = true;
    } else {
      vyre_advance(live, running ? VYRE_QUIESCING : VYRE_ABORTING);
    }
    keeper.lease_seen = now;
  }
}

// Takes what workers have parked.
VYRE_FUNCTION void vyre_take_parked(const VyreResident& kernel, VyreLive* live, VyreKeeper& keeper) {
  VyreEntry entry;
  while (keeper.parked_head != vyre_wave_from(vyre_look(&live->parked.tail), 0)) {
    // Whoever took the place writes the entry next.
    while (!vyre_wave_all(vyre_pull(kernel.parked, kernel.queue_shift, keeper.parked_head, entry))) {
    }
    keeper.parked_head++;
    const VyreRing& ring = vyre_ring(kernel, entry.ring);
    const u64 mask = (1ull << kernel.queue_shift) - 1;
    if (entry.kind == VYRE_KIND_IO) {
      u64* posting = vyre_global<u64>(kernel.posting) + ((keeper.posting_head + keeper.posting) & mask);
      *posting = (u64)entry.ring << 32 | entry.slot;
      keeper.posting++;
    } else {
      const VyreRecord* record = vyre_record(ring, entry.slot);
      const u64 ticket = record->ticket, count = entry.kind == VYRE_KIND_FENCE ? record->words[0] : 0;
      const u64 window = ticket < ring.capacity ? 0 : ticket - (ring.capacity - 1);
      u64 next = vyre_max(vyre_max(window, ring.first), live->passed[entry.ring]);
      if (count != 0 && count < ticket) next = vyre_max(next, ticket - count);
      vyre_global<VyreFence>(kernel.fences)[keeper.fences] = VyreFence{entry.kind, entry.ring, ticket, next, count == 0};
      keeper.fences++;
    }
  }
}

// Whether a ring other than a shutdown's has nothing left to do.
VYRE_FUNCTION bool vyre_is_idle(const VyreRing& ring, u64& passed) {
  const u32 lane = vyre_wave_lane();
  passed = vyre_max(passed, ring.first);
  // The first ticket that is not complete, of those that may be.
  vyre_pass_complete(ring, passed, passed + ring.capacity);
  const VyreQuarter* slot = vyre_global<const VyreQuarter>(ring.slots) + (u64)vyre_slot(ring, passed) * 4;
  VyreQuarter quarter = {{0, 0, 0}, 0};
  if (lane < 4) quarter = vyre_load_quarter<VYRE_SYSTEM>(slot + lane);
  const bool behind = lane >= 4 || vyre_ahead(quarter.tag, vyre_lap_tag(ring, passed)) >= VYRE_BEHIND;
  return vyre_wave_any(lane < 4 && behind);
}

VYRE_FUNCTION bool vyre_may_shut_down(const VyreResident& kernel, VyreLive* live, u32 own) {
  for (u32 index = 0; index < kernel.ring_count; index++) {
    if (index != own && !vyre_is_idle(vyre_ring(kernel, index), live->passed[index])) return false;
  }
  return true;
}

// Lets go of the fences and shutdowns whose time has come.
VYRE_FUNCTION void vyre_tend_fences(const VyreResident& kernel, VyreLive* live, VyreKeeper& keeper) {
  VyreFence* fences = vyre_global<VyreFence>(kernel.fences);
  u32 kept = 0;
  for (u32 i = 0; i < keeper.fences; i++) {
    VyreFence fence = fences[i];
    const VyreRing& ring = vyre_ring(kernel, fence.ring);
    bool free = vyre_pass_complete(ring, fence.next, fence.ticket);
    if (free && fence.all != 0) live->passed[fence.ring] = vyre_max(live->passed[fence.ring], fence.ticket);
    if (free && fence.kind == VYRE_KIND_SHUTDOWN) free = vyre_may_shut_down(kernel, live, fence.ring);
    if (free) {
      const VyreEntry entry = {VYRE_KIND_RELEASED, fence.ring, vyre_slot(ring, fence.ticket)};
      if (vyre_wave_lane() == 0) vyre_push(&live->ready, kernel.ready, kernel.queue_shift, entry);
    } else {
      fences[kept++] = fence;
    }
  }
  keeper.fences = kept;
}

// Asks the host for what items wait for, as far as there is room.
VYRE_FUNCTION void vyre_post(const VyreResident& kernel, VyreKeeper& keeper) {
  const u64 mask = (1ull << kernel.queue_shift) - 1;
  u64* open = vyre_global<u64>(kernel.io_open);
  if (open[(u32)keeper.next_request & (kernel.io_entries - 1)] != 0) return;
  // What the items stored before they asked is there for the host. The entries told this wave of it at device scope.
  vyre_fence_system();
  while (keeper.posting != 0) {
    const u32 place = (u32)keeper.next_request & (kernel.io_entries - 1);
    if (open[place] != 0) return;
    const u64 item = vyre_global<const u64>(kernel.posting)[keeper.posting_head & mask];
    const VyreRing& ring = vyre_ring(kernel, (u32)(item >> 32));
    const VyreRecord* record = vyre_record(ring, (u32)item);
    const u32 lap = (u32)(keeper.next_request / kernel.io_entries + 1) << 16;
    const u32* words = record->words;
    const VyreQuarter request = {{words[0], words[1], words[2]}, lap | (record->tenant_flags & 0xffff)};
    const VyreQuarter range = {{words[3], words[4], words[5]}, lap};
    VyreQuarter* at = vyre_global<VyreQuarter>(kernel.io_requests) + (u64)place * 2;
    // By every lane: each sees its own store.
    open[place] = 1ull << 63 | (u64)(lap >> 16) << 40 | (item >> 32) << 32 | (u32)item;
    if (vyre_wave_lane() == 0) {
      vyre_store_quarter<VYRE_SYSTEM>(at, request);
      vyre_store_quarter<VYRE_SYSTEM>(at + 1, range);
    }
    vyre_fence_device();
    keeper.next_request++;
    keeper.posting_head++;
    keeper.posting--;
    keeper.posted++;
  }
}

// Ends an item that asked: with the bytes moved, or in a fault with the error number.
VYRE_FUNCTION void vyre_end_io(const VyreResident& kernel, u64 item, bool served, u32 result) {
  const VyreRing& ring = vyre_ring(kernel, (u32)(item >> 32) & 0xff);
  const VyreOutcome outcome = {(u32)(served ? VYRE_DONE : VYRE_FAULT), served ? 0u : (u32)VYRE_FAULT_IO, result};
  vyre_complete(ring, vyre_record(ring, (u32)item)->ticket, outcome, 0);
}

// Ends the items whose answers nobody waits for any more.
VYRE_FUNCTION void vyre_give_up_io(const VyreResident& kernel, VyreKeeper& keeper) {
  const u64 mask = (1ull << kernel.queue_shift) - 1;
  u64* open = vyre_global<u64>(kernel.io_open);
  for (u32 place = vyre_wave_lane(); place < kernel.io_entries; place += vyre_subgroup_size()) {
    if (open[place] != 0) vyre_end_io(kernel, open[place], false, VYRE_IO_TIMED_OUT);
    open[place] = 0;
  }
  const u64* posting = vyre_global<const u64>(kernel.posting);
  for (u32 i = vyre_wave_lane(); i < keeper.posting; i += vyre_subgroup_size()) {
    vyre_end_io(kernel, posting[(keeper.posting_head + i) & mask], false, VYRE_IO_TIMED_OUT);
  }
  keeper.posting_head += keeper.posting;
  keeper.posting = keeper.posted = 0;
  vyre_fence_device();
}

// Ends the items whose requests are answered. An answer that makes no sense counts as a failed one.
VYRE_FUNCTION void vyre_take_answers(const VyreResident& kernel, VyreKeeper& keeper) {
  u64* open = vyre_global<u64>(kernel.io_open);
  for (u32 first = 0; first < kernel.io_entries; first += vyre_subgroup_size()) {
    const u32 place = first + vyre_wave_lane();
    bool answered = false;
    if (place < kernel.io_entries && open[place] != 0) {
      const u64 item = open[place];
      const VyreQuarter reply = vyre_load_quarter<VYRE_SYSTEM>(vyre_global<const VyreQuarter>(kernel.io_replies) + place);
      answered = reply.tag >> 16 == (u32)(item >> 40 & 0xffff) && (reply.tag & 0xffff) != 0;
      if (answered) {
        // What the host moved is there for whoever waits for this.
        vyre_fence_system();
        const bool served = (reply.tag & 0xffff) == VYRE_IO_OK;
        vyre_end_io(kernel, item, served, served ? reply.words[0] : reply.words[1]);
        open[place] = 0;
      }
    }
    keeper.posted -= (u32)vyre_count_ones(vyre_wave_ballot(answered));
  }
  vyre_fence_device();
}

// Waits until every workgroup runs, or gives up and says so.
VYRE_FUNCTION bool vyre_gather(const VyreResident& kernel, VyreLive* live) {
  const u64 until = vyre_now() + VYRE_GATHER;
  u32 arrived = 0;
  bool all = false;
  while (!all && vyre_now() < until) {
    arrived = vyre_look(&live->arrived);
    all = vyre_wave_all(arrived == gridDim.x);
  }
  u32* status = vyre_global<u32>(kernel.status);
  if (!all) vyre_advance(live, VYRE_ABORTING);
  if (vyre_wave_lane() == 0) {
    vyre_tell_host(status + 1, arrived);
    vyre_fence_system();
    vyre_tell_host(status, (u32)(all ? VYRE_RESIDENT : VYRE_NOT_RESIDENT));
  }
  return all;
}

VYRE_FUNCTION void vyre_keep(const VyreResident& kernel, VyreLive* live) {
  VyreKeeper keeper = {};
  keeper.lease = vyre_wave_from(vyre_look_at_host(vyre_global<const u64>(kernel.lease)), 0);
  keeper.lease_seen = keeper.beat_at = vyre_now();
  vyre_beat(kernel, keeper);
  vyre_gather(kernel, live);
  for (;;) {
    const u32 command = vyre_look_at_host(vyre_global<const u32>(kernel.command));
    const u64 flags = vyre_look_at_host(vyre_global<const u64>(kernel.abort));
    if (vyre_wave_lane() == 0) {
      if (command != VYRE_RUNNING) vyre_advance(live, command);
      vyre_tell(&live->abort, (u32)flags);
      vyre_tell(&live->cancellations, (u32)(flags >> 32));
    }
    const u32 phase = vyre_wave_from(vyre_look(&live->phase), 0);
    const bool alone = phase != VYRE_RUNNING && vyre_wave_all(vyre_look(&live->left) + 1 == gridDim.x);
    if (alone && phase != VYRE_QUIESCING) break;
    const u64 now = vyre_wave_from(vyre_now(), 0);
    if (now - keeper.beat_at >= VYRE_BEAT) {
      keeper.beat_at = now;
      vyre_beat(kernel, keeper);
      vyre_watch_lease(kernel, live, keeper, now);
    }
    if (phase > VYRE_QUIESCING) continue;
    // What the last of the others parked before it left.
    if (alone) vyre_fence_device();
    vyre_take_parked(kernel, live, keeper);
    if (phase == VYRE_RUNNING && keeper.fences != 0) vyre_tend_fences(kernel, live, keeper);
    if (keeper.gave_up) vyre_give_up_io(kernel, keeper);
    if (keeper.posting != 0) vyre_post(kernel, keeper);
    if (keeper.posted != 0) vyre_take_answers(kernel, keeper);
    // What asked the host for something has run: it ends by the answer, or would run twice.
    if (alone && keeper.posting + keeper.posted == 0) break;
    if (keeper.fences + keeper.posting + keeper.posted == 0) vyre_rest(500);
  }
  // What the workers did last is mirrored.
  vyre_fence_system();
  vyre_beat(kernel, keeper);
  if (vyre_wave_lane() == 0) {
    const bool shut_down = vyre_look(&live->shut_down) != 0;
    vyre_fence_system();
    vyre_tell_host(vyre_global<u32>(kernel.status) + 2, shut_down ? (u32)VYRE_SHUT_DOWN : vyre_look(&live->phase));
  }
}

#endif
