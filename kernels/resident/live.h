// What the workgroups of a resident kernel tell each other, in device memory, and how they pass items on.

#ifndef VYRE_RESIDENT_LIVE_H
#define VYRE_RESIDENT_LIVE_H

#include "access.h"

// How far a kernel is on its way out. It only ever goes forward.
enum { VYRE_RUNNING = 0, VYRE_QUIESCING = 1, VYRE_SHUT_DOWN = 2, VYRE_ABORTING = 3 };

#define VYRE_RINGS 8

// A queue of items: `head` is the next place to take from, `tail` the next to put to. It is as long as all rings
// together, so that it is never full.
struct alignas(128) VyreCursors {
  u64 head;
  u64 tail;
  u64 done;  // entries whose items have ended or were passed on, counted after that
};
struct alignas(128) VyreTail {
  u64 next;
};

// Zero at the start, but for what `vyre_resident_prepare` sets.
struct VyreLive {
  alignas(128) u32 phase;
  u32 abort;              // the host's flag
  u32 cancellations;      // other than zero once the host has asked for one
  u32 shut_down;          // a shutdown has run
  alignas(128) u32 arrived;  // workgroups that run
  u32 left;               // workgroups that have left
  u32 lanes_left;         // those of them that ran items by lanes
  VyreCursors ready;      // to be run again, by lanes
  VyreCursors groups;     // to be run by a workgroup
  VyreCursors parked;     // to be parked
  VyreTail tails[VYRE_RINGS];      // the next ticket to claim
  VyreTail closed[VYRE_RINGS];     // the ticket of a shutdown, or all ones
  u64 passed[VYRE_RINGS];          // tickets before it are complete; the keeper's own
};
static_assert(sizeof(VyreLive) <= 8192, "VyreLive");

// Where a queue's entries lie. An entry is `turn << 32 | kind << 28 | ring << 24 | slot`, the turn counting from 1.
enum VyreKind { VYRE_KIND_PLAIN = 0, VYRE_KIND_RELEASED = 1, VYRE_KIND_IO = 2, VYRE_KIND_FENCE = 3, VYRE_KIND_SHUTDOWN = 4 };

struct VyreEntry {
  u32 kind, ring, slot;
};

VYRE_FUNCTION void vyre_push(VyreCursors* cursors, u64 entries, u32 shift, const VyreEntry& entry) {
  // What the entry is about is written before it.
  vyre_fence_device();
  const u64 place = vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&cursors->tail, (u64)1);
  u64* at = vyre_global<u64>(entries) + (place & ((1ull << shift) - 1));
  const u64 turn = (place >> shift) + 1;
  vyre_tell(at, turn << 32 | (u64)(entry.kind << 28 | entry.ring << 24 | entry.slot));
}

// Whether everything that was ever put in is done with. Nobody can put in more if whoever puts in is done.
VYRE_FUNCTION bool vyre_is_drained(const VyreCursors* cursors) {
  const u64 done = vyre_look(&cursors->done);
  vyre_fence_device();
  return vyre_look(&cursors->tail) == done;
}

VYRE_FUNCTION void vyre_finish(VyreCursors* cursors, u64 count) {
  vyre_fence_device();
  vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&cursors->done, count);
}

// Whether the entry at a place is there.
VYRE_FUNCTION bool vyre_pull(u64 entries, u32 shift, u64 place, VyreEntry& entry) {
  const u64 found = vyre_look(vyre_global<const u64>(entries) + (place & ((1ull << shift) - 1)));
  if ((u32)(found >> 32) != (u32)((place >> shift) + 1)) return false;
  vyre_fence_device();
  entry = VyreEntry{(u32)found >> 28, (u32)found >> 24 & 7, (u32)found & 0xffffff};
  return true;
}

#endif
