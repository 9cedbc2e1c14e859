// An invocation that runs items: what differs from a dispatch's. A trap and an abort end the item, not the
// invocation; memory that others write is acquired, and what the item wrote is remembered, so that only those items
// pay for fences that need them.

#ifndef VYRE_RESIDENT_ITEM_H
#define VYRE_RESIDENT_ITEM_H

#include "access.h"
#include "live.h"

enum { VYRE_STORED_DEVICE = 1, VYRE_STORED_HOST = 2 };

struct VyreItemContext : VyreContext {
  const VyreLive* live;
  u64 began;     // when this run began
  u64 limit;     // nanoseconds that a run may take, or 0
  u32 trap;      // the code that it trapped with
  bool trapped;
  u32 stored;    // memory that others may read, to which it stored: VYRE_STORED_...
  bool acquired; // plain loads see what others had written when it began
};

VYRE_FUNCTION void vyre_begin_item(VyreItemContext& vyre, u64 limit) {
  vyre.rounds = VYRE_ROUNDS;
  vyre.looked = 0;
  vyre.left = false;
  vyre.began = limit != 0 ? vyre_now() : 0;
  vyre.limit = limit;
  vyre.trap = 0;
  vyre.trapped = false;
  vyre.stored = 0;
  vyre.acquired = false;
}

// What an item stored is there for whoever is told afterwards that it has ended. What lies in the device's memory is read
// by its multiprocessors and, on NVIDIA, by its copy engines through the cache that they share.
VYRE_FUNCTION void vyre_fence_stores(u32 stored) {
  if (stored == 0) return;
#if VYRE_CUDA
  if (stored == VYRE_STORED_DEVICE) return vyre_fence_device();
#endif
  vyre_fence_system();
}

// These are chosen instead of those of a dispatch where the context is an item's.
VYRE_FUNCTION void vyre_trap(VyreItemContext& vyre, u32 code) {
  vyre.trap = code;
  vyre.trapped = true;
}
VYRE_FUNCTION void vyre_leave(VyreItemContext& vyre) { vyre.left = true; }
VYRE_FUNCTION bool vyre_aborted(VyreItemContext& vyre) {
  vyre.rounds = VYRE_ROUNDS;
  if (vyre_look(&vyre.live->abort) != 0 || vyre_look(&vyre.live->phase) == VYRE_ABORTING) return true;
  return vyre.limit != 0 && vyre_now() - vyre.began >= vyre.limit;
}

// A binding of an item: where its plain words are, and where the host changes them. The two are the same but for the
// tenant table, which is copied to the device at the start.
template <class Element>
struct VyreHostBuffer : VyreBuffer<Element> {
  const Element* origin;
};

template <class Element>
VYRE_FUNCTION VyreBuffer<Element> vyre_bind_item(const VyreItemBinding& binding) {
  return VyreBuffer<Element>{vyre_global<Element>(binding.data), (u32)binding.len};
}
template <class Element>
VYRE_FUNCTION VyreHostBuffer<Element> vyre_bind_host(const VyreItemBinding& binding) {
  VyreHostBuffer<Element> buffer;
  buffer.data = vyre_global<Element>(binding.data);
  buffer.len = (u32)binding.len;
  buffer.origin = vyre_global<const Element>(binding.origin);
  return buffer;
}

// Words of a table that is copied only rise while the kernel runs, so a copy that holds the greatest number is exact.
template <VyreOrder O, VyreScope S, class T>
VYRE_FUNCTION T vyre_atomic_load(const VyreHostBuffer<T>& buffer, u32 index) {
  if (index >= buffer.len) return T(0);
  if (buffer.origin != buffer.data && buffer.data[index] == ~T(0)) return ~T(0);
  return vyre_atomic_load<O, VYRE_SYSTEM>(buffer.origin + index);
}

// Before the first plain load of an item.
VYRE_FUNCTION void vyre_acquire(VyreItemContext& vyre) {
  if (!vyre.acquired) vyre_acquire_all(&vyre.live->phase);
  vyre.acquired = true;
}
template <class Element>
VYRE_FUNCTION void vyre_acquire(VyreItemContext& vyre, const VyreBuffer<Element>&) {
  vyre_acquire(vyre);
}
template <class Element>
VYRE_FUNCTION void vyre_acquire(VyreItemContext& vyre, const VyreHostBuffer<Element>& buffer) {
  if (buffer.origin == buffer.data) vyre_acquire(vyre);
}

// An item and what came out of its run. The words are the arguments, then those of the outcome.
struct VyreItem {
  u32 opcode, tenant, flags;
  u64 ticket;
  u32 words[12];
};
struct VyreOutcome {
  u32 status, code;
  u64 result;
};

enum { VYRE_EMPTY = 0, VYRE_DONE = 3, VYRE_WAIT_IO = 4, VYRE_REQUEUE = 6, VYRE_FAULT = 7 };
enum { VYRE_IO_OK = 0x10, VYRE_IO_TIMED_OUT = 110 };
enum { VYRE_FAULT_DEADLINE = 6, VYRE_FAULT_ABANDONED = 8, VYRE_FAULT_IO = 12, VYRE_FAULT_MALFORMED = 13 };
#define VYRE_FAULT_TRAP 0x80000000u
#define VYRE_RESUMED 0x8000u
#define VYRE_PRIORITY 7u
#define VYRE_BATCH_FENCE 7u
#define VYRE_SHUTDOWN 0xffffffffu

// Believes an outcome only as far as it makes sense.
VYRE_FUNCTION void vyre_judge(const VyreItemContext& vyre, const VyreItem& item, VyreOutcome& outcome) {
  u32 fault = 0;
  if (vyre.trapped) {
    fault = vyre.trap == VYRE_FAULT_DEADLINE ? VYRE_FAULT_DEADLINE : VYRE_FAULT_TRAP | vyre.trap;
  } else if (vyre.left) {
    fault = VYRE_FAULT_DEADLINE;
  } else if (outcome.status == VYRE_WAIT_IO) {
    fault = item.words[0] == 0 ? VYRE_FAULT_MALFORMED : 0;
  } else if (outcome.status != VYRE_DONE && outcome.status != VYRE_REQUEUE && outcome.status != VYRE_FAULT) {
    fault = VYRE_FAULT_MALFORMED;
  }
  if (fault != 0) outcome = VyreOutcome{VYRE_FAULT, fault, 0};
}

#endif
