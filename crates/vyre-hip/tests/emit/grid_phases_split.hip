// The program `grid_phases`.
#include "vyre_device.h"

namespace program_grid_phases {

struct Arguments {
  VyreArguments common;
  VyreBinding b_data;
  VyreBinding b_flags;
};

struct Context : VyreContext {
  VyreBuffer<u32> b_data;
  VyreBuffer<u32> b_flags;
  VyreBuffer<u64> b_tile;
};

extern "C" __global__ void __launch_bounds__(2) kernel_grid_phases_pass0(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 2u);
  vyre.b_data = vyre_bind<u32>(arguments.b_data);
  vyre.b_flags = vyre_bind<u32>(arguments.b_flags);
  __shared__ u64 s_tile[2];
  vyre.b_tile = vyre_share(s_tile, 2u);
  vyre_clear(vyre, vyre.b_tile);
  vyre_barrier();
  const u32 l_i = vyre_global_id_x(2u);
  const bool l_even = (vyre_workgroup_id_x() % 2u) == 0u;
  u32 l_mine = vyre.b_data.load(l_i);
  vyre.b_tile.put(vyre_local_id_x(), (u64)l_mine);
  *vyre_spilled<u32>(vyre, arguments.common, 0u) = l_i;
  *vyre_spilled<u32>(vyre, arguments.common, 4u) = l_even;
  *vyre_spilled<u32>(vyre, arguments.common, 8u) = l_mine;
  vyre_barrier();
  vyre_spill(vyre, vyre.b_tile, vyre_spilled_shared<u64>(arguments.common, 16u, 0u));
}

extern "C" __global__ void __launch_bounds__(2) kernel_grid_phases_pass1(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 2u);
  vyre.b_data = vyre_bind<u32>(arguments.b_data);
  vyre.b_flags = vyre_bind<u32>(arguments.b_flags);
  __shared__ u64 s_tile[2];
  vyre.b_tile = vyre_share(s_tile, 2u);
  if (vyre_ended(vyre, 1u)) {
    vyre_leave(vyre);
    return;
  }
  vyre_restore(vyre, vyre.b_tile, vyre_spilled_shared<u64>(arguments.common, 16u, 0u));
  vyre_barrier();
  const u32 l_i = *vyre_spilled<u32>(vyre, arguments.common, 0u);
  u32 l_mine = *vyre_spilled<u32>(vyre, arguments.common, 8u);
  l_mine = l_mine + vyre.b_data.load(3u - l_i);
  *vyre_spilled<u32>(vyre, arguments.common, 8u) = l_mine;
  vyre_barrier();
  vyre_spill(vyre, vyre.b_tile, vyre_spilled_shared<u64>(arguments.common, 16u, 0u));
}

extern "C" __global__ void __launch_bounds__(2) kernel_grid_phases_pass2(const Arguments arguments) {
  Context vyre;
  vyre_begin(vyre, arguments.common, vyre_local_id_x(), 2u);
  vyre.b_data = vyre_bind<u32>(arguments.b_data);
  vyre.b_flags = vyre_bind<u32>(arguments.b_flags);
  __shared__ u64 s_tile[2];
  vyre.b_tile = vyre_share(s_tile, 2u);
  if (vyre_ended(vyre, 2u)) {
    vyre_leave(vyre);
    return;
  }
  vyre_restore(vyre, vyre.b_tile, vyre_spilled_shared<u64>(arguments.common, 16u, 0u));
  vyre_barrier();
  const u32 l_i = *vyre_spilled<u32>(vyre, arguments.common, 0u);
  const bool l_even = *vyre_spilled<u32>(vyre, arguments.common, 4u);
  u32 l_mine = *vyre_spilled<u32>(vyre, arguments.common, 8u);
  if ((vyre.b_tile.get(vyre_local_id_x()) + 4ull) >= (u64)l_mine) {
    vyre.b_data.store(l_i, l_mine);
  }
  vyre.b_flags.store(vyre_workgroup_id_x(), (u32)l_even);
}

}
