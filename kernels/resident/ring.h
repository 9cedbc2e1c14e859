// One ring as the device sees it: tags, completions, and the records of items that do not end at once.

#ifndef VYRE_RESIDENT_RING_H
#define VYRE_RESIDENT_RING_H

#include "item.h"

// Items are published in ticket order but for producers that are preempted. So while nothing comes, a wave looks for
// the first that it waits for, and for the others at every so manieth look only.
#define VYRE_LOOKS_AT_ALL 8u

VYRE_FUNCTION u32 vyre_slot(const VyreRing& ring, u64 ticket) { return (u32)ticket & (ring.capacity - 1); }
VYRE_FUNCTION u32 vyre_lap_tag(const VyreRing& ring, u64 ticket) { return (u32)((ticket >> ring.shift) + 1) & 0xffff; }

// How many laps a tag is ahead of a ticket: 0 if it is the ticket's own, 0x8000 and above if it is behind.
VYRE_FUNCTION u32 vyre_ahead(u32 tag, u32 lap_tag) { return ((tag >> 16) - lap_tag) & 0xffff; }
#define VYRE_BEHIND 0x8000u

VYRE_FUNCTION VyreQuarter* vyre_local_slot(const VyreRing& ring, u32 slot) {
  return vyre_global<VyreQuarter>(ring.local) + (u64)slot * 4;
}

// Whether the start record says that the ticket was acknowledged before this incarnation.
VYRE_FUNCTION bool vyre_is_marked(const VyreRing& ring, u64 ticket) {
  const u64 offset = ticket - ring.first;
  if (offset >= ring.marked) return false;
  return (vyre_global<const u64>(ring.marks)[offset / 64] >> (offset % 64) & 1) != 0;
}

// Whether a ticket is complete, by this kernel or before it.
VYRE_FUNCTION bool vyre_is_complete(const VyreRing& ring, u64 ticket) {
  if (ticket < ring.first || vyre_is_marked(ring, ticket)) return true;
  return vyre_look(vyre_global<const u64>(ring.laps) + vyre_slot(ring, ticket)) > ticket >> ring.shift;
}

// Acknowledges. What a handler stored is made visible before; its read-modify-writes have been carried out where
// everybody looks for them.
VYRE_FUNCTION void vyre_complete(const VyreRing& ring, u64 ticket, const VyreOutcome& outcome, u32 stored) {
  vyre_fence_stores(stored);
  const u32 slot = vyre_slot(ring, ticket);
  const u32 tag = vyre_lap_tag(ring, ticket) << 16 | outcome.status;
  const VyreQuarter completion = {{(u32)outcome.result, (u32)(outcome.result >> 32), outcome.code}, tag};
  vyre_store_quarter<VYRE_SYSTEM>(vyre_global<VyreQuarter>(ring.completions) + slot, completion);
  // The greatest wins: the next lap's may be faster.
  vyre_atomic_max<VYRE_RELAXED, VYRE_DEVICE>(vyre_global<u64>(ring.laps) + slot, (ticket >> ring.shift) + 1);
}

// Whether the host would rather that a ticket's item not begin.
VYRE_FUNCTION bool vyre_is_cancelled(const VyreRing& ring, u64 ticket) {
  return vyre_look_at_host(vyre_global<const u64>(ring.cancellations) + vyre_slot(ring, ticket)) == ticket + 1;
}

// An item that is passed on, in device memory by its slot.
struct alignas(16) VyreRecord {
  u32 words[12];
  u32 opcode;
  u32 tenant_flags;
  u64 ticket;
};
static_assert(sizeof(VyreRecord) == 64, "VyreRecord");

VYRE_FUNCTION VyreRecord* vyre_record(const VyreRing& ring, u32 slot) {
  return vyre_global<VyreRecord>(ring.records) + slot;
}

VYRE_FUNCTION void vyre_write_record(const VyreRing& ring, const VyreItem& item) {
  VyreRecord* record = vyre_record(ring, vyre_slot(ring, item.ticket));
  for (u32 i = 0; i < 12; i++) record->words[i] = item.words[i];
  record->opcode = item.opcode;
  record->tenant_flags = item.tenant | item.flags << 16;
  record->ticket = item.ticket;
}

VYRE_FUNCTION void vyre_read_record(const VyreRing& ring, u32 slot, VyreItem& item) {
  const VyreRecord* record = vyre_record(ring, slot);
  for (u32 i = 0; i < 12; i++) item.words[i] = record->words[i];
  item.opcode = record->opcode;
  item.tenant = record->tenant_flags & 0xffff;
  item.flags = record->tenant_flags >> 16;
  item.ticket = record->ticket;
}

// An item on its way to a workgroup: quarters that vouch for themselves, as in a slot, so that neither side needs a fence for
// them. The tag's upper half is the turn of the queue, counting from 1.
struct alignas(16) VyreGroupEntry {
  VyreQuarter quarters[5];
};
static_assert(sizeof(VyreGroupEntry) == 80, "VyreGroupEntry");

VYRE_FUNCTION u32 vyre_group_turn(const VyreResident& kernel, u64 place) {
  return ((u32)(place >> kernel.queue_shift) + 1) << 16;
}
VYRE_FUNCTION VyreGroupEntry* vyre_group_entry(const VyreResident& kernel, u64 place) {
  return vyre_global<VyreGroupEntry>(kernel.groups) + (place & ((1ull << kernel.queue_shift) - 1));
}

// What an item's earlier run has written is made visible by the caller.
VYRE_FUNCTION void vyre_push_group(const VyreResident& kernel, VyreLive* live, u32 ring, const VyreItem& item) {
  const u64 place = vyre_atomic_add<VYRE_RELAXED, VYRE_DEVICE>(&live->groups.tail, (u64)1);
  VyreGroupEntry* entry = vyre_group_entry(kernel, place);
  const u32 turn = vyre_group_turn(kernel, place);
  const u32 headers[4] = {item.opcode & 0xffff, item.opcode >> 16, item.tenant, item.flags};
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const VyreQuarter quarter = {{item.words[i * 3], item.words[i * 3 + 1], item.words[i * 3 + 2]}, turn | headers[i]};
    vyre_store_quarter<VYRE_DEVICE>(&entry->quarters[i], quarter);
  }
  vyre_store_quarter<VYRE_DEVICE>(&entry->quarters[4], VyreQuarter{{(u32)item.ticket, (u32)(item.ticket >> 32), ring}, turn});
}

// The item at a place of the queue, in shared memory, if it is there.
VYRE_FUNCTION bool vyre_pull_group(const VyreResident& kernel, u64 place, VyreQuarter (&staged)[5]) {
  const VyreGroupEntry* entry = vyre_group_entry(kernel, place);
  const u32 turn = vyre_group_turn(kernel, place);
  bool whole = true;
#pragma unroll
  for (u32 i = 0; i < 5; i++) {
    const VyreQuarter quarter = vyre_load_quarter<VYRE_DEVICE>(&entry->quarters[i]);
    // All words are used: see `vyre_load_quarter`.
    staged[i] = quarter;
    whole = whole && (quarter.tag ^ turn) <= 0xffff;
  }
  return whole;
}

VYRE_FUNCTION void vyre_unstage_group(const VyreQuarter (&staged)[5], VyreItem& item) {
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    for (u32 word = 0; word < 3; word++) item.words[i * 3 + word] = staged[i].words[word];
  }
  item.opcode = (staged[0].tag & 0xffff) | staged[1].tag << 16;
  item.tenant = staged[2].tag & 0xffff;
  item.flags = staged[3].tag & 0xffff;
  item.ticket = staged[4].words[0] | (u64)staged[4].words[1] << 32;
}

VYRE_FUNCTION const VyreRing& vyre_ring(const VyreResident& kernel, u32 ring) {
  return vyre_global<const VyreRing>(kernel.rings)[ring];
}

VYRE_FUNCTION bool vyre_is_for_group(const VyreResident& kernel, u32 opcode) {
  const u32* opcodes = vyre_global<const u32>(kernel.group_opcodes);
  for (u32 i = 0; i < kernel.group_opcode_count; i++) {
    if (opcodes[i] == opcode) return true;
  }
  return false;
}

// Hints for recovery: what a worker is busy with.
VYRE_FUNCTION void vyre_say_busy(const VyreResident& kernel, u32 worker, u32 ring, u64 first, u32 count) {
  if (worker >= kernel.workers) return;
  const u64 word = count == 0 ? 0 : (first + 1) << 11 | (u64)(ring << 8 | (count - 1));
  vyre_tell_host(vyre_global<u64>(kernel.in_flight) + (u64)worker * 8, word);
}

#endif
