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

#endif
