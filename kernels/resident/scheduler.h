// The distributor: a few waves read the host's slots in ticket order, a stripe each, and forward them to a ring in
// device memory, which the many workers poll. If all of these polled the host's memory, the bus would drown in polls.

#ifndef VYRE_RESIDENT_SCHEDULER_H
#define VYRE_RESIDENT_SCHEDULER_H

#include "ring.h"

// Looks in vain after which a wave rests between them.
#define VYRE_EAGER_LOOKS 4096u

VYRE_FUNCTION void vyre_schedule(const VyreResident& kernel, VyreLive* live, u32 wave, u32 waves) {
  const u32 index = wave % kernel.ring_count;
  const VyreRing ring = vyre_ring(kernel, index);
  const u32 first = wave / kernel.ring_count, stripe = (waves - index + kernel.ring_count - 1) / kernel.ring_count;
  const u32 lane = vyre_wave_lane(), together = vyre_subgroup_size() / 4;
  const VyreQuarter* slots = vyre_global<const VyreQuarter>(ring.slots);
  for (u64 group = ring.first / together + first;; group += stripe) {
    const u64 ticket = group * together + lane / 4;
    const u32 lap_tag = vyre_lap_tag(ring, ticket);
    const u64 place = (u64)vyre_slot(ring, ticket) * 4 + lane % 4;
    bool passed = ticket < ring.first, coming = true;
    for (u32 looks = 1;; looks++) {
      const u64 waiting = vyre_wave_ballot(!passed);
      if (waiting == 0) break;
      // The fewer bytes a look moves over the bus, the sooner it is back.
      const bool all = coming || looks % VYRE_LOOKS_AT_ALL == 0 || vyre_trailing_zeros(waiting) / 4 == lane / 4;
      bool came = false;
      if (all && !passed) {
        const VyreQuarter quarter = vyre_load_quarter<VYRE_SYSTEM>(slots + place);
        const u32 ahead = vyre_ahead(quarter.tag, lap_tag);
        if (ahead == 0) vyre_store_quarter<VYRE_DEVICE>(vyre_global<VyreQuarter>(ring.local) + place, quarter);
        // Of a later lap: it was acknowledged without us, and the worker that claimed it sees that as well.
        came = passed = ahead < VYRE_BEHIND;
      }
      coming = vyre_wave_any(came);
      if (looks % 16 == 0 && vyre_wave_any(vyre_look(&live->phase) != VYRE_RUNNING)) return;
      if (looks > VYRE_EAGER_LOOKS) vyre_rest(500);
    }
  }
}

#endif
