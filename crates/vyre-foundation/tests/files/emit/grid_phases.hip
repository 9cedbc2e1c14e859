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

extern "C" __global__ void __launch_bounds__(2) kernel_grid_phases(const Arguments arguments) {
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
  vyre_grid_barrier(vyre, 1u);
  if (vyre.left) return;
  l_mine = l_mine + vyre.b_data.load(3u - l_i);
  vyre_grid_barrier(vyre, 2u);
  if (vyre.left) return;
  if ((vyre.b_tile.get(vyre_local_id_x()) + 4ull) >= (u64)l_mine) {
    vyre.b_data.store(l_i, l_mine);
  }
  vyre.b_flags.store(vyre_workgroup_id_x(), (u32)l_even);
}

}
