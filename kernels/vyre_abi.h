// What host and kernel agree on. Generated from crates/vyre-hip/src/emit/abi.rs, whose test keeps it
// up to date; edit that.

#ifndef VYRE_ABI_H
#define VYRE_ABI_H

#include <stddef.h>

// The control block of a dispatch, in device memory, aligned to 8 bytes.
struct VyreControl {
  // The least of `invocation << 16 | code >> 16` among those that trapped; all ones if none did.
  unsigned long long trap_high;
  // The least of `invocation << 16 | code & 0xffff`.
  unsigned long long trap_low;
  // Device address of a 32-bit word that the host makes other than zero to abort, or 0. It may be in
  // host memory that is mapped and coherent.
  unsigned long long abort;
  // Other than zero if the abort cut an invocation short.
  unsigned int aborted;
  // Workgroups that arrived at grid barriers.
  unsigned int grid_arrived;
  // The pass in which the program ended, counted from 1, or 0.
  unsigned int ended;
  // Zero.
  unsigned int reserved;
};
static_assert(sizeof(VyreControl) == 40, "VyreControl");
static_assert(offsetof(VyreControl, trap_high) == 0, "VyreControl.trap_high");
static_assert(offsetof(VyreControl, trap_low) == 8, "VyreControl.trap_low");
static_assert(offsetof(VyreControl, abort) == 16, "VyreControl.abort");
static_assert(offsetof(VyreControl, aborted) == 24, "VyreControl.aborted");
static_assert(offsetof(VyreControl, grid_arrived) == 28, "VyreControl.grid_arrived");
static_assert(offsetof(VyreControl, ended) == 32, "VyreControl.ended");
static_assert(offsetof(VyreControl, reserved) == 36, "VyreControl.reserved");

// The first part of a kernel's argument.
struct VyreArguments {
  // Device address of the control block.
  unsigned long long control;
  // Device address of the memory that invocations keep between passes, aligned to 8 bytes.
  unsigned long long invocation_spill;
  // Device address of the memory that workgroups keep between passes, aligned to 8 bytes.
  unsigned long long workgroup_spill;
};
static_assert(sizeof(VyreArguments) == 24, "VyreArguments");
static_assert(offsetof(VyreArguments, control) == 0, "VyreArguments.control");
static_assert(offsetof(VyreArguments, invocation_spill) == 8, "VyreArguments.invocation_spill");
static_assert(offsetof(VyreArguments, workgroup_spill) == 16, "VyreArguments.workgroup_spill");

// A buffer as bound.
struct VyreBinding {
  // Device address, aligned to the element. One element can be loaded from it even if `len` is 0.
  unsigned long long data;
  // Elements, at least as many as declared and at most 2^32 - 1.
  unsigned long long len;
};
static_assert(sizeof(VyreBinding) == 16, "VyreBinding");
static_assert(offsetof(VyreBinding, data) == 0, "VyreBinding.data");
static_assert(offsetof(VyreBinding, len) == 8, "VyreBinding.len");

// A buffer as bound to the items of a resident kernel.
struct VyreItemBinding {
  // As of a binding; for the tenant table the device's copy.
  unsigned long long data;
  // As of a binding.
  unsigned long long len;
  // Where the host changes it: the same address, but for the tenant table.
  unsigned long long origin;
};
static_assert(sizeof(VyreItemBinding) == 24, "VyreItemBinding");
static_assert(offsetof(VyreItemBinding, data) == 0, "VyreItemBinding.data");
static_assert(offsetof(VyreItemBinding, len) == 8, "VyreItemBinding.len");
static_assert(offsetof(VyreItemBinding, origin) == 16, "VyreItemBinding.origin");

// One ring of a resident kernel, in device memory.
struct VyreRing {
  // The host's slots.
  unsigned long long slots;
  // The completions, in host memory.
  unsigned long long completions;
  // The first ticket of this incarnation.
  unsigned long long first;
  // The device's copy of the slots, 64 bytes each.
  unsigned long long local;
  // For each slot how many of its tickets are complete: 8 bytes.
  unsigned long long laps;
  // For each slot 64 bytes for an item that does not end at once.
  unsigned long long records;
  // One bit for each ticket from the first on that was acknowledged before.
  unsigned long long marks;
  // Tickets from the first on that have such a bit.
  unsigned long long marked;
  // Slots, a power of two.
  unsigned int capacity;
  // Its logarithm.
  unsigned int shift;
  // Host memory: for each slot one more than the ticket that is not to begin.
  unsigned long long cancellations;
};
static_assert(sizeof(VyreRing) == 80, "VyreRing");
static_assert(offsetof(VyreRing, slots) == 0, "VyreRing.slots");
static_assert(offsetof(VyreRing, completions) == 8, "VyreRing.completions");
static_assert(offsetof(VyreRing, first) == 16, "VyreRing.first");
static_assert(offsetof(VyreRing, local) == 24, "VyreRing.local");
static_assert(offsetof(VyreRing, laps) == 32, "VyreRing.laps");
static_assert(offsetof(VyreRing, records) == 40, "VyreRing.records");
static_assert(offsetof(VyreRing, marks) == 48, "VyreRing.marks");
static_assert(offsetof(VyreRing, marked) == 56, "VyreRing.marked");
static_assert(offsetof(VyreRing, capacity) == 64, "VyreRing.capacity");
static_assert(offsetof(VyreRing, shift) == 68, "VyreRing.shift");
static_assert(offsetof(VyreRing, cancellations) == 72, "VyreRing.cancellations");

// A table that a resident kernel copies into host memory.
struct VyreMirror {
  // The device's words.
  unsigned long long source;
  // The host's.
  unsigned long long target;
  // What was copied last, zeros at first, in device memory.
  unsigned long long shadow;
  // How many.
  unsigned long long words;
};
static_assert(sizeof(VyreMirror) == 32, "VyreMirror");
static_assert(offsetof(VyreMirror, source) == 0, "VyreMirror.source");
static_assert(offsetof(VyreMirror, target) == 8, "VyreMirror.target");
static_assert(offsetof(VyreMirror, shadow) == 16, "VyreMirror.shadow");
static_assert(offsetof(VyreMirror, words) == 24, "VyreMirror.words");

// The first part of a resident kernel's argument. Addresses are the device's.
struct VyreResident {
  // `ring_count` rings.
  unsigned long long rings;
  // 8192 bytes of zeros, what the workgroups share.
  unsigned long long live;
  // Host memory: how far the host wants the kernel to be on its way out.
  unsigned long long command;
  // Host memory, three words: whether it is resident, how many workgroups were by then, how it ended.
  unsigned long long status;
  // Host memory: the abort flag, and in the upper half whether a cancellation was ever asked for.
  unsigned long long abort;
  // Host memory: the lease.
  unsigned long long lease;
  // Host memory: the heartbeat.
  unsigned long long heartbeat;
  // Host memory: the in-flight words, 64 bytes apart.
  unsigned long long in_flight;
  // Host memory: the requests of the IO queue.
  unsigned long long io_requests;
  // Host memory: its replies.
  unsigned long long io_replies;
  // For each entry of the IO queue 8 bytes: who waits for its reply. Zeros.
  unsigned long long io_open;
  // `mirror_count` mirrors.
  unsigned long long mirrors;
  // The queue of items to run again: `1 << queue_shift` entries of 8 bytes, zeros.
  unsigned long long ready;
  // The items that a workgroup runs: as many entries of 80 bytes, zeros; not used without such programs.
  unsigned long long groups;
  // The same as `ready` for items to be parked.
  unsigned long long parked;
  // As many parked fences, of 32 bytes.
  unsigned long long fences;
  // As many requests that wait for a place, of 8 bytes.
  unsigned long long posting;
  // Opcodes that a workgroup runs.
  unsigned long long group_opcodes;
  // Nanoseconds that the lease may stay the same.
  unsigned long long lease_limit;
  // Nanoseconds that a run of an item may take, or 0.
  unsigned long long item_deadline;
  // Rings, at most 8.
  unsigned int ring_count;
  // In-flight words.
  unsigned int workers;
  // Entries of the IO queue, a power of two.
  unsigned int io_entries;
  // Mirrors.
  unsigned int mirror_count;
  // The logarithm of a queue's length, which is no less than the slots of all rings together.
  unsigned int queue_shift;
  // Opcodes that a workgroup runs.
  unsigned int group_opcode_count;
  // Workgroups that schedule.
  unsigned int scheduler_groups;
  // Workgroups that run items by lanes, those to be run again apart.
  unsigned int lane_groups;
  // Tickets that such a workgroup claims at once, at most its invocations and 256.
  unsigned int claim;
  // Zero.
  unsigned int reserved;
};
static_assert(sizeof(VyreResident) == 200, "VyreResident");
static_assert(offsetof(VyreResident, rings) == 0, "VyreResident.rings");
static_assert(offsetof(VyreResident, live) == 8, "VyreResident.live");
static_assert(offsetof(VyreResident, command) == 16, "VyreResident.command");
static_assert(offsetof(VyreResident, status) == 24, "VyreResident.status");
static_assert(offsetof(VyreResident, abort) == 32, "VyreResident.abort");
static_assert(offsetof(VyreResident, lease) == 40, "VyreResident.lease");
static_assert(offsetof(VyreResident, heartbeat) == 48, "VyreResident.heartbeat");
static_assert(offsetof(VyreResident, in_flight) == 56, "VyreResident.in_flight");
static_assert(offsetof(VyreResident, io_requests) == 64, "VyreResident.io_requests");
static_assert(offsetof(VyreResident, io_replies) == 72, "VyreResident.io_replies");
static_assert(offsetof(VyreResident, io_open) == 80, "VyreResident.io_open");
static_assert(offsetof(VyreResident, mirrors) == 88, "VyreResident.mirrors");
static_assert(offsetof(VyreResident, ready) == 96, "VyreResident.ready");
static_assert(offsetof(VyreResident, groups) == 104, "VyreResident.groups");
static_assert(offsetof(VyreResident, parked) == 112, "VyreResident.parked");
static_assert(offsetof(VyreResident, fences) == 120, "VyreResident.fences");
static_assert(offsetof(VyreResident, posting) == 128, "VyreResident.posting");
static_assert(offsetof(VyreResident, group_opcodes) == 136, "VyreResident.group_opcodes");
static_assert(offsetof(VyreResident, lease_limit) == 144, "VyreResident.lease_limit");
static_assert(offsetof(VyreResident, item_deadline) == 152, "VyreResident.item_deadline");
static_assert(offsetof(VyreResident, ring_count) == 160, "VyreResident.ring_count");
static_assert(offsetof(VyreResident, workers) == 164, "VyreResident.workers");
static_assert(offsetof(VyreResident, io_entries) == 168, "VyreResident.io_entries");
static_assert(offsetof(VyreResident, mirror_count) == 172, "VyreResident.mirror_count");
static_assert(offsetof(VyreResident, queue_shift) == 176, "VyreResident.queue_shift");
static_assert(offsetof(VyreResident, group_opcode_count) == 180, "VyreResident.group_opcode_count");
static_assert(offsetof(VyreResident, scheduler_groups) == 184, "VyreResident.scheduler_groups");
static_assert(offsetof(VyreResident, lane_groups) == 188, "VyreResident.lane_groups");
static_assert(offsetof(VyreResident, claim) == 192, "VyreResident.claim");
static_assert(offsetof(VyreResident, reserved) == 196, "VyreResident.reserved");

#endif
